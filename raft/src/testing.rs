//! Engines and state machines for tests: this crate's own, and those of the layers above.
//!
//! * [`SimEngine`]: one group in memory over any [`StateMachine`](crate::engine::StateMachine),
//!   with a gate at which a test holds, reorders, drops or refuses proposals and moves leadership.
//! * [`MemoryMachines`]: state machines in memory that survive the engine above them, and lose on
//!   demand what was never flushed.

mod memory;
mod sim;

pub use memory::{MemoryMachine, MemoryMachines};
pub use sim::SimEngine;

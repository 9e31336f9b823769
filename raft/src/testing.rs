//! Engines and state machines for tests: this crate's own, and those of the layers above.
//!
//! * [`SimEngine`]: one group in memory over any [`StateMachine`](crate::engine::StateMachine),
//!   with a gate at which a test holds, reorders, drops or refuses proposals and moves leadership.
//! * [`MemoryMachines`]: state machines in memory that survive the engine above them, and lose on
//!   demand what was never flushed.
//! * [`SimCluster`]: several real nodes over simulated disks and a simulated network, in virtual
//!   time, from a seed.

mod cluster;
mod memory;
pub(crate) mod memory_log;
pub mod seeded;
mod sim;
pub(crate) mod wire;

pub use cluster::{SimCluster, SimDisk};
pub use memory::{MemoryMachine, MemoryMachines};
pub use sim::SimEngine;

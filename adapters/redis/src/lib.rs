//! Leadline's Redis door: RESP2 and RESP3 over TCP and TLS.
//!
//! A command is data ([`spec::Spec`]: arity, keys, flags, category) and an `execute` over rows
//! ([`rows::Db`]), the same code for a plain call now and inside EXEC and scripts later. The
//! connection decodes, asks the coordinator, and answers in order.

#![allow(
    dead_code,
    unused_imports,
    reason = "being filled in: goes when the command families are all there"
)]

mod args;
mod commands;
mod operation;
mod reply;
mod rows;
mod spec;

//! Leadline's Redis door: RESP2 and RESP3 over TCP and TLS.
//!
//! A command is data ([`spec::Spec`]: arity, keys, flags, category) and an `execute` over rows
//! ([`rows::Db`]), the same code for a plain call and inside EXEC and scripts. The
//! connection decodes, asks the coordinator, and answers in order.

mod args;
mod blocking;
mod clients;
mod command_docs;
mod commands;
mod config;
mod connection;
mod decoder;
mod error;
mod exec;
mod glob;
mod info;
mod long_double;
mod metrics;
mod operation;
mod output;
mod reply;
mod rows;
mod script;
mod server;
mod session;
mod slowlog;
mod spec;
#[cfg(test)]
mod testing;

pub use commands::sweeps;
pub use config::RedisConfig;
pub use info::{Facts, NodeFacts};
pub use operation::RedisCodec;
pub use server::RedisServer;

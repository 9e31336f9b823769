//! Consensus for Leadline: deadlines by type, Raft groups, the write-ahead log, the transport.
//!
//! Layers above see [`Context`], the ids, [`RaftError`] and the traits of [`engine`]. openraft and
//! tonic stay inside this crate.

mod context;
pub mod engine;
mod error;
mod ids;
pub mod log;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;

pub use context::{Context, ContextGuard, DeadlineSource, Ended, FALLBACK_DEADLINE, TraceIds};
pub use error::RaftError;
pub use ids::{ClusterId, GroupId, LeaderId, LogIndex, NodeId, Term};

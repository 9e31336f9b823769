//! Consensus for Leadline: deadlines by type, Raft groups, the write-ahead log, the transport.
//!
//! Layers above see [`Context`], the ids, [`RaftError`] and the traits of [`engine`]. openraft and
//! tonic stay inside this crate.

mod blocking;
mod context;
pub mod engine;
mod error;
pub mod grpc;
mod ids;
pub mod log;
pub mod mutations;
mod node;
mod runtime;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod transport;
mod types;

pub use context::{Context, ContextGuard, DeadlineSource, Ended, FALLBACK_DEADLINE, TraceIds};
pub use error::RaftError;
pub use ids::{ClusterId, GroupId, LeaderId, LogIndex, NodeId, Term};
pub use node::{Group, NodeConfig, OpenError, RaftNode};

/// The largest entry that a group takes: what is proposed above it is refused before the log sees
/// it. The transport passes entries of this size, and a log with segments of the default size
/// stores them; a node with smaller segments proposes smaller ones.
pub const MAX_ENTRY_BYTES: usize = 15 << 20;

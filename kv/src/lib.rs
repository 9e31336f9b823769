//! Leadline's data plane: one ordered keyspace, cut into shards, each a Raft group.
//!
//! An adapter hands an [`Operation`] to a [`Coordinator`]; the operation is evaluated once, by the
//! executor of the shard's leader, over [`Rows`]; what it changed is replicated as effects.

pub mod admission;
pub mod blobs;
pub mod catalog;
pub mod cluster;
mod coordinator;
mod error;
pub mod executor;
pub mod hlc;
pub mod keyspace;
pub mod metrics;
pub mod node;
mod operation;
mod proxy;
pub mod state_machine;
mod stats;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transaction;
mod wire;

pub use coordinator::{Coordinator, KeyWatch, PendingReply, ShardedCoordinator};
pub use error::{KvError, Outcome};
pub use operation::{
    Access, Door, Gather, Moment, Operation, OperationCodec, RequestId, Route, RowError, Rows,
    ScanOrder, Scattered, Timestamp,
};
pub use transaction::Doubts;
#[doc(hidden)]
pub use transaction::TransactionOperation;
pub(crate) use transaction::counter_sum;

pub use stats::{DoorStatistics, DoorStats, ErrorClass, Latencies};

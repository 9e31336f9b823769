//! Why a chunk could not be stored or read.

use leadline_raft::Ended;

use super::ChunkRef;
use crate::KvError;

/// When a refused request may be worth another try.
pub(super) const RETRY_AFTER_MS: u64 = 250;

/// The budget for bodies under way is spent. Nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory for bodies under way is spent")]
pub struct Busy {
    pub retry_after_ms: u64,
}

/// Why a chunk could not be stored or read. Whatever it is, nothing was applied: a chunk that no
/// manifest names is nobody's, and putting it again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// A bounded queue or pool is full.
    #[error("overloaded: {what}")]
    Overloaded {
        what: &'static str,
        retry_after_ms: u64,
    },
    /// The request's context ended first.
    #[error("not applied: {0}")]
    NotApplied(Ended),
    /// Too few replicas have the chunk on disk, and no more can get it now.
    #[error("{stored} of {needed} needed replicas stored the chunk: {why}")]
    NoMajority {
        stored: usize,
        needed: usize,
        why: String,
    },
    /// Every replica of the shard says that it does not have it.
    #[error("no replica has chunk {0}")]
    Missing(ChunkRef),
    /// This node does not have the chunk, and replicas that may have it did not answer.
    #[error("chunk {chunk} cannot be fetched: {why}")]
    Unreachable { chunk: ChunkRef, why: String },
    /// A chunk has 1 to [`super::CHUNK_BYTES`] bytes.
    #[error("a chunk of {0} bytes: it must have 1 to {most}", most = super::CHUNK_BYTES)]
    TooLarge(usize),
    /// This node's disk is full or has failed.
    #[error("blob storage failed: {0}")]
    Disk(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

impl From<Busy> for BlobError {
    fn from(busy: Busy) -> Self {
        Self::Overloaded {
            what: "the memory for bodies under way is spent",
            retry_after_ms: busy.retry_after_ms,
        }
    }
}

impl From<Ended> for BlobError {
    fn from(ended: Ended) -> Self {
        Self::NotApplied(ended)
    }
}

impl From<BlobError> for KvError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Overloaded {
                what,
                retry_after_ms,
            } => Self::Overloaded {
                what,
                retry_after_ms,
            },
            BlobError::NotApplied(ended) => Self::NotApplied(ended),
            // Retryable as a shard without a leader is: too few of its replicas can be reached.
            BlobError::NoMajority { .. } | BlobError::Unreachable { .. } => {
                Self::NoLeader { leader: None }
            }
            BlobError::Missing(_) | BlobError::Disk(_) => Self::Storage(error.to_string()),
            BlobError::TooLarge(_) => Self::Invalid(error.to_string()),
            BlobError::Stopping => Self::Stopping,
        }
    }
}

//! Why a request to the data plane failed, and what may be done next.

use leadline_raft::{Ended, NodeId, RaftError};

/// What a failure says about the request's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was applied and nothing will be: safe to retry.
    NotApplied,
    /// The write may have been applied, or may still be.
    Unknown,
}

/// Why a request failed. [`KvError::outcome`] says what may be done next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// No leader is known or reachable (election, lost quorum, shard moving). Not applied.
    #[error("no leader for the shard{}", known(.leader))]
    NoLeader { leader: Option<NodeId> },
    /// A bounded queue or the memory budget is full. Not applied; retry after the hint.
    #[error("overloaded: {what}")]
    Overloaded {
        what: &'static str,
        retry_after_ms: u64,
    },
    /// The request's context ended before it was evaluated or handed on. Not applied.
    #[error("not applied: {0}")]
    NotApplied(Ended),
    /// The request was proposed or handed to another node, and its fate is not known.
    #[error("the write may have been applied: {0}")]
    Unknown(&'static str),
    /// The write touches several shards, which needs a transaction. Not applied.
    #[error("keys of one write must be in one shard")]
    CrossShard,
    /// The request is malformed or larger than the store takes. Not applied.
    #[error("{0}")]
    Invalid(String),
    /// Storage failed on the node that evaluated the request. Not applied.
    #[error("storage failed: {0}")]
    Storage(String),
    /// The node is shutting down. Not applied.
    #[error("the node is stopping")]
    Stopping,
}

fn known(leader: &Option<NodeId>) -> String {
    leader.map_or_else(String::new, |node| format!("; node {node} led last"))
}

impl KvError {
    /// What this failure says about the request's effects.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            Self::NoLeader { .. }
            | Self::Overloaded { .. }
            | Self::NotApplied(_)
            | Self::CrossShard
            | Self::Invalid(_)
            | Self::Storage(_)
            | Self::Stopping => Outcome::NotApplied,
        }
    }
}

impl From<RaftError> for KvError {
    fn from(error: RaftError) -> Self {
        match error {
            RaftError::NotLeader { leader } => Self::NoLeader { leader },
            RaftError::Overloaded(what) => Self::Overloaded {
                what,
                retry_after_ms: 100,
            },
            RaftError::NotApplied(ended) => Self::NotApplied(ended),
            RaftError::OutcomeUnknown(why) => Self::Unknown(why),
            RaftError::TooLarge { .. } => Self::Invalid(error.to_string()),
            RaftError::Refused(why) => Self::Invalid(why),
            RaftError::NoSuchGroup => Self::NoLeader { leader: None },
            RaftError::Stopped(why) => Self::Storage(why),
        }
    }
}

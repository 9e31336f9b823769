//! What consensus can answer besides "applied".

use crate::{Ended, NodeId};

/// Why consensus did not confirm a request. Each variant says whether something may have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// This node does not lead the group, or cannot prove it now. Not applied.
    #[error("not the leader")]
    NotLeader { leader: Option<NodeId> },
    /// A bounded queue is full. Not applied; try again later.
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    /// The context ended before anything was handed on. Not applied.
    #[error("not applied: {0}")]
    NotApplied(Ended),
    /// The proposal is (or may be) in a log, and its fate is not known here: it may still commit.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(&'static str),
    /// The entry is larger than the log takes. Not applied.
    #[error("an entry of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// The group, as it is, cannot do what it was asked. Not applied; asking again will not help.
    #[error("{0}")]
    Refused(String),
    /// This node does not host the group (any more). Not applied.
    #[error("this node does not host the group")]
    NoSuchGroup,
    /// The group stopped: it is shutting down, or its storage failed. Not applied.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

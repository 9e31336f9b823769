//! Failures between nodes: what a refusal says survives the way.

use leadline_raft::{Ended, NodeId};

use super::REPLY_TOO_LARGE;
use crate::coordinator::Reply;
use crate::wire::failure::Kind;
use crate::wire::{Failure, forward_reply::Outcome};
use crate::{KvError, wire};

/// What the other side says of an unknown outcome; the details are in its log.
const UNKNOWN: &str = "the leader lost track of the write";

pub(super) fn outcome_of(reply: Reply) -> Outcome {
    match reply {
        Ok(reply) => Outcome::Reply(reply),
        Err(error) => Outcome::Failure(failure_of(&error)),
    }
}

/// In place of a reply that no message takes.
pub(super) fn reply_too_large() -> Outcome {
    Outcome::Failure(Failure {
        kind: Kind::ReplyTooLarge.into(),
        ..Failure::default()
    })
}

fn failure_of(error: &KvError) -> Failure {
    let of = |kind: Kind| Failure {
        kind: kind.into(),
        ..Failure::default()
    };
    let saying = |kind: Kind, text: &str| Failure {
        text: text.to_owned(),
        ..of(kind)
    };
    match error {
        KvError::NoLeader { leader } => Failure {
            leader: leader.map_or(0, |node| node.0),
            ..of(Kind::NoLeader)
        },
        KvError::Overloaded {
            what,
            retry_after_ms,
        } => Failure {
            retry_after_ms: *retry_after_ms,
            ..saying(Kind::Overloaded, what)
        },
        KvError::NotApplied(Ended::Deadline) => of(Kind::Deadline),
        KvError::NotApplied(Ended::Cancelled) => of(Kind::Cancelled),
        KvError::Unknown(why) => saying(Kind::Unknown, why),
        KvError::CrossShard => of(Kind::CrossShard),
        KvError::Invalid(why) => saying(Kind::Invalid, why),
        KvError::Storage(why) => saying(Kind::Storage, why),
        KvError::Stopping => of(Kind::Stopping),
    }
}

/// The reply to a request that was a read, or to one that was not.
pub(super) fn reply_of(outcome: Outcome, read: bool) -> Reply {
    match outcome {
        Outcome::Reply(reply) => Ok(reply),
        Outcome::Failure(failure) => Err(error_of(failure, read)),
        Outcome::Watching(_) | Outcome::Woken(_) => {
            Err(KvError::Unknown("the leader answered something else"))
        }
    }
}

fn error_of(failure: wire::Failure, read: bool) -> KvError {
    match failure.kind() {
        Kind::NoLeader => KvError::NoLeader {
            leader: (failure.leader != 0).then_some(NodeId(failure.leader)),
        },
        Kind::Overloaded => KvError::Overloaded {
            what: "the leader's node has too much to do",
            retry_after_ms: failure.retry_after_ms,
        },
        Kind::Deadline => KvError::NotApplied(Ended::Deadline),
        Kind::Cancelled => KvError::NotApplied(Ended::Cancelled),
        Kind::CrossShard => KvError::CrossShard,
        Kind::Invalid => KvError::Invalid(failure.text),
        Kind::Storage => KvError::Storage(failure.text),
        // Not applied there: another node will lead.
        Kind::Stopping => KvError::NoLeader { leader: None },
        Kind::ReplyTooLarge if read => KvError::Invalid(REPLY_TOO_LARGE.to_owned()),
        // It was evaluated, and what it wrote stands.
        Kind::ReplyTooLarge => KvError::Unknown(REPLY_TOO_LARGE),
        // A kind of a newer version says nothing we may rely on.
        Kind::Unknown | Kind::Unspecified => KvError::Unknown(UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome as Effects;

    /// Saying *not applied* of what may be applied would lose the distinction that matters.
    #[test]
    fn what_a_failure_says_about_effects_survives_the_way() {
        let errors = [
            KvError::NoLeader {
                leader: Some(NodeId(3)),
            },
            KvError::Overloaded {
                what: "x",
                retry_after_ms: 7,
            },
            KvError::NotApplied(Ended::Deadline),
            KvError::NotApplied(Ended::Cancelled),
            KvError::Unknown("x"),
            KvError::CrossShard,
            KvError::Invalid("x".into()),
            KvError::Storage("x".into()),
            KvError::Stopping,
        ];
        for error in errors {
            let back = error_of(failure_of(&error), false);
            assert_eq!(back.outcome(), error.outcome(), "{error}");
        }
        assert_eq!(
            error_of(Failure::default(), false).outcome(),
            Effects::Unknown
        );
    }
}

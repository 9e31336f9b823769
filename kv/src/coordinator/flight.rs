//! A request under way, and when it may be sent again.
//!
//! # Invariants
//! 1. A request is sent again only if it was *not applied*, or has a request id. Once the outcome of
//!    one sending is unknown, a refusal of a later one does not make the request *not applied*.
//! 2. It is sent again only if its caller has submitted nothing after it that it must not change
//!    places with: a write with anything on its keys, a read with a write on its keys. So a caller's
//!    operations on one key are evaluated in the order of their submission or not at all, through
//!    any change of leader. Who the caller is, its context says ([`Context::caller`]).
//!    One way around it is open: an operation that is still on its way to a node that lost the
//!    leadership may be overtaken by one that went to the next leader, if the first node leads again
//!    when it arrives.

use std::sync::Arc;

use leadline_raft::Context;

use super::lane::Lane;
use super::reply::PendingReply;
use crate::admission::Permit;
use crate::executor::Once;
use crate::{Access, KvError, Operation, Outcome};

/// A request is given to this many leaders, one after the other, before its refusal is believed.
const MOST_ATTEMPTS: u8 = 250;

/// A request that was submitted to a lane.
pub(crate) struct Flight {
    pub(super) lane: Arc<Lane>,
    pub(super) request: Request,
    pub(super) attempts: u8,
    /// The outcome of an earlier sending is unknown.
    pub(super) unknown: bool,
    pub(super) _permit: Permit,
}

/// What is submitted, with its place in the lane's order.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) ctx: Context,
    pub(crate) operation: Arc<dyn Operation>,
    pub(crate) once: Option<Once>,
    /// See [`super::order::SubmissionOrder`].
    pub(crate) place: u64,
    /// The caller may have a write on these keys under way: see [`crate::executor::Order`].
    pub(crate) after_mine: bool,
    /// Came from another node: it is not forwarded again.
    pub(crate) forwarded: bool,
}

impl Flight {
    /// Sends the request again after `error`, if that is allowed and worth it.
    pub(super) fn again(&mut self, error: &KvError) -> Option<PendingReply> {
        let request = &self.request;
        let refused = match error {
            // Invariant 1.
            KvError::NoLeader { .. } => true,
            KvError::Unknown(_) => request.once.is_some(),
            KvError::Overloaded { .. }
            | KvError::NotApplied(_)
            | KvError::CrossShard
            | KvError::Invalid(_)
            | KvError::Storage(_)
            | KvError::Stopping => false,
        };
        if !refused || request.forwarded || request.ctx.ended().is_some() {
            return None;
        }
        if self.attempts >= MOST_ATTEMPTS {
            return None;
        }
        self.unknown |= error.outcome() == Outcome::Unknown;
        // The lane learns who leads even if this request cannot profit.
        let hint = match error {
            KvError::NoLeader { leader } => *leader,
            _ => None,
        };
        self.lane.heard_of(hint);
        debug_assert!(error.outcome() == Outcome::NotApplied || request.once.is_some());
        // Invariant 2. Newcomers are held first, so that none slips past the look at the order.
        let held = self.lane.hold();
        let caller = request.ctx.caller();
        if !self
            .lane
            .order
            .may_change(caller, &*request.operation, request.place)
        {
            return None;
        }
        if !self.lane.may_retry() {
            return None;
        }
        self.attempts += 1;
        Some(held.park(request.clone(), self.attempts))
    }

    /// What the request ends with, if its last sending ended with `error`.
    pub(super) fn ended(&self, error: KvError) -> KvError {
        if self.unknown && error.outcome() == Outcome::NotApplied {
            return KvError::Unknown(
                "an earlier sending was not answered, and later ones were refused",
            );
        }
        error
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let request = &self.request;
        self.lane
            .order
            .leave(request.ctx.caller(), &*request.operation);
    }
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight")
            .field("operation", &self.request.operation.name())
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn read(&self) -> bool {
        self.operation.access() == Access::Read
    }
}

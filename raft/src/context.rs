//! [`Context`]: the deadline as a type.
//!
//! # Invariants
//! 1. Every context has a deadline: there is no `Default` and no constructor without one.
//! 2. A child never outlives its parent, neither its deadline nor its cancellation.
//! 3. [`Context::run`] is the one place where a future is raced against a deadline and dropped.
//! 4. [`Context::detach`] is the only way to outlive a caller, and takes a deadline of its own.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The deadline of a request that brings none of its own.
pub const FALLBACK_DEADLINE: Duration = Duration::from_secs(5);

/// A longer deadline means "as long as the process lives" instead of an overflow: what a server or
/// a connection makes its requests' contexts from must not end before it.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Where a deadline came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineSource {
    /// The request brought it, or the code that started the work chose it.
    Caller,
    /// The request had none: [`FALLBACK_DEADLINE`] or what the operator configured for it.
    Fallback,
}

/// Why a context ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The caller went away (its connection closed, or the server is stopping).
    #[error("the caller is gone")]
    Cancelled,
}

/// The ids that tie log lines of one request together, across processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceIds {
    pub trace: u128,
    pub span: u64,
}

/// How long a request may take, and how it is told to stop early.
///
/// Built where work enters the process (a connection, a timer tick) and passed by reference.
/// Cloning costs two reference counts.
#[derive(Clone, Debug)]
pub struct Context {
    deadline: Instant,
    source: DeadlineSource,
    cancelled: CancellationToken,
    trace: TraceIds,
    caller: u64,
}

/// Cancels its context when dropped: a connection holds one, so that a client that leaves ends
/// its work at once.
#[derive(Debug)]
pub struct ContextGuard {
    _guard: DropGuard,
}

impl Context {
    /// A context that ends `timeout` from now (capped at a hundred years).
    #[must_use]
    pub fn with_timeout(timeout: Duration) -> Self {
        Self::until(Instant::now() + timeout.min(FAR))
    }

    /// A context that ends at `deadline`.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            source: DeadlineSource::Caller,
            cancelled: CancellationToken::new(),
            trace: TraceIds::default(),
            caller: 0,
        }
    }

    /// A context for a request without a deadline: it gets [`FALLBACK_DEADLINE`].
    #[must_use]
    pub fn fallback() -> Self {
        Self::fallback_of(FALLBACK_DEADLINE)
    }

    /// As [`Context::fallback`], with the fallback that the operator configured.
    #[must_use]
    pub fn fallback_of(timeout: Duration) -> Self {
        Self {
            source: DeadlineSource::Fallback,
            ..Self::with_timeout(timeout)
        }
    }

    /// A context inside this one that ends after `timeout`, or with this one if that is earlier.
    #[must_use]
    pub fn child(&self, timeout: Duration) -> Self {
        let own = Instant::now() + timeout.min(FAR);
        Self {
            deadline: own.min(self.deadline),
            source: if own < self.deadline {
                DeadlineSource::Caller
            } else {
                self.source
            },
            cancelled: self.cancelled.child_token(),
            trace: self.trace,
            caller: self.caller,
        }
    }

    /// A context that is cancelled with this one and not by itself, and ends at `deadline`, or with
    /// this one if that is earlier. Costs a reference count, where [`Context::child`] makes a token:
    /// for the many requests of one connection, which end together or at their deadlines.
    #[must_use]
    pub fn sharing(&self, deadline: Instant, source: DeadlineSource) -> Self {
        Self {
            deadline: deadline.min(self.deadline),
            source: if deadline < self.deadline {
                source
            } else {
                self.source
            },
            cancelled: self.cancelled.clone(),
            trace: self.trace,
            caller: self.caller,
        }
    }

    /// A context that outlives this one: not cancelled with it, and with a deadline of its own.
    ///
    /// For work that others rely on once it has begun. Every use says why.
    #[must_use]
    pub fn detach(&self, timeout: Duration) -> Self {
        Self {
            trace: self.trace,
            caller: self.caller,
            ..Self::with_timeout(timeout)
        }
    }

    /// A guard whose drop cancels this context and every child of it.
    #[must_use]
    pub fn guard(&self) -> ContextGuard {
        ContextGuard {
            _guard: self.cancelled.clone().drop_guard(),
        }
    }

    /// Cancels this context and every child of it.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    /// The same context, its log lines tied to `trace`.
    #[must_use]
    pub fn traced(mut self, trace: TraceIds) -> Self {
        self.trace = trace;
        self
    }

    /// The same context as that of a caller of its own: what one connection begins, under this
    /// context and its children, is in one order, and in none with what others begin.
    #[must_use]
    pub fn as_caller(mut self) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.caller = NEXT.fetch_add(1, Ordering::Relaxed);
        self
    }

    /// Who began this work; 0 where nobody said so ([`Context::as_caller`]).
    #[must_use]
    pub fn caller(&self) -> u64 {
        self.caller
    }

    #[must_use]
    pub fn trace(&self) -> TraceIds {
        self.trace
    }

    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    #[must_use]
    pub fn source(&self) -> DeadlineSource {
        self.source
    }

    /// Time left, zero once the deadline has passed. What travels to another process.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Why this context has ended, if it has. Cheap: for queues that drop expired work.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        if self.cancelled.is_cancelled() {
            Some(Ended::Cancelled)
        } else if self.deadline <= Instant::now() {
            Some(Ended::Deadline)
        } else {
            None
        }
    }

    /// Waits until this context ends. Cancel safe.
    pub async fn done(&self) -> Ended {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Ended::Cancelled,
            () = tokio::time::sleep_until(self.deadline) => Ended::Deadline,
        }
    }

    /// Runs `future` until it is ready or this context ends, whichever is first.
    ///
    /// At the end `future` is dropped, so what runs here must be cancel safe or say so. A future
    /// that is ready at once wins even when the context has already ended.
    ///
    /// # Errors
    /// [`Ended`] when the context ended first.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output, Ended> {
        tokio::pin!(future);
        tokio::select! {
            biased;
            output = &mut future => Ok(output),
            ended = self.done() => Err(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_child_ends_no_later_than_its_parent() {
        let parent = Context::with_timeout(Duration::from_millis(50));
        let longer = parent.child(Duration::from_secs(9));
        let shorter = parent.child(Duration::from_millis(10));
        assert_eq!(longer.deadline(), parent.deadline());
        assert_eq!(shorter.remaining(), Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn run_ends_a_stuck_future_at_the_deadline() {
        let ctx = Context::with_timeout(Duration::from_millis(50));
        let began = Instant::now();
        assert_eq!(
            ctx.run(std::future::pending::<()>()).await,
            Err(Ended::Deadline)
        );
        assert_eq!(began.elapsed(), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_guard_cancels_children_but_not_what_was_detached() {
        let ctx = Context::fallback();
        let child = ctx.child(Duration::from_secs(1));
        let detached = ctx.detach(Duration::from_secs(1));
        drop(ctx.guard());
        assert_eq!(child.ended(), Some(Ended::Cancelled));
        assert_eq!(child.done().await, Ended::Cancelled);
        assert_eq!(detached.ended(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sharing_context_is_cancelled_with_the_first_and_never_outlives_it() {
        let first = Context::with_timeout(Duration::from_millis(50));
        let far = first.sharing(Instant::now() + FAR, DeadlineSource::Fallback);
        let near = first.sharing(
            Instant::now() + Duration::from_millis(1),
            DeadlineSource::Fallback,
        );
        assert_eq!(
            (far.deadline(), far.source()),
            (first.deadline(), DeadlineSource::Caller)
        );
        assert_eq!(near.remaining(), Duration::from_millis(1));
        assert_eq!(near.source(), DeadlineSource::Fallback);
        drop(first.guard());
        assert_eq!(far.ended(), Some(Ended::Cancelled));
    }

    #[tokio::test]
    async fn a_caller_is_passed_on_to_children_and_no_two_are_the_same() {
        let caller = Context::fallback().as_caller();
        let child = caller.child(Duration::from_secs(1));
        assert_eq!(child.caller(), caller.caller());
        assert_ne!(Context::fallback().as_caller().caller(), caller.caller());
        assert_eq!(Context::fallback().caller(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_server_that_has_run_for_years_have_their_own_deadlines() {
        let server = Context::with_timeout(Duration::MAX);
        let connection = server.child(Duration::MAX);
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(365 * 24 * 3600)).await;
            let request = connection.child(Duration::from_secs(5));
            assert_eq!(request.remaining(), Duration::from_secs(5));
            let waited = connection.run(tokio::time::sleep(Duration::from_millis(1)));
            assert_eq!(waited.await, Ok(()));
        }
    }

    #[tokio::test]
    async fn a_deadline_beyond_the_clock_is_capped_not_overflowed() {
        assert!(Context::with_timeout(Duration::MAX).remaining() <= FAR);
    }

    #[tokio::test]
    async fn only_a_request_without_a_deadline_is_marked_as_fallback() {
        assert_eq!(Context::fallback().source(), DeadlineSource::Fallback);
        assert_eq!(
            Context::fallback().child(Duration::MAX).source(),
            DeadlineSource::Fallback
        );
        assert_eq!(
            Context::with_timeout(FALLBACK_DEADLINE).source(),
            DeadlineSource::Caller
        );
    }
}

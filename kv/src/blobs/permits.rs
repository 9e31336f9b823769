//! The budget for bodies on their way to disk, and the pools that reads draw on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use leadline_raft::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::RETRY_AFTER_MS;
use super::{BlobError, Busy};

/// Disk slots, and a bounded number of callers that wait for one. The permit goes with the work,
/// not with the caller: it comes back when the disk is done.
#[derive(Debug)]
pub(super) struct Pool {
    what: &'static str,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    most_waiting: usize,
}

impl Pool {
    pub(super) fn new(what: &'static str, slots: usize, most_waiting: usize) -> Self {
        Self {
            what,
            slots: Arc::new(Semaphore::new(slots)),
            waiting: AtomicUsize::new(0),
            most_waiting,
        }
    }

    /// A slot, waited for until `ctx` ends.
    ///
    /// # Errors
    /// `Overloaded` at once when too many wait; `NotApplied`; `Stopping`.
    pub(super) async fn take(&self, ctx: &Context) -> Result<OwnedSemaphorePermit, BlobError> {
        if let Some(slot) = self.try_take() {
            return Ok(slot);
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiter = Waiter(&self.waiting);
        if waiting >= self.most_waiting {
            return Err(BlobError::Overloaded {
                what: self.what,
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        ctx.run(Arc::clone(&self.slots).acquire_owned())
            .await?
            .map_err(|_| BlobError::Stopping)
    }

    pub(super) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What asks for so few bytes may take the last of a budget.
const SMALL: usize = 64 << 10;

/// The part of a budget that only the small may take.
const KEPT_FOR_SMALL: usize = 16;

/// Bytes of bodies that a node holds at once. Large ones hold theirs for as long as their senders
/// are slow, so they leave a sixteenth to the small: a row's worth is not refused for hours because
/// of uploads that take hours.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicUsize::new(0),
        })
    }

    pub(super) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Result<BytePermit, Busy> {
        // Added first and looked at afterwards, so that two threads cannot both take the last place.
        let held = self.held.fetch_add(bytes, Ordering::Relaxed);
        let share = Arc::new(Share {
            budget: Arc::clone(self),
            bytes,
        });
        let kept = if bytes > SMALL {
            self.most / KEPT_FOR_SMALL
        } else {
            0
        };
        if held.saturating_add(bytes) > self.most - kept {
            return Err(Busy {
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        Ok(BytePermit { share })
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A part of the node's budget for bodies. It goes back when the permit, and all disk work begun
/// under it, is gone.
#[derive(Clone, Debug)]
pub struct BytePermit {
    share: Arc<Share>,
}

impl BytePermit {
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.share.bytes
    }
}

#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_pool_lets_few_wait_until_their_deadlines_and_refuses_the_rest() {
        let pool = Pool::new("reads", 1, 1);
        let ctx = Context::with_timeout(std::time::Duration::from_secs(1));
        let slot = pool.take(&ctx).await.unwrap();
        let (first, second) = tokio::join!(pool.take(&ctx), pool.take(&ctx));
        assert!(matches!(first, Err(BlobError::NotApplied(_))));
        assert!(matches!(second, Err(BlobError::Overloaded { .. })));
        assert_eq!(pool.waiting(), 0);
        drop(slot);
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn a_spent_budget_refuses_at_once_and_is_whole_again_when_the_last_share_is_gone() {
        let budget = Budget::new(100);
        let first = budget.try_reserve(60).unwrap();
        assert!(budget.try_reserve(60).is_err());
        assert_eq!(budget.held(), 60, "a refusal holds nothing");
        let disk_work = first.clone();
        drop(first);
        assert_eq!(budget.held(), 60);
        drop(disk_work);
        assert_eq!(budget.held(), 0);
        assert!(budget.try_reserve(100).is_ok());
    }

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let budget = Budget::new(16 * SMALL * 4);
        let large: Vec<_> = std::iter::from_fn(|| budget.try_reserve(2 * SMALL).ok()).collect();
        assert_eq!(large.len(), 30, "the last sixteenth is kept");
        let small: Vec<_> = std::iter::from_fn(|| budget.try_reserve(SMALL).ok()).collect();
        assert_eq!(small.len(), 4, "and bounded");
        drop(small);
        assert!(budget.try_reserve(2 * SMALL).is_err());
    }
}

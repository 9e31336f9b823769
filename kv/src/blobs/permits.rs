//! The budget for bodies on their way to disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Busy;
use super::error::RETRY_AFTER_MS;

/// Bytes of bodies that a node holds at once.
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
        if held.saturating_add(bytes) > self.most {
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
}

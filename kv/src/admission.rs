//! Admission: how many requests a node carries at once, and how many bytes they may hold.
//!
//! A request that waits holds a [`Permit`] until its reply is taken or given up, so a client that
//! sends and never reads is counted too. What does not fit is refused at once, retryably: nothing
//! waits to be admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::KvError;

/// When a refused request may be worth another try.
const RETRY_AFTER_MS: u64 = 50;

/// The budget of a node.
#[derive(Debug)]
pub struct Admission {
    most_bytes: usize,
    most_requests: usize,
    bytes: AtomicUsize,
    requests: AtomicUsize,
}

impl Admission {
    #[must_use]
    pub fn new(most_bytes: usize, most_requests: usize) -> Self {
        Self {
            most_bytes,
            most_requests,
            bytes: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        }
    }

    /// Admits a request that holds `bytes`. A request larger than the whole budget is admitted
    /// alone: its own size limit is elsewhere.
    ///
    /// # Errors
    /// `Overloaded`, at once.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, KvError> {
        let overloaded = |what| {
            Err(KvError::Overloaded {
                what,
                retry_after_ms: RETRY_AFTER_MS,
            })
        };
        // Added first and looked at afterwards, so that two threads cannot both take the last place.
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let ahead = self.requests.fetch_add(1, Ordering::Relaxed);
        let permit = Permit {
            admission: Arc::clone(self),
            bytes,
        };
        if ahead >= self.most_requests {
            return overloaded("too many requests under way");
        }
        if held > 0 && held.saturating_add(bytes) > self.most_bytes {
            return overloaded("the memory budget for requests is spent");
        }
        Ok(permit)
    }

    /// Bytes held now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests under way now.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A place within the budget; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission
            .bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_leaves_no_trace() {
        let admission = Arc::new(Admission::new(100, 10));
        let held = admission.admit(60).unwrap();
        assert!(matches!(
            admission.admit(60),
            Err(KvError::Overloaded { .. })
        ));
        assert_eq!((admission.bytes(), admission.requests()), (60, 1));
        drop(held);
        assert_eq!((admission.bytes(), admission.requests()), (0, 0));
        assert!(admission.admit(60).is_ok());
    }

    #[test]
    fn the_number_of_requests_is_bounded_however_small_they_are() {
        let admission = Arc::new(Admission::new(100, 2));
        let _held = [admission.admit(0).unwrap(), admission.admit(0).unwrap()];
        assert!(matches!(
            admission.admit(0),
            Err(KvError::Overloaded { .. })
        ));
    }

    #[test]
    fn a_request_larger_than_the_budget_is_admitted_alone() {
        let admission = Arc::new(Admission::new(100, 10));
        let large = admission.admit(1000).unwrap();
        assert!(admission.admit(1).is_err());
        drop(large);
        assert!(admission.admit(1).is_ok());
    }
}

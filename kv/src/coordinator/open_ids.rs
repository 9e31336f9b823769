//! The request ids of this session that may still be sent: shards forget what is below the lowest.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Numbers given out and not finished.
#[derive(Debug, Default)]
pub(super) struct OpenIds(Mutex<BTreeSet<u64>>);

impl OpenIds {
    /// Gives out the next of `numbers`, open from now on.
    pub(super) fn open(&self, numbers: &AtomicU64) -> u64 {
        // Under the lock, so that the lowest open number never passes one just given out.
        let mut open = self.0.lock();
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        open.insert(number);
        number
    }

    pub(super) fn close(&self, number: u64) {
        self.0.lock().remove(&number);
    }

    /// The lowest open number; `next` if none is.
    pub(super) fn lowest(&self, next: u64) -> u64 {
        self.0.lock().first().copied().unwrap_or(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stops_at_the_lowest_number_that_may_still_be_sent() {
        let (ids, numbers) = (OpenIds::default(), AtomicU64::new(1));
        let given: Vec<_> = (0..3).map(|_| ids.open(&numbers)).collect();
        assert_eq!(given, [1, 2, 3]);
        ids.close(2);
        assert_eq!(ids.lowest(4), 1);
        ids.close(1);
        assert_eq!(ids.lowest(4), 3);
        ids.close(3);
        assert_eq!(ids.lowest(4), 4);
    }
}

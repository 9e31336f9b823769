//! The request ids of this session that may still be sent: shards forget what is below the lowest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Numbers given out and not finished, and how many hold each.
#[derive(Debug, Default)]
pub(crate) struct OpenIds(Mutex<BTreeMap<u64, u32>>);

impl OpenIds {
    /// Gives out the next of `numbers`, open from now on.
    pub(crate) fn open(&self, numbers: &AtomicU64) -> u64 {
        // Under the lock, so that the lowest open number never passes one just given out.
        let mut open = self.0.lock();
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        open.insert(number, 1);
        number
    }

    pub(crate) fn close(&self, number: u64) {
        let mut open = self.0.lock();
        if let Some(holders) = open.get_mut(&number) {
            *holders -= 1;
            if *holders == 0 {
                open.remove(&number);
            }
        }
    }

    /// One more holder of an open number: it is closed when each has closed it.
    pub(crate) fn hold(&self, number: u64) {
        *self.0.lock().entry(number).or_default() += 1;
    }

    /// The lowest open number; `next` if none is.
    pub(crate) fn lowest(&self, next: u64) -> u64 {
        self.0
            .lock()
            .first_key_value()
            .map_or(next, |(number, _)| *number)
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

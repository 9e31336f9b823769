//! The order in which a lane's operations were submitted, by key, in a fixed amount of memory.
//!
//! Keys are hashed to buckets; two keys in one bucket count as one. That errs to the safe side: a
//! request is refused instead of sent again, or a read waits for the executor's queue.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{Access, Operation, Route};

const BUCKETS: usize = 256;

/// Who was submitted last, and which writes are under way.
#[derive(Debug)]
pub(crate) struct SubmissionOrder {
    next: AtomicU64,
    buckets: Box<[Bucket]>,
    /// Operations on the whole shard.
    whole: Bucket,
}

#[derive(Debug, Default)]
struct Bucket {
    last: AtomicU64,
    last_write: AtomicU64,
    open_writes: AtomicU32,
}

impl Bucket {
    fn enter(&self, place: u64, access: Access) {
        self.last.fetch_max(place, Ordering::SeqCst);
        if access == Access::Write {
            self.last_write.fetch_max(place, Ordering::SeqCst);
            self.open_writes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self, access: Access) {
        if access == Access::Write {
            self.open_writes.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn may_change(&self, place: u64, access: Access) -> bool {
        let later = match access {
            Access::Read => &self.last_write,
            Access::Write => &self.last,
        };
        later.load(Ordering::SeqCst) <= place
    }
}

impl Default for SubmissionOrder {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            whole: Bucket::default(),
        }
    }
}

impl SubmissionOrder {
    fn bucket(&self, key: &[u8]) -> &Bucket {
        &self.buckets[crc32c::crc32c(key) as usize % BUCKETS]
    }

    /// Takes the next place for `operation`. Every call is followed by one [`Self::leave`].
    pub(crate) fn enter(&self, operation: &dyn Operation) -> u64 {
        let place = self.next.fetch_add(1, Ordering::SeqCst);
        let access = operation.access();
        match operation.route() {
            Route::Keys(keys) => {
                for key in keys {
                    self.bucket(key).enter(place, access);
                }
            }
            Route::EveryShard => self.whole.enter(place, access),
        }
        place
    }

    /// `operation` is no longer under way.
    pub(crate) fn leave(&self, operation: &dyn Operation) {
        let access = operation.access();
        match operation.route() {
            Route::Keys(keys) => {
                for key in keys {
                    self.bucket(key).leave(access);
                }
            }
            Route::EveryShard => self.whole.leave(access),
        }
    }

    /// Whether `operation`, which entered at `place`, may be evaluated after all that entered since.
    pub(crate) fn may_change(&self, operation: &dyn Operation, place: u64) -> bool {
        let access = operation.access();
        match operation.route() {
            Route::Keys(keys) => {
                self.whole.may_change(place, access)
                    && keys
                        .iter()
                        .all(|key| self.bucket(key).may_change(place, access))
            }
            Route::EveryShard => self.next.load(Ordering::SeqCst) == place + 1,
        }
    }

    /// Whether a write that `operation` must see may be under way.
    pub(crate) fn writes_under_way(&self, operation: &dyn Operation) -> bool {
        let open = |bucket: &Bucket| bucket.open_writes.load(Ordering::SeqCst) > 0;
        match operation.route() {
            Route::Keys(keys) => open(&self.whole) || keys.iter().any(|key| open(self.bucket(key))),
            Route::EveryShard => true,
        }
    }
}

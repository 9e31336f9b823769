//! The order in which each caller submitted operations on each key, as long as any of them is under
//! way.
//!
//! What a key's entry holds is forgotten when nothing on it is under way any more: then there is
//! nothing left that could change places. Keys are told apart by hash; two that collide count as
//! one, which errs to the safe side.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{Access, Operation, Route};

/// Locks that share the keys.
const STRIPES: usize = 16;

/// Who was submitted last, and which writes are under way.
#[derive(Debug)]
pub(crate) struct SubmissionOrder {
    next: AtomicU64,
    stripes: [Mutex<Keys>; STRIPES],
    /// Operations on the whole shard, of all callers.
    whole: Whole,
}

type Keys = HashMap<u64, UnderWay, BuildHasherDefault<AsIs>>;

/// What one caller has under way on one key.
#[derive(Debug, Default)]
struct UnderWay {
    operations: u32,
    writes: u32,
    last: u64,
    last_write: u64,
}

#[derive(Debug, Default)]
struct Whole {
    last: AtomicU64,
    last_write: AtomicU64,
    writes: AtomicU32,
}

/// The keys of the table are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        // Spreads both halves over all bits (Fibonacci hashing).
        self.0 = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

fn hash(caller: u64, key: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(key)) << 32 ^ caller
}

impl Default for SubmissionOrder {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            stripes: Default::default(),
            whole: Whole::default(),
        }
    }
}

impl SubmissionOrder {
    fn stripe(&self, hash: u64) -> &Mutex<Keys> {
        &self.stripes[(hash >> 32) as usize % STRIPES]
    }

    /// The next place in the order.
    pub(crate) fn place(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// `operation` of `caller` is under way from now on, at `place`; followed by one
    /// [`Self::leave`].
    pub(crate) fn enter(&self, caller: u64, operation: &dyn Operation, place: u64) {
        let write = operation.access() == Access::Write;
        match operation.route() {
            Route::Keys(keys) => {
                for key in keys {
                    let hash = hash(caller, key);
                    let mut under_way = self.stripe(hash).lock();
                    let key = under_way.entry(hash).or_default();
                    key.operations += 1;
                    key.last = key.last.max(place);
                    if write {
                        key.writes += 1;
                        key.last_write = key.last_write.max(place);
                    }
                }
            }
            Route::EveryShard => {
                self.whole.last.fetch_max(place, Ordering::SeqCst);
                if write {
                    self.whole.last_write.fetch_max(place, Ordering::SeqCst);
                    self.whole.writes.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// `operation` is no longer under way.
    pub(crate) fn leave(&self, caller: u64, operation: &dyn Operation) {
        let write = operation.access() == Access::Write;
        match operation.route() {
            Route::Keys(keys) => {
                for key in keys {
                    let hash = hash(caller, key);
                    let mut under_way = self.stripe(hash).lock();
                    if let Entry::Occupied(mut key) = under_way.entry(hash) {
                        key.get_mut().operations -= 1;
                        key.get_mut().writes -= u32::from(write);
                        if key.get().operations == 0 {
                            key.remove();
                        }
                    }
                }
            }
            Route::EveryShard => {
                self.whole
                    .writes
                    .fetch_sub(u32::from(write), Ordering::SeqCst);
            }
        }
    }

    /// Whether `operation`, under way since `place`, may be evaluated after all that its caller
    /// submitted since.
    pub(crate) fn may_change(&self, caller: u64, operation: &dyn Operation, place: u64) -> bool {
        let write = operation.access() == Access::Write;
        match operation.route() {
            Route::Keys(keys) => {
                let whole = if write {
                    &self.whole.last
                } else {
                    &self.whole.last_write
                };
                whole.load(Ordering::SeqCst) <= place
                    && keys.iter().all(|key| {
                        let hash = hash(caller, key);
                        let under_way = self.stripe(hash).lock();
                        under_way.get(&hash).is_none_or(|key| {
                            let later = if write { key.last } else { key.last_write };
                            later <= place
                        })
                    })
            }
            Route::EveryShard => self.next.load(Ordering::SeqCst) == place + 1,
        }
    }

    /// Whether a write of `caller` that `operation` must see may be under way.
    pub(crate) fn writes_under_way(&self, caller: u64, operation: &dyn Operation) -> bool {
        match operation.route() {
            Route::Keys(keys) => {
                self.whole.writes.load(Ordering::SeqCst) > 0
                    || keys.iter().any(|key| {
                        let hash = hash(caller, key);
                        let under_way = self.stripe(hash).lock();
                        under_way.get(&hash).is_some_and(|key| key.writes > 0)
                    })
            }
            Route::EveryShard => true,
        }
    }
}

//! The row cache: a point read of a hot row is one hash look-up.
//!
//! Absent rows are cached too. What is cached is kept coherent by the store: an apply replaces what
//! is cached of the rows it wrote, after the engine has them. A reader that missed fills the cache
//! with what the engine gave it, unless an apply has touched the row's stripe since the read began:
//! that apply's value may be newer than the one read.
//!
//! Eviction is quick_cache's (S3-FIFO and CLOCK), by weight; the weight of an entry is what it
//! really takes, allocations included.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::{StorageError, Write};

const STRIPES: usize = 256;

/// Beside its bytes an entry costs: slot and hash of the cache, two `Bytes`, the reference count of
/// each, and the allocator's share of four allocations.
const ENTRY_OVERHEAD: usize = 200;

/// An entry that would take more than this share of the cache is not kept.
const LARGEST_SHARE: u64 = 64;

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub bytes: u64,
    pub entries: u64,
}

/// Rows and absent rows, bounded in memory.
#[derive(Debug)]
pub struct RowCache {
    rows: Cache<Bytes, Option<Bytes>, RealSize>,
    stripes: Box<[Stripe]>,
    hasher: DefaultHashBuilder,
    largest: usize,
}

#[derive(Clone, Debug)]
struct RealSize;

impl Weighter<Bytes, Option<Bytes>> for RealSize {
    fn weight(&self, key: &Bytes, value: &Option<Bytes>) -> u64 {
        size(key, value.as_ref()) as u64
    }
}

fn size(key: &[u8], value: Option<&Bytes>) -> usize {
    ENTRY_OVERHEAD + key.len() + value.map_or(0, Bytes::len)
}

/// Rows whose keys hash alike. Its lock orders a fill against the replacement by an apply.
#[derive(Debug, Default)]
struct Stripe {
    applies: AtomicU64,
    lock: Mutex<()>,
}

impl RowCache {
    /// A cache of at most `bytes`; with 0 it keeps nothing.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        // A guess at the mean entry, which sizes the ghost queue only.
        let entries = usize::try_from(bytes / 384)
            .unwrap_or(usize::MAX)
            .clamp(16, 1 << 24);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(bytes)
            .build()
            .expect("every option that has no default is set");
        Self {
            rows: Cache::with_options(
                options,
                RealSize,
                DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            largest: usize::try_from(bytes / LARGEST_SHARE).unwrap_or(usize::MAX),
        }
    }

    fn stripe(&self, key: &[u8]) -> &Stripe {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }

    /// What is cached of a row: `Some(None)` says that it is absent.
    #[must_use]
    pub fn cached(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.rows.get(key)
    }

    /// The row as cached, or as `read` gives it, which is then kept.
    pub fn get_or_read(
        &self,
        key: &[u8],
        read: impl FnOnce() -> Result<Option<Bytes>, StorageError>,
    ) -> Result<Option<Bytes>, StorageError> {
        if let Some(row) = self.rows.get(key) {
            return Ok(row);
        }
        let stripe = self.stripe(key);
        let began = stripe.applies.load(Ordering::Acquire);
        let row = read()?;
        if size(key, row.as_ref()) <= self.largest {
            let _order = stripe.lock.lock();
            if stripe.applies.load(Ordering::Acquire) == began {
                self.rows.insert(Bytes::copy_from_slice(key), row.clone());
            }
        }
        Ok(row)
    }

    /// Replaces what is cached of the rows in `writes`, which the engine has.
    pub fn applied(&self, writes: &[Write]) {
        for write in writes {
            let stripe = self.stripe(&write.key);
            let _order = stripe.lock.lock();
            stripe.applies.fetch_add(1, Ordering::AcqRel);
            if !self.rows.contains_key(&write.key[..]) {
                continue;
            }
            if size(&write.key, write.value.as_ref()) > self.largest {
                self.rows.remove(&write.key[..]);
                continue;
            }
            // Copied: both may be slices of a log entry that is far larger.
            let key = Bytes::copy_from_slice(&write.key);
            let value = write.value.as_deref().map(Bytes::copy_from_slice);
            if self.rows.replace(key, value, true).is_err() {
                // Not admitted; what is cached, if anything still is, must not stay.
                self.rows.remove(&write.key[..]);
            }
        }
    }

    /// Forgets everything, and whatever is being read now.
    pub fn clear(&self) {
        let _orders: Vec<_> = self
            .stripes
            .iter()
            .map(|stripe| {
                let order = stripe.lock.lock();
                stripe.applies.fetch_add(1, Ordering::AcqRel);
                order
            })
            .collect();
        self.rows.clear();
    }

    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.rows.hits(),
            misses: self.rows.misses(),
            bytes: self.rows.weight(),
            entries: self.rows.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use parking_lot::RwLock;

    use super::*;

    fn write(key: u8, value: Option<u64>) -> Write {
        Write {
            key: Bytes::from(vec![key; 20]),
            value: value.map(|value| Bytes::from(value.to_string())),
        }
    }

    /// A reader must see every value whose apply had returned before it began, whatever fills and
    /// evictions run beside it (`DESIGN` rule: a fill is dropped if an apply touched its stripe).
    #[test]
    fn a_read_never_gives_less_than_what_was_applied_before_it() {
        const KEYS: u8 = 8;
        // So small that rows are evicted all the time.
        let cache = RowCache::new(64 * (ENTRY_OVERHEAD as u64 + 40));
        let engine: RwLock<BTreeMap<u8, u64>> = RwLock::default();
        let applied: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=20_000u64 {
                    let key = (round % u64::from(KEYS)) as u8;
                    engine.write().insert(key, round);
                    cache.applied(&[write(key, Some(round))]);
                    applied[usize::from(key)].store(round, Ordering::Release);
                }
                done.store(true, Ordering::Release);
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut key = 0;
                    while !done.load(Ordering::Acquire) {
                        key = (key + 1) % KEYS;
                        let before = applied[usize::from(key)].load(Ordering::Acquire);
                        let read = || {
                            let value = engine.read().get(&key).copied();
                            // Time for an apply to come between the read and the fill.
                            std::thread::yield_now();
                            Ok(value.map(|value| Bytes::from(value.to_string())))
                        };
                        let row = cache.get_or_read(&[key; 20], read).unwrap();
                        let seen: u64 = row
                            .map_or(0, |row| std::str::from_utf8(&row).unwrap().parse().unwrap());
                        assert!(
                            seen >= before,
                            "row {key}: {seen} after {before} was applied"
                        );
                        if seen.is_multiple_of(7) {
                            cache.rows.remove(&[key; 20][..]);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_fill_whose_row_was_applied_meanwhile_is_dropped() {
        let cache = RowCache::new(1 << 20);
        let old = cache
            .get_or_read(&[1; 20], || {
                cache.applied(&[write(1, Some(2))]);
                Ok(Some(Bytes::from_static(b"1")))
            })
            .unwrap();
        assert_eq!(old, Some(Bytes::from_static(b"1")));
        assert_eq!(cache.cached(&[1; 20]), None);
    }

    #[test]
    fn the_cache_stays_within_its_bytes_and_takes_no_row_that_would_fill_it() {
        let cache = RowCache::new(100_000);
        for number in 0..2000u32 {
            let key = number.to_be_bytes();
            cache
                .get_or_read(&key, || Ok(Some(Bytes::from(vec![0; 100]))))
                .unwrap();
        }
        assert!(cache.stats().bytes <= 100_000);
        assert!(cache.stats().entries > 50);
        cache
            .get_or_read(b"large", || Ok(Some(Bytes::from(vec![0; 50_000]))))
            .unwrap();
        assert_eq!(cache.cached(b"large"), None);
        let nothing = RowCache::new(0);
        nothing.get_or_read(b"a", || Ok(None)).unwrap();
        assert_eq!(nothing.cached(b"a"), None);
    }
}

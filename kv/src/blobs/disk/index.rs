//! Where each chunk lies, and when it was last needed: about 60 bytes of memory a chunk.
//!
//! # Invariants
//! 1. What is in here is durable.
//! 2. A chunk leaves only by [`Index::remove_if_older`] or because its bytes are damaged, whose condition is looked at while nobody can
//!    refresh it: a refreshed chunk that was found stays for a whole grace period.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;

use super::record::Location;
use crate::blobs::ChunkHash;

#[derive(Debug)]
struct Entry {
    at: Location,
    /// Good seconds (`ChunkStore::now`) when it was last put, adopted or seen named by a row.
    stamp: AtomicU32,
}

/// A chunk's hash is as random as a hash can be: its first bytes serve.
#[derive(Debug, Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// The chunks of a node.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: RwLock<HashMap<ChunkHash, Entry, BuildHasherDefault<FirstBytes>>>,
}

impl Index {
    pub(super) fn get(&self, hash: &ChunkHash) -> Option<Location> {
        self.chunks.read().get(hash).map(|entry| entry.at)
    }

    /// Makes the chunk as young as `now`, if it is here.
    pub(super) fn refresh(&self, hash: &ChunkHash, now: u32) -> Option<Location> {
        let chunks = self.chunks.read();
        let entry = chunks.get(hash)?;
        entry.stamp.fetch_max(now, Ordering::Relaxed);
        Some(entry.at)
    }

    /// Inserts a chunk, or says where it is from now on; gives its old place.
    pub(super) fn insert(&self, hash: ChunkHash, at: Location, now: u32) -> Option<Location> {
        let mut chunks = self.chunks.write();
        match chunks.get_mut(&hash) {
            Some(entry) => {
                entry.stamp.fetch_max(now, Ordering::Relaxed);
                Some(std::mem::replace(&mut entry.at, at))
            }
            None => {
                let stamp = AtomicU32::new(now);
                chunks.insert(hash, Entry { at, stamp });
                None
            }
        }
    }

    /// Says that the chunk is at `to`, if it still was at `from`. Its age stays.
    pub(super) fn relocate(&self, hash: &ChunkHash, from: Location, to: Location) -> bool {
        match self.chunks.write().get_mut(hash) {
            Some(entry) if entry.at == from => {
                entry.at = to;
                true
            }
            _ => false,
        }
    }

    /// Forgets the chunk if it is still at `at`.
    pub(super) fn remove(&self, hash: &ChunkHash, at: Location) -> bool {
        let mut chunks = self.chunks.write();
        if chunks.get(hash).is_some_and(|entry| entry.at == at) {
            chunks.remove(hash);
            return true;
        }
        false
    }

    /// The chunks last needed before `limit`. The lock is not held for long at a time.
    pub(super) fn older_than(&self, limit: u32) -> Vec<ChunkHash> {
        self.chunks
            .read()
            .iter()
            .filter(|(_, entry)| entry.stamp.load(Ordering::Relaxed) < limit)
            .map(|(hash, _)| *hash)
            .collect()
    }

    /// Forgets the chunk if it was last needed before `limit`.
    pub(super) fn remove_if_older(&self, hash: &ChunkHash, limit: u32) -> Option<Location> {
        let mut chunks = self.chunks.write();
        // Invariant 2: refreshing takes the lock for reading.
        let stamp = chunks.get(hash)?.stamp.load(Ordering::Relaxed);
        if stamp >= limit {
            return None;
        }
        chunks.remove(hash).map(|entry| entry.at)
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.read().len()
    }

    pub(super) fn reserve(&self, chunks: usize) {
        self.chunks.write().reserve(chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2, at its narrowest: refreshed after it was listed, before it is removed.
    #[test]
    fn a_chunk_refreshed_after_it_was_found_old_stays() {
        let index = Index::default();
        let at = Location {
            segment: 1,
            offset: 4096,
            len: 1,
            crc: 0,
        };
        let (used, unused) = (ChunkHash([1; 32]), ChunkHash([2; 32]));
        index.insert(used, at, 0);
        index.insert(unused, at, 0);
        let mut old = index.older_than(5);
        old.sort_unstable();
        assert_eq!(old, [used, unused]);
        assert!(index.refresh(&used, 7).is_some());
        assert_eq!(index.remove_if_older(&used, 5), None);
        assert_eq!(index.remove_if_older(&unused, 5), Some(at));
        assert_eq!(index.len(), 1);
    }
}

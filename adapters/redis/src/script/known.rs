//! What this node remembers of scripts and libraries, so that EVALSHA and FCALL need not ask.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::xxh3_128;

use super::catalogue::Catalogue;

/// A SHA-1.
pub(super) type Digest = [u8; 20];

/// Scripts remembered: about so many, and so many bytes.
const SCRIPTS: usize = 1024;
const SCRIPT_BYTES: u64 = 32 << 20;

/// EVALed bodies that need not be hashed and stored again.
const SEEN: usize = 4096;

#[derive(Clone)]
struct ByLength;

impl Weighter<Digest, Bytes> for ByLength {
    fn weight(&self, _: &Digest, body: &Bytes) -> u64 {
        body.len() as u64 + 64
    }
}

/// Bounded; what it forgets is looked up again.
pub(crate) struct Known {
    scripts: Cache<Digest, Bytes, ByLength>,
    /// By a fast hash: a collision costs a look-up more.
    seen: Cache<u128, ()>,
    catalogue: ArcSwap<Catalogue>,
    /// Held while the catalogue is replaced by a newer one.
    replacing: Mutex<()>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            scripts: Cache::with_weighter(SCRIPTS, SCRIPT_BYTES, ByLength),
            seen: Cache::new(SEEN),
            catalogue: ArcSwap::default(),
            replacing: Mutex::new(()),
        }
    }
}

impl Known {
    pub(super) fn script(&self, digest: &Digest) -> Option<Bytes> {
        self.scripts.get(digest)
    }

    pub(super) fn remember(&self, digest: Digest, body: Bytes) {
        self.scripts.insert(digest, body);
    }

    /// Whether EVAL meets `body` for the first time since this node forgot it.
    pub(super) fn is_new(&self, body: &[u8]) -> bool {
        let hash = xxh3_128(body);
        let new = self.seen.get(&hash).is_none();
        if new {
            self.seen.insert(hash, ());
        }
        new
    }

    pub(super) fn forget_scripts(&self) {
        self.scripts.clear();
        self.seen.clear();
    }

    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// Replaces the catalogue, unless a newer one came in between.
    pub(super) fn replace(&self, newer: Catalogue) {
        let _replacing = self.replacing.lock();
        if self.catalogue.load().version < newer.version {
            self.catalogue.store(Arc::new(newer));
        }
    }
}

/// A digest from forty hexadecimal digits, in any case.
pub(super) fn parse_digest(text: &[u8]) -> Option<Digest> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut digest = Digest::default();
    if text.len() != digest.len() * 2 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(digest)
}

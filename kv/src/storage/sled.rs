//! sled 0.34 behind [`Storage`], trusted with nothing.
//!
//! What it lacks is added here. Each row carries a checksum. Views keep overwritten rows
//! ([`History`]). `flush` is followed by an `fdatasync`, which sled's own is not. A digest over all
//! rows is written with every batch and recomputed at open: sled that lost rows, kept half a batch or
//! was damaged does not have it. And what a node must not lose is not left to sled at all: each
//! group is written to a synced file of ours at its flush, the log is purged no further than that,
//! and a sled that cannot be trusted is thrown away and rebuilt from these files.
//!
//! It cannot be trusted when the machine went down while it was open (the boot id has changed, and
//! there is no mark of a clean close), when it does not open, and when digest or watermark tell.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::RwLock;

use super::fjall::panic_text;
use super::store::{DURABLE, load_snapshot, snapshots_in};
use super::view::History;
use super::{EngineKind, Reader, Storage, StorageError, Write, files};
use crate::ScanOrder;

/// The digest's key: before every other row's, which have at least one byte.
const DIGEST_KEY: &[u8] = b"";
const CHECKSUM: usize = 4;

/// A scan of a view takes so many rows or bytes at a time, and lets batches through in between.
const SCAN_ROWS: usize = 256;
const SCAN_BYTES: usize = 1024 * 1024;

const LOCK_ATTEMPTS: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How much memory sled takes.
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    pub cache_bytes: u64,
    /// Overwritten rows kept for open views; a view that would need more expires.
    pub view_bytes: usize,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            view_bytes: 128 * 1024 * 1024,
        }
    }
}

/// The second engine.
pub struct SledStorage {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    database: sled::Db,
    /// Readers share it, an apply has it alone: so history, digest and rows change as one.
    state: RwLock<State>,
}

struct State {
    history: History,
    digest: Digest,
}

/// Rows as a view sees them; `None`: absent then.
type Seen = BTreeMap<Bytes, Option<Bytes>>;

struct SledView {
    inner: Arc<Inner>,
    seen: u64,
}

impl std::fmt::Debug for SledStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStorage")
            .field("dir", &self.inner.dir)
            .finish_non_exhaustive()
    }
}

/// The rows as one number: a sum, so that it can be kept up with by what changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    rows: u64,
    sum: u64,
}

impl Digest {
    fn add(&mut self, checksum: u32) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(spread(checksum));
    }

    fn remove(&mut self, checksum: u32) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(spread(checksum));
    }

    fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.rows.to_le_bytes());
        out[8..].copy_from_slice(&self.sum.to_le_bytes());
        out
    }
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): sums of checksums alone would cancel out.
fn spread(checksum: u32) -> u64 {
    let mut z = u64::from(checksum).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The checksum of a row, which also tells where its key ends.
fn row_checksum(key: &[u8], value: &[u8]) -> u32 {
    let length = crc32c::crc32c(&(key.len() as u64).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(length, key), value)
}

impl SledStorage {
    /// Opens the engine in `dir`, or makes a new one there, and reads every row to verify it.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when anything is not as it was written.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self, StorageError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(1000));
        let mut attempts = 0;
        let database = loop {
            match guarded(dir, || config.open()) {
                // A handle that was dropped gives its lock back a little later.
                Err(StorageError::Engine { .. }) if attempts < LOCK_ATTEMPTS => {
                    attempts += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                opened => break opened?,
            }
        };
        let digest = verify(dir, &database)?;
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                database,
                state: RwLock::new(State {
                    history: History::new(options.view_bytes),
                    digest,
                }),
            }),
        })
    }
}

/// Checks every row's checksum, and all rows against the digest.
fn verify(dir: &Path, database: &sled::Db) -> Result<Digest, StorageError> {
    let damaged = |what: String| StorageError::Damaged {
        path: dir.to_owned(),
        what,
    };
    let mut recorded = None;
    let mut found = Digest::default();
    guarded(dir, || {
        for row in database.iter() {
            let (key, stored) = row?;
            if key.is_empty() {
                recorded = Some(stored);
            } else if let Some((_, checksum)) = split(&key, &stored) {
                found.add(checksum);
            } else {
                return Err(sled::Error::Corruption { at: None, bt: () });
            }
        }
        Ok(())
    })?;
    match recorded {
        Some(recorded) if recorded[..] == found.encode() => Ok(found),
        None if found == Digest::default() => Ok(found),
        _ => Err(damaged(format!(
            "its {} rows are not those that were written last",
            found.rows
        ))),
    }
}

/// Runs `call`, which may panic on damaged files, as sled does.
fn guarded<T>(dir: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(engine_error(dir, error)),
        Err(panic) => Err(StorageError::Damaged {
            path: dir.to_owned(),
            what: format!("sled panicked: {}", panic_text(&*panic)),
        }),
    }
}

fn engine_error(dir: &Path, error: sled::Error) -> StorageError {
    match error {
        // Not damage: what is damaged is thrown away.
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            StorageError::Engine {
                dir: dir.to_owned(),
                what: "it is open already".to_owned(),
            }
        }
        sled::Error::Io(source)
            if !matches!(
                source.kind(),
                std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::Other
            ) =>
        {
            StorageError::Io {
                what: "use",
                path: dir.to_owned(),
                source,
            }
        }
        other => StorageError::Damaged {
            path: dir.to_owned(),
            what: other.to_string(),
        },
    }
}

/// A stored row as value and checksum, if they belong together.
fn split<'a>(key: &[u8], stored: &'a [u8]) -> Option<(&'a [u8], u32)> {
    let (value, checksum) = stored.split_last_chunk::<CHECKSUM>()?;
    let checksum = u32::from_le_bytes(*checksum);
    (row_checksum(key, value) == checksum).then_some((value, checksum))
}

impl Inner {
    fn value<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<(&'a [u8], u32), StorageError> {
        split(key, stored).ok_or_else(|| StorageError::Damaged {
            path: self.dir.clone(),
            what: "a row's checksum does not match".to_owned(),
        })
    }

    fn live(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if key.is_empty() {
            return Ok(None);
        }
        match guarded(&self.dir, || self.database.get(key))? {
            Some(stored) => Ok(Some(Bytes::copy_from_slice(self.value(key, &stored)?.0))),
            None => Ok(None),
        }
    }

    /// The next rows of `range` in `order` as view `seen` has them, and where the next chunk begins
    /// (or ends, in descending order); `None` when there is none.
    fn chunk(
        &self,
        seen: u64,
        range: Range<&[u8]>,
        order: ScanOrder,
    ) -> Result<(Seen, Option<Bytes>), StorageError> {
        let state = self.state.read();
        state.history.check(seen)?;
        let mut rows = Seen::new();
        let mut bytes = 0;
        let mut last = None;
        let live = guarded(&self.dir, || {
            let mut iterator = self.database.range(range.clone());
            let mut taken = Vec::new();
            while let Some(row) = match order {
                ScanOrder::Ascending => iterator.next(),
                ScanOrder::Descending => iterator.next_back(),
            } {
                let (key, stored) = row?;
                bytes += stored.len();
                taken.push((key, stored));
                if taken.len() >= SCAN_ROWS || bytes >= SCAN_BYTES {
                    last = taken.last().map(|(key, _)| Bytes::copy_from_slice(key));
                    break;
                }
            }
            Ok(taken)
        })?;
        for (key, stored) in live {
            if !key.is_empty() {
                let value = Bytes::copy_from_slice(self.value(&key, &stored)?.0);
                rows.insert(Bytes::copy_from_slice(&key), Some(value));
            }
        }
        // Changed rows within what the live rows cover; beyond it the next chunk looks.
        let past_last = last.as_ref().map(|last| {
            let mut next = BytesMut::with_capacity(last.len() + 1);
            next.put_slice(last);
            next.put_u8(0);
            next.freeze()
        });
        let covered = match (order, &last, &past_last) {
            (ScanOrder::Ascending, _, Some(past)) => range.start..&past[..],
            (ScanOrder::Descending, Some(last), _) => &last[..]..range.end,
            _ => range.clone(),
        };
        for (key, old) in state.history.range(seen, covered) {
            rows.insert(key.clone(), old.clone());
        }
        Ok((
            rows,
            match order {
                ScanOrder::Ascending => past_last,
                ScanOrder::Descending => last,
            },
        ))
    }
}

impl Reader for SledStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let _no_batch_meanwhile = self.inner.state.read();
        self.inner.live(key)
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        self.view()?.scan(range, order, visit)
    }
}

impl Storage for SledStorage {
    fn apply(&self, writes: &[Write]) -> Result<(), StorageError> {
        let inner = &*self.inner;
        let mut state = inner.state.write();
        let State { history, digest } = &mut *state;
        let mut digest_after = *digest;
        let mut batch = sled::Batch::default();
        history.begin();
        for write in writes {
            let old = guarded(&inner.dir, || inner.database.get(&write.key))?;
            let old = match &old {
                Some(stored) => {
                    let (value, checksum) = inner.value(&write.key, stored)?;
                    digest_after.remove(checksum);
                    Some(value)
                }
                None => None,
            };
            history.overwrite(&write.key, old);
            match &write.value {
                Some(value) => {
                    let checksum = row_checksum(&write.key, value);
                    digest_after.add(checksum);
                    let mut stored = Vec::with_capacity(value.len() + CHECKSUM);
                    stored.extend_from_slice(value);
                    stored.extend_from_slice(&checksum.to_le_bytes());
                    batch.insert(&write.key[..], stored);
                }
                None => batch.remove(&write.key[..]),
            }
        }
        batch.insert(DIGEST_KEY, &digest_after.encode()[..]);
        guarded(&inner.dir, || inner.database.apply_batch(batch))?;
        *digest = digest_after;
        Ok(())
    }

    fn view(&self) -> Result<Arc<dyn Reader>, StorageError> {
        Ok(Arc::new(SledView {
            seen: self.inner.state.write().history.open(),
            inner: Arc::clone(&self.inner),
        }))
    }

    fn flush(&self) -> Result<(), StorageError> {
        guarded(&self.inner.dir, || self.inner.database.flush())?;
        // On Linux sled's flush is a sync_file_range, which says nothing about the disk's cache.
        let path = self.inner.dir.join("db");
        File::open(&path)
            .and_then(|file| file.sync_data())
            .map_err(StorageError::io("sync", &path))
    }

    fn approximate_size(&self) -> u64 {
        match self.inner.database.size_on_disk() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "sled cannot tell how much disk it takes");
                0
            }
        }
    }
}

impl Reader for SledView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let state = self.inner.state.read();
        state.history.check(self.seen)?;
        match state.history.get(self.seen, key) {
            Some(old) => Ok(old.clone()),
            None => self.inner.live(key),
        }
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        let mut start = Bytes::copy_from_slice(range.start);
        let mut end = Bytes::copy_from_slice(range.end);
        while start < end {
            let (rows, left) = self.inner.chunk(self.seen, &start..&end, order)?;
            let mut give = |(key, value): (&Bytes, &Option<Bytes>)| {
                value.as_ref().is_none_or(|value| visit(key, value))
            };
            let go_on = match order {
                ScanOrder::Ascending => rows.iter().all(&mut give),
                ScanOrder::Descending => rows.iter().rev().all(&mut give),
            };
            match (go_on, left, order) {
                (false, _, _) | (_, None, _) => break,
                (true, Some(left), ScanOrder::Ascending) => start = left,
                (true, Some(left), ScanOrder::Descending) => end = left,
            }
        }
        Ok(())
    }
}

impl Drop for SledView {
    fn drop(&mut self) {
        self.inner.state.write().history.close(self.seen);
    }
}

/// What `<dir>/boot` says about the engine's last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastUse<'a> {
    /// It was open, in this boot of the machine.
    OpenIn(&'a str),
    Closed,
    Suspect,
    Unknown,
}

fn parse_boot(text: &str) -> LastUse<'_> {
    match text.trim_end().split_once(' ') {
        Some(("open", boot)) => LastUse::OpenIn(boot),
        None if text.trim_end() == "closed" => LastUse::Closed,
        None if text.trim_end() == "suspect" => LastUse::Suspect,
        _ => LastUse::Unknown,
    }
}

fn boot_path(dir: &Path) -> PathBuf {
    dir.join("boot")
}

/// This boot of the machine. Where it cannot be told, no two are taken for the same.
fn boot_id() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(error) => {
            tracing::warn!(%error, "the boot id cannot be read: sled will be rebuilt at its next open");
            String::new()
        }
    }
}

fn mark_open(dir: &Path) -> Result<(), StorageError> {
    files::replace(&boot_path(dir), format!("open {}\n", boot_id()).as_bytes())
}

/// Notes that the engine was flushed and is not written to any more.
pub(super) fn mark_closed(dir: &Path) -> Result<(), StorageError> {
    files::replace(&boot_path(dir), b"closed\n")
}

/// Notes that the next open must rebuild.
pub(super) fn mark_suspect(dir: &Path) -> Result<(), StorageError> {
    files::replace(&boot_path(dir), b"suspect\n")
}

/// Opens sled in `dir`, and if it cannot be trusted, rebuilds it from the groups' own files. Says why
/// when it did. `check` compares an engine with the watermark.
pub(super) fn open_or_rebuild(
    dir: &Path,
    options: SledOptions,
    check: &dyn Fn(&dyn Storage) -> Result<(), StorageError>,
) -> Result<(SledStorage, Option<String>), StorageError> {
    let engine_dir = dir.join(EngineKind::Sled.name());
    let boot = files::read(&boot_path(dir))?;
    let boot = boot.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let this_boot = boot_id();
    let distrust = match boot.as_deref().map(parse_boot) {
        None if !engine_dir.exists() => None,
        Some(LastUse::Closed) => None,
        Some(LastUse::OpenIn(boot)) if boot == this_boot && !boot.is_empty() => None,
        Some(LastUse::OpenIn(_)) => Some("the machine went down while it was open".to_owned()),
        Some(LastUse::Suspect) => Some("damage was found in it".to_owned()),
        None | Some(LastUse::Unknown) => Some("how it was closed is not known".to_owned()),
    };
    let distrust = match distrust {
        Some(why) => why,
        None => {
            mark_open(dir)?;
            let opened = SledStorage::open(&engine_dir, options)
                .and_then(|engine| check(&engine).map(|()| engine));
            match opened {
                Ok(engine) => return Ok((engine, None)),
                Err(error) if error.is_damage() => error.to_string(),
                Err(error) => return Err(error),
            }
        }
    };

    // Until the new engine is whole, whoever opens it begins here again.
    mark_suspect(dir)?;
    if engine_dir.exists() {
        std::fs::remove_dir_all(&engine_dir).map_err(StorageError::io("remove", &engine_dir))?;
    }
    let engine = SledStorage::open(&engine_dir, options)?;
    for path in snapshots_in(&dir.join(DURABLE))?.values() {
        load_snapshot(&engine, path)?;
    }
    check(&engine)?;
    engine.flush()?;
    mark_open(dir)?;
    Ok((engine, Some(distrust)))
}

//! fjall behind [`Storage`]: one keyspace (one tree) for all groups.
//!
//! One tree and not one per group: an idle group then costs nothing at all, memtable memory does
//! not grow with the number of groups, and a batch is one journal entry whatever it touches.
//!
//! A batch goes to the journal's buffer and to the memtable; nothing is synced before
//! [`Storage::flush`], because the Raft log is what makes writes durable. At open the journals are
//! looked through first (`journal_check`), since fjall cuts a damaged journal silently.
//!
//! The index and the filter of each table stay in memory. Read through the block cache, hundreds of
//! kilobytes each, they would drive each other and the rows out of it once there are a few million rows.
//! From level 3 on fjall cuts them into blocks, of which only the top stays.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy};
use fjall::{
    AbstractTree, Database, Guard, Iter, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch,
    PersistMode, Readable, Snapshot,
};
use parking_lot::{Mutex, RwLock};

use super::{Reader, Storage, StorageError, Write, journal_check};
use crate::ScanOrder;

const ROWS: &str = "rows";
const MIB: u64 = 1024 * 1024;

/// How much memory and disk fjall takes.
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Cache of blocks read from disk.
    pub block_cache_bytes: u64,
    /// One memtable; at most five exist at a time, usually two.
    pub memtable_bytes: u64,
    /// Journals on disk beyond which memtables are flushed early (at least 64 MiB).
    pub journal_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 32 * MIB,
            memtable_bytes: 16 * MIB,
            journal_bytes: 128 * MIB,
        }
    }
}

/// The default engine.
pub struct FjallStorage {
    dir: PathBuf,
    database: Database,
    rows: Keyspace,
    memtable_bytes: u64,
    /// Held by whoever replaces the memtable.
    rotation: Mutex<()>,
    /// Held by a commit alone, and by whoever takes a snapshot. fjall's background threads move the
    /// instant that new snapshots read at past batches that are still being written to the
    /// memtable (lsm-tree 3.1, `upgrade_version_with_seqno`): such a snapshot would see half a
    /// batch first, and the whole of it later.
    commits: RwLock<()>,
}

impl std::fmt::Debug for FjallStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallStorage")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

struct FjallView {
    dir: PathBuf,
    rows: Keyspace,
    snapshot: Snapshot,
}

impl FjallStorage {
    /// Opens the engine in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when files are not as they were written, which is found by
    /// checksums, by fjall itself, or by a panic inside it.
    pub fn open(dir: &Path, options: FjallOptions) -> Result<Self, StorageError> {
        journal_check::check(dir)?;
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| Self::open_inner(dir, options)));
        match opened {
            Ok(opened) => opened.map_err(|error| engine_error(dir, &error)),
            Err(panic) => Err(StorageError::Damaged {
                path: dir.to_owned(),
                what: format!("fjall panicked at open: {}", panic_text(&*panic)),
            }),
        }
    }

    fn open_inner(dir: &Path, options: FjallOptions) -> Result<Self, fjall::Error> {
        let database = Database::builder(dir)
            .cache_size(options.block_cache_bytes)
            .max_journaling_size(options.journal_bytes.max(64 * MIB))
            .manual_journal_persist(true)
            .worker_threads(WORKERS)
            .open()?;
        let rows = database.keyspace(ROWS, || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                .max_memtable_size(u64::MAX)
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
                    BloomConstructionPolicy::BitsPerKey(10.0),
                )))
                .filter_block_pinning_policy(PinningPolicy::all(true))
                .index_block_pinning_policy(PinningPolicy::all(true))
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            database,
            rows,
            memtable_bytes: options.memtable_bytes,
            rotation: Mutex::new(()),
            commits: RwLock::new(()),
        })
    }
}

impl FjallStorage {
    fn snapshot(&self) -> Snapshot {
        let _no_commit_meanwhile = self.commits.read();
        self.database.snapshot()
    }

    /// Hands the memtable to the flusher once it is full, and waits while too many are queued.
    ///
    /// Left to itself fjall asks for this by a message per commit, in the one bounded queue that its
    /// worker reads and writes: a busy worker lets the memtable grow without a bound, and a full
    /// queue stops it for good. So fjall's own limit is off, and its queue holds little.
    fn rotate_full_memtable(&self) -> Result<(), StorageError> {
        if self.rows.tree.active_memtable().size() <= self.memtable_bytes {
            return Ok(());
        }
        let _one_at_a_time = self.rotation.lock();
        if self.rows.tree.active_memtable().size() <= self.memtable_bytes {
            return Ok(());
        }
        self.wait_for_room()?;
        self.rows
            .rotate_memtable()
            .map_err(|error| engine_error(&self.dir, &error))?;
        Ok(())
    }

    /// Waits until fjall would not hold a commit back.
    ///
    /// It holds them back itself, but without an end when the thread that would make room died of
    /// a failed disk. So this waits first, a little earlier than fjall would, and looks.
    fn wait_for_room(&self) -> Result<(), StorageError> {
        while self.rows.sealed_memtable_count() >= SEALED_MEMTABLES
            || self.rows.tree.l0_run_count() >= L0_RUNS
        {
            // Says whether the database is poisoned, and is cheap otherwise.
            self.database
                .persist(PersistMode::Buffer)
                .map_err(|error| engine_error(&self.dir, &error))?;
            std::thread::sleep(WAIT);
        }
        Ok(())
    }
}

/// fjall halts commits at 4 sealed memtables and at 30 runs in level 0.
const SEALED_MEMTABLES: usize = 3;
const L0_RUNS: usize = 28;
const WAIT: Duration = Duration::from_millis(2);

/// With two workers fjall's first hands compactions to the second by spinning on the queue, so
/// that a core burns while one compacts.
const WORKERS: usize = 1;

impl Reader for FjallStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self
            .rows
            .get(key)
            .map_err(|error| engine_error(&self.dir, &error))?;
        // Copied: what fjall returns holds on to the whole block it was read from.
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        if range.start >= range.end {
            return Ok(());
        }
        // Through a snapshot: a bare range may see one half of a batch.
        let rows = self.snapshot().range(&self.rows, range);
        walk(&self.dir, rows, order, visit)
    }
}

impl Storage for FjallStorage {
    fn apply(&self, writes: &[Write]) -> Result<(), StorageError> {
        let mut batch = OwnedWriteBatch::with_capacity(self.database.clone(), writes.len());
        for write in writes {
            match &write.value {
                Some(value) => batch.insert(&self.rows, &write.key[..], &value[..]),
                None => batch.remove(&self.rows, &write.key[..]),
            }
        }
        {
            let _no_snapshot_meanwhile = self.commits.write();
            batch
                .commit()
                .map_err(|error| engine_error(&self.dir, &error))?;
        }
        self.rotate_full_memtable()
    }

    fn view(&self) -> Result<Arc<dyn Reader>, StorageError> {
        Ok(Arc::new(FjallView {
            dir: self.dir.clone(),
            rows: self.rows.clone(),
            snapshot: self.snapshot(),
        }))
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.database
            .persist(PersistMode::SyncAll)
            .map_err(|error| engine_error(&self.dir, &error))
    }

    fn approximate_size(&self) -> u64 {
        match self.database.disk_space() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "fjall cannot tell how much disk it takes");
                self.rows.disk_space()
            }
        }
    }
}

impl Reader for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self
            .snapshot
            .get(&self.rows, key)
            .map_err(|error| engine_error(&self.dir, &error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        if range.start >= range.end {
            return Ok(());
        }
        walk(
            &self.dir,
            self.snapshot.range(&self.rows, range),
            order,
            visit,
        )
    }
}

fn walk(
    dir: &Path,
    mut rows: Iter,
    order: ScanOrder,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), StorageError> {
    let mut next: Box<dyn FnMut() -> Option<Guard>> = match order {
        ScanOrder::Ascending => Box::new(move || rows.next()),
        ScanOrder::Descending => Box::new(move || rows.next_back()),
    };
    while let Some(row) = next() {
        let (key, value) = row
            .into_inner()
            .map_err(|error| engine_error(dir, &error))?;
        if !visit(&key, &value) {
            break;
        }
    }
    Ok(())
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

fn engine_error(dir: &Path, error: &fjall::Error) -> StorageError {
    use fjall::Error;
    match error {
        Error::Io(source) | Error::Storage(fjall::LsmError::Io(source))
            if !matches!(
                source.kind(),
                std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::NotFound
            ) =>
        {
            StorageError::Io {
                what: "use",
                path: dir.to_owned(),
                source: std::io::Error::new(source.kind(), source.to_string()),
            }
        }
        Error::Locked => StorageError::Engine {
            dir: dir.to_owned(),
            what: "another process has it open".to_owned(),
        },
        Error::Poisoned => StorageError::Engine {
            dir: dir.to_owned(),
            what: "stopped after an earlier failure of the disk".to_owned(),
        },
        other => StorageError::Damaged {
            path: dir.to_owned(),
            what: other.to_string(),
        },
    }
}

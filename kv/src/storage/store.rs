//! All rows of a node: an engine, the row cache before it, and what an engine is not trusted with.
//!
//! ```text
//! <dir>/fjall/  or  sled/    the engine's own files
//! <dir>/watermark            how far each group was made durable
//! <dir>/install/7.snap       a snapshot that group 7 is about to become; finished at open
//!               7.snap.3.part  one being received, under a number of its own; removed at open
//! <dir>/durable/7.snap       sled only: the group as of its last flush, synced by us
//! <dir>/boot                 sled only: the boot it was used in, and whether it was closed
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use leadline_raft::GroupId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::batch::wipe;
use super::cache::{CacheStats, RowCache};
use super::fjall::{FjallOptions, FjallStorage};
use super::memory::MemoryStorage;
use super::sled::{self, SledOptions};
use super::snapshot::{Export, FileReader, FileWriter, Install};
use super::watermark::Watermark;
use super::{Batch, EngineKind, Reader, Storage, StorageError, Write, files};
use crate::ScanOrder;

/// First byte of private rows: below the keyspace.
const PRIVATE: u8 = 0x00;
/// Last byte of the key of a group's position.
pub(super) const POSITION: u8 = 0x00;
/// What stands between a group's prefix and the names its state machine chose.
const NAMED: u8 = 0x01;

const POSITION_VERSION: u8 = 1;

/// How many bytes of rows an install gives the engine at a time.
const INSTALL_BATCH: usize = 1024 * 1024;

/// How far a group has applied its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// A number that never falls, and stands for `state` in records and errors: the log index.
    pub index: u64,
    /// Whatever consensus wants to find again; opaque here.
    pub state: Bytes,
}

/// What to open, and how much memory it may take.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    pub engine: EngineKind,
    /// Memory of the row cache.
    pub cache_bytes: u64,
    pub fjall: FjallOptions,
    pub sled: SledOptions,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            cache_bytes: 64 * 1024 * 1024,
            fjall: FjallOptions::default(),
            sled: SledOptions::default(),
        }
    }
}

/// A store that was opened, and what was found.
#[derive(Debug)]
pub struct Opened {
    pub store: Arc<Store>,
    /// Why the engine's state was thrown away and rebuilt from our own snapshot files, if it was:
    /// each group is back at its last flush, and the log has what comes after.
    pub rebuilt: Option<String>,
}

/// The rows of all groups of a node.
pub struct Store {
    dir: PathBuf,
    kind: EngineKind,
    engine: Arc<dyn Storage>,
    cache: RowCache,
    watermark: Mutex<Watermark>,
    /// Held by the flush that runs.
    flushing: Mutex<()>,
    groups: Mutex<HashMap<GroupId, Arc<Group>>>,
    closed: AtomicBool,
    failed: watch::Sender<Option<String>>,
}

struct Group {
    id: GroupId,
    applied: Mutex<Option<Position>>,
    /// What the last flush made durable.
    flushed: Mutex<Option<Position>>,
    /// See [`GroupStorage::cache_version`].
    publishing: AtomicU64,
    /// How often its rows began and ended to be replaced: odd while they are.
    installs: AtomicU64,
}

impl Group {
    /// The count of installs, for [`Group::check_same`] after the read.
    fn check_readable(&self) -> Result<u64, StorageError> {
        let installs = self.installs.load(Ordering::Acquire);
        if installs % 2 == 1 {
            return Err(StorageError::Installing(self.id));
        }
        Ok(installs)
    }

    /// Refuses what was read while an install began, which may be half of each state.
    fn check_same(&self, installs: u64) -> Result<(), StorageError> {
        if self.installs.load(Ordering::Acquire) == installs {
            return Ok(());
        }
        Err(StorageError::Installing(self.id))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("engine", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `dir`, or makes one there, and finishes what a crash left half done. Only
    /// one process may have `dir` open: hold its [`super::DirLock`].
    ///
    /// # Errors
    /// [`StorageError::Damaged`] or [`StorageError::Gap`] when files are not as they were written
    /// and cannot be rebuilt: nothing was lost by trying, and the node must not start.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Opened, StorageError> {
        files::create_dir(dir)?;
        let pending = pending_installs(dir)?;
        // For what a crash left unfinished there.
        snapshots_in(&dir.join(DURABLE))?;
        let kind = options.engine;
        let engine_dir = dir.join(kind.name());
        let watermark_path = dir.join("watermark");

        let mut watermark = match Watermark::load(&watermark_path)? {
            Some(_) if kind == EngineKind::Memory => Watermark::create(&watermark_path)?,
            Some(watermark) => watermark,
            None if engine_dir.exists() => {
                return Err(StorageError::Damaged {
                    path: watermark_path,
                    what: "it is missing, and the engine's files are there".to_owned(),
                });
            }
            None => Watermark::create(&watermark_path)?,
        };
        let check =
            |engine: &dyn Storage| check_watermark(dir, engine, watermark.durable(), &pending);
        let (engine, rebuilt): (Arc<dyn Storage>, _) = match kind {
            EngineKind::Memory => (Arc::new(MemoryStorage::new()), None),
            EngineKind::Fjall => {
                let engine = FjallStorage::open(&engine_dir, options.fjall)?;
                check(&engine)?;
                (Arc::new(engine), None)
            }
            EngineKind::Sled => {
                let (engine, rebuilt) = sled::open_or_rebuild(dir, options.sled, &check)?;
                (Arc::new(engine), rebuilt)
            }
        };
        for (group, path) in &pending {
            tracing::info!(%group, "finishing the install of a snapshot that a crash interrupted");
            let position = load_snapshot(engine.as_ref(), path)?;
            engine.flush()?;
            record(&mut watermark, *group, position.as_ref())?;
            retire(dir, kind, *group, path, position.is_some())?;
        }
        Ok(Opened {
            store: Arc::new(Self {
                dir: dir.to_owned(),
                kind,
                engine,
                cache: RowCache::new(options.cache_bytes),
                watermark: Mutex::new(watermark),
                flushing: Mutex::new(()),
                groups: Mutex::default(),
                closed: AtomicBool::new(false),
                failed: watch::Sender::new(None),
            }),
            rebuilt,
        })
    }

    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.kind
    }

    /// The groups that have a position here, in order.
    pub fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        Ok(positions(self.engine.as_ref())?.into_keys().collect())
    }

    /// The rows of `group`; all handles of one group share its state.
    pub fn group(self: &Arc<Self>, group: GroupId) -> Result<GroupStorage, StorageError> {
        let mut groups = self.groups.lock();
        let group = match groups.get(&group) {
            Some(open) => Arc::clone(open),
            None => {
                let open = Arc::new(Group {
                    id: group,
                    applied: Mutex::new(read_position(self.engine.as_ref(), group)?),
                    flushed: Mutex::new(None),
                    publishing: AtomicU64::new(0),
                    installs: AtomicU64::new(0),
                });
                groups.insert(group, Arc::clone(&open));
                open
            }
        };
        Ok(GroupStorage {
            store: Arc::clone(self),
            group,
        })
    }

    /// About how many bytes the engine takes on disk.
    #[must_use]
    pub fn approximate_size(&self) -> u64 {
        self.engine.approximate_size()
    }

    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Makes everything applied durable and ends the use of the store: later applies and flushes
    /// fail. Call it when every group has stopped.
    pub fn close(&self) -> Result<(), StorageError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.engine.flush()?;
        match self.kind {
            EngineKind::Sled => sled::mark_closed(&self.dir),
            EngineKind::Fjall | EngineKind::Memory => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn engine_for_tests(&self) -> &dyn Storage {
        self.engine.as_ref()
    }

    /// One sync of the engine's journal serves every group.
    fn flush_all(&self) -> Result<(), StorageError> {
        let applied: Vec<_> = self
            .groups
            .lock()
            .values()
            .filter_map(|group| {
                let installs = group.check_readable().ok()?;
                let position = group.applied.lock().clone()?;
                Some((Arc::clone(group), installs, position))
            })
            .collect();
        self.wrote(self.engine.flush())?;
        self.watermark.lock().update(|durable| {
            for (group, installs, position) in applied {
                // What was replaced or destroyed meanwhile has its record already.
                if group.check_same(installs).is_ok() {
                    durable.insert(group.id, position.index);
                    *group.flushed.lock() = Some(position);
                }
            }
        })
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        Ok(())
    }

    /// Why the engine no longer takes writes, once it does not. What it holds in memory is then
    /// ahead of its files by an unknown step, and both engines refuse all that follows: only a new
    /// open, in a new process, finds out what was kept. The Raft log has the rest.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Notes a write or sync that the engine refused; see [`Store::failed`].
    fn wrote<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error) = &result {
            self.failed.send_if_modified(|failed| {
                let first = failed.is_none();
                failed.get_or_insert_with(|| format!("the state could not be written: {error}"));
                first
            });
        }
        self.seen(result)
    }

    /// Damage met by sled at run time makes its next open rebuild.
    fn seen<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error) = &result
            && error.is_damage()
            && self.kind == EngineKind::Sled
            && let Err(error) = sled::mark_suspect(&self.dir)
        {
            tracing::error!(%error, "cannot note that the engine's files are damaged");
        }
        result
    }
}

/// The rows of one group. Cheap to clone.
///
/// Reads may come from any thread. Applies, flushes and installs of one group must not overlap each
/// other, except that a flush may run beside applies.
#[derive(Clone)]
pub struct GroupStorage {
    store: Arc<Store>,
    group: Arc<Group>,
}

impl std::fmt::Debug for GroupStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupStorage")
            .field("group", &self.group.id)
            .finish_non_exhaustive()
    }
}

impl GroupStorage {
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group.id
    }

    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The key of a private row of this group, which travels in its snapshots but is in no range of
    /// the keyspace. Rows of one group sort by `name`.
    #[must_use]
    pub fn private_key(&self, name: &[u8]) -> Bytes {
        let mut key = BytesMut::with_capacity(10 + name.len());
        key.put_slice(&private_prefix(self.group.id));
        key.put_u8(NAMED);
        key.put_slice(name);
        key.freeze()
    }

    /// How far the group is applied; `None` for a pristine one.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.group.applied.lock().clone()
    }

    /// The value of a row, from the cache if it is there.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let installs = self.group.check_readable()?;
        let row = self
            .store
            .cache
            .get_or_read(key, || self.store.seen(self.store.engine.get(key)))?;
        self.group.check_same(installs)?;
        Ok(row)
    }

    /// The value of a row if the cache knows it, without touching the disk: `Some(None)` says that
    /// the row is absent.
    #[must_use]
    pub fn get_cached(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let installs = self.group.check_readable().ok()?;
        let row = self.store.cache.cached(key)?;
        self.group.check_same(installs).ok()?;
        Some(row)
    }

    /// Rises before and after the cache takes a batch: odd while some of its rows show there and
    /// others do not. Whoever reads several rows from the cache as of one instant compares.
    #[must_use]
    pub fn cache_version(&self) -> u64 {
        self.group.publishing.load(Ordering::SeqCst)
    }

    /// [`Reader::scan`] over the rows as they are now.
    pub fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        let installs = self.group.check_readable()?;
        self.store
            .seen(self.store.engine.scan(range, order, visit))?;
        self.group.check_same(installs)
    }

    /// Applies `batch` and moves the group to `position`, as one.
    ///
    /// # Errors
    /// What is applied is then not known: stop the group.
    pub fn apply(&self, batch: Batch, position: Position) -> Result<(), StorageError> {
        self.store.check_open()?;
        self.group.check_readable()?;
        let engine = self.store.engine.as_ref();
        let mut writes =
            batch.into_writes(engine, &mut |deleted| self.store.cache.applied(deleted))?;
        writes.push(position_row(self.group.id, &position));
        self.store.wrote(engine.apply(&writes))?;
        writes.pop();
        self.group.publishing.fetch_add(1, Ordering::SeqCst);
        self.store.cache.applied(&writes);
        self.group.publishing.fetch_add(1, Ordering::SeqCst);
        *self.group.applied.lock() = Some(position);
        Ok(())
    }

    /// The rows as of now, and the position they belong to.
    pub fn view(&self) -> Result<GroupView, StorageError> {
        let installs = self.group.check_readable()?;
        let rows = self.store.engine.view()?;
        self.group.check_same(installs)?;
        Ok(GroupView {
            position: read_position(rows.as_ref(), self.group.id)?,
            rows,
        })
    }

    /// Makes everything applied before the call durable, and returns the position that is durable
    /// now. `ranges` are the rows that the group owns: where the engine's word about durability is
    /// not trusted (sled), they are written to a synced file of our own, whole.
    pub fn flush(&self, ranges: &[Range<Bytes>]) -> Result<Option<Position>, StorageError> {
        self.store.check_open()?;
        let Some(position) = self.position() else {
            return Ok(None);
        };
        let _one_at_a_time = self.store.flushing.lock();
        // The flush that ran while we waited may have covered us.
        let flushed = self.group.flushed.lock().clone();
        match flushed {
            Some(flushed) if flushed.index >= position.index => return Ok(Some(flushed)),
            _ => {}
        }
        match self.store.kind {
            EngineKind::Fjall | EngineKind::Memory => self.store.flush_all()?,
            EngineKind::Sled => {
                let position = self.write_durable(ranges)?;
                let mut watermark = self.store.watermark.lock();
                record(&mut watermark, self.group.id, Some(&position))?;
                *self.group.flushed.lock() = Some(position);
            }
        }
        Ok(self.group.flushed.lock().clone())
    }

    /// Writes the group to its own file, whole and synced.
    fn write_durable(&self, ranges: &[Range<Bytes>]) -> Result<Position, StorageError> {
        let mut export = self.export(ranges)?;
        let path = durable_path(&self.store.dir, self.group.id);
        files::create_dir(&self.store.dir.join(DURABLE))?;
        let mut file = FileWriter::create(&path, self.group.id, ranges)?;
        while let Some(chunk) = export.next_chunk()? {
            file.chunk(&chunk)?;
        }
        let position = export.position().clone();
        file.finish(Some(&position))?;
        Ok(position)
    }

    /// The rows of `ranges` and the group's private rows, as chunks to send to another replica.
    /// Applies go on meanwhile.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`] when the group is pristine.
    pub fn export(&self, ranges: &[Range<Bytes>]) -> Result<Export, StorageError> {
        let view = self.view()?;
        let position = view
            .position
            .ok_or_else(|| StorageError::BadSnapshot("the group has no state yet".to_owned()))?;
        Ok(Export::new(self.group.id, view.rows, position, ranges))
    }

    /// Begins to receive what [`GroupStorage::export`] made elsewhere. `owned` are the rows that
    /// the group has here now: they go, like its private rows.
    pub fn begin_install(&self, owned: &[Range<Bytes>]) -> Result<Install, StorageError> {
        self.store.check_open()?;
        files::create_dir(&self.store.dir.join(INSTALL))?;
        let path = install_path(&self.store.dir, self.group.id);
        Ok(Install::begin(self.clone(), path, owned))
    }

    /// Deletes the rows of `owned`, the group's private rows and its position, durably.
    pub fn destroy(&self, owned: &[Range<Bytes>]) -> Result<(), StorageError> {
        self.store.check_open()?;
        files::create_dir(&self.store.dir.join(INSTALL))?;
        let path = install_path(&self.store.dir, self.group.id);
        self.install(FileWriter::create(&path, self.group.id, owned)?, None)
    }

    /// Becomes what `file` holds. From the moment it has its name, a crash is followed by the end
    /// of the install; before that, by the old state.
    pub(super) fn install(
        &self,
        file: FileWriter,
        position: Option<&Position>,
    ) -> Result<(), StorageError> {
        let (store, group) = (&self.store, &self.group);
        let newer = |here: &Position| position.is_some_and(|there| there.index < here.index);
        if group.applied.lock().as_ref().is_some_and(newer) {
            return Err(StorageError::BadSnapshot(
                "it is older than what the group has".to_owned(),
            ));
        }
        let path = file.finish(position)?;
        // Reads fail until it is done. After an error they go on failing: the next open finishes.
        group.installs.fetch_add(1, Ordering::AcqRel);
        let replace = || {
            let found = load_snapshot(store.engine.as_ref(), &path)?;
            store.cache.clear();
            store.engine.flush()?;
            record(&mut store.watermark.lock(), group.id, found.as_ref())?;
            retire(&store.dir, store.kind, group.id, &path, found.is_some())?;
            Ok(found)
        };
        let found = store.wrote(replace())?;
        *group.flushed.lock() = found.clone();
        *group.applied.lock() = found;
        group.installs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// A group's rows at one instant.
pub struct GroupView {
    /// What they are the result of; `None` for a pristine group.
    pub position: Option<Position>,
    pub rows: Arc<dyn Reader>,
}

impl std::fmt::Debug for GroupView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupView")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

const INSTALL: &str = "install";
pub(super) const DURABLE: &str = "durable";
const SNAPSHOT_SUFFIX: &str = ".snap";

fn install_path(dir: &Path, group: GroupId) -> PathBuf {
    dir.join(INSTALL).join(format!("{group}{SNAPSHOT_SUFFIX}"))
}

fn durable_path(dir: &Path, group: GroupId) -> PathBuf {
    dir.join(DURABLE).join(format!("{group}{SNAPSHOT_SUFFIX}"))
}

pub(super) fn private_prefix(group: GroupId) -> [u8; 9] {
    let mut prefix = [PRIVATE; 9];
    prefix[1..].copy_from_slice(&group.0.to_be_bytes());
    prefix
}

pub(super) fn private_range(group: GroupId) -> Range<Bytes> {
    let start = Bytes::copy_from_slice(&private_prefix(group));
    let end = match group.0.checked_add(1) {
        Some(next) => Bytes::copy_from_slice(&private_prefix(GroupId(next))),
        None => Bytes::from_static(&[PRIVATE + 1]),
    };
    start..end
}

fn position_key(group: GroupId) -> [u8; 10] {
    let mut key = [POSITION; 10];
    key[..9].copy_from_slice(&private_prefix(group));
    key
}

fn position_row(group: GroupId, position: &Position) -> Write {
    let mut value = BytesMut::with_capacity(9 + position.state.len());
    value.put_u8(POSITION_VERSION);
    value.put_u64_le(position.index);
    value.put_slice(&position.state);
    Write {
        key: Bytes::copy_from_slice(&position_key(group)),
        value: Some(value.freeze()),
    }
}

pub(super) fn read_position(
    reader: &dyn Reader,
    group: GroupId,
) -> Result<Option<Position>, StorageError> {
    let Some(row) = reader.get(&position_key(group))? else {
        return Ok(None);
    };
    let damaged = |what: String| StorageError::Damaged {
        path: PathBuf::from(format!("the position of group {group}")),
        what,
    };
    match row.split_first_chunk::<9>() {
        Some(([POSITION_VERSION, index @ ..], _)) => Ok(Some(Position {
            index: u64::from_le_bytes(*index),
            state: row.slice(9..),
        })),
        Some(([version, ..], _)) => Err(damaged(format!("its format is {version}"))),
        None => Err(damaged("it is too short".to_owned())),
    }
}

/// The positions of all groups, by one seek per group.
pub(super) fn positions(reader: &dyn Reader) -> Result<BTreeMap<GroupId, Position>, StorageError> {
    let mut found = BTreeMap::new();
    let mut start = Bytes::from_static(&[PRIVATE]);
    loop {
        let mut next = None;
        reader.scan(
            &start..&[PRIVATE + 1],
            ScanOrder::Ascending,
            &mut |key, _| {
                next = key
                    .get(1..9)
                    .and_then(|group| <[u8; 8]>::try_from(group).ok());
                false
            },
        )?;
        let Some(group) = next.map(|group| GroupId(u64::from_be_bytes(group))) else {
            return Ok(found);
        };
        if let Some(position) = read_position(reader, group)? {
            found.insert(group, position);
        }
        start = private_range(group).end;
    }
}

/// Snapshots that were whole when a crash came; leftovers of others are removed.
fn pending_installs(dir: &Path) -> Result<BTreeMap<GroupId, PathBuf>, StorageError> {
    snapshots_in(&dir.join(INSTALL))
}

/// The snapshot files in `dir` by group. Unfinished ones are removed.
pub(super) fn snapshots_in(dir: &Path) -> Result<BTreeMap<GroupId, PathBuf>, StorageError> {
    let mut found = BTreeMap::new();
    if !dir.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let entry = entry.map_err(StorageError::io("list", dir))?;
        let (name, path) = (entry.file_name(), entry.path());
        let group = name
            .to_str()
            .and_then(|name| name.strip_suffix(SNAPSHOT_SUFFIX))
            .and_then(|number| number.parse().ok());
        match group {
            Some(group) => {
                found.insert(GroupId(group), path);
            }
            None => std::fs::remove_file(&path).map_err(StorageError::io("remove", &path))?,
        }
    }
    Ok(found)
}

/// Makes the group's rows those of the file at `path`. Repeating it after a crash is harmless.
pub(super) fn load_snapshot(
    engine: &dyn Storage,
    path: &Path,
) -> Result<Option<Position>, StorageError> {
    let file = FileReader::open(path)?;
    let group = file.group;
    for range in &file.wipe {
        wipe(engine, &range.start, &range.end)?;
    }
    let private = private_range(group);
    wipe(engine, &private.start, &private.end)?;
    let position = file.load(INSTALL_BATCH, &mut |writes| engine.apply(writes))?;
    if let Some(position) = &position {
        engine.apply(&[position_row(group, position)])?;
    }
    Ok(position)
}

fn record(
    watermark: &mut Watermark,
    group: GroupId,
    position: Option<&Position>,
) -> Result<(), StorageError> {
    watermark.update(|durable| {
        match position {
            Some(position) => durable.insert(group, position.index),
            None => durable.remove(&group),
        };
    })
}

/// Puts the file of a finished install away. For sled it is the group's durable state from now on.
fn retire(
    dir: &Path,
    kind: EngineKind,
    group: GroupId,
    path: &Path,
    has_state: bool,
) -> Result<(), StorageError> {
    let durable = durable_path(dir, group);
    match kind {
        EngineKind::Sled if has_state => {
            files::create_dir(&dir.join(DURABLE))?;
            std::fs::rename(path, &durable).map_err(StorageError::io("rename", path))?;
            files::sync_parent(&durable)?;
            files::sync_parent(path)
        }
        EngineKind::Sled => {
            files::remove(&durable)?;
            files::remove(path)
        }
        EngineKind::Fjall | EngineKind::Memory => files::remove(path),
    }
}

/// Compares what the engine holds with our record. Groups about to be installed are exempt: their
/// rows may be half gone, and the snapshot is their state.
fn check_watermark(
    dir: &Path,
    engine: &dyn Storage,
    durable: &BTreeMap<GroupId, u64>,
    pending: &BTreeMap<GroupId, PathBuf>,
) -> Result<(), StorageError> {
    for (&group, &recorded) in durable {
        if pending.contains_key(&group) {
            continue;
        }
        let found = read_position(engine, group)?.map_or(0, |position| position.index);
        if found < recorded {
            return Err(StorageError::Gap {
                dir: dir.to_owned(),
                group,
                found,
                recorded,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose writes fail once `full` says so.
    struct Filling {
        rows: MemoryStorage,
        full: AtomicBool,
    }

    impl Reader for Filling {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
            self.rows.get(key)
        }

        fn scan(
            &self,
            range: Range<&[u8]>,
            order: ScanOrder,
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), StorageError> {
            self.rows.scan(range, order, visit)
        }
    }

    impl Storage for Filling {
        fn apply(&self, writes: &[Write]) -> Result<(), StorageError> {
            if self.full.load(Ordering::Relaxed) {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(StorageError::io("write", Path::new("rows"))(full));
            }
            self.rows.apply(writes)
        }

        fn view(&self) -> Result<Arc<dyn Reader>, StorageError> {
            self.rows.view()
        }

        fn flush(&self) -> Result<(), StorageError> {
            self.rows.flush()
        }

        fn approximate_size(&self) -> u64 {
            self.rows.approximate_size()
        }
    }

    #[test]
    fn a_write_that_the_engine_refuses_is_told_to_whoever_runs_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            engine: EngineKind::Memory,
            ..StoreOptions::default()
        };
        let mut store = Arc::into_inner(Store::open(dir.path(), options).unwrap().store).unwrap();
        let engine = Arc::new(Filling {
            rows: MemoryStorage::new(),
            full: AtomicBool::new(false),
        });
        store.engine = Arc::clone(&engine) as Arc<dyn Storage>;
        let store = Arc::new(store);
        let group = store.group(GroupId(3)).unwrap();
        let at = |index| Position {
            index,
            state: Bytes::new(),
        };

        group.apply(Batch::default(), at(1)).unwrap();
        assert_eq!(*store.failed().borrow(), None);

        engine.full.store(true, Ordering::Relaxed);
        group.apply(Batch::default(), at(2)).unwrap_err();
        engine.full.store(false, Ordering::Relaxed);
        let why = store.failed().borrow().clone();
        assert!(why.unwrap().contains("cannot write rows"));
        assert_eq!(group.position(), Some(at(1)));
    }
}

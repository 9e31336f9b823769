//! The write-ahead log of a node, shared by all its Raft groups.
//!
//! Appends return at once; one thread writes all that waits and syncs it once (group commit), then
//! tells everyone. Votes are durable when [`RaftLogStorage::save_vote`] returns. Entries stay in memory
//! up to a bound, and are read back from the segment files beyond it.
//!
//! # Invariants
//! 1. What was reported durable is found again at the next open, or the open is refused. What was not
//!    reported is found again as a prefix.
//! 2. After the first failed write or sync every call fails, and [`SharedLog::failed`] says why.
//! 3. What waits for the flusher, what is kept in memory, and the disk beyond what is live are bounded.
//!
//! Files in the directory: `LOCK`, `watermark`, and one `<number>.log` per segment. [`record`] has
//! the format, [`recovery`] the rules of opening.

mod files;
mod flusher;
mod group;
mod housekeeper;
mod metrics;
mod record;
mod recovery;
mod segments;
mod storage;
#[cfg(test)]
mod tests;
mod watermark;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::GroupId;

use files::{Files, SystemFiles, sync_dir};
use flusher::{Flusher, Op, Queue};
use group::Group;
use housekeeper::{House, Housekeeper};
use segments::Segments;
use watermark::Watermark;

pub use metrics::LogMetrics;
pub use storage::GroupLog;

/// Sizes of the log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes of one segment file. Half of it is the largest entry.
    pub segment_bytes: u64,
    /// Segments may take this much (or twice what is live, if that is more) before what is live in
    /// the oldest is written again at the head.
    pub disk_bytes: u64,
    /// Entries kept in memory, over all groups.
    pub tail_bytes: usize,
    /// Appends that may wait for the flusher.
    pub queue_bytes: usize,
}

/// The smallest segment: room for the checkpoints of some hundred groups.
const MIN_SEGMENT: u64 = 32 << 10;
const MAX_SEGMENT: u64 = 1 << 30;

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            disk_bytes: 256 << 20,
            tail_bytes: 32 << 20,
            queue_bytes: 16 << 20,
        }
    }
}

/// Why a log did not open. Nothing was changed, unless it says `Io`.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    /// Another process has the log open, or this one has.
    #[error("the Raft log in {} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    #[error("the Raft log cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("segments of {segment_bytes} bytes: the size must be between 32 KiB and 1 GiB")]
    SegmentSize { segment_bytes: u64 },
    #[error(
        "{} has format version {found}, newer than the {supported} that this version of leadline \
         knows: use the version that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat {
        path: PathBuf,
        found: u16,
        supported: u16,
    },
    /// Something that had been synced is not what was written.
    #[error(
        "the Raft log is damaged in {} at offset {offset}: {what}; restore the file, or remove this \
         node from the cluster and let it join again with an empty --data-dir",
        path.display()
    )]
    Corrupt {
        path: PathBuf,
        offset: u64,
        what: &'static str,
    },
    #[error(
        "{} is missing: {what}; restore the file, or remove this node from the cluster and let it \
         join again with an empty --data-dir",
        path.display()
    )]
    Missing { path: PathBuf, what: &'static str },
    /// The log is shorter than it was known to be.
    #[error(
        "acknowledged entries are missing: the Raft log ends in {} at offset {offset}, {records} \
         records before what was durable",
        path.display()
    )]
    AcknowledgedMissing {
        path: PathBuf,
        offset: u64,
        records: u64,
    },
    #[error("the Raft log in {} lacks entry {index} of group {group}", dir.display())]
    EntryMissing {
        dir: PathBuf,
        group: GroupId,
        index: u64,
    },
}

/// Why the log stopped: a write or a sync failed. Nothing is retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Raft log has stopped: {0}")]
pub struct LogFailed(pub Arc<str>);

impl From<LogFailed> for io::Error {
    fn from(failed: LogFailed) -> Self {
        Self::other(failed)
    }
}

/// What the log's threads and its callers share.
struct Shared {
    options: LogOptions,
    metrics: LogMetrics,
    segments: Segments,
    watermark: Mutex<Watermark>,
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    queue: Mutex<Queue>,
    wake_flusher: Condvar,
    /// One for each byte that may wait for the flusher.
    permits: Semaphore,
    /// Bytes of entries in memory.
    tail_bytes: AtomicUsize,
    house: Mutex<House>,
    wake_housekeeper: Condvar,
    segment_ready: Condvar,
    failed: watch::Sender<Option<LogFailed>>,
}

impl Shared {
    /// Hands `op` to the flusher. Its `bytes` were acquired from `permits`.
    fn enqueue(&self, op: Op, bytes: usize) {
        let mut queue = self.queue.lock();
        let refused = match &queue.failed {
            Some(failed) => Some(failed.clone()),
            None if queue.closing => Some(LogFailed("it is closed".into())),
            None => None,
        };
        if let Some(failed) = refused {
            drop(queue);
            op.fail(&failed);
            return;
        }
        queue.ops.push(op);
        queue.permits += bytes;
        drop(queue);
        self.metrics.queue_depth.inc();
        self.metrics.queue_bytes.inc_by(bytes as i64);
        self.wake_flusher.notify_one();
    }

    /// Stops the log for good, and fails all that waits.
    fn poison(&self, reason: &str) -> LogFailed {
        let failed = {
            let mut queue = self.queue.lock();
            let failed = queue
                .failed
                .get_or_insert_with(|| LogFailed(reason.into()))
                .clone();
            let ops = std::mem::take(&mut queue.ops);
            queue.closing = true;
            drop(queue);
            ops.into_iter().for_each(|op| op.fail(&failed));
            failed
        };
        self.permits.close();
        self.wake_flusher.notify_one();
        self.failed
            .send_if_modified(|known| known.is_none() && known.replace(failed.clone()).is_none());
        failed
    }

    fn failure(&self) -> LogFailed {
        self.failed
            .borrow()
            .clone()
            .unwrap_or_else(|| LogFailed("it is closed".into()))
    }
}

/// The log of a node.
pub struct SharedLog {
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
}

/// What [`SharedLog::close`] ends, in this order.
#[derive(Default)]
struct Threads {
    flusher: Option<JoinHandle<()>>,
    housekeeper: Option<JoinHandle<()>>,
    lock: Option<File>,
}

impl SharedLog {
    /// Opens the log in `dir`, creating it if there is none. Blocks on the disk: a fresh log writes
    /// one segment of zeros, an old one is read whole.
    ///
    /// # Errors
    /// See [`LogOpenError`]. Damage to what was durable is refused, never repaired.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        metrics: LogMetrics,
    ) -> Result<Arc<Self>, LogOpenError> {
        Self::open_with(dir, options, metrics, Arc::new(SystemFiles))
    }

    fn open_with(
        dir: &Path,
        options: LogOptions,
        metrics: LogMetrics,
        files: Arc<dyn Files>,
    ) -> Result<Arc<Self>, LogOpenError> {
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&options.segment_bytes) {
            return Err(LogOpenError::SegmentSize {
                segment_bytes: options.segment_bytes,
            });
        }
        let io = |path: &Path| {
            let path = path.to_path_buf();
            |source| LogOpenError::Io { path, source }
        };
        create_dir(dir).map_err(io(dir))?;
        let lock_path = dir.join("LOCK");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => LogOpenError::InUse {
                dir: dir.to_path_buf(),
            },
            other => io(&lock_path)(other.into()),
        })?;

        let recovered = recovery::open(dir, &options, &files)?;
        metrics.segments.set(recovered.segments.count() as i64);
        let shared = Arc::new(Shared {
            permits: Semaphore::new(options.queue_bytes.min(Semaphore::MAX_PERMITS)),
            options,
            metrics,
            segments: recovered.segments,
            watermark: Mutex::new(recovered.watermark),
            groups: Mutex::new(recovered.resume.groups.clone()),
            queue: Mutex::default(),
            wake_flusher: Condvar::new(),
            tail_bytes: AtomicUsize::new(0),
            house: Mutex::new(House::starting_at(recovered.resume.active.number + 1)),
            wake_housekeeper: Condvar::new(),
            segment_ready: Condvar::new(),
            failed: watch::Sender::new(None),
        });
        let flusher = Flusher::new(Arc::clone(&shared), recovered.resume);
        let housekeeper = Housekeeper(Arc::clone(&shared));
        let log = Self {
            shared,
            threads: Mutex::new(Threads {
                lock: Some(lock),
                ..Threads::default()
            }),
        };
        {
            let mut threads = log.threads.lock();
            threads.housekeeper =
                Some(spawn("log-housekeeper", || housekeeper.run()).map_err(io(dir))?);
            threads.flusher = Some(spawn("log-flusher", || flusher.run()).map_err(io(dir))?);
        }
        Ok(Arc::new(log))
    }

    /// Groups that the log holds anything of.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        let groups = self.shared.groups.lock();
        groups
            .values()
            .filter(|group| !group.state.lock().view.is_pristine())
            .map(|group| group.id)
            .collect()
    }

    /// The log of `group`, empty if it has none yet.
    #[must_use]
    pub fn group(&self, group: GroupId) -> GroupLog {
        let entry = Arc::clone(
            self.shared
                .groups
                .lock()
                .entry(group)
                .or_insert_with(|| Arc::new(Group::new(group))),
        );
        GroupLog::new(Arc::clone(&self.shared), entry)
    }

    /// Forgets `group`: its entries, vote and marks. Its [`GroupLog`]s must not be used any more.
    /// Durable when it returns; not taken back when the future is dropped.
    ///
    /// # Errors
    /// When the log has failed or is closed.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), LogFailed> {
        let Some(group) = self.shared.groups.lock().remove(&group) else {
            return Ok(());
        };
        let (done, removed) = oneshot::channel();
        {
            let mut state = group.state.lock();
            self.shared.forget_tail(state.view.tail_bytes());
            state.view.remove();
            // With the group locked, so that nothing of it follows in the stream.
            let group = Arc::clone(&group);
            self.shared.enqueue(Op::Remove { group, done }, 0);
        }
        removed.await.map_err(|_| self.shared.failure())?
    }

    /// Becomes `Some` when the log has failed: the node must stop.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<LogFailed>> {
        self.shared.failed.subscribe()
    }

    /// The largest entry that [`GroupLog`] takes, in bytes of its payload.
    #[must_use]
    pub fn max_entry_bytes(&self) -> usize {
        self.shared.max_payload()
    }

    /// Flushes what waits, ends the log's threads and releases the directory. Later calls fail.
    /// The threads are joined also when the future is dropped.
    ///
    /// # Errors
    /// When the log has failed, now or before.
    pub async fn close(self: &Arc<Self>) -> Result<(), LogFailed> {
        let log = Arc::clone(self);
        let joined = tokio::task::spawn_blocking(move || log.stop()).await;
        match joined {
            Ok(()) => self.shared.failed.borrow().clone().map_or(Ok(()), Err),
            Err(error) => Err(LogFailed(error.to_string().into())),
        }
    }

    /// Blocks until the threads have ended.
    fn stop(&self) {
        let mut threads = self.threads.lock();
        self.shared.queue.lock().closing = true;
        self.shared.wake_flusher.notify_one();
        // The housekeeper after the flusher, which may be waiting for a segment.
        if let Some(flusher) = threads.flusher.take()
            && flusher.join().is_err()
        {
            self.shared.poison("the flusher panicked");
        }
        self.shared.house.lock().closing = true;
        self.shared.wake_housekeeper.notify_all();
        if let Some(housekeeper) = threads.housekeeper.take()
            && housekeeper.join().is_err()
        {
            self.shared.poison("the housekeeper panicked");
        }
        self.shared.permits.close();
        threads.lock = None;
    }
}

impl Drop for SharedLog {
    /// As [`SharedLog::close`], for who did not call it. Blocks for one flush.
    fn drop(&mut self) {
        self.stop();
    }
}

/// Creates `dir` and what is missing above it, durably.
fn create_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::create_dir_all(dir)?;
    for created in missing {
        match created.parent() {
            Some(parent) if parent != Path::new("") => sync_dir(parent)?,
            Some(_) => sync_dir(Path::new("."))?,
            None => {}
        }
    }
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

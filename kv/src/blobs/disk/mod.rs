//! The chunks on one node's disk.
//!
//! ```text
//! <data-dir>/blobs/
//!   0000002a.blob    a segment: chunks, one behind the other, never changed (record.rs)
//!   0000002a.hint    what it holds, once it is sealed: may be lost
//! ```
//! Nothing but chunks is written: no deletions, no ages. A chunk that was collected and comes back
//! with a crash is nobody's, and is collected again; and at open every chunk counts as young, so an
//! age need not be remembered to be safe. One thread writes (`writer.rs`), any may read.
//!
//! # Invariants
//! 1. A chunk whose `write` returned is durable and whole.
//! 2. What a read gives has the checksum it was written with.
//! 3. A segment is deleted only when the index points to nothing in it.

mod files;
mod index;
mod pages;
mod record;
mod recovery;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use leadline_raft::{Context, Ended};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot, watch};

pub(super) use self::files::{Files, SystemFiles};
pub use self::pages::chunk_buffer;
pub(super) use self::record::Location;
pub(super) use self::segments::Segment;
pub(crate) use recovery::OpenStoreError;

use self::index::Index;
#[cfg(test)]
use self::recovery::Found;
use self::segments::Segments;
use self::writer::{Op, Queue, Writer};
use super::metrics::BlobMetrics;
use super::{BytePermit, ChunkHash, ChunkRef};

/// The unit in which the queue's bytes are counted.
const QUEUE_UNIT: usize = 1024;

/// The store's sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Bytes of a segment, below 4 GiB.
    pub(super) segment_bytes: u64,
    /// Bytes of chunks that may wait for the writer.
    pub(super) queue_bytes: usize,
    /// What is left free on the disk, for the log and the rows.
    pub(super) least_free_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            queue_bytes: 64 << 20,
            least_free_bytes: 256 << 20,
        }
    }
}

/// Why a chunk was not written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DiskError {
    /// The disk is full, or refused the write; later ones may succeed.
    #[error("{0}")]
    Write(String),
    /// A chunk cannot be read now, for a reason that says nothing about its bytes.
    #[error("{0}")]
    Read(String),
    /// A sync failed: the node must stop.
    #[error("{0}")]
    Failed(String),
    #[error("the blob store is closed")]
    Closed,
    #[error("{0}")]
    Ended(#[from] Ended),
}

struct Shared {
    options: Options,
    segments: Segments,
    index: Index,
    queue: Mutex<Queue>,
    wake_writer: Condvar,
    places: Arc<Semaphore>,
    failed: watch::Sender<Option<String>>,
    /// Good seconds since the store was opened.
    now: AtomicU32,
    /// The number of the segment that is being written.
    active: AtomicU32,
    metrics: BlobMetrics,
}

impl Shared {
    fn now(&self) -> u32 {
        self.now.load(Ordering::Acquire)
    }
}

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreStats {
    pub(super) chunks: u64,
    pub(super) segments: u64,
    pub(super) live_bytes: u64,
    pub(super) used_bytes: u64,
}

/// The chunks of one node.
pub(crate) struct ChunkStore {
    shared: Arc<Shared>,
    #[cfg(test)]
    found: Found,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore")
            .field("dir", &self.shared.segments.dir())
            .finish_non_exhaustive()
    }
}

impl ChunkStore {
    /// Opens the store in `dir`, or makes one there. Blocks on the disk.
    pub(super) fn open(
        dir: &Path,
        options: Options,
        files: Arc<dyn Files>,
        metrics: BlobMetrics,
    ) -> Result<Arc<Self>, OpenStoreError> {
        assert!(options.segment_bytes < 1 << 32, "offsets have 32 bits");
        let recovered = recovery::recover(dir, files)?;
        let found = recovered.found;
        metrics.damaged.inc_by(found.damaged);
        let shared = Arc::new(Shared {
            options,
            segments: recovered.segments,
            index: recovered.index,
            queue: Mutex::default(),
            wake_writer: Condvar::new(),
            places: Arc::new(Semaphore::new(options.queue_bytes.div_ceil(QUEUE_UNIT))),
            failed: watch::Sender::new(None),
            now: AtomicU32::new(0),
            active: AtomicU32::new(0),
            metrics,
        });
        let writer = Writer::new(Arc::clone(&shared), recovered.next_number);
        let writer = std::thread::Builder::new()
            .name("blob-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenStoreError::Io {
                path: dir.to_owned(),
                source,
            })?;
        let store = Arc::new(Self {
            shared,
            #[cfg(test)]
            found,
            writer: Mutex::new(Some(writer)),
        });
        let io = |source| OpenStoreError::Io {
            path: dir.to_owned(),
            source,
        };
        let again = store.write_again(&recovered.unsure);
        if again.map_err(|error| io(io::Error::other(error)))? {
            for sealed in &recovered.unsealed {
                let segments = &store.shared.segments;
                segments
                    .write_hint(sealed.head, sealed.end, &sealed.records)
                    .map_err(io)?;
            }
        }
        let stats = store.stats();
        if stats.segments > 0 {
            tracing::info!(
                chunks = stats.chunks,
                segments = stats.segments,
                damaged = found.damaged,
                torn = found.torn,
                "opened the blob store"
            );
        }
        Ok(store)
    }

    /// Opens the store of a node. Blocks on the disk.
    pub(crate) fn open_on_disk(
        dir: &Path,
        metrics: BlobMetrics,
    ) -> Result<Arc<Self>, OpenStoreError> {
        Self::open(
            dir,
            Options::default(),
            Arc::new(SystemFiles::default()),
            metrics,
        )
    }

    /// What opening found.
    #[cfg(test)]
    pub(super) fn found(&self) -> Found {
        self.found
    }

    /// Becomes `Some` when the disk has failed and the node must stop.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Good seconds since the store was opened: see [`super::GRACE`].
    pub(super) fn now(&self) -> u32 {
        self.shared.now()
    }

    /// Lets `time` pass for the ages of chunks.
    pub(super) fn advance(&self, seconds: u32) {
        self.shared.now.fetch_add(seconds, Ordering::AcqRel);
    }

    pub(super) fn contains(&self, chunk: ChunkRef) -> bool {
        self.shared.index.get(&chunk.hash).is_some()
    }

    /// Makes the chunk young, if it is here.
    pub(super) fn refresh(&self, chunk: ChunkRef) -> bool {
        self.mark(chunk, self.shared.now())
    }

    /// Says that the chunk was needed at `when`; false if it is not here.
    pub(super) fn mark(&self, chunk: ChunkRef, when: u32) -> bool {
        self.shared.index.refresh(&chunk.hash, when).is_some()
    }

    /// Writes a chunk whose CRC-32C is `crc`, and returns when it is durable. Cancel safe: a chunk
    /// handed over is written though nobody waits.
    pub(super) async fn write(
        &self,
        ctx: &Context,
        chunk: ChunkRef,
        crc: u32,
        data: Bytes,
        held: Option<BytePermit>,
    ) -> Result<(), DiskError> {
        let units = data.len().div_ceil(QUEUE_UNIT).max(1);
        let places = Arc::clone(&self.shared.places);
        let units = u32::try_from(units).map_err(|_| DiskError::Closed)?;
        let place = ctx
            .run(places.acquire_many_owned(units))
            .await?
            .map_err(|_| DiskError::Closed)?;
        let (done, durable) = oneshot::channel();
        self.enqueue(Op {
            chunk,
            crc,
            data,
            from: None,
            done,
            held,
            place: Some(place),
        });
        ctx.run(durable).await?.map_err(|_| DiskError::Closed)?
    }

    /// Reads a chunk; `None` if it is not here, or is not any more what was written: then it is
    /// forgotten, so that it is fetched and written anew. Blocks on the disk.
    ///
    /// # Errors
    /// `Read`: it could not be read just now, and nothing is forgotten.
    pub(super) fn read(&self, chunk: ChunkRef) -> Result<Option<Bytes>, DiskError> {
        // Twice: it may be moved, and its segment deleted, between the look and the read.
        for last in [false, true] {
            let Some(at) = self.shared.index.get(&chunk.hash) else {
                return Ok(None);
            };
            match self.shared.segments.read(at) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if last || self.shared.index.get(&chunk.hash) == Some(at) => {
                    self.lose(chunk.hash, at, error)?;
                    return Ok(None);
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Forgets a chunk whose bytes are gone; an error if it only cannot be read now.
    fn lose(&self, hash: ChunkHash, at: Location, error: io::Error) -> Result<(), DiskError> {
        if !is_damage(&error) {
            return Err(DiskError::Read(error.to_string()));
        }
        if self.shared.index.remove(&hash, at) {
            // Its bytes still count as needed: the segment stays, for whoever can make sense of it.
            self.shared.segments.suspect(at.segment);
            self.shared.metrics.damaged.inc();
            tracing::error!(
                chunk = %hash,
                segment = %self.shared.segments.path(at.segment).display(),
                offset = at.offset,
                %error,
                "a chunk is damaged on this disk: it is fetched from a peer"
            );
        }
        Ok(())
    }

    /// Forgets chunks that were last needed before `limit`; how many.
    pub(super) fn collect(&self, limit: u32) -> usize {
        let index = &self.shared.index;
        let mut collected = 0;
        for hash in index.older_than(limit) {
            if let Some(at) = index.remove_if_older(&hash, limit) {
                self.shared.segments.count_live(at, false);
                collected += 1;
            }
        }
        self.shared.metrics.collected.inc_by(collected as u64);
        collected
    }

    /// Sealed segments of which less than `share` percent is needed, the emptiest first.
    pub(super) fn sparse(&self, share: u64) -> Vec<Arc<Segment>> {
        let mut sparse: Vec<_> = self
            .sealed()
            .into_iter()
            .filter(|segment| !segment.is_suspect())
            .filter(|segment| segment.live() * 100 < segment.used() * share)
            .collect();
        sparse.sort_by_key(|segment| segment.live());
        sparse
    }

    /// Segments that are not written to any more, the oldest first.
    pub(super) fn sealed(&self) -> Vec<Arc<Segment>> {
        let active = self.shared.active.load(Ordering::Acquire);
        let mut sealed = self.shared.segments.all();
        sealed.retain(|segment| segment.head.number != active);
        sealed
    }

    /// What is needed of a sealed segment. Blocks on the disk.
    pub(super) fn live_in(&self, segment: &Segment) -> io::Result<Vec<(ChunkHash, Location)>> {
        let mut records = self.shared.segments.records(segment)?;
        records.retain(|(hash, at)| self.shared.index.get(hash) == Some(*at));
        Ok(records)
    }

    /// Moves a chunk to the head of the store. Blocks on the disk.
    pub(super) fn relocate(&self, hash: ChunkHash, from: Location) -> Result<(), DiskError> {
        let data = match self.shared.segments.read(from) {
            Ok(data) => data,
            Err(error) => return self.lose(hash, from, error),
        };
        let (done, durable) = oneshot::channel();
        self.enqueue(Op {
            chunk: ChunkRef {
                hash,
                len: from.len,
            },
            crc: from.crc,
            data,
            from: Some(from),
            done,
            held: None,
            // Takes no place in the queue: compaction has one of these at a time.
            place: None,
        });
        durable
            .blocking_recv()
            .map_err(|_| DiskError::Closed)?
            .inspect(|()| {
                self.shared.metrics.bytes_moved.inc_by(from.bytes());
            })
    }

    /// Deletes a sealed segment if nothing in it is needed. Blocks on the disk.
    pub(super) fn delete_if_empty(&self, segment: &Segment) -> io::Result<bool> {
        // Nothing points into it, and nothing ever will: records are written to the active one.
        if segment.live() > 0 {
            return Ok(false);
        }
        self.shared.segments.delete(segment.head.number)?;
        Ok(true)
    }

    /// Reads a chunk and compares all of it with its name; forgets it if they differ. Says whether
    /// it was good. Blocks on the disk.
    pub(super) fn scrub(&self, hash: ChunkHash, at: Location) -> bool {
        let checked = self.shared.segments.read(at).and_then(|bytes| {
            if ChunkHash::of(&bytes) == hash {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidData.into())
            }
        });
        self.shared.metrics.scrubbed_bytes.inc_by(at.bytes());
        match checked {
            Ok(()) => true,
            // Moved, and its segment deleted, meanwhile.
            Err(_) if self.shared.index.get(&hash) != Some(at) => true,
            Err(error) => match self.lose(hash, at, error) {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "a chunk could not be read for scrubbing");
                    true
                }
            },
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        let mut stats = StoreStats {
            chunks: self.shared.index.len() as u64,
            ..StoreStats::default()
        };
        for segment in self.shared.segments.all() {
            stats.segments += 1;
            stats.live_bytes += segment.live();
            stats.used_bytes += segment.used();
        }
        stats
    }

    /// Writes what waits, seals the last segment and ends the writer. Blocks on the disk.
    pub(super) fn close(&self) {
        self.stop();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the blob store panicked");
        }
    }

    fn stop(&self) {
        self.shared.places.close();
        self.shared.queue.lock().closing = true;
        self.shared.wake_writer.notify_one();
    }

    fn enqueue(&self, op: Op) {
        {
            let mut queue = self.shared.queue.lock();
            if !queue.closing {
                queue.ops.push_back(op);
                drop(queue);
                self.shared.wake_writer.notify_one();
                return;
            }
        }
        let error = match &*self.shared.failed.borrow() {
            Some(why) => DiskError::Failed(why.clone()),
            None => DiskError::Closed,
        };
        // A caller that went away does not need the answer.
        let _ = op.done.send(Err(error));
    }

    /// Writes chunks anew that may be in the page cache only; false if the disk has no room.
    fn write_again(&self, unsure: &[(ChunkHash, Location)]) -> Result<bool, DiskError> {
        for &(hash, at) in unsure {
            if self.shared.index.get(&hash) != Some(at) {
                continue;
            }
            match self.relocate(hash, at) {
                // They were synced once more as they are: a full disk must not keep a node down.
                Err(DiskError::Write(why)) => {
                    tracing::warn!(
                        why,
                        "the last chunks before the stop were not written again"
                    );
                    return Ok(false);
                }
                other => other?,
            }
        }
        Ok(true)
    }
}

/// Whether a failed read says that the bytes are gone, rather than that files, memory or rights ran
/// out.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    ) || error.raw_os_error() == Some(libc::EIO)
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        self.stop();
    }
}

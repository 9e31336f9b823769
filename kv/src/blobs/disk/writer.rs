//! Group commit: one thread turns all chunks that wait into one write and one sync.
//!
//! # Invariants
//! 1. A write begins only when the one before it is synced.
//! 2. A chunk enters the index, and its writer hears of it, only after its sync.
//! 3. After a failed sync nothing is written any more: what the page cache says after a failed sync
//!    cannot be trusted. A failed *write* (a full disk) fails its chunks only; the next write begins
//!    at the same place.
//! 4. Memory is the chunks' own where they lie as the disk wants them (`pages.rs`): they are gathered
//!    by the system call, not copied together.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::files::BlobFile;
use super::pages::Pages;
use super::record::{Location, RecordHeader, stride};
use super::segments::Segment;
use super::{DiskError, Shared};
use crate::blobs::{BytePermit, ChunkHash, ChunkRef};

/// What one write takes, unless one chunk alone is larger: bounds how long a chunk waits for others.
const WRITE_BYTES: u64 = 16 << 20;
/// Chunks in one write.
const WRITE_CHUNKS: usize = 512;

/// A chunk to be written.
pub(super) struct Op {
    pub(super) chunk: ChunkRef,
    pub(super) crc: u32,
    pub(super) data: Bytes,
    /// Where it lies and is moved away from.
    pub(super) from: Option<Location>,
    pub(super) done: oneshot::Sender<Result<(), DiskError>>,
    /// Given back when the disk is done with it, whoever still waits.
    pub(super) held: Option<BytePermit>,
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Op {
    fn finish(self, outcome: Result<(), DiskError>) {
        // The disk is done with it: given back before the caller goes on.
        drop((self.data, self.held, self.place));
        // A caller that went away does not need the answer.
        let _ = self.done.send(outcome);
    }
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) ops: VecDeque<Op>,
    pub(super) closing: bool,
}

struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn BlobFile>,
    end: u64,
    records: Vec<(ChunkHash, Location)>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
    next_number: u32,
    writes: u64,
    pages: Pages,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, next_number: u32) -> Self {
        Self {
            shared,
            active: None,
            next_number,
            writes: 0,
            pages: Pages::default(),
        }
    }

    /// Runs until the store is closed or has failed.
    pub(super) fn run(mut self) {
        // A panic here must not leave callers waiting.
        let _guard = FailOnPanic(Arc::clone(&self.shared));
        loop {
            let ops = {
                let mut queue = self.shared.queue.lock();
                while queue.ops.is_empty() && !queue.closing {
                    self.shared.wake_writer.wait(&mut queue);
                }
                if queue.ops.is_empty() {
                    break;
                }
                take(&mut queue.ops)
            };
            if let Err(failed) = self.write(ops) {
                self.shared.fail(&failed);
                return;
            }
        }
        if let Some(active) = self.active.take()
            && let Err(error) = self.shared.seal(active)
        {
            tracing::warn!(%error, "the last blob segment was not sealed: it is scanned at the next start");
        }
    }

    /// Writes `ops`; an error is fatal and has been told to them.
    fn write(&mut self, ops: Vec<Op>) -> Result<(), String> {
        let mut rest = ops.into_iter().peekable();
        while rest.peek().is_some() {
            // What came before it may have written the same chunk.
            let mut batch = Vec::new();
            let room = match self.room(rest.peek().map_or(0, |op| op.chunk.len)) {
                Ok(room) => room,
                Err(error) => {
                    let full = DiskError::Write(error.to_string());
                    tracing::warn!(%error, "no new blob segment");
                    rest.for_each(|op| op.finish(Err(full.clone())));
                    return Ok(());
                }
            };
            let mut bytes = 0;
            while let Some(op) = rest.peek() {
                bytes += stride(op.chunk.len);
                if bytes > room {
                    break;
                }
                batch.extend(rest.next());
            }
            if let Err(failed) = self.write_batch(batch) {
                let error = DiskError::Failed(failed.clone());
                rest.for_each(|op| op.finish(Err(error.clone())));
                return Err(failed);
            }
        }
        Ok(())
    }

    /// Bytes left in the active segment, a new one if a chunk of `len` bytes does not fit.
    fn room(&mut self, len: u32) -> io::Result<u64> {
        let size = self.shared.options.segment_bytes;
        if let Some(active) = &self.active
            && active.end + stride(len) <= size
        {
            return Ok(size - active.end);
        }
        if let Some(active) = self.active.take() {
            self.shared.seal(active)?;
        }
        let segments = &self.shared.segments;
        let free = segments.files().free(segments.dir())?;
        if free < size + self.shared.options.least_free_bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{} MiB are free on the disk of the blobs", free >> 20),
            ));
        }
        let (segment, file) = segments.create(self.next_number)?;
        self.shared
            .active
            .store(segment.head.number, Ordering::Release);
        self.next_number += 1;
        let end = segment.end.load(Ordering::Relaxed);
        self.active = Some(Active {
            segment,
            file,
            end,
            records: Vec::new(),
        });
        Ok(size - end)
    }

    fn write_batch(&mut self, mut batch: Vec<Op>) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        // Put twice at once: the first is durable by now.
        let now = shared.now();
        let mut at = 0;
        while at < batch.len() {
            let op = &batch[at];
            if op.from.is_none() && shared.index.refresh(&op.chunk.hash, now).is_some() {
                batch.remove(at).finish(Ok(()));
            } else {
                at += 1;
            }
        }
        let Some(active) = self.active.as_mut().filter(|_| !batch.is_empty()) else {
            return Ok(());
        };
        self.writes += 1;
        let number = active.segment.head.number;
        let mut end = active.end;
        let mut placed = Vec::with_capacity(batch.len());
        let mut headers = Vec::with_capacity(batch.len());
        for op in &batch {
            let header = RecordHeader {
                chunk: op.chunk,
                crc: op.crc,
                write: self.writes,
                first: placed.is_empty(),
            };
            headers.push(header.encode(active.segment.head.seed, end));
            placed.push(header.at(number, end));
            end += stride(op.chunk.len);
        }
        let payloads = batch.iter().map(|op| &op.data[..]);
        let headers = headers.iter().map(|header| &header[..]);
        let parts = self.pages.lay_out(headers.zip(payloads));
        let began = Instant::now();
        if let Err(error) = active.file.write_at(&parts, active.end) {
            tracing::warn!(%error, "writing chunks");
            let error = DiskError::Write(error.to_string());
            batch
                .into_iter()
                .for_each(|op| op.finish(Err(error.clone())));
            return Ok(());
        }
        if let Err(error) = active.file.sync() {
            let failed = format!(
                "syncing {}: {error}",
                shared.segments.path(number).display()
            );
            let error = DiskError::Failed(failed.clone());
            batch
                .into_iter()
                .for_each(|op| op.finish(Err(error.clone())));
            return Err(failed);
        }
        shared
            .metrics
            .sync_seconds
            .observe(began.elapsed().as_secs_f64());
        shared.metrics.bytes_written.inc_by(end - active.end);
        shared.metrics.chunks_written.inc_by(batch.len() as u64);
        active.end = end;
        active.segment.end.store(end, Ordering::Release);
        for (op, to) in batch.into_iter().zip(placed) {
            active.records.push((op.chunk.hash, to));
            shared.settle(op.chunk.hash, op.from, to, now);
            op.finish(Ok(()));
        }
        Ok(())
    }
}

fn take(queue: &mut VecDeque<Op>) -> Vec<Op> {
    let mut bytes = 0;
    let fits = queue
        .iter()
        .take(WRITE_CHUNKS)
        .take_while(|op| {
            bytes += stride(op.chunk.len);
            bytes <= WRITE_BYTES
        })
        .count();
    queue.drain(..fits.max(1)).collect()
}

impl Shared {
    /// Cuts what a failed write may have left, and notes what the segment holds.
    fn seal(&self, active: Active) -> io::Result<()> {
        active.file.set_size(active.end)?;
        self.segments
            .write_hint(active.segment.head, active.end, &active.records)
    }

    /// Makes a chunk that is durable at `to` known.
    fn settle(&self, hash: ChunkHash, from: Option<Location>, to: Location, now: u32) {
        let old = match from {
            // Collected, or written anew, while it was on its way: its copy is not needed.
            Some(from) if !self.index.relocate(&hash, from, to) => return,
            Some(from) => Some(from),
            None => self.index.insert(hash, to, now),
        };
        self.segments.count_live(to, true);
        if let Some(old) = old {
            self.segments.count_live(old, false);
        }
    }

    /// The store takes nothing any more, and the node must stop.
    pub(super) fn fail(&self, why: &str) {
        tracing::error!(why, "the blob store has failed");
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| why.to_owned());
            first
        });
        let waiting = {
            let mut queue = self.queue.lock();
            queue.closing = true;
            std::mem::take(&mut queue.ops)
        };
        for op in waiting {
            op.finish(Err(DiskError::Failed(why.to_owned())));
        }
    }
}

struct FailOnPanic(Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the writer of the blob store panicked");
        }
    }
}

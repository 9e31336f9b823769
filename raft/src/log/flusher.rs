//! Group commit: one thread turns all that waits into one write and one sync.
//!
//! # Invariants
//! 1. A write begins only when the one before it is synced.
//! 2. What is reported durable is synced, and the watermark says so.
//! 3. After the first failed write or sync nothing is written any more: what the page cache says
//!    after a failed sync cannot be trusted.
//! 4. Each segment begins with a checkpoint of every group, so the segments before it are needed for
//!    their live entries only.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use crate::GroupId;
use crate::types::{Entry, LogId, TypeConfig, Vote};

use super::group::{Group, Location, OnDisk};
use super::record::{self, BATCH_START, DATA_START, Kind, Start};
use super::segments::Segment;
use super::{LogFailed, Shared};

/// A write buffer larger than this is given back after use.
const KEPT_BUFFER: usize = 4 << 20;

/// One thing to be written.
pub(super) enum Op {
    Append {
        group: Arc<Group>,
        entries: Vec<Entry>,
        truncations: u64,
        done: IOFlushed<TypeConfig>,
    },
    Vote {
        group: Arc<Group>,
        vote: Vote,
        done: Done,
    },
    Truncate {
        group: Arc<Group>,
        after: Option<LogId>,
    },
    Purge {
        group: Arc<Group>,
        upto: LogId,
    },
    Remove {
        group: Arc<Group>,
        done: Done,
    },
    /// Entries of an old segment, to be written again at the head: index, where it was, body.
    Rewrite {
        group: Arc<Group>,
        entries: Vec<(u64, Location, Bytes)>,
    },
}

pub(super) type Done = oneshot::Sender<Result<(), LogFailed>>;

/// What waits for the flusher.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) ops: Vec<Op>,
    /// Queue space to be given back when `ops` are durable.
    pub(super) permits: usize,
    pub(super) closing: bool,
    pub(super) failed: Option<LogFailed>,
}

pub(super) struct Flusher {
    shared: Arc<Shared>,
    active: Arc<Segment>,
    buffer: Vec<u8>,
    /// Where in the active segment the buffer begins.
    buffer_at: u64,
    next_flags: u8,
    records: u64,
    entries: u64,
    /// Groups with anything in the log, as of the last record encoded.
    logged: BTreeMap<GroupId, Arc<Group>>,
    /// Something was given up or moved: older segments may be free now.
    freed: bool,
}

/// Where recovery left the log.
pub(super) struct Resume {
    pub(super) active: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) records: u64,
    pub(super) groups: BTreeMap<GroupId, Arc<Group>>,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>, resume: Resume) -> Self {
        Self {
            shared,
            active: resume.active,
            buffer: Vec::new(),
            buffer_at: resume.offset,
            next_flags: BATCH_START,
            records: resume.records,
            entries: 0,
            logged: resume.groups,
            freed: true,
        }
    }

    /// Runs until the log is closed or has failed.
    pub(super) fn run(mut self) {
        // A panic here must not leave callers waiting.
        let _guard = PoisonOnPanic(Arc::clone(&self.shared));
        let mut ops = Vec::new();
        loop {
            let permits = {
                let mut queue = self.shared.queue.lock();
                while queue.ops.is_empty() && !queue.closing {
                    self.shared.wake_flusher.wait(&mut queue);
                }
                if queue.ops.is_empty() {
                    break;
                }
                mem::swap(&mut ops, &mut queue.ops);
                mem::take(&mut queue.permits)
            };
            self.shared.metrics.queue_depth.dec_by(ops.len() as i64);
            match self.flush(&ops) {
                Ok(()) => self.complete(&mut ops, permits),
                Err(error) => {
                    let failed = self.shared.poison(&error.to_string());
                    ops.drain(..).for_each(|op| op.fail(&failed));
                    return;
                }
            }
        }
        // What the last write left in the page cache of the watermark.
        if let Err(error) = self.shared.watermark.lock().sync() {
            self.shared.poison(&format!("watermark: {error}"));
        }
    }

    fn flush(&mut self, ops: &[Op]) -> io::Result<()> {
        self.next_flags = BATCH_START;
        for op in ops {
            self.encode(op)?;
        }
        self.write_out()
    }

    fn encode(&mut self, op: &Op) -> io::Result<()> {
        match op {
            Op::Append { group, entries, .. } => self.encode_entries(group, entries),
            Op::Vote { group, vote, .. } => {
                let body = record::encode_vote(vote);
                self.put_small(group, Kind::Vote, &body)?;
                group.state.lock().disk.vote = Some(*vote);
                Ok(())
            }
            Op::Truncate { group, after } => {
                let body = record::encode_log_id(after.as_ref());
                self.put_small(group, Kind::Truncate, &body)?;
                group.state.lock().disk.truncate(after.as_ref());
                self.freed = true;
                Ok(())
            }
            Op::Purge { group, upto } => {
                let body = record::encode_log_id(Some(upto));
                self.put_small(group, Kind::Purge, &body)?;
                group.state.lock().disk.purge(*upto);
                self.freed = true;
                Ok(())
            }
            Op::Remove { group, .. } => {
                self.put_small(group, Kind::Remove, &[])?;
                self.logged.remove(&group.id);
                group.state.lock().disk = OnDisk::default();
                self.freed = true;
                Ok(())
            }
            Op::Rewrite { group, entries } => {
                for (index, old, body) in entries {
                    self.encode_rewrite(group, *index, *old, body)?;
                }
                self.freed = true;
                Ok(())
            }
        }
    }

    fn encode_entries(&mut self, group: &Arc<Group>, entries: &[Entry]) -> io::Result<()> {
        let mut rest = entries;
        while let Some(first) = rest.first() {
            // Before the lock: a new segment's checkpoint looks at every group.
            self.make_room(record::entry_stride(first))?;
            let mut state = group.state.lock();
            let mut written = 0;
            for entry in rest {
                let fits = record::with_entry_body(entry, |head, payload| {
                    let fits = self.room() >= record::stride(head.len() + payload.len());
                    fits.then(|| self.put(group.id, Kind::Entry, head, payload))
                });
                let Some(location) = fits else { break };
                state.disk.push(entry.log_id, location);
                written += 1;
            }
            drop(state);
            // After the first record: a checkpoint names what a replay has seen.
            self.note_logged(group);
            self.entries += written as u64;
            rest = &rest[written..];
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.encode_committed(group)
    }

    /// Tells how far the group was committed, if that has changed: it costs no write of its own.
    fn encode_committed(&mut self, group: &Arc<Group>) -> io::Result<()> {
        let committed = {
            let state = group.state.lock();
            // Never ahead of the entries before it in the stream.
            let committed = state.view.committed.min(state.disk.last);
            if committed <= state.disk.committed {
                return Ok(());
            }
            committed
        };
        let body = record::encode_log_id(committed.as_ref());
        self.put_small(group, Kind::Committed, &body)?;
        group.state.lock().disk.committed = committed;
        Ok(())
    }

    fn encode_rewrite(
        &mut self,
        group: &Arc<Group>,
        index: u64,
        old: Location,
        body: &[u8],
    ) -> io::Result<()> {
        self.make_room(record::stride(body.len()))?;
        let mut state = group.state.lock();
        // Purged, or truncated and written anew, since it was read.
        if state.disk.location(index) != Some(old) {
            return Ok(());
        }
        let entry = record::decode_entry(body)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an entry's body"))?;
        let location = self.put(group.id, Kind::Rewrite, body, &[]);
        state.disk.relocate(index, location);
        state.view.moving.insert(index, entry);
        Ok(())
    }

    fn put_small(&mut self, group: &Arc<Group>, kind: Kind, body: &[u8]) -> io::Result<()> {
        self.make_room(record::stride(body.len()))?;
        self.put(group.id, kind, body, &[]);
        if kind != Kind::Remove {
            self.note_logged(group);
        }
        Ok(())
    }

    fn note_logged(&mut self, group: &Arc<Group>) {
        self.logged
            .entry(group.id)
            .or_insert_with(|| Arc::clone(group));
    }

    /// Adds a record to the buffer; there must be room.
    fn put(&mut self, group: GroupId, kind: Kind, head: &[u8], rest: &[u8]) -> Location {
        let offset = self.end();
        let flags = mem::take(&mut self.next_flags);
        record::put(
            &mut self.buffer,
            self.active.seed,
            offset,
            (kind, flags),
            group,
            head,
            rest,
        );
        self.records += 1;
        Location {
            segment: self.active.number as u32,
            offset: offset as u32,
            length: record::stride(head.len() + rest.len()) as u32,
        }
    }

    fn end(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }

    fn room(&self) -> usize {
        (self.active.size - self.end()) as usize
    }

    /// Goes on to the next segment unless the active one has room for `bytes`.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        if self.room() >= bytes {
            return Ok(());
        }
        self.write_out()?;
        let next = self.shared.take_prepared()?;
        let start = Start {
            previous_end: self.end(),
            records: self.records,
            groups: self.logged.len() as u64,
        };
        self.shared.segments.add(Arc::clone(&next));
        self.active = next;
        self.buffer_at = DATA_START;
        self.next_flags = BATCH_START;
        self.freed = true;
        self.put_start(start);
        if self.room() < bytes {
            return Err(io::Error::other(format!(
                "a record of {bytes} bytes does not fit a segment of {}",
                self.active.size
            )));
        }
        Ok(())
    }

    /// The head of a segment. Groups are few and their checkpoints small; that they fit is checked
    /// when the room behind them is.
    pub(super) fn put_start(&mut self, start: Start) {
        self.put(GroupId::META, Kind::Start, &start.encode(), &[]);
        let groups: Vec<_> = self.logged.values().cloned().collect();
        for group in groups {
            let body = group.state.lock().disk.checkpoint().encode();
            self.put(group.id, Kind::Checkpoint, &body, &[]);
        }
    }

    /// Writes the buffer, syncs it, and moves the watermark.
    pub(super) fn write_out(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.end() > self.active.size {
            return Err(io::Error::other(format!(
                "a checkpoint of {} groups does not fit a segment of {}",
                self.logged.len(),
                self.active.size
            )));
        }
        let name = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}", self.active.path.display()),
            )
        };
        let began = Instant::now();
        self.active
            .file
            .write_at(&self.buffer, self.buffer_at)
            .map_err(name)?;
        self.active.file.sync().map_err(name)?;
        let metrics = &self.shared.metrics;
        metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        metrics.syncs.inc();
        metrics.bytes_per_sync.observe(self.buffer.len() as f64);
        let end = self.end();
        self.shared.watermark.lock().write(|mark| {
            mark.segment = self.active.number;
            mark.offset = end;
            mark.records = self.records;
        })?;
        self.buffer_at = end;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer.shrink_to(KEPT_BUFFER);
        }
        Ok(())
    }

    fn complete(&mut self, ops: &mut Vec<Op>, permits: usize) {
        let metrics = &self.shared.metrics;
        let entries = mem::take(&mut self.entries);
        metrics.entries_per_sync.observe(entries as f64);
        metrics.entries.inc_by(entries);
        metrics.queue_bytes.dec_by(permits as i64);
        for op in ops.drain(..) {
            match op {
                Op::Append {
                    group,
                    entries,
                    truncations,
                    done,
                } => {
                    if let Some(last) = entries.last() {
                        let end = last.log_id.index + 1;
                        group.state.lock().view.durable(end, truncations);
                    }
                    done.io_completed(Ok(()));
                }
                Op::Vote { done, .. } | Op::Remove { done, .. } => {
                    // A caller that went away does not need the answer.
                    let _ = done.send(Ok(()));
                }
                Op::Rewrite { group, entries } => {
                    let mut state = group.state.lock();
                    for (index, ..) in &entries {
                        state.view.moving.remove(index);
                    }
                    drop(state);
                    self.shared.house.lock().rewriting = false;
                }
                Op::Truncate { .. } | Op::Purge { .. } => {}
            }
        }
        self.shared.permits.add_permits(permits);
        self.evict();
        if mem::take(&mut self.freed) {
            self.tell_housekeeper();
        }
    }

    /// Brings what is in memory below its bound, taking the same share of every group.
    fn evict(&self) {
        let (resident, limit) = (
            self.shared.tail_bytes.load(Ordering::Relaxed),
            self.shared.options.tail_bytes,
        );
        self.shared.metrics.tail_bytes.set(resident as i64);
        if resident <= limit {
            return;
        }
        // A little more than needed, so that this is not done for every flush.
        let goal = resident - (limit - limit / 8);
        let mut dropped = 0;
        for group in self.logged.values() {
            let mut state = group.state.lock();
            let share = state.view.tail_bytes() as u128 * goal as u128 / resident as u128;
            dropped += state.view.evict(share as usize);
        }
        self.shared.tail_bytes.fetch_sub(dropped, Ordering::Relaxed);
    }

    /// Says which segments hold nothing that is needed, now that this is durable.
    fn tell_housekeeper(&self) {
        let mut needed = self.active.number;
        let mut live_bytes = 0;
        for group in self.logged.values() {
            let state = group.state.lock();
            live_bytes += state.disk.live_bytes();
            if let Some(oldest) = state.disk.oldest_segment() {
                needed = needed.min(u64::from(oldest));
            }
        }
        let mut house = self.shared.house.lock();
        house.needed = needed;
        house.live_bytes = live_bytes;
        house.dirty = true;
        drop(house);
        self.shared.wake_housekeeper.notify_all();
    }
}

impl Op {
    pub(super) fn fail(self, failed: &LogFailed) {
        match self {
            Self::Append { done, .. } => done.io_completed(Err(failed.clone().into())),
            Self::Vote { done, .. } | Self::Remove { done, .. } => {
                // A caller that went away does not need the answer.
                let _ = done.send(Err(failed.clone()));
            }
            Self::Truncate { .. } | Self::Purge { .. } | Self::Rewrite { .. } => {}
        }
    }
}

struct PoisonOnPanic(Arc<Shared>);

impl Drop for PoisonOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison("the flusher panicked");
        }
    }
}

//! What would hold up the flusher, on a thread of its own: making the next segment, giving up old
//! ones, carrying forward what is still live in the oldest.
//!
//! # Invariants
//! 1. A segment is given up only when nothing durable needs it, and after the watermark has durably
//!    said so. Only from the oldest end: the segments that remain have no gap.
//! 2. It never waits for the flusher, which may be waiting for it.

use std::io;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::flusher::Op;
use super::segments::Segment;

/// How much is carried forward by one write.
const REWRITE_BYTES: u64 = 256 << 10;

/// What flusher and housekeeper tell each other.
#[derive(Default)]
pub(super) struct House {
    prepared: Option<Arc<Segment>>,
    /// Why there is no prepared segment.
    error: Option<Arc<str>>,
    pub(super) next_number: u64,
    /// Segments before this one hold nothing that is needed.
    pub(super) needed: u64,
    /// Bytes of all live entries.
    pub(super) live_bytes: u64,
    /// The two numbers above are new.
    pub(super) dirty: bool,
    /// Entries are on their way to the head.
    pub(super) rewriting: bool,
    pub(super) closing: bool,
}

impl House {
    pub(super) fn starting_at(next_number: u64) -> Self {
        Self {
            next_number,
            ..Self::default()
        }
    }
}

impl Shared {
    /// The next segment. Waits for the housekeeper if it is not ready.
    pub(super) fn take_prepared(&self) -> io::Result<Arc<Segment>> {
        let mut house = self.house.lock();
        // An error of long ago may be cured.
        house.error = None;
        self.wake_housekeeper.notify_all();
        loop {
            if let Some(segment) = house.prepared.take() {
                self.wake_housekeeper.notify_all();
                return Ok(segment);
            }
            if house.closing {
                return Err(io::Error::other("no new segment: the housekeeper is gone"));
            }
            if let Some(error) = &house.error {
                return Err(io::Error::other(format!("no new segment: {error}")));
            }
            self.segment_ready.wait(&mut house);
        }
    }
}

pub(super) struct Housekeeper(pub(super) Arc<Shared>);

impl Housekeeper {
    /// Runs until the log closes.
    pub(super) fn run(self) {
        let _guard = LeaveNobodyWaiting(Arc::clone(&self.0));
        loop {
            let (number, dirty) = {
                let mut house = self.0.house.lock();
                loop {
                    if house.closing {
                        return;
                    }
                    let prepare = house.prepared.is_none() && house.error.is_none();
                    if prepare || house.dirty {
                        let number = prepare.then_some(house.next_number);
                        break (number, mem::take(&mut house.dirty));
                    }
                    self.0.wake_housekeeper.wait(&mut house);
                }
            };
            if let Some(number) = number {
                self.prepare(number);
            }
            if dirty && let Err(error) = self.tidy() {
                self.0.poison(&error.to_string());
            }
        }
    }

    fn prepare(&self, number: u64) {
        let made = self.0.segments.create(number);
        let mut house = self.0.house.lock();
        match made {
            Ok(segment) => {
                house.prepared = Some(segment);
                house.next_number = number + 1;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make the next segment of the Raft log");
                house.error = Some(error.to_string().into());
            }
        }
        self.0.segment_ready.notify_all();
    }

    fn tidy(&self) -> io::Result<()> {
        let (needed, live_bytes, rewriting) = {
            let house = self.0.house.lock();
            (house.needed, house.live_bytes, house.rewriting)
        };
        let segments = &self.0.segments;
        let watermark = {
            let mut watermark = self.0.watermark.lock();
            watermark.write(|mark| mark.oldest = mark.oldest.max(needed))?;
            watermark.file()
        };
        watermark.sync()?;
        segments.release_before(needed)?;
        self.0.metrics.segments.set(segments.count() as i64);

        // What is live is written again at most about once in the time that as much new is written.
        let options = &self.0.options;
        let allowed = options
            .disk_bytes
            .max(2 * live_bytes + 2 * options.segment_bytes);
        if !rewriting && segments.total_bytes() > allowed {
            self.rewrite_oldest()?;
        }
        Ok(())
    }

    /// Sends some of the oldest segment's live entries to the head. The next part follows when these
    /// are durable.
    fn rewrite_oldest(&self) -> io::Result<()> {
        let Some(oldest) = self.0.segments.oldest() else {
            return Ok(());
        };
        let groups: Vec<_> = self.0.groups.lock().values().cloned().collect();
        for group in groups {
            let entries = group
                .state
                .lock()
                .disk
                .entries_in(oldest as u32, REWRITE_BYTES);
            if entries.is_empty() {
                continue;
            }
            let locations: Vec<_> = entries.iter().map(|(_, location)| *location).collect();
            let bodies = self.0.segments.read(&locations)?;
            let entries = entries
                .into_iter()
                .zip(bodies)
                .map(|((index, location), body)| (index, location, Bytes::from(body)))
                .collect();
            self.0.house.lock().rewriting = true;
            // Takes no place in the queue: there is never more than one of these.
            self.0.enqueue(Op::Rewrite { group, entries }, 0);
            return Ok(());
        }
        Ok(())
    }
}

/// A panic of the housekeeper must not leave the flusher waiting for a segment.
struct LeaveNobodyWaiting(Arc<Shared>);

impl Drop for LeaveNobodyWaiting {
    fn drop(&mut self) {
        self.0.house.lock().closing = true;
        self.0.segment_ready.notify_all();
        if std::thread::panicking() {
            self.0.poison("the housekeeper panicked");
        }
    }
}

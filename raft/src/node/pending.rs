//! Proposals whose end is not known yet, bounded in number and bytes.
//!
//! # Invariants
//! 1. Every proposal's `done` is called exactly once: whoever takes its slot calls it.
//! 2. Its share of the bounds comes back when consensus lets go of the entry, not when its caller
//!    was answered: what memory holds is what is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::{Applied, OnApplied};
use crate::{Context, RaftError};

/// What one group may have in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) proposals: usize,
    pub(crate) bytes: usize,
}

struct Slot {
    /// Tells this use of the slot from earlier and later ones.
    life: u64,
    waiting: Option<(OnApplied, Context)>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
    occupied: usize,
    lives: u64,
    /// When the next sweep is due; `None`: when something has been inserted.
    sweep_at: Option<Instant>,
}

/// The proposals of one group in flight.
pub(crate) struct Pending {
    bounds: Bounds,
    proposals: AtomicUsize,
    bytes: AtomicUsize,
    slots: Mutex<Slots>,
    /// A sweep is due earlier than the sweeper thinks.
    resweep: Notify,
}

/// One proposal's hold on its slot and its share of the bounds. Dropped unused, it ends the
/// proposal as unknown.
pub(crate) struct Ticket {
    pending: Arc<Pending>,
    slot: usize,
    life: u64,
    bytes: usize,
}

impl Pending {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            proposals: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            slots: Mutex::default(),
            resweep: Notify::new(),
        })
    }

    /// How many proposals wait for their end.
    pub(crate) fn len(&self) -> usize {
        self.slots.lock().occupied
    }

    /// Takes a slot for a proposal of `bytes`.
    ///
    /// # Errors
    /// `done` back, when the bounds are reached.
    pub(crate) fn insert(
        self: &Arc<Self>,
        ctx: &Context,
        bytes: usize,
        done: OnApplied,
    ) -> Result<Ticket, OnApplied> {
        let proposals = self.proposals.fetch_add(1, Ordering::Relaxed);
        let in_flight = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // One entry larger than the bound goes through alone.
        if proposals >= self.bounds.proposals
            || (in_flight > 0 && in_flight + bytes > self.bounds.bytes)
        {
            self.release(bytes);
            return Err(done);
        }
        let deadline = ctx.deadline();
        let mut slots = self.slots.lock();
        slots.lives += 1;
        slots.occupied += 1;
        let life = slots.lives;
        let filled = Slot {
            life,
            waiting: Some((done, ctx.clone())),
        };
        let slot = match slots.free.pop() {
            Some(at) => {
                slots.slots[at] = filled;
                at
            }
            None => {
                slots.slots.push(filled);
                slots.slots.len() - 1
            }
        };
        let earlier = slots.sweep_at.is_none_or(|at| deadline < at);
        if earlier {
            slots.sweep_at = Some(deadline);
        }
        drop(slots);
        if earlier {
            self.resweep.notify_one();
        }
        Ok(Ticket {
            pending: self.clone(),
            slot,
            life,
            bytes,
        })
    }

    fn release(&self, bytes: usize) {
        self.proposals.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take(&self, slot: usize, life: u64) -> Option<OnApplied> {
        let mut slots = self.slots.lock();
        let found = &mut slots.slots[slot];
        if found.life != life {
            return None;
        }
        let (done, _) = found.waiting.take()?;
        slots.occupied -= 1;
        Some(done)
    }

    /// Waits until [`Pending::sweep`] is due. Cancel safe.
    pub(crate) async fn sweep_due(&self) {
        loop {
            let at = self.slots.lock().sweep_at;
            let resweep = self.resweep.notified();
            match at {
                None => resweep.await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    () = resweep => {}
                },
            }
        }
    }

    /// Ends every proposal whose context has ended as unknown, and sets the time of the next sweep.
    pub(crate) fn sweep(&self) {
        let ended = {
            let mut slots = self.slots.lock();
            slots.sweep_at = None;
            let mut next: Option<Instant> = None;
            let mut ended = Vec::new();
            for slot in &mut slots.slots {
                let Some((_, ctx)) = &slot.waiting else {
                    continue;
                };
                if ctx.ended().is_some() {
                    ended.extend(slot.waiting.take());
                } else {
                    next = Some(next.map_or(ctx.deadline(), |at| at.min(ctx.deadline())));
                }
            }
            slots.occupied -= ended.len();
            slots.sweep_at = next;
            ended
        };
        for (done, _) in ended {
            done(Err(RaftError::OutcomeUnknown("the deadline passed")));
        }
    }

    /// Ends every proposal as unknown, for `why`.
    pub(crate) fn fail_all(&self, why: &'static str) {
        let ended: Vec<_> = {
            let mut slots = self.slots.lock();
            slots.occupied = 0;
            slots
                .slots
                .iter_mut()
                .filter_map(|slot| slot.waiting.take())
                .collect()
        };
        for (done, _) in ended {
            done(Err(RaftError::OutcomeUnknown(why)));
        }
    }
}

impl Ticket {
    /// Ends the proposal, unless something else has.
    pub(crate) fn end(self, result: Result<Applied, RaftError>) {
        if let Some(done) = self.pending.take(self.slot, self.life) {
            done(result);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let done = self.pending.take(self.slot, self.life);
        self.pending.slots.lock().free.push(self.slot);
        self.pending.release(self.bytes);
        if let Some(done) = done {
            done(Err(RaftError::OutcomeUnknown("the group let go of it")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;
    use crate::LogIndex;

    type Ends = mpsc::UnboundedReceiver<Result<Applied, RaftError>>;

    fn recorder() -> (impl Fn() -> OnApplied, Ends) {
        let (tx, rx) = mpsc::unbounded_channel();
        let make = move || -> OnApplied {
            let tx = tx.clone();
            Box::new(move |result| tx.send(result).unwrap())
        };
        (make, rx)
    }

    fn pending(proposals: usize, bytes: usize) -> Arc<Pending> {
        Pending::new(Bounds { proposals, bytes })
    }

    fn applied() -> Result<Applied, RaftError> {
        Ok(Applied {
            index: LogIndex(1),
            response: Bytes::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_proposal_ends_at_its_deadline_and_only_once() {
        let pending = pending(10, 1000);
        let (done, mut ends) = recorder();
        let ctx = Context::with_timeout(Duration::from_millis(50));
        let ticket = pending.insert(&ctx, 1, done()).ok().unwrap();
        let began = Instant::now();
        pending.sweep_due().await;
        pending.sweep();
        assert_eq!(began.elapsed(), Duration::from_millis(50));
        assert!(matches!(
            ends.recv().await,
            Some(Err(RaftError::OutcomeUnknown(_)))
        ));
        ticket.end(applied());
        assert!(ends.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_deadline_brings_the_sweep_forward() {
        let pending = pending(10, 1000);
        let (done, _ends) = recorder();
        let long = Context::with_timeout(Duration::from_secs(5));
        let _long = pending.insert(&long, 1, done()).ok().unwrap();
        let began = Instant::now();
        let (_, ticket) = tokio::join!(pending.sweep_due(), async {
            let short = Context::with_timeout(Duration::from_millis(20));
            pending.insert(&short, 1, done()).ok().unwrap()
        });
        assert_eq!(began.elapsed(), Duration::from_millis(20));
        drop(ticket);
    }

    #[tokio::test]
    async fn a_dropped_ticket_ends_its_proposal_as_unknown() {
        let pending = pending(10, 1000);
        let (done, mut ends) = recorder();
        drop(pending.insert(&Context::fallback(), 1, done()).ok());
        assert!(matches!(
            ends.try_recv(),
            Ok(Err(RaftError::OutcomeUnknown(_)))
        ));
        assert_eq!(pending.len(), 0);
    }

    #[tokio::test]
    async fn places_come_back_when_consensus_lets_go_not_when_the_caller_was_answered() {
        let pending = pending(1, 1000);
        let (done, mut ends) = recorder();
        let ticket = pending.insert(&Context::fallback(), 1, done()).ok();
        pending.fail_all("the quorum is lost");
        assert!(matches!(
            ends.try_recv(),
            Ok(Err(RaftError::OutcomeUnknown("the quorum is lost")))
        ));
        assert!(pending.insert(&Context::fallback(), 1, done()).is_err());
        drop(ticket);
        assert!(pending.insert(&Context::fallback(), 1, done()).is_ok());
    }

    #[tokio::test]
    async fn bytes_are_bounded_but_one_large_entry_goes_alone() {
        let pending = pending(10, 100);
        let (done, _ends) = recorder();
        let large = pending.insert(&Context::fallback(), 500, done()).ok();
        assert!(large.is_some());
        assert!(pending.insert(&Context::fallback(), 1, done()).is_err());
    }

    #[tokio::test]
    async fn a_used_slot_is_not_ended_by_the_ticket_of_an_earlier_use() {
        let pending = pending(10, 1000);
        let (done, mut ends) = recorder();
        let first = pending
            .insert(&Context::fallback(), 1, done())
            .ok()
            .unwrap();
        first.end(applied());
        ends.try_recv().unwrap().unwrap();
        let second = pending
            .insert(&Context::fallback(), 1, done())
            .ok()
            .unwrap();
        assert_eq!(pending.len(), 1);
        second.end(applied());
        ends.try_recv().unwrap().unwrap();
        assert!(ends.try_recv().is_err());
    }
}

//! One life of an executor, as everyone but its own thread sees it: callers who submit, the state
//! machine that reports what was applied, consensus that reports what was not, and the task that
//! proves leadership.
//!
//! # Invariants
//! 1. A reply leaves only when everything its command saw or wrote is applied here.
//! 2. A read is answered only if, after its evaluation began, leadership was proved: by a round that
//!    names the leader id of this life's begin, or by the apply of a batch of this life that was
//!    numbered later. Such a batch is in the log behind everything that was acknowledged before the
//!    read came: had another leader acknowledged something meanwhile, a majority would have its
//!    term, and this batch could not have been committed. A read that is compared again before
//!    anything rests on it ([`crate::TransactionOperation::is_rechecked`]) needs the first invariant alone: its
//!    rows were committed, and no two commits of a row have one stamp.
//! 3. At its end, commands that were not evaluated are not applied; reads are refused; proposed
//!    writes stay until the log decides: a batch applied is applied, and once another life's begin
//!    is applied before it, it never will be. Their callers meanwhile wait no longer than their own
//!    deadlines.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use leadline_raft::engine::Applied;
use leadline_raft::{Context, LeaderId, RaftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::entry::Incarnation;
use super::queue::{Command, Queue};
use super::reply::{Reply, Responder, send_all};
use super::watches::Watches;
use super::{ShardConfig, ShardMetrics};
use crate::KvError;
use crate::state_machine::IGNORED;

/// A command without effects and its reply, which is not out yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) responder: Responder,
    pub(crate) reply: Bytes,
    /// Everything it saw is applied once this batch is.
    pub(crate) saw: u64,
    /// Its effects came with an earlier request of the same id: if it is refused now, that says
    /// nothing about them.
    pub(crate) remembered: bool,
}

/// A read that waits for a proof.
#[derive(Debug)]
struct PendingRead {
    answer: Answer,
    /// A batch with a higher number was proposed after the read came.
    proposed: u64,
    /// Its place among all reads of this life.
    place: u64,
}

/// A batch between its proposal and its end.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) number: u64,
    /// Of its log entry.
    pub(crate) bytes: usize,
    pub(crate) ctx: Context,
    pub(crate) writes: Vec<(Responder, Bytes)>,
    pub(crate) reads: Vec<Answer>,
    pub(crate) wakes: Vec<Bytes>,
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    flights: VecDeque<Flight>,
    unproven: Vec<PendingRead>,
    /// Proven; what they saw is not all applied.
    proven: Vec<PendingRead>,
    places: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Live,
    Dead,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) incarnation: Incarnation,
    pub(crate) leader: LeaderId,
    pub(crate) queue: Queue,
    pub(crate) watches: Watches,
    progress: Mutex<Progress>,
    /// The highest batch number given out; raised before the batch is proposed.
    proposed: AtomicU64,
    applied: AtomicU64,
    /// Reads wait for a round.
    pub(crate) prove: Notify,
    pub(crate) ended: CancellationToken,
    pending_reads: usize,
    metrics: ShardMetrics,
    /// The phase is live: for callers who only want to know that.
    live: AtomicBool,
    leading: watch::Sender<bool>,
}

impl Life {
    pub(crate) fn new(
        incarnation: Incarnation,
        leader: LeaderId,
        config: &ShardConfig,
        metrics: &ShardMetrics,
        leading: watch::Sender<bool>,
    ) -> Self {
        Self {
            incarnation,
            leader,
            queue: Queue::new(config),
            watches: Watches::default(),
            progress: Mutex::new(Progress {
                phase: Phase::Starting,
                flights: VecDeque::new(),
                unproven: Vec::new(),
                proven: Vec::new(),
                places: 0,
            }),
            proposed: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            prove: Notify::new(),
            ended: CancellationToken::new(),
            pending_reads: config.queue_commands,
            metrics: metrics.clone(),
            live: AtomicBool::new(false),
            leading,
        }
    }

    /// The highest batch number given out so far.
    pub(crate) fn proposed(&self) -> u64 {
        self.proposed.load(Ordering::Acquire)
    }

    /// Every batch up to this one is applied, and storage and cache show it.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.progress.lock().phase == Phase::Dead
    }

    /// Whether the log has yet to decide about proposed writes.
    pub(crate) fn undecided(&self) -> bool {
        !self.progress.lock().flights.is_empty()
    }

    pub(crate) fn pending_reads(&self) -> usize {
        let progress = self.progress.lock();
        progress.unproven.len() + progress.proven.len()
    }

    /// The begin of this life is applied.
    pub(crate) fn begun(&self) {
        {
            let mut progress = self.progress.lock();
            if progress.phase != Phase::Starting {
                return;
            }
            progress.phase = Phase::Live;
            self.live.store(true, Ordering::Release);
            self.leading.send_replace(true);
        }
        self.queue.begin();
    }

    /// Takes a batch in before it is proposed; refuses its commands when the life is over.
    pub(crate) fn launch(&self, flight: Flight) -> bool {
        let mut progress = self.progress.lock();
        if progress.phase == Phase::Dead {
            drop(progress);
            // Evaluated and never proposed: nobody can see its effects.
            let why = KvError::NoLeader { leader: None };
            refuse_writes(flight.writes, &why);
            refuse(flight.reads, &why);
            return false;
        }
        let bytes = flight.bytes;
        self.proposed.store(flight.number, Ordering::Release);
        progress.flights.push_back(flight);
        drop(progress);
        self.queue.proposed(bytes);
        true
    }

    /// Batches up to `number` are applied: storage and cache show them.
    pub(crate) fn batches_applied(&self, number: u64) {
        self.applied.fetch_max(number, Ordering::AcqRel);
        let mut landed: Vec<Flight> = Vec::new();
        let mut proven = Vec::new();
        {
            let mut progress = self.progress.lock();
            while let Some(flight) = progress.flights.front()
                && flight.number <= number
            {
                landed.extend(progress.flights.pop_front());
            }
            if !progress.unproven.is_empty() {
                proven.extend(
                    progress
                        .unproven
                        .extract_if(.., |read| read.proposed < number),
                );
            }
            if !progress.proven.is_empty() {
                proven.extend(
                    progress
                        .proven
                        .extract_if(.., |read| read.answer.saw <= number),
                );
            }
        }
        if landed.is_empty() && proven.is_empty() {
            return;
        }
        if !landed.is_empty() {
            // First: the executor builds the next batch while the replies go out.
            let bytes = landed.iter().map(|flight| flight.bytes).sum();
            self.queue.applied(landed.len(), bytes);
        }
        let mut wakes = Vec::new();
        for flight in landed {
            self.metrics
                .answered
                .inc_by((flight.writes.len() + flight.reads.len()) as u64);
            send_all(
                flight
                    .writes
                    .into_iter()
                    .map(|(responder, reply)| (responder, Ok(reply)))
                    .chain(flight.reads.into_iter().map(answer)),
            );
            wakes.extend(flight.wakes);
        }
        send_all(proven.into_iter().map(|read| answer(read.answer)));
        if !wakes.is_empty() {
            self.watches.wake(&wakes);
        }
    }

    /// Keeps evaluated reads until leadership is proved and what they saw is applied. `proposed`:
    /// what [`Life::proposed`] said before the first of them was evaluated.
    pub(crate) fn read_later(&self, answers: Vec<Answer>, proposed: u64) {
        let refused = {
            let mut progress = self.progress.lock();
            if progress.phase == Phase::Dead {
                Some((answers, KvError::NoLeader { leader: None }))
            } else if progress.unproven.len() >= self.pending_reads {
                let full = KvError::Overloaded {
                    what: "reads waiting for a proof of leadership",
                    retry_after_ms: 100,
                };
                Some((answers, full))
            } else {
                for answer in answers {
                    progress.places += 1;
                    let place = progress.places;
                    progress.unproven.push(PendingRead {
                        answer,
                        proposed,
                        place,
                    });
                }
                None
            }
        };
        match refused {
            None => self.prove.notify_one(),
            Some((answers, why)) => refuse(answers, &why),
        }
    }

    /// Answers reads that need no proof any more, each once what it saw is applied.
    pub(crate) fn answer_proven(&self, answers: Vec<Answer>) {
        let (ready, refused) = {
            let mut progress = self.progress.lock();
            // Read under the lock: an apply that comes later finds what is left in `proven`.
            let applied = self.applied();
            let (ready, waiting): (Vec<_>, Vec<_>) = answers
                .into_iter()
                .partition(|answer| answer.saw <= applied);
            if progress.phase == Phase::Dead {
                (ready, waiting)
            } else {
                progress
                    .proven
                    .extend(waiting.into_iter().map(|answer| PendingRead {
                        answer,
                        proposed: 0,
                        place: 0,
                    }));
                (ready, Vec::new())
            }
        };
        refuse(refused, &KvError::NoLeader { leader: None });
        send_all(ready.into_iter().map(answer));
    }

    /// The place of the last read that waits for a proof, for a round that begins now.
    pub(crate) fn unproven(&self) -> Option<u64> {
        let mut progress = self.progress.lock();
        progress
            .unproven
            .retain(|read| !read.answer.responder.is_abandoned());
        progress.unproven.last().map(|read| read.place)
    }

    /// A round that began after the read at `place` came has confirmed this life's leader.
    pub(crate) fn proved(&self, place: u64) {
        let ready: Vec<PendingRead> = {
            let mut progress = self.progress.lock();
            let proven: Vec<_> = progress
                .unproven
                .extract_if(.., |read| read.place <= place)
                .collect();
            // Read under the lock: an apply that comes later finds what is left in `proven`.
            let applied = self.applied();
            let (ready, waiting) = proven
                .into_iter()
                .partition(|read| read.answer.saw <= applied);
            progress.proven.extend::<Vec<_>>(waiting);
            ready
        };
        send_all(ready.into_iter().map(|read| answer(read.answer)));
    }

    /// The round that reads up to `place` waited for failed.
    pub(crate) fn not_proved(&self, place: u64, why: &KvError) {
        let failed: Vec<_> = {
            let mut progress = self.progress.lock();
            progress
                .unproven
                .extract_if(.., |read| read.place <= place)
                .collect()
        };
        refuse(failed.into_iter().map(|read| read.answer), why);
    }

    /// Consensus reports the end of batch `number`. What was applied is known already.
    pub(crate) fn settled(&self, number: u64, result: Result<Applied, RaftError>) {
        let error = match result {
            Ok(applied) if applied.response == IGNORED => {
                tracing::debug!(number, "a batch was ignored: its executor's life is over");
                return self.kill();
            }
            Ok(_) => return,
            Err(error) => error,
        };
        tracing::debug!(number, %error, "a batch was refused: its executor's life is over");
        self.kill();
        if matches!(error, RaftError::OutcomeUnknown(_)) {
            return;
        }
        // It was not appended, so those behind it never follow the one before it: none is applied.
        let lost: Vec<Flight> = {
            let mut progress = self.progress.lock();
            let first = progress
                .flights
                .partition_point(|flight| flight.number < number);
            progress.flights.split_off(first).into()
        };
        let why = KvError::from(error);
        for flight in lost {
            let why = if flight.number == number {
                why.clone()
            } else {
                KvError::NoLeader { leader: None }
            };
            refuse_writes(flight.writes, &why);
        }
    }

    /// Ends this life (invariant 3). Harmless when repeated.
    pub(crate) fn kill(&self) {
        let mut refused = Vec::new();
        {
            let mut progress = self.progress.lock();
            if progress.phase == Phase::Dead {
                return;
            }
            progress.phase = Phase::Dead;
            if self.live.swap(false, Ordering::AcqRel) {
                self.leading.send_replace(false);
            }
            for flight in &mut progress.flights {
                refused.append(&mut flight.reads);
            }
            let unproven = std::mem::take(&mut progress.unproven);
            let proven = std::mem::take(&mut progress.proven);
            refused.extend(unproven.into_iter().chain(proven).map(|read| read.answer));
        }
        self.ended.cancel();
        refuse_commands(self.queue.close());
        refuse(refused, &KvError::NoLeader { leader: None });
        self.watches.close();
    }

    /// Lets go of a proposal's place in consensus; its end is reported by the log, if at all.
    pub(crate) fn abandon_proposals(&self) {
        for flight in &self.progress.lock().flights {
            flight.ctx.cancel();
        }
    }

    /// Another life has begun in the log: what of this one is not applied never will be.
    pub(crate) fn superseded(&self) {
        self.kill();
        let flights = std::mem::take(&mut self.progress.lock().flights);
        for flight in flights {
            refuse_writes(flight.writes, &KvError::NoLeader { leader: None });
        }
    }

    /// The state was replaced by a snapshot that ends at `number` of this life, or in another life.
    pub(crate) fn state_replaced(&self, applied: Option<u64>) {
        self.kill();
        if let Some(applied) = applied {
            self.batches_applied(applied);
        }
        let flights = std::mem::take(&mut self.progress.lock().flights);
        for flight in flights {
            let why =
                KvError::Unknown("a snapshot replaced the log that says whether it was applied");
            refuse_writes(flight.writes, &why);
        }
    }
}

fn answer(answer: Answer) -> (Responder, Reply) {
    (answer.responder, Ok(answer.reply))
}

fn refuse(answers: impl IntoIterator<Item = Answer>, why: &KvError) {
    send_all(answers.into_iter().map(|answer| {
        let why = if answer.remembered {
            KvError::Unknown(
                "the shard lost its leader; the request took effect before, or may have",
            )
        } else {
            why.clone()
        };
        (answer.responder, Err(why))
    }));
}

fn refuse_writes(writes: Vec<(Responder, Bytes)>, why: &KvError) {
    send_all(
        writes
            .into_iter()
            .map(|(responder, _)| (responder, Err(why.clone()))),
    );
}

/// Refuses commands that were never evaluated.
pub(crate) fn refuse_commands(commands: impl IntoIterator<Item = Command>) {
    send_all(commands.into_iter().map(|command| {
        let why = KvError::NoLeader { leader: None };
        (command.responder, Err(why))
    }));
}

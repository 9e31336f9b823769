//! The executor: takes what waits, evaluates it, proposes what it changed, goes on. It is a job of
//! the node's pool, a batch to a step.
//!
//! # Invariants
//! 1. A command's deadline is looked at just before its evaluation; expired commands are dropped
//!    unevaluated.
//! 2. A batch is numbered and registered before it is proposed, and proposed in the order of its
//!    number, under the leader id of this life.
//! 3. After a batch could not be launched nothing more is evaluated: its effects are in the overlay
//!    of a life that is over.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_raft::Context;
use leadline_raft::engine::Engine;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::entry::{BatchWriter, encode_begin};
use super::evaluate::ExecutorRows;
use super::life::{Answer, Flight, Life, refuse_commands};
use super::overlay::Overlay;
use super::pool::{self, Job};
use super::queue::{Command, Found};
use super::reply::Responder;
use super::requests::{PendingRequests, Verdict};
use super::transactions::{StepRows, Stepped, Transactions};
use super::{Once, ShardParts, is_rechecked};
use crate::state_machine::{OWNED, ShardState, encode_owned};
use crate::transaction::{AttemptId, execute};
use crate::wire::transaction_step::Step;
use crate::{KvError, Operation, Route, RowError, Timestamp};

/// An idle executor looks this long after its last batch whether it can let go of its overlay.
const TIDY_AFTER: Duration = Duration::from_millis(100);

/// A walk over everything that has met so many locks goes on beneath them.
const OVERLOOK: u8 = 8;

const TOO_MUCH_TO_REMEMBER: &str =
    "the command changes, and answers with, more than the store takes at once";

/// A sweep's step may take this long.
const SWEEP_DEADLINE: Duration = leadline_raft::FALLBACK_DEADLINE;

pub(super) struct Executor<E: Engine> {
    pub(super) engine: Arc<E>,
    pub(super) state: Arc<ShardState>,
    pub(super) life: Arc<Life>,
    pub(super) parts: ShardParts,
    /// What the shard owns if its rows do not say so yet.
    pub(super) owned: Range<Bytes>,
}

/// The batch that is being built.
#[derive(Default)]
struct Batch {
    writes: Vec<(Responder, Bytes)>,
    reads: Vec<Answer>,
    /// Reads that are answered once what they saw is applied, whoever leads by then.
    rechecked: Vec<Answer>,
    wakes: Vec<Bytes>,
    stamp: Timestamp,
    /// Commands and queue bytes taken so far.
    commands: usize,
    bytes: usize,
}

/// What evaluating one command came to.
enum Evaluated {
    /// It has effects.
    Write(Bytes),
    /// It has none, and saw effects up to those of this batch.
    Read(Bytes, u64),
    Failed(KvError),
    /// It met the lock of this attempt, and left no effect.
    Locked(AttemptId),
}

/// A life that has begun.
struct Living<E: Engine> {
    executor: Executor<E>,
    owned: Range<Bytes>,
    overlay: Overlay,
    requests: PendingRequests,
    transactions: Transactions,
    random: SmallRng,
    batch: Batch,
    /// Taken from the queue, not evaluated yet.
    backlog: VecDeque<Command>,
    next_sweep: Instant,
}

/// The job of one life, from its begin to its end.
pub(super) struct ExecutorJob<E: Engine> {
    life: Arc<Life>,
    phase: Phase<E>,
    /// Tells the shard that it is gone.
    _running: TaskTrackerToken,
}

enum Phase<E: Engine> {
    /// The begin is not applied yet.
    Starting(Box<Executor<E>>),
    Living(Box<Living<E>>),
    Over,
}

impl<E: Engine> ExecutorJob<E> {
    pub(super) fn new(executor: Executor<E>, running: TaskTrackerToken) -> Self {
        Self {
            life: Arc::clone(&executor.life),
            phase: Phase::Starting(Box::new(executor)),
            _running: running,
        }
    }

    fn go_on(&mut self) -> pool::Step {
        if let Phase::Starting(_) = &self.phase
            && let Phase::Starting(executor) = std::mem::replace(&mut self.phase, Phase::Over)
        {
            if self.life.is_dead() {
                return pool::Step::Done;
            }
            if !self.life.is_live() {
                self.phase = Phase::Starting(executor);
                return pool::Step::Sleep(None);
            }
            self.phase = Phase::Living(Box::new(Living::new(*executor)));
        }
        match &mut self.phase {
            Phase::Living(living) => living.step(),
            Phase::Starting(_) | Phase::Over => pool::Step::Done,
        }
    }
}

impl<E: Engine> Job for ExecutorJob<E> {
    fn step(&mut self) -> pool::Step {
        let step = std::panic::catch_unwind(AssertUnwindSafe(|| self.go_on()));
        let step = step.unwrap_or_else(|_| {
            // The panic's message and place are on stderr. Its command is not retried here.
            tracing::error!("an executor panicked; the shard goes on with a new one");
            pool::Step::Done
        });
        if step == pool::Step::Done {
            self.life.kill();
            self.phase = Phase::Over;
        }
        step
    }
}

impl<E: Engine> Drop for Living<E> {
    fn drop(&mut self) {
        refuse_commands(std::mem::take(&mut self.backlog));
        refuse_commands(self.transactions.drain());
    }
}

impl<E: Engine> Executor<E> {
    /// Proposes the begin of this life.
    pub(super) fn begin(&self) {
        let ctx = Context::with_timeout(self.parts.config.batch_deadline);
        let life = Arc::clone(&self.life);
        self.engine.enqueue(
            &ctx,
            self.life.leader,
            encode_begin(self.life.incarnation),
            Box::new(move |result| {
                if let Err(error) = result {
                    tracing::debug!(%error, "an executor could not begin");
                    life.kill();
                }
            }),
        );
    }
}

impl<E: Engine> Living<E> {
    fn new(executor: Executor<E>) -> Self {
        let applied = executor.state.owned();
        let mut living = Self {
            owned: applied.clone().unwrap_or_else(|| executor.owned.clone()),
            overlay: Overlay::new(executor.life.incarnation.0 as u64),
            requests: PendingRequests::default(),
            transactions: Transactions::begin(executor.state.transactions(), Instant::now()),
            random: SmallRng::from_os_rng(),
            batch: Batch::default(),
            backlog: VecDeque::new(),
            next_sweep: Instant::now() + executor.parts.config.sweep_idle,
            executor,
        };
        if applied.is_none() {
            living.take_ownership();
        }
        living
    }

    fn step(&mut self) -> pool::Step {
        let found = self.executor.life.queue.next(&mut self.backlog);
        match found {
            Found::Closed => return pool::Step::Done,
            Found::Nothing => self.tidy(),
            Found::Work => self.evaluate_batch(),
        }
        self.after_transactions();
        if Instant::now() >= self.next_sweep && !self.sweep() {
            return pool::Step::Done;
        }
        if !self.close_batch() {
            return pool::Step::Done;
        }
        match found {
            Found::Work => pool::Step::Again,
            _ => pool::Step::Sleep(self.wake_at()),
        }
    }

    /// Evaluates what waited for a lock that is gone, and has overdue locks resolved.
    fn after_transactions(&mut self) {
        while !self.is_full()
            && let Some(command) = self.transactions.next_released()
        {
            self.take(command);
        }
        let (now, ttl) = (Instant::now(), self.executor.parts.config.lock_ttl);
        if self
            .transactions
            .next_overdue(ttl)
            .is_some_and(|due| due <= now)
        {
            let doubts = self.transactions.overdue(now, ttl);
            self.executor.parts.doubts.raise(doubts);
        }
    }

    /// Bytes of the batch that is being built.
    fn batch_bytes(&self) -> usize {
        self.overlay.bytes() + self.transactions.write_bytes() + self.requests.bytes()
    }

    /// Whether the batch that is being built shall have no more effects.
    fn is_full(&self) -> bool {
        self.batch_bytes() >= self.executor.parts.config.batch_bytes
    }

    fn wake_at(&self) -> Option<Instant> {
        let tidy = (!self.overlay.is_empty()).then(|| Instant::now() + TIDY_AFTER);
        let parts = &self.executor.parts;
        let sweep = (!parts.sweeps.is_empty()).then_some(self.next_sweep);
        let lock = if self.transactions.has_released() {
            Some(Instant::now())
        } else {
            self.transactions.next_overdue(parts.config.lock_ttl)
        };
        [tidy, sweep, lock].into_iter().flatten().min()
    }

    fn tidy(&mut self) {
        let applied = self.executor.life.applied();
        self.overlay.prune(applied);
        self.requests.prune(applied);
    }

    /// Evaluates from the front of the backlog until the batch is full. What a lock kept waiting
    /// came before all that is there.
    fn evaluate_batch(&mut self) {
        self.tidy();
        let most_commands = self.executor.parts.config.batch_commands;
        while self.batch.commands < most_commands && !self.is_full() {
            if let Some(command) = self.transactions.next_released() {
                self.take(command);
                continue;
            }
            let Some(command) = self.backlog.pop_front() else {
                break;
            };
            self.batch.commands += 1;
            self.batch.bytes += command.size;
            self.take(command);
        }
        let queue = &self.executor.life.queue;
        queue.leave(self.batch.commands, self.batch.bytes);
        self.executor
            .parts
            .metrics
            .evaluated
            .inc_by(self.batch.commands as u64);
    }

    fn take(&mut self, command: Command) {
        if let Some(step) = command.operation.transaction()
            && let Some((attempt, lowest_open, step)) = step.for_executor()
        {
            return self.take_step(
                &command.ctx,
                (attempt, lowest_open),
                step,
                command.responder,
            );
        }
        // Behind a command on the same key that waits for a lock.
        if let Some(attempt) = self.transactions.behind(command.operation.route()) {
            return self.park(attempt, command);
        }
        let Command {
            ctx,
            operation,
            once,
            responder,
            size,
            parked,
        } = command;
        if let Some(ended) = ctx.ended() {
            self.executor.parts.metrics.expired.inc();
            return responder.send(Err(KvError::NotApplied(ended)));
        }
        if !responder.claim() {
            self.executor.parts.metrics.expired.inc();
            return;
        }
        if let Some(once) = &once {
            match self.look_up(once) {
                Verdict::Evaluate => {}
                Verdict::Refused(why) => return responder.send(Err(why)),
                Verdict::Remembered { number, reply } => {
                    return self.batch.reads.push(Answer {
                        responder,
                        reply,
                        saw: number,
                        remembered: true,
                    });
                }
            }
        }
        let overlook = parked >= OVERLOOK && operation.may_overlook_locks();
        match self.evaluate(&ctx, operation.as_ref(), once.is_some(), overlook) {
            Evaluated::Locked(attempt) => {
                responder.unclaim();
                let parked = parked.saturating_add(1);
                let command = Command {
                    ctx,
                    operation,
                    once,
                    size,
                    responder,
                    parked,
                };
                self.park(attempt, command);
            }
            Evaluated::Failed(why) => responder.send(Err(why)),
            Evaluated::Read(reply, saw) => {
                let reads = if is_rechecked(operation.as_ref()) {
                    &mut self.batch.rechecked
                } else {
                    &mut self.batch.reads
                };
                reads.push(Answer {
                    responder,
                    reply,
                    saw,
                    remembered: false,
                });
            }
            Evaluated::Write(reply) => {
                if let Some(once) = &once {
                    let number = self.overlay.number();
                    let applied = self.executor.state.requests();
                    self.requests.remember(&applied, once, number, &reply);
                }
                self.batch.writes.push((responder, reply));
            }
        }
    }

    fn park(&mut self, attempt: AttemptId, command: Command) {
        if let Some(command) = self.transactions.park(attempt, command) {
            let full = KvError::Overloaded {
                what: "commands waiting for locks of transactions",
                retry_after_ms: 50,
            };
            command.responder.send(Err(full));
        }
    }

    /// Does one step of a transaction over several shards.
    fn take_step(
        &mut self,
        ctx: &Context,
        (attempt, lowest_open): (AttemptId, u64),
        step: &Step,
        responder: Responder,
    ) {
        if let Some(ended) = ctx.ended() {
            self.executor.parts.metrics.expired.inc();
            return responder.send(Err(KvError::NotApplied(ended)));
        }
        if !responder.claim() {
            self.executor.parts.metrics.expired.inc();
            return;
        }
        let mut rows = StepRows {
            ctx,
            state: &self.executor.state,
            overlay: &mut self.overlay,
            owned: &self.owned,
            hlc: &self.executor.parts.hlc,
            wakes: &mut self.batch.wakes,
            limit: self.executor.parts.config.command_bytes,
        };
        let stepped = execute(
            &mut self.transactions,
            &mut rows,
            attempt,
            lowest_open,
            step,
            Instant::now(),
        );
        match stepped {
            Stepped::Changed(reply) => {
                // Above every stamp that the step gave.
                self.batch.stamp = self.executor.parts.hlc.next();
                self.batch.writes.push((responder, reply));
            }
            Stepped::Looked(reply) => {
                let saw = if self.transactions.has_writes() {
                    self.overlay.number()
                } else {
                    self.overlay.newest()
                };
                self.batch.reads.push(Answer {
                    responder,
                    reply,
                    saw,
                    remembered: false,
                });
            }
            Stepped::Failed(why) => responder.send(Err(why)),
        }
    }

    fn look_up(&self, once: &Once) -> Verdict {
        let most = self.executor.parts.config.remembered;
        let applied = self.executor.state.requests();
        self.requests.look_up(&applied, once, most)
    }

    /// Evaluates one command over the overlay; a failed one leaves no effect. A reply that is to be
    /// `remembered` is written too, and counts as such.
    fn evaluate(
        &mut self,
        ctx: &Context,
        operation: &dyn Operation,
        remembered: bool,
        overlook: bool,
    ) -> Evaluated {
        if let Route::Keys(keys) = operation.route()
            && keys.iter().any(|key| !self.owned.contains(key))
        {
            // The catalog that routed it here is behind or ahead of the shard.
            return Evaluated::Failed(KvError::NoLeader { leader: None });
        }
        let stamp = self.executor.parts.hlc.next();
        let wakes = self.batch.wakes.len();
        self.overlay.begin_command();
        let mut rows = ExecutorRows {
            ctx,
            state: &self.executor.state,
            overlay: &mut self.overlay,
            owned: &self.owned,
            stamp,
            random: &mut self.random,
            wakes: &mut self.batch.wakes,
            limit: self.executor.parts.config.command_bytes,
            refused: None,
            saw: 0,
            locks: &self.transactions.table,
            overlook,
            met: None,
        };
        let result = operation.evaluate(&mut rows);
        let (saw, met) = (rows.saw, rows.met);
        let refused = rows.refused;
        if let Some(attempt) = met {
            self.overlay.roll_back();
            self.batch.wakes.truncate(wakes);
            return Evaluated::Locked(attempt);
        }
        let failure = match (refused, result) {
            (Some(why), _) => KvError::Invalid(why.to_owned()),
            (None, Ok(reply)) => {
                if !self.overlay.has_effects() {
                    self.batch.wakes.truncate(wakes);
                    return Evaluated::Read(reply, saw);
                }
                let most = self.executor.parts.config.command_bytes;
                if !remembered || self.overlay.command_bytes() + reply.len() <= most {
                    self.batch.stamp = stamp;
                    return Evaluated::Write(reply);
                }
                KvError::Invalid(TOO_MUCH_TO_REMEMBER.to_owned())
            }
            (None, Err(RowError::Refused(why))) => KvError::Invalid(why),
            (None, Err(RowError::OtherShard)) if operation.open_ended() => KvError::CrossShard,
            (None, Err(RowError::OtherShard)) => {
                KvError::Invalid("a row outside the shard".to_owned())
            }
            (None, Err(RowError::Storage(why))) => {
                tracing::error!(
                    operation = operation.name(),
                    why,
                    "storage failed under a command"
                );
                KvError::Storage(why)
            }
            (None, Err(RowError::NeedsExecutor | RowError::Locked)) => {
                KvError::Storage("a command asked the executor for the executor".to_owned())
            }
            (None, Err(RowError::Ended)) => match ctx.ended() {
                Some(ended) => KvError::NotApplied(ended),
                // A script ends a little earlier, so that its client hears of it.
                None => KvError::NotApplied(leadline_raft::Ended::Deadline),
            },
        };
        self.overlay.roll_back();
        self.batch.wakes.truncate(wakes);
        Evaluated::Failed(failure)
    }

    /// Has the reads proved that saw nothing of this batch, and proposes what it changed; `false`
    /// when the life is over.
    fn close_batch(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let number = self.overlay.number();
        // What saw this batch's own effects is answered with it; the rest need not wait for it.
        let (with_it, before): (Vec<_>, _) = std::mem::take(&mut batch.reads)
            .into_iter()
            .partition(|read| read.saw == number);
        batch.reads = with_it;
        if !before.is_empty() {
            self.answer_reads(before);
        }
        if !batch.rechecked.is_empty() {
            let rechecked = std::mem::take(&mut batch.rechecked);
            self.executor.life.answer_proven(rechecked);
        }
        let empty = !self.overlay.batch_has_effects() && !self.transactions.has_writes();
        empty || self.propose(batch, |_| ())
    }

    fn answer_reads(&self, reads: Vec<Answer>) {
        let life = &self.executor.life;
        match self.executor.engine.verify_leader_now() {
            Some(proof) if proof.leader == life.leader => life.answer_proven(reads),
            _ => life.read_later(reads, life.proposed()),
        }
    }

    fn propose(&mut self, batch: Batch, more: impl FnOnce(&mut BatchWriter)) -> bool {
        let Executor {
            engine,
            life,
            parts,
            ..
        } = &self.executor;
        let number = self.overlay.number();
        let mut out = BatchWriter::new(life.incarnation, number, self.batch_bytes());
        self.overlay.close_batch(&mut out);
        self.requests.close_batch(&mut out);
        self.transactions.close_batch(&mut out);
        more(&mut out);
        let entry = out.finish(batch.stamp);
        parts.metrics.batches.inc();
        parts.metrics.batch_bytes.inc_by(entry.len() as u64);

        // Shared by all its commands, so under a context of its own.
        let ctx = Context::with_timeout(parts.config.batch_deadline);
        let flight = Flight {
            number,
            bytes: entry.len(),
            ctx: ctx.clone(),
            writes: batch.writes,
            reads: batch.reads,
            wakes: batch.wakes,
        };
        if !life.launch(flight) {
            return false;
        }
        let settled = Arc::clone(life);
        let done = Box::new(move |result| settled.settled(number, result));
        engine.enqueue(&ctx, life.leader, entry, done);
        true
    }

    /// The first batch of a new shard says what it owns.
    fn take_ownership(&mut self) {
        let owned = encode_owned(&self.owned);
        let batch = Batch {
            stamp: self.executor.parts.hlc.next(),
            ..Batch::default()
        };
        self.propose(batch, |out| out.put_private(&[OWNED], &owned));
    }

    /// Runs one step of each sweep; `false` when the life is over.
    fn sweep(&mut self) -> bool {
        let sweeps = Arc::clone(&self.executor.parts.sweeps);
        let mut busy = false;
        for sweep in sweeps.iter() {
            let Some(operation) = sweep.next(&self.owned) else {
                continue;
            };
            if self.is_full() && !self.close_batch() {
                return false;
            }
            self.tidy();
            let ctx = Context::with_timeout(SWEEP_DEADLINE);
            match self.evaluate(&ctx, operation.as_ref(), false, false) {
                Evaluated::Write(_) => busy = true,
                // What is locked is swept another time.
                Evaluated::Read(..) | Evaluated::Locked(_) => {}
                Evaluated::Failed(error) => {
                    tracing::warn!(%error, sweep = operation.name(), "a sweep failed");
                }
            }
        }
        let config = &self.executor.parts.config;
        self.next_sweep = Instant::now()
            + if busy {
                config.sweep_busy
            } else {
                config.sweep_idle
            };
        true
    }
}

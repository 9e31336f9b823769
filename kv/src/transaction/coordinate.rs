//! The coordinator of transactions: runs an operation over several shards.
//!
//! # Invariants
//! 1. From the first *lock* on an attempt is a task of its own, owned by the coordinator: a caller
//!    that leaves does not leave it half done.
//! 2. *Decide* is sent only when every lock is granted and what is not locked was validated
//!    afterwards, or is compared by the deciding shard itself. An attempt for which it was never sent
//!    is aborted, whatever becomes of its locks.
//! 3. Once *decide* was sent, only its answer says what happened. It is repeated until one comes.
//! 4. An id stays open until nothing is sent for it any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use leadline_raft::mutations::{self, Mutation};
use leadline_raft::{Context, Ended};
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AttemptId;
use super::resolve::{Doubt, Doubts};
use super::rows::{Ask, Asked, Borders, KnownRows, TransactionRows};
use super::steps::{TransactionOperation, decode};
use crate::coordinator::{OpenIds, PendingReply};
use crate::hlc::Hlc;
use crate::metrics::CoordinatorMetrics;
use crate::wire::row_change::Change;
use crate::wire::transaction_reply::Reply as StepReply;
use crate::wire::transaction_step::Step;
use crate::wire::{
    Decide, LockRows, Participant, ReadRows, RowChange, RowRange, RowsRead, ScanRows, SeenRow,
    ValidateRows,
};
use crate::{
    Access, Door, KvError, Operation, Outcome, RequestId, Route, RowError, ScanOrder, Timestamp,
};

/// After so many failed attempts a transaction locks what it reads too, shard by shard in key order.
pub(super) const OPTIMISTIC: u32 = 3;

/// The pause before another attempt: from the first, doubling to the longest, with jitter.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long rolling forward, releasing and settling go on for a caller that has its answer.
const AFTERWARDS: Duration = Duration::from_secs(30);

/// Overdue locks that are settled at a time, and how long one may take: a shard that does not answer
/// must not take what the node has for others.
const RESOLVED_AT_ONCE: usize = 256;
const RESOLVING: Duration = Duration::from_secs(1);

/// Evaluations that may wait on blocking threads.
const BLOCKING: usize = 64;

/// How often commit records whose locks are gone are forgotten, all at once: one batch of a shard
/// forgets many, and nobody waits for it.
pub(crate) const FORGETTING: Duration = Duration::from_millis(100);

const UNSETTLED: &str = "the shard that decides did not say in time whether it committed";
const STOPPED: &str = "the node stopped during a transaction";

type Reply = Result<Bytes, KvError>;

/// The shards, as a transaction's coordinator reaches them.
pub(crate) trait Network: Send + Sync + 'static {
    /// Sends a step to the shard that owns `key`.
    fn send(&self, ctx: &Context, key: &[u8], step: Arc<TransactionOperation>) -> PendingReply;

    /// What the shard of `key` owns, as far as is known here.
    fn shard_of(&self, key: &[u8]) -> Option<Range<Bytes>>;

    /// What each shard with rows of `door` owns, in order.
    fn shards(&self, door: Door) -> Vec<Range<Bytes>>;
}

/// Where a coordinator may die in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Point {
    Read,
    Locked,
    Validated,
    Decided,
    RolledForward,
    Forgotten,
}

/// Runs the transactions of one node.
pub(crate) struct TransactionCoordinator<N> {
    network: N,
    hlc: Arc<Hlc>,
    session: u128,
    numbers: AtomicU64,
    open: OpenIds,
    blocking: Arc<Semaphore>,
    /// How often commit records are forgotten, from when on.
    forgetting: Duration,
    began: tokio::time::Instant,
    tasks: TaskTracker,
    metrics: CoordinatorMetrics,
    /// Keys that transactions of this node are about to change: those that want the same key take
    /// turns here, in the order of their coming, instead of undoing each other's attempts.
    turns: Mutex<HashMap<Bytes, Arc<tokio::sync::Mutex<()>>>>,
    /// What is to be settled before a request is run again.
    unsettled: Mutex<HashMap<RequestId, Unsettled>>,
    #[cfg(test)]
    pub(super) dies: Mutex<Option<Point>>,
    #[cfg(test)]
    pub(super) skips_validation: std::sync::atomic::AtomicBool,
}

/// An attempt whose *decide* was not answered.
#[derive(Clone, Debug)]
pub(super) struct Unsettled {
    attempt: AttemptId,
    decision: Decide,
    reply: Bytes,
    /// It was heard since that it is committed: its record may be forgotten by now.
    committed: Arc<AtomicBool>,
}

/// What an attempt wants of the shards.
#[derive(Debug)]
struct Plan {
    attempt: AttemptId,
    /// By a row key: a lock for each shard to be changed, in key order. Unless there is a `decider`
    /// the first one decides.
    locks: Vec<(Bytes, LockRows)>,
    /// The shard that decides, if it needs no lock for that.
    decider: Option<Decider>,
    validations: Vec<(Bytes, ValidateRows)>,
    reply: Bytes,
    changes: bool,
    in_order: bool,
}

/// A shard that compares, changes and decides in one step. It may where nothing is validated
/// elsewhere: what was read is then either locked or compared in that very step.
#[derive(Debug)]
struct Decider {
    key: Bytes,
    here: LockRows,
    read: ValidateRows,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Attempted {
    Done(Bytes),
    /// Known to be aborted; worth another.
    Conflict,
    Failed(KvError),
    /// It may be committed or not, now or later.
    InDoubt(KvError, Box<Unsettled>),
}

struct NetworkBorders<N> {
    coordinator: Arc<TransactionCoordinator<N>>,
    door: Door,
}

impl<N: Network> Borders for NetworkBorders<N> {
    fn shard_of(&self, key: &[u8]) -> Range<Bytes> {
        let shard = self.coordinator.network.shard_of(key);
        shard.unwrap_or_else(|| Bytes::new()..Bytes::new())
    }

    fn shards(&self) -> Vec<Range<Bytes>> {
        self.coordinator.network.shards(self.door)
    }
}

impl<N: Network> TransactionCoordinator<N> {
    /// Commit records are forgotten each `forgetting`; zero: one by one, at once.
    pub(crate) fn new(
        network: N,
        hlc: Arc<Hlc>,
        metrics: CoordinatorMetrics,
        forgetting: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            network,
            hlc,
            session: rand::random(),
            numbers: AtomicU64::new(1),
            open: OpenIds::default(),
            blocking: Arc::new(Semaphore::new(BLOCKING)),
            forgetting,
            began: tokio::time::Instant::now(),
            tasks: TaskTracker::new(),
            metrics,
            turns: Mutex::default(),
            unsettled: Mutex::default(),
            #[cfg(test)]
            dies: Mutex::new(None),
            #[cfg(test)]
            skips_validation: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Waits until nothing is under way any more, at most until `ctx` ends.
    pub(crate) async fn shutdown(&self, ctx: &Context) {
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!("transactions did not end in time; their locks are resolved later");
        }
    }

    /// Runs `operation`, again and again until it commits or `ctx` ends.
    pub(crate) async fn run(
        self: Arc<Self>,
        ctx: Context,
        operation: Arc<dyn Operation>,
        once: Option<RequestId>,
    ) -> Reply {
        self.metrics.transactions.inc();
        if let Some(once) = once
            && let Some(reply) = self.settle_earlier(&ctx, once).await
        {
            return reply;
        }
        let _turn = match self.turn(&ctx, operation.as_ref()).await {
            Ok(turn) => turn,
            Err(ended) => return Err(KvError::NotApplied(ended)),
        };
        let mut tries = 0;
        loop {
            if let Some(ended) = ctx.ended() {
                return Err(KvError::NotApplied(ended));
            }
            match self.attempt(&ctx, &operation, tries).await {
                Attempted::Done(reply) => return Ok(reply),
                Attempted::Failed(error) => return Err(error),
                Attempted::InDoubt(error, unsettled) => {
                    // Here, not where it is found out: with a caller that has left nobody would
                    // take it away again.
                    if let Some(once) = once {
                        self.unsettled.lock().insert(once, *unsettled);
                    }
                    return Err(error);
                }
                Attempted::Conflict => {}
            }
            self.metrics.conflicts.inc();
            let pause = (FIRST_PAUSE * 2_u32.pow(tries.min(10))).min(LONGEST_PAUSE);
            let pause = pause.mul_f64(rand::rng().random_range(0.2..=1.0));
            if let Err(ended) = ctx.run(tokio::time::sleep(pause)).await {
                return Err(KvError::NotApplied(ended));
            }
            tries += 1;
        }
    }

    /// Waits until no other transaction of this node is about to change what `operation` names.
    async fn turn(
        self: &Arc<Self>,
        ctx: &Context,
        operation: &dyn Operation,
    ) -> Result<Turn<N>, Ended> {
        let mut turn = Turn {
            coordinator: Arc::clone(self),
            keys: Vec::new(),
            guards: Vec::new(),
        };
        let (Access::Write, Route::Keys(keys)) = (operation.access(), operation.route()) else {
            return Ok(turn);
        };
        turn.keys = keys.to_vec();
        // In order, so that two never wait for each other.
        turn.keys.sort_unstable();
        turn.keys.dedup();
        for at in 0..turn.keys.len() {
            let place = {
                let mut turns = self.turns.lock();
                Arc::clone(turns.entry(turn.keys[at].clone()).or_default())
            };
            turn.guards.push(ctx.run(place.lock_owned()).await?);
        }
        Ok(turn)
    }

    /// `once` will not be run again.
    pub(crate) fn finish(&self, once: RequestId) {
        self.unsettled.lock().remove(&once);
    }

    /// Rule 6: an attempt that may have committed is settled before there is another.
    async fn settle_earlier(self: &Arc<Self>, ctx: &Context, once: RequestId) -> Option<Reply> {
        let earlier = self.unsettled.lock().get(&once).cloned()?;
        match self
            .decide(ctx, earlier.attempt, &earlier.decision, true)
            .await
        {
            Ok(true) => Some(Ok(earlier.reply)),
            // Nothing is left to say so: it was rolled forward and forgotten.
            Ok(false) if earlier.committed.load(Ordering::SeqCst) => Some(Ok(earlier.reply)),
            Ok(false) => {
                self.unsettled.lock().remove(&once);
                None
            }
            Err(_) => Some(Err(KvError::Unknown(UNSETTLED))),
        }
    }

    pub(super) async fn attempt(
        self: &Arc<Self>,
        ctx: &Context,
        operation: &Arc<dyn Operation>,
        tries: u32,
    ) -> Attempted {
        let attempt = AttemptId {
            session: self.session,
            number: self.open.open(&self.numbers),
        };
        // Given back when nothing is sent for it any more (invariant 4).
        let open = OpenAttempt {
            coordinator: Arc::clone(self),
            number: attempt.number,
        };
        let known = match self.prefetch(ctx, attempt, operation.as_ref(), tries).await {
            Ok(known) => known,
            Err(error) => return failed(ctx, error),
        };
        let (mut rows, result) = match self.evaluate(ctx, attempt, operation, known).await {
            Ok(evaluated) => evaluated,
            Err(error) => return Attempted::Failed(error),
        };
        if self.dies(Point::Read) {
            return Attempted::Failed(KvError::Unknown(STOPPED));
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(RowError::Ended) => {
                return Attempted::Failed(KvError::NotApplied(
                    ctx.ended().unwrap_or(Ended::Deadline),
                ));
            }
            Err(error) => {
                // What it stumbled over may be rows of two moments (rule 2).
                rows.drop_effects();
                let Some(plan) = self.plan(attempt, rows, Bytes::new(), 0) else {
                    return Attempted::Conflict;
                };
                return match self.validate(ctx, &plan).await {
                    Ok(true) => Attempted::Failed(match error {
                        RowError::Refused(why) => KvError::Invalid(why),
                        error => KvError::Storage(error.to_string()),
                    }),
                    Ok(false) => Attempted::Conflict,
                    Err(error) => failed(ctx, error),
                };
            }
        };
        let Some(plan) = self.plan(attempt, rows, reply, tries) else {
            return Attempted::Conflict;
        };
        if plan.locks.is_empty() && plan.decider.is_none() {
            return match self.validate(ctx, &plan).await {
                Ok(true) => Attempted::Done(plan.reply),
                Ok(false) => Attempted::Conflict,
                Err(error) => failed(ctx, error),
            };
        }
        let coordinator = Arc::clone(self);
        let ctx = ctx.clone();
        let committing = self.tasks.spawn(async move {
            let attempted = coordinator.commit(&ctx, plan, &open).await;
            drop(open);
            attempted
        });
        committing
            .await
            .unwrap_or(Attempted::Failed(KvError::Unknown(STOPPED)))
    }

    /// Reads the rows that the operation's route names, all shards at once. They may be old: locks
    /// and validation compare the stamps of all that are versions. What a version covers is read
    /// afterwards and proved, so it is not older than the version.
    async fn prefetch(
        &self,
        ctx: &Context,
        attempt: AttemptId,
        operation: &dyn Operation,
        tries: u32,
    ) -> Result<KnownRows, KvError> {
        let mut known = KnownRows::default();
        let Route::Keys(keys) = operation.route() else {
            return Ok(known);
        };
        let mut shards: BTreeMap<Bytes, Vec<Bytes>> = BTreeMap::new();
        for key in keys {
            let shard = self.shard_start(key)?;
            let wanted = shards.entry(shard).or_default();
            if !wanted.contains(key) {
                wanted.push(key.clone());
            }
        }
        let reads = shards.into_iter().map(|(shard, keys)| async move {
            let read = Step::Read(ReadRows {
                // After a conflict the newest.
                rechecked: tries == 0 && keys.iter().all(|key| operation.is_version(key)),
                keys: keys.clone(),
            });
            let rows = self.rows(ctx, attempt, &keys[0], read).await?;
            Ok::<_, KvError>((shard, keys, rows))
        });
        for read in join_all(reads).await {
            let (shard, keys, rows) = read?;
            known.learn(shard, keys, rows);
        }
        Ok(known)
    }

    async fn rows(
        &self,
        ctx: &Context,
        attempt: AttemptId,
        key: &Bytes,
        step: Step,
    ) -> Result<RowsRead, KvError> {
        match self.step(ctx, attempt, key, step).await? {
            StepReply::Rows(rows) => {
                self.hlc.observe(Timestamp(rows.now));
                Ok(rows)
            }
            _ => Err(KvError::Storage("a shard answered out of turn".to_owned())),
        }
    }

    async fn step(
        &self,
        ctx: &Context,
        attempt: AttemptId,
        key: &Bytes,
        step: Step,
    ) -> Result<StepReply, KvError> {
        let lowest_open = self.open.lowest(self.numbers.load(Ordering::Relaxed));
        let step = TransactionOperation::new(attempt, lowest_open, key.clone(), step);
        let reply = self.network.send(ctx, key, step).await?;
        decode(reply).ok_or_else(|| KvError::Storage("a shard's answer is malformed".to_owned()))
    }

    fn shard_start(&self, key: &[u8]) -> Result<Bytes, KvError> {
        self.network
            .shard_of(key)
            .map(|owned| owned.start)
            .ok_or(KvError::NoLeader { leader: None })
    }

    /// Evaluates over what is known; if that is not enough, again on a thread that may wait for
    /// more.
    async fn evaluate(
        self: &Arc<Self>,
        ctx: &Context,
        attempt: AttemptId,
        operation: &Arc<dyn Operation>,
        known: KnownRows,
    ) -> Result<(TransactionRows, Result<Bytes, RowError>), KvError> {
        let borders = Arc::new(NetworkBorders {
            coordinator: Arc::clone(self),
            door: operation.door(),
        });
        let stamp = self.hlc.next();
        let known = if operation.open_ended() {
            known
        } else {
            let mut rows = TransactionRows::new(
                ctx,
                Arc::clone(operation),
                Arc::clone(&borders) as Arc<dyn Borders>,
                stamp,
                known,
                None,
            );
            match operation.evaluate(&mut rows) {
                Err(RowError::NeedsExecutor) => rows.into_known(),
                result => return Ok((rows, result)),
            }
        };
        let permit = Arc::clone(&self.blocking).acquire_owned();
        let permit = match ctx.run(permit).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(KvError::Stopping),
            Err(ended) => return Err(KvError::NotApplied(ended)),
        };
        // One ask at a time.
        let (asks, mut asked) = mpsc::channel::<Asked>(1);
        let mut rows = TransactionRows::new(
            ctx,
            Arc::clone(operation),
            borders,
            stamp,
            known,
            Some(asks),
        );
        let operation = Arc::clone(operation);
        let mut evaluating = self.tasks.spawn_blocking(move || {
            // The permit stands for the thread, and goes back when the thread is done.
            let _permit = permit;
            let result = operation.evaluate(&mut rows);
            (rows, result)
        });
        loop {
            tokio::select! {
                evaluated = &mut evaluating => {
                    return evaluated.map_err(|error| {
                        tracing::error!(%error, "an operation over several shards panicked");
                        KvError::Storage("the operation failed while it was evaluated".to_owned())
                    });
                }
                Some((ask, answer)) = asked.recv() => {
                    let rows = self.answer(ctx, attempt, ask).await;
                    // The evaluation may have ended meanwhile.
                    answer.send(rows).ok();
                }
                ended = ctx.done() => return Err(KvError::NotApplied(ended)),
            }
        }
    }

    async fn answer(
        &self,
        ctx: &Context,
        attempt: AttemptId,
        ask: Ask,
    ) -> Result<RowsRead, RowError> {
        let (key, step) = match ask {
            Ask::Read(key) => (
                key.clone(),
                Step::Read(ReadRows {
                    keys: vec![key],
                    rechecked: false,
                }),
            ),
            Ask::Scan {
                range,
                order,
                most_rows,
            } => (
                range.start.clone(),
                Step::Scan(ScanRows {
                    start: range.start,
                    end: range.end,
                    descending: order == ScanOrder::Descending,
                    most_rows,
                }),
            ),
        };
        self.rows(ctx, attempt, &key, step)
            .await
            .map_err(|error| match error {
                KvError::NotApplied(_) => RowError::Ended,
                error => RowError::Storage(error.to_string()),
            })
    }

    /// Sorts what an evaluation saw and changed by shard. `None`: the shards are not known now, or
    /// what was absent cannot be compared.
    fn plan(
        &self,
        attempt: AttemptId,
        mut rows: TransactionRows,
        reply: Bytes,
        tries: u32,
    ) -> Option<Plan> {
        let in_order = tries >= OPTIMISTIC;
        let changes = rows.has_effects();
        let mut locks: BTreeMap<Bytes, LockRows> = BTreeMap::new();
        let mut validations: BTreeMap<Bytes, (Bytes, ValidateRows)> = BTreeMap::new();
        for (key, stamp) in std::mem::take(&mut rows.seen) {
            let shard = self.shard_start(&key).ok()?;
            let written = rows.is_written(&key);
            let seen = SeenRow {
                key: key.clone(),
                stamp: stamp.map(|stamp| stamp.0),
            };
            if written || in_order {
                let lock = locks.entry(shard).or_default();
                lock.seen.push(seen);
                if !written {
                    lock.changes.push(RowChange {
                        key,
                        change: Some(Change::Keep(true)),
                    });
                }
            } else {
                let (_, validation) = validations
                    .entry(shard)
                    .or_insert_with(|| (key.clone(), ValidateRows::default()));
                validation.rows.push(seen);
            }
        }
        for range in std::mem::take(&mut rows.seen_ranges) {
            let shard = self.shard_start(&range.start).ok()?;
            let (_, validation) = validations
                .entry(shard)
                .or_insert_with(|| (range.start.clone(), ValidateRows::default()));
            validation.ranges.push(range);
        }
        for change in rows.take_changes() {
            let shard = self.shard_start(&change.key).ok()?;
            locks.entry(shard).or_default().changes.push(change);
        }
        for range in std::mem::take(&mut rows.deleted) {
            let shard = self.shard_start(&range.start).ok()?;
            locks.entry(shard).or_default().deleted.push(RowRange {
                start: range.start,
                end: range.end,
            });
        }
        for key in std::mem::take(&mut rows.wakes) {
            let shard = self.shard_start(&key).ok()?;
            // A key that is woken was written.
            if let Some(lock) = locks.get_mut(&shard) {
                lock.wakes.push(key);
            }
        }
        let first = locks.keys().next().cloned();
        let read_elsewhere = validations
            .keys()
            .any(|shard| Some(shard) != first.as_ref());
        let mut locks: Vec<(Bytes, LockRows)> = locks
            .into_values()
            .map(|lock| {
                let change = lock.changes.first().map(|row| row.key.clone());
                let range = || lock.deleted.first().map(|range| range.start.clone());
                (change.or_else(range).unwrap_or_default(), lock)
            })
            .collect();
        let primary = locks.first().map(|(key, _)| key.clone());
        if let Some(primary) = primary {
            for (_, lock) in &mut locks {
                lock.primary = primary.clone();
            }
        }
        let mut decider = None;
        if changes && !in_order && !read_elsewhere {
            let (key, here) = locks.remove(0);
            let read = validations.pop_first().map(|(_, (_, read))| read);
            decider = Some(Decider {
                key,
                here,
                read: read.unwrap_or_default(),
            });
        }
        for (shard, (_, validation)) in &mut validations {
            let absent = validation.rows.iter().any(|row| row.stamp.is_none());
            if absent || !validation.ranges.is_empty() {
                validation.absent_since = Some(rows.absent_since(shard)?.into());
            }
        }
        Some(Plan {
            attempt,
            locks,
            decider,
            validations: validations.into_values().collect(),
            reply,
            changes,
            in_order,
        })
    }

    async fn commit(
        self: &Arc<Self>,
        ctx: &Context,
        mut plan: Plan,
        open: &OpenAttempt<N>,
    ) -> Attempted {
        // Sent once more by what changes nothing, to hear that the lock is still there.
        let first = match plan.changes {
            true => None,
            false => plan.locks.first().cloned(),
        };
        let locked = self.lock(ctx, &mut plan).await;
        if self.dies(Point::Locked) {
            return Attempted::Failed(KvError::Unknown(STOPPED));
        }
        let mut participants = match locked {
            Locked::All(participants) => participants,
            Locked::Not { taken, why } => {
                self.release(ctx, plan.attempt, taken, open);
                return match why {
                    None => Attempted::Conflict,
                    Some(error) => failed(ctx, error),
                };
            }
        };

        // After the last lock: what was read must hold at one instant, with every lock held.
        let valid = match plan.validations.is_empty() {
            true => Ok(true),
            false => self.validate(ctx, &plan).await,
        };
        if self.dies(Point::Validated) {
            return Attempted::Failed(KvError::Unknown(STOPPED));
        }
        match valid {
            Ok(true) => {}
            Ok(false) => {
                self.release(ctx, plan.attempt, taken(&participants), open);
                return Attempted::Conflict;
            }
            Err(error) => {
                self.release(ctx, plan.attempt, taken(&participants), open);
                return failed(ctx, error);
            }
        }
        if let Some((key, lock)) = first {
            // A read that locked what it read. Nobody decides it: that the locks were all there at
            // one instant is known when the first still is, which goes before the others.
            let again = self.step(ctx, plan.attempt, &key, Step::Lock(lock)).await;
            self.release(ctx, plan.attempt, taken(&participants), open);
            return match again {
                Ok(StepReply::Granted(stamp)) if stamp == participants[0].stamp => {
                    Attempted::Done(plan.reply)
                }
                Ok(_) => Attempted::Conflict,
                Err(error) => failed(ctx, error),
            };
        }

        let (mut here, mut read) = (None, None);
        if let Some(decider) = plan.decider {
            let key = decider.key;
            participants.insert(0, Participant { key, stamp: 0 });
            (here, read) = (Some(decider.here), Some(decider.read));
        }
        let decision = Decide {
            stamp: participants[0].stamp,
            participants,
            here,
            read,
        };
        // The commit point: past this line only the answer says what became of the attempt.
        let decided = self.decide(ctx, plan.attempt, &decision, false).await;
        if self.dies(Point::Decided) {
            return Attempted::Failed(KvError::Unknown(STOPPED));
        }
        match decided {
            Ok(true) => {
                let afterwards = self.roll_forward(ctx, plan.attempt, decision, open.again());
                // Detached: whoever meets one of the locks waits for this.
                self.tasks.spawn(afterwards);
                Attempted::Done(plan.reply)
            }
            Ok(false) => {
                self.release(ctx, plan.attempt, taken(&decision.participants), open);
                Attempted::Conflict
            }
            Err(error) if error.outcome() == Outcome::NotApplied => {
                let abort = Step::Abort(true);
                let committed = Arc::default();
                let concluded =
                    self.conclude(ctx, plan.attempt, decision, abort, committed, open.again());
                self.tasks.spawn(concluded);
                failed(ctx, error)
            }
            Err(error) => {
                let committed = Arc::new(AtomicBool::new(false));
                let unsettled = Unsettled {
                    attempt: plan.attempt,
                    decision: decision.clone(),
                    reply: plan.reply,
                    committed: Arc::clone(&committed),
                };
                let decide = Step::Decide(decision.clone());
                let concluded =
                    self.conclude(ctx, plan.attempt, decision, decide, committed, open.again());
                self.tasks.spawn(concluded);
                Attempted::InDoubt(error, Box::new(unsettled))
            }
        }
    }

    async fn lock(&self, ctx: &Context, plan: &mut Plan) -> Locked {
        let attempt = plan.attempt;
        let locks = std::mem::take(&mut plan.locks);
        let ask = |key: Bytes, lock: LockRows| async move {
            let reply = self.step(ctx, attempt, &key, Step::Lock(lock)).await;
            (key, reply)
        };
        let mut replies = Vec::with_capacity(locks.len());
        if plan.in_order {
            // Who is first at the first shard is first at all of them.
            for (key, lock) in locks {
                let reply = ask(key, lock).await;
                let granted = matches!(reply.1, Ok(StepReply::Granted(_)));
                replies.push(reply);
                if !granted {
                    break;
                }
            }
        } else {
            replies = join_all(locks.into_iter().map(|(key, lock)| ask(key, lock))).await;
        }
        let (mut participants, mut taken) = (Vec::new(), Vec::new());
        let (mut refused, mut why) = (false, None);
        for (key, reply) in replies {
            match reply {
                Ok(StepReply::Granted(stamp)) => {
                    taken.push((key.clone(), stamp));
                    participants.push(Participant { key, stamp });
                }
                Ok(_) => refused = true,
                Err(error) => {
                    // It may have been granted, or be granted yet.
                    if error.outcome() == Outcome::Unknown {
                        taken.push((key, 0));
                    }
                    why = Some(error);
                }
            }
        }
        if refused || why.is_some() {
            return Locked::Not { taken, why };
        }
        Locked::All(participants)
    }

    async fn validate(&self, ctx: &Context, plan: &Plan) -> Result<bool, KvError> {
        #[cfg(test)]
        if self.skips_validation.load(Ordering::SeqCst) {
            return Ok(true);
        }
        if mutations::active(Mutation::NoValidate) {
            return Ok(true);
        }
        let checks = plan
            .validations
            .iter()
            .map(|(key, seen)| self.step(ctx, plan.attempt, key, Step::Validate(seen.clone())));
        let mut valid = true;
        for reply in join_all(checks).await {
            valid &= matches!(reply?, StepReply::Valid(true));
        }
        Ok(valid)
    }

    /// Sends *decide* until it is answered: whether the attempt is committed. An error of unknown
    /// outcome leaves that open; where it is `unknown` already there is no other.
    async fn decide(
        &self,
        ctx: &Context,
        attempt: AttemptId,
        decision: &Decide,
        mut unknown: bool,
    ) -> Result<bool, KvError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let step = Step::Decide(decision.clone());
            match self.step(ctx, attempt, decision.primary(), step).await {
                Ok(StepReply::Committed(_)) => return Ok(true),
                Ok(_) => return Ok(false),
                Err(error) if error.outcome() == Outcome::NotApplied && !unknown => {
                    return Err(error);
                }
                Err(_) => unknown = true,
            }
            if ctx.run(tokio::time::sleep(pause)).await.is_err() {
                return Err(KvError::Unknown(UNSETTLED));
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Removes the locks of an attempt that is aborted, beside the caller.
    fn release(
        self: &Arc<Self>,
        ctx: &Context,
        attempt: AttemptId,
        taken: Vec<(Bytes, u64)>,
        open: &OpenAttempt<N>,
    ) {
        if taken.is_empty() {
            return;
        }
        // Detached: the caller tries again or has its answer, and its locks are in others' way.
        let ctx = ctx.detach(AFTERWARDS);
        let coordinator = Arc::clone(self);
        let open = open.again();
        self.tasks.spawn(async move {
            let releases = taken.iter().map(|(key, stamp)| {
                coordinator.until_gone(&ctx, attempt, key, Step::Release(*stamp))
            });
            join_all(releases).await;
            drop(open);
        });
    }

    /// Repeats a step until the shard says that the lock is gone; `false`: it did not before `ctx`
    /// ended.
    async fn until_gone(&self, ctx: &Context, attempt: AttemptId, key: &Bytes, step: Step) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(StepReply::Gone(true)) = self.step(ctx, attempt, key, step.clone()).await {
                return true;
            }
            if ctx.run(tokio::time::sleep(pause)).await.is_err() {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE * 10);
        }
    }

    /// Makes the changes of a committed attempt at every shard, and then forgets its record.
    fn roll_forward(
        self: &Arc<Self>,
        ctx: &Context,
        attempt: AttemptId,
        decision: Decide,
        open: OpenAttempt<N>,
    ) -> impl Future<Output = ()> + Send + 'static {
        // Detached: the caller has its answer, and the locks are in others' way.
        let ctx = ctx.detach(AFTERWARDS);
        let coordinator = Arc::clone(self);
        async move {
            let mut participants = decision.participants.iter();
            let Some(primary) = participants.next() else {
                return;
            };
            let rolling = participants.map(|participant| {
                let step = Step::RollForward(participant.stamp);
                coordinator.until_gone(&ctx, attempt, &participant.key, step)
            });
            let gone = join_all(rolling).await;
            if coordinator.dies(Point::RolledForward) {
                return;
            }
            // Rule 5: only when every participant has confirmed.
            if gone.into_iter().all(|gone| gone) && coordinator.until_forgetting(&ctx).await {
                coordinator
                    .until_gone(&ctx, attempt, &primary.key, Step::Forget(true))
                    .await;
                coordinator.dies(Point::Forgotten);
            }
            drop(open);
        }
    }

    /// Waits for the next time at which commit records are forgotten; `false`: `ctx` ended before.
    async fn until_forgetting(&self, ctx: &Context) -> bool {
        if self.forgetting.is_zero() {
            return true;
        }
        let passed = self.began.elapsed().as_nanos() % self.forgetting.as_nanos();
        let passed = Duration::from_nanos(u64::try_from(passed).unwrap_or(0));
        let left = self.forgetting - passed;
        ctx.run(tokio::time::sleep(left)).await.is_ok()
    }

    /// Asks the deciding shard until it says what became of an attempt, and finishes that: asked to
    /// decide once more where the answer was lost, or to abort what it refused unread. The locks of
    /// an aborted attempt go only then: a copy of *decide* that is still on its way must not commit
    /// what is half gone.
    fn conclude(
        self: &Arc<Self>,
        ctx: &Context,
        attempt: AttemptId,
        decision: Decide,
        ask: Step,
        committed: Arc<AtomicBool>,
        open: OpenAttempt<N>,
    ) -> impl Future<Output = ()> + Send + 'static {
        // Detached: the caller has its answer or tries again, and the locks are in others' way.
        let after = ctx.detach(AFTERWARDS);
        let coordinator = Arc::clone(self);
        async move {
            let primary = decision.primary().clone();
            let mut pause = FIRST_PAUSE;
            loop {
                match coordinator
                    .step(&after, attempt, &primary, ask.clone())
                    .await
                {
                    Ok(StepReply::Committed(_)) => {
                        committed.store(true, Ordering::SeqCst);
                        return coordinator
                            .roll_forward(&after, attempt, decision, open)
                            .await;
                    }
                    Ok(_) => {
                        let taken = taken(&decision.participants);
                        return coordinator.release(&after, attempt, taken, &open);
                    }
                    Err(_) => {}
                }
                if after.run(tokio::time::sleep(pause)).await.is_err() {
                    // Its locks are resolved by whoever meets them.
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Settles overdue locks that this node's executors hold, until `stop`.
    pub(crate) async fn resolve(self: Arc<Self>, doubts: Arc<Doubts>, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(RESOLVED_AT_ONCE));
        let under_way = Arc::new(Mutex::new(HashSet::new()));
        while let Some(doubt) = stop.run_until_cancelled(doubts.next()).await {
            // The executor asks again about what is left out here.
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                continue;
            };
            let lock = (doubt.attempt, doubt.held_at.clone());
            if !under_way.lock().insert(lock.clone()) {
                continue;
            }
            let (coordinator, under_way) = (Arc::clone(&self), Arc::clone(&under_way));
            self.tasks.spawn(async move {
                coordinator.resolve_one(doubt).await;
                under_way.lock().remove(&lock);
                drop(slot);
            });
        }
    }

    pub(super) async fn resolve_one(&self, doubt: Doubt) {
        self.metrics.resolved.inc();
        // Each has its own deadline; the executor asks again if it was not enough.
        let ctx = Context::with_timeout(RESOLVING);
        let Doubt {
            attempt,
            primary,
            held_at,
            stamp,
        } = doubt;
        let step = match self.step(&ctx, attempt, &primary, Step::Abort(true)).await {
            Ok(StepReply::Committed(record)) => {
                let listed = record.participants.iter().any(|participant| {
                    participant.stamp == stamp
                        && self.network.shard_of(&participant.key)
                            == self.network.shard_of(&held_at)
                });
                // A lock that is not listed was granted to a message that came too late.
                if listed {
                    Step::RollForward(stamp)
                } else {
                    Step::Release(stamp)
                }
            }
            Ok(StepReply::Aborted(_)) => Step::Release(stamp),
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "an overdue lock could not be resolved yet");
                return;
            }
        };
        if let Err(error) = self.step(&ctx, attempt, &held_at, step).await {
            tracing::debug!(%error, "an overdue lock was decided and not removed yet");
        }
    }

    /// How many requests are to be settled before they run again.
    #[cfg(test)]
    pub(super) fn in_doubt(&self) -> usize {
        self.unsettled.lock().len()
    }

    #[cfg(test)]
    fn dies(&self, point: Point) -> bool {
        *self.dies.lock() == Some(point)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have a body for it")]
    fn dies(&self, _point: Point) -> bool {
        false
    }
}

/// A transaction's turn at the keys that it names.
struct Turn<N: Network> {
    coordinator: Arc<TransactionCoordinator<N>>,
    keys: Vec<Bytes>,
    guards: Vec<tokio::sync::OwnedMutexGuard<()>>,
}

impl<N: Network> Drop for Turn<N> {
    fn drop(&mut self) {
        self.guards.clear();
        let mut turns = self.coordinator.turns.lock();
        for key in &self.keys {
            // Nobody else has it, or waits for it.
            if turns
                .get(key)
                .is_some_and(|place| Arc::strong_count(place) == 1)
            {
                turns.remove(key);
            }
        }
    }
}

/// What became of the locks of an attempt.
enum Locked {
    All(Vec<Participant>),
    Not {
        /// With their stamps; 0 where that is not known.
        taken: Vec<(Bytes, u64)>,
        why: Option<KvError>,
    },
}

impl Decide {
    /// A row key of the deciding shard, which every attempt names first.
    fn primary(&self) -> &Bytes {
        &self.participants[0].key
    }
}

/// The locks among `participants`, with their stamps.
fn taken(participants: &[Participant]) -> Vec<(Bytes, u64)> {
    let locks = participants
        .iter()
        .filter(|participant| participant.stamp != 0);
    locks.map(|lock| (lock.key.clone(), lock.stamp)).collect()
}

/// An attempt for which nothing was decided failed: nothing is applied.
fn failed(ctx: &Context, error: KvError) -> Attempted {
    if let Some(ended) = ctx.ended() {
        return Attempted::Failed(KvError::NotApplied(ended));
    }
    match error {
        // A step's outcome, not the transaction's: worth another attempt.
        KvError::Unknown(_) | KvError::NoLeader { .. } => Attempted::Conflict,
        error => Attempted::Failed(error),
    }
}

/// Keeps an attempt's number open.
struct OpenAttempt<N: Network> {
    coordinator: Arc<TransactionCoordinator<N>>,
    number: u64,
}

impl<N: Network> OpenAttempt<N> {
    /// The same, for a task beside.
    fn again(&self) -> Self {
        self.coordinator.open.hold(self.number);
        Self {
            coordinator: Arc::clone(&self.coordinator),
            number: self.number,
        }
    }
}

impl<N: Network> Drop for OpenAttempt<N> {
    fn drop(&mut self) {
        self.coordinator.open.close(self.number);
    }
}

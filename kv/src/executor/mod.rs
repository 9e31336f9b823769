//! The shard executor: evaluates each command once, at the leader, and replicates its effects.
//!
//! ```text
//! caller ── submit ──► queue ──► executor ── batch ──► log of the group
//!   ▲                     overlay over the            │
//!   └──── replies ◄─────  applied state  ◄── apply ◄──┘
//! ```
//!
//! A [`Shard`] lives as long as the replica. While its node leads the group it runs one executor:
//! a job of the node's [`Pool`] that takes what waits, evaluates each command over the applied state
//! and the effects that are not applied yet (the overlay), merges the effects into one batch,
//! proposes it, and goes on with the next without waiting. A batch's commands are answered when the state machine has
//! applied it here, straight from apply.
//!
//! # Invariants
//! 1. An effect is unconditional and idempotent; apply decides nothing ([`entry`]).
//! 2. The fence: every life of an executor begins with `begin(incarnation)` in the log, its batches
//!    are numbered, and apply ignores what does not follow ([`crate::state_machine`]).
//! 3. A life ends at its first refused or ignored batch, or with its leadership; the next one begins
//!    with an empty overlay ([`life`]).
//! 4. A read is evaluated first and proved after ([`life`], [`evaluate`]).
//! 5. Storage is read on the pool's threads; a caller's thread reads the row cache only.
//! 6. An executor only wakes who watches a key; its end wakes all ([`watches`]).
//! 7. What a command writes, be it the deletion of an expired key that a read found, is applied
//!    before the command is answered.
//!
//! 8. Nothing reads or writes beneath the lock of a transaction over several shards: whoever meets
//!    one is parked until it is decided ([`transactions`]).

mod deletions;
pub(crate) mod entry;
pub(crate) mod evaluate;
pub(crate) mod life;
mod metrics;
mod overlay;
pub(crate) mod pool;
mod queue;
mod reply;
pub(crate) mod requests;
mod run;
pub(crate) mod transactions;
mod watches;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use leadline_raft::engine::{Engine, Leadership};
use leadline_raft::{Context, GroupId, LeaderId, RaftError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use entry::Incarnation;
use evaluate::CachedRows;
use life::{Answer, Life};
pub use metrics::ShardMetrics;
pub use pool::Pool;
use queue::{Command, Refusal};
pub(crate) use reply::ReplyFuture;
use reply::{ReplyGroup, Responder};
use run::{Executor, ExecutorJob};

use crate::hlc::Hlc;
use crate::state_machine::ShardState;
use crate::transaction::Doubts;
use crate::{
    Access, KeyWatch, KvError, Operation, PendingReply, RequestId, Route, TransactionOperation,
};

/// Bounds and tempo of one shard's executor.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Commands that may wait for evaluation.
    pub queue_commands: usize,
    /// Bytes that waiting commands may hold.
    pub queue_bytes: usize,
    /// A batch is closed once it holds this many commands or this many bytes of effects.
    pub batch_commands: usize,
    pub batch_bytes: usize,
    /// The most bytes of effects that one command may have.
    pub command_bytes: usize,
    /// Batches that may be proposed and not yet applied, and the bytes beyond which no further one
    /// is.
    pub in_flight: usize,
    pub in_flight_bytes: usize,
    /// How long one proposal, or one round that proves leadership, may take.
    pub batch_deadline: Duration,
    /// Remembered replies per session.
    pub remembered: usize,
    /// After so long the lock of a transaction is resolved by whoever meets it.
    pub lock_ttl: Duration,
    /// How often a sweep runs while it finds something to do, and while it does not.
    pub sweep_busy: Duration,
    pub sweep_idle: Duration,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            queue_commands: 16 * 1024,
            queue_bytes: 64 << 20,
            batch_commands: 1024,
            batch_bytes: 512 << 10,
            command_bytes: LARGEST_COMMAND,
            in_flight: 8,
            in_flight_bytes: 32 << 20,
            batch_deadline: leadline_raft::FALLBACK_DEADLINE,
            remembered: 1024,
            lock_ttl: crate::transaction::LOCK_TTL,
            sweep_busy: Duration::from_millis(100),
            sweep_idle: Duration::from_secs(1),
        }
    }
}

/// Bytes that one command may write: what one entry of the Raft log takes, less room for the
/// batch's own header, keys and the stamps of rows. Refused while it is evaluated: an entry that
/// consensus refused would end the executor's life, and its neighbours' commands with it.
pub const LARGEST_COMMAND: usize = leadline_raft::MAX_ENTRY_BYTES - (1 << 20);

/// Background work on the rows of a shard, in bounded steps: active expiry, dead generations.
pub trait Sweep: Send + Sync + 'static {
    /// The next step over the rows of `owned`, or `None` when there is nothing to do. Run by the
    /// executor of the shard's leader like any command; soon again if it had effects.
    fn next(&self, owned: &Range<Bytes>) -> Option<Arc<dyn Operation>>;
}

/// Whether a command may be evaluated before others of the same caller that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The caller has nothing under way on this shard: a read may be answered on its own thread.
    Free,
    /// After every command that the caller submitted before this one.
    AfterMine,
}

/// A request id with its session's mark: the lowest number of the session that is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    pub id: RequestId,
    pub lowest_open: u64,
}

/// One command of a pipeline.
#[derive(Clone, Debug)]
pub struct Submission {
    pub operation: Arc<dyn Operation>,
    pub order: Order,
    pub once: Option<Once>,
}

/// What all shards of a node share.
#[derive(Clone)]
pub struct ShardParts {
    pub config: ShardConfig,
    pub hlc: Arc<Hlc>,
    pub metrics: ShardMetrics,
    pub sweeps: Arc<[Arc<dyn Sweep>]>,
    /// Where the shards tell of locks whose coordinator may be gone.
    pub doubts: Arc<Doubts>,
    /// Where all of them evaluate.
    pub pool: Arc<Pool>,
}

/// After an executor died under a leadership that goes on, the next one begins this much later; the
/// pause doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One round that proves leadership is waited for this long, and then begun again.
const ROUND: Duration = Duration::from_secs(1);

/// One replica's side of a shard: lives as long as the replica, and runs an executor while its node
/// leads the group.
pub struct Shard<E: Engine> {
    engine: Arc<E>,
    state: Arc<ShardState>,
    parts: ShardParts,
    owned: Range<Bytes>,
    life: ArcSwapOption<Life>,
    /// Whether an executor has begun.
    leading: watch::Sender<bool>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<E: Engine> std::fmt::Debug for Shard<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("group", &self.engine.group())
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Shard<E> {
    /// Follows the leadership of `engine`, whose state machine is `state`, and runs an executor
    /// while this node leads. `owned` is what the shard owns from its first executor on, unless
    /// its rows already say what it owns. Call within a tokio runtime.
    pub fn new(
        engine: Arc<E>,
        state: Arc<ShardState>,
        owned: Range<Bytes>,
        parts: &ShardParts,
    ) -> Arc<Self> {
        let shard = Arc::new(Self {
            engine,
            state,
            parts: parts.clone(),
            owned,
            life: ArcSwapOption::empty(),
            leading: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        shard.tasks.spawn(Arc::clone(&shard).follow());
        shard
    }

    pub fn group(&self) -> GroupId {
        self.engine.group()
    }

    pub fn engine(&self) -> &Arc<E> {
        &self.engine
    }

    /// Submits one command; never blocks. See [`Shard::submit_many`].
    pub fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply {
        let Submission {
            operation,
            order,
            once,
        } = submission;
        let life = self.life.load();
        let Some(life) = life.as_ref() else {
            return PendingReply::ready(Err(self.no_leader()));
        };
        if order == Order::Free
            && once.is_none()
            && let Some((reply, proposed)) = self.read_cached(life, ctx, operation.as_ref())
        {
            return self.answer_cached(life, ctx, operation.as_ref(), reply, proposed);
        }
        let read = operation.access() == Access::Read;
        let group = ReplyGroup::new(1);
        let command = Command {
            ctx: ctx.clone(),
            size: operation.size(),
            operation,
            once,
            responder: Responder::new(&group, 0),
            parked: 0,
        };
        self.push(life, std::iter::once(command));
        PendingReply::executing(ReplyFuture::new(&group, 0, ctx, read))
    }

    /// Submits commands in order; never blocks. The replies come in the same order and resolve by
    /// the deadline of `ctx`; those that come together wake their reader once.
    ///
    /// A reply is an error of `NoLeader` if no executor lives here, `Overloaded` if its queue is
    /// full. Dropping a reply gives it up; the command may still take effect.
    pub fn submit_many(&self, ctx: &Context, submissions: Vec<Submission>) -> Vec<PendingReply> {
        let life = self.life.load();
        let Some(life) = life.as_ref() else {
            let refused = |_| PendingReply::ready(Err(self.no_leader()));
            return submissions.into_iter().map(refused).collect();
        };
        let group = ReplyGroup::new(submissions.len());
        let mut commands = Vec::new();
        let mut replies = Vec::with_capacity(submissions.len());
        for (index, submission) in submissions.into_iter().enumerate() {
            let Submission {
                operation,
                order,
                once,
            } = submission;
            // Behind a command of the same caller that waits for the executor, nothing is free.
            if commands.is_empty()
                && order == Order::Free
                && once.is_none()
                && let Some((reply, proposed)) = self.read_cached(life, ctx, operation.as_ref())
            {
                replies.push(self.answer_cached(life, ctx, operation.as_ref(), reply, proposed));
                continue;
            }
            let read = operation.access() == Access::Read;
            commands.push(Command {
                ctx: ctx.clone(),
                size: operation.size(),
                operation,
                once,
                responder: Responder::new(&group, index),
                parked: 0,
            });
            let reply = ReplyFuture::new(&group, index, ctx, read);
            replies.push(PendingReply::executing(reply));
        }
        if !commands.is_empty() {
            self.push(life, commands);
        }
        replies
    }

    fn push(&self, life: &Arc<Life>, commands: impl IntoIterator<Item = Command>) {
        let Err((why, refused)) = life.queue.push(commands) else {
            return;
        };
        let why = match why {
            Refusal::Closed => self.no_leader(),
            Refusal::Full => {
                self.parts.metrics.refused.inc_by(refused.len() as u64);
                KvError::Overloaded {
                    what: "commands waiting for one shard",
                    retry_after_ms: 50,
                }
            }
        };
        reply::send_all(
            refused
                .into_iter()
                .map(|command| (command.responder, Err(why.clone()))),
        );
    }

    /// Evaluates a read over the row cache on this thread. `None`: it is the executor's. With the
    /// reply comes the highest batch number given out before the evaluation.
    fn read_cached(
        &self,
        life: &Life,
        ctx: &Context,
        operation: &dyn Operation,
    ) -> Option<(Bytes, u64)> {
        if operation.access() != Access::Read || !life.is_live() || ctx.ended().is_some() {
            return None;
        }
        let owned = self.state.owned_guard();
        let owned = owned.as_deref()?;
        if let Route::Keys(keys) = operation.route()
            && keys.iter().any(|key| !owned.contains(key))
        {
            return None;
        }
        let proposed = life.proposed();
        let mut rows = CachedRows::new(ctx, &self.state, owned, self.parts.hlc.now());
        let reply = operation.evaluate(&mut rows).ok()?;
        if !rows.holds() {
            return None;
        }
        self.parts.metrics.cached_reads.inc();
        Some((reply, proposed))
    }

    /// Answers a read of applied state once leadership is proved, if it needs that.
    fn answer_cached(
        &self,
        life: &Life,
        ctx: &Context,
        operation: &dyn Operation,
        reply: Bytes,
        proposed: u64,
    ) -> PendingReply {
        if is_rechecked(operation) {
            return PendingReply::ready(Ok(reply));
        }
        if let Some(proof) = self.engine.verify_leader_now()
            && proof.leader == life.leader
        {
            return PendingReply::ready(Ok(reply));
        }
        let group = ReplyGroup::new(1);
        let responder = Responder::new(&group, 0);
        responder.claim();
        let answer = Answer {
            responder,
            reply,
            // Applied state only: nothing is left to be applied.
            saw: 0,
            remembered: false,
        };
        life.read_later(vec![answer], proposed);
        PendingReply::executing(ReplyFuture::new(&group, 0, ctx, true))
    }

    /// Registers interest in `keys`; see [`crate::Coordinator::watch`].
    ///
    /// # Errors
    /// `NoLeader` if no executor lives here, `Overloaded` when too much is watched.
    pub fn watch(&self, keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        match self.life.load().as_ref() {
            Some(life) => life.watches.register(keys),
            None => Err(self.no_leader()),
        }
    }

    /// Whether an executor has begun here. Local and cheap; proves nothing.
    pub fn is_leading(&self) -> bool {
        self.life.load().as_ref().is_some_and(|life| life.is_live())
    }

    /// Follows [`Shard::is_leading`]: when it turns true, commands are evaluated here.
    pub fn leading_changes(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Commands that wait for evaluation.
    pub fn queue_depth(&self) -> usize {
        self.life
            .load()
            .as_ref()
            .map_or(0, |life| life.queue.depth())
    }

    /// Reads that wait for a proof of leadership.
    pub fn pending_reads(&self) -> usize {
        self.life
            .load()
            .as_ref()
            .map_or(0, |life| life.pending_reads())
    }

    /// Keys that are watched.
    pub fn watched(&self) -> usize {
        self.life
            .load()
            .as_ref()
            .map_or(0, |life| life.watches.len())
    }

    /// Ends the executor and every task of the shard; returns once they are gone, at the latest at
    /// the end of `ctx`. Commands that were not evaluated are not applied; the fate of those that
    /// were proposed is unknown.
    pub async fn shutdown(&self, ctx: &Context) {
        self.stop.cancel();
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!(group = %self.group(), "a shard's executor outlives its shutdown");
        }
        for life in self.state.lives() {
            life.state_replaced(None);
        }
    }

    fn no_leader(&self) -> KvError {
        let leader = match self.engine.leadership() {
            Leadership::Leader(leader) | Leadership::Follower { leader } => Some(leader.node),
            Leadership::Unknown => None,
        };
        KvError::NoLeader { leader }
    }

    /// Starts and ends executors as leadership comes and goes.
    async fn follow(self: Arc<Self>) {
        let mut changes = self.engine.leadership_changes();
        let mut pause = FIRST_PAUSE;
        loop {
            let leadership = *changes.borrow_and_update();
            let changed = async { changes.wait_for(|now| *now != leadership).await.is_ok() };
            let goes_on = match leadership {
                Leadership::Leader(leader) => {
                    let life = self.start(leader);
                    let goes_on = tokio::select! {
                        () = self.stop.cancelled() => false,
                        changed = changed => changed,
                        () = life.ended.cancelled() => true,
                    };
                    if life.proposed() > 0 {
                        pause = FIRST_PAUSE;
                    }
                    self.end(&life);
                    goes_on
                }
                Leadership::Follower { .. } | Leadership::Unknown => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        () = self.stop.cancelled() => false,
                        changed = changed => changed,
                    }
                }
            };
            if !goes_on {
                return;
            }
            if matches!(*changes.borrow(), Leadership::Leader(now) if leadership == Leadership::Leader(now))
            {
                // The executor died and its leadership did not: not at once again.
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            }
        }
    }

    /// Begins a new life under `leader`.
    fn start(&self, leader: LeaderId) -> Arc<Life> {
        let incarnation = Incarnation(rand::random());
        let (config, metrics) = (&self.parts.config, &self.parts.metrics);
        let leading = self.leading.clone();
        let life = Arc::new(Life::new(incarnation, leader, config, metrics, leading));
        metrics.lives.inc();
        self.state.register(&life);
        self.life.store(Some(Arc::clone(&life)));
        self.tasks
            .spawn(prove(Arc::clone(&self.engine), Arc::clone(&life)));

        let executor = Executor {
            engine: Arc::clone(&self.engine),
            state: Arc::clone(&self.state),
            life: Arc::clone(&life),
            parts: self.parts.clone(),
            owned: self.owned.clone(),
        };
        executor.begin();
        let job = ExecutorJob::new(executor, self.tasks.token());
        life.queue.set_job(self.parts.pool.add(Box::new(job)));
        life
    }

    fn end(&self, life: &Arc<Life>) {
        life.kill();
        if self.stop.is_cancelled() {
            life.abandon_proposals();
        }
        self.life.store(None);
    }
}

/// Whether a reply needs no proof of leadership; see [`TransactionOperation::is_rechecked`].
fn is_rechecked(operation: &dyn Operation) -> bool {
    operation
        .transaction()
        .is_some_and(TransactionOperation::is_rechecked)
}

/// Has the reads of one life proved, a round for all that wait.
async fn prove<E: Engine>(engine: Arc<E>, life: Arc<Life>) {
    loop {
        tokio::select! {
            () = life.ended.cancelled() => return,
            () = life.prove.notified() => {}
        }
        while let Some(place) = life.unproven() {
            // Shared by all who wait, so under a context of its own.
            let ctx = Context::with_timeout(ROUND);
            let round = tokio::select! {
                () = life.ended.cancelled() => return,
                round = engine.verify_leader(&ctx) => round,
            };
            match round {
                Ok(proof) if proof.leader == life.leader => life.proved(place),
                // Another leadership: this life's reads cannot be proved any more.
                Ok(_) => return life.kill(),
                // No majority answered yet: those whose deadline is later wait for the next round.
                Err(RaftError::NotApplied(_)) => {}
                Err(error) => life.not_proved(place, &KvError::from(error)),
            }
        }
    }
}

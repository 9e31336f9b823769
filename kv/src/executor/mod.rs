//! The shard executor: evaluates each command once, at the leader, and replicates its effects.

#[allow(dead_code, reason = "used by the executor, which follows")]
mod reply;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leadline_raft::engine::{Engine, Leadership};
use leadline_raft::{Context, GroupId};

pub(crate) use reply::ReplyFuture;
use reply::{ReplyGroup, Responder};

use crate::hlc::Hlc;
use crate::state_machine::ShardState;
use crate::{Access, KeyWatch, KvError, Operation, PendingReply, RequestId};

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
    /// Batches that may be proposed and not yet applied.
    pub in_flight: usize,
    /// How long one proposal, or one round that proves leadership, may take.
    pub batch_deadline: Duration,
    /// Remembered replies per session.
    pub remembered: usize,
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
            command_bytes: 16 << 20,
            in_flight: 8,
            batch_deadline: leadline_raft::FALLBACK_DEADLINE,
            remembered: 1024,
            sweep_busy: Duration::from_millis(100),
            sweep_idle: Duration::from_secs(1),
        }
    }
}

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
    pub sweeps: Arc<[Arc<dyn Sweep>]>,
}

/// One replica's side of a shard: lives as long as the replica, and runs an executor while its node
/// leads the group.
pub struct Shard<E: Engine> {
    engine: Arc<E>,
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
        let _ = (state, owned, parts);
        Arc::new(Self { engine })
    }

    pub fn group(&self) -> GroupId {
        self.engine.group()
    }

    /// Submits one command; never blocks. See [`Shard::submit_many`].
    pub fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply {
        let read = submission.operation.access() == Access::Read;
        let group = ReplyGroup::new(1);
        Responder::new(&group, 0).send(Err(self.no_leader()));
        PendingReply::executing(ReplyFuture::new(&group, 0, ctx, read))
    }

    /// Submits commands in order; never blocks. The replies come in the same order and resolve by
    /// the deadline of `ctx`; those that come together wake their reader once.
    ///
    /// A reply is an error of `NoLeader` if no executor lives here, `Overloaded` if its queue is
    /// full.
    pub fn submit_many(&self, ctx: &Context, submissions: Vec<Submission>) -> Vec<PendingReply> {
        submissions
            .into_iter()
            .map(|submission| self.submit(ctx, submission))
            .collect()
    }

    /// Registers interest in `keys`; see [`crate::Coordinator::watch`].
    ///
    /// # Errors
    /// `NoLeader` if no executor lives here.
    pub fn watch(&self, keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        let _ = keys;
        Err(self.no_leader())
    }

    /// Whether an executor has begun here. Local and cheap; proves nothing.
    pub fn is_leading(&self) -> bool {
        false
    }

    /// Commands that wait for evaluation.
    pub fn queue_depth(&self) -> usize {
        0
    }

    /// Ends the executor and every task of the shard; returns once they are gone, at the latest at
    /// the end of `ctx`.
    pub async fn shutdown(&self, ctx: &Context) {
        let _ = ctx;
    }

    fn no_leader(&self) -> KvError {
        let leader = match self.engine.leadership() {
            Leadership::Leader(leader) | Leadership::Follower { leader } => Some(leader.node),
            Leadership::Unknown => None,
        };
        KvError::NoLeader { leader }
    }
}

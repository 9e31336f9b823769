//! The coordinator as adapters see it: their only way in.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use leadline_raft::engine::ReadIndex;
use leadline_raft::{Context, GroupId, NodeId};
use tokio::sync::oneshot;

use crate::executor::ReplyFuture;
use crate::{KvError, Operation, RequestId};

/// Takes requests, finds the shard, and sees to it that each ends by its deadline.
///
/// Every method takes the caller's context. A fan-out collects every result; a failing sibling
/// does not cancel the others.
pub trait Coordinator: Send + Sync + 'static {
    /// Begins `operation` and returns its reply to come. Two operations on one key, submitted in
    /// order by one caller, are evaluated in that order, so a pipeline is a run of calls. Never
    /// blocks; a read that can be answered now is. The reply ends by the deadline of `ctx`.
    ///
    /// Dropping the reply gives it up; the operation may still take effect.
    fn submit(&self, ctx: &Context, operation: Arc<dyn Operation>) -> PendingReply;

    /// As [`Coordinator::submit`], at most once for `id`: sent again after an unknown outcome, it
    /// gets the reply of the first time.
    fn submit_once(
        &self,
        ctx: &Context,
        id: RequestId,
        operation: Arc<dyn Operation>,
    ) -> PendingReply;

    /// A request id of this coordinator's session, never given twice.
    fn next_request_id(&self) -> RequestId;

    /// Registers interest in `keys` (row key prefixes of one shard) with the shard's leader. What
    /// [`crate::Rows::wake`]s one of them after the registration wakes the watch; so does the end of
    /// the executor that held it, and then the caller registers again.
    fn watch<'a>(
        &'a self,
        ctx: &'a Context,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<KeyWatch, KvError>>;

    /// Proves that this node leads `group` now.
    fn verify_leader<'a>(
        &'a self,
        ctx: &'a Context,
        group: GroupId,
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>>;

    /// Proves that this node leads the shard that owns the row key `key` now.
    fn verify_leader_for_key<'a>(
        &'a self,
        ctx: &'a Context,
        key: &'a [u8],
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>>;

    /// The node that led `group` when last heard of, for hints. Local and cheap.
    fn known_leader(&self, group: GroupId) -> Option<NodeId>;
}

/// A reply to come. A future; resolves by the deadline of the context it was begun with.
#[derive(Debug)]
pub struct PendingReply(Pending);

enum Pending {
    Ready(Option<Result<Bytes, KvError>>),
    Waiting(oneshot::Receiver<Result<Bytes, KvError>>),
    Executing(ReplyFuture),
    Running(BoxFuture<'static, Result<Bytes, KvError>>),
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Waiting(_) => "Waiting",
            Self::Executing(_) => "Executing",
            Self::Running(_) => "Running",
        })
    }
}

impl PendingReply {
    /// A reply that is already there.
    #[must_use]
    pub fn ready(reply: Result<Bytes, KvError>) -> Self {
        Self(Pending::Ready(Some(reply)))
    }

    /// A reply that someone else sends. A sender dropped unsent means: outcome unknown.
    #[must_use]
    pub fn waiting(receiver: oneshot::Receiver<Result<Bytes, KvError>>) -> Self {
        Self(Pending::Waiting(receiver))
    }

    /// A reply that the executor of a local shard leaves.
    pub(crate) fn executing(future: ReplyFuture) -> Self {
        Self(Pending::Executing(future))
    }

    /// A reply that `future` makes; it must end by its context's deadline.
    #[must_use]
    pub fn running(future: BoxFuture<'static, Result<Bytes, KvError>>) -> Self {
        Self(Pending::Running(future))
    }

    /// The reply, if it was there at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Pending::Ready(reply) => reply.is_some(),
            Pending::Executing(future) => future.is_ready(),
            Pending::Waiting(_) | Pending::Running(_) => false,
        }
    }
}

impl Future for PendingReply {
    type Output = Result<Bytes, KvError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Pending::Ready(reply) => Poll::Ready(
                reply
                    .take()
                    .unwrap_or(Err(KvError::Unknown("the reply was taken already"))),
            ),
            Pending::Waiting(receiver) => Pin::new(receiver).poll(task).map(|received| {
                received.unwrap_or(Err(KvError::Unknown(
                    "the shard stopped before it answered",
                )))
            }),
            Pending::Executing(future) => Pin::new(future).poll(task),
            Pending::Running(future) => future.as_mut().poll(task),
        }
    }
}

/// Registered interest in some keys. Dropping it takes the registration back.
#[derive(Debug)]
pub struct KeyWatch {
    woken: oneshot::Receiver<()>,
}

impl KeyWatch {
    /// A watch, and the sender that wakes it; a sender dropped unsent wakes it too.
    #[must_use]
    pub fn new() -> (oneshot::Sender<()>, Self) {
        let (wake, woken) = oneshot::channel();
        (wake, Self { woken })
    }

    /// Waits until a watched key may have changed. May wake without cause. Cancel safe.
    pub async fn woken(&mut self) {
        if (&mut self.woken).await.is_err() {
            tracing::trace!("the executor that held a watch has ended");
        }
    }
}

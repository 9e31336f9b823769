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

use super::PendingReply;
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

    /// `id` will not be sent again: shards may forget its reply. To be called once for each id.
    fn finish_request_id(&self, id: RequestId) {
        let _ = id;
    }

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

/// Registered interest in some keys. Dropping it takes the registration back.
pub struct KeyWatch {
    woken: oneshot::Receiver<()>,
    /// Takes the registration back elsewhere when it is dropped.
    _registration: Option<Box<dyn Send + Sync>>,
}

impl KeyWatch {
    /// A watch, and the sender that wakes it; a sender dropped unsent wakes it too.
    #[must_use]
    pub fn new() -> (oneshot::Sender<()>, Self) {
        let (wake, woken) = oneshot::channel();
        let watch = Self {
            woken,
            _registration: None,
        };
        (wake, watch)
    }

    /// The same, with what to drop along with it.
    #[must_use]
    pub(crate) fn registered(self, registration: impl Send + Sync + 'static) -> Self {
        Self {
            _registration: Some(Box::new(registration)),
            ..self
        }
    }

    /// Waits until a watched key may have changed. May wake without cause. Cancel safe.
    pub async fn woken(&mut self) {
        std::future::poll_fn(|task| self.poll_woken(task)).await;
    }

    /// As [`KeyWatch::woken`], for hand-written futures.
    pub(crate) fn poll_woken(&mut self, task: &mut TaskContext<'_>) -> Poll<()> {
        // A sender dropped unsent means that the executor has ended, which wakes too.
        Pin::new(&mut self.woken).poll(task).map(drop)
    }
}

impl std::fmt::Debug for KeyWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyWatch").finish_non_exhaustive()
    }
}

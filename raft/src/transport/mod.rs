//! How nodes talk: one long-lived stream per peer and traffic class, shared by all groups.

use futures::future::BoxFuture;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::engine::SnapshotSink;
use crate::types::{Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::{Context, GroupId};

/// Why a node did not answer a peer's request. The peer backs off and tries again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// What peers ask of this node. The node implements it; the transport calls it.
///
/// Calls for one group come in the order in which the peer sent them: whatever must keep that order
/// happens before a future first waits.
pub(crate) trait Inbound: Send + Sync + 'static {
    fn append(
        &self,
        ctx: &Context,
        group: GroupId,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, Refused>>;

    fn vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>>;

    fn pre_vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>>;

    fn transfer_leader(
        &self,
        ctx: &Context,
        group: GroupId,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, Refused>>;

    /// Begins to receive a snapshot for `group`. Each chunk is written on a thread that may block.
    fn begin_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        meta: &SnapshotMeta,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Refused>>;

    /// Installs a snapshot received whole (`Raft::install_full_snapshot`).
    fn install_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse<TypeConfig>, Refused>>;
}

//! The cluster service from outside: for a node that joins, and for the command line.

use bytes::Bytes;
use leadline_raft::grpc;
use leadline_raft::tls::PeerTls;
use leadline_raft::{Context, GroupId, NodeId};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::catalog::{Addresses, Catalog, FORMAT, MemberState};
use crate::node::ClusterOverview;
use crate::wire::{self, cluster_client};

/// Asks one node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterClient {
    inner: cluster_client::ClusterClient<Channel>,
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The address is not one.
    #[error("{0}")]
    Address(String),
    /// Nobody answered there.
    #[error("no answer from {address}: {why}")]
    Unreachable { address: String, why: String },
    /// Who answered there broke the connection off, or does not speak gRPC: perhaps another port of
    /// a node, or one of two that do not agree about TLS.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It was refused, and asking again will not help.
    #[error("{0}")]
    Refused(String),
    /// It was not done in time, or it is not known whether it was.
    #[error("{0}")]
    Unfinished(String),
}

impl ClusterClient {
    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            inner: cluster_client::ClusterClient::new(channel),
        }
    }

    /// Connects to the node at `address` (`host:port`).
    ///
    /// # Errors
    /// `Address`, `Unreachable`.
    pub async fn connect(
        ctx: &Context,
        address: &str,
        tls: Option<&PeerTls>,
    ) -> Result<Self, ClusterError> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let invalid = |error: tonic::transport::Error| {
            ClusterError::Address(format!("{address} is not HOST:PORT: {error}"))
        };
        let mut endpoint =
            Endpoint::from_shared(format!("{scheme}://{address}")).map_err(invalid)?;
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.client()).map_err(invalid)?;
        }
        let unreachable = |why: String| ClusterError::Unreachable {
            address: address.to_owned(),
            why,
        };
        match ctx.run(endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(Self::over(channel)),
            Ok(Err(error)) => Err(unreachable(innermost(&error))),
            Err(ended) => Err(unreachable(ended.to_string())),
        }
    }

    /// Asks for a place in the cluster: the node's id (`wanted`, or the next
    /// free one), and the catalog.
    ///
    /// # Errors
    /// `Refused` says why; else try another seed.
    pub async fn join(
        &mut self,
        ctx: &Context,
        addresses: &Addresses,
        join_nonce: Bytes,
        wanted: Option<NodeId>,
    ) -> Result<(NodeId, Catalog), ClusterError> {
        let request = wire::JoinRequest {
            format: FORMAT,
            addresses: Some(addresses.to_wire()),
            join_nonce,
            cluster: 0,
            wanted: wanted.map_or(0, |node| node.0),
        };
        let reply = self.inner.join(grpc::request(ctx, request)).await?;
        let reply = reply.into_inner();
        let catalog = Catalog::from_wire(reply.catalog.unwrap_or_default())
            .map_err(|error| ClusterError::Refused(error.to_string()))?;
        Ok((NodeId(reply.node), catalog))
    }

    /// The catalog, as fresh as the asked node could make it.
    pub(crate) async fn catalog(&mut self, ctx: &Context) -> Result<Option<Catalog>, ClusterError> {
        let request = grpc::request(ctx, wire::GetCatalogRequest {});
        let reply = self.inner.get_catalog(request).await?.into_inner();
        let catalog = reply.catalog.map(Catalog::from_wire).transpose();
        catalog.map_err(|error| ClusterError::Refused(error.to_string()))
    }

    /// The cluster as the asked node could collect it.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn overview(&mut self, ctx: &Context) -> Result<ClusterOverview, ClusterError> {
        let request = grpc::request(ctx, wire::OverviewRequest {});
        let reply = self.inner.overview(request).await?.into_inner();
        serde_json::from_str(&reply.json)
            .map_err(|error| ClusterError::Refused(format!("not an overview: {error}")))
    }

    /// What the asked node knows of itself, as JSON.
    pub(crate) async fn node_status(&mut self, ctx: &Context) -> Result<String, ClusterError> {
        let request = grpc::request(ctx, wire::NodeStatusRequest {});
        Ok(self.inner.node_status(request).await?.into_inner().status)
    }

    /// Removes `node` for good; returns the groups that still have a replica on it when `ctx`
    /// ends: the cluster goes on with them by itself while a quorum lives.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn remove(
        &mut self,
        ctx: &Context,
        node: NodeId,
    ) -> Result<Vec<GroupId>, ClusterError> {
        self.set_state(ctx, node, MemberState::Removed).await
    }

    /// Moves every leadership off `node` and keeps them away; returns the groups it still leads
    /// when `ctx` ends.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn drain(
        &mut self,
        ctx: &Context,
        node: NodeId,
    ) -> Result<Vec<GroupId>, ClusterError> {
        self.set_state(ctx, node, MemberState::Draining).await
    }

    /// Ends a drain: `node` may lead again.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn undrain(&mut self, ctx: &Context, node: NodeId) -> Result<(), ClusterError> {
        self.set_state(ctx, node, MemberState::Up).await.map(drop)
    }

    async fn set_state(
        &mut self,
        ctx: &Context,
        node: NodeId,
        state: MemberState,
    ) -> Result<Vec<GroupId>, ClusterError> {
        let request = wire::SetMemberStateRequest {
            node: node.0,
            state: state.to_wire().into(),
        };
        let reply = self.inner.set_member_state(grpc::request(ctx, request));
        let pending = reply.await?.into_inner().pending_groups;
        Ok(pending.into_iter().map(GroupId).collect())
    }

    /// Moves the leadership of `group` to `to`, or to its best voter. False: `to` had it already.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn transfer_leader(
        &mut self,
        ctx: &Context,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<bool, ClusterError> {
        let request = wire::TransferLeaderRequest {
            group: Some(group.0),
            to: to.map_or(0, |node| node.0),
            from: 0,
        };
        let request = grpc::request(ctx, request);
        let reply = self.inner.transfer_leader(request).await?;
        Ok(reply.into_inner().moved > 0)
    }

    /// Moves every leadership off `from`, once, to `to` or each to its best voter; returns how many
    /// moved.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn transfer_all(
        &mut self,
        ctx: &Context,
        from: NodeId,
        to: Option<NodeId>,
    ) -> Result<u32, ClusterError> {
        let request = wire::TransferLeaderRequest {
            group: None,
            to: to.map_or(0, |node| node.0),
            from: from.0,
        };
        let request = grpc::request(ctx, request);
        Ok(self
            .inner
            .transfer_leader(request)
            .await?
            .into_inner()
            .moved)
    }

    /// Asks a group's leader for a change of membership, or for the members as they are.
    pub(crate) async fn change_group(
        &mut self,
        ctx: &Context,
        request: wire::ChangeGroupRequest,
    ) -> Result<wire::ChangeGroupReply, ClusterError> {
        let request = grpc::request(ctx, request);
        Ok(self.inner.change_group(request).await?.into_inner())
    }
}

impl From<Status> for ClusterError {
    fn from(status: Status) -> Self {
        // A status that a node sent has no cause: this one was made here.
        if let Some(cause) = std::error::Error::source(&status) {
            return Self::Broken(innermost(cause));
        }
        let said = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::OutOfRange => Self::Refused(said),
            Code::DeadlineExceeded => Self::Unfinished(format!("not done in time: {said}")),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unfinished(said),
        }
    }
}

/// The cause that says most: tonic's own message is "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

//! What the parts of a node share: its groups, its catalog, its coordinator, its peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt};
use leadline_raft::engine::Status;
use leadline_raft::{ClusterId, Context, Group, GroupId, LogIndex, NodeId, RaftNode, grpc};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::overview::{NodeStatus, Readiness, collect};
use super::{ClusterOverview, MOST_LAG};
use crate::catalog::{Catalog, CatalogCopy, MemberState, MetaOperation, MetaReply};
use crate::cluster::ClusterClient;
use crate::cluster::{Learners, change_here};
use crate::proxy::{LeaderProxy, MOST_MESSAGE_BYTES, PeerTransport, ReplyStream};
use crate::wire::blobs_client::BlobsClient;
use crate::wire::change_group_request::Kind;
use crate::wire::forward_client::ForwardClient;
use crate::{Coordinator, KvError, ShardedCoordinator, wire};

/// Below this much free space on the data directory's disk a node is not ready.
const LEAST_FREE_BYTES: u64 = 64 << 20;

/// How long a replica has to say who the members of its group are, when others can be asked.
const ASK: Duration = Duration::from_secs(1);

/// What the parts of a node share.
pub(crate) struct Core {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) data_dir: PathBuf,
    pub(super) raft: Arc<RaftNode>,
    pub(super) catalog: Arc<CatalogCopy>,
    pub(super) coordinator: Arc<ShardedCoordinator>,
    pub(super) proxy: Arc<LeaderProxy>,
    pub(super) began: Instant,
    /// This node is about to stop.
    pub(super) stopping: AtomicBool,
    /// Groups that have not been seen applied up to their commit index since this node started.
    pub(super) replaying: Mutex<Option<Vec<GroupId>>>,
}

impl Core {
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub(crate) fn catalog(&self) -> Option<Arc<Catalog>> {
        self.catalog.current()
    }

    pub(crate) fn catalog_changes(&self) -> watch::Receiver<u64> {
        self.catalog.changes()
    }

    pub(crate) fn engine(&self, group: GroupId) -> Option<Arc<Group>> {
        self.raft.group(group)
    }

    pub(crate) fn known_leader(&self, group: GroupId) -> Option<NodeId> {
        self.coordinator.known_leader(group)
    }

    pub(crate) fn reachable(&self, node: NodeId) -> bool {
        node == self.node || self.proxy.reachable(node)
    }

    /// Runs a meta operation, wherever the meta group's leader is.
    pub(crate) async fn meta(
        &self,
        ctx: &Context,
        operation: MetaOperation,
    ) -> Result<MetaReply, KvError> {
        let reply = self.coordinator.submit(ctx, Arc::new(operation)).await?;
        MetaReply::decode(&reply).map_err(|error| KvError::Storage(error.to_string()))
    }

    async fn peer(&self, ctx: &Context, node: NodeId) -> Result<ClusterClient, String> {
        let channel = self.raft.channel(ctx, node).await;
        Ok(ClusterClient::over(
            channel.map_err(|error| error.to_string())?,
        ))
    }

    /// Changes a group's membership at its leader, wherever that is.
    pub(crate) async fn change_group(
        &self,
        ctx: &Context,
        request: wire::ChangeGroupRequest,
    ) -> Result<wire::ChangeGroupReply, String> {
        let group = GroupId(request.group);
        let heard = self.known_leader(group);
        let why = match heard {
            Some(leader) => match self.change_group_at(ctx, leader, request.clone()).await {
                Err(why) => why,
                done => return done,
            },
            None => "nobody is known to lead the group".to_owned(),
        };
        match self.members(ctx, group).await {
            Ok((leader, _)) if Some(leader) != heard => {
                self.change_group_at(ctx, leader, request).await
            }
            Ok(_) | Err(_) => Err(why),
        }
    }

    async fn change_group_at(
        &self,
        ctx: &Context,
        leader: NodeId,
        request: wire::ChangeGroupRequest,
    ) -> Result<wire::ChangeGroupReply, String> {
        let group = GroupId(request.group);
        if leader == self.node {
            let engine = self
                .engine(group)
                .ok_or_else(|| "the group has left this node".to_owned())?;
            return change_here(ctx, &*engine, self, request)
                .await
                .map_err(|error| error.to_string());
        }
        let mut peer = self.peer(ctx, leader).await?;
        peer.change_group(ctx, request)
            .await
            .map_err(|error| error.to_string())
    }

    /// The members of `group` as its leader knows them, and who that is. Who was last heard to lead
    /// is asked first, and then every replica: of a group that has none here, and that nobody reaches
    /// by way of this node, nothing is heard.
    pub(crate) async fn members(
        &self,
        ctx: &Context,
        group: GroupId,
    ) -> Result<(NodeId, Vec<wire::GroupMember>), String> {
        let heard = self.known_leader(group);
        let mut replicas = self
            .catalog()
            .map_or_else(Vec::new, |catalog| catalog.replicas(group).to_vec());
        // In any order, so that one that does not answer is not always the first.
        replicas.shuffle(&mut rand::rng());
        let others = replicas.into_iter().filter(|&node| Some(node) != heard);
        let mut why = "no replica of the group can be reached".to_owned();
        for node in heard.into_iter().chain(others) {
            if !self.reachable(node) {
                continue;
            }
            let list = wire::ChangeGroupRequest {
                group: group.0,
                kind: Kind::List.into(),
                ..wire::ChangeGroupRequest::default()
            };
            let asked = ctx.child(ASK);
            let reply = asked.run(self.change_group_at(&asked, node, list)).await;
            match reply.unwrap_or_else(|ended| Err(ended.to_string())) {
                Ok(reply) => {
                    self.coordinator.heard_of(group, node);
                    return Ok((node, reply.members));
                }
                Err(refused) => why = refused,
            }
            if let Some(ended) = ctx.ended() {
                return Err(ended.to_string());
            }
        }
        Err(why)
    }

    /// Whether this node is a member of `group`, as its leader knows it.
    pub(super) async fn is_member(&self, ctx: &Context, group: GroupId) -> Result<bool, String> {
        let (_, members) = self.members(ctx, group).await?;
        Ok(members.iter().any(|member| member.node == self.node.0))
    }

    /// What this node knows of itself.
    pub(crate) fn status(&self) -> NodeStatus {
        NodeStatus {
            node: self.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.began.elapsed().as_secs(),
            readiness: self.readiness(),
            groups: self
                .raft
                .groups()
                .iter()
                .map(|group| group.status())
                .collect(),
        }
    }

    pub(super) fn draining(&self) -> bool {
        let by_catalog = || {
            let catalog = self.catalog.current()?;
            let member = catalog.members().get(&self.node)?;
            Some(member.state == MemberState::Draining)
        };
        self.stopping.load(Ordering::Relaxed) || by_catalog().unwrap_or(false)
    }

    /// Whether this node may be sent requests. Local and cheap.
    pub(super) fn readiness(&self) -> Readiness {
        let groups: Vec<_> = self
            .raft
            .groups()
            .iter()
            .map(|group| group.status())
            .collect();
        let behind = |status: &leadline_raft::engine::GroupStatus| {
            status.commit_index.0.saturating_sub(status.last_applied.0)
        };
        let lag = groups.iter().map(behind).max().unwrap_or(0);
        let mut reasons = Vec::new();
        let draining = self.draining();
        if draining {
            reasons.push("draining".to_owned());
        }
        match self.catalog.current() {
            None => reasons.push("no catalog yet".to_owned()),
            Some(catalog) => {
                let member = catalog.members().get(&self.node);
                if member.is_none_or(|member| member.state == MemberState::Removed) {
                    reasons.push("removed from the cluster".to_owned());
                }
            }
        }
        {
            let mut replaying = self.replaying.lock();
            if let Some(left) = replaying.as_mut() {
                left.retain(|group| {
                    groups
                        .iter()
                        .find(|status| status.group == *group)
                        .is_some_and(|status| status.leader.is_none() || behind(status) > 0)
                });
                if left.is_empty() {
                    *replaying = None;
                } else {
                    reasons.push(format!("replaying the log of {} groups", left.len()));
                }
            }
        }
        if lag > MOST_LAG {
            reasons.push(format!("{lag} entries behind"));
        }
        let stopped = groups.iter().filter(|status| status.stopped.is_some());
        for status in stopped {
            reasons.push(format!("group {} has stopped", status.group));
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.data_dir) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < LEAST_FREE_BYTES {
                reasons.push(format!("{} MiB left on the disk", free >> 20));
            }
        }
        Readiness {
            ready: reasons.is_empty(),
            reasons,
            lag,
            draining,
        }
    }

    /// Asks every node, and says what could not be learned.
    pub(crate) async fn overview(&self, ctx: &Context) -> ClusterOverview {
        let catalog = self.catalog.current();
        let members: Vec<NodeId> = catalog
            .iter()
            .flat_map(|catalog| catalog.present())
            .map(|(node, _)| node)
            .collect();
        let asked = members.into_iter().map(|node| async move {
            let said = if node == self.node {
                Ok(self.status())
            } else {
                self.ask(ctx, node).await
            };
            (node, said)
        });
        let answers = join_all(asked).await.into_iter().collect();
        collect(self.node, self.cluster, catalog.as_deref(), answers)
    }

    async fn ask(&self, ctx: &Context, node: NodeId) -> Result<NodeStatus, String> {
        let asked = async {
            let mut peer = self.peer(ctx, node).await?;
            let json = peer
                .node_status(ctx)
                .await
                .map_err(|error| error.to_string())?;
            serde_json::from_str(&json).map_err(|error| error.to_string())
        };
        ctx.run(asked)
            .await
            .unwrap_or_else(|ended| Err(ended.to_string()))
    }
}

impl Learners for Core {
    async fn lacking(
        &self,
        ctx: &Context,
        node: NodeId,
        group: GroupId,
        applied: LogIndex,
    ) -> Result<u64, String> {
        let request = wire::LackingChunksRequest {
            cluster: self.cluster.0,
            group: group.0,
            applied: applied.0,
        };
        let asked = async {
            let channel = self.raft.channel(ctx, node).await;
            let mut peer = BlobsClient::new(channel.map_err(|error| error.to_string())?);
            let reply = peer.lacking_chunks(grpc::request(ctx, request)).await;
            let reply = reply.map_err(|status| status.message().to_owned())?;
            Ok(reply.into_inner().lacking)
        };
        ctx.run(asked)
            .await
            .unwrap_or_else(|ended| Err(ended.to_string()))
    }
}

/// Streams to peers over the connections that consensus keeps.
pub(super) struct Streams(pub(super) Arc<RaftNode>);

impl PeerTransport for Streams {
    fn exchange(
        &self,
        ctx: Context,
        node: NodeId,
        outgoing: mpsc::Receiver<wire::ForwardRequests>,
    ) -> BoxFuture<'static, Result<ReplyStream, String>> {
        let raft = Arc::clone(&self.0);
        async move {
            let channel = raft
                .channel(&ctx, node)
                .await
                .map_err(|error| error.to_string())?;
            let mut client = ForwardClient::new(channel)
                .max_decoding_message_size(MOST_MESSAGE_BYTES)
                .max_encoding_message_size(MOST_MESSAGE_BYTES);
            // No grpc-timeout: the stream lives as long as both nodes do.
            let replies = client
                .exchange(ReceiverStream::new(outgoing))
                .await
                .map_err(|status| status.message().to_owned())?
                .into_inner();
            let replies = replies.map(|reply| reply.map_err(|status| status.message().to_owned()));
            Ok(replies.boxed() as ReplyStream)
        }
        .boxed()
    }
}

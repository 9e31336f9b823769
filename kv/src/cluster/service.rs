//! The cluster service: what new nodes, the command line and the controller ask of a node.

use std::sync::Arc;
use std::time::Duration;

use leadline_raft::engine::{Engine, Leadership, Role};
use leadline_raft::{Context, GroupId, LogIndex, NodeId, RaftError, grpc};
use tonic::{Request, Response, Status};

use super::controller::look;
use crate::catalog::{Addresses, FORMAT, MemberState, MetaOperation, MetaReply};
use crate::node::Core;
use crate::wire::change_group_request::Kind;
use crate::wire::{self, cluster_server::Cluster};
use crate::{KvError, Outcome};

/// What is kept of a request's time for its answer.
const ANSWER: Duration = Duration::from_millis(200);
/// How often a change that others carry out is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a learner has to say what it lacks. It is asked again by the controller's next tick.
const ASK: Duration = Duration::from_secs(2);

/// Serves the cluster service of one node.
#[derive(Clone)]
pub(crate) struct ClusterService {
    core: Arc<Core>,
}

impl ClusterService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn change(&self, ctx: &Context, change: MetaOperation) -> Result<MetaReply, Status> {
        // Ends before the caller does, so that he hears why.
        let asked = ctx.child(ctx.remaining().saturating_sub(ANSWER));
        let reply = self
            .core
            .meta(&asked, change)
            .await
            .map_err(|error| status_of(&error))?;
        match reply.refused {
            Some(why) => Err(Status::failed_precondition(why)),
            None => Ok(reply),
        }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        if request.format < FORMAT {
            return Err(Status::failed_precondition(format!(
                "this cluster has format {FORMAT}, and the new node reads up to {}: use the \
                 cluster's version of leadline",
                request.format
            )));
        }
        if request.cluster != 0 && request.cluster != self.core.cluster().0 {
            return Err(Status::failed_precondition(format!(
                "the new node's data directory belongs to cluster {:x}, this is cluster {:x}: \
                 start it with an empty --data-dir",
                request.cluster,
                self.core.cluster().0
            )));
        }
        let addresses = Addresses::from_wire(request.addresses.unwrap_or_default());
        let add = MetaOperation::add_member(
            &addresses,
            request.join_nonce,
            (request.wanted > 0).then_some(NodeId(request.wanted)),
        );
        let reply = self.change(&ctx, add).await?;
        let (Some(node), Some(catalog)) = (reply.node, reply.catalog) else {
            return Err(Status::internal("the catalog gave no id"));
        };
        tracing::info!(%node, address = addresses.grpc, "a node joins");
        Ok(Response::new(wire::JoinReply {
            node: node.0,
            catalog: Some(catalog.to_wire()),
        }))
    }

    async fn get_catalog(
        &self,
        request: Request<wire::GetCatalogRequest>,
    ) -> Result<Response<wire::GetCatalogReply>, Status> {
        let ctx = grpc::context(&request);
        let asked = ctx.child(ctx.remaining().saturating_sub(ANSWER));
        let (catalog, linearizable) = match self.core.meta(&asked, MetaOperation::read()).await {
            Ok(reply) => (reply.catalog.map(|catalog| catalog.to_wire()), true),
            Err(_) => (self.core.catalog().map(|catalog| catalog.to_wire()), false),
        };
        Ok(Response::new(wire::GetCatalogReply {
            catalog,
            linearizable,
        }))
    }

    async fn node_status(
        &self,
        _request: Request<wire::NodeStatusRequest>,
    ) -> Result<Response<wire::NodeStatusReply>, Status> {
        let status = serde_json::to_string(&self.core.status())
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::NodeStatusReply {
            node: self.core.node().0,
            status,
        }))
    }

    async fn overview(
        &self,
        request: Request<wire::OverviewRequest>,
    ) -> Result<Response<wire::OverviewReply>, Status> {
        let ctx = grpc::context(&request);
        let asked = ctx.child(ctx.remaining().saturating_sub(ANSWER));
        let overview = self.core.overview(&asked).await;
        let json = serde_json::to_string(&overview)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::OverviewReply { json }))
    }

    async fn set_member_state(
        &self,
        request: Request<wire::SetMemberStateRequest>,
    ) -> Result<Response<wire::SetMemberStateReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        let node = NodeId(request.node);
        let state = match MemberState::from_wire(request.state()) {
            Some(state @ (MemberState::Up | MemberState::Draining | MemberState::Removed)) => state,
            Some(MemberState::Joining) | None => {
                return Err(Status::invalid_argument("up, draining or removed"));
            }
        };
        self.change(&ctx, MetaOperation::set_member_state(node, state))
            .await?;
        let asked = ctx.child(ctx.remaining().saturating_sub(ANSWER));
        // The controller does the rest, wherever it is.
        let pending = loop {
            let pending = self.pending(&asked, node, state).await;
            if pending.is_empty() || asked.run(tokio::time::sleep(LOOK)).await.is_err() {
                break pending;
            }
        };
        Ok(Response::new(wire::SetMemberStateReply {
            pending_groups: pending.into_iter().map(|group| group.0).collect(),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        let to = (request.to != 0).then_some(NodeId(request.to));
        let Some(catalog) = self.core.catalog() else {
            return Err(Status::unavailable("the asked node has no catalog yet"));
        };
        let is_member = |node: NodeId| catalog.present().any(|(member, _)| member == node);
        let named = [
            (request.group.is_none()).then_some(NodeId(request.from)),
            to,
        ];
        if let Some(stranger) = named.into_iter().flatten().find(|&node| !is_member(node)) {
            return Err(Status::not_found(format!("there is no node {stranger}")));
        }
        let groups: Vec<GroupId> = match request.group.map(GroupId) {
            Some(group) if catalog.groups().any(|known| known == group) => vec![group],
            Some(group) => return Err(Status::not_found(format!("there is no group {group}"))),
            None => self.led_by(&ctx, NodeId(request.from)).await,
        };
        let mut moved = 0;
        for group in groups {
            match self.move_leadership(&ctx, group, to).await {
                Ok(true) => moved += 1,
                Ok(false) => {}
                Err(why) if moved == 0 => {
                    return Err(Status::aborted(format!("group {group}: {why}")));
                }
                Err(why) => {
                    return Err(Status::aborted(format!(
                        "group {group}: {why}; {moved} groups had moved by then"
                    )));
                }
            }
        }
        Ok(Response::new(wire::TransferLeaderReply { moved }))
    }

    async fn change_group(
        &self,
        request: Request<wire::ChangeGroupRequest>,
    ) -> Result<Response<wire::ChangeGroupReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        let engine = self
            .core
            .engine(GroupId(request.group))
            .ok_or_else(|| Status::not_found("this node does not host the group"))?;
        change_here(&ctx, &*engine, &*self.core, request)
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error.into()))
    }
}

impl ClusterService {
    /// Groups that still have on `node` what must not be there, or may have it.
    async fn pending(&self, ctx: &Context, node: NodeId, state: MemberState) -> Vec<GroupId> {
        let Some(catalog) = self.core.catalog() else {
            return Vec::new();
        };
        let has = |group: &GroupId| catalog.replicas(*group).contains(&node);
        match state {
            MemberState::Draining => {
                let seen = look(&self.core, ctx, &catalog).await;
                let leads = |group: &GroupId| seen.get(group).map(|seen| seen.leader == node);
                let groups = catalog.groups();
                groups
                    .filter(|group| leads(group).unwrap_or_else(|| has(group)))
                    .collect()
            }
            MemberState::Removed => catalog.groups().filter(has).collect(),
            MemberState::Up | MemberState::Joining => Vec::new(),
        }
    }

    /// Moves the leadership of `group` to `to`, or to its best voter. False: `to` has it already.
    async fn move_leadership(
        &self,
        ctx: &Context,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<bool, String> {
        if to.is_some()
            && to
                == self
                    .core
                    .members(ctx, group)
                    .await
                    .ok()
                    .map(|(leader, _)| leader)
        {
            return Ok(false);
        }
        let change = wire::ChangeGroupRequest {
            group: group.0,
            kind: Kind::Transfer.into(),
            node: to.map_or(0, |node| node.0),
            address: String::new(),
        };
        self.core.change_group(ctx, change).await.map(|_| true)
    }

    /// The groups that `node` leads, as far as that can be learned.
    async fn led_by(&self, ctx: &Context, node: NodeId) -> Vec<GroupId> {
        let Some(catalog) = self.core.catalog() else {
            return Vec::new();
        };
        let seen = look(&self.core, ctx, &catalog).await.into_iter();
        seen.filter(|(_, seen)| seen.leader == node)
            .map(|(group, _)| group)
            .collect()
    }
}

/// Asks a learner what it lacks.
pub(crate) trait Learners: Sync {
    /// How many chunks `node` lacks of those that `group`'s rows name, as of rows applied up to
    /// `applied` at least. It fetches them from then on.
    ///
    /// # Errors
    /// Why there is no answer.
    fn lacking(
        &self,
        ctx: &Context,
        node: NodeId,
        group: GroupId,
        applied: LogIndex,
    ) -> impl Future<Output = Result<u64, String>> + Send;
}

/// Carries out a change of membership at the group's leader.
pub(crate) async fn change_here<E: Engine>(
    ctx: &Context,
    engine: &E,
    learners: &impl Learners,
    request: wire::ChangeGroupRequest,
) -> Result<wire::ChangeGroupReply, RaftError> {
    let node = NodeId(request.node);
    let mut reply = wire::ChangeGroupReply::default();
    match request.kind() {
        Kind::AddLearner => engine.add_learner(ctx, node, request.address).await?,
        Kind::Promote => match held_back(ctx, engine, learners, node).await {
            None => engine.promote(ctx, node).await?,
            Some((why, lacking)) => (reply.held_back, reply.lacking_chunks) = (why, lacking),
        },
        Kind::Remove => engine.remove(ctx, node).await?,
        Kind::Transfer => {
            let to = (node.0 != 0).then_some(node);
            engine.transfer_leadership(ctx, to).await?;
        }
        Kind::List | Kind::Unspecified => {
            if !matches!(engine.leadership(), Leadership::Leader(_)) {
                return Err(RaftError::NotLeader { leader: None });
            }
        }
    }
    reply.members = engine
        .members()
        .into_iter()
        .map(|(node, member)| wire::GroupMember {
            node: node.0,
            address: member.address,
            voter: matches!(member.role, Role::Voter | Role::IncomingVoter),
            changing: matches!(member.role, Role::IncomingVoter | Role::OutgoingVoter),
        })
        .collect();
    Ok(reply)
}

/// Why `node` may not vote yet, and how many chunks it lacks: a voter counts as one that has the
/// chunks its rows name. What the answer is as of, this leader has committed itself; what is put
/// later is pushed to learners too.
async fn held_back<E: Engine>(
    ctx: &Context,
    engine: &E,
    learners: &impl Learners,
    node: NodeId,
) -> Option<(String, u64)> {
    let status = engine.status();
    let is_learner = engine
        .members()
        .get(&node)
        .is_some_and(|member| member.role == Role::Learner);
    // The catalog names no chunks. Whoever is no learner, or no leader, is refused in the usual way.
    if status.group == GroupId::META || !is_learner || !status.leading {
        return None;
    }
    let asked = ctx.child(ASK.min(ctx.remaining().saturating_sub(ANSWER)));
    match learners
        .lacking(&asked, node, status.group, status.commit_index)
        .await
    {
        Ok(0) => None,
        Ok(lacking) => Some((format!("node {node} lacks {lacking} chunks"), lacking)),
        Err(why) => Some((
            format!("node {node} did not say which chunks it lacks: {why}"),
            0,
        )),
    }
}

/// One code per meaning (design, section 6).
fn status_of(error: &KvError) -> Status {
    let said = error.to_string();
    match error {
        KvError::NoLeader { .. } | KvError::Stopping => Status::unavailable(said),
        KvError::Overloaded { .. } => Status::resource_exhausted(said),
        KvError::NotApplied(_) => Status::deadline_exceeded(said),
        KvError::Unknown(_) => {
            debug_assert_eq!(error.outcome(), Outcome::Unknown);
            Status::unknown(said)
        }
        KvError::CrossShard | KvError::Invalid(_) => Status::invalid_argument(said),
        KvError::Storage(_) => Status::internal(said),
    }
}

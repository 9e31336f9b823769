//! Changes of a group's members (Ongaro, chapter 4).
//!
//! A change of voters is proposed under the condition that this node still leads in the term in
//! which it fenced its proofs of leadership: see the invariants of [`super::proof`].

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError as OpenraftError};
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, RaftMetrics};
use tokio::time::Instant;

use crate::engine::{LeaderView, Leadership, Member, Membership, Role};
use crate::types::{LogId, Peer, TypeConfig};
use crate::{Context, LeaderId, NodeId, RaftError};

use super::group::{Group, forwarded, instant, members};

/// A learner this close to the leader's log has caught up.
const CAUGHT_UP: u64 = 128;

/// Between two looks at what has to become true.
const LOOK: Duration = Duration::from_millis(20);

type Changed = Result<
    ClientWriteResponse<TypeConfig>,
    OpenraftError<TypeConfig, ClientWriteError<TypeConfig>>,
>;

impl Group {
    fn leading(&self) -> Result<LeaderId, RaftError> {
        match self.leadership() {
            Leadership::Leader(leader) => Ok(leader),
            Leadership::Follower { leader } => Err(RaftError::NotLeader {
                leader: Some(leader.node),
            }),
            Leadership::Unknown => Err(RaftError::NotLeader { leader: None }),
        }
    }

    fn with_metrics<T>(
        &self,
        look: impl FnOnce(&RaftMetrics<TypeConfig>) -> T,
    ) -> Result<T, RaftError> {
        let raft = self.running()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        Ok(look(&metrics))
    }

    /// Proposes a change, again while another one is under way, until `ctx` ends.
    async fn change<F: Future<Output = Changed>>(
        &self,
        ctx: &Context,
        propose: impl Fn() -> F,
    ) -> Result<(), RaftError> {
        loop {
            let changed = ctx
                .run(propose())
                .await
                .map_err(|_| RaftError::OutcomeUnknown("the membership change went on"))?;
            let error = match changed {
                Ok(_) => return Ok(()),
                Err(OpenraftError::Fatal(fatal)) => {
                    return Err(RaftError::Stopped(fatal.to_string()));
                }
                Err(OpenraftError::APIError(error)) => error,
            };
            match error {
                ClientWriteError::ForwardToLeader(forward) => return Err(forwarded(&forward)),
                ClientWriteError::LogEntryDiscarded(_) => {
                    return Err(RaftError::OutcomeUnknown(
                        "another leader's log replaced it",
                    ));
                }
                ClientWriteError::PreconditionFailed(_) => {
                    return Err(RaftError::NotLeader { leader: None });
                }
                ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::UncommittedLeaderLog(_),
                ) => {
                    ctx.run(tokio::time::sleep(LOOK))
                        .await
                        .map_err(RaftError::NotApplied)?;
                }
                ClientWriteError::ChangeMembershipError(error) => {
                    return Err(RaftError::Refused(format!("membership refused: {error}")));
                }
            }
        }
    }

    async fn change_voters(
        &self,
        ctx: &Context,
        leader: LeaderId,
        change: ChangeMembers<u64, Peer>,
    ) -> Result<(), RaftError> {
        let raft = self.running()?;
        // Before anything is proposed: the proof must be gone when the change takes effect, which
        // it can in this term only.
        self.proofs.fence_sole(leader.term);
        self.change(ctx, || {
            let under = Precondition::CommittedLeaderId {
                committed_leader_id: leader.term.0.into(),
            };
            raft.change_membership_if(change.clone(), false, [under])
        })
        .await
    }

    /// Waits until the learner has nearly all of this leader's log.
    async fn caught_up(&self, ctx: &Context, node: NodeId) -> Result<(), RaftError> {
        loop {
            self.leading()?;
            let lag = self.with_metrics(|metrics| {
                let matched = metrics.replication.as_ref()?.get(&node.0)?.as_ref()?;
                let last = metrics.last_log_index.unwrap_or(0);
                Some(last.saturating_sub(LogId::index(matched)))
            })?;
            if lag.is_some_and(|lag| lag <= CAUGHT_UP) {
                return Ok(());
            }
            ctx.run(tokio::time::sleep(LOOK))
                .await
                .map_err(RaftError::NotApplied)?;
        }
    }

    /// The voter that has most of the log, of those heard of lately.
    fn successor(&self) -> Result<Option<NodeId>, RaftError> {
        let heard_since = Instant::now().checked_sub(self.settings.lease());
        self.with_metrics(|metrics| {
            let heard = |id: u64| {
                let acked = metrics.heartbeat.as_ref()?.get(&id)?.as_ref()?;
                let acked = instant(**acked);
                heard_since.is_none_or(|since| acked > since).then_some(())
            };
            metrics
                .membership_config
                .voter_ids()
                .filter(|id| *id != self.node.0 && heard(*id).is_some())
                .max_by_key(|id| {
                    let matched = metrics.replication.as_ref().and_then(|all| all.get(id));
                    matched.and_then(|m| m.as_ref()).map(LogId::index)
                })
                .map(NodeId)
        })
    }
}

impl Membership for Group {
    fn members(&self) -> BTreeMap<NodeId, Member> {
        self.with_metrics(members).unwrap_or_default()
    }

    async fn add_learner(
        &self,
        ctx: &Context,
        node: NodeId,
        address: String,
    ) -> Result<(), RaftError> {
        self.leading()?;
        if self.members().contains_key(&node) {
            return Ok(());
        }
        let raft = self.running()?;
        self.change(ctx, || {
            let peer = Peer {
                address: address.clone(),
            };
            raft.add_learner(node.0, peer, false)
        })
        .await
    }

    async fn promote(&self, ctx: &Context, node: NodeId) -> Result<(), RaftError> {
        let leader = self.leading()?;
        match self.members().get(&node).map(|member| member.role) {
            Some(Role::Voter) => return Ok(()),
            Some(Role::Learner) => self.caught_up(ctx, node).await?,
            // It counts as a voter already, and may be gone: the change is finished without it.
            Some(Role::IncomingVoter) => {}
            Some(Role::OutgoingVoter) => {
                return Err(RaftError::Refused(format!("node {node} is being removed")));
            }
            None => return Err(RaftError::Refused(format!("node {node} is no learner"))),
        }
        let voters = BTreeSet::from([node.0]);
        self.change_voters(ctx, leader, ChangeMembers::AddVoterIds(voters))
            .await
    }

    async fn remove(&self, ctx: &Context, node: NodeId) -> Result<(), RaftError> {
        let leader = self.leading()?;
        let ids = BTreeSet::from([node.0]);
        let change = match self.members().get(&node).map(|member| member.role) {
            None => return Ok(()),
            Some(Role::Voter | Role::IncomingVoter | Role::OutgoingVoter) => {
                ChangeMembers::RemoveVoters(ids)
            }
            Some(Role::Learner) => ChangeMembers::RemoveNodes(ids),
        };
        if node == self.node {
            // A removed leader hands leadership on.
            self.proofs.fence_lease(leader.term);
        }
        self.change_voters(ctx, leader, change).await
    }

    async fn transfer_leadership(
        &self,
        ctx: &Context,
        wanted: Option<NodeId>,
    ) -> Result<(), RaftError> {
        let leader = self.leading()?;
        let to = match wanted {
            Some(to) => to,
            None => self.successor()?.ok_or_else(|| {
                RaftError::Refused("the group has no other voter that could lead".into())
            })?,
        };
        if to == self.node {
            return Ok(());
        }
        if self.members().get(&to).map(|member| member.role) != Some(Role::Voter) {
            return Err(RaftError::Refused(format!(
                "node {to} has no vote in the group"
            )));
        }
        let raft = self.running()?;
        self.proofs.fence_lease(leader.term);
        self.gives_away(leader.term);
        raft.trigger()
            .transfer_leader(to.0)
            .await
            .map_err(|fatal| RaftError::Stopped(fatal.to_string()))?;
        let mut changes = self.leadership_changes();
        let led = changes.wait_for(|now| match now {
            Leadership::Follower { leader: new } | Leadership::Leader(new) => {
                new.term > leader.term
            }
            Leadership::Unknown => false,
        });
        match ctx.run(led).await {
            Ok(Ok(now)) => match *now {
                Leadership::Leader(_) => Err(RaftError::OutcomeUnknown(
                    "this node was elected again instead",
                )),
                Leadership::Follower { leader } if wanted.is_some_and(|to| to != leader.node) => {
                    Err(RaftError::NotLeader {
                        leader: Some(leader.node),
                    })
                }
                Leadership::Follower { .. } | Leadership::Unknown => Ok(()),
            },
            Ok(Err(_)) => Err(RaftError::NoSuchGroup),
            Err(_) => Err(RaftError::OutcomeUnknown(
                "leadership was not taken over yet",
            )),
        }
    }
}

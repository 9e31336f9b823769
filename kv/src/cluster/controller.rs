//! The membership controller: on the node that leads the meta group, it compares what the catalog
//! wants with what groups have, and takes one step per group at a time.
//!
//! Each tick makes its own context. A step that fails is planned again by the next tick, from what
//! is then true, so the controller keeps no state that must survive. So is a promotion that the
//! group's leader holds back, because the learner has not yet every chunk that its rows name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use leadline_raft::engine::{LeaderView, Leadership, Membership, Role};
use leadline_raft::{Context, FALLBACK_DEADLINE, GroupId, NodeId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::{Seen, Step, plan};
use crate::catalog::{Catalog, MemberState, MetaOperation};
use crate::node::Core;
use crate::wire;
use crate::wire::change_group_request::Kind;

/// A tick while nothing is to be done, and while something is.
const IDLE: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_millis(100);
/// Groups that are changed at the same time.
const AT_ONCE: usize = 8;
/// A leadership moves for balance only after this many ticks without another step.
const QUIET_TICKS: u32 = 3;
/// How long a node that did not take over a leadership is offered none for balance: each attempt leaves
/// a group without a leader for seconds.
const REST: Duration = Duration::from_secs(60);

/// Keeps every group replicated and every leadership where it should be.
pub(crate) struct Controller {
    core: Arc<Core>,
    quiet: u32,
    held_back: HeldBack,
    resting: Resting,
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Done,
    /// A learner was not promoted: why, and how many chunks it lacks, as far as it said so.
    HeldBack {
        why: String,
        lacking: u64,
    },
}

/// The promotions that wait, so that each is spoken of when it begins to and when it is over.
#[derive(Debug, Default)]
struct HeldBack(BTreeSet<(GroupId, NodeId)>);

impl HeldBack {
    /// Takes note of how a promotion went; true when that is news.
    fn note(&mut self, group: GroupId, node: NodeId, taken: &Taken) -> bool {
        match taken {
            Taken::Done => self.0.remove(&(group, node)),
            Taken::HeldBack { .. } => self.0.insert((group, node)),
        }
    }
}

/// The nodes that did not take over a leadership lately, and until when they rest.
#[derive(Debug, Default)]
struct Resting(BTreeMap<NodeId, Instant>);

impl Resting {
    fn begin(&mut self, node: NodeId, now: Instant) {
        self.0.insert(node, now + REST);
    }

    /// Takes out the transfers to nodes that rest, of those that are `for_balance`.
    fn withhold(
        &mut self,
        steps: &mut Vec<Step>,
        for_balance: impl Fn(&Step) -> bool,
        now: Instant,
    ) {
        self.0.retain(|_, until| *until > now);
        steps.retain(|step| match step {
            Step::Transfer { to, .. } => !(for_balance(step) && self.0.contains_key(to)),
            _ => true,
        });
    }
}

impl Controller {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            quiet: 0,
            held_back: HeldBack::default(),
            resting: Resting::default(),
        }
    }

    /// Ticks until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pause = IDLE;
        let mut changes = self.core.catalog_changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A join or a removal is acted upon at once.
                Ok(()) = changes.changed() => {}
            }
            changes.mark_unchanged();
            let ctx = Context::with_timeout(FALLBACK_DEADLINE);
            let _guard = ctx.guard();
            pause = tokio::select! {
                () = stop.cancelled() => return,
                busy = self.tick(&ctx) => if busy { BUSY } else { IDLE },
            };
        }
    }

    /// One round; says whether there was anything to do.
    async fn tick(&mut self, ctx: &Context) -> bool {
        let leads = self
            .core
            .engine(GroupId::META)
            .is_some_and(|meta| matches!(meta.leadership(), Leadership::Leader(_)));
        let catalog = self.core.catalog();
        let (true, Some(catalog)) = (leads, catalog) else {
            self.quiet = 0;
            self.held_back = HeldBack::default();
            return false;
        };
        let live: BTreeSet<NodeId> = catalog
            .present()
            .map(|(node, _)| node)
            .filter(|&node| self.core.reachable(node))
            .collect();
        let seen = look(&self.core, ctx, &catalog).await;
        let mut steps = plan(&catalog, &seen, &live);
        let for_balance = |step: &Step| match step {
            Step::Transfer { group, .. } => seen
                .get(group)
                .is_some_and(|view| is_up(&catalog, view.leader)),
            _ => false,
        };
        self.resting
            .withhold(&mut steps, for_balance, Instant::now());
        let only_balance = !steps.is_empty() && steps.iter().all(for_balance);
        if steps.is_empty() || only_balance {
            self.quiet = self.quiet.saturating_add(1);
        } else {
            self.quiet = 0;
        }
        if only_balance && self.quiet < QUIET_TICKS {
            steps.clear();
        }
        let this = &*self;
        let catalog = &catalog;
        let taken: Vec<(Step, Result<Taken, String>)> = futures::stream::iter(steps)
            .map(|step| async move {
                let taken = this.take(ctx, catalog, &step).await;
                (step, taken)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        // What is held back takes its time: it is asked for again at leisure.
        let busy = taken
            .iter()
            .any(|(_, taken)| !matches!(taken, Ok(Taken::HeldBack { .. })));
        for (step, taken) in taken {
            self.note(&step, taken);
        }
        busy && !only_balance
    }

    fn note(&mut self, step: &Step, taken: Result<Taken, String>) {
        let taken = match taken {
            Ok(taken) => taken,
            Err(why) => {
                tracing::debug!(?step, why, "a membership step was not finished");
                if let Step::Transfer { to, .. } = *step {
                    self.resting.begin(to, Instant::now());
                }
                return;
            }
        };
        let Step::Promote { group, node } = *step else {
            return;
        };
        let news = self.held_back.note(group, node, &taken);
        match taken {
            Taken::HeldBack { why, lacking } if news => {
                tracing::info!(%group, %node, chunks = lacking, why, "a new replica may not vote yet");
            }
            Taken::Done if news => {
                tracing::info!(%group, %node, "the new replica has its chunks and votes");
            }
            Taken::HeldBack { why, lacking } => {
                tracing::debug!(%group, %node, chunks = lacking, why, "a new replica still waits");
            }
            Taken::Done => {}
        }
    }

    async fn take(&self, ctx: &Context, catalog: &Catalog, step: &Step) -> Result<Taken, String> {
        let change = |group: GroupId, kind: Kind, node: NodeId| wire::ChangeGroupRequest {
            group: group.0,
            kind: kind.into(),
            node: node.0,
            address: catalog
                .members()
                .get(&node)
                .map(|member| member.addresses.grpc.clone())
                .unwrap_or_default(),
        };
        let request = match step {
            Step::AddLearner { group, node } => change(*group, Kind::AddLearner, *node),
            Step::Promote { group, node } => change(*group, Kind::Promote, *node),
            Step::Remove { group, node } => change(*group, Kind::Remove, *node),
            Step::Transfer { group, to } => change(*group, Kind::Transfer, *to),
            Step::Record {
                group,
                replicas,
                learners,
            } => {
                let change = MetaOperation::set_replicas(*group, replicas, learners);
                return self.record(ctx, change).await;
            }
            Step::MarkUp { node } => {
                tracing::info!(%node, "node is up");
                return self
                    .record(ctx, MetaOperation::set_member_state(*node, MemberState::Up))
                    .await;
            }
        };
        let reply = self.core.change_group(ctx, request).await?;
        if reply.held_back.is_empty() {
            return Ok(Taken::Done);
        }
        Ok(Taken::HeldBack {
            why: reply.held_back,
            lacking: reply.lacking_chunks,
        })
    }

    async fn record(&self, ctx: &Context, change: MetaOperation) -> Result<Taken, String> {
        let reply = self
            .core
            .meta(ctx, change)
            .await
            .map_err(|error| error.to_string())?;
        reply.refused.map_or(Ok(Taken::Done), Err)
    }
}

fn role(member: &wire::GroupMember) -> Role {
    match (member.voter, member.changing) {
        (true, false) => Role::Voter,
        (true, true) => Role::IncomingVoter,
        (false, true) => Role::OutgoingVoter,
        (false, false) => Role::Learner,
    }
}

/// Every group whose leader and members could be learned. Of a group that is not hosted here, what
/// was heard may be old: its replicas are asked.
pub(super) async fn look(core: &Core, ctx: &Context, catalog: &Catalog) -> BTreeMap<GroupId, Seen> {
    let groups: Vec<GroupId> = catalog.groups().collect();
    futures::stream::iter(groups)
        .map(|group| async move { Some((group, look_at(core, ctx, group).await?)) })
        .buffer_unordered(AT_ONCE)
        .filter_map(|seen| async move { seen })
        .collect()
        .await
}

async fn look_at(core: &Core, ctx: &Context, group: GroupId) -> Option<Seen> {
    if let Some(engine) = core.engine(group) {
        let leader = core.known_leader(group)?;
        let members = engine.members();
        return Some(Seen {
            leader,
            members: members
                .into_iter()
                .map(|(node, member)| (node, member.role))
                .collect(),
        });
    }
    let (leader, members) = core.members(ctx, group).await.ok()?;
    Some(Seen {
        leader,
        members: members
            .into_iter()
            .map(|member| (NodeId(member.node), role(&member)))
            .collect(),
    })
}

fn is_up(catalog: &Catalog, node: NodeId) -> bool {
    catalog
        .members()
        .get(&node)
        .is_some_and(|member| member.state == MemberState::Up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_took_over_nothing_is_given_nothing_for_balance_for_a_while() {
        let transfer = |group, to| Step::Transfer {
            group: GroupId(group),
            to: NodeId(to),
        };
        // Those of group 2 are for a drain.
        let planned = [
            transfer(1, 2),
            transfer(2, 2),
            transfer(1, 3),
            Step::MarkUp { node: NodeId(2) },
        ];
        let for_balance =
            |step: &Step| !matches!(step, Step::Transfer { group, .. } if group.0 == 2);
        let left = |resting: &mut Resting, now| {
            let mut steps = planned.to_vec();
            resting.withhold(&mut steps, for_balance, now);
            steps
        };
        let mut resting = Resting::default();
        let began = Instant::now();
        assert_eq!(left(&mut resting, began), planned);
        resting.begin(NodeId(2), began);
        assert_eq!(left(&mut resting, began + REST / 2), planned[1..]);
        assert_eq!(left(&mut resting, began + REST), planned);
    }

    #[test]
    fn a_promotion_that_waits_is_news_when_it_begins_to_and_when_it_is_over() {
        let mut held_back = HeldBack::default();
        let waits = |lacking| Taken::HeldBack {
            why: "it lacks chunks".to_owned(),
            lacking,
        };
        let (group, node) = (GroupId(3), NodeId(4));
        assert!(!held_back.note(group, NodeId(2), &Taken::Done), "at once");
        assert!(held_back.note(group, node, &waits(900)));
        for left in [900, 500, 1] {
            assert!(!held_back.note(group, node, &waits(left)));
        }
        assert!(held_back.note(GroupId(5), node, &waits(2)));
        assert!(held_back.note(group, node, &Taken::Done));
        assert!(!held_back.note(group, node, &Taken::Done));
    }
}

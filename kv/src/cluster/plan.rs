//! What the membership controller does next: a pure function of what it sees.
//!
//! # Invariants
//! 1. One change of membership per group at a time, and each is finished before the next: while a
//!    group has two sets of voters, the loss of one more node may stop it for good.
//! 2. A replica is replaced before it is removed, where a node is free to take its place.
//! 3. A group never gets fewer voters than it had, except by losing removed nodes.
//! 4. A learner of a data group that has all its voters, and all of them there, goes. Leaderships
//!    move for balance only when nothing else is to be done.
//! 5. A promotion that is held back (the learner lacks chunks) is planned again, and holds up what
//!    comes after it: the voter that the learner shall replace stays.

use std::collections::{BTreeMap, BTreeSet};

use leadline_raft::engine::Role;
use leadline_raft::{GroupId, NodeId};

use crate::catalog::{Catalog, MemberState};

/// Voters of the meta group: five survive two losses once there are five nodes.
const META_VOTERS: usize = 3;
const META_VOTERS_OF_MANY: usize = 5;
/// Leaderships that move for balance at one time.
const MOVES_AT_ONCE: usize = 4;

/// A group as the controller sees it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) leader: NodeId,
    pub(super) members: BTreeMap<NodeId, Role>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner {
        group: GroupId,
        node: NodeId,
    },
    Promote {
        group: GroupId,
        node: NodeId,
    },
    Remove {
        group: GroupId,
        node: NodeId,
    },
    Transfer {
        group: GroupId,
        to: NodeId,
    },
    Record {
        group: GroupId,
        replicas: Vec<NodeId>,
        /// Those of them that do not vote; empty for the meta group, of which nobody asks.
        learners: Vec<NodeId>,
    },
    MarkUp {
        node: NodeId,
    },
}

/// What to do next. `live` are the nodes that can be reached, this one included.
pub(super) fn plan(
    catalog: &Catalog,
    seen: &BTreeMap<GroupId, Seen>,
    live: &BTreeSet<NodeId>,
) -> Vec<Step> {
    let mut load = replicas_per_node(seen);
    let mut steps: Vec<Step> = seen
        .iter()
        .filter_map(|(&group, view)| change(catalog, group, view, live, &mut load))
        .collect();
    for (&group, view) in seen {
        let replicas: Vec<_> = view.members.keys().copied().collect();
        let learners: Vec<_> = view
            .members
            .iter()
            .filter(|(_, role)| **role == Role::Learner && group != GroupId::META)
            .map(|(&node, _)| node)
            .collect();
        if catalog.replicas(group) != replicas || catalog.learners(group) != learners {
            steps.push(Step::Record {
                group,
                replicas,
                learners,
            });
        }
    }
    if let Some(meta) = seen.get(&GroupId::META) {
        let arrived = catalog.present().filter(|(node, member)| {
            member.state == MemberState::Joining
                && live.contains(node)
                && meta.members.contains_key(node)
        });
        steps.extend(arrived.map(|(node, _)| Step::MarkUp { node }));
    }
    let drained = drain(catalog, seen, live);
    if !drained.is_empty() {
        steps.extend(drained);
    } else if steps.is_empty() {
        steps.extend(balance(catalog, seen, live));
    }
    steps
}

/// The next change of one group's membership.
fn change(
    catalog: &Catalog,
    group: GroupId,
    view: &Seen,
    live: &BTreeSet<NodeId>,
    load: &mut BTreeMap<NodeId, usize>,
) -> Option<Step> {
    // Invariant 1.
    for (&node, role) in &view.members {
        match role {
            Role::IncomingVoter => return Some(Step::Promote { group, node }),
            Role::OutgoingVoter => return Some(Step::Remove { group, node }),
            Role::Voter | Role::Learner => {}
        }
    }
    let present: BTreeSet<NodeId> = catalog.present().map(|(node, _)| node).collect();
    let voters: Vec<NodeId> = view
        .members
        .iter()
        .filter(|(node, role)| **role == Role::Voter && present.contains(node))
        .map(|(&node, _)| node)
        .collect();
    let learners = view
        .members
        .iter()
        .filter(|(node, role)| **role == Role::Learner && present.contains(node));
    let wanted = if group == GroupId::META {
        let most = if present.len() >= META_VOTERS_OF_MANY {
            META_VOTERS_OF_MANY
        } else {
            META_VOTERS
        };
        most.min(present.len())
    } else {
        catalog.replication_factor().min(present.len())
    };

    let can_vote = |node: &NodeId| live.contains(node) && !draining(catalog, *node);
    if voters.len() < wanted {
        let ready = learners.clone().map(|(&node, _)| node).find(can_vote);
        if let Some(node) = ready {
            return Some(Step::Promote { group, node });
        }
    }
    // Every node replicates the meta group; a data group gets who carries least.
    let free = present
        .iter()
        .copied()
        .filter(|node| live.contains(node) && !view.members.contains_key(node));
    let next = if group == GroupId::META {
        free.min()
    } else if voters.len() < wanted {
        free.filter(can_vote)
            .min_by_key(|node| (load.get(node).copied().unwrap_or(0), *node))
    } else {
        None
    };
    if let Some(node) = next {
        *load.entry(node).or_default() += 1;
        return Some(Step::AddLearner { group, node });
    }
    // Invariant 2: only now, and not while a learner that is away for a moment shall take the place.
    let replaced = voters.len() < wanted
        && learners
            .clone()
            .any(|(&learner, _)| !draining(catalog, learner));
    let gone: Vec<NodeId> = view
        .members
        .iter()
        .filter(|(node, role)| !present.contains(node) && (**role == Role::Learner || !replaced))
        .map(|(&node, _)| node)
        .collect();
    // The leader goes last, by moving its leadership first.
    let gone = gone
        .iter()
        .find(|&&node| node != view.leader)
        .or(gone.first());
    let Some(&node) = gone else {
        // A learner that was away when it was its turn to vote, so that another took the place. While
        // a voter is away it may be wanted yet.
        let enough = group != GroupId::META
            && voters.len() >= wanted
            && voters.iter().all(|node| live.contains(node));
        let spare = learners.map(|(&node, _)| node).next();
        return spare
            .filter(|_| enough)
            .map(|node| Step::Remove { group, node });
    };
    if node == view.leader {
        let to = voters.into_iter().find(|node| live.contains(node))?;
        return Some(Step::Transfer { group, to });
    }
    Some(Step::Remove { group, node })
}

fn draining(catalog: &Catalog, node: NodeId) -> bool {
    catalog
        .members()
        .get(&node)
        .is_none_or(|member| member.state == MemberState::Draining)
}

fn replicas_per_node(seen: &BTreeMap<GroupId, Seen>) -> BTreeMap<NodeId, usize> {
    let mut load = BTreeMap::new();
    for node in seen.values().flat_map(|view| view.members.keys()) {
        *load.entry(*node).or_default() += 1;
    }
    load
}

fn leaders_per_node(seen: &BTreeMap<GroupId, Seen>) -> BTreeMap<NodeId, usize> {
    let mut leads = BTreeMap::new();
    for view in seen.values() {
        *leads.entry(view.leader).or_default() += 1;
    }
    leads
}

/// Moves leaderships off nodes that are draining.
fn drain(catalog: &Catalog, seen: &BTreeMap<GroupId, Seen>, live: &BTreeSet<NodeId>) -> Vec<Step> {
    let mut leads = leaders_per_node(seen);
    let mut steps = Vec::new();
    for (&group, view) in seen {
        if !draining(catalog, view.leader) {
            continue;
        }
        let to = successors(catalog, view, live)
            .min_by_key(|node| (leads.get(node).copied().unwrap_or(0), *node));
        if let Some(to) = to {
            *leads.entry(to).or_default() += 1;
            steps.push(Step::Transfer { group, to });
        }
    }
    steps
}

/// Who else could lead.
fn successors<'a>(
    catalog: &'a Catalog,
    view: &'a Seen,
    live: &'a BTreeSet<NodeId>,
) -> impl Iterator<Item = NodeId> + 'a {
    view.members
        .iter()
        .filter(|(_, role)| **role == Role::Voter)
        .map(|(&node, _)| node)
        .filter(move |&node| {
            node != view.leader && live.contains(&node) && !draining(catalog, node)
        })
}

/// Leaderships from who has most to who has least, while that evens them out, a few at a time. The
/// meta group stays where it is: the controller lives there.
fn balance(
    catalog: &Catalog,
    seen: &BTreeMap<GroupId, Seen>,
    live: &BTreeSet<NodeId>,
) -> Vec<Step> {
    // With a node away its leaderships are elsewhere for good reason.
    if !catalog.present().all(|(node, _)| live.contains(&node)) {
        return Vec::new();
    }
    let mut leads = leaders_per_node(seen);
    let mut moved = BTreeSet::new();
    let mut steps = Vec::new();
    while steps.len() < MOVES_AT_ONCE {
        let count = |node: NodeId| leads.get(&node).copied().unwrap_or(0);
        let best = seen
            .iter()
            .filter(|&(group, _)| *group != GroupId::META && !moved.contains(group))
            .filter_map(|(&group, view)| {
                let to = successors(catalog, view, live).min_by_key(|&node| (count(node), node))?;
                let gain = count(view.leader).checked_sub(count(to))?;
                (gain >= 2).then_some((gain, group, view.leader, to))
            })
            .max_by_key(|&(gain, group, _, _)| (gain, std::cmp::Reverse(group)));
        let Some((_, group, from, to)) = best else {
            break;
        };
        moved.insert(group);
        *leads.entry(from).or_default() -= 1;
        *leads.entry(to).or_default() += 1;
        steps.push(Step::Transfer { group, to });
    }
    steps
}

#[cfg(test)]
mod tests {
    use leadline_raft::ClusterId;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{Addresses, MetaOperation, MetaReply, ROW};
    use crate::testing::MemoryRows;
    use crate::{Operation, Rows};

    /// A cluster in which every step succeeds at once.
    struct World {
        rows: MemoryRows,
        seen: BTreeMap<GroupId, Seen>,
        live: BTreeSet<NodeId>,
    }

    impl World {
        fn new(shards: u16) -> Self {
            let mut world = Self {
                rows: MemoryRows::default(),
                seen: BTreeMap::new(),
                live: BTreeSet::from([NodeId(1)]),
            };
            let addresses = Addresses {
                grpc: "1:1".into(),
                ..Addresses::default()
            };
            let catalog = Catalog::deal(ClusterId(1), shards, NodeId(1), addresses);
            world.seen = catalog
                .groups()
                .map(|group| {
                    let seen = Seen {
                        leader: NodeId(1),
                        members: BTreeMap::from([(NodeId(1), Role::Voter)]),
                    };
                    (group, seen)
                })
                .collect();
            world.change(&MetaOperation::bootstrap(&catalog));
            world
        }

        fn change(&mut self, change: &MetaOperation) -> MetaReply {
            MetaReply::decode(&change.evaluate(&mut self.rows).unwrap()).unwrap()
        }

        fn join(&mut self) -> NodeId {
            let number = self.catalog().members().len() + 10;
            let addresses = Addresses {
                grpc: format!("{number}:1"),
                ..Addresses::default()
            };
            let nonce = vec![u8::try_from(number).unwrap()].into();
            let joined = self.change(&MetaOperation::add_member(&addresses, nonce, None));
            let node = joined.node.unwrap();
            self.live.insert(node);
            node
        }

        fn catalog(&mut self) -> Catalog {
            Catalog::decode(&self.rows.get(&ROW).unwrap().unwrap()).unwrap()
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::AddLearner { group, node } => {
                    let members = &mut self.seen.get_mut(&group).unwrap().members;
                    assert_eq!(members.insert(node, Role::Learner), None);
                }
                Step::Promote { group, node } => {
                    let members = &mut self.seen.get_mut(&group).unwrap().members;
                    let before = members.insert(node, Role::Voter);
                    assert!(matches!(before, Some(Role::Learner | Role::IncomingVoter)));
                }
                Step::Remove { group, node } => {
                    let seen = self.seen.get_mut(&group).unwrap();
                    assert_ne!(seen.leader, node);
                    assert!(seen.members.remove(&node).is_some());
                }
                Step::Transfer { group, to } => {
                    let seen = self.seen.get_mut(&group).unwrap();
                    assert_eq!(seen.members[&to], Role::Voter);
                    assert!(self.live.contains(&to));
                    seen.leader = to;
                }
                Step::Record {
                    group,
                    replicas,
                    learners,
                } => {
                    self.change(&MetaOperation::set_replicas(group, &replicas, &learners));
                }
                Step::MarkUp { node } => {
                    self.change(&MetaOperation::set_member_state(node, MemberState::Up));
                }
            }
        }

        /// One tick; steps that are held back change nothing.
        fn step(&mut self, mut held_back: impl FnMut(&Step) -> bool) -> Vec<Step> {
            let steps = plan(&self.catalog(), &self.seen, &self.live);
            for step in &steps {
                if !held_back(step) {
                    self.take(step.clone());
                }
            }
            steps
        }

        fn settle(&mut self) {
            for _ in 0..500 {
                if self.step(|_| false).is_empty() {
                    return;
                }
            }
            panic!("the plan does not settle: {:?}", self.seen);
        }

        fn voters(&self, group: u64) -> Vec<u64> {
            self.seen[&GroupId(group)]
                .members
                .iter()
                .filter(|(_, role)| **role == Role::Voter)
                .map(|(node, _)| node.0)
                .collect()
        }

        fn leads(&self) -> BTreeMap<NodeId, usize> {
            leaders_per_node(&self.seen)
        }
    }

    #[test]
    fn two_joins_make_one_node_three_replicated_three_times_with_even_leaders() {
        let mut world = World::new(8);
        world.join();
        world.settle();
        assert_eq!(world.voters(3), [1, 2]);
        world.join();
        world.settle();
        for group in 0..=14 {
            assert_eq!(world.voters(group), [1, 2, 3]);
        }
        assert!(world.leads().values().all(|&leads| leads == 5));
        let catalog = world.catalog();
        assert!(
            catalog
                .present()
                .all(|(_, member)| member.state == MemberState::Up)
        );
        assert_eq!(catalog.replicas(GroupId(5)).len(), 3);
    }

    #[test]
    fn a_removed_node_is_replaced_where_one_is_free_and_dropped_where_not() {
        let mut world = World::new(4);
        for _ in 0..3 {
            world.join();
        }
        world.settle();
        world.live.remove(&NodeId(2));
        world.change(&MetaOperation::set_member_state(
            NodeId(2),
            MemberState::Removed,
        ));
        // The dead node leads nothing any more.
        for seen in world.seen.values_mut() {
            if seen.leader == NodeId(2) {
                seen.leader = *seen
                    .members
                    .keys()
                    .find(|&&node| node != NodeId(2))
                    .unwrap();
            }
        }
        world.settle();
        for group in 0..=4 {
            assert_eq!(world.voters(group), [1, 3, 4]);
        }
        world.live.remove(&NodeId(4));
        world.change(&MetaOperation::set_member_state(
            NodeId(4),
            MemberState::Removed,
        ));
        for seen in world.seen.values_mut() {
            seen.leader = NodeId(1);
        }
        world.settle();
        assert_eq!(world.voters(1), [1, 3]);
    }

    #[test]
    fn a_learner_whose_place_another_took_is_let_go_when_every_voter_is_there() {
        let mut world = World::new(2);
        for _ in 0..3 {
            world.join();
        }
        world.settle();
        assert_eq!(world.voters(1).len(), 3);
        let spare = (1..=4)
            .find(|node| !world.voters(1).contains(node))
            .unwrap();
        let members = &mut world.seen.get_mut(&GroupId(1)).unwrap().members;
        members.insert(NodeId(spare), Role::Learner);
        let away = NodeId(world.voters(1)[1]);
        world.live.remove(&away);
        let remove = Step::Remove {
            group: GroupId(1),
            node: NodeId(spare),
        };
        let steps = plan(&world.catalog(), &world.seen, &world.live);
        assert!(!steps.contains(&remove), "{steps:?}");
        world.live.insert(away);
        world.settle();
        assert_eq!(world.seen[&GroupId(1)].members.len(), 3);
        // The fourth node replicates the meta group for as long as it is there.
        assert_eq!(world.seen[&GroupId::META].members.len(), 4);
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished_before_anything_else_is_changed() {
        let mut world = World::new(2);
        world.join();
        world.join();
        world.settle();
        let members = &mut world.seen.get_mut(&GroupId(1)).unwrap().members;
        members.insert(NodeId(3), Role::IncomingVoter);
        let members = &mut world.seen.get_mut(&GroupId(2)).unwrap().members;
        members.insert(NodeId(9), Role::OutgoingVoter);
        let steps = plan(&world.catalog(), &world.seen, &world.live);
        let promote = Step::Promote {
            group: GroupId(1),
            node: NodeId(3),
        };
        let remove = Step::Remove {
            group: GroupId(2),
            node: NodeId(9),
        };
        assert_eq!(steps[..2], [promote, remove]);
        world.settle();
        assert_eq!(world.voters(1), [1, 2, 3]);
        assert_eq!(world.voters(2), [1, 2, 3]);
    }

    #[test]
    fn a_draining_node_gives_every_leadership_away_and_keeps_its_replicas() {
        let mut world = World::new(6);
        world.join();
        world.join();
        world.settle();
        world.change(&MetaOperation::set_member_state(
            NodeId(1),
            MemberState::Draining,
        ));
        world.settle();
        assert_eq!(world.leads().get(&NodeId(1)), None);
        assert_eq!(world.voters(1), [1, 2, 3]);
        world.change(&MetaOperation::set_member_state(NodeId(1), MemberState::Up));
        world.settle();
        assert_eq!(world.leads()[&NodeId(1)], 4);
    }

    #[test]
    fn of_many_nodes_five_vote_in_the_meta_group_and_all_replicate_it() {
        let mut world = World::new(4);
        for _ in 0..6 {
            world.join();
        }
        world.settle();
        assert_eq!(world.voters(0).len(), 5);
        assert_eq!(world.seen[&GroupId::META].members.len(), 7);
        for group in 1..=4 {
            assert_eq!(world.voters(group).len(), 3);
        }
    }

    /// A learner that waits for its chunks is away for a moment: the dead voter whose place it takes
    /// stays a member, so that what only that one has is not written off.
    #[test]
    fn a_removed_voter_stays_while_its_successor_is_away() {
        let mut world = World::new(2);
        world.join();
        world.join();
        world.settle();
        let fourth = world.join();
        let removed = MetaOperation::set_member_state(NodeId(3), MemberState::Removed);
        world.change(&removed);
        world.live.remove(&NodeId(3));
        for seen in world.seen.values_mut() {
            seen.leader = NodeId(1);
        }
        world.step(|_| false);
        assert_eq!(world.seen[&GroupId(1)].members[&fourth], Role::Learner);
        world.live.remove(&fourth);
        for _ in 0..5 {
            world.step(|_| false);
        }
        assert_eq!(world.voters(1), [1, 2, 3]);
        world.live.insert(fourth);
        world.settle();
        assert_eq!(world.voters(1), [1, 2, 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Invariants 2, 3 and 5, while promotions of data groups are held back for any number of
        /// rounds and nodes are replaced under them.
        #[test]
        fn a_promotion_that_is_held_back_is_asked_for_again_and_nothing_goes_before_it(
            waits in proptest::collection::vec(0..12_u32, 32),
            replaced in proptest::collection::vec(1..4_u64, 0..3),
        ) {
            let mut world = World::new(3);
            world.join();
            world.join();
            world.settle();
            let mut waits = waits.into_iter().cycle();
            for node in replaced {
                let gone = NodeId(node);
                if !world.live.contains(&gone) {
                    continue;
                }
                world.join();
                let removed = MetaOperation::set_member_state(gone, MemberState::Removed);
                world.change(&removed);
                // It can be reached and gives its leaderships away: none of them is forced.
                let mut left: BTreeMap<(GroupId, NodeId), u32> = BTreeMap::new();
                let mut steps = 0;
                loop {
                    let before: BTreeMap<_, _> =
                        world.seen.keys().map(|group| (*group, world.voters(group.0))).collect();
                    let taken = world.step(|step| match *step {
                        Step::Promote { group, node } if group != GroupId::META => {
                            let left = left
                                .entry((group, node))
                                .or_insert_with(|| waits.next().unwrap_or(0));
                            *left > 0 && { *left -= 1; true }
                        }
                        _ => false,
                    });
                    if taken.is_empty() {
                        break;
                    }
                    for (&group, voters) in before.iter().filter(|(group, _)| **group != GroupId::META) {
                        let waiting = left.iter().any(|(&(of, _), left)| of == group && *left > 0);
                        let now = world.voters(group.0);
                        prop_assert!(
                            !waiting || voters.iter().all(|voter| now.contains(voter)),
                            "{voters:?} became {now:?} while a promotion waited"
                        );
                        prop_assert!(now.len() >= 3, "{now:?}");
                        prop_assert!(world.seen[&group].members.len() <= 4);
                    }
                    steps += 1;
                    prop_assert!(steps < 500, "it does not settle: {:?}", world.seen);
                }
                prop_assert!(left.values().all(|left| *left == 0), "{left:?}");
                world.live.remove(&gone);
                let live: Vec<u64> = world.live.iter().map(|node| node.0).collect();
                for group in 1..=3 {
                    prop_assert_eq!(world.voters(group), live.clone());
                }
            }
        }
    }

    #[test]
    fn a_node_that_is_only_away_keeps_its_place() {
        let mut world = World::new(4);
        world.join();
        world.join();
        world.settle();
        world.live.remove(&NodeId(3));
        let steps = plan(&world.catalog(), &world.seen, &world.live);
        assert_eq!(steps, []);
    }
}

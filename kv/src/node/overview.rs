//! What a status page says about the cluster: facts, when they were learned, and what could not be.

use std::collections::BTreeMap;

use leadline_raft::engine::{GroupStatus, Role};
use leadline_raft::{ClusterId, GroupId, LogIndex, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::catalog::{Addresses, Catalog, MemberState};

/// Whether a node may be sent requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    /// Why not, for a person to read; empty when ready.
    pub reasons: Vec<String>,
    /// The largest number of committed entries not yet applied here, over all groups.
    pub lag: u64,
    pub draining: bool,
}

/// One node as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub version: String,
    pub uptime_seconds: u64,
    pub readiness: Readiness,
    pub groups: Vec<GroupStatus>,
}

/// The cluster as one node could collect it within its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterOverview {
    /// In hexadecimal.
    pub cluster: String,
    /// Who collected it.
    pub asked: NodeId,
    pub catalog_epoch: u64,
    /// Every group has a leader that a quorum acknowledges.
    pub has_quorum: bool,
    /// How many more nodes may be lost, whichever they are, before a group has no quorum.
    pub may_lose: usize,
    pub members: Vec<MemberOverview>,
    pub groups: Vec<GroupOverview>,
    /// What could not be learned, a sentence each.
    pub unknown: Vec<String>,
}

/// A member of the cluster; removed ones are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOverview {
    pub node: NodeId,
    pub addresses: Addresses,
    pub state: MemberState,
    /// What the node said of itself; `None`: it did not answer in time.
    pub version: Option<String>,
    pub uptime_seconds: Option<u64>,
    pub readiness: Option<Readiness>,
    /// Groups that it leads.
    pub leads: usize,
}

/// A group over all the nodes that replicate it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOverview {
    pub group: GroupId,
    /// Redis slots, first and last; `None` for the meta group and for those that hold buckets.
    pub slots: Option<(u16, u16)>,
    /// Who leads, with a quorum's acknowledgement; `None`: nobody says so.
    pub leader: Option<NodeId>,
    pub term: Term,
    pub commit_index: LogIndex,
    pub may_lose: usize,
    pub replicas: Vec<ReplicaOverview>,
}

/// One replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaOverview {
    pub node: NodeId,
    pub role: Role,
    pub leading: bool,
    /// What the replica said; `None`: its node did not answer.
    pub status: Option<GroupStatus>,
    /// Entries that the group has committed and this replica not applied; `None`: not known.
    pub lag: Option<u64>,
}

/// Puts together what every node said, or why it did not.
pub(super) fn collect(
    asked: NodeId,
    cluster: ClusterId,
    catalog: Option<&Catalog>,
    answers: BTreeMap<NodeId, Result<NodeStatus, String>>,
) -> ClusterOverview {
    let mut unknown: Vec<String> = answers
        .iter()
        .filter_map(|(node, said)| {
            let why = said.as_ref().err()?;
            Some(format!("node {node} did not answer: {why}"))
        })
        .collect();
    let said = |node: NodeId| answers.get(&node).and_then(|said| said.as_ref().ok());
    let groups: Vec<GroupOverview> = catalog
        .iter()
        .flat_map(|catalog| catalog.groups().map(|group| (*catalog, group)))
        .map(|(catalog, group)| group_overview(catalog, group, &said))
        .collect();
    if catalog.is_none() {
        unknown.push(format!("node {asked} has no catalog yet"));
    }
    let leaderless = groups.iter().filter(|group| group.leader.is_none()).count();
    if leaderless > 0 {
        unknown.push(format!(
            "no node says that it leads {leaderless} of the groups"
        ));
    }
    let members = catalog
        .iter()
        .flat_map(|catalog| catalog.present())
        .map(|(node, member)| {
            let status = said(node);
            MemberOverview {
                node,
                addresses: member.addresses.clone(),
                state: member.state,
                version: status.map(|status| status.version.clone()),
                uptime_seconds: status.map(|status| status.uptime_seconds),
                readiness: status.map(|status| status.readiness.clone()),
                leads: groups
                    .iter()
                    .filter(|group| group.leader == Some(node))
                    .count(),
            }
        })
        .collect();
    ClusterOverview {
        cluster: format!("{:016x}", cluster.0),
        asked,
        catalog_epoch: catalog.map_or(0, Catalog::epoch),
        has_quorum: !groups.is_empty() && leaderless == 0,
        may_lose: groups.iter().map(|group| group.may_lose).min().unwrap_or(0),
        members,
        groups,
        unknown,
    }
}

fn group_overview<'a>(
    catalog: &Catalog,
    group: GroupId,
    said: &impl Fn(NodeId) -> Option<&'a NodeStatus>,
) -> GroupOverview {
    let status = |node: NodeId| {
        said(node)?
            .groups
            .iter()
            .find(|status| status.group == group)
    };
    // Of two that say so, the later term leads: the other has not heard.
    let leading = catalog
        .present()
        .filter_map(|(node, _)| status(node))
        .filter(|status| status.leading)
        .max_by_key(|status| status.term);
    let commit_index = leading.map_or_else(
        || {
            let known = catalog.present().filter_map(|(node, _)| status(node));
            known
                .map(|status| status.commit_index)
                .max()
                .unwrap_or_default()
        },
        |leader| leader.commit_index,
    );
    let mut roles: BTreeMap<NodeId, Role> = match leading {
        Some(leader) => leader
            .peers
            .iter()
            .map(|peer| (peer.node, peer.role))
            .collect(),
        None => {
            let recorded = catalog.replicas(group);
            let learners = catalog.learners(group);
            let role = |node| match learners.contains(node) {
                true => Role::Learner,
                false => Role::Voter,
            };
            recorded.iter().map(|node| (*node, role(node))).collect()
        }
    };
    if let Some(leader) = leading {
        roles.entry(leader.node).or_insert(Role::Voter);
    }
    let replicas: Vec<ReplicaOverview> = roles
        .iter()
        .map(|(&node, &role)| {
            let status = status(node);
            ReplicaOverview {
                node,
                role,
                leading: leading.is_some_and(|leader| leader.node == node),
                lag: status.map(|status| commit_index.0.saturating_sub(status.last_applied.0)),
                status: status.cloned(),
            }
        })
        .collect();
    let voters = replicas
        .iter()
        .filter(|replica| replica.role == Role::Voter);
    let well = voters
        .clone()
        .filter(|voter| {
            voter
                .status
                .as_ref()
                .is_some_and(|status| status.stopped.is_none())
        })
        .count();
    let quorum = voters.count() / 2 + 1;
    let slots = catalog.slots_of(group);
    GroupOverview {
        group,
        slots: (!slots.is_empty()).then(|| (slots.start, slots.end - 1)),
        leader: leading.map(|leader| leader.node),
        term: leading.map_or(Term(0), |leader| leader.term),
        commit_index,
        may_lose: if leading.is_some() {
            well.saturating_sub(quorum)
        } else {
            0
        },
        replicas,
    }
}

#[cfg(test)]
mod tests {
    use leadline_raft::LeaderId;
    use leadline_raft::engine::PeerStatus;

    use super::*;

    fn group(node: u64, leading: bool, applied: u64) -> GroupStatus {
        let peers = (1..=3).map(|node| PeerStatus {
            node: NodeId(node),
            role: Role::Voter,
            matched: None,
            last_ack_ms: None,
        });
        GroupStatus {
            group: GroupId(1),
            node: NodeId(node),
            term: Term(4),
            leader: Some(LeaderId {
                term: Term(4),
                node: NodeId(1),
            }),
            leading,
            in_contact: true,
            last_log_index: LogIndex(100),
            commit_index: LogIndex(applied),
            heard_commit_index: LogIndex(applied),
            last_applied: LogIndex(applied),
            snapshot_index: LogIndex(0),
            peers: peers.collect(),
            pending_proposals: 0,
            pending_reads: 0,
            stopped: None,
        }
    }

    fn node(number: u64, leading: bool, applied: u64) -> Result<NodeStatus, String> {
        Ok(NodeStatus {
            node: NodeId(number),
            version: "1".into(),
            uptime_seconds: 1,
            readiness: Readiness {
                ready: true,
                reasons: Vec::new(),
                lag: 0,
                draining: false,
            },
            groups: vec![group(number, leading, applied)],
        })
    }

    fn catalog() -> Catalog {
        use crate::Operation;
        use crate::catalog::{MetaOperation, MetaReply};
        let mut rows = crate::testing::MemoryRows::default();
        let address = |node: u64| Addresses {
            grpc: format!("10.0.0.{node}:1"),
            ..Addresses::default()
        };
        let first = Catalog::deal(ClusterId(7), 1, NodeId(1), address(1));
        let mut changes = vec![MetaOperation::bootstrap(&first)];
        for node in 2..=3 {
            let nonce = vec![u8::try_from(node).unwrap()].into();
            changes.push(MetaOperation::add_member(&address(node), nonce, None));
        }
        let replies = changes.iter().map(|change| change.evaluate(&mut rows));
        MetaReply::decode(&replies.last().unwrap().unwrap())
            .unwrap()
            .catalog
            .unwrap()
    }

    #[test]
    fn an_overview_says_how_many_may_be_lost_and_what_it_could_not_learn() {
        let all = BTreeMap::from([
            (NodeId(1), node(1, true, 90)),
            (NodeId(2), node(2, false, 90)),
            (NodeId(3), node(3, false, 70)),
        ]);
        let catalog = catalog();
        let seen = |answers: &BTreeMap<_, _>| {
            let overview = collect(NodeId(1), ClusterId(7), Some(&catalog), answers.clone());
            let group = overview.groups[1].clone();
            (overview, group)
        };
        let (_, group) = seen(&all);
        assert_eq!((group.leader, group.may_lose), (Some(NodeId(1)), 1));
        let lags: Vec<_> = group.replicas.iter().map(|replica| replica.lag).collect();
        assert_eq!(lags, [Some(0), Some(0), Some(20)]);

        let mut without_third = all.clone();
        without_third.insert(NodeId(3), Err("timed out".into()));
        let (overview, group) = seen(&without_third);
        assert_eq!((group.leader, group.may_lose), (Some(NodeId(1)), 0));
        assert!(overview.unknown.iter().any(|what| what.contains("node 3")));
        assert_eq!(group.replicas[2].lag, None);

        let mut without_leader = all;
        without_leader.insert(NodeId(1), Err("timed out".into()));
        let (overview, group) = seen(&without_leader);
        assert!(!overview.has_quorum);
        assert_eq!((group.leader, group.may_lose), (None, 0));
    }
}

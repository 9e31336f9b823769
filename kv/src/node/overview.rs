//! What a status page says about the cluster: facts, when they were learned, and what could not be.

use leadline_raft::engine::{GroupStatus, Role};
use leadline_raft::{GroupId, LogIndex, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::catalog::{Addresses, MemberState};

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
    /// Redis slots, first and last; `None` for the meta group.
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

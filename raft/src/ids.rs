//! Identifiers that consensus hands out. Newtypes, so that a term is never taken for an index.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A node of the cluster. Never reused: a node that lost its disk comes back under a new one.
    NodeId
);
number!(
    /// A Raft group. Group 0 is the meta group; groups 1, 2, … replicate shards.
    GroupId
);
number!(
    /// A Raft term (Ongaro, section 3.3).
    Term
);
number!(
    /// A position in one group's log; never compared between groups.
    LogIndex
);
number!(
    /// A cluster, drawn at random at bootstrap. Nodes of different clusters refuse each other.
    ClusterId
);

impl GroupId {
    /// The group that holds the catalog, the members and the settings.
    pub const META: Self = Self(0);
}

/// One leadership: at most one node leads a group in a term, so this names it for good.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct LeaderId {
    pub term: Term,
    pub node: NodeId,
}

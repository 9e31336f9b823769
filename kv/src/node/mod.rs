//! A whole node of the data plane: storage, consensus, shards, coordinator and cluster membership,
//! opened from the bottom up and stopped in reverse.

mod config;
mod overview;

pub use config::{Bootstrap, NodeConfig, OpenError};
pub use overview::{
    ClusterOverview, GroupOverview, MemberOverview, NodeStatus, Readiness, ReplicaOverview,
};

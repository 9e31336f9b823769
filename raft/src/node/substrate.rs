//! What a group stands on: a log and a network. One for real nodes, one for tests.

use std::sync::Arc;

use futures::future::BoxFuture;
use openraft::errors::Fatal;
use openraft::network::NetSnapshot;
use openraft::storage::RaftLogStorage;
use openraft::{Config, RaftNetworkFactory};

use crate::transport::Haste;
use crate::types::{SnapshotData, TypeConfig};
use crate::{GroupId, NodeId};

use super::state::StateAdapter;

pub(crate) type Raft = openraft::Raft<TypeConfig, StateAdapter>;

/// Why openraft did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("openraft: {0}")]
    Openraft(#[from] Fatal<TypeConfig>),
    #[error("the log: {0}")]
    Log(#[from] std::io::Error),
    /// Entries that nothing here has: the state machine lost what it had made durable.
    #[error(
        "the state machine is at index {applied} but the log begins after {purged}: entries are \
         missing. Restore the state from a backup, or remove this node from the cluster and add it \
         under a new id"
    )]
    Gap { applied: u64, purged: u64 },
}

/// Starts openraft over `log` and `network`, unless log and state machine do not meet.
pub(crate) async fn start<L, N>(
    node: NodeId,
    config: Arc<Config>,
    network: N,
    mut log: L,
    state: StateAdapter,
) -> Result<Raft, StartError>
where
    L: RaftLogStorage<TypeConfig>,
    N: RaftNetworkFactory<TypeConfig>,
    N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
{
    let purged = log.get_log_state().await?.last_purged_log_id;
    let applied = state.last_applied();
    if purged > applied {
        return Err(StartError::Gap {
            applied: applied.map_or(0, |at| at.index()),
            purged: purged.map_or(0, |at| at.index()),
        });
    }
    Ok(Raft::new(node.0, config, network, log, state).await?)
}

/// The logs and the network of a node.
pub(crate) trait Substrate: Send + Sync + 'static {
    /// Groups that the log holds anything of.
    fn groups(&self) -> Vec<GroupId>;

    /// Starts openraft for `group` over its log and its network.
    fn start(
        &self,
        node: NodeId,
        group: GroupId,
        config: Arc<Config>,
        state: StateAdapter,
    ) -> BoxFuture<'_, Result<Raft, StartError>>;

    /// How to say that a round waits for the heartbeats of `group`, where they are gathered.
    fn haste(&self, group: GroupId) -> Option<Haste>;

    /// Forgets the log of `group`; durable when it returns.
    ///
    /// # Errors
    /// Why the log failed.
    fn remove(&self, group: GroupId) -> BoxFuture<'_, Result<(), String>>;
}

//! What a group stands on: a log and a network. One for real nodes, one for tests.

use std::sync::Arc;

use futures::future::BoxFuture;
use openraft::Config;
use openraft::errors::Fatal;

use crate::transport::Haste;
use crate::types::TypeConfig;
use crate::{GroupId, NodeId};

use super::state::StateAdapter;

pub(crate) type Raft = openraft::Raft<TypeConfig, StateAdapter>;

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
    ) -> BoxFuture<'_, Result<Raft, Fatal<TypeConfig>>>;

    /// How to say that a round waits for the heartbeats of `group`, where they are gathered.
    fn haste(&self, group: GroupId) -> Option<Haste>;

    /// Forgets the log of `group`; durable when it returns.
    ///
    /// # Errors
    /// Why the log failed.
    fn remove(&self, group: GroupId) -> BoxFuture<'_, Result<(), String>>;
}

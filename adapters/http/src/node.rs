//! The node as its HTTP doors see it.

use std::sync::Arc;

use futures::future::BoxFuture;
use leadline_kv::node::{ClusterOverview, Readiness};
use leadline_kv::{Coordinator, KvError};
use leadline_raft::{Context, NodeId};

/// What the HTTP doors ask of a node besides its coordinator.
pub trait NodeView: Send + Sync + 'static {
    fn node(&self) -> NodeId;

    fn coordinator(&self) -> Arc<dyn Coordinator>;

    /// Whether this node may be sent requests. Local and cheap.
    fn readiness(&self) -> Readiness;

    /// The cluster as this node can collect it by the end of `ctx`.
    fn overview<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<ClusterOverview, KvError>>;
}

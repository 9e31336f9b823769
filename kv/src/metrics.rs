//! The data plane's metrics above the shards: requests under way, forwarding, peers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The node that a metric is about.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerLabel {
    pub node: u64,
}

/// What the coordinator and the leader proxy count.
#[derive(Clone, Debug, Default)]
pub struct CoordinatorMetrics {
    /// Requests that wait for a leader to be known.
    pub parked: Gauge,
    /// Requests at other nodes' leaders, or on their way there.
    pub forwards_pending: Gauge,
    pub forwards: Counter,
    /// Requests sent again after they were refused, not applied.
    pub retries: Counter,
    /// Requests not sent again because the retry budget was spent.
    pub retries_refused: Counter,
    /// Requests refused because a bound was reached.
    pub overloaded: Counter,
    /// Requests over several shards.
    pub fan_outs: Counter,
    /// Operations run as transactions over several shards; attempts that met a conflict; overdue
    /// locks that were asked about.
    pub transactions: Counter,
    pub conflicts: Counter,
    pub resolved: Counter,
    /// Requests that other nodes forwarded to this one.
    pub served: Counter,
    /// 1 while a peer's circuit breaker is closed (its stream is up), else 0.
    pub peer_up: Family<PeerLabel, Gauge>,
    /// Streams to a peer that broke or went silent.
    pub peer_broken: Family<PeerLabel, Counter>,
}

impl CoordinatorMetrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("coordinator");
        registry.register(
            "parked_requests",
            "Requests that wait for a leader to be known",
            self.parked.clone(),
        );
        registry.register(
            "forwards_pending",
            "Requests at the leaders of other nodes",
            self.forwards_pending.clone(),
        );
        registry.register(
            "forwards",
            "Requests forwarded to the leaders of other nodes",
            self.forwards.clone(),
        );
        registry.register(
            "retries",
            "Requests sent again after a refusal without effects",
            self.retries.clone(),
        );
        registry.register(
            "retries_refused",
            "Requests not sent again because the retry budget was spent",
            self.retries_refused.clone(),
        );
        registry.register(
            "overloaded",
            "Requests refused because a bound was reached",
            self.overloaded.clone(),
        );
        registry.register(
            "fan_outs",
            "Requests over several shards",
            self.fan_outs.clone(),
        );
        registry.register(
            "transactions",
            "Operations run as transactions over several shards",
            self.transactions.clone(),
        );
        registry.register(
            "transaction_conflicts",
            "Attempts at transactions that met a conflict and were repeated",
            self.conflicts.clone(),
        );
        registry.register(
            "overdue_locks",
            "Overdue locks of transactions that were asked about",
            self.resolved.clone(),
        );
        registry.register(
            "served_forwards",
            "Requests that other nodes forwarded to this one",
            self.served.clone(),
        );
        registry.register(
            "peer_up",
            "1 while the circuit breaker of a peer is closed",
            self.peer_up.clone(),
        );
        registry.register(
            "peer_broken",
            "Streams to a peer that broke or went silent",
            self.peer_broken.clone(),
        );
    }
}

//! What executors count, all shards of a node together.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of the shard executors. A clone counts into the same numbers.
#[derive(Clone, Debug, Default)]
pub struct ShardMetrics {
    pub(crate) evaluated: Counter,
    pub(crate) answered: Counter,
    pub(crate) expired: Counter,
    pub(crate) refused: Counter,
    pub(crate) cached_reads: Counter,
    pub(crate) batches: Counter,
    pub(crate) batch_bytes: Counter,
    pub(crate) lives: Counter,
}

impl ShardMetrics {
    /// Adds the counters to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("executor_{name}"), help, counter.clone());
        };
        add("commands", "Commands taken for evaluation", &self.evaluated);
        add(
            "answered",
            "Commands answered by an applied batch",
            &self.answered,
        );
        add(
            "expired",
            "Commands dropped unevaluated at their deadline",
            &self.expired,
        );
        add("refused", "Commands refused by a full queue", &self.refused);
        add(
            "cached_reads",
            "Reads evaluated on their caller's thread",
            &self.cached_reads,
        );
        add("batches", "Effect batches proposed", &self.batches);
        add(
            "batch_bytes",
            "Bytes of effect batches proposed",
            &self.batch_bytes,
        );
        add("lives", "Executors that were started", &self.lives);
    }
}

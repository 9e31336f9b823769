//! What a node holds and waits for, read at each scrape: nothing is counted per request.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Core, Hosting};
use crate::admission::Admission;
use crate::storage::Store;

/// Reads a node's gauges.
pub(super) struct NodeGauges {
    pub(super) core: Weak<Core>,
    pub(super) hosting: Weak<Hosting>,
    pub(super) admission: Arc<Admission>,
    pub(super) store: Weak<Store>,
}

impl fmt::Debug for NodeGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeGauges").finish_non_exhaustive()
    }
}

impl Collector for NodeGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: u64| -> Result<(), fmt::Error> {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        let count = |count: usize| count as u64;
        gauge(
            "node_requests",
            "Requests under way",
            count(self.admission.requests()),
        )?;
        gauge(
            "node_request_bytes",
            "Bytes that requests under way hold",
            count(self.admission.bytes()),
        )?;
        if let Some(hosting) = self.hosting.upgrade() {
            let mut queued = 0;
            let mut reads = 0;
            let mut watched = 0;
            for hosted in hosting.shards.lock().values() {
                queued += hosted.shard.queue_depth();
                reads += hosted.shard.pending_reads();
                watched += hosted.shard.watched();
            }
            gauge(
                "executor_queue",
                "Commands that wait for evaluation",
                count(queued),
            )?;
            gauge(
                "executor_pending_reads",
                "Reads that wait for a proof of leadership",
                count(reads),
            )?;
            gauge(
                "executor_watches",
                "Watches of keys, by blocked commands",
                count(watched),
            )?;
        }
        if let Some(store) = self.store.upgrade() {
            let stats = store.cache_stats();
            gauge("row_cache_bytes", "Bytes in the row cache", stats.bytes)?;
            gauge("row_cache_entries", "Rows in the row cache", stats.entries)?;
            gauge(
                "row_cache_hits",
                "Look-ups the row cache served",
                stats.hits,
            )?;
            gauge(
                "row_cache_misses",
                "Look-ups the row cache did not serve",
                stats.misses,
            )?;
        }
        if let Some(core) = self.core.upgrade() {
            gauge(
                "node_ready",
                "1 while this node may be sent requests",
                core.readiness().ready.into(),
            )?;
            gauge(
                "catalog_epoch",
                "Version of the catalog this node has",
                core.catalog().map_or(0, |catalog| catalog.epoch()),
            )?;
        }
        Ok(())
    }
}

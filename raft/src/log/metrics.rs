//! What the log measures.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The log's metrics; cloning shares them.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    /// Duration of one write with its `fdatasync`, in seconds.
    pub sync_seconds: Histogram,
    /// Syncs of the log.
    pub syncs: Counter,
    /// Entries made durable by one sync.
    pub entries_per_sync: Histogram,
    /// Bytes written before one sync.
    pub bytes_per_sync: Histogram,
    /// Entries made durable.
    pub entries: Counter,
    /// Operations waiting for the flusher.
    pub queue_depth: Gauge,
    /// Bytes waiting for the flusher or being flushed.
    pub queue_bytes: Gauge,
    /// Segment files in use, the active one included.
    pub segments: Gauge,
    /// Bytes of entries kept in memory.
    pub tail_bytes: Gauge,
    /// Reads of entries that were no longer in memory.
    pub disk_reads: Counter,
}

impl Default for LogMetrics {
    fn default() -> Self {
        Self {
            sync_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 18)),
            syncs: Counter::default(),
            entries_per_sync: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            bytes_per_sync: Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            entries: Counter::default(),
            queue_depth: Gauge::default(),
            queue_bytes: Gauge::default(),
            segments: Gauge::default(),
            tail_bytes: Gauge::default(),
            disk_reads: Counter::default(),
        }
    }
}

impl LogMetrics {
    /// Adds the metrics to `registry`, their names beginning with `raft_log`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("raft_log");
        registry.register_with_unit(
            "sync",
            "Duration of one write and fdatasync of the Raft log",
            Unit::Seconds,
            self.sync_seconds.clone(),
        );
        registry.register("syncs", "Syncs of the Raft log", self.syncs.clone());
        registry.register(
            "entries_per_sync",
            "Entries made durable by one fdatasync",
            self.entries_per_sync.clone(),
        );
        registry.register(
            "bytes_per_sync",
            "Bytes written before one fdatasync",
            self.bytes_per_sync.clone(),
        );
        registry.register("entries", "Entries made durable", self.entries.clone());
        registry.register(
            "queue_depth",
            "Operations waiting for the log's flusher",
            self.queue_depth.clone(),
        );
        registry.register_with_unit(
            "queue",
            "Bytes waiting for the log's flusher or being flushed",
            Unit::Bytes,
            self.queue_bytes.clone(),
        );
        registry.register(
            "segments",
            "Segment files in use, the active one included",
            self.segments.clone(),
        );
        registry.register_with_unit(
            "tail",
            "Bytes of log entries kept in memory",
            Unit::Bytes,
            self.tail_bytes.clone(),
        );
        registry.register(
            "disk_reads",
            "Reads of entries that were no longer in memory",
            self.disk_reads.clone(),
        );
    }
}

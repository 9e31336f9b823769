//! What the blob store measures.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::replicated::{Inner, ReplicatedBlobs};

/// The metrics; cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct BlobMetrics {
    /// Duration of one write with its `fdatasync`, in seconds.
    pub(super) sync_seconds: Histogram,
    /// Bytes written to segments, headers and padding included.
    pub(super) bytes_written: Counter,
    pub(super) chunks_written: Counter,
    /// Chunks put that were here already.
    pub(super) duplicates: Counter,
    /// Of `bytes_written`: bytes moved to make room.
    pub(super) bytes_moved: Counter,
    pub(super) local_reads: Counter,
    /// Chunks fetched from peers, once for all who wanted them.
    pub(super) fetches: Counter,
    /// Callers that shared another's fetch.
    pub(super) fetches_shared: Counter,
    pub(super) fetch_failures: Counter,
    /// Chunks pushed to peers.
    pub(super) pushes: Counter,
    pub(super) push_failures: Counter,
    /// Pushes not begun because a peer had too many bytes outstanding: repair brings these chunks.
    pub(super) pushes_skipped: Counter,
    /// Requests refused because a bound was reached.
    pub(super) refused: Counter,
    /// Chunks fetched because a row names them and the disk lacks them.
    pub(super) repaired: Counter,
    /// Chunks or regions found damaged.
    pub(super) damaged: Counter,
    /// Chunks forgotten because no row named them.
    pub(super) collected: Counter,
    pub(super) scrubbed_bytes: Counter,
    /// Times a leader asked what this node lacks before it may vote.
    pub(super) asked: Counter,
    /// Chunks that promotions of this node wait for.
    pub(super) lacking: Gauge,
}

impl Default for BlobMetrics {
    fn default() -> Self {
        Self {
            sync_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 18)),
            bytes_written: Counter::default(),
            chunks_written: Counter::default(),
            duplicates: Counter::default(),
            bytes_moved: Counter::default(),
            local_reads: Counter::default(),
            fetches: Counter::default(),
            fetches_shared: Counter::default(),
            fetch_failures: Counter::default(),
            pushes: Counter::default(),
            push_failures: Counter::default(),
            pushes_skipped: Counter::default(),
            refused: Counter::default(),
            repaired: Counter::default(),
            damaged: Counter::default(),
            collected: Counter::default(),
            scrubbed_bytes: Counter::default(),
            asked: Counter::default(),
            lacking: Gauge::default(),
        }
    }
}

impl BlobMetrics {
    /// Registers all of them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("blobs");
        registry.register_with_unit(
            "sync",
            "Duration of one write and fdatasync of chunks",
            Unit::Seconds,
            self.sync_seconds.clone(),
        );
        let counters = [
            (
                "written_bytes",
                "Bytes written to segments",
                &self.bytes_written,
            ),
            ("chunks_written", "Chunks written", &self.chunks_written),
            (
                "duplicates",
                "Chunks put that were on this disk already",
                &self.duplicates,
            ),
            (
                "moved_bytes",
                "Bytes written to make room in segments",
                &self.bytes_moved,
            ),
            (
                "local_reads",
                "Chunks read from this disk",
                &self.local_reads,
            ),
            ("fetches", "Chunks fetched from peers", &self.fetches),
            (
                "fetches_shared",
                "Reads that shared the fetch of another",
                &self.fetches_shared,
            ),
            (
                "fetch_failures",
                "Fetches that brought no chunk",
                &self.fetch_failures,
            ),
            ("pushes", "Chunks pushed to peers", &self.pushes),
            ("push_failures", "Pushes that failed", &self.push_failures),
            (
                "pushes_skipped",
                "Pushes left to repair because the peer is slow",
                &self.pushes_skipped,
            ),
            (
                "refused",
                "Requests refused because a bound was reached",
                &self.refused,
            ),
            (
                "repaired",
                "Chunks fetched because a row names them and this disk lacked them",
                &self.repaired,
            ),
            (
                "damaged",
                "Chunks or regions of this disk found damaged",
                &self.damaged,
            ),
            (
                "collected",
                "Chunks forgotten because no row named them",
                &self.collected,
            ),
            (
                "scrubbed_bytes",
                "Bytes read again and compared",
                &self.scrubbed_bytes,
            ),
            (
                "promotion_checks",
                "Times a leader asked which chunks this node lacks before it may vote",
                &self.asked,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "lacking",
            "Chunks that this node lacks before it may vote",
            self.lacking.clone(),
        );
    }
}

/// What the store holds and what waits, read at each scrape.
struct BlobGauges(Weak<Inner>);

impl fmt::Debug for BlobGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobGauges").finish_non_exhaustive()
    }
}

impl ReplicatedBlobs {
    /// Adds gauges of what this node holds to `registry`.
    pub(crate) fn register_gauges(&self, registry: &mut Registry) {
        registry
            .sub_registry_with_prefix("blobs")
            .register_collector(Box::new(BlobGauges(Arc::downgrade(&self.inner))));
    }
}

impl Collector for BlobGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(inner) = self.0.upgrade() else {
            return Ok(());
        };
        let stats = inner.store.stats();
        let gauges = [
            ("chunks", "Chunks on this disk", stats.chunks),
            ("segments", "Segment files", stats.segments),
            (
                "live_bytes",
                "Bytes of segments that are needed",
                stats.live_bytes,
            ),
            ("used_bytes", "Bytes of segments", stats.used_bytes),
            (
                "body_bytes",
                "Bytes of bodies on their way to disk",
                inner.budget.held() as u64,
            ),
            (
                "reads_waiting",
                "Reads of this disk that wait for their turn",
                (inner.local_reads.waiting() + inner.serves.waiting()) as u64,
            ),
            (
                "fetching",
                "Chunks being fetched from peers",
                inner.flights.len() as u64,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

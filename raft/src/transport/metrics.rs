//! The transport's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::NodeId;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: u64,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// What the transport counts, per peer and traffic class.
#[derive(Clone, Debug, Default)]
pub struct TransportMetrics {
    frames: Family<PeerLabels, Counter>,
    requests: Family<PeerLabels, Counter>,
    answers: Family<PeerLabels, Counter>,
    dropped_full: Family<PeerLabels, Counter>,
    closed: Family<PeerLabels, Counter>,
    dials: Family<PeerLabels, Counter>,
    failures: Family<PeerLabels, Counter>,
    stalls: Family<PeerLabels, Counter>,
    connected: Family<PeerLabels, Gauge>,
    snapshot_bytes: Family<Direction, Counter>,
}

impl TransportMetrics {
    /// Adds every metric to `registry`, each name beginning with `raft_transport_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("raft_transport");
        registry.register(
            "frames",
            "Messages sent to a peer, each with everything that waited",
            self.frames.clone(),
        );
        registry.register("requests", "Requests sent to a peer", self.requests.clone());
        registry.register(
            "answers",
            "Messages with answers from a peer, each with everything that had ended",
            self.answers.clone(),
        );
        registry.register(
            "dropped_full",
            "Requests dropped because the peer's queue was full",
            self.dropped_full.clone(),
        );
        registry.register(
            "closed",
            "Requests refused because the peer is not connected",
            self.closed.clone(),
        );
        registry.register("dials", "Attempts to connect to a peer", self.dials.clone());
        registry.register(
            "failures",
            "Connections to a peer that failed, or ended with an error",
            self.failures.clone(),
        );
        registry.register(
            "stalls",
            "Connections given up because a peer answered nothing for too long",
            self.stalls.clone(),
        );
        registry.register(
            "connected",
            "Whether the stream to a peer is up (1) or not (0)",
            self.connected.clone(),
        );
        registry.register(
            "snapshot_bytes",
            "Snapshot data sent and received",
            self.snapshot_bytes.clone(),
        );
    }

    /// The counters of one lane, looked up once.
    pub(super) fn lane(&self, peer: NodeId, class: &'static str) -> LaneMetrics {
        let labels = PeerLabels {
            peer: peer.0,
            class,
        };
        LaneMetrics {
            frames: self.frames.get_or_create(&labels).clone(),
            requests: self.requests.get_or_create(&labels).clone(),
            answers: self.answers.get_or_create(&labels).clone(),
            dropped_full: self.dropped_full.get_or_create(&labels).clone(),
            closed: self.closed.get_or_create(&labels).clone(),
            dials: self.dials.get_or_create(&labels).clone(),
            failures: self.failures.get_or_create(&labels).clone(),
            stalls: self.stalls.get_or_create(&labels).clone(),
            connected: self.connected.get_or_create(&labels).clone(),
        }
    }

    pub(super) fn snapshot_sent(&self, bytes: u64) {
        self.snapshot_bytes
            .get_or_create(&Direction { direction: "sent" })
            .inc_by(bytes);
    }

    pub(super) fn snapshot_received(&self, bytes: u64) {
        self.snapshot_bytes
            .get_or_create(&Direction {
                direction: "received",
            })
            .inc_by(bytes);
    }
}

/// The counters of one peer and class.
#[derive(Clone, Debug)]
pub(super) struct LaneMetrics {
    pub(super) frames: Counter,
    pub(super) requests: Counter,
    pub(super) answers: Counter,
    pub(super) dropped_full: Counter,
    pub(super) closed: Counter,
    pub(super) dials: Counter,
    pub(super) failures: Counter,
    pub(super) stalls: Counter,
    pub(super) connected: Gauge,
}

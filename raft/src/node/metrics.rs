//! What the groups of a node measure, read when it is asked for: nothing is counted per request.

use std::fmt;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::engine::{GroupStatus, Status};

use super::group::Group;
use super::host::Host;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGroup {
    group: u64,
}

/// Encodes one metric of every group.
type Gauge = (&'static str, &'static str, fn(&GroupStatus) -> u64);

const GAUGES: &[Gauge] = &[
    ("term", "Raft term", |s| s.term.0),
    (
        "leading",
        "1 while this node leads and a quorum has acknowledged it lately",
        |s| s.leading.into(),
    ),
    ("last_log_index", "Index of the last log entry", |s| {
        s.last_log_index.0
    }),
    ("commit_index", "Index known to be committed", |s| {
        s.commit_index.0
    }),
    ("last_applied", "Index applied to the state machine", |s| {
        s.last_applied.0
    }),
    (
        "durable_index",
        "Index up to which the state machine is on disk",
        |s| s.snapshot_index.0,
    ),
    (
        "pending_proposals",
        "Proposals whose end is not known yet",
        |s| s.pending_proposals,
    ),
    (
        "pending_verifications",
        "Callers that wait for a proof of leadership",
        |s| s.pending_reads,
    ),
    (
        "stopped",
        "1 while the group does not run on this node",
        |s| s.stopped.is_some().into(),
    ),
];

type Counter = (&'static str, &'static str, fn(&Group) -> u64);

const COUNTERS: &[Counter] = &[
    (
        "leader_changes",
        "Changes of the leader that this node has seen",
        |g| g.leader_changes.load(Ordering::Relaxed),
    ),
    ("read_index_rounds", "ReadIndex rounds sent", Group::rounds),
    (
        "rebuilds",
        "Attempts to build the group again after it died",
        |g| g.rebuilds.load(Ordering::Relaxed),
    ),
];

/// Reads the groups' states at each scrape.
pub(crate) struct GroupMetrics(pub(crate) Weak<Host>);

impl fmt::Debug for GroupMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupMetrics")
    }
}

impl Collector for GroupMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(host) = self.0.upgrade() else {
            return Ok(());
        };
        let groups = host.groups();
        let statuses: Vec<GroupStatus> = groups.iter().map(|group| group.status()).collect();
        for (name, help, value) in GAUGES {
            let gauge = ConstGauge::new(0i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for status in &statuses {
                let label = OfGroup {
                    group: status.group.0,
                };
                let value = i64::try_from(value(status)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&label)?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let counter = ConstCounter::new(0u64);
            let mut family = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for group in &groups {
                let label = OfGroup { group: group.id.0 };
                ConstCounter::new(value(group)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

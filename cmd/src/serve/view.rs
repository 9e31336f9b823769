//! The node as its doors see it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use leadline_http::NodeView;
use leadline_kv::node::{ClusterOverview, Node, Readiness};
use leadline_kv::{Coordinator, KvError};
use leadline_raft::{Context, NodeId};
use leadline_redis::{Facts, NodeFacts};

use crate::config::Settings;

/// A node and what the doors tell of it.
pub(super) struct View {
    node: Arc<Node>,
    read_mode: &'static str,
    data_dir: PathBuf,
}

impl View {
    pub(super) fn new(node: Arc<Node>, settings: &Settings) -> Self {
        Self {
            node,
            read_mode: super::read_mode_name(settings.read_mode),
            data_dir: settings.data_dir.clone(),
        }
    }
}

impl NodeView for View {
    fn node(&self) -> NodeId {
        self.node.id()
    }

    fn coordinator(&self) -> Arc<dyn Coordinator> {
        self.node.coordinator()
    }

    fn readiness(&self) -> Readiness {
        self.node.readiness()
    }

    fn overview<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<ClusterOverview, KvError>> {
        Box::pin(async move { Ok(self.node.overview(ctx).await) })
    }
}

impl NodeFacts for View {
    fn facts(&self) -> Facts {
        let status = self.node.status();
        let (nodes, voters) = self.node.members_and_copies();
        let data_groups = status.groups.iter().filter(|group| group.group.0 != 0);
        Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.node.id().0,
            cluster_id: self.node.cluster().0,
            nodes,
            voters,
            shards: data_groups.clone().count(),
            shards_led: data_groups.filter(|group| group.leading).count(),
            read_mode: self.read_mode.to_owned(),
            engine: self.node.engine().to_string(),
            memory_bytes: resident_bytes(),
        }
    }

    fn cpu_times(&self) -> (Duration, Duration) {
        cpu_times()
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.data_dir)
    }

    fn unix_time(&self) -> Duration {
        self.node.unix_time()
    }
}

/// Resident memory of this process; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// CPU time of this process and of the kernel for it; none where the kernel does not say.
fn cpu_times() -> (Duration, Duration) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, which may have anything in it, ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |field: usize| -> Option<f64> {
        let ticks: u32 = fields.split_whitespace().nth(field)?.parse().ok()?;
        Some(f64::from(ticks))
    };
    let each = rustix::param::clock_ticks_per_second() as f64;
    let time = |field| Duration::from_secs_f64(ticks(field).unwrap_or(0.0) / each);
    (time(11), time(12))
}

/// Bytes that a directory takes on its disk, as far as it can be read.
fn directory_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_what_is_computed() {
        let began = std::time::Instant::now();
        let (before, _) = cpu_times();
        while cpu_times().0 < before + Duration::from_millis(100) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{:?}",
                cpu_times()
            );
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
        // No more than all processors can give, give or take a tick.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = began.elapsed() * u32::try_from(cores).unwrap() + Duration::from_millis(50);
        assert!(cpu_times().0 - before < most, "{:?}", cpu_times());
    }
}

//! The node as its doors see it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use leadline_http::NodeView;
use leadline_kv::node::{ClusterOverview, Node, Readiness};
use leadline_kv::{Coordinator, Door, KvError};
use leadline_raft::{Context, NodeId};
use leadline_redis::{Facts, NodeFacts};

use crate::config::Settings;
use crate::process;

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
        let of_redis = self.node.groups_of(Door::Redis);
        let shards = status
            .groups
            .iter()
            .filter(|status| of_redis.contains(&status.group));
        Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.node.id().0,
            cluster_id: self.node.cluster().0,
            nodes,
            voters,
            shards: shards.clone().count(),
            shards_led: shards.filter(|group| group.leading).count(),
            read_mode: self.read_mode.to_owned(),
            engine: self.node.engine().to_string(),
            memory_bytes: resident_bytes(),
        }
    }

    fn cpu_times(&self) -> (Duration, Duration) {
        // None where the kernel does not say.
        process::cpu_times(std::process::id()).unwrap_or_default()
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

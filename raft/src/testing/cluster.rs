//! [`SimCluster`]: several real nodes in one process, over simulated disks and a simulated network, in
//! virtual time.
//!
//! To be run on a current-thread runtime whose clock is paused, by a thread that has a
//! [`seed`](super::seeded::seed): message times, losses, flush times and election timeouts are drawn
//! from it, and blocking work is done in place, so a seed gives the same run again.
//!
//! # Invariants
//! The cluster looks at them whenever it is asked to ([`SimCluster::inspect`]), and panics:
//! 1. One leader per term.
//! 2. Log matching: entries of one index and term are preceded by the same entries everywhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::memory_log::MemoryLogs;
use super::wire::{TestSubstrate, VirtualClock, Weather, Wire};
use crate::engine::{LeaderView, Leadership, Membership, ReadMode, StateMachines, Timing};
use crate::node::Group;
use crate::node::host::{Host, Inbox};
use crate::node::settings::Settings;
use crate::{Context, GroupId, NodeId, Term};

/// Long enough for anything that can happen at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives a simulated node.
pub struct SimDisk {
    logs: MemoryLogs,
    machines: Arc<dyn StateMachines>,
    lose_power: Box<dyn Fn() + Send + Sync>,
}

impl SimDisk {
    /// A disk whose log flushes take times within `flush`. `lose_power` takes from `machines` what
    /// they had not made durable.
    pub fn new(
        flush: Range<Duration>,
        machines: Arc<dyn StateMachines>,
        lose_power: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            logs: MemoryLogs::with_flushes(flush, false),
            machines,
            lose_power: Box::new(lose_power),
        }
    }

    /// The same disk, which says that something is durable before it is.
    #[must_use]
    pub fn lying(mut self) -> Self {
        if let Some(flush) = self.logs.flushes() {
            self.logs = MemoryLogs::with_flushes(flush, true);
        }
        self
    }
}

/// Nodes, their disks, and the links between them; one group.
pub struct SimCluster {
    group: GroupId,
    wire: Arc<Wire>,
    disks: BTreeMap<NodeId, SimDisk>,
    hosts: BTreeMap<NodeId, Arc<Host>>,
    settings: Settings,
    leaders: BTreeMap<Term, NodeId>,
}

fn ctx() -> Context {
    Context::with_timeout(PATIENCE)
}

impl SimCluster {
    /// A group over as many nodes as there are disks, led by node 1.
    ///
    /// # Panics
    /// If it does not come to be.
    pub async fn start(group: GroupId, disks: Vec<SimDisk>, read_mode: ReadMode) -> Self {
        let mut cluster = Self {
            group,
            wire: Arc::default(),
            disks: (1..).map(NodeId).zip(disks).collect(),
            hosts: BTreeMap::new(),
            settings: Settings {
                clock: Arc::new(VirtualClock(Instant::now())),
                ..Settings::new(Timing::default(), read_mode, 1 << 20)
            },
            leaders: BTreeMap::new(),
        };
        for node in cluster.nodes() {
            cluster.start_node(node).await;
            if node == NodeId(1) {
                let host = &cluster.hosts[&node];
                host.bootstrap(&ctx(), group).await.expect("a first node");
                let leads = cluster.leader().await;
                assert_eq!(leads, node, "the only node leads");
                continue;
            }
            let first = cluster.group(NodeId(1)).expect("the first node runs");
            let address = format!("node-{node}");
            let added = first.add_learner(&ctx(), node, address).await;
            added.expect("a learner");
            first.promote(&ctx(), node).await.expect("a voter");
        }
        cluster
    }

    /// Every node, running or not.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.disks.keys().copied().collect()
    }

    /// The replica on `node`, if it runs.
    #[must_use]
    pub fn group(&self, node: NodeId) -> Option<Arc<Group>> {
        self.hosts.get(&node)?.group(self.group)
    }

    /// Starts `node` on its disk as it was left.
    ///
    /// # Panics
    /// If it does not start: its disk is never damaged.
    pub async fn start_node(&mut self, node: NodeId) {
        let disk = &self.disks[&node];
        let substrate = TestSubstrate {
            wire: Arc::clone(&self.wire),
            node,
            logs: disk.logs.clone(),
        };
        let opened = Host::open(
            node,
            format!("node-{node}"),
            self.settings.clone(),
            Arc::new(substrate),
            Arc::clone(&disk.machines),
        );
        let host = match opened.await {
            Ok(host) => host,
            Err(failed) => panic!("node {node} does not start: {failed}"),
        };
        self.wire.connect(node, Inbox(Arc::downgrade(&host)));
        self.hosts.insert(node, host);
    }

    /// Ends `node` at once; with `power`, what its disk had not made durable goes with it.
    pub async fn crash(&mut self, node: NodeId, power: bool) {
        self.wire.disconnect(node);
        let Some(host) = self.hosts.remove(&node) else {
            return;
        };
        let disk = &self.disks[&node];
        if power {
            disk.logs.crash();
        }
        host.shutdown(&ctx()).await;
        drop(host);
        if power {
            disk.logs.crash();
            (disk.lose_power)();
        }
    }

    /// Whether `node` runs.
    #[must_use]
    pub fn is_running(&self, node: NodeId) -> bool {
        self.hosts.contains_key(&node)
    }

    /// `to` hears nothing from `from` any more.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.wire.cut(from, to);
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.wire.heal();
    }

    /// Messages take times within `latency` one way, and so many in a hundred are lost.
    pub fn weather(&self, latency: Range<Duration>, lost: u64) {
        self.wire.set_weather(Weather {
            latency: Some(latency),
            lost,
        });
    }

    /// Waits until some node leads.
    ///
    /// # Panics
    /// If none does in time.
    pub async fn leader(&self) -> NodeId {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for node in self.hosts.keys() {
                let leads = self
                    .group(*node)
                    .is_some_and(|group| matches!(group.leadership(), Leadership::Leader(_)));
                if leads {
                    return *node;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no node leads within {PATIENCE:?}");
    }

    /// Looks whether the invariants hold.
    ///
    /// # Panics
    /// If one does not.
    pub fn inspect(&mut self) {
        for node in self.hosts.keys() {
            let Some(group) = self.group(*node) else {
                continue;
            };
            if let Leadership::Leader(leader) = group.leadership()
                && leader.node == *node
            {
                let known = *self.leaders.entry(leader.term).or_insert(*node);
                assert_eq!(known, *node, "two leaders in term {}", leader.term);
            }
        }
        let logs: Vec<BTreeMap<u64, u64>> = self
            .disks
            .values()
            .map(|disk| disk.logs.group(self.group).terms())
            .collect();
        for (nth, a) in logs.iter().enumerate() {
            for b in &logs[nth + 1..] {
                // From the last entry that both have, all before it must be the same.
                let common = a.iter().rev().find(|(at, term)| b.get(*at) == Some(*term));
                let Some((last, _)) = common else { continue };
                for (at, term) in a.range(..last) {
                    if let Some(other) = b.get(at) {
                        assert_eq!(term, other, "logs match at {last} and differ at {at}");
                    }
                }
            }
        }
    }

    /// Stops every node.
    pub async fn stop(mut self) {
        for node in self.nodes() {
            self.crash(node, false).await;
        }
    }
}

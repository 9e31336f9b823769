//! Nodes in one process: real groups over logs in memory and a network of function calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::{
    LeaderView, Leadership, Membership, Proposer, ReadMode, StateMachines, Timing,
};
use crate::node::group::Group;
use crate::node::host::{Host, Inbox};
use crate::node::settings::Settings;
use crate::testing::memory_log::MemoryLogs;
use crate::testing::wire::{TestSubstrate, VirtualClock, Wire};
use crate::testing::{MemoryMachine, MemoryMachines};
use crate::{Context, GroupId, NodeId, RaftError};

pub(super) const GROUP: GroupId = GroupId(1);

/// Long enough for anything that can happen at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// What outlives a node: its disks.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) logs: MemoryLogs,
    pub(super) machines: MemoryMachines,
}

/// Nodes, their disks, and the links between them.
pub(super) struct Cluster {
    wire: Arc<Wire>,
    hosts: BTreeMap<NodeId, Arc<Host>>,
    disks: BTreeMap<NodeId, Disk>,
    settings: Settings,
}

pub(super) fn ctx() -> Context {
    Context::with_timeout(PATIENCE)
}

impl Cluster {
    /// Nothing but links.
    pub(super) fn empty(read_mode: ReadMode) -> Self {
        Self {
            wire: Arc::default(),
            hosts: BTreeMap::new(),
            disks: BTreeMap::new(),
            settings: Settings {
                clock: Arc::new(VirtualClock(Instant::now())),
                ..Settings::new(Timing::default(), read_mode, 1 << 20)
            },
        }
    }

    /// One group over nodes 1 to `nodes`, led by node 1.
    pub(super) async fn of(nodes: u64, read_mode: ReadMode) -> Self {
        let mut cluster = Self::empty(read_mode);
        cluster.start(1).await;
        cluster.host(1).bootstrap(&ctx(), GROUP).await.unwrap();
        cluster.leads(1).await;
        for node in 2..=nodes {
            cluster.start(node).await;
            cluster.join(1, node).await;
        }
        cluster
    }

    /// Starts `node` on its disk, new or as it was left.
    pub(super) async fn start(&mut self, node: u64) {
        self.try_start(node).await.unwrap();
    }

    /// As [`Cluster::start`]; why it did not start.
    pub(super) async fn try_start(&mut self, node: u64) -> Result<(), String> {
        let node = NodeId(node);
        let disk = self.disks.entry(node).or_default().clone();
        let substrate = TestSubstrate {
            wire: self.wire.clone(),
            node,
            logs: disk.logs,
        };
        let machines: Arc<dyn StateMachines> = Arc::new(disk.machines);
        let host = Host::open(
            node,
            format!("node-{node}"),
            self.settings.clone(),
            Arc::new(substrate),
            machines,
        )
        .await
        .map_err(|failed| failed.to_string())?;
        let inbox = Inbox(Arc::downgrade(&host));
        self.wire.connect(node, inbox);
        self.hosts.insert(node, host);
        Ok(())
    }

    /// Stops `node`; its disk stays.
    pub(super) async fn stop(&mut self, node: u64) {
        self.wire.disconnect(NodeId(node));
        let host = self.hosts.remove(&NodeId(node)).unwrap();
        host.shutdown(&ctx()).await;
    }

    pub(super) async fn stop_all(mut self) {
        for node in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.stop(node.0).await;
        }
    }

    /// Makes `node` a voter, through `leader`.
    pub(super) async fn join(&self, leader: u64, node: u64) {
        let group = self.group(leader);
        let address = format!("node-{node}");
        group
            .add_learner(&ctx(), NodeId(node), address)
            .await
            .unwrap();
        group.promote(&ctx(), NodeId(node)).await.unwrap();
    }

    pub(super) fn host(&self, node: u64) -> &Arc<Host> {
        &self.hosts[&NodeId(node)]
    }

    /// The node, unless it is stopped.
    pub(super) fn running(&self, node: u64) -> Option<&Arc<Host>> {
        self.hosts.get(&NodeId(node))
    }

    pub(super) fn group(&self, node: u64) -> Arc<Group> {
        self.host(node).group(GROUP).unwrap()
    }

    pub(super) fn disk(&self, node: u64) -> &Disk {
        &self.disks[&NodeId(node)]
    }

    pub(super) fn machine(&self, node: u64) -> MemoryMachine {
        self.disk(node).machines.machine(GROUP)
    }

    pub(super) fn cut(&self, from: u64, to: u64) {
        self.wire.cut(NodeId(from), NodeId(to));
    }

    /// Nobody hears what `node` asks; it hears and answers.
    pub(super) fn mute(&self, node: u64) {
        self.wire.mute(NodeId(node));
    }

    /// Cuts `node` off from all others, both ways.
    pub(super) fn isolate(&self, node: u64) {
        for other in self.disks.keys() {
            self.cut(node, other.0);
            self.cut(other.0, node);
        }
    }

    pub(super) fn heal(&self) {
        self.wire.heal();
    }

    /// Waits until `node` leads.
    pub(super) async fn leads(&self, node: u64) {
        let mut changes = self.group(node).leadership_changes();
        let leads = changes.wait_for(|now| matches!(now, Leadership::Leader(_)));
        tokio::time::timeout(PATIENCE, leads)
            .await
            .expect("the node leads in time")
            .unwrap();
    }

    /// Waits until one of `nodes` leads.
    pub(super) async fn leader_of(&self, nodes: &[u64]) -> u64 {
        for _ in 0..3000 {
            for node in nodes {
                if matches!(self.group(*node).leadership(), Leadership::Leader(_)) {
                    return *node;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("none of {nodes:?} leads in time");
    }

    pub(super) async fn propose(&self, node: u64, entry: &str) -> Result<(), RaftError> {
        let entry = Bytes::copy_from_slice(entry.as_bytes());
        self.group(node).propose(&ctx(), entry).await.map(drop)
    }

    /// Waits until `node` has applied `entry`.
    pub(super) async fn applies(&self, node: u64, entry: &str) {
        for _ in 0..3000 {
            if self.machine(node).payloads().iter().any(|p| p == entry) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("node {node} does not apply {entry} in time");
    }
}

impl Cluster {
    /// Proposes `entry` until it is applied: for a leader that is still on its way.
    pub(super) async fn propose_until_applied(&self, node: u64, entry: &str) {
        for _ in 0..3000 {
            if self.propose(node, entry).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("node {node} does not take {entry} in time");
    }
}

//! Whole nodes: the real log on disk, the real transport on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::engine::{LeaderView, Leadership, Membership, Proposer, ReadMode, Status, Timing};
use crate::log::LogOptions;
use crate::node::{NodeConfig, RaftNode};
use crate::testing::MemoryMachines;
use crate::{ClusterId, Context, GroupId, NodeId};

const GROUP: GroupId = GroupId(7);
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    node: Arc<RaftNode>,
    stop: CancellationToken,
    server: JoinSet<()>,
    registry: Registry,
}

struct Machine {
    dir: TempDir,
    states: MemoryMachines,
    listen: SocketAddr,
}

fn ctx() -> Context {
    Context::with_timeout(PATIENCE)
}

impl Machine {
    async fn new() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
            states: MemoryMachines::default(),
            listen: listener.local_addr().unwrap(),
        };
        (machine, listener)
    }

    async fn start(&self, node: u64, listener: TcpListener) -> Running {
        let mut registry = Registry::default();
        let config = NodeConfig {
            node: NodeId(node),
            cluster: ClusterId(42),
            dir: self.dir.path().join("raft"),
            advertise: self.listen.to_string(),
            tls: None,
            timing: Timing::default(),
            read_mode: ReadMode::ReadIndex,
            log: LogOptions {
                segment_bytes: 4 << 20,
                disk_bytes: 16 << 20,
                ..LogOptions::default()
            },
        };
        let states = Arc::new(self.states.clone());
        let node = RaftNode::open(&ctx(), config, states, &mut registry)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let served = node
            .server()
            .unwrap()
            .add_service(node.service())
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        let mut server = JoinSet::new();
        server.spawn(async move { served.await.unwrap() });
        Running {
            node,
            stop,
            server,
            registry,
        }
    }
}

impl Running {
    async fn stop(mut self) {
        self.node.shutdown(&ctx()).await;
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.server.join_next())
            .await
            .expect("the server ends in time");
    }
}

async fn leads(node: &RaftNode) {
    let mut changes = node.group(GROUP).unwrap().leadership_changes();
    let leads = changes.wait_for(|now| matches!(now, Leadership::Leader(_)));
    tokio::time::timeout(PATIENCE, leads)
        .await
        .expect("leads in time")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_keeps_what_it_acknowledged_over_a_restart_and_says_what_it_does() {
    let (machine, listener) = Machine::new().await;
    let running = machine.start(1, listener).await;
    let group = running.node.bootstrap(&ctx(), GROUP).await.unwrap();
    leads(&running.node).await;
    for n in 0..50 {
        let entry = format!("{n}").into();
        group.propose(&ctx(), entry).await.unwrap();
    }
    assert!(group.verify_leader_now().is_some());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &running.registry).unwrap();
    assert!(text.contains("raft_group_leading{group=\"7\"} 1"), "{text}");
    drop(group);
    running.stop().await;

    machine.states.crash();
    let listener = TcpListener::bind(machine.listen).await.unwrap();
    let running = machine.start(1, listener).await;
    leads(&running.node).await;
    let group = running.node.group(GROUP).unwrap();
    group.linearizable_read(&ctx()).await.unwrap();
    assert_eq!(machine.states.machine(GROUP).payloads().len(), 50);
    drop(group);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_over_sockets_survive_a_leader_and_send_snapshots() {
    let (first, listener) = Machine::new().await;
    let one = first.start(1, listener).await;
    let group = one.node.bootstrap(&ctx(), GROUP).await.unwrap();
    leads(&one.node).await;
    // More than the log's tail: the joining nodes need a snapshot.
    let big = vec![7u8; 64 << 10];
    for _ in 0..200 {
        group.propose(&ctx(), big.clone().into()).await.unwrap();
    }
    let purged = async {
        while group.status().snapshot_index.0 < 150 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
    };
    tokio::time::timeout(PATIENCE, purged).await.unwrap();

    let mut others = Vec::new();
    for id in [2, 3] {
        let (machine, listener) = Machine::new().await;
        let running = machine.start(id, listener).await;
        let address = machine.listen.to_string();
        group
            .add_learner(&ctx(), NodeId(id), address)
            .await
            .unwrap();
        group.promote(&ctx(), NodeId(id)).await.unwrap();
        others.push((machine, running));
    }
    group.propose(&ctx(), "last".into()).await.unwrap();
    group.verify_leader(&ctx()).await.unwrap();

    drop(group);
    one.stop().await;
    let (new, _) = tokio::time::timeout(PATIENCE, async {
        futures::future::select_all(
            others
                .iter()
                .map(|(_, running)| Box::pin(leads(&running.node))),
        )
        .await
    })
    .await
    .map(|(_, at, _)| (at, ()))
    .expect("another node leads in time");
    let group = others[new].1.node.group(GROUP).unwrap();
    group.propose(&ctx(), "after".into()).await.unwrap();
    group.linearizable_read(&ctx()).await.unwrap();
    let payloads = others[new].0.states.machine(GROUP).payloads();
    assert_eq!(payloads.len(), 202);
    assert_eq!(payloads[201], "after");
    drop(group);
    for (_, running) in others {
        running.stop().await;
    }
}

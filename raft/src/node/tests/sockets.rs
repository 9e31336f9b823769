//! Whole nodes, over their real logs and real sockets, in real time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;

use crate::engine::{
    LeaderView, Leadership, Membership, Proposer, ReadMode, Role, StateMachines, Timing,
};
use crate::grpc::DeadlineLayer;
use crate::log::LogOptions;
use crate::node::{Group, NodeConfig, RaftNode};
use crate::testing::MemoryMachines;
use crate::{ClusterId, Context, GroupId, NodeId};

const GROUP: GroupId = GroupId(1);

struct Member {
    node: Arc<RaftNode>,
    machines: Arc<MemoryMachines>,
    address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Member {
    async fn start(id: u64, dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let machines = Arc::new(MemoryMachines::default());
        let config = NodeConfig {
            node: NodeId(id),
            cluster: ClusterId(9),
            dir: dir.join(id.to_string()),
            advertise: address.to_string(),
            tls: None,
            timing: Timing {
                heartbeat: Duration::from_millis(100),
                election_min: Duration::from_millis(400),
                election_max: Duration::from_millis(800),
            },
            read_mode: ReadMode::ReadIndex,
            log: LogOptions::default(),
        };
        let node = RaftNode::open(
            &ctx(),
            config,
            Arc::clone(&machines) as Arc<dyn StateMachines>,
            &mut Registry::default(),
        )
        .await
        .unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let server = node
            .server()
            .unwrap()
            .layer(DeadlineLayer::default())
            .add_service(node.service())
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        tasks.spawn(async move { server.await.unwrap() });
        Self {
            node,
            machines,
            address,
            tasks,
            stop,
        }
    }

    fn group(&self) -> Arc<Group> {
        self.node.group(GROUP).expect("the node hosts the group")
    }

    fn applied(&self) -> Vec<Bytes> {
        self.machines.machine(GROUP).payloads()
    }

    async fn stop(self) {
        self.node.shutdown(&ctx()).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn ctx() -> Context {
    Context::with_timeout(Duration::from_secs(20))
}

fn payload(n: u32) -> Bytes {
    Bytes::from(n.to_be_bytes().to_vec())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_over_sockets_and_outlive_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = BTreeMap::new();
    for id in 1..=3 {
        members.insert(id, Member::start(id, dir.path()).await);
    }
    let first = members[&1].node.bootstrap(&ctx(), GROUP).await.unwrap();
    let leads = || matches!(first.leadership(), Leadership::Leader(_));
    for id in 2..=3 {
        until("the first node leads", leads).await;
        let address = members[&id].address.to_string();
        first
            .add_learner(&ctx(), NodeId(id), address)
            .await
            .unwrap();
        first.promote(&ctx(), NodeId(id)).await.unwrap();
    }
    assert!(first.members().values().all(|m| m.role == Role::Voter));

    for n in 0..100 {
        first.propose(&ctx(), payload(n)).await.unwrap();
    }
    let large = Bytes::from(vec![9; crate::MAX_ENTRY_BYTES]);
    first.propose(&ctx(), large.clone()).await.unwrap();
    // Faster than heartbeats gather for one message: a round does not wait for them.
    let began = Instant::now();
    for _ in 0..50 {
        first.verify_leader(&ctx()).await.unwrap();
    }
    let round = began.elapsed() / 50;
    assert!(round < Duration::from_millis(20), "{round:?} per round");
    let everything: Vec<_> = (0..100).map(payload).chain([large]).collect();
    for member in members.values() {
        until("applied everywhere", || member.applied() == everything).await;
    }

    members.remove(&1).unwrap().stop().await;
    let led = || {
        members
            .values()
            .find(|member| matches!(member.group().leadership(), Leadership::Leader(_)))
    };
    until("another leader", || led().is_some()).await;
    let leader = led().expect("just seen").group();
    leader.propose(&ctx(), payload(100)).await.unwrap();
    leader.linearizable_read(&ctx()).await.unwrap();
    for member in members.values() {
        until("applied by the rest", || member.applied().len() == 102).await;
    }
    drop(leader);
    for (_, member) in members {
        member.stop().await;
    }
}

//! Whole nodes in one process, over loopback sockets and real directories.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use leadline_raft::engine::{Membership, ReadMode, Role, Timing};
use leadline_raft::{Context, GroupId, NodeId};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{BlobConfig, Bootstrap, Node, NodeConfig, OpenError};
use crate::blobs::{BlobError, CHUNK_BYTES, ChunkRef, ChunkReferences};
use crate::catalog::{Addresses, MemberState};
use crate::cluster::ClusterClient;
use crate::keyspace::{SLOTS, slot_start};
use crate::{Access, Coordinator, Door, KvError, Operation, OperationCodec, Route, RowError, Rows};

/// Reads a row, or writes it first.
#[derive(Debug)]
struct Cell {
    keys: [Bytes; 1],
    value: Option<Bytes>,
}

impl Operation for Cell {
    fn name(&self) -> &'static str {
        "CELL"
    }
    fn door(&self) -> Door {
        Door::Redis
    }
    fn access(&self) -> Access {
        match self.value {
            Some(_) => Access::Write,
            None => Access::Read,
        }
    }
    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }
    fn size(&self) -> usize {
        self.keys[0].len() + self.value.as_ref().map_or(0, Bytes::len)
    }
    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        if let Some(value) = &self.value {
            rows.put(self.keys[0].clone(), value.clone());
            return Ok(Bytes::from_static(b"written"));
        }
        Ok(rows.get(&self.keys[0])?.unwrap_or_default())
    }
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[u8::try_from(self.keys[0].len()).unwrap()]);
        out.extend_from_slice(&self.keys[0]);
        if let Some(value) = &self.value {
            out.extend_from_slice(b"=");
            out.extend_from_slice(value);
        }
    }
}

struct CellCodec;

impl OperationCodec for CellCodec {
    fn decode(&self, mut bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        let length = usize::from(bytes.split_to(1)[0]);
        let key = bytes.split_to(length);
        let value = (!bytes.is_empty()).then(|| bytes.slice(1..));
        Ok(Arc::new(Cell { keys: [key], value }))
    }
}

/// A cell whose value is just a chunk's name names that chunk.
struct CellReferences;

impl ChunkReferences for CellReferences {
    fn range(&self) -> Range<Bytes> {
        Bytes::from_static(&[0x10])..Bytes::from_static(&[0x11])
    }

    fn chunks(
        &self,
        _key: &[u8],
        value: &[u8],
        visit: &mut dyn FnMut(ChunkRef),
    ) -> Result<(), String> {
        if let Some((chunk, [])) = ChunkRef::decode(value) {
            visit(chunk);
        }
        Ok(())
    }
}

/// The `i`th of some keys spread over all shards.
fn key(i: u16) -> [Bytes; 1] {
    let mut key = slot_start(i.wrapping_mul(977) % SLOTS).to_vec();
    key.extend_from_slice(format!("\0key{i}").as_bytes());
    [key.into()]
}

fn put(i: u16, value: &str) -> Arc<Cell> {
    Arc::new(Cell {
        keys: key(i),
        value: Some(value.to_owned().into()),
    })
}

fn get(i: u16) -> Arc<Cell> {
    Arc::new(Cell {
        keys: key(i),
        value: None,
    })
}

fn seconds(seconds: u64) -> Context {
    Context::with_timeout(Duration::from_secs(seconds))
}

/// A node that serves its gRPC port.
struct Served {
    node: Arc<Node>,
    address: String,
    dir: Arc<TempDir>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Served {
    async fn open(bootstrap: Bootstrap) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        Self::open_in(dir, bootstrap).await.unwrap()
    }

    async fn open_in(dir: Arc<TempDir>, bootstrap: Bootstrap) -> Result<Self, OpenError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = NodeConfig {
            data_dir: dir.path().to_owned(),
            engine: None,
            cache_bytes: 1 << 20,
            memory_budget: 16 << 20,
            bootstrap,
            node: None,
            advertise: Addresses {
                grpc: address.clone(),
                ..Addresses::default()
            },
            tls: None,
            read_mode: ReadMode::ReadIndex,
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_millis(300),
                election_max: Duration::from_millis(600),
            },
            codecs: vec![(Door::Redis, Arc::new(CellCodec))],
            sweeps: Vec::new(),
            blobs: BlobConfig {
                references: vec![Arc::new(CellReferences)],
                walk_every: Duration::from_millis(200),
                ..BlobConfig::default()
            },
            opening: tokio::sync::watch::Sender::default(),
        };
        let node = Node::open(&seconds(20), config, &mut Registry::default()).await?;
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        let mut server = node.grpc_server()?;
        let routes = node.grpc_routes();
        let stopped = stop.clone().cancelled_owned();
        serving.spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            server
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        Ok(Self {
            node,
            address,
            dir,
            stop,
            serving,
        })
    }

    async fn write(&self, i: u16, value: &str) -> Result<Bytes, KvError> {
        self.node
            .coordinator()
            .submit(&seconds(10), put(i, value))
            .await
    }

    async fn read(&self, i: u16) -> Result<Bytes, KvError> {
        self.node.coordinator().submit(&seconds(10), get(i)).await
    }

    /// Waits until every group has `voters` voters and a leader, as this node sees it.
    async fn replicated(&self, voters: usize) {
        self.settled(|_| voters).await;
    }

    /// Waits until every group has as many voters as `wanted` says, all of them members, and a
    /// leader, as this node sees it.
    async fn settled(&self, wanted: impl Fn(GroupId) -> usize) {
        let wanted = async {
            loop {
                let overview = self.node.overview(&seconds(5)).await;
                let up: Vec<_> = overview
                    .members
                    .iter()
                    .filter(|member| member.state == MemberState::Up)
                    .map(|member| member.node)
                    .collect();
                let done = overview.has_quorum
                    && up.len() == overview.members.len()
                    && overview.groups.iter().all(|group| {
                        let mut voters = group
                            .replicas
                            .iter()
                            .filter(|replica| replica.role == Role::Voter);
                        voters.clone().all(|voter| up.contains(&voter.node))
                            && voters.by_ref().count() == wanted(group.group)
                    });
                if done {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(40), wanted)
            .await
            .is_err()
        {
            panic!("not so: {:#?}", self.node.overview(&seconds(5)).await);
        }
    }

    /// Stops without a word to anybody.
    async fn kill(mut self) -> Arc<TempDir> {
        self.serving.abort_all();
        while self.serving.join_next().await.is_some() {}
        self.node.shutdown(&seconds(10)).await;
        self.dir
    }

    async fn stop(mut self) -> Arc<TempDir> {
        self.node.prepare_stop(&seconds(5)).await;
        self.stop.cancel();
        self.serving.abort_all();
        while self.serving.join_next().await.is_some() {}
        self.node.shutdown(&seconds(10)).await;
        self.dir
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_serves_and_finds_everything_again_after_a_restart() {
    let node = Served::open(Bootstrap::New { shards: 4 }).await;
    for i in 0..32 {
        assert_eq!(node.write(i, &format!("v{i}")).await, Ok("written".into()));
    }
    assert_eq!(node.read(7).await, Ok("v7".into()));
    let overview = node.node.overview(&seconds(5)).await;
    assert!(overview.has_quorum, "{overview:#?}");
    assert_eq!((overview.groups.len(), overview.may_lose), (8, 0));
    assert!(node.node.readiness().ready, "{:?}", node.node.readiness());

    // At another address: the port is a new one.
    let dir = node.stop().await;
    let node = Served::open_in(dir, Bootstrap::New { shards: 9 })
        .await
        .unwrap();
    for i in 0..32 {
        assert_eq!(node.read(i).await, Ok(format!("v{i}").into()));
    }
    let moved = async {
        loop {
            let catalog = node.node.coordinator().catalog().unwrap();
            if catalog.members()[&NodeId(1)].addresses.grpc == node.address {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved)
        .await
        .unwrap();
    node.stop().await;
}

/// Chunks over real sockets: pushed, fetched, repaired on new replicas, there after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_where_their_rows_are() {
    let first = Served::open(Bootstrap::New { shards: 2 }).await;
    let body = |seed: u8, len: usize| Bytes::from(vec![seed; len]);
    let (old, new) = (body(1, CHUNK_BYTES), body(2, CHUNK_BYTES - 7));
    let named = store(&first, 3, &old).await.unwrap();
    let mut row = BytesMut::new();
    named.encode(&mut row);
    let named_by = Arc::new(Cell {
        keys: key(3),
        value: Some(row.freeze()),
    });
    first
        .node
        .coordinator()
        .submit(&seconds(10), named_by)
        .await
        .unwrap();

    let join = || Bootstrap::Join {
        seeds: vec![first.address.clone()],
    };
    let (second, third) = (Served::open(join()).await, Served::open(join()).await);
    first.replicated(3).await;
    let near = &key(3)[0];
    for node in [&second, &third] {
        let read = node.node.blobs().get(&seconds(10), near, named).await;
        assert_eq!(read, Ok(old.clone()));
        until(|| node.node.blobs().is_local(named)).await;
    }
    let pushed = store(&third, 3, &new).await.unwrap();
    for node in [&first, &second, &third] {
        until(|| node.node.blobs().is_local(pushed)).await;
    }

    let gone = second.node.id();
    second.kill().await;
    let third_id = third.node.id();
    assert!(store(&first, 3, &body(3, 100_000)).await.is_ok());
    let dir = third.stop().await;
    let alone = store(&first, 3, &body(4, 100_000)).await;
    let Err(BlobError::NoMajority { why, .. }) = alone else {
        panic!("{alone:?}")
    };
    for node in [gone, third_id] {
        assert!(why.contains(&format!("node {node}")), "{why}");
    }
    let third = Served::open_in(dir, Bootstrap::Existing).await.unwrap();
    assert!(third.node.blobs().is_local(named) && third.node.blobs().is_local(pushed));
    third.stop().await;
    first.stop().await;
}

/// It follows the leader it had for as long as it is alone; the others may have acknowledged a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_do_not_age_on_a_node_that_is_cut_off() {
    let first = Served::open(Bootstrap::New { shards: 1 }).await;
    let join = || Bootstrap::Join {
        seeds: vec![first.address.clone()],
    };
    let (second, third) = (Served::open(join()).await, Served::open(join()).await);
    first.replicated(3).await;
    // Two groups, so one of three nodes leads none.
    let mut nodes = vec![first, second, third];
    let leads = |node: &Served| node.node.status().groups.iter().any(|group| group.leading);
    let alone = nodes.iter().position(|node| !leads(node)).unwrap();
    let alone = nodes.remove(alone);
    let (aged, _) = alone.node.upkeep.ages();
    until(|| alone.node.upkeep.ages().0 > aged).await;

    let (other, last) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (other, last) = tokio::join!(other.kill(), last.kill());
    until(|| !alone.node.upkeep.ages().1).await;
    let (aged, _) = alone.node.upkeep.ages();
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(alone.node.upkeep.ages(), (aged, false));
    }

    let back = Served::open_in(other, Bootstrap::Existing).await.unwrap();
    until(|| alone.node.upkeep.ages().0 > aged).await;
    drop(last);
    back.kill().await;
    alone.kill().await;
}

/// A voter counts as one that has the chunks its rows name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_votes_once_it_has_the_chunks_that_its_rows_name() {
    let first = Served::open(Bootstrap::New { shards: 2 }).await;
    let data = Bytes::from(vec![5; 70_000]);
    let named = store(&first, 3, &data).await.unwrap();
    let mut row = BytesMut::new();
    named.encode(&mut row);
    let named_by = Arc::new(Cell {
        keys: key(3),
        value: Some(row.freeze()),
    });
    let coordinator = first.node.coordinator();
    coordinator.submit(&seconds(10), named_by).await.unwrap();
    let catalog = coordinator.catalog().unwrap();
    let its_group = catalog.group_of(&key(3)[0]);

    let held_up = first.node.upkeep.hold_up_peers();
    let seeds = vec![first.address.clone()];
    let second = Served::open(Bootstrap::Join { seeds }).await;
    let voters = |group| {
        let engine = first.node.core.engine(group).unwrap();
        let members = engine.members();
        let voters = members.values().filter(|member| member.role == Role::Voter);
        voters.count()
    };
    let others: Vec<_> = catalog.groups().filter(|id| *id != its_group).collect();
    until(|| others.iter().all(|&group| voters(group) == 2)).await;
    // Asked again and again, and not promoted.
    let asked = second.node.upkeep.times_asked();
    until(|| second.node.upkeep.times_asked() >= asked + 3 || voters(its_group) > 1).await;
    assert_eq!(voters(its_group), 1, "it voted without its chunks");
    assert!(!second.node.blobs().is_local(named));

    drop(held_up);
    first.replicated(2).await;
    assert!(second.node.blobs().is_local(named));
    second.kill().await;
    first.kill().await;
}

async fn store(at: &Served, i: u16, data: &Bytes) -> Result<ChunkRef, BlobError> {
    let blobs = at.node.blobs();
    let held = blobs.try_reserve(data.len()).unwrap();
    blobs
        .put(&seconds(10), &key(i)[0], data.clone(), &held)
        .await
}

async fn until(is_so: impl Fn() -> bool) {
    let wanted = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wanted)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_directory_without_a_cluster_and_without_a_wish_is_refused_in_one_line() {
    let dir = Arc::new(TempDir::new().unwrap());
    let Err(error) = Served::open_in(dir, Bootstrap::Existing).await else {
        panic!("opened");
    };
    assert!(matches!(error, OpenError::NoCluster(_)));
    assert!(!error.to_string().contains('\n'));
}

/// The way from one node to three and on, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three_loses_one_and_replaces_it() {
    let first = Served::open(Bootstrap::New { shards: 3 }).await;
    for i in 0..16 {
        first.write(i, "before").await.unwrap();
    }
    let seeds = vec![first.address.clone()];
    let join = || Bootstrap::Join {
        seeds: seeds.clone(),
    };
    let second = Served::open(join()).await;
    let third = Served::open(join()).await;
    first.replicated(3).await;
    // Leaderships are being dealt out: a group between two leaders may lose nobody.
    let mut tries = 0;
    loop {
        let overview = third.node.overview(&seconds(5)).await;
        if overview.may_lose == 1 {
            break;
        }
        tries += 1;
        assert!(tries < 200, "{overview:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (i, node) in (0..16).zip([&first, &second, &third].into_iter().cycle()) {
        assert_eq!(node.read(i).await, Ok("before".into()));
        assert_eq!(node.write(i, "after").await, Ok("written".into()));
    }

    let lost = second.node.id();
    second.kill().await;
    for i in 0..16 {
        // What the killed node was about to do is refused or unknown, never wrong: try again.
        while third.write(i, "later").await.is_err() {}
        assert_eq!(first.read(i).await, Ok("later".into()));
    }
    let fourth = Served::open(join()).await;
    let mut client = ClusterClient::connect(&seconds(5), &third.address, None)
        .await
        .unwrap();
    let pending = client.remove(&seconds(30), lost).await.unwrap();
    assert_eq!(pending, Vec::<GroupId>::new());
    fourth.replicated(3).await;
    let overview = client.overview(&seconds(5)).await.unwrap();
    let members: Vec<_> = overview.members.iter().map(|member| member.node).collect();
    assert_eq!(members, [NodeId(1), NodeId(3), NodeId(4)]);
    for i in 0..16 {
        assert_eq!(fourth.read(i).await, Ok("later".into()));
    }

    // A planned stop hands leadership over first: nobody has to wait for an election.
    let pending = client.drain(&seconds(20), NodeId(1)).await.unwrap();
    assert_eq!(pending, Vec::<GroupId>::new());
    first.stop().await;
    for i in 0..16 {
        assert_eq!(third.read(i).await, Ok("later".into()));
    }
    third.kill().await;
    fourth.kill().await;
}

/// The node that leads the meta group has no replica of the others, and no client asks it for
/// anything: nobody tells it who leads them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_the_leader_of_the_meta_group_does_not_host_are_kept_whole() {
    let first = Served::open(Bootstrap::New { shards: 2 }).await;
    let seeds = vec![first.address.clone()];
    let join = || Bootstrap::Join {
        seeds: seeds.clone(),
    };
    let second = Served::open(join()).await;
    let third = Served::open(join()).await;
    first.replicated(3).await;
    let fourth = Served::open(join()).await;
    let fifth = Served::open(join()).await;
    let voters = |of_meta| move |group| if group == GroupId::META { of_meta } else { 3 };
    fifth.settled(voters(5)).await;
    let mut client = ClusterClient::connect(&seconds(5), &fifth.address, None)
        .await
        .unwrap();
    // Another may be elected while leadership is handed over.
    while fifth.node.coordinator().known_leader(GroupId::META) != Some(fifth.node.id()) {
        let to = Some(fifth.node.id());
        client
            .transfer_leader(&seconds(10), GroupId::META, to)
            .await
            .ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // The fourth hosts none of the others either, and nobody told it who leads them.
    let leads = |one: &&Served| {
        let groups = one.node.status().groups;
        groups.iter().any(|group| group.leading)
    };
    let leader = [&first, &second, &third].into_iter().find(leads).unwrap();
    let drained = leader.node.id();
    let mut asked = ClusterClient::connect(&seconds(5), &fourth.address, None)
        .await
        .unwrap();
    // One may be elected again; none to move is what must not be said.
    let moved = asked.transfer_all(&seconds(20), drained, None).await;
    assert!(!matches!(moved, Ok(0)), "{moved:?}");
    let left = asked.drain(&seconds(30), drained).await.unwrap();
    assert_eq!(left, []);
    let overview = asked.overview(&seconds(5)).await.unwrap();
    let found = overview.members.iter().find(|one| one.node == drained);
    assert_eq!(found.unwrap().leads, 0);
    asked.undrain(&seconds(5), drained).await.unwrap();

    let lost = second.node.id();
    second.kill().await;
    client.remove(&seconds(30), lost).await.unwrap();
    fifth.settled(voters(4)).await;
    for node in [first, third, fourth, fifth] {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster_is_refused_by_name() {
    let ours = Served::open(Bootstrap::New { shards: 1 }).await;
    let other = Served::open(Bootstrap::New { shards: 1 }).await;
    let theirs = format!("{:016x}", other.node.cluster().0);
    let dir = other.stop().await;
    let seeds = vec![ours.address.clone()];
    let Err(error) = Served::open_in(dir, Bootstrap::Join { seeds }).await else {
        panic!("opened");
    };
    let said = error.to_string();
    assert!(said.contains(&theirs) && !said.contains('\n'), "{said}");
    ours.stop().await;
}

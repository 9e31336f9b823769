//! The transport over real sockets: pools that talk, and peers that misbehave.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt};
use openraft::errors::{RPCError, StreamingError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;

use super::network::GroupNetwork;
use super::*;
use crate::MAX_ENTRY_BYTES;
use crate::engine::{SnapshotSource, StateError};
use crate::grpc::DeadlineLayer;
use crate::types::{self, Entry, LogId, Payload, SnapshotData};

const CLUSTER: ClusterId = ClusterId(7);

/// Bounds short enough to wait for.
fn limits() -> Limits {
    Limits {
        connect: Duration::from_millis(200),
        handshake: Duration::from_millis(400),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(40),
        stall: Duration::from_millis(400),
        bulk_stall: Duration::from_secs(10),
        snapshot_stall: Duration::from_millis(1500),
        ..Limits::default()
    }
}

fn config(cluster: ClusterId, node: u64, tls: Option<PeerTls>, limits: Limits) -> TransportConfig {
    TransportConfig {
        cluster,
        node: NodeId(node),
        advertise: String::new(),
        tls,
        limits,
    }
}

/// A node that dials and answers.
struct Node {
    pool: PeerPool,
    tasks: TaskTracker,
    metrics: TransportMetrics,
    inbound: Arc<Recorder>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Node {
    async fn new(id: u64) -> Self {
        Self::with(config(CLUSTER, id, None, limits())).await
    }

    async fn with(config: TransportConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, config)
    }

    fn on(listener: TcpListener, mut config: TransportConfig) -> Self {
        let address = listener.local_addr().unwrap();
        if config.advertise.is_empty() {
            config.advertise = address.to_string();
        }
        let (tasks, metrics) = (TaskTracker::new(), TransportMetrics::default());
        let pool = PeerPool::new(config, metrics.clone(), tasks.clone());
        let inbound = Arc::new(Recorder::default());
        let stop = CancellationToken::new();
        let server = pool
            .server()
            .unwrap()
            .layer(DeadlineLayer::default())
            .add_service(pool.service(Arc::clone(&inbound) as Arc<dyn Inbound>))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        tasks.spawn(async move { server.await.unwrap() });
        Self {
            pool,
            tasks,
            metrics,
            inbound,
            address,
            stop,
        }
    }

    fn knows(&self, id: u64, address: SocketAddr) {
        self.pool.set_address(NodeId(id), address.to_string());
    }

    async fn network(&self, group: u64, to: u64) -> GroupNetwork {
        self.pool
            .network(GroupId(group))
            .new_client(to, &types::Peer::default())
            .await
    }

    fn lane(&self, to: u64, class: &'static str) -> metrics::LaneMetrics {
        self.metrics.lane(NodeId(to), class)
    }

    /// Stops everything; hangs if anything of it would never end.
    async fn stop(self) {
        self.pool.close();
        self.stop.cancel();
        self.tasks.close();
        timeout(Duration::from_secs(5), self.tasks.wait())
            .await
            .expect("every task of a closed pool ends");
    }
}

/// A node that writes down what it is asked.
#[derive(Default)]
struct Recorder {
    appends: Mutex<HashMap<GroupId, Vec<u64>>>,
    running: Arc<AtomicUsize>,
    most_running: AtomicUsize,
    /// Appends wait while this says so.
    hold: watch::Sender<bool>,
    conflict: AtomicBool,
    snapshot: Arc<Mutex<Stored>>,
}

#[derive(Default)]
struct Stored {
    begun: usize,
    /// Of the transfer that runs.
    chunks: Vec<Bytes>,
    installed: Option<Vec<Bytes>>,
    /// The chunk at which writing fails, once.
    fail_at: Option<usize>,
}

/// The sink of one transfer, by its number. What it is still asked to store after the next one has
/// begun is not that one's.
struct RecordingSink(Arc<Mutex<Stored>>, usize);

impl SnapshotSink for RecordingSink {
    fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StateError> {
        let mut stored = self.0.lock();
        if stored.fail_at == Some(stored.chunks.len()) {
            stored.fail_at = None;
            return Err(StateError {
                what: "disk full".to_owned(),
                source: None,
            });
        }
        if stored.begun == self.1 {
            stored.chunks.push(chunk);
        }
        Ok(())
    }

    fn commit(self: Box<Self>, _position: Bytes) -> Result<(), StateError> {
        let mut stored = self.0.lock();
        stored.installed = Some(std::mem::take(&mut stored.chunks));
        Ok(())
    }
}

impl Inbound for Recorder {
    fn append(
        &self,
        _ctx: &Context,
        group: GroupId,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, Refused>> {
        let indexes = request.entries.iter().map(|entry| entry.log_id.index);
        self.appends
            .lock()
            .entry(group)
            .or_default()
            .extend(indexes);
        let running = Arc::clone(&self.running);
        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(now, Ordering::SeqCst);
        let conflict = self.conflict.load(Ordering::SeqCst);
        let mut hold = self.hold.subscribe();
        async move {
            let free = hold.wait_for(|hold| !hold).await.is_ok();
            running.fetch_sub(1, Ordering::SeqCst);
            if !free {
                return Err(Refused("the node is gone".to_owned()));
            }
            Ok(if conflict {
                AppendEntriesResponse::Conflict
            } else {
                AppendEntriesResponse::Success
            })
        }
        .boxed()
    }

    fn vote(
        &self,
        _ctx: &Context,
        _group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>> {
        let reply = VoteResponse::new(request.vote, request.last_log_id, true);
        async move { Ok(reply) }.boxed()
    }

    fn pre_vote(
        &self,
        _ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>> {
        let reply = if group == GroupId(404) {
            Err(Refused("this node does not host the group".to_owned()))
        } else {
            Ok(VoteResponse::new(request.vote, None, false))
        };
        async move { reply }.boxed()
    }

    fn transfer_leader(
        &self,
        _ctx: &Context,
        _group: GroupId,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, Refused>> {
        let reply = Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: None,
        });
        async move { Ok(reply) }.boxed()
    }

    fn begin_snapshot(
        &self,
        _ctx: &Context,
        _group: GroupId,
        _meta: &SnapshotMeta,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Refused>> {
        let stored = Arc::clone(&self.snapshot);
        async move {
            let number = {
                let mut stored = stored.lock();
                stored.begun += 1;
                stored.chunks.clear();
                stored.begun
            };
            Ok(Box::new(RecordingSink(stored, number)) as Box<dyn SnapshotSink>)
        }
        .boxed()
    }

    fn install_snapshot(
        &self,
        _ctx: &Context,
        _group: GroupId,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse<TypeConfig>, Refused>> {
        async move {
            let SnapshotData::Sink(sink) = snapshot.snapshot else {
                return Err(Refused("not a received snapshot".to_owned()));
            };
            sink.commit(Bytes::new())
                .map_err(|error| Refused(error.to_string()))?;
            Ok(SnapshotResponse::new(vote))
        }
        .boxed()
    }
}

fn log_id(index: u64) -> LogId {
    wire::log_id(3, index)
}

fn vote() -> Vote {
    Vote::new_committed(3, 1)
}

fn entry(index: u64, payload: Bytes) -> Entry {
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Payload(payload)),
    }
}

/// Appends `payloads` after `prev`.
fn append(prev: u64, payloads: Vec<Bytes>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: vote(),
        prev_log_id: Some(log_id(prev)),
        entries: (prev + 1..)
            .zip(payloads)
            .map(|(index, payload)| entry(index, payload))
            .collect(),
        leader_commit: Some(log_id(prev)),
    }
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_secs(2))
}

/// One append without entries, as openraft's heartbeat worker sends it.
async fn heartbeat(network: &mut GroupNetwork) -> Result<(), RPCError<TypeConfig>> {
    let input = futures::stream::iter([append(1, Vec::new())]);
    let mut answers = RaftNetworkV2::stream_append(network, input, option()).await?;
    let answer = answers.next().await.expect("one answer per heartbeat")?;
    assert_eq!(answer, Ok(Some(log_id(1))));
    assert!(answers.next().await.is_none());
    Ok(())
}

/// Heartbeats until one is answered.
async fn until_reached(network: &mut GroupNetwork) -> Duration {
    let began = Instant::now();
    while let Err(error) = heartbeat(network).await {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "never reached: {error}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// Stands between two nodes. Frozen, it takes bytes and passes none on, and answers nothing: as a
/// link that drops packets looks from both ends.
struct Proxy {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
    accepted: Arc<AtomicUsize>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Proxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            frozen: watch::Sender::new(false),
            accepted: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let (frozen, stop) = (proxy.frozen.clone(), proxy.stop.clone());
        let (accepted, tasks) = (Arc::clone(&proxy.accepted), proxy.tasks.clone());
        proxy.tasks.spawn(async move {
            while let Some(Ok((near, _))) = stop.run_until_cancelled(listener.accept()).await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let Ok(far) = TcpStream::connect(target).await else {
                    continue;
                };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                for (mut from, mut to) in [(near_read, far_write), (far_read, near_write)] {
                    let (mut frozen, stop) = (frozen.subscribe(), stop.clone());
                    tasks.spawn(async move {
                        let mut buffer = vec![0; 64 << 10];
                        let pump = async {
                            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                                if frozen.wait_for(|frozen| !frozen).await.is_err()
                                    || to.write_all(&buffer[..read]).await.is_err()
                                {
                                    break;
                                }
                            }
                        };
                        stop.run_until_cancelled(pump).await;
                    });
                }
            }
        });
        proxy
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[tokio::test]
async fn appends_arrive_in_order_and_a_bounded_number_is_under_way() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(5, 2).await;

    b.inbound.hold.send_replace(true);
    let requests = (1..=200).map(|i| append(i, vec![Bytes::from(vec![0; 100])]));
    let mut answers =
        RaftNetworkV2::stream_append(&mut network, futures::stream::iter(requests), option())
            .await
            .unwrap();
    let most = limits().appends_in_flight;
    let first = async {
        while b.inbound.running.load(Ordering::SeqCst) < most {
            tokio::task::yield_now().await;
        }
        b.inbound.hold.send_replace(false);
    };
    let (answer, ()) = tokio::join!(answers.next(), first);
    assert_eq!(answer.unwrap().unwrap(), Ok(Some(log_id(2))));
    for index in 3..=201 {
        assert_eq!(
            answers.next().await.unwrap().unwrap(),
            Ok(Some(log_id(index)))
        );
    }
    assert!(answers.next().await.is_none());
    drop(answers);

    assert_eq!(
        b.inbound.appends.lock()[&GroupId(5)],
        (2..=201).collect::<Vec<_>>()
    );
    assert_eq!(b.inbound.most_running.load(Ordering::SeqCst), most);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn heartbeats_of_sixty_four_groups_are_one_message_and_one_answer() {
    let gather = Duration::from_millis(300);
    let limits = Limits { gather, ..limits() };
    let a = Node::with(config(CLUSTER, 1, None, limits)).await;
    let b = Node::new(2).await;
    a.knows(2, b.address);
    let mut networks = Vec::new();
    for group in 0..64 {
        let mut factory = a.pool.network(GroupId(group));
        let node = types::Peer::default();
        networks.push(factory.new_heartbeat_client(2, &node).await);
    }
    until_reached(&mut a.network(0, 2).await).await;
    let lane = a.lane(2, "consensus");
    let (frames, requests, answers) = (lane.frames.get(), lane.requests.get(), lane.answers.get());

    // Not all at one instant: each group has its own clock.
    let spread = networks.iter_mut().enumerate().map(async |(i, network)| {
        tokio::time::sleep(Duration::from_millis(i as u64)).await;
        heartbeat(network).await
    });
    for result in join_all(spread).await {
        result.unwrap();
    }

    assert_eq!(lane.requests.get() - requests, 64);
    assert_eq!(lane.frames.get() - frames, 1);
    assert_eq!(lane.answers.get() - answers, 1);
    a.stop().await;
    b.stop().await;
}

/// A ReadIndex round is heartbeats that someone waits for.
#[tokio::test]
async fn a_heartbeat_in_haste_goes_at_once_and_takes_along_those_that_wait() {
    let gather = Duration::from_secs(60);
    let limits = Limits {
        gather,
        stall: Duration::from_secs(5),
        ..limits()
    };
    let a = Node::with(config(CLUSTER, 1, None, limits)).await;
    let b = Node::new(2).await;
    a.knows(2, b.address);
    until_reached(&mut a.network(0, 2).await).await;
    let frames = a.lane(2, "consensus").frames.get();
    let node = types::Peer::default();
    let mut patient = a
        .pool
        .network(GroupId(1))
        .new_heartbeat_client(2, &node)
        .await;
    let mut hasty = a
        .pool
        .network(GroupId(2))
        .new_heartbeat_client(2, &node)
        .await;

    let haste = a.pool.haste(GroupId(2));
    let in_haste = haste.hurry();
    let (first, second) = tokio::join!(heartbeat(&mut patient), heartbeat(&mut hasty));
    first.unwrap();
    second.unwrap();
    assert_eq!(a.lane(2, "consensus").frames.get() - frames, 1);

    drop(in_haste);
    let slow = timeout(Duration::from_millis(100), heartbeat(&mut hasty)).await;
    assert!(slow.is_err(), "nobody waits for it any more");

    // One that waits already is not left waiting when a round begins.
    let waiting = heartbeat(&mut patient);
    tokio::pin!(waiting);
    assert!(
        timeout(Duration::from_millis(50), &mut waiting)
            .await
            .is_err()
    );
    let _in_haste = haste.hurry();
    timeout(Duration::from_secs(2), waiting)
        .await
        .unwrap()
        .unwrap();
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn votes_pre_votes_and_transfers_reach_the_node_and_bring_its_own_answer() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(1, 2).await;
    let request = VoteRequest {
        vote: Vote::new(9, 1),
        last_log_id: Some(log_id(4)),
        leadership_transfer: true,
    };
    let granted = network.vote(request.clone(), option()).await.unwrap();
    assert_eq!(
        granted,
        VoteResponse::new(Vote::new(9, 1), Some(log_id(4)), true)
    );

    // openraft's default would have granted this one without asking.
    let denied = network.pre_vote(request.clone(), option()).await.unwrap();
    assert!(!denied.vote_granted);

    let transfer = TransferLeaderRequest::new(vote(), 2, Some(log_id(8)));
    let answer = RaftNetworkV2::transfer_leader(&mut network, transfer, option())
        .await
        .unwrap();
    assert_eq!(
        answer,
        Err(TransferLeaderError::LogNotFlushed {
            expected: Some(log_id(8)),
            actual: None
        })
    );

    let mut absent = a.network(404, 2).await;
    let error = absent.pre_vote(request, option()).await.unwrap_err();
    assert!(matches!(&error, RPCError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("does not host"), "{error}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_conflict_ends_the_stream_and_names_where_the_logs_part() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    b.inbound.conflict.store(true, Ordering::SeqCst);
    let mut network = a.network(1, 2).await;
    let requests = (5..8).map(|i| append(i, vec![Bytes::new()]));
    let mut answers =
        RaftNetworkV2::stream_append(&mut network, futures::stream::iter(requests), option())
            .await
            .unwrap();
    assert_eq!(
        answers.next().await.unwrap().unwrap(),
        Err(StreamAppendError::Conflict(log_id(5)))
    );
    assert!(answers.next().await.is_none());
    drop(answers);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_makes_nobody_wait() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = Node::with(config(
        CLUSTER,
        1,
        None,
        Limits {
            queue: 8,
            ..limits()
        },
    ))
    .await;
    a.knows(2, silent.local_addr().unwrap());
    let mut networks = Vec::new();
    for group in 0..100 {
        networks.push(a.network(group, 2).await);
    }
    let mut calls: Vec<_> = networks
        .iter_mut()
        .map(|network| Box::pin(heartbeat(network)))
        .collect();
    let began = Instant::now();
    let refused = calls
        .iter_mut()
        .filter_map(|call| call.now_or_never())
        .inspect(|result| {
            let error = result.as_ref().unwrap_err();
            assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
            assert!(error.to_string().contains("full"), "{error}");
        })
        .count();
    assert!(began.elapsed() < Duration::from_millis(200));
    assert_eq!(refused, 92);
    assert_eq!(a.lane(2, "consensus").dropped_full.get(), 92);
    assert_eq!(a.lane(2, "consensus").closed.get(), 0);
    drop(calls);
    a.stop().await;
}

/// The founding incident, in small: what a dead peer costs must not grow with time or with callers.
#[tokio::test]
async fn a_peer_that_accepts_and_never_reads_costs_a_bounded_number_of_tasks_and_sockets() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = Node::new(1).await;
    a.knows(2, silent.local_addr().unwrap());
    let mut networks = Vec::new();
    for group in 0..64 {
        networks.push(a.network(group, 2).await);
    }
    let bound = limits().connect + limits().handshake + Duration::from_millis(300);
    let began = Instant::now();
    let mut most_tasks = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let results = timeout(bound, join_all(networks.iter_mut().map(heartbeat))).await;
        for result in results.expect("requests to a silent peer end within the bound") {
            let error = result.unwrap_err();
            assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
        }
        most_tasks = most_tasks.max(a.tasks.len());
        assert!(asked.elapsed() < bound);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The server, the session, its connection's tasks; perhaps those of the session before.
    assert!(most_tasks <= 8, "{most_tasks} tasks");
    let lane = a.lane(2, "consensus");
    assert!(lane.closed.get() > 0, "refused at once between attempts");
    assert!(lane.dials.get() <= 12, "{} attempts", lane.dials.get());
    a.stop().await;
}

#[tokio::test]
async fn a_peer_that_answers_no_syn_fails_within_the_connect_bound() {
    // A listener whose backlog is full drops further SYNs.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let blackhole = socket.listen(1).unwrap();
    let address = blackhole.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) =
        timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        fillers.push(filler);
        assert!(fillers.len() < 64, "the backlog never fills");
    }

    let a = Node::new(1).await;
    a.knows(2, address);
    let mut network = a.network(0, 2).await;
    let began = Instant::now();
    let error = heartbeat(&mut network).await.unwrap_err();
    assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
    assert!(
        began.elapsed() < limits().connect + Duration::from_millis(200),
        "{:?}",
        began.elapsed()
    );
    a.stop().await;
}

#[tokio::test]
async fn a_link_that_goes_silent_fails_what_is_in_flight_and_comes_back_soon_after_it_heals() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    let proxy = Proxy::to(b.address).await;
    a.knows(2, proxy.address);
    let mut network = a.network(0, 2).await;
    until_reached(&mut network).await;
    // The peer told its own address when it was greeted back; stay behind the proxy.
    a.knows(2, proxy.address);

    proxy.frozen.send_replace(true);
    let began = Instant::now();
    heartbeat(&mut network).await.unwrap_err();
    assert!(
        began.elapsed() < limits().stall * 2,
        "{:?}",
        began.elapsed()
    );
    // Callers with less patience than the bound must not keep a dead session alive.
    let lane = a.lane(2, "consensus");
    while lane.stalls.get() == 0 {
        let _ = timeout(Duration::from_millis(20), heartbeat(&mut network)).await;
        assert!(began.elapsed() < limits().stall * 4, "never given up");
    }
    for _ in 0..200 {
        let _ = timeout(Duration::from_millis(5), heartbeat(&mut network)).await;
    }
    let dials = proxy.accepted.load(Ordering::SeqCst);
    assert!(dials < 20, "{dials} sockets in {:?}", began.elapsed());
    assert!(a.tasks.len() <= 8, "{} tasks", a.tasks.len());

    proxy.frozen.send_replace(false);
    let healed = until_reached(&mut network).await;
    let bound = limits().handshake + limits().backoff_max + Duration::from_millis(300);
    assert!(healed < bound, "{healed:?}");
    a.stop().await;
    b.stop().await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    let address = b.address;
    a.knows(2, address);
    let mut network = a.network(0, 2).await;
    until_reached(&mut network).await;

    b.stop().await;
    heartbeat(&mut network).await.unwrap_err();

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let b = Node::on(
        socket.listen(64).unwrap(),
        config(CLUSTER, 2, None, limits()),
    );
    until_reached(&mut network).await;
    a.stop().await;
    b.stop().await;
}

/// What a dialler that is not wanted is told, through both ways of dialling.
async fn refusal(a: &Node, to: u64) -> String {
    let mut network = a.network(0, to).await;
    let by_stream = heartbeat(&mut network).await.unwrap_err();
    assert!(matches!(by_stream, RPCError::Unreachable(_)));
    let ctx = Context::with_timeout(Duration::from_secs(2));
    let by_channel = a.pool.channel(&ctx, NodeId(to)).await.unwrap_err();
    format!("{by_stream} / {by_channel}")
}

#[tokio::test]
async fn a_node_of_another_cluster_or_with_another_id_is_refused_and_told_why() {
    let b = Node::new(2).await;

    let stranger = Node::with(config(ClusterId(8), 1, None, limits())).await;
    stranger.knows(2, b.address);
    let why = refusal(&stranger, 2).await;
    assert_eq!(
        why.matches("is of cluster 0000000000000007").count(),
        2,
        "{why}"
    );
    assert!(stranger.lane(2, "consensus").failures.get() > 0);
    stranger.stop().await;

    let a = Node::new(1).await;
    a.knows(3, b.address);
    let why = refusal(&a, 3).await;
    assert_eq!(why.matches("this is node 2").count(), 2, "{why}");
    a.stop().await;

    let twin = Node::new(2).await;
    twin.knows(2, b.address);
    let why = refusal(&twin, 2).await;
    assert_eq!(why.matches("node id 2 is in use twice").count(), 2, "{why}");
    twin.stop().await;

    assert!(b.inbound.appends.lock().is_empty());
    b.stop().await;
}

/// Certificates as an operator makes them: an authority, and a node's certificate it signed.
fn certificates(server_name: &str) -> PeerTls {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![server_name.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    PeerTls::new(
        ca.pem().as_bytes(),
        certificate.pem().as_bytes(),
        key.serialize_pem().as_bytes(),
    )
    .unwrap()
}

#[tokio::test]
async fn peers_with_certificates_of_one_authority_talk_and_others_are_refused() {
    let tls = certificates("127.0.0.1");
    let a = Node::with(config(CLUSTER, 1, Some(tls.clone()), limits())).await;
    let b = Node::with(config(CLUSTER, 2, Some(tls), limits())).await;
    a.knows(2, b.address);
    let mut network = a.network(0, 2).await;
    until_reached(&mut network).await;
    let ctx = Context::with_timeout(Duration::from_secs(2));
    a.pool.channel(&ctx, NodeId(2)).await.unwrap();

    // The same name, but another authority; and no certificate at all.
    for tls in [Some(certificates("127.0.0.1")), None] {
        let stranger = Node::with(config(CLUSTER, 3, tls, limits())).await;
        stranger.knows(2, b.address);
        refusal(&stranger, 2).await;
        stranger.stop().await;
    }
    assert_eq!(b.inbound.appends.lock().len(), 1);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_certificate_may_name_the_cluster_instead_of_the_host() {
    let shared = certificates("leadline.internal");
    let a = Node::with(config(CLUSTER, 1, Some(shared.clone()), limits())).await;
    let named = shared.with_server_name("leadline.internal");
    let b = Node::with(config(CLUSTER, 2, Some(named), limits())).await;
    b.knows(1, a.address);
    a.knows(2, b.address);
    until_reached(&mut b.network(0, 1).await).await;
    // Node 1 expects the host that it dialled.
    heartbeat(&mut a.network(0, 2).await).await.unwrap_err();
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_large_append_is_cut_at_entries_and_its_parts_are_answered_in_order() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(1, 2).await;
    let request = append(10, vec![Bytes::from(vec![7; 3 << 20]); 5]);
    let mut answers =
        RaftNetworkV2::stream_append(&mut network, futures::stream::iter([request]), option())
            .await
            .unwrap();
    let mut matched = Vec::new();
    while let Some(answer) = answers.next().await {
        matched.push(answer.unwrap().unwrap().unwrap().index);
    }
    drop(answers);
    assert_eq!(matched, [11, 12, 13, 14, 15]);
    assert_eq!(
        b.inbound.appends.lock()[&GroupId(1)],
        (11..=15).collect::<Vec<_>>()
    );
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn the_largest_entry_passes_and_heartbeats_do_not_wait_behind_it() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let (mut network, mut other) = (a.network(1, 2).await, a.network(2, 2).await);
    until_reached(&mut other).await;

    let request = append(1, vec![Bytes::from(vec![7; MAX_ENTRY_BYTES])]);
    let large = network.append_entries(request, option());
    tokio::pin!(large);
    let mut beats = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut large => break outcome,
            beat = heartbeat(&mut other) => {
                beat.unwrap();
                beats += 1;
            }
        }
    };
    assert_eq!(outcome.unwrap(), AppendEntriesResponse::Success);
    assert!(beats > 0);
    assert_eq!(b.inbound.appends.lock()[&GroupId(1)], [2]);
    assert_eq!(a.lane(2, "bulk").requests.get(), 1);
    a.stop().await;
    b.stop().await;
}

/// In two lanes, a later append could overtake an earlier one.
#[tokio::test]
async fn a_large_append_is_not_sent_before_the_small_ones_ahead_of_it_are_answered() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(1, 2).await;
    b.inbound.hold.send_replace(true);
    let requests = [
        append(1, vec![Bytes::new()]),
        append(2, vec![Bytes::from(vec![0; 1 << 20])]),
        append(3, vec![Bytes::new()]),
    ];
    let mut answers =
        RaftNetworkV2::stream_append(&mut network, futures::stream::iter(requests), option())
            .await
            .unwrap();
    let waited = timeout(Duration::from_millis(100), answers.next()).await;
    assert!(waited.is_err(), "the first is held");
    assert_eq!(a.lane(2, "bulk").dials.get(), 0);

    b.inbound.hold.send_replace(false);
    for index in 2..=4 {
        assert_eq!(
            answers.next().await.unwrap().unwrap(),
            Ok(Some(log_id(index)))
        );
    }
    drop(answers);
    assert_eq!(a.lane(2, "bulk").requests.get(), 2);
    assert_eq!(b.inbound.appends.lock()[&GroupId(1)], [2, 3, 4]);
    a.stop().await;
    b.stop().await;
}

/// A snapshot of `count` chunks.
struct Chunks {
    next: usize,
    count: usize,
}

fn chunk(n: usize) -> Bytes {
    Bytes::from(vec![u8::try_from(n % 251).unwrap(); 100_000 + n])
}

impl SnapshotSource for Chunks {
    fn position(&self) -> Bytes {
        Bytes::new()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        self.next += 1;
        Ok((self.next <= self.count).then(|| chunk(self.next)))
    }
}

fn snapshot_of(count: usize) -> Snapshot {
    Snapshot {
        meta: SnapshotMeta {
            last_log_id: Some(log_id(77)),
            last_membership: Default::default(),
        },
        snapshot: SnapshotData::Source(Box::new(Chunks { next: 0, count })),
    }
}

async fn send_snapshot(
    network: &mut GroupNetwork,
    count: usize,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let never = std::future::pending();
    RaftNetworkV2::full_snapshot(network, vote(), snapshot_of(count), never, option()).await
}

#[tokio::test]
async fn a_snapshot_arrives_whole_and_in_order() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(1, 2).await;
    let response = send_snapshot(&mut network, 50).await.unwrap();
    assert_eq!(response.vote, vote());
    let installed = b.inbound.snapshot.lock().installed.take().unwrap();
    assert_eq!(installed, (1..=50).map(chunk).collect::<Vec<_>>());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_stored_is_not_installed_and_the_next_attempt_is() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    b.inbound.snapshot.lock().fail_at = Some(20);
    let mut network = a.network(1, 2).await;

    let error = send_snapshot(&mut network, 50).await.unwrap_err();
    assert!(matches!(error, StreamingError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("disk full"), "{error}");
    assert!(b.inbound.snapshot.lock().installed.is_none());

    send_snapshot(&mut network, 50).await.unwrap();
    assert_eq!(
        b.inbound.snapshot.lock().installed.as_ref().unwrap().len(),
        50
    );
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_snapshot_over_a_link_that_goes_silent_is_given_up_on_both_sides_and_sent_again() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    let proxy = Proxy::to(b.address).await;
    a.knows(2, proxy.address);
    let mut network = a.network(1, 2).await;

    let freeze = async {
        while b.inbound.snapshot.lock().chunks.len() < 5 {
            tokio::task::yield_now().await;
        }
        proxy.frozen.send_replace(true);
    };
    let began = Instant::now();
    let (outcome, ()) = tokio::join!(send_snapshot(&mut network, 10_000), freeze);
    let error = outcome.unwrap_err();
    assert!(matches!(error, StreamingError::Unreachable(_)), "{error}");
    assert!(began.elapsed() < limits().snapshot_stall + Duration::from_secs(1));
    let stored = b.inbound.snapshot.lock().chunks.len();
    assert!(stored < 10_000);

    proxy.frozen.send_replace(false);
    send_snapshot(&mut network, 10).await.unwrap();
    {
        let stored = b.inbound.snapshot.lock();
        assert_eq!(stored.begun, 2);
        assert_eq!(stored.installed.as_ref().unwrap().len(), 10);
    }
    a.stop().await;
    b.stop().await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_snapshot_ends_when_openraft_cancels_it() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let mut network = a.network(1, 2).await;
    let recorder = Arc::clone(&b.inbound);
    let cancel = async move {
        while recorder.snapshot.lock().chunks.len() < 5 {
            tokio::task::yield_now().await;
        }
        openraft::errors::ReplicationClosed::new("another leader")
    };
    let snapshot = snapshot_of(usize::MAX);
    let outcome =
        RaftNetworkV2::full_snapshot(&mut network, vote(), snapshot, cancel, option()).await;
    assert!(matches!(outcome, Err(StreamingError::Closed(_))));
    assert!(b.inbound.snapshot.lock().installed.is_none());
    a.stop().await;
    b.stop().await;
}

#[test]
fn a_snapshot_chunk_out_of_order_or_damaged_is_refused() {
    let good = wire::chunk_out(4, chunk(4));
    assert_eq!(wire::chunk_in(good.clone(), 4), Ok(chunk(4)));
    assert!(wire::chunk_in(good.clone(), 3).is_err());
    let mut damaged = good;
    let mut bytes = damaged.data.to_vec();
    bytes[500] ^= 1;
    damaged.data = bytes.into();
    assert!(wire::chunk_in(damaged, 4).is_err());
}

#[tokio::test]
async fn a_snapshot_that_is_not_whole_is_refused_and_the_old_state_stands() {
    use wire::snapshot_part::Part;

    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(2, b.address);
    let ctx = Context::with_timeout(Duration::from_secs(5));
    let channel = a.pool.channel(&ctx, NodeId(2)).await.unwrap();
    let mut client = dial::client(channel, &limits());
    let begin = Part::Begin(wire::SnapshotBegin {
        hello: Some(a.pool.shared.link.hello(NodeId(2))),
        group: 1,
        vote: Some(wire::vote_out(&vote())),
        meta: serde_json::to_vec(&snapshot_of(0).meta).unwrap().into(),
        install_ms: 1000,
    });
    let first = || Part::Chunk(wire::chunk_out(0, chunk(1)));
    let bytes = chunk(1).len() as u64;
    let mut damaged = wire::chunk_out(1, chunk(2));
    damaged.crc32c ^= 1;
    for (rest, says) in [
        (
            vec![Part::End(wire::SnapshotEnd { chunks: 2, bytes })],
            "not whole",
        ),
        (
            vec![Part::End(wire::SnapshotEnd {
                chunks: 1,
                bytes: 1,
            })],
            "not whole",
        ),
        (vec![], "in the middle"),
        (vec![Part::Chunk(damaged)], "damaged"),
        (
            vec![Part::Chunk(wire::chunk_out(2, chunk(2)))],
            "out of order",
        ),
    ] {
        let parts = [begin.clone(), first()].into_iter().chain(rest);
        let parts: Vec<_> = parts
            .map(|part| wire::SnapshotPart { part: Some(part) })
            .collect();
        let replies = client.install_snapshot(futures::stream::iter(parts)).await;
        let mut replies = replies.unwrap().into_inner();
        let mut outcome = None;
        while let Some(reply) = replies.message().await.unwrap() {
            outcome = reply.outcome;
        }
        let Some(wire::snapshot_reply::Outcome::Refused(why)) = outcome else {
            panic!("expected a refusal that says {says:?}, got {outcome:?}");
        };
        assert!(why.contains(says), "{why}");
    }
    assert_eq!(b.inbound.snapshot.lock().begun, 5);
    assert!(b.inbound.snapshot.lock().installed.is_none());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn callers_of_a_channel_share_one_attempt_and_each_keeps_its_own_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = Node::new(1).await;
    a.knows(2, silent.local_addr().unwrap());
    let began = Instant::now();
    let callers = (0..100).map(|_| async {
        let ctx = Context::with_timeout(Duration::from_millis(50));
        a.pool.channel(&ctx, NodeId(2)).await.unwrap_err()
    });
    for error in join_all(callers).await {
        assert_eq!(error, PeerError::Ended(Ended::Deadline));
    }
    assert!(began.elapsed() < Duration::from_millis(250));
    let mut sockets = 0;
    while timeout(Duration::from_millis(50), silent.accept())
        .await
        .is_ok()
    {
        sockets += 1;
    }
    assert_eq!(sockets, 1);
    a.stop().await;
}

#[tokio::test]
async fn a_peer_tells_where_it_is_and_the_membership_overrules_that_only_by_a_change() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    let member = |address: &str| types::Peer {
        address: address.to_owned(),
    };
    let mut networks = a.pool.network(GroupId(0));
    networks.new_client(2, &member("10.0.0.1:1")).await;
    assert_eq!(a.pool.address(NodeId(2)).unwrap(), "10.0.0.1:1");

    b.knows(1, a.address);
    until_reached(&mut b.network(0, 1).await).await;
    assert_eq!(a.pool.address(NodeId(2)).unwrap(), b.address.to_string());

    networks.new_client(2, &member("10.0.0.1:1")).await;
    assert_eq!(a.pool.address(NodeId(2)).unwrap(), b.address.to_string());
    networks.new_client(2, &member("10.0.0.2:1")).await;
    assert_eq!(a.pool.address(NodeId(2)).unwrap(), "10.0.0.2:1");
    a.stop().await;
    b.stop().await;
}

/// A service that never answers.
#[derive(Clone)]
struct Stuck;

impl tonic::server::NamedService for Stuck {
    const NAME: &'static str = "test.Stuck";
}

impl tower::Service<http::Request<tonic::body::Body>> for Stuck {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: http::Request<tonic::body::Body>) -> Self::Future {
        std::future::pending()
    }
}

/// Through tonic's own server, which answers CANCELLED if it is the first to see the deadline; and
/// with a client that keeps no deadline itself.
#[tokio::test]
async fn an_expired_grpc_timeout_is_answered_with_deadline_exceeded_over_the_wire() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let server = tonic::transport::Server::builder()
        .layer(DeadlineLayer::default())
        .add_service(Stuck)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.clone().cancelled_owned());
    tasks.spawn(async move { server.await.unwrap() });

    let socket = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(socket),
    )
    .await
    .unwrap();
    tasks.spawn(async move { connection.await.unwrap() });
    for _ in 0..20 {
        let request = http::Request::post(format!("http://{address}/test.Stuck/Wait"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "20m")
            .body(tonic::body::Body::empty())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
    drop(client);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

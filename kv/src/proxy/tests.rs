//! The coordinator and the leader proxy of several nodes, wired in memory, under paused time: the
//! shards are stand-ins that the test leads, holds and refuses.

mod random_faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use leadline_raft::engine::{Leadership, ReadIndex};
use leadline_raft::{
    ClusterId, Context, Ended, GroupId, LeaderId, LogIndex, NodeId, RaftError, Term,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    ForwardService, LeaderProxy, Links, MESSAGE_BYTES, MOST_CARRIED_BYTES, MOST_HANDED,
    MOST_MESSAGE_BYTES, MOST_WATCHES, PeerTransport, ReplyStream,
};
use crate::admission::Admission;
use crate::catalog::{Addresses, Catalog, CatalogCopy};
use crate::coordinator::{LocalShard, Reply};
use crate::executor::Submission;
use crate::keyspace::{SLOTS, slot_start};
use crate::metrics::{CoordinatorMetrics, PeerLabel};
use crate::{
    Access, Coordinator, Door, KeyWatch, KvError, Operation, OperationCodec, PendingReply, Route,
    RowError, Rows, Scattered, ShardedCoordinator, wire,
};

const SHARDS: u16 = 4;

/// A command that says its name when it is evaluated.
#[derive(Clone, Debug)]
struct Say {
    name: String,
    access: Access,
    /// None: every shard.
    keys: Vec<Bytes>,
}

fn key(shard: u16) -> Bytes {
    let mut key = slot_start(SLOTS / SHARDS * shard).to_vec();
    key.extend_from_slice(b"\0k");
    key.into()
}

fn write(name: &str) -> Arc<Say> {
    Arc::new(Say {
        name: name.to_owned(),
        access: Access::Write,
        keys: vec![key(0)],
    })
}

fn read(name: &str) -> Arc<Say> {
    Arc::new(Say {
        access: Access::Read,
        ..(*write(name)).clone()
    })
}

impl Operation for Say {
    fn name(&self) -> &'static str {
        "SAY"
    }
    fn door(&self) -> Door {
        Door::Redis
    }
    fn access(&self) -> Access {
        self.access
    }
    fn route(&self) -> Route<'_> {
        if self.keys.is_empty() {
            Route::EveryShard
        } else {
            Route::Keys(&self.keys)
        }
    }
    fn size(&self) -> usize {
        100 + self.name.len()
    }
    fn evaluate(&self, _rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        Ok(self.name.clone().into())
    }
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[u8::from(self.access == Access::Write)]);
        out.extend_from_slice(self.name.as_bytes());
    }
    fn scatter(self: Arc<Self>) -> Option<Scattered> {
        Some(Scattered {
            part: self,
            gather: Box::new(|replies| replies.concat().into()),
        })
    }
}

struct SayCodec;

impl OperationCodec for SayCodec {
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        let name = String::from_utf8(bytes[1..].to_vec()).map_err(|error| error.to_string())?;
        Ok(if bytes[0] == 1 {
            write(&name)
        } else {
            read(&name)
        })
    }
}

/// A reply held back, with the context of its request.
type HeldReply = (Context, oneshot::Sender<Reply>);

/// A replica whose leadership and answers the test decides.
struct FakeShard {
    leadership: watch::Sender<Leadership>,
    leading: AtomicBool,
    evaluated: Mutex<Vec<String>>,
    /// Replies held back, with the contexts of their requests, while set.
    held: Mutex<Option<Vec<HeldReply>>>,
    watches: Mutex<Vec<oneshot::Sender<()>>>,
}

fn leader(node: u64) -> LeaderId {
    LeaderId {
        term: Term(1),
        node: NodeId(node),
    }
}

impl FakeShard {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            leadership: watch::Sender::new(Leadership::Unknown),
            leading: AtomicBool::new(false),
            evaluated: Mutex::default(),
            held: Mutex::new(None),
            watches: Mutex::default(),
        })
    }

    fn hold(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    fn held(&self) -> Vec<HeldReply> {
        self.held.lock().replace(Vec::new()).unwrap_or_default()
    }

    fn refuse(&self) -> KvError {
        let leader = match *self.leadership.borrow() {
            Leadership::Leader(leader) | Leadership::Follower { leader } => Some(leader.node),
            Leadership::Unknown => None,
        };
        KvError::NoLeader { leader }
    }

    fn said(&self) -> Vec<String> {
        self.evaluated.lock().clone()
    }
}

struct Handle(Arc<FakeShard>);

impl LocalShard for Handle {
    fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply {
        if !self.is_leading() {
            return PendingReply::ready(Err(self.0.refuse()));
        }
        if let Some(held) = self.0.held.lock().as_mut() {
            let (reply, received) = oneshot::channel();
            held.push((ctx.clone(), reply));
            return PendingReply::waiting(received);
        }
        let mut rows = crate::testing::MemoryRows::default();
        let said = submission.operation.evaluate(&mut rows).unwrap();
        let name = String::from_utf8(said.to_vec()).unwrap();
        self.0.evaluated.lock().push(name);
        PendingReply::ready(Ok(said))
    }

    fn watch(&self, _keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        if !self.is_leading() {
            return Err(self.0.refuse());
        }
        let (wake, watch) = KeyWatch::new();
        self.0.watches.lock().push(wake);
        Ok(watch)
    }

    fn is_leading(&self) -> bool {
        self.0.leading.load(Ordering::SeqCst)
    }

    fn leadership(&self) -> Leadership {
        *self.0.leadership.borrow()
    }

    fn verify_leader<'a>(
        &'a self,
        _ctx: &'a Context,
    ) -> BoxFuture<'a, Result<ReadIndex, RaftError>> {
        Box::pin(async {
            Ok(ReadIndex {
                leader: leader(1),
                index: LogIndex(1),
            })
        })
    }
}

/// The network: which nodes serve, and from where to where nothing passes.
#[derive(Default)]
struct Network {
    services: Mutex<BTreeMap<NodeId, ForwardService>>,
    silent: Mutex<Vec<NodeId>>,
    /// How much each message carried, and in how many bytes.
    passed: Mutex<Vec<(usize, usize)>>,
    bytes_a_second: Mutex<Option<usize>>,
    cut: Mutex<Vec<(NodeId, CancellationToken)>>,
    tasks: TaskTracker,
}

impl Network {
    /// Messages to and from `node` vanish, as behind a firewall that drops.
    fn blackhole(&self, node: u64) {
        self.silent.lock().push(NodeId(node));
    }

    fn heal(&self) {
        self.silent.lock().clear();
    }

    /// Breaks the streams to `node`.
    fn reset(&self, node: u64) {
        for (to, cut) in &*self.cut.lock() {
            if *to == NodeId(node) {
                cut.cancel();
            }
        }
    }

    /// Takes note of a message and its time on the wire; refuses what gRPC would.
    async fn pass(&self, items: usize, message: &impl prost::Message) -> Result<(), String> {
        let bytes = message.encoded_len();
        self.passed.lock().push((items, bytes));
        if bytes > MOST_MESSAGE_BYTES {
            return Err(format!("a message of {bytes} bytes"));
        }
        let millis = self.bytes_a_second.lock().map(|most| bytes * 1000 / most);
        if let Some(millis @ 1..) = millis {
            tokio::time::sleep(Duration::from_millis(millis as u64)).await;
        }
        Ok(())
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.silent.lock().contains(&node)
    }
}

struct Via(Arc<Network>);

impl PeerTransport for Via {
    fn exchange(
        &self,
        _ctx: Context,
        node: NodeId,
        mut outgoing: mpsc::Receiver<wire::ForwardRequests>,
    ) -> BoxFuture<'static, Result<ReplyStream, String>> {
        let network = Arc::clone(&self.0);
        Box::pin(async move {
            if network.is_silent(node) {
                std::future::pending::<()>().await;
            }
            let service = network.services.lock().get(&node).cloned();
            let service = service.ok_or("connection refused")?;
            let (up, requests) = mpsc::channel(1);
            let cut = CancellationToken::new();
            network.cut.lock().push((node, cut.clone()));
            let there = Arc::clone(&network);
            let gone = cut.clone();
            network.tasks.spawn(async move {
                while let Some(message) = outgoing.recv().await {
                    if gone.is_cancelled() {
                        return;
                    }
                    if there.pass(message.requests.len(), &message).await.is_err() {
                        return gone.cancel();
                    }
                    if !there.is_silent(node) && up.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            });
            let replies = ReceiverStream::new(service.serve(ReceiverStream::new(requests)))
                .filter({
                    let network = Arc::clone(&network);
                    move |_| {
                        let lost = network.is_silent(node);
                        async move { !lost }
                    }
                })
                .then(move |message| {
                    let network = Arc::clone(&network);
                    async move {
                        let message = message.map_err(|status| status.to_string())?;
                        network.pass(message.replies.len(), &message).await?;
                        Ok(message)
                    }
                })
                .take_until(async move { cut.cancelled().await })
                .chain(futures::stream::once(async { Err("reset".to_owned()) }));
            Ok(replies.boxed() as ReplyStream)
        })
    }
}

struct TestNode {
    coordinator: Arc<ShardedCoordinator>,
    proxy: Arc<LeaderProxy>,
    metrics: CoordinatorMetrics,
    shard: Arc<FakeShard>,
    other_shards: Vec<Arc<FakeShard>>,
}

impl TestNode {
    /// What this node believes about who leads; it says so to its lanes.
    fn believe(&self, belief: Leadership) {
        for (group, shard) in (1..).zip(std::iter::once(&self.shard).chain(&self.other_shards)) {
            let leads = belief == Leadership::Leader(leader(self.coordinator.node().0));
            shard.leading.store(leads, Ordering::SeqCst);
            shard.leadership.send_replace(belief);
            self.coordinator.lane(GroupId(group)).kick();
        }
    }

    fn follow(&self, node: u64) {
        self.believe(Leadership::Follower {
            leader: leader(node),
        });
    }

    fn lead(&self) {
        self.believe(Leadership::Leader(leader(self.coordinator.node().0)));
    }

    /// How often a stream to `node` broke.
    fn broken(&self, node: u64) -> u64 {
        let label = PeerLabel { node };
        self.metrics.peer_broken.get_or_create(&label).get()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.proxy.table.lock().entries.len(), 0, "pending entries");
        assert_eq!(self.metrics.parked.get(), 0, "parked");
        assert_eq!(self.metrics.forwards_pending.get(), 0, "forwards pending");
    }
}

struct Cluster {
    network: Arc<Network>,
    nodes: Vec<TestNode>,
}

impl Cluster {
    /// Three nodes whose streams are up; nobody knows a leader.
    async fn new() -> Self {
        Self::with(|_, shard| Box::new(Handle(Arc::clone(shard)))).await
    }

    /// The same, where node 2 leads and node 1 knows it.
    async fn led_by_second() -> Self {
        let cluster = Self::new().await;
        cluster.at(1).follow(2);
        cluster.at(2).lead();
        cluster
    }

    /// As [`Self::new`], with shards that `local` makes for a node.
    async fn with(local: impl Fn(NodeId, &Arc<FakeShard>) -> Box<dyn LocalShard>) -> Self {
        let network = Arc::new(Network::default());
        let mut nodes = Vec::new();
        for number in 1..=3 {
            let node = NodeId(number);
            let catalog = Arc::new(CatalogCopy::default());
            catalog.offer(Catalog::deal(
                ClusterId(1),
                SHARDS,
                NodeId(1),
                Addresses::default(),
            ));
            let metrics = CoordinatorMetrics::default();
            let proxy = LeaderProxy::new(metrics.clone());
            let coordinator = ShardedCoordinator::new(
                node,
                catalog,
                Arc::clone(&proxy),
                Arc::new(Admission::new(1 << 30, 1000)),
                Arc::new(crate::hlc::Hlc::new()),
                metrics.clone(),
            );
            let shards: Vec<_> = (0..SHARDS).map(|_| FakeShard::new()).collect();
            for (group, shard) in (1..).zip(&shards) {
                coordinator.host(GroupId(group), Some(local(node, shard)));
            }
            let codec: Arc<dyn OperationCodec> = Arc::new(SayCodec);
            let service = ForwardService::new(Arc::clone(&coordinator), [(Door::Redis, codec)]);
            network.services.lock().insert(node, service);
            let attending = Arc::clone(&coordinator);
            network
                .tasks
                .spawn(async move { attending.attend(CancellationToken::new()).await });
            let links = Links::new(Arc::clone(&proxy), Arc::new(Via(Arc::clone(&network))), {
                let coordinator = Arc::clone(&coordinator);
                move |_| coordinator.peer_is_back()
            });
            links.set_peers((1..=3).map(NodeId).filter(|&peer| peer != node));
            nodes.push(TestNode {
                coordinator,
                proxy,
                metrics,
                shard: Arc::clone(&shards[0]),
                other_shards: shards[1..].to_vec(),
            });
        }
        let cluster = Self { network, nodes };
        while !cluster.all_up() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster
    }

    fn all_up(&self) -> bool {
        self.nodes.iter().all(|node| {
            let own = node.coordinator.node();
            (1..=3)
                .map(NodeId)
                .all(|peer| peer == own || node.proxy.reachable(peer))
        })
    }

    fn at(&self, node: usize) -> &TestNode {
        &self.nodes[node - 1]
    }
}

fn within(millis: u64) -> Context {
    Context::with_timeout(Duration::from_millis(millis))
}

async fn timed(reply: PendingReply) -> (Reply, u64) {
    let began = Instant::now();
    let reply = reply.await;
    (reply, u64::try_from(began.elapsed().as_millis()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_at_a_follower_is_answered_by_the_leader() {
    let cluster = Cluster::new().await;
    cluster.at(1).follow(2);
    cluster.at(2).lead();
    let reply = cluster.at(1).coordinator.submit(&within(100), write("a"));
    assert_eq!(reply.await, Ok("a".into()));
    assert_eq!(cluster.at(2).shard.said(), ["a"]);
    cluster.at(1).nothing_is_left();
}

/// Promise 4: a blackholed leader costs each request its own deadline, and says the right thing.
#[tokio::test(start_paused = true)]
async fn requests_at_a_blackholed_leader_end_at_their_own_deadlines() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.network.blackhole(2);
    let long = node.coordinator.submit(&within(700), write("a"));
    let short = node.coordinator.submit(&within(50), write("b"));
    let look = node.coordinator.submit(&within(300), read("c"));
    let (long, short, look) = tokio::join!(timed(long), timed(short), timed(look));
    assert!(matches!(long, (Err(KvError::Unknown(_)), 700..=701)));
    assert!(matches!(short, (Err(KvError::Unknown(_)), 50..=51)));
    let ended = Err(KvError::NotApplied(Ended::Deadline));
    assert!(look.0 == ended && (300..=301).contains(&look.1));
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_request_waits_exactly_its_deadline_and_is_not_applied() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    let replies = (1..=50).map(|i| node.coordinator.submit(&within(i * 10), write("a")));
    let replies = futures::future::join_all(replies.map(timed)).await;
    for (i, (reply, took)) in (1..).zip(replies) {
        assert!(matches!(reply, Err(KvError::NoLeader { .. })), "{reply:?}");
        assert!(
            (i * 10..=i * 10 + 1).contains(&took),
            "{took} of {}",
            i * 10
        );
    }
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_an_election_go_on_in_order_when_it_ends() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    let ctx = within(5000);
    let waiting: Vec<_> = names
        .iter()
        .map(|name| node.coordinator.submit(&ctx, write(name)))
        .collect();
    tokio::time::sleep(Duration::from_millis(900)).await;
    cluster.at(2).lead();
    let began = Instant::now();
    node.follow(2);
    let replies = futures::future::join_all(waiting).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(cluster.at(2).shard.said(), names);
    assert!(began.elapsed() < Duration::from_millis(5));
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_parked_request_moves_to_this_node_when_it_comes_to_lead() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    let waiting = node.coordinator.submit(&within(1000), write("a"));
    tokio::time::sleep(Duration::from_millis(10)).await;
    node.lead();
    assert_eq!(waiting.await, Ok("a".into()));
    node.nothing_is_left();
}

/// The breaker: once a peer is known to be silent, requests for it are not handed over, so they
/// end as not applied instead of unknown; a probe, not a request, finds out that it is back.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_keeps_requests_safe_to_retry_and_closes_by_a_probe() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.network.blackhole(2);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!node.proxy.reachable(NodeId(2)));
    let (reply, took) = timed(node.coordinator.submit(&within(200), write("a"))).await;
    assert!(matches!(reply, Err(KvError::NoLeader { .. })) && (200..=201).contains(&took));
    let waiting = node.coordinator.submit(&within(5000), write("b"));
    cluster.network.heal();
    let (reply, took) = timed(waiting).await;
    assert_eq!(reply, Ok("b".into()));
    assert!(took <= 2100, "healed and first answered after {took} ms");
    assert_eq!(cluster.at(2).shard.said(), ["b"]);
    node.nothing_is_left();
}

/// A peer that answers pings and nothing else: its disk hangs, say.
#[tokio::test(start_paused = true)]
async fn timeouts_one_after_the_other_open_the_breaker_and_one_answer_closes_it() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    for _ in 0..super::TIMEOUTS {
        let reply = node.coordinator.submit(&within(20), write("a")).await;
        assert!(matches!(reply, Err(KvError::Unknown(_))), "{reply:?}");
    }
    let (reply, took) = timed(node.coordinator.submit(&within(100), write("a"))).await;
    assert!(matches!(reply, Err(KvError::NoLeader { .. })), "{reply:?}");
    assert!((100..=101).contains(&took));
    *cluster.at(2).shard.held.lock() = None;
    let ctx = within(5000);
    let replies: Vec<_> = (0..10)
        .map(|_| node.coordinator.submit(&ctx, read("b")))
        .collect();
    let (replies, took) = {
        let began = Instant::now();
        (futures::future::join_all(replies).await, began.elapsed())
    };
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert!(took < Duration::from_millis(600), "{took:?}");
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_by_the_origin_and_a_forwarded_request_makes_one_hop() {
    let cluster = Cluster::new().await;
    cluster.at(1).follow(2);
    cluster.at(2).follow(3);
    cluster.at(3).lead();
    let (reply, took) = timed(cluster.at(1).coordinator.submit(&within(500), write("a"))).await;
    assert_eq!(reply, Ok("a".into()));
    assert!(took < 20, "{took}");
    assert_eq!(cluster.at(2).metrics.forwards.get(), 0);
    assert_eq!(cluster.at(1).metrics.forwards.get(), 2);
    cluster.at(1).nothing_is_left();
}

/// Invariant 1: what was handed over may have been applied.
#[tokio::test(start_paused = true)]
async fn when_the_stream_breaks_a_read_is_sent_again_and_a_write_is_unknown() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let ctx = within(4000);
    let put = node.coordinator.submit(&ctx, write("a"));
    let mut other = (*read("b")).clone();
    other.keys = vec![[&key(0)[..], b"other"].concat().into()];
    let look = node.coordinator.submit(&ctx, Arc::new(other));
    let id = node.coordinator.next_request_id();
    let mut once = (*write("c")).clone();
    once.keys = vec![[&key(0)[..], b"third"].concat().into()];
    let once = node.coordinator.submit_once(&ctx, id, Arc::new(once));
    while cluster.at(2).shard.held.lock().as_ref().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *cluster.at(2).shard.held.lock() = None;
    cluster.network.reset(2);
    let (put, look, once) = tokio::join!(put, look, once);
    assert!(matches!(put, Err(KvError::Unknown(_))), "{put:?}");
    assert_eq!(look, Ok("b".into()));
    assert_eq!(once, Ok("c".into()));
    let mut said = cluster.at(2).shard.said();
    said.sort();
    assert_eq!(said, ["b", "c"], "the write was sent twice");
    node.nothing_is_left();
}

/// Invariant 1 of flights: a refusal says nothing about an earlier sending.
#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_applied_is_not_called_not_applied_by_a_later_refusal() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let ctx = within(500);
    let id = node.coordinator.next_request_id();
    let put = node.coordinator.submit_once(&ctx, id, write("a"));
    while cluster
        .at(2)
        .shard
        .held
        .lock()
        .as_ref()
        .is_some_and(Vec::is_empty)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It is evaluated; its answer is lost, and from then on nobody leads.
    cluster.network.reset(2);
    cluster.at(2).shard.leading.store(false, Ordering::SeqCst);
    for at in 1..=3 {
        cluster.at(at).believe(Leadership::Unknown);
    }
    let reply = put.await;
    assert!(matches!(reply, Err(KvError::Unknown(_))), "{reply:?}");
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_at_a_follower_is_evaluated_in_order() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    let names: Vec<String> = (0..500).map(|i| i.to_string()).collect();
    let ctx = within(1000);
    let replies: Vec<_> = names
        .iter()
        .map(|name| node.coordinator.submit(&ctx, write(name)))
        .collect();
    let replies = futures::future::join_all(replies).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(cluster.at(2).shard.said(), names);
}

/// Invariant 2 of flights: a refused write is not put behind a later one on its key.
#[tokio::test(start_paused = true)]
async fn a_refused_write_is_not_sent_again_once_a_later_one_on_its_key_was_submitted() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    node.lead();
    node.shard.hold();
    let ctx = within(1000);
    let first = node.coordinator.submit(&ctx, write("first"));
    let refused = node.shard.held();
    *node.shard.held.lock() = None;
    let second = node.coordinator.submit(&ctx, write("second"));
    for (_, reply) in refused {
        drop(reply.send(Err(KvError::NoLeader { leader: None })));
    }
    assert!(matches!(first.await, Err(KvError::NoLeader { .. })));
    assert_eq!(second.await, Ok("second".into()));
    assert_eq!(node.shard.said(), ["second"]);

    // With nothing behind it, it is.
    node.shard.hold();
    let last = node.coordinator.submit(&ctx, write("last"));
    let refused = node.shard.held();
    *node.shard.held.lock() = None;
    for (_, reply) in refused {
        drop(reply.send(Err(KvError::NoLeader { leader: None })));
    }
    assert_eq!(last.await, Ok("last".into()));
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_failing_part_of_a_fan_out_cancels_no_other_and_the_whole_says_what_happened() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    node.lead();
    let broken = &node.other_shards[1];
    broken.leading.store(false, Ordering::SeqCst);
    broken.leadership.send_replace(Leadership::Unknown);
    let everywhere = |access| {
        Arc::new(Say {
            name: "x".into(),
            access,
            keys: Vec::new(),
        })
    };
    let look = node
        .coordinator
        .submit(&within(100), everywhere(Access::Read))
        .await;
    assert!(matches!(look, Err(KvError::NoLeader { .. })), "{look:?}");
    let put = node
        .coordinator
        .submit(&within(100), everywhere(Access::Write))
        .await;
    assert!(matches!(put, Err(KvError::Unknown(_))), "{put:?}");
    assert_eq!(node.shard.said().len(), 2);
    assert_eq!(node.other_shards[2].said().len(), 2);
    node.lead();
    let all = node
        .coordinator
        .submit(&within(100), everywhere(Access::Read))
        .await;
    assert_eq!(all, Ok("xxxx".into()));
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn giving_up_a_reply_cancels_the_request_at_the_leader() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let mut reply = node.coordinator.submit(&within(60_000), write("a"));
    assert!((&mut reply).now_or_never().is_none());
    let there = loop {
        if let Some(held) = cluster.at(2).shard.held().pop() {
            break held;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(there.0.ended(), None);
    drop(reply);
    assert_eq!(there.0.done().await, Ended::Cancelled);
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_watch_at_another_node_is_woken_taken_back_and_ended_with_its_stream() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    let ctx = within(1000);
    let keys = [key(0)];
    let mut watch = node.coordinator.watch(&ctx, &keys).await.unwrap();
    // It outlives the context of its registration.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(watch.woken().now_or_never().is_none());
    let wake = cluster.at(2).shard.watches.lock().pop().unwrap();
    wake.send(()).unwrap();
    watch.woken().await;
    drop(watch);
    node.nothing_is_left();

    let ctx = within(1000);
    let watch = node.coordinator.watch(&ctx, &keys).await.unwrap();
    let mut wake = cluster.at(2).shard.watches.lock().pop().unwrap();
    drop(watch);
    wake.closed().await;

    let ctx = within(1000);
    let mut watch = node.coordinator.watch(&ctx, &keys).await.unwrap();
    cluster.network.reset(2);
    watch.woken().await;
    drop(watch);
    node.nothing_is_left();
}

/// Waits until the shard holds `count` requests back, and takes them.
async fn held(shard: &FakeShard, count: usize) -> Vec<HeldReply> {
    let all = async {
        while shard.held.lock().as_ref().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shard.held()
    };
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    all.expect("fewer requests arrived")
}

/// Many large replies are ready together, which no message would take.
#[tokio::test(start_paused = true)]
async fn a_message_carries_a_mebibyte_or_one_larger_request_or_reply() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let ctx = within(1000);
    let sizes: Vec<usize> = (0..40)
        .map(|i| if i % 2 == 0 { 300 << 10 } else { 14 << 20 })
        .collect();
    let larger = [read(&"x".repeat(2 << 20)), read("x")];
    let requests = sizes.iter().map(|_| read(&"x".repeat(300 << 10)));
    let replies: Vec<_> = requests
        .chain(larger)
        .map(|request| node.coordinator.submit(&ctx, request))
        .collect();
    let waiting = held(&cluster.at(2).shard, replies.len()).await;
    for ((_, reply), size) in waiting.into_iter().zip(sizes.iter().chain(&[1, 1])) {
        reply.send(Ok(vec![0; *size].into())).unwrap();
    }
    let replies = futures::future::join_all(replies).await;
    for (reply, size) in replies.into_iter().zip(sizes) {
        assert_eq!(reply.map(|reply| reply.len()), Ok(size));
    }
    let passed = std::mem::take(&mut *cluster.network.passed.lock());
    let frames = 100;
    for &(items, bytes) in &passed {
        assert!(
            items <= 1 || bytes <= MESSAGE_BYTES + items * frames,
            "{items} in {bytes} bytes"
        );
    }
    assert!(passed.iter().any(|&(items, _)| items > 1), "{passed:?}");
    assert_eq!(node.broken(2), 0);
    node.nothing_is_left();
}

/// A write whose reply is too large was applied: nothing may say that it was not.
#[tokio::test(start_paused = true)]
async fn a_reply_that_no_message_takes_fails_its_caller_alone_and_says_what_stands() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let ctx = within(1000);
    let look = node.coordinator.submit(&ctx, read("a"));
    let put = node.coordinator.submit(&ctx, write("b"));
    let largest = node.coordinator.submit(&ctx, read("c"));
    let other = node.coordinator.submit(&ctx, write("d"));
    let sizes = [
        MOST_CARRIED_BYTES + 1,
        MOST_MESSAGE_BYTES,
        MOST_CARRIED_BYTES,
    ];
    let mut waiting = held(&cluster.at(2).shard, 4).await.into_iter();
    for (size, (_, reply)) in sizes.into_iter().zip(waiting.by_ref()) {
        reply.send(Ok(vec![0; size].into())).unwrap();
    }
    let limit = format!("{} MiB", MOST_CARRIED_BYTES >> 20);
    let (look, put, largest) = tokio::join!(look, put, largest);
    let look = look.map(|reply| reply.len());
    let put = put.map(|reply| reply.len());
    assert!(
        matches!(&look, Err(KvError::Invalid(why)) if why.contains(&limit)),
        "{look:?}"
    );
    assert!(
        matches!(&put, Err(KvError::Unknown(why)) if why.contains(&limit)),
        "{put:?}"
    );
    assert_eq!(largest.map(|reply| reply.len()), Ok(MOST_CARRIED_BYTES));
    let (_, reply) = waiting.next().unwrap();
    reply.send(Ok("d".into())).unwrap();
    assert_eq!(other.await, Ok("d".into()));
    assert_eq!(node.broken(2), 0);
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_message_takes_is_refused_alone_and_not_applied() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    let ctx = within(1000);
    let other = node.coordinator.submit(&ctx, write("a"));
    let mut waiting = held(&cluster.at(2).shard, 1).await;
    let huge = "x".repeat(MOST_MESSAGE_BYTES);
    let mut other_key = (*write(&huge)).clone();
    other_key.keys = vec![[&key(0)[..], b"other"].concat().into()];
    let put = node.coordinator.submit(&ctx, Arc::new(other_key)).await;
    let watched = [[&key(0)[..], huge.as_bytes()].concat().into()];
    drop(huge);
    let watch = node.coordinator.watch(&ctx, &watched).await;
    for refused in [put.err(), watch.err()] {
        let limit = MOST_CARRIED_BYTES.to_string();
        assert!(
            matches!(&refused, Some(KvError::Invalid(why)) if why.contains(&limit)),
            "{refused:?}"
        );
    }
    let (_, reply) = waiting.remove(0);
    reply.send(Ok("a".into())).unwrap();
    assert_eq!(other.await, Ok("a".into()));
    assert_eq!(node.broken(2), 0);
    assert!(cluster.at(2).shard.said().is_empty());
    node.nothing_is_left();
}

/// Clients that block on thousands of keys, as BLPOP does, at a node that does not lead.
#[tokio::test(start_paused = true)]
async fn watches_at_a_peer_are_bounded_and_take_no_place_of_a_request() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    let (ctx, keys) = (within(60_000), [key(0)]);
    let watches = (0..5 * 14_000).map(|_| node.coordinator.watch(&ctx, &keys));
    let mut watches = std::pin::pin!(futures::future::join_all(watches));
    assert!((&mut watches).now_or_never().is_none());
    // They wait, or were refused; requests do not stand behind them.
    let reply = node.coordinator.submit(&within(1000), write("a")).await;
    assert_eq!(reply, Ok("a".into()));
    let (mut placed, refused): (Vec<_>, Vec<_>) =
        watches.await.into_iter().partition(Result::is_ok);
    assert_eq!(placed.len(), MOST_WATCHES);
    for watch in refused {
        assert!(
            matches!(watch, Err(KvError::Overloaded { .. })),
            "{watch:?}"
        );
    }
    let reply = node.coordinator.submit(&within(1000), write("b")).await;
    assert_eq!(reply, Ok("b".into()));
    // Who stops waiting makes room.
    placed.truncate(1);
    placed.push(node.coordinator.watch(&ctx, &keys).await);
    for wake in std::mem::take(&mut *cluster.at(2).shard.watches.lock()) {
        wake.send(()).ok();
    }
    for watch in placed {
        watch.unwrap().woken().await;
    }
    assert_eq!(node.broken(2), 0);
    node.nothing_is_left();
}

/// Pings and cancels come over the stream that brings requests: it is never left unread.
#[tokio::test(start_paused = true)]
async fn a_peer_past_its_share_of_requests_and_watches_is_refused_and_still_heard() {
    let cluster = Cluster::new().await;
    cluster.at(2).lead();
    let shard = &cluster.at(2).shard;
    shard.hold();
    let service = cluster.network.services.lock()[&NodeId(2)].clone();
    let watch = wire::ForwardRequest {
        group: 1,
        watch: vec![key(0)],
        ..wire::ForwardRequest::default()
    };
    let mut operation = BytesMut::new();
    write("a").encode(&mut operation);
    let request = wire::ForwardRequest {
        group: 1,
        remaining_us: 60_000_000,
        door: u32::from(Door::Redis as u8),
        operation: operation.freeze(),
        ..wire::ForwardRequest::default()
    };
    for (kind, most) in [(watch, 2 * MOST_WATCHES), (request, 2 * MOST_HANDED)] {
        let (send, requests) = mpsc::channel(1);
        let mut replies = service.serve(ReceiverStream::new(requests));
        let numbered = |number| wire::ForwardRequest {
            number,
            ..kind.clone()
        };
        let number = u64::try_from(most).unwrap() + 1;
        let message = wire::ForwardRequests {
            requests: (1..=number).map(numbered).collect(),
            ping: number,
            ..wire::ForwardRequests::default()
        };
        send.send(Ok(message)).await.unwrap();
        let mut failed = Vec::new();
        let mut pong = 0;
        while failed.is_empty() || pong == 0 {
            let message = within(1000).run(replies.recv()).await;
            let message = message.expect("nothing is answered").unwrap().unwrap();
            pong = pong.max(message.pong);
            failed.extend(
                message
                    .replies
                    .into_iter()
                    .filter_map(|reply| match reply.outcome {
                        Some(wire::forward_reply::Outcome::Failure(failure)) => {
                            Some((reply.number, failure.kind()))
                        }
                        _ => None,
                    }),
            );
        }
        assert_eq!(failed, [(number, wire::failure::Kind::Overloaded)]);
        let message = wire::ForwardRequests {
            cancels: vec![1],
            ..wire::ForwardRequests::default()
        };
        send.send(Ok(message)).await.unwrap();
        let cancelled = async {
            match kind.watch.is_empty() {
                true => drop(shard.held().remove(0).0.done().await),
                false => {
                    let mut first = shard.watches.lock().remove(0);
                    first.closed().await;
                }
            }
        };
        within(1000)
            .run(cancelled)
            .await
            .expect("it is not taken back");
    }
}

/// Pings and pongs stand behind it.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_long_on_the_wire_is_not_taken_for_silence() {
    let cluster = Cluster::led_by_second().await;
    let node = cluster.at(1);
    cluster.at(2).shard.hold();
    *cluster.network.bytes_a_second.lock() = Some(10 << 20);
    let ctx = within(60_000);
    let large = 100 << 20;
    let put = node.coordinator.submit(&ctx, write(&"x".repeat(large)));
    let (_, reply) = held(&cluster.at(2).shard, 1).await.remove(0);
    reply.send(Ok(vec![0; large].into())).unwrap();
    assert_eq!(put.await.map(|reply| reply.len()), Ok(large));
    assert!(
        ctx.remaining() < Duration::from_secs(41),
        "the wire took no time"
    );
    assert_eq!(node.broken(2), 0);
    node.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_refuses_at_once_and_recovers() {
    let cluster = Cluster::new().await;
    let node = cluster.at(1);
    node.lead();
    node.shard.hold();
    let ctx = within(100);
    let held: Vec<_> = (0..1000)
        .map(|_| node.coordinator.submit(&ctx, read("a")))
        .collect();
    let refused = node.coordinator.submit(&ctx, read("b"));
    assert!(matches!(
        refused.now_or_never(),
        Some(Err(KvError::Overloaded { .. }))
    ));
    drop(held);
    *node.shard.held.lock() = None;
    assert!(node.coordinator.submit(&ctx, read("b")).await.is_ok());
}

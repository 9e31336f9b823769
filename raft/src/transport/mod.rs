//! How nodes talk: one long-lived stream per peer and traffic class, shared by all groups.
//!
//! A node dials each peer it has something to ask, and is answered on the same stream; what the peer
//! asks comes on the peer's own. Two classes keep what is small and urgent (votes, heartbeats, fresh
//! entries) from waiting behind what is large (entries for a follower that catches up); snapshots
//! have a connection each, as long as they last. Everything that waits for a peer goes in one
//! message, so many groups cost what one does.
//!
//! # Invariants
//! 1. Nothing here makes consensus wait for a slow peer: a queue is bounded, and full is an answer.
//! 2. Nothing handed to a peer stays without an end, though no packet ever comes back.
//! 3. No request is taken from, or given to, a node of another cluster, another protocol version or
//!    another id than the one that was meant.
//!
//! openraft knows peers by `RaftNetworkFactory` ([`PeerPool::network`]); what peers ask of this node
//! goes to its [`Inbound`].

mod dial;
mod lane;
mod metrics;
mod network;
mod server;
mod snapshot;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Server};

pub use metrics::TransportMetrics;
pub(crate) use network::GroupNetworks;
pub(crate) use server::PeerService;

use self::lane::{Class, Lane, Remote};
use crate::engine::{SnapshotSink, Timing};
use crate::tls::PeerTls;
use crate::types::{Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::{ClusterId, Context, Ended, GroupId, NodeId};

/// The version of the protocol between nodes. Nodes of different versions refuse each other by name.
pub const PROTOCOL_VERSION: u32 = 1;

/// Why a node did not answer a peer's request. The peer backs off and tries again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// What peers ask of this node. The node implements it; the transport calls it.
///
/// Calls for one group come in the order in which the peer sent them, and their futures are polled
/// first in that order: whatever must keep it happens before a future first waits. A future is
/// dropped when the peer no longer waits.
pub(crate) trait Inbound: Send + Sync + 'static {
    fn append(
        &self,
        ctx: &Context,
        group: GroupId,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, Refused>>;

    fn vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>>;

    fn pre_vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>>;

    fn transfer_leader(
        &self,
        ctx: &Context,
        group: GroupId,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, Refused>>;

    /// Begins to receive a snapshot for `group`. Each chunk is written on a thread that may block.
    fn begin_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        meta: &SnapshotMeta,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Refused>>;

    /// Installs a snapshot received whole (`Raft::install_full_snapshot`).
    fn install_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse<TypeConfig>, Refused>>;
}

/// Why a peer could not be asked, or did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer reads too slowly: the request was dropped. Not handed over.
    #[error("the queue to node {node} is full")]
    Full { node: NodeId },
    /// There is no connection, and it is too early for the next attempt; or the connection broke.
    #[error("cannot talk to node {node}: {why}")]
    Unreachable { node: NodeId, why: Arc<str> },
    /// The request was handed over, and no answer came in its time.
    #[error("node {node} did not answer in time")]
    Silent { node: NodeId },
    /// The peer answered that it cannot.
    #[error("node {node} refused: {why}")]
    Refused { node: NodeId, why: String },
    /// The caller's context ended first.
    #[error("{0}")]
    Ended(#[from] Ended),
    /// This node is stopping, or the peer has left the cluster.
    #[error("connections are closed")]
    Closed,
}

impl PeerError {
    /// The cause without the peer's name.
    fn reason(&self) -> Arc<str> {
        match self {
            Self::Unreachable { why, .. } => Arc::clone(why),
            other => other.to_string().into(),
        }
    }
}

/// The transport's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For name lookup and TCP.
    pub connect: Duration,
    /// For TLS, HTTP/2 and the first word.
    pub handshake: Duration,
    /// Between attempts, doubled from the first to the second.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// A consensus stream with requests in flight and nothing heard for about this long is given
    /// up: an election timeout.
    pub stall: Duration,
    /// The same for large appends.
    pub bulk_stall: Duration,
    /// Requests that may wait for one peer, per class.
    pub queue: usize,
    /// Appends of one group to one peer that may be unanswered.
    pub appends_in_flight: usize,
    /// Bytes of appends to one peer that may be unanswered. At least one append always may.
    pub unacknowledged_bytes: usize,
    /// An append larger than this goes with the large ones.
    pub bulk_threshold: usize,
    /// Bytes of entries in one append, and of requests in one message, unless one alone is larger.
    pub frame_bytes: usize,
    /// How long a heartbeat that nobody waits for may wait for those of other groups, to go in one
    /// message with them. Anything else that goes to the peer takes them along at once.
    pub gather: Duration,
    /// Snapshot chunks that may be under way.
    pub snapshot_window: usize,
    /// A snapshot that makes no progress for this long is given up.
    pub snapshot_stall: Duration,
    /// Snapshots sent to one peer, and received in all, at a time.
    pub snapshots: usize,
}

impl Limits {
    /// The bounds that go with `timing`.
    #[must_use]
    pub fn for_timing(timing: &Timing) -> Self {
        Self {
            connect: Duration::from_millis(600),
            handshake: Duration::from_secs(1),
            backoff_min: Duration::from_millis(25),
            backoff_max: Duration::from_millis(400),
            stall: timing.election_min,
            bulk_stall: Duration::from_secs(10),
            queue: 1024,
            appends_in_flight: 4,
            unacknowledged_bytes: 64 << 20,
            bulk_threshold: 256 << 10,
            frame_bytes: 4 << 20,
            gather: timing.heartbeat / 4,
            snapshot_window: 8,
            snapshot_stall: Duration::from_secs(10),
            snapshots: 4,
        }
    }

    /// Before the next attempt, after `attempts` that failed: between half and all of the doubled
    /// minimum, so that nodes that lost the same peer do not come back as one.
    fn backoff(&self, attempts: u32) -> Duration {
        let full = self
            .backoff_min
            .saturating_mul(1 << attempts.min(16))
            .min(self.backoff_max);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_timing(&Timing::default())
    }
}

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// Where peers dial this node, `host:port`.
    pub advertise: String,
    /// Without it, traffic is in the clear and peers are known by cluster id only.
    pub tls: Option<PeerTls>,
    pub limits: Limits,
}

/// What every connection of this node shares.
struct Link {
    cluster: ClusterId,
    node: NodeId,
    advertise: String,
    tls: Option<PeerTls>,
    limits: Limits,
    metrics: TransportMetrics,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Link {
    fn hello(&self, to: NodeId) -> wire::Hello {
        wire::Hello {
            version: PROTOCOL_VERSION,
            cluster: self.cluster.0,
            from: self.node.0,
            to: to.0,
            address: self.advertise.clone(),
        }
    }

    /// Who greets us, if it means us.
    fn admit(&self, hello: Option<&wire::Hello>) -> Result<NodeId, String> {
        let hello = hello.ok_or("a stream must begin with a hello")?;
        let from = NodeId(hello.from);
        if hello.version != PROTOCOL_VERSION {
            return Err(format!(
                "node {} speaks protocol version {PROTOCOL_VERSION}, node {from} speaks {}",
                self.node, hello.version
            ));
        }
        if hello.cluster != self.cluster.0 {
            return Err(format!(
                "node {} is of cluster {:016x}, node {from} is of cluster {:016x}",
                self.node, self.cluster.0, hello.cluster
            ));
        }
        if hello.to != self.node.0 {
            return Err(format!(
                "this is node {}, node {from} looks for node {}",
                self.node, hello.to
            ));
        }
        if from == self.node {
            return Err(format!("node id {from} is in use twice"));
        }
        Ok(from)
    }

    /// Whether the hello that answers ours comes from `remote`.
    fn expect_hello(&self, remote: &Remote, hello: Option<wire::Hello>) -> Result<(), String> {
        let from = self.admit(hello.as_ref())?;
        if from == remote.node {
            Ok(())
        } else {
            Err(format!("node {from} answers at its address"))
        }
    }
}

/// The connections of this node to all others. Cheap to clone.
#[derive(Clone)]
pub struct PeerPool {
    shared: Arc<Pool>,
}

struct Pool {
    link: Arc<Link>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    receiving: Arc<Semaphore>,
    haste: Mutex<HashMap<GroupId, Haste>>,
}

/// Whether someone waits for the heartbeats of a group: they are a ReadIndex round then, and do not
/// wait for those of other groups.
#[derive(Clone)]
pub(crate) struct Haste {
    waiting: Arc<AtomicUsize>,
    pool: Weak<Pool>,
}

/// While it lives, its group's heartbeats go at once.
pub(crate) struct InHaste<'a>(&'a Haste);

impl Haste {
    /// Sends the heartbeats that wait now, and those to come as long as the guard lives.
    pub(crate) fn hurry(&self) -> InHaste<'_> {
        // In this order: a lane that has not seen the count yet is seen waiting.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if let Some(pool) = self.pool.upgrade() {
            for peer in pool.peers.read().values() {
                peer.consensus.hurry();
            }
        }
        InHaste(self)
    }

    fn is_on(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

impl Drop for InHaste<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One other node.
struct Peer {
    remote: Arc<Remote>,
    consensus: Arc<Lane>,
    bulk: Arc<Lane>,
    /// Bytes of appends that may be unanswered.
    budget: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    road: Mutex<Road>,
    bulk_road: Mutex<Road>,
}

/// The way of [`PeerPool::channel`] or [`PeerPool::bulk_channel`] to a peer.
enum Road {
    Idle,
    /// One caller's attempt, which all who come meanwhile share.
    Dialling(watch::Receiver<Option<Result<Channel, PeerError>>>),
    Open(Channel),
    Down {
        until: Instant,
        error: PeerError,
    },
}

/// The unit in which a peer's budget of unanswered bytes is counted.
const BUDGET_UNIT: usize = 1024;

impl PeerPool {
    /// A pool without peers. Its tasks run on `tasks`, until [`PeerPool::close`].
    #[must_use]
    pub fn new(config: TransportConfig, metrics: TransportMetrics, tasks: TaskTracker) -> Self {
        let receiving = Arc::new(Semaphore::new(config.limits.snapshots));
        Self {
            shared: Arc::new(Pool {
                link: Arc::new(Link {
                    cluster: config.cluster,
                    node: config.node,
                    advertise: config.advertise,
                    tls: config.tls,
                    limits: config.limits,
                    metrics,
                    tasks,
                    shutdown: CancellationToken::new(),
                }),
                peers: RwLock::default(),
                receiving,
                haste: Mutex::default(),
            }),
        }
    }

    /// Dials `node` at `address` (`host:port`) from the next attempt on. What a peer says of itself
    /// when it connects, and a change in the membership, do the same.
    pub fn set_address(&self, node: NodeId, address: impl Into<String>) {
        self.shared.peer(node).set_address(address.into());
    }

    /// Where `node` is dialled, as far as this node knows.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        let peers = self.shared.peers.read();
        peers.get(&node)?.remote.address.lock().current.clone()
    }

    /// Forgets a node that has left the cluster.
    pub fn forget(&self, node: NodeId) {
        let peer = self.shared.peers.write().remove(&node);
        if let Some(peer) = peer {
            peer.remote.gone.cancel();
        }
    }

    /// Ends every connection and refuses new ones. The tasks end; their tracker's owner joins them.
    pub fn close(&self) {
        self.shared.link.shutdown.cancel();
    }

    /// The network of one group, for openraft.
    pub(crate) fn network(&self, group: GroupId) -> GroupNetworks {
        GroupNetworks::new(Arc::clone(&self.shared), group)
    }

    /// Tells the networks of `group` when its heartbeats are waited for.
    pub(crate) fn haste(&self, group: GroupId) -> Haste {
        self.shared.haste(group)
    }

    /// Answers peers from `inbound`: to be mounted on a server made by [`PeerPool::server`].
    pub(crate) fn service(&self, inbound: Arc<dyn Inbound>) -> PeerService {
        server::service(Arc::clone(&self.shared), inbound)
    }

    /// A gRPC server with the windows, keep-alives and certificates that peers expect. Who accepts
    /// for it sets TCP_NODELAY itself (`TcpIncoming::with_nodelay`); tonic does so only for
    /// listeners of its own.
    ///
    /// # Errors
    /// When the certificates do not fit together.
    pub fn server(&self) -> Result<Server, tonic::transport::Error> {
        let server = Server::builder()
            .tcp_nodelay(true)
            // What a node forwards is one stream per request: many, and all of them bounded.
            .max_concurrent_streams(Some(16_384))
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(2)))
            .initial_stream_window_size(dial::STREAM_WINDOW)
            .initial_connection_window_size(dial::CONNECTION_WINDOW);
        match &self.shared.link.tls {
            Some(tls) => server.tls_config(tls.server()),
            None => Ok(server),
        }
    }

    /// A channel to `node` for other services on the same port. Both sides have greeted each other
    /// when it opened; it reconnects by itself. Callers that come while it opens share one attempt,
    /// and after a failed one are refused until the back-off has passed. Cancel safe.
    ///
    /// # Errors
    /// Nothing was sent: `Unreachable`, `Refused`, `Closed`, or the end of `ctx`.
    pub async fn channel(&self, ctx: &Context, node: NodeId) -> Result<Channel, PeerError> {
        self.travel(ctx, node, |peer| &peer.road).await
    }

    /// As [`PeerPool::channel`], a connection of its own for what is large: nothing urgent waits
    /// behind it.
    ///
    /// # Errors
    /// As [`PeerPool::channel`].
    pub async fn bulk_channel(&self, ctx: &Context, node: NodeId) -> Result<Channel, PeerError> {
        self.travel(ctx, node, |peer| &peer.bulk_road).await
    }

    async fn travel(
        &self,
        ctx: &Context,
        node: NodeId,
        which: fn(&Peer) -> &Mutex<Road>,
    ) -> Result<Channel, PeerError> {
        let peer = self.shared.peer(node);
        let mut attempt = {
            let mut road = which(&peer).lock();
            match &*road {
                Road::Open(channel) => return Ok(channel.clone()),
                Road::Down { until, error } if Instant::now() < *until => {
                    return Err(error.clone());
                }
                Road::Dialling(attempt) => attempt.clone(),
                Road::Idle | Road::Down { .. } => {
                    if peer.remote.gone.is_cancelled() {
                        return Err(PeerError::Closed);
                    }
                    let (done, attempt) = watch::channel(None);
                    *road = Road::Dialling(attempt.clone());
                    let (link, peer) = (Arc::clone(&self.shared.link), Arc::clone(&peer));
                    // Not the caller's: others wait for the same attempt, which is bounded itself.
                    self.shared.link.tasks.spawn(async move {
                        let outcome = peer.open_channel(&link).await;
                        *which(&peer).lock() = match &outcome {
                            Ok(channel) => Road::Open(channel.clone()),
                            Err(error) => Road::Down {
                                until: Instant::now() + link.limits.backoff(3),
                                error: error.clone(),
                            },
                        };
                        done.send_replace(Some(outcome));
                    });
                    attempt
                }
            }
        };
        let outcome = ctx.run(attempt.wait_for(Option::is_some)).await?;
        match outcome.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(PeerError::Closed),
        }
    }
}

impl Pool {
    fn haste(self: &Arc<Self>, group: GroupId) -> Haste {
        let mut hastes = self.haste.lock();
        let haste = hastes.entry(group).or_insert_with(|| Haste {
            waiting: Arc::default(),
            pool: Arc::downgrade(self),
        });
        haste.clone()
    }

    /// Notes what a node said of itself. A stranger may become a peer, but strangers without end
    /// do not fill the memory.
    fn learn_address(&self, node: NodeId, address: String) {
        const STRANGERS: usize = 1024;
        let known = {
            let peers = self.peers.read();
            peers.contains_key(&node) || peers.len() < STRANGERS
        };
        if known {
            self.peer(node).set_address(address);
        }
    }

    /// The peer `node`, known from now on.
    fn peer(&self, node: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&node) {
            return Arc::clone(peer);
        }
        let mut peers = self.peers.write();
        let peer = peers
            .entry(node)
            .or_insert_with(|| Arc::new(Peer::new(&self.link, node)));
        Arc::clone(peer)
    }
}

impl Peer {
    fn new(link: &Arc<Link>, node: NodeId) -> Self {
        let remote = Arc::new(Remote::new(node, link.shutdown.child_token()));
        let lane = |class| Arc::new(Lane::new(class, Arc::clone(link), Arc::clone(&remote)));
        Self {
            consensus: lane(Class::Consensus),
            bulk: lane(Class::Bulk),
            budget: Arc::new(Semaphore::new(
                link.limits.unacknowledged_bytes.div_ceil(BUDGET_UNIT),
            )),
            snapshots: Arc::new(Semaphore::new(link.limits.snapshots)),
            road: Mutex::new(Road::Idle),
            bulk_road: Mutex::new(Road::Idle),
            remote,
        }
    }

    fn lane(&self, class: Class) -> &Arc<Lane> {
        match class {
            Class::Consensus => &self.consensus,
            Class::Bulk => &self.bulk,
        }
    }

    fn set_address(&self, address: String) {
        let mut known = self.remote.address.lock();
        if known.current.as_ref() != Some(&address) {
            known.current = Some(address);
            drop(known);
            // A channel reconnects to where it was made for: make the next one anew.
            let mut road = self.road.lock();
            if matches!(*road, Road::Open(_) | Road::Down { .. }) {
                *road = Road::Idle;
            }
        }
    }

    /// Takes the membership's word, unless it has said the same before: the peer itself may have
    /// told a newer one since.
    fn member_address(&self, address: &str) {
        let mut known = self.remote.address.lock();
        if known.member.as_deref() != Some(address) {
            known.member = Some(address.to_owned());
            drop(known);
            self.set_address(address.to_owned());
        }
    }

    async fn open_channel(&self, link: &Link) -> Result<Channel, PeerError> {
        let node = self.remote.node;
        let unreachable = |why: Arc<str>| PeerError::Unreachable { node, why };
        let attempt = async {
            let channel = dial::connect(link, &self.remote, None).await?;
            let mut client = dial::client(channel.clone(), &link.limits);
            let hello = tokio::time::timeout(link.limits.handshake, client.greet(link.hello(node)))
                .await
                .map_err(|_| unreachable("it accepted the connection and says nothing".into()))?
                .map_err(|status| unreachable(dial::refusal(&status)))?;
            link.expect_hello(&self.remote, Some(hello.into_inner()))
                .map_err(|why| PeerError::Refused { node, why })?;
            Ok(channel)
        };
        tokio::select! {
            biased;
            () = self.remote.gone.cancelled() => Err(PeerError::Closed),
            outcome = attempt => outcome,
        }
    }
}

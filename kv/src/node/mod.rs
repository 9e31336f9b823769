//! A whole node of the data plane: storage, consensus, shards, coordinator and cluster membership,
//! opened from the bottom up and stopped in reverse.
//!
//! A node that joins asks for its id before it opens anything, and the membership controller makes
//! it a replica once its gRPC address answers. So the order is: [`Node::open`], serve
//! [`Node::grpc_routes`], and the rest comes by itself.

mod blobs;
mod config;
mod core;
mod gauges;
mod join;
mod machines;
mod overview;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leadline_raft::engine::{Engine, LeaderView, Leadership, Membership, StateMachines};
use leadline_raft::grpc::DeadlineLayer;
use leadline_raft::log::LogOptions;
use leadline_raft::{ClusterId, Context, Group, GroupId, NodeId, RaftNode};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

pub use config::{BlobConfig, Bootstrap, NodeConfig, OpenError};
pub(crate) use core::Core;
pub use overview::{
    ClusterOverview, GroupOverview, MemberOverview, NodeStatus, Readiness, ReplicaOverview,
};

use gauges::NodeGauges;
use machines::WatchedMachines;

use crate::admission::Admission;
use crate::blobs::{BlobMetrics, BlobService, Blobs, ReplicatedBlobs, Upkeep};
use crate::catalog::{Addresses, Catalog, CatalogCopy, MetaCodec, MetaOperation, ROW};
use crate::cluster::{ClusterService, Controller};
use crate::coordinator::{HostedShard, backoff};
use crate::executor::{Pool, Shard, ShardConfig, ShardMetrics, ShardParts};
use crate::hlc::Hlc;
use crate::metrics::CoordinatorMetrics;
use crate::proxy::{ForwardService, LeaderProxy, Links, MOST_MESSAGE_BYTES};
use crate::state_machine::ShardStateMachines;
use crate::storage::{DirLock, EngineKind, Identity, Row, Store, StoreOptions};
use crate::transaction::{Doubts, TransactionCodec};
use crate::wire::cluster_server::ClusterServer;
use crate::wire::forward_server::ForwardServer;
use crate::{Door, OperationCodec, ShardedCoordinator};

/// Committed entries not yet applied, above which a node is not ready.
const MOST_LAG: u64 = 10_000;
/// Requests under way in a node.
const MOST_REQUESTS: usize = 64 * 1024;
/// How long a background task's request may take.
const TICK: Duration = leadline_raft::FALLBACK_DEADLINE;
/// How long a group's leader may take to say who its members are.
const ASK: Duration = Duration::from_secs(1);
/// The first node of a cluster.
const FIRST: NodeId = NodeId(1);

/// A node, open.
pub struct Node {
    core: Arc<Core>,
    forward: ForwardService,
    links: Arc<Links>,
    store: Arc<Store>,
    blobs: ReplicatedBlobs,
    upkeep: Upkeep,
    failed: watch::Sender<Option<String>>,
    engine: EngineKind,
    hosting: Arc<Hosting>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Released last.
    _lock: DirLock,
}

impl Node {
    /// Opens the node: finds or makes its place in a cluster, replays what is on disk, and starts
    /// its groups. Metrics go to `registry`. A node that makes a cluster is ready to serve when
    /// this returns; one that joins is, once it is reachable at its gRPC address.
    ///
    /// # Errors
    /// [`OpenError`]: one line that says what to do.
    pub async fn open(
        ctx: &Context,
        config: NodeConfig,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, OpenError> {
        let asked = config.engine.as_deref().map(str::parse::<EngineKind>);
        let asked = asked.transpose().map_err(OpenError::Invalid)?;
        let dir = config.data_dir.clone();
        let (lock, found) = blocking(move || {
            let lock = DirLock::acquire(&dir)?;
            let found = Identity::load(&dir)?;
            if let (Some(identity), Some(asked)) = (found, asked) {
                identity.check_engine(&dir, asked)?;
            }
            Ok::<_, crate::storage::IdentityError>((lock, found))
        })
        .await?
        .map_err(|error| OpenError::DataDirectory(error.to_string()))?;

        let (identity, known) = match found {
            Some(identity) => (identity, join::ask_again(ctx, &config, identity).await?),
            None => join::first_start(ctx, &config, asked.unwrap_or_default()).await?,
        };
        if let Some(asked) = config.node
            && asked != identity.node
        {
            return Err(OpenError::Invalid(format!(
                "this is node {}, not {asked}: leave out --node-id, or start with an empty --data-dir",
                identity.node
            )));
        }
        let store = open_store(&config, identity.engine).await?;
        let blob_metrics = BlobMetrics::default();
        let chunks = blobs::open(&config.data_dir, &blob_metrics).await?;
        let mut chunks_failed = chunks.failed();

        let hlc = Arc::new(Hlc::new());
        let pool = Pool::for_this_machine()
            .map_err(|error| OpenError::Invalid(format!("cannot start threads: {error}")))?;
        let machines = Arc::new(ShardStateMachines::new(
            Arc::clone(&store),
            Arc::clone(&hlc),
            Arc::clone(&pool),
        ));
        let watched = Arc::new(WatchedMachines::new(
            Arc::clone(&machines) as Arc<dyn StateMachines>
        ));
        let raft_config = leadline_raft::NodeConfig {
            node: identity.node,
            cluster: identity.cluster,
            dir: config.data_dir.join("log"),
            advertise: config.advertise.grpc.clone(),
            tls: config.tls.clone(),
            timing: config.timing,
            read_mode: config.read_mode,
            log: LogOptions::default(),
        };
        let catalog_applied = watched.changes();
        let opening = |what: &str| config.opening.send_replace(format!("opening: {what}"));
        opening("reading the log");
        let raft = RaftNode::open(ctx, raft_config, watched, registry)
            .await
            .map_err(|error| OpenError::DataDirectory(describe(&error)))?;

        let catalog = Arc::new(CatalogCopy::default());
        if let Some(stored) = read_catalog(&store).await? {
            catalog.offer(stored);
        }
        if let Some(known) = known {
            catalog.offer(known);
        }
        let metrics = CoordinatorMetrics::default();
        metrics.register(registry);
        let proxy = LeaderProxy::new(metrics.clone());
        let admission = Arc::new(Admission::new(config.memory_budget, MOST_REQUESTS));
        let coordinator = ShardedCoordinator::new(
            identity.node,
            Arc::clone(&catalog),
            Arc::clone(&proxy),
            Arc::clone(&admission),
            Arc::clone(&hlc),
            metrics,
        );
        let doubts = Arc::new(Doubts::default());
        let links = Links::new(
            Arc::clone(&proxy),
            Arc::new(core::Streams(Arc::clone(&raft))),
            {
                let coordinator = Arc::clone(&coordinator);
                move |_| coordinator.peer_is_back()
            },
        );
        let shard_metrics = ShardMetrics::default();
        shard_metrics.register(registry);
        let codecs: Vec<(Door, Arc<dyn OperationCodec>)> = config
            .codecs
            .iter()
            .cloned()
            .chain([
                (Door::Meta, Arc::new(MetaCodec) as Arc<dyn OperationCodec>),
                (Door::Transaction, Arc::new(TransactionCodec)),
            ])
            .collect();
        let forward = ForwardService::new(Arc::clone(&coordinator), codecs);
        let stop = CancellationToken::new();
        let core = Arc::new(Core {
            node: identity.node,
            cluster: identity.cluster,
            data_dir: config.data_dir.clone(),
            raft: Arc::clone(&raft),
            catalog,
            coordinator: Arc::clone(&coordinator),
            proxy,
            began: Instant::now(),
            stopping: AtomicBool::new(false),
            replaying: Mutex::new(Some(
                raft.groups().iter().map(|group| group.group()).collect(),
            )),
        });
        let hosting = Arc::new(Hosting {
            core: Arc::clone(&core),
            machines,
            parts: ShardParts {
                config: ShardConfig::default(),
                hlc,
                metrics: shard_metrics,
                sweeps: config.sweeps.clone().into(),
                doubts: Arc::clone(&doubts),
                pool,
            },
            shards: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: stop.child_token(),
        });
        registry.register_collector(Box::new(NodeGauges {
            core: Arc::downgrade(&core),
            hosting: Arc::downgrade(&hosting),
            admission,
            store: Arc::downgrade(&store),
        }));
        let (blobs, upkeep) = blobs::start(
            &core,
            &store,
            chunks,
            config.blobs.clone(),
            blob_metrics,
            registry,
        );
        let node = Arc::new(Self {
            core,
            forward,
            links,
            store,
            blobs,
            upkeep,
            failed: watch::Sender::new(None),
            engine: identity.engine,
            hosting,
            tasks: TaskTracker::new(),
            stop,
            _lock: lock,
        });
        node.follow_catalog().await;
        node.start(catalog_applied, &config.advertise);
        let (mut log_failed, failed) = (node.core.raft.failed(), node.failed.clone());
        let mut state_failed = node.store.failed();
        let stop = node.stop.clone();
        node.tasks.spawn(async move {
            let why = async {
                tokio::select! {
                    why = log_failed.wait_for(Option::is_some) => why.map(|why| why.clone()),
                    why = state_failed.wait_for(Option::is_some) => why.map(|why| why.clone()),
                    why = chunks_failed.wait_for(Option::is_some) => why.map(|why| why.clone()),
                }
            };
            if let Some(Ok(why)) = stop.run_until_cancelled(why).await {
                failed.send_replace(why);
            }
        });
        if let Bootstrap::New { shards } = config.bootstrap
            && identity.node == FIRST
            && node.core.catalog().is_none()
        {
            opening("making the cluster");
            node.make_cluster(ctx, shards, config.advertise.clone())
                .await?;
        }
        Ok(node)
    }

    /// The way in for adapters.
    #[must_use]
    pub fn coordinator(&self) -> Arc<ShardedCoordinator> {
        Arc::clone(&self.core.coordinator)
    }

    #[must_use]
    pub fn id(&self) -> NodeId {
        self.core.node
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.core.cluster
    }

    /// Members of the cluster and voting copies of each shard, as far as this node knows.
    #[must_use]
    pub fn members_and_copies(&self) -> (usize, usize) {
        self.core.catalog().map_or((1, 1), |catalog| {
            let members = catalog.present().count();
            (members, members.min(catalog.replication_factor()))
        })
    }

    /// The groups that hold the keys of `door`, as far as this node knows.
    #[must_use]
    pub fn groups_of(&self, door: Door) -> Vec<GroupId> {
        self.core
            .catalog()
            .map_or_else(Vec::new, |catalog| catalog.groups_of(door).collect())
    }

    /// The storage engine of the data directory.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// This node's clock, since the Unix epoch.
    #[must_use]
    pub fn unix_time(&self) -> Duration {
        Duration::from_millis(self.hosting.parts.hlc.now().millis())
    }

    /// A gRPC server with the TLS, limits and deadlines that peers expect; serve
    /// [`Node::grpc_routes`] with it.
    ///
    /// # Errors
    /// When the certificates do not fit together.
    pub fn grpc_server(
        &self,
    ) -> Result<
        tonic::transport::Server<
            tower::layer::util::Stack<DeadlineLayer, tower::layer::util::Identity>,
        >,
        OpenError,
    > {
        let server = self.core.raft.server();
        let server = server.map_err(|error| OpenError::Invalid(describe(&error)))?;
        Ok(server.layer(DeadlineLayer::default()))
    }

    /// What other nodes and the command line call: consensus, forwarded requests, the cluster.
    #[must_use]
    pub fn grpc_routes(&self) -> Routes {
        let forward = ForwardServer::new(self.forward.clone())
            .max_decoding_message_size(MOST_MESSAGE_BYTES)
            .max_encoding_message_size(MOST_MESSAGE_BYTES);
        Routes::new(self.core.raft.service())
            .add_service(forward)
            .add_service(ClusterServer::new(ClusterService::new(Arc::clone(
                &self.core,
            ))))
            .add_service(BlobService::server(&self.upkeep))
    }

    /// The cluster, as far as it can be learned before `ctx` ends.
    pub async fn overview(&self, ctx: &Context) -> ClusterOverview {
        self.core.overview(ctx).await
    }

    /// This node as it sees itself. Local and cheap.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.core.status()
    }

    /// Whether this node may be sent requests. Local and cheap.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.core.readiness()
    }

    /// Becomes `Some` when the disk has failed and this node must stop.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Chunks of large objects, on the nodes that replicate a shard.
    #[must_use]
    pub fn blobs(&self) -> Arc<dyn Blobs> {
        Arc::new(self.blobs.clone())
    }

    /// Not ready from now on; hands every leadership over, as far as `ctx` allows.
    pub async fn prepare_stop(&self, ctx: &Context) {
        self.core.stopping.store(true, Ordering::Relaxed);
        let groups = self.core.raft.groups();
        let led = groups.iter().filter(|group| {
            matches!(group.leadership(), Leadership::Leader(_)) && group.members().len() > 1
        });
        let handed_over = futures::future::join_all(led.map(|group| async move {
            if let Err(error) = group.transfer_leadership(ctx, None).await {
                tracing::warn!(group = %group.group(), %error, "leadership was not handed over");
            }
        }));
        if ctx.run(handed_over).await.is_err() {
            tracing::warn!("not every leadership was handed over in time");
        }
    }

    /// Stops everything, from the top down: background work, streams, executors, consensus,
    /// storage, which is flushed. What does not end before `ctx` is left to the process' end.
    /// Returns whether the log and the storage engine are closed.
    pub async fn shutdown(&self, ctx: &Context) -> bool {
        self.core.stopping.store(true, Ordering::Relaxed);
        self.stop.cancel();
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!("background tasks did not end in time");
        }
        self.blobs.shutdown(ctx).await;
        let transactions = ctx.child(ctx.remaining() / 4);
        let coordinator = self.coordinator();
        coordinator.transactions().shutdown(&transactions).await;
        self.forward.shutdown(ctx).await;
        self.links.shutdown(ctx).await;
        self.hosting.shutdown(ctx).await;
        let log_closed = self.core.raft.shutdown(ctx).await;
        let store = Arc::clone(&self.store);
        match ctx
            .run(tokio::task::spawn_blocking(move || store.close()))
            .await
        {
            Ok(Ok(Ok(()))) => return log_closed,
            Ok(Ok(Err(error))) => tracing::error!(%error, "closing the storage engine"),
            Ok(Err(error)) => tracing::error!(%error, "closing the storage engine"),
            Err(_) => tracing::error!("the storage engine did not close in time"),
        }
        false
    }

    fn start(self: &Arc<Self>, mut applied: watch::Receiver<u64>, advertise: &Addresses) {
        let coordinator = self.coordinator();
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { coordinator.attend(stop).await });

        let transactions = Arc::clone(self.core.coordinator.transactions());
        let doubts = Arc::clone(&self.hosting.parts.doubts);
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { transactions.resolve(doubts, stop).await });

        let hosting = Arc::clone(&self.hosting);
        let stop = self.stop.clone();
        self.tasks.spawn(async move { hosting.follow(stop).await });

        let controller = Controller::new(Arc::clone(&self.core));
        self.tasks.spawn(controller.run(self.stop.clone()));

        let node = Arc::downgrade(self);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            while let Some(Ok(())) = stop.run_until_cancelled(applied.changed()).await {
                let Some(node) = node.upgrade() else { return };
                match read_catalog(&node.store).await {
                    Ok(Some(catalog)) => {
                        if node.core.catalog.offer(catalog) {
                            node.follow_catalog().await;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "reading the catalog"),
                }
            }
        });

        let core = Arc::clone(&self.core);
        let (advertise, stop) = (advertise.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(announce(&core, &advertise)).await;
        });
    }

    /// Makes what follows from the catalog true here.
    async fn follow_catalog(&self) {
        let Some(catalog) = self.core.catalog() else {
            return;
        };
        let others: Vec<_> = catalog
            .present()
            .filter(|&(node, _)| node != self.core.node)
            .collect();
        for (node, member) in &others {
            self.core
                .raft
                .set_peer_address(*node, member.addresses.grpc.clone());
        }
        self.links.set_peers(others.iter().map(|(node, _)| *node));
        self.core.coordinator.follow_catalog();
        self.hosting.host_all().await;
        self.forget_what_moved_away(&catalog).await;
    }

    /// Deletes replicas that were moved to other nodes. The catalog names a group's replicas only
    /// after its membership has changed, this node's own log must have heard of it, and the group's
    /// leader must say so: a new replica that is catching up reads of members before it was one, and
    /// the catalog may not name it yet. What it has acknowledged it must not forget.
    async fn forget_what_moved_away(&self, catalog: &Catalog) {
        for group in self.core.raft.groups() {
            let id = group.group();
            let replicas = catalog.replicas(id);
            let kept = id == GroupId::META
                || replicas.is_empty()
                || replicas.contains(&self.core.node)
                || group.members().is_empty()
                || group.members().contains_key(&self.core.node);
            if kept {
                continue;
            }
            let ctx = Context::with_timeout(TICK);
            match self.core.is_member(&ctx.child(ASK), id).await {
                Ok(false) => {}
                Ok(true) => continue,
                Err(why) => {
                    tracing::debug!(group = %id, why, "whether this replica is a member is not known");
                    continue;
                }
            }
            tracing::info!(group = %id, "this node's replica was moved away: deleting it");
            if let Err(error) = self.core.raft.destroy(&ctx, id).await {
                tracing::warn!(group = %id, %error, "deleting a replica");
            }
        }
    }

    async fn make_cluster(
        &self,
        ctx: &Context,
        shards: u16,
        advertise: Addresses,
    ) -> Result<(), OpenError> {
        let catalog = Catalog::deal(self.core.cluster, shards, FIRST, advertise);
        for group in catalog.groups() {
            self.core
                .raft
                .bootstrap(ctx, group)
                .await
                .map_err(|error| OpenError::TimedOut(format!("making group {group}: {error}")))?;
        }
        self.core.catalog.offer(catalog.clone());
        self.follow_catalog().await;
        let unfinished = |why: String| OpenError::TimedOut(format!("making the cluster: {why}"));
        let reply = self
            .core
            .meta(ctx, MetaOperation::bootstrap(&catalog))
            .await
            .map_err(|error| unfinished(error.to_string()))?;
        match reply.refused {
            Some(why) => Err(unfinished(why)),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("node", &self.core.node)
            .field("cluster", &self.core.cluster)
            .finish_non_exhaustive()
    }
}

/// The shards of the groups that this node hosts.
struct Hosting {
    core: Arc<Core>,
    machines: Arc<ShardStateMachines>,
    parts: ShardParts,
    shards: Mutex<BTreeMap<GroupId, Hosted>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Hosted {
    shard: Arc<Shard<Group>>,
    gone: CancellationToken,
}

impl Hosting {
    /// Follows which groups this node hosts.
    async fn follow(&self, stop: CancellationToken) {
        let mut hosted = self.core.raft.hosted();
        while let Some(Ok(())) = stop.run_until_cancelled(hosted.changed()).await {
            self.host_all().await;
        }
    }

    /// Starts the shards of groups that are new here, and ends those of groups that have left.
    async fn host_all(&self) {
        let groups = self.core.raft.hosted().borrow().clone();
        let left: Vec<_> = {
            let mut shards = self.shards.lock();
            let left: Vec<GroupId> = shards
                .keys()
                .copied()
                .filter(|group| !groups.contains(group))
                .collect();
            left.into_iter()
                .filter_map(|group| Some((group, shards.remove(&group)?)))
                .collect()
        };
        for (group, hosted) in left {
            self.core.coordinator.host(group, None);
            hosted.gone.cancel();
            let ctx = Context::with_timeout(TICK);
            hosted.shard.shutdown(&ctx).await;
        }
        for &group in &*groups {
            if !self.shards.lock().contains_key(&group) {
                self.host(group).await;
            }
        }
    }

    async fn host(&self, group: GroupId) {
        let (Some(engine), Some(catalog)) = (self.core.raft.group(group), self.core.catalog())
        else {
            // A group may come before the catalog does: the catalog's coming asks again.
            return;
        };
        let Some(owned) = catalog.owned(group) else {
            tracing::warn!(%group, "the catalog knows nothing of a group that this node hosts");
            return;
        };
        let machines = Arc::clone(&self.machines);
        let state = match tokio::task::spawn_blocking(move || machines.state(group)).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => {
                tracing::error!(%group, %error, "opening a shard");
                return;
            }
            Err(error) => {
                tracing::error!(%group, %error, "opening a shard");
                return;
            }
        };
        let mut shards = self.shards.lock();
        if shards.contains_key(&group) || self.stop.is_cancelled() {
            return;
        }
        let shard = Shard::new(Arc::clone(&engine), state, owned, &self.parts);
        let gone = self.stop.child_token();
        let lane = self.core.coordinator.lane(group);
        let mut leadership = engine.leadership_changes();
        let watched = gone.clone();
        self.tasks.spawn(async move {
            while let Some(Ok(())) = watched.run_until_cancelled(leadership.changed()).await {
                lane.kick();
            }
        });
        self.core.coordinator.host(
            group,
            Some(Box::new(HostedShard {
                engine,
                shard: Arc::clone(&shard),
            })),
        );
        shards.insert(group, Hosted { shard, gone });
    }

    async fn shutdown(&self, ctx: &Context) {
        self.stop.cancel();
        let shards = std::mem::take(&mut *self.shards.lock());
        futures::future::join_all(shards.into_iter().map(|(group, hosted)| async move {
            self.core.coordinator.host(group, None);
            hosted.shard.shutdown(ctx).await;
        }))
        .await;
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!("shards did not end in time");
        }
    }
}

/// Tells the cluster where this node is reached now, until the catalog says the same.
async fn announce(core: &Core, advertise: &Addresses) {
    let mut changes = core.catalog_changes();
    for tries in 0_u8.. {
        let known = core.catalog().and_then(|catalog| {
            let member = catalog.members().get(&core.node)?;
            Some(member.addresses.clone())
        });
        match known {
            Some(known) if known == *advertise => return,
            Some(_) => {
                let ctx = Context::with_timeout(TICK);
                let moved = MetaOperation::move_member(core.node, advertise);
                match core.meta(&ctx, moved).await {
                    Ok(reply) => match reply.refused {
                        Some(why) => {
                            tracing::error!(why, "the cluster did not take this node's address");
                            return;
                        }
                        None => tracing::info!(address = advertise.grpc, "this node has moved"),
                    },
                    Err(error) => tracing::debug!(%error, "this node's address is not known yet"),
                }
                tokio::time::sleep(backoff(tries)).await;
            }
            // The catalog comes with the meta group's log; it changes once it is there.
            None => {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Reads the catalog from this node's replica of the meta group.
async fn read_catalog(store: &Arc<Store>) -> Result<Option<Catalog>, OpenError> {
    let store = Arc::clone(store);
    blocking(move || {
        let damaged = |error: &dyn std::error::Error| OpenError::DataDirectory(error.to_string());
        let rows = store
            .group(GroupId::META)
            .map_err(|error| damaged(&error))?;
        let Some(stored) = rows.get(&ROW).map_err(|error| damaged(&error))? else {
            return Ok(None);
        };
        let row = Row::decode(&stored).map_err(|error| damaged(&error))?;
        let catalog = Catalog::decode(&row.value).map_err(|error| damaged(&error))?;
        Ok(Some(catalog))
    })
    .await?
}

async fn open_store(config: &NodeConfig, engine: EngineKind) -> Result<Arc<Store>, OpenError> {
    let dir = config.data_dir.join("state");
    let options = StoreOptions {
        engine,
        cache_bytes: config.cache_bytes,
        ..StoreOptions::default()
    };
    let opened = blocking(move || Store::open(&dir, options))
        .await?
        .map_err(|error| OpenError::DataDirectory(describe(&error)))?;
    if let Some(why) = opened.rebuilt {
        tracing::warn!(why, "the state was rebuilt from snapshots and the log");
    }
    Ok(opened.store)
}

/// An error with its causes, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !line.contains(&said) {
            line.push_str(": ");
            line.push_str(&said);
        }
        cause = source.source();
    }
    line
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OpenError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| OpenError::DataDirectory(format!("interrupted: {error}")))
}

/// Remembers whose this directory is.
async fn remember(dir: &Path, identity: Identity) -> Result<(), OpenError> {
    let dir = dir.to_owned();
    blocking(move || identity.create(&dir))
        .await?
        .map_err(|error| OpenError::DataDirectory(error.to_string()))
}

//! [`RaftNode`]: the Raft groups of one node, over one log and one transport.

pub(crate) mod group;
pub(crate) mod host;
mod membership;
mod metrics;
mod pending;
mod position;
pub(crate) mod proof;
mod read_index;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod substrate;
mod tail;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::Config;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::transport::{Channel, Server};

use crate::engine::{ReadMode, StateMachines, Timing};
use crate::log::{LogFailed, LogMetrics, LogOpenError, LogOptions, SharedLog};
use crate::tls::PeerTls;
use crate::transport::{Haste, Limits, PeerError, PeerPool, TransportConfig, TransportMetrics};
use crate::{ClusterId, Context, Ended, GroupId, NodeId, RaftError};

pub use group::Group;

use host::{Host, Inbox};
use metrics::GroupMetrics;
use settings::Settings;
use state::StateAdapter;
use substrate::{Raft, StartError, Substrate};

/// The log's own retained tail is this part of what its segments may take: the rest is what is
/// still being written, and slack.
const TAIL_OF_DISK: u64 = 2;

/// How a node takes part in consensus.
#[derive(Clone)]
pub struct NodeConfig {
    pub node: NodeId,
    pub cluster: ClusterId,
    /// Where the log lives; created if it does not exist.
    pub dir: PathBuf,
    /// Where peers dial this node, `host:port`.
    pub advertise: String,
    /// Without it, peers talk in the clear.
    pub tls: Option<PeerTls>,
    pub timing: Timing,
    /// The same on every node of the cluster: a voter keeps the promise that another's lease
    /// rests on.
    pub read_mode: ReadMode,
    pub log: LogOptions,
}

/// Why a node did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the Raft log: {0}")]
    Log(#[from] LogOpenError),
    #[error("group {group}: {why}")]
    Group { group: GroupId, why: String },
    #[error("{0}")]
    Ended(#[from] Ended),
    #[error("timing: {0}")]
    Timing(String),
    #[error("opening the Raft log was interrupted: {0}")]
    Interrupted(String),
}

/// The Raft groups of one node.
pub struct RaftNode {
    host: Arc<Host>,
    log: Arc<SharedLog>,
    pool: PeerPool,
    failed: watch::Sender<Option<String>>,
    tasks: TaskTracker,
}

impl RaftNode {
    /// Opens the log and starts every group found in it. Metrics go to `registry`.
    ///
    /// # Errors
    /// When log or state machines cannot be opened, or hold less than they must; when `ctx` ends.
    pub async fn open(
        ctx: &Context,
        config: NodeConfig,
        machines: Arc<dyn StateMachines>,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, OpenError> {
        let tail_bytes = config.log.disk_bytes / TAIL_OF_DISK;
        let mut settings = Settings::new(config.timing, config.read_mode, tail_bytes);
        settings
            .openraft(true)
            .map_err(|error| OpenError::Timing(error.to_string()))?;
        let log_metrics = LogMetrics::default();
        log_metrics.register(registry);
        let transport_metrics = TransportMetrics::default();
        transport_metrics.register(registry);

        let (dir, options) = (config.dir, config.log);
        let opening =
            tokio::task::spawn_blocking(move || SharedLog::open(&dir, options, log_metrics));
        let log = opening
            .await
            .map_err(|error| OpenError::Interrupted(error.to_string()))??;
        settings.max_entry_bytes = settings.max_entry_bytes.min(log.max_entry_bytes());

        let tasks = TaskTracker::new();
        let transport = TransportConfig {
            cluster: config.cluster,
            node: config.node,
            advertise: config.advertise.clone(),
            tls: config.tls,
            limits: Limits::for_timing(&config.timing),
        };
        let pool = PeerPool::new(transport, transport_metrics, tasks.clone());
        let substrate = Arc::new(NodeSubstrate {
            log: log.clone(),
            pool: pool.clone(),
        });
        let host = ctx
            .run(Host::open(
                config.node,
                config.advertise,
                settings,
                substrate,
                machines,
            ))
            .await?
            .map_err(|failed| OpenError::Group {
                group: failed.group,
                why: failed.why,
            })?;
        registry
            .sub_registry_with_prefix("raft_group")
            .register_collector(Box::new(GroupMetrics(Arc::downgrade(&host))));

        let failed = watch::channel(None).0;
        tasks.spawn(report_failure(
            log.failed(),
            failed.clone(),
            host.stopping(),
        ));
        Ok(Arc::new(Self {
            host,
            log,
            pool,
            failed,
            tasks,
        }))
    }

    /// The group, if this node hosts it.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.host.group(group)
    }

    /// All groups that this node hosts, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.host.groups()
    }

    /// The ids of the groups that this node hosts. A group that a leader adds this node to appears
    /// by itself.
    #[must_use]
    pub fn hosted(&self) -> watch::Receiver<Arc<BTreeSet<GroupId>>> {
        self.host.hosted()
    }

    /// Makes `group`, which must be new to the cluster, a group with this node as its only voter.
    /// Idempotent.
    ///
    /// # Errors
    /// `NotApplied`, `OutcomeUnknown` at the end of `ctx`; `Stopped` when it cannot be created.
    pub async fn bootstrap(&self, ctx: &Context, group: GroupId) -> Result<Arc<Group>, RaftError> {
        self.host.bootstrap(ctx, group).await
    }

    /// Stops `group` on this node and deletes its log and state. Only for a group that this node
    /// was removed from: a voter must not forget what it has promised.
    ///
    /// # Errors
    /// `NotApplied`, `OutcomeUnknown` at the end of `ctx` (try again); `Stopped` when storage
    /// failed.
    pub async fn destroy(&self, ctx: &Context, group: GroupId) -> Result<(), RaftError> {
        self.host.destroy(ctx, group).await
    }

    /// Where `node` is dialled from now on.
    pub fn set_peer_address(&self, node: NodeId, address: String) {
        self.pool.set_address(node, address);
    }

    /// What peers call, for a server made by [`RaftNode::server`].
    pub fn service(
        &self,
    ) -> impl tower::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send,
    > + NamedService
    + Clone
    + Send
    + Sync
    + 'static {
        self.pool
            .service(Arc::new(Inbox(Arc::downgrade(&self.host))))
    }

    /// A server set up (TLS, limits) as peers expect it; others may add their services to it.
    ///
    /// # Errors
    /// When the certificates do not fit each other.
    pub fn server(&self) -> Result<Server, tonic::transport::Error> {
        self.pool.server()
    }

    /// A connection to `node`, shared with consensus' own.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn channel(&self, ctx: &Context, node: NodeId) -> Result<Channel, PeerError> {
        self.pool.channel(ctx, node).await
    }

    /// As [`RaftNode::channel`], a connection of its own for what is large.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn bulk_channel(&self, ctx: &Context, node: NodeId) -> Result<Channel, PeerError> {
        self.pool.bulk_channel(ctx, node).await
    }

    /// Becomes `Some` when the log has failed, and this node must stop.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Stops the groups, the transport and the log, until `ctx` ends. Leadership is not handed over
    /// here: see `transfer_leadership`. Returns whether the log is closed.
    pub async fn shutdown(&self, ctx: &Context) -> bool {
        self.host.shutdown(ctx).await;
        self.pool.close();
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!("connections to peers did not end in time");
        }
        match ctx.run(self.log.close()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::error!(%error, "closing the Raft log"),
            Err(_) => tracing::error!("the Raft log did not close in time"),
        }
        false
    }
}

async fn report_failure(
    mut log: watch::Receiver<Option<LogFailed>>,
    failed: watch::Sender<Option<String>>,
    stop: tokio_util::sync::CancellationToken,
) {
    let why = stop
        .run_until_cancelled(log.wait_for(Option::is_some))
        .await;
    if let Some(Ok(why)) = why {
        failed.send_replace(why.as_ref().map(ToString::to_string));
    }
}

/// The log and the transport of a real node.
struct NodeSubstrate {
    log: Arc<SharedLog>,
    pool: PeerPool,
}

impl Substrate for NodeSubstrate {
    fn groups(&self) -> Vec<GroupId> {
        self.log.groups()
    }

    fn start(
        &self,
        node: NodeId,
        group: GroupId,
        config: Arc<Config>,
        state: StateAdapter,
    ) -> BoxFuture<'_, Result<Raft, StartError>> {
        let (network, log) = (self.pool.network(group), self.log.group(group));
        substrate::start(node, config, network, log, state).boxed()
    }

    fn haste(&self, group: GroupId) -> Option<Haste> {
        Some(self.pool.haste(group))
    }

    fn remove(&self, group: GroupId) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let removed = self.log.remove_group(group).await;
            removed.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

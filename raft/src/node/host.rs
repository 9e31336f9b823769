//! [`Host`]: the groups of one node, and what peers ask of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{SnapshotSink, StateMachines};
use crate::transport::{Inbound, Refused};
use crate::types::{Peer, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::{Context, GroupId, NodeId, RaftError};

use super::group::{BuildError, Group};
use super::settings::Settings;
use super::substrate::{Raft, Substrate};

/// Between two looks at what the groups' logs need.
const UPKEEP: Duration = Duration::from_secs(1);

/// Looks between two flushes of groups that had little to flush.
const QUIET: u32 = 30;

/// How long a destroyed group is not created again by messages that were under way.
const FORGET: Duration = Duration::from_secs(10);

/// The groups of one node.
pub(crate) struct Host {
    node: NodeId,
    advertise: String,
    settings: Arc<Settings>,
    substrate: Arc<dyn Substrate>,
    machines: Arc<dyn StateMachines>,
    groups: RwLock<HashMap<GroupId, Arc<Group>>>,
    hosted: watch::Sender<Arc<BTreeSet<GroupId>>>,
    /// One group is created or destroyed at a time.
    changing: tokio::sync::Mutex<()>,
    /// Groups that are being destroyed: no other may start over their log and state meanwhile.
    leaving: Mutex<HashMap<GroupId, Option<Arc<Group>>>>,
    destroyed: Mutex<BTreeMap<GroupId, Instant>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A group of this node did not start.
#[derive(Debug)]
pub(crate) struct GroupFailed {
    pub(crate) group: GroupId,
    pub(crate) why: String,
}

impl fmt::Display for GroupFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}: {}", self.group, self.why)
    }
}

impl Host {
    /// Starts every group that the log holds.
    pub(crate) async fn open(
        node: NodeId,
        advertise: String,
        settings: Settings,
        substrate: Arc<dyn Substrate>,
        machines: Arc<dyn StateMachines>,
    ) -> Result<Arc<Self>, GroupFailed> {
        let host = Arc::new(Self {
            node,
            advertise,
            settings: Arc::new(settings),
            substrate,
            machines,
            groups: RwLock::default(),
            hosted: watch::channel(Arc::default()).0,
            changing: tokio::sync::Mutex::default(),
            leaving: Mutex::default(),
            destroyed: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for group in host.substrate.groups() {
            let started = host.start(group).await;
            started.map_err(|error| GroupFailed {
                group,
                why: error.to_string(),
            })?;
        }
        let keeper = Arc::downgrade(&host);
        let stop = host.stop.clone();
        host.tasks
            .spawn(async move { stop.run_until_cancelled(upkeep(keeper)).await });
        Ok(host)
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.groups.read().get(&group).cloned()
    }

    pub(crate) fn groups(&self) -> Vec<Arc<Group>> {
        let mut groups: Vec<_> = self.groups.read().values().cloned().collect();
        groups.sort_unstable_by_key(|group| group.id);
        groups
    }

    pub(crate) fn hosted(&self) -> watch::Receiver<Arc<BTreeSet<GroupId>>> {
        self.hosted.subscribe()
    }

    async fn start(&self, group: GroupId) -> Result<Arc<Group>, BuildError> {
        let machines = self.machines.clone();
        let machine = crate::blocking::run(move || machines.open(group))
            .await
            .map_err(std::io::Error::other)?
            .map_err(std::io::Error::other)?;
        let started = Group::start(
            group,
            self.node,
            self.settings.clone(),
            self.substrate.clone(),
            machine,
            self.stop.child_token(),
        )
        .await?;
        self.groups.write().insert(group, started.clone());
        self.publish();
        Ok(started)
    }

    fn publish(&self) {
        let hosted = self.groups.read().keys().copied().collect();
        self.hosted.send_replace(Arc::new(hosted));
    }

    /// The group, created pristine if this node does not host it.
    async fn ensure(&self, group: GroupId) -> Result<Arc<Group>, BuildError> {
        let _changing = self.changing.lock().await;
        if let Some(group) = self.group(group) {
            return Ok(group);
        }
        if self.stop.is_cancelled() || self.leaving.lock().contains_key(&group) {
            return Err(BuildError::Stopping);
        }
        self.start(group).await
    }

    /// Makes `group`, pristine or absent, a group with this node as its only voter. Idempotent.
    pub(crate) async fn bootstrap(
        &self,
        ctx: &Context,
        group: GroupId,
    ) -> Result<Arc<Group>, RaftError> {
        let created = ctx
            .run(self.ensure(group))
            .await
            .map_err(RaftError::NotApplied)?
            .map_err(|error| RaftError::Stopped(error.to_string()))?;
        let raft = created.running()?;
        let initialize = async {
            if raft.is_initialized().await? {
                return Ok(());
            }
            let peer = Peer {
                address: self.advertise.clone(),
            };
            let members = BTreeMap::from([(self.node.0, peer)]);
            match raft.initialize(members).await {
                Ok(()) => Ok(()),
                // Someone else initialized it in between.
                Err(openraft::errors::RaftError::APIError(_)) => Ok(()),
                Err(openraft::errors::RaftError::Fatal(fatal)) => Err(fatal),
            }
        };
        ctx.run(initialize)
            .await
            .map_err(|_| RaftError::OutcomeUnknown("the group may be initialized"))?
            .map_err(|fatal| RaftError::Stopped(fatal.to_string()))?;
        Ok(created)
    }

    /// Stops `group` here and deletes its log and its state. For a node that was removed from it.
    /// Goes on by itself when `ctx` ends first.
    pub(crate) async fn destroy(
        self: &Arc<Self>,
        ctx: &Context,
        group: GroupId,
    ) -> Result<(), RaftError> {
        let unknown = || RaftError::OutcomeUnknown("the group is being destroyed");
        {
            let _changing = ctx
                .run(self.changing.lock())
                .await
                .map_err(RaftError::NotApplied)?;
            let mut leaving = self.leaving.lock();
            if leaving.contains_key(&group) {
                return Err(unknown());
            }
            leaving.insert(group, self.groups.write().remove(&group));
        }
        self.publish();
        let host = self.clone();
        let (done, end) = oneshot::channel();
        self.tasks.spawn(async move {
            // A caller that is gone needs no answer.
            let _ = done.send(host.delete(group).await);
        });
        match ctx.run(end).await {
            Ok(Ok(deleted)) => deleted.map_err(RaftError::Stopped),
            Ok(Err(_)) | Err(_) => Err(unknown()),
        }
    }

    /// Deletes a group that is leaving, once nothing of it touches its log and state any more. When
    /// the node stops before that, it is found again at the next start.
    async fn delete(&self, group: GroupId) -> Result<(), String> {
        let stopping = self.leaving.lock().get(&group).cloned().flatten();
        if let Some(stopping) = stopping {
            let stopped = self.stop.run_until_cancelled(stopping.stopped()).await;
            stopped.ok_or("the node is stopping")?;
        }
        // The state first: a log without state is rebuilt by the leader, a state without log is not
        // found again.
        let machines = self.machines.clone();
        let deleted = match crate::blocking::run(move || machines.destroy(group)).await {
            Ok(Ok(())) => self.substrate.remove(group).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let mut destroyed = self.destroyed.lock();
        let now = Instant::now();
        destroyed.retain(|_, until| *until > now);
        destroyed.insert(group, now + FORGET);
        self.leaving.lock().remove(&group);
        deleted
    }

    /// Stops all groups, until `ctx` ends.
    pub(crate) async fn shutdown(&self, ctx: &Context) {
        self.stop.cancel();
        self.tasks.close();
        // Nothing waits for more than its own look at the groups.
        self.tasks.wait().await;
        let leaving: Vec<_> = self.leaving.lock().values().flatten().cloned().collect();
        let all = self.groups().into_iter().chain(leaving);
        let stopping = all.map(|group| async move {
            if group.stop(ctx).await.is_err() {
                tracing::warn!(group = %group.id, "the group did not stop in time");
            }
        });
        futures::future::join_all(stopping).await;
    }

    /// Cancelled when the node begins to stop.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The openraft of `group`, for a message that may not create it.
    fn raft(&self, group: GroupId) -> Result<Arc<Raft>, Refused> {
        let Some(group) = self.group(group) else {
            return Err(Refused("this node does not host the group".to_owned()));
        };
        group.running().map_err(refused)
    }

    fn is_forgotten(&self, group: GroupId) -> bool {
        if self.leaving.lock().contains_key(&group) {
            return true;
        }
        let destroyed = self.destroyed.lock();
        destroyed.get(&group).is_some_and(|at| *at > Instant::now())
    }

    /// The group that a leader's message is for: a new learner creates it.
    async fn learn(&self, group: GroupId) -> Result<Arc<Group>, Refused> {
        if self.is_forgotten(group) {
            return Err(Refused("this node has left the group".to_owned()));
        }
        self.ensure(group).await.map_err(refused)
    }

    /// A restarted voter may have promised a lease that it does not remember.
    fn may_vote(&self, group: GroupId) -> Result<(), Refused> {
        let held = self.group(group).is_some_and(|group| {
            let hold = *group.hold_until.lock();
            hold.is_some_and(|until| Instant::now() < until)
        });
        if held {
            return Err(Refused("restarted less than a lease ago".to_owned()));
        }
        Ok(())
    }
}

async fn upkeep(host: Weak<Host>) {
    let mut look = 0u32;
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(host) = host.upgrade() else {
            return;
        };
        let groups = host.groups();
        let retain = host.settings.tail_bytes / groups.len().max(1) as u64;
        look = look.wrapping_add(1);
        for group in groups {
            group.upkeep(retain, look.is_multiple_of(QUIET)).await;
        }
    }
}

fn refused(error: impl fmt::Display) -> Refused {
    Refused(error.to_string())
}

/// What the transport calls. Holds the host weakly: the host owns the transport.
#[derive(Clone)]
pub(crate) struct Inbox(pub(crate) Weak<Host>);

impl Inbox {
    fn host(&self) -> Result<Arc<Host>, Refused> {
        self.0
            .upgrade()
            .ok_or_else(|| Refused("this node is stopping".to_owned()))
    }
}

/// Runs `work` until `ctx` ends. Its first poll hands the message on, in the order of calls: so no
/// turn is given up before that.
fn within<T: Send + 'static>(
    ctx: &Context,
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> BoxFuture<'static, Result<T, Refused>> {
    let ctx = ctx.clone();
    tokio::task::unconstrained(async move {
        match ctx.run(work).await {
            Ok(result) => result,
            Err(ended) => Err(refused(ended)),
        }
    })
    .boxed()
}

impl Inbound for Inbox {
    fn append(
        &self,
        ctx: &Context,
        group: GroupId,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let host = host?;
            let group = match host.group(group) {
                Some(group) => group,
                None => host.learn(group).await?,
            };
            let raft = group.running().map_err(refused)?;
            let reply = raft.append_entries(request).await.map_err(refused)?;
            if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
                group.hears_its_leader();
            }
            Ok(reply)
        })
    }

    fn vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let host = host?;
            host.may_vote(group)?;
            host.raft(group)?.vote(request).await.map_err(refused)
        })
    }

    fn pre_vote(
        &self,
        ctx: &Context,
        group: GroupId,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let host = host?;
            host.may_vote(group)?;
            host.raft(group)?.pre_vote(request).await.map_err(refused)
        })
    }

    fn transfer_leader(
        &self,
        ctx: &Context,
        group: GroupId,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let raft = host?.raft(group)?;
            raft.handle_transfer_leader(request).await.map_err(refused)
        })
    }

    fn begin_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        _meta: &SnapshotMeta,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let machine = host?.learn(group).await?.machine.clone();
            crate::blocking::run(move || machine.begin_install())
                .await
                .map_err(refused)?
                .map_err(refused)
        })
    }

    fn install_snapshot(
        &self,
        ctx: &Context,
        group: GroupId,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<SnapshotResponse<TypeConfig>, Refused>> {
        let host = self.host();
        within(ctx, async move {
            let raft = host?.raft(group)?;
            raft.install_full_snapshot(vote, snapshot)
                .await
                .map_err(refused)
        })
    }
}

//! [`ShardedCoordinator`]: routes by the catalog, executes where this node leads, forwards where
//! another does, and sends a request over several shards to each of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use leadline_raft::engine::ReadIndex;
use leadline_raft::{Context, GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lane::{Lane, LaneParts, LocalShard};
use super::open_ids::OpenIds;
use super::reply::Reply;
use super::retry::RetryBudget;
use super::{Coordinator, KeyWatch, PendingReply};
use crate::admission::{Admission, Permit};
use crate::catalog::{Catalog, CatalogCopy};
use crate::executor::Once;
use crate::hlc::Hlc;
use crate::metrics::CoordinatorMetrics;
use crate::proxy::LeaderProxy;
use crate::transaction::{FORGETTING, Network, TransactionCoordinator, TransactionOperation};
use crate::{Access, Door, Gather, KvError, Operation, Outcome, RequestId, Route, Scattered};

/// Retries that a node may make at once, and how fast that many come back.
const RETRY_BURST: u32 = 4096;
const RETRIES_PER_SECOND: u32 = 1024;

/// The coordinator of a node: see [`Coordinator`].
///
/// # Order
/// Operations on one key that one caller submits in order are evaluated in that order, or not at
/// all: they take the same way (the executor's queue, or one stream to the leader's node), wait in
/// one queue while no leader is known, and one that was refused is sent again only if nothing has
/// been submitted since that it must not change places with.
pub struct ShardedCoordinator {
    node: NodeId,
    catalog: Arc<CatalogCopy>,
    routing: ArcSwapOption<Routing>,
    lanes: Mutex<BTreeMap<GroupId, Arc<Lane>>>,
    parts: Arc<LaneParts>,
    admission: Arc<Admission>,
    session: u128,
    numbers: AtomicU64,
    open_ids: OpenIds,
    transactions: Arc<TransactionCoordinator<Lanes>>,
}

/// The lanes, as transactions over several shards reach them.
pub(crate) struct Lanes(Weak<ShardedCoordinator>);

impl Network for Lanes {
    fn send(&self, ctx: &Context, key: &[u8], step: Arc<TransactionOperation>) -> PendingReply {
        match self.0.upgrade() {
            Some(coordinator) => coordinator.submit_to_owner(ctx, key, step),
            None => PendingReply::ready(Err(KvError::Stopping)),
        }
    }

    fn shard_of(&self, key: &[u8]) -> Option<Range<Bytes>> {
        let catalog = self.0.upgrade()?.catalog()?;
        catalog.owned(catalog.group_of(key))
    }

    fn shards(&self, door: Door) -> Vec<Range<Bytes>> {
        let Some(catalog) = self
            .0
            .upgrade()
            .and_then(|coordinator| coordinator.catalog())
        else {
            return Vec::new();
        };
        let groups: Vec<_> = catalog.groups().collect();
        catalog
            .positions_of(door)
            .filter_map(|position| catalog.owned(*groups.get(position)?))
            .collect()
    }
}

/// One catalog with the lanes of its groups, by position.
struct Routing {
    catalog: Arc<Catalog>,
    lanes: Vec<Arc<Lane>>,
}

impl ShardedCoordinator {
    pub(crate) fn new(
        node: NodeId,
        catalog: Arc<CatalogCopy>,
        proxy: Arc<LeaderProxy>,
        admission: Arc<Admission>,
        hlc: Arc<Hlc>,
        metrics: CoordinatorMetrics,
    ) -> Arc<Self> {
        let transaction_metrics = metrics.clone();
        let parts = Arc::new(LaneParts {
            node,
            proxy,
            budget: RetryBudget::new(RETRY_BURST, RETRIES_PER_SECOND),
            metrics,
            attendant: Notify::new(),
        });
        let coordinator = Arc::new_cyclic(|this: &Weak<Self>| Self {
            node,
            catalog,
            routing: ArcSwapOption::empty(),
            lanes: Mutex::default(),
            parts,
            admission,
            session: rand::random(),
            numbers: AtomicU64::new(1),
            open_ids: OpenIds::default(),
            transactions: TransactionCoordinator::new(
                Lanes(Weak::clone(this)),
                hlc,
                transaction_metrics,
                FORGETTING,
            ),
        });
        coordinator.follow_catalog();
        coordinator
    }

    /// The node that this coordinator is on.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The catalog as this node last saw it.
    #[must_use]
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.catalog.current()
    }

    pub(crate) fn transactions(&self) -> &Arc<TransactionCoordinator<Lanes>> {
        &self.transactions
    }

    /// Submits `operation` to the shard that owns `key`.
    fn submit_to_owner(
        &self,
        ctx: &Context,
        key: &[u8],
        operation: Arc<dyn Operation>,
    ) -> PendingReply {
        let routing = self.routing.load();
        let Some(routing) = routing.as_ref() else {
            return PendingReply::ready(Err(KvError::NoLeader { leader: None }));
        };
        match self.admission.admit(operation.size()) {
            Ok(permit) => {
                let lane = &routing.lanes[routing.catalog.position(key)];
                lane.submit(ctx, operation, None, permit)
            }
            Err(overloaded) => PendingReply::ready(Err(overloaded)),
        }
    }

    /// Runs `operation` as a transaction over several shards.
    fn transact(
        &self,
        ctx: &Context,
        operation: Arc<dyn Operation>,
        once: Option<RequestId>,
        permit: Permit,
    ) -> PendingReply {
        let transaction = Arc::clone(&self.transactions).run(ctx.clone(), operation, once);
        PendingReply::transaction(Box::pin(async move {
            // Its steps hold their own share of the budget beside.
            let _permit = permit;
            transaction.await
        }))
    }

    pub(crate) fn lane(&self, group: GroupId) -> Arc<Lane> {
        Arc::clone(
            self.lanes
                .lock()
                .entry(group)
                .or_insert_with(|| Lane::new(group, Arc::clone(&self.parts))),
        )
    }

    /// Uses a replica of `group` on this node, or no longer.
    pub(crate) fn host(&self, group: GroupId, local: Option<Box<dyn LocalShard>>) {
        self.lane(group).set_local(local);
    }

    /// Takes over the catalog copy's current version.
    pub(crate) fn follow_catalog(&self) {
        let Some(catalog) = self.catalog.current() else {
            return;
        };
        let lanes = catalog
            .groups()
            .map(|group| {
                let lane = self.lane(group);
                lane.set_replicas(catalog.replicas(group));
                lane
            })
            .collect();
        self.routing
            .store(Some(Arc::new(Routing { catalog, lanes })));
    }

    /// Moves parked requests on until `stop`; one task per coordinator runs this.
    pub(crate) async fn attend(&self, stop: CancellationToken) {
        loop {
            let now = Instant::now();
            let lanes: Vec<_> = self.lanes.lock().values().cloned().collect();
            let next = lanes.iter().filter_map(|lane| lane.attend(now)).min();
            let far = now + Duration::from_secs(3600);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.parts.attendant.notified() => {}
                () = tokio::time::sleep_until(next.unwrap_or(far)) => {}
            }
        }
    }

    /// A peer can be reached again: requests that wait for it go on.
    pub(crate) fn peer_is_back(&self) {
        let lanes: Vec<_> = self.lanes.lock().values().cloned().collect();
        for lane in lanes {
            lane.kick();
        }
    }

    /// Evaluates what another node forwarded, if this node leads `group`.
    pub(crate) fn submit_forwarded(
        &self,
        ctx: &Context,
        group: GroupId,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
        after_mine: bool,
    ) -> PendingReply {
        self.parts.metrics.served.inc();
        self.lane(group)
            .submit_forwarded(ctx, operation, once, after_mine)
    }

    /// Registers a watch that another node asked for, if this node leads `group`.
    pub(crate) fn watch_forwarded(
        &self,
        group: GroupId,
        keys: &[Bytes],
    ) -> Result<KeyWatch, KvError> {
        let lane = self.lane(group);
        match lane.local() {
            Some(shard) if shard.is_leading() => shard.watch(keys),
            _ => Err(KvError::NoLeader {
                leader: lane.known_leader(),
            }),
        }
    }

    fn submit_as(
        &self,
        ctx: &Context,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
    ) -> PendingReply {
        if let Some(ended) = ctx.ended() {
            return PendingReply::ready(Err(KvError::NotApplied(ended)));
        }
        let routing = self.routing.load();
        let Some(routing) = routing.as_ref() else {
            return PendingReply::ready(Err(KvError::NoLeader { leader: None }));
        };
        let permit = match self.admission.admit(operation.size()) {
            Ok(permit) => permit,
            Err(overloaded) => {
                self.parts.metrics.overloaded.inc();
                return PendingReply::ready(Err(overloaded));
            }
        };
        let shards = match operation.route() {
            Route::Keys([]) => {
                let why = format!("{} names no key", operation.name());
                return PendingReply::ready(Err(KvError::Invalid(why)));
            }
            Route::Keys(keys) => {
                let first = routing.catalog.position(&keys[0]);
                let alone = keys[1..]
                    .iter()
                    .all(|key| routing.catalog.position(key) == first);
                if !alone {
                    let once = once.map(|once| once.id);
                    return self.transact(ctx, operation, once, permit);
                }
                let lane = &routing.lanes[first];
                if !operation.open_ended() {
                    return lane.submit(ctx, operation, once, permit);
                }
                let alone = lane.submit(ctx, Arc::clone(&operation), once, permit);
                return self.or_over_all_shards(ctx, operation, once, alone);
            }
            Route::EveryShard => routing.catalog.positions_of(operation.door()),
        };
        match Arc::clone(&operation).scatter() {
            Some(scattered) => {
                // The whole fits; from here on each part holds its own share.
                drop(permit);
                self.fan_out(ctx, &routing.lanes[shards], scattered, once)
            }
            None => self.transact(ctx, operation, once.map(|once| once.id), permit),
        }
    }

    /// The reply of an operation that may turn out to need other shards' rows too.
    fn or_over_all_shards(
        &self,
        ctx: &Context,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
        alone: PendingReply,
    ) -> PendingReply {
        let (ctx, transactions) = (ctx.clone(), Arc::clone(&self.transactions));
        PendingReply::transaction(Box::pin(async move {
            match alone.await {
                // Nothing was applied.
                Err(KvError::CrossShard) => {
                    transactions
                        .run(ctx, operation, once.map(|once| once.id))
                        .await
                }
                reply => reply,
            }
        }))
    }

    /// Sends the part to each of `shards`, and collects every result.
    fn fan_out(
        &self,
        ctx: &Context,
        shards: &[Arc<Lane>],
        Scattered { part, gather }: Scattered,
        once: Option<Once>,
    ) -> PendingReply {
        self.parts.metrics.fan_outs.inc();
        let replies: Vec<_> = shards
            .iter()
            .map(|shard| match self.admission.admit(part.size()) {
                Ok(permit) => shard.submit(ctx, Arc::clone(&part), once, permit),
                Err(overloaded) => PendingReply::ready(Err(overloaded)),
            })
            .collect();
        let access = part.access();
        let mut all =
            Box::pin(async move { put_together(gather, access, join_all(replies).await) });
        match (&mut all).now_or_never() {
            Some(reply) => PendingReply::ready(reply),
            None => PendingReply::running(all),
        }
    }

    async fn place_watch(&self, ctx: &Context, keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        let lane = {
            let routing = self.routing.load();
            let (Some(routing), Some(first)) = (routing.as_ref(), keys.first()) else {
                return Err(KvError::NoLeader { leader: None });
            };
            let position = routing.catalog.position(first);
            if keys
                .iter()
                .any(|key| routing.catalog.position(key) != position)
            {
                return Err(KvError::CrossShard);
            }
            Arc::clone(&routing.lanes[position])
        };
        let mut news = lane.news();
        for tries in 0_u8.. {
            news.mark_unchanged();
            let placed = match lane.watch_target() {
                Some(Ok(shard)) => shard.watch(keys),
                Some(Err(node)) => {
                    self.parts
                        .proxy
                        .watch(ctx, node, lane.group(), keys.to_vec())
                        .await
                }
                None => Err(KvError::NoLeader { leader: None }),
            };
            match placed {
                Err(KvError::NoLeader { leader }) => {
                    lane.heard_of(leader);
                    let news = lane.wait_for_news(&mut news, tries.min(8));
                    if let Err(ended) = ctx.run(news).await {
                        return Err(KvError::NotApplied(ended));
                    }
                }
                settled => return settled,
            }
        }
        Err(KvError::NoLeader {
            leader: lane.known_leader(),
        })
    }

    /// Takes note that `leader` says it leads `group`.
    pub(crate) fn heard_of(&self, group: GroupId, leader: NodeId) {
        self.lane(group).heard_of(Some(leader));
    }

    async fn verify(&self, ctx: &Context, group: GroupId) -> Result<ReadIndex, KvError> {
        let lane = self.lane(group);
        let Some(shard) = lane.local() else {
            return Err(KvError::NoLeader {
                leader: lane.known_leader(),
            });
        };
        Ok(shard.verify_leader(ctx).await?)
    }
}

impl std::fmt::Debug for ShardedCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardedCoordinator")
            .field("node", &self.node)
            .field("catalog", &self.catalog.current())
            .finish_non_exhaustive()
    }
}

impl Coordinator for ShardedCoordinator {
    fn submit(&self, ctx: &Context, operation: Arc<dyn Operation>) -> PendingReply {
        self.submit_as(ctx, operation, None)
    }

    fn submit_once(
        &self,
        ctx: &Context,
        id: RequestId,
        operation: Arc<dyn Operation>,
    ) -> PendingReply {
        let lowest_open = if id.session == self.session {
            self.open_ids.lowest(self.numbers.load(Ordering::Relaxed))
        } else {
            // Another coordinator's: its mark is not known here.
            0
        };
        self.submit_as(ctx, operation, Some(Once { id, lowest_open }))
    }

    fn next_request_id(&self) -> RequestId {
        RequestId {
            session: self.session,
            number: self.open_ids.open(&self.numbers),
        }
    }

    fn finish_request_id(&self, id: RequestId) {
        if id.session == self.session {
            self.open_ids.close(id.number);
        }
        self.transactions.finish(id);
    }

    fn watch<'a>(
        &'a self,
        ctx: &'a Context,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<KeyWatch, KvError>> {
        Box::pin(self.place_watch(ctx, keys))
    }

    fn verify_leader<'a>(
        &'a self,
        ctx: &'a Context,
        group: GroupId,
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        Box::pin(self.verify(ctx, group))
    }

    fn verify_leader_for_key<'a>(
        &'a self,
        ctx: &'a Context,
        key: &'a [u8],
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        let owner = self.catalog.current().map(|catalog| catalog.group_of(key));
        Box::pin(async move {
            match owner {
                Some(group) => self.verify(ctx, group).await,
                None => Err(KvError::NoLeader { leader: None }),
            }
        })
    }

    fn known_leader(&self, group: GroupId) -> Option<NodeId> {
        let lane = self.lanes.lock().get(&group).cloned()?;
        lane.known_leader()
    }
}

/// The reply of the whole, or what its failure says about its effects.
fn put_together(gather: Gather, access: Access, replies: Vec<Reply>) -> Reply {
    let applied_somewhere = replies.iter().any(|reply| match reply {
        Ok(_) => true,
        Err(error) => error.outcome() == Outcome::Unknown,
    });
    match replies.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(replies) => Ok(gather(replies)),
        Err(KvError::Unknown(why)) => Err(KvError::Unknown(why)),
        Err(_) if access == Access::Write && applied_somewhere => {
            Err(KvError::Unknown("applied on some shards, not on all"))
        }
        Err(error) => Err(error),
    }
}

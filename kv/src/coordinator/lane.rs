//! The way to one group: its local replica if there is one, else its leader on another node, else
//! a place to wait until a leader is known.
//!
//! # Invariants
//! 1. While requests are parked the lane is held: newcomers queue behind them, so requests leave in
//!    the order in which they came.
//! 2. A parked request is gone the moment its context ends or its reply is dropped.
//! 3. Parked requests move on an event (a leader is known, a peer is reachable again) or, where a
//!    leader is known but refuses, after a backoff with jitter: nothing polls.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures::future::BoxFuture;
use leadline_raft::engine::{Engine, Leadership, ReadIndex};
use leadline_raft::{Context, Ended, GroupId, NodeId, RaftError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::KeyWatch;
use super::flight::{Flight, Request};
use super::order::SubmissionOrder;
use super::reply::PendingReply;
use super::retry::{RetryBudget, backoff};
use crate::admission::Permit;
use crate::executor::{Once, Order, Shard, Submission};
use crate::metrics::CoordinatorMetrics;
use crate::proxy::LeaderProxy;
use crate::{Access, KvError, Operation};

/// A replica on this node, as the coordinator sees it.
pub(crate) trait LocalShard: Send + Sync + 'static {
    fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply;
    fn watch(&self, keys: &[Bytes]) -> Result<KeyWatch, KvError>;
    /// An executor has begun here.
    fn is_leading(&self) -> bool;
    fn leadership(&self) -> Leadership;
    fn verify_leader<'a>(&'a self, ctx: &'a Context)
    -> BoxFuture<'a, Result<ReadIndex, RaftError>>;
}

/// A shard and the group that replicates it.
pub(crate) struct HostedShard<E: Engine> {
    pub(crate) engine: Arc<E>,
    pub(crate) shard: Arc<Shard<E>>,
}

impl<E: Engine> LocalShard for HostedShard<E> {
    fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply {
        self.shard.submit(ctx, submission)
    }

    fn watch(&self, keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        self.shard.watch(keys)
    }

    fn is_leading(&self) -> bool {
        self.shard.is_leading()
    }

    fn leadership(&self) -> Leadership {
        self.engine.leadership()
    }

    fn verify_leader<'a>(
        &'a self,
        ctx: &'a Context,
    ) -> BoxFuture<'a, Result<ReadIndex, RaftError>> {
        Box::pin(self.engine.verify_leader(ctx))
    }
}

/// What all lanes of a node share.
pub(crate) struct LaneParts {
    pub(crate) node: NodeId,
    pub(crate) proxy: Arc<LeaderProxy>,
    pub(crate) budget: RetryBudget,
    pub(crate) metrics: CoordinatorMetrics,
    /// Wakes the task that moves parked requests on.
    pub(crate) attendant: Notify,
}

/// The way to one group.
pub(crate) struct Lane {
    group: GroupId,
    parts: Arc<LaneParts>,
    local: ArcSwapOption<Box<dyn LocalShard>>,
    /// Who replicates the group, for a node that does not.
    replicas: ArcSwap<Vec<NodeId>>,
    /// Who leads according to a refusal, and what this node believed when it heard so: the hint is
    /// better only until the node learns something new itself.
    hint: Mutex<Option<(NodeId, Leadership)>>,
    /// Which replica to ask when nothing is known of the leader: the same until it knows no better.
    turn: AtomicUsize,
    pub(crate) order: SubmissionOrder,
    held: AtomicBool,
    parking: Mutex<Parking>,
    /// Counts events that may have made the group reachable.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Parking {
    queue: BTreeMap<u64, ParkedRequest>,
    next: u64,
    /// When to try again without an event.
    retry_at: Option<Instant>,
    failed_tries: u8,
    /// The attendant has taken a request out and has not settled where it goes.
    moving: bool,
}

impl Parking {
    /// Lets newcomers pass if there is nobody left whom they could overtake (invariant 1).
    fn release(&self, held: &AtomicBool) {
        if self.queue.is_empty() && !self.moving {
            held.store(false, Ordering::SeqCst);
        }
    }
}

struct ParkedRequest {
    request: Request,
    reply: oneshot::Sender<PendingReply>,
}

/// Where requests for a group go now.
enum Target {
    Local(Arc<Box<dyn LocalShard>>),
    /// This node leads the group, and its executor has not begun.
    Starting,
    Remote(NodeId),
    Unknown,
}

impl Lane {
    pub(crate) fn new(group: GroupId, parts: Arc<LaneParts>) -> Arc<Self> {
        Arc::new(Self {
            group,
            parts,
            local: ArcSwapOption::empty(),
            replicas: ArcSwap::default(),
            hint: Mutex::new(None),
            turn: AtomicUsize::new(0),
            order: SubmissionOrder::default(),
            held: AtomicBool::new(false),
            parking: Mutex::default(),
            news: watch::Sender::new(0),
        })
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// Uses (or no longer uses) a replica on this node.
    pub(crate) fn set_local(&self, local: Option<Box<dyn LocalShard>>) {
        self.local.store(local.map(Arc::new));
        self.kick();
    }

    pub(crate) fn local(&self) -> Option<Arc<Box<dyn LocalShard>>> {
        self.local.load_full()
    }

    pub(crate) fn set_replicas(&self, replicas: &[NodeId]) {
        if self.replicas.load().as_slice() != replicas {
            self.replicas.store(Arc::new(replicas.to_vec()));
            self.kick();
        }
    }

    /// Submits `operation`; see [`super::Coordinator::submit`].
    pub(crate) fn submit(
        self: &Arc<Self>,
        ctx: &Context,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
        permit: Permit,
    ) -> PendingReply {
        let caller = ctx.caller();
        let after_mine =
            operation.access() == Access::Write || self.order.writes_under_way(caller, &*operation);
        let place = self.order.place();
        // A read with no write of its caller under way has nobody to change places with yet: it is
        // entered only if it is not answered at once.
        if after_mine {
            self.order.enter(caller, &*operation, place);
        }
        let request = Request {
            ctx: ctx.clone(),
            operation,
            once,
            place,
            after_mine,
            forwarded: false,
        };
        let reply = self.send(&request);
        let settled = reply.is_ready() && !reply.refused();
        if settled {
            if after_mine {
                self.order.leave(caller, &*request.operation);
            }
            return reply;
        }
        if !after_mine {
            self.order.enter(caller, &*request.operation, place);
        }
        // Leaves the order when it is dropped.
        reply.in_flight(Flight {
            lane: Arc::clone(self),
            request,
            attempts: 0,
            unknown: false,
            _permit: permit,
        })
    }

    /// Submits what another node forwarded: evaluated here or refused with a hint.
    pub(crate) fn submit_forwarded(
        self: &Arc<Self>,
        ctx: &Context,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
        after_mine: bool,
    ) -> PendingReply {
        // Takes no place in the order: it is never sent again from here.
        self.send(&Request {
            ctx: ctx.clone(),
            operation,
            once,
            place: 0,
            after_mine,
            forwarded: true,
        })
    }

    fn send(self: &Arc<Self>, request: &Request) -> PendingReply {
        if let Some(ended) = request.ctx.ended() {
            return PendingReply::ready(Err(KvError::NotApplied(ended)));
        }
        // Read after the request took its place in the order: see `Flight::again`.
        if !self.held.load(Ordering::SeqCst)
            && let Some(reply) = self.dispatch(request)
        {
            return reply;
        }
        self.hold().park(request.clone(), 0)
    }

    /// Hands the request to whom it belongs now; `None`: nobody is known or reachable.
    fn dispatch(&self, request: &Request) -> Option<PendingReply> {
        match self.target() {
            Target::Local(shard) => {
                let submission = Submission {
                    operation: Arc::clone(&request.operation),
                    order: if request.after_mine {
                        Order::AfterMine
                    } else {
                        Order::Free
                    },
                    once: request.once,
                };
                let reply = shard.submit(&request.ctx, submission);
                (!reply.refused()).then_some(reply)
            }
            Target::Starting => None,
            // One hop only.
            Target::Remote(node) if request.forwarded => Some(no_leader(Some(node))),
            Target::Unknown if request.forwarded => Some(no_leader(None)),
            Target::Remote(node) => self.parts.proxy.submit(node, self.group, request),
            Target::Unknown => None,
        }
    }

    fn target(&self) -> Target {
        let local = self.local.load();
        let Some(local) = local.as_ref() else {
            return self.remote_replica();
        };
        if local.is_leading() {
            return Target::Local(Arc::clone(local));
        }
        let belief = local.leadership();
        if let Some((leader, heard)) = *self.hint.lock()
            && heard == belief
            && leader != self.parts.node
        {
            return Target::Remote(leader);
        }
        match belief {
            Leadership::Leader(_) => Target::Starting,
            Leadership::Follower { leader } if leader.node == self.parts.node => Target::Starting,
            Leadership::Follower { leader } => Target::Remote(leader.node),
            Leadership::Unknown => Target::Unknown,
        }
    }

    fn remote_replica(&self) -> Target {
        let proxy = &self.parts.proxy;
        if let Some((leader, _)) = *self.hint.lock()
            && proxy.reachable(leader)
        {
            return Target::Remote(leader);
        }
        let replicas = self.replicas.load();
        let reachable: Vec<_> = replicas
            .iter()
            .filter(|&&node| node != self.parts.node && proxy.reachable(node))
            .collect();
        match reachable.len() {
            0 => Target::Unknown,
            n => Target::Remote(*reachable[self.turn.load(Ordering::Relaxed) % n]),
        }
    }

    /// The leader as last heard of.
    pub(crate) fn known_leader(&self) -> Option<NodeId> {
        let heard = self.hint.lock().map(|(leader, _)| leader);
        match self.local.load().as_ref().map(|local| local.leadership()) {
            Some(Leadership::Leader(leader) | Leadership::Follower { leader }) => Some(leader.node),
            Some(Leadership::Unknown) | None => heard,
        }
    }

    /// Remembers who leads according to a refusal; `None`: who refused does not know either.
    pub(super) fn heard_of(&self, leader: Option<NodeId>) {
        let belief = self
            .local
            .load()
            .as_ref()
            .map_or(Leadership::Unknown, |local| local.leadership());
        if leader.is_none() {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        *self.hint.lock() = leader
            .filter(|&leader| leader != self.parts.node)
            .map(|leader| (leader, belief));
    }

    /// Whether the retry budget of the node allows one more.
    pub(super) fn may_retry(&self) -> bool {
        let allowed = self.parts.budget.take();
        if allowed {
            self.parts.metrics.retries.inc();
        } else {
            self.parts.metrics.retries_refused.inc();
        }
        allowed
    }

    /// Holds newcomers back; unless a request is parked, they go on when the result is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Held<'_> {
        let parking = self.parking.lock();
        self.held.store(true, Ordering::SeqCst);
        Held {
            lane: self,
            parking,
        }
    }

    fn reachable(&self) -> bool {
        match self.target() {
            Target::Local(_) | Target::Starting => true,
            Target::Remote(node) => self.parts.proxy.reachable(node),
            Target::Unknown => false,
        }
    }

    /// Something happened that may have made the group reachable.
    pub(crate) fn kick(&self) {
        self.news.send_modify(|count| *count += 1);
        let mut parking = self.parking.lock();
        if !parking.queue.is_empty() {
            parking.retry_at = Some(Instant::now());
            parking.failed_tries = 0;
            drop(parking);
            self.parts.attendant.notify_one();
        }
    }

    /// Moves parked requests on if it is time; returns when to come back without an event.
    pub(crate) fn attend(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        {
            let parking = self.parking.lock();
            match parking.retry_at {
                Some(at) if at <= now => {}
                later => return later.filter(|_| !parking.queue.is_empty()),
            }
        }
        loop {
            let (number, parked) = {
                let mut parking = self.parking.lock();
                parking.moving = false;
                let Some(first) = parking.queue.pop_first() else {
                    parking.retry_at = None;
                    parking.failed_tries = 0;
                    parking.release(&self.held);
                    return None;
                };
                parking.moving = true;
                first
            };
            self.parts.metrics.parked.dec();
            if parked.reply.is_closed() {
                continue;
            }
            let next = match parked.request.ctx.ended() {
                Some(ended) => Some(PendingReply::ready(Err(gave_up(ended, None)))),
                None => self.dispatch(&parked.request),
            };
            let Some(next) = next else {
                let mut parking = self.parking.lock();
                self.parts.metrics.parked.inc();
                parking.queue.insert(number, parked);
                parking.moving = false;
                parking.retry_at = None;
                drop(parking);
                return self.plan_retry();
            };
            // A receiver that is gone gave up just now: dropping the reply gives it up too.
            drop(parked.reply.send(next));
        }
    }

    /// Decides when to try again without an event, now that a try has failed.
    fn plan_retry(&self) -> Option<Instant> {
        // Looked at after the requests were parked: an event from here on finds them there.
        let reachable = self.reachable();
        let mut parking = self.parking.lock();
        if parking.retry_at.is_none() && reachable {
            parking.retry_at = Some(Instant::now() + backoff(parking.failed_tries));
            parking.failed_tries = parking.failed_tries.saturating_add(1);
        }
        parking.retry_at
    }

    /// Waits for the next event that may have made the group reachable, or a backoff.
    pub(crate) async fn wait_for_news(&self, news: &mut watch::Receiver<u64>, tries: u8) {
        let pause = if self.reachable() {
            backoff(tries)
        } else {
            Duration::from_secs(1)
        };
        // The lane keeps the sender: only a change or the pause ends this.
        tokio::time::timeout(pause, news.changed()).await.ok();
    }

    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Where a watch goes now: the local shard, or the node to ask.
    pub(crate) fn watch_target(&self) -> Option<Result<Arc<Box<dyn LocalShard>>, NodeId>> {
        match self.target() {
            Target::Local(shard) => Some(Ok(shard)),
            Target::Remote(node) => Some(Err(node)),
            Target::Starting | Target::Unknown => None,
        }
    }

    fn abandon(&self, number: u64) -> bool {
        let mut parking = self.parking.lock();
        let found = parking.queue.remove(&number).is_some();
        if found {
            self.parts.metrics.parked.dec();
        }
        parking.release(&self.held);
        found
    }
}

/// A lane whose newcomers are held back.
pub(super) struct Held<'a> {
    lane: &'a Arc<Lane>,
    parking: MutexGuard<'a, Parking>,
}

impl Held<'_> {
    /// Parks `request` behind those that are parked already.
    pub(super) fn park(mut self, request: Request, attempts: u8) -> PendingReply {
        let lane = Arc::clone(self.lane);
        let (reply, next) = oneshot::channel();
        let parking = &mut *self.parking;
        let number = parking.next;
        parking.next += 1;
        let ctx = request.ctx.clone();
        if attempts > 0 {
            // Refused by who was thought to lead: with a hint soon, else with a growing pause.
            let again = Instant::now() + backoff(attempts - 1);
            parking.retry_at = Some(parking.retry_at.map_or(again, |at| at.min(again)));
        }
        let first = parking.queue.is_empty();
        parking
            .queue
            .insert(number, ParkedRequest { request, reply });
        lane.parts.metrics.parked.inc();
        drop(self);
        if first {
            lane.plan_retry();
            lane.parts.attendant.notify_one();
        }
        PendingReply::parked(Parked {
            lane,
            number,
            next,
            ctx,
            ended: None,
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.parking.release(&self.lane.held);
    }
}

/// A request that waits for a leader; resolves to its reply to come, or to why it gave up.
pub(crate) struct Parked {
    lane: Arc<Lane>,
    number: u64,
    next: oneshot::Receiver<PendingReply>,
    ctx: Context,
    ended: Option<Pin<Box<dyn Future<Output = Ended> + Send>>>,
}

impl Future for Parked {
    type Output = Result<PendingReply, KvError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(next) = Pin::new(&mut this.next).poll(task) {
            return Poll::Ready(next.map_err(|_| KvError::Stopping));
        }
        let this_ended = this.ended.get_or_insert_with(|| {
            let ctx = this.ctx.clone();
            Box::pin(async move { ctx.done().await })
        });
        loop {
            let Poll::Ready(ended) = this_ended.as_mut().poll(task) else {
                return Poll::Pending;
            };
            if this.lane.abandon(this.number) {
                return Poll::Ready(Err(gave_up(ended, this.lane.known_leader())));
            }
            // The attendant has it in hand: it sends what comes next, or puts it back.
            *this_ended = Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ended
            });
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.lane.abandon(self.number);
    }
}

/// What a request hears that waited in vain for a leader.
fn gave_up(ended: Ended, leader: Option<NodeId>) -> KvError {
    match ended {
        Ended::Deadline => KvError::NoLeader { leader },
        Ended::Cancelled => KvError::NotApplied(ended),
    }
}

fn no_leader(leader: Option<NodeId>) -> PendingReply {
    PendingReply::ready(Err(KvError::NoLeader { leader }))
}

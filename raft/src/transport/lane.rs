//! A lane: the way to one peer for one class of traffic, shared by all groups.
//!
//! # Invariants
//! 1. Nothing waits for a slow peer here: [`Lane::send`] takes the request into a bounded queue or
//!    refuses it at once.
//! 2. A peer that is down costs nothing between attempts: no task, no queue, no socket. Who has
//!    something to send starts the next attempt, once the back-off allows it.
//! 3. Every request that was taken ends: answered, or its reply dropped with the session it was in.
//!    A session with requests in flight and nothing heard for [`Limits`]' bound is over.
//! 4. When a session is over, its tasks and sockets are too: all of them run under one token.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Wake, Poll, Waker};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::metrics::LaneMetrics;
use super::wire;
use super::{Haste, Link, PeerError, dial};
use crate::NodeId;

/// Which requests share a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Votes, heartbeats and small appends: never behind anything large.
    Consensus,
    /// Large appends: entries of a follower that catches up, or single large ones.
    Bulk,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Bulk => "bulk",
        }
    }
}

/// What the peer answered, or why it did not.
pub(super) type Answer = Result<wire::response::Body, Arc<str>>;

/// One request and who waits for its answer.
pub(super) struct Outgoing {
    pub(super) request: wire::Request,
    pub(super) bytes: usize,
    /// May wait a little for others, to go in one message with them, unless this says otherwise.
    pub(super) patient: Option<Haste>,
    pub(super) reply: oneshot::Sender<Answer>,
    /// The peer's share of unacknowledged bytes, given back with the answer.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// What the lanes of one peer share.
pub(super) struct Remote {
    pub(super) node: NodeId,
    pub(super) address: Mutex<Address>,
    /// Ends with the consensus lane's session: what the peer has not answered there, it will not
    /// answer elsewhere.
    fate: Mutex<CancellationToken>,
    /// Ends with the pool, or when the node has left the cluster.
    pub(super) gone: CancellationToken,
}

/// Where a peer is dialled.
#[derive(Clone, Debug, Default)]
pub(super) struct Address {
    pub(super) current: Option<String>,
    /// What the membership said last. Only a change of it overrules what the peer itself said.
    pub(super) member: Option<String>,
}

impl Remote {
    pub(super) fn new(node: NodeId, gone: CancellationToken) -> Self {
        Self {
            node,
            address: Mutex::default(),
            fate: Mutex::new(CancellationToken::new()),
            gone,
        }
    }

    fn unreachable(&self, why: Arc<str>) -> PeerError {
        PeerError::Unreachable {
            node: self.node,
            why,
        }
    }
}

enum State {
    /// Nothing to say so far, or the last session ended well.
    Idle,
    /// A session's task runs: connecting or connected.
    Open {
        waiting: mpsc::Sender<Outgoing>,
        queue: Arc<Queue>,
    },
    /// The last attempt failed; the next may begin at `until`.
    Down { until: Instant, why: Arc<str> },
}

struct Road {
    state: State,
    /// Failed attempts since the last success.
    attempts: u32,
    dialled: Option<Instant>,
    /// The failure that was logged last, so that a peer that stays away is logged once.
    logged: Option<Arc<str>>,
}

pub(super) struct Lane {
    class: Class,
    link: Arc<Link>,
    remote: Arc<Remote>,
    metrics: LaneMetrics,
    road: Mutex<Road>,
}

/// Why a session ended.
enum End {
    /// The pool is closing, or the node has left the cluster.
    Stopped,
    /// The peer's other lane failed, so this one is not worth waiting for.
    OtherLane,
    /// The peer sat on our requests.
    Stalled,
    Failed(Arc<str>),
}

impl Lane {
    pub(super) fn new(class: Class, link: Arc<Link>, remote: Arc<Remote>) -> Self {
        let metrics = link.metrics.lane(remote.node, class.name());
        Self {
            class,
            link,
            remote,
            metrics,
            road: Mutex::new(Road {
                state: State::Idle,
                attempts: 0,
                dialled: None,
                logged: None,
            }),
        }
    }

    /// How long a session with requests in flight may stay without a word from the peer.
    pub(super) fn stall(&self) -> Duration {
        match self.class {
            Class::Consensus => self.link.limits.stall,
            Class::Bulk => self.link.limits.bulk_stall,
        }
    }

    /// Queues `item`, starting a session if there is none. Never waits.
    ///
    /// `urgent` shortens the back-off after a failure: for votes, which are few and worth a try.
    ///
    /// # Errors
    /// `Full`: dropped, the peer reads too slowly. `Unreachable`: there is no connection, and it is
    /// too early for another attempt.
    pub(super) fn send(self: &Arc<Self>, item: Outgoing, urgent: bool) -> Result<(), PeerError> {
        let mut road = self.road.lock();
        if let State::Down { until, why } = &road.state {
            let now = Instant::now();
            let soon = road
                .dialled
                .is_some_and(|at| urgent && now >= at + self.link.limits.backoff_max / 4);
            if now < *until && !soon {
                self.metrics.closed.inc();
                return Err(self.remote.unreachable(Arc::clone(why)));
            }
            road.state = State::Idle;
        }
        if matches!(road.state, State::Idle) {
            if self.remote.gone.is_cancelled() {
                return Err(PeerError::Closed);
            }
            let (waiting, taken) = mpsc::channel(self.link.limits.queue);
            let queue = Arc::new(Queue::new(taken));
            road.state = State::Open {
                waiting,
                queue: Arc::clone(&queue),
            };
            road.dialled = Some(Instant::now());
            self.metrics.dials.inc();
            self.link.tasks.spawn(Arc::clone(self).run(queue));
        }
        let State::Open { waiting, .. } = &road.state else {
            unreachable!("the lane was opened above");
        };
        match waiting.try_send(item) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.metrics.dropped_full.inc();
                Err(PeerError::Full {
                    node: self.remote.node,
                })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.metrics.closed.inc();
                Err(self.remote.unreachable("the connection just closed".into()))
            }
        }
    }

    /// Sends what waits for company.
    pub(super) fn hurry(&self) {
        let road = self.road.lock();
        if let State::Open { queue, .. } = &road.state {
            queue.hurry();
        }
    }

    /// One session, from dialling to its end, whatever that is.
    async fn run(self: Arc<Self>, queue: Arc<Queue>) {
        let fate = {
            let mut fate = self.remote.fate.lock();
            if fate.is_cancelled() {
                *fate = CancellationToken::new();
            }
            fate.clone()
        };
        // Every task of the connection runs under this token (invariant 4).
        let alive = CancellationToken::new();
        let _ends = alive.clone().drop_guard();

        let end = tokio::select! {
            biased;
            () = self.remote.gone.cancelled() => End::Stopped,
            () = fate.cancelled(), if self.class == Class::Bulk => End::OtherLane,
            end = self.session(&queue, alive) => end,
        };

        self.metrics.connected.set(0);
        let why: Arc<str> = match end {
            End::Stopped => {
                queue.close(&"connections are closed".into());
                return;
            }
            End::OtherLane => "its other connection failed".into(),
            End::Stalled => {
                self.metrics.stalls.inc();
                "it answered nothing for too long".into()
            }
            End::Failed(why) => why,
        };
        self.metrics.failures.inc();
        self.log_failure(&why);
        // First the state, then the queue: a request that comes in between must not be lost in a
        // queue that nobody reads.
        {
            let mut road = self.road.lock();
            let backoff = self.link.limits.backoff(road.attempts);
            road.attempts = road.attempts.saturating_add(1);
            road.state = State::Down {
                until: Instant::now() + backoff,
                why: Arc::clone(&why),
            };
        }
        queue.close(&why);
        if self.class == Class::Consensus {
            fate.cancel();
        }
    }

    fn log_failure(&self, why: &Arc<str>) {
        let (peer, class) = (self.remote.node, self.class.name());
        let mut road = self.road.lock();
        if road.logged.as_ref() == Some(why) {
            tracing::debug!(%peer, class, "{why}");
        } else {
            tracing::warn!(%peer, class, "cannot talk to the peer: {why}");
            road.logged = Some(Arc::clone(why));
        }
    }

    fn connected(&self) {
        let (peer, class) = (self.remote.node, self.class.name());
        self.metrics.connected.set(1);
        let mut road = self.road.lock();
        road.attempts = 0;
        if road.logged.take().is_some() {
            tracing::info!(%peer, class, "the peer is back");
        }
    }

    async fn session(&self, queue: &Arc<Queue>, alive: CancellationToken) -> End {
        let limits = &self.link.limits;
        let failed = |error: PeerError| End::Failed(error.reason());
        let channel = match dial::connect(&self.link, &self.remote, Some(alive)).await {
            Ok(channel) => channel,
            Err(error) => return failed(error),
        };
        let mut client = dial::client(channel, limits);
        let outbound = Outbound {
            hello: Some(self.link.hello(self.remote.node)),
            queue: Arc::clone(queue),
            frame_bytes: limits.frame_bytes,
            gather: limits.gather,
            alarm: Box::pin(sleep_until(Instant::now())),
            metrics: self.metrics.clone(),
        };
        let opened = timeout(limits.handshake, async {
            let mut inbound = client.exchange(outbound).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, tonic::Status>((inbound, first))
        });
        let (mut inbound, first) = match opened.await {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return End::Failed(dial::refusal(&status)),
            Err(_) => return End::Failed("it accepted the connection and says nothing".into()),
        };
        if let Err(why) = self
            .link
            .expect_hello(&self.remote, first.and_then(|f| f.hello))
        {
            return End::Failed(why.into());
        }
        self.connected();

        // The peer answers within the stall bound, if only to say that it could not: so a little
        // more than that without a word means that it is gone.
        let silence = self.stall() + self.stall() / 4;
        let mut tick = tokio::time::interval(self.stall() / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        self.metrics.answers.inc();
                        queue.answer(frame.responses);
                    }
                    Ok(None) => return End::Failed("it closed the stream".into()),
                    Err(status) => return End::Failed(dial::refusal(&status)),
                },
                _ = tick.tick() => {
                    if queue.unanswered_for() > silence {
                        return End::Stalled;
                    }
                }
            }
        }
    }
}

/// What a session has taken: waiting to be sent, and sent.
struct Queue {
    inner: Mutex<Option<Taken>>,
}

struct Taken {
    waiting: mpsc::Receiver<Outgoing>,
    /// Taken from `waiting` for the next frame.
    gathered: Vec<Outgoing>,
    gathered_bytes: usize,
    /// When `gathered` goes at the latest. At once with the first that is not patient.
    go_at: Option<Instant>,
    /// Of the connection, while it waits for `go_at`.
    waker: Option<Waker>,
    in_flight: HashMap<u64, InFlight>,
    next_id: u64,
    /// Since when the peer owes us a word: the first request after its last answer. Callers that
    /// give up do not change that, else short-lived ones would hide a dead peer for ever.
    owed_since: Option<Instant>,
}

struct InFlight {
    reply: oneshot::Sender<Answer>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Queue {
    fn new(waiting: mpsc::Receiver<Outgoing>) -> Self {
        Self {
            inner: Mutex::new(Some(Taken {
                waiting,
                gathered: Vec::new(),
                gathered_bytes: 0,
                go_at: None,
                waker: None,
                in_flight: HashMap::new(),
                next_id: 1,
                owed_since: None,
            })),
        }
    }

    /// Tells everyone who waits why no answer comes.
    fn close(&self, why: &Arc<str>) {
        let Some(mut taken) = self.inner.lock().take() else {
            return;
        };
        taken.waiting.close();
        let waiting = std::iter::from_fn(|| taken.waiting.try_recv().ok()).map(|item| item.reply);
        let gathered = taken.gathered.into_iter().map(|item| item.reply);
        let sent = taken.in_flight.into_values().map(|sent| sent.reply);
        for reply in gathered.chain(waiting).chain(sent) {
            // Who has given up does not want to know.
            let _ = reply.send(Err(Arc::clone(why)));
        }
    }

    fn hurry(&self) {
        let mut inner = self.inner.lock();
        if let Some(taken) = inner.as_mut()
            && let Some(waker) = taken.waker.take()
        {
            taken.go_at = Some(Instant::now());
            waker.wake();
        }
    }

    fn answer(&self, responses: Vec<wire::Response>) {
        let mut inner = self.inner.lock();
        let Some(taken) = inner.as_mut() else { return };
        for response in responses {
            // A missing one has been given up by its caller.
            if let Some(waiter) = taken.in_flight.remove(&response.id)
                && let Some(body) = response.body
            {
                let _ = waiter.reply.send(Ok(body));
            }
        }
        taken.owed_since = (!taken.in_flight.is_empty()).then(Instant::now);
    }

    /// How long the peer has owed us an answer. Forgets the requests whose callers gave up.
    fn unanswered_for(&self) -> Duration {
        let mut inner = self.inner.lock();
        let Some(taken) = inner.as_mut() else {
            return Duration::ZERO;
        };
        taken
            .in_flight
            .retain(|_, waiter| !waiter.reply.is_closed());
        taken
            .owed_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Everything that waits, a frame at a time, pulled by the connection when it can send.
struct Outbound {
    hello: Option<wire::Hello>,
    queue: Arc<Queue>,
    frame_bytes: usize,
    /// How long patient requests wait for others.
    gather: Duration,
    alarm: Pin<Box<Sleep>>,
    metrics: LaneMetrics,
}

/// Requests in one frame, at most: so that the other side answers the first before it has read the
/// last.
const FRAME_REQUESTS: usize = 1024;

impl Stream for Outbound {
    type Item = wire::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Wake<'_>) -> Poll<Option<wire::Frame>> {
        let this = &mut *self;
        if let Some(hello) = this.hello.take() {
            return Poll::Ready(Some(wire::Frame {
                hello: Some(hello),
                ..wire::Frame::default()
            }));
        }
        let mut inner = this.queue.inner.lock();
        let Some(taken) = inner.as_mut() else {
            return Poll::Ready(None);
        };
        if !taken.gather(cx, this.frame_bytes, this.gather) && taken.gathered.is_empty() {
            return Poll::Ready(None);
        }
        let Some(go_at) = taken.go_at else {
            return Poll::Pending;
        };
        if go_at > Instant::now() {
            if this.alarm.deadline() != go_at {
                this.alarm.as_mut().reset(go_at);
            }
            if this.alarm.as_mut().poll(cx).is_pending() {
                taken.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let requests = taken.send();
        drop(inner);
        this.metrics.frames.inc();
        this.metrics.requests.inc_by(requests.len() as u64);
        Poll::Ready(Some(wire::Frame {
            requests,
            ..wire::Frame::default()
        }))
    }
}

impl Taken {
    /// Takes what waits, as far as one frame holds it (the last may reach over its end). `false`
    /// when nothing will ever come again.
    fn gather(&mut self, cx: &mut Wake<'_>, frame_bytes: usize, patience: Duration) -> bool {
        while self.gathered.len() < FRAME_REQUESTS && self.gathered_bytes < frame_bytes {
            match self.waiting.poll_recv(cx) {
                Poll::Ready(Some(item)) if item.reply.is_closed() => {}
                Poll::Ready(Some(item)) => {
                    let now = Instant::now();
                    // Looked at here, under the lock that `hurry` takes after setting it.
                    let patient = item.patient.as_ref().is_some_and(|haste| !haste.is_on());
                    let go_at = if patient { now + patience } else { now };
                    self.go_at = Some(self.go_at.map_or(go_at, |at| at.min(go_at)));
                    self.gathered_bytes += item.bytes;
                    self.gathered.push(item);
                }
                Poll::Ready(None) => return false,
                Poll::Pending => return true,
            }
        }
        self.go_at = Some(Instant::now());
        true
    }

    /// Puts what was gathered in flight.
    fn send(&mut self) -> Vec<wire::Request> {
        self.go_at = None;
        self.waker = None;
        self.gathered_bytes = 0;
        self.owed_since.get_or_insert_with(Instant::now);
        let (in_flight, next_id) = (&mut self.in_flight, &mut self.next_id);
        self.gathered
            .drain(..)
            .map(|mut item| {
                item.request.id = *next_id;
                *next_id += 1;
                in_flight.insert(
                    item.request.id,
                    InFlight {
                        reply: item.reply,
                        _permit: item.permit,
                    },
                );
                item.request
            })
            .collect()
    }
}

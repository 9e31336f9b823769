//! The leader proxy: requests for leaders on other nodes.
//!
//! One long-lived stream per peer carries every forwarded request; what waits while a message is on
//! its way goes into the next one. A request is one entry in a table, found by its number and
//! removed the moment its reply comes, its context ends or its reply is dropped.
//!
//! Each peer has a circuit breaker. It is open while the peer's stream is down: the stream's task
//! probes with backoff and closes it once the peer has answered a ping. It opens, too, when requests
//! time out one after the other and none is answered, though the peer answers pings (its disk
//! hangs, say): then one request at a time is let through to find out, the others wait or end as
//! not applied.
//!
//! # Invariants
//! 1. A request that was not handed to the transport is *not applied*; a write that was is unknown
//!    until its reply comes.
//! 2. Requests to one peer are handed over in the order of their submission.
//! 3. One hop: what came from another node is evaluated here or refused.
//! 4. A peer that says nothing costs its requests their own deadline at most, and this node one
//!    table entry each, bounded in number and bytes.

mod failure;
mod link;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use leadline_raft::{Context, Ended, GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

pub(crate) use link::Links;
pub(crate) use serve::ForwardService;

use crate::coordinator::{KeyWatch, PendingReply, Reply, Request};
use crate::executor::Once;
use crate::metrics::{CoordinatorMetrics, PeerLabel};
use crate::{KvError, Operation, wire};

/// The largest message between nodes.
pub(crate) const MOST_MESSAGE_BYTES: usize = 256 << 20;
/// The largest request, watch or reply that is carried (255 MiB): it goes alone, and what is left
/// is for its frame and for cancels.
const MOST_CARRIED_BYTES: usize = MOST_MESSAGE_BYTES - MESSAGE_BYTES;

/// Requests that may wait for one peer's stream, and watches, with their bytes.
const MOST_WAITING: usize = 16 * 1024;
const MOST_WAITING_BYTES: usize = 64 << 20;
/// Requests that may be at one peer without an answer.
const MOST_HANDED: usize = 64 * 1024;
/// Watches at one peer, or on their way there. They last as long as their callers block, so they
/// take no place of a request.
const MOST_WATCHES: usize = 16 * 1024;
/// After this many timeouts without an answer between them the breaker opens.
const TIMEOUTS: u32 = 16;
/// A message takes this many requests or replies and bytes, or a larger one alone.
const MESSAGE_ITEMS: usize = 1024;
const MESSAGE_BYTES: usize = 1 << 20;

/// What a key of a watch takes beside its own bytes.
const KEY_FRAME_BYTES: usize = 8;

const BROKEN: &str = "the connection to the leader's node broke";
const DEADLINE: &str = "the deadline passed while the leader's node had the write";
const GONE: &str = "the caller left while the leader's node had the write";
const REPLY_TOO_LARGE: &str = "the reply is over the limit of 255 MiB between nodes: \
     ask for less at a time, or ask the leader's node";

/// How a stream to a peer is opened.
pub(crate) trait PeerTransport: Send + Sync + 'static {
    /// Opens the stream to `node`: messages of `outgoing` go there, replies come back.
    fn exchange(
        &self,
        ctx: Context,
        node: NodeId,
        outgoing: mpsc::Receiver<wire::ForwardRequests>,
    ) -> BoxFuture<'static, Result<ReplyStream, String>>;
}

/// Replies of a peer; an error ends it.
pub(crate) type ReplyStream = BoxStream<'static, Result<wire::ForwardReplies, String>>;

/// Requests for leaders on other nodes.
pub(crate) struct LeaderProxy {
    table: Mutex<Table>,
    metrics: CoordinatorMetrics,
}

#[derive(Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Entry>,
    peers: HashMap<NodeId, Peer>,
}

/// One request or watch, at a peer or on its way there.
struct Entry {
    node: NodeId,
    group: GroupId,
    /// What to send; taken when it is handed over.
    message: Option<Message>,
    /// Bytes of the message, at least.
    size: usize,
    handed: bool,
    read: bool,
    body: Body,
}

enum Message {
    Operation {
        ctx: Context,
        operation: Arc<dyn Operation>,
        once: Option<Once>,
        after_mine: bool,
    },
    Watch(Vec<Bytes>),
}

enum Body {
    Operation(oneshot::Sender<Reply>),
    Watch {
        placed: Option<oneshot::Sender<Result<(), KvError>>>,
        wake: Option<oneshot::Sender<()>>,
    },
}

/// What waits for one peer's stream, and what is there.
struct Peer {
    requests: Queue,
    /// Apart, because one command may bring thousands. The next message takes from here.
    watches: Queue,
    watches_next: bool,
    handed: usize,
    /// Watches that wait or were handed over.
    watching: usize,
    cancels: Vec<u64>,
    /// The stream is up.
    up: bool,
    /// Requests that timed out since the last answer.
    timeouts: u32,
    /// One request may pass the open breaker.
    probe: bool,
    work: Arc<Notify>,
}

/// Numbers of entries in the order of their submission; an entry may be gone meanwhile.
#[derive(Default)]
struct Queue {
    numbers: VecDeque<u64>,
    /// Of the entries that are not gone.
    bytes: usize,
}

impl Queue {
    fn push(&mut self, number: u64, size: usize) {
        self.numbers.push_back(number);
        self.bytes += size;
    }

    fn is_full(&self, size: usize) -> bool {
        let bytes = self.bytes.saturating_add(size);
        self.numbers.len() >= MOST_WAITING
            || (!self.numbers.is_empty() && bytes > MOST_WAITING_BYTES)
    }

    /// An entry of `size` bytes was given up.
    fn forget(&mut self, size: usize) {
        self.bytes = self.bytes.saturating_sub(size);
    }

    /// Takes what the next message carries.
    fn take(&mut self, entries: &mut HashMap<u64, Entry>) -> Vec<(u64, GroupId, Message)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < MESSAGE_ITEMS
            && let Some(&number) = self.numbers.front()
        {
            // Absent: given up while it waited, and never sent.
            if let Some(entry) = entries.get_mut(&number) {
                if !taken.is_empty() && bytes + entry.size > MESSAGE_BYTES {
                    break;
                }
                bytes += entry.size;
                entry.handed = true;
                taken.extend(entry.message.take().map(|it| (number, entry.group, it)));
            }
            self.numbers.pop_front();
        }
        self.forget(bytes);
        taken
    }
}

impl Peer {
    fn new() -> Self {
        Self {
            requests: Queue::default(),
            watches: Queue::default(),
            watches_next: false,
            handed: 0,
            watching: 0,
            cancels: Vec::new(),
            up: false,
            timeouts: 0,
            probe: false,
            work: Arc::new(Notify::new()),
        }
    }

    /// What the next message carries: requests and watches in turns.
    fn take(&mut self, entries: &mut HashMap<u64, Entry>) -> Vec<(u64, GroupId, Message)> {
        self.watches_next = !self.watches_next;
        if self.watches_next {
            let watches = self.watches.take(entries);
            if !watches.is_empty() {
                return watches;
            }
        }
        let requests = self.requests.take(entries);
        self.handed += requests.len();
        if requests.is_empty() {
            return self.watches.take(entries);
        }
        requests
    }

    /// The breaker is closed, or lets one request through.
    fn passes(&self) -> bool {
        self.up && (self.timeouts < TIMEOUTS || self.probe)
    }
}

impl LeaderProxy {
    pub(crate) fn new(metrics: CoordinatorMetrics) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            metrics,
        })
    }

    /// Whether the circuit breaker of `node` is closed.
    pub(crate) fn reachable(&self, node: NodeId) -> bool {
        self.table.lock().peers.get(&node).is_some_and(Peer::passes)
    }

    /// Hands `request` to the stream of `node`; `None`: the breaker is open.
    pub(crate) fn submit(
        self: &Arc<Self>,
        node: NodeId,
        group: GroupId,
        request: &Request,
    ) -> Option<PendingReply> {
        let (reply, received) = oneshot::channel();
        let size = request.operation.size();
        let read = request.read();
        if size > MOST_CARRIED_BYTES {
            return Some(PendingReply::ready(Err(too_large(size))));
        }
        let number = {
            let mut table = self.table.lock();
            let table = &mut *table;
            let peer = table.peers.get_mut(&node).filter(|peer| peer.passes())?;
            peer.probe = false;
            if peer.requests.is_full(size) || peer.handed >= MOST_HANDED {
                self.metrics.overloaded.inc();
                return Some(PendingReply::ready(Err(KvError::Overloaded {
                    what: "too many requests wait for the leader's node",
                    retry_after_ms: 50,
                })));
            }
            table.next += 1;
            let number = table.next;
            let message = Message::Operation {
                ctx: request.ctx.clone(),
                operation: Arc::clone(&request.operation),
                once: request.once,
                after_mine: request.after_mine,
            };
            table.entries.insert(
                number,
                Entry {
                    node,
                    group,
                    message: Some(message),
                    size,
                    handed: false,
                    read,
                    body: Body::Operation(reply),
                },
            );
            peer.requests.push(number, size);
            if peer.requests.numbers.len() == 1 {
                peer.work.notify_one();
            }
            number
        };
        self.metrics.forwards.inc();
        self.metrics.forwards_pending.inc();
        Some(PendingReply::forwarded(Forwarded {
            proxy: Arc::clone(self),
            number,
            received,
            ctx: request.ctx.clone(),
            read,
            ended: None,
        }))
    }

    /// Registers interest in `keys` with the leader of `group` on `node`.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        ctx: &Context,
        node: NodeId,
        group: GroupId,
        keys: Vec<Bytes>,
    ) -> Result<KeyWatch, KvError> {
        let (wake, watch) = KeyWatch::new();
        let (placed, confirmation) = oneshot::channel();
        let size = keys.iter().map(|key| key.len() + KEY_FRAME_BYTES).sum();
        if size > MOST_CARRIED_BYTES {
            return Err(too_large(size));
        }
        let registration = {
            let mut table = self.table.lock();
            let table = &mut *table;
            let Some(peer) = table.peers.get_mut(&node).filter(|peer| peer.passes()) else {
                return Err(KvError::NoLeader { leader: None });
            };
            if peer.watches.is_full(size) || peer.watching >= MOST_WATCHES {
                self.metrics.overloaded.inc();
                return Err(KvError::Overloaded {
                    what: "too many keys are watched at the leader's node",
                    retry_after_ms: 50,
                });
            }
            table.next += 1;
            let number = table.next;
            table.entries.insert(
                number,
                Entry {
                    node,
                    group,
                    message: Some(Message::Watch(keys)),
                    size,
                    handed: false,
                    read: true,
                    body: Body::Watch {
                        placed: Some(placed),
                        wake: Some(wake),
                    },
                },
            );
            peer.watching += 1;
            peer.watches.push(number, size);
            if peer.watches.numbers.len() == 1 {
                peer.work.notify_one();
            }
            Registration {
                proxy: Arc::clone(self),
                number,
            }
        };
        // Dropping the registration on any way out takes it back there too.
        match ctx.run(confirmation).await {
            Err(ended) => Err(KvError::NotApplied(ended)),
            Ok(Err(_)) => Err(KvError::NoLeader { leader: None }),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Ok(Ok(()))) => Ok(watch.registered(registration)),
        }
    }

    /// The next message for `node`, if something waits for it.
    fn next_message(&self, node: NodeId) -> Option<wire::ForwardRequests> {
        let (taken, cancels) = {
            let mut table = self.table.lock();
            let table = &mut *table;
            let peer = table.peers.get_mut(&node)?;
            let taken = peer.take(&mut table.entries);
            (taken, std::mem::take(&mut peer.cancels))
        };
        if taken.is_empty() && cancels.is_empty() {
            return None;
        }
        // Encoded outside the lock.
        let mut buffer = BytesMut::new();
        let requests = taken
            .into_iter()
            .map(|(number, group, message)| message.encode(number, group, &mut buffer))
            .collect();
        Some(wire::ForwardRequests {
            requests,
            cancels,
            ping: 0,
        })
    }

    /// Delivers what a peer answered; says whether that closed its breaker.
    fn deliver(&self, node: NodeId, replies: Vec<wire::ForwardReply>) -> bool {
        let mut settled = Vec::with_capacity(replies.len());
        let mut closed = false;
        {
            let mut table = self.table.lock();
            if !replies.is_empty()
                && let Some(peer) = table.peers.get_mut(&node)
            {
                closed = peer.timeouts >= TIMEOUTS;
                peer.timeouts = 0;
            }
            for reply in replies {
                let number = reply.number;
                let Some(outcome) = reply.outcome else {
                    continue;
                };
                if let wire::forward_reply::Outcome::Watching(_) = outcome {
                    if let Some(Entry {
                        body: Body::Watch { placed, .. },
                        ..
                    }) = table.entries.get_mut(&number)
                        && let Some(placed) = placed.take()
                    {
                        settled.push(Settled::Placed(placed, Ok(())));
                    }
                    continue;
                }
                // Absent: its caller has given it up.
                let Some(entry) = table.remove(number) else {
                    continue;
                };
                debug_assert_eq!(entry.node, node);
                settled.push(match entry.body {
                    Body::Operation(reply) => {
                        Settled::Reply(reply, failure::reply_of(outcome, entry.read))
                    }
                    Body::Watch { placed, wake } => match placed {
                        Some(placed) => Settled::Placed(
                            placed,
                            Err(failure::reply_of(outcome, entry.read)
                                .err()
                                .unwrap_or(KvError::NoLeader { leader: None })),
                        ),
                        None => Settled::Wake(wake),
                    },
                });
            }
        }
        // Woken outside the lock; a receiver that is gone gave up just now.
        for settled in settled {
            match settled {
                Settled::Reply(sender, reply) => drop(sender.send(reply)),
                Settled::Placed(sender, placed) => drop(sender.send(placed)),
                Settled::Wake(wake) => {
                    if let Some(wake) = wake {
                        wake.send(()).ok();
                    }
                }
            }
        }
        if closed {
            self.show_breaker(node, true);
        }
        closed
    }

    /// Lets one request pass the breaker of `node`, if requests there time out; says whether.
    fn offer_probe(&self, node: NodeId) -> bool {
        let mut table = self.table.lock();
        let Some(peer) = table.peers.get_mut(&node) else {
            return false;
        };
        peer.probe = peer.timeouts >= TIMEOUTS;
        peer.probe
    }

    fn show_breaker(&self, node: NodeId, closed: bool) {
        let label = PeerLabel { node: node.0 };
        let gauge = self.metrics.peer_up.get_or_create(&label);
        gauge.set(i64::from(closed));
    }

    /// Closes the breaker of `node`.
    fn set_up(&self, node: NodeId) -> Arc<Notify> {
        self.show_breaker(node, true);
        let mut table = self.table.lock();
        let peer = table.peers.entry(node).or_insert_with(Peer::new);
        peer.up = true;
        peer.timeouts = 0;
        Arc::clone(&peer.work)
    }

    /// Opens the breaker of `node` and settles what was at it (invariant 1).
    fn set_down(&self, node: NodeId) {
        let label = PeerLabel { node: node.0 };
        self.show_breaker(node, false);
        let entries: Vec<Entry> = {
            let mut table = self.table.lock();
            let table = &mut *table;
            if let Some(peer) = table.peers.get_mut(&node)
                && std::mem::replace(&mut peer.up, false)
            {
                self.metrics.peer_broken.get_or_create(&label).inc();
                peer.requests = Queue::default();
                peer.watches = Queue::default();
                peer.handed = 0;
                peer.watching = 0;
                peer.cancels.clear();
            }
            let numbers: Vec<u64> = table
                .entries
                .iter()
                .filter(|(_, entry)| entry.node == node)
                .map(|(&number, _)| number)
                .collect();
            let mut numbers = numbers;
            numbers.sort_unstable();
            numbers
                .into_iter()
                .filter_map(|number| table.entries.remove(&number))
                .collect()
        };
        for entry in entries {
            match entry.body {
                Body::Operation(reply) => {
                    let error = if entry.handed && !entry.read {
                        KvError::Unknown(BROKEN)
                    } else {
                        KvError::NoLeader { leader: None }
                    };
                    drop(reply.send(Err(error)));
                }
                // Dropping its senders refuses or wakes the watch, which registers again.
                Body::Watch { .. } => {}
            }
        }
    }

    /// Takes back what its caller gave up, because its time was over or for reasons of its own;
    /// says whether it was handed over, `None` if it is settled.
    fn abandon(&self, number: u64, timed_out: bool) -> Option<bool> {
        let mut opened = None;
        let handed = {
            let mut table = self.table.lock();
            let entry = table.remove(number)?;
            if entry.handed
                && let Some(peer) = table.peers.get_mut(&entry.node)
                && peer.up
            {
                peer.cancels.push(number);
                peer.work.notify_one();
                if timed_out {
                    peer.timeouts = peer.timeouts.saturating_add(1);
                    opened = (peer.timeouts == TIMEOUTS).then_some(entry.node);
                }
            }
            entry.handed
        };
        if let Some(node) = opened {
            tracing::warn!(peer = %node, "requests time out one after the other: breaker open");
            self.show_breaker(node, false);
        }
        Some(handed)
    }
}

enum Settled {
    Reply(oneshot::Sender<Reply>, Reply),
    Placed(oneshot::Sender<Result<(), KvError>>, Result<(), KvError>),
    Wake(Option<oneshot::Sender<()>>),
}

impl Table {
    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        if let Some(peer) = self.peers.get_mut(&entry.node) {
            match (&entry.body, entry.handed) {
                (Body::Operation(_), true) => peer.handed = peer.handed.saturating_sub(1),
                (Body::Operation(_), false) => peer.requests.forget(entry.size),
                (Body::Watch { .. }, handed) => {
                    peer.watching = peer.watching.saturating_sub(1);
                    if !handed {
                        peer.watches.forget(entry.size);
                    }
                }
            }
        }
        Some(entry)
    }
}

impl Message {
    fn encode(self, number: u64, group: GroupId, buffer: &mut BytesMut) -> wire::ForwardRequest {
        let request = wire::ForwardRequest {
            number,
            group: group.0,
            ..wire::ForwardRequest::default()
        };
        match self {
            Self::Operation {
                ctx,
                operation,
                once,
                after_mine,
            } => {
                operation.encode(buffer);
                wire::ForwardRequest {
                    remaining_us: u64::try_from(ctx.remaining().as_micros()).unwrap_or(u64::MAX),
                    door: u32::from(operation.door() as u8),
                    operation: buffer.split().freeze(),
                    id: once.map(wire::RequestId::from),
                    after_mine,
                    ..request
                }
            }
            Self::Watch(watch) => wire::ForwardRequest { watch, ..request },
        }
    }
}

fn too_large(size: usize) -> KvError {
    KvError::Invalid(format!(
        "a request of {size} bytes is over the limit of {MOST_CARRIED_BYTES} between nodes: \
         send less at a time, or ask the leader's node"
    ))
}

/// A watch at another node; dropping it takes it back.
struct Registration {
    proxy: Arc<LeaderProxy>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.proxy.abandon(self.number, false);
    }
}

/// The reply to come of a forwarded request; dropping it cancels the request.
pub(crate) struct Forwarded {
    proxy: Arc<LeaderProxy>,
    number: u64,
    received: oneshot::Receiver<Reply>,
    ctx: Context,
    read: bool,
    /// Made only once the reply has to be waited for.
    ended: Option<Pin<Box<dyn Future<Output = Ended> + Send>>>,
}

impl Future for Forwarded {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Reply> {
        let this = &mut *self;
        if let Poll::Ready(received) = Pin::new(&mut this.received).poll(task) {
            return Poll::Ready(received.unwrap_or(Err(KvError::Unknown(BROKEN))));
        }
        let ended = this.ended.get_or_insert_with(|| {
            let ctx = this.ctx.clone();
            Box::pin(async move { ctx.done().await })
        });
        let Poll::Ready(ended) = ended.as_mut().poll(task) else {
            return Poll::Pending;
        };
        match this.proxy.abandon(this.number, ended == Ended::Deadline) {
            // Settled at the same moment: its reply is on the way through the channel.
            None => match this.received.try_recv() {
                Ok(reply) => Poll::Ready(reply),
                Err(_) => Poll::Ready(Err(give_up(ended, !this.read))),
            },
            Some(handed) => Poll::Ready(Err(give_up(ended, handed && !this.read))),
        }
    }
}

/// Invariant 1.
fn give_up(ended: Ended, may_be_applied: bool) -> KvError {
    match ended {
        _ if !may_be_applied => KvError::NotApplied(ended),
        Ended::Deadline => KvError::Unknown(DEADLINE),
        Ended::Cancelled => KvError::Unknown(GONE),
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.proxy.metrics.forwards_pending.dec();
        self.proxy.abandon(self.number, false);
    }
}

impl From<Once> for wire::RequestId {
    fn from(once: Once) -> Self {
        let session = once.id.session;
        Self {
            session_high: (session >> 64) as u64,
            session_low: session as u64,
            number: once.id.number,
            lowest_open: once.lowest_open,
        }
    }
}

impl From<wire::RequestId> for Once {
    fn from(id: wire::RequestId) -> Self {
        Self {
            id: crate::RequestId {
                session: u128::from(id.session_high) << 64 | u128::from(id.session_low),
                number: id.number,
            },
            lowest_open: id.lowest_open,
        }
    }
}

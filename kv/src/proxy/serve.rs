//! The other side of the leader proxy: evaluates what peers forward, if this node leads.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use leadline_raft::{Context, GroupId};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status, Streaming};

use super::failure::{outcome_of, reply_too_large};
use super::{MESSAGE_BYTES, MESSAGE_ITEMS, MOST_CARRIED_BYTES, MOST_HANDED, MOST_WATCHES};
use crate::coordinator::{KeyWatch, PendingReply, ShardedCoordinator};
use crate::executor::Once;
use crate::wire::forward_reply::Outcome;
use crate::wire::forward_server::Forward;
use crate::wire::{ForwardReplies, ForwardReply, ForwardRequest, ForwardRequests};
use crate::{Door, KvError, OperationCodec};

/// Requests and watches of one peer that may be here. More are refused while the stream is read on:
/// it brings pings and cancels too. Twice what a peer may have: what it took back counts until it
/// is gone here.
const MOST_REQUESTS: usize = 2 * MOST_HANDED;
const MOST_WATCHES_HERE: usize = 2 * MOST_WATCHES;
/// A watch has no deadline: it lives as long as its stream and is taken back by a cancel.
const WATCH: Duration = Duration::from_secs(u32::MAX as u64);

/// Serves [`super::LeaderProxy`]s of other nodes.
#[derive(Clone)]
pub(crate) struct ForwardService {
    parts: Arc<Parts>,
}

struct Parts {
    coordinator: Arc<ShardedCoordinator>,
    codecs: HashMap<u32, Arc<dyn OperationCodec>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl ForwardService {
    pub(crate) fn new(
        coordinator: Arc<ShardedCoordinator>,
        codecs: impl IntoIterator<Item = (Door, Arc<dyn OperationCodec>)>,
    ) -> Self {
        let codecs = codecs
            .into_iter()
            .map(|(door, codec)| (u32::from(door as u8), codec))
            .collect();
        Self {
            parts: Arc::new(Parts {
                coordinator,
                codecs,
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Ends every stream and waits for their tasks, at most until `ctx` ends.
    pub(crate) async fn shutdown(&self, ctx: &Context) {
        self.parts.stop.cancel();
        self.parts.tasks.close();
        if ctx.run(self.parts.tasks.wait()).await.is_err() {
            tracing::warn!("streams of peers did not end in time");
        }
    }

    /// Serves one stream: takes `requests` until they end, and answers into the result.
    pub(crate) fn serve<S>(&self, requests: S) -> mpsc::Receiver<Result<ForwardReplies, Status>>
    where
        S: Stream<Item = Result<ForwardRequests, Status>> + Send + Unpin + 'static,
    {
        // Two messages: while one is sent the next is filled.
        let (send, replies) = mpsc::channel(2);
        let parts = Arc::clone(&self.parts);
        self.parts.tasks.spawn(async move {
            let stop = parts.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = Session::new(&parts).run(requests, send) => {}
            }
        });
        replies
    }
}

#[tonic::async_trait]
impl Forward for ForwardService {
    type ExchangeStream = tokio_stream::wrappers::ReceiverStream<Result<ForwardReplies, Status>>;

    async fn exchange(
        &self,
        request: tonic::Request<Streaming<ForwardRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        Ok(Response::new(self.serve(request.into_inner()).into()))
    }
}

/// Where the replies to one peer go.
type Replies = mpsc::Sender<Result<ForwardReplies, Status>>;

/// The peer takes no more replies.
struct PeerGone;

/// One stream of one peer.
struct Session<'a> {
    parts: &'a Parts,
    /// Ends with the stream, and everything that came over it with it.
    ctx: Context,
    under_way: FuturesUnordered<Work>,
    /// How many of them are watches.
    watches: usize,
    cancels: HashMap<u64, Context>,
    replies: VecDeque<ForwardReply>,
    /// Bytes of `replies`.
    ready_bytes: usize,
    pong: u64,
}

impl<'a> Session<'a> {
    fn new(parts: &'a Parts) -> Self {
        Self {
            parts,
            ctx: Context::with_timeout(WATCH),
            under_way: FuturesUnordered::new(),
            watches: 0,
            cancels: HashMap::new(),
            replies: VecDeque::new(),
            ready_bytes: 0,
            pong: 0,
        }
    }

    async fn run<S>(mut self, mut requests: S, send: Replies)
    where
        S: Stream<Item = Result<ForwardRequests, Status>> + Send + Unpin,
    {
        let _guard = self.ctx.guard();
        loop {
            tokio::select! {
                biased;
                Some((number, outcome)) = self.under_way.next() => {
                    self.finish(number, outcome);
                    // What else is ready goes into the same message.
                    while !self.is_full()
                        && let Some(Some((number, outcome))) = self.under_way.next().now_or_never()
                    {
                        self.finish(number, outcome);
                    }
                }
                message = requests.next() => {
                    let taken = match message {
                        Some(Ok(message)) => self.take(message, &send).await,
                        // The peer opens a new stream; what was under way here is given up.
                        Some(Err(_)) | None => return,
                    };
                    if taken.is_err() {
                        return;
                    }
                }
            }
            if self.flush(&send).await.is_err() {
                return;
            }
        }
    }

    /// Settles what was under way.
    fn finish(&mut self, number: u64, outcome: Outcome) {
        if matches!(outcome, Outcome::Woken(_)) {
            self.watches -= 1;
        }
        self.settle(number, outcome);
    }

    fn settle(&mut self, number: u64, outcome: Outcome) {
        self.cancels.remove(&number);
        let outcome = match outcome {
            Outcome::Reply(reply) if reply.len() > MOST_CARRIED_BYTES => reply_too_large(),
            outcome => outcome,
        };
        self.answer(number, outcome);
    }

    fn answer(&mut self, number: u64, outcome: Outcome) {
        let reply = ForwardReply {
            number,
            outcome: Some(outcome),
        };
        self.ready_bytes += reply.encoded_len();
        self.replies.push_back(reply);
    }

    /// What is ready fills a message.
    fn is_full(&self) -> bool {
        self.replies.len() >= MESSAGE_ITEMS || self.ready_bytes >= MESSAGE_BYTES
    }

    /// Sends what is ready.
    async fn flush(&mut self, send: &Replies) -> Result<(), PeerGone> {
        while !self.replies.is_empty() || self.pong != 0 {
            let message = self.next_message();
            let size = message.encoded_len();
            if size > MESSAGE_BYTES {
                // Or the peer takes the time on the wire for silence.
                let notice = ForwardReplies {
                    coming: size as u64,
                    ..ForwardReplies::default()
                };
                send.send(Ok(notice)).await.map_err(|_| PeerGone)?;
            }
            send.send(Ok(message)).await.map_err(|_| PeerGone)?;
        }
        Ok(())
    }

    fn next_message(&mut self) -> ForwardReplies {
        let mut replies = Vec::new();
        let mut bytes = 0;
        while replies.len() < MESSAGE_ITEMS
            && let Some(reply) = self.replies.front()
        {
            let size = reply.encoded_len();
            if !replies.is_empty() && bytes + size > MESSAGE_BYTES {
                break;
            }
            bytes += size;
            replies.extend(self.replies.pop_front());
        }
        self.ready_bytes -= bytes;
        ForwardReplies {
            replies,
            pong: std::mem::take(&mut self.pong),
            coming: 0,
        }
    }

    async fn take(&mut self, message: ForwardRequests, send: &Replies) -> Result<(), PeerGone> {
        self.pong = message.ping;
        for request in message.requests {
            self.begin(request);
            // Reads are answered at once: the replies to one message may be large together.
            if self.is_full() {
                self.flush(send).await?;
            }
        }
        // After the requests: one may be taken back in the message that brings it.
        for number in message.cancels {
            if let Some(ctx) = self.cancels.remove(&number) {
                ctx.cancel();
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: ForwardRequest) {
        let number = request.number;
        let group = GroupId(request.group);
        if !request.watch.is_empty() {
            if self.watches >= MOST_WATCHES_HERE {
                return self.settle(number, overloaded("too many watches of one node"));
            }
            match self
                .parts
                .coordinator
                .watch_forwarded(group, &request.watch)
            {
                Err(error) => self.settle(number, outcome_of(Err(error))),
                Ok(watch) => {
                    let ctx = self.ctx.child(WATCH);
                    self.cancels.insert(number, ctx.clone());
                    self.answer(number, Outcome::Watching(true));
                    let ended = Box::pin(async move {
                        ctx.done().await;
                    });
                    self.watches += 1;
                    self.under_way.push(Work::Watch {
                        number,
                        watch,
                        ended,
                    });
                }
            }
            return;
        }
        if self.under_way.len() - self.watches >= MOST_REQUESTS {
            return self.settle(number, overloaded("too many requests of one node"));
        }
        let Some(codec) = self.parts.codecs.get(&request.door) else {
            let why = format!("this node has no door {}", request.door);
            return self.settle(number, outcome_of(Err(KvError::Invalid(why))));
        };
        let operation = match codec.decode(request.operation) {
            Ok(operation) => operation,
            Err(why) => return self.settle(number, outcome_of(Err(KvError::Invalid(why)))),
        };
        let ctx = self.ctx.child(Duration::from_micros(request.remaining_us));
        let reply = self.parts.coordinator.submit_forwarded(
            &ctx,
            group,
            operation,
            request.id.map(Once::from),
            request.after_mine,
        );
        if reply.is_ready() {
            if let Some(reply) = reply.now_or_never() {
                self.settle(number, outcome_of(reply));
            }
            return;
        }
        self.cancels.insert(number, ctx);
        self.under_way.push(Work::Reply { number, reply });
    }
}

fn overloaded(what: &'static str) -> Outcome {
    outcome_of(Err(KvError::Overloaded {
        what,
        retry_after_ms: 50,
    }))
}

/// A request or a watch under way.
enum Work {
    Reply {
        number: u64,
        reply: PendingReply,
    },
    Watch {
        number: u64,
        watch: KeyWatch,
        ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    },
}

impl Future for Work {
    type Output = (u64, Outcome);

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Reply { number, reply } => {
                let reply = ready!(Pin::new(reply).poll(task));
                Poll::Ready((*number, outcome_of(reply)))
            }
            Self::Watch {
                number,
                watch,
                ended,
            } => {
                if watch.poll_woken(task).is_pending() {
                    ready!(ended.as_mut().poll(task));
                }
                Poll::Ready((*number, Outcome::Woken(true)))
            }
        }
    }
}

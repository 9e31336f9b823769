//! One task per peer that keeps its stream: opens it, probes, feeds it, hears that it is alive, and
//! opens it anew after a pause when it broke or went silent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use leadline_raft::{Context, NodeId};
use parking_lot::Mutex;
use prost::Message as _;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{LeaderProxy, MESSAGE_BYTES, MOST_MESSAGE_BYTES, PeerTransport, ReplyStream};
use crate::wire;

/// How long opening a stream and its first answer may take.
const PROBE: Duration = Duration::from_secs(1);
/// A silent peer is asked this often, and given up after that long.
const ASK: Duration = Duration::from_millis(500);
const SILENCE: Duration = Duration::from_secs(2);
/// Bytes a second at which a message above [`MESSAGE_BYTES`] may keep everything else waiting. A
/// connection that is dead meanwhile is found by its keepalive.
const SLOWEST: u64 = 4 << 20;
/// The pause between two probes: from the first, doubling to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Messages on their way into the transport.
const MESSAGES: usize = 2;

/// The streams to all peers.
pub(crate) struct Links {
    proxy: Arc<LeaderProxy>,
    transport: Arc<dyn PeerTransport>,
    /// Called when a breaker closes.
    on_up: Box<dyn Fn(NodeId) + Send + Sync>,
    tasks: TaskTracker,
    running: Mutex<HashMap<NodeId, CancellationToken>>,
}

impl Links {
    pub(crate) fn new(
        proxy: Arc<LeaderProxy>,
        transport: Arc<dyn PeerTransport>,
        on_up: impl Fn(NodeId) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            proxy,
            transport,
            on_up: Box::new(on_up),
            tasks: TaskTracker::new(),
            running: Mutex::default(),
        })
    }

    /// Keeps a stream to each of `peers`, and to nobody else.
    pub(crate) fn set_peers(self: &Arc<Self>, peers: impl IntoIterator<Item = NodeId>) {
        let mut running = self.running.lock();
        let mut stale = std::mem::take(&mut *running);
        for node in peers {
            let stop = stale.remove(&node).unwrap_or_else(|| {
                let stop = CancellationToken::new();
                self.tasks.spawn(Arc::clone(self).keep(node, stop.clone()));
                stop
            });
            running.insert(node, stop);
        }
        for stop in stale.into_values() {
            stop.cancel();
        }
    }

    /// Closes every stream and waits for their tasks, at most until `ctx` ends.
    pub(crate) async fn shutdown(&self, ctx: &Context) {
        for stop in std::mem::take(&mut *self.running.lock()).into_values() {
            stop.cancel();
        }
        self.tasks.close();
        if ctx.run(self.tasks.wait()).await.is_err() {
            tracing::warn!("streams to peers did not close in time");
        }
    }

    async fn keep(self: Arc<Self>, node: NodeId, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut known_down = false;
        loop {
            let began = Instant::now();
            let why = tokio::select! {
                () = stop.cancelled() => break,
                why = self.session(node, &mut known_down) => why,
            };
            self.proxy.set_down(node);
            if !known_down {
                // Once per outage: what follows is more of the same.
                tracing::info!(peer = %node, why, "no stream to peer");
                known_down = true;
            }
            if began.elapsed() > LONGEST_PAUSE * 2 {
                pause = FIRST_PAUSE;
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(jittered) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.proxy.set_down(node);
    }

    /// One stream's life; returns why it ended.
    async fn session(&self, node: NodeId, known_down: &mut bool) -> String {
        let ctx = Context::with_timeout(PROBE);
        let (send, outgoing) = mpsc::channel(MESSAGES);
        let probed = ctx
            .run(async {
                let mut replies = self.transport.exchange(ctx.clone(), node, outgoing).await?;
                send.send(ping(1))
                    .await
                    .map_err(|error| error.to_string())?;
                match replies.next().await {
                    Some(Ok(_)) => Ok(replies),
                    Some(Err(why)) => Err(why),
                    None => Err("closed at once".to_owned()),
                }
            })
            .await;
        let replies = match probed {
            Ok(Ok(replies)) => replies,
            Ok(Err(why)) => return why,
            Err(ended) => return ended.to_string(),
        };
        let work = self.proxy.set_up(node);
        if std::mem::take(known_down) {
            tracing::info!(peer = %node, "stream to peer is back");
        }
        (self.on_up)(node);
        self.exchange(node, &send, replies, &work).await
    }

    async fn exchange(
        &self,
        node: NodeId,
        send: &mpsc::Sender<wire::ForwardRequests>,
        mut replies: ReplyStream,
        work: &tokio::sync::Notify,
    ) -> String {
        let mut heard = Instant::now();
        let mut silent_until = heard + SILENCE;
        let mut tick = tokio::time::interval(ASK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Something may wait already; a place in the transport is awaited only for a message.
        let mut waiting = true;
        let mut ask = false;
        let mut pings = 1;
        loop {
            tokio::select! {
                biased;
                reply = replies.next() => match reply {
                    Some(Ok(message)) => {
                        heard = Instant::now();
                        silent_until = silent_until.max(heard + patience(message.coming));
                        if self.proxy.deliver(node, message.replies) {
                            tracing::info!(peer = %node, "requests are answered again");
                            (self.on_up)(node);
                        }
                    }
                    Some(Err(why)) => return why,
                    None => return "closed by the peer".to_owned(),
                },
                place = send.reserve(), if waiting || ask => {
                    let Ok(place) = place else {
                        return "closed by the transport".to_owned();
                    };
                    match self.proxy.next_message(node) {
                        Some(message) => {
                            let size = message.encoded_len() as u64;
                            if size > MESSAGE_BYTES as u64 {
                                silent_until = silent_until.max(Instant::now() + patience(size));
                            }
                            place.send(message);
                        }
                        None if ask => {
                            pings += 1;
                            place.send(ping(pings));
                            ask = false;
                        }
                        None => waiting = false,
                    }
                }
                () = work.notified(), if !waiting => waiting = true,
                now = tick.tick() => {
                    let silent = now.saturating_duration_since(heard);
                    if now >= silent_until {
                        return format!("silent for {} ms", silent.as_millis());
                    }
                    ask = silent >= ASK;
                    if self.proxy.offer_probe(node) {
                        (self.on_up)(node);
                    }
                }
            }
        }
    }
}

/// How long a peer may be silent while a message of `bytes` is on the wire, before the pongs.
fn patience(bytes: u64) -> Duration {
    let bytes = bytes.min(MOST_MESSAGE_BYTES as u64);
    SILENCE + Duration::from_millis(bytes * 1000 / SLOWEST)
}

fn ping(number: u64) -> wire::ForwardRequests {
    wire::ForwardRequests {
        ping: number,
        ..wire::ForwardRequests::default()
    }
}

//! Snapshots between nodes: chunk by chunk, each checked and stored before too many more are sent.
//!
//! # Invariants
//! 1. Never more than a window of chunks is in memory, on either side.
//! 2. The receiver stores chunks in order, each with the right checksum, and installs only what came
//!    whole. Whatever goes wrong before leaves its old state as it was, and says so.
//! 3. No progress for a while ends the transfer on both sides. Progress is a chunk stored, or the
//!    receiver's word that it is still installing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::SnapshotResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::wire::snapshot_part::Part;
use super::wire::snapshot_reply::Outcome;
use super::{Inbound, Link, Peer, PeerError, Pool, Refused, dial, wire};
use crate::engine::{SnapshotSink, SnapshotSource};
use crate::types::{Snapshot, SnapshotData, SnapshotMeta, TypeConfig, Vote};
use crate::{Context, GroupId, NodeId};

/// A chunk above this is a bug of the state machine.
const CHUNK_LIMIT: usize = 4 << 20;
/// How often a receiver that installs says so.
const STILL_HERE: Duration = Duration::from_secs(1);

fn part(part: Part) -> wire::SnapshotPart {
    wire::SnapshotPart { part: Some(part) }
}

/// Sends `snapshot` and waits until the peer has installed it, on a connection of its own.
///
/// Dropping the future ends the transfer; the peer keeps its old state.
pub(super) async fn send(
    pool: &Arc<Pool>,
    peer: &Peer,
    group: GroupId,
    vote: Vote,
    snapshot: Snapshot,
    install: Duration,
) -> Result<SnapshotResponse<TypeConfig>, PeerError> {
    let link = &pool.link;
    let node = peer.remote.node;
    let unreachable = |why: Arc<str>| PeerError::Unreachable { node, why };
    let SnapshotData::Source(source) = snapshot.snapshot else {
        return Err(unreachable("this snapshot was received, not made".into()));
    };
    let meta = serde_json::to_vec(&snapshot.meta)
        .map_err(|error| unreachable(format!("snapshot head: {error}").into()))?;
    // Few at a time: each holds a view of its state.
    let _turn = Arc::clone(&peer.snapshots)
        .acquire_owned()
        .await
        .map_err(|_| PeerError::Closed)?;

    let alive = peer.remote.gone.child_token();
    let _ends = alive.clone().drop_guard();
    let channel = dial::connect(link, &peer.remote, Some(alive)).await?;
    let mut client = dial::client(channel, &link.limits);
    let (parts, stream) = mpsc::channel(1);
    let begin = wire::SnapshotBegin {
        hello: Some(link.hello(node)),
        group: group.0,
        vote: Some(wire::vote_out(&vote)),
        meta: meta.into(),
        install_ms: u32::try_from(install.as_millis()).unwrap_or(u32::MAX),
    };
    let stalled = || unreachable("the snapshot makes no progress".into());
    let stall = link.limits.snapshot_stall;
    let open = async {
        // Cannot wait: the channel is empty.
        let _ = parts.send(part(Part::Begin(begin))).await;
        client.install_snapshot(ReceiverStream::new(stream)).await
    };
    let mut replies = timeout(stall, open)
        .await
        .map_err(|_| stalled())?
        .map_err(|status| unreachable(dial::refusal(&status)))?
        .into_inner();

    // One permit per chunk that the receiver has not stored.
    let window = Arc::new(Semaphore::new(link.limits.snapshot_window));
    let sending = push(link, source, parts, Arc::clone(&window));
    tokio::pin!(sending);
    let mut sent = false;
    let mut stored = 0;
    let mut progressed = Instant::now();
    loop {
        let reply = tokio::select! {
            biased;
            outcome = &mut sending, if !sent => {
                outcome.map_err(|why| unreachable(why.into()))?;
                sent = true;
                continue;
            }
            reply = tokio::time::timeout_at(progressed + stall, replies.message()) => reply,
        };
        let reply = reply
            .map_err(|_| stalled())?
            .map_err(|status| unreachable(dial::refusal(&status)))?
            .ok_or_else(|| unreachable("it closed the snapshot's stream".into()))?;
        progressed = Instant::now();
        let fresh = reply.stored.saturating_sub(stored);
        stored = stored.max(reply.stored);
        window.add_permits(
            usize::try_from(fresh)
                .unwrap_or(0)
                .min(link.limits.snapshot_window),
        );
        match reply.outcome {
            None => {}
            Some(Outcome::Installed(vote)) => {
                let vote = wire::vote_in(Some(vote))
                    .map_err(|error| unreachable(error.to_string().into()))?;
                return Ok(SnapshotResponse::new(vote));
            }
            Some(Outcome::Refused(why)) => return Err(PeerError::Refused { node, why }),
        }
    }
}

/// Reads the source on threads that may block, and hands its chunks over within the window.
async fn push(
    link: &Link,
    mut source: Box<dyn SnapshotSource>,
    parts: mpsc::Sender<wire::SnapshotPart>,
    window: Arc<Semaphore>,
) -> Result<(), String> {
    // A closed stream ends this quietly: the reply says why.
    let (mut chunks, mut bytes) = (0, 0);
    loop {
        let Ok(permit) = window.acquire().await else {
            return Ok(());
        };
        permit.forget();
        let read = link.tasks.spawn_blocking(move || {
            let chunk = source.next_chunk();
            (source, chunk)
        });
        let chunk;
        (source, chunk) = read
            .await
            .map_err(|error| format!("reading it failed: {error}"))?;
        let Some(chunk) = chunk.map_err(|error| error.to_string())? else {
            let _ = parts
                .send(part(Part::End(wire::SnapshotEnd { chunks, bytes })))
                .await;
            return Ok(());
        };
        if chunk.len() > CHUNK_LIMIT {
            return Err(format!(
                "a chunk of {} bytes is over the limit of {CHUNK_LIMIT}",
                chunk.len()
            ));
        }
        let size = chunk.len() as u64;
        if parts
            .send(part(Part::Chunk(wire::chunk_out(chunks, chunk))))
            .await
            .is_err()
        {
            return Ok(());
        }
        link.metrics.snapshot_sent(size);
        chunks += 1;
        bytes += size;
    }
}

/// Receives a snapshot whose head has come. The replies end with its outcome.
pub(super) fn receive(
    pool: &Arc<Pool>,
    inbound: Arc<dyn Inbound>,
    from: NodeId,
    begin: wire::SnapshotBegin,
    parts: Streaming<wire::SnapshotPart>,
    permit: OwnedSemaphorePermit,
) -> mpsc::Receiver<Result<wire::SnapshotReply, Status>> {
    // A sender that reads no replies stops its own transfer.
    let (replies, stream) = mpsc::channel(4);
    let receiving = Receiving {
        pool: Arc::clone(pool),
        inbound,
        group: GroupId(begin.group),
        replies: replies.clone(),
    };
    let shutdown: CancellationToken = pool.link.shutdown.clone();
    pool.link.tasks.spawn(async move {
        let _permit = permit;
        let group = receiving.group;
        let outcome = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = replies.closed() => {
                tracing::info!(%group, %from, "the sender gave the snapshot up");
                return;
            }
            outcome = receiving.run(begin, parts) => outcome,
        };
        let (stored, outcome) = match outcome {
            Ok((stored, vote)) => (stored, Outcome::Installed(wire::vote_out(&vote))),
            Err(Refused(why)) => {
                tracing::warn!(%group, %from, "snapshot not installed: {why}");
                (0, Outcome::Refused(why))
            }
        };
        let last = wire::SnapshotReply {
            stored,
            outcome: Some(outcome),
        };
        // A sender that has gone meanwhile asks again.
        let _ = timeout(STILL_HERE, replies.send(Ok(last))).await;
    });
    stream
}

struct Receiving {
    pool: Arc<Pool>,
    inbound: Arc<dyn Inbound>,
    group: GroupId,
    replies: mpsc::Sender<Result<wire::SnapshotReply, Status>>,
}

impl Receiving {
    async fn run(
        &self,
        begin: wire::SnapshotBegin,
        mut parts: Streaming<wire::SnapshotPart>,
    ) -> Result<(u64, Vote), Refused> {
        let vote = wire::vote_in(begin.vote)?;
        let meta: SnapshotMeta = serde_json::from_slice(&begin.meta)
            .map_err(|error| Refused(format!("the snapshot's head is not readable: {error}")))?;
        let stall = self.pool.link.limits.snapshot_stall;

        let ctx = Context::with_timeout(stall);
        let beginning = self.inbound.begin_snapshot(&ctx, self.group, &meta);
        let mut sink = ctx
            .run(beginning)
            .await
            .map_err(|ended| Refused(ended.to_string()))??;
        let (mut stored, mut bytes) = (0, 0);
        loop {
            let next = timeout(stall, parts.message())
                .await
                .map_err(|_| Refused("the snapshot makes no progress".to_owned()))?
                .map_err(|status| Refused(format!("the snapshot's stream broke: {status}")))?
                .and_then(|next| next.part);
            match next {
                Some(Part::Chunk(chunk)) => {
                    let data = wire::chunk_in(chunk, stored)?;
                    bytes += data.len() as u64;
                    self.pool.link.metrics.snapshot_received(data.len() as u64);
                    sink = self.store(sink, data).await?;
                    stored += 1;
                    self.reply(stored).await;
                }
                Some(Part::End(end)) if (end.chunks, end.bytes) == (stored, bytes) => break,
                Some(Part::End(end)) => {
                    return Err(Refused(format!(
                        "the snapshot is not whole: {stored} chunks of {}, {bytes} bytes of {}",
                        end.chunks, end.bytes
                    )));
                }
                Some(Part::Begin(_)) | None => {
                    return Err(Refused("the snapshot ends in the middle".to_owned()));
                }
            }
        }
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Sink(sink),
        };
        let ctx = Context::with_timeout(Duration::from_millis(begin.install_ms.into()));
        let installing = ctx.run(
            self.inbound
                .install_snapshot(&ctx, self.group, vote, snapshot),
        );
        tokio::pin!(installing);
        loop {
            match timeout(STILL_HERE, &mut installing).await {
                Ok(Ok(installed)) => return Ok((stored, installed?.vote)),
                Ok(Err(ended)) => {
                    return Err(Refused(format!("installing the snapshot: {ended}")));
                }
                Err(_) => self.reply(stored).await,
            }
        }
    }

    /// Writes one chunk where that may block.
    async fn store(
        &self,
        mut sink: Box<dyn SnapshotSink>,
        data: Bytes,
    ) -> Result<Box<dyn SnapshotSink>, Refused> {
        let writing = self.pool.link.tasks.spawn_blocking(move || {
            let written = sink.write_chunk(data);
            (sink, written)
        });
        let (sink, written) = writing
            .await
            .map_err(|error| Refused(format!("writing a snapshot chunk failed: {error}")))?;
        written.map_err(|error| Refused(error.to_string()))?;
        Ok(sink)
    }

    /// Says how far it is. Waits for a sender that does not read; its closing ends the transfer.
    async fn reply(&self, stored: u64) {
        let _ = self
            .replies
            .send(Ok(wire::SnapshotReply {
                stored,
                outcome: None,
            }))
            .await;
    }
}

//! Reading: from this disk, else from a peer, once for all who want it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use leadline_raft::{Context, GroupId, NodeId};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::sync::watch;

use super::error::RETRY_AFTER_MS;
use super::peers::Replicas;
use super::permits::Pool;
use super::replicated::{Inner, off_worker};
use super::{BlobError, ChunkHash, ChunkRef};

/// How long a fetch may take, whoever waits for it.
const FETCH: Duration = Duration::from_secs(10);
/// How long a node that was removed for good may take: it is dead, most likely.
const REMOVED: Duration = Duration::from_secs(3);
/// A peer that has not answered by then is not waited for alone.
const HEDGE: Duration = Duration::from_millis(300);
/// Chunks that may be fetched or wait to be.
const MOST_FLIGHTS: usize = 1024;

type Outcome = Option<Result<Bytes, BlobError>>;

/// Fetches under way. All who want a chunk wait for the same one.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<(ChunkHash, GroupId), watch::Receiver<Outcome>>>,
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.under_way.lock().len()
    }
}

impl Inner {
    pub(super) async fn get(
        self: &Arc<Self>,
        ctx: &Context,
        near: &[u8],
        chunk: ChunkRef,
    ) -> Result<Bytes, BlobError> {
        if self.store.contains(chunk) {
            match self.read_here(ctx, &self.local_reads, chunk).await? {
                Some(bytes) if bytes.len() == chunk.len as usize => {
                    self.metrics.local_reads.inc();
                    return Ok(bytes);
                }
                Some(_) => return Err(BlobError::Missing(chunk)),
                // Damaged: a peer's copy heals it.
                None => {}
            }
        }
        let mut flight = self.flight(near, chunk)?;
        let landed = ctx.run(flight.wait_for(Option::is_some)).await?;
        match landed.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // The task has ended without a word: the node is stopping.
            Ok(None) | Err(_) => Err(BlobError::Stopping),
        }
    }

    /// Reads a chunk from this node's disk, with one of the slots of `pool`; `None`: it is not here,
    /// or damaged.
    pub(super) async fn read_here(
        &self,
        ctx: &Context,
        pool: &Pool,
        chunk: ChunkRef,
    ) -> Result<Option<Bytes>, BlobError> {
        let slot = pool.take(ctx).await?;
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || {
            // Given back when the disk is done, not when the caller leaves.
            let _slot = slot;
            store.read(chunk)
        });
        let read = ctx.run(read).await?;
        Ok(read.map_err(|error| BlobError::Disk(error.to_string()))??)
    }

    /// Joins the fetch of a chunk, or begins it.
    fn flight(
        self: &Arc<Self>,
        near: &[u8],
        chunk: ChunkRef,
    ) -> Result<watch::Receiver<Outcome>, BlobError> {
        let replicas = self.placement.replicas(near);
        let key = (chunk.hash, replicas.group);
        let mut under_way = self.flights.under_way.lock();
        if let Some(flight) = under_way.get(&key) {
            self.metrics.fetches_shared.inc();
            return Ok(flight.clone());
        }
        if under_way.len() >= MOST_FLIGHTS {
            self.metrics.refused.inc();
            return Err(BlobError::Overloaded {
                what: "too many chunks are being fetched",
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        let (landed, flight) = watch::channel(None);
        under_way.insert(key, flight.clone());
        let this = Arc::clone(self);
        // Not the caller's: others wait for the same fetch, and one of them leaving must not end it.
        self.tasks.spawn(async move {
            let ctx = Context::with_timeout(FETCH);
            let fetch = async {
                let _slot = this.fetches.take(&ctx).await?;
                this.fetch(&ctx, &replicas, chunk).await
            };
            let fetched = this.stop.run_until_cancelled(fetch).await;
            let fetched = fetched.unwrap_or(Err(BlobError::Stopping));
            match &fetched {
                Ok(_) => this.metrics.fetches.inc(),
                Err(_) => this.metrics.fetch_failures.inc(),
            };
            // Out of the table first: who comes now begins anew.
            this.flights.under_way.lock().remove(&key);
            landed.send_replace(Some(fetched.clone()));
            if let Ok(data) = fetched
                && replicas.all().any(|node| node == this.node)
            {
                this.keep(&ctx, chunk, data).await;
            }
        });
        Ok(flight)
    }

    /// Writes what was fetched to this node's disk, where it belongs.
    async fn keep(&self, ctx: &Context, chunk: ChunkRef, data: Bytes) {
        let kept = async {
            let bytes = data.clone();
            let crc = off_worker(ctx, bytes.len(), move || crc32c::crc32c(&bytes)).await?;
            Ok::<_, BlobError>(self.store.write(ctx, chunk, crc, data, None).await?)
        };
        match self.stop.run_until_cancelled(kept).await {
            Some(Ok(())) => self.metrics.repaired.inc(),
            Some(Err(error)) => {
                tracing::debug!(%chunk, %error, "a fetched chunk was not kept");
                0
            }
            None => 0,
        };
    }

    /// Asks one replica after the other, and a second one beside one that is slow.
    async fn fetch(
        &self,
        ctx: &Context,
        replicas: &Replicas,
        chunk: ChunkRef,
    ) -> Result<Bytes, BlobError> {
        if replicas.voters.is_empty() {
            // Nobody can be asked, which says nothing about who has it.
            return Err(BlobError::Unreachable {
                chunk,
                why: "the shard's replicas are not known".to_owned(),
            });
        }
        let briefly = &ctx.child(REMOVED);
        let ask = |node: NodeId| {
            let removed = replicas.removed.contains(&node);
            self.ask(if removed { briefly } else { ctx }, node, chunk)
        };
        let mut candidates: Vec<NodeId> =
            replicas.all().filter(|&node| node != self.node).collect();
        // Load spreads over the replicas.
        candidates.shuffle(&mut rand::rng());
        let mut candidates = candidates.into_iter();
        let mut asked = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if asked.is_empty() {
                match candidates.next() {
                    Some(node) => asked.push(ask(node)),
                    None if failures.is_empty() => return Err(BlobError::Missing(chunk)),
                    None => {
                        return Err(BlobError::Unreachable {
                            chunk,
                            why: failures.join("; "),
                        });
                    }
                }
            }
            tokio::select! {
                biased;
                ended = ctx.done() => return Err(BlobError::NotApplied(ended)),
                Some((node, answer)) = asked.next() => match answer {
                    Ok(Some(data)) => return Ok(data),
                    Ok(None) => {}
                    Err(_) if replicas.removed.contains(&node) => {}
                    Err(why) => failures.push(format!("node {node}: {why}")),
                },
                () = tokio::time::sleep(HEDGE), if candidates.len() > 0 => {
                    asked.extend(candidates.next().map(ask));
                }
            }
        }
    }

    /// What `node` has under the chunk's name, if it is that chunk.
    async fn ask(
        &self,
        ctx: &Context,
        node: NodeId,
        chunk: ChunkRef,
    ) -> (NodeId, Result<Option<Bytes>, String>) {
        let answer = match self.peers.fetch(ctx.clone(), node, chunk).await {
            Ok(Some(data)) => {
                let bytes = data.clone();
                let same = off_worker(ctx, data.len(), move || ChunkRef::of(&bytes) == chunk);
                match same.await {
                    Ok(true) => Ok(Some(data)),
                    Ok(false) => Err("it gave other bytes".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            }
            other => other,
        };
        (node, answer)
    }
}

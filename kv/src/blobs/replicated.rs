//! Chunks on the replicas of a shard: the way of a put.
//!
//! The node that a body comes in at hashes each chunk once and sends it to every voter itself, so a
//! chunk crosses the network once per replica whoever leads. Each replica writes and syncs; a
//! majority answers the caller. Only then learners get it too, as far as that costs nobody anything:
//! what comes between their check ([`super::promotion`]) and their promotion should be there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use leadline_raft::{ClusterId, Context, NodeId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::disk::{ChunkStore, DiskError};
use super::fetch::Flights;
use super::metrics::BlobMetrics;
use super::peers::{BlobPeers, Placement, Replicas};
use super::permits::{Budget, Pool};
use super::{BlobError, Blobs, Busy, BytePermit, CHUNK_BYTES, ChunkRef};

/// How long a replica that was not needed for the majority may still take.
const STRAGGLE: Duration = Duration::from_secs(5);
/// Bytes that may be on their way to one peer.
const PEER_BYTES: usize = 32 << 20;
const PEER_UNIT: usize = 1024;
/// A push that failed is tried again this often, with these pauses.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];
/// Work on fewer bytes than this costs less than handing it to another thread.
const SMALL: usize = 32 << 10;
/// Chunks that one message asks to hold.
const HOLD: usize = 4096;

/// Bounds of one node's part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of bodies on their way to disk.
    pub(crate) budget: usize,
    /// Local reads, fetches, and reads for peers, at a time.
    pub(crate) local_reads: usize,
    pub(crate) fetches: usize,
    pub(crate) serves: usize,
    /// Callers that may wait for one of them.
    pub(crate) waiting: usize,
    /// Bytes that peers push here, at a time.
    pub(crate) inbound_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            budget: 192 << 20,
            local_reads: 32,
            fetches: 16,
            serves: 16,
            waiting: 1024,
            inbound_bytes: 128 << 20,
        }
    }
}

/// The blobs of a whole cluster, as one node serves them.
#[derive(Clone)]
pub(crate) struct ReplicatedBlobs {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) store: Arc<ChunkStore>,
    pub(super) placement: Arc<dyn Placement>,
    pub(super) peers: Arc<dyn BlobPeers>,
    pub(super) budget: Arc<Budget>,
    pub(super) local_reads: Pool,
    pub(super) fetches: Pool,
    pub(super) serves: Pool,
    pub(super) inbound: Arc<Semaphore>,
    pub(super) flights: Flights,
    /// Bytes on their way to each peer.
    lanes: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
    pub(super) metrics: BlobMetrics,
    /// Told when a chunk was found missing or damaged.
    pub(super) wanting: Notify,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl ReplicatedBlobs {
    pub(crate) fn new(
        node: NodeId,
        cluster: ClusterId,
        store: Arc<ChunkStore>,
        placement: Arc<dyn Placement>,
        peers: Arc<dyn BlobPeers>,
        bounds: Bounds,
        metrics: BlobMetrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                cluster,
                store,
                placement,
                peers,
                budget: Budget::new(bounds.budget),
                local_reads: Pool::new("too many reads wait", bounds.local_reads, bounds.waiting),
                fetches: Pool::new("too many fetches wait", bounds.fetches, bounds.waiting),
                serves: Pool::new("too many peers' reads wait", bounds.serves, bounds.waiting),
                inbound: Arc::new(Semaphore::new(bounds.inbound_bytes)),
                flights: Flights::default(),
                lanes: Mutex::default(),
                metrics,
                wanting: Notify::new(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Ends what runs and closes the store.
    pub(crate) async fn shutdown(&self, ctx: &Context) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if ctx.run(self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("blob work did not end in time");
        }
        let store = Arc::clone(&self.inner.store);
        match ctx
            .run(tokio::task::spawn_blocking(move || store.close()))
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "closing the blob store"),
            Err(_) => tracing::error!("the blob store did not close in time"),
        }
    }
}

impl Blobs for ReplicatedBlobs {
    fn put<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        chunk: Bytes,
        held: &'a BytePermit,
    ) -> BoxFuture<'a, Result<ChunkRef, BlobError>> {
        self.inner.put(ctx, near, chunk, held).boxed()
    }

    fn get<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        chunk: ChunkRef,
    ) -> BoxFuture<'a, Result<Bytes, BlobError>> {
        self.inner.get(ctx, near, chunk).boxed()
    }

    fn adopt<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        source: &'a [u8],
        chunks: &'a [ChunkRef],
    ) -> BoxFuture<'a, Result<(), BlobError>> {
        self.inner.adopt(ctx, near, source, chunks).boxed()
    }

    fn is_local(&self, chunk: ChunkRef) -> bool {
        self.inner.store.contains(chunk)
    }

    fn try_reserve(&self, bytes: usize) -> Result<BytePermit, Busy> {
        self.inner.budget.try_reserve(bytes).inspect_err(|_| {
            self.inner.metrics.refused.inc();
        })
    }
}

/// A chunk on its way to the replicas.
#[derive(Clone)]
struct Parcel {
    chunk: ChunkRef,
    crc: u32,
    data: Bytes,
    /// It was here before, so others have it too, probably: they are asked before it is sent.
    known: bool,
}

/// Who a chunk is sent to.
struct Recipients<'a> {
    counted: &'a [NodeId],
    /// How many of them must have it.
    needed: usize,
    /// Get it after that, if they can.
    uncounted: &'a [NodeId],
}

impl<'a> Recipients<'a> {
    fn of(replicas: &'a Replicas) -> Self {
        Self {
            counted: &replicas.voters,
            needed: replicas.majority(),
            uncounted: &replicas.learners,
        }
    }

    fn only(node: &'a NodeId) -> Self {
        Self {
            counted: std::slice::from_ref(node),
            needed: 1,
            uncounted: &[],
        }
    }
}

type Delivery = BoxFuture<'static, (NodeId, Result<(), BlobError>)>;

impl Inner {
    async fn put(
        self: &Arc<Self>,
        ctx: &Context,
        near: &[u8],
        data: Bytes,
        held: &BytePermit,
    ) -> Result<ChunkRef, BlobError> {
        if data.is_empty() || data.len() > CHUNK_BYTES {
            return Err(BlobError::TooLarge(data.len()));
        }
        if let Some(ended) = ctx.ended() {
            return Err(BlobError::NotApplied(ended));
        }
        let (chunk, crc) = {
            let (data, held) = (data.clone(), held.clone());
            off_worker(ctx, data.len(), move || {
                let _held = held;
                (ChunkRef::of(&data), crc32c::crc32c(&data))
            })
            .await?
        };
        let parcel = Parcel {
            chunk,
            crc,
            data,
            known: self.store.contains(chunk),
        };
        let replicas = self.placement.replicas(near);
        self.deliver(ctx, parcel, &Recipients::of(&replicas), Some(held))
            .await?;
        Ok(chunk)
    }

    /// Sends `parcel` to its recipients, and returns when as many as needed have it on disk.
    async fn deliver(
        self: &Arc<Self>,
        ctx: &Context,
        parcel: Parcel,
        to: &Recipients<'_>,
        held: Option<&BytePermit>,
    ) -> Result<(), BlobError> {
        let needed = to.needed;
        // Detached: a replica that the majority did not wait for is spared a repair. Until then the
        // guard is the caller's: one that leaves takes every push back.
        let own = ctx.detach(ctx.remaining().saturating_add(STRAGGLE));
        let guard = own.guard();
        let enough = CancellationToken::new();
        let send = |&node: &NodeId| -> Delivery {
            let (this, own, parcel) = (Arc::clone(self), own.clone(), parcel.clone());
            let (enough, held) = (enough.clone(), held.cloned());
            async move {
                let outcome = if node == this.node {
                    this.store_here(&own, parcel.chunk, parcel.crc, parcel.data, held)
                        .await
                } else {
                    this.push(&own, node, parcel, &enough).await
                };
                (node, outcome)
            }
            .boxed()
        };
        let mut under_way: FuturesUnordered<Delivery> = to.counted.iter().map(send).collect();
        let mut stored = 0;
        let mut failures = Vec::new();
        while stored < needed {
            if stored + under_way.len() < needed {
                return Err(no_majority(stored, needed, failures));
            }
            match ctx.run(under_way.next()).await? {
                Some((_, Ok(()))) => stored += 1,
                Some((node, Err(error))) => failures.push((node, error)),
                None => return Err(no_majority(stored, needed, failures)),
            }
        }
        enough.cancel();
        // After that: who does not count is not waited for, takes no bandwidth from those who do,
        // and is left out where it is too slow.
        under_way.extend(to.uncounted.iter().map(send));
        if !under_way.is_empty() {
            let (chunk, stop) = (parcel.chunk, self.stop.clone());
            self.tasks.spawn(async move {
                let _guard = guard;
                let rest = async {
                    while let Some((node, outcome)) = under_way.next().await {
                        if let Err(error) = outcome {
                            tracing::debug!(%chunk, %node, %error, "a replica is left to repair");
                        }
                    }
                };
                stop.run_until_cancelled(rest).await;
            });
        }
        Ok(())
    }

    /// Writes a chunk to this node's disk, unless it is there.
    pub(super) async fn store_here(
        &self,
        ctx: &Context,
        chunk: ChunkRef,
        crc: u32,
        data: Bytes,
        held: Option<BytePermit>,
    ) -> Result<(), BlobError> {
        if self.still_here(ctx, chunk).await? {
            return Ok(());
        }
        Ok(self.store.write(ctx, chunk, crc, data, held).await?)
    }

    /// Makes a chunk young if it is here and whole. It is read first: what a caller is about to be
    /// promised must not rest on bytes that rotted unseen.
    pub(super) async fn still_here(
        &self,
        ctx: &Context,
        chunk: ChunkRef,
    ) -> Result<bool, BlobError> {
        // In this order: once young, it stays while it is read.
        if !self.store.refresh(chunk) {
            return Ok(false);
        }
        let whole = self
            .read_here(ctx, &self.local_reads, chunk)
            .await?
            .is_some();
        if whole {
            self.metrics.duplicates.inc();
        }
        Ok(whole)
    }

    async fn push(
        &self,
        ctx: &Context,
        node: NodeId,
        parcel: Parcel,
        enough: &CancellationToken,
    ) -> Result<(), BlobError> {
        let units = u32::try_from(parcel.data.len().div_ceil(PEER_UNIT)).unwrap_or(u32::MAX);
        let lane = self.lane(node);
        let place = match Arc::clone(&lane).try_acquire_many_owned(units) {
            Ok(place) => place,
            // The peer is slow. Whoever needs it waits; who does not, leaves it to repair.
            Err(_) => {
                let waited = enough
                    .run_until_cancelled(ctx.run(lane.acquire_many_owned(units)))
                    .await;
                match waited {
                    Some(place) => place?.map_err(|_| BlobError::Stopping)?,
                    None => {
                        self.metrics.pushes_skipped.inc();
                        return Err(unreachable(parcel.chunk, "it is too slow"));
                    }
                }
            }
        };
        let mut pauses = PAUSES.iter();
        let outcome = loop {
            match self.push_once(ctx, node, &parcel).await {
                Ok(()) => break Ok(()),
                Err(why) => match pauses.next() {
                    Some(&pause) if !enough.is_cancelled() => {
                        ctx.run(tokio::time::sleep(pause)).await?;
                    }
                    _ => break Err(unreachable(parcel.chunk, &why)),
                },
            }
        };
        drop(place);
        match &outcome {
            Ok(()) => self.metrics.pushes.inc(),
            Err(_) => self.metrics.push_failures.inc(),
        };
        outcome
    }

    async fn push_once(&self, ctx: &Context, node: NodeId, parcel: &Parcel) -> Result<(), String> {
        let Parcel {
            chunk, crc, data, ..
        } = parcel;
        let peers = &self.peers;
        if parcel.known && peers.store(ctx.clone(), node, *chunk, *crc, None).await? {
            return Ok(());
        }
        let data = Some(data.clone());
        match peers.store(ctx.clone(), node, *chunk, *crc, data).await? {
            true => Ok(()),
            false => Err("it did not take the chunk".to_owned()),
        }
    }

    fn lane(&self, node: NodeId) -> Arc<Semaphore> {
        let mut lanes = self.lanes.lock();
        let lane = lanes
            .entry(node)
            .or_insert_with(|| Arc::new(Semaphore::new(PEER_BYTES / PEER_UNIT)));
        Arc::clone(lane)
    }

    async fn adopt(
        self: &Arc<Self>,
        ctx: &Context,
        near: &[u8],
        source: &[u8],
        chunks: &[ChunkRef],
    ) -> Result<(), BlobError> {
        let replicas = self.placement.replicas(near);
        let needed = replicas.majority();
        for some in chunks.chunks(HOLD) {
            let mut holding: FuturesUnordered<_> = replicas
                .voters
                .iter()
                .map(|&node| async move { (node, self.hold_at(ctx, node, source, some).await) })
                .collect();
            let mut held = 0;
            let mut failures = Vec::new();
            while held < needed {
                match ctx.run(holding.next()).await? {
                    Some((_, Ok(()))) => held += 1,
                    // Gone everywhere it could be: no replica will do better.
                    Some((_, Err(error @ BlobError::Missing(_)))) => return Err(error),
                    Some((node, Err(error))) => failures.push((node, error)),
                    None => return Err(no_majority(held, needed, failures)),
                }
            }
        }
        self.spare_learners_a_repair(ctx, replicas.learners, source, chunks);
        Ok(())
    }

    /// Brings what was adopted to learners, as far as that succeeds soon.
    fn spare_learners_a_repair(
        self: &Arc<Self>,
        ctx: &Context,
        learners: Vec<NodeId>,
        source: &[u8],
        chunks: &[ChunkRef],
    ) {
        if learners.is_empty() {
            return;
        }
        // Detached, as what is put: the caller has what it came for.
        let own = ctx.detach(STRAGGLE);
        let (this, stop) = (Arc::clone(self), self.stop.clone());
        let (source, chunks) = (source.to_vec(), chunks.to_vec());
        self.tasks.spawn(async move {
            let _guard = own.guard();
            let holding = async {
                for node in learners {
                    for some in chunks.chunks(HOLD) {
                        if let Err(error) = this.hold_at(&own, node, &source, some).await {
                            tracing::debug!(%node, %error, "a learner is left to repair");
                            break;
                        }
                    }
                }
            };
            stop.run_until_cancelled(own.run(holding)).await;
        });
    }

    /// Makes `chunks` young at `node`, and brings what it lacks.
    async fn hold_at(
        self: &Arc<Self>,
        ctx: &Context,
        node: NodeId,
        source: &[u8],
        chunks: &[ChunkRef],
    ) -> Result<(), BlobError> {
        let missing = if node == self.node {
            self.hold_here(chunks)
        } else {
            self.peers
                .hold(ctx.clone(), node, chunks.to_vec())
                .await
                .map_err(|why| match chunks.first() {
                    Some(&chunk) => unreachable(chunk, &why),
                    None => BlobError::Stopping,
                })?
        };
        for at in missing {
            let Some(&chunk) = chunks.get(at) else {
                continue;
            };
            let data = self.get(ctx, source, chunk).await?;
            let crc = {
                let data = data.clone();
                off_worker(ctx, data.len(), move || crc32c::crc32c(&data)).await?
            };
            let parcel = Parcel {
                chunk,
                crc,
                data,
                known: false,
            };
            self.deliver(ctx, parcel, &Recipients::only(&node), None)
                .await?;
        }
        Ok(())
    }

    /// Makes chunks here young; positions of those that are not here.
    pub(super) fn hold_here(&self, chunks: &[ChunkRef]) -> Vec<usize> {
        let absent = |(at, chunk): (usize, &ChunkRef)| (!self.store.refresh(*chunk)).then_some(at);
        chunks.iter().enumerate().filter_map(absent).collect()
    }
}

/// Runs `work` on `bytes` bytes where it holds up nobody.
pub(super) async fn off_worker<T: Send + 'static>(
    ctx: &Context,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BlobError> {
    if bytes <= SMALL {
        return Ok(work());
    }
    ctx.run(tokio::task::spawn_blocking(work))
        .await?
        .map_err(|error| BlobError::Disk(error.to_string()))
}

fn unreachable(chunk: ChunkRef, why: &str) -> BlobError {
    BlobError::Unreachable {
        chunk,
        why: why.to_owned(),
    }
}

fn no_majority(stored: usize, needed: usize, failures: Vec<(NodeId, BlobError)>) -> BlobError {
    let said: Vec<_> = failures
        .iter()
        .map(|(node, error)| match error {
            BlobError::Unreachable { why, .. } => format!("node {node}: {why}"),
            other => format!("node {node}: {other}"),
        })
        .collect();
    BlobError::NoMajority {
        stored,
        needed,
        why: if said.is_empty() {
            "the shard's replicas are not known".to_owned()
        } else {
            said.join("; ")
        },
    }
}

impl From<DiskError> for BlobError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Write(why) | DiskError::Read(why) | DiskError::Failed(why) => {
                Self::Disk(why)
            }
            DiskError::Closed => Self::Stopping,
            DiskError::Ended(ended) => Self::NotApplied(ended),
        }
    }
}

//! Three nodes in one process: majorities, fetches, repair, collection. The network is calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use leadline_raft::{ClusterId, Context, Ended, GroupId, LogIndex, NodeId};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;

use super::disk::{Options, SystemFiles};
use super::peers::{BlobPeers, Placement, Replicas};
use super::replicated::{Bounds, ReplicatedBlobs};
use super::*;
use crate::wire;

const NEAR: &[u8] = b"manifest";
const CLUSTER: ClusterId = ClusterId(7);
const GROUP: GroupId = GroupId(1);
const GRACE_SECONDS: u32 = 3600;

/// All nodes, and what stands between them.
#[derive(Default)]
struct Net {
    nodes: Mutex<BTreeMap<NodeId, ReplicatedBlobs>>,
    /// Nodes that refuse, and nodes that say nothing.
    dead: Mutex<BTreeSet<NodeId>>,
    silent: Mutex<BTreeSet<NodeId>>,
    fetches: AtomicUsize,
    sent_bytes: AtomicUsize,
    /// Fetches wait for it while it is false.
    open: watch::Sender<bool>,
}

impl Net {
    fn reach(&self, node: NodeId) -> Result<ReplicatedBlobs, String> {
        if self.dead.lock().contains(&node) {
            return Err("connection refused".to_owned());
        }
        Ok(self.nodes.lock()[&node].clone())
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.silent.lock().contains(&node)
    }
}

struct Peers(Arc<Net>);

impl BlobPeers for Peers {
    fn store(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
        crc: u32,
        data: Option<Bytes>,
    ) -> BoxFuture<'static, Result<bool, String>> {
        let net = Arc::clone(&self.0);
        async move {
            let peer = net.reach(node)?;
            if net.is_silent(node) {
                return Err(ctx.done().await.to_string());
            }
            let data = data.unwrap_or_default();
            net.sent_bytes.fetch_add(data.len(), Ordering::SeqCst);
            let request = wire::StoreChunkRequest {
                cluster: CLUSTER.0,
                chunk: None,
                crc,
                data,
            };
            let stored = peer.inner.store_for_peer(&ctx, chunk, request).await;
            stored.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn fetch(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        let net = Arc::clone(&self.0);
        async move {
            net.fetches.fetch_add(1, Ordering::SeqCst);
            let mut open = net.open.subscribe();
            open.wait_for(|open| *open)
                .await
                .map_err(|e| e.to_string())?;
            let peer = net.reach(node)?;
            if net.is_silent(node) {
                return Err(ctx.done().await.to_string());
            }
            let read = peer.inner.read_for_peer(&ctx, chunk).await;
            read.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn hold(
        &self,
        _ctx: Context,
        node: NodeId,
        chunks: Vec<ChunkRef>,
    ) -> BoxFuture<'static, Result<Vec<usize>, String>> {
        let net = Arc::clone(&self.0);
        async move { Ok(net.reach(node)?.inner.hold_here(&chunks)) }.boxed()
    }
}

/// Nodes 1 to 3 replicate everything, as voters unless it is said otherwise.
#[derive(Default)]
struct Everywhere {
    learners: Mutex<BTreeSet<NodeId>>,
    removed: Mutex<BTreeSet<NodeId>>,
}

impl Placement for Everywhere {
    fn replicas(&self, near: &[u8]) -> Replicas {
        let alone = near == b"on three alone";
        let replicas = if alone { 3..=3 } else { 1..=3 };
        let learners = self.learners.lock();
        let (learners, voters) = replicas.map(NodeId).partition(|id| learners.contains(id));
        Replicas {
            group: if alone { GroupId(2) } else { GROUP },
            voters,
            learners,
            removed: self.removed.lock().iter().copied().collect(),
        }
    }
}

/// Rows that name chunks, the same on each node.
#[derive(Default)]
struct Rows {
    named: Mutex<BTreeSet<ChunkRef>>,
    unreadable: AtomicBool,
    /// This node may have missed what the others committed.
    out_of_contact: AtomicBool,
    applied: AtomicU64,
    walks: AtomicUsize,
    /// Called when a walk has its view, before it shows anything.
    after_view: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Manifests for Rows {
    fn settled(&self) -> bool {
        !self.out_of_contact.load(Ordering::SeqCst)
    }

    fn applied(&self, group: GroupId) -> Option<LogIndex> {
        (group == GROUP).then(|| LogIndex(self.applied.load(Ordering::SeqCst)))
    }

    fn walk_group(
        &self,
        _ctx: &Context,
        group: GroupId,
        visit: &mut dyn FnMut(&[u8], ChunkRef),
    ) -> Result<(), String> {
        assert_eq!(group, GROUP);
        self.walk(visit)
    }

    fn walk(&self, visit: &mut dyn FnMut(&[u8], ChunkRef)) -> Result<(), String> {
        self.walks.fetch_add(1, Ordering::SeqCst);
        let view = self.named.lock().clone();
        if let Some(then) = self.after_view.lock().take() {
            then();
        }
        view.into_iter().for_each(|chunk| visit(NEAR, chunk));
        match self.unreadable.load(Ordering::SeqCst) {
            true => Err("a row of a newer format".to_owned()),
            false => Ok(()),
        }
    }
}

struct Cluster {
    net: Arc<Net>,
    rows: Arc<Rows>,
    places: Arc<Everywhere>,
    _dirs: Vec<TempDir>,
}

impl Cluster {
    async fn new() -> Self {
        let net = Arc::new(Net::default());
        net.open.send_replace(true);
        let dirs: Vec<_> = (0..3).map(|_| TempDir::new().unwrap()).collect();
        let places = Arc::new(Everywhere::default());
        for (dir, node) in dirs.iter().zip((1..=3).map(NodeId)) {
            let dir = dir.path().join("blobs");
            let opening = tokio::task::spawn_blocking(move || {
                let options = Options {
                    segment_bytes: 4 << 20,
                    least_free_bytes: 0,
                    ..Options::default()
                };
                ChunkStore::open(
                    &dir,
                    options,
                    Arc::new(SystemFiles::default()),
                    BlobMetrics::default(),
                )
            });
            let blobs = ReplicatedBlobs::new(
                node,
                CLUSTER,
                opening.await.unwrap().unwrap(),
                Arc::clone(&places) as _,
                Arc::new(Peers(Arc::clone(&net))),
                Bounds {
                    budget: 16 << 20,
                    ..Bounds::default()
                },
                BlobMetrics::default(),
            );
            net.nodes.lock().insert(node, blobs);
        }
        Self {
            net,
            rows: Arc::default(),
            places,
            _dirs: dirs,
        }
    }

    fn node(&self, node: u64) -> ReplicatedBlobs {
        self.net.nodes.lock()[&NodeId(node)].clone()
    }

    fn upkeep(&self, node: u64) -> Upkeep {
        Upkeep::new(self.node(node).inner, Arc::clone(&self.rows) as _)
    }

    /// Chunks that rows name and node 3 has nothing of: it was away, and is a learner now.
    async fn named_without_three(&self, count: u32) -> Vec<ChunkRef> {
        self.kill(3);
        let mut named = Vec::new();
        for i in 0..count {
            named.push(self.put(1, &body(i, 20_000)).await.unwrap());
        }
        self.stragglers().await;
        self.net.dead.lock().clear();
        self.rows.named.lock().extend(&named);
        self.places.learners.lock().insert(NodeId(3));
        named
    }

    fn kill(&self, node: u64) {
        self.net.dead.lock().insert(NodeId(node));
    }

    async fn put(&self, node: u64, data: &Bytes) -> Result<ChunkRef, BlobError> {
        let blobs = self.node(node);
        let held = blobs.try_reserve(data.len()).unwrap();
        blobs.put(&seconds(10), NEAR, data.clone(), &held).await
    }

    /// Waits until the pushes that outlived their callers have ended.
    async fn stragglers(&self) {
        for node in 1..=3 {
            let tasks = self.node(node).inner.tasks.clone();
            tasks.close();
            tasks.wait().await;
            tasks.reopen();
        }
    }

    fn holders(&self, chunk: ChunkRef) -> Vec<u64> {
        (1..=3)
            .filter(|&node| self.node(node).inner.store.read(chunk).unwrap().is_some())
            .collect()
    }

    async fn shutdown(self) {
        let nodes: Vec<_> = self.net.nodes.lock().values().cloned().collect();
        for node in nodes {
            node.shutdown(&seconds(10)).await;
        }
    }
}

fn seconds(seconds: u64) -> Context {
    Context::with_timeout(Duration::from_secs(seconds))
}

fn body(i: u32, len: usize) -> Bytes {
    i.to_le_bytes().repeat(len.div_ceil(4)).into()
}

#[tokio::test]
async fn a_put_is_on_a_majority_when_it_returns_and_on_all_soon_after() {
    let cluster = Cluster::new().await;
    let data = body(1, 300_000);
    let chunk = cluster.put(1, &data).await.unwrap();
    assert!(cluster.holders(chunk).len() >= 2);
    cluster.stragglers().await;
    assert_eq!(cluster.holders(chunk), [1, 2, 3]);
    let read = cluster.node(3).get(&seconds(5), NEAR, chunk).await;
    assert_eq!(read, Ok(data));
    assert_eq!(cluster.net.fetches.load(Ordering::SeqCst), 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn one_dead_peer_costs_nothing_and_two_are_named_in_the_refusal() {
    let cluster = Cluster::new().await;
    cluster.kill(3);
    let chunk = cluster.put(1, &body(1, 1000)).await.unwrap();
    cluster.stragglers().await;
    assert_eq!(cluster.holders(chunk), [1, 2]);

    cluster.kill(2);
    let refused = cluster.put(1, &body(2, 1000)).await.unwrap_err();
    let BlobError::NoMajority { needed: 2, why, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert!(why.contains("node 2") && why.contains("node 3"), "{why}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_put_among_silent_peers_ends_at_its_deadline_and_gives_everything_back() {
    let cluster = Cluster::new().await;
    cluster.net.silent.lock().extend([NodeId(2), NodeId(3)]);
    let blobs = cluster.node(1);
    let held = blobs.try_reserve(1000).unwrap();
    let ctx = Context::with_timeout(Duration::from_millis(50));
    let ended = blobs.put(&ctx, NEAR, body(1, 1000), &held).await;
    assert_eq!(ended, Err(BlobError::NotApplied(Ended::Deadline)));
    drop(held);
    assert!(blobs.inner.tasks.is_empty(), "nothing was left behind");
    while blobs.inner.budget.held() > 0 {
        // The disk's share comes back when its sync has ended.
        tokio::task::yield_now().await;
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_is_put_again_is_neither_sent_nor_written_again() {
    let cluster = Cluster::new().await;
    let data = body(1, 100_000);
    let first = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    let sent = cluster.net.sent_bytes.load(Ordering::SeqCst);
    let written = |node| cluster.node(node).inner.store.stats().used_bytes;
    let before: Vec<_> = (1..=3).map(written).collect();
    let second = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    assert_eq!(first, second);
    assert_eq!(cluster.net.sent_bytes.load(Ordering::SeqCst), sent);
    assert_eq!((1..=3).map(written).collect::<Vec<_>>(), before);
    cluster.shutdown().await;
}

#[tokio::test]
async fn callers_share_one_fetch_and_one_that_leaves_does_not_end_it() {
    let cluster = Cluster::new().await;
    let data = body(1, 200_000);
    cluster.kill(3);
    let chunk = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    cluster.net.dead.lock().clear();
    cluster.net.open.send_replace(false);

    let blobs = cluster.node(3);
    let leaving = seconds(5);
    let first = blobs.get(&leaving, NEAR, chunk);
    let others = futures::future::join_all((0..50).map(|_| {
        let blobs = blobs.clone();
        async move { blobs.get(&seconds(5), NEAR, chunk).await }
    }));
    let (first, others, ()) = tokio::join!(first, others, async {
        while cluster.net.fetches.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        leaving.cancel();
        cluster.net.open.send_replace(true);
    });
    assert_eq!(first, Err(BlobError::NotApplied(Ended::Cancelled)));
    assert!(others.iter().all(|got| got.as_ref() == Ok(&data)));
    // One, and a second peer if the first seemed slow.
    assert!(cluster.net.fetches.load(Ordering::SeqCst) <= 2);
    cluster.stragglers().await;
    assert_eq!(
        cluster.holders(chunk),
        [1, 2, 3],
        "what was fetched is kept"
    );
    assert_eq!(blobs.inner.flights.len(), 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_chunk_nobody_has_is_missing_and_one_that_a_dead_node_may_have_is_not() {
    let cluster = Cluster::new().await;
    let nowhere = ChunkRef::of(b"never put");
    let blobs = cluster.node(1);
    let missing = blobs.get(&seconds(5), NEAR, nowhere).await;
    assert_eq!(missing, Err(BlobError::Missing(nowhere)));
    cluster.kill(2);
    let unknown = blobs.get(&seconds(5), NEAR, nowhere).await;
    assert!(matches!(unknown, Err(BlobError::Unreachable { .. })));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_walk_fetches_what_rows_name_and_the_disk_lacks() {
    let cluster = Cluster::new().await;
    cluster.kill(3);
    let mut named = Vec::new();
    for i in 0..10 {
        named.push(cluster.put(1, &body(i, 20_000)).await.unwrap());
    }
    cluster.stragglers().await;
    cluster.net.dead.lock().clear();
    cluster.rows.named.lock().extend(&named);
    let walked = cluster.upkeep(3).walk().await.unwrap();
    assert_eq!((walked.missing, walked.repaired), (10, 10));
    cluster.stragglers().await;
    for chunk in named {
        assert_eq!(cluster.holders(chunk), [1, 2, 3]);
    }
    assert_eq!(cluster.upkeep(3).walk().await.unwrap().missing, 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn collection_takes_what_no_row_names_after_the_grace_and_nothing_else() {
    let cluster = Cluster::new().await;
    let named = cluster.put(1, &body(1, 5000)).await.unwrap();
    let orphan = cluster.put(1, &body(2, 5000)).await.unwrap();
    cluster.stragglers().await;
    cluster.rows.named.lock().insert(named);
    let store = Arc::clone(&cluster.node(1).inner.store);
    let upkeep = cluster.upkeep(1);

    store.advance(GRACE_SECONDS);
    assert_eq!(
        upkeep.walk().await.unwrap().collected,
        0,
        "not older than it"
    );
    let young = cluster.put(1, &body(3, 5000)).await.unwrap();
    cluster.stragglers().await;
    store.advance(1);
    cluster.rows.unreadable.store(true, Ordering::SeqCst);
    assert!(upkeep.walk().await.is_err());
    assert!(store.contains(orphan), "nothing goes when not all was seen");
    cluster.rows.unreadable.store(false, Ordering::SeqCst);
    assert_eq!(upkeep.walk().await.unwrap().collected, 1);
    assert!(!store.contains(orphan) && store.contains(named) && store.contains(young));

    // Once no row names it, a chunk stays for a grace: who reads it can finish.
    cluster.rows.named.lock().clear();
    store.advance(GRACE_SECONDS - 1);
    upkeep.walk().await.unwrap();
    assert!(store.contains(named));
    store.advance(10);
    upkeep.walk().await.unwrap();
    assert!(!store.contains(named) && !store.contains(young));
    cluster.shutdown().await;
}

/// A row that names the chunk may have been acknowledged by the others meanwhile.
#[tokio::test]
async fn a_node_out_of_contact_collects_nothing_however_long_it_lasts() {
    let cluster = Cluster::new().await;
    let orphan = cluster.put(1, &body(1, 5000)).await.unwrap();
    cluster.stragglers().await;
    let store = Arc::clone(&cluster.node(1).inner.store);
    let upkeep = cluster.upkeep(1);
    let pass = async |seconds: u32| {
        let time = Duration::from_secs(seconds.into());
        let counting = tokio::time::timeout(time, upkeep.count_time());
        assert!(counting.await.is_err(), "it counts for ever");
        upkeep.walk().await.unwrap().collected
    };
    tokio::time::pause();

    cluster.rows.out_of_contact.store(true, Ordering::SeqCst);
    assert_eq!(pass(3 * GRACE_SECONDS).await, 0);
    cluster.rows.out_of_contact.store(false, Ordering::SeqCst);
    assert_eq!(pass(GRACE_SECONDS / 2).await, 0, "a whole grace is due");
    assert!(store.contains(orphan));
    assert_eq!(pass(GRACE_SECONDS).await, 1);
    assert!(!store.contains(orphan));

    tokio::time::resume();
    cluster.shutdown().await;
}

/// The race: the walk has its view, in which nothing names the chunk, when an upload puts it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_during_a_walk_keeps_its_chunks() {
    let cluster = Cluster::new().await;
    let data = body(1, 5000);
    let chunk = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    let store = Arc::clone(&cluster.node(1).inner.store);
    store.advance(GRACE_SECONDS + 1);
    {
        let (rows, blobs) = (Arc::clone(&cluster.rows), cluster.node(1));
        let runtime = tokio::runtime::Handle::current();
        *cluster.rows.after_view.lock() = Some(Box::new(move || {
            let held = blobs.try_reserve(5000).unwrap();
            let again = runtime.block_on(blobs.put(&seconds(5), NEAR, data, &held));
            rows.named.lock().insert(again.unwrap());
        }));
    }
    let walked = cluster.upkeep(1).walk().await.unwrap();
    assert_eq!(walked.collected, 0);
    assert!(store.contains(chunk));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_damaged_chunk_is_answered_from_a_peer_and_healed() {
    let cluster = Cluster::new().await;
    let data = body(1, 50_000);
    let chunk = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    let blobs = cluster.node(1);
    let segment = std::fs::read_dir(cluster._dirs[0].path().join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|kind| kind == "blob"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 64 + 100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(blobs.get(&seconds(5), NEAR, chunk).await, Ok(data.clone()));
    assert_eq!(cluster.net.fetches.load(Ordering::SeqCst), 1);
    cluster.stragglers().await;
    assert_eq!(blobs.inner.store.read(chunk).unwrap(), Some(data));
    cluster.shutdown().await;
}

/// Flips a byte in the middle of the first segment of the first node.
fn damage(cluster: &Cluster) {
    use std::os::unix::fs::FileExt;

    let path = cluster._dirs[0].path().join("blobs/00000001.blob");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[tokio::test]
async fn what_a_scrub_finds_damaged_comes_back_from_a_peer() {
    let cluster = Cluster::new().await;
    for i in 0..6 {
        let chunk = cluster.put(1, &body(i, CHUNK_BYTES)).await.unwrap();
        cluster.rows.named.lock().insert(chunk);
        cluster.stragglers().await;
    }
    let upkeep = cluster.upkeep(1);
    assert_eq!(upkeep.scrub(1 << 40).await, Ok(0));
    damage(&cluster);
    assert_eq!(upkeep.scrub(1 << 40).await, Ok(1));
    let walked = upkeep.walk().await.unwrap();
    assert_eq!((walked.missing, walked.repaired), (1, 1));
    cluster.stragglers().await;
    for &chunk in &*cluster.rows.named.lock() {
        assert_eq!(cluster.holders(chunk), [1, 2, 3]);
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn disks_shrink_when_most_of_what_they_hold_is_collected() {
    let cluster = Cluster::new().await;
    let mut kept = Vec::new();
    for i in 0..12 {
        let chunk = cluster.put(1, &body(i, CHUNK_BYTES)).await.unwrap();
        cluster.stragglers().await;
        if i % 6 == 0 {
            kept.push(chunk);
        }
    }
    cluster.rows.named.lock().extend(&kept);
    let store = Arc::clone(&cluster.node(1).inner.store);
    let before = store.stats();
    store.advance(GRACE_SECONDS + 1);
    let upkeep = cluster.upkeep(1);
    // What is in the segment still written to is not moved.
    assert!(upkeep.walk().await.unwrap().collected >= 8);
    upkeep.compact().await.unwrap();
    let after = store.stats();
    assert!(
        after.used_bytes < before.used_bytes * 6 / 10,
        "{before:?} {after:?}"
    );
    for chunk in kept {
        assert!(store.read(chunk).unwrap().is_some());
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn adoption_makes_chunks_young_and_brings_them_to_another_shards_replicas() {
    let cluster = Cluster::new().await;
    cluster.kill(3);
    let chunk = cluster.put(1, &body(1, 9000)).await.unwrap();
    cluster.stragglers().await;
    cluster.net.dead.lock().clear();
    let blobs = cluster.node(1);
    let there = b"on three alone";
    blobs
        .adopt(&seconds(5), there, NEAR, &[chunk])
        .await
        .unwrap();
    assert_eq!(cluster.holders(chunk), [1, 2, 3]);

    let three = Arc::clone(&cluster.node(3).inner.store);
    three.advance(GRACE_SECONDS + 1);
    blobs
        .adopt(&seconds(5), there, NEAR, &[chunk])
        .await
        .unwrap();
    assert_eq!(cluster.upkeep(3).walk().await.unwrap().collected, 0);

    let gone = ChunkRef::of(b"gone");
    let refused = blobs.adopt(&seconds(5), NEAR, NEAR, &[gone]).await;
    assert_eq!(refused, Err(BlobError::Missing(gone)));
    cluster.shutdown().await;
}

#[tokio::test]
async fn local_reads_go_on_while_every_fetch_hangs() {
    let cluster = Cluster::new().await;
    let data = body(1, 5000);
    let chunk = cluster.put(1, &data).await.unwrap();
    cluster.stragglers().await;
    cluster.net.open.send_replace(false);
    let blobs = cluster.node(1);
    let hanging: Vec<_> = (0..64_u32)
        .map(|i| {
            let blobs = blobs.clone();
            async move {
                let ctx = Context::with_timeout(Duration::from_millis(100));
                blobs.get(&ctx, NEAR, ChunkRef::of(&i.to_le_bytes())).await
            }
        })
        .collect();
    let ctx = seconds(5);
    let read = blobs.get(&ctx, NEAR, chunk);
    let (hung, read) = tokio::join!(futures::future::join_all(hanging), read);
    assert_eq!(read, Ok(data));
    assert!(
        hung.iter()
            .all(|end| *end == Err(BlobError::NotApplied(Ended::Deadline)))
    );
    cluster.net.open.send_replace(true);
    cluster.shutdown().await;
}

/// A disk that hangs must not be waited for by more threads than reads may have.
#[tokio::test]
async fn a_chunk_that_is_put_again_is_read_within_the_bound_of_reads() {
    let cluster = Cluster::new().await;
    let data = body(1, 5000);
    let chunk = cluster.put(1, &data).await.unwrap();
    let inner = &cluster.node(1).inner;
    let mut slots = Vec::new();
    while let Some(slot) = inner.local_reads.try_take() {
        slots.push(slot);
    }
    let short = Context::with_timeout(Duration::from_millis(50));
    assert_eq!(
        inner.still_here(&short, chunk).await,
        Err(BlobError::NotApplied(Ended::Deadline))
    );
    slots.clear();
    assert_eq!(inner.still_here(&seconds(5), chunk).await, Ok(true));
    cluster.shutdown().await;
}

#[tokio::test]
async fn chunks_of_no_size_and_of_too_much_are_refused() {
    let cluster = Cluster::new().await;
    for len in [0, CHUNK_BYTES + 4] {
        let refused = cluster.put(1, &body(1, len)).await;
        assert_eq!(refused, Err(BlobError::TooLarge(len)));
    }
    assert!(cluster.put(1, &body(1, CHUNK_BYTES)).await.is_ok());
    cluster.shutdown().await;
}

/// Asks until node 3 lacks nothing; what it said before.
async fn until_nothing_lacks(upkeep: &Upkeep) -> Vec<u64> {
    let mut said = Vec::new();
    loop {
        match upkeep.lacking(&seconds(10), GROUP, LogIndex(0)).await {
            Ok(0) => return said,
            Ok(lacking) => said.push(lacking),
            Err(why) => panic!("{why}"),
        }
        assert!(said.len() < 10_000, "{said:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_learner_lacks_chunks_until_repair_has_brought_them_and_looks_once_meanwhile() {
    let cluster = Cluster::new().await;
    let named = cluster.named_without_three(10).await;
    cluster.net.open.send_replace(false);
    let upkeep = cluster.upkeep(3);
    for _ in 0..5 {
        let lacking = upkeep.lacking(&seconds(5), GROUP, LogIndex(0)).await;
        assert_eq!(lacking, Ok(10));
    }
    assert_eq!(
        cluster.rows.walks.load(Ordering::SeqCst),
        1,
        "they share a check"
    );
    let lacking = || cluster.node(3).inner.metrics.lacking.get();
    assert_eq!(lacking(), 10);

    cluster.net.open.send_replace(true);
    until_nothing_lacks(&upkeep).await;
    for chunk in named {
        assert_eq!(
            cluster.holders(chunk),
            [1, 2, 3],
            "on the disk when it is said"
        );
    }
    cluster.stragglers().await;
    assert_eq!(lacking(), 0);
    cluster.shutdown().await;
}

/// Invariant 1 of `promotion`: an early view has no manifests, and lacks nothing.
#[tokio::test]
async fn a_learner_is_silent_until_it_has_applied_what_the_leader_had_committed() {
    let cluster = Cluster::new().await;
    let upkeep = cluster.upkeep(3);
    let brief = Context::with_timeout(Duration::from_millis(50));
    let early = upkeep.lacking(&brief, GROUP, LogIndex(6)).await;
    assert!(early.unwrap_err().contains("not caught up"));
    assert_eq!(cluster.rows.walks.load(Ordering::SeqCst), 0);

    cluster.named_without_three(2).await;
    cluster.rows.applied.store(6, Ordering::SeqCst);
    let lacking = upkeep.lacking(&seconds(5), GROUP, LogIndex(6)).await;
    assert_eq!(lacking, Ok(2));
    let brief = Context::with_timeout(Duration::from_millis(50));
    let elsewhere = upkeep.lacking(&brief, GroupId(9), LogIndex(0)).await;
    assert!(elsewhere.is_err(), "it does not host that group");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_learner_that_cannot_read_a_row_does_not_say_that_it_lacks_nothing() {
    let cluster = Cluster::new().await;
    cluster.rows.unreadable.store(true, Ordering::SeqCst);
    let upkeep = cluster.upkeep(3);
    let unknown = upkeep.lacking(&seconds(5), GROUP, LogIndex(0)).await;
    assert!(unknown.unwrap_err().contains("newer format"));
    cluster.rows.unreadable.store(false, Ordering::SeqCst);
    cluster.stragglers().await;
    let lacking = upkeep.lacking(&seconds(5), GROUP, LogIndex(0)).await;
    assert_eq!(lacking, Ok(0));
    cluster.shutdown().await;
}

/// Otherwise one lost object would forbid ever replacing a node again. Who may have it and does not
/// answer is waited for, unless it was removed for good.
#[tokio::test]
async fn what_no_replica_has_holds_no_promotion_back_and_what_one_may_have_does() {
    let cluster = Cluster::new().await;
    cluster.named_without_three(1).await;
    cluster.rows.named.lock().insert(ChunkRef::of(b"never put"));
    let upkeep = cluster.upkeep(3);
    cluster.kill(2);
    for _ in 0..3 {
        let lacking = upkeep.lacking(&seconds(5), GROUP, LogIndex(0)).await;
        assert!(matches!(lacking, Ok(1 | 2)), "{lacking:?}");
        cluster.stragglers().await;
    }
    cluster.places.removed.lock().insert(NodeId(2));
    let said = until_nothing_lacks(&upkeep).await;
    assert!(said.iter().all(|lacking| *lacking == 1), "{said:?}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn learners_get_new_chunks_and_neither_hold_up_nor_fail_nor_complete_a_put() {
    let cluster = Cluster::new().await;
    cluster.places.learners.lock().insert(NodeId(3));
    let chunk = cluster.put(1, &body(1, 1000)).await.unwrap();
    cluster.stragglers().await;
    assert_eq!(cluster.holders(chunk), [1, 2, 3]);
    let adopted = {
        cluster.kill(3);
        let chunk = cluster.put(1, &body(2, 1000)).await.unwrap();
        cluster.stragglers().await;
        cluster.net.dead.lock().clear();
        chunk
    };
    let adopting = cluster.node(1);
    adopting
        .adopt(&seconds(5), NEAR, NEAR, &[adopted])
        .await
        .unwrap();
    cluster.stragglers().await;
    assert_eq!(cluster.holders(adopted), [1, 2, 3]);

    cluster.net.silent.lock().insert(NodeId(3));
    let began = tokio::time::Instant::now();
    cluster.put(1, &body(3, 1000)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    cluster.net.silent.lock().clear();

    cluster.kill(2);
    let refused = cluster.put(1, &body(4, 1000)).await.unwrap_err();
    let BlobError::NoMajority {
        stored: 1,
        needed: 2,
        ..
    } = refused
    else {
        panic!("{refused:?}")
    };
    cluster.shutdown().await;
}

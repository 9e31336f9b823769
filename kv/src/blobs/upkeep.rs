//! What keeps chunks in order while nobody looks: ages, repair, collection, compaction, scrubbing.
//!
//! A *walk* visits every manifest among the applied rows of every group of this node, in one view
//! per group. What a row names and the disk has is marked as needed; what the disk lacks is fetched.
//! After a walk that saw everything, chunks not needed for a whole [`GRACE`] are forgotten.
//!
//! # Why nothing that is needed is collected
//! 1. *Ages count good time only.* The clock of ages runs while every group here is led, by this
//!    node with a quorum or by one that was heard a moment ago, and has applied what was heard to be
//!    committed then. So it stands still while a manifest could be waiting in a log for a quorum to
//!    return, or have committed without this node, and no wall clock is asked.
//! 2. A manifest is proposed within [`super::FRESH`] of the put or adoption of each chunk it names,
//!    evaluated within its deadline, and applied here within the lag that (1) allows. That is much
//!    less than `GRACE`, so its chunks are still young when the first walk can see it.
//! 3. A walk takes its time *before* its views, and marks with that time. A chunk that was put,
//!    adopted or marked after is younger. Collection looks at the age again under the index's lock.
//! 4. Every age is zero at open, so what was promised before a restart holds after it.
//! 5. A row that moves between groups is adopted at its new place first; within a group a view sees
//!    it at its old or its new place.
//! 6. A row that cannot be read, or a group whose rows are being replaced, ends the walk: nothing is
//!    collected.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use leadline_raft::{Context, GroupId, LogIndex};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use super::promotion::Checks;
use super::replicated::{Inner, ReplicatedBlobs};
use super::{BlobError, ChunkHash, ChunkRef, GRACE};

const TICK: Duration = Duration::from_secs(1);
/// A walk is followed by a rest of so many times its length, at least: walks take 2 % of a core.
const REST: u32 = 50;
/// What one walk remembers as missing; the next finds the rest.
const MOST_MISSING: usize = 4096;
/// Fetches of repair at a time, and how long one may take.
const REPAIRS: usize = 4;
const REPAIR: Duration = Duration::from_secs(30);
/// Bytes a second for repair, for moving chunks out of sparse segments, for scrubbing.
const REPAIR_RATE: u64 = 64 << 20;
const COMPACT_RATE: u64 = 32 << 20;
const SCRUB_RATE: u64 = 8 << 20;
/// A sealed segment of which less than this many percent is needed is given up.
const SPARSE: u64 = 50;
/// Between two scrubs of everything, and before the first.
const SCRUB: Duration = Duration::from_secs(24 * 3600);
const SCRUB_FIRST: Duration = Duration::from_secs(600);

/// The manifests among this node's rows.
pub(crate) trait Manifests: Send + Sync + 'static {
    /// Whether every group of this node is in contact with a leader and has applied all that was
    /// heard to be committed when this was asked last. Asked about once a second.
    fn settled(&self) -> bool;

    /// How far the rows of `group` are applied here; `None` if they are not here.
    fn applied(&self, group: GroupId) -> Option<LogIndex>;

    /// [`Manifests::walk`] of one group; nothing is named where no door names chunks.
    ///
    /// # Errors
    /// Not everything was seen; also when `ctx` ended first.
    fn walk_group(
        &self,
        ctx: &Context,
        group: GroupId,
        visit: &mut dyn FnMut(&[u8], ChunkRef),
    ) -> Result<(), String>;

    /// Calls `visit` with every chunk that an applied row names, and the row's key; each group as of
    /// one instant after the call. Blocks on storage.
    ///
    /// # Errors
    /// Not everything was seen.
    fn walk(&self, visit: &mut dyn FnMut(&[u8], ChunkRef)) -> Result<(), String>;
}

/// What a walk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Walked {
    pub(super) missing: usize,
    pub(super) repaired: usize,
    pub(super) collected: usize,
}

/// What rows name and the disk lacks.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) count: u64,
    /// The first [`MOST_MISSING`] of them, and a row that names them.
    pub(super) chunks: Vec<(Vec<u8>, ChunkRef)>,
}

impl Missing {
    pub(super) fn add(&mut self, near: &[u8], chunk: ChunkRef) {
        self.count += 1;
        if self.chunks.len() < MOST_MISSING {
            self.chunks.push((near.to_vec(), chunk));
        }
    }
}

/// What a repair did.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    pub(super) brought: usize,
    /// Every replica answered that it does not have these.
    pub(super) lost: HashSet<ChunkHash>,
}

impl ReplicatedBlobs {
    /// Keeps the chunks of this node in order until shutdown; manifests are walked about `every` so
    /// often.
    pub(crate) fn start_upkeep(&self, manifests: Arc<dyn Manifests>, every: Duration) -> Upkeep {
        let started = Upkeep::new(Arc::clone(&self.inner), manifests);
        let upkeep = started.clone();
        let stop = self.inner.stop.clone();
        let ages = upkeep.clone();
        self.inner.tasks.spawn({
            let stop = stop.clone();
            async move {
                stop.run_until_cancelled(ages.count_time()).await;
            }
        });
        let scrub = upkeep.clone();
        self.inner.tasks.spawn({
            let stop = stop.clone();
            async move {
                stop.run_until_cancelled(scrub.scrub_for_ever()).await;
            }
        });
        self.inner.tasks.spawn(async move {
            stop.run_until_cancelled(upkeep.walk_for_ever(every)).await;
        });
        started
    }
}

/// One node's upkeep; cloning shares it.
#[derive(Clone)]
pub(crate) struct Upkeep {
    pub(super) inner: Arc<Inner>,
    pub(super) manifests: Arc<dyn Manifests>,
    /// What new replicas on this node wait for: see [`super::promotion`].
    pub(super) checks: Arc<Mutex<Checks>>,
    repairs: Arc<Repairs>,
}

/// What all repairs of a node share.
struct Repairs {
    slots: Semaphore,
    pace: Pace,
}

impl Upkeep {
    pub(super) fn new(inner: Arc<Inner>, manifests: Arc<dyn Manifests>) -> Self {
        Self {
            inner,
            manifests,
            checks: Arc::default(),
            repairs: Arc::new(Repairs {
                slots: Semaphore::new(REPAIRS),
                pace: Pace::new(REPAIR_RATE),
            }),
        }
    }

    pub(super) async fn count_time(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A tick is a second at least: what was late is not made up for.
            ticks.tick().await;
            if self.manifests.settled() {
                self.inner.store.advance(1);
            }
        }
    }

    /// For how long chunks have aged, and whether they do.
    #[cfg(test)]
    pub(crate) fn ages(&self) -> (u32, bool) {
        (self.inner.store.now(), self.manifests.settled())
    }

    async fn walk_for_ever(&self, every: Duration) {
        let mut rest = every;
        loop {
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                // Something was found damaged.
                () = self.inner.wanting.notified() => tokio::time::sleep(every).await,
            }
            let began = Instant::now();
            if let Err(why) = self.walk().await {
                tracing::debug!(why, "the manifests could not be walked");
            }
            rest = began.elapsed().saturating_mul(REST).max(every);
            if let Err(why) = self.compact().await {
                tracing::warn!(why, "making room among the blobs");
            }
        }
    }

    /// One walk: marks, collects, repairs.
    pub(super) async fn walk(&self) -> Result<Walked, String> {
        let store = Arc::clone(&self.inner.store);
        // Before any view (3).
        let began = store.now();
        let manifests = Arc::clone(&self.manifests);
        let marking = Arc::clone(&store);
        let (missing, seen) = tokio::task::spawn_blocking(move || {
            let mut missing = Missing::default();
            let seen = manifests.walk(&mut |near, chunk| {
                if !marking.mark(chunk, began) {
                    missing.add(near, chunk);
                }
            });
            (missing.chunks, seen)
        })
        .await
        .map_err(|error| error.to_string())?;
        let mut walked = Walked {
            missing: missing.len(),
            ..Walked::default()
        };
        // Durability first; and what was seen is worth repairing even if not all was seen.
        walked.repaired = self.repair(missing, |_| {}).await.brought;
        // (6)
        seen?;
        let grace = u32::try_from(GRACE.as_secs()).unwrap_or(u32::MAX);
        if let Some(limit) = began.checked_sub(grace) {
            let collecting = tokio::task::spawn_blocking(move || store.collect(limit));
            walked.collected = collecting.await.map_err(|error| error.to_string())?;
        }
        if walked.collected > 0 {
            tracing::info!(
                chunks = walked.collected,
                "collected chunks that no row names"
            );
        }
        Ok(walked)
    }

    /// Fetches what rows name and the disk lacks. `so_far` hears how many have come.
    pub(super) async fn repair(
        &self,
        missing: Vec<(Vec<u8>, ChunkRef)>,
        mut so_far: impl FnMut(usize),
    ) -> Repaired {
        let mut repaired = Repaired::default();
        if missing.is_empty() {
            return repaired;
        }
        tracing::info!(
            chunks = missing.len(),
            "fetching chunks that this disk lacks"
        );
        let mut fetching = futures::stream::iter(missing)
            .map(|(near, chunk)| async move { (chunk, self.bring(&near, chunk).await) })
            .buffer_unordered(REPAIRS);
        while let Some((chunk, outcome)) = fetching.next().await {
            match outcome {
                Ok(()) => {
                    repaired.brought += 1;
                    so_far(repaired.brought);
                }
                Err(BlobError::Missing(_)) => {
                    repaired.lost.insert(chunk.hash);
                }
                Err(error) => tracing::debug!(%chunk, %error, "a chunk was not fetched"),
            }
        }
        if !repaired.lost.is_empty() {
            let lost = repaired.lost.len();
            tracing::error!(chunks = lost, "rows name chunks that no replica has");
        }
        repaired
    }

    async fn bring(&self, near: &[u8], chunk: ChunkRef) -> Result<(), BlobError> {
        let slot = self.repairs.slots.acquire().await;
        let _slot = slot.map_err(|_| BlobError::Stopping)?;
        // Another repair has brought it.
        if self.inner.store.contains(chunk) {
            return Ok(());
        }
        self.repairs.pace.spend(u64::from(chunk.len)).await;
        let ctx = Context::with_timeout(REPAIR);
        self.inner.get(&ctx, near, chunk).await.map(drop)
    }

    /// Moves what is needed out of sparse segments, and gives them up.
    pub(super) async fn compact(&self) -> Result<(), String> {
        let pace = Pace::new(COMPACT_RATE);
        for segment in self.inner.store.sparse(SPARSE) {
            let store = Arc::clone(&self.inner.store);
            let looked = Arc::clone(&segment);
            let live = blocking(move || store.live_in(&looked))
                .await?
                .map_err(|error| error.to_string())?;
            for (hash, at) in live {
                pace.spend(at.bytes()).await;
                let store = Arc::clone(&self.inner.store);
                blocking(move || store.relocate(hash, at))
                    .await?
                    .map_err(|error| error.to_string())?;
            }
            let store = Arc::clone(&self.inner.store);
            blocking(move || store.delete_if_empty(&segment))
                .await?
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn scrub_for_ever(&self) {
        tokio::time::sleep(SCRUB_FIRST).await;
        loop {
            match self.scrub(SCRUB_RATE).await {
                Ok(0) => {}
                Ok(bad) => tracing::error!(chunks = bad, "scrubbing found damaged chunks"),
                Err(why) => tracing::warn!(why, "scrubbing the blobs"),
            }
            tokio::time::sleep(SCRUB).await;
        }
    }

    /// Reads everything once and compares it with its names; how much was bad, and is fetched anew.
    pub(super) async fn scrub(&self, rate: u64) -> Result<usize, String> {
        let pace = Pace::new(rate);
        let mut bad = 0;
        for segment in self.inner.store.sealed() {
            let store = Arc::clone(&self.inner.store);
            let live = blocking(move || store.live_in(&segment))
                .await?
                // Given up meanwhile.
                .unwrap_or_default();
            for (hash, at) in live {
                pace.spend(at.bytes()).await;
                let store = Arc::clone(&self.inner.store);
                if !blocking(move || store.scrub(hash, at)).await? {
                    bad += 1;
                    self.inner.wanting.notify_one();
                }
            }
        }
        Ok(bad)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}

/// Lets so many bytes a second pass.
struct Pace {
    rate: u64,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may pass.
    async fn spend(&self, bytes: u64) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

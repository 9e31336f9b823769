//! The MD5s of bodies that are received at the same time, in the lanes of one register.
//!
//! A chunk waits in a queue until its digest is needed: then whoever else waits is hashed with it. A
//! body needs it when its chunk is on the replicas, which takes longer than hashing does, so that
//! several have come by then. With no other body under way nothing is waited for.
//!
//! # Invariants
//! 1. A body has at most one chunk here, which its permits pay for; a body that goes away takes it
//!    along, at the latest within one [`STEP`].
//! 2. While a chunk is pressing, a thread hashes: whoever makes it pressing sees to that, and a thread
//!    ends only under the lock that says that none is.
//! 3. Threads end when nothing presses; there are never more than processors.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::Lost;
use super::md5::{self, BLOCK, Md5};

/// Blocks that are hashed before newcomers are let in: 32 KiB of each stream.
const STEP: usize = 512;

/// Takes the MD5s of a node's bodies. Clones share their lanes.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Chunks that a thread hashes at a time.
    width: usize,
    /// Threads that hash at a time.
    threads: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// Bodies under way: each may bring a chunk.
    bodies: usize,
    /// Threads that hash.
    threads: usize,
}

#[derive(Debug)]
struct Job {
    md5: Md5,
    chunk: Bytes,
    /// Bytes of `chunk` that are hashed.
    done: usize,
    needed: Arc<AtomicBool>,
    reply: oneshot::Sender<Md5>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        Self::of(md5::lanes(), threads)
    }

    fn of(width: usize, threads: usize) -> Self {
        let queue = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                queue,
                width,
                threads,
            }),
        }
    }

    /// Says that a body is under way, until the guard is dropped.
    pub(crate) fn body(&self) -> Body {
        self.shared.queue.lock().bodies += 1;
        Body {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Queues the next chunk of a stream.
    pub(super) fn update(&self, mut md5: Md5, chunk: Bytes) -> Pending {
        let (reply, hashed) = oneshot::channel();
        let needed = Arc::new(AtomicBool::new(false));
        let done = md5.begin(&chunk);
        let job = Job {
            md5,
            chunk,
            done,
            needed: Arc::clone(&needed),
            reply,
        };
        let shared = &self.shared;
        shared.start_if(|queue| {
            queue.waiting.push_back(job);
            let waiting = queue.waiting.len();
            let full = waiting >= shared.width;
            queue.threads == 0 && (full || waiting >= queue.bodies)
                || full && queue.threads < shared.threads
        });
        Pending {
            shared: Arc::clone(&self.shared),
            needed,
            hashed,
        }
    }
}

/// A body under way.
#[derive(Debug)]
pub(crate) struct Body {
    shared: Arc<Shared>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.shared.queue.lock().bodies -= 1;
    }
}

/// A chunk in the queue or in a lane. Dropping it takes the chunk out.
#[derive(Debug)]
pub(super) struct Pending {
    shared: Arc<Shared>,
    needed: Arc<AtomicBool>,
    hashed: oneshot::Receiver<Md5>,
}

impl Pending {
    /// The stream's MD5 with the chunk, which is needed now.
    pub(super) async fn wait(mut self) -> Result<Md5, Lost> {
        match self.hashed.try_recv() {
            Ok(hashed) => return Ok(hashed),
            Err(TryRecvError::Closed) => return Err(Lost),
            Err(TryRecvError::Empty) => {}
        }
        self.needed.store(true, Ordering::Release);
        self.shared.start_if(|queue| queue.threads == 0);
        (&mut self.hashed).await.map_err(|_| Lost)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.hashed.close();
        let gone = |job: &Job| job.reply.is_closed();
        self.shared.queue.lock().waiting.retain(|job| !gone(job));
    }
}

impl Shared {
    /// Starts a thread if `decide` says so. The work is its callers', who wait for it; it ends with what
    /// is pressing.
    fn start_if(self: &Arc<Self>, decide: impl FnOnce(&mut Queue) -> bool) {
        let start = {
            let mut queue = self.queue.lock();
            let start = decide(&mut queue);
            queue.threads += usize::from(start);
            start
        };
        if start {
            let hasher = Hasher {
                shared: Arc::clone(self),
                ended: false,
            };
            tokio::task::spawn_blocking(move || hasher.run());
        }
    }
}

/// A thread that hashes, from when it is counted.
struct Hasher {
    shared: Arc<Shared>,
    ended: bool,
}

impl Hasher {
    fn run(mut self) {
        let mut lanes = Vec::with_capacity(self.shared.width);
        while self.fill(&mut lanes) {
            step(&mut lanes);
            for job in lanes.extract_if(.., |job| job.blocks() == 0) {
                job.finish();
            }
        }
    }

    /// Lets waiting chunks into free lanes; if none of them presses, all go back to wait and the thread
    /// is to end.
    fn fill(&mut self, lanes: &mut Vec<Job>) -> bool {
        let mut queue = self.shared.queue.lock();
        lanes.retain(|job| !job.reply.is_closed());
        let room = self.shared.width - lanes.len();
        let joining = queue.waiting.len().min(room);
        lanes.extend(queue.waiting.drain(..joining));
        let pressing = lanes.len() == self.shared.width
            || lanes.len() >= queue.bodies
            || lanes.iter().any(|job| job.needed.load(Ordering::Acquire));
        if lanes.is_empty() || !pressing {
            for job in lanes.drain(..).rev() {
                queue.waiting.push_front(job);
            }
            queue.threads -= 1;
            self.ended = true;
        }
        !self.ended
    }
}

/// A thread that was never run, or that panicked: nobody may go on to wait for it.
impl Drop for Hasher {
    fn drop(&mut self) {
        if !self.ended {
            let mut queue = self.shared.queue.lock();
            queue.threads -= 1;
            queue.waiting.clear();
        }
    }
}

/// Hashes as much of each chunk as the shortest has left.
fn step(jobs: &mut [Job]) {
    let mut jobs: Vec<_> = jobs.iter_mut().filter(|job| job.blocks() > 0).collect();
    let shortest = jobs.iter().map(|job| job.blocks()).min();
    let blocks = shortest.unwrap_or(0).min(STEP);
    let mut streams: Vec<_> = jobs
        .iter_mut()
        .map(|job| {
            let next = &job.chunk[job.done..][..blocks * BLOCK];
            job.done += next.len();
            (&mut job.md5, next.as_chunks().0)
        })
        .collect();
    md5::update_all(&mut streams);
}

impl Job {
    /// Whole blocks that are left.
    fn blocks(&self) -> usize {
        (self.chunk.len() - self.done) / BLOCK
    }

    fn finish(mut self) {
        self.md5.end(&self.chunk[self.done..]);
        drop(self.chunk);
        // Whoever asked may have left.
        let _ = self.reply.send(self.md5);
    }
}

#[cfg(test)]
mod tests {
    use ::md5::{Digest as _, Md5 as Known};
    use futures::future::join_all;
    use proptest::prelude::*;

    use super::*;

    fn chunk(seed: usize, length: usize) -> Bytes {
        (0..length).map(|i| (i * 31 + seed * 7) as u8).collect()
    }

    fn known(bytes: &[u8]) -> [u8; 16] {
        Known::digest(bytes).into()
    }

    async fn digest(lanes: &Lanes, whole: Bytes, piece: usize) -> [u8; 16] {
        let _body = lanes.body();
        let mut md5 = Md5::new();
        for start in (0..whole.len()).step_by(piece) {
            let piece = whole.slice(start..(start + piece).min(whole.len()));
            md5 = lanes.update(md5, piece).wait().await.unwrap();
        }
        md5.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn bodies_at_a_time_have_the_digests_they_have_alone(
            bodies in prop::collection::vec((0..100_000_usize, 100..60_000_usize), 1..24),
            width in 1..20_usize,
            threads in 1..3_usize,
        ) {
            let lanes = Lanes::of(width, threads);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let wholes: Vec<_> = bodies.iter().enumerate().map(|(i, body)| chunk(i, body.0)).collect();
            let digests = wholes.iter().zip(&bodies);
            let digests = digests.map(|(whole, body)| digest(&lanes, whole.clone(), body.1));
            let digests = runtime.block_on(join_all(digests));
            for (digest, whole) in digests.into_iter().zip(&wholes) {
                prop_assert_eq!(digest, known(whole));
            }
            prop_assert!(lanes.shared.queue.lock().waiting.is_empty());
        }
    }

    #[tokio::test]
    async fn a_chunk_waits_for_others_until_it_is_needed() {
        let lanes = Lanes::of(8, 1);
        let _bodies = [lanes.body(), lanes.body(), lanes.body()];
        let chunks = [chunk(1, 100_000), chunk(2, 200_000)];
        let [first, second] = chunks.clone().map(|chunk| lanes.update(Md5::new(), chunk));
        assert_eq!(lanes.shared.queue.lock().waiting.len(), 2);
        assert_eq!(lanes.shared.queue.lock().threads, 0);
        assert_eq!(first.wait().await.unwrap().finish(), known(&chunks[0]));
        assert_eq!(second.wait().await.unwrap().finish(), known(&chunks[1]));
    }

    #[tokio::test]
    async fn nothing_is_waited_for_when_all_bodies_under_way_have_come() {
        let lanes = Lanes::of(8, 1);
        let _bodies = [lanes.body(), lanes.body()];
        let chunk = chunk(1, 100_000);
        let [mut first, mut second] = [0, 1].map(|_| lanes.update(Md5::new(), chunk.clone()));
        let first = (&mut first.hashed).await.unwrap();
        let second = (&mut second.hashed).await.unwrap();
        assert_eq!(first.finish(), known(&chunk));
        assert_eq!(second.finish(), known(&chunk));
    }

    #[tokio::test]
    async fn a_body_that_goes_away_takes_its_chunk_along_and_holds_up_nobody() {
        let lanes = Lanes::of(8, 1);
        let _bodies = [lanes.body(), lanes.body(), lanes.body()];
        let (gone, stays) = (chunk(1, 100_000), chunk(2, 100_000));
        let pending = lanes.update(Md5::new(), gone.clone());
        let other = lanes.update(Md5::new(), stays.clone());
        assert!(!gone.is_unique());
        drop(pending);
        assert!(gone.is_unique(), "the queue let go of it");
        assert_eq!(other.wait().await.unwrap().finish(), known(&stays));

        // One that is in its lane is let go of at the end of a step.
        let pending = lanes.update(Md5::new(), gone.clone());
        pending.needed.store(true, Ordering::Release);
        pending.shared.start_if(|_| true);
        drop(pending);
        while !gone.is_unique() {
            tokio::task::yield_now().await;
        }
    }

    /// As when the process stops: a wait has an end.
    #[tokio::test]
    async fn a_thread_that_never_ran_ends_the_wait() {
        let lanes = Lanes::of(8, 1);
        let _bodies = [lanes.body(), lanes.body()];
        let pending = lanes.update(Md5::new(), chunk(1, 100_000));
        lanes.shared.queue.lock().threads += 1;
        drop(Hasher {
            shared: Arc::clone(&lanes.shared),
            ended: false,
        });
        assert!(pending.wait().await.is_err());
        assert_eq!(lanes.shared.queue.lock().threads, 0);
    }
}

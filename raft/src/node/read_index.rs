//! ReadIndex, coalesced: however many callers wait, at most one round is in flight and one waits
//! (Ongaro, section 6.4).
//!
//! A caller joins the batch that waits; when the round in flight ends, the next round takes that
//! batch. A round that fails for want of a quorum is sent again as long as anyone waits for it,
//! and takes along who came meanwhile.
//!
//! # Invariants
//! 1. A caller is answered only by a round that began after its call.
//! 2. At most one round is in flight; what a caller costs does not depend on how many there are.
//! 3. A caller that is dropped leaves nothing behind: its place is free at once.
//! 4. Without callers there are no rounds.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::engine::ReadIndex;
use crate::{Context, RaftError};

/// Callers that may wait in one group.
const MAX_WAITING: usize = 65_536;

/// How one round ended.
#[derive(Clone, Debug)]
pub(crate) enum Round {
    /// A quorum answered.
    Confirmed(ReadIndex),
    /// No quorum answered within the round's bound: worth another round.
    NoQuorum,
    /// This node is not the leader, or has stopped: no other round would help.
    Refused(RaftError),
}

/// Sends one round and waits for its end, within a bound of its own.
pub(crate) trait Rounds: Send + Sync {
    fn round(&self) -> impl Future<Output = Round> + Send;
}

/// Callers that one round answers.
struct Batch {
    waiting: AtomicUsize,
    answer: OnceLock<Result<ReadIndex, RaftError>>,
    answered: Notify,
}

impl Batch {
    fn answer(&self, answer: Result<ReadIndex, RaftError>) {
        // Only the driver answers, once per batch: it gives the batch up as it does.
        let _ = self.answer.set(answer);
        self.answered.notify_waiters();
    }
}

/// The callers of one group that wait for a proof of leadership.
#[derive(Default)]
pub(crate) struct ReadIndexQueue {
    /// The batch that the next round takes.
    next: Mutex<Option<Arc<Batch>>>,
    /// Wakes the driver when a batch waits.
    arrived: Notify,
    waiting: AtomicUsize,
    rounds: AtomicU64,
}

/// A caller's place. Dropping it gives it back.
struct Place<'a> {
    queue: &'a ReadIndexQueue,
    batch: Arc<Batch>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.batch.waiting.fetch_sub(1, Ordering::Relaxed);
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReadIndexQueue {
    /// How many callers wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many rounds were sent so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits for the first round that begins after this call, until `ctx` ends. Cancel safe.
    pub(crate) async fn verify(&self, ctx: &Context) -> Result<ReadIndex, RaftError> {
        let place = self.join()?;
        let answered = place.batch.answered.notified();
        tokio::pin!(answered);
        // Registered before the look at the answer: an answer in between is not missed.
        answered.as_mut().enable();
        if let Some(answer) = place.batch.answer.get() {
            return answer.clone();
        }
        ctx.run(answered).await.map_err(RaftError::NotApplied)?;
        place
            .batch
            .answer
            .get()
            .expect("a batch is answered before its callers are woken")
            .clone()
    }

    fn join(&self) -> Result<Place<'_>, RaftError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(RaftError::Overloaded("callers wait for a ReadIndex round"));
        }
        let mut next = self.next.lock();
        let (batch, first) = match &*next {
            Some(batch) => (batch.clone(), false),
            None => {
                let batch = Arc::new(Batch {
                    waiting: AtomicUsize::new(0),
                    answer: OnceLock::new(),
                    answered: Notify::new(),
                });
                *next = Some(batch.clone());
                (batch, true)
            }
        };
        batch.waiting.fetch_add(1, Ordering::Relaxed);
        drop(next);
        if first {
            self.arrived.notify_one();
        }
        Ok(Place { queue: self, batch })
    }

    /// Answers everyone who waits for a round that has not begun.
    pub(crate) fn refuse_waiting(&self, error: &RaftError) {
        if let Some(batch) = self.next.lock().take() {
            batch.answer(Err(error.clone()));
        }
    }

    /// Sends rounds for as long as this future lives. One driver per queue. At its drop, callers of
    /// the round in flight stay unanswered until their contexts end, unless a new driver comes:
    /// see [`ReadIndexQueue::refuse_waiting`] for those that wait.
    pub(crate) async fn drive(&self, rounds: &impl Rounds) {
        // The batches the round in flight answers: more than one after a round without a quorum.
        let mut current = InFlight(Vec::new());
        loop {
            let next = self.next.lock().take();
            current.0.extend(next);
            current
                .0
                .retain(|batch| batch.waiting.load(Ordering::Relaxed) > 0);
            if current.0.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            match rounds.round().await {
                Round::NoQuorum => {}
                Round::Confirmed(read) => current.answer(&Ok(read)),
                Round::Refused(error) => current.answer(&Err(error)),
            }
        }
    }
}

/// Batches that a driver owes an answer, which they get at the latest when it is dropped.
struct InFlight(Vec<Arc<Batch>>);

impl InFlight {
    fn answer(&mut self, answer: &Result<ReadIndex, RaftError>) {
        for batch in self.0.drain(..) {
            batch.answer(answer.clone());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.answer(&Err(RaftError::NotLeader { leader: None }));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{Semaphore, watch};
    use tokio::time::Instant;

    use super::*;
    use crate::{Ended, LeaderId, LogIndex, NodeId, Term};

    /// Rounds that end when the test says so. The n-th round names index n.
    struct Gated {
        begun: watch::Sender<u64>,
        permits: Semaphore,
        bound: Duration,
        refuse: Mutex<Option<RaftError>>,
    }

    impl Gated {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                begun: watch::channel(0).0,
                permits: Semaphore::new(0),
                bound: Duration::from_millis(400),
                refuse: Mutex::new(None),
            })
        }

        async fn rounds(&self, count: u64) {
            self.begun
                .subscribe()
                .wait_for(|n| *n >= count)
                .await
                .unwrap();
        }
    }

    impl Rounds for Gated {
        async fn round(&self) -> Round {
            self.begun.send_modify(|n| *n += 1);
            let index = *self.begun.borrow();
            if let Some(error) = &*self.refuse.lock() {
                return Round::Refused(error.clone());
            }
            match tokio::time::timeout(self.bound, self.permits.acquire()).await {
                Ok(permit) => {
                    permit.unwrap().forget();
                    Round::Confirmed(ReadIndex {
                        leader: LeaderId {
                            term: Term(1),
                            node: NodeId(1),
                        },
                        index: LogIndex(index),
                    })
                }
                Err(_) => Round::NoQuorum,
            }
        }
    }

    fn start(rounds: &Arc<Gated>) -> (Arc<ReadIndexQueue>, tokio::task::JoinSet<()>) {
        let queue = Arc::new(ReadIndexQueue::default());
        let mut tasks = tokio::task::JoinSet::new();
        let (driven, rounds) = (queue.clone(), rounds.clone());
        tasks.spawn(async move { driven.drive(&*rounds).await });
        (queue, tasks)
    }

    fn call(
        queue: &Arc<ReadIndexQueue>,
        callers: &mut tokio::task::JoinSet<(Result<ReadIndex, RaftError>, Duration)>,
        timeout: Duration,
    ) {
        let queue = queue.clone();
        callers.spawn(async move {
            let began = Instant::now();
            let result = queue.verify(&Context::with_timeout(timeout)).await;
            (result, began.elapsed())
        });
    }

    async fn waiting(queue: &ReadIndexQueue, count: usize) {
        while queue.waiting() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_callers_costs_at_most_two_rounds() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut callers = tokio::task::JoinSet::new();
        call(&queue, &mut callers, Duration::from_secs(5));
        rounds.rounds(1).await;
        for _ in 0..1000 {
            call(&queue, &mut callers, Duration::from_secs(5));
        }
        waiting(&queue, 1001).await;
        rounds.permits.add_permits(2);
        while let Some(caller) = callers.join_next().await {
            caller.unwrap().0.unwrap();
        }
        assert_eq!(queue.rounds(), 2);
        assert_eq!(queue.waiting(), 0);
    }

    /// What began before the call proves nothing for it.
    #[tokio::test(start_paused = true)]
    async fn a_late_caller_is_never_answered_by_a_round_that_began_before_it() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut early = tokio::task::JoinSet::new();
        let mut late = tokio::task::JoinSet::new();
        call(&queue, &mut early, Duration::from_secs(5));
        rounds.rounds(1).await;
        call(&queue, &mut late, Duration::from_secs(5));
        waiting(&queue, 2).await;
        rounds.permits.add_permits(1);
        let read = early.join_next().await.unwrap().unwrap().0.unwrap();
        assert_eq!(read.index, LogIndex(1));
        rounds.rounds(2).await;
        assert!(late.try_join_next().is_none());
        rounds.permits.add_permits(1);
        let read = late.join_next().await.unwrap().unwrap().0.unwrap();
        assert_eq!(read.index, LogIndex(2));
    }

    #[tokio::test(start_paused = true)]
    async fn every_caller_ends_at_its_own_deadline_when_no_quorum_answers() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut callers = tokio::task::JoinSet::new();
        for ms in 1..200 {
            call(&queue, &mut callers, Duration::from_millis(ms * 20));
        }
        let mut ends = Vec::new();
        while let Some(caller) = callers.join_next().await {
            let (result, elapsed) = caller.unwrap();
            assert_eq!(result, Err(RaftError::NotApplied(Ended::Deadline)));
            ends.push(elapsed.as_millis());
        }
        ends.sort_unstable();
        let expected: Vec<u128> = (1..200).map(|ms| ms * 20).collect();
        assert_eq!(ends, expected);
        assert_eq!(queue.waiting(), 0);
    }

    /// The founding incident: probes against a leader whose peers are dead.
    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_callers_at_a_dead_quorum_cost_a_round_per_bound() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..20_000 {
            call(&queue, &mut callers, Duration::from_secs(4));
        }
        waiting(&queue, 20_000).await;
        callers.join_all().await;
        assert!(queue.rounds() <= 11, "{} rounds", queue.rounds());
        let settled = queue.rounds();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(queue.rounds() <= settled + 1, "rounds without callers");
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_heal_serves_who_came_before_it_and_while_the_quorum_was_lost() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut callers = tokio::task::JoinSet::new();
        call(&queue, &mut callers, Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(1000)).await;
        call(&queue, &mut callers, Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(500)).await;
        rounds.permits.add_permits(1);
        for _ in 0..2 {
            let (result, elapsed) = callers.join_next().await.unwrap().unwrap();
            result.unwrap();
            assert!(elapsed <= Duration::from_millis(1700), "{elapsed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_a_caller_frees_its_place_at_once() {
        let rounds = Gated::new();
        let (queue, _driver) = start(&rounds);
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..10 {
            call(&queue, &mut callers, Duration::from_secs(5));
        }
        waiting(&queue, 10).await;
        callers.shutdown().await;
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_callers_are_refused_as_overload() {
        let queue = ReadIndexQueue::default();
        queue.waiting.store(MAX_WAITING, Ordering::Relaxed);
        let refused = queue.verify(&Context::fallback()).await;
        assert!(matches!(refused, Err(RaftError::Overloaded(_))));
        assert_eq!(queue.waiting(), MAX_WAITING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_round_for_all_who_wait_for_it() {
        let rounds = Gated::new();
        *rounds.refuse.lock() = Some(RaftError::NotLeader { leader: None });
        let (queue, _driver) = start(&rounds);
        let refused = queue.verify(&Context::fallback()).await;
        assert_eq!(refused, Err(RaftError::NotLeader { leader: None }));
    }
}

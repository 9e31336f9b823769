//! The few threads on which all shards of a node evaluate and apply.
//!
//! A shard's executor is a [`Job`]: it takes a step when it has something to do, and no two steps
//! of one job run at a time. Applies are errands: they run once, before any step, because clients
//! wait for them. On a small machine one thread serves every shard, so a batch costs one waking
//! however many shards it is for.
//!
//! # Invariants
//! 1. At most [`Pool::seats`] threads run at a time, unless one of them takes long: work that waits
//!    [`PATIENCE`] behind it is taken over by a spare thread, and the slow one then finishes beside
//!    it. So a long scan, or storage that stalls, holds up its own shard only.
//! 2. A job that is woken while it steps takes another step afterwards, also when its thread has
//!    lost the seat meanwhile: no waking is lost.
//! 3. What waits is bounded: a job waits once, and a group applies one batch at a time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long work waits behind a thread that takes its time.
const PATIENCE: Duration = Duration::from_millis(2);

/// Threads beyond the seats, for when the seated take long. Storage that stalls may hold this many
/// more; then what is queued waits for it.
const SPARES: usize = 8;

/// What a job does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another step, after the others had their turn.
    Again,
    /// Sleeps until it is woken, or until then.
    Sleep(Option<Instant>),
    /// Is never called again.
    Done,
}

/// Something that goes on in steps, each of which may block on storage.
pub(crate) trait Job: Send + 'static {
    fn step(&mut self) -> Step;
}

/// Work that is done once.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Asleep,
    Queued,
    Stepping,
    /// Woken while it steps.
    Restless,
}

struct Slot {
    /// `None` while it steps.
    job: Option<Box<dyn Job>>,
    status: Status,
    until: Option<Instant>,
}

#[derive(Default)]
struct State {
    errands: VecDeque<Errand>,
    queued: VecDeque<u64>,
    jobs: HashMap<u64, Slot>,
    timers: BTreeSet<(Instant, u64)>,
    next_job: u64,
    /// Threads that run or sleep in a seat.
    seated: usize,
    sleeping: usize,
    /// When each seated thread that runs began, by thread.
    began: Vec<Option<Instant>>,
    /// A spare thread looks whether what is queued gets its turn, or is about to.
    watched: bool,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    spare: Condvar,
    seats: usize,
    bell: Bell,
}

/// Jobs that are to be woken once the tasks that are ready now have had their turn.
#[derive(Default)]
struct Bell {
    jobs: Mutex<Vec<u64>>,
    rung: Notify,
}

/// The threads that evaluate and apply; they end with it.
pub struct Pool {
    shared: Arc<Shared>,
    /// Serves the bell; ends with the pool.
    _attendant: JoinSet<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("seats", &self.shared.seats)
            .finish_non_exhaustive()
    }
}

/// Wakes one job.
#[derive(Clone)]
pub(crate) struct JobHandle {
    shared: Weak<Shared>,
    id: u64,
}

impl std::fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobHandle")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts threads of which `seats` run at a time, at least one. Call within a tokio runtime.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(seats: usize) -> std::io::Result<Arc<Self>> {
        let seats = seats.max(1);
        let threads = seats + SPARES;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                began: vec![None; threads],
                ..State::default()
            }),
            work: Condvar::new(),
            spare: Condvar::new(),
            seats,
            bell: Bell::default(),
        });
        let mut attendant = JoinSet::new();
        attendant.spawn(Arc::clone(&shared).attend());
        // Ends what was started if a later thread is refused.
        let pool = Arc::new(Self {
            shared: Arc::clone(&shared),
            _attendant: attendant,
        });
        for me in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("shards-{me}"))
                .spawn(move || shared.serve(me))?;
        }
        Ok(pool)
    }

    /// A third of the cores: the others are for connections and consensus, see
    /// [`Pool::seats_among`].
    ///
    /// # Errors
    /// See [`Pool::new`].
    pub fn for_this_machine() -> std::io::Result<Arc<Self>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(Self::seats_among(cores))
    }

    /// How many of `cores` evaluate and apply.
    #[must_use]
    pub fn seats_among(cores: usize) -> usize {
        (cores / 3).max(1)
    }

    /// Adds a job, asleep.
    pub(crate) fn add(&self, job: Box<dyn Job>) -> JobHandle {
        let mut state = self.shared.state.lock();
        state.next_job += 1;
        let id = state.next_job;
        let slot = Slot {
            job: Some(job),
            status: Status::Asleep,
            until: None,
        };
        state.jobs.insert(id, slot);
        JobHandle {
            shared: Arc::downgrade(&self.shared),
            id,
        }
    }

    /// Runs `errand` soon, before any job's next step.
    pub(crate) fn run(&self, errand: Errand) {
        let mut state = self.shared.state.lock();
        state.errands.push_back(errand);
        self.shared.call(state);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.work.notify_all();
        self.shared.spare.notify_all();
    }
}

impl JobHandle {
    /// As [`JobHandle::wake`], once the tasks of the caller's worker that are ready now have had
    /// their turn: what they bring goes into the same step.
    pub(crate) fn wake_soon(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let first = {
            let mut jobs = shared.bell.jobs.lock();
            jobs.push(self.id);
            jobs.len() == 1
        };
        if first {
            shared.bell.rung.notify_one();
        }
    }

    /// Has the job take a step. Harmless when it is done.
    pub(crate) fn wake(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.wake(self.id);
        }
    }
}

impl Shared {
    fn wake(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(slot) = state.jobs.get_mut(&id) else {
            return;
        };
        match slot.status {
            Status::Asleep => {
                slot.status = Status::Queued;
                let timer = slot.until.take();
                if let Some(until) = timer {
                    state.timers.remove(&(until, id));
                }
                state.queued.push_back(id);
                self.call(state);
            }
            Status::Stepping => slot.status = Status::Restless,
            Status::Queued | Status::Restless => {}
        }
    }
}

enum Work {
    Errand(Errand),
    Step(u64, Box<dyn Job>),
}

impl State {
    fn waits(&self) -> bool {
        !self.errands.is_empty() || !self.queued.is_empty()
    }

    fn next(&mut self) -> Option<Work> {
        if let Some(errand) = self.errands.pop_front() {
            return Some(Work::Errand(errand));
        }
        if !self.timers.is_empty() {
            self.ring(Instant::now());
        }
        let id = self.queued.pop_front()?;
        let slot = self.jobs.get_mut(&id)?;
        slot.status = Status::Stepping;
        let job = slot.job.take()?;
        Some(Work::Step(id, job))
    }

    /// Queues the jobs whose time has come.
    fn ring(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.timers.first()
            && until <= now
        {
            self.timers.pop_first();
            if let Some(slot) = self.jobs.get_mut(&id) {
                slot.until = None;
                slot.status = Status::Queued;
                self.queued.push_back(id);
            }
        }
    }

    /// Takes note of what a job's step came to; gives back a job that is done.
    fn stepped(&mut self, id: u64, job: Box<dyn Job>, step: &Step) -> Option<Box<dyn Job>> {
        let Some(slot) = self.jobs.get_mut(&id) else {
            return Some(job);
        };
        let restless = slot.status == Status::Restless;
        match step {
            Step::Done => {
                self.jobs.remove(&id);
                return Some(job);
            }
            Step::Sleep(until) if !restless => {
                slot.status = Status::Asleep;
                slot.until = *until;
                if let Some(until) = *until {
                    self.timers.insert((until, id));
                }
            }
            Step::Again | Step::Sleep(_) => {
                slot.status = Status::Queued;
                self.queued.push_back(id);
            }
        }
        slot.job = Some(job);
        None
    }

    /// Takes the seat of a thread that has kept it for long, if there is one.
    fn take_over(&mut self, now: Instant) -> bool {
        let slow = self.began.iter_mut().find(|began| {
            began.is_some_and(|began| now.saturating_duration_since(began) >= PATIENCE)
        });
        slow.is_some_and(|began| began.take().is_some())
    }
}

impl Shared {
    /// Calls a thread for work that was queued.
    fn call(&self, mut state: MutexGuard<'_, State>) {
        if state.sleeping > 0 {
            drop(state);
            self.work.notify_one();
        } else if !state.watched {
            // All are busy: somebody should see whether it takes long.
            state.watched = true;
            drop(state);
            self.spare.notify_one();
        }
    }

    /// Serves [`JobHandle::wake_soon`].
    async fn attend(self: Arc<Self>) {
        loop {
            self.bell.rung.notified().await;
            tokio::task::yield_now().await;
            let jobs = std::mem::take(&mut *self.bell.jobs.lock());
            for id in jobs {
                self.wake(id);
            }
        }
    }

    fn serve(&self, me: usize) {
        let mut state = self.state.lock();
        loop {
            state = self.sit_down(state);
            if state.stopping {
                return;
            }
            state = self.work(state, me);
        }
    }

    /// Waits for a seat.
    fn sit_down<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while !state.stopping {
            if state.seated < self.seats {
                state.seated += 1;
                break;
            }
            if state.watched {
                let deadline = Instant::now() + PATIENCE;
                self.spare.wait_until(&mut state, deadline);
                state.watched = state.waits();
                if state.watched && state.take_over(Instant::now()) {
                    // Somebody else is to watch this thread.
                    self.spare.notify_one();
                    break;
                }
            } else {
                self.spare.wait(&mut state);
            }
        }
        state
    }

    /// Works until the seat is lost.
    fn work<'a>(&'a self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        while !state.stopping {
            let Some(work) = state.next() else {
                state.sleeping += 1;
                match state.timers.first() {
                    Some(&(until, _)) => drop(self.work.wait_until(&mut state, until)),
                    None => self.work.wait(&mut state),
                }
                state.sleeping -= 1;
                continue;
            };
            let first_timer = state.timers.first().copied();
            state.began[me] = Some(Instant::now());
            drop(state);
            match work {
                Work::Errand(errand) => {
                    // The panic's message is on stderr; whoever waits for the errand sees it gone.
                    if std::panic::catch_unwind(AssertUnwindSafe(errand)).is_err() {
                        tracing::error!("an apply panicked");
                    }
                    state = self.state.lock();
                }
                Work::Step(id, mut job) => {
                    let step = job.step();
                    state = self.state.lock();
                    if let Some(done) = state.stepped(id, job, &step) {
                        drop(state);
                        drop(done);
                        state = self.state.lock();
                    }
                }
            }
            if state.began[me].take().is_none() {
                // Somebody took over, and may sleep by now: what this step left is theirs.
                self.work.notify_one();
                break;
            }
            if state.sleeping > 0 && state.timers.first() != first_timer.as_ref() {
                // Who sleeps knows of later times only.
                self.work.notify_one();
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    struct Steps<F>(F);

    impl<F: FnMut() -> Step + Send + 'static> Job for Steps<F> {
        fn step(&mut self) -> Step {
            (self.0)()
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_woken_job_steps_and_sleeps_until_it_is_woken_again() {
        let pool = Pool::new(1).unwrap();
        let (tx, rx) = mpsc::channel();
        let job = pool.add(Box::new(Steps(move || {
            tx.send(()).unwrap();
            Step::Sleep(None)
        })));
        for _ in 0..100 {
            job.wake();
            rx.recv_timeout(LONG).unwrap();
        }
        assert!(rx.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_waking_during_a_step_leads_to_another_step() {
        let pool = Pool::new(1).unwrap();
        let (entered_tx, entered) = mpsc::channel();
        let (go, go_rx) = mpsc::channel::<()>();
        let job = pool.add(Box::new(Steps(move || {
            entered_tx.send(()).unwrap();
            go_rx.recv().unwrap();
            Step::Sleep(None)
        })));
        job.wake();
        entered.recv_timeout(LONG).unwrap();
        job.wake();
        go.send(()).unwrap();
        entered.recv_timeout(LONG).unwrap();
        go.send(()).unwrap();
    }

    #[tokio::test]
    async fn a_sleeping_job_steps_when_its_time_has_come() {
        let pool = Pool::new(1).unwrap();
        let (tx, rx) = mpsc::channel();
        let job = pool.add(Box::new(Steps(move || {
            tx.send(Instant::now()).unwrap();
            Step::Sleep(Some(Instant::now() + Duration::from_millis(20)))
        })));
        job.wake();
        let first = rx.recv_timeout(LONG).unwrap();
        let second = rx.recv_timeout(LONG).unwrap();
        assert!(second - first >= Duration::from_millis(20));
    }

    #[tokio::test]
    async fn a_step_that_takes_long_holds_up_nobody_else() {
        let pool = Pool::new(1).unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        let (entered_tx, entered) = mpsc::channel();
        pool.run(Box::new(move || {
            entered_tx.send(()).unwrap();
            blocked.recv().ok();
        }));
        entered.recv_timeout(LONG).unwrap();
        let (tx, rx) = mpsc::channel();
        pool.run(Box::new(move || tx.send(()).unwrap()));
        rx.recv_timeout(LONG).unwrap();
        drop(release);
    }

    #[tokio::test]
    async fn a_job_that_lost_its_seat_and_was_woken_meanwhile_steps_again() {
        let pool = Pool::new(1).unwrap();
        let (entered_tx, entered) = mpsc::channel();
        let (go, go_rx) = mpsc::channel::<()>();
        let job = pool.add(Box::new(Steps(move || {
            entered_tx.send(()).unwrap();
            go_rx.recv().ok();
            Step::Sleep(None)
        })));
        for _ in 0..20 {
            job.wake();
            entered.recv_timeout(LONG).unwrap();
            // Runs on a thread that takes the seat, and sleeps in it afterwards.
            let (tx, rx) = mpsc::channel();
            pool.run(Box::new(move || tx.send(()).unwrap()));
            rx.recv_timeout(LONG).unwrap();
            std::thread::sleep(PATIENCE);
            job.wake();
            go.send(()).unwrap();
            entered.recv_timeout(LONG).unwrap();
            go.send(()).unwrap();
        }
    }

    #[tokio::test]
    async fn no_two_steps_of_a_job_run_at_a_time_and_no_more_threads_run_than_there_are_seats() {
        let pool = Pool::new(2).unwrap();
        let running = Arc::new(AtomicUsize::new(0));
        let (tx, rx) = mpsc::channel();
        let jobs: Vec<_> = (0..8)
            .map(|_| {
                let (running, tx) = (Arc::clone(&running), tx.clone());
                let (inside, mut left) = (AtomicUsize::new(0), 500);
                pool.add(Box::new(Steps(move || {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    let most = running.fetch_add(1, Ordering::SeqCst) + 1;
                    running.fetch_sub(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    left -= 1;
                    if left == 0 {
                        tx.send(most).unwrap();
                        return Step::Done;
                    }
                    Step::Again
                })))
            })
            .collect();
        for job in &jobs {
            job.wake();
        }
        for _ in 0..8 {
            assert!(rx.recv_timeout(LONG).unwrap() <= 2 + SPARES);
        }
        for job in &jobs {
            job.wake();
        }
    }

    #[tokio::test]
    async fn a_panicking_errand_leaves_the_others_running() {
        let pool = Pool::new(1).unwrap();
        pool.run(Box::new(|| panic!("on purpose")));
        let (tx, rx) = mpsc::channel();
        pool.run(Box::new(move || tx.send(()).unwrap()));
        rx.recv_timeout(LONG).unwrap();
    }
}

//! [`SimEngine`]: one group in memory, deterministic, under a test's control.
//!
//! A thread of its own applies what the gate lets through, in order, and calls every `done`; a
//! refusal at the call is answered on the caller's thread, as by the real engine.
//!
//! # Invariants
//! 1. Every proposal's `done` is called exactly once: released, refused, dropped, at the end of its
//!    context, or when the engine is dropped.
//! 2. What was enqueued may be applied later whatever leadership has become, as in a real log; a
//!    proposal under another leader id than the current one is refused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use crate::engine::{
    Applied, CommittedEntry, Engine, GroupStatus, LeaderView, Leadership, Member, Membership,
    OnApplied, Proposer, ReadIndex, Role, StateMachine, Status,
};
use crate::{Context, GroupId, LeaderId, LogIndex, MAX_ENTRY_BYTES, NodeId, RaftError, Term};

/// How often held proposals are looked at for contexts that were cancelled.
const SWEEP: Duration = Duration::from_millis(5);

struct Held {
    ctx: Context,
    entry: Bytes,
    done: Option<OnApplied>,
}

/// What the worker does next, in order.
enum Job {
    Apply(Held),
    /// Nothing to apply: only the answer.
    Answer(OnApplied, RaftError),
    /// An entry of another leader.
    Foreign(Bytes),
}

struct State {
    term: Term,
    holding: bool,
    held: VecDeque<Held>,
    jobs: VecDeque<Job>,
    refusals: VecDeque<RaftError>,
    next_index: u64,
    last_applied: LogIndex,
    enqueued: u64,
    lease: bool,
    verify_error: Option<RaftError>,
    rounds: u64,
    stopped: bool,
    working: bool,
}

struct Shared {
    group: GroupId,
    node: NodeId,
    machine: Arc<dyn StateMachine>,
    state: Mutex<State>,
    wake: Condvar,
    leadership: watch::Sender<Leadership>,
    /// How many proposals were enqueued and not refused so far.
    enqueued: watch::Sender<u64>,
    applied: watch::Sender<LogIndex>,
    verify_open: watch::Sender<bool>,
}

/// A group of one, in memory. Leads in term 1 from the start, its gate open.
pub struct SimEngine {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl SimEngine {
    /// An engine over `machine`, which may hold state of an earlier engine.
    ///
    /// # Panics
    /// If `machine` cannot say how far it is, or holds a position that no `SimEngine` wrote.
    #[must_use]
    pub fn new(group: GroupId, node: NodeId, machine: Arc<dyn StateMachine>) -> Arc<Self> {
        let position = machine.applied().expect("a readable state machine");
        let (last_applied, term) = position.map_or((0, 0), |p| decode_position(&p));
        let term = Term(term + 1);
        let shared = Arc::new(Shared {
            group,
            node,
            machine,
            state: Mutex::new(State {
                term,
                holding: false,
                held: VecDeque::new(),
                jobs: VecDeque::new(),
                refusals: VecDeque::new(),
                next_index: last_applied + 1,
                last_applied: LogIndex(last_applied),
                enqueued: 0,
                lease: false,
                verify_error: None,
                rounds: 0,
                stopped: false,
                working: false,
            }),
            wake: Condvar::new(),
            leadership: watch::channel(Leadership::Leader(LeaderId { term, node })).0,
            enqueued: watch::channel(0).0,
            applied: watch::channel(LogIndex(last_applied)).0,
            verify_open: watch::channel(true).0,
        });
        let worker = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("sim-engine".to_owned())
                .spawn(move || work(&shared))
                .expect("a thread for the simulated engine")
        };
        Arc::new(Self {
            shared,
            worker: Some(worker),
        })
    }

    /// From now on proposals wait at the gate.
    pub fn hold(&self) {
        self.shared.state.lock().holding = true;
    }

    /// Lets everything held through, in the order it is held, and all that follows.
    pub fn open(&self) {
        let mut state = self.shared.state.lock();
        state.holding = false;
        let held = state.held.len();
        self.release_locked(&mut state, held);
    }

    /// Lets the first `count` held proposals through; returns how many there were.
    pub fn release(&self, count: usize) -> usize {
        self.release_locked(&mut self.shared.state.lock(), count)
    }

    fn release_locked(&self, state: &mut State, count: usize) -> usize {
        let count = count.min(state.held.len());
        let released: Vec<_> = state.held.drain(..count).map(Job::Apply).collect();
        state.jobs.extend(released);
        self.shared.wake.notify_all();
        count
    }

    /// How many proposals wait at the gate.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.state.lock().held.len()
    }

    /// The entries that wait at the gate, in order.
    #[must_use]
    pub fn held_entries(&self) -> Vec<Bytes> {
        let state = self.shared.state.lock();
        state.held.iter().map(|h| h.entry.clone()).collect()
    }

    /// Rearranges what is held: the new i-th is the old `order[i]`.
    ///
    /// # Panics
    /// If `order` is not a permutation of `0..held()`.
    pub fn reorder(&self, order: &[usize]) {
        let mut state = self.shared.state.lock();
        let mut old: Vec<_> = state.held.drain(..).map(Some).collect();
        assert_eq!(old.len(), order.len(), "a permutation of what is held");
        for &from in order {
            state
                .held
                .push_back(old[from].take().expect("a permutation of what is held"));
        }
    }

    /// Takes the held proposal `at` out: never applied, `OutcomeUnknown`. As an entry that another
    /// leader's log replaced.
    pub fn discard(&self, at: usize) {
        let mut state = self.shared.state.lock();
        let held = state.held.remove(at).expect("a held proposal");
        self.answer_locked(
            &mut state,
            held.done,
            RaftError::OutcomeUnknown("discarded"),
        );
    }

    /// Ends the held proposal `at` as `OutcomeUnknown`, and keeps its entry at the gate: it may
    /// still be applied.
    pub fn lose_answer(&self, at: usize) {
        let mut state = self.shared.state.lock();
        let done = state.held[at].done.take();
        self.answer_locked(&mut state, done, RaftError::OutcomeUnknown("answer lost"));
    }

    fn answer_locked(&self, state: &mut State, done: Option<OnApplied>, error: RaftError) {
        if let Some(done) = done {
            state.jobs.push_back(Job::Answer(done, error));
            self.shared.wake.notify_all();
        }
    }

    /// Refuses the next proposal with `error`; several calls queue up.
    pub fn refuse_next(&self, error: RaftError) {
        self.shared.state.lock().refusals.push_back(error);
    }

    /// Applies an entry that this engine's callers did not propose, as another leader's would be.
    pub fn apply_foreign(&self, entry: Bytes) {
        self.shared.state.lock().jobs.push_back(Job::Foreign(entry));
        self.shared.wake.notify_all();
    }

    /// Wins an election: a new term under this node.
    pub fn elect(&self) -> LeaderId {
        let leader = {
            let mut state = self.shared.state.lock();
            state.term.0 += 1;
            LeaderId {
                term: state.term,
                node: self.shared.node,
            }
        };
        self.shared
            .leadership
            .send_replace(Leadership::Leader(leader));
        leader
    }

    /// Another node wins an election.
    pub fn depose(&self, by: NodeId) -> LeaderId {
        let leader = {
            let mut state = self.shared.state.lock();
            state.term.0 += 1;
            LeaderId {
                term: state.term,
                node: by,
            }
        };
        self.shared
            .leadership
            .send_replace(Leadership::Follower { leader });
        leader
    }

    /// Loses its quorum, or finds it again, within the same term.
    pub fn set_leadership(&self, leadership: Leadership) {
        self.shared.leadership.send_replace(leadership);
    }

    /// Whether `verify_leader_now` proves leadership (off at the start).
    pub fn set_lease(&self, valid: bool) {
        self.shared.state.lock().lease = valid;
    }

    /// `verify_leader` waits until [`SimEngine::open_verify`].
    pub fn hold_verify(&self) {
        self.shared.verify_open.send_replace(false);
    }

    pub fn open_verify(&self) {
        self.shared.verify_open.send_replace(true);
    }

    /// `verify_leader` fails with `error`, or proves leadership again.
    pub fn fail_verify(&self, error: Option<RaftError>) {
        self.shared.state.lock().verify_error = error;
    }

    /// How many calls of `verify_leader` were answered with a proof.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.shared.state.lock().rounds
    }

    /// Waits until `count` proposals in all were enqueued (and not refused).
    pub async fn proposals(&self, count: u64) {
        let mut enqueued = self.shared.enqueued.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = enqueued.wait_for(|n| *n >= count).await;
    }

    /// Waits until `index` is applied.
    pub async fn applied(&self, index: LogIndex) {
        let mut applied = self.shared.applied.subscribe();
        let _ = applied.wait_for(|at| *at >= index).await;
    }

    /// Blocks until everything let through is applied and answered.
    pub fn settle(&self) {
        let mut state = self.shared.state.lock();
        while !state.jobs.is_empty() || state.working {
            self.shared.wake.wait(&mut state);
        }
    }
}

impl Drop for SimEngine {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.stopped = true;
            let held: Vec<_> = state.held.drain(..).collect();
            for held in held {
                if let Some(done) = held.done {
                    let gone = RaftError::OutcomeUnknown("the engine is gone");
                    state.jobs.push_back(Job::Answer(done, gone));
                }
            }
            self.shared.wake.notify_all();
        }
        if let Some(worker) = self.worker.take()
            && worker.thread().id() != std::thread::current().id()
            && worker.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the simulated engine's thread panicked");
        }
    }
}

fn encode_position(index: u64, term: Term) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u64_le(index);
    out.put_u64_le(term.0);
    out.freeze()
}

fn decode_position(position: &[u8]) -> (u64, u64) {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    assert_eq!(position.len(), 16, "a position of a simulated engine");
    (number(&position[..8]), number(&position[8..]))
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock();
    loop {
        let now = Instant::now();
        let mut ended = Vec::new();
        for held in &mut state.held {
            if held.ctx.ended().is_some() && held.done.is_some() {
                ended.extend(held.done.take());
            }
        }
        for done in ended {
            let error = RaftError::OutcomeUnknown("the proposal's context ended");
            state.jobs.push_back(Job::Answer(done, error));
        }
        let Some(job) = state.jobs.pop_front() else {
            if state.stopped {
                return;
            }
            if state.held.iter().any(|h| h.done.is_some()) {
                shared.wake.wait_until(&mut state, now + SWEEP);
            } else {
                shared.wake.wait(&mut state);
            }
            continue;
        };
        state.working = true;
        let (index, term) = (state.next_index, state.term);
        if !matches!(job, Job::Answer(..)) {
            state.next_index += 1;
        }
        parking_lot::MutexGuard::unlocked(&mut state, || perform(shared, job, index, term));
        state.working = false;
        shared.wake.notify_all();
    }
}

fn perform(shared: &Shared, job: Job, index: u64, term: Term) {
    let (entry, done) = match job {
        Job::Answer(done, error) => return done(Err(error)),
        Job::Foreign(entry) => (entry, None),
        Job::Apply(held) => (held.entry, held.done),
    };
    let index = LogIndex(index);
    let result = shared.machine.apply(vec![CommittedEntry {
        index,
        position: encode_position(index.0, term),
        payload: Some(entry),
    }]);
    let result = match result {
        Ok(mut responses) => {
            assert_eq!(responses.len(), 1, "one response per entry");
            shared.state.lock().last_applied = index;
            shared.applied.send_replace(index);
            Ok(Applied {
                index,
                response: responses.remove(0),
            })
        }
        Err(_) => Err(RaftError::OutcomeUnknown("the state machine failed")),
    };
    if let Some(done) = done {
        done(result);
    }
}

impl LeaderView for SimEngine {
    fn leadership(&self) -> Leadership {
        *self.shared.leadership.borrow()
    }

    fn leadership_changes(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    async fn verify_leader(&self, ctx: &Context) -> Result<ReadIndex, RaftError> {
        let mut open = self.shared.verify_open.subscribe();
        let waited = ctx.run(open.wait_for(|open| *open)).await;
        if let Err(ended) = waited {
            return Err(RaftError::NotApplied(ended));
        }
        let leadership = self.leadership();
        let mut state = self.shared.state.lock();
        if let Some(error) = &state.verify_error {
            return Err(error.clone());
        }
        match leadership {
            Leadership::Leader(leader) => {
                state.rounds += 1;
                Ok(ReadIndex {
                    leader,
                    index: state.last_applied,
                })
            }
            Leadership::Follower { leader } => Err(RaftError::NotLeader {
                leader: Some(leader.node),
            }),
            Leadership::Unknown => Err(RaftError::NotLeader { leader: None }),
        }
    }

    fn verify_leader_now(&self) -> Option<ReadIndex> {
        let leadership = self.leadership();
        let state = self.shared.state.lock();
        match leadership {
            Leadership::Leader(leader) if state.lease => Some(ReadIndex {
                leader,
                index: state.last_applied,
            }),
            _ => None,
        }
    }

    async fn linearizable_read(&self, ctx: &Context) -> Result<LogIndex, RaftError> {
        let read = self.verify_leader(ctx).await?;
        ctx.run(self.applied(read.index))
            .await
            .map_err(RaftError::NotApplied)?;
        Ok(read.index)
    }
}

impl Proposer for SimEngine {
    fn enqueue(&self, ctx: &Context, leader: LeaderId, entry: Bytes, done: OnApplied) {
        let current = self.leadership();
        let mut state = self.shared.state.lock();
        let refusal = if let Some(error) = state.refusals.pop_front() {
            Some(error)
        } else if current != Leadership::Leader(leader) {
            Some(RaftError::NotLeader {
                leader: match current {
                    Leadership::Leader(leader) | Leadership::Follower { leader } => {
                        Some(leader.node)
                    }
                    Leadership::Unknown => None,
                },
            })
        } else if entry.len() > MAX_ENTRY_BYTES {
            Some(RaftError::TooLarge {
                size: entry.len(),
                limit: MAX_ENTRY_BYTES,
            })
        } else {
            ctx.ended().map(RaftError::NotApplied)
        };
        if let Some(error) = refusal {
            drop(state);
            return done(Err(error));
        }
        let proposal = Held {
            ctx: ctx.clone(),
            entry,
            done: Some(done),
        };
        if state.holding {
            state.held.push_back(proposal);
        } else {
            state.jobs.push_back(Job::Apply(proposal));
        }
        state.enqueued += 1;
        let enqueued = state.enqueued;
        self.shared.wake.notify_all();
        drop(state);
        self.shared.enqueued.send_replace(enqueued);
    }

    async fn propose(&self, ctx: &Context, entry: Bytes) -> Result<Applied, RaftError> {
        let leader = match self.leadership() {
            Leadership::Leader(leader) => leader,
            Leadership::Follower { leader } => {
                return Err(RaftError::NotLeader {
                    leader: Some(leader.node),
                });
            }
            Leadership::Unknown => return Err(RaftError::NotLeader { leader: None }),
        };
        let (tx, rx) = oneshot::channel();
        self.enqueue(
            ctx,
            leader,
            entry,
            // A caller that is gone needs no answer.
            Box::new(move |result| drop(tx.send(result))),
        );
        match ctx.run(rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RaftError::OutcomeUnknown("the engine is gone")),
            Err(_) => Err(RaftError::OutcomeUnknown("the context ended")),
        }
    }
}

impl Membership for SimEngine {
    fn members(&self) -> BTreeMap<NodeId, Member> {
        let only = Member {
            address: "sim".to_owned(),
            role: Role::Voter,
        };
        BTreeMap::from([(self.shared.node, only)])
    }

    async fn add_learner(&self, _: &Context, _: NodeId, _: String) -> Result<(), RaftError> {
        Err(RaftError::Stopped(
            "a simulated group has one member".into(),
        ))
    }

    async fn promote(&self, _: &Context, _: NodeId) -> Result<(), RaftError> {
        Err(RaftError::Stopped(
            "a simulated group has one member".into(),
        ))
    }

    async fn remove(&self, _: &Context, _: NodeId) -> Result<(), RaftError> {
        Err(RaftError::Stopped(
            "a simulated group has one member".into(),
        ))
    }

    async fn transfer_leadership(&self, _: &Context, to: Option<NodeId>) -> Result<(), RaftError> {
        self.depose(to.unwrap_or(NodeId(self.shared.node.0 + 1)));
        Ok(())
    }
}

impl Status for SimEngine {
    fn status(&self) -> GroupStatus {
        let leadership = self.leadership();
        let state = self.shared.state.lock();
        GroupStatus {
            group: self.shared.group,
            node: self.shared.node,
            term: state.term,
            leader: match leadership {
                Leadership::Leader(leader) | Leadership::Follower { leader } => Some(leader),
                Leadership::Unknown => None,
            },
            leading: matches!(leadership, Leadership::Leader(_)),
            in_contact: leadership != Leadership::Unknown,
            last_log_index: LogIndex(state.next_index - 1),
            commit_index: state.last_applied,
            heard_commit_index: state.last_applied,
            last_applied: state.last_applied,
            snapshot_index: LogIndex(0),
            peers: Vec::new(),
            pending_proposals: (state.held.len() + state.jobs.len()) as u64,
            pending_reads: 0,
            stopped: None,
        }
    }
}

impl Engine for SimEngine {
    fn group(&self) -> GroupId {
        self.shared.group
    }

    fn node(&self) -> NodeId {
        self.shared.node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryMachine;

    fn sim() -> (Arc<SimEngine>, MemoryMachine) {
        let machine = MemoryMachine::default();
        let engine = SimEngine::new(GroupId(1), NodeId(1), Arc::new(machine.clone()));
        (engine, machine)
    }

    #[tokio::test]
    async fn held_proposals_apply_in_the_order_the_test_gave_them() {
        let (engine, machine) = sim();
        engine.hold();
        let Leadership::Leader(leader) = engine.leadership() else {
            panic!("leads from the start")
        };
        for entry in ["a", "b", "c"] {
            let done = Box::new(|_| ());
            engine.enqueue(&Context::fallback(), leader, entry.into(), done);
        }
        engine.proposals(3).await;
        engine.reorder(&[2, 0, 1]);
        engine.discard(1);
        engine.open();
        engine.settle();
        assert_eq!(machine.payloads(), ["c", "b"]);
    }

    #[tokio::test]
    async fn a_held_proposal_ends_with_its_context_and_may_still_apply() {
        let (engine, machine) = sim();
        engine.hold();
        let ctx = Context::with_timeout(Duration::from_millis(1));
        let ended = engine.propose(&ctx, "a".into()).await;
        assert!(matches!(ended, Err(RaftError::OutcomeUnknown(_))));
        engine.open();
        engine.settle();
        assert_eq!(machine.payloads(), ["a"]);
    }

    #[tokio::test]
    async fn a_proposal_under_an_old_leadership_is_refused() {
        let (engine, _) = sim();
        let Leadership::Leader(old) = engine.leadership() else {
            panic!("leads from the start")
        };
        engine.elect();
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| drop(tx.send(result)));
        engine.enqueue(&Context::fallback(), old, "a".into(), done);
        assert!(matches!(
            rx.await.unwrap(),
            Err(RaftError::NotLeader { .. })
        ));
    }
}

//! A small model check: two transactions over two shards, every order of their messages, crashes of
//! their coordinators at every step, a message delivered twice, a change of leader. Executors, lock
//! tables, logs, state machines and coordinators are the real ones; only the network is ours.
//!
//! A run is a list of choices; the explorer runs the list that follows the last in order, until there
//! is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use leadline_raft::Context;

use super::super::coordinate::Attempted;
use super::{Cluster, Gate, Gated, TestNetwork, follow, key, put, script, set_all, shard_of};
use crate::Access;
use crate::transaction::coordinate::{OPTIMISTIC, TransactionCoordinator};

/// Choices of one run, and how many there were at each.
#[derive(Default)]
struct Path {
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Path {
    fn choose(&mut self, among: usize) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, among));
        }
        let (choice, known) = self.taken[self.at];
        assert_eq!(known, among, "a run repeats what it did before");
        self.at += 1;
        choice
    }

    /// The next path in order; `false` after the last.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, among)) = self.taken.pop() {
            if choice + 1 < among {
                self.taken.push((choice + 1, among));
                return true;
            }
        }
        false
    }
}

/// What may go wrong in one run.
#[derive(Clone, Copy)]
struct Faults {
    crashes: usize,
    twice: usize,
    elections: usize,
    /// Attempts before: after a few all that is touched is locked, at the deciding shard too.
    tries: u32,
}

#[derive(Clone, Copy)]
enum Move {
    Deliver(usize),
    Twice(usize),
    Crash(usize),
    Elect(usize),
}

/// What a run came to.
struct Ended {
    values: Vec<i64>,
    /// Whether each transaction's client was told that it committed.
    told: [Option<bool>; 2],
}

async fn settle() {
    for _ in 0..30 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn deliver(cluster: &Arc<Cluster>, message: &mut Gated) {
    let reply = cluster
        .submit(message.shard, &message.ctx, Arc::clone(&message.step) as _)
        .await;
    if let Some(answer) = message.answer.take() {
        // Nobody listens at a coordinator that is dead.
        answer.send(reply).ok();
    }
}

type Coordinator = Arc<TransactionCoordinator<TestNetwork>>;

async fn run(
    cluster: &Arc<Cluster>,
    keys: &[Bytes; 2],
    operations: [Arc<dyn crate::Operation>; 2],
    faults: Faults,
    validates: bool,
    path: &mut Path,
) -> Ended {
    let gate = Arc::new(Gate::default());
    let coordinators: Vec<Coordinator> = (0..2).map(|at| cluster.gated(&gate, at)).collect();
    let mut running = Vec::new();
    for (coordinator, operation) in coordinators.iter().zip(operations) {
        coordinator
            .skips_validation
            .store(!validates, Ordering::SeqCst);
        let coordinator = Arc::clone(coordinator);
        running.push(tokio::spawn(async move {
            let ctx = Context::with_timeout(Duration::from_secs(60));
            coordinator.attempt(&ctx, &operation, faults.tries).await
        }));
    }
    // Both have read, from the same state: the most conflict there can be. Reads pass the gate.
    while gate.waiting.lock().len() < 2
        || !(0..2).all(|at| gate.waiting.lock().iter().any(|gated| gated.owner == at))
    {
        tokio::time::sleep(Duration::from_micros(50)).await;
    }
    settle().await;

    let mut left = faults;
    loop {
        let moves: Vec<Move> = {
            let mut waiting = gate.waiting.lock();
            // Which of the two was faster is not ours to choose.
            waiting
                .make_contiguous()
                .sort_by_key(|message| message.owner);
            let mut moves: Vec<Move> = (0..waiting.len()).map(Move::Deliver).collect();
            if moves.is_empty() {
                break;
            }
            if left.twice > 0 {
                let whole = waiting.iter().enumerate();
                moves.extend(
                    whole
                        .filter(|(_, message)| message.answer.is_some())
                        .map(|(at, _)| Move::Twice(at)),
                );
            }
            if left.crashes > 0 {
                let alive = (0..2).filter(|&at| !gate.dead[at].load(Ordering::SeqCst));
                moves.extend(alive.map(Move::Crash));
            }
            if left.elections > 0 {
                moves.extend((0..2).map(Move::Elect));
            }
            moves
        };
        match moves[path.choose(moves.len())] {
            Move::Deliver(at) => {
                let message = gate.waiting.lock().remove(at);
                deliver(cluster, &mut message.unwrap()).await;
            }
            Move::Twice(at) => {
                left.twice -= 1;
                let mut message = gate.waiting.lock().remove(at).unwrap();
                deliver(cluster, &mut message).await;
                // The copy arrives whenever it likes.
                gate.waiting.lock().push_back(message);
            }
            Move::Crash(at) => {
                // What it sent is still on its way.
                left.crashes -= 1;
                gate.dead[at].store(true, Ordering::SeqCst);
                running[at].abort();
            }
            Move::Elect(shard) => {
                left.elections -= 1;
                cluster.elect(shard).await;
            }
        }
        settle().await;
    }

    let mut told = [None, None];
    for (told, running) in told.iter_mut().zip(running) {
        *told = match running.await {
            Ok(Attempted::Done(_)) => Some(true),
            Ok(Attempted::Conflict | Attempted::Failed(_)) => Some(false),
            Ok(Attempted::InDoubt(..)) | Err(_) => None,
        };
    }
    // Whoever meets a lock after its time has it resolved.
    let other = cluster.coordinator();
    for _ in 0..3 {
        for doubt in cluster.locks() {
            other.resolve_one(doubt).await;
        }
    }
    assert_eq!(cluster.left().0, 0, "locks are left");
    let values = cluster.values(keys).await;
    Ended { values, told }
}

/// Runs every path; returns how many there were and the first that broke `check`.
async fn explore(
    operations: impl Fn(&[Bytes; 2]) -> [Arc<dyn crate::Operation>; 2],
    faults: Faults,
    validates: bool,
    check: impl Fn(&Ended) -> Result<(), String>,
) -> (usize, Option<String>) {
    // Locks are resolved by the explorer alone.
    let cluster = Cluster::new(Duration::from_secs(3600)).await;
    let mut path = Path::default();
    let mut runs = 0;
    loop {
        let keys = [key(0, &format!("k{runs}")), key(1, &format!("k{runs}"))];
        debug_assert_ne!(shard_of(&keys[0]), shard_of(&keys[1]));
        let ended = run(
            &cluster,
            &keys,
            operations(&keys),
            faults,
            validates,
            &mut path,
        )
        .await;
        runs += 1;
        if let Err(why) = check(&ended) {
            let choices: Vec<usize> = path.taken.iter().map(|(choice, _)| *choice).collect();
            return (runs, Some(format!("{why}; choices {choices:?}")));
        }
        if !path.advance() {
            return (runs, None);
        }
    }
}

/// Every path, of which there are more than `more_than`, ends as `check` wants it.
async fn finds_nothing(
    operations: impl Fn(&[Bytes; 2]) -> [Arc<dyn crate::Operation>; 2],
    faults: Faults,
    check: impl Fn(&Ended) -> Result<(), String>,
    more_than: usize,
) {
    let (runs, broken) = explore(operations, faults, true, check).await;
    assert_eq!(broken, None, "after {runs} runs");
    println!("{runs} runs");
    assert!(runs > more_than, "{runs} runs");
}

/// Each reads what the other writes.
fn skewed(keys: &[Bytes; 2]) -> [Arc<dyn crate::Operation>; 2] {
    [follow(&keys[0], &keys[1]), follow(&keys[1], &keys[0])]
}

/// Whether some order of those that committed gives what is there.
fn serial(ended: &Ended) -> Result<(), String> {
    let [x, y] = ended.values[..] else {
        return Err("two values".to_owned());
    };
    let (first, second) = (y != 0, x != 0);
    let possible = matches!((x, y), (0, 0) | (0, 1) | (1, 0) | (2, 1) | (1, 2));
    let true_words = ended.told[0].is_none_or(|told| told == first)
        && ended.told[1].is_none_or(|told| told == second);
    if possible && true_words {
        return Ok(());
    }
    Err(format!("x = {x}, y = {y}, told {:?}", ended.told))
}

/// Both write both keys.
fn both(keys: &[Bytes; 2]) -> [Arc<dyn crate::Operation>; 2] {
    [set_all(keys, 1), set_all(keys, 2)]
}

/// Both write both keys, whatever is there.
fn both_unseen(keys: &[Bytes; 2]) -> [Arc<dyn crate::Operation>; 2] {
    [1, 2].map(|value| {
        let written = keys.clone();
        script(keys, Access::Write, move |rows| {
            for key in &written {
                put(rows, key, value);
            }
            Ok(Bytes::from_static(b"+OK"))
        })
    })
}

/// All of one transaction or nothing.
fn whole(ended: &Ended) -> Result<(), String> {
    let [x, y] = ended.values[..] else {
        return Err("two values".to_owned());
    };
    let told_true = ended
        .told
        .iter()
        .zip([1, 2])
        .all(|(told, value)| match told {
            // The other may have come after it.
            Some(true) => x != 0,
            Some(false) => x != value,
            None => true,
        });
    if x == y && told_true {
        return Ok(());
    }
    Err(format!("x = {x}, y = {y}, told {:?}", ended.told))
}

#[tokio::test]
async fn two_transactions_that_read_what_the_other_writes_are_serial_whoever_crashes() {
    let faults = Faults {
        crashes: 2,
        twice: 0,
        elections: 0,
        tries: 0,
    };
    finds_nothing(skewed, faults, serial, 500).await;
}

#[tokio::test]
async fn a_message_that_arrives_twice_leaves_transactions_serial() {
    let faults = Faults {
        crashes: 0,
        twice: 1,
        elections: 0,
        tries: 0,
    };
    finds_nothing(skewed, faults, serial, 500).await;
}

#[tokio::test]
async fn two_transactions_that_write_both_shards_are_whole_in_every_order() {
    for (crashes, twice, elections, tries) in [(2, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, OPTIMISTIC)] {
        let faults = Faults {
            crashes,
            twice,
            elections,
            tries,
        };
        finds_nothing(both, faults, whole, 100).await;
    }
}

/// Nothing that was seen gives a copy of a decision away: only what the shard remembers does.
#[tokio::test]
async fn a_decision_that_arrives_twice_leaves_blind_transactions_whole() {
    for elections in [0, 1] {
        let faults = Faults {
            crashes: 0,
            twice: 1 - elections,
            elections,
            tries: 0,
        };
        finds_nothing(both_unseen, faults, whole, 100).await;
    }
}

#[tokio::test]
async fn a_change_of_leader_at_any_step_leaves_transactions_serial_and_nothing_locked() {
    let faults = Faults {
        crashes: 0,
        twice: 0,
        elections: 1,
        tries: 0,
    };
    finds_nothing(skewed, faults, serial, 100).await;
}

/// The explorer explains itself: without the validate phase it finds the write skew.
#[tokio::test]
async fn without_the_validate_phase_the_explorer_finds_write_skew() {
    let faults = Faults {
        crashes: 0,
        twice: 0,
        elections: 0,
        tries: 0,
    };
    let (_, broken) = explore(skewed, faults, false, serial).await;
    let found = broken.expect("an order that is not serial");
    assert!(found.contains("x = 1, y = 1"), "{found}");
}

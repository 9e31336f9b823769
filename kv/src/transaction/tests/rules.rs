//! The six rules of `docs/transactions.md`, and what a coordinator that dies leaves behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_raft::{Context, Ended};
use tokio_util::sync::CancellationToken;

use super::super::coordinate::{Attempted, OPTIMISTIC, Point, TransactionCoordinator};
use super::super::resolve::{Doubt, Doubts};
use super::{
    Cluster, Fate, Gate, Gated, TestNetwork, follow, key, number, put, read_all, script, set_all,
};
use crate::coordinator::PendingReply;
use crate::transaction::AttemptId;
use crate::transaction::steps::{TransactionOperation, decode};
use crate::wire::transaction_reply::Reply as StepReply;
use crate::wire::transaction_step::Step;
use crate::wire::{
    Decide, LockRows, Participant, ReadRows, RowChange, SeenRow, ValidateRows, row_change::Change,
};
use crate::{Access, KvError, Operation, RequestId, RowError, ScanOrder};

const TTL: Duration = Duration::from_millis(60);

fn ctx() -> Context {
    Context::with_timeout(Duration::from_secs(3))
}

fn keys() -> [Bytes; 2] {
    [key(0, "x"), key(1, "y")]
}

/// Waits until no lock and no commit record is left.
async fn until_clean(cluster: &Cluster) {
    let began = Instant::now();
    while cluster.left() != (0, 0) {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?} are left",
            cluster.left()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A task that resolves overdue locks, as a node has one.
fn resolving(cluster: &Arc<Cluster>) -> CancellationToken {
    let stop = CancellationToken::new();
    let (coordinator, doubts) = (cluster.coordinator(), Arc::clone(&cluster.doubts));
    tokio::spawn(coordinator.resolve(doubts, stop.clone()));
    stop
}

fn rows_of(key: &Bytes, primary: &Bytes, value: &'static str) -> LockRows {
    LockRows {
        primary: primary.clone(),
        changes: vec![RowChange {
            key: key.clone(),
            change: Some(Change::Put(Bytes::from_static(value.as_bytes()))),
        }],
        ..LockRows::default()
    }
}

fn lock_of(key: &Bytes, primary: &Bytes, value: &'static str) -> Step {
    Step::Lock(rows_of(key, primary, value))
}

/// Deletes `key`, as a plain command of its shard.
async fn delete(cluster: &Cluster, shard: usize, key: &Bytes) {
    let deleted = key.clone();
    let delete = script(std::slice::from_ref(key), Access::Write, move |rows| {
        rows.delete(deleted.clone());
        Ok(Bytes::new())
    });
    cluster.on_shard(shard, delete).await.unwrap();
}

async fn send(
    cluster: &Cluster,
    shard: usize,
    attempt: AttemptId,
    lowest_open: u64,
    at: &Bytes,
    step: Step,
) -> StepReply {
    let step = TransactionOperation::new(attempt, lowest_open, at.clone(), step);
    decode(cluster.on_shard(shard, step).await.unwrap()).unwrap()
}

fn attempt(number: u64) -> AttemptId {
    AttemptId { session: 7, number }
}

/// One that reads what another wrote after it validated would be overtaken unseen.
#[tokio::test]
async fn rule_1_what_was_read_and_not_locked_is_compared_after_the_last_lock() {
    let cluster = Cluster::new(TTL).await;
    let gate = Arc::new(Gate::default());
    let coordinator = cluster.gated(&gate, 0);
    let operation = follow(&keys()[0], &keys()[1]);
    let running = tokio::spawn({
        let coordinator = Arc::clone(&coordinator);
        async move { coordinator.attempt(&ctx(), &operation, 0).await }
    });
    while gate.waiting.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It has read x, and its lock on y is on its way: nothing else was sent.
    let steps: Vec<_> = gate.waiting.lock().iter().map(|m| m.step_name()).collect();
    assert_eq!(steps, ["TXN.LOCK"]);
    cluster
        .on_shard(0, set_all(&[key(0, "x")], 9))
        .await
        .unwrap();
    while !running.is_finished() {
        let next = gate.waiting.lock().pop_front();
        match next {
            Some(mut message) => super::explore::deliver(&cluster, &mut message).await,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert!(matches!(running.await.unwrap(), Attempted::Conflict));
}

/// Else a lock could be granted on the stamp of a write that another leader never saw.
#[tokio::test]
async fn rule_1_what_is_compared_later_is_read_without_a_proof_and_not_before_it_is_applied() {
    let cluster = Cluster::new(TTL).await;
    let x = key(0, "x");
    let engine = &cluster.shards[0].engine;
    let read = |rechecked| {
        let keys = vec![x.clone()];
        let step = Step::Read(ReadRows { keys, rechecked });
        let step = TransactionOperation::new(attempt(1), 1, x.clone(), step);
        cluster.submit(0, &ctx(), step)
    };
    let value = |reply: Bytes| match decode(reply) {
        Some(StepReply::Rows(rows)) => rows.rows[0].value.clone(),
        other => panic!("{other:?}"),
    };

    engine.hold_verify();
    let mut proven = read(false);
    assert_eq!(value(read(true).await.unwrap()), None);
    assert!(futures::poll!(&mut proven).is_pending());
    engine.open_verify();
    assert_eq!(value(proven.await.unwrap()), None);

    engine.hold();
    let write = cluster.submit(0, &ctx(), set_all(&[x.clone()], 9));
    while engine.held() == 0 {
        tokio::task::yield_now().await;
    }
    let mut uncommitted = read(true);
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(futures::poll!(&mut uncommitted).is_pending());
    }
    engine.open();
    assert_eq!(
        value(uncommitted.await.unwrap()),
        Some(Bytes::from_static(b"9"))
    );
    write.await.unwrap();
}

/// Waits until one message waits at the gate, and gives its step and shard.
async fn only_waiting(gate: &Gate) -> (&'static str, usize) {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(began.elapsed() < Duration::from_secs(5), "nothing was sent");
        let waiting = gate.waiting.lock();
        if let [message] = waiting.iter().collect::<Vec<_>>()[..] {
            return (message.step_name(), message.shard);
        }
        assert!(waiting.is_empty(), "more than one message waits");
    }
}

/// Waits until so many messages wait at the gate, and takes them.
async fn all_waiting(gate: &Gate, count: usize) -> Vec<Gated> {
    let began = Instant::now();
    while gate.waiting.lock().len() < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "too little was sent"
        );
    }
    gate.waiting.lock().drain(..).collect()
}

async fn deliver_one(cluster: &Arc<Cluster>, gate: &Gate) {
    let message = gate.waiting.lock().pop_front();
    super::explore::deliver(cluster, &mut message.unwrap()).await;
}

/// Reads x, then waits for the test at a barrier, twice, then reads y, and tells both.
fn read_with_a_pause(x: &Bytes, y: &Bytes) -> (Arc<dyn Operation>, Arc<Barrier>) {
    let pause = Arc::new(Barrier::new(2));
    let (here, evaluations) = (Arc::clone(&pause), AtomicUsize::new(0));
    let (x, y) = (x.clone(), y.clone());
    let read = script(&[x.clone()], Access::Read, move |rows| {
        let at_x = number(rows, &x)?;
        // The first evaluation may not wait, and cannot read what its route does not name.
        if evaluations.fetch_add(1, Ordering::SeqCst) > 0 {
            here.wait();
            here.wait();
        }
        let at_y = number(rows, &y)?;
        Ok(format!("{at_x} {at_y}").into())
    });
    (read, pause)
}

/// Waits for the other side of a barrier without keeping the runtime from its work.
async fn meet(pause: &Arc<Barrier>) {
    let pause = Arc::clone(pause);
    tokio::task::spawn_blocking(move || pause.wait())
        .await
        .unwrap();
}

/// Runs an operation that holds the executor of shard 0 until the test meets it at a barrier.
fn busy(cluster: &Cluster) -> (PendingReply, Arc<Barrier>) {
    let pause = Arc::new(Barrier::new(2));
    let here = Arc::clone(&pause);
    let hold = script(&[key(0, "busy")], Access::Write, move |_| {
        here.wait();
        here.wait();
        Ok(Bytes::new())
    });
    (cluster.submit(0, &ctx(), hold), pause)
}

#[tokio::test]
async fn what_waited_for_a_lock_goes_before_what_came_later() {
    let cluster = Cluster::new(TTL).await;
    let x = key(0, "x");
    let granted = send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "0")).await;
    let StepReply::Granted(stamp) = granted else {
        panic!("{granted:?}");
    };
    let ctx = ctx();
    let first = cluster.submit(0, &ctx, set_all(std::slice::from_ref(&x), 1));
    // What takes away the lock, and a later change of the same row, are there at the same time.
    let (held, pause) = busy(&cluster);
    meet(&pause).await;
    let release = TransactionOperation::new(attempt(1), 1, x.clone(), Step::Release(stamp));
    let release = cluster.submit(0, &ctx, release);
    let later = cluster.submit(0, &ctx, set_all(std::slice::from_ref(&x), 2));
    meet(&pause).await;
    for reply in [held, release, first, later] {
        reply.await.unwrap();
    }
    assert_eq!(cluster.values(&[x]).await, [2]);
}

/// At every instant one of the two is there, and both are absent whenever they are looked at.
#[tokio::test]
async fn rule_1_what_is_absent_did_not_come_and_go_before_it_is_compared() {
    let cluster = Cluster::new(TTL).await;
    for moved in [true, false] {
        let [x, y] = [key(0, &format!("x{moved}")), key(1, &format!("y{moved}"))];
        let set = async |shard, key: &Bytes| {
            let set = set_all(std::slice::from_ref(key), 7);
            cluster.on_shard(shard, set).await.unwrap();
        };
        if moved {
            set(1, &y).await;
        }
        let gate = Arc::new(Gate::default());
        let coordinator = cluster.gated(&gate, 0);
        let (read, pause) = read_with_a_pause(&x, &y);
        let running = tokio::spawn(async move { coordinator.attempt(&ctx(), &read, 0).await });
        meet(&pause).await;
        if moved {
            set(0, &x).await;
            delete(&cluster, 1, &y).await;
        }
        meet(&pause).await;
        let mut checks = all_waiting(&gate, 2).await;
        checks.sort_by_key(|check| std::cmp::Reverse(check.shard));
        super::explore::deliver(&cluster, &mut checks[0]).await;
        if moved {
            set(1, &y).await;
            delete(&cluster, 0, &x).await;
        }
        super::explore::deliver(&cluster, &mut checks[1]).await;
        match running.await.unwrap() {
            Attempted::Conflict => assert!(moved),
            Attempted::Done(reply) => {
                assert!(!moved);
                assert_eq!(reply, "0 0");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A read that locks shard by shard, as after some conflicts, and is so slow that its first lock is
/// resolved before the last is granted.
#[tokio::test]
async fn rule_1_a_read_that_locks_had_all_its_locks_at_one_instant() {
    let cluster = Cluster::new(TTL).await;
    let stop = resolving(&cluster);
    let [x, y] = keys();
    for resolved in [true, false] {
        let gate = Arc::new(Gate::default());
        let coordinator = cluster.gated(&gate, 0);
        let running = tokio::spawn(async move {
            coordinator
                .attempt(&ctx(), &read_all(&keys()), OPTIMISTIC)
                .await
        });
        assert_eq!(only_waiting(&gate).await, ("TXN.LOCK", 0));
        deliver_one(&cluster, &gate).await;
        assert_eq!(only_waiting(&gate).await, ("TXN.LOCK", 1));
        if resolved {
            while cluster.left().0 > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            cluster.on_shard(0, set_all(&[x.clone()], 7)).await.unwrap();
        }
        deliver_one(&cluster, &gate).await;
        let began = Instant::now();
        while !running.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(5));
            let message = gate.waiting.lock().pop_front();
            if let Some(mut message) = message {
                super::explore::deliver(&cluster, &mut message).await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match running.await.unwrap() {
            Attempted::Conflict => assert!(resolved),
            Attempted::Done(reply) => {
                assert!(!resolved);
                assert_eq!(reply, "7 0");
            }
            other => panic!("{other:?}"),
        }
        // What was not released at the gate is resolved.
        assert_eq!(cluster.values(&[x.clone(), y.clone()]).await, [7, 0]);
    }
    stop.cancel();
}

/// Deletions of an earlier leadership are not counted here.
#[tokio::test]
async fn rule_1_what_was_absent_under_another_leader_is_read_again() {
    let cluster = Cluster::new(TTL).await;
    let gate = Arc::new(Gate::default());
    let coordinator = cluster.gated(&gate, 0);
    let running = tokio::spawn({
        let coordinator = Arc::clone(&coordinator);
        async move { coordinator.attempt(&ctx(), &read_all(&keys()), 0).await }
    });
    let checks = all_waiting(&gate, 2).await;
    cluster.elect(0).await;
    for mut check in checks {
        super::explore::deliver(&cluster, &mut check).await;
    }
    assert!(matches!(running.await.unwrap(), Attempted::Conflict));
    let read = read_all(&keys());
    let again = cluster.coordinator().run(ctx(), read, None).await;
    assert_eq!(again.unwrap(), "0 0");
}

/// A range is compared with what it holds, and may have held more.
#[tokio::test]
async fn rule_1_a_range_did_not_hold_more_before_it_is_compared() {
    let cluster = Cluster::new(TTL).await;
    let y = key(1, "y");
    for changed in [true, false] {
        let gate = Arc::new(Gate::default());
        let coordinator = cluster.gated(&gate, 0);
        let range = key(0, "a")..key(0, "c");
        let read = script(&[y.clone()], Access::Read, move |rows| {
            number(rows, &key(1, "y"))?;
            let mut found = 0;
            rows.scan(range.clone(), ScanOrder::Ascending, &mut |_, _| {
                found += 1;
                true
            })?;
            Ok(found.to_string().into())
        });
        let running = tokio::spawn(async move { coordinator.attempt(&ctx(), &read, 0).await });
        assert_eq!(only_waiting(&gate).await, ("TXN.SCAN", 0));
        deliver_one(&cluster, &gate).await;
        let mut checks = all_waiting(&gate, 2).await;
        if changed {
            let b = key(0, "b");
            cluster.on_shard(0, set_all(&[b.clone()], 7)).await.unwrap();
            delete(&cluster, 0, &b).await;
        }
        for check in &mut checks {
            super::explore::deliver(&cluster, check).await;
        }
        match running.await.unwrap() {
            Attempted::Conflict => assert!(changed),
            Attempted::Done(reply) => {
                assert!(!changed);
                assert_eq!(reply, "0");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// It may have stumbled over rows of two moments.
#[tokio::test]
async fn rule_2_an_operation_that_fails_after_it_wrote_is_validated_too() {
    let cluster = Cluster::new(TTL).await;
    let [x, y] = keys();
    let gate = Arc::new(Gate::default());
    let coordinator = cluster.gated(&gate, 0);
    for changed in [true, false] {
        let failing = script(&keys(), Access::Write, {
            let x = x.clone();
            move |rows| {
                number(rows, &x)?;
                put(rows, &x, 1);
                Err(RowError::Storage("a hole".to_owned()))
            }
        });
        let coordinator = Arc::clone(&coordinator);
        let running = tokio::spawn(async move { coordinator.attempt(&ctx(), &failing, 0).await });
        assert_eq!(only_waiting(&gate).await, ("TXN.VALIDATE", 0));
        if changed {
            let set = set_all(&[x.clone()], 5);
            cluster.on_shard(0, set).await.unwrap();
        }
        deliver_one(&cluster, &gate).await;
        match running.await.unwrap() {
            Attempted::Conflict => assert!(changed),
            Attempted::Failed(KvError::Storage(_)) => assert!(!changed),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cluster.values(&[x, y]).await, [5, 0]);
}

#[tokio::test]
async fn rule_2_a_read_over_two_shards_never_sees_half_of_a_transaction() {
    let cluster = Cluster::new(Duration::from_secs(5)).await;
    let [x, y] = keys();
    let writer = tokio::spawn({
        let (cluster, keys) = (Arc::clone(&cluster), [x.clone(), y.clone()]);
        async move {
            let coordinator = cluster.coordinator();
            for value in 1..=60 {
                let write = set_all(&keys, value);
                Arc::clone(&coordinator)
                    .run(ctx(), write, None)
                    .await
                    .unwrap();
            }
        }
    });
    let reader = cluster.coordinator();
    let mut seen = 0;
    while !writer.is_finished() {
        let read = read_all(&[x.clone(), y.clone()]);
        let both = Arc::clone(&reader).run(ctx(), read, None).await.unwrap();
        let text = std::str::from_utf8(&both).unwrap();
        let (first, second) = text.split_once(' ').unwrap();
        assert_eq!(first, second, "half of a transaction");
        let now: i64 = first.parse().unwrap();
        assert!(now >= seen, "went back from {seen} to {now}");
        seen = now;
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn rule_3_who_meets_a_lock_waits_for_its_end_and_holds_up_nobody_else() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let (x, other) = (key(0, "x"), key(0, "other"));
    let reply = send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    let StepReply::Granted(stamp) = reply else {
        panic!("{reply:?}")
    };
    let short = Context::with_timeout(Duration::from_millis(40));
    let timed_out = cluster.submit(0, &short, read_all(&[x.clone()]));
    let long = ctx();
    let read = cluster.submit(0, &long, read_all(&[x.clone()]));
    let write = cluster.submit(0, &long, follow(&x, &x));
    let after = cluster.submit(0, &long, read_all(&[x.clone()]));
    // Another key is not held up.
    cluster.on_shard(0, set_all(&[other], 1)).await.unwrap();
    assert_eq!(timed_out.await, Err(KvError::NotApplied(Ended::Deadline)));
    // Another transaction is refused at once: no deadlock.
    let refused = send(&cluster, 0, attempt(2), 1, &x, lock_of(&x, &x, "6")).await;
    assert!(matches!(refused, StepReply::Conflict(_)));
    let decision = Decide {
        stamp,
        participants: vec![Participant {
            key: x.clone(),
            stamp,
        }],
        here: None,
        read: None,
    };
    let decided = send(&cluster, 0, attempt(1), 1, &x, Step::Decide(decision)).await;
    assert!(matches!(decided, StepReply::Committed(_)));
    // The lock's value, and then in the order of their submission.
    assert_eq!(read.await.unwrap(), "5");
    assert_eq!(write.await.unwrap(), "+OK");
    assert_eq!(after.await.unwrap(), "6");
}

#[tokio::test]
async fn rule_3_the_lock_table_is_there_again_after_a_change_of_leader() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let x = key(0, "x");
    send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    cluster.elect(0).await;
    let short = Context::with_timeout(Duration::from_millis(40));
    let read = cluster.submit(0, &short, read_all(&[x.clone()])).await;
    assert_eq!(read, Err(KvError::NotApplied(Ended::Deadline)));
    send(&cluster, 0, attempt(1), 1, &x, Step::Release(0)).await;
    assert_eq!(cluster.values(&[x]).await, [0]);
}

#[tokio::test]
async fn rule_4_late_and_doubled_messages_do_nothing() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let x = key(0, "x");
    let first = send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    let again = send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    assert_eq!(first, again, "one lock, one stamp");
    let StepReply::Granted(stamp) = first else {
        panic!("{first:?}")
    };
    // Another stamp is another lock.
    send(&cluster, 0, attempt(1), 1, &x, Step::RollForward(stamp + 1)).await;
    send(&cluster, 0, attempt(1), 1, &x, Step::Release(stamp + 1)).await;
    assert_eq!(cluster.left().0, 1);
    let wrong = Step::Decide(Decide {
        stamp: stamp + 1,
        participants: Vec::new(),
        here: None,
        read: None,
    });
    let refused = send(&cluster, 0, attempt(1), 1, &x, wrong).await;
    assert!(matches!(refused, StepReply::Aborted(_)));
    // An abort record refuses the locks and decisions that come after it.
    send(&cluster, 0, attempt(1), 1, &x, Step::Abort(true)).await;
    let late = send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    assert!(matches!(late, StepReply::Aborted(_)));
    let decide = Step::Decide(Decide {
        stamp,
        participants: Vec::new(),
        here: None,
        read: None,
    });
    let late = send(&cluster, 0, attempt(1), 1, &x, decide).await;
    assert!(matches!(late, StepReply::Aborted(_)));
    assert_eq!(cluster.left(), (0, 0));
    assert_eq!(cluster.values(&[x]).await, [0]);
}

#[tokio::test]
async fn rule_4_everything_sent_twice_is_as_if_sent_once() {
    let cluster = Cluster::new(TTL).await;
    let coordinator = cluster.ruled(|_, _| Fate::Twice);
    for value in 1..=10 {
        let write = set_all(&keys(), value);
        Arc::clone(&coordinator)
            .run(ctx(), write, None)
            .await
            .unwrap();
        assert_eq!(cluster.values(&keys()).await, [value, value]);
    }
    until_clean(&cluster).await;
}

/// A decision that compares and changes its own shard without a lock there.
fn decide_here(primary: &Bytes, other: &Bytes, stamp: u64, seen: Option<u64>) -> Decide {
    let mut here = rows_of(primary, primary, "5");
    here.seen = vec![SeenRow {
        key: primary.clone(),
        stamp: seen,
    }];
    let participant = |key: &Bytes, stamp| Participant {
        key: key.clone(),
        stamp,
    };
    Decide {
        stamp: 0,
        participants: vec![participant(primary, 0), participant(other, stamp)],
        here: Some(here),
        read: None,
    }
}

#[tokio::test]
async fn rule_4_a_decision_without_a_lock_is_done_once_however_often_and_late_it_comes() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let [x, y] = keys();
    let granted = send(&cluster, 1, attempt(1), 1, &y, lock_of(&y, &x, "5")).await;
    let StepReply::Granted(stamp) = granted else {
        panic!("{granted:?}")
    };
    let decide = Step::Decide(decide_here(&x, &y, stamp, None));
    for _ in 0..2 {
        let reply = send(&cluster, 0, attempt(1), 1, &x, decide.clone()).await;
        assert!(matches!(reply, StepReply::Committed(_)), "{reply:?}");
    }
    send(&cluster, 1, attempt(1), 1, &y, Step::RollForward(stamp)).await;
    send(&cluster, 0, attempt(1), 1, &x, Step::Forget(true)).await;
    // As it was when the decision was made.
    delete(&cluster, 0, &x).await;
    for elected in [false, true] {
        if elected {
            cluster.elect(0).await;
        }
        let late = send(&cluster, 0, attempt(1), 1, &x, decide.clone()).await;
        assert!(matches!(late, StepReply::Aborted(_)), "{late:?}");
        assert_eq!(cluster.values(&keys()).await, [0, 5]);
    }
}

#[tokio::test]
async fn rule_4_a_decision_that_was_refused_stays_refused() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let [x, y] = keys();
    cluster.on_shard(0, set_all(&[x.clone()], 3)).await.unwrap();
    let decide = Step::Decide(decide_here(&x, &y, 1, None));
    let refused = send(&cluster, 0, attempt(1), 1, &x, decide.clone()).await;
    assert!(matches!(refused, StepReply::Aborted(_)), "{refused:?}");
    // Met by another's lock, and nothing else.
    send(&cluster, 0, attempt(2), 1, &x, lock_of(&x, &x, "7")).await;
    let mut locked = decide_here(&key(0, "z"), &y, 1, None);
    locked.read = Some(ValidateRows {
        rows: vec![SeenRow {
            key: x.clone(),
            stamp: None,
        }],
        ..ValidateRows::default()
    });
    let locked = Step::Decide(locked);
    let refused = send(&cluster, 0, attempt(3), 1, &x, locked.clone()).await;
    assert!(matches!(refused, StepReply::Aborted(_)), "{refused:?}");
    send(&cluster, 0, attempt(2), 1, &x, Step::Release(0)).await;
    delete(&cluster, 0, &x).await;
    // Now they would find all as they saw it.
    for (number, decide) in [(1, decide), (3, locked)] {
        let late = send(&cluster, 0, attempt(number), 1, &x, decide).await;
        assert!(matches!(late, StepReply::Aborted(_)), "{late:?}");
    }
    assert_eq!(cluster.values(&[x, key(0, "z")]).await, [0, 0]);
}

#[tokio::test]
async fn rule_5_a_commit_record_stays_until_every_lock_is_gone() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let coordinator = cluster.ruled(|step, shard| match (step, shard) {
        ("TXN.ROLLFORWARD", 1) => Fate::Lose,
        _ => Fate::Deliver,
    });
    Arc::clone(&coordinator)
        .run(ctx(), set_all(&keys(), 4), None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        cluster.left(),
        (1, 1),
        "a lock, and the record that decides about it"
    );
    let other = cluster.coordinator();
    for doubt in cluster.locks() {
        other.resolve_one(doubt).await;
    }
    assert_eq!(cluster.values(&keys()).await, [4, 4]);
}

#[tokio::test]
async fn rule_5_commit_records_whose_locks_are_gone_are_forgotten_together() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let forgotten = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&forgotten);
    let coordinator = cluster.forgetting(Duration::from_secs(1), move |step, _| {
        count.fetch_add(usize::from(step == "TXN.FORGET"), Ordering::SeqCst);
        Fate::Deliver
    });
    let began = Instant::now();
    for value in 1..=5 {
        let write = set_all(&keys(), value);
        Arc::clone(&coordinator)
            .run(ctx(), write, None)
            .await
            .unwrap();
    }
    while cluster.left().0 > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // On a machine that is too slow for it there is nothing to be seen.
    if began.elapsed() < Duration::from_millis(900) {
        assert_eq!(cluster.left(), (0, 5));
        assert_eq!(forgotten.load(Ordering::SeqCst), 0);
    }
    until_clean(&cluster).await;
    assert_eq!(forgotten.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn rule_5_abort_records_go_only_below_the_mark_and_the_mark_refuses_what_is_below_it() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let x = key(0, "x");
    for number in 1..=40 {
        send(&cluster, 0, attempt(number), 1, &x, Step::Abort(true)).await;
    }
    // The session says that 36 is its lowest open number: what is below is forgotten, and refused.
    let reply = send(&cluster, 0, attempt(50), 36, &x, lock_of(&x, &x, "1")).await;
    assert!(matches!(reply, StepReply::Granted(_)));
    send(&cluster, 0, attempt(50), 36, &x, Step::Release(0)).await;
    cluster.elect(0).await;
    for number in [1, 35, 36, 40] {
        let late = send(&cluster, 0, attempt(number), 36, &x, lock_of(&x, &x, "1")).await;
        assert!(matches!(late, StepReply::Aborted(_)), "{number}: {late:?}");
    }
}

/// A batch is one log entry, which has a bound.
#[tokio::test]
async fn rule_5_abort_records_go_a_bounded_number_at_a_time() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let x = key(0, "x");
    for number in 1..=9000 {
        let step = TransactionOperation::new(attempt(number), 1, x.clone(), Step::Abort(true));
        drop(cluster.submit(0, &ctx(), step));
    }
    send(&cluster, 0, attempt(9001), 1, &x, Step::Abort(true)).await;
    let engine = &cluster.shards[0].engine;
    for size in [100_000..150_000, 100_000..150_000, 10_000..50_000] {
        engine.hold();
        let lock = lock_of(&x, &x, "1");
        let step = TransactionOperation::new(attempt(9002), 9002, x.clone(), lock);
        let locked = cluster.submit(0, &ctx(), step);
        while engine.held() == 0 {
            tokio::task::yield_now().await;
        }
        let entry = engine.held_entries()[0].len();
        assert!(size.contains(&entry), "{entry}");
        engine.open();
        locked.await.unwrap();
        for number in [1, 4096, 4097, 8192, 9001] {
            let late = send(&cluster, 0, attempt(number), 1, &x, lock_of(&x, &x, "1")).await;
            assert!(matches!(late, StepReply::Aborted(_)), "{number}: {late:?}");
        }
    }
}

#[tokio::test]
async fn rule_5_an_overdue_lock_is_resolved_by_whoever_holds_it() {
    let cluster = Cluster::new(TTL).await;
    let stop = resolving(&cluster);
    let [x, y] = keys();
    // A coordinator that locked both, and is gone.
    send(&cluster, 0, attempt(1), 1, &x, lock_of(&x, &x, "5")).await;
    send(&cluster, 1, attempt(1), 1, &y, lock_of(&y, &x, "5")).await;
    let began = Instant::now();
    assert_eq!(cluster.values(&[x, y]).await, [0, 0]);
    let waited = began.elapsed();
    assert!(waited < TTL + Duration::from_millis(1500), "{waited:?}");
    // The readers are let go with the locks; the records go after that.
    while cluster.left() != (0, 0) {
        assert!(began.elapsed() < TTL + Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.cancel();
}

/// The shard that decides does not answer, and the executor asks again and again.
#[tokio::test]
async fn locks_that_cannot_be_resolved_take_a_bounded_part_of_the_node() {
    let cluster = Cluster::new(TTL).await;
    let gate = Arc::new(Gate::default());
    let stop = CancellationToken::new();
    let doubts = Arc::new(Doubts::default());
    let resolving = cluster.gated(&gate, 0);
    tokio::spawn(resolving.resolve(Arc::clone(&doubts), stop.clone()));
    let doubt = |number| Doubt {
        attempt: attempt(number),
        primary: key(1, "y"),
        held_at: key(0, "x"),
        stamp: 1,
    };
    for _ in 0..20 {
        doubts.raise((0..3).map(doubt).collect());
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(gate.waiting.lock().len(), 3, "one at a time of each");
    for from in 1..=10 {
        doubts.raise((from * 100..from * 100 + 100).map(doubt).collect());
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let asked = gate.waiting.lock().len();
    assert!((4..=256).contains(&asked), "{asked}");
    stop.cancel();
}

const ONCE: RequestId = RequestId {
    session: 1,
    number: 1,
};

/// Adds one at every key: to run twice would show.
fn add_one() -> Arc<dyn Operation> {
    script(&keys(), Access::Write, |rows| {
        for key in keys() {
            let now = super::number(rows, &key)?;
            super::put(rows, &key, now + 1);
        }
        Ok(Bytes::from_static(b"+OK"))
    })
}

/// A request that committed under [`ONCE`] and was not told so; from here on its coordinator hears
/// everything.
async fn in_doubt(
    cluster: &Arc<Cluster>,
) -> (Arc<TransactionCoordinator<TestNetwork>>, Arc<dyn Operation>) {
    let deaf = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let coordinator = cluster.ruled({
        let deaf = Arc::clone(&deaf);
        move |step, _| match step {
            "TXN.DECIDE" if deaf.load(Ordering::SeqCst) => Fate::LoseAnswer,
            _ => Fate::Deliver,
        }
    });
    let add = add_one();
    let short = Context::with_timeout(Duration::from_millis(100));
    let reply = Arc::clone(&coordinator)
        .run(short, Arc::clone(&add), Some(ONCE))
        .await;
    assert!(matches!(reply, Err(KvError::Unknown(_))), "{reply:?}");
    deaf.store(false, Ordering::SeqCst);
    (coordinator, add)
}

#[tokio::test]
async fn rule_6_a_lost_answer_to_decide_is_settled_by_asking_again() {
    let cluster = Cluster::new(TTL).await;
    let lost = Arc::new(AtomicUsize::new(0));
    let coordinator = cluster.ruled({
        let lost = Arc::clone(&lost);
        move |step, _| match step {
            "TXN.DECIDE" if lost.fetch_add(1, Ordering::SeqCst) < 3 => Fate::LoseAnswer,
            _ => Fate::Deliver,
        }
    });
    let sum = add_one();
    Arc::clone(&coordinator)
        .run(ctx(), sum, None)
        .await
        .unwrap();
    assert!(lost.load(Ordering::SeqCst) > 3);
    assert_eq!(cluster.values(&keys()).await, [1, 1], "once");
    until_clean(&cluster).await;
}

#[tokio::test]
async fn rule_6_an_undecided_attempt_is_unknown_and_its_request_is_settled_before_it_runs_again() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let (coordinator, add) = in_doubt(&cluster).await;
    let reply = Arc::clone(&coordinator).run(ctx(), add, Some(ONCE)).await;
    assert_eq!(reply.unwrap(), "+OK");
    assert_eq!(cluster.values(&keys()).await, [1, 1], "once");
    until_clean(&cluster).await;
}

/// What is done beside for an attempt in doubt may be done before its request comes again.
#[tokio::test]
async fn rule_6_a_request_whose_commit_was_forgotten_meanwhile_does_not_run_again() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let (coordinator, add) = in_doubt(&cluster).await;
    until_clean(&cluster).await;
    let reply = Arc::clone(&coordinator).run(ctx(), add, Some(ONCE)).await;
    assert_eq!(reply.unwrap(), "+OK");
    assert_eq!(cluster.values(&keys()).await, [1, 1], "once");
}

#[tokio::test]
async fn what_a_caller_that_left_had_in_doubt_is_not_kept() {
    let cluster = Cluster::new(Duration::from_secs(60)).await;
    let decides = Arc::new(AtomicUsize::new(0));
    let coordinator = cluster.ruled({
        let decides = Arc::clone(&decides);
        move |step, _| match step {
            "TXN.DECIDE" => {
                decides.fetch_add(1, Ordering::SeqCst);
                Fate::Lose
            }
            _ => Fate::Deliver,
        }
    });
    let caller = ctx();
    let write = set_all(&keys(), 3);
    let mut running = Box::pin(Arc::clone(&coordinator).run(caller.clone(), write, Some(ONCE)));
    while decides.load(Ordering::SeqCst) == 0 {
        assert!(futures::poll!(&mut running).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // As a connection does whose client leaves.
    caller.cancel();
    drop(running);
    coordinator.finish(ONCE);
    let seen = decides.load(Ordering::SeqCst);
    while decides.load(Ordering::SeqCst) < seen + 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(coordinator.in_doubt(), 0);
}

/// A fault point per step: nothing stays locked longer than its time to live, nothing is half done.
#[tokio::test]
async fn a_coordinator_that_dies_at_any_step_leaves_nothing_half_done_and_nothing_locked() {
    for point in [
        Point::Read,
        Point::Locked,
        Point::Validated,
        Point::Decided,
        Point::RolledForward,
        Point::Forgotten,
    ] {
        let cluster = Cluster::new(TTL).await;
        let stop = resolving(&cluster);
        let coordinator = cluster.coordinator();
        *coordinator.dies.lock() = Some(point);
        let write = set_all(&keys(), 3);
        let ended = coordinator.attempt(&ctx(), &write, 0).await;
        let began = Instant::now();
        let values = cluster.values(&keys()).await;
        assert!(
            began.elapsed() < TTL + Duration::from_millis(1500),
            "{point:?}"
        );
        let committed = matches!(
            point,
            Point::Decided | Point::RolledForward | Point::Forgotten
        );
        let expected = if committed { [3, 3] } else { [0, 0] };
        assert_eq!(values, expected, "died at {point:?}, {ended:?}");
        // A read may be answered while the release that it saw is on its way to the log.
        while cluster.left().0 > 0 {
            assert!(began.elapsed() < TTL * 30, "died at {point:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
    }
}

#[tokio::test]
async fn messages_that_are_lost_cost_attempts_and_never_a_half() {
    for step in [
        "TXN.LOCK",
        "TXN.VALIDATE",
        "TXN.DECIDE",
        "TXN.ROLLFORWARD",
        "TXN.FORGET",
    ] {
        for fate in [Fate::Lose, Fate::LoseAnswer] {
            let cluster = Cluster::new(TTL).await;
            let stop = resolving(&cluster);
            let lost = AtomicUsize::new(0);
            let coordinator = cluster.ruled(move |name, shard| {
                let first = name == step && shard == 1 && lost.fetch_add(1, Ordering::SeqCst) == 0;
                if first { fate } else { Fate::Deliver }
            });
            let write = set_all(&keys(), 8);
            Arc::clone(&coordinator)
                .run(ctx(), write, None)
                .await
                .unwrap();
            assert_eq!(cluster.values(&keys()).await, [8, 8], "{step} {fate:?}");
            until_clean(&cluster).await;
            stop.cancel();
        }
    }
}

#[tokio::test]
async fn hot_transactions_over_two_shards_all_get_their_turn() {
    let cluster = Cluster::new(Duration::from_secs(5)).await;
    let mut running = Vec::new();
    for _ in 0..16 {
        let coordinator = cluster.coordinator();
        running.push(tokio::spawn(async move {
            for _ in 0..5 {
                let add = add_one();
                let ctx = Context::with_timeout(Duration::from_secs(10));
                Arc::clone(&coordinator).run(ctx, add, None).await.unwrap();
            }
        }));
    }
    for running in running {
        running.await.unwrap();
    }
    assert_eq!(cluster.values(&keys()).await, [80, 80]);
}

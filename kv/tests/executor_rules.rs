//! The executor's rules (design, section 5.2), one by one.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod executor_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use executor_support::*;
use leadline_kv::executor::{Order, ShardConfig, Sweep};
use leadline_kv::{KvError, Operation, Outcome, RowError, ScanOrder};
use leadline_raft::engine::{LeaderView, Leadership};
use leadline_raft::{Context, Ended, NodeId, RaftError};

fn text(reply: Result<Bytes, KvError>) -> String {
    String::from_utf8(reply.unwrap().to_vec()).unwrap()
}

fn not_applied(reply: Result<Bytes, KvError>) -> bool {
    reply.is_err_and(|error| error.outcome() == Outcome::NotApplied)
}

#[tokio::test]
async fn a_command_is_evaluated_over_the_effects_of_those_before_it_that_are_not_applied() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let replies: Vec<_> = (0..5)
        .map(|_| node.submit(&ctx, &Command::new("n", What::Incr)))
        .collect();
    node.engine.open();
    for (index, reply) in replies.into_iter().enumerate() {
        assert_eq!(text(reply.await), (index + 1).to_string());
    }
    assert_eq!(node.get("n").await, "5");
}

#[tokio::test]
async fn a_command_that_fails_leaves_no_effect_and_its_neighbours_keep_theirs() {
    let node = Node::new();
    node.ready().await;
    let ctx = soon();
    let failing = What::IncrBoth(key("b"), Some(RowError::Refused("told to".to_owned())));
    let replies = node.shard.submit_many(
        &ctx,
        vec![
            submission(&Command::new("a", What::Incr)),
            submission(&Command::new("a", failing)),
            submission(&Command::new("a", What::IncrBoth(key("b"), None))),
        ],
    );
    let mut ends = Vec::new();
    for reply in replies {
        ends.push(reply.await);
    }
    assert_eq!(ends[0], Ok(Bytes::from_static(b"1")));
    assert_eq!(ends[1], Err(KvError::Invalid("told to".to_owned())));
    assert_eq!(ends[2], Ok(Bytes::from_static(b"2")));
    assert_eq!(node.get("a").await, "2");
}

#[tokio::test]
async fn a_scan_sees_the_rows_of_storage_under_those_that_are_not_applied() {
    let node = Node::new();
    node.ready().await;
    for name in ["x1", "x3", "x5", "x7"] {
        node.run(name, What::Set(Bytes::from_static(b"v")))
            .await
            .unwrap();
    }
    node.engine.hold();
    let ctx = soon();
    let commands = [
        ("x2", What::Set(Bytes::from_static(b"v"))),
        ("x3", What::Del),
        ("x4", What::DelRange(key("x6"))),
        ("x55", What::Set(Bytes::from_static(b"v"))),
        ("x8", What::Set(Bytes::from_static(b"v"))),
    ];
    for (name, what) in commands {
        drop(node.submit(&ctx, &Command::new(name, what)));
    }
    let up = node.submit(
        &ctx,
        &Command::new("x", What::Names(key("y"), ScanOrder::Ascending)),
    );
    let down = node.submit(
        &ctx,
        &Command::new("x", What::Names(key("y"), ScanOrder::Descending)),
    );
    node.engine.open();
    assert_eq!(text(up.await), "x1,x2,x55,x7,x8");
    assert_eq!(text(down.await), "x8,x7,x55,x2,x1");
}

/// Rule 2: what was reordered, dropped or overtaken by another begin does not take effect.
#[tokio::test]
async fn rule_2_a_batch_takes_effect_only_on_the_state_it_was_evaluated_on() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let first = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    let second = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(5).await;
    node.engine.reorder(&[1, 0]);
    // The second batch arrives first: ignored. The first is the successor: it takes effect.
    node.engine.open();
    assert_eq!(text(first.await), "1");
    // A new executor begins by itself; its begin decides about the ignored batch.
    assert!(not_applied(second.await));
    node.ready().await;
    assert_eq!(node.get("n").await, "1");
}

#[tokio::test]
async fn rule_2_a_batch_of_an_earlier_life_is_ignored_behind_the_next_begin() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let lost = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    let stale = node.engine.held_entries().remove(0);
    node.engine.discard(0);
    node.engine.elect();
    node.engine.open();
    node.ready().await;
    assert!(not_applied(lost.await));
    // The entry turns up after all, as one that a network kept back, and its number fits: the new
    // life is just behind it.
    node.run("other", What::Incr).await.unwrap();
    node.engine.apply_foreign(stale);
    node.engine.settle();
    assert_eq!(node.get("n").await, "");
}

/// Rule 3: what was never evaluated is not applied; what was proposed is what the log says.
#[tokio::test]
async fn rule_3_at_its_end_an_executor_answers_each_command_with_what_is_known_of_it() {
    let node = Node::with(
        ShardConfig {
            in_flight: 1,
            ..ShardConfig::default()
        },
        Arc::new([]),
    );
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let proposed = node.submit(&ctx, &Command::new("a", What::Incr));
    node.engine.proposals(4).await;
    let queued = node.submit(&ctx, &Command::new("b", What::Incr));
    let read = node.submit(&ctx, &Command::new("b", What::Get));
    node.engine.depose(NodeId(2));
    assert!(not_applied(queued.await));
    assert!(not_applied(read.await));
    // The new leader has our entry in its log.
    node.engine.open();
    assert_eq!(text(proposed.await), "1");
    assert!(not_applied(node.run("a", What::Incr).await));
}

#[tokio::test]
async fn rule_3_a_refused_batch_and_those_behind_it_are_not_applied_and_a_new_executor_begins() {
    let node = Node::new();
    node.ready().await;
    node.engine.refuse_next(RaftError::Overloaded("told to"));
    let refused = node.run("n", What::Incr).await;
    assert!(
        matches!(refused, Err(KvError::Overloaded { .. })),
        "{refused:?}"
    );
    node.ready().await;
    assert_eq!(text(node.run("n", What::Incr).await), "1");
}

#[tokio::test]
async fn rule_3_a_write_whose_fate_stays_unknown_ends_unknown_at_its_own_deadline() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = Context::with_timeout(Duration::from_millis(50));
    let lost = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    node.engine.depose(NodeId(2));
    assert!(matches!(lost.await, Err(KvError::Unknown(_))));
}

#[tokio::test]
async fn rule_3_an_executor_that_panics_is_replaced() {
    let node = Node::new();
    node.ready().await;
    assert!(node.run("n", What::Panic).await.is_err());
    node.ready().await;
    assert_eq!(text(node.run("n", What::Incr).await), "1");
}

/// Rule 4: evaluated first, proved after.
#[tokio::test]
async fn rule_4_a_read_waits_for_a_round_that_begins_after_its_evaluation() {
    let node = Node::new();
    node.ready().await;
    for name in ["cached", "cold"] {
        node.run(name, What::Set(Bytes::from_static(b"v")))
            .await
            .unwrap();
    }
    node.get("cached").await;
    for (name, thread_is_executors) in [("cached", false), ("cold", true)] {
        node.engine.hold_verify();
        let ctx = soon();
        let command = Command::new(name, What::Get);
        let mut read = node.submit(&ctx, &command);
        while node.shard.pending_reads() == 0 {
            assert!(futures::poll!(&mut read).is_pending());
            tokio::task::yield_now().await;
        }
        let threads = command.evaluated.lock().clone();
        assert_eq!(threads.len(), 1);
        assert_eq!(threads[0].starts_with("shards-"), thread_is_executors);
        assert!(futures::poll!(&mut read).is_pending());
        node.engine.open_verify();
        assert_eq!(text(read.await), "v");
    }
}

#[tokio::test]
async fn rule_4_a_proof_of_another_leadership_does_not_answer_a_read() {
    let node = Node::new();
    node.ready().await;
    // From now on in the cache, so that the next read and its round begin on this thread.
    node.get("n").await;
    node.engine.hold_verify();
    let ctx = soon();
    let read = node.submit(&ctx, &Command::new("n", What::Get));
    assert_eq!(node.shard.pending_reads(), 1);
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    // In this order the round ends before the executor hears of the new leadership.
    node.engine.open_verify();
    node.engine.elect();
    assert!(not_applied(read.await));
}

#[tokio::test]
async fn rule_4_a_command_without_effects_waits_until_what_it_saw_is_applied() {
    let node = Node::new();
    node.ready().await;
    node.engine.set_lease(true);
    node.engine.hold();
    let ctx = soon();
    let set = node.submit(
        &ctx,
        &Command::new("n", What::SetNx(Bytes::from_static(b"1"))),
    );
    node.engine.proposals(4).await;
    let mut failed = node.submit(
        &ctx,
        &Command::new("n", What::SetNx(Bytes::from_static(b"2"))),
    );
    for _ in 0..100 {
        assert!(futures::poll!(&mut failed).is_pending());
        tokio::task::yield_now().await;
    }
    node.engine.open();
    assert_eq!(text(set.await), "1");
    assert_eq!(text(failed.await), "0");
}

#[tokio::test]
async fn rule_4_a_read_does_not_wait_for_batches_that_it_saw_nothing_of() {
    let node = Node::new();
    node.ready().await;
    node.engine.set_lease(true);
    node.engine.hold();
    let ctx = soon();
    let write = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    assert_eq!(node.get("absent").await, "");
    let (absent, own) = (Command::new("x", What::Get), Command::new("n", What::Get));
    let mut read = submission(&own);
    read.order = Order::AfterMine;
    let mut own = node.shard.submit(&ctx, read);
    assert_eq!(text(node.submit(&ctx, &absent).await), "");
    assert!(futures::poll!(&mut own).is_pending());
    node.engine.open();
    assert_eq!(text(write.await), "1");
    assert_eq!(text(own.await), "1");
}

#[tokio::test]
async fn rule_4_a_batch_proposed_after_a_read_came_proves_it_too() {
    let node = Node::new();
    node.ready().await;
    node.run("n", What::Incr).await.unwrap();
    node.engine.hold_verify();
    let ctx = soon();
    let read = node.submit(&ctx, &Command::new("n", What::Get));
    assert_eq!(text(node.run("other", What::Incr).await), "1");
    assert_eq!(text(read.await), "1");
}

/// A batch proposed before the read came may have been committed before another leader took over.
#[tokio::test]
async fn rule_4_a_batch_proposed_before_a_read_came_proves_nothing() {
    let node = Node::new();
    node.ready().await;
    node.run("n", What::Incr).await.unwrap();
    node.engine.hold();
    node.engine.hold_verify();
    let ctx = soon();
    let write = node.submit(&ctx, &Command::new("other", What::Incr));
    node.engine.proposals(5).await;
    let mut read = node.submit(&ctx, &Command::new("n", What::Get));
    node.engine.open();
    assert_eq!(text(write.await), "1");
    node.engine.settle();
    assert!(futures::poll!(&mut read).is_pending());
    node.engine.open_verify();
    assert_eq!(text(read.await), "1");
}

#[tokio::test]
async fn rule_4_a_read_after_an_acknowledged_write_sees_it() {
    let node = Node::new();
    node.ready().await;
    node.engine.set_lease(true);
    for round in 1..=500 {
        assert_eq!(text(node.run("n", What::Incr).await), round.to_string());
        assert_eq!(node.get("n").await, round.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_4_a_read_of_two_rows_sees_one_instant() {
    let node = Arc::new(Node::new());
    node.ready().await;
    node.engine.set_lease(true);
    let writer = {
        let node = Arc::clone(&node);
        async move {
            for _ in 0..2000 {
                node.run("a", What::IncrBoth(key("b"), None)).await.unwrap();
            }
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(writer);
    let mut cached = 0;
    while tasks.try_join_next().is_none() {
        let command = Command::new("a", What::GetBoth(key("b")));
        let reply = text(node.submit(&soon(), &command).await);
        let (a, b) = reply.split_once(' ').unwrap();
        assert_eq!(a, b);
        cached += usize::from(!command.evaluated.lock()[0].starts_with("shard"));
    }
    assert!(cached > 0, "the caller's thread answered none");
}

/// Rule 5: the caller's thread answers from the cache; storage is read on the pool's threads.
#[tokio::test]
async fn rule_5_storage_is_read_on_the_pools_threads() {
    let node = Node::new();
    node.ready().await;
    node.run("n", What::Set(Bytes::from_static(b"v")))
        .await
        .unwrap();
    let (cold, warm) = (Command::new("n", What::Get), Command::new("n", What::Get));
    assert_eq!(text(node.submit(&soon(), &cold).await), "v");
    assert_eq!(text(node.submit(&soon(), &warm).await), "v");
    assert_eq!(cold.evaluated.lock().len(), 1);
    assert!(cold.evaluated.lock()[0].starts_with("shards-"));
    assert!(!warm.evaluated.lock()[0].starts_with("shard"));
}

/// Rule 6: wakes come after the apply, and an executor's end wakes all.
#[tokio::test]
async fn rule_6_a_watch_is_woken_once_what_woke_it_is_applied() {
    let node = Node::new();
    node.ready().await;
    let mut watch = node.shard.watch(&[key("list")]).unwrap();
    let mut other = node.shard.watch(&[key("other")]).unwrap();
    node.engine.hold();
    let ctx = soon();
    let push = node.submit(
        &ctx,
        &Command::new("list", What::Push(Bytes::from_static(b"v"))),
    );
    node.engine.proposals(4).await;
    assert!(futures::poll!(std::pin::pin!(watch.woken())).is_pending());
    node.engine.open();
    push.await.unwrap();
    watch.woken().await;
    assert_eq!(node.get("list").await, "v");
    assert!(futures::poll!(std::pin::pin!(other.woken())).is_pending());
    node.engine.depose(NodeId(2));
    other.woken().await;
}

/// Rule 7: another leader's clock cannot revive a key that was seen expired.
#[tokio::test]
async fn rule_7_a_read_that_finds_a_key_expired_deletes_it_before_it_answers() {
    let node = Node::new();
    node.ready().await;
    node.run("n", What::Set(Bytes::from_static(b"2000")))
        .await
        .unwrap();
    assert_eq!(text(node.run("n", What::GetUnlessExpired).await), "2000");
    node.wall.store(3_000, Ordering::SeqCst);
    node.engine.hold();
    let mut read = node.submit(&soon(), &Command::new("n", What::GetUnlessExpired));
    while node.engine.held() == 0 {
        assert!(futures::poll!(&mut read).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(futures::poll!(&mut read).is_pending());
    node.engine.open();
    assert_eq!(text(read.await), "");
    node.wall.store(1_000, Ordering::SeqCst);
    assert_eq!(node.get("n").await, "");
}

#[tokio::test]
async fn expired_commands_are_dropped_unevaluated() {
    let node = Node::new();
    node.engine.hold();
    let ctx = soon();
    // No executor has begun: commands wait for it.
    let command = Command::new("n", What::Incr);
    let gone = loop {
        match node
            .submit(&ctx.child(Duration::from_millis(20)), &command)
            .await
        {
            Err(KvError::NoLeader { .. }) => tokio::task::yield_now().await,
            other => break other,
        }
    };
    assert_eq!(gone, Err(KvError::NotApplied(Ended::Deadline)));
    let cancelled = ctx.child(Duration::from_secs(5));
    let reply = node.submit(&cancelled, &command);
    cancelled.cancel();
    node.engine.open();
    assert_eq!(reply.await, Err(KvError::NotApplied(Ended::Cancelled)));
    node.ready().await;
    assert_eq!(command.evaluations(), 0);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let node = Node::with(
        ShardConfig {
            queue_commands: 4,
            in_flight: 1,
            ..ShardConfig::default()
        },
        Arc::new([]),
    );
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let first = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    let waiting: Vec<_> = (0..4)
        .map(|_| node.submit(&ctx, &Command::new("n", What::Incr)))
        .collect();
    let refused = node.run("n", What::Incr).await;
    assert!(
        matches!(refused, Err(KvError::Overloaded { .. })),
        "{refused:?}"
    );
    node.engine.open();
    first.await.unwrap();
    for reply in waiting {
        reply.await.unwrap();
    }
    assert_eq!(node.get("n").await, "5");
}

#[tokio::test]
async fn a_request_sent_twice_takes_effect_once_in_flight_applied_and_after_a_restart() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = soon();
    let first = node.submit_once(&ctx, &Command::new("n", What::Incr), once(1, 1));
    node.engine.proposals(4).await;
    let again = node.submit_once(&ctx, &Command::new("n", What::Incr), once(1, 1));
    node.engine.open();
    assert_eq!(text(first.await), "1");
    assert_eq!(text(again.await), "1");
    let again = node.submit_once(&ctx, &Command::new("n", What::Incr), once(1, 1));
    assert_eq!(text(again.await), "1");
    let node = node.restart(ShardConfig::default()).await;
    node.ready().await;
    let again = node.submit_once(&ctx, &Command::new("n", What::Incr), once(1, 1));
    assert_eq!(text(again.await), "1");
    let next = node.submit_once(&ctx, &Command::new("n", What::Incr), once(2, 2));
    assert_eq!(text(next.await), "2");
}

#[tokio::test]
async fn a_pipeline_is_evaluated_in_order_and_its_reads_see_its_writes() {
    let node = Node::new();
    node.ready().await;
    let ctx = soon();
    let commands = [
        Command::new("n", What::Get),
        Command::new("n", What::Incr),
        Command::new("n", What::Get),
        Command::new("n", What::Incr),
        Command::new("n", What::Get),
    ];
    let mut submissions: Vec<_> = commands.iter().map(submission).collect();
    for later in &mut submissions[2..] {
        later.order = Order::AfterMine;
    }
    let mut replies = Vec::new();
    for reply in node.shard.submit_many(&ctx, submissions) {
        replies.push(text(reply.await));
    }
    assert_eq!(replies, ["", "1", "1", "2", "2"]);
}

#[tokio::test]
async fn what_lies_outside_the_shard_is_refused() {
    let node = Node::new();
    node.ready().await;
    let outside = Bytes::from_static(&[0x42]);
    let reply = node.run("n", What::IncrBoth(outside.clone(), None)).await;
    assert!(matches!(reply, Err(KvError::Invalid(_))), "{reply:?}");
    let reply = node.run("n", What::DelRange(outside)).await;
    assert!(matches!(reply, Err(KvError::Invalid(_))), "{reply:?}");
    assert_eq!(node.get("n").await, "");
}

#[tokio::test]
async fn a_command_larger_than_a_batch_may_be_is_refused_and_leaves_nothing() {
    let node = Node::with(
        ShardConfig {
            command_bytes: 1000,
            ..ShardConfig::default()
        },
        Arc::new([]),
    );
    node.ready().await;
    let reply = node.run("n", What::Set(Bytes::from(vec![0; 2000]))).await;
    assert!(matches!(reply, Err(KvError::Invalid(_))), "{reply:?}");
    assert_eq!(node.get("n").await, "");
}

#[tokio::test]
async fn replies_that_are_remembered_count_towards_the_size_of_a_batch() {
    const MIB: usize = 1 << 20;
    let config = ShardConfig {
        in_flight: 1,
        ..ShardConfig::default()
    };
    let node = Node::with(config, Arc::new([]));
    node.ready().await;
    let names: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
    for name in &names {
        let value = Bytes::from(vec![b'v'; MIB]);
        node.run(name, What::Set(value)).await.unwrap();
    }
    // Behind one that is in flight all of them are in the queue at once.
    node.engine.hold();
    let ctx = soon();
    let first = node.submit(&ctx, &Command::new("n", What::Incr));
    while node.engine.held() == 0 {
        tokio::task::yield_now().await;
    }
    let taken: Vec<_> = (1..)
        .zip(&names)
        .map(|(number, name)| {
            let take = Command::new(name, What::Take);
            node.submit_once(&ctx, &take, once(number, 1))
        })
        .collect();
    node.engine.open();
    first.await.unwrap();
    for value in taken {
        assert_eq!(value.await.unwrap().len(), MIB);
    }
    // One whose change and reply are too much together leaves nothing, and harms nobody.
    let large = Bytes::from(vec![b'l'; 8 * MIB]);
    node.run("l", What::Set(large.clone())).await.unwrap();
    let swap = Command::new("l", What::GetSet(large.clone()));
    let refused = node.submit_once(&ctx, &swap, once(21, 1)).await;
    assert!(matches!(refused, Err(KvError::Invalid(_))), "{refused:?}");
    let plain = node.run("l", What::GetSet(large.clone())).await.unwrap();
    assert_eq!(plain, large);
}

#[tokio::test]
async fn stamps_rise_through_a_restart_with_a_clock_that_runs_backwards() {
    let node = Node::new();
    node.wall.store(5_000_000, Ordering::SeqCst);
    node.ready().await;
    let before = node.state.highest_stamp();
    let node = node.restart(ShardConfig::default()).await;
    node.ready().await;
    assert!(node.wall.load(Ordering::SeqCst) < before.millis());
    assert!(node.state.highest_stamp() > before);
}

struct DeleteOne;

impl Sweep for DeleteOne {
    fn next(&self, _owned: &std::ops::Range<Bytes>) -> Option<Arc<dyn Operation>> {
        Some(Command::new("swept", What::Del))
    }
}

#[tokio::test]
async fn sweeps_run_on_the_leader_by_themselves() {
    let config = ShardConfig {
        sweep_idle: Duration::from_millis(5),
        ..ShardConfig::default()
    };
    let node = Node::with(config, Arc::new([Arc::new(DeleteOne)]));
    node.ready().await;
    node.run("swept", What::Set(Bytes::from_static(b"v")))
        .await
        .unwrap();
    let ctx = soon();
    while node.get("swept").await == "v" {
        assert_eq!(ctx.ended(), None);
        tokio::task::yield_now().await;
    }
}

/// Writes 8 MiB, once.
struct WriteOnce(&'static str);

impl Sweep for WriteOnce {
    fn next(&self, _owned: &std::ops::Range<Bytes>) -> Option<Arc<dyn Operation>> {
        let large = Bytes::from(vec![b'l'; 8 << 20]);
        Some(Command::new(self.0, What::SetNx(large)))
    }
}

#[tokio::test]
async fn sweeps_that_write_much_do_not_share_a_batch() {
    let config = ShardConfig {
        sweep_idle: Duration::from_millis(5),
        ..ShardConfig::default()
    };
    let sweeps: [Arc<dyn Sweep>; 2] = [Arc::new(WriteOnce("a")), Arc::new(WriteOnce("b"))];
    let node = Node::with(config, Arc::new(sweeps));
    node.ready().await;
    let ctx = soon();
    for name in ["a", "b"] {
        while node.get(name).await.is_empty() {
            assert_eq!(ctx.ended(), None, "{name}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_leader_that_lost_its_quorum_refuses_and_takes_up_again_when_it_is_back() {
    let node = Node::new();
    node.ready().await;
    let leader = node.engine.leadership();
    node.engine.set_leadership(Leadership::Unknown);
    while node.shard.is_leading() {
        tokio::task::yield_now().await;
    }
    assert!(not_applied(node.run("n", What::Incr).await));
    node.engine.set_leadership(leader);
    node.ready().await;
    assert_eq!(text(node.run("n", What::Incr).await), "1");
}

#[tokio::test]
async fn a_shut_down_shard_leaves_no_caller_waiting() {
    let node = Node::new();
    node.ready().await;
    node.engine.hold();
    let ctx = Context::with_timeout(Duration::from_secs(3600));
    let proposed = node.submit(&ctx, &Command::new("n", What::Incr));
    node.engine.proposals(4).await;
    node.shard.shutdown(&soon()).await;
    assert!(matches!(proposed.await, Err(KvError::Unknown(_))));
    assert!(not_applied(node.run("n", What::Incr).await));
}

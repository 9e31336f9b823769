//! What a group does on good days and bad ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::cluster::{Cluster, GROUP, ctx};
use crate::engine::{
    LeaderView, Leadership, Membership, Proposer, ReadMode, Role, StateMachines, Status, Timing,
};
use crate::node::group::Group;
use crate::{Context, LeaderId, NodeId, RaftError};

const LONG: Duration = Duration::from_secs(20);

fn leader(cluster: &Cluster, node: u64) -> LeaderId {
    match cluster.group(node).leadership() {
        Leadership::Leader(leader) => leader,
        other => panic!("node {node} does not lead: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn one_node_bootstraps_writes_and_restarts_from_disk() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    for n in 0..10 {
        cluster.propose(1, &n.to_string()).await.unwrap();
    }
    let before = cluster.machine(1).payloads();
    assert_eq!(before.len(), 10);

    // A power cut: the state machine had flushed nothing.
    cluster.stop(1).await;
    cluster.disk(1).machines.crash();
    cluster.start(1).await;
    cluster.leads(1).await;
    cluster.group(1).linearizable_read(&ctx()).await.unwrap();
    assert_eq!(cluster.machine(1).payloads(), before);
    cluster.propose(1, "more").await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn bootstrapping_twice_gives_the_same_group() {
    let cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    let again = cluster.host(1).bootstrap(&ctx(), GROUP).await.unwrap();
    again.propose(&ctx(), "b".into()).await.unwrap();
    assert_eq!(cluster.machine(1).payloads(), ["a", "b"]);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn the_only_voter_answers_reads_without_a_round_until_another_is_promoted() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    let proof = cluster.group(1).verify_leader_now().unwrap();
    assert_eq!(proof.leader, leader(&cluster, 1));
    assert_eq!(cluster.group(1).rounds(), 0);

    cluster.start(2).await;
    cluster.join(1, 2).await;
    assert_eq!(cluster.group(1).verify_leader_now(), None);
    let proof = cluster.group(1).verify_leader(&ctx()).await.unwrap();
    assert_eq!(proof.leader, leader(&cluster, 1));
    assert!(cluster.group(1).rounds() >= 1);

    cluster.group(1).remove(&ctx(), NodeId(2)).await.unwrap();
    tokio::time::sleep(LONG).await;
    assert_eq!(
        cluster.group(1).verify_leader_now(),
        None,
        "the proof is fenced for the rest of the term"
    );
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_grows_from_one_to_three_and_every_node_applies_the_same() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    for n in 0..100 {
        cluster.propose(1, &n.to_string()).await.unwrap();
    }
    for node in 1..=3 {
        cluster.applies(node, "99").await;
        assert_eq!(
            cluster.machine(node).indexed_payloads(),
            cluster.machine(1).indexed_payloads()
        );
    }
    let members = cluster.group(2).members();
    assert_eq!(members.len(), 3);
    assert!(members.values().all(|member| member.role == Role::Voter));
    assert_eq!(members[&NodeId(3)].address, "node-3");
    cluster.stop_all().await;
}

/// Node 1 leads, node 2 votes, and whoever promoted node 3 left between the two steps of that.
async fn half_promoted() -> (Cluster, Arc<Group>) {
    let mut cluster = Cluster::of(2, ReadMode::ReadIndex).await;
    cluster.start(3).await;
    let group = cluster.group(1);
    group
        .add_learner(&ctx(), NodeId(3), "node-3".into())
        .await
        .unwrap();
    cluster.propose(1, "before").await.unwrap();
    cluster.applies(3, "before").await;

    // The first step cannot be committed while the caller is there.
    cluster.isolate(2);
    let short = Context::with_timeout(Duration::from_millis(100));
    let left = group.promote(&short, NodeId(3)).await;
    assert!(
        matches!(left, Err(RaftError::OutcomeUnknown(_))),
        "{left:?}"
    );
    cluster.heal();
    cluster.propose_until_applied(1, "between").await;
    let role = |node| group.members()[&NodeId(node)].role;
    assert_eq!(role(3), Role::IncomingVoter);
    assert_eq!((role(1), role(2)), (Role::Voter, Role::Voter));
    (cluster, group)
}

/// Between the two steps of a change (Ongaro, 4.3) a quorum of each set of voters is needed: left
/// like that, the loss of one more node stops the group for good.
#[tokio::test(start_paused = true)]
async fn a_change_of_voters_whose_caller_left_between_its_steps_is_finished_by_asking_again() {
    let (cluster, group) = half_promoted().await;
    let role = |node| group.members()[&NodeId(node)].role;
    group.promote(&ctx(), NodeId(3)).await.unwrap();
    assert_eq!(role(3), Role::Voter);
    cluster.isolate(2);
    cluster.propose(1, "without 2").await.unwrap();
    cluster.stop_all().await;
}

/// The old set has a quorum, and so has the new one: nothing is to be waited for.
#[tokio::test(start_paused = true)]
async fn a_change_of_voters_is_finished_though_the_new_voter_is_gone() {
    let (cluster, group) = half_promoted().await;
    cluster.isolate(3);
    for n in 0..200 {
        cluster.propose(1, &n.to_string()).await.unwrap();
    }
    group.promote(&ctx(), NodeId(3)).await.unwrap();
    assert_eq!(group.members()[&NodeId(3)].role, Role::Voter);
    group.remove(&ctx(), NodeId(3)).await.unwrap();
    assert!(!group.members().contains_key(&NodeId(3)));
    cluster.stop_all().await;
}

/// DESIGN 4: whatever openraft's own state says.
#[tokio::test(start_paused = true)]
async fn an_isolated_leader_is_no_leader_within_an_election_timeout_and_ends_what_is_pending() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.propose(1, "before").await.unwrap();
    cluster.isolate(1);
    let cut_at = Instant::now();
    let group = cluster.group(1);
    let ctx = Context::with_timeout(Duration::from_secs(3600));
    let pending = {
        let (group, ctx) = (group.clone(), ctx.clone());
        async move { group.propose(&ctx, "during".into()).await }
    };
    let mut changes = group.leadership_changes();
    let lost = changes.wait_for(|now| *now == Leadership::Unknown);
    let (ended, lost) = tokio::join!(pending, lost);
    lost.unwrap();
    assert!(
        matches!(ended, Err(RaftError::OutcomeUnknown(_))),
        "{ended:?}"
    );
    assert!(cut_at.elapsed() <= Duration::from_millis(1500));
    let refused = group.propose(&ctx, "after".into()).await;
    assert!(
        matches!(refused, Err(RaftError::NotLeader { .. })),
        "{refused:?}"
    );

    // The others go on, and the old leader follows once it is back. Two candidates may split
    // their votes a few times in a row: one run in a hundred needs three seconds.
    let new = cluster.leader_of(&[2, 3]).await;
    assert!(
        cut_at.elapsed() <= Duration::from_secs(15),
        "{:?}",
        cut_at.elapsed()
    );
    cluster.propose(new, "elsewhere").await.unwrap();
    cluster.heal();
    cluster.applies(1, "elsewhere").await;
    assert_eq!(
        cluster.machine(1).indexed_payloads(),
        cluster.machine(new).indexed_payloads()
    );
    cluster.stop_all().await;
}

/// It still names the leader it had, which it would also have to redirect clients to.
#[tokio::test(start_paused = true)]
async fn a_follower_that_is_cut_off_knows_it_within_an_election_timeout() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.propose(1, "before").await.unwrap();
    cluster.applies(3, "before").await;
    let in_contact = |node| cluster.group(node).status().in_contact;
    assert!((1..=3).all(in_contact));

    cluster.isolate(3);
    tokio::time::sleep(Timing::default().election_max).await;
    for _ in 0..600 {
        assert!(in_contact(1) && in_contact(2) && !in_contact(3));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.group(3).status().leader, Some(leader(&cluster, 1)));

    cluster.heal();
    cluster.propose_until_applied(1, "after").await;
    cluster.applies(3, "after").await;
    assert!(in_contact(3));

    // Nor is a leader in contact with its group once a quorum does not answer.
    cluster.isolate(1);
    tokio::time::sleep(Timing::default().election_max).await;
    assert!(!in_contact(1));
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn callers_at_an_isolated_leader_end_at_their_own_deadlines_and_cost_a_round_per_bound() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.isolate(1);
    let group = cluster.group(1);
    let rounds_before = group.rounds();
    let mut callers = tokio::task::JoinSet::new();
    for n in 1..=1000u64 {
        let group = group.clone();
        callers.spawn(async move {
            let began = Instant::now();
            let ctx = Context::with_timeout(Duration::from_millis(n));
            let result = group.verify_leader(&ctx).await;
            (n, result, began.elapsed())
        });
    }
    while let Some(caller) = callers.join_next().await {
        let (n, result, elapsed) = caller.unwrap();
        assert!(
            matches!(result, Err(RaftError::NotApplied(_))),
            "{result:?}"
        );
        assert_eq!(elapsed, Duration::from_millis(n));
    }
    assert!(
        group.rounds() - rounds_before <= 5,
        "{} rounds",
        group.rounds()
    );
    assert_eq!(group.status().pending_reads, 0);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_for_a_quorum_is_answered_soon_after_the_heal() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    // Both followers stay silent, and elect nobody.
    for (a, b) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
        cluster.cut(a, b);
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let group = cluster.group(1);
    let ctx = ctx();
    let (read, ()) = tokio::join!(group.verify_leader(&ctx), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.heal();
    });
    // Either it still leads and has proved it, or another node was elected meanwhile.
    match read {
        Ok(proof) => assert_eq!(proof.leader.node, NodeId(1)),
        Err(error) => assert!(matches!(error, RaftError::NotLeader { .. }), "{error:?}"),
    }
    cluster.stop_all().await;
}

/// What was acknowledged anywhere is seen by every later linearizable read, on any leader.
#[tokio::test(start_paused = true)]
async fn reads_after_a_change_of_leader_are_never_stale() {
    for mode in [ReadMode::ReadIndex, ReadMode::Lease] {
        let cluster = Cluster::of(3, mode).await;
        let mut old = 1;
        for round in 0..5 {
            let entry = format!("{round}");
            cluster.propose(old, &entry).await.unwrap();
            cluster.isolate(old);
            let others: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
            let new = cluster.leader_of(&others).await;
            let group = cluster.group(new);
            let read = loop {
                match group.linearizable_read(&ctx()).await {
                    Ok(read) => break read,
                    Err(RaftError::NotLeader { .. }) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            let seen = cluster.machine(new).indexed_payloads();
            assert!(seen.iter().any(|(_, p)| *p == entry.as_bytes()));
            assert!(read >= seen.last().unwrap().0);
            // The old leader proves nothing any more, by round or by lease.
            assert_eq!(cluster.group(old).verify_leader_now(), None);
            let stale = Context::with_timeout(Duration::from_millis(500));
            cluster.group(old).verify_leader(&stale).await.unwrap_err();
            cluster.heal();
            cluster.applies(old, &entry).await;
            old = cluster.leader_of(&[1, 2, 3]).await;
        }
        cluster.stop_all().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_answers_locally_and_is_given_up_before_a_transfer() {
    let cluster = Cluster::of(3, ReadMode::Lease).await;
    cluster.propose(1, "a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let group = cluster.group(1);
    let rounds = group.rounds();
    for _ in 0..50 {
        group.verify_leader(&ctx()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    assert_eq!(group.rounds(), rounds, "no round while the lease is valid");
    let ctx = ctx();
    let (moved, ()) = tokio::join!(group.transfer_leadership(&ctx, Some(NodeId(2))), async {
        tokio::task::yield_now().await;
        assert_eq!(group.verify_leader_now(), None);
    });
    moved.unwrap();
    cluster.leads(2).await;
    cluster.stop_all().await;
}

/// A voter that forgot the lease it promised must not help to elect another leader.
#[tokio::test(start_paused = true)]
async fn a_restarted_voter_keeps_out_of_elections_for_one_lease_in_lease_mode() {
    let mut cluster = Cluster::of(3, ReadMode::Lease).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    cluster.isolate(1);
    let restarted = Instant::now();
    cluster.start(2).await;
    cluster.start(3).await;
    cluster.leader_of(&[2, 3]).await;
    assert!(
        restarted.elapsed() >= Duration::from_millis(750),
        "{:?}",
        restarted.elapsed()
    );
    assert_eq!(cluster.group(1).verify_leader_now(), None);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn leadership_moves_to_the_chosen_voter_and_writes_go_on_there() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    let began = Instant::now();
    cluster
        .group(1)
        .transfer_leadership(&ctx(), Some(NodeId(3)))
        .await
        .unwrap();
    cluster.leads(3).await;
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    cluster.propose(3, "b").await.unwrap();
    let refused = cluster.propose(1, "c").await;
    assert_eq!(
        refused,
        Err(RaftError::NotLeader {
            leader: Some(NodeId(3))
        })
    );
    cluster.stop_all().await;
}

/// The others hear the leader that gave leadership away, and cannot ask for votes.
#[tokio::test(start_paused = true)]
async fn leadership_that_nobody_can_take_over_comes_back() {
    for read_mode in [ReadMode::ReadIndex, ReadMode::Lease] {
        let cluster = Cluster::of(3, read_mode).await;
        cluster.propose(1, "a").await.unwrap();
        cluster.mute(2);
        cluster.mute(3);
        let began = Instant::now();
        let moved = cluster
            .group(1)
            .transfer_leadership(&ctx(), Some(NodeId(2)))
            .await;
        assert_eq!(
            moved,
            Err(RaftError::OutcomeUnknown(
                "this node was elected again instead"
            ))
        );
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
        cluster.propose(1, "b").await.unwrap();
        cluster.heal();
        for node in 1..=3 {
            cluster.applies(node, "b").await;
        }
        cluster.stop_all().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_is_replaced_by_a_new_one() {
    let mut cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    cluster.stop(3).await;
    cluster.start(4).await;
    cluster.join(1, 4).await;
    cluster.group(1).remove(&ctx(), NodeId(3)).await.unwrap();
    cluster.group(1).remove(&ctx(), NodeId(3)).await.unwrap();
    cluster.propose(1, "b").await.unwrap();
    cluster.applies(4, "b").await;
    assert_eq!(cluster.machine(4).payloads(), ["a", "b"]);
    let ids: Vec<NodeId> = cluster.group(4).members().into_keys().collect();
    assert_eq!(ids, [NodeId(1), NodeId(2), NodeId(4)]);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_destroyed_replica_leaves_nothing_and_is_not_created_again_by_late_messages() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    cluster.applies(3, "a").await;
    cluster.group(1).remove(&ctx(), NodeId(3)).await.unwrap();
    let mut hosted = cluster.host(3).hosted();
    cluster.host(3).destroy(&ctx(), GROUP).await.unwrap();
    assert!(hosted.borrow_and_update().is_empty());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.host(3).groups().is_empty());
    assert!(cluster.disk(3).logs.groups().is_empty());
    cluster.stop_all().await;
}

/// Two openrafts over one log and one state would each undo what the other relies on.
#[tokio::test]
async fn a_group_whose_end_takes_long_is_not_started_again_and_is_deleted_in_the_end() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    cluster.propose(1, "before").await.unwrap();
    let machine = cluster.machine(1);
    let held = machine.hold_applies();
    let short = Context::with_timeout(Duration::from_millis(100));
    cluster
        .group(1)
        .propose(&short, "stuck".into())
        .await
        .unwrap_err();

    let host = cluster.host(1);
    let short = || Context::with_timeout(Duration::from_millis(100));
    for _ in 0..2 {
        let unfinished = host.destroy(&short(), GROUP).await;
        assert!(matches!(unfinished, Err(RaftError::OutcomeUnknown(_))));
        assert!(host.groups().is_empty());
        let again = host.bootstrap(&ctx(), GROUP).await;
        assert!(matches!(again, Err(RaftError::Stopped(_))));
    }
    assert_eq!(cluster.disk(1).logs.groups(), [GROUP]);

    drop(held);
    while !cluster.disk(1).logs.groups().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(cluster.machine(1).payloads().is_empty());
    while cluster.host(1).bootstrap(&ctx(), GROUP).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.leads(1).await;
    cluster.propose(1, "anew").await.unwrap();
    cluster.stop(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_learner_behind_the_purged_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    let big = "x".repeat(16 << 10);
    for n in 0..300 {
        cluster.propose(1, &format!("{n} {big}")).await.unwrap();
    }
    // Upkeep flushes and purges down to the tail of one MiB.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = cluster.disk(1).logs.group(GROUP);
    assert!(log.len() < 150, "{} entries left", log.len());

    cluster.start(2).await;
    cluster.join(1, 2).await;
    cluster.propose(1, "last").await.unwrap();
    cluster.applies(2, "last").await;
    assert_eq!(cluster.machine(2).payloads(), cluster.machine(1).payloads());
    assert!(cluster.disk(2).logs.group(GROUP).len() < 150);

    // What was installed is durable, and found again.
    cluster.stop(2).await;
    cluster.disk(2).machines.crash();
    cluster.start(2).await;
    cluster.propose_until_applied(1, "again").await;
    cluster.applies(2, "again").await;
    assert_eq!(cluster.machine(2).payloads(), cluster.machine(1).payloads());
    cluster.stop_all().await;
}

/// It hears its leader all the time, so its own commit index says nothing.
#[tokio::test(start_paused = true)]
async fn a_replica_that_waits_for_its_snapshot_knows_that_it_lags() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    let big = "x".repeat(16 << 10);
    for n in 0..300 {
        cluster.propose(1, &format!("{n} {big}")).await.unwrap();
    }
    // Upkeep flushes and purges down to the tail of one MiB.
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.start(2).await;
    cluster.machine(2).refuse_installs(true);
    let address = "node-2".to_owned();
    let joined = cluster
        .group(1)
        .add_learner(&ctx(), NodeId(2), address)
        .await;
    joined.unwrap();
    let committed = cluster.group(1).status().commit_index;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let lags = cluster.group(2).status();
    assert!(lags.in_contact);
    assert_eq!(lags.heard_commit_index, committed);
    assert!(lags.last_applied < committed);

    cluster.machine(2).refuse_installs(false);
    cluster.propose(1, "last").await.unwrap();
    cluster.applies(2, "last").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let there = cluster.group(2).status();
    assert!(there.last_applied >= there.heard_commit_index);
    assert_eq!(there.heard_commit_index, there.commit_index);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_when_every_node_loses_power() {
    let mut cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    for n in 0..20 {
        cluster.propose(1, &n.to_string()).await.unwrap();
    }
    for node in 1..=3 {
        cluster.stop(node).await;
        cluster.disk(node).machines.crash();
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    cluster.propose_until_applied(leader, "again").await;
    for node in 1..=3 {
        cluster.applies(node, "again").await;
        assert_eq!(cluster.machine(node).payloads().len(), 21);
    }
    cluster.stop_all().await;
}

/// A state that lost what the purged log held is not a shorter history but a refusal.
#[tokio::test(start_paused = true)]
async fn a_state_machine_that_fell_behind_its_purged_log_is_refused_at_start() {
    let mut cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    let big = "x".repeat(16 << 10);
    for _ in 0..300 {
        cluster.propose(1, &big).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.stop(1).await;
    cluster.disk(1).machines.destroy(GROUP).unwrap();
    let refused = cluster.try_start(1).await.unwrap_err();
    assert!(refused.contains("entries are missing"), "{refused}");
}

/// Apply never skips an entry: the group stops, and starts again from disk.
#[tokio::test(start_paused = true)]
async fn a_group_whose_state_machine_failed_is_built_again_and_ends_what_was_pending() {
    let cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    cluster.propose(1, "a").await.unwrap();
    cluster.machine(1).fail_applies(1);
    let began = Instant::now();
    let unknown = cluster.propose(1, "b").await;
    assert!(
        matches!(unknown, Err(RaftError::OutcomeUnknown(_))),
        "{unknown:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(6));
    cluster.propose_until_applied(1, "c").await;
    // "c" more than once, if an attempt at the dying group was logged.
    let mut applied = cluster.machine(1).payloads();
    applied.dedup();
    assert_eq!(applied, ["a", "b", "c"]);
    assert_eq!(
        cluster
            .group(1)
            .rebuilds
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn proposals_from_a_plain_thread_are_applied_in_call_order() {
    let cluster = Cluster::of(3, ReadMode::ReadIndex).await;
    let (group, leader) = (cluster.group(1), leader(&cluster, 1));
    let (tx, mut ends) = mpsc::unbounded_channel();
    let proposer = tokio::task::spawn_blocking(move || {
        std::thread::spawn(move || {
            let ctx = Context::fallback();
            for n in 0..500u32 {
                let tx = tx.clone();
                let done = Box::new(move |result| tx.send(result).unwrap());
                let entry = Bytes::copy_from_slice(&n.to_be_bytes());
                group.enqueue(&ctx, leader, entry, done);
            }
        })
        .join()
        .unwrap();
    });
    proposer.await.unwrap();
    for _ in 0..500 {
        ends.recv().await.unwrap().unwrap();
    }
    assert!(ends.recv().await.is_none());
    let expected: Vec<Bytes> = (0..500u32)
        .map(|n| Bytes::copy_from_slice(&n.to_be_bytes()))
        .collect();
    assert_eq!(cluster.machine(1).payloads(), expected);
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_proposal_under_another_leadership_or_over_the_limit_is_refused_before_the_log() {
    let cluster = Cluster::of(1, ReadMode::ReadIndex).await;
    let group = cluster.group(1);
    let mut stale = leader(&cluster, 1);
    stale.term.0 -= 1;
    let (tx, mut ends) = mpsc::unbounded_channel();
    let sender = tx.clone();
    let done = Box::new(move |result| sender.send(result).unwrap());
    group.enqueue(&ctx(), stale, "a".into(), done);
    assert!(matches!(
        ends.recv().await,
        Some(Err(RaftError::NotLeader { .. }))
    ));
    let large = Bytes::from(vec![0; crate::MAX_ENTRY_BYTES + 1]);
    let refused = group.propose(&ctx(), large).await;
    assert!(matches!(refused, Err(RaftError::TooLarge { .. })));
    assert!(cluster.machine(1).payloads().is_empty());
    cluster.stop_all().await;
}

/// Entries that a minority accepted are replaced; what a majority acknowledged stays.
#[tokio::test(start_paused = true)]
async fn writes_of_a_cut_off_minority_never_count() {
    let cluster = Cluster::of(5, ReadMode::ReadIndex).await;
    cluster.propose(1, "kept").await.unwrap();
    cluster.applies(5, "kept").await;
    for minority in [1, 2] {
        for majority in [3, 4, 5] {
            cluster.cut(minority, majority);
            cluster.cut(majority, minority);
        }
    }
    let lost = cluster.propose(1, "lost").await;
    assert!(
        matches!(lost, Err(RaftError::OutcomeUnknown(_))),
        "{lost:?}"
    );
    let new = cluster.leader_of(&[3, 4, 5]).await;
    cluster.propose(new, "new").await.unwrap();
    cluster.heal();
    for node in 1..=5 {
        cluster.applies(node, "new").await;
        assert_eq!(cluster.machine(node).payloads(), ["kept", "new"]);
    }
    cluster.stop_all().await;
}

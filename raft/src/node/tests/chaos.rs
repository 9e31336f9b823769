//! Random faults against three nodes, from a seed that a failure prints: whatever happens, what was
//! acknowledged stays, in one order, and no linearizable read misses it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, GROUP};
use crate::engine::{LeaderView, Membership, Proposer, ReadMode};
use crate::node::group::Group;
use crate::{Context, NodeId};

type Groups = Arc<Mutex<Vec<Arc<Group>>>>;

fn groups(cluster: &Cluster) -> Vec<Arc<Group>> {
    (1..=3)
        .filter_map(|node| cluster.running(node)?.group(GROUP))
        .collect()
}

/// Proposes numbered entries at whichever node, and reads: each read must show all that was
/// acknowledged before it began.
async fn client(id: u32, seed: u64, groups: Groups, cluster: Disks, acked: Acked) {
    let mut random = StdRng::seed_from_u64(seed ^ u64::from(id) << 32);
    for n in 0.. {
        let picked = {
            let groups = groups.lock();
            let at = random.random_range(0..3usize);
            groups.get(at).cloned()
        };
        let Some(group) = picked else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let ctx = Context::with_timeout(Duration::from_millis(random.random_range(20..2000)));
        if random.random_bool(0.5) {
            let entry = format!("{id}:{n}");
            if group.propose(&ctx, entry.clone().into()).await.is_ok() {
                acked.lock().insert(entry);
            }
        } else {
            let before = acked.lock().clone();
            if group.linearizable_read(&ctx).await.is_ok() {
                let seen = cluster.seen(group.node);
                let missing = before.iter().find(|entry| !seen.contains(*entry));
                assert_eq!(missing, None, "seed {seed}: a stale read at {}", group.node);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(10..100))).await;
    }
}

type Acked = Arc<Mutex<HashSet<String>>>;

/// The nodes' state machines.
#[derive(Clone)]
struct Disks(Vec<crate::testing::MemoryMachine>);

impl Disks {
    fn seen(&self, node: NodeId) -> HashSet<String> {
        let at = usize::try_from(node.0).unwrap() - 1;
        let payloads = self.0[at].payloads();
        payloads
            .iter()
            .map(|p| String::from_utf8(p.to_vec()).unwrap())
            .collect()
    }
}

async fn run(seed: u64, mode: ReadMode) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(3, mode).await;
    let acked = Acked::default();
    let shared: Groups = Arc::new(Mutex::new(groups(&cluster)));
    let disks = Disks((1..=3).map(|node| cluster.machine(node)).collect());
    let stop = CancellationToken::new();
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..4 {
        let (shared, disks, acked) = (shared.clone(), disks.clone(), acked.clone());
        let stop = stop.clone();
        clients.spawn(async move {
            let work = client(id, seed, shared, disks, acked);
            stop.run_until_cancelled(work).await;
        });
    }
    for _ in 0..20 {
        let node = random.random_range(1..=3);
        match random.random_range(0..6) {
            0 => cluster.isolate(node),
            1 => cluster.cut(node, node % 3 + 1),
            2 => {
                // A power cut: no goodbye to anyone, and what was not flushed is gone.
                shared.lock().retain(|group| group.node != NodeId(node));
                cluster.stop(node).await;
                cluster.machine(node).crash();
                cluster.start(node).await;
                *shared.lock() = groups(&cluster);
            }
            3 => {
                let ctx = Context::with_timeout(Duration::from_millis(500));
                if let Some(group) = cluster.running(node).and_then(|host| host.group(GROUP)) {
                    // Only a leader can; others refuse.
                    let _ = group.transfer_leadership(&ctx, None).await;
                }
            }
            _ => cluster.heal(),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..3000))).await;
    }
    cluster.heal();
    stop.cancel();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let mut last = leader;
    while cluster.propose(last, "the end").await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = cluster.leader_of(&[1, 2, 3]).await;
    }
    for node in 1..=3 {
        cluster.applies(node, "the end").await;
    }
    let reference = cluster.machine(1).indexed_payloads();
    for node in 1..=3 {
        assert_eq!(
            cluster.machine(node).indexed_payloads(),
            reference,
            "seed {seed}: node {node} diverged"
        );
        let seen = disks.seen(NodeId(node));
        let acked = acked.lock();
        let lost = acked.iter().find(|entry| !seen.contains(*entry));
        assert_eq!(lost, None, "seed {seed}: acknowledged and lost");
    }
    assert!(
        acked.lock().len() > 20,
        "seed {seed}: hardly anything was written"
    );
    cluster.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_or_unseen_under_random_faults() {
    for seed in 0..4 {
        run(seed, ReadMode::ReadIndex).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lease_reads_are_never_stale_under_random_faults() {
    for seed in 100..104 {
        run(seed, ReadMode::Lease).await;
    }
}

//! Consensus in a simulation: real nodes, simulated network, disks and time, everything drawn from a
//! seed that a failure prints.
//!
//! Tokio wakes those who wait for one thing in an order of its own; built with
//! `RUSTFLAGS="--cfg tokio_unstable"`, that is drawn from the seed too, and a seed gives exactly the
//! same run again. Without it a seed gives the same faults, delays and choices.
//!
//! `LEADLINE_SEED=n` runs one seed again, `LEADLINE_ROUNDS=n` so many from `LEADLINE_FIRST` on. What
//! must hold: one leader per term; logs match; state machines have applied the same entries in the
//! same order; nothing acknowledged is lost; no linearizable read misses it; whatever has a deadline
//! ends by it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::{LeaderView, Membership, Proposer, ReadMode};
use crate::node::group::Group;
use crate::testing::seeded::{self, below};
use crate::testing::{MemoryMachines, SimCluster, SimDisk};
use crate::{Context, GroupId, LogIndex, NodeId, RaftError};

const GROUP: GroupId = GroupId(1);

/// What ends an operation after its deadline: the simulation's timers are whole milliseconds.
const GRAIN: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Seen {
    groups: Mutex<Vec<Arc<Group>>>,
    acked: Mutex<HashSet<String>>,
    refused: Mutex<HashSet<String>>,
}

fn millis(from: u64, to: u64) -> Duration {
    Duration::from_millis(from + below(to - from))
}

async fn client(id: u32, seen: Arc<Seen>, states: Vec<MemoryMachines>) {
    for n in 0.. {
        let picked = {
            let groups = seen.groups.lock();
            let at = usize::try_from(below(groups.len().max(1) as u64)).unwrap();
            groups.get(at).cloned()
        };
        let Some(group) = picked else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let limit = millis(5, 3000);
        let ctx = Context::with_timeout(limit);
        let began = Instant::now();
        if below(2) == 0 {
            let entry = format!("{id}:{n}");
            match group.propose(&ctx, entry.clone().into()).await {
                Ok(_) => {
                    seen.acked.lock().insert(entry);
                }
                Err(RaftError::OutcomeUnknown(_)) => {}
                Err(_) => {
                    seen.refused.lock().insert(entry);
                }
            }
        } else {
            let before = seen.acked.lock().clone();
            if group.linearizable_read(&ctx).await.is_ok() {
                let at = usize::try_from(group.node.0).unwrap() - 1;
                let now = payloads(&states[at]);
                let missing = before.iter().find(|entry| !now.contains(*entry));
                assert_eq!(missing, None, "a stale read at node {}", group.node);
            }
        }
        let took = began.elapsed();
        assert!(took <= limit + GRAIN, "{took:?} with {limit:?} to live");
        tokio::time::sleep(millis(1, 60)).await;
    }
}

fn payloads(machines: &MemoryMachines) -> HashSet<String> {
    let payloads = machines.machine(GROUP).payloads();
    payloads
        .iter()
        .map(|entry| String::from_utf8(entry.to_vec()).unwrap())
        .collect()
}

/// State machines apply the same entries at the same places, as far as each is.
fn agree(states: &[MemoryMachines]) {
    for pair in states.windows(2) {
        let (a, b) = (
            pair[0].machine(GROUP).indexed_payloads(),
            pair[1].machine(GROUP).indexed_payloads(),
        );
        let common = a.len().min(b.len());
        assert_eq!(a[..common], b[..common], "state machines diverged");
    }
}

fn publish(cluster: &SimCluster, seen: &Seen) {
    let groups = cluster.nodes().into_iter();
    *seen.groups.lock() = groups.filter_map(|node| cluster.group(node)).collect();
}

/// A run, and what the state machines had in the end.
async fn run(nodes: u64, mode: ReadMode, lies: bool) -> Vec<(LogIndex, Bytes)> {
    let states: Vec<MemoryMachines> = (0..nodes).map(|_| MemoryMachines::default()).collect();
    let disks = states
        .iter()
        .map(|machines| {
            let flush = Duration::from_micros(100)..millis(2, 40);
            let power = machines.clone();
            let disk = SimDisk::new(flush, Arc::new(machines.clone()), move || power.crash());
            if lies { disk.lying() } else { disk }
        })
        .collect();
    let mut cluster = SimCluster::start(GROUP, disks, mode).await;
    cluster.weather(Duration::from_micros(50)..millis(1, 30), below(4));
    let seen = Arc::new(Seen::default());
    publish(&cluster, &seen);
    let stop = CancellationToken::new();
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..4 {
        let work = client(id, Arc::clone(&seen), states.clone());
        let stop = stop.clone();
        clients.spawn(async move { stop.run_until_cancelled_owned(work).await });
    }
    for _ in 0..12 {
        let node = NodeId(1 + below(nodes));
        let other = NodeId(1 + (node.0 + below(nodes - 1)) % nodes);
        match below(9) {
            0 => {
                for peer in cluster.nodes() {
                    cluster.cut(node, peer);
                    cluster.cut(peer, node);
                }
            }
            1 => cluster.cut(node, other),
            2 | 3 => {
                let power = below(2) == 0;
                seen.groups.lock().retain(|group| group.node != node);
                cluster.crash(node, power).await;
            }
            4 => {
                // Everything at once: only what is on disks remains.
                seen.groups.lock().clear();
                for node in cluster.nodes() {
                    cluster.crash(node, true).await;
                }
            }
            5 => {
                if let Some(group) = cluster.group(node) {
                    // Only a leader can; others refuse.
                    let ctx = Context::with_timeout(Duration::from_millis(500));
                    drop(group.transfer_leadership(&ctx, Some(other)).await);
                }
            }
            6 => cluster.weather(Duration::from_micros(50)..millis(1, 300), below(30)),
            _ => {
                cluster.heal();
                cluster.weather(Duration::from_micros(50)..millis(1, 30), below(4));
            }
        }
        tokio::time::sleep(millis(20, 1500)).await;
        cluster.inspect();
        agree(&states);
        for node in cluster.nodes() {
            if !cluster.is_running(node) && below(2) == 0 {
                cluster.start_node(node).await;
            }
        }
        publish(&cluster, &seen);
        while let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
    }
    cluster.heal();
    cluster.weather(Duration::from_micros(50)..Duration::from_millis(2), 0);
    for node in cluster.nodes() {
        if !cluster.is_running(node) {
            cluster.start_node(node).await;
        }
    }
    stop.cancel();
    seen.groups.lock().clear();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    finish(&mut cluster, &states, &seen).await;
    cluster.stop().await;
    states[0].machine(GROUP).indexed_payloads()
}

/// Everybody comes to the same end, and it has what was promised.
async fn finish(cluster: &mut SimCluster, states: &[MemoryMachines], seen: &Seen) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "no end in sight");
        let leader = cluster.leader().await;
        let group = cluster.group(leader).expect("a leader runs");
        let ctx = Context::with_timeout(Duration::from_secs(2));
        if group.propose(&ctx, "the end".into()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while !states
        .iter()
        .all(|state| payloads(state).contains("the end"))
    {
        assert!(began.elapsed() < Duration::from_secs(60), "a node lags");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.inspect();
    agree(states);
    let now = payloads(&states[0]);
    let (acked, refused) = (seen.acked.lock(), seen.refused.lock());
    let lost = acked.iter().find(|entry| !now.contains(*entry));
    assert_eq!(lost, None, "acknowledged and lost");
    let there = refused.iter().find(|entry| now.contains(*entry));
    assert_eq!(there, None, "refused as not applied, and there");
}

/// Runs one seed on a thread of its own; why it failed.
fn run_seed(seed: u64, lies: bool) -> Result<Vec<(LogIndex, Bytes)>, String> {
    let thread = std::thread::spawn(move || {
        seeded::seed(Some(seed));
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
        let runtime = builder.build().unwrap();
        let nodes = if below(3) == 0 { 5 } else { 3 };
        let mode = if below(2) == 0 {
            ReadMode::ReadIndex
        } else {
            ReadMode::Lease
        };
        runtime.block_on(run(nodes, mode, lies))
    });
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

#[test]
fn consensus_keeps_its_promises_in_every_simulated_world() {
    if let Ok(seed) = std::env::var("LEADLINE_SEED") {
        if let Err(why) = run_seed(seed.parse().unwrap(), false) {
            panic!("LEADLINE_SEED={seed}: {why}");
        }
        return;
    }
    let (first, rounds) = (number("LEADLINE_FIRST", 1), number("LEADLINE_ROUNDS", 12));
    let next = std::sync::atomic::AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + rounds {
                        return;
                    }
                    if let Err(why) = run_seed(seed, false) {
                        failed.lock().push(format!("LEADLINE_SEED={seed}: {why}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(
        failed.is_empty(),
        "{} of {rounds}: {failed:#?}",
        failed.len()
    );
}

#[cfg(tokio_unstable)]
#[test]
fn a_seed_gives_the_same_run_again() {
    let mut entries = 0;
    for seed in 1..5 {
        let first = run_seed(seed, false).unwrap();
        entries += first.len();
        assert_eq!(run_seed(seed, false).unwrap(), first, "seed {seed}");
    }
    assert!(entries > 100, "hardly anything was written: {entries}");
}

/// What the simulation is for: acknowledgements before the data is durable must show.
#[test]
fn disks_that_lie_about_durability_are_found_out() {
    let found = (1..40).find_map(|seed| run_seed(seed, true).err());
    assert!(found.is_some(), "no seed of 40 showed it");
}

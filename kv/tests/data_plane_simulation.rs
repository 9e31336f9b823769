//! The data plane in a simulation: real executors and state machines over real consensus, with a
//! simulated network, simulated disks and hurt clocks, from a seed that a failure prints.
//!
//! Executors have threads of their own, so time is real here, and a seed gives the same faults and
//! choices, not the same interleaving. `LEADLINE_SEED=n` runs one seed again, `LEADLINE_ROUNDS=n` so
//! many, drawn. Clients on any node add to one counter, each addition with a row of its own, and read
//! it; some send an addition again under its request id. What must hold:
//! * an acknowledged addition is there once, a *not applied* one is not, an *unknown* one at most once;
//! * the counter's history is linearizable: real-time order is the order of its values;
//! * every operation ends by its deadline;
//! * all replicas have the same rows in the end; one leader per term; logs match.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod executor_support;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use executor_support::{Command, GROUP, What, key, memory_store, owned, rows_of, submission};
use leadline_kv::executor::{Once, Pool, Shard, ShardConfig, ShardMetrics, ShardParts, Submission};
use leadline_kv::hlc::Hlc;
use leadline_kv::state_machine::ShardStateMachines;
use leadline_kv::storage::Store;
use leadline_kv::{Outcome, RequestId};
use leadline_raft::engine::{Membership, ReadMode, StateError, StateMachine, StateMachines};
use leadline_raft::testing::seeded::{self, below};
use leadline_raft::testing::{SimCluster, SimDisk};
use leadline_raft::{Context, Group, GroupId, NodeId};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// What a busy machine may make an operation late.
const LATE: Duration = Duration::from_millis(500);

fn millis(from: u64, to: u64) -> Duration {
    Duration::from_millis(from + below(to - from))
}

/// The state machines of a node's present life.
struct Machines(Mutex<Arc<ShardStateMachines>>);

impl StateMachines for Machines {
    fn open(&self, group: GroupId) -> Result<Arc<dyn StateMachine>, StateError> {
        let machines = Arc::clone(&*self.0.lock());
        machines.open(group)
    }

    fn destroy(&self, group: GroupId) -> Result<(), StateError> {
        let machines = Arc::clone(&*self.0.lock());
        machines.destroy(group)
    }
}

type Replica = Arc<Shard<Group>>;

/// What a node has beside consensus.
struct Node {
    store: Arc<Store>,
    machines: Arc<Machines>,
    hlc: Arc<Hlc>,
    pool: Arc<Pool>,
    /// Milliseconds that the node's wall clock is ahead.
    ahead: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let (store, dir) = memory_store();
        let ahead = Arc::new(AtomicU64::new(1_000_000));
        let (clock, began) = (Arc::clone(&ahead), std::time::Instant::now());
        let hlc = Arc::new(Hlc::with_wall(move || {
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap();
            clock.load(Ordering::SeqCst) + passed
        }));
        let pool = Pool::new(1).unwrap();
        let machines =
            ShardStateMachines::new(Arc::clone(&store), Arc::clone(&hlc), Arc::clone(&pool));
        Self {
            store,
            machines: Arc::new(Machines(Mutex::new(Arc::new(machines)))),
            hlc,
            pool,
            ahead,
            _dir: dir,
        }
    }

    /// Forgets what was in memory.
    fn forget(&self) {
        let machines = ShardStateMachines::new(
            Arc::clone(&self.store),
            Arc::clone(&self.hlc),
            Arc::clone(&self.pool),
        );
        *self.machines.0.lock() = Arc::new(machines);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done(i64),
    NotApplied,
    Unknown,
}

#[derive(Clone, Debug)]
struct Event {
    /// The addition's own row; `None` for a read.
    token: Option<String>,
    begun: u64,
    ended: u64,
    end: End,
}

#[derive(Default)]
struct World {
    replicas: Mutex<BTreeMap<NodeId, Replica>>,
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
    is_over: std::sync::atomic::AtomicBool,
}

impl World {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A replica: most often one that leads.
    fn replica(&self, random: &mut StdRng) -> Option<Replica> {
        let replicas = self.replicas.lock();
        let leading = replicas.values().find(|shard| shard.is_leading());
        if random.random_bool(0.8)
            && let Some(shard) = leading
        {
            return Some(Arc::clone(shard));
        }
        let nth = random.random_range(0..replicas.len().max(1));
        replicas.values().nth(nth).cloned()
    }
}

async fn send(world: &World, random: &mut StdRng, what: &What, once: Option<Once>) -> End {
    let limit = Duration::from_millis(random.random_range(20..1500));
    let Some(shard) = world.replica(random) else {
        return End::NotApplied;
    };
    let submission = Submission {
        once,
        ..submission(&Command::new("counter", what.clone()))
    };
    let began = Instant::now();
    let reply = shard
        .submit(&Context::with_timeout(limit), submission)
        .await;
    let took = began.elapsed();
    assert!(took <= limit + LATE, "{took:?} with {limit:?} to live");
    match reply {
        Ok(value) => {
            // An absent counter reads as empty.
            End::Done(std::str::from_utf8(&value).unwrap().parse().unwrap_or(0))
        }
        Err(error) => match error.outcome() {
            Outcome::NotApplied => End::NotApplied,
            Outcome::Unknown => End::Unknown,
        },
    }
}

async fn client(world: Arc<World>, id: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let session = random.random();
    let mut number = 0;
    while !world.is_over.load(Ordering::SeqCst) {
        number += 1;
        let token = random
            .random_bool(0.6)
            .then(|| format!("token {id} {number}"));
        let what = match &token {
            Some(token) => What::IncrBoth(key(token), None),
            None => What::Get,
        };
        let once = (token.is_some() && random.random_bool(0.5)).then_some(Once {
            id: RequestId { session, number },
            lowest_open: number,
        });
        let begun = world.tick();
        let mut end = send(&world, &mut random, &what, once).await;
        if once.is_some() {
            // Sent again under its id, to whoever leads now, it takes effect once.
            for _ in 0..4 {
                if end != End::Unknown {
                    break;
                }
                if let End::Done(value) = send(&world, &mut random, &what, once).await {
                    end = End::Done(value);
                }
            }
        }
        let ended = world.tick();
        world.events.lock().push(Event {
            token,
            begun,
            ended,
            end,
        });
        let pause = if end == End::NotApplied { 20 } else { 3 };
        tokio::time::sleep(Duration::from_millis(random.random_range(0..pause))).await;
    }
}

/// A shard over each replica that is there and has none.
fn publish(cluster: &SimCluster, nodes: &[Node], world: &World) {
    let mut replicas = world.replicas.lock();
    for (node, at) in cluster.nodes().into_iter().zip(nodes) {
        let Some(group) = cluster.group(node) else {
            continue;
        };
        replicas.entry(node).or_insert_with(|| {
            let machines = Arc::clone(&*at.machines.0.lock());
            let parts = ShardParts {
                config: ShardConfig::default(),
                hlc: Arc::clone(&at.hlc),
                metrics: ShardMetrics::default(),
                sweeps: Arc::new([]),
                doubts: Arc::default(),
                pool: Arc::clone(&at.pool),
            };
            Shard::new(group, machines.state(GROUP).unwrap(), owned(), &parts)
        });
    }
}

async fn crash(cluster: &mut SimCluster, node: NodeId, at: &Node, world: &World) {
    let shard = world.replicas.lock().remove(&node);
    if let Some(shard) = shard {
        shard.shutdown(&Context::fallback()).await;
    }
    if cluster.is_running(node) {
        cluster.crash(node, false).await;
        at.forget();
    }
}

async fn run(seed: u64) -> usize {
    let nodes: Vec<Node> = (0..3).map(|_| Node::new()).collect();
    let disks = nodes
        .iter()
        .map(|node| {
            let machines = Arc::clone(&node.machines) as Arc<dyn StateMachines>;
            SimDisk::new(Duration::from_micros(50)..millis(1, 10), machines, || ())
        })
        .collect();
    let mode = if below(2) == 0 {
        ReadMode::ReadIndex
    } else {
        ReadMode::Lease
    };
    let mut cluster = SimCluster::start(GROUP, disks, mode).await;
    cluster.weather(Duration::from_micros(50)..millis(1, 8), below(3));
    let world = Arc::new(World::default());
    publish(&cluster, &nodes, &world);
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..4 {
        clients.spawn(client(Arc::clone(&world), id, seed.wrapping_mul(31) + id));
    }
    for _ in 0..6 {
        let nth = usize::try_from(below(3)).unwrap();
        let node = NodeId(nth as u64 + 1);
        match below(7) {
            0 => {
                for peer in cluster.nodes() {
                    cluster.cut(node, peer);
                    cluster.cut(peer, node);
                }
            }
            1 => cluster.cut(node, NodeId(node.0 % 3 + 1)),
            2 => crash(&mut cluster, node, &nodes[nth], &world).await,
            3 => {
                for (node, at) in cluster.nodes().into_iter().zip(&nodes) {
                    crash(&mut cluster, node, at, &world).await;
                }
            }
            4 => {
                if let Some(group) = cluster.group(node) {
                    // Only a leader can; others refuse.
                    let ctx = Context::with_timeout(Duration::from_millis(500));
                    drop(group.transfer_leadership(&ctx, None).await);
                }
            }
            5 => nodes[nth].ahead.store(below(2_000_000), Ordering::SeqCst),
            _ => cluster.heal(),
        }
        tokio::time::sleep(millis(50, 1200)).await;
        cluster.inspect();
        for node in cluster.nodes() {
            if !cluster.is_running(node) {
                cluster.start_node(node).await;
            }
        }
        publish(&cluster, &nodes, &world);
    }
    cluster.heal();
    cluster.weather(Duration::from_micros(50)..Duration::from_millis(1), 0);
    world.is_over.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let done = finish(&mut cluster, &nodes, &world).await;
    for (node, at) in cluster.nodes().into_iter().zip(&nodes) {
        crash(&mut cluster, node, at, &world).await;
    }
    done
}

/// The value of a row, from whoever leads.
async fn get(world: &World, name: &str) -> Bytes {
    let began = Instant::now();
    loop {
        let leading = {
            let replicas = world.replicas.lock();
            replicas.values().find(|shard| shard.is_leading()).cloned()
        };
        if let Some(shard) = leading {
            let ctx = Context::with_timeout(Duration::from_secs(1));
            let asked = submission(&Command::new(name, What::Get));
            if let Ok(value) = shard.submit(&ctx, asked).await {
                return value;
            }
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no leader in time"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Everybody comes to the same end, and it has what was promised. Returns how much was done.
async fn finish(cluster: &mut SimCluster, nodes: &[Node], world: &World) -> usize {
    let events = world.events.lock().clone();
    let mut present = 0;
    for event in &events {
        let Some(token) = &event.token else { continue };
        let value = get(world, token).await;
        present += i64::from(!value.is_empty());
        match event.end {
            End::Done(_) => assert_eq!(value, "1", "{event:?} was acknowledged"),
            End::NotApplied => assert_eq!(value, "", "{event:?} was called not applied"),
            End::Unknown => assert!(value.is_empty() || value == "1", "{event:?}: {value:?}"),
        }
    }
    let counter = get(world, "counter").await;
    let total: i64 = std::str::from_utf8(&counter).unwrap().parse().unwrap_or(0);
    assert_eq!(total, present, "additions and the rows of their own");
    let done = check_order(&events, total);

    // Replicas come to the same rows once nothing new is written.
    let began = Instant::now();
    loop {
        let rows: Vec<_> = nodes.iter().map(|node| rows_of(&node.store)).collect();
        if rows.windows(2).all(|pair| pair[0] == pair[1]) {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "replicas diverged"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.inspect();
    done
}

/// Each write's value is its place in the one order; each read's, how many writes are before it.
fn check_order(events: &[Event], total: i64) -> usize {
    let mut seen = HashSet::new();
    // Where an event stands: writes on odd places, reads between them.
    let mut placed: Vec<(u64, u64, i64)> = Vec::new();
    for event in events {
        let End::Done(value) = event.end else {
            continue;
        };
        assert!(value <= total, "{event:?} saw more than there is: {total}");
        if event.token.is_some() {
            assert!(seen.insert(value), "two additions gave {value}");
            placed.push((event.begun, event.ended, 2 * value - 1));
        } else {
            placed.push((event.begun, event.ended, 2 * value));
        }
    }
    for (_, ended, place) in &placed {
        for (begun, _, later) in &placed {
            if ended < begun {
                assert!(place <= later, "place {place} ended before {later} began");
            }
        }
    }
    placed.len()
}

/// Runs one seed on a thread of its own; why it failed.
fn run_seed(seed: u64) -> Result<usize, String> {
    let thread = std::thread::spawn(move || {
        seeded::seed(Some(seed));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(run(seed))
    });
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

#[test]
fn executors_keep_their_promises_over_real_consensus_in_simulated_worlds() {
    let seeds: Vec<u64> = match std::env::var("LEADLINE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let rounds = std::env::var("LEADLINE_ROUNDS").map_or(4, |n| n.parse().unwrap());
            (0..rounds).map(|_| rand::random()).collect()
        }
    };
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let done = AtomicU64::new(0);
    // Worlds wait most of their time: several at once.
    std::thread::scope(|scope| {
        for _ in 0..seeds.len().min(8) {
            scope.spawn(|| {
                loop {
                    let nth = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                    let Some(seed) = seeds.get(nth) else { return };
                    match run_seed(*seed) {
                        Ok(count) => {
                            done.fetch_add(count as u64, Ordering::SeqCst);
                        }
                        Err(why) => failed.lock().push(format!("LEADLINE_SEED={seed}: {why}")),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "{}: {failed:#?}", failed.len());
    let done = done.into_inner();
    assert!(done > 10, "hardly anything was done: {done}");
}

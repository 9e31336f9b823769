//! Random commands under random faults, against what every client was told.
//!
//! Clients add to one counter, each addition with a row of its own, and read the counter; some send
//! an addition again, under its request id, when they do not know what became of it. Meanwhile
//! proposals are held, reordered, discarded, duplicated, refused or robbed of their answers,
//! leadership changes, and the process restarts. Then:
//! * an acknowledged addition is there once, a *not applied* one is not, an *unknown* one is there
//!   once or not;
//! * the counter's history is linearizable: real-time order is the order of its values;
//! * the log, applied again in other portions, with restarts and by way of a snapshot, gives the
//!   same bytes.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod executor_support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use executor_support::*;
use leadline_kv::executor::{Once, Order, Pool, ShardConfig, Submission};
use leadline_kv::hlc::Hlc;
use leadline_kv::state_machine::ShardStateMachines;
use leadline_kv::{Outcome, RequestId};
use leadline_raft::engine::{CommittedEntry, LeaderView, Leadership, StateMachines};
use leadline_raft::{Context, NodeId, RaftError};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With this value.
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
struct History {
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }
}

async fn client(node: &Node, history: &History, seed: u64, name: String) {
    let mut random = StdRng::seed_from_u64(seed);
    let session = random.random();
    for number in 0..random.random_range(5..25) {
        let write = random.random_bool(0.7);
        let token = write.then(|| format!("token {name} {number}"));
        let what = match &token {
            Some(token) => What::IncrBoth(key(token), None),
            None => What::Get,
        };
        // One caller at a time: the session's lowest open number is this one.
        let once = (write && random.random_bool(0.4)).then_some(Once {
            id: RequestId { session, number },
            lowest_open: number,
        });
        let begun = history.tick();
        let mut end = send(node, &mut random, &what, once).await;
        if once.is_some() {
            // Sent again under its id, an unsettled request may settle, and takes effect once.
            for _ in 0..3 {
                if end != End::Unknown {
                    break;
                }
                if let End::Done(value) = send(node, &mut random, &what, once).await {
                    end = End::Done(value);
                }
            }
        }
        let ended = history.tick();
        history.events.lock().push(Event {
            token,
            begun,
            ended,
            end,
        });
        if random.random_bool(0.3) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
        }
    }
}

async fn send(node: &Node, random: &mut StdRng, what: &What, once: Option<Once>) -> End {
    let millis = if random.random_bool(0.3) {
        random.random_range(0..5)
    } else {
        random.random_range(20..60)
    };
    let order = if random.random_bool(0.8) {
        Order::Free
    } else {
        Order::AfterMine
    };
    let submission = Submission {
        once,
        order,
        ..submission(&Command::new("counter", what.clone()))
    };
    let ctx = Context::with_timeout(Duration::from_millis(millis));
    match node.shard.submit(&ctx, submission).await {
        Ok(value) => {
            let text = std::str::from_utf8(&value).unwrap();
            // An absent counter reads as empty.
            End::Done(text.parse().unwrap_or_default())
        }
        Err(error) => match error.outcome() {
            Outcome::NotApplied => End::NotApplied,
            Outcome::Unknown => End::Unknown,
        },
    }
}

/// A begin turns up in a log once, and before every later one: whoever has one that is not committed
/// cannot lead after a later one is. A batch is kept to show that it would do nothing.
fn is_batch(entry: &Bytes) -> bool {
    const BATCH: u8 = 2;
    entry[1] == BATCH
}

/// Does one thing to the engine.
fn disturb(node: &Node, random: &mut StdRng, kept: &mut Vec<Bytes>) {
    let engine = &node.engine;
    let held = engine.held();
    match random.random_range(0..14) {
        0 | 1 => engine.hold(),
        2..=4 => engine.open(),
        5 => drop(engine.release(1)),
        6 if held > 1 => {
            let mut order: Vec<_> = (0..held).collect();
            order.shuffle(random);
            engine.reorder(&order);
        }
        7 if held > 0 => {
            kept.extend(engine.held_entries().into_iter().take(1).filter(is_batch));
            engine.discard(0);
        }
        8 if held > 0 => engine.lose_answer(random.random_range(0..held)),
        9 if held > 0 => kept.extend(engine.held_entries().pop().filter(is_batch)),
        10 => {
            if let Some(entry) = kept.pop() {
                engine.apply_foreign(entry);
            }
        }
        11 => {
            engine.elect();
        }
        12 => {
            engine.depose(NodeId(2));
        }
        13 => engine.refuse_next(match random.random_range(0..3) {
            0 => RaftError::Overloaded("told to"),
            1 => RaftError::NotLeader { leader: None },
            _ => RaftError::OutcomeUnknown("told to"),
        }),
        _ => {}
    }
    if random.random_bool(0.1) {
        engine.set_lease(random.random_bool(0.5));
    }
    if random.random_bool(0.3) && !matches!(engine.leadership(), Leadership::Leader(_)) {
        engine.elect();
    }
}

async fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let config = ShardConfig {
        in_flight: random.random_range(1..6),
        batch_commands: random.random_range(1..8),
        queue_commands: random.random_range(2..50),
        ..ShardConfig::default()
    };
    let mut node = Node::with(config.clone(), Arc::new([]));
    let history = Arc::new(History::default());
    for life in 0..2 {
        let shared = Arc::new(node);
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..random.random_range(1..6) {
            let (node, history) = (Arc::clone(&shared), Arc::clone(&history));
            let seed = random.random();
            let name = format!("{life} {number}");
            clients.spawn(async move { client(&node, &history, seed, name).await });
        }
        let mut kept = Vec::new();
        while !clients.is_empty() {
            disturb(&shared, &mut random, &mut kept);
            while let Some(ended) = clients.try_join_next() {
                ended.unwrap();
            }
            tokio::time::sleep(Duration::from_micros(random.random_range(0..1500))).await;
        }
        shared.engine.open();
        shared.engine.settle();
        node = Arc::into_inner(shared).unwrap();
        // What another leader's log may still bring must do nothing after the next begin.
        node = node.restart(config.clone()).await;
        node.ready().await;
        for entry in kept {
            node.engine.apply_foreign(entry);
        }
        node.engine.settle();
    }
    check(&node, &history).await;
    check_replicas(&node, &mut random).await;
}

async fn check(node: &Node, history: &History) {
    let events = history.events.lock().clone();
    let mut present = 0;
    for event in &events {
        let Some(token) = &event.token else {
            continue;
        };
        let value = node.get(token).await;
        present += i64::from(!value.is_empty());
        match event.end {
            End::Done(_) => assert_eq!(value, "1", "{event:?} was acknowledged"),
            End::NotApplied => assert_eq!(value, "", "{event:?} was called not applied"),
            End::Unknown => assert!(value.is_empty() || value == "1", "{event:?}: {value:?}"),
        }
    }
    let counter = node.get("counter").await;
    let total: i64 = std::str::from_utf8(&counter)
        .unwrap()
        .parse()
        .unwrap_or_default();
    assert_eq!(total, present, "additions and the rows of their own");
    check_order(&events, total);
}

/// Each write's value is its place in the one order; each read's, how many writes are before it.
fn check_order(events: &[Event], total: i64) {
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
}

/// Applies the node's log to other stores, in other ways.
async fn check_replicas(node: &Node, random: &mut StdRng) {
    let log = node.log.lock().clone();
    let expected = node.all_rows();
    let hlc = || Arc::new(Hlc::with_wall(|| 77));

    let (store, _dir) = memory_store();
    let mut rest = &log[..];
    while !rest.is_empty() {
        // Opened anew each time, as after a restart.
        let machines = ShardStateMachines::new(Arc::clone(&store), hlc(), Pool::new(1).unwrap());
        let machine = machines.open(GROUP).unwrap();
        for _ in 0..random.random_range(1..4) {
            let portion = random.random_range(0..=rest.len().min(20));
            let (entries, after) = rest.split_at(portion);
            machine.apply(entries.to_vec()).unwrap();
            rest = after;
        }
    }
    assert_eq!(
        rows_of(&store),
        expected,
        "after other portions and restarts"
    );

    let cut = random.random_range(1..=log.len());
    let (first, second): (Vec<CommittedEntry>, _) = (log[..cut].to_vec(), log[cut..].to_vec());
    let (source, _dir) = memory_store();
    let machine = ShardStateMachines::new(Arc::clone(&source), hlc(), Pool::new(1).unwrap())
        .open(GROUP)
        .unwrap();
    machine.apply(first).unwrap();
    let mut snapshot = machine.snapshot().unwrap();
    let (target, _dir) = memory_store();
    let machine = ShardStateMachines::new(Arc::clone(&target), hlc(), Pool::new(1).unwrap())
        .open(GROUP)
        .unwrap();
    let mut sink = machine.begin_install().unwrap();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        sink.write_chunk(chunk).unwrap();
    }
    sink.commit(snapshot.position()).unwrap();
    machine.apply(second).unwrap();
    assert_eq!(rows_of(&target), expected, "by way of a snapshot at {cut}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_were_told_is_what_happened() {
    let seeds: Vec<u64> = match std::env::var("LEADLINE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let rounds = std::env::var("LEADLINE_ROUNDS").map_or(25, |n| n.parse().unwrap());
            (0..rounds).map(|_| rand::random()).collect()
        }
    };
    for seed in seeds {
        let ran = tokio::task::JoinSet::from_iter([run(seed)])
            .join_next()
            .await;
        if let Some(Err(failed)) = ran {
            panic!("LEADLINE_SEED={seed}: {failed}");
        }
    }
}

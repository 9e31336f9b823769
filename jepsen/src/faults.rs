//! Random faults under load, and what must hold of the history afterwards:
//!
//! 1. Each register is linearizable.
//! 2. Every acknowledged append is in its list exactly once; none that was refused is.
//! 3. A counter is at least the acknowledged increments, at most those and the unknown ones.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::check::linearizable;
use crate::client::{Client, Failed, Reply};
use crate::cluster::{Cluster, NODES};
use crate::history::{Action, Ended, Event, write_edn};
use crate::net;

const CLIENTS: usize = 8;
/// Registers at once; every so often a new set, so that each history stays short enough to check.
const KEYS: usize = 4;
const GENERATION: Duration = Duration::from_secs(2);
/// States that one key's check may visit.
const CHECK_LIMIT: usize = 4_000_000;
/// Longer than any deadline of the store's.
const PATIENCE: Duration = Duration::from_secs(8);

/// What one client did.
#[derive(Default)]
struct Record {
    events: Vec<Event>,
    appends: Vec<(u64, Ended)>,
    increments: [u64; 2],
}

fn outcome(result: &Result<Reply, Failed>) -> Ended {
    match result {
        Ok(Reply::Error(line)) if line.starts_with("UNKNOWN") => Ended::Info,
        Ok(Reply::Error(_)) | Err(Failed::Connect(_)) => Ended::Fail,
        Ok(_) => Ended::Ok,
        Err(Failed::Broken(_) | Failed::Silent(_)) => Ended::Info,
    }
}

struct Load {
    began: Instant,
    stop: AtomicBool,
    values: AtomicU64,
}

/// One client: connects to a node, works until the connection fails, takes the next node.
async fn work(load: Arc<Load>, number: usize, mut rng: SmallRng) -> Record {
    let mut record = Record::default();
    let mut node = number;
    let mut process = number;
    while !load.stop.load(Ordering::Relaxed) {
        let address = net::address(NODES[node % NODES.len()]);
        node += 1;
        let Ok(mut client) = Client::connect(&address).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !load.stop.load(Ordering::Relaxed) {
            let result = step(&load, &mut client, process, &mut rng, &mut record).await;
            match result {
                Ended::Ok => {}
                Ended::Fail => tokio::time::sleep(Duration::from_millis(20)).await,
                // A process whose operation is open does nothing else, ever.
                Ended::Info => process += CLIENTS,
            }
            if result != Ended::Ok && rng.random_bool(0.5) {
                break;
            }
        }
    }
    record
}

async fn step(
    load: &Load,
    client: &mut Client,
    process: usize,
    rng: &mut SmallRng,
    record: &mut Record,
) -> Ended {
    let called = load.began.elapsed();
    match rng.random_range(0..10) {
        0 => {
            let value = load.values.fetch_add(1, Ordering::Relaxed);
            let ended = outcome(
                &client
                    .call(&["RPUSH", "appends", &value.to_string()], PATIENCE)
                    .await,
            );
            record.appends.push((value, ended));
            ended
        }
        1 => {
            let ended = outcome(&client.call(&["INCR", "counter"], PATIENCE).await);
            match ended {
                Ended::Ok => record.increments[0] += 1,
                Ended::Info => record.increments[1] += 1,
                Ended::Fail => {}
            }
            ended
        }
        kind => {
            let generation = called.as_millis() / GENERATION.as_millis();
            let key = usize::try_from(generation).unwrap_or(0) * KEYS + rng.random_range(0..KEYS);
            let name = format!("register:{key}");
            let (result, action) = if kind < 6 {
                let value = load.values.fetch_add(1, Ordering::Relaxed);
                let result = client
                    .call(&["SET", &name, &value.to_string()], PATIENCE)
                    .await;
                (result, Action::Write(value))
            } else {
                let result = client.call(&["GET", &name], PATIENCE).await;
                let read = match &result {
                    Ok(Reply::Text(value)) => value.parse().ok(),
                    _ => None,
                };
                (result, Action::Read(read))
            };
            let ended = outcome(&result);
            let returned = load.began.elapsed();
            record.events.push(Event {
                process,
                key,
                action,
                called,
                returned,
                ended,
            });
            ended
        }
    }
}

/// One fault, from its beginning to its end.
async fn fault(cluster: &mut Cluster, rng: &mut SmallRng) -> Result<(), String> {
    let prefix = cluster.prefix().to_owned();
    let victim = NODES[rng.random_range(0..NODES.len())];
    let others: Vec<u8> = NODES
        .into_iter()
        .filter(|number| *number != victim)
        .collect();
    let pause = Duration::from_millis(rng.random_range(300..3000));
    match rng.random_range(0..6) {
        0 => {
            println!("  kill -9 node {victim}, start it after {pause:?}");
            cluster.kill(victim)?;
            tokio::time::sleep(pause).await;
            cluster.start_node(victim)
        }
        1 => {
            println!("  stop node {victim} for {pause:?}");
            cluster.signal(victim, Signal::STOP)?;
            tokio::time::sleep(pause).await;
            cluster.signal(victim, Signal::CONT)
        }
        2 => {
            println!("  blackhole node {victim} for {pause:?}");
            net::blackhole(&prefix, victim, &others)?;
            tokio::time::sleep(pause).await;
            net::heal(&prefix, victim)
        }
        3 => {
            println!("  node {victim} hears nothing for {pause:?}");
            net::deafen(&prefix, victim, &others)?;
            tokio::time::sleep(pause).await;
            net::heal(&prefix, victim)
        }
        4 => {
            println!(
                "  cut between nodes {} and {} for {pause:?}",
                others[0], others[1]
            );
            net::blackhole(&prefix, others[0], &others[1..])?;
            tokio::time::sleep(pause).await;
            net::heal(&prefix, others[0])
        }
        _ => {
            println!("  kill -9 all nodes at once, start them after {pause:?}");
            for number in NODES {
                cluster.kill(number)?;
            }
            tokio::time::sleep(pause).await;
            NODES
                .into_iter()
                .try_for_each(|number| cluster.start_node(number))
        }
    }
}

/// Runs random faults for `duration` and checks what the clients saw.
///
/// # Errors
/// What did not hold, with the seed that shows it again.
pub(crate) async fn run(
    prefix: &str,
    binary: &Path,
    duration: Duration,
    seed: u64,
    history: Option<&Path>,
    engine: &str,
) -> Result<(), String> {
    println!("faults for {duration:?}, engine {engine}, seed {seed}");
    let mut cluster = Cluster::start(prefix, binary, &["--engine", engine]).await?;
    let result = run_on(&mut cluster, duration, seed, history).await;
    if result.is_err() {
        eprintln!(
            "seed {seed}; the nodes' logs are in {}",
            cluster.keep_logs()?.display()
        );
    }
    result
}

async fn run_on(
    cluster: &mut Cluster,
    duration: Duration,
    seed: u64,
    history: Option<&Path>,
) -> Result<(), String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let load = Arc::new(Load {
        began: Instant::now(),
        stop: AtomicBool::new(false),
        values: AtomicU64::new(1),
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let rng = SmallRng::seed_from_u64(seed.wrapping_add(number as u64 + 1));
        clients.spawn(work(Arc::clone(&load), number, rng));
    }
    while load.began.elapsed() < duration {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..2500))).await;
        fault(cluster, &mut rng).await?;
    }
    for number in NODES {
        if !cluster.is_running(number) {
            cluster.start_node(number)?;
        }
        net::heal(cluster.prefix(), number)?;
    }
    cluster
        .wait(
            Duration::from_secs(30),
            "a leader of every group after the faults",
            |overview| overview["has_quorum"].as_bool()?.then_some(()),
        )
        .await?;
    // A moment of calm: what was healed must also be used.
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.stop.store(true, Ordering::Relaxed);
    let records = clients.join_all().await;
    let events: Vec<Event> = records
        .iter()
        .flat_map(|record| record.events.clone())
        .collect();
    if let Some(path) = history {
        write_edn(&events, path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    check_registers(&events)?;
    check_counts(&records).await
}

fn check_registers(events: &[Event]) -> Result<(), String> {
    let count = |ended| events.iter().filter(|event| event.ended == ended).count();
    println!(
        "  {} register operations: {} acknowledged, {} refused, {} unknown",
        events.len(),
        count(Ended::Ok),
        count(Ended::Fail),
        count(Ended::Info)
    );
    if count(Ended::Ok) == 0 {
        return Err("nothing was acknowledged: the run shows nothing".into());
    }
    let mut keys: HashMap<usize, Vec<Event>> = HashMap::new();
    for event in events {
        keys.entry(event.key).or_default().push(*event);
    }
    let mut undecided = 0;
    for (key, events) in &keys {
        match linearizable(events, CHECK_LIMIT) {
            Ok(true) => {}
            Ok(false) => {
                let mut events = events.clone();
                events.sort_by_key(|event| event.called);
                return Err(format!("register {key} is not linearizable: {events:#?}"));
            }
            Err(_) => undecided += 1,
        }
    }
    println!(
        "  {} registers are linearizable, {undecided} without a verdict",
        keys.len() - undecided
    );
    if undecided * 10 > keys.len() {
        return Err("too many registers without a verdict".into());
    }
    Ok(())
}

async fn check_counts(records: &[Record]) -> Result<(), String> {
    let failed = |error: Failed| format!("reading back: {error}");
    let mut client = Client::connect(&net::address(NODES[0]))
        .await
        .map_err(failed)?;
    let stored = client
        .call(&["LRANGE", "appends", "0", "-1"], PATIENCE)
        .await
        .map_err(failed)?;
    let Reply::List(stored) = stored else {
        return Err(format!("LRANGE answered {stored:?}"));
    };
    let mut times: HashMap<u64, u32> = HashMap::new();
    for value in &stored {
        if let Reply::Text(value) = value {
            *times.entry(value.parse().unwrap_or(0)).or_default() += 1;
        }
    }
    let appends: Vec<(u64, Ended)> = records
        .iter()
        .flat_map(|record| record.appends.clone())
        .collect();
    for (value, ended) in &appends {
        let found = times.get(value).copied().unwrap_or(0);
        let right = match ended {
            Ended::Ok => found == 1,
            Ended::Fail => found == 0,
            Ended::Info => found <= 1,
        };
        if !right {
            return Err(format!(
                "append {value} ended as {ended:?} and is there {found} times"
            ));
        }
    }
    let counter = client
        .call(&["GET", "counter"], PATIENCE)
        .await
        .map_err(failed)?;
    let counter = match counter {
        Reply::Text(value) => value.parse().unwrap_or(0),
        Reply::Nil => 0,
        other => return Err(format!("GET counter answered {other:?}")),
    };
    let sum = |nth: usize| {
        records
            .iter()
            .map(|record| record.increments[nth])
            .sum::<u64>()
    };
    let (acknowledged, unknown) = (sum(0), sum(1));
    println!(
        "  {} appends, {} in the list; counter {counter}, {acknowledged} acknowledged, {unknown} unknown",
        appends.len(),
        stored.len()
    );
    if counter < acknowledged || counter > acknowledged + unknown {
        return Err(format!(
            "the counter is {counter}, with {acknowledged} acknowledged and {unknown} unknown increments"
        ));
    }
    Ok(())
}

/// Kills the leader `kills` times and prints how long writes failed each time.
///
/// # Errors
/// Writes did not come back, or their median time is 2 s or more.
pub(crate) async fn failover(prefix: &str, binary: &Path, kills: u32) -> Result<(), String> {
    let mut cluster = Cluster::start(prefix, binary, &["--shards", "1"]).await?;
    let mut times = Vec::new();
    for _ in 0..kills {
        let leader = cluster.leader(1).await?;
        let other = NODES
            .into_iter()
            .find(|number| *number != leader)
            .unwrap_or(1);
        let mut client = Client::connect(&net::address(other))
            .await
            .map_err(|error| error.to_string())?;
        cluster.kill(leader)?;
        let killed = Instant::now();
        loop {
            let set = client.call(&["SET", "failover", "x"], PATIENCE).await;
            if matches!(set, Ok(Reply::Text(_))) {
                break;
            }
            if killed.elapsed() > Duration::from_secs(20) {
                return Err(format!("no write for 20 s after the kill; last: {set:?}"));
            }
        }
        times.push(killed.elapsed());
        println!(
            "  node {leader} killed: a write through node {other} after {:.0?}",
            killed.elapsed()
        );
        cluster.start_node(leader)?;
        cluster
            .wait(
                Duration::from_secs(30),
                "all three nodes caught up",
                |overview| {
                    let members = overview["members"].as_array()?;
                    let ready = |member: &serde_json::Value| member["readiness"]["ready"] == true;
                    (members.len() == NODES.len() && members.iter().all(ready)).then_some(())
                },
            )
            .await?;
        // Past the restarted voter's own start-up.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!(
        "failover: median {median:.0?} of {kills}, longest {:.0?}",
        times.last().copied().unwrap_or_default()
    );
    if median < Duration::from_secs(2) {
        Ok(())
    } else {
        Err(format!("the median failover took {median:?}"))
    }
}

//! One run: clients work, the nemesis hurts, all is healed and read back, the history is judged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jepsen::check::deadline::{self, Stall};
use jepsen::check::{Anomaly, Validity, Verdict};
use jepsen::history::{self, Action, End, Fault, Op};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::client::{Client, Reply};
use crate::cluster::Cluster;
use crate::nemesis::{Composition, Nemesis};
use crate::report;
use crate::s3;
use crate::workload::{self, Abilities, DEADLINE, PATIENCE, Workload};

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kinds: Vec<workload::Kind>,
    pub(crate) faults: Vec<Composition>,
    pub(crate) time_limit: Duration,
    /// Operations per second, all clients together.
    pub(crate) rate: u32,
    pub(crate) clients: u32,
    pub(crate) seed: u64,
    /// Where the report is written.
    pub(crate) dir: PathBuf,
    /// How the nodes are kept apart, for the report.
    pub(crate) mode: String,
}

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) ops: usize,
    pub(crate) faults: usize,
}

#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    fail: AtomicU64,
    info: AtomicU64,
}

struct Load {
    workload: Workload,
    began: Instant,
    stop: AtomicBool,
    processes: AtomicU64,
    addresses: Vec<String>,
    deadlines: bool,
    /// Some workload speaks S3.
    s3: bool,
    interval: Duration,
    counts: Counts,
}

impl Load {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Connections whose requests have the run's deadline.
async fn connect(address: &str, load: &Load) -> Option<Client> {
    let mut client = Client::connect(address).await.ok()?;
    if load.s3 {
        client.s3 = Some(s3::Connection::open(address).await.ok()?);
    }
    if load.deadlines {
        let millis = DEADLINE.as_millis().to_string();
        let set = client
            .call(&["CLIENT", "DEADLINE", &millis], Duration::from_secs(1))
            .await;
        if !matches!(set, Ok(Reply::Text(_))) {
            return None;
        }
    }
    Some(client)
}

/// One client: connects to a node, works until the connection fails, takes the next node.
async fn work(load: Arc<Load>, number: usize, seed: u64) -> Vec<Op> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut ops = Vec::new();
    let mut node = number;
    let mut process = load.processes.fetch_add(1, Ordering::Relaxed);
    let mut due = Instant::now() + load.interval.mul_f64(number as f64 / 7.0 % 1.0);
    while !load.stop.load(Ordering::Relaxed) {
        let at = node % load.addresses.len();
        node += 1;
        let Some(mut client) = connect(&load.addresses[at], &load).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while !load.stop.load(Ordering::Relaxed) {
            // A client that was held up does not catch up: it would come as a storm.
            due = (due + load.interval).max(Instant::now() - load.interval);
            tokio::time::sleep_until(due.into()).await;
            let ask = load.workload.next(&mut random);
            let called = load.now();
            let answer = load.workload.perform(&mut client, &ask).await;
            let returned = load.now();
            let count = match answer.end {
                End::Ok => &load.counts.ok,
                End::Fail => &load.counts.fail,
                End::Info => &load.counts.info,
            };
            count.fetch_add(1, Ordering::Relaxed);
            let is_over = answer.end != End::Ok;
            let broken = answer.broken;
            ops.push(Op {
                process,
                node: u8::try_from(at + 1).unwrap_or(u8::MAX),
                deadline_ms: load.workload.deadline_ms(&ask),
                action: answer.action,
                called,
                returned,
                end: answer.end,
                error: answer.error,
            });
            if answer.end == End::Info {
                // A process whose operation is open does nothing else, ever.
                process = load.processes.fetch_add(1, Ordering::Relaxed);
            }
            if is_over && (broken || random.random_bool(0.5)) {
                // Through another node: this one may be the one that is hurt. Not always: those who
                // stay see what it says when it wakes up.
                break;
            }
        }
    }
    ops
}

/// Looks how late this program's own timers are: nodes on the same machine are not better off.
async fn watch_stalls(load: Arc<Load>) -> Vec<Stall> {
    const TICK: Duration = Duration::from_millis(5);
    let mut stalls = Vec::new();
    while !load.stop.load(Ordering::Relaxed) {
        let began = load.now();
        let before = Instant::now();
        tokio::time::sleep(TICK).await;
        let late = before.elapsed().saturating_sub(TICK);
        // Less is the timer's own grain.
        if late > Duration::from_millis(2) {
            stalls.push(Stall {
                began,
                ended: load.now(),
                late: u64::try_from(late.as_nanos()).unwrap_or(u64::MAX),
            });
        }
    }
    stalls
}

/// Says each few seconds how it goes.
async fn progress(load: Arc<Load>, limit: Duration) {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if load.stop.load(Ordering::Relaxed) {
            return;
        }
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &load.counts;
        let ok = read(&counts.ok);
        println!(
            "  {:>6.1} s of {:.0} s: {ok} ok ({}/s), {} refused, {} unknown",
            load.began.elapsed().as_secs_f64(),
            limit.as_secs_f64(),
            (ok - last) / 5,
            read(&counts.fail),
            read(&counts.info)
        );
        last = ok;
    }
}

/// What the store can do.
async fn abilities(cluster: &Cluster) -> Result<Abilities, String> {
    let deadlines = cluster.is_leadline();
    let mut client = Client::connect(&cluster.address(1))
        .await
        .map_err(|error| error.to_string())?;
    let script = client
        .call(&["EVAL", "return 1", "0"], PATIENCE)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Abilities {
        lua: script == Reply::Integer(1),
        deadlines,
    })
}

/// Asks every node in turn until one does it.
async fn insist(load: &Load, ask: &workload::Ask, process: u64) -> Result<Op, String> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < Duration::from_secs(30) {
        for (at, address) in load.addresses.iter().enumerate() {
            let Some(mut client) = connect(address, load).await else {
                last = format!("cannot connect to {address}");
                continue;
            };
            let called = load.now();
            let answer = load.workload.perform(&mut client, ask).await;
            if answer.end == End::Ok {
                return Ok(Op {
                    process,
                    node: u8::try_from(at + 1).unwrap_or(u8::MAX),
                    action: answer.action,
                    called,
                    returned: load.now(),
                    end: End::Ok,
                    error: None,
                    deadline_ms: None,
                });
            }
            last = answer.error.unwrap_or_default();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!(
        "{:?} has no answer 30 s after the faults: {last}",
        ask.action
    ))
}

/// Reads everything back.
async fn read_back(load: &Load, ops: &mut Vec<Op>) -> Result<(), String> {
    let process = load.processes.fetch_add(1, Ordering::Relaxed);
    for queue in load.workload.queues() {
        loop {
            let op = insist(load, &queue, process).await?;
            let is_empty = matches!(op.action, Action::Dequeue { value: None, .. });
            ops.push(op);
            if is_empty {
                break;
            }
        }
    }
    for ask in load.workload.finals(ops) {
        ops.push(insist(load, &ask, process).await?);
    }
    Ok(())
}

/// Runs `plan` against `cluster`, judges, and writes the report.
///
/// # Errors
/// What kept the run from a verdict.
pub(crate) async fn run(plan: &Plan, cluster: &mut Cluster) -> Result<Outcome, String> {
    std::fs::create_dir_all(&plan.dir).map_err(|error| error.to_string())?;
    let abilities = abilities(cluster).await?;
    let began = Instant::now();
    let clients = plan.clients.max(1);
    let load = Arc::new(Load {
        workload: Workload::new(&plan.kinds, abilities, began),
        began,
        stop: AtomicBool::new(false),
        processes: AtomicU64::new(0),
        addresses: cluster
            .numbers()
            .into_iter()
            .map(|number| cluster.address(number))
            .collect(),
        deadlines: abilities.deadlines,
        s3: plan.kinds.iter().any(|kind| kind.is_s3()),
        interval: Duration::from_secs(1) * clients / plan.rate.max(1),
        counts: Counts::default(),
    });
    prepare(&load).await?;
    if load.s3 {
        s3::open_buckets(cluster).await?;
    }
    let mut workers = JoinSet::new();
    for number in 0..clients as usize {
        let seed = plan.seed.wrapping_add(number as u64 + 1);
        workers.spawn(work(Arc::clone(&load), number, seed));
    }
    let mut watchers = JoinSet::new();
    watchers.spawn(watch_stalls(Arc::clone(&load)));
    let mut talkers = JoinSet::new();
    talkers.spawn(progress(Arc::clone(&load), plan.time_limit));

    let random = SmallRng::seed_from_u64(plan.seed);
    let mut nemesis = Nemesis::new(plan.faults.clone(), random, began);
    let tormented = torment(plan, cluster, &mut nemesis).await.err();
    let unrecovered = recover(cluster).await.err();
    // A moment of calm: what was healed must also be used.
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.stop.store(true, Ordering::Relaxed);
    let mut ops: Vec<Op> = workers.join_all().await.into_iter().flatten().collect();
    let stalls: Vec<Stall> = watchers.join_all().await.into_iter().flatten().collect();
    talkers.shutdown().await;
    // Also after trouble: what is still in the queues was not lost.
    let unread = read_back(&load, &mut ops).await.err();
    let trouble = tormented.or(unrecovered).or(unread);
    ops.sort_by_key(|op| (op.called, op.process));

    let clocks_hurt = plan
        .faults
        .iter()
        .any(|faults| faults.0.iter().any(|kind| kind.hurts_clocks()));
    println!("  judging {} operations", ops.len());
    let mut verdict = load.workload.check(&ops, clocks_hurt);
    verdict = Verdict {
        checked: verdict.checked,
        ..verdict.and(deadline::check(&ops, &nemesis.done, &stalls))
    };
    if let Some(trouble) = trouble {
        verdict.anomalies.push(Anomaly {
            class: "unavailable".into(),
            summary: trouble,
            evidence: Vec::new(),
        });
    }
    store(plan, cluster, &ops, &nemesis.done, &verdict)?;
    Ok(Outcome {
        ops: ops.len(),
        faults: nemesis.done.len(),
        verdict,
    })
}

async fn prepare(load: &Load) -> Result<(), String> {
    for command in load.workload.setup() {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut client = Client::connect(&load.addresses[0])
            .await
            .map_err(|error| error.to_string())?;
        match client.call(&args, PATIENCE).await {
            Ok(Reply::Error(line)) => return Err(format!("{}: {line}", command.join(" "))),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

async fn torment(plan: &Plan, cluster: &mut Cluster, nemesis: &mut Nemesis) -> Result<(), String> {
    let end = Instant::now() + plan.time_limit;
    while Instant::now() < end {
        if !nemesis.is_idle() {
            let pause = nemesis.pause();
            tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        }
        if Instant::now() < end {
            nemesis.strike(cluster).await?;
        }
    }
    Ok(())
}

/// Heals everything; every group must have a leader again.
async fn recover(cluster: &mut Cluster) -> Result<(), String> {
    cluster.network.heal()?;
    for number in cluster.numbers() {
        cluster.signal(number, Signal::CONT)?;
    }
    cluster.start_all()?;
    for number in cluster.numbers() {
        cluster.wait_until_open(number).await?;
    }
    if cluster.is_leadline() {
        cluster
            .wait(
                Duration::from_secs(30),
                "a leader of every group after the faults",
                |overview| overview["has_quorum"].as_bool()?.then_some(()),
            )
            .await?;
    }
    Ok(())
}

fn store(
    plan: &Plan,
    cluster: &Cluster,
    ops: &[Op],
    faults: &[Fault],
    verdict: &Verdict,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", plan.dir.display());
    history::write(ops, faults, &plan.dir).map_err(failed)?;
    cluster.keep_logs(&plan.dir)?;
    let timeline = report::timeline(ops, faults);
    std::fs::write(plan.dir.join("timeline.svg"), timeline).map_err(failed)?;
    let text = report::text(plan, ops, faults, verdict);
    std::fs::write(plan.dir.join("report.md"), text).map_err(failed)
}

/// Prints a verdict as people want it.
pub(crate) fn print(verdict: &Verdict, dir: Option<&Path>) {
    for note in &verdict.notes {
        println!("  {note}");
    }
    for what in &verdict.undecided {
        println!("  undecided: {what}");
    }
    for anomaly in &verdict.anomalies {
        println!("  {}: {}", anomaly.class, anomaly.summary);
        for line in anomaly.evidence.iter().take(12) {
            println!("    {line}");
        }
    }
    let word = match verdict.validity() {
        Validity::Valid => "valid",
        Validity::Invalid => "INVALID",
        Validity::Unknown => "no verdict",
    };
    println!("{word}: {} operations checked", verdict.checked);
    if let Some(dir) = dir {
        println!("report: {}", dir.display());
    }
}

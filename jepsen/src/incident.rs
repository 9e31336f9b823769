//! The founding incident, as a test.
//!
//! Once, a follower lost its route, callers without deadlines piled up behind leadership checks,
//! and each new leader drowned in them. Here callers of five kinds arrive at a steady rate, each
//! with a deadline of its own, while one follower and then both are blackholed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;

use crate::client::{Client, Failed, Reply, http_get};
use crate::cluster::Cluster;

/// The kinds of callers, in the order they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    /// A health probe that hangs up after a second.
    Probe,
    /// `GET` without a deadline: the 5 s fallback.
    Plain,
    /// `DEADLINE 50 GET`.
    Hasty,
    /// `BLPOP key 2`.
    Blocking,
    /// `GET` through a follower that forwards it.
    Forwarded,
}

const CALLERS: [Caller; 10] = [
    Caller::Probe,
    Caller::Plain,
    Caller::Probe,
    Caller::Hasty,
    Caller::Forwarded,
    Caller::Probe,
    Caller::Plain,
    Caller::Hasty,
    Caller::Probe,
    Caller::Blocking,
];

impl Caller {
    fn deadline(self) -> Duration {
        match self {
            Self::Probe => Duration::from_secs(1),
            Self::Plain | Self::Forwarded => Duration::from_secs(5),
            Self::Hasty => Duration::from_millis(50),
            Self::Blocking => Duration::from_secs(2),
        }
    }

    /// The latest end that is still "at its deadline".
    fn limit(self) -> Duration {
        self.deadline() + (self.deadline() / 10).max(Duration::from_millis(20))
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Success,
    /// A clear refusal of the right class: nothing was applied.
    NotApplied(String),
    /// The prober hung up, as it does.
    HungUp,
    /// Anything else.
    Wrong(String),
}

struct Call {
    caller: Caller,
    took: Duration,
    end: End,
}

/// Nodes and callers share two processors with whatever else runs: one call in a thousand of a kind
/// may be later than its limit, by no more than this.
const HICCUP: Duration = Duration::from_millis(100);

/// The key of every caller; its shard's leader is the one under siege.
const KEY: &str = "incident";

async fn call(caller: Caller, leader: String, follower: String) -> Call {
    let patience = Duration::from_secs(20);
    // A connection is there before its request: the deadline counts from the request.
    let address = if caller == Caller::Forwarded {
        &follower
    } else {
        &leader
    };
    let client = match caller {
        Caller::Probe => None,
        _ => match Client::connect(address).await {
            Ok(client) => Some(client),
            Err(error) => {
                let end = End::Wrong(error.to_string());
                return Call {
                    caller,
                    took: Duration::ZERO,
                    end,
                };
            }
        },
    };
    let began = Instant::now();
    let end = match (caller, client) {
        (Caller::Probe, _) | (_, None) => {
            let path = format!("/healthz/leader?key={KEY}");
            match http_get(&leader, &path, caller.deadline()).await {
                Ok((200, _)) => End::Success,
                Ok((503, _)) => End::NotApplied("503".into()),
                Ok((status, body)) => End::Wrong(format!("{status} {body}")),
                Err(Failed::Silent(_)) => End::HungUp,
                Err(error) => End::Wrong(error.to_string()),
            }
        }
        (Caller::Plain | Caller::Forwarded, Some(mut client)) => {
            classify(client.call(&["GET", KEY], patience).await)
        }
        (Caller::Hasty, Some(mut client)) => {
            classify(client.call(&["DEADLINE", "50", "GET", KEY], patience).await)
        }
        (Caller::Blocking, Some(mut client)) => {
            let list = format!("{{{KEY}}}:empty");
            classify(client.call(&["BLPOP", &list, "2"], patience).await)
        }
    };
    Call {
        caller,
        took: began.elapsed(),
        end,
    }
}

fn classify(reply: Result<Reply, Failed>) -> End {
    match reply {
        Ok(Reply::Error(line)) => {
            let class = line.split(' ').next().unwrap_or_default().to_owned();
            match class.as_str() {
                "TIMEOUT" | "CLUSTERDOWN" | "TRYAGAIN" => End::NotApplied(class),
                _ => End::Wrong(line),
            }
        }
        Ok(_) => End::Success,
        Err(error) => End::Wrong(error.to_string()),
    }
}

/// What a siege showed.
struct Siege {
    calls: Vec<Call>,
    /// The highest count of pending verifications seen on the way.
    most_pending: f64,
    /// How late this program's own timer was at the worst: a machine that stalls the callers
    /// stalls the nodes on it too, and no more than that is forgiven.
    stall: Duration,
}

/// Callers arrive at `rate` for `duration`.
async fn besiege(
    cluster: &Cluster,
    (leader, follower): (u8, u8),
    duration: Duration,
    rate: u32,
) -> Result<Siege, String> {
    let (leader_at, follower_at) = (cluster.address(leader), cluster.address(follower));
    let began = Instant::now();
    let mut next = began;
    let mut kinds = CALLERS.iter().cycle();
    let mut flying = FuturesUnordered::new();
    let mut calls = Vec::new();
    let mut most_pending: f64 = 0.0;
    let mut stall = Duration::ZERO;
    let mut sampled = began;
    loop {
        let arriving = began.elapsed() < duration;
        if !arriving && flying.is_empty() {
            return Ok(Siege {
                calls,
                most_pending,
                stall,
            });
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(next.into()), if arriving => {
                stall = stall.max(next.elapsed());
                next += Duration::from_secs(1) / rate;
                if let Some(kind) = kinds.next() {
                    let (leader, follower) = (leader_at.clone(), follower_at.clone());
                    flying.push(call(*kind, leader, follower));
                }
            }
            Some(ended) = flying.next(), if !flying.is_empty() => calls.push(ended),
        }
        if sampled.elapsed() > Duration::from_secs(2) {
            sampled = Instant::now();
            let pending = cluster.metric(leader, PENDING).await?;
            most_pending = most_pending.max(pending);
        }
    }
}

const PENDING: &str = "leadline_raft_group_pending_verifications";

fn print_calls(calls: &[Call]) {
    let mut ends: BTreeMap<(Caller, String), u64> = BTreeMap::new();
    let mut times: BTreeMap<Caller, Histogram<u64>> = BTreeMap::new();
    for call in calls {
        *ends
            .entry((call.caller, format!("{:?}", call.end)))
            .or_default() += 1;
        let histogram = times.entry(call.caller).or_insert_with(|| {
            Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("bounds"))
        });
        histogram.saturating_record(
            u64::try_from(call.took.as_micros())
                .unwrap_or(u64::MAX)
                .max(1),
        );
    }
    for (caller, times) in &times {
        println!(
            "  {:<10} deadline {:>7.1?}: p50 {:>8.1?}  p99 {:>8.1?}  max {:>8.1?}",
            format!("{caller:?}"),
            caller.deadline(),
            Duration::from_micros(times.value_at_quantile(0.5)),
            Duration::from_micros(times.value_at_quantile(0.99)),
            Duration::from_micros(times.max()),
        );
    }
    for ((caller, end), count) in ends {
        println!("    {count:>6} {caller:?} {end}");
    }
}

/// Collects what does not hold, so that one run tells all of it.
#[derive(Default)]
struct Verdict(Vec<String>);

impl Verdict {
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }
}

/// Runs the incident.
///
/// # Errors
/// Everything that did not hold.
pub(crate) async fn run(
    mut cluster: Cluster,
    logs: &Path,
    phase: Duration,
    rate: u32,
) -> Result<(), String> {
    let result = siege(&mut cluster, phase, rate).await;
    if result.is_err() {
        cluster.keep_logs(logs)?;
        eprintln!("the nodes' logs are in {}", logs.display());
    }
    result
}

async fn siege(cluster: &mut Cluster, phase: Duration, rate: u32) -> Result<(), String> {
    let mut verdict = Verdict::default();
    let leader = cluster.leader(1).await?;
    let followers: Vec<u8> = cluster
        .numbers()
        .into_iter()
        .filter(|number| *number != leader)
        .collect();
    let (lost, other) = (followers[0], followers[1]);
    let mut client = Client::connect(&cluster.address(leader))
        .await
        .map_err(|error| error.to_string())?;
    let set = client
        .call(&["SET", KEY, "here"], Duration::from_secs(6))
        .await;
    verdict.require(matches!(set, Ok(Reply::Text(_))), || {
        format!("SET before the fault: {set:?}")
    });

    println!("node {leader} leads; node {lost} loses its route for {phase:?}, {rate} callers/s");
    cluster.blackhole(lost, &[leader, other])?;
    let Siege {
        calls,
        most_pending: pending,
        ..
    } = besiege(cluster, (leader, other), phase, rate).await?;
    print_calls(&calls);
    println!("  pending verifications, most seen: {pending}");
    let failed = calls.iter().filter(|call| call.end != End::Success).count();
    verdict.require(failed == 0, || {
        format!(
            "{failed} of {} calls failed with one follower lost",
            calls.len()
        )
    });

    println!("node {other} loses its route too, for {phase:?}");
    cluster.blackhole(other, &[leader, lost])?;
    // The calls of the lease's last moments still succeed; they are not what this phase is about.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu_before, rss_before) = cluster.usage(leader)?;
    let began = Instant::now();
    let Siege {
        calls,
        most_pending: pending,
        stall,
    } = besiege(cluster, (leader, other), phase, rate).await?;
    let wall = began.elapsed();
    let (cpu_after, rss_after) = cluster.usage(leader)?;
    print_calls(&calls);
    let cpu = (cpu_after - cpu_before).as_secs_f64() / wall.as_secs_f64() * 100.0;
    let grown = (rss_after as f64 - rss_before as f64) / f64::from(1 << 20);
    println!(
        "  leader CPU {cpu:.1} % of one core, RSS {grown:+.1} MiB; pending verifications, most seen: {pending}; the callers' own timer was at most {stall:.1?} late"
    );
    let mut tardy: BTreeMap<Caller, usize> = BTreeMap::new();
    for call in &calls {
        let late = call.took.saturating_sub(call.caller.limit() + stall);
        if !late.is_zero() {
            *tardy.entry(call.caller).or_default() += 1;
        }
        verdict.require(late <= HICCUP, || {
            format!(
                "{:?} took {:?}, its deadline is {:?}",
                call.caller,
                call.took,
                call.caller.deadline()
            )
        });
        let right = match (&call.end, call.caller) {
            (End::NotApplied(_), _) | (End::HungUp, Caller::Probe) => true,
            // Nil at its own timeout, with no pop unsettled.
            (End::Success, Caller::Blocking) => true,
            _ => false,
        };
        verdict.require(right, || {
            format!("{:?} ended as {:?} without a quorum", call.caller, call.end)
        });
    }
    for (caller, late) in tardy {
        let all = calls.iter().filter(|call| call.caller == caller).count();
        println!("  {late} of {all} {caller:?} ended later than their limit");
        verdict.require(late * 1000 <= all, || {
            format!("{late} of {all} {caller:?} ended later than their limit")
        });
    }
    let longest = CALLERS
        .iter()
        .map(|caller| caller.deadline().as_secs_f64())
        .sum::<f64>();
    let bound = f64::from(rate) * longest / CALLERS.len() as f64;
    verdict.require(pending <= bound * 1.1, || {
        format!("{pending} verifications were pending; rate × deadline allows {bound:.0}")
    });
    verdict.require(cpu < 15.0, || {
        format!("the leader used {cpu:.1} % of a core")
    });
    verdict.require(grown.abs() <= 32.0, || {
        format!("the leader's memory changed by {grown:+.1} MiB")
    });
    let left = settled(cluster, leader).await?;
    verdict.require(left == 0.0, || {
        format!("{left} verifications still pend after the callers left")
    });

    cluster.network.heal()?;
    let healed = Instant::now();
    let first = loop {
        let mut served = false;
        if let Ok(mut client) = Client::connect(&cluster.address(leader)).await {
            let get = client
                .call(&["DEADLINE", "500", "GET", KEY], Duration::from_secs(6))
                .await;
            served = get.is_ok_and(|reply| reply == Reply::Text("here".into()));
        }
        if served || healed.elapsed() > Duration::from_secs(10) {
            break healed.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    println!("healed: first success after {first:.0?}");
    verdict.require(first < Duration::from_secs(2), || {
        format!("first success after {first:?}")
    });

    // The same complaint a thousand times says no more than once.
    let complaints = verdict.0.len();
    verdict.0.truncate(12);
    if complaints == 0 {
        Ok(())
    } else {
        Err(format!(
            "{complaints} things:\n  {}",
            verdict.0.join("\n  ")
        ))
    }
}

/// Pending verifications, once the last callers' deadlines have passed.
async fn settled(cluster: &Cluster, leader: u8) -> Result<f64, String> {
    let began = Instant::now();
    loop {
        let pending = cluster.metric(leader, PENDING).await?;
        if pending == 0.0 || began.elapsed() > Duration::from_secs(6) {
            return Ok(pending);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

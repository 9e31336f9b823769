//! `leadline bench`: a load generator for any server that speaks RESP, so that a user can measure
//! his own cluster, or hold it against another server in the same run.

mod etcd;
mod load;
mod process;
mod report;
mod s3;

use std::time::Duration;

use clap::{Args, ValueEnum};

use self::load::{Load, Outcome};
use self::process::CpuClock;
use self::report::Row;
use self::s3::Access;
use crate::units::{Bytes, Span, span_above_zero};

/// Keys are drawn evenly from `--keys` many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// SET of a random key.
    Set,
    /// GET of a random key.
    Get,
    /// Nine GETs to one SET.
    Mixed,
    /// INCR of one hot key.
    Incr,
    /// LPUSH to one hot list.
    Lpush,
    /// ZADD of a random member to one hot sorted set.
    Zadd,
    /// EXEC of two SETs in one shard.
    Exec,
    /// EXEC of two SETs in two shards.
    ExecCross,
    /// EXEC that moves 1 between two random accounts of --keys many.
    Transfer,
    /// The same by WATCH, GET and SET, again until EXEC commits; latency is that of all its tries.
    WatchTransfer,
    /// PING: what the network and the client cost by themselves.
    Ping,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        leadline bench set get\n  \
        leadline bench set --connections 256 --addr 10.0.0.1:6379,10.0.0.2:6379,10.0.0.3:6379\n  \
        leadline bench set incr --pipeline 16 --against 127.0.0.1:6400 --rounds 5\n  \
        leadline bench get --pid $(pgrep -d, -x leadline) --json\n  \
        leadline bench transfer watch-transfer -c 32 --keys 10\n  \
        leadline bench set -c 64 --against etcd://127.0.0.1:2379\n  \
        leadline bench set get -c 8 -s 1MiB --addr s3://127.0.0.1:9000\n\n\
    Rates and latencies are of the operations that succeeded; those that failed are counted apart. \
    The exit code is 1 when every operation of a workload failed.")]
pub(crate) struct BenchArgs {
    /// What to run, in this order.
    #[arg(value_enum, default_values_t = [Workload::Set, Workload::Get])]
    workloads: Vec<Workload>,

    /// Servers; connections are dealt out over them. `etcd://HOST:PORT` speaks to etcd and
    /// `s3://HOST:PORT` S3 (set and get; the key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY).
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:6379"
    )]
    addr: Vec<String>,

    /// A peer to measure in turn with --addr, round by round; the report gives the ratio.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    against: Vec<String>,

    /// Connections at once.
    #[arg(short, long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Commands a connection sends before it waits for their replies.
    #[arg(short = 'P', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,

    /// How long each workload runs in each round.
    #[arg(short, long, default_value = "5s", value_parser = span_above_zero)]
    duration: Span,

    /// Rounds; the report gives the median of them.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// How many keys there are.
    #[arg(short, long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(2..))]
    keys: u64,

    /// Bytes of a value: 4096, 1MiB.
    #[arg(short = 's', long, default_value = "128")]
    value_size: Bytes,

    /// Hashes the body of an S3 PUT into its signature, instead of UNSIGNED-PAYLOAD.
    #[arg(long)]
    sign_payload: bool,

    /// Threads of the generator.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,

    /// Writes every key once before it measures.
    #[arg(long)]
    fill: bool,

    /// Password of the servers.
    #[arg(
        short = 'a',
        long,
        env = "LEADLINE_REQUIREPASS",
        hide_env_values = true
    )]
    password: Option<String>,

    /// Process ids of the servers under --addr, on this machine, with commas between them: reports their CPU per operation.
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,

    /// Process ids of the servers under --against.
    #[arg(long, value_delimiter = ',')]
    against_pid: Vec<u32>,

    /// Prints one JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
}

/// One side of a comparison.
struct Side<'a> {
    name: String,
    addresses: &'a [String],
    pids: &'a [u32],
}

/// Runs the workloads and prints the report.
///
/// # Errors
/// A server cannot be reached, or every operation of a workload failed.
pub(crate) fn run(args: BenchArgs) -> Result<(), String> {
    let mut sides = vec![Side {
        name: args.addr.join(","),
        addresses: &args.addr,
        pids: &args.pid,
    }];
    if !args.against.is_empty() {
        sides.push(Side {
            name: args.against.join(","),
            addresses: &args.against,
            pids: &args.against_pid,
        });
    }
    if args.fill {
        for side in &sides {
            fill(&args, side)?;
        }
    }
    let mut report = Vec::new();
    for workload in &args.workloads {
        let mut rounds: Vec<Vec<Row>> = sides.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds {
            for (side, rows) in sides.iter().zip(&mut rounds) {
                rows.push(measure(&args, *workload, side, round)?);
            }
        }
        report.push((workload_name(*workload), rounds));
    }
    report::print(
        &sides
            .iter()
            .map(|side| side.name.as_str())
            .collect::<Vec<_>>(),
        &report,
        args.json,
    )
}

fn workload_name(workload: Workload) -> String {
    workload
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn measure(
    args: &BenchArgs,
    workload: Workload,
    side: &Side<'_>,
    round: u32,
) -> Result<Row, String> {
    let mut load = load_for(args, side, workload, load::Until::Elapsed(args.duration.0));
    if workload == Workload::WatchTransfer {
        // A connection watches for one transaction at a time.
        load.pipeline = 1;
    }
    let bar = report::progress(
        &format!("{} on {}", workload_name(workload), side.name),
        args.duration.0,
        args.json,
    );
    let before = CpuClock::read(side.pids)?;
    let outcome = load::run(&load, u64::from(round), &bar)?;
    let cpu = CpuClock::read(side.pids)?.since(&before);
    bar.finish_and_clear();
    Ok(Row::new(&outcome, (!side.pids.is_empty()).then_some(cpu)))
}

/// Writes keys 0, 1, 2, … once each.
fn fill(args: &BenchArgs, side: &Side<'_>) -> Result<(), String> {
    let load = Load {
        pipeline: 64,
        in_order: true,
        ..load_for(
            args,
            side,
            Workload::Set,
            load::Until::Operations(args.keys),
        )
    };
    let bar = report::progress(&format!("fill {}", side.name), Duration::ZERO, args.json);
    let Outcome {
        errors,
        first_error,
        ..
    } = load::run(&load, 0, &bar)?;
    bar.finish_and_clear();
    match first_error {
        Some(error) => Err(format!(
            "{}: {errors} of the writes failed, first: {error}",
            side.name
        )),
        None => Ok(()),
    }
}

fn load_for(args: &BenchArgs, side: &Side<'_>, workload: Workload, until: load::Until) -> Load {
    Load {
        workload,
        addresses: side.addresses.to_vec(),
        password: args.password.clone(),
        connections: args.connections,
        pipeline: args.pipeline,
        threads: args.threads.min(args.connections),
        keys: args.keys,
        value: load::value(usize::try_from(args.value_size.0).unwrap_or(usize::MAX)),
        until,
        in_order: false,
        access: access(args.sign_payload),
    }
}

/// The access key for S3, where the environment names one.
fn access(sign_payload: bool) -> Option<Access> {
    Some(Access {
        key: std::env::var("AWS_ACCESS_KEY_ID").ok()?,
        secret: std::env::var("AWS_SECRET_ACCESS_KEY").ok()?,
        sign_payload,
    })
}

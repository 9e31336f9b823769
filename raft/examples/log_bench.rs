//! Measures the Raft log alone: durable appends of entries of 256 B, from 8 groups that share it.
//!
//! `cargo run --release -p leadline-raft --example log_bench [DIRECTORY [SECONDS]]`
//!
//! Prints, for appends of 1, 16 and 128 entries: appends per second, CPU of the whole process per
//! append, and how many entries shared a sync.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_raft::log::{LogMetrics, LogOptions, SharedLog};
use leadline_raft::{GroupId, LogIndex, Term};
use tokio::task::JoinSet;

const GROUPS: u64 = 8;
const ENTRY_BYTES: usize = 256;
/// How many entries of a group are kept before they are purged.
const KEPT: u64 = 20_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds: u64 = args.next().map_or(Ok(3), |seconds| seconds.parse())?;
    println!("entries/append  appends/s  CPU us/append  entries/s  us/sync  appends/sync");
    for size in [1, 16, 128] {
        let dir = dir.join(format!("log-bench-{}", std::process::id()));
        run(&dir, size, Duration::from_secs(seconds)).await?;
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

async fn run(dir: &std::path::Path, size: usize, time: Duration) -> Result<(), Box<dyn Error>> {
    let metrics = LogMetrics::default();
    let log = SharedLog::open(dir, LogOptions::default(), metrics.clone())?;
    let payload = Bytes::from(vec![7; ENTRY_BYTES]);
    let (began, cpu) = (Instant::now(), cpu_time()?);
    let mut writers = JoinSet::new();
    for group in 0..GROUPS {
        let mut group = log.group(GroupId(group));
        let payload = payload.clone();
        writers.spawn(async move {
            let mut appends = 0_u64;
            let mut purged = 0;
            while began.elapsed() < time {
                let payloads = vec![payload.clone(); size];
                let end = group.append_payloads(Term(1), payloads).await?;
                appends += 1;
                if end.0 - purged > 2 * KEPT {
                    purged = end.0 - KEPT;
                    group.purge_before(LogIndex(purged)).await?;
                }
            }
            Ok::<_, std::io::Error>(appends)
        });
    }
    let mut appends = 0;
    while let Some(done) = writers.join_next().await {
        appends += done??;
    }
    let (wall, cpu) = (began.elapsed(), cpu_time()? - cpu);
    log.close().await?;
    let syncs = metrics.syncs.get().max(1) as f64;
    let rate = appends as f64 / wall.as_secs_f64();
    println!(
        "{size:>14}  {rate:>9.0}  {:>13.1}  {:>9.0}  {:>7.0}  {:>12.1}",
        cpu.as_secs_f64() * 1e6 / appends as f64,
        rate * size as f64,
        wall.as_secs_f64() * 1e6 / syncs,
        appends as f64 / syncs,
    );
    Ok(())
}

/// User and system time of this process.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may hold anything: fields 14 and 15, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

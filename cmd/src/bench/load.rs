//! The load itself: connections that write pipelines of commands and count the replies.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::Workload;
use super::etcd::Etcd;

/// No reply for this long ends a run: a server that hangs must not hang its measurement.
const STALLED: Duration = Duration::from_secs(30);

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Elapsed(Duration),
    Operations(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) workload: Workload,
    pub(super) addresses: Vec<String>,
    pub(super) password: Option<String>,
    pub(super) connections: u32,
    pub(super) pipeline: u32,
    pub(super) threads: u32,
    pub(super) keys: u64,
    pub(super) value_size: usize,
    pub(super) until: Until,
    /// Keys 0, 1, 2, … instead of random ones.
    pub(super) in_order: bool,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) elapsed: Duration,
    /// Microseconds, one value per reply.
    pub(super) latency: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

/// One microsecond to one minute, three digits.
pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable_bounds())
}

fn unreachable_bounds() -> Histogram<u64> {
    unreachable!("1 to 60 000 000 at 3 digits are bounds that a histogram takes")
}

/// Counters that all threads of a run share.
struct Shared {
    /// Operations begun; bounds a run by count, and numbers the keys of a fill.
    begun: AtomicU64,
    done: AtomicU64,
}

/// Runs `load` to its end.
///
/// # Errors
/// A server cannot be reached, closes a connection, or stalls.
pub(super) fn run(load: &Load, seed: u64, bar: &ProgressBar) -> Result<Outcome, String> {
    let shared = Shared {
        begun: AtomicU64::new(0),
        done: AtomicU64::new(0),
    };
    let began = Instant::now();
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads)
            .map(|thread| {
                let shared = &shared;
                scope.spawn(move || run_thread(load, thread, seed, shared, began))
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set_position(passed);
            let rate = shared.done.load(Ordering::Relaxed) * 1000 / passed.max(1);
            bar.set_message(format!("{rate} ops/s"));
            std::thread::sleep(Duration::from_millis(20));
        }
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a load thread panicked".into()))
            })
            .collect::<Vec<_>>()
    });
    let mut total = Outcome {
        elapsed: Duration::ZERO,
        latency: new_histogram(),
        errors: 0,
        first_error: None,
    };
    for result in results {
        let part = result?;
        total.elapsed = total.elapsed.max(part.elapsed);
        total
            .latency
            .add(&part.latency)
            .map_err(|error| error.to_string())?;
        total.errors += part.errors;
        total.first_error = total.first_error.or(part.first_error);
    }
    Ok(total)
}

fn run_thread(
    load: &Load,
    thread: u32,
    seed: u64,
    shared: &Shared,
    began: Instant,
) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let outcome = Rc::new(RefCell::new(Outcome {
        elapsed: Duration::ZERO,
        latency: new_histogram(),
        errors: 0,
        first_error: None,
    }));
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let mine = (thread..load.connections).step_by(load.threads as usize);
        let connections = mine.map(|connection| {
            let outcome = outcome.clone();
            async move {
                let rng = SmallRng::seed_from_u64(seed << 32 | u64::from(connection));
                drive(load, connection, rng, shared, began, &outcome).await
            }
        });
        futures::future::try_join_all(connections).await
    })?;
    drop(tasks);
    outcome.borrow_mut().elapsed = began.elapsed();
    Rc::try_unwrap(outcome)
        .map(RefCell::into_inner)
        .map_err(|_| "a connection outlived its run".to_owned())
}

async fn drive(
    load: &Load,
    connection: u32,
    mut rng: SmallRng,
    shared: &Shared,
    began: Instant,
    outcome: &RefCell<Outcome>,
) -> Result<(), String> {
    let address = &load.addresses[connection as usize % load.addresses.len()];
    if let Some(address) = address.strip_prefix("etcd://") {
        return drive_etcd(load, address, rng, shared, began, outcome).await;
    }
    let failed = |what: &str| format!("{address}: {what}");
    let mut socket = TcpStream::connect(address)
        .await
        .map_err(|error| failed(&format!("cannot connect: {error}")))?;
    socket
        .set_nodelay(true)
        .map_err(|error| failed(&error.to_string()))?;
    let mut input = BytesMut::with_capacity(16 << 10);
    let mut output = BytesMut::with_capacity(16 << 10);
    if let Some(password) = &load.password {
        command(&mut output, &[b"AUTH", password.as_bytes()]);
        socket
            .write_all(&output)
            .await
            .map_err(|error| failed(&error.to_string()))?;
        output.clear();
        if let Some(error) = read_replies(&mut socket, &mut input, 1, address).await?.1 {
            return Err(failed(&error));
        }
    }
    let value: Vec<u8> = (0..load.value_size)
        .map(|_| rng.random_range(b'a'..=b'z'))
        .collect();
    loop {
        let first = shared
            .begun
            .fetch_add(u64::from(load.pipeline), Ordering::Relaxed);
        let count = match load.until {
            Until::Elapsed(duration) if began.elapsed() >= duration => break,
            Until::Elapsed(_) => u64::from(load.pipeline),
            Until::Operations(total) if first >= total => break,
            Until::Operations(total) => u64::from(load.pipeline).min(total - first),
        };
        output.clear();
        for nth in 0..count {
            let key = if load.in_order {
                first + nth
            } else {
                rng.random_range(0..load.keys)
            };
            write_operation(load.workload, key, &value, &mut rng, &mut output);
        }
        let sent = Instant::now();
        socket
            .write_all(&output)
            .await
            .map_err(|error| failed(&error.to_string()))?;
        let (errors, first_error) = read_replies(&mut socket, &mut input, count, address).await?;
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.done.fetch_add(count, Ordering::Relaxed);
        let mut outcome = outcome.borrow_mut();
        outcome.latency.saturating_record_n(micros.max(1), count);
        outcome.errors += errors;
        if outcome.first_error.is_none() {
            outcome.first_error = first_error;
        }
    }
    Ok(())
}

/// As [`drive`], one call at a time over gRPC.
async fn drive_etcd(
    load: &Load,
    address: &str,
    mut rng: SmallRng,
    shared: &Shared,
    began: Instant,
    outcome: &RefCell<Outcome>,
) -> Result<(), String> {
    let mut etcd = Etcd::connect(address).await?;
    let value: Vec<u8> = (0..load.value_size)
        .map(|_| rng.random_range(b'a'..=b'z'))
        .collect();
    loop {
        let nth = shared.begun.fetch_add(1, Ordering::Relaxed);
        match load.until {
            Until::Elapsed(duration) if began.elapsed() >= duration => return Ok(()),
            Until::Operations(total) if nth >= total => return Ok(()),
            Until::Elapsed(_) | Until::Operations(_) => {}
        }
        let key = if load.in_order {
            nth
        } else {
            rng.random_range(0..load.keys)
        };
        let name = format!("key:{key:012}").into_bytes();
        let sent = Instant::now();
        let called = match load.workload {
            Workload::Set => etcd.put(name, &value).await,
            Workload::Get => etcd.get(name).await,
            _ => return Err("etcd is measured with set and get".into()),
        };
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.done.fetch_add(1, Ordering::Relaxed);
        let mut outcome = outcome.borrow_mut();
        outcome.latency.saturating_record(micros.max(1));
        if let Err(error) = called {
            outcome.errors += 1;
            outcome.first_error.get_or_insert(error);
        }
    }
}

fn write_operation(
    workload: Workload,
    key: u64,
    value: &[u8],
    rng: &mut SmallRng,
    out: &mut BytesMut,
) {
    let name = format!("key:{key:012}");
    let name = name.as_bytes();
    match workload {
        Workload::Set => command(out, &[b"SET", name, value]),
        Workload::Get => command(out, &[b"GET", name]),
        Workload::Mixed if rng.random_range(0..10) == 0 => command(out, &[b"SET", name, value]),
        Workload::Mixed => command(out, &[b"GET", name]),
        Workload::Incr => command(out, &[b"INCR", b"bench:counter"]),
        Workload::Lpush => command(out, &[b"LPUSH", b"bench:list", value]),
        Workload::Zadd => {
            let score = rng.random_range(0..1_000_000).to_string();
            command(out, &[b"ZADD", b"bench:zset", score.as_bytes(), name]);
        }
        Workload::Ping => command(out, &[b"PING"]),
    }
}

fn command(out: &mut BytesMut, args: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads `count` replies; gives how many were errors, and the first of them.
async fn read_replies(
    socket: &mut TcpStream,
    input: &mut BytesMut,
    count: u64,
    address: &str,
) -> Result<(u64, Option<String>), String> {
    let (mut seen, mut errors, mut first_error) = (0, 0, None);
    loop {
        while seen < count {
            let Some(reply) = take_reply(input) else {
                break;
            };
            seen += 1;
            if let Some(error) = reply {
                errors += 1;
                first_error.get_or_insert(error);
            }
        }
        if seen == count {
            return Ok((errors, first_error));
        }
        let read = tokio::time::timeout(STALLED, socket.read_buf(input))
            .await
            .map_err(|_| format!("{address}: no reply for {} s", STALLED.as_secs()))?
            .map_err(|error| format!("{address}: {error}"))?;
        if read == 0 {
            return Err(format!("{address}: the server closed the connection"));
        }
    }
}

/// Takes one reply off `input` if it is there whole: a line, or a bulk string. `Some(Some(_))` is
/// an error line.
fn take_reply(input: &mut BytesMut) -> Option<Option<String>> {
    let end = input.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &input[..end];
    match line.first() {
        Some(b'$') => {
            let length: i64 = std::str::from_utf8(&line[1..]).ok()?.parse().ok()?;
            let whole = match usize::try_from(length) {
                Ok(length) => end + 2 + length + 2,
                Err(_) => end + 2,
            };
            (input.len() >= whole).then(|| input.advance(whole))?;
            Some(None)
        }
        Some(b'-') => {
            let error = String::from_utf8_lossy(&line[1..]).into_owned();
            input.advance(end + 2);
            Some(Some(error))
        }
        _ => {
            input.advance(end + 2);
            Some(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_only_when_it_is_whole() {
        let mut input = BytesMut::from(&b"$5\r\nhel"[..]);
        assert_eq!(take_reply(&mut input), None);
        input.extend_from_slice(b"lo\r\n-ERR no\r\n$-1\r\n+O");
        assert_eq!(take_reply(&mut input), Some(None));
        assert_eq!(take_reply(&mut input), Some(Some("ERR no".into())));
        assert_eq!(take_reply(&mut input), Some(None));
        assert_eq!(take_reply(&mut input), None);
    }
}

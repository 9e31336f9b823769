//! The load itself: connections that write pipelines of commands and count the replies.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use leadline_kv::keyspace;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::Sleep;

use super::Workload;
use super::etcd::Etcd;
use super::s3::{Access, S3};

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
    /// What every SET writes.
    pub(super) value: Bytes,
    pub(super) until: Until,
    /// Keys 0, 1, 2, … instead of random ones.
    pub(super) in_order: bool,
    /// For `s3://` addresses.
    pub(super) access: Option<Access>,
}

/// A value of `size` bytes; the same one each time.
pub(super) fn value(size: usize) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(size as u64);
    (0..size).map(|_| rng.random_range(b'a'..=b'z')).collect()
}

/// What came back.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) elapsed: Duration,
    /// Microseconds, one value per operation that succeeded.
    pub(super) latency: Histogram<u64>,
    /// Operations that failed.
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
        let peer = Peer::Etcd(Etcd::connect(address).await?);
        return drive_peer(load, peer, rng, shared, began, outcome).await;
    }
    if let Some(address) = address.strip_prefix("s3://") {
        let access = load
            .access
            .as_ref()
            .ok_or("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set for s3:// servers")?;
        let peer = Peer::S3(S3::connect(address, access, load.value.clone()).await?);
        return drive_peer(load, peer, rng, shared, began, outcome).await;
    }
    let mut server = Server::connect(address, load.password.as_deref()).await?;
    let mut output = BytesMut::with_capacity(16 << 10);
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
            write_operation(load, key, &mut rng, &mut output);
        }
        let sent = Instant::now();
        let each = replies_to(load.workload);
        let mut replies = server.call(&output, count, each).await?;
        while load.workload == Workload::WatchTransfer && replies.nils > 0 {
            replies = server.call(&output, count, each).await?;
        }
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.done.fetch_add(count, Ordering::Relaxed);
        let mut outcome = outcome.borrow_mut();
        let succeeded = count - replies.failed;
        outcome
            .latency
            .saturating_record_n(micros.max(1), succeeded);
        outcome.errors += replies.failed;
        if outcome.first_error.is_none() {
            outcome.first_error = replies.first_error;
        }
    }
    Ok(())
}

/// A server that does not speak RESP.
enum Peer {
    Etcd(Etcd),
    S3(S3),
}

impl Peer {
    async fn call(&mut self, load: &Load, key: String) -> Result<(), String> {
        match (self, load.workload) {
            (Self::Etcd(etcd), Workload::Set) => {
                etcd.put(key.into_bytes(), load.value.clone()).await
            }
            (Self::Etcd(etcd), Workload::Get) => etcd.get(key.into_bytes()).await,
            (Self::S3(s3), Workload::Set) => s3.put(&key).await,
            (Self::S3(s3), Workload::Get) => s3.get(&key).await,
            _ => Err("etcd and S3 are measured with set and get".into()),
        }
    }
}

/// As [`drive`], one call at a time.
async fn drive_peer(
    load: &Load,
    mut peer: Peer,
    mut rng: SmallRng,
    shared: &Shared,
    began: Instant,
    outcome: &RefCell<Outcome>,
) -> Result<(), String> {
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
        let name = format!("key:{key:012}");
        let sent = Instant::now();
        let called = tokio::time::timeout(STALLED, peer.call(load, name))
            .await
            .map_err(|_| format!("no reply for {} s", STALLED.as_secs()))?;
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.done.fetch_add(1, Ordering::Relaxed);
        let mut outcome = outcome.borrow_mut();
        match called {
            Ok(()) => outcome.latency.saturating_record(micros.max(1)),
            Err(error) => {
                outcome.errors += 1;
                outcome.first_error.get_or_insert(error);
            }
        }
    }
}

/// How many replies an operation is answered with.
fn replies_to(workload: Workload) -> u64 {
    match workload {
        Workload::Exec | Workload::ExecCross | Workload::Transfer => 4,
        Workload::WatchTransfer => 7,
        Workload::Set
        | Workload::Get
        | Workload::Mixed
        | Workload::Incr
        | Workload::Lpush
        | Workload::Zadd
        | Workload::Ping => 1,
    }
}

fn write_operation(load: &Load, key: u64, rng: &mut SmallRng, out: &mut BytesMut) {
    let value = &load.value[..];
    let name = &key_name(key)[..];
    match load.workload {
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
        Workload::Exec | Workload::ExecCross => {
            let first = format!("{{key:{key:012}}}:a");
            let second = if load.workload == Workload::Exec {
                format!("{{key:{key:012}}}:b")
            } else {
                in_the_other_half(&first, rng)
            };
            command(out, &[b"MULTI"]);
            command(out, &[b"SET", first.as_bytes(), value]);
            command(out, &[b"SET", second.as_bytes(), value]);
            command(out, &[b"EXEC"]);
        }
        Workload::Transfer | Workload::WatchTransfer => {
            let other = (key + rng.random_range(1..load.keys)) % load.keys;
            let (from, to) = (format!("account:{key}"), format!("account:{other}"));
            let (from, to) = (from.as_bytes(), to.as_bytes());
            if load.workload == Workload::WatchTransfer {
                command(out, &[b"WATCH", from, to]);
                command(out, &[b"GET", from]);
                command(out, &[b"GET", to]);
            }
            command(out, &[b"MULTI"]);
            command(out, &[b"DECRBY", from, b"1"]);
            command(out, &[b"INCRBY", to, b"1"]);
            command(out, &[b"EXEC"]);
        }
        Workload::Ping => command(out, &[b"PING"]),
    }
}

/// A key whose slot is in the other half of the slots than that of `key`: on another shard, since
/// shards begin with equal runs of slots.
fn in_the_other_half(key: &str, rng: &mut SmallRng) -> String {
    let half = |key: &str| keyspace::slot(key.as_bytes()) / (keyspace::SLOTS / 2);
    loop {
        let other = format!("key:{:012}:c", rng.random::<u32>());
        if half(&other) != half(key) {
            return other;
        }
    }
}

/// `key:` and twelve digits.
fn key_name(key: u64) -> Vec<u8> {
    const ZEROS: &[u8; 12] = b"000000000000";
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(key).as_bytes();
    let zeros = ZEROS.get(digits.len()..).unwrap_or_default();
    [b"key:", zeros, digits].concat()
}

fn command(out: &mut BytesMut, args: &[&[u8]]) {
    let length = |out: &mut BytesMut, kind: u8, length: usize| {
        out.put_u8(kind);
        out.put_slice(itoa::Buffer::new().format(length).as_bytes());
        out.put_slice(b"\r\n");
    };
    length(out, b'*', args.len());
    for arg in args {
        length(out, b'$', arg.len());
        out.put_slice(arg);
        out.put_slice(b"\r\n");
    }
}

/// A connection to a server that speaks RESP.
struct Server<'a> {
    address: &'a str,
    socket: TcpStream,
    input: BytesMut,
    /// Rings when a reply may be overdue. It is set again when it rings, not for each call.
    alarm: Pin<Box<Sleep>>,
}

impl<'a> Server<'a> {
    async fn connect(address: &'a str, password: Option<&str>) -> Result<Self, String> {
        let failed = |what: String| format!("{address}: {what}");
        let socket = TcpStream::connect(address)
            .await
            .map_err(|error| failed(format!("cannot connect: {error}")))?;
        socket
            .set_nodelay(true)
            .map_err(|error| failed(error.to_string()))?;
        let mut server = Self {
            address,
            socket,
            input: BytesMut::with_capacity(16 << 10),
            alarm: Box::pin(tokio::time::sleep(STALLED)),
        };
        if let Some(password) = password {
            let mut output = BytesMut::new();
            command(&mut output, &[b"AUTH", password.as_bytes()]);
            if let Some(error) = server.call(&output, 1, 1).await?.first_error {
                return Err(failed(error));
            }
        }
        Ok(server)
    }

    /// Sends `commands` and reads the replies of `operations`, `each` replies per operation.
    async fn call(
        &mut self,
        commands: &[u8],
        operations: u64,
        each: u64,
    ) -> Result<Replies, String> {
        let count = operations * each;
        let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", self.address);
        self.socket
            .write_all(commands)
            .await
            .map_err(|error| failed(&error))?;
        let (mut seen, mut replies) = (0, Replies::default());
        let mut last_failed = None;
        loop {
            while seen < count {
                let Some((reply, length)) = parse(&self.input) else {
                    break;
                };
                self.input.advance(length);
                let operation = seen / each;
                seen += 1;
                match reply {
                    Reply::Value => {}
                    Reply::Nil => replies.nils += 1,
                    Reply::Error(error) => {
                        if last_failed.replace(operation) != Some(operation) {
                            replies.failed += 1;
                        }
                        replies.first_error.get_or_insert(error);
                    }
                }
            }
            if seen == count {
                return Ok(replies);
            }
            let overdue = Instant::now() + STALLED;
            let read = loop {
                tokio::select! {
                    biased;
                    read = self.socket.read_buf(&mut self.input) => break read,
                    () = &mut self.alarm => {
                        if Instant::now() >= overdue {
                            return Err(failed(&format_args!("no reply for {} s", STALLED.as_secs())));
                        }
                        self.alarm.as_mut().reset(overdue.into());
                    }
                }
            };
            if read.map_err(|error| failed(&error))? == 0 {
                return Err(failed(&"the server closed the connection"));
            }
        }
    }
}

/// What a pipeline was answered with.
#[derive(Default)]
struct Replies {
    /// Operations with an error among their replies.
    failed: u64,
    first_error: Option<String>,
    /// Arrays that are nil: an EXEC that did not commit.
    nils: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Value,
    Nil,
    Error(String),
}

/// The RESP2 reply that `input` begins with, and its length, if it is there whole. An array with an
/// error in it counts as that error.
fn parse(input: &[u8]) -> Option<(Reply, usize)> {
    let end = memchr::memchr(b'\n', input)?.checked_sub(1)?;
    let (line, mut length) = (&input[..end], end + 2);
    let count = || -> Option<i64> { std::str::from_utf8(&line[1..]).ok()?.parse().ok() };
    let reply = match line.first() {
        Some(b'$') => {
            if let Ok(bytes) = usize::try_from(count()?) {
                length += bytes + 2;
            }
            (input.len() >= length).then_some(Reply::Value)?
        }
        Some(b'*') => match usize::try_from(count()?) {
            Ok(elements) => {
                let mut array = Reply::Value;
                for _ in 0..elements {
                    let (element, taken) = parse(&input[length..])?;
                    length += taken;
                    if let Reply::Error(_) = element {
                        array = element;
                    }
                }
                array
            }
            Err(_) => Reply::Nil,
        },
        Some(b'-') => Reply::Error(String::from_utf8_lossy(&line[1..]).into_owned()),
        _ => Reply::Value,
    };
    Some((reply, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_only_when_it_is_whole() {
        assert_eq!(parse(b"$5\r\nhel"), None);
        assert_eq!(parse(b"$5\r\nhello\r\n:1"), Some((Reply::Value, 11)));
        assert_eq!(parse(b"$-1\r\n+O"), Some((Reply::Value, 5)));
        assert_eq!(
            parse(b"-ERR no\r\n"),
            Some((Reply::Error("ERR no".into()), 9))
        );
        assert_eq!(parse(b"+O"), None);
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = BytesMut::new();
        command(&mut out, &[b"SET", &key_name(42), b"0123456789"]);
        let expected = "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000042\r\n$10\r\n0123456789\r\n";
        assert_eq!(out, expected);
        assert_eq!(key_name(u64::MAX), b"key:18446744073709551615");
    }

    #[test]
    fn an_exec_is_committed_nil_or_as_bad_as_its_worst_reply() {
        assert_eq!(parse(b"*2\r\n:1\r\n$1\r\n"), None);
        assert_eq!(parse(b"*2\r\n:1\r\n$1\r\nx\r\n"), Some((Reply::Value, 15)));
        assert_eq!(parse(b"*-1\r\n"), Some((Reply::Nil, 5)));
        assert_eq!(
            parse(b"*2\r\n-ERR no\r\n:1\r\n"),
            Some((Reply::Error("ERR no".into()), 17))
        );
    }

    #[test]
    fn keys_of_an_exec_over_two_shards_are_in_two_halves_of_the_slots() {
        let mut rng = SmallRng::seed_from_u64(1);
        for key in 0..100 {
            let key = format!("key:{key}");
            let other = in_the_other_half(&key, &mut rng);
            let half = |key: &str| keyspace::slot(key.as_bytes()) < keyspace::SLOTS / 2;
            assert_ne!(half(&key), half(&other));
        }
    }
}

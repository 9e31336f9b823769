//! Differential tests: the same random commands to this crate and to a real `redis-server`.
//!
//! A family of commands is a list of templates, such as `"SET {k} {v} EX {n}"`; what stands in
//! braces is drawn from small pools, so that commands meet each other's keys. Replies are compared
//! value by value, after each command the invariants of the rows are checked.

mod collections;
mod dice;
mod hashes;
mod oracle;
mod scripts;
mod shards;
mod strings_and_keys;

use std::time::Instant;

use bytes::Bytes;
use leadline_kv::testing::MemoryRows;
use leadline_kv::{Operation, Timestamp};

pub(crate) use dice::Dice;
pub(crate) use oracle::{Oracle, Value};

use crate::operation::RedisOperation;
use crate::reply::Resp;
use crate::rows::invariants;

/// This crate's commands over rows in memory: one shard, one connection.
pub(crate) struct Ours {
    pub(crate) rows: MemoryRows,
    pub(crate) resp: Resp,
    pub(crate) database: u8,
    now: Timestamp,
}

impl Ours {
    /// An empty store at `millis` since the epoch.
    pub(crate) fn at_millis(millis: u64) -> Self {
        Self {
            rows: MemoryRows::default(),
            resp: Resp::V2,
            database: 0,
            now: Timestamp::from_millis(millis),
        }
    }

    /// Moves the clock on to `millis`, never back.
    pub(crate) fn set_millis(&mut self, millis: u64) {
        self.now = self.now.max(Timestamp::from_millis(millis));
    }

    /// Runs one command; its stamp is above every stamp before.
    pub(crate) fn run(&mut self, args: &[Bytes]) -> Value {
        self.now = Timestamp(self.now.0 + 1);
        self.rows.set_now(self.now);
        let reply = match RedisOperation::from_args(args.to_vec(), self.database, self.resp) {
            Ok(operation) => operation.evaluate(&mut self.rows).unwrap(),
            Err(error) => Bytes::from(format!("-{error}\r\n")),
        };
        Value::parse_all(&reply)
    }

    /// Runs a command whose arguments have no spaces.
    pub(crate) fn call(&mut self, command: &str) -> Value {
        self.run(&words(command))
    }
}

/// `command` cut at spaces.
pub(crate) fn words(command: &str) -> Vec<Bytes> {
    command
        .split(' ')
        .map(|word| Bytes::copy_from_slice(word.as_bytes()))
        .collect()
}

/// How the replies to a command are to be alike.
enum Likeness {
    Exact,
    /// Up to how many digits a score is written with.
    Scores,
    /// Items in any order.
    AnyOrder,
    /// Pairs of items in any order, flat or not.
    PairsInAnyOrder,
    /// Numbers this far apart at most.
    Near(i64),
    /// Both null or both not.
    NullOrNot,
    /// The whole listing that a cursor leads through, in any order.
    Listing,
}

fn likeness(name: &[u8]) -> Likeness {
    match name {
        b"KEYS" | b"HKEYS" | b"HVALS" | b"SMEMBERS" | b"SINTER" | b"SUNION" | b"SDIFF"
        | b"SPOP" => Likeness::AnyOrder,
        b"HGETALL" => Likeness::PairsInAnyOrder,
        b"TTL" | b"EXPIRETIME" => Likeness::Near(2),
        b"PTTL" | b"PEXPIRETIME" => Likeness::Near(3000),
        b"RANDOMKEY" | b"HRANDFIELD" | b"SRANDMEMBER" | b"ZRANDMEMBER" => Likeness::NullOrNot,
        b"SCAN" | b"HSCAN" | b"SSCAN" | b"ZSCAN" => Likeness::Listing,
        [b'Z', ..] => Likeness::Scores,
        _ => Likeness::Exact,
    }
}

/// Runs `steps` random commands from `templates` on both sides, for several seeds.
///
/// # Panics
/// At the first difference, with what led to it.
pub(crate) fn same_as_redis(family: &str, templates: &[&str], steps: usize) {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    // A failure names its seed; to see it again, put that seed here alone.
    for seed in 1..=6 {
        let resp = if seed % 2 == 0 { Resp::V3 } else { Resp::V2 };
        oracle.reset(resp);
        let began = (Instant::now(), oracle.unix_millis());
        let mut ours = Ours::at_millis(began.1);
        ours.resp = resp;
        let mut dice = Dice::new(seed);
        let mut history: Vec<String> = Vec::new();
        for step in 0..steps {
            let args = dice.command(templates);
            history.push(shown(&args));
            ours.set_millis(began.1 + u64::try_from(began.0.elapsed().as_millis()).unwrap());
            let (expected, got) = match likeness(&args[0]) {
                Likeness::Listing => (
                    listing(&args, |args| oracle.run(args)),
                    listing(&args, |args| ours.run(args)),
                ),
                how => alike(&how, oracle.run(&args), ours.run(&args)),
            };
            assert_eq!(
                got,
                expected,
                "{family}: seed {seed}, step {step}, {resp:?} (left: ours, right: Redis)\n{}",
                history[history.len().saturating_sub(60)..].join("\n")
            );
            if step % 8 == 0 {
                invariants::check(&mut ours.rows);
            }
        }
        invariants::check(&mut ours.rows);
    }
}

fn alike(how: &Likeness, expected: Value, got: Value) -> (Value, Value) {
    // A command wrong in two ways may be refused for either, if one is the type of what it meets.
    if expected.is_error() && got.is_error() && (expected.is_wrong_type() || got.is_wrong_type()) {
        return (expected.clone(), expected);
    }
    match how {
        Likeness::Exact | Likeness::Listing => (expected, got),
        Likeness::Scores => (expected.shortened(), got.shortened()),
        Likeness::AnyOrder => (expected.sorted(1), got.sorted(1)),
        Likeness::PairsInAnyOrder => (expected.sorted(2), got.sorted(2)),
        Likeness::Near(distance) => match (expected.integer(), got.integer()) {
            (Some(a), Some(b)) if (a > 0) == (b > 0) && (a - b).abs() <= *distance => {
                (expected.clone(), expected)
            }
            _ => (expected, got),
        },
        Likeness::NullOrNot if expected.is_null() == got.is_null() => (expected.clone(), expected),
        Likeness::NullOrNot => (expected, got),
    }
}

/// Follows a cursor to its end. Redis may answer an item twice, so items are a set here.
fn listing(args: &[Bytes], mut run: impl FnMut(&[Bytes]) -> Value) -> Value {
    let mut args = args.to_vec();
    let cursor_at = usize::from(args[0].as_ref() != b"SCAN") + 1;
    let width = if matches!(args[0].as_ref(), b"HSCAN" | b"ZSCAN") {
        2
    } else {
        1
    };
    let mut items = Vec::new();
    for _ in 0..10_000 {
        let reply = run(&args);
        let Some((cursor, page)) = reply.clone().into_page() else {
            return reply;
        };
        items.extend(page.into_iter().map(Value::shortened));
        if cursor.as_ref() == b"0" {
            return Value::listed(items, width);
        }
        args[cursor_at] = cursor;
    }
    panic!("a cursor that never ends: {}", shown(&args));
}

fn shown(args: &[Bytes]) -> String {
    let words: Vec<_> = args
        .iter()
        .map(|arg| arg.escape_ascii().to_string())
        .collect();
    words.join(" ")
}

//! Listings of keys: SCAN, KEYS, RANDOMKEY, DBSIZE. They are not serializable over several shards,
//! and a key that came or went meanwhile may be in or out.

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::boxed;
use crate::glob;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec, Walk};

const CATEGORY: &str = "keyspace";

pub(super) const SPECS: &[Spec] = &[
    Spec::read(
        "SCAN",
        "scan",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::ScanCursor(1),
        Scan::parse,
    ),
    Spec::read(
        "KEYS",
        "keys",
        CATEGORY,
        Arity::Exactly(2),
        Keys::EveryShard,
        KeysLike::parse,
    )
    .walking(Walk {
        part: None,
        gather: all_keys,
    }),
    Spec::read(
        "RANDOMKEY",
        "randomkey",
        CATEGORY,
        Arity::Exactly(1),
        Keys::EveryShard,
        |_| boxed(RandomKey),
    )
    .walking(Walk {
        part: Some(RANDOM_KEY_PART),
        gather: choose,
    }),
    Spec::read(
        RANDOM_KEY_PART,
        "randomkey.part",
        CATEGORY,
        Arity::Exactly(1),
        Keys::EveryShard,
        |_| boxed(RandomKeyPart),
    )
    .internal(),
    Spec::read(
        "DBSIZE",
        "dbsize",
        CATEGORY,
        Arity::Exactly(1),
        Keys::EveryShard,
        |_| boxed(DbSize),
    )
    .walking(Walk {
        part: None,
        gather: sum,
    })
    .fast(),
];

const RANDOM_KEY_PART: &str = "RANDOMKEY.PART";

/// `MATCH pattern` and `COUNT n` of SCAN, HSCAN, SSCAN and ZSCAN.
#[derive(Debug)]
pub(super) struct ScanOptions {
    pattern: Option<Bytes>,
    pub(super) count: usize,
    /// SCAN only.
    kind: Option<Bytes>,
}

impl ScanOptions {
    /// Reads options to the end of `args`; `TYPE` only where `typed`.
    pub(super) fn parse(args: &mut Args<'_>, typed: bool) -> Result<Self, ReplyError> {
        let mut options = Self {
            pattern: None,
            count: 10,
            kind: None,
        };
        while !args.is_empty() {
            if args.len() < 2 {
                return Err(ReplyError::Syntax);
            }
            if args.take("COUNT") {
                let count = args.integer()?;
                if count < 1 {
                    return Err(ReplyError::Syntax);
                }
                options.count = usize::try_from(count).unwrap_or(usize::MAX);
            } else if args.take("MATCH") {
                options.pattern = Some(args.bytes()?).filter(|text| !glob::is_everything(text));
            } else if typed && args.take("TYPE") {
                options.kind = Some(args.bytes()?);
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        Ok(options)
    }

    pub(super) fn admits(&self, name: &[u8]) -> bool {
        self.pattern
            .as_ref()
            .is_none_or(|pattern| glob::matches(pattern, name))
    }
}

/// A cursor as a client sends it back.
pub(super) fn parse_cursor(args: &mut Args<'_>) -> Result<u64, ReplyError> {
    parse_integer(&args.bytes()?)
        .and_then(|cursor| u64::try_from(cursor).ok())
        .ok_or_else(|| ReplyError::err("invalid cursor"))
}

/// What SCAN and its kin answer.
pub(super) fn page(cursor: u64, items: Vec<Reply>) -> Reply {
    Reply::Array(vec![
        Reply::Bulk(Bytes::from(cursor.to_string())),
        Reply::Array(items),
    ])
}

/// `SCAN cursor [MATCH pattern] [COUNT n] [TYPE type]`.
#[derive(Debug)]
struct Scan {
    cursor: u64,
    options: ScanOptions,
}

impl Scan {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self {
            cursor: parse_cursor(args)?,
            options: ScanOptions::parse(args, true)?,
        })
    }
}

impl Command for Scan {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (cursor, found) = db.scan_keys(self.cursor, self.options.count)?;
        let keys = found
            .into_iter()
            .filter(|(key, kind)| {
                let wanted = self.options.kind.as_ref();
                wanted.is_none_or(|name| name.eq_ignore_ascii_case(kind.name().as_bytes()))
                    && self.options.admits(key)
            })
            .map(|(key, _)| Reply::Bulk(key));
        Ok(page(cursor, keys.collect()))
    }
}

/// `KEYS pattern`.
#[derive(Debug)]
struct KeysLike {
    pattern: Bytes,
}

impl KeysLike {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let pattern = args.bytes()?;
        boxed(Self { pattern })
    }
}

impl Command for KeysLike {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut keys = Vec::new();
        db.each_key(&mut |key, _| {
            if glob::matches(&self.pattern, &key) {
                keys.push(Reply::Bulk(key));
            }
            true
        })?;
        Ok(Reply::Array(keys))
    }
}

fn all_keys(replies: Vec<Reply>) -> Result<Reply, ReplyError> {
    let mut keys = Vec::new();
    for reply in replies {
        let Reply::Array(mut part) = reply else {
            return Err(super::damaged_part());
        };
        keys.append(&mut part);
    }
    Ok(Reply::Array(keys))
}

fn random_key(db: &mut Db<'_>) -> Result<Reply, ReplyError> {
    Ok(db.random_key()?.map_or(Reply::Null, Reply::Bulk))
}

/// `RANDOMKEY`, over all that is in sight.
#[derive(Debug)]
struct RandomKey;

impl Command for RandomKey {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        random_key(db)
    }
}

/// A shard's part of `RANDOMKEY`: how many keys it has, a random number and one of the keys.
#[derive(Debug)]
struct RandomKeyPart;

impl Command for RandomKeyPart {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let key = random_key(db)?;
        let count = i64::try_from(db.key_count()?).unwrap_or(i64::MAX);
        let draw = (db.rows().random() >> 1).cast_signed();
        Ok(Reply::Array(vec![
            Reply::Integer(count),
            Reply::Integer(draw),
            key,
        ]))
    }
}

/// The key of one shard; the chance of each is its share of the keys.
fn choose(replies: Vec<Reply>) -> Result<Reply, ReplyError> {
    let (mut shards, mut total, mut draw) = (Vec::new(), 0, 0);
    for reply in replies {
        let Reply::Array(part) = reply else {
            return Err(super::damaged_part());
        };
        let [Reply::Integer(count), Reply::Integer(drawn), key] = part.as_slice() else {
            return Err(super::damaged_part());
        };
        // Not a plain XOR: equal draws would cancel out.
        draw = u64::rotate_left(draw, 17).wrapping_add(drawn.unsigned_abs());
        // A shard whose keys have all expired has a count and no key.
        if *key != Reply::Null {
            let count = count.unsigned_abs();
            total += count;
            shards.push((count, key.clone()));
        }
    }
    let mut place = draw.checked_rem(total).unwrap_or(0);
    for (count, key) in shards {
        if place < count {
            return Ok(key);
        }
        place -= count;
    }
    Ok(Reply::Null)
}

/// `DBSIZE`: counts expired keys that are not yet deleted, as Redis does.
#[derive(Debug)]
struct DbSize;

impl Command for DbSize {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let count = db.key_count()?;
        Ok(Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX)))
    }
}

fn sum(replies: Vec<Reply>) -> Result<Reply, ReplyError> {
    replies
        .into_iter()
        .try_fold(0i64, |sum, reply| match reply {
            Reply::Integer(part) => Ok(sum.saturating_add(part)),
            _ => Err(super::damaged_part()),
        })
        .map(Reply::Integer)
}

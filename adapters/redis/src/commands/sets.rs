//! Set commands. A member is a row of its own, in hash order ([`Hashed`]).
//!
//! Source: <https://redis.io/docs/latest/commands/?group=set>, Redis 7.2.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::reply::{Reply, ReplyError};
use crate::rows::{Db, Hashed, Type};
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "set";

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "SADD",
        "sadd",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        Add::parse,
    )
    .fast(),
    Spec::write(
        "SREM",
        "srem",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        Remove::parse,
    )
    .fast()
    .frees(),
    Spec::read(
        "SCARD",
        "scard",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Card::parse,
    )
    .fast(),
    Spec::read(
        "SISMEMBER",
        "sismember",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        |args| IsMember::parse(args, Shape::One),
    )
    .fast(),
    Spec::read(
        "SMISMEMBER",
        "smismember",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| IsMember::parse(args, Shape::Many),
    )
    .fast(),
    Spec::read(
        "SMEMBERS",
        "smembers",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Members::parse,
    ),
    Spec::write(
        "SMOVE",
        "smove",
        CATEGORY,
        Arity::Exactly(4),
        TWO_KEYS,
        Move::parse,
    )
    .fast()
    .frees(),
    Spec::write(
        "SPOP",
        "spop",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        Pop::parse,
    )
    .fast()
    .frees(),
    Spec::read(
        "SRANDMEMBER",
        "srandmember",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        RandMember::parse,
    ),
    Spec::read(
        "SINTER",
        "sinter",
        CATEGORY,
        Arity::AtLeast(2),
        ALL_KEYS,
        |args| Combine::parse(args, Op::Inter),
    ),
    Spec::read(
        "SUNION",
        "sunion",
        CATEGORY,
        Arity::AtLeast(2),
        ALL_KEYS,
        |args| Combine::parse(args, Op::Union),
    ),
    Spec::read(
        "SDIFF",
        "sdiff",
        CATEGORY,
        Arity::AtLeast(2),
        ALL_KEYS,
        |args| Combine::parse(args, Op::Diff),
    ),
    Spec::read(
        "SINTERCARD",
        "sintercard",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::Counted(1),
        InterCard::parse,
    ),
    Spec::write(
        "SINTERSTORE",
        "sinterstore",
        CATEGORY,
        Arity::AtLeast(3),
        ALL_KEYS,
        |args| Store::parse(args, Op::Inter),
    ),
    Spec::write(
        "SUNIONSTORE",
        "sunionstore",
        CATEGORY,
        Arity::AtLeast(3),
        ALL_KEYS,
        |args| Store::parse(args, Op::Union),
    ),
    Spec::write(
        "SDIFFSTORE",
        "sdiffstore",
        CATEGORY,
        Arity::AtLeast(3),
        ALL_KEYS,
        |args| Store::parse(args, Op::Diff),
    ),
];

const TWO_KEYS: Keys = Keys::Range { first: 1, last: 2 };
const ALL_KEYS: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 0,
};

type Set = BTreeSet<Bytes>;

fn open<'k>(db: &mut Db<'_>, key: &'k [u8]) -> Result<Option<Hashed<'k>>, ReplyError> {
    Hashed::open(db, key, Type::Set)
}

fn members(db: &mut Db<'_>, key: &[u8]) -> Result<Set, ReplyError> {
    let Some(set) = open(db, key)? else {
        return Ok(Set::new());
    };
    Ok(set.all(db)?.into_iter().map(|(member, _)| member).collect())
}

fn count(number: u64) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

/// `SADD key member …`: how many are new.
#[derive(Debug)]
struct Add {
    key: Bytes,
    members: Vec<Bytes>,
}

impl Add {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            members: args.rest().to_vec(),
        }))
    }
}

impl Command for Add {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut set = Hashed::open_or_new(db, &self.key, Type::Set)?;
        let before = set.meta.count;
        for member in &self.members {
            set.put(db, member, Bytes::new())?;
        }
        let added = set.meta.count - before;
        if added > 0 {
            set.save(db)?;
        }
        Ok(count(added))
    }
}

/// `SREM key member …`: how many were there.
#[derive(Debug)]
struct Remove {
    key: Bytes,
    members: Vec<Bytes>,
}

impl Remove {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            members: args.rest().to_vec(),
        }))
    }
}

impl Command for Remove {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut set) = open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let before = set.meta.count;
        for member in &self.members {
            set.remove(db, member)?;
        }
        let removed = before - set.meta.count;
        if removed > 0 {
            set.save(db)?;
        }
        Ok(count(removed))
    }
}

/// `SCARD key`.
#[derive(Debug)]
struct Card {
    key: Bytes,
}

impl Card {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self { key: args.key()? }))
    }
}

impl Command for Card {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(count(open(db, &self.key)?.map_or(0, |set| set.meta.count)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    One,
    Many,
}

/// `SISMEMBER key member` and `SMISMEMBER key member …`.
#[derive(Debug)]
struct IsMember {
    key: Bytes,
    members: Vec<Bytes>,
    shape: Shape,
}

impl IsMember {
    fn parse(args: &mut Args<'_>, shape: Shape) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            members: args.rest().to_vec(),
            shape,
        }))
    }
}

impl Command for IsMember {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let set = open(db, &self.key)?;
        let mut answers = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let there = match &set {
                Some(set) => set.contains(db, member)?,
                None => false,
            };
            answers.push(Reply::Integer(i64::from(there)));
        }
        Ok(match self.shape {
            Shape::One => answers.pop().unwrap_or(Reply::Integer(0)),
            Shape::Many => Reply::Array(answers),
        })
    }
}

/// `SMEMBERS key`.
#[derive(Debug)]
struct Members {
    key: Bytes,
}

impl Members {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self { key: args.key()? }))
    }
}

impl Command for Members {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut members = Vec::new();
        if let Some(set) = open(db, &self.key)? {
            set.each(db, &mut |member, _| {
                members.push(Reply::Bulk(Bytes::copy_from_slice(member)));
                true
            })?;
        }
        Ok(Reply::Set(members))
    }
}

/// `SMOVE source destination member`.
#[derive(Debug)]
struct Move {
    source: Bytes,
    destination: Bytes,
    member: Bytes,
}

impl Move {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (source, destination) = (args.key()?, args.key()?);
        Ok(Box::new(Self {
            source,
            destination,
            member: args.bytes()?,
        }))
    }
}

impl Command for Move {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut source) = open(db, &self.source)? else {
            return Ok(Reply::Integer(0));
        };
        if self.source == self.destination {
            return Ok(Reply::Integer(i64::from(
                source.contains(db, &self.member)?,
            )));
        }
        let mut destination = Hashed::open_or_new(db, &self.destination, Type::Set)?;
        if source.remove(db, &self.member)?.is_none() {
            return Ok(Reply::Integer(0));
        }
        destination.put(db, &self.member, Bytes::new())?;
        source.save(db)?;
        destination.save(db)?;
        Ok(Reply::Integer(1))
    }
}

/// `SPOP key [count]`.
#[derive(Debug)]
struct Pop {
    key: Bytes,
    count: Option<u64>,
}

impl Pop {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let count = match args.is_empty() {
            true => None,
            false => Some(args.positive()?),
        };
        args.end()?;
        Ok(Box::new(Self { key, count }))
    }
}

impl Command for Pop {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut set) = open(db, &self.key)? else {
            return Ok(if self.count.is_some() {
                Reply::Set(Vec::new())
            } else {
                Reply::Null
            });
        };
        let Some(wanted) = self.count else {
            let Some((member, _)) = set.draw(db)? else {
                return Ok(Reply::Null);
            };
            set.remove(db, &member)?;
            set.save(db)?;
            return Ok(Reply::Bulk(member));
        };
        if wanted == 0 {
            return Ok(Reply::Set(Vec::new()));
        }
        let drawn = set.draw_distinct(db, wanted)?;
        for (member, _) in &drawn {
            set.remove(db, member)?;
        }
        set.save(db)?;
        Ok(Reply::Set(
            drawn
                .into_iter()
                .map(|(member, _)| Reply::Bulk(member))
                .collect(),
        ))
    }
}

/// `SRANDMEMBER key [count]`: a negative count may repeat members.
#[derive(Debug)]
struct RandMember {
    key: Bytes,
    count: Option<i64>,
}

/// A negative count beyond this is refused, as in Redis.
const MOST_REPEATED: i64 = i64::MAX / 2;

impl RandMember {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let count = match args.is_empty() {
            true => None,
            false => Some(args.integer()?),
        };
        args.end()?;
        if count.is_some_and(|count| !(-MOST_REPEATED..=MOST_REPEATED).contains(&count)) {
            return Err(ReplyError::err("value is out of range"));
        }
        Ok(Box::new(Self { key, count }))
    }
}

impl Command for RandMember {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let set = open(db, &self.key)?;
        let Some(wanted) = self.count else {
            return match set {
                Some(set) => Ok(set
                    .draw(db)?
                    .map_or(Reply::Null, |(member, _)| Reply::Bulk(member))),
                None => Ok(Reply::Null),
            };
        };
        let Some(set) = set else {
            return Ok(Reply::Array(Vec::new()));
        };
        let drawn = if wanted < 0 {
            repeated(wanted.unsigned_abs(), || set.draw(db))?
        } else {
            set.draw_distinct(db, wanted.unsigned_abs())?
        };
        Ok(Reply::bulks(drawn.into_iter().map(|(member, _)| member)))
    }
}

/// The most elements one command draws with repetition: what one reply can reasonably hold.
pub(super) const MOST_DRAWS: u64 = 1 << 22;

/// `count` draws, each from the whole.
pub(super) fn repeated<T>(
    count: u64,
    mut draw: impl FnMut() -> Result<Option<T>, ReplyError>,
) -> Result<Vec<T>, ReplyError> {
    if count > MOST_DRAWS {
        return Err(ReplyError::err(format!(
            "value is out of range: at most {MOST_DRAWS} draws"
        )));
    }
    let mut drawn = Vec::new();
    for _ in 0..count {
        drawn.extend(draw()?);
    }
    Ok(drawn)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Inter,
    Union,
    Diff,
}

/// The result of `op` over the sets at `keys`.
fn combine(db: &mut Db<'_>, op: Op, keys: &[Bytes]) -> Result<Set, ReplyError> {
    let mut sets = keys.iter().map(|key| members(db, key));
    let first = sets.next().transpose()?.unwrap_or_default();
    sets.try_fold(first, |mut result, set| {
        let set = set?;
        match op {
            Op::Inter => result.retain(|member| set.contains(member)),
            Op::Union => result.extend(set),
            Op::Diff => result.retain(|member| !set.contains(member)),
        }
        Ok(result)
    })
}

/// `SINTER | SUNION | SDIFF key …`.
#[derive(Debug)]
struct Combine {
    op: Op,
    keys: Vec<Bytes>,
}

impl Combine {
    fn parse(args: &mut Args<'_>, op: Op) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            op,
            keys: args.rest().to_vec(),
        }))
    }
}

impl Command for Combine {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let members = combine(db, self.op, &self.keys)?;
        Ok(Reply::Set(members.into_iter().map(Reply::Bulk).collect()))
    }
}

/// `SINTERCARD numkeys key … [LIMIT limit]`.
#[derive(Debug)]
struct InterCard {
    keys: Vec<Bytes>,
    limit: u64,
}

impl InterCard {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (keys, limit) = parse_card(args)?;
        Ok(Box::new(Self { keys, limit }))
    }
}

/// The arguments of `SINTERCARD` and `ZINTERCARD`: keys, and a limit that is 0 for none.
pub(super) fn parse_card(args: &mut Args<'_>) -> Result<(Vec<Bytes>, u64), ReplyError> {
    let numkeys = parse_integer(&args.bytes()?)
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| *count > 0)
        .ok_or_else(|| ReplyError::err("numkeys should be greater than 0"))?;
    if numkeys > args.len() {
        return Err(ReplyError::err(
            "Number of keys can't be greater than number of args",
        ));
    }
    let keys = (0..numkeys).map(|_| args.key()).collect::<Result<_, _>>()?;
    let mut limit = 0;
    while !args.is_empty() {
        if !args.take("LIMIT") {
            return Err(ReplyError::Syntax);
        }
        limit = args
            .unsigned()
            .map_err(|_| ReplyError::err("LIMIT can't be negative"))?;
    }
    Ok((keys, limit))
}

impl Command for InterCard {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let found = combine(db, Op::Inter, &self.keys)?.len() as u64;
        Ok(count(if self.limit == 0 {
            found
        } else {
            found.min(self.limit)
        }))
    }
}

/// `SINTERSTORE | SUNIONSTORE | SDIFFSTORE destination key …`: the size of what was stored.
#[derive(Debug)]
struct Store {
    op: Op,
    destination: Bytes,
    keys: Vec<Bytes>,
}

impl Store {
    fn parse(args: &mut Args<'_>, op: Op) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            op,
            destination: args.key()?,
            keys: args.rest().to_vec(),
        }))
    }
}

impl Command for Store {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let members = combine(db, self.op, &self.keys)?;
        db.remove(&self.destination)?;
        let mut set = Hashed::replacing(db, &self.destination, Type::Set);
        for member in &members {
            set.put(db, member, Bytes::new())?;
        }
        let stored = set.meta.count;
        if stored > 0 {
            set.save(db)?;
        }
        Ok(count(stored))
    }
}

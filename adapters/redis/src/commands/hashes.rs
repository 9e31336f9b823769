//! Hash commands: fields and their values, each a row of its own.

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::{boxed, counters};
use crate::long_double::LongDouble;
use crate::reply::{Reply, ReplyError, decimal};
use crate::rows::{Db, Hashed, Type};
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "hash";

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "HSET",
        "hset",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::At(1),
        |args| HSet::parse(args, "hset", Answer::Created),
    )
    .fast(),
    Spec::write(
        "HMSET",
        "hmset",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::At(1),
        |args| HSet::parse(args, "hmset", Answer::Ok),
    )
    .fast(),
    Spec::write(
        "HSETNX",
        "hsetnx",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        HSetNx::parse,
    )
    .fast(),
    Spec::read(
        "HGET",
        "hget",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        HGet::parse,
    )
    .fast(),
    Spec::read(
        "HMGET",
        "hmget",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        HMGet::parse,
    )
    .fast(),
    Spec::read(
        "HGETALL",
        "hgetall",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        |args| HGetAll::parse(args, Part::Both),
    ),
    Spec::read(
        "HKEYS",
        "hkeys",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        |args| HGetAll::parse(args, Part::Field),
    ),
    Spec::read(
        "HVALS",
        "hvals",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        |args| HGetAll::parse(args, Part::Value),
    ),
    Spec::write(
        "HDEL",
        "hdel",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        HDel::parse,
    )
    .fast()
    .frees(),
    Spec::read(
        "HEXISTS",
        "hexists",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        HExists::parse,
    )
    .fast(),
    Spec::read(
        "HLEN",
        "hlen",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        HLen::parse,
    )
    .fast(),
    Spec::read(
        "HSTRLEN",
        "hstrlen",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        HStrLen::parse,
    )
    .fast(),
    Spec::write(
        "HINCRBY",
        "hincrby",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        HIncrBy::parse,
    )
    .fast(),
    Spec::write(
        "HINCRBYFLOAT",
        "hincrbyfloat",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        HIncrByFloat::parse,
    )
    .fast(),
    Spec::read(
        "HRANDFIELD",
        "hrandfield",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        HRandField::parse,
    ),
];

/// Fields that one HRANDFIELD with a negative count may answer: they need not exist that often.
const MOST_REPEATED: u64 = 1 << 20;

/// What HSET answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// How many fields are new.
    Created,
    Ok,
}

/// `HSET key field value …`, and HMSET, which answers OK.
#[derive(Debug)]
struct HSet {
    key: Bytes,
    pairs: Vec<(Bytes, Bytes)>,
    answer: Answer,
}

impl HSet {
    fn parse(
        args: &mut Args<'_>,
        name: &'static str,
        answer: Answer,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let (pairs, odd) = args.rest().as_chunks();
        if !odd.is_empty() {
            return Err(ReplyError::Arity(name.into()));
        }
        let pairs = pairs
            .iter()
            .map(|[field, value]| (field.clone(), value.clone()))
            .collect();
        boxed(Self { key, pairs, answer })
    }
}

impl Command for HSet {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut hash = Hashed::open_or_new(db, &self.key, Type::Hash)?;
        let mut created = 0;
        for (field, value) in &self.pairs {
            created += usize::from(hash.put(db, field, value.clone())?.is_none());
        }
        hash.save(db)?;
        Ok(match self.answer {
            Answer::Created => Reply::count(created),
            Answer::Ok => Reply::OK,
        })
    }
}

/// `HSETNX key field value`: writes if there is no such field; answers 1 or 0.
#[derive(Debug)]
struct HSetNx {
    key: Bytes,
    field: Bytes,
    value: Bytes,
}

impl HSetNx {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field, value) = (args.key()?, args.bytes()?, args.bytes()?);
        boxed(Self { key, field, value })
    }
}

impl Command for HSetNx {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut hash = Hashed::open_or_new(db, &self.key, Type::Hash)?;
        if hash.contains(db, &self.field)? {
            return Ok(Reply::Integer(0));
        }
        hash.put(db, &self.field, self.value.clone())?;
        hash.save(db)?;
        Ok(Reply::Integer(1))
    }
}

/// The value of a field of the hash at `key`.
fn field_value(db: &mut Db<'_>, key: &[u8], field: &[u8]) -> Result<Option<Bytes>, ReplyError> {
    match Hashed::open(db, key, Type::Hash)? {
        None => Ok(None),
        Some(hash) => hash.get(db, field),
    }
}

/// `HGET key field`.
#[derive(Debug)]
struct HGet {
    key: Bytes,
    field: Bytes,
}

impl HGet {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field) = (args.key()?, args.bytes()?);
        boxed(Self { key, field })
    }
}

impl Command for HGet {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(field_value(db, &self.key, &self.field)?.map_or(Reply::Null, Reply::Bulk))
    }
}

/// `HMGET key field …`: each value, null where there is none.
#[derive(Debug)]
struct HMGet {
    key: Bytes,
    fields: Vec<Bytes>,
}

impl HMGet {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, fields) = (args.key()?, args.rest().to_vec());
        boxed(Self { key, fields })
    }
}

impl Command for HMGet {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(hash) = Hashed::open(db, &self.key, Type::Hash)? else {
            return Ok(Reply::Array(vec![Reply::Null; self.fields.len()]));
        };
        let values = self
            .fields
            .iter()
            .map(|field| Ok(hash.get(db, field)?.map_or(Reply::Null, Reply::Bulk)));
        Ok(Reply::Array(values.collect::<Result<_, ReplyError>>()?))
    }
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Field,
    Value,
    Both,
}

/// `HGETALL key`, `HKEYS key`, `HVALS key`.
#[derive(Debug)]
struct HGetAll {
    key: Bytes,
    part: Part,
}

impl HGetAll {
    fn parse(args: &mut Args<'_>, part: Part) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        boxed(Self { key, part })
    }
}

impl Command for HGetAll {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (mut items, mut pairs) = (Vec::new(), Vec::new());
        if let Some(hash) = Hashed::open(db, &self.key, Type::Hash)? {
            hash.each(db, &mut |field, value| {
                let field = || Reply::Bulk(Bytes::copy_from_slice(field));
                let value = || Reply::Bulk(value.clone());
                match self.part {
                    Part::Field => items.push(field()),
                    Part::Value => items.push(value()),
                    Part::Both => pairs.push((field(), value())),
                }
                true
            })?;
        }
        Ok(match self.part {
            Part::Both => Reply::Map(pairs),
            Part::Field | Part::Value => Reply::Array(items),
        })
    }
}

/// `HDEL key field …`: answers how many there were; the last field takes the key with it.
#[derive(Debug)]
struct HDel {
    key: Bytes,
    fields: Vec<Bytes>,
}

impl HDel {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, fields) = (args.key()?, args.rest().to_vec());
        boxed(Self { key, fields })
    }
}

impl Command for HDel {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut hash) = Hashed::open(db, &self.key, Type::Hash)? else {
            return Ok(Reply::Integer(0));
        };
        let mut deleted = 0;
        for field in &self.fields {
            deleted += usize::from(hash.remove(db, field)?.is_some());
        }
        if deleted > 0 {
            hash.save(db)?;
        }
        Ok(Reply::count(deleted))
    }
}

/// `HEXISTS key field`.
#[derive(Debug)]
struct HExists {
    key: Bytes,
    field: Bytes,
}

impl HExists {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field) = (args.key()?, args.bytes()?);
        boxed(Self { key, field })
    }
}

impl Command for HExists {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let there = field_value(db, &self.key, &self.field)?.is_some();
        Ok(Reply::Integer(i64::from(there)))
    }
}

/// `HLEN key`: how many fields.
#[derive(Debug)]
struct HLen {
    key: Bytes,
}

impl HLen {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for HLen {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let count = db
            .collection(&self.key, Type::Hash)?
            .map_or(0, |(hash, _)| hash.count);
        Ok(Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX)))
    }
}

/// `HSTRLEN key field`: bytes of the value, 0 if there is none.
#[derive(Debug)]
struct HStrLen {
    key: Bytes,
    field: Bytes,
}

impl HStrLen {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field) = (args.key()?, args.bytes()?);
        boxed(Self { key, field })
    }
}

impl Command for HStrLen {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let value = field_value(db, &self.key, &self.field)?;
        Ok(Reply::count(value.map_or(0, |value| value.len())))
    }
}

/// `HINCRBY key field increment`: an absent field counts as 0; replies with the sum.
#[derive(Debug)]
struct HIncrBy {
    key: Bytes,
    field: Bytes,
    increment: i64,
}

impl HIncrBy {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field, increment) = (args.key()?, args.bytes()?, args.integer()?);
        boxed(Self {
            key,
            field,
            increment,
        })
    }
}

impl Command for HIncrBy {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut hash = Hashed::open_or_new(db, &self.key, Type::Hash)?;
        let number = match hash.get(db, &self.field)? {
            None => 0,
            Some(value) => parse_integer(&value)
                .ok_or_else(|| ReplyError::err("hash value is not an integer"))?,
        };
        let sum = number
            .checked_add(self.increment)
            .ok_or(ReplyError::Overflow)?;
        hash.put(db, &self.field, decimal(sum))?;
        hash.save(db)?;
        Ok(Reply::Integer(sum))
    }
}

/// `HINCRBYFLOAT key field increment`: replies with the sum as text.
#[derive(Debug)]
struct HIncrByFloat {
    key: Bytes,
    field: Bytes,
    increment: LongDouble,
}

impl HIncrByFloat {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, field, increment) = (args.key()?, args.bytes()?, args.bytes()?);
        boxed(Self {
            key,
            field,
            increment: counters::increment(&increment)?,
        })
    }
}

impl Command for HIncrByFloat {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut hash = Hashed::open_or_new(db, &self.key, Type::Hash)?;
        let old = hash.get(db, &self.field)?;
        let number = LongDouble::parse(old.as_deref().unwrap_or(b"0"))
            .ok_or_else(|| ReplyError::err("hash value is not a float"))?;
        let sum = Bytes::from(counters::add(number, self.increment.into())?);
        hash.put(db, &self.field, sum.clone())?;
        hash.save(db)?;
        Ok(Reply::Bulk(sum))
    }
}

/// `HRANDFIELD key [count [WITHVALUES]]`: a negative count may name a field several times.
#[derive(Debug)]
struct HRandField {
    key: Bytes,
    count: Option<i64>,
    with_values: bool,
}

impl HRandField {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut random = Self {
            key: args.key()?,
            count: None,
            with_values: false,
        };
        if !args.is_empty() {
            let count = args.integer()?;
            if count == i64::MIN {
                return Err(ReplyError::err(
                    "value is out of range, value must between -9223372036854775807 and \
                     9223372036854775807",
                ));
            }
            random.count = Some(count);
        }
        if !args.is_empty() {
            if !args.take("WITHVALUES") {
                return Err(ReplyError::Syntax);
            }
            random.with_values = true;
            args.end()?;
        }
        if random.with_values && random.count.is_some_and(|count| count < -i64::MAX / 2) {
            return Err(ReplyError::err("value is out of range"));
        }
        boxed(random)
    }
}

impl Command for HRandField {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let hash = Hashed::open(db, &self.key, Type::Hash)?;
        let Some(count) = self.count else {
            let drawn = match hash {
                None => None,
                Some(hash) => hash.draw(db)?,
            };
            return Ok(drawn.map_or(Reply::Null, |(field, _)| Reply::Bulk(field)));
        };
        let wanted = count.unsigned_abs();
        let drawn = match hash {
            None => Vec::new(),
            Some(hash) if count >= 0 => hash.draw_distinct(db, wanted)?,
            Some(_) if wanted > MOST_REPEATED => {
                return Err(ReplyError::err("value is out of range"));
            }
            Some(hash) => hash.draw_repeated(db, wanted)?,
        };
        Ok(if self.with_values {
            let pairs = drawn.into_iter();
            Reply::Pairs(
                pairs
                    .map(|(field, value)| (Reply::Bulk(field), Reply::Bulk(value)))
                    .collect(),
            )
        } else {
            Reply::bulks(drawn.into_iter().map(|(field, _)| field))
        })
    }
}

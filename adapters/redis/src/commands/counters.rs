//! Strings as numbers: INCR and its kin.

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::boxed;
use crate::long_double::{LongDouble, Parsed};
use crate::reply::{Reply, ReplyError, decimal};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "string";

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "INCR",
        "incr",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        |args| IncrBy::one(args, 1),
    )
    .fast(),
    Spec::write(
        "DECR",
        "decr",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        |args| IncrBy::one(args, -1),
    )
    .fast(),
    Spec::write(
        "INCRBY",
        "incrby",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        IncrBy::parse,
    )
    .fast(),
    Spec::write(
        "DECRBY",
        "decrby",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        IncrBy::parse_decrby,
    )
    .fast(),
    Spec::write(
        "INCRBYFLOAT",
        "incrbyfloat",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        IncrByFloat::parse,
    )
    .fast(),
];

/// `INCRBY key increment` and its kin: adds to the signed 64-bit integer at `key`; an absent key
/// counts as 0. Replies with the sum.
#[derive(Debug)]
struct IncrBy {
    key: Bytes,
    increment: i64,
}

impl IncrBy {
    fn one(args: &mut Args<'_>, increment: i64) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        boxed(Self { key, increment })
    }

    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, increment) = (args.key()?, args.integer()?);
        boxed(Self { key, increment })
    }

    fn parse_decrby(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, decrement) = (args.key()?, args.integer()?);
        let increment = decrement
            .checked_neg()
            .ok_or_else(|| ReplyError::err("decrement would overflow"))?;
        boxed(Self { key, increment })
    }
}

impl Command for IncrBy {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (number, expires_at) = match db.string_and_expiry(&self.key)? {
            None => (0, None),
            Some((value, expires_at)) => (
                parse_integer(&value).ok_or(ReplyError::NotInteger)?,
                expires_at,
            ),
        };
        let sum = number
            .checked_add(self.increment)
            .ok_or(ReplyError::Overflow)?;
        db.set_string(&self.key, decimal(sum), expires_at)?;
        Ok(Reply::Integer(sum))
    }
}

/// `INCRBYFLOAT key increment`: adds to the number at `key`; replies with the sum as text.
#[derive(Debug)]
struct IncrByFloat {
    key: Bytes,
    increment: Bytes,
}

impl IncrByFloat {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, increment) = (args.key()?, args.bytes()?);
        boxed(Self { key, increment })
    }
}

impl Command for IncrByFloat {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let old = db.string_and_expiry(&self.key)?;
        let (text, expires_at) = old.unwrap_or_else(|| (Bytes::from_static(b"0"), None));
        let number = LongDouble::parse(&text).ok_or(ReplyError::NotFloat)?;
        let increment = LongDouble::parse(&self.increment).ok_or(ReplyError::NotFloat)?;
        let sum = Bytes::from(add(number, increment)?);
        db.set_string(&self.key, sum.clone(), expires_at)?;
        Ok(Reply::Bulk(sum))
    }
}

/// An increment of HINCRBYFLOAT, which refuses infinities where INCRBYFLOAT refuses the sum.
pub(super) fn increment(text: &[u8]) -> Result<LongDouble, ReplyError> {
    match LongDouble::parse(text) {
        Some(Parsed::Finite(number)) => Ok(number),
        Some(Parsed::Infinite) => Err(ReplyError::err("value is NaN or Infinity")),
        None => Err(ReplyError::NotFloat),
    }
}

/// The sum as Redis writes it.
pub(super) fn add(number: Parsed, increment: Parsed) -> Result<String, ReplyError> {
    let sum = match (number, increment) {
        (Parsed::Finite(number), Parsed::Finite(increment)) => number.add(increment),
        _ => None,
    };
    sum.map(LongDouble::format)
        .ok_or_else(|| ReplyError::err("increment would produce NaN or Infinity"))
}

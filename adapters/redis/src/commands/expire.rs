//! When keys expire: EXPIRE and its kin, TTL and its kin, PERSIST.

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "keyspace";

pub(super) const SPECS: &[Spec] = &[
    expire("EXPIRE", "expire", |args| {
        Expire::parse(args, "expire", Unit::Seconds, false)
    }),
    expire("PEXPIRE", "pexpire", |args| {
        Expire::parse(args, "pexpire", Unit::Millis, false)
    }),
    expire("EXPIREAT", "expireat", |args| {
        Expire::parse(args, "expireat", Unit::Seconds, true)
    }),
    expire("PEXPIREAT", "pexpireat", |args| {
        Expire::parse(args, "pexpireat", Unit::Millis, true)
    }),
    ttl("TTL", "ttl", |args| Ttl::parse(args, Unit::Seconds, false)),
    ttl("PTTL", "pttl", |args| Ttl::parse(args, Unit::Millis, false)),
    ttl("EXPIRETIME", "expiretime", |args| {
        Ttl::parse(args, Unit::Seconds, true)
    }),
    ttl("PEXPIRETIME", "pexpiretime", |args| {
        Ttl::parse(args, Unit::Millis, true)
    }),
    Spec::write(
        "PERSIST",
        "persist",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Persist::parse,
    )
    .fast()
    .frees(),
];

type Parse = fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>;

const fn expire(name: &'static str, lower: &'static str, parse: Parse) -> Spec {
    Spec::write(name, lower, CATEGORY, Arity::AtLeast(3), Keys::At(1), parse)
        .fast()
        .frees()
}

const fn ttl(name: &'static str, lower: &'static str, parse: Parse) -> Spec {
    Spec::read(name, lower, CATEGORY, Arity::Exactly(2), Keys::At(1), parse).fast()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Millis,
}

/// An expiry time as SET and GETEX take it; read as a number when the command runs, as Redis does.
#[derive(Debug)]
pub(super) struct Expiry {
    time: Bytes,
    unit: Unit,
    absolute: bool,
}

impl Expiry {
    pub(super) fn relative(time: Bytes, unit: Unit) -> Self {
        Self {
            time,
            unit,
            absolute: false,
        }
    }

    /// `EX s`, `PX ms`, `EXAT s` or `PXAT ms`, if the next argument is one of them.
    pub(super) fn parse(args: &mut Args<'_>) -> Result<Option<Self>, ReplyError> {
        let (unit, absolute) = match () {
            () if args.take("EX") => (Unit::Seconds, false),
            () if args.take("PX") => (Unit::Millis, false),
            () if args.take("EXAT") => (Unit::Seconds, true),
            () if args.take("PXAT") => (Unit::Millis, true),
            () => return Ok(None),
        };
        let time = args.bytes().map_err(|_| ReplyError::Syntax)?;
        Ok(Some(Self {
            time,
            unit,
            absolute,
        }))
    }

    /// Unix milliseconds; `command` is named if the time makes no sense.
    pub(super) fn at_ms(&self, command: &'static str, now_ms: u64) -> Result<u64, ReplyError> {
        let invalid = ReplyError::InvalidExpire(command);
        let time = parse_integer(&self.time).ok_or(ReplyError::NotInteger)?;
        if time <= 0 {
            return Err(invalid);
        }
        let at = unix_ms(time, self.unit, self.absolute, now_ms).ok_or(invalid)?;
        Ok(at.unsigned_abs())
    }
}

/// `None` on overflow of what Redis can hold.
fn unix_ms(time: i64, unit: Unit, absolute: bool, now_ms: u64) -> Option<i64> {
    let millis = match unit {
        Unit::Seconds => time.checked_mul(1000)?,
        Unit::Millis => time,
    };
    if absolute {
        Some(millis)
    } else {
        millis.checked_add(i64::try_from(now_ms).ok()?)
    }
}

/// `EXPIRE key seconds [NX|XX|GT|LT]` and its kin: answers 1 if the expiry was set.
#[derive(Debug)]
struct Expire {
    name: &'static str,
    key: Bytes,
    time: i64,
    unit: Unit,
    absolute: bool,
    /// Only if the key has no expiry.
    nx: bool,
    /// Only if it has one.
    xx: bool,
    /// Only to a later time; no expiry is later than any.
    gt: bool,
    /// Only to an earlier time.
    lt: bool,
}

impl Expire {
    fn parse(
        args: &mut Args<'_>,
        name: &'static str,
        unit: Unit,
        absolute: bool,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let (key, time) = (args.key()?, args.bytes()?);
        let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
        while let Some(option) = args.peek() {
            match () {
                () if args.take("NX") => nx = true,
                () if args.take("XX") => xx = true,
                () if args.take("GT") => gt = true,
                () if args.take("LT") => lt = true,
                () => {
                    return Err(ReplyError::err(format_args!(
                        "Unsupported option {}",
                        String::from_utf8_lossy(option)
                    )));
                }
            }
        }
        if nx && (xx || gt || lt) {
            return Err(ReplyError::err(
                "NX and XX, GT or LT options at the same time are not compatible",
            ));
        }
        if gt && lt {
            return Err(ReplyError::err(
                "GT and LT options at the same time are not compatible",
            ));
        }
        boxed(Self {
            name,
            key,
            time: parse_integer(&time).ok_or(ReplyError::NotInteger)?,
            unit,
            absolute,
            nx,
            xx,
            gt,
            lt,
        })
    }
}

impl Command for Expire {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let at = unix_ms(self.time, self.unit, self.absolute, db.now_ms())
            .ok_or(ReplyError::InvalidExpire(self.name))?;
        let Some(mut first) = db.lookup(&self.key)? else {
            return Ok(Reply::Integer(0));
        };
        // A negative time is in the past, as 0 is.
        let at = u64::try_from(at).unwrap_or(0);
        let refused = match first.expires_at {
            None => self.xx || self.gt,
            Some(old) => self.nx || (self.gt && at <= old) || (self.lt && at >= old),
        };
        if refused {
            return Ok(Reply::Integer(0));
        }
        if at <= db.now_ms() {
            db.remove(&self.key)?;
        } else {
            first.expires_at = Some(at);
            db.save(&self.key, first)?;
        }
        Ok(Reply::Integer(1))
    }
}

/// `TTL key` and its kin: -2 if there is no key, -1 if it does not expire.
#[derive(Debug)]
struct Ttl {
    key: Bytes,
    unit: Unit,
    absolute: bool,
}

impl Ttl {
    fn parse(
        args: &mut Args<'_>,
        unit: Unit,
        absolute: bool,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        boxed(Self {
            key,
            unit,
            absolute,
        })
    }
}

impl Command for Ttl {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(first) = db.lookup(&self.key)? else {
            return Ok(Reply::Integer(-2));
        };
        let Some(at) = first.expires_at else {
            return Ok(Reply::Integer(-1));
        };
        let millis = if self.absolute {
            at
        } else {
            at.saturating_sub(db.now_ms())
        };
        let time = match self.unit {
            Unit::Seconds => millis.saturating_add(500) / 1000,
            Unit::Millis => millis,
        };
        Ok(Reply::Integer(i64::try_from(time).unwrap_or(i64::MAX)))
    }
}

/// `PERSIST key`: answers 1 if the key had an expiry, which is gone now.
#[derive(Debug)]
struct Persist {
    key: Bytes,
}

impl Persist {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for Persist {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        match db.lookup(&self.key)? {
            Some(mut first) if first.expires_at.is_some() => {
                first.expires_at = None;
                db.save(&self.key, first)?;
                Ok(Reply::Integer(1))
            }
            _ => Ok(Reply::Integer(0)),
        }
    }
}

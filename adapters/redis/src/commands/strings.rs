//! String commands: one value or many, read, written and cut.

use bytes::{Bytes, BytesMut};

use crate::args::Args;
use crate::commands::boxed;
use crate::commands::expire::{Expiry, Unit};
use crate::reply::{Reply, ReplyError};
use crate::rows::{Db, First, Value};
use crate::spec::{Arity, Command, Keys, Spec};

const CATEGORY: &str = "string";
const PAIRS: Keys = Keys::Every {
    first: 1,
    step: 2,
    last_from_end: 0,
};
const ALL: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 0,
};

pub(super) const SPECS: &[Spec] = &[
    Spec::read(
        "GET",
        "get",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Get::parse,
    )
    .fast(),
    Spec::write(
        "SET",
        "set",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        Set::parse,
    ),
    Spec::write(
        "SETNX",
        "setnx",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        SetNx::parse,
    )
    .fast(),
    Spec::write(
        "SETEX",
        "setex",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        |args| Set::parse_expiring(args, "setex", Unit::Seconds),
    ),
    Spec::write(
        "PSETEX",
        "psetex",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        |args| Set::parse_expiring(args, "psetex", Unit::Millis),
    ),
    Spec::write(
        "GETSET",
        "getset",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        Set::parse_getset,
    )
    .fast(),
    Spec::write(
        "GETDEL",
        "getdel",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        GetDel::parse,
    )
    .fast()
    .frees(),
    Spec::write(
        "GETEX",
        "getex",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        GetEx::parse,
    )
    .fast()
    .frees(),
    Spec::write(
        "APPEND",
        "append",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        Append::parse,
    )
    .fast(),
    Spec::read(
        "STRLEN",
        "strlen",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        StrLen::parse,
    )
    .fast(),
    Spec::write(
        "SETRANGE",
        "setrange",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        SetRange::parse,
    ),
    Spec::read(
        "GETRANGE",
        "getrange",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        GetRange::parse,
    ),
    Spec::read(
        "SUBSTR",
        "substr",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        GetRange::parse,
    ),
    Spec::read(
        "MGET",
        "mget",
        CATEGORY,
        Arity::AtLeast(2),
        ALL,
        MGet::parse,
    )
    .fast(),
    Spec::write("MSET", "mset", CATEGORY, Arity::AtLeast(3), PAIRS, |args| {
        MSet::parse(args, "mset", false)
    }),
    Spec::write(
        "MSETNX",
        "msetnx",
        CATEGORY,
        Arity::AtLeast(3),
        PAIRS,
        |args| MSet::parse(args, "msetnx", true),
    ),
];

/// The largest string, as in Redis' default `proto-max-bulk-len`.
pub(crate) const MOST_BYTES: usize = 512 << 20;

/// # Errors
/// When a string of `length` bytes would be too large.
pub(super) fn check_length(length: u64) -> Result<(), ReplyError> {
    if length > MOST_BYTES as u64 {
        return Err(ReplyError::err(
            "string exceeds maximum allowed size (proto-max-bulk-len)",
        ));
    }
    Ok(())
}

/// `GET key`: the string at `key`, or null.
#[derive(Debug)]
struct Get {
    key: Bytes,
}

impl Get {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for Get {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(db.string(&self.key)?.map_or(Reply::Null, Reply::Bulk))
    }
}

/// When `SET` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Always,
    IfAbsent,
    IfPresent,
}

/// `SET key value [NX|XX] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]`, and SETEX, PSETEX and GETSET,
/// which are forms of it: writes a string over a value of any type.
#[derive(Debug)]
struct Set {
    name: &'static str,
    key: Bytes,
    value: Bytes,
    condition: Condition,
    expiry: Option<Expiry>,
    keep_expiry: bool,
    /// Answers the old value instead of OK.
    get: bool,
}

impl Set {
    fn plain(name: &'static str, key: Bytes, value: Bytes) -> Self {
        Self {
            name,
            key,
            value,
            condition: Condition::Always,
            expiry: None,
            keep_expiry: false,
            get: false,
        }
    }

    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut set = Self::plain("set", args.key()?, args.bytes()?);
        while !args.is_empty() {
            if set.condition != Condition::IfPresent && args.take("NX") {
                set.condition = Condition::IfAbsent;
            } else if set.condition != Condition::IfAbsent && args.take("XX") {
                set.condition = Condition::IfPresent;
            } else if args.take("GET") {
                set.get = true;
            } else if set.expiry.is_none() && args.take("KEEPTTL") {
                set.keep_expiry = true;
            } else if !set.keep_expiry && set.expiry.is_none() {
                set.expiry = Some(Expiry::parse(args)?.ok_or(ReplyError::Syntax)?);
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        boxed(set)
    }

    fn parse_expiring(
        args: &mut Args<'_>,
        name: &'static str,
        unit: Unit,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let (key, time, value) = (args.key()?, args.bytes()?, args.bytes()?);
        let mut set = Self::plain(name, key, value);
        set.expiry = Some(Expiry::relative(time, unit));
        boxed(set)
    }

    fn parse_getset(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut set = Self::plain("getset", args.key()?, args.bytes()?);
        set.get = true;
        boxed(set)
    }
}

impl Command for Set {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut expires_at = match &self.expiry {
            None => None,
            Some(expiry) => Some(expiry.at_ms(self.name, db.now_ms())?),
        };
        let mut reply = Reply::OK;
        // A plain SET need not know what was there: the row is read once, by the write.
        if self.get || self.keep_expiry || self.condition != Condition::Always {
            let old = db.lookup(&self.key)?;
            if self.get {
                reply = match &old {
                    None => Reply::Null,
                    Some(First {
                        value: Value::String(value),
                        ..
                    }) => Reply::Bulk(value.clone()),
                    Some(_) => return Err(ReplyError::WrongType),
                };
            }
            let writes = match self.condition {
                Condition::Always => true,
                Condition::IfAbsent => old.is_none(),
                Condition::IfPresent => old.is_some(),
            };
            if !writes {
                return Ok(if self.get { reply } else { Reply::Null });
            }
            if self.keep_expiry {
                expires_at = old.and_then(|first| first.expires_at);
            }
        }
        if expires_at.is_some_and(|at| at <= db.now_ms()) {
            // A time that has passed: written and expired at once.
            db.remove(&self.key)?;
        } else {
            db.set_string(&self.key, self.value.clone(), expires_at)?;
        }
        Ok(reply)
    }
}

/// `SETNX key value`: writes if there is no `key`; answers 1 or 0.
#[derive(Debug)]
struct SetNx {
    key: Bytes,
    value: Bytes,
}

impl SetNx {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, value) = (args.key()?, args.bytes()?);
        boxed(Self { key, value })
    }
}

impl Command for SetNx {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        if db.exists(&self.key)? {
            return Ok(Reply::Integer(0));
        }
        db.set_string(&self.key, self.value.clone(), None)?;
        Ok(Reply::Integer(1))
    }
}

/// `GETDEL key`: the string at `key`, which is deleted.
#[derive(Debug)]
struct GetDel {
    key: Bytes,
}

impl GetDel {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for GetDel {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(value) = db.string(&self.key)? else {
            return Ok(Reply::Null);
        };
        db.remove(&self.key)?;
        Ok(Reply::Bulk(value))
    }
}

/// `GETEX key [EX s|PX ms|EXAT s|PXAT ms|PERSIST]`: the string at `key`, whose expiry is changed.
#[derive(Debug)]
struct GetEx {
    key: Bytes,
    expiry: Option<Expiry>,
    persist: bool,
}

impl GetEx {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut get = Self {
            key: args.key()?,
            expiry: None,
            persist: false,
        };
        while !args.is_empty() {
            if get.expiry.is_none() && args.take("PERSIST") {
                get.persist = true;
            } else if get.expiry.is_none() && !get.persist {
                get.expiry = Some(Expiry::parse(args)?.ok_or(ReplyError::Syntax)?);
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        boxed(get)
    }
}

impl Command for GetEx {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some((value, old)) = db.string_and_expiry(&self.key)? else {
            return Ok(Reply::Null);
        };
        let new = match &self.expiry {
            Some(expiry) => Some(expiry.at_ms("getex", db.now_ms())?),
            None if self.persist => None,
            None => old,
        };
        if new.is_some_and(|at| at <= db.now_ms()) {
            db.remove(&self.key)?;
        } else if new != old {
            db.set_string(&self.key, value.clone(), new)?;
        }
        Ok(Reply::Bulk(value))
    }
}

/// `APPEND key value`: answers the new length.
#[derive(Debug)]
struct Append {
    key: Bytes,
    value: Bytes,
}

impl Append {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, value) = (args.key()?, args.bytes()?);
        boxed(Self { key, value })
    }
}

impl Command for Append {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (old, expires_at) = db.string_and_expiry(&self.key)?.unwrap_or_default();
        check_length(old.len() as u64 + self.value.len() as u64)?;
        let value = Bytes::from([old.as_ref(), self.value.as_ref()].concat());
        let length = value.len();
        db.set_string(&self.key, value, expires_at)?;
        Ok(Reply::count(length))
    }
}

/// `STRLEN key`: bytes of the string at `key`, 0 if there is none.
#[derive(Debug)]
struct StrLen {
    key: Bytes,
}

impl StrLen {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for StrLen {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(Reply::count(
            db.string(&self.key)?.map_or(0, |value| value.len()),
        ))
    }
}

/// `SETRANGE key offset value`: overwrites from `offset` on, zero bytes in between; answers the
/// new length.
#[derive(Debug)]
struct SetRange {
    key: Bytes,
    offset: u64,
    value: Bytes,
}

impl SetRange {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, offset, value) = (args.key()?, args.integer()?, args.bytes()?);
        let offset =
            u64::try_from(offset).map_err(|_| ReplyError::err("offset is out of range"))?;
        boxed(Self { key, offset, value })
    }
}

impl Command for SetRange {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (old, expires_at) = db.string_and_expiry(&self.key)?.unwrap_or_default();
        if self.value.is_empty() {
            return Ok(Reply::count(old.len()));
        }
        let end = self.offset.saturating_add(self.value.len() as u64);
        check_length(end)?;
        let (Ok(begin), Ok(end)) = (usize::try_from(self.offset), usize::try_from(end)) else {
            return Err(ReplyError::err("offset is out of range"));
        };
        let mut value = BytesMut::with_capacity(end.max(old.len()));
        value.extend_from_slice(&old);
        if value.len() < end {
            value.resize(end, 0);
        }
        value[begin..end].copy_from_slice(&self.value);
        let length = value.len();
        db.set_string(&self.key, value.freeze(), expires_at)?;
        Ok(Reply::count(length))
    }
}

/// `GETRANGE key start end`: both included, negative ones counted from the end.
#[derive(Debug)]
struct GetRange {
    key: Bytes,
    start: i64,
    end: i64,
}

impl GetRange {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, start, end) = (args.key()?, args.integer()?, args.integer()?);
        boxed(Self { key, start, end })
    }
}

impl Command for GetRange {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let value = db.string(&self.key)?.unwrap_or_default();
        Ok(Reply::Bulk(
            inclusive_range(self.start, self.end, value.len())
                .map_or_else(Bytes::new, |range| value.slice(range)),
        ))
    }
}

/// The part of `length` items that Redis' `start` and `end` name: both included, negative ones
/// counted from the end; `None` if that is nothing.
pub(super) fn inclusive_range(
    start: i64,
    end: i64,
    length: usize,
) -> Option<std::ops::Range<usize>> {
    if length == 0 || (start < 0 && end < 0 && start > end) {
        return None;
    }
    let size = i64::try_from(length).unwrap_or(i64::MAX);
    let from_start = |at: i64| if at < 0 { (size + at).max(0) } else { at };
    let (start, end) = (from_start(start), from_start(end).min(size - 1));
    if start > end {
        return None;
    }
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    Some(start..end + 1)
}

/// `MGET key …`: each string, null where there is none or a value of another type.
#[derive(Debug)]
struct MGet {
    keys: Vec<Bytes>,
}

impl MGet {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self {
            keys: args.rest().to_vec(),
        })
    }
}

impl Command for MGet {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let values = self.keys.iter().map(|key| {
            Ok(match db.lookup(key)? {
                Some(First {
                    value: Value::String(value),
                    ..
                }) => Reply::Bulk(value),
                _ => Reply::Null,
            })
        });
        Ok(Reply::Array(values.collect::<Result<_, ReplyError>>()?))
    }
}

/// `MSET key value …` and `MSETNX`, which writes all or, if one of the keys is there, none.
#[derive(Debug)]
struct MSet {
    pairs: Vec<(Bytes, Bytes)>,
    if_absent: bool,
}

impl MSet {
    fn parse(
        args: &mut Args<'_>,
        name: &'static str,
        if_absent: bool,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let (pairs, odd) = args.rest().as_chunks();
        if !odd.is_empty() {
            return Err(ReplyError::Arity(name.into()));
        }
        let pairs = pairs
            .iter()
            .map(|[key, value]| (key.clone(), value.clone()));
        boxed(Self {
            pairs: pairs.collect(),
            if_absent,
        })
    }
}

impl Command for MSet {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        if self.if_absent {
            for (key, _) in &self.pairs {
                if db.exists(key)? {
                    return Ok(Reply::Integer(0));
                }
            }
        }
        for (key, value) in &self.pairs {
            db.set_string(key, value.clone(), None)?;
        }
        Ok(if self.if_absent {
            Reply::Integer(1)
        } else {
            Reply::OK
        })
    }
}

//! Commands on keys of any type.

use bytes::Bytes;

use crate::args::{Args, parse_integer};
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::{DATABASES, Db, First, Type, Value};
use crate::spec::{Arity, Command, Keys, Spec, Walk};

const CATEGORY: &str = "keyspace";
const ALL: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 0,
};
const BOTH: Keys = Keys::Range { first: 1, last: 2 };
/// The key of an OBJECT subcommand; `OBJECT HELP` has none.
const AFTER_SUBCOMMAND: Keys = Keys::Every {
    first: 2,
    step: 1,
    last_from_end: 0,
};

pub(super) const SPECS: &[Spec] = &[
    Spec::write("DEL", "del", CATEGORY, Arity::AtLeast(2), ALL, Del::parse).frees(),
    Spec::write(
        "UNLINK",
        "unlink",
        CATEGORY,
        Arity::AtLeast(2),
        ALL,
        Del::parse,
    )
    .fast()
    .frees(),
    Spec::read(
        "EXISTS",
        "exists",
        CATEGORY,
        Arity::AtLeast(2),
        ALL,
        Exists::parse,
    )
    .fast(),
    Spec::read(
        "TOUCH",
        "touch",
        CATEGORY,
        Arity::AtLeast(2),
        ALL,
        Exists::parse,
    )
    .fast(),
    Spec::read(
        "TYPE",
        "type",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        TypeOf::parse,
    )
    .fast(),
    Spec::write(
        "RENAME",
        "rename",
        CATEGORY,
        Arity::Exactly(3),
        BOTH,
        |args| Rename::parse(args, false),
    )
    .frees(),
    Spec::write(
        "RENAMENX",
        "renamenx",
        CATEGORY,
        Arity::Exactly(3),
        BOTH,
        |args| Rename::parse(args, true),
    )
    .fast()
    .frees(),
    Spec::write(
        "COPY",
        "copy",
        CATEGORY,
        Arity::AtLeast(3),
        BOTH,
        Copy::parse,
    ),
    Spec::write(
        "MOVE",
        "move",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        Move::parse,
    )
    .fast()
    .frees(),
    Spec::read(
        "OBJECT",
        "object",
        CATEGORY,
        Arity::AtLeast(2),
        AFTER_SUBCOMMAND,
        Object::parse,
    ),
    Spec::write(
        "FLUSHDB",
        "flushdb",
        CATEGORY,
        Arity::AtLeast(1),
        Keys::EveryShard,
        |args| Flush::parse(args, false),
    )
    .walking(FLUSH)
    .frees(),
    Spec::write(
        "FLUSHALL",
        "flushall",
        CATEGORY,
        Arity::AtLeast(1),
        Keys::EveryShard,
        |args| Flush::parse(args, true),
    )
    .walking(FLUSH)
    .frees(),
];

/// `DEL key …` and `UNLINK`: answers how many there were. Both only drop the first rows, so both
/// cost the same whatever the size.
#[derive(Debug)]
struct Del {
    keys: Vec<Bytes>,
}

impl Del {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let keys = args.rest().to_vec();
        boxed(Self { keys })
    }
}

impl Command for Del {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut deleted = 0;
        for key in &self.keys {
            deleted += i64::from(db.remove(key)?);
        }
        Ok(Reply::Integer(deleted))
    }
}

/// `EXISTS key …` and `TOUCH`: how many are there, one named twice counted twice.
#[derive(Debug)]
struct Exists {
    keys: Vec<Bytes>,
}

impl Exists {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let keys = args.rest().to_vec();
        boxed(Self { keys })
    }
}

impl Command for Exists {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut there = 0;
        for key in &self.keys {
            there += i64::from(db.exists(key)?);
        }
        Ok(Reply::Integer(there))
    }
}

/// `TYPE key`.
#[derive(Debug)]
struct TypeOf {
    key: Bytes,
}

impl TypeOf {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self { key: args.key()? })
    }
}

impl Command for TypeOf {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let first = db.lookup(&self.key)?;
        Ok(Reply::Simple(
            first.map_or("none", |first| first.kind().name()),
        ))
    }
}

/// `RENAME key newkey`: over whatever is there; `RENAMENX`: only if nothing is.
#[derive(Debug)]
struct Rename {
    from: Bytes,
    to: Bytes,
    if_absent: bool,
}

impl Rename {
    fn parse(args: &mut Args<'_>, if_absent: bool) -> Result<Box<dyn Command>, ReplyError> {
        let (from, to) = (args.key()?, args.key()?);
        boxed(Self {
            from,
            to,
            if_absent,
        })
    }
}

impl Command for Rename {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let first = db.lookup(&self.from)?.ok_or(ReplyError::NoSuchKey)?;
        let taken = self.if_absent && db.exists(&self.to)?;
        if !taken && self.from != self.to {
            db.rename(&self.from, &self.to, first)?;
        }
        Ok(if self.if_absent {
            Reply::Integer(i64::from(!taken))
        } else {
            Reply::OK
        })
    }
}

fn database(args: &mut Args<'_>) -> Result<u8, ReplyError> {
    let number = args.integer()?;
    if i32::try_from(number).is_err() {
        return Err(ReplyError::err(
            "value is out of range, value must between -2147483648 and 2147483647",
        ));
    }
    u8::try_from(number)
        .ok()
        .filter(|number| *number < DATABASES)
        .ok_or_else(|| ReplyError::err("DB index is out of range"))
}

fn same_object() -> ReplyError {
    ReplyError::err("source and destination objects are the same")
}

/// `COPY source destination [DB n] [REPLACE]`: answers 1 if it copied.
#[derive(Debug)]
struct Copy {
    from: Bytes,
    to: Bytes,
    database: Option<u8>,
    replace: bool,
}

impl Copy {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut copy = Self {
            from: args.key()?,
            to: args.key()?,
            database: None,
            replace: false,
        };
        while !args.is_empty() {
            if args.take("REPLACE") {
                copy.replace = true;
            } else if args.len() > 1 && args.take("DB") {
                copy.database = Some(database(args)?);
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        boxed(copy)
    }
}

impl Command for Copy {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let number = self.database.unwrap_or(db.number());
        if number == db.number() && self.from == self.to {
            return Err(same_object());
        }
        let Some(first) = db.lookup(&self.from)? else {
            return Ok(Reply::Integer(0));
        };
        if !self.replace && db.other(number).exists(&self.to)? {
            return Ok(Reply::Integer(0));
        }
        db.copy(&self.from, number, &self.to, first)?;
        Ok(Reply::Integer(1))
    }
}

/// `MOVE key database`: answers 1 if it moved, 0 if there is no key or one of its name there.
#[derive(Debug)]
struct Move {
    key: Bytes,
    database: u8,
}

impl Move {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, database) = (args.key()?, database(args)?);
        boxed(Self { key, database })
    }
}

impl Command for Move {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        if self.database == db.number() {
            return Err(same_object());
        }
        let Some(first) = db.lookup(&self.key)? else {
            return Ok(Reply::Integer(0));
        };
        if db.other(self.database).exists(&self.key)? {
            return Ok(Reply::Integer(0));
        }
        db.copy(&self.key, self.database, &self.key, first)?;
        db.remove(&self.key)?;
        Ok(Reply::Integer(1))
    }
}

/// `OBJECT ENCODING|REFCOUNT|IDLETIME|FREQ key`, `OBJECT HELP`. Encodings are those that Redis
/// would use for a value of that size; none of them exists here.
#[derive(Debug)]
enum Object {
    Help,
    Encoding(Bytes),
    RefCount(Bytes),
    IdleTime(Bytes),
    Freq(Bytes),
}

const HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

impl Object {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let subcommand = args.bytes()?;
        let (name, of): (_, fn(Bytes) -> Self) = match &subcommand.to_ascii_lowercase()[..] {
            b"encoding" => ("encoding", Self::Encoding),
            b"refcount" => ("refcount", Self::RefCount),
            b"idletime" => ("idletime", Self::IdleTime),
            b"freq" => ("freq", Self::Freq),
            b"help" if args.is_empty() => return boxed(Self::Help),
            b"help" => return Err(ReplyError::Arity("object|help".into())),
            _ => {
                return Err(ReplyError::err(format_args!(
                    "unknown subcommand '{}'. Try OBJECT HELP.",
                    String::from_utf8_lossy(&subcommand)
                )));
            }
        };
        if args.len() != 1 {
            return Err(ReplyError::Arity(format!("object|{name}")));
        }
        boxed(of(args.key()?))
    }
}

impl Command for Object {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let key = match self {
            Self::Help => {
                return Ok(Reply::Array(
                    HELP.iter().map(|line| Reply::Simple(line)).collect(),
                ));
            }
            Self::Encoding(key) | Self::RefCount(key) | Self::IdleTime(key) | Self::Freq(key) => {
                key
            }
        };
        let Some(first) = db.lookup(key)? else {
            return Ok(Reply::Null);
        };
        match self {
            Self::Encoding(_) => Ok(Reply::Bulk(Bytes::from_static(
                encoding(db, key, &first)?.as_bytes(),
            ))),
            Self::Freq(_) => Err(ReplyError::err(
                "An LFU maxmemory policy is not selected, access frequency not tracked. Please \
                 note that when switching between policies at runtime LRU and LFU data will take \
                 some time to adjust.",
            )),
            Self::IdleTime(_) => Ok(Reply::Integer(0)),
            Self::RefCount(_) | Self::Help => Ok(Reply::Integer(1)),
        }
    }
}

/// Redis' limits for its compact encodings, as its default configuration has them.
const COMPACT_ENTRIES: u64 = 128;
const COMPACT_VALUE: usize = 64;
const INTSET_ENTRIES: u64 = 512;
const LISTPACK_BYTES: usize = 8192;

fn encoding(db: &mut Db<'_>, key: &[u8], first: &First) -> Result<&'static str, ReplyError> {
    let collection = match &first.value {
        Value::String(value) => {
            return Ok(match value.len() {
                1..=20 if parse_integer(value).is_some() => "int",
                ..=44 => "embstr",
                _ => "raw",
            });
        }
        Value::Collection(collection) => collection,
    };
    let (mut longest, mut bytes, mut integers) = (0, 0, true);
    let mut look = |element: &[u8], value: &Bytes| {
        longest = longest.max(element.len());
        // A sorted set's value is a score, which counts as a number.
        if matches!(collection.kind, Type::Hash | Type::List) {
            longest = longest.max(value.len());
        }
        bytes += value.len() + 11;
        integers &= parse_integer(element).is_some();
    };
    if collection.count <= INTSET_ENTRIES || collection.kind == Type::List {
        let most = usize::try_from(INTSET_ENTRIES).unwrap_or(usize::MAX) * 2;
        db.first_elements(key, first, most, &mut look)?;
    }
    let compact = collection.count <= COMPACT_ENTRIES && longest <= COMPACT_VALUE;
    Ok(match collection.kind {
        Type::Set if integers && collection.count <= INTSET_ENTRIES => "intset",
        Type::List if bytes <= LISTPACK_BYTES => "listpack",
        Type::List => "quicklist",
        _ if compact => "listpack",
        Type::SortedSet => "skiplist",
        Type::Hash | Type::Set | Type::String => "hashtable",
    })
}

/// `FLUSHDB [ASYNC|SYNC]`: every key of this database; `FLUSHALL`: of all of them. Each shard
/// flushes at its own moment. Both words mean the same: rows go as ranges, at once.
#[derive(Debug)]
struct Flush {
    all: bool,
}

const FLUSH: Walk = Walk {
    part: None,
    gather: |replies| {
        if replies.iter().all(|reply| *reply == Reply::OK) {
            Ok(Reply::OK)
        } else {
            Err(super::damaged_part())
        }
    },
};

impl Flush {
    fn parse(args: &mut Args<'_>, all: bool) -> Result<Box<dyn Command>, ReplyError> {
        if !args.is_empty() && !args.take("ASYNC") && !args.take("SYNC") {
            return Err(ReplyError::Syntax);
        }
        args.end()?;
        boxed(Self { all })
    }
}

impl Command for Flush {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        if self.all {
            db.flush_shard()?;
        } else {
            db.flush()?;
        }
        Ok(Reply::OK)
    }
}

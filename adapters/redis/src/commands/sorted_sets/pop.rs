//! Pops from either end, plain and blocking.

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::super::lists::parse_timeout;
use super::{CATEGORY, SortedSet, members_reply};
use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Attempt, Blocking, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "ZPOPMIN",
        "zpopmin",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        |args| Pop::parse(args, End::Min),
    )
    .fast()
    .frees(),
    Spec::write(
        "ZPOPMAX",
        "zpopmax",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        |args| Pop::parse(args, End::Max),
    )
    .fast()
    .frees(),
    Spec::write(
        "ZMPOP",
        "zmpop",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::Counted(1),
        |args| Ok(Box::new(MultiPop::parse(args)?)),
    )
    .frees(),
    Spec::blocking(
        "BZPOPMIN",
        "bzpopmin",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Min),
    ),
    Spec::blocking(
        "BZPOPMAX",
        "bzpopmax",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Max),
    ),
    Spec::blocking(
        "BZMPOP",
        "bzmpop",
        CATEGORY,
        Arity::AtLeast(5),
        Keys::Counted(2),
        blocking_multi_pop,
    ),
    Spec::write(
        ATTEMPT_POP,
        "leadline.bzpop",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        AttemptPop::parse,
    )
    .internal()
    .frees(),
    Spec::write(
        ATTEMPT_MULTI_POP,
        "leadline.bzmpop",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::Counted(1),
        |args| {
            Ok(Box::new(MultiPop {
                nothing: Reply::Block,
                ..MultiPop::parse(args)?
            }))
        },
    )
    .internal()
    .frees(),
];

const KEYS_THEN_TIMEOUT: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 1,
};

const ATTEMPT_POP: &str = "LEADLINE.BZPOP";
const ATTEMPT_MULTI_POP: &str = "LEADLINE.BZMPOP";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Min,
    Max,
}

impl End {
    fn parse(args: &mut Args<'_>) -> Result<Self, ReplyError> {
        if args.take("MIN") {
            Ok(Self::Min)
        } else if args.take("MAX") {
            Ok(Self::Max)
        } else {
            Err(ReplyError::Syntax)
        }
    }

    fn word(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Min => b"MIN",
            Self::Max => b"MAX",
        })
    }

    fn order(self) -> ScanOrder {
        match self {
            Self::Min => ScanOrder::Ascending,
            Self::Max => ScanOrder::Descending,
        }
    }
}

/// Takes up to `count` members off one end of the set at `key`, if there is one.
fn pop(
    db: &mut Db<'_>,
    key: &[u8],
    end: End,
    count: u64,
) -> Result<Option<Vec<(Bytes, f64)>>, ReplyError> {
    let Some(set) = SortedSet::open(db, key)? else {
        return Ok(None);
    };
    let popped = set.slice(db, set.ordered_rows(), end.order(), 0, count)?;
    set.remove_all(db, &popped)?;
    Ok(Some(popped))
}

/// `ZPOPMIN | ZPOPMAX key [count]`.
#[derive(Debug)]
struct Pop {
    key: Bytes,
    count: Option<u64>,
    end: End,
}

impl Pop {
    fn parse(args: &mut Args<'_>, end: End) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let count = match args.is_empty() {
            true => None,
            false => Some(
                args.unsigned()
                    .map_err(|_| ReplyError::err("value is out of range, must be positive"))?,
            ),
        };
        args.end()?;
        Ok(Box::new(Self { key, count, end }))
    }
}

impl Command for Pop {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let popped = pop(db, &self.key, self.end, self.count.unwrap_or(1))?.unwrap_or_default();
        if self.count.is_some() {
            return Ok(members_reply(popped, true));
        }
        // Without a count the one pair is flat in both protocols.
        let flat = popped
            .into_iter()
            .flat_map(|(member, score)| [Reply::Bulk(member), Reply::Double(score)]);
        Ok(Reply::Array(flat.collect()))
    }
}

/// `ZMPOP numkeys key … MIN | MAX [COUNT count]`.
#[derive(Debug)]
struct MultiPop {
    keys: Vec<Bytes>,
    end: End,
    count: u64,
    nothing: Reply,
}

impl MultiPop {
    fn parse(args: &mut Args<'_>) -> Result<Self, ReplyError> {
        let keys = args
            .integer()
            .ok()
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| *count > 0)
            .ok_or_else(|| ReplyError::err("numkeys should be greater than 0"))?;
        if keys >= args.len() {
            return Err(ReplyError::Syntax);
        }
        let keys = (0..keys).map(|_| args.key()).collect::<Result<_, _>>()?;
        let end = End::parse(args)?;
        let mut count = 1;
        if args.take("COUNT") {
            count = args
                .unsigned()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| ReplyError::err("count should be greater than 0"))?;
        }
        args.end()?;
        Ok(Self {
            keys,
            end,
            count,
            nothing: Reply::NullArray,
        })
    }
}

impl Command for MultiPop {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        for key in &self.keys {
            if let Some(popped) = pop(db, key, self.end, self.count)? {
                // Pairs stay pairs here in both protocols.
                let pair =
                    |(member, score)| Reply::Array(vec![Reply::Bulk(member), Reply::Double(score)]);
                let pairs = Reply::Array(popped.into_iter().map(pair).collect());
                return Ok(Reply::Array(vec![Reply::Bulk(key.clone()), pairs]));
            }
        }
        Ok(self.nothing.clone())
    }
}

/// One try of `BZPOPMIN` or `BZPOPMAX` at one key: key, member, score.
#[derive(Debug)]
struct AttemptPop {
    key: Bytes,
    end: End,
}

impl AttemptPop {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            end: End::parse(args)?,
        }))
    }
}

impl Command for AttemptPop {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let popped = pop(db, &self.key, self.end, 1)?.unwrap_or_default();
        Ok(popped
            .into_iter()
            .next()
            .map_or(Reply::Block, |(member, score)| {
                let key = Reply::Bulk(self.key.clone());
                Reply::Array(vec![key, Reply::Bulk(member), Reply::Double(score)])
            }))
    }
}

fn blocking_pop(args: &mut Args<'_>, end: End) -> Result<Blocking, ReplyError> {
    let (timeout, keys) = args.rest().split_last().ok_or(ReplyError::Syntax)?;
    let attempts = keys
        .iter()
        .map(|key| Attempt {
            watch: key.clone(),
            args: vec![
                Bytes::from_static(ATTEMPT_POP.as_bytes()),
                key.clone(),
                end.word(),
            ],
        })
        .collect();
    Ok(Blocking {
        timeout: parse_timeout(timeout)?,
        attempts,
        on_timeout: Reply::NullArray,
    })
}

fn blocking_multi_pop(args: &mut Args<'_>) -> Result<Blocking, ReplyError> {
    let timeout = parse_timeout(&args.bytes()?)?;
    let plain = MultiPop::parse(args)?;
    let attempts = plain
        .keys
        .iter()
        .map(|key| Attempt {
            watch: key.clone(),
            args: vec![
                Bytes::from_static(ATTEMPT_MULTI_POP.as_bytes()),
                Bytes::from_static(b"1"),
                key.clone(),
                plain.end.word(),
                Bytes::from_static(b"COUNT"),
                Bytes::from(plain.count.to_string()),
            ],
        })
        .collect();
    Ok(Blocking {
        timeout,
        attempts,
        on_timeout: Reply::NullArray,
    })
}

//! Ranges by rank, by score and by name: read, counted, removed and stored.

use std::ops::ControlFlow;

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::{CATEGORY, SortedSet, count_reply, members_reply, parse_score};
use crate::args::{Args, parse_integer};
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    Spec::read(
        "ZRANGE",
        "zrange",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::At(1),
        |args| {
            let key = args.key()?;
            Ok(Box::new(Read {
                key,
                query: Query::parse_zrange(args, Scores::Optional)?,
            }))
        },
    ),
    read("ZREVRANGE", "zrevrange", |args| {
        Query::parse_old(args, By::Rank, ScanOrder::Descending)
    }),
    read("ZRANGEBYSCORE", "zrangebyscore", |args| {
        Query::parse_old(args, By::Score, ScanOrder::Ascending)
    }),
    read("ZREVRANGEBYSCORE", "zrevrangebyscore", |args| {
        Query::parse_old(args, By::Score, ScanOrder::Descending)
    }),
    read("ZRANGEBYLEX", "zrangebylex", |args| {
        Query::parse_old(args, By::Lex, ScanOrder::Ascending)
    }),
    read("ZREVRANGEBYLEX", "zrevrangebylex", |args| {
        Query::parse_old(args, By::Lex, ScanOrder::Descending)
    }),
    Spec::write(
        "ZRANGESTORE",
        "zrangestore",
        CATEGORY,
        Arity::AtLeast(5),
        Keys::Range { first: 1, last: 2 },
        Store::parse,
    ),
    Spec::read(
        "ZCOUNT",
        "zcount",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        |args| Count::parse(args, By::Score),
    )
    .fast(),
    Spec::read(
        "ZLEXCOUNT",
        "zlexcount",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        |args| Count::parse(args, By::Lex),
    )
    .fast(),
    remove("ZREMRANGEBYRANK", "zremrangebyrank", |args| {
        Remove::parse(args, By::Rank)
    }),
    remove("ZREMRANGEBYSCORE", "zremrangebyscore", |args| {
        Remove::parse(args, By::Score)
    }),
    remove("ZREMRANGEBYLEX", "zremrangebylex", |args| {
        Remove::parse(args, By::Lex)
    }),
];

/// The older range reads differ in how their arguments become a query, and in nothing else. The
/// query parsers are function pointers' bodies, hence one parser per name.
const fn read(
    name: &'static str,
    lower: &'static str,
    parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
) -> Spec {
    Spec::read(name, lower, CATEGORY, Arity::AtLeast(4), Keys::At(1), parse)
}

const fn remove(
    name: &'static str,
    lower: &'static str,
    parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
) -> Spec {
    Spec::write(name, lower, CATEGORY, Arity::Exactly(4), Keys::At(1), parse).frees()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Rank,
    Score,
    Lex,
}

/// An end of a score range.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ScoreBound {
    score: f64,
    exclusive: bool,
}

/// An end of a range of names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LexBound {
    Lowest,
    Highest,
    Member { member: Bytes, exclusive: bool },
}

/// Which members, lower end first.
#[derive(Clone, Debug, PartialEq)]
enum Interval {
    Rank { start: i64, stop: i64 },
    Score { low: ScoreBound, high: ScoreBound },
    Lex { low: LexBound, high: LexBound },
}

fn parse_score_bound(text: &[u8]) -> Result<ScoreBound, ReplyError> {
    let (exclusive, number) = match text.strip_prefix(b"(") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let score = parse_score(number).map_err(|_| ReplyError::err("min or max is not a float"))?;
    Ok(ScoreBound { score, exclusive })
}

fn parse_lex_bound(text: &Bytes) -> Result<LexBound, ReplyError> {
    match text.first() {
        Some(b'-') if text.len() == 1 => Ok(LexBound::Lowest),
        Some(b'+') if text.len() == 1 => Ok(LexBound::Highest),
        Some(b'(') => Ok(LexBound::Member {
            member: text.slice(1..),
            exclusive: true,
        }),
        Some(b'[') => Ok(LexBound::Member {
            member: text.slice(1..),
            exclusive: false,
        }),
        _ => Err(ReplyError::err("min or max not valid string range item")),
    }
}

impl Interval {
    /// From the two arguments in their order; `Descending` score and name ranges name the higher
    /// end first.
    fn parse(by: By, first: &Bytes, second: &Bytes, order: ScanOrder) -> Result<Self, ReplyError> {
        let (low, high) = match order {
            ScanOrder::Ascending => (first, second),
            ScanOrder::Descending => (second, first),
        };
        Ok(match by {
            By::Rank => Self::Rank {
                start: parse_integer(first).ok_or(ReplyError::NotInteger)?,
                stop: parse_integer(second).ok_or(ReplyError::NotInteger)?,
            },
            By::Score => Self::Score {
                low: parse_score_bound(low)?,
                high: parse_score_bound(high)?,
            },
            By::Lex => Self::Lex {
                low: parse_lex_bound(low)?,
                high: parse_lex_bound(high)?,
            },
        })
    }

    /// The members within, in `order`, the first `skip` of them left out, `take` at the most.
    fn select(
        &self,
        db: &mut Db<'_>,
        set: &SortedSet<'_>,
        order: ScanOrder,
        skip: u64,
        take: u64,
    ) -> Result<Vec<(Bytes, f64)>, ReplyError> {
        match self {
            Self::Rank { start, stop } => {
                let Some((start, count)) = ranks(*start, *stop, set.len()) else {
                    return Ok(Vec::new());
                };
                // From the nearer end.
                let behind = set.len() - start - count;
                let (walk, skip) = if start <= behind {
                    (order, start)
                } else {
                    (reverse(order), behind)
                };
                let mut found = set.slice(db, set.ordered_rows(), walk, skip, count)?;
                if walk != order {
                    found.reverse();
                }
                Ok(found)
            }
            Self::Score { low, high } => {
                let (low, high) = (*low, *high);
                let all = set.ordered_rows();
                let rows =
                    set.at_score(low.score).max(all.start)..after_score(set, high.score, all.end);
                let within = |score: f64| {
                    (score > low.score || (score == low.score && !low.exclusive))
                        && (score < high.score || (score == high.score && !high.exclusive))
                };
                filtered(db, set, rows, order, skip, take, &|_, score| within(score))
            }
            Self::Lex { low, high } => {
                let within = |member: &[u8]| above(low, member) && below(high, member);
                filtered(
                    db,
                    set,
                    set.ordered_rows(),
                    order,
                    skip,
                    take,
                    &|member, _| within(member),
                )
            }
        }
    }
}

/// The first row above every member of `score`.
fn after_score(set: &SortedSet<'_>, score: f64, end: Bytes) -> Bytes {
    crate::rows::end_of_prefix(&set.at_score(score)).min(end)
}

fn above(low: &LexBound, member: &[u8]) -> bool {
    match low {
        LexBound::Lowest => true,
        LexBound::Highest => false,
        LexBound::Member {
            member: bound,
            exclusive: true,
        } => member > bound,
        LexBound::Member {
            member: bound,
            exclusive: false,
        } => member >= bound,
    }
}

fn below(high: &LexBound, member: &[u8]) -> bool {
    match high {
        LexBound::Lowest => false,
        LexBound::Highest => true,
        LexBound::Member {
            member: bound,
            exclusive: true,
        } => member < bound,
        LexBound::Member {
            member: bound,
            exclusive: false,
        } => member <= bound,
    }
}

fn reverse(order: ScanOrder) -> ScanOrder {
    match order {
        ScanOrder::Ascending => ScanOrder::Descending,
        ScanOrder::Descending => ScanOrder::Ascending,
    }
}

/// First rank and count of Redis' inclusive range over `len` members.
fn ranks(start: i64, stop: i64, len: u64) -> Option<(u64, u64)> {
    let len = i64::try_from(len).ok()?;
    let absolute = |index: i64| {
        if index < 0 {
            index.saturating_add(len)
        } else {
            index
        }
    };
    let (start, stop) = (absolute(start).max(0), absolute(stop).min(len - 1));
    if start > stop {
        return None;
    }
    Some((
        u64::try_from(start).ok()?,
        u64::try_from(stop - start + 1).ok()?,
    ))
}

fn filtered(
    db: &mut Db<'_>,
    set: &SortedSet<'_>,
    rows: std::ops::Range<Bytes>,
    order: ScanOrder,
    skip: u64,
    take: u64,
    within: &dyn Fn(&[u8], f64) -> bool,
) -> Result<Vec<(Bytes, f64)>, ReplyError> {
    let (mut skip, mut found) = (skip, Vec::new());
    if take == 0 || rows.start >= rows.end {
        return Ok(found);
    }
    set.walk(db, rows, order, &mut |member, score| {
        if !within(member, score) {
            // Members within are neighbours: behind the last of them there is no other.
            return if found.is_empty() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            };
        }
        if skip > 0 {
            skip -= 1;
            return ControlFlow::Continue(());
        }
        found.push((Bytes::copy_from_slice(member), score));
        if (found.len() as u64) < take {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}

/// Whether a command takes WITHSCORES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scores {
    Optional,
    Never,
}

#[derive(Clone, Debug)]
struct Query {
    interval: Interval,
    order: ScanOrder,
    skip: u64,
    take: u64,
    with_scores: bool,
}

impl Query {
    /// `start stop [BYSCORE | BYLEX] [REV] [LIMIT offset count] [WITHSCORES]`.
    fn parse_zrange(args: &mut Args<'_>, scores: Scores) -> Result<Self, ReplyError> {
        let (first, second) = (args.bytes()?, args.bytes()?);
        let (mut by, mut order, mut limit, mut with_scores) =
            (By::Rank, ScanOrder::Ascending, None, false);
        while !args.is_empty() {
            if args.take("BYSCORE") {
                by = By::Score;
            } else if args.take("BYLEX") {
                by = By::Lex;
            } else if args.take("REV") {
                order = ScanOrder::Descending;
            } else if args.take("LIMIT") && args.len() >= 2 {
                limit = Some((args.integer()?, args.integer()?));
            } else if scores == Scores::Optional && args.take("WITHSCORES") {
                with_scores = true;
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        if limit.is_some() && by == By::Rank {
            return Err(ReplyError::err(
                "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ));
        }
        if with_scores && by == By::Lex {
            return Err(ReplyError::err(
                "syntax error, WITHSCORES not supported in combination with BYLEX",
            ));
        }
        Self::new(by, &first, &second, order, limit, with_scores)
    }

    /// The arguments of ZREVRANGE, Z(REV)RANGEBYSCORE and Z(REV)RANGEBYLEX.
    fn parse_old(
        args: &mut Args<'_>,
        by: By,
        order: ScanOrder,
    ) -> Result<Box<dyn Command>, ReplyError> {
        let (key, first, second) = (args.key()?, args.bytes()?, args.bytes()?);
        let (mut limit, mut with_scores) = (None, false);
        while !args.is_empty() {
            if by != By::Rank && args.take("LIMIT") && args.len() >= 2 {
                limit = Some((args.integer()?, args.integer()?));
            } else if by != By::Lex && args.take("WITHSCORES") {
                with_scores = true;
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        let query = Self::new(by, &first, &second, order, limit, with_scores)?;
        Ok(Box::new(Read { key, query }))
    }

    fn new(
        by: By,
        first: &Bytes,
        second: &Bytes,
        order: ScanOrder,
        limit: Option<(i64, i64)>,
        with_scores: bool,
    ) -> Result<Self, ReplyError> {
        let interval = Interval::parse(by, first, second, order)?;
        // A negative offset selects nothing; a negative count, everything.
        let (skip, take) = match limit {
            None => (0, u64::MAX),
            Some((offset, count)) => match u64::try_from(offset) {
                Ok(skip) => (skip, u64::try_from(count).unwrap_or(u64::MAX)),
                Err(_) => (0, 0),
            },
        };
        Ok(Self {
            interval,
            order,
            skip,
            take,
            with_scores,
        })
    }

    fn run(&self, db: &mut Db<'_>, key: &[u8]) -> Result<Vec<(Bytes, f64)>, ReplyError> {
        match SortedSet::open(db, key)? {
            Some(set) => self
                .interval
                .select(db, &set, self.order, self.skip, self.take),
            None => Ok(Vec::new()),
        }
    }
}

/// Any range read.
#[derive(Debug)]
struct Read {
    key: Bytes,
    query: Query,
}

impl Command for Read {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let found = self.query.run(db, &self.key)?;
        Ok(members_reply(found, self.query.with_scores))
    }
}

/// `ZRANGESTORE destination source start stop …`.
#[derive(Debug)]
struct Store {
    destination: Bytes,
    source: Bytes,
    query: Query,
}

impl Store {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (destination, source) = (args.key()?, args.key()?);
        let query = Query::parse_zrange(args, Scores::Never)?;
        Ok(Box::new(Self {
            destination,
            source,
            query,
        }))
    }
}

impl Command for Store {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let found = self.query.run(db, &self.source)?;
        super::combine::store(db, &self.destination, found)
    }
}

/// `ZCOUNT key min max` and `ZLEXCOUNT key min max`.
#[derive(Debug)]
struct Count {
    key: Bytes,
    interval: Interval,
}

impl Count {
    fn parse(args: &mut Args<'_>, by: By) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let (low, high) = (args.bytes()?, args.bytes()?);
        let interval = Interval::parse(by, &low, &high, ScanOrder::Ascending)?;
        Ok(Box::new(Self { key, interval }))
    }
}

impl Command for Count {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(set) = SortedSet::open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let found = self
            .interval
            .select(db, &set, ScanOrder::Ascending, 0, u64::MAX)?;
        Ok(count_reply(found.len() as u64))
    }
}

/// `ZREMRANGEBYRANK | ZREMRANGEBYSCORE | ZREMRANGEBYLEX key first last`: how many were removed.
#[derive(Debug)]
struct Remove {
    key: Bytes,
    interval: Interval,
}

impl Remove {
    fn parse(args: &mut Args<'_>, by: By) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let (low, high) = (args.bytes()?, args.bytes()?);
        let interval = Interval::parse(by, &low, &high, ScanOrder::Ascending)?;
        Ok(Box::new(Self { key, interval }))
    }
}

impl Command for Remove {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(set) = SortedSet::open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let doomed = self
            .interval
            .select(db, &set, ScanOrder::Ascending, 0, u64::MAX)?;
        Ok(count_reply(set.remove_all(db, &doomed)?))
    }
}

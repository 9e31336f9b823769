//! Unions, intersections and differences of sorted sets and sets.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::sets::parse_card;
use super::{CATEGORY, SortedSet, count_reply, decode_score, members_reply};
use crate::args::{Args, parse_double, parse_integer};
use crate::reply::{Reply, ReplyError};
use crate::rows::{Db, Hashed, Type, Value};
use crate::spec::{Arity, Command, Keys, Spec};

const DESTINATION_COUNTED: Keys = Keys::DestinationCounted {
    destination: 1,
    count: 2,
};

pub(super) const SPECS: &[Spec] = &[
    Spec::read(
        "ZUNION",
        "zunion",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::Counted(1),
        |args| {
            Ok(Box::new(Combination::parse(
                args,
                "zunion",
                Op::Union,
                Scores::Optional,
            )?))
        },
    ),
    Spec::read(
        "ZINTER",
        "zinter",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::Counted(1),
        |args| {
            Ok(Box::new(Combination::parse(
                args,
                "zinter",
                Op::Inter,
                Scores::Optional,
            )?))
        },
    ),
    Spec::read(
        "ZDIFF",
        "zdiff",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::Counted(1),
        |args| {
            Ok(Box::new(Combination::parse(
                args,
                "zdiff",
                Op::Diff,
                Scores::Optional,
            )?))
        },
    ),
    Spec::read(
        "ZINTERCARD",
        "zintercard",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::Counted(1),
        InterCard::parse,
    ),
    Spec::write(
        "ZUNIONSTORE",
        "zunionstore",
        CATEGORY,
        Arity::AtLeast(4),
        DESTINATION_COUNTED,
        |args| Store::parse(args, "zunionstore", Op::Union),
    ),
    Spec::write(
        "ZINTERSTORE",
        "zinterstore",
        CATEGORY,
        Arity::AtLeast(4),
        DESTINATION_COUNTED,
        |args| Store::parse(args, "zinterstore", Op::Inter),
    ),
    Spec::write(
        "ZDIFFSTORE",
        "zdiffstore",
        CATEGORY,
        Arity::AtLeast(4),
        DESTINATION_COUNTED,
        |args| Store::parse(args, "zdiffstore", Op::Diff),
    ),
];

type Scored = BTreeMap<Bytes, f64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Union,
    Inter,
    Diff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregate {
    Sum,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scores {
    Optional,
    Never,
}

/// `numkeys key … [WEIGHTS weight …] [AGGREGATE SUM | MIN | MAX] [WITHSCORES]`.
#[derive(Clone, Debug)]
struct Combination {
    op: Op,
    keys: Vec<Bytes>,
    weights: Vec<f64>,
    aggregate: Aggregate,
    with_scores: bool,
}

impl Combination {
    fn parse(args: &mut Args<'_>, name: &str, op: Op, scores: Scores) -> Result<Self, ReplyError> {
        let numkeys = parse_integer(&args.bytes()?).ok_or(ReplyError::NotInteger)?;
        let numkeys = usize::try_from(numkeys)
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| {
                ReplyError::err(format!(
                    "at least 1 input key is needed for '{name}' command"
                ))
            })?;
        if numkeys > args.len() {
            return Err(ReplyError::Syntax);
        }
        let keys: Vec<Bytes> = (0..numkeys).map(|_| args.key()).collect::<Result<_, _>>()?;
        let mut this = Self {
            op,
            weights: vec![1.0; keys.len()],
            keys,
            aggregate: Aggregate::Sum,
            with_scores: false,
        };
        while !args.is_empty() {
            if op != Op::Diff && args.len() > numkeys && args.take("WEIGHTS") {
                for weight in &mut this.weights {
                    *weight = parse_double(&args.bytes()?)
                        .ok_or_else(|| ReplyError::err("weight value is not a float"))?;
                }
            } else if op != Op::Diff && args.len() > 1 && args.take("AGGREGATE") {
                this.aggregate = match () {
                    () if args.take("SUM") => Aggregate::Sum,
                    () if args.take("MIN") => Aggregate::Min,
                    () if args.take("MAX") => Aggregate::Max,
                    () => return Err(ReplyError::Syntax),
                };
            } else if scores == Scores::Optional && args.take("WITHSCORES") {
                this.with_scores = true;
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        Ok(this)
    }

    fn run(&self, db: &mut Db<'_>) -> Result<Vec<(Bytes, f64)>, ReplyError> {
        let sources = self
            .keys
            .iter()
            .map(|key| source(db, key))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.combine(sources))
    }

    /// The result in order of score, then name.
    fn combine(&self, sources: Vec<Scored>) -> Vec<(Bytes, f64)> {
        let mut sources = sources
            .into_iter()
            .zip(&self.weights)
            .map(|(source, weight)| {
                // Infinity times 0 counts as 0.
                let weigh = |score: f64| {
                    let weighed = score * weight;
                    if weighed.is_nan() { 0.0 } else { weighed }
                };
                source
                    .into_iter()
                    .map(|(member, score)| (member, weigh(score)))
                    .collect::<Scored>()
            });
        let first = sources.next().unwrap_or_default();
        let result = sources.fold(first, |mut result, source| {
            match self.op {
                Op::Union => {
                    for (member, score) in source {
                        result
                            .entry(member)
                            .and_modify(|old| *old = self.aggregate(*old, score))
                            .or_insert(score);
                    }
                }
                Op::Inter => result.retain(|member, score| match source.get(member) {
                    Some(other) => {
                        *score = self.aggregate(*score, *other);
                        true
                    }
                    None => false,
                }),
                Op::Diff => result.retain(|member, _| !source.contains_key(member)),
            }
            result
        });
        let mut members: Vec<(Bytes, f64)> = result.into_iter().collect();
        members.sort_by(|(a, x), (b, y)| x.total_cmp(y).then_with(|| a.cmp(b)));
        members
    }

    fn aggregate(&self, a: f64, b: f64) -> f64 {
        match self.aggregate {
            Aggregate::Sum => {
                let sum = a + b;
                if sum.is_nan() { 0.0 } else { sum }
            }
            Aggregate::Min => a.min(b),
            Aggregate::Max => a.max(b),
        }
    }
}

/// Members and scores at `key`; the members of a plain set count 1.
fn source(db: &mut Db<'_>, key: &[u8]) -> Result<Scored, ReplyError> {
    let Some(first) = db.lookup(key)? else {
        return Ok(Scored::new());
    };
    match first.value {
        Value::Collection(collection) if collection.kind == Type::Set => {
            let Some(set) = Hashed::open(db, key, Type::Set)? else {
                return Ok(Scored::new());
            };
            Ok(set
                .all(db)?
                .into_iter()
                .map(|(member, _)| (member, 1.0))
                .collect())
        }
        _ => {
            let Some(set) = Hashed::open(db, key, Type::SortedSet)? else {
                return Ok(Scored::new());
            };
            let members = set.all(db)?;
            members
                .into_iter()
                .map(|(member, score)| Ok((member, decode_score(score)?)))
                .collect()
        }
    }
}

impl Command for Combination {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(members_reply(self.run(db)?, self.with_scores))
    }
}

/// `ZINTERCARD numkeys key … [LIMIT limit]`.
#[derive(Debug)]
struct InterCard {
    combination: Combination,
    limit: u64,
}

impl InterCard {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (keys, limit) = parse_card(args)?;
        let combination = Combination {
            op: Op::Inter,
            weights: vec![1.0; keys.len()],
            keys,
            aggregate: Aggregate::Sum,
            with_scores: false,
        };
        Ok(Box::new(Self { combination, limit }))
    }
}

impl Command for InterCard {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let found = self.combination.run(db)?.len() as u64;
        Ok(count_reply(if self.limit == 0 {
            found
        } else {
            found.min(self.limit)
        }))
    }
}

/// `ZUNIONSTORE | ZINTERSTORE | ZDIFFSTORE destination numkeys key …`.
#[derive(Debug)]
struct Store {
    destination: Bytes,
    combination: Combination,
}

impl Store {
    fn parse(args: &mut Args<'_>, name: &str, op: Op) -> Result<Box<dyn Command>, ReplyError> {
        let destination = args.key()?;
        let combination = Combination::parse(args, name, op, Scores::Never)?;
        Ok(Box::new(Self {
            destination,
            combination,
        }))
    }
}

impl Command for Store {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let members = self.combination.run(db)?;
        store(db, &self.destination, members)
    }
}

/// Replaces what is at `destination` by these members; replies with their count.
pub(super) fn store(
    db: &mut Db<'_>,
    destination: &[u8],
    members: Vec<(Bytes, f64)>,
) -> Result<Reply, ReplyError> {
    db.remove(destination)?;
    let mut set = SortedSet::replacing(db, destination);
    for (member, score) in &members {
        set.set_score(db, member, *score)?;
    }
    if !members.is_empty() {
        set.save(db)?;
        db.wake(destination);
    }
    Ok(count_reply(members.len() as u64))
}

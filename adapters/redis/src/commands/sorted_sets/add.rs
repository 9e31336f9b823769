//! Commands that give members scores, and remove members by name.

use bytes::Bytes;

use super::{CATEGORY, SortedSet, count_reply, parse_score};
use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "ZADD",
        "zadd",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::At(1),
        Add::parse,
    )
    .fast(),
    Spec::write(
        "ZINCRBY",
        "zincrby",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        IncrBy::parse,
    )
    .fast(),
    Spec::write(
        "ZREM",
        "zrem",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        Remove::parse,
    )
    .fast()
    .frees(),
];

/// `ZADD key [NX | XX] [GT | LT] [CH] [INCR] score member …`.
#[derive(Debug, Default)]
struct Add {
    key: Bytes,
    only_new: bool,
    only_old: bool,
    only_greater: bool,
    only_less: bool,
    count_changed: bool,
    increment: bool,
    members: Vec<(f64, Bytes)>,
}

impl Add {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut this = Self {
            key: args.key()?,
            ..Self::default()
        };
        loop {
            match () {
                () if args.take("NX") => this.only_new = true,
                () if args.take("XX") => this.only_old = true,
                () if args.take("GT") => this.only_greater = true,
                () if args.take("LT") => this.only_less = true,
                () if args.take("CH") => this.count_changed = true,
                () if args.take("INCR") => this.increment = true,
                () => break,
            }
        }
        let pairs = args.rest();
        if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
            return Err(ReplyError::Syntax);
        }
        if this.only_new && this.only_old {
            return Err(ReplyError::err(
                "XX and NX options at the same time are not compatible",
            ));
        }
        if (this.only_greater && this.only_less)
            || (this.only_new && (this.only_greater || this.only_less))
        {
            return Err(ReplyError::err(
                "GT, LT, and/or NX options at the same time are not compatible",
            ));
        }
        if this.increment && pairs.len() > 2 {
            return Err(ReplyError::err(
                "INCR option supports a single increment-element pair",
            ));
        }
        this.members = pairs
            .chunks_exact(2)
            .map(|pair| Ok((parse_score(&pair[0])?, pair[1].clone())))
            .collect::<Result<_, ReplyError>>()?;
        Ok(Box::new(this))
    }

    /// The score that a member of score `old` gets; `None` leaves it as it is.
    fn new_score(&self, old: Option<f64>, given: f64) -> Result<Option<f64>, ReplyError> {
        let Some(old) = old else {
            return Ok((!self.only_old).then_some(given));
        };
        if self.only_new {
            return Ok(None);
        }
        let score = if self.increment {
            add_scores(old, given)?
        } else {
            given
        };
        if (self.only_greater && score <= old) || (self.only_less && score >= old) {
            return Ok(None);
        }
        Ok(Some(score))
    }
}

fn add_scores(old: f64, increment: f64) -> Result<f64, ReplyError> {
    let sum = old + increment;
    if sum.is_nan() {
        return Err(ReplyError::err("resulting score is not a number (NaN)"));
    }
    Ok(sum)
}

impl Command for Add {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut set = SortedSet::open_or_new(db, &self.key)?;
        let (mut added, mut changed, mut result) = (0, 0, None);
        for (given, member) in &self.members {
            let old = set.score(db, member)?;
            let Some(score) = self.new_score(old, *given)? else {
                continue;
            };
            result = Some(score);
            if old == Some(score) {
                continue;
            }
            set.set_score(db, member, score)?;
            match old {
                None => added += 1,
                Some(_) => changed += 1,
            }
        }
        if added + changed > 0 {
            set.save(db)?;
        }
        if added > 0 {
            db.wake(&self.key);
        }
        Ok(match (self.increment, self.count_changed) {
            (true, _) => result.map_or(Reply::Null, Reply::Double),
            (false, true) => count_reply(added + changed),
            (false, false) => count_reply(added),
        })
    }
}

/// `ZINCRBY key increment member`: the new score.
#[derive(Debug)]
struct IncrBy {
    key: Bytes,
    increment: f64,
    member: Bytes,
}

impl IncrBy {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let increment = parse_score(&args.bytes()?)?;
        Ok(Box::new(Self {
            key,
            increment,
            member: args.bytes()?,
        }))
    }
}

impl Command for IncrBy {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut set = SortedSet::open_or_new(db, &self.key)?;
        let old = set.score(db, &self.member)?;
        let score = add_scores(old.unwrap_or(0.0), self.increment)?;
        set.set_score(db, &self.member, score)?;
        set.save(db)?;
        if old.is_none() {
            db.wake(&self.key);
        }
        Ok(Reply::Double(score))
    }
}

/// `ZREM key member …`: how many were there.
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
        let Some(mut set) = SortedSet::open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let before = set.len();
        for member in &self.members {
            set.remove(db, member)?;
        }
        let removed = before - set.len();
        if removed > 0 {
            set.save(db)?;
        }
        Ok(count_reply(removed))
    }
}

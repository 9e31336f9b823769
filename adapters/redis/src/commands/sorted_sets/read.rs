//! Commands that read single members, and random ones.

use std::ops::ControlFlow;

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::super::sets::repeated;
use super::{CATEGORY, SortedSet, count_reply, decode_score, members_reply};
use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    Spec::read(
        "ZCARD",
        "zcard",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Card::parse,
    )
    .fast(),
    Spec::read(
        "ZSCORE",
        "zscore",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        |args| Score::parse(args, false),
    )
    .fast(),
    Spec::read(
        "ZMSCORE",
        "zmscore",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Score::parse(args, true),
    )
    .fast(),
    Spec::read(
        "ZRANK",
        "zrank",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Rank::parse(args, ScanOrder::Ascending),
    )
    .fast(),
    Spec::read(
        "ZREVRANK",
        "zrevrank",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Rank::parse(args, ScanOrder::Descending),
    )
    .fast(),
    Spec::read(
        "ZRANDMEMBER",
        "zrandmember",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        RandMember::parse,
    ),
];

/// `ZCARD key`.
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
        Ok(count_reply(
            SortedSet::open(db, &self.key)?.map_or(0, |set| set.len()),
        ))
    }
}

/// `ZSCORE key member` and `ZMSCORE key member …`.
#[derive(Debug)]
struct Score {
    key: Bytes,
    members: Vec<Bytes>,
    many: bool,
}

impl Score {
    fn parse(args: &mut Args<'_>, many: bool) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            members: args.rest().to_vec(),
            many,
        }))
    }
}

impl Command for Score {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let set = SortedSet::open(db, &self.key)?;
        let mut scores = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let score = match &set {
                Some(set) => set.score(db, member)?,
                None => None,
            };
            scores.push(score.map_or(Reply::Null, Reply::Double));
        }
        if self.many {
            Ok(Reply::Array(scores))
        } else {
            Ok(scores.pop().unwrap_or(Reply::Null))
        }
    }
}

/// `ZRANK | ZREVRANK key member [WITHSCORE]`.
#[derive(Debug)]
struct Rank {
    key: Bytes,
    member: Bytes,
    with_score: bool,
    order: ScanOrder,
}

impl Rank {
    fn parse(args: &mut Args<'_>, order: ScanOrder) -> Result<Box<dyn Command>, ReplyError> {
        let (key, member) = (args.key()?, args.bytes()?);
        let with_score = !args.is_empty();
        if with_score && !args.take("WITHSCORE") {
            return Err(ReplyError::Syntax);
        }
        args.end()?;
        Ok(Box::new(Self {
            key,
            member,
            with_score,
            order,
        }))
    }
}

impl Command for Rank {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let none = if self.with_score {
            Reply::NullArray
        } else {
            Reply::Null
        };
        let Some(set) = SortedSet::open(db, &self.key)? else {
            return Ok(none);
        };
        let Some(score) = set.score(db, &self.member)? else {
            return Ok(none);
        };
        let all = set.ordered_rows();
        let own = set.score_row(score, &self.member);
        let before = match self.order {
            ScanOrder::Ascending => all.start..own,
            ScanOrder::Descending => {
                // The first row after the member's own.
                let after = [&own[..], &[0]].concat();
                Bytes::from(after)..all.end
            }
        };
        let mut rank = 0;
        set.walk(db, before, ScanOrder::Ascending, &mut |_, _| {
            rank += 1;
            ControlFlow::Continue(())
        })?;
        let rank = count_reply(rank);
        Ok(if self.with_score {
            Reply::Array(vec![rank, Reply::Double(score)])
        } else {
            rank
        })
    }
}

/// `ZRANDMEMBER key [count [WITHSCORES]]`.
#[derive(Debug)]
struct RandMember {
    key: Bytes,
    count: Option<i64>,
    with_scores: bool,
}

impl RandMember {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let count = if args.is_empty() {
            None
        } else {
            Some(args.integer()?)
        };
        let with_scores = !args.is_empty();
        if with_scores && !args.take("WITHSCORES") {
            return Err(ReplyError::Syntax);
        }
        args.end()?;
        if count.is_some_and(|count| !(-i64::MAX / 2..=i64::MAX / 2).contains(&count)) {
            return Err(ReplyError::err("value is out of range"));
        }
        Ok(Box::new(Self {
            key,
            count,
            with_scores,
        }))
    }
}

impl Command for RandMember {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let set = SortedSet::open(db, &self.key)?;
        let Some(wanted) = self.count else {
            let drawn = match set {
                Some(set) => set.0.draw(db)?,
                None => None,
            };
            return Ok(drawn.map_or(Reply::Null, |(member, _)| Reply::Bulk(member)));
        };
        let Some(set) = set else {
            return Ok(Reply::Array(Vec::new()));
        };
        let drawn = if wanted < 0 {
            repeated(wanted.unsigned_abs(), || set.0.draw(db))?
        } else {
            set.0.draw_distinct(db, wanted.unsigned_abs())?
        };
        let members = drawn
            .into_iter()
            .map(|(member, score)| Ok((member, decode_score(score)?)))
            .collect::<Result<_, ReplyError>>()?;
        Ok(members_reply(members, self.with_scores))
    }
}

//! Pops from either end, plain and blocking.

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::super::pops::{
    AttemptPop, KEYS_THEN_TIMEOUT, MultiPop, PopEnd, blocking_multi_pop, blocking_pop,
};
use super::{CATEGORY, SortedSet, members_reply};
use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

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
        MultiPop::<End>::parse,
    )
    .frees(),
    Spec::blocking(
        "BZPOPMIN",
        "bzpopmin",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Min),
    )
    .fast()
    .frees(),
    Spec::blocking(
        "BZPOPMAX",
        "bzpopmax",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Max),
    )
    .fast()
    .frees(),
    Spec::blocking(
        "BZMPOP",
        "bzmpop",
        CATEGORY,
        Arity::AtLeast(5),
        Keys::Counted(2),
        blocking_multi_pop::<End>,
    )
    .frees(),
    Spec::write(
        End::ATTEMPT_POP,
        "leadline.bzpop",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        AttemptPop::<End>::parse,
    )
    .internal()
    .frees(),
    Spec::write(
        End::ATTEMPT_MULTI_POP,
        "leadline.bzmpop",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::Counted(1),
        MultiPop::<End>::attempt,
    )
    .internal()
    .frees(),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Min,
    Max,
}

impl PopEnd for End {
    const BOTH: [(Self, &'static str); 2] = [(Self::Min, "MIN"), (Self::Max, "MAX")];
    const ATTEMPT_POP: &'static str = "LEADLINE.BZPOP";
    const ATTEMPT_MULTI_POP: &'static str = "LEADLINE.BZMPOP";

    /// Pairs of member and score: here they are pairs in both protocols.
    fn pop(
        self,
        db: &mut Db<'_>,
        key: &[u8],
        count: u64,
    ) -> Result<Option<Vec<Reply>>, ReplyError> {
        let pair = |(member, score)| Reply::Array(vec![Reply::Bulk(member), Reply::Double(score)]);
        let popped = pop(db, key, self, count)?;
        Ok(popped.map(|popped| popped.into_iter().map(pair).collect()))
    }
}

impl End {
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
            false => Some(args.positive()?),
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

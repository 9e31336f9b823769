//! List commands. An element is a row at a position; the first row knows both ends, so a push or a
//! pop at an end touches two rows whatever the length.
//!
//! # Invariants
//! 1. The elements of a list are the rows at positions `head..tail`, without a hole.
//! 2. `count` is `tail - head`.
//!
//! Source: <https://redis.io/docs/latest/commands/?group=list>, Redis 7.2.

use std::time::Duration;

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::pops::{
    AttemptPop, KEYS_THEN_TIMEOUT, MultiPop, PopEnd, blocking_multi_pop, blocking_pop,
    parse_timeout,
};
use crate::args::{Args, parse_integer};
use crate::reply::{Reply, ReplyError};
use crate::rows::{Collection, Db, ElementKind, Prefix, Type, list_position};
use crate::spec::{Arity, Attempt, Blocking, Command, Keys, Spec};

const CATEGORY: &str = "list";

pub(super) const SPECS: &[Spec] = &[
    Spec::write(
        "LPUSH",
        "lpush",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Push::parse(args, End::Left, Absent::Create),
    )
    .fast(),
    Spec::write(
        "RPUSH",
        "rpush",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Push::parse(args, End::Right, Absent::Create),
    )
    .fast(),
    Spec::write(
        "LPUSHX",
        "lpushx",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Push::parse(args, End::Left, Absent::Refuse),
    )
    .fast(),
    Spec::write(
        "RPUSHX",
        "rpushx",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        |args| Push::parse(args, End::Right, Absent::Refuse),
    )
    .fast(),
    Spec::write(
        "LPOP",
        "lpop",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        |args| Pop::parse(args, End::Left),
    )
    .fast()
    .frees(),
    Spec::write(
        "RPOP",
        "rpop",
        CATEGORY,
        Arity::AtLeast(2),
        Keys::At(1),
        |args| Pop::parse(args, End::Right),
    )
    .fast()
    .frees(),
    Spec::read(
        "LLEN",
        "llen",
        CATEGORY,
        Arity::Exactly(2),
        Keys::At(1),
        Len::parse,
    )
    .fast(),
    Spec::read(
        "LINDEX",
        "lindex",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        Index::parse,
    ),
    Spec::write(
        "LSET",
        "lset",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        Set::parse,
    ),
    Spec::read(
        "LRANGE",
        "lrange",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        Range::parse,
    ),
    Spec::write(
        "LTRIM",
        "ltrim",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        Trim::parse,
    )
    .frees(),
    Spec::write(
        "LINSERT",
        "linsert",
        CATEGORY,
        Arity::Exactly(5),
        Keys::At(1),
        Insert::parse,
    ),
    Spec::write(
        "LREM",
        "lrem",
        CATEGORY,
        Arity::Exactly(4),
        Keys::At(1),
        Remove::parse,
    )
    .frees(),
    Spec::read(
        "LPOS",
        "lpos",
        CATEGORY,
        Arity::AtLeast(3),
        Keys::At(1),
        Pos::parse,
    ),
    Spec::write(
        "LMOVE",
        "lmove",
        CATEGORY,
        Arity::Exactly(5),
        SOURCE_AND_DESTINATION,
        |args| Ok(Box::new(Move::parse(args, Nothing::Null)?)),
    ),
    Spec::write(
        "RPOPLPUSH",
        "rpoplpush",
        CATEGORY,
        Arity::Exactly(3),
        SOURCE_AND_DESTINATION,
        Move::parse_rpoplpush,
    ),
    Spec::write(
        "LMPOP",
        "lmpop",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::Counted(1),
        MultiPop::<End>::parse,
    )
    .frees(),
    Spec::blocking(
        "BLPOP",
        "blpop",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Left),
    )
    .frees(),
    Spec::blocking(
        "BRPOP",
        "brpop",
        CATEGORY,
        Arity::AtLeast(3),
        KEYS_THEN_TIMEOUT,
        |args| blocking_pop(args, End::Right),
    )
    .frees(),
    Spec::blocking(
        "BLMOVE",
        "blmove",
        CATEGORY,
        Arity::Exactly(6),
        SOURCE_AND_DESTINATION,
        blocking_move,
    ),
    Spec::blocking(
        "BRPOPLPUSH",
        "brpoplpush",
        CATEGORY,
        Arity::Exactly(4),
        SOURCE_AND_DESTINATION,
        blocking_rpoplpush,
    ),
    Spec::blocking(
        "BLMPOP",
        "blmpop",
        CATEGORY,
        Arity::AtLeast(5),
        Keys::Counted(2),
        blocking_multi_pop::<End>,
    )
    .frees(),
    Spec::write(
        End::ATTEMPT_POP,
        "leadline.bpop",
        CATEGORY,
        Arity::Exactly(3),
        Keys::At(1),
        AttemptPop::<End>::parse,
    )
    .internal()
    .frees(),
    Spec::write(
        ATTEMPT_MOVE,
        "leadline.bmove",
        CATEGORY,
        Arity::Exactly(5),
        SOURCE_AND_DESTINATION,
        |args| Ok(Box::new(Move::parse(args, Nothing::Block)?)),
    )
    .internal(),
    Spec::write(
        End::ATTEMPT_MULTI_POP,
        "leadline.bmpop",
        CATEGORY,
        Arity::AtLeast(4),
        Keys::Counted(1),
        MultiPop::<End>::attempt,
    )
    .internal()
    .frees(),
];

const SOURCE_AND_DESTINATION: Keys = Keys::Range { first: 1, last: 2 };

/// What BLMOVE tries: as LMOVE, but nothing found is [`Reply::Block`].
const ATTEMPT_MOVE: &str = "LEADLINE.BMOVE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Left,
    Right,
}

impl PopEnd for End {
    const BOTH: [(Self, &'static str); 2] = [(Self::Left, "LEFT"), (Self::Right, "RIGHT")];
    const ATTEMPT_POP: &'static str = "LEADLINE.BPOP";
    const ATTEMPT_MULTI_POP: &'static str = "LEADLINE.BMPOP";

    fn pop(
        self,
        db: &mut Db<'_>,
        key: &[u8],
        count: u64,
    ) -> Result<Option<Vec<Reply>>, ReplyError> {
        let Some(mut list) = List::open(db, key)? else {
            return Ok(None);
        };
        let elements = list.pop_many(db, self, count)?;
        list.save(db)?;
        Ok(Some(elements.into_iter().map(Reply::Bulk).collect()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    Create,
    Refuse,
}

/// What a move answers when there is nothing to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nothing {
    Null,
    Block,
}

/// An open list: its first row in memory, saved after its elements were changed.
struct List<'k> {
    key: &'k [u8],
    prefix: Prefix,
    meta: Collection,
    expires_at: Option<u64>,
}

impl<'k> List<'k> {
    fn open(db: &mut Db<'_>, key: &'k [u8]) -> Result<Option<Self>, ReplyError> {
        let found = db.collection(key, Type::List)?;
        Ok(found.map(|(meta, expires_at)| Self {
            key,
            prefix: db.home(key, &meta),
            meta,
            expires_at,
        }))
    }

    fn open_or_new(db: &mut Db<'_>, key: &'k [u8]) -> Result<Self, ReplyError> {
        let (meta, expires_at) = db.collection_or_new(key, Type::List)?;
        Ok(Self {
            key,
            prefix: db.home(key, &meta),
            meta,
            expires_at,
        })
    }

    fn save(mut self, db: &mut Db<'_>) -> Result<(), ReplyError> {
        self.meta.count = self.meta.tail.abs_diff(self.meta.head);
        db.save_collection(self.key, self.meta, self.expires_at)
    }

    fn len(&self) -> i64 {
        self.meta.tail - self.meta.head
    }

    fn row(&self, position: i64) -> Bytes {
        let generation = self.meta.generation;
        self.prefix.element(
            ElementKind::ListElement,
            generation,
            &[&list_position(position)],
        )
    }

    fn get(&self, db: &mut Db<'_>, position: i64) -> Result<Bytes, ReplyError> {
        db.rows().get(&self.row(position))?.ok_or_else(|| {
            leadline_kv::RowError::Storage("a list has a hole: its data is damaged".into()).into()
        })
    }

    fn put(&self, db: &mut Db<'_>, position: i64, element: Bytes) {
        db.rows().put(self.row(position), element);
    }

    fn push(&mut self, db: &mut Db<'_>, end: End, element: Bytes) {
        match end {
            End::Left => {
                self.meta.head -= 1;
                self.put(db, self.meta.head, element);
            }
            End::Right => {
                self.put(db, self.meta.tail, element);
                self.meta.tail += 1;
            }
        }
    }

    /// Pops one element of a list that is not empty.
    fn pop(&mut self, db: &mut Db<'_>, end: End) -> Result<Bytes, ReplyError> {
        let position = match end {
            End::Left => self.meta.head,
            End::Right => self.meta.tail - 1,
        };
        let element = self.get(db, position)?;
        db.rows().delete(self.row(position));
        match end {
            End::Left => self.meta.head += 1,
            End::Right => self.meta.tail -= 1,
        }
        Ok(element)
    }

    /// Pops up to `count` elements, in the order they come off.
    fn pop_many(
        &mut self,
        db: &mut Db<'_>,
        end: End,
        count: u64,
    ) -> Result<Vec<Bytes>, ReplyError> {
        let count = count.min(self.meta.count);
        (0..count).map(|_| self.pop(db, end)).collect()
    }

    /// Deletes the elements at `positions`, one of the list's ends.
    fn cut(&self, db: &mut Db<'_>, positions: std::ops::Range<i64>) {
        for position in positions {
            db.rows().delete(self.row(position));
        }
    }

    /// Visits the elements at `positions` until `visit` says stop.
    fn scan(
        &self,
        db: &mut Db<'_>,
        positions: std::ops::Range<i64>,
        order: ScanOrder,
        visit: &mut dyn FnMut(i64, &Bytes) -> bool,
    ) -> Result<(), ReplyError> {
        let (mut at, step) = match order {
            ScanOrder::Ascending => (positions.start, 1),
            ScanOrder::Descending => (positions.end - 1, -1),
        };
        let range = self.row(positions.start)..self.row(positions.end);
        db.rows().scan(range, order, &mut |_, element| {
            let go_on = visit(at, element);
            at += step;
            go_on
        })?;
        Ok(())
    }

    fn collect(
        &self,
        db: &mut Db<'_>,
        positions: std::ops::Range<i64>,
    ) -> Result<Vec<Bytes>, ReplyError> {
        let mut elements = Vec::new();
        self.scan(db, positions, ScanOrder::Ascending, &mut |_, element| {
            elements.push(element.clone());
            true
        })?;
        Ok(elements)
    }

    /// The position of Redis' `index` (negative from the end), if the list has it.
    fn at_index(&self, index: i64) -> Option<i64> {
        let offset = if index < 0 {
            index.checked_add(self.len())?
        } else {
            index
        };
        (0..self.len())
            .contains(&offset)
            .then(|| self.meta.head + offset)
    }

    /// The positions of Redis' inclusive range, cut to what there is.
    fn range(&self, start: i64, stop: i64) -> std::ops::Range<i64> {
        let absolute = |index: i64| {
            if index < 0 {
                index.saturating_add(self.len())
            } else {
                index
            }
        };
        let start = absolute(start).max(0).min(self.len());
        let stop = absolute(stop).saturating_add(1).min(self.len()).max(start);
        self.meta.head + start..self.meta.head + stop
    }
}

/// `LPUSH | RPUSH | LPUSHX | RPUSHX key element …`: the new length.
#[derive(Debug)]
struct Push {
    key: Bytes,
    elements: Vec<Bytes>,
    end: End,
    absent: Absent,
}

impl Push {
    fn parse(
        args: &mut Args<'_>,
        end: End,
        absent: Absent,
    ) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            elements: args.rest().to_vec(),
            end,
            absent,
        }))
    }
}

impl Command for Push {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let mut list = match self.absent {
            Absent::Create => List::open_or_new(db, &self.key)?,
            Absent::Refuse => match List::open(db, &self.key)? {
                Some(list) => list,
                None => return Ok(Reply::Integer(0)),
            },
        };
        for element in &self.elements {
            list.push(db, self.end, element.clone());
        }
        let length = list.len();
        list.save(db)?;
        db.wake(&self.key);
        Ok(Reply::Integer(length))
    }
}

/// `LPOP | RPOP key [count]`.
#[derive(Debug)]
struct Pop {
    key: Bytes,
    count: Option<u64>,
    end: End,
}

impl Pop {
    fn parse(args: &mut Args<'_>, end: End) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let count = if args.is_empty() {
            None
        } else {
            Some(args.positive()?)
        };
        args.end_arity()?;
        Ok(Box::new(Self { key, count, end }))
    }
}

impl Command for Pop {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut list) = List::open(db, &self.key)? else {
            return Ok(if self.count.is_some() {
                Reply::NullArray
            } else {
                Reply::Null
            });
        };
        let reply = match self.count {
            None => Reply::Bulk(list.pop(db, self.end)?),
            Some(0) => return Ok(Reply::Array(Vec::new())),
            Some(count) => Reply::bulks(list.pop_many(db, self.end, count)?),
        };
        list.save(db)?;
        Ok(reply)
    }
}

/// `LLEN key`.
#[derive(Debug)]
struct Len {
    key: Bytes,
}

impl Len {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self { key: args.key()? }))
    }
}

impl Command for Len {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(Reply::Integer(
            List::open(db, &self.key)?.map_or(0, |list| list.len()),
        ))
    }
}

/// `LINDEX key index`.
#[derive(Debug)]
struct Index {
    key: Bytes,
    index: i64,
}

impl Index {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            index: args.integer()?,
        }))
    }
}

impl Command for Index {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(list) = List::open(db, &self.key)? else {
            return Ok(Reply::Null);
        };
        match list.at_index(self.index) {
            Some(position) => list.get(db, position).map(Reply::Bulk),
            None => Ok(Reply::Null),
        }
    }
}

/// `LSET key index element`.
#[derive(Debug)]
struct Set {
    key: Bytes,
    index: Bytes,
    element: Bytes,
}

impl Set {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            index: args.bytes()?,
            element: args.bytes()?,
        }))
    }
}

impl Command for Set {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        // The key is looked at before the index, as in Redis.
        let list = List::open(db, &self.key)?.ok_or(ReplyError::NoSuchKey)?;
        let index = parse_integer(&self.index).ok_or(ReplyError::NotInteger)?;
        let position = list.at_index(index).ok_or(ReplyError::IndexOutOfRange)?;
        list.put(db, position, self.element.clone());
        list.save(db)?;
        Ok(Reply::OK)
    }
}

/// `LRANGE key start stop`.
#[derive(Debug)]
struct Range {
    key: Bytes,
    start: i64,
    stop: i64,
}

impl Range {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            start: args.integer()?,
            stop: args.integer()?,
        }))
    }
}

impl Command for Range {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(list) = List::open(db, &self.key)? else {
            return Ok(Reply::Array(Vec::new()));
        };
        let positions = list.range(self.start, self.stop);
        Ok(Reply::bulks(list.collect(db, positions)?))
    }
}

/// `LTRIM key start stop`.
#[derive(Debug)]
struct Trim {
    key: Bytes,
    start: i64,
    stop: i64,
}

impl Trim {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            start: args.integer()?,
            stop: args.integer()?,
        }))
    }
}

impl Command for Trim {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut list) = List::open(db, &self.key)? else {
            return Ok(Reply::OK);
        };
        let keep = list.range(self.start, self.stop);
        if keep.is_empty() {
            // The whole generation dies at once, whatever its size.
            db.remove(&self.key)?;
            return Ok(Reply::OK);
        }
        list.cut(db, list.meta.head..keep.start);
        list.cut(db, keep.end..list.meta.tail);
        (list.meta.head, list.meta.tail) = (keep.start, keep.end);
        list.save(db)?;
        Ok(Reply::OK)
    }
}

/// `LINSERT key BEFORE | AFTER pivot element`: the new length; -1 without the pivot, 0 without the
/// key.
#[derive(Debug)]
struct Insert {
    key: Bytes,
    after: bool,
    pivot: Bytes,
    element: Bytes,
}

impl Insert {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let key = args.key()?;
        let after = if args.take("AFTER") {
            true
        } else if args.take("BEFORE") {
            false
        } else {
            return Err(ReplyError::Syntax);
        };
        Ok(Box::new(Self {
            key,
            after,
            pivot: args.bytes()?,
            element: args.bytes()?,
        }))
    }
}

impl Command for Insert {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut list) = List::open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let mut found = None;
        list.scan(
            db,
            list.meta.head..list.meta.tail,
            ScanOrder::Ascending,
            &mut |at, element| {
                if *element == self.pivot {
                    found = Some(at);
                }
                found.is_none()
            },
        )?;
        let Some(pivot) = found else {
            return Ok(Reply::Integer(-1));
        };
        // The new element goes between `at - 1` and `at`: the shorter side makes room.
        let at = pivot + i64::from(self.after);
        let (before, behind) = (list.meta.head..at, at..list.meta.tail);
        if before.end - before.start < behind.end - behind.start {
            let moved = list.collect(db, before.clone())?;
            for (position, element) in (before.start - 1..).zip(moved) {
                list.put(db, position, element);
            }
            list.put(db, at - 1, self.element.clone());
            list.meta.head -= 1;
        } else {
            let moved = list.collect(db, behind.clone())?;
            for (position, element) in (behind.start + 1..).zip(moved) {
                list.put(db, position, element);
            }
            list.put(db, at, self.element.clone());
            list.meta.tail += 1;
        }
        let length = list.len();
        list.save(db)?;
        Ok(Reply::Integer(length))
    }
}

/// `LREM key count element`: how many were removed.
#[derive(Debug)]
struct Remove {
    key: Bytes,
    count: i64,
    element: Bytes,
}

impl Remove {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self {
            key: args.key()?,
            count: args.integer()?,
            element: args.bytes()?,
        }))
    }
}

impl Command for Remove {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut list) = List::open(db, &self.key)? else {
            return Ok(Reply::Integer(0));
        };
        let order = if self.count < 0 {
            ScanOrder::Descending
        } else {
            ScanOrder::Ascending
        };
        let limit = match self.count.unsigned_abs() {
            0 => usize::MAX,
            count => usize::try_from(count).unwrap_or(usize::MAX),
        };
        let mut doomed = Vec::new();
        list.scan(
            db,
            list.meta.head..list.meta.tail,
            order,
            &mut |at, element| {
                if *element == self.element {
                    doomed.push(at);
                }
                doomed.len() < limit
            },
        )?;
        doomed.sort_unstable();
        let Some(&first) = doomed.first() else {
            return Ok(Reply::Integer(0));
        };
        // What stands behind the first hole moves up.
        let behind = list.collect(db, first..list.meta.tail)?;
        let survivors = (first..)
            .zip(behind)
            .filter(|(position, _)| doomed.binary_search(position).is_err())
            .map(|(_, element)| element);
        let mut end = first;
        for element in survivors {
            list.put(db, end, element);
            end += 1;
        }
        list.cut(db, end..list.meta.tail);
        list.meta.tail = end;
        list.save(db)?;
        Ok(Reply::Integer(
            i64::try_from(doomed.len()).unwrap_or(i64::MAX),
        ))
    }
}

/// `LPOS key element [RANK rank] [COUNT count] [MAXLEN length]`.
#[derive(Debug)]
struct Pos {
    key: Bytes,
    element: Bytes,
    rank: i64,
    count: Option<u64>,
    max_compared: u64,
}

impl Pos {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (key, element) = (args.key()?, args.bytes()?);
        let mut this = Self {
            key,
            element,
            rank: 1,
            count: None,
            max_compared: 0,
        };
        let range = |what: &str, args: &mut Args<'_>| {
            args.unsigned()
                .map_err(|_| ReplyError::err(format!("{what} can't be negative")))
        };
        while !args.is_empty() {
            if args.take("RANK") {
                this.rank = args.integer()?;
                if this.rank == i64::MIN {
                    return Err(ReplyError::err("value is out of range, must be positive"));
                }
                if this.rank == 0 {
                    return Err(ReplyError::err(
                        "RANK can't be zero: use 1 to start from the first match, 2 from the second ... \
                         or use negative to start from the end of the list",
                    ));
                }
            } else if args.take("COUNT") {
                this.count = Some(range("COUNT", args)?);
            } else if args.take("MAXLEN") {
                this.max_compared = range("MAXLEN", args)?;
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        Ok(Box::new(this))
    }
}

impl Command for Pos {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let none = || match self.count {
            Some(_) => Reply::Array(Vec::new()),
            None => Reply::Null,
        };
        let Some(list) = List::open(db, &self.key)? else {
            return Ok(none());
        };
        let order = if self.rank < 0 {
            ScanOrder::Descending
        } else {
            ScanOrder::Ascending
        };
        let wanted = match self.count {
            None => 1,
            Some(0) => u64::MAX,
            Some(count) => count,
        };
        let limit = if self.max_compared == 0 {
            u64::MAX
        } else {
            self.max_compared
        };
        let (mut skip, mut compared, mut found) = (self.rank.unsigned_abs() - 1, 0, Vec::new());
        list.scan(
            db,
            list.meta.head..list.meta.tail,
            order,
            &mut |at, element| {
                if *element == self.element {
                    if skip > 0 {
                        skip -= 1;
                    } else {
                        found.push(Reply::Integer(at - list.meta.head));
                    }
                }
                compared += 1;
                compared < limit && (found.len() as u64) < wanted
            },
        )?;
        match self.count {
            Some(_) => Ok(Reply::Array(found)),
            None => Ok(found.pop().unwrap_or(Reply::Null)),
        }
    }
}

/// `LMOVE source destination LEFT | RIGHT LEFT | RIGHT`: the element moved.
#[derive(Debug)]
struct Move {
    source: Bytes,
    destination: Bytes,
    from: End,
    to: End,
    nothing: Nothing,
}

impl Move {
    fn parse(args: &mut Args<'_>, nothing: Nothing) -> Result<Self, ReplyError> {
        let (source, destination) = (args.key()?, args.key()?);
        let (from, to) = (End::parse(args)?, End::parse(args)?);
        Ok(Self {
            source,
            destination,
            from,
            to,
            nothing,
        })
    }

    fn parse_rpoplpush(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let (source, destination) = (args.key()?, args.key()?);
        let (from, to, nothing) = (End::Right, End::Left, Nothing::Null);
        Ok(Box::new(Self {
            source,
            destination,
            from,
            to,
            nothing,
        }))
    }
}

impl Command for Move {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(mut source) = List::open(db, &self.source)? else {
            return Ok(match self.nothing {
                Nothing::Null => Reply::Null,
                Nothing::Block => Reply::Block,
            });
        };
        if self.source == self.destination {
            let element = source.pop(db, self.from)?;
            source.push(db, self.to, element.clone());
            source.save(db)?;
            return Ok(Reply::Bulk(element));
        }
        // Before anything is moved: the destination may be of another type.
        let mut destination = List::open_or_new(db, &self.destination)?;
        let element = source.pop(db, self.from)?;
        destination.push(db, self.to, element.clone());
        source.save(db)?;
        destination.save(db)?;
        db.wake(&self.destination);
        Ok(Reply::Bulk(element))
    }
}

fn blocking_move(args: &mut Args<'_>) -> Result<Blocking, ReplyError> {
    let plain = Move::parse(args, Nothing::Block)?;
    let timeout = parse_timeout(&args.bytes()?)?;
    Ok(one_move(&plain, timeout))
}

fn blocking_rpoplpush(args: &mut Args<'_>) -> Result<Blocking, ReplyError> {
    let (source, destination) = (args.key()?, args.key()?);
    let timeout = parse_timeout(&args.bytes()?)?;
    let (from, to, nothing) = (End::Right, End::Left, Nothing::Block);
    Ok(one_move(
        &Move {
            source,
            destination,
            from,
            to,
            nothing,
        },
        timeout,
    ))
}

fn one_move(plain: &Move, timeout: Option<Duration>) -> Blocking {
    let attempt = Attempt {
        watch: plain.source.clone(),
        args: vec![
            Bytes::from_static(ATTEMPT_MOVE.as_bytes()),
            plain.source.clone(),
            plain.destination.clone(),
            plain.from.word(),
            plain.to.word(),
        ],
    };
    Blocking {
        timeout,
        attempts: vec![attempt],
        on_timeout: Reply::NullArray,
    }
}

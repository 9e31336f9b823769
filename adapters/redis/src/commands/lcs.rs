//! `LCS key key [LEN] [IDX] [MINMATCHLEN n] [WITHMATCHLEN]`: the longest common subsequence of two
//! strings, its length, or where it lies in both.

use bytes::Bytes;

use crate::args::Args;
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::{Db, First, Value};
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[Spec::read(
    "LCS",
    "lcs",
    "string",
    Arity::AtLeast(3),
    Keys::Range { first: 1, last: 2 },
    Lcs::parse,
)];

/// The table of lengths may have so many bytes: it is held while the shard waits.
const MOST_TABLE_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Lcs {
    keys: [Bytes; 2],
    length_only: bool,
    positions: bool,
    with_length: bool,
    shortest: i64,
}

impl Lcs {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let mut lcs = Self {
            keys: [args.key()?, args.key()?],
            length_only: false,
            positions: false,
            with_length: false,
            shortest: 0,
        };
        while !args.is_empty() {
            if args.take("IDX") {
                lcs.positions = true;
            } else if args.take("LEN") {
                lcs.length_only = true;
            } else if args.take("WITHMATCHLEN") {
                lcs.with_length = true;
            } else if args.len() > 1 && args.take("MINMATCHLEN") {
                lcs.shortest = args.integer()?.max(0);
            } else {
                return Err(ReplyError::Syntax);
            }
        }
        if lcs.positions && lcs.length_only {
            return Err(ReplyError::err(
                "If you want both the length and indexes, please just use IDX.",
            ));
        }
        boxed(lcs)
    }

    fn answer(&self, a: &[u8], b: &[u8]) -> Result<Reply, ReplyError> {
        let width = b.len() + 1;
        let cells = (a.len() as u64 + 1).saturating_mul(width as u64);
        if cells.saturating_mul(4) > MOST_TABLE_BYTES {
            return Err(ReplyError::err(
                "Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
            ));
        }
        // table[i * width + j]: the length for the first i bytes of a and the first j of b.
        let mut table = vec![0u32; (a.len() + 1) * width];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                table[(i + 1) * width + j + 1] = if x == y {
                    table[i * width + j] + 1
                } else {
                    table[i * width + j + 1].max(table[(i + 1) * width + j])
                };
            }
        }
        let total = i64::from(table[table.len() - 1]);
        if self.length_only {
            return Ok(Reply::Integer(total));
        }
        let mut common = Vec::new();
        let mut matches = Vec::new();
        // The run of common bytes that is being followed: where it begins in both, its length.
        let mut run: Option<(usize, usize, i64)> = None;
        let (mut i, mut j) = (a.len(), b.len());
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                (i, j) = (i - 1, j - 1);
                common.push(a[i]);
                run = Some((i, j, run.map_or(1, |(_, _, length)| length + 1)));
            } else {
                matches.extend(run.take().and_then(|run| self.run(run)));
                if table[(i - 1) * width + j] > table[i * width + j - 1] {
                    i -= 1;
                } else {
                    j -= 1;
                }
            }
        }
        matches.extend(run.and_then(|run| self.run(run)));
        if !self.positions {
            common.reverse();
            return Ok(Reply::Bulk(common.into()));
        }
        Ok(Reply::Map(vec![
            (bulk("matches"), Reply::Array(matches)),
            (bulk("len"), Reply::Integer(total)),
        ]))
    }

    fn run(&self, (a, b, length): (usize, usize, i64)) -> Option<Reply> {
        if length < self.shortest {
            return None;
        }
        let range = |begin: usize| {
            let begin = i64::try_from(begin).unwrap_or(i64::MAX);
            Reply::Array(vec![
                Reply::Integer(begin),
                Reply::Integer(begin + length - 1),
            ])
        };
        let mut parts = vec![range(a), range(b)];
        if self.with_length {
            parts.push(Reply::Integer(length));
        }
        Some(Reply::Array(parts))
    }
}

fn bulk(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

fn value(db: &mut Db<'_>, key: &[u8]) -> Result<Bytes, ReplyError> {
    match db.lookup(key)? {
        None => Ok(Bytes::new()),
        Some(First {
            value: Value::String(value),
            ..
        }) => Ok(value),
        Some(_) => Err(ReplyError::err(
            "The specified keys must contain string values",
        )),
    }
}

impl Command for Lcs {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (a, b) = (value(db, &self.keys[0])?, value(db, &self.keys[1])?);
        self.answer(&a, &b)
    }
}

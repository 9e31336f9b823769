//! Sorted set commands. A member has two rows: one under the member, which holds its score, and
//! one under score and member, which keeps the order.
//!
//! Ranks are counted by walking the ordered rows from the nearer end.
//!
//! # Invariants
//! 1. A member's score row exists exactly for the score that its member row holds.
//!
//! Source: <https://redis.io/docs/latest/commands/?group=sorted-set>, Redis 7.2.

mod add;
mod combine;
mod pop;
mod range;
mod read;

use std::ops::{ControlFlow, Range};

use bytes::{Buf, Bytes};
use leadline_kv::{RowError, ScanOrder};

use crate::reply::{Reply, ReplyError};
use crate::rows::{Db, ElementKind, Hashed, Type, score_bytes, score_from_bytes};
use crate::spec::Spec;

const CATEGORY: &str = "sortedset";

/// The tables of this family's files.
pub(super) const SPECS: &[&[Spec]] = &[
    add::SPECS,
    read::SPECS,
    range::SPECS,
    pop::SPECS,
    combine::SPECS,
];

/// An open sorted set.
struct SortedSet<'k>(Hashed<'k>);

pub(super) fn decode_score(mut value: Bytes) -> Result<f64, ReplyError> {
    value
        .try_get_f64()
        .map_err(|_| RowError::Storage("a sorted set's score row is damaged".into()).into())
}

fn encode_score(score: f64) -> Bytes {
    // Negative zero is stored as zero, as Redis stores it in its compact form.
    Bytes::copy_from_slice(&(score + 0.0).to_be_bytes())
}

fn count_reply(count: u64) -> Reply {
    Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

impl<'k> SortedSet<'k> {
    fn open(db: &mut Db<'_>, key: &'k [u8]) -> Result<Option<Self>, ReplyError> {
        Ok(Hashed::open(db, key, Type::SortedSet)?.map(Self))
    }

    fn open_or_new(db: &mut Db<'_>, key: &'k [u8]) -> Result<Self, ReplyError> {
        Hashed::open_or_new(db, key, Type::SortedSet).map(Self)
    }

    fn replacing(db: &mut Db<'_>, key: &'k [u8]) -> Self {
        Self(Hashed::replacing(db, key, Type::SortedSet))
    }

    fn save(self, db: &mut Db<'_>) -> Result<(), ReplyError> {
        self.0.save(db)
    }

    fn len(&self) -> u64 {
        self.0.meta.count
    }

    fn score_row(&self, score: f64, member: &[u8]) -> Bytes {
        let generation = self.0.meta.generation;
        self.0.prefix.element(
            ElementKind::SortedSetScore,
            generation,
            &[&score_bytes(score), member],
        )
    }

    fn score(&self, db: &mut Db<'_>, member: &[u8]) -> Result<Option<f64>, ReplyError> {
        self.0.get(db, member)?.map(decode_score).transpose()
    }

    /// Gives `member` this score; returns the one it had.
    fn set_score(
        &mut self,
        db: &mut Db<'_>,
        member: &[u8],
        score: f64,
    ) -> Result<Option<f64>, ReplyError> {
        let old = self
            .0
            .put(db, member, encode_score(score))?
            .map(decode_score)
            .transpose()?;
        if let Some(old) = old {
            if score_bytes(old) == score_bytes(score) {
                return Ok(Some(old));
            }
            db.rows().delete(self.score_row(old, member));
        }
        db.rows().put(self.score_row(score, member), Bytes::new());
        Ok(old)
    }

    fn remove(&mut self, db: &mut Db<'_>, member: &[u8]) -> Result<Option<f64>, ReplyError> {
        let old = self.0.remove(db, member)?.map(decode_score).transpose()?;
        if let Some(old) = old {
            db.rows().delete(self.score_row(old, member));
        }
        Ok(old)
    }

    /// All rows of the order.
    fn ordered_rows(&self) -> Range<Bytes> {
        self.0
            .prefix
            .elements(ElementKind::SortedSetScore, self.0.meta.generation)
    }

    /// The first row of the order at or above `score`.
    fn at_score(&self, score: f64) -> Bytes {
        self.score_row(score, b"")
    }

    /// Visits members with their scores in `rows`, in order, until `visit` says stop.
    fn walk(
        &self,
        db: &mut Db<'_>,
        rows: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], f64) -> ControlFlow<()>,
    ) -> Result<(), ReplyError> {
        let header = self.0.prefix.element_header();
        let mut damaged = false;
        db.rows().scan(rows, order, &mut |row, _| {
            let Some((score, member)) = row[header..].split_first_chunk::<8>() else {
                damaged = true;
                return false;
            };
            visit(member, score_from_bytes(*score)).is_continue()
        })?;
        if damaged {
            return Err(RowError::Storage("a sorted set's order row is damaged".into()).into());
        }
        Ok(())
    }

    /// Members with their scores at the places `skip .. skip + take` of `rows` in `order`.
    fn slice(
        &self,
        db: &mut Db<'_>,
        rows: Range<Bytes>,
        order: ScanOrder,
        skip: u64,
        take: u64,
    ) -> Result<Vec<(Bytes, f64)>, ReplyError> {
        let (mut skip, mut found) = (skip, Vec::new());
        if take == 0 {
            return Ok(found);
        }
        self.walk(db, rows, order, &mut |member, score| {
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

    /// Removes members and writes the first row.
    fn remove_all(mut self, db: &mut Db<'_>, members: &[(Bytes, f64)]) -> Result<u64, ReplyError> {
        for (member, _) in members {
            self.remove(db, member)?;
        }
        if !members.is_empty() {
            self.save(db)?;
        }
        Ok(members.len() as u64)
    }
}

/// Members, alone or with their scores.
fn members_reply(members: Vec<(Bytes, f64)>, with_scores: bool) -> Reply {
    if with_scores {
        let pair = |(member, score)| (Reply::Bulk(member), Reply::Double(score));
        Reply::Pairs(members.into_iter().map(pair).collect())
    } else {
        Reply::bulks(members.into_iter().map(|(member, _)| member))
    }
}

/// A score bound or increment; NaN is no score.
fn parse_score(text: &[u8]) -> Result<f64, ReplyError> {
    crate::args::parse_double(text).ok_or(ReplyError::NotFloat)
}

//! The rows that transactions leave in a shard's own area, and their names.
//!
//! ```text
//! 'l' session u128 BE | number u64 BE    a lock: LockRecord
//! 'c' session | number                   the attempt is committed: CommitRecord
//! 'a' session | number                   the attempt is aborted: empty
//! 'M' session                            the session's mark: u64 BE, numbers below it are settled
//! ```
//! The area is a part of the shard's own range ([`crate::keyspace::area`]), so that these rows
//! travel with it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::AttemptId;
use crate::wire::{CommitRecord, LockRecord};

/// First bytes of the rows' names.
pub(super) const LOCK: u8 = b'l';
pub(super) const COMMIT: u8 = b'c';
pub(super) const ABORT: u8 = b'a';
pub(super) const SESSION_MARK: u8 = b'M';

/// The format of lock and commit records.
const FORMAT: u32 = 1;

/// What a row of this module says.
#[derive(Debug)]
pub(super) enum RowName {
    Lock(AttemptId),
    Commit(AttemptId),
    Abort(AttemptId),
    Mark(u128),
}

/// A record that this program cannot read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} is damaged, or of a format above {FORMAT}: a newer program wrote it")]
pub(crate) struct Unreadable {
    what: &'static str,
}

pub(super) fn attempt_name(kind: u8, id: AttemptId) -> Bytes {
    let mut name = BytesMut::with_capacity(25);
    name.put_u8(kind);
    name.put_u128(id.session);
    name.put_u64(id.number);
    name.freeze()
}

pub(super) fn mark_name(session: u128) -> Bytes {
    let mut name = BytesMut::with_capacity(17);
    name.put_u8(SESSION_MARK);
    name.put_u128(session);
    name.freeze()
}

/// `None`: the row is not of this module.
pub(super) fn parse_name(mut name: &[u8]) -> Option<RowName> {
    let kind = name.try_get_u8().ok()?;
    let session = name.try_get_u128().ok()?;
    if kind == SESSION_MARK {
        return name.is_empty().then_some(RowName::Mark(session));
    }
    let number = name.try_get_u64().ok()?;
    let id = AttemptId { session, number };
    match kind {
        _ if !name.is_empty() => None,
        LOCK => Some(RowName::Lock(id)),
        COMMIT => Some(RowName::Commit(id)),
        ABORT => Some(RowName::Abort(id)),
        _ => None,
    }
}

impl LockRecord {
    /// A row key of the shard that holds the lock.
    pub(crate) fn anchor(&self) -> Bytes {
        let row = self.changes.first().map(|row| &row.key);
        let range = || self.deleted.first().map(|range| &range.start);
        row.or_else(range).unwrap_or(&self.primary).clone()
    }

    pub(super) fn to_row(&self) -> Bytes {
        debug_assert_eq!(self.format, FORMAT);
        self.encode_to_vec().into()
    }

    pub(super) fn from_row(row: &[u8]) -> Result<Self, Unreadable> {
        // Copied: slices would keep the whole log entry in memory.
        match Self::decode(Bytes::copy_from_slice(row)) {
            Ok(record) if record.format == FORMAT => Ok(record),
            _ => Err(Unreadable { what: "lock" }),
        }
    }
}

impl CommitRecord {
    /// Whether the deciding shard held a lock until it decided.
    pub(super) fn had_lock(&self) -> bool {
        self.participants
            .first()
            .is_some_and(|first| first.stamp != 0)
    }

    pub(super) fn to_row(&self) -> Bytes {
        debug_assert_eq!(self.format, FORMAT);
        self.encode_to_vec().into()
    }

    pub(super) fn from_row(row: &[u8]) -> Result<Self, Unreadable> {
        match Self::decode(Bytes::copy_from_slice(row)) {
            Ok(record) if record.format == FORMAT => Ok(record),
            _ => Err(Unreadable {
                what: "commit record",
            }),
        }
    }
}

/// The format that new records get.
pub(super) const fn format() -> u32 {
    FORMAT
}

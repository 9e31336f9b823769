//! What a shard knows of transactions: its locks, and which attempts are committed or aborted.
//!
//! There are two of these for a shard: the applied one, which changes with the rows that say so and
//! which readers on any thread look at; and the executor's, made from it when the executor begins
//! and ahead of it by the batches that are not applied yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::Bytes;

use super::AttemptId;
use super::record::{RowName, Unreadable, parse_name};
use crate::ScanOrder;
use crate::wire::row_change::Change;
use crate::wire::{CommitRecord, LockRecord};

/// Met a lock of this attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked(pub(crate) AttemptId);

#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(super) locks: HashMap<AttemptId, Arc<LockRecord>>,
    /// Rows that a lock changes or keeps.
    rows: BTreeMap<Bytes, AttemptId>,
    /// Ranges that a lock deletes.
    ranges: Vec<(Range<Bytes>, AttemptId)>,
    /// Counters that locks will add to, and how many of them.
    counters: BTreeMap<Bytes, Vec<AttemptId>>,
    pub(super) commits: HashMap<AttemptId, Arc<CommitRecord>>,
    sessions: HashMap<u128, Session>,
}

#[derive(Clone, Debug, Default)]
struct Session {
    /// Numbers below it are settled.
    mark: u64,
    aborted: BTreeSet<u64>,
}

impl Table {
    /// Takes note of a row that was written; `false`: it is not of this module.
    pub(crate) fn row_written(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Unreadable> {
        match parse_name(name) {
            None => return Ok(false),
            Some(RowName::Lock(id)) => self.lock(id, Arc::new(LockRecord::from_row(value)?)),
            Some(RowName::Commit(id)) => {
                self.commit(id, Arc::new(CommitRecord::from_row(value)?));
            }
            Some(RowName::Abort(id)) => self.abort(id),
            Some(RowName::Mark(session)) => {
                let mark = <[u8; 8]>::try_from(value).map_or(0, u64::from_be_bytes);
                self.set_mark(session, mark);
            }
        }
        Ok(true)
    }

    /// Takes note of a row that was deleted; `false`: it is not of this module.
    pub(crate) fn row_deleted(&mut self, name: &[u8]) -> bool {
        match parse_name(name) {
            None => return false,
            Some(RowName::Lock(id)) => drop(self.unlock(id)),
            Some(RowName::Commit(id)) => drop(self.commits.remove(&id)),
            Some(RowName::Abort(id)) => {
                if let Some(session) = self.sessions.get_mut(&id.session) {
                    session.aborted.remove(&id.number);
                }
            }
            Some(RowName::Mark(session)) => drop(self.sessions.remove(&session)),
        }
        true
    }

    pub(super) fn lock(&mut self, id: AttemptId, record: Arc<LockRecord>) {
        self.unlock(id);
        for row in &record.changes {
            if matches!(row.change, Some(Change::Add(_))) {
                self.counters.entry(row.key.clone()).or_default().push(id);
            } else {
                self.rows.insert(row.key.clone(), id);
            }
        }
        for range in &record.deleted {
            self.ranges
                .push((range.start.clone()..range.end.clone(), id));
        }
        self.locks.insert(id, record);
    }

    pub(super) fn unlock(&mut self, id: AttemptId) -> Option<Arc<LockRecord>> {
        let record = self.locks.remove(&id)?;
        for row in &record.changes {
            if let Some(adding) = self.counters.get_mut(&row.key) {
                adding.retain(|other| *other != id);
                if adding.is_empty() {
                    self.counters.remove(&row.key);
                }
            }
            if self.rows.get(&row.key) == Some(&id) {
                self.rows.remove(&row.key);
            }
        }
        self.ranges.retain(|(_, holder)| *holder != id);
        Some(record)
    }

    pub(super) fn commit(&mut self, id: AttemptId, record: Arc<CommitRecord>) {
        self.commits.insert(id, record);
    }

    pub(super) fn abort(&mut self, id: AttemptId) {
        let session = self.sessions.entry(id.session).or_default();
        session.aborted.insert(id.number);
    }

    pub(super) fn set_mark(&mut self, session: u128, mark: u64) {
        let session = self.sessions.entry(session).or_default();
        session.mark = session.mark.max(mark);
        session.aborted = session.aborted.split_off(&session.mark);
    }

    /// Whether `id` was aborted, or is settled for other reasons: it gets nothing any more.
    pub(super) fn is_over(&self, id: AttemptId) -> bool {
        self.sessions
            .get(&id.session)
            .is_some_and(|session| id.number < session.mark || session.aborted.contains(&id.number))
    }

    /// The first `most` abort records of a session below `mark`.
    pub(super) fn aborted_below(&self, session: u128, mark: u64, most: usize) -> Vec<u64> {
        self.sessions
            .get(&session)
            .map_or_else(Vec::new, |session| {
                session.aborted.range(..mark).take(most).copied().collect()
            })
    }

    /// The lock of an attempt.
    pub(crate) fn record(&self, id: AttemptId) -> Option<&Arc<LockRecord>> {
        self.locks.get(&id)
    }

    pub(crate) fn lock_ids(&self) -> impl Iterator<Item = AttemptId> {
        self.locks.keys().copied()
    }

    /// The lock of another attempt on `key`.
    pub(super) fn blocks_other(&self, id: AttemptId, key: &[u8]) -> Option<Blocked> {
        self.blocks(key).filter(|Blocked(holder)| *holder != id)
    }

    pub(crate) fn has_locks(&self) -> bool {
        !self.locks.is_empty()
    }

    /// The lock that keeps others from `key`, for a read or a write.
    pub(crate) fn blocks(&self, key: &[u8]) -> Option<Blocked> {
        if self.locks.is_empty() {
            return None;
        }
        self.blocks_counter(key).or_else(|| {
            self.counters
                .get(key)
                .and_then(|adding| adding.first())
                .map(|id| Blocked(*id))
        })
    }

    /// The lock that keeps others from adding to the counter `key`.
    pub(crate) fn blocks_counter(&self, key: &[u8]) -> Option<Blocked> {
        if self.locks.is_empty() {
            return None;
        }
        self.rows.get(key).map(|id| Blocked(*id)).or_else(|| {
            self.ranges
                .iter()
                .find(|(range, _)| *range.start <= *key && *key < *range.end)
                .map(|(_, id)| Blocked(*id))
        })
    }

    /// The lock that keeps others from something in `range`.
    pub(crate) fn blocks_range(&self, range: &Range<Bytes>) -> Option<Blocked> {
        if self.locks.is_empty() {
            return None;
        }
        self.first_in(range, ScanOrder::Ascending)
            .map(|(_, id)| Blocked(id))
            .or_else(|| self.blocks_counters_in(range))
            .or_else(|| {
                self.ranges
                    .iter()
                    .find(|(locked, _)| locked.start < range.end && range.start < locked.end)
                    .map(|(_, id)| Blocked(*id))
            })
    }

    fn blocks_counters_in(&self, range: &Range<Bytes>) -> Option<Blocked> {
        if range.start >= range.end {
            return None;
        }
        self.counters
            .range::<[u8], _>((
                Bound::Included(&range.start[..]),
                Bound::Excluded(&range.end[..]),
            ))
            .next()
            .and_then(|(_, adding)| adding.first())
            .map(|id| Blocked(*id))
    }

    /// Where a scan of `range` in `order` meets the first lock.
    pub(crate) fn first_met(
        &self,
        range: &Range<Bytes>,
        order: ScanOrder,
    ) -> Option<(Bytes, Blocked)> {
        if self.locks.is_empty() || range.start >= range.end {
            return None;
        }
        let row = self.first_in(range, order);
        let over = self
            .ranges
            .iter()
            .filter(|(locked, _)| locked.start < range.end && range.start < locked.end)
            .map(|(locked, id)| {
                let met = match order {
                    ScanOrder::Ascending => locked.start.clone().max(range.start.clone()),
                    ScanOrder::Descending => locked.end.clone().min(range.end.clone()),
                };
                (met, *id)
            });
        let all = row.into_iter().chain(over);
        match order {
            ScanOrder::Ascending => all.min(),
            ScanOrder::Descending => all.max(),
        }
        .map(|(key, id)| (key, Blocked(id)))
    }

    fn first_in(&self, range: &Range<Bytes>, order: ScanOrder) -> Option<(Bytes, AttemptId)> {
        if range.start >= range.end {
            return None;
        }
        let mut rows = self.rows.range::<[u8], _>((
            Bound::Included(&range.start[..]),
            Bound::Excluded(&range.end[..]),
        ));
        match order {
            ScanOrder::Ascending => rows.next(),
            ScanOrder::Descending => rows.next_back(),
        }
        .map(|(key, id)| (key.clone(), *id))
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.locks.len(), self.commits.len())
    }
}

//! The rows as a command sees them: on the executor's thread, over the overlay and the applied
//! state; or on its caller's thread, over what the row cache has.

use std::ops::Range;

use bytes::Bytes;
use leadline_raft::Context;
use rand::Rng;
use rand::rngs::SmallRng;

use super::overlay::{Known, Overlay};
use crate::state_machine::ShardState;
use crate::storage::Row;
use crate::transaction::{AttemptId, Blocked, Table};
use crate::{Moment, RowError, Rows, ScanOrder, Timestamp};

/// A scan looks at its context once per this many rows.
const LOOK_EVERY: usize = 256;

/// The longest row key that storage takes.
const KEY_BYTES: usize = u16::MAX as usize;

pub(super) fn decode(stored: &Bytes) -> Result<(Bytes, Timestamp), RowError> {
    match Row::decode(stored) {
        Ok(row) => Ok((row.value, row.commit_ts)),
        Err(error) => Err(RowError::Storage(error.to_string())),
    }
}

/// Another shard's rows may lie on this node too, at some other time than this shard's.
fn owns(owned: &Range<Bytes>, key: &[u8]) -> Result<(), RowError> {
    if *owned.start <= *key && *key < *owned.end {
        Ok(())
    } else {
        Err(RowError::OtherShard)
    }
}

/// Rows for a command that the executor evaluates. A scan sees the shard's part of its range.
pub(super) struct ExecutorRows<'a> {
    pub(super) ctx: &'a Context,
    pub(super) state: &'a ShardState,
    pub(super) overlay: &'a mut Overlay,
    pub(super) owned: &'a Range<Bytes>,
    pub(super) stamp: Timestamp,
    pub(super) random: &'a mut SmallRng,
    pub(super) wakes: &'a mut Vec<Bytes>,
    /// The most bytes of effects one command may have.
    pub(super) limit: usize,
    /// Why the command's writes cannot be taken.
    pub(super) refused: Option<&'static str>,
    /// The last batch whose effects the command may have seen.
    pub(super) saw: u64,
    /// Locks of transactions over several shards, and whether to look at them.
    pub(super) locks: &'a Table,
    pub(super) overlook: bool,
    /// The attempt whose lock the command met.
    pub(super) met: Option<AttemptId>,
}

impl ExecutorRows<'_> {
    /// A row, whoever has locked it.
    fn read(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        match self.overlay.get(key) {
            Some((known, number)) => {
                self.saw = self.saw.max(number);
                match known {
                    Known::Value(value, stamp) => Ok(Some((value.clone(), *stamp))),
                    Known::Deleted => Ok(None),
                }
            }
            None => match self.state.get(key)? {
                Some(stored) => decode(&stored).map(Some),
                None => Ok(None),
            },
        }
    }

    fn writable(&mut self, key: &Bytes, value_bytes: usize) -> bool {
        if !self.owned.contains(key) {
            self.refused = Some("a row outside the shard");
        } else if self.met(self.locks.blocks(key)) {
            return false;
        } else if key.len() > KEY_BYTES {
            self.refused = Some("the key is longer than the store takes");
        } else if self.overlay.command_bytes() + key.len() + value_bytes > self.limit {
            self.refused = Some("the command writes more than the store takes at once");
        }
        self.refused.is_none()
    }

    /// Whether a transaction's lock keeps the command from what `blocked` says.
    fn met(&mut self, blocked: Option<Blocked>) -> bool {
        match blocked {
            Some(Blocked(attempt)) if !self.overlook => {
                self.met = Some(attempt);
                true
            }
            _ => false,
        }
    }
}

/// A row as a scan finds it.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    Pending(&'a Bytes),
    Stored(&'a [u8]),
}

/// Merges the overlay with the applied state.
pub(super) fn scan_merged(
    ctx: &Context,
    state: &ShardState,
    overlay: &Overlay,
    range: &Range<Bytes>,
    order: ScanOrder,
    visit: &mut dyn FnMut(&[u8], Timestamp, Found<'_>) -> bool,
) -> Result<(), RowError> {
    let mut pending: Box<dyn Iterator<Item = (&Bytes, &Known)>> = match order {
        ScanOrder::Ascending => Box::new(overlay.range(range)),
        ScanOrder::Descending => Box::new(overlay.range(range).rev()),
    };
    let before = |a: &[u8], b: &[u8]| match order {
        ScanOrder::Ascending => a < b,
        ScanOrder::Descending => a > b,
    };
    let mut next = pending.next();
    let mut failed = None;
    let mut seen = 0usize;
    let mut going = true;
    state.scan(range, order, &mut |key, stored| {
        seen += 1;
        if seen.is_multiple_of(LOOK_EVERY) && ctx.ended().is_some() {
            failed = Some(RowError::Ended);
            return false;
        }
        while let Some((pending_key, known)) = next {
            if !before(pending_key, key) {
                break;
            }
            if let Known::Value(value, stamp) = known {
                going = visit(pending_key, *stamp, Found::Pending(value));
                if !going {
                    return false;
                }
            }
            next = pending.next();
        }
        if let Some((pending_key, known)) = next
            && pending_key[..] == *key
        {
            if let Known::Value(value, stamp) = known {
                going = visit(key, *stamp, Found::Pending(value));
            }
            next = pending.next();
            return going;
        }
        if overlay.covered(key).is_some() {
            return true;
        }
        match Row::decode_ref(stored) {
            Ok((stamp, value)) => going = visit(key, stamp, Found::Stored(value)),
            Err(error) => {
                failed = Some(RowError::Storage(error.to_string()));
                return false;
            }
        }
        going
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    while going && let Some((key, known)) = next {
        if let Known::Value(value, stamp) = known {
            going = visit(key, *stamp, Found::Pending(value));
        }
        next = pending.next();
    }
    Ok(())
}

/// The first key after `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

impl Rows for ExecutorRows<'_> {
    fn context(&self) -> &Context {
        self.ctx
    }

    fn commit_ts(&self) -> Timestamp {
        self.stamp
    }

    fn random(&mut self) -> u64 {
        self.random.random()
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.get_versioned(key)?.map(|(value, _)| value))
    }

    fn get_versioned(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        owns(self.owned, key)?;
        if self.met(self.locks.blocks(key)) {
            return Err(RowError::Locked);
        }
        self.read(key)
    }

    fn scan(
        &mut self,
        range: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), RowError> {
        let range =
            range.start.max(self.owned.start.clone())..range.end.min(self.owned.end.clone());
        if range.start >= range.end {
            return Ok(());
        }
        self.saw = self.overlay.newest();
        let whole = range.clone();
        let lock = self.locks.first_met(&whole, order);
        let range = self.overlay.without_gap(range, order);
        let (mut first, mut going, mut blocked) = (None, true, false);
        if range.start < range.end {
            let (locks, overlook) = (&lock, self.overlook);
            scan_merged(
                self.ctx,
                self.state,
                self.overlay,
                &range,
                order,
                &mut |key, _, found| {
                    // Beyond a lock there may be rows that are not here yet.
                    if let Some((locked, _)) = locks
                        && !overlook
                        && match order {
                            ScanOrder::Ascending => **locked <= *key,
                            ScanOrder::Descending => **locked >= *key,
                        }
                    {
                        (going, blocked) = (false, true);
                        return false;
                    }
                    if first.is_none() {
                        first = Some(Bytes::copy_from_slice(key));
                    }
                    going = match found {
                        Found::Pending(value) => visit(key, value),
                        Found::Stored(value) => visit(key, &Bytes::copy_from_slice(value)),
                    };
                    going
                },
            )?;
        }
        if (blocked || going) && self.met(lock.map(|(_, blocked)| blocked)) {
            return Err(RowError::Locked);
        }
        if blocked || (range.start >= range.end && first.is_none() && going) {
            return Ok(());
        }
        // Up to the first row there is nothing; the end of a scan that found none is the end of it.
        self.overlay.add_gap(match (first, order) {
            (None, _) => whole,
            (Some(first), ScanOrder::Ascending) => whole.start..first,
            (Some(first), ScanOrder::Descending) => after(&first)..whole.end,
        });
        Ok(())
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        if self.writable(&key, value.len()) {
            self.overlay.put(key, value, self.stamp);
        }
    }

    fn delete(&mut self, key: Bytes) {
        if self.writable(&key, 0) {
            self.overlay.delete(key);
        }
    }

    fn delete_range(&mut self, range: Range<Bytes>) {
        if range.start < self.owned.start || range.end > self.owned.end {
            self.refused = Some("a range outside the shard");
        } else if !self.met(self.locks.blocks_range(&range)) {
            self.overlay.delete_range(range);
        }
    }

    fn add(&mut self, key: Bytes, delta: i64) -> Result<(), RowError> {
        // Locks that only add to it too are not in the way.
        if self.met(self.locks.blocks_counter(&key)) {
            return Err(RowError::Locked);
        }
        let now = self.read(&key)?.map(|(value, _)| value);
        let sum = crate::counter_sum(now.as_ref(), delta)?;
        if self.owned.contains(&key) {
            self.overlay.put(key, sum, self.stamp);
        } else {
            self.refused = Some("a row outside the shard");
        }
        Ok(())
    }

    fn wake(&mut self, key: Bytes) {
        self.wakes.push(key);
    }

    fn owned(&self) -> Range<Bytes> {
        self.owned.clone()
    }

    fn moment(&self) -> Result<Moment, RowError> {
        Ok(self.overlay.deletions().now())
    }
}

/// Rows for a read on its caller's thread: the applied state as far as the row cache has it.
/// Whatever needs more is left to the executor.
pub(super) struct CachedRows<'a> {
    ctx: &'a Context,
    state: &'a ShardState,
    owned: &'a Range<Bytes>,
    stamp: Timestamp,
    /// Rows looked at so far.
    reads: usize,
    versions: CacheVersions,
    /// It would write (an expired key): that is the executor's.
    writes: bool,
}

/// Counters of the changes under way in the cache; odd while one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheVersions {
    /// Of any batch: the rows of one batch show one after the other.
    pub(crate) batches: u64,
    /// Of batches with range deletions: rows may go long before the batch is whole.
    pub(crate) ranges: u64,
}

impl<'a> CachedRows<'a> {
    pub(super) fn new(
        ctx: &'a Context,
        state: &'a ShardState,
        owned: &'a Range<Bytes>,
        stamp: Timestamp,
    ) -> Self {
        Self {
            ctx,
            state,
            owned,
            stamp,
            reads: 0,
            versions: state.cache_versions(),
            writes: false,
        }
    }

    /// Whether what was read was the applied state at one instant, and nothing is to be written.
    pub(super) fn holds(&self) -> bool {
        let now = self.state.cache_versions();
        let (began, reads) = (self.versions, self.reads);
        !self.writes
            && began.ranges.is_multiple_of(2)
            && began.ranges == now.ranges
            && (reads < 2 || (began.batches.is_multiple_of(2) && began.batches == now.batches))
    }
}

impl Rows for CachedRows<'_> {
    fn context(&self) -> &Context {
        self.ctx
    }

    fn commit_ts(&self) -> Timestamp {
        self.stamp
    }

    fn random(&mut self) -> u64 {
        rand::random()
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.get_versioned(key)?.map(|(value, _)| value))
    }

    fn get_versioned(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        owns(self.owned, key)?;
        // Before the row is read: a lock that was granted before the request came is seen here.
        if self.state.is_locked(key) {
            return Err(RowError::NeedsExecutor);
        }
        self.reads += 1;
        match self.state.get_cached(key) {
            Some(Some(stored)) => decode(&stored).map(Some),
            Some(None) => Ok(None),
            None => Err(RowError::NeedsExecutor),
        }
    }

    fn scan(
        &mut self,
        range: Range<Bytes>,
        _order: ScanOrder,
        _visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), RowError> {
        // An empty range needs nothing.
        if range.start >= range.end {
            return Ok(());
        }
        Err(RowError::NeedsExecutor)
    }

    fn put(&mut self, _key: Bytes, _value: Bytes) {
        self.writes = true;
    }

    fn delete(&mut self, _key: Bytes) {
        self.writes = true;
    }

    fn delete_range(&mut self, _range: Range<Bytes>) {
        self.writes = true;
    }

    fn wake(&mut self, _key: Bytes) {}

    fn owned(&self) -> Range<Bytes> {
        self.owned.clone()
    }
}

//! What a step does at its shard: decisions over the executor's own state, as effects.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::AttemptId;
use super::record::{ABORT, COMMIT, LOCK, attempt_name, format, mark_name};
use super::steps::encode;
use crate::executor::transactions::{StepRows, Stepped, Transactions};
use crate::wire::row_change::Change;
use crate::wire::transaction_reply::Reply;
use crate::wire::transaction_step::Step;
use crate::wire::{
    CommitRecord, Decide, LockRecord, LockRows, RowChange, RowRange, SeenRange, ValidateRows,
};
use crate::{KvError, Moment, RowError, Timestamp};

/// Abort records that are worth a mark, and how many go at once: a batch is one log entry.
const WORTH_FORGETTING: usize = 32;
const FORGOTTEN_AT_ONCE: usize = 4096;

/// Does `step` of the attempt `id`. What it changes is in the overlay and in `transactions` when
/// this returns [`Stepped::Changed`], and nowhere otherwise.
pub(crate) fn execute(
    transactions: &mut Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    lowest_open: u64,
    step: &Step,
    now: Instant,
) -> Stepped {
    if let Step::Lock(_) | Step::Decide(_) = step {
        forget_aborted(transactions, id.session, lowest_open);
    }
    let stepped = match step {
        Step::Lock(request) => lock(transactions, rows, id, request, now),
        Step::Validate(seen) => validate(transactions, rows, id, seen),
        Step::Decide(decision) => decide(transactions, rows, id, decision),
        Step::RollForward(stamp) => roll_forward(transactions, rows, id, *stamp),
        Step::Release(stamp) => Ok(release(transactions, id, *stamp)),
        Step::Abort(_) => Ok(abort(transactions, id)),
        Step::Forget(_) => Ok(forget(transactions, id)),
        Step::Read(_) | Step::Scan(_) => Err(RowError::NeedsExecutor),
    };
    stepped.unwrap_or_else(|error| {
        Stepped::Failed(match error {
            RowError::Storage(why) => KvError::Storage(why),
            RowError::Ended => KvError::Storage("a step ended before its context".to_owned()),
            other => KvError::Invalid(other.to_string()),
        })
    })
}

fn looked(reply: Reply) -> Result<Stepped, RowError> {
    Ok(Stepped::Looked(encode(reply)))
}

/// Why an attempt cannot have what it wants here.
enum Obstacle {
    /// Something is not as it was seen, or locked by another.
    Conflict(Bytes),
    /// The shard does not own it.
    Elsewhere,
}

impl Obstacle {
    fn answer(self) -> Result<Stepped, RowError> {
        match self {
            Obstacle::Conflict(key) => looked(Reply::Conflict(key)),
            Obstacle::Elsewhere => Ok(Stepped::Failed(KvError::NoLeader { leader: None })),
        }
    }
}

fn conflict(key: &Bytes) -> Result<Option<Obstacle>, RowError> {
    Ok(Some(Obstacle::Conflict(key.clone())))
}

/// Grants the lock if what the attempt saw is still so and nobody else has locked any of it.
fn lock(
    transactions: &mut Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    request: &LockRows,
    now: Instant,
) -> Result<Stepped, RowError> {
    // Rule 4: an abort record refuses later locks.
    if transactions.table.is_over(id) {
        return looked(Reply::Aborted(true));
    }
    if let Some(held) = transactions.table.record(id) {
        return looked(Reply::Granted(held.stamp));
    }
    if let Some(obstacle) = obstacle(transactions, rows, request)? {
        return obstacle.answer();
    }
    let record = Arc::new(LockRecord {
        format: format(),
        primary: request.primary.clone(),
        stamp: rows.hlc.next().0,
        changes: request.changes.clone(),
        deleted: request.deleted.clone(),
        wakes: request.wakes.clone(),
    });
    transactions.put(attempt_name(LOCK, id), record.to_row());
    let stamp = record.stamp;
    transactions.table.lock(id, record);
    transactions.locked(id, now);
    Ok(Stepped::Changed(encode(Reply::Granted(stamp))))
}

/// What keeps an attempt from changing what `request` names: nothing if all of it is as it was seen
/// and nobody has locked any of it.
fn obstacle(
    transactions: &Transactions,
    rows: &mut StepRows<'_>,
    request: &LockRows,
) -> Result<Option<Obstacle>, RowError> {
    let mut bytes = 0;
    for row in &request.changes {
        bytes += row.key.len()
            + match &row.change {
                Some(Change::Put(value)) => value.len() + 32,
                _ => 32,
            };
        if !rows.owns(&row.key) {
            return Ok(Some(Obstacle::Elsewhere));
        }
        if row.key.len() > super::rows::KEY_BYTES {
            return Err(RowError::Refused(
                "the key is longer than the store takes".to_owned(),
            ));
        }
        let blocked = match &row.change {
            Some(Change::Add(_)) => transactions.table.blocks_counter(&row.key),
            _ => transactions.table.blocks(&row.key),
        };
        if blocked.is_some() {
            return conflict(&row.key);
        }
    }
    bytes += request
        .wakes
        .iter()
        .map(|key| key.len() + 32)
        .sum::<usize>();
    for range in &request.deleted {
        bytes += range.start.len() + range.end.len() + 32;
        let deleted = range.start.clone()..range.end.clone();
        if deleted.start < rows.owned.start || deleted.end > rows.owned.end {
            return Ok(Some(Obstacle::Elsewhere));
        }
        if transactions.table.blocks_range(&deleted).is_some() {
            return conflict(&range.start);
        }
    }
    if bytes > rows.limit {
        return Err(RowError::Refused(
            "the command writes more than the store takes at once".to_owned(),
        ));
    }
    for seen in &request.seen {
        if transactions.table.blocks(&seen.key).is_some() {
            return conflict(&seen.key);
        }
        if rows.stamp(&seen.key)?.map(|stamp| stamp.0) != seen.stamp {
            return conflict(&seen.key);
        }
    }
    Ok(None)
}

/// Whether what was seen is still so, and not locked by another (rule 1).
fn validate(
    transactions: &Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    seen: &ValidateRows,
) -> Result<Stepped, RowError> {
    match changed(transactions, rows, id, seen)? {
        Some(obstacle) => obstacle.answer(),
        None => looked(Reply::Valid(true)),
    }
}

fn changed(
    transactions: &Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    seen: &ValidateRows,
) -> Result<Option<Obstacle>, RowError> {
    let then = seen.absent_since.map(Moment::from);
    for row in &seen.rows {
        if !rows.owns(&row.key) {
            return Ok(Some(Obstacle::Elsewhere));
        }
        if transactions.table.blocks_other(id, &row.key).is_some() {
            return conflict(&row.key);
        }
        if rows.stamp(&row.key)?.map(|stamp| stamp.0) != row.stamp {
            return conflict(&row.key);
        }
        if let (None, Some(then)) = (row.stamp, then)
            && !rows.overlay.deletions().none_of_row_since(then, &row.key)
        {
            return conflict(&row.key);
        }
    }
    for range in &seen.ranges {
        let all = range.start.clone()..range.end.clone();
        if !rows.owns(&all.start) {
            return Ok(Some(Obstacle::Elsewhere));
        }
        if transactions.table.blocks_range(&all).is_some() {
            return conflict(&range.start);
        }
        let mut digest = Digest::default();
        rows.scan(&all, &mut |key, stamp| digest.add(key, stamp))?;
        if !digest.is_of(range)
            || then.is_some_and(|then| !rows.overlay.deletions().none_since(then))
        {
            return conflict(&range.start);
        }
    }
    Ok(None)
}

/// The commit point: writes the commit record, and makes the changes of this shard, if the attempt's
/// lock here is as it was granted or, without one, if everything here is as it was seen.
fn decide(
    transactions: &mut Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    decision: &Decide,
) -> Result<Stepped, RowError> {
    if let Some(record) = transactions.table.commits.get(&id) {
        return looked(Reply::Committed(CommitRecord::clone(record)));
    }
    if transactions.table.is_over(id) {
        return looked(Reply::Aborted(true));
    }
    // Either may fail on storage, and then has changed nothing.
    if let Some(here) = &decision.here {
        let mut obstacle = obstacle(transactions, rows, here)?;
        if let (None, Some(read)) = (&obstacle, &decision.read) {
            obstacle = changed(transactions, rows, id, read)?;
        }
        match obstacle {
            None => change(rows, &here.changes, &here.deleted, &here.wakes)?,
            // A copy of this message may find the way free, when the other locks are gone.
            Some(Obstacle::Conflict(_)) => return Ok(abort(transactions, id)),
            Some(elsewhere) => return elsewhere.answer(),
        }
    } else {
        let held = transactions.table.record(id).map(|lock| lock.stamp);
        if held != Some(decision.stamp) {
            return looked(Reply::Aborted(true));
        }
        apply_lock(transactions, rows, id)?;
    }
    let record = Arc::new(CommitRecord {
        format: format(),
        participants: decision.participants.clone(),
    });
    transactions.put(attempt_name(COMMIT, id), record.to_row());
    let reply = encode(Reply::Committed(CommitRecord::clone(&record)));
    transactions.table.commit(id, record);
    Ok(Stepped::Changed(reply))
}

fn roll_forward(
    transactions: &mut Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
    stamp: u64,
) -> Result<Stepped, RowError> {
    // Rule 4: a lock with another stamp is not the one that was committed.
    match transactions.table.record(id) {
        Some(lock) if lock.stamp == stamp => {
            apply_lock(transactions, rows, id)?;
            Ok(Stepped::Changed(encode(Reply::Gone(true))))
        }
        _ => looked(Reply::Gone(true)),
    }
}

/// Makes the changes that the lock of `id` holds, and removes it.
fn apply_lock(
    transactions: &mut Transactions,
    rows: &mut StepRows<'_>,
    id: AttemptId,
) -> Result<(), RowError> {
    if let Some(lock) = transactions.table.record(id).cloned() {
        change(rows, &lock.changes, &lock.deleted, &lock.wakes)?;
        unlock(transactions, id);
    }
    Ok(())
}

/// Makes changes, after the deletions. Changes nothing when it fails.
fn change(
    rows: &mut StepRows<'_>,
    changes: &[RowChange],
    deleted: &[RowRange],
    wakes: &[Bytes],
) -> Result<(), RowError> {
    // What has to be read is read first: a failure must leave no effect.
    let mut sums = Vec::new();
    for row in changes {
        if let Some(Change::Add(delta)) = row.change {
            let over = deleted
                .iter()
                .any(|range| range.start <= row.key && row.key < range.end);
            let now = if over { None } else { rows.value(&row.key)? };
            sums.push(super::rows::sum(now.as_ref(), delta)?);
        }
    }
    let mut sums = sums.into_iter();
    let stamp = rows.begin();
    for range in deleted {
        rows.overlay
            .delete_range(range.start.clone()..range.end.clone());
    }
    for row in changes {
        let key = row.key.clone();
        match &row.change {
            Some(Change::Put(value)) => rows.overlay.put(key, value.clone(), stamp),
            Some(Change::Delete(_)) => rows.overlay.delete(key),
            Some(Change::Add(_)) => {
                if let Some(sum) = sums.next() {
                    rows.overlay.put(key, sum, stamp);
                }
            }
            Some(Change::Keep(_)) | None => {}
        }
    }
    rows.wakes.extend(wakes.iter().cloned());
    Ok(())
}

fn unlock(transactions: &mut Transactions, id: AttemptId) {
    transactions.delete(attempt_name(LOCK, id));
    transactions.table.unlock(id);
    transactions.unlocked(id);
}

/// Removes the lock of an attempt that is aborted.
fn release(transactions: &mut Transactions, id: AttemptId, stamp: u64) -> Stepped {
    let reply = encode(Reply::Gone(true));
    match transactions.table.record(id) {
        Some(lock) if stamp == 0 || lock.stamp == stamp => {
            unlock(transactions, id);
            Stepped::Changed(reply)
        }
        _ => Stepped::Looked(reply),
    }
}

/// Decides that the attempt is aborted, unless it is committed already.
fn abort(transactions: &mut Transactions, id: AttemptId) -> Stepped {
    if let Some(record) = transactions.table.commits.get(&id) {
        return Stepped::Looked(encode(Reply::Committed(CommitRecord::clone(record))));
    }
    let reply = encode(Reply::Aborted(true));
    if transactions.table.is_over(id) {
        return Stepped::Looked(reply);
    }
    transactions.put(attempt_name(ABORT, id), Bytes::new());
    transactions.table.abort(id);
    if transactions.table.record(id).is_some() {
        unlock(transactions, id);
    }
    Stepped::Changed(reply)
}

/// Forgets abort records below the session's mark, which is written with that (rule 5).
fn forget_aborted(transactions: &mut Transactions, session: u128, mark: u64) {
    let forgotten = transactions
        .table
        .aborted_below(session, mark, FORGOTTEN_AT_ONCE + 1);
    if forgotten.len() < WORTH_FORGETTING {
        return;
    }
    // The mark is at the first that stays.
    let mark = forgotten.get(FORGOTTEN_AT_ONCE).copied().unwrap_or(mark);
    let forgotten = forgotten.into_iter().take(FORGOTTEN_AT_ONCE);
    for number in forgotten {
        transactions.delete(attempt_name(ABORT, AttemptId { session, number }));
    }
    transactions.put(
        mark_name(session),
        Bytes::copy_from_slice(&mark.to_be_bytes()),
    );
    transactions.table.set_mark(session, mark);
}

/// Every lock that the commit record lists is gone.
fn forget(transactions: &mut Transactions, id: AttemptId) -> Stepped {
    let reply = encode(Reply::Gone(true));
    let Some(record) = transactions.table.commits.remove(&id) else {
        return Stepped::Looked(reply);
    };
    transactions.delete(attempt_name(COMMIT, id));
    if !record.had_lock() {
        // No lock that is gone would refuse a late copy of the decision.
        transactions.put(attempt_name(ABORT, id), Bytes::new());
        transactions.table.abort(id);
    }
    Stepped::Changed(reply)
}

/// What a range was seen to hold, to compare it later.
#[derive(Debug, Default)]
pub(super) struct Digest {
    rows: u64,
    checksum: u32,
    stamps: u64,
}

impl Digest {
    /// Takes rows in ascending order.
    pub(super) fn add(&mut self, key: &[u8], stamp: Timestamp) {
        self.rows += 1;
        self.checksum = crc32c::crc32c_append(self.checksum, key);
        self.checksum = crc32c::crc32c_append(self.checksum, &stamp.0.to_be_bytes());
        self.stamps = self.stamps.wrapping_add(stamp.0);
    }

    pub(super) fn seen(&self, range: &Range<Bytes>) -> SeenRange {
        SeenRange {
            start: range.start.clone(),
            end: range.end.clone(),
            rows: self.rows,
            checksum: self.checksum,
            stamps: self.stamps,
        }
    }

    fn is_of(&self, seen: &SeenRange) -> bool {
        (self.rows, self.checksum, self.stamps) == (seen.rows, seen.checksum, seen.stamps)
    }
}

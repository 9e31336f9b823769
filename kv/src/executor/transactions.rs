//! The executor's part in transactions over several shards: does their steps, keeps commands from
//! what is locked, and parks those that meet a lock until it is decided.
//!
//! # Invariants
//! 1. The table here is the applied one at `begin`, and ahead of it by this life's batches since.
//! 2. A command that met a lock is parked under it. A command that shares a key with a parked one is
//!    parked behind it, so that commands on one key keep their order; all others pass.
//! 3. A step never waits: a *lock* that meets a lock is refused at once.
//! 4. Whether a lock is overdue is told by this executor's monotonic clock, from when it learned of
//!    the lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_raft::Context;

use super::entry::BatchWriter;
use super::overlay::{Known, Overlay};
use super::queue::Command;
use crate::hlc::Hlc;
use crate::state_machine::ShardState;
use crate::transaction::{AttemptId, Doubt, Table};
use crate::{KvError, Route, RowError, ScanOrder, Timestamp};

/// Commands that may be parked behind locks of one shard.
const MOST_PARKED: usize = 16 * 1024;

/// A lock that is overdue is asked about again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The rows as a step sees and changes them.
pub(crate) struct StepRows<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) state: &'a ShardState,
    pub(crate) overlay: &'a mut Overlay,
    pub(crate) owned: &'a Range<Bytes>,
    pub(crate) hlc: &'a Hlc,
    pub(crate) wakes: &'a mut Vec<Bytes>,
    /// The most bytes a lock may hold.
    pub(crate) limit: usize,
}

impl StepRows<'_> {
    /// The stamp of a row, if there is one.
    pub(crate) fn stamp(&self, key: &[u8]) -> Result<Option<Timestamp>, RowError> {
        Ok(self.get(key)?.map(|(_, stamp)| stamp))
    }

    /// The value of a row.
    pub(crate) fn value(&self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.get(key)?.map(|(value, _)| value))
    }

    /// Begins effects; gives the stamp for them.
    pub(crate) fn begin(&mut self) -> Timestamp {
        self.overlay.begin_command();
        self.hlc.next()
    }

    fn get(&self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        match self.overlay.get(key) {
            Some((Known::Value(value, stamp), _)) => Ok(Some((value.clone(), *stamp))),
            Some((Known::Deleted, _)) => Ok(None),
            None => match self.state.get(key)? {
                Some(stored) => super::evaluate::decode(&stored).map(Some),
                None => Ok(None),
            },
        }
    }

    pub(crate) fn scan(
        &mut self,
        range: &Range<Bytes>,
        visit: &mut dyn FnMut(&[u8], Timestamp),
    ) -> Result<(), RowError> {
        super::evaluate::scan_merged(
            self.ctx,
            self.state,
            self.overlay,
            range,
            ScanOrder::Ascending,
            &mut |key, stamp, _| {
                visit(key, stamp);
                true
            },
        )
    }

    pub(crate) fn owns(&self, key: &[u8]) -> bool {
        *self.owned.start <= *key && *key < *self.owned.end
    }
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// It changed rows.
    Changed(Bytes),
    /// It changed nothing.
    Looked(Bytes),
    Failed(KvError),
}

/// Where commands that met a lock wait.
#[derive(Debug, Default)]
struct Parking {
    waiting: HashMap<AttemptId, VecDeque<Command>>,
    /// Route keys of what waits, with the locks that commands on them wait for, in their order.
    keys: HashMap<Bytes, Vec<AttemptId>>,
    count: usize,
}

/// Transactions, as one life of an executor knows them.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    pub(crate) table: Table,
    /// Since when each lock is known here, and when it was last asked about.
    since: BTreeMap<AttemptId, (Instant, Option<Instant>)>,
    parking: Parking,
    /// Commands whose lock is gone: to be evaluated before all others, which came later.
    released: VecDeque<Command>,
    /// Rows of the batch that is being built.
    writes: HashMap<Bytes, Option<Bytes>>,
    write_bytes: usize,
}

impl Transactions {
    /// What is known at the begin of a life.
    pub(crate) fn begin(table: Table, now: Instant) -> Self {
        let since = table.lock_ids().map(|id| (id, (now, None))).collect();
        Self {
            table,
            since,
            ..Self::default()
        }
    }

    /// Whether the batch that is being built has rows of transactions.
    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    pub(crate) fn write_bytes(&self) -> usize {
        self.write_bytes
    }

    pub(crate) fn put(&mut self, name: Bytes, value: Bytes) {
        self.write_bytes += name.len() + value.len() + 16;
        self.writes.insert(name, Some(value));
    }

    pub(crate) fn delete(&mut self, name: Bytes) {
        self.write_bytes += name.len() + 16;
        self.writes.insert(name, None);
    }

    /// Writes the batch's rows of transactions.
    pub(crate) fn close_batch(&mut self, out: &mut BatchWriter) {
        for (name, value) in self.writes.drain() {
            match value {
                Some(value) => out.put_private(&name, &value),
                None => out.delete_private(&name),
            }
        }
        self.write_bytes = 0;
    }

    /// A lock is there from now on.
    pub(crate) fn locked(&mut self, id: AttemptId, now: Instant) {
        self.since.insert(id, (now, None));
    }

    /// A lock is gone: what waited for it goes on.
    pub(crate) fn unlocked(&mut self, id: AttemptId) {
        self.since.remove(&id);
        let Some(commands) = self.parking.waiting.remove(&id) else {
            return;
        };
        self.parking.count -= commands.len();
        for command in &commands {
            self.parking.forget_keys(id, command);
        }
        self.released.extend(commands);
    }

    /// The next command whose lock is gone.
    pub(crate) fn next_released(&mut self) -> Option<Command> {
        self.released.pop_front()
    }

    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// The lock behind which a command must wait because one on a key of it does.
    pub(crate) fn behind(&self, route: Route<'_>) -> Option<AttemptId> {
        if self.parking.keys.is_empty() {
            return None;
        }
        match route {
            Route::Keys(keys) => keys
                .iter()
                .find_map(|key| self.parking.keys.get(key)?.last().copied()),
            Route::EveryShard => None,
        }
    }

    /// Parks `command` until the lock of `id` is gone; gives it back if too many wait.
    pub(crate) fn park(&mut self, id: AttemptId, command: Command) -> Option<Command> {
        if self.parking.count >= MOST_PARKED {
            self.clear_abandoned();
        }
        if self.parking.count >= MOST_PARKED {
            return Some(command);
        }
        if let Route::Keys(keys) = command.operation.route() {
            for key in keys {
                self.parking.keys.entry(key.clone()).or_default().push(id);
            }
        }
        self.parking.count += 1;
        self.parking
            .waiting
            .entry(id)
            .or_default()
            .push_back(command);
        None
    }

    /// Lets go of parked commands whose callers have given up.
    fn clear_abandoned(&mut self) {
        let parking = &mut self.parking;
        let mut gone = Vec::new();
        for (id, commands) in &mut parking.waiting {
            let (left, abandoned): (VecDeque<_>, VecDeque<_>) = std::mem::take(commands)
                .into_iter()
                .partition(|command| !command.responder.is_abandoned());
            *commands = left;
            gone.extend(abandoned.into_iter().map(|command| (*id, command)));
        }
        parking.waiting.retain(|_, commands| !commands.is_empty());
        for (id, command) in gone {
            parking.count -= 1;
            parking.forget_keys(id, &command);
        }
    }

    /// Everything that is parked, at the end of a life.
    pub(crate) fn drain(&mut self) -> VecDeque<Command> {
        let mut all = std::mem::take(&mut self.released);
        for commands in std::mem::take(&mut self.parking).waiting.into_values() {
            all.extend(commands);
        }
        all
    }

    /// When the next lock is overdue, or is to be asked about again.
    pub(crate) fn next_overdue(&self, ttl: Duration) -> Option<Instant> {
        self.since
            .values()
            .map(|(since, asked)| asked.map_or(*since + ttl, |asked| asked + ASK_AGAIN))
            .min()
    }

    /// Locks that are overdue at `now`, to be asked about.
    pub(crate) fn overdue(&mut self, now: Instant, ttl: Duration) -> Vec<Doubt> {
        self.clear_abandoned();
        let mut doubts = Vec::new();
        for (id, (since, asked)) in &mut self.since {
            let due = asked.map_or(*since + ttl, |asked| asked + ASK_AGAIN);
            if due > now {
                continue;
            }
            *asked = Some(now);
            if let Some(record) = self.table.record(*id) {
                doubts.push(Doubt {
                    attempt: *id,
                    primary: record.primary.clone(),
                    held_at: record.anchor(),
                    stamp: record.stamp,
                });
            }
        }
        doubts
    }
}

impl Parking {
    /// `command` does not wait for `id` any more.
    fn forget_keys(&mut self, id: AttemptId, command: &Command) {
        let Route::Keys(keys) = command.operation.route() else {
            return;
        };
        for key in keys {
            if let Some(waited_for) = self.keys.get_mut(key) {
                if let Some(first) = waited_for.iter().position(|other| *other == id) {
                    waited_for.remove(first);
                }
                if waited_for.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
    }
}

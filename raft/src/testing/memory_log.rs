//! A log in memory that outlives the node above it, on a simulated disk: with flush times, what was
//! appended is durable (and said to be) only after a while, and a power cut takes the rest.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io;
use std::ops::{Range, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::seeded;
use crate::GroupId;
use crate::types::{Entry, LogId, TypeConfig, Vote};

#[derive(Default)]
struct Inner {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// How far it is durable.
    durable: Option<LogId>,
    /// How long a flush takes; `None`: no time at all.
    flush: Option<Range<Duration>>,
    /// When the last flush that is under way ends.
    busy_until: Option<Instant>,
    /// Power cuts so far: a flush of an earlier life ends without effect.
    lives: u64,
    /// Says that an append is durable before it is.
    lies: bool,
}

impl Inner {
    /// When a flush that begins now is done; flushes follow each other.
    fn flush_ends(&mut self) -> Option<Instant> {
        let times = self.flush.clone()?;
        let ends = Instant::now() + seeded::duration(&times);
        let ends = self.busy_until.map_or(ends, |busy| busy.max(ends));
        self.busy_until = Some(ends);
        Some(ends)
    }
}

/// One group's log.
#[derive(Clone, Default)]
pub(crate) struct MemoryLog(Arc<Mutex<Inner>>);

/// The logs of one node.
#[derive(Clone, Default)]
pub(crate) struct MemoryLogs {
    logs: Arc<Mutex<HashMap<GroupId, MemoryLog>>>,
    flush: Option<Range<Duration>>,
    lies: bool,
}

impl MemoryLogs {
    /// Logs on a disk whose flushes take such times; with `lies`, it says so before they end.
    pub(crate) fn with_flushes(flush: Range<Duration>, lies: bool) -> Self {
        Self {
            flush: Some(flush),
            lies,
            ..Self::default()
        }
    }

    pub(crate) fn flushes(&self) -> Option<Range<Duration>> {
        self.flush.clone()
    }

    pub(crate) fn groups(&self) -> Vec<GroupId> {
        self.logs.lock().keys().copied().collect()
    }

    pub(crate) fn group(&self, group: GroupId) -> MemoryLog {
        let mut logs = self.logs.lock();
        let log = logs.entry(group).or_default();
        let mut inner = log.0.lock();
        inner.flush.clone_from(&self.flush);
        inner.lies = self.lies;
        drop(inner);
        log.clone()
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.logs.lock().remove(&group);
    }

    /// Forgets what is not durable, as a power cut does.
    pub(crate) fn crash(&self) {
        for log in self.logs.lock().values() {
            let mut inner = log.0.lock();
            inner.lives += 1;
            inner.busy_until = None;
            if inner.flush.is_some() {
                let first = inner.durable.map_or(0, |last| last.index() + 1);
                inner.entries.split_off(&first);
            }
        }
    }
}

impl MemoryLog {
    /// How many entries it holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().entries.len()
    }

    /// Terms by index.
    pub(crate) fn terms(&self) -> BTreeMap<u64, u64> {
        let inner = self.0.lock();
        let term = |entry: &Entry| **entry.log_id.committed_leader_id();
        inner.entries.iter().map(|(at, e)| (*at, term(e))).collect()
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let inner = self.0.lock();
        Ok(inner.entries.range(range).map(|(_, e)| e.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let inner = self.0.lock();
        let last = inner.entries.last_key_value().map(|(_, e)| e.log_id);
        Ok(LogState {
            last_purged_log_id: inner.purged,
            last_log_id: last.or(inner.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (ends, life) = {
            let mut inner = self.0.lock();
            (inner.flush_ends(), inner.lives)
        };
        if let Some(ends) = ends {
            tokio::time::sleep_until(ends).await;
        }
        let mut inner = self.0.lock();
        if inner.lives == life {
            inner.vote = Some(*vote);
        }
        Ok(())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut last = None;
        let (ends, life, lies) = {
            let mut inner = self.0.lock();
            for entry in entries {
                last = Some(entry.log_id);
                inner.entries.insert(entry.log_id.index(), entry);
            }
            (inner.flush_ends(), inner.lives, inner.lies)
        };
        let Some(ends) = ends else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let log = self.clone();
        let mut callback = Some(callback);
        if lies && let Some(callback) = callback.take() {
            callback.io_completed(Ok(()));
        }
        let flush = async move {
            tokio::time::sleep_until(ends).await;
            let mut inner = log.0.lock();
            if inner.lives != life {
                return;
            }
            // Unless it was cut off meanwhile.
            if let Some(last) = last
                && inner.entries.get(&last.index()).map(|entry| entry.log_id) == Some(last)
                && inner
                    .durable
                    .is_none_or(|durable| durable.index() < last.index())
            {
                inner.durable = Some(last);
            }
            drop(inner);
            if let Some(callback) = callback {
                callback.io_completed(Ok(()));
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a disk finishes its flush whoever waits for it"
        )]
        tokio::spawn(flush);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |last| last.index() + 1);
        let mut inner = self.0.lock();
        inner.entries.split_off(&first);
        if inner.durable > last {
            inner.durable = last;
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut inner = self.0.lock();
        inner.entries = inner.entries.split_off(&(upto.index() + 1));
        inner.purged = Some(upto);
        if inner.durable < inner.purged {
            inner.durable = inner.purged;
        }
        Ok(())
    }
}

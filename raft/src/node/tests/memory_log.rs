//! A log in memory that outlives the node above it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use crate::GroupId;
use crate::types::{Entry, LogId, TypeConfig, Vote};

#[derive(Default)]
struct Inner {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

/// One group's log.
#[derive(Clone, Default)]
pub(super) struct MemoryLog(Arc<Mutex<Inner>>);

/// The logs of one node.
#[derive(Clone, Default)]
pub(super) struct MemoryLogs(Arc<Mutex<HashMap<GroupId, MemoryLog>>>);

impl MemoryLogs {
    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.0.lock().keys().copied().collect()
    }

    pub(super) fn group(&self, group: GroupId) -> MemoryLog {
        self.0.lock().entry(group).or_default().clone()
    }

    pub(super) fn remove(&self, group: GroupId) {
        self.0.lock().remove(&group);
    }
}

impl MemoryLog {
    /// How many entries it holds.
    pub(super) fn len(&self) -> usize {
        self.0.lock().entries.len()
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
        self.0.lock().vote = Some(*vote);
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
        {
            let mut inner = self.0.lock();
            for entry in entries {
                inner.entries.insert(entry.log_id.index(), entry);
            }
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |last| last.index() + 1);
        self.0.lock().entries.split_off(&first);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut inner = self.0.lock();
        inner.entries = inner.entries.split_off(&(upto.index() + 1));
        inner.purged = Some(upto);
        Ok(())
    }
}

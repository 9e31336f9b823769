//! The write-ahead log of a node, shared by all its Raft groups.

mod metrics;

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::watch;

use crate::GroupId;
use crate::types::{Entry, LogId, TypeConfig, Vote};

pub use metrics::LogMetrics;

/// Sizes of the log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes of one segment file. Half of it is the largest entry.
    pub segment_bytes: u64,
    /// Segments may take this much (or twice what is live, if that is more) before what is
    /// live in the oldest is written again at the head.
    pub disk_bytes: u64,
    /// Entries kept in memory, over all groups.
    pub tail_bytes: usize,
    /// Appends that may wait for the flusher.
    pub queue_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            disk_bytes: 256 << 20,
            tail_bytes: 32 << 20,
            queue_bytes: 16 << 20,
        }
    }
}

/// Why a log did not open.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    /// Another process has the log open.
    #[error("{} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Why the log stopped: a write or an fsync failed. Nothing is retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Raft log has failed: {0}")]
pub struct LogFailed(pub Arc<str>);

/// The log of a node.
pub struct SharedLog {}

impl SharedLog {
    pub fn open(
        _dir: &Path,
        _options: LogOptions,
        _metrics: LogMetrics,
    ) -> Result<Arc<Self>, LogOpenError> {
        todo!()
    }

    /// Groups that the log holds anything of.
    pub fn groups(&self) -> Vec<GroupId> {
        todo!()
    }

    /// The log of `group`, empty if it has none yet.
    pub fn group(&self, _group: GroupId) -> GroupLog {
        todo!()
    }

    /// Forgets `group`: its entries, vote and marks. Durable when it returns.
    pub async fn remove_group(&self, _group: GroupId) -> Result<(), LogFailed> {
        todo!()
    }

    /// Becomes `Some` when the log has failed: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<LogFailed>> {
        todo!()
    }

    /// Flushes what waits, joins the log's threads and releases the directory.
    pub async fn close(&self) -> Result<(), LogFailed> {
        todo!()
    }
}

/// One group's part of the log.
#[derive(Clone)]
pub struct GroupLog {}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        _range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        todo!()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        todo!()
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        todo!()
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        todo!()
    }

    async fn save_vote(&mut self, _vote: &Vote) -> Result<(), io::Error> {
        todo!()
    }

    async fn append<I>(
        &mut self,
        _entries: I,
        _callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        todo!()
    }

    async fn truncate_after(&mut self, _last_log_id: Option<LogId>) -> Result<(), io::Error> {
        todo!()
    }

    async fn purge(&mut self, _log_id: LogId) -> Result<(), io::Error> {
        todo!()
    }
}

//! The meta group's state machine, watched: every apply and every installed snapshot may have
//! changed the catalog.

use std::sync::Arc;

use bytes::Bytes;
use leadline_raft::GroupId;
use leadline_raft::engine::{
    CommittedEntry, SnapshotSink, SnapshotSource, StateError, StateMachine, StateMachines,
};
use tokio::sync::watch;

/// State machines that tell of changes of the meta group.
pub(super) struct WatchedMachines {
    inner: Arc<dyn StateMachines>,
    changed: watch::Sender<u64>,
}

impl WatchedMachines {
    pub(super) fn new(inner: Arc<dyn StateMachines>) -> Self {
        Self {
            inner,
            changed: watch::Sender::new(0),
        }
    }

    /// Counts changes of the meta group.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl StateMachines for WatchedMachines {
    fn open(&self, group: GroupId) -> Result<Arc<dyn StateMachine>, StateError> {
        let inner = self.inner.open(group)?;
        if group != GroupId::META {
            return Ok(inner);
        }
        Ok(Arc::new(Watched {
            inner,
            changed: self.changed.clone(),
        }))
    }

    fn destroy(&self, group: GroupId) -> Result<(), StateError> {
        self.inner.destroy(group)
    }
}

struct Watched {
    inner: Arc<dyn StateMachine>,
    changed: watch::Sender<u64>,
}

impl StateMachine for Watched {
    fn run(&self, apply: Box<dyn FnOnce() + Send>) {
        self.inner.run(apply);
    }

    fn applied(&self) -> Result<Option<Bytes>, StateError> {
        self.inner.applied()
    }

    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError> {
        let responses = self.inner.apply(entries)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(responses)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, StateError> {
        self.inner.snapshot()
    }

    fn begin_install(&self) -> Result<Box<dyn SnapshotSink>, StateError> {
        Ok(Box::new(WatchedSink {
            inner: self.inner.begin_install()?,
            changed: self.changed.clone(),
        }))
    }

    fn flush(&self) -> Result<Option<Bytes>, StateError> {
        self.inner.flush()
    }
}

struct WatchedSink {
    inner: Box<dyn SnapshotSink>,
    changed: watch::Sender<u64>,
}

impl SnapshotSink for WatchedSink {
    fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StateError> {
        self.inner.write_chunk(chunk)
    }

    fn commit(self: Box<Self>, position: Bytes) -> Result<(), StateError> {
        self.inner.commit(position)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }
}

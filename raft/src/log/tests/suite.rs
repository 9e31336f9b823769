//! openraft's conformance suite, over a state machine that only remembers how far it is.

use std::io;

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;

use super::*;
use crate::types::Response;

#[derive(Clone, Default)]
struct Counter {
    applied: Option<LogId>,
    membership: StoredMembershipOf<TypeConfig>,
    snapshot: Arc<Mutex<Option<SnapshotOf<TypeConfig, ()>>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Counter {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        let snapshot = SnapshotOf::<TypeConfig, ()> {
            meta: SnapshotMetaOf::<TypeConfig> {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshot: (),
        };
        *self.snapshot.lock() = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<TypeConfig> for Counter {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembershipOf<TypeConfig>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let Some(membership) = entry.payload.get_membership() {
                self.membership = StoredMembershipOf::<TypeConfig>::new(self.applied, membership);
            }
            if let Some(responder) = responder {
                responder.send(Response::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        (): (),
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock() = Some(SnapshotOf::<TypeConfig, ()> {
            meta: meta.clone(),
            snapshot: (),
        });
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(self.snapshot.lock().clone())
    }
}

struct Builder {
    tail_bytes: usize,
}

impl StoreBuilder<TypeConfig, GroupLog, Counter, (Arc<SharedLog>, TempDir)> for Builder {
    async fn build(
        &self,
    ) -> Result<((Arc<SharedLog>, TempDir), GroupLog, Counter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            tail_bytes: self.tail_bytes,
            ..small()
        };
        let log = SharedLog::open(dir.path(), options, LogMetrics::default()).unwrap();
        let group = log.group(G1);
        Ok(((log, dir), group, Counter::default()))
    }
}

#[tokio::test]
async fn the_conformance_suite_passes_with_entries_in_memory() {
    let tail_bytes = 1 << 20;
    Suite::test_all(Builder { tail_bytes }).await.unwrap();
}

#[tokio::test]
async fn the_conformance_suite_passes_with_entries_on_disk_only() {
    Suite::test_all(Builder { tail_bytes: 0 }).await.unwrap();
}

//! openraft's storage suite, over the real log and the real adapter of a state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::GroupId;
use crate::log::{GroupLog, LogMetrics, LogOptions, SharedLog};
use crate::node::state::StateAdapter;
use crate::testing::MemoryMachine;
use crate::types::TypeConfig;

struct Builder;

type Guard = (Arc<SharedLog>, TempDir);

impl StoreBuilder<TypeConfig, GroupLog, StateAdapter, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, GroupLog, StateAdapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            segment_bytes: 1 << 20,
            disk_bytes: 4 << 20,
            ..LogOptions::default()
        };
        let log = SharedLog::open(dir.path(), options, LogMetrics::default()).unwrap();
        let group = log.group(GroupId(1));
        let machine = Arc::new(MemoryMachine::default());
        let state = StateAdapter::open(machine, Arc::default(), Arc::default(), None).unwrap();
        // As in a running group: views are given out, to be installed elsewhere.
        state.running_mark().set();
        Ok(((log, dir), group, state))
    }
}

#[tokio::test]
async fn log_and_state_machine_pass_openrafts_storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}

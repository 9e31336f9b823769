//! The blob store's view of this node: where a shard's replicas are, and what its rows name.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use leadline_raft::GroupId;
use leadline_raft::engine::{Engine, LeaderView, Leadership, Membership, Role, Status};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::{BlobConfig, Core, OpenError};
use crate::ScanOrder;
use crate::blobs::{
    BlobMetrics, BlobPeers, Bounds, ChunkRef, ChunkReferences, ChunkStore, GrpcPeers, Manifests,
    Placement, Replicas, ReplicatedBlobs,
};
use crate::storage::{Row, Store};

/// Opens the blob store in `<data-dir>/blobs`.
pub(super) async fn open(
    data_dir: &Path,
    metrics: &BlobMetrics,
) -> Result<Arc<ChunkStore>, OpenError> {
    let (dir, metrics) = (data_dir.join("blobs"), metrics.clone());
    super::blocking(move || ChunkStore::open_on_disk(&dir, metrics))
        .await?
        .map_err(|error| OpenError::DataDirectory(error.to_string()))
}

/// Puts the parts together and starts the upkeep.
pub(super) fn start(
    core: &Arc<Core>,
    rows: &Arc<Store>,
    store: Arc<ChunkStore>,
    config: BlobConfig,
    metrics: BlobMetrics,
    registry: &mut Registry,
) -> ReplicatedBlobs {
    metrics.register(registry);
    let view = Arc::new(NodeRows {
        core: Arc::clone(core),
        rows: Arc::clone(rows),
        references: config.references,
        committed: Mutex::default(),
    });
    let blobs = ReplicatedBlobs::new(
        core.node,
        core.cluster,
        store,
        Arc::clone(&view) as Arc<dyn Placement>,
        Arc::new(GrpcPeers {
            raft: Arc::clone(&core.raft),
            cluster: core.cluster,
        }) as Arc<dyn BlobPeers>,
        Bounds {
            budget: config.budget_bytes,
            ..Bounds::default()
        },
        metrics,
    );
    blobs.register_gauges(registry);
    blobs.start_upkeep(view, config.walk_every);
    blobs
}

struct NodeRows {
    core: Arc<Core>,
    rows: Arc<Store>,
    references: Vec<Arc<dyn ChunkReferences>>,
    /// How far each group was committed when [`Manifests::settled`] was asked last.
    committed: Mutex<HashMap<GroupId, u64>>,
}

impl Placement for NodeRows {
    fn replicas(&self, near: &[u8]) -> Replicas {
        let Some(catalog) = self.core.catalog() else {
            return Replicas {
                group: GroupId::META,
                voters: Vec::new(),
                learners: Vec::new(),
            };
        };
        let group = catalog.group_of(near);
        // A group hosted here knows its members better than the catalog.
        let members = self.core.engine(group).map(|engine| engine.members());
        let (mut voters, mut learners) = (Vec::new(), Vec::new());
        for (node, member) in members.into_iter().flatten() {
            match member.role {
                Role::Voter | Role::IncomingVoter | Role::OutgoingVoter => voters.push(node),
                Role::Learner => learners.push(node),
            }
        }
        if voters.is_empty() {
            voters = catalog.replicas(group).to_vec();
        }
        Replicas {
            group,
            voters,
            learners,
        }
    }
}

impl Manifests for NodeRows {
    fn settled(&self) -> bool {
        if self.core.catalog().is_none() {
            return false;
        }
        let mut committed = self.committed.lock();
        let mut settled = true;
        for group in self.core.raft.groups() {
            let status = group.status();
            let led = !matches!(group.leadership(), Leadership::Unknown);
            let before = committed.insert(status.group, status.commit_index.0);
            let applied = before.is_some_and(|before| status.last_applied.0 >= before);
            settled &= led && applied && status.stopped.is_none();
        }
        settled
    }

    fn walk(&self, visit: &mut dyn FnMut(&[u8], ChunkRef)) -> Result<(), String> {
        // Without a door that names chunks nobody has said what is needed.
        if self.references.is_empty() {
            return Err("no door keeps objects".to_owned());
        }
        let catalog = self.core.catalog().ok_or("no catalog yet")?;
        for group in self.core.raft.groups() {
            let group = group.group();
            let owned = catalog
                .owned(group)
                .ok_or_else(|| format!("the catalog does not know group {group}"))?;
            for references in &self.references {
                self.walk_group(group, &owned, &**references, visit)?;
            }
        }
        Ok(())
    }
}

impl NodeRows {
    fn walk_group(
        &self,
        group: GroupId,
        owned: &Range<Bytes>,
        references: &dyn ChunkReferences,
        visit: &mut dyn FnMut(&[u8], ChunkRef),
    ) -> Result<(), String> {
        let theirs = references.range();
        let (start, end) = (
            (&owned.start).max(&theirs.start),
            (&owned.end).min(&theirs.end),
        );
        if start >= end {
            return Ok(());
        }
        let view = self
            .rows
            .group(group)
            .and_then(|rows| rows.view())
            .map_err(|error| error.to_string())?;
        let mut unreadable = None;
        view.rows
            .scan(
                &start[..]..&end[..],
                ScanOrder::Ascending,
                &mut |key, stored| {
                    let read = Row::decode_ref(stored)
                        .map_err(|error| error.to_string())
                        .and_then(|(_, value)| {
                            references.chunks(key, value, &mut |chunk| visit(key, chunk))
                        });
                    unreadable = read.err();
                    unreadable.is_none()
                },
            )
            .map_err(|error| error.to_string())?;
        unreadable.map_or(Ok(()), |why| {
            tracing::error!(%group, why, "a row with references to blobs cannot be read");
            Err(why)
        })
    }
}

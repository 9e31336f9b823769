//! The blob store's view of this node: where a shard's replicas are, and what its rows name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use leadline_raft::engine::{Engine, Membership, Role, Status};
use leadline_raft::{Context, GroupId, LogIndex, NodeId};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::{BlobConfig, Core, OpenError};
use crate::ScanOrder;
use crate::blobs::{
    BlobMetrics, BlobPeers, Bounds, ChunkRef, ChunkReferences, ChunkStore, GrpcPeers, Manifests,
    Placement, Replicas, ReplicatedBlobs, Upkeep,
};
use crate::catalog::MemberState;
use crate::storage::{Row, Store};

/// A walk looks this often, in rows, whether it is still wanted.
const ROWS: u32 = 1024;

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
) -> (ReplicatedBlobs, Upkeep) {
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
    let upkeep = blobs.start_upkeep(view, config.walk_every);
    (blobs, upkeep)
}

struct NodeRows {
    core: Arc<Core>,
    rows: Arc<Store>,
    references: Vec<Arc<dyn ChunkReferences>>,
    /// How far each group was heard to be committed when [`Manifests::settled`] was asked last.
    committed: Mutex<HashMap<GroupId, u64>>,
}

impl Placement for NodeRows {
    fn replicas(&self, near: &[u8]) -> Replicas {
        let Some(catalog) = self.core.catalog() else {
            return Replicas {
                group: GroupId::META,
                voters: Vec::new(),
                learners: Vec::new(),
                removed: Vec::new(),
            };
        };
        let group = catalog.group_of(near);
        let members = self.core.engine(group).map(|engine| engine.members());
        let members = members.unwrap_or_default();
        let votes = |role: Role| match role {
            Role::Voter | Role::IncomingVoter | Role::OutgoingVoter => true,
            Role::Learner => false,
        };
        let here = members.get(&self.core.node);
        // A voter knows its group's members better than the catalog does. A learner may be far
        // behind in the log: who votes, the catalog tells it.
        let knows = here.is_some_and(|member| votes(member.role));
        let mut voting: BTreeMap<NodeId, bool> = members
            .iter()
            .map(|(&node, member)| (node, knows && votes(member.role)))
            .collect();
        if !knows {
            let learners = catalog.learners(group);
            let recorded = catalog.replicas(group).iter();
            voting.extend(recorded.map(|&node| (node, !learners.contains(&node))));
        }
        let of = |wanted: bool| {
            let nodes = voting.iter().filter(move |(_, votes)| **votes == wanted);
            nodes.map(|(&node, _)| node).collect()
        };
        let state = |node: &NodeId| catalog.members().get(node).map(|member| member.state);
        Replicas {
            group,
            voters: of(true),
            learners: of(false),
            removed: voting
                .keys()
                .copied()
                .filter(|node| state(node) == Some(MemberState::Removed))
                .collect(),
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
            let before = committed.insert(status.group, status.heard_commit_index.0);
            let applied = before.is_some_and(|before| status.last_applied.0 >= before);
            settled &= status.in_contact && applied && status.stopped.is_none();
        }
        settled
    }

    fn applied(&self, group: GroupId) -> Option<LogIndex> {
        let engine = self.core.engine(group)?;
        Some(engine.status().last_applied)
    }

    fn walk_group(
        &self,
        ctx: &Context,
        group: GroupId,
        visit: &mut dyn FnMut(&[u8], ChunkRef),
    ) -> Result<(), String> {
        let catalog = self.core.catalog().ok_or("no catalog yet")?;
        let owned = catalog
            .owned(group)
            .ok_or_else(|| format!("the catalog does not know group {group}"))?;
        for references in &self.references {
            self.scan(Some(ctx), group, &owned, &**references, visit)?;
        }
        Ok(())
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
                self.scan(None, group, &owned, &**references, visit)?;
            }
        }
        Ok(())
    }
}

impl NodeRows {
    /// Shows what the rows of `owned` name, until `ctx`, if there is one, ends.
    fn scan(
        &self,
        ctx: Option<&Context>,
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
        let mut ended = None;
        let mut rows = 0_u32;
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
                    rows = rows.wrapping_add(1);
                    if rows.is_multiple_of(ROWS) {
                        ended = ctx.and_then(Context::ended);
                    }
                    unreadable.is_none() && ended.is_none()
                },
            )
            .map_err(|error| error.to_string())?;
        if let Some(ended) = ended {
            return Err(ended.to_string());
        }
        unreadable.map_or(Ok(()), |why| {
            tracing::error!(%group, why, "a row with references to blobs cannot be read");
            Err(why)
        })
    }
}

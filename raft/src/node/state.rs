//! A group's [`StateMachine`] as openraft drives it.
//!
//! # Invariants
//! 1. What may block runs on tokio's blocking threads, applies where the state machine wants them,
//!    one call at a time per group (except the flush and the view of a snapshot, which never stop
//!    an apply).
//! 2. How far the group is is published after the effects are visible and before any proposer is
//!    answered.
//! 3. openraft is told of a snapshot only what [`StateMachine::flush`] reported durable: the log is
//!    purged no further.
//! 4. As long as anything of this adapter may touch the state machine it holds its [`Tenure`]: the
//!    next adapter of the group waits for it. A view being sent only reads, and holds nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::engine::{CommittedEntry, StateError, StateMachine};
use crate::types::{
    LogId, Response, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig,
};

use super::position::{self, Position};
use super::proof::Applied;
use super::tail::LogTail;

/// Entries and bytes that one apply takes at most.
const APPLY_ENTRIES: usize = 1024;
const APPLY_BYTES: usize = 4 << 20;

type ApplyResponder = openraft::storage::ApplyResponder<TypeConfig>;

/// The right to touch a group's state machine.
pub(crate) type Tenure = Arc<OwnedSemaphorePermit>;

/// Between one group's openraft and its state machine.
pub(crate) struct StateAdapter {
    shared: Arc<Shared>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    /// `membership`, encoded.
    membership_bytes: Bytes,
}

struct Shared {
    machine: Arc<dyn StateMachine>,
    applied: Arc<Applied>,
    tail: Arc<LogTail>,
    /// What is known to be on disk.
    durable: Mutex<Position>,
    /// openraft has read its initial state and runs.
    running: AtomicBool,
    _tenure: Option<Tenure>,
}

impl StateAdapter {
    /// An adapter of `machine` as it stands on disk. Blocks on storage.
    pub(crate) fn open(
        machine: Arc<dyn StateMachine>,
        applied: Arc<Applied>,
        tail: Arc<LogTail>,
        tenure: Option<Tenure>,
    ) -> io::Result<Self> {
        // What is found now may still be in the page cache only.
        let durable = flush(&*machine)?;
        let at = match machine.applied().map_err(failed)? {
            Some(bytes) => Position::decode(&bytes)?,
            None => Position::default(),
        };
        if let Some(log_id) = at.log_id {
            applied.advance(**log_id.committed_leader_id(), log_id.index());
        }
        Ok(Self {
            membership_bytes: position::encode_membership(&at.membership),
            membership: at.membership,
            last_applied: at.log_id,
            shared: Arc::new(Shared {
                machine,
                applied,
                tail,
                durable: Mutex::new(durable),
                running: AtomicBool::new(false),
                _tenure: tenure,
            }),
        })
    }

    pub(crate) fn last_applied(&self) -> Option<LogId> {
        self.last_applied
    }

    /// To be called once openraft runs on this adapter: see [`RunningMark::set`].
    pub(crate) fn running_mark(&self) -> RunningMark {
        RunningMark(self.shared.clone())
    }

    async fn apply_batch(&mut self, batch: Batch) -> io::Result<()> {
        let shared = self.shared.clone();
        let (done, end) = oneshot::channel();
        let apply = move || {
            let Batch {
                entries,
                responders,
                bytes,
                last,
            } = batch;
            let count = entries.len();
            let responses = shared.machine.apply(entries).map_err(failed)?;
            if responses.len() != count {
                return Err(io::Error::other(format!(
                    "the state machine answered {} of {count} entries",
                    responses.len()
                )));
            }
            if let Some(last) = last {
                let term = **last.committed_leader_id();
                shared.applied.advance(term, last.index());
                shared
                    .tail
                    .applied(last.index(), count as u64, bytes as u64);
            }
            for (responder, response) in responders.into_iter().zip(responses) {
                if let Some(responder) = responder {
                    responder.send(Response(response));
                }
            }
            Ok(())
        };
        let apply = move || {
            // openraft waits for the end of an apply as long as it runs.
            let _ = done.send(apply());
        };
        self.shared.machine.run(Box::new(apply));
        end.await
            .map_err(|_| io::Error::other("state machine: an apply did not end"))?
    }

    fn add(&mut self, batch: &mut Batch, item: EntryResponder<TypeConfig>) {
        let (entry, responder) = item;
        let log_id = entry.log_id;
        let payload = match entry.payload {
            EntryPayload::Normal(payload) => Some(payload.0),
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                self.membership_bytes = position::encode_membership(&self.membership);
                None
            }
        };
        batch.bytes += payload.as_ref().map_or(0, Bytes::len);
        batch.entries.push(CommittedEntry {
            index: crate::LogIndex(log_id.index()),
            position: position::encode(Some(log_id), &self.membership_bytes),
            payload,
        });
        batch.responders.push(responder);
        batch.last = Some(log_id);
        self.last_applied = Some(log_id);
    }
}

/// Lets an adapter's `get_current_snapshot` give views to send, and no longer what is durable.
pub(crate) struct RunningMark(Arc<Shared>);

impl RunningMark {
    pub(crate) fn set(self) {
        self.0.running.store(true, Ordering::Release);
    }
}

#[derive(Default)]
struct Batch {
    entries: Vec<CommittedEntry>,
    responders: Vec<Option<ApplyResponder>>,
    bytes: usize,
    last: Option<LogId>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.entries.len() >= APPLY_ENTRIES || self.bytes >= APPLY_BYTES
    }
}

impl RaftStateMachine<TypeConfig> for StateAdapter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut batch = Batch::default();
        while let Some(item) = entries.try_next().await? {
            self.add(&mut batch, item);
            if batch.is_full() {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.entries.is_empty() {
            return Ok(());
        }
        self.apply_batch(batch).await
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder(self.shared.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let at = Position {
            log_id: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        let (shared, installed) = (self.shared.clone(), at.clone());
        blocking(move || {
            let sink = match snapshot {
                SnapshotData::Sink(sink) => sink,
                SnapshotData::Source(mut source) => {
                    let mut sink = shared.machine.begin_install().map_err(failed)?;
                    while let Some(chunk) = source.next_chunk().map_err(failed)? {
                        sink.write_chunk(chunk).map_err(failed)?;
                    }
                    sink
                }
                SnapshotData::OnDisk => {
                    return Err(io::Error::other("a snapshot without content to install"));
                }
            };
            sink.commit(installed.encode()).map_err(failed)?;
            if let Some(log_id) = installed.log_id {
                let term = **log_id.committed_leader_id();
                shared.applied.advance(term, log_id.index());
            }
            *shared.durable.lock() = installed;
            Ok(())
        })
        .await?;
        self.membership_bytes = position::encode_membership(&at.membership);
        self.membership = at.membership;
        self.last_applied = at.log_id;
        Ok(())
    }

    /// While openraft starts: how far the state is durable. Later: a view of the state as it is
    /// now, to be sent to a peer that lags.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if !self.shared.running.load(Ordering::Acquire) {
            let durable = self.shared.durable.lock().clone();
            return Ok(durable.log_id.is_some().then(|| on_disk(durable)));
        }
        if self.last_applied.is_none() {
            return Ok(None);
        }
        let shared = self.shared.clone();
        blocking(move || {
            let source = shared.machine.snapshot().map_err(failed)?;
            let at = Position::decode(&source.position())?;
            Ok(Some(Snapshot {
                meta: meta(at),
                snapshot: SnapshotData::Source(source),
            }))
        })
        .await
    }
}

/// Makes the state durable; the state on disk *is* the snapshot.
pub(crate) struct SnapshotBuilder(Arc<Shared>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let shared = self.0.clone();
        blocking(move || {
            let durable = flush(&*shared.machine)?;
            let mut known = shared.durable.lock();
            if durable.log_id > known.log_id {
                *known = durable;
            }
            Ok(on_disk(known.clone()))
        })
        .await
    }
}

fn flush(machine: &dyn StateMachine) -> io::Result<Position> {
    match machine.flush().map_err(failed)? {
        Some(bytes) => Position::decode(&bytes),
        None => Ok(Position::default()),
    }
}

fn on_disk(at: Position) -> Snapshot {
    Snapshot {
        meta: meta(at),
        snapshot: SnapshotData::OnDisk,
    }
}

fn meta(at: Position) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: at.log_id,
        last_membership: at.membership,
    }
}

fn failed(error: StateError) -> io::Error {
    io::Error::other(error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match crate::blocking::run(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(format!("state machine: {error}"))),
    }
}

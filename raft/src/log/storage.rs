//! A group's log as openraft sees it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogStorage,
};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::LeaderIdOf;
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::types::{Entry, LogId, Payload, TypeConfig, Vote};
use crate::{LogIndex, Term};

use super::flusher::Op;
use super::group::Group;
use super::record;
use super::{LogFailed, Shared};

/// How much one read takes at most, if that is more than one entry.
const READ_BYTES: usize = 1 << 20;
/// What an entry's record adds to its payload, rounded up.
const RECORD_OVERHEAD: usize = 64;
/// Queue space for a vote or a mark.
const SMALL_OP: usize = 64;

impl Shared {
    pub(super) fn max_payload(&self) -> usize {
        self.options.segment_bytes as usize / 2 - RECORD_OVERHEAD
    }

    pub(super) fn forget_tail(&self, bytes: usize) {
        self.tail_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits for queue space. Whoever gets it must enqueue an operation with what this returns.
    async fn acquire(&self, bytes: usize) -> Result<usize, LogFailed> {
        // What is larger than the queue waits for all of it.
        let bytes = bytes.min(self.options.queue_bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = self.permits.acquire_many(permits).await;
        permit.map_err(|_| self.failure())?.forget();
        Ok(permits as usize)
    }
}

type LeaderBounded<T> = Result<T, LeaderBoundedStreamError<TypeConfig>>;

/// One group's part of the log. Clones are handles of the same.
#[derive(Clone)]
pub struct GroupLog {
    shared: Arc<Shared>,
    group: Arc<Group>,
}

impl GroupLog {
    pub(super) fn new(shared: Arc<Shared>, group: Arc<Group>) -> Self {
        Self { shared, group }
    }

    /// Appends `payloads` behind the last entry and waits until they are durable. For measuring the
    /// log alone; a group's entries come from consensus.
    ///
    /// # Errors
    /// As `append`.
    pub async fn append_payloads(
        &mut self,
        term: Term,
        payloads: Vec<Bytes>,
    ) -> Result<LogIndex, io::Error> {
        let first = self.group.state.lock().view.indexes().end;
        let count = payloads.len() as u64;
        let entries = (first..).zip(payloads).map(|(index, payload)| Entry {
            log_id: record::log_id(term.0, index),
            payload: EntryPayload::Normal(Payload(payload)),
        });
        let (done, durable) = TypeConfig::oneshot();
        self.append(entries, IOFlushed::signal(done)).await?;
        durable.await.map_err(|_| self.shared.failure())??;
        Ok(LogIndex(first + count))
    }

    /// Forgets the entries before `index`. For measuring the log alone.
    ///
    /// # Errors
    /// When the log has failed or is closed.
    pub async fn purge_before(&mut self, index: LogIndex) -> Result<(), io::Error> {
        let last = index.0.checked_sub(1);
        let log_id = last.and_then(|last| self.group.state.lock().view.log_id(last));
        match log_id {
            Some(log_id) => self.purge(log_id).await,
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn tail_bytes(&self) -> usize {
        self.group.state.lock().view.tail_bytes()
    }

    /// The entries of `range` that the log has, until they are [`READ_BYTES`] together; at least one,
    /// if it has any.
    async fn read_some(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        // A segment may be given up between the look at the index and the read, after its entries
        // were purged or moved: the second look sees that.
        loop {
            let mut entries = Vec::new();
            let mut locations = Vec::new();
            {
                let state = self.group.state.lock();
                let present = state.view.indexes();
                let mut bytes = 0;
                for index in range.start.max(present.start)..range.end.min(present.end) {
                    if bytes >= READ_BYTES {
                        break;
                    }
                    match state.view.in_memory(index) {
                        Some(entry) if locations.is_empty() => {
                            bytes += record::entry_stride(entry);
                            entries.push(entry.clone());
                        }
                        // Memory follows disk: the next read begins there.
                        Some(_) => break,
                        None if entries.is_empty() => {
                            let location = state.disk.location(index).ok_or_else(|| {
                                io::Error::other(format!("entry {index} is in no segment"))
                            })?;
                            bytes += location.length as usize;
                            locations.push(location);
                        }
                        None => break,
                    }
                }
            }
            if locations.is_empty() {
                return Ok(entries);
            }
            self.shared.metrics.disk_reads.inc();
            let shared = Arc::clone(&self.shared);
            let wanted = locations.clone();
            let bodies = tokio::task::spawn_blocking(move || shared.segments.read(&wanted))
                .await
                .map_err(io::Error::other)?;
            match bodies {
                Ok(bodies) => {
                    return bodies
                        .iter()
                        .map(|body| {
                            record::decode_entry(body)
                                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
                        })
                        .collect();
                }
                Err(error) => {
                    let state = self.group.state.lock();
                    let first = range.start.max(state.view.indexes().start);
                    let unmoved = first == range.start
                        && locations
                            .iter()
                            .zip(first..)
                            .all(|(location, index)| state.disk.location(index) == Some(*location));
                    if unmoved {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The entries of `range`, in parts of at most about [`READ_BYTES`].
    fn parts(
        &self,
        range: Range<u64>,
    ) -> impl Stream<Item = io::Result<Vec<Entry>>> + Send + use<> {
        stream::try_unfold(
            (self.clone(), range, false),
            |(log, range, begun)| async move {
                let entries = log.read_some(range.clone()).await?;
                let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                    return Ok(None);
                };
                // What is missing at the beginning was purged before; in the middle, it was meanwhile.
                if begun && first.log_id.index != range.start {
                    return Err(io::Error::other("entries were purged while they were read"));
                }
                let rest = last.log_id.index + 1..range.end;
                Ok(Some((entries, (log, rest, true))))
            },
        )
    }

    /// `leader`'s privilege, as long as the stored vote says that it leads.
    fn check_leader(
        &self,
        leader: LeaderIdOf<TypeConfig>,
    ) -> Result<(), LeaderChanged<TypeConfig>> {
        let vote = self.group.state.lock().view.vote;
        match vote {
            Some(vote) if vote.is_committed() && *vote.leader_id() == leader => Ok(()),
            other => Err(LeaderChanged::new(leader, other)),
        }
    }

    async fn mark(&self, op: impl FnOnce(&mut super::group::View) -> Op) -> io::Result<()> {
        let permits = self.shared.acquire(SMALL_OP).await?;
        let mut state = self.group.state.lock();
        if state.view.is_removed() {
            self.shared.permits.add_permits(permits);
            return Err(removed());
        }
        let before = state.view.tail_bytes();
        let op = op(&mut state.view);
        self.shared.forget_tail(before - state.view.tail_bytes());
        // With the group locked, so that the stream has its operations in this order.
        self.shared.enqueue(op, permits);
        Ok(())
    }
}

fn removed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "the group was removed from the log",
    )
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        // An empty range, too, is only this leader's to read.
        let changed = self.check_leader(leader).err();
        let range = if changed.is_none() {
            indexes(&range)
        } else {
            0..0
        };
        let parts = self
            .parts(range)
            .map(move |part| {
                let part = part?;
                // After the read: what was read under another leader may have been truncated.
                log.check_leader(leader)?;
                LeaderBounded::Ok(part)
            })
            .map_ok(|part| stream::iter(part).map(Ok))
            .try_flatten();
        let changed = stream::iter(changed).map(|changed| Err(changed.into()));
        Box::pin(changed.chain(parts))
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let parts = self.parts(indexes(&range));
        Box::pin(
            parts
                .map_ok(|part| stream::iter(part).map(Ok))
                .try_flatten(),
        )
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.parts(indexes(&range)).try_concat().await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read_some(start..end).await
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        let range = range.start().index..range.end().index.saturating_add(1);
        Ok(self.group.state.lock().view.key_log_ids(range))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.group.state.lock().view.vote)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.group.state.lock();
        Ok(LogState {
            last_purged_log_id: state.view.purged,
            last_log_id: state.view.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        let (group, vote) = (Arc::clone(&self.group), *vote);
        self.mark(|view| {
            view.vote = Some(vote);
            Op::Vote { group, vote, done }
        })
        .await?;
        saved.await.map_err(|_| self.shared.failure())??;
        Ok(())
    }

    /// Written with the next append. A crash before that forgets it, which costs nothing but applying
    /// again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.group.state.lock().view.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.group.state.lock().view.committed)
    }

    /// Cancel safe until the entries have a place in the queue; after that it does not wait.
    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut bytes = 0;
        for entry in &entries {
            let size = record::entry_stride(entry);
            if size > self.shared.max_payload() + RECORD_OVERHEAD {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("an entry of {size} bytes is too large for the log"),
                ));
            }
            bytes += size;
        }
        let permits = self.shared.acquire(bytes).await?;
        let mut state = self.group.state.lock();
        let before = state.view.tail_bytes();
        let appended = if state.view.is_removed() {
            Err(removed())
        } else {
            state.view.append(&entries)
        };
        if let Err(error) = appended {
            self.shared.permits.add_permits(permits);
            return Err(error);
        }
        let added = state.view.tail_bytes() - before;
        self.shared.tail_bytes.fetch_add(added, Ordering::Relaxed);
        let truncations = state.view.truncations();
        let group = Arc::clone(&self.group);
        // With the group locked, so that the stream has its operations in this order.
        self.shared.enqueue(
            Op::Append {
                group,
                entries,
                truncations,
                done: callback,
            },
            permits,
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let group = Arc::clone(&self.group);
        self.mark(|view| {
            view.truncate(last_log_id.as_ref());
            Op::Truncate {
                group,
                after: last_log_id,
            }
        })
        .await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let group = Arc::clone(&self.group);
        self.mark(|view| {
            view.purge(log_id);
            Op::Purge {
                group,
                upto: log_id,
            }
        })
        .await
    }
}

//! A coordinator over one shard in memory: for adapters' tests, without consensus or disk.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use leadline_raft::engine::ReadIndex;
use leadline_raft::{Context, GroupId, LeaderId, LogIndex, NodeId, Term};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::coordinator::{Coordinator, KeyWatch, PendingReply};
use crate::{KvError, Operation, RequestId, RowError, Rows, ScanOrder, Timestamp};

type Table = BTreeMap<Bytes, (Bytes, Timestamp)>;

/// Rows in a map, under a clock that the test sets.
#[derive(Debug)]
pub struct MemoryRows {
    ctx: Context,
    table: Table,
    now: Timestamp,
    random: u64,
    woken: Vec<Bytes>,
    written: usize,
}

impl Default for MemoryRows {
    fn default() -> Self {
        Self {
            ctx: Context::with_timeout(Duration::MAX),
            table: Table::new(),
            now: Timestamp::default(),
            random: 0,
            woken: Vec::new(),
            written: 0,
        }
    }
}

impl MemoryRows {
    /// Sets what the commands to come run under; without it they have all the time there is.
    pub fn set_context(&mut self, ctx: Context) {
        self.ctx = ctx;
    }

    /// Sets the clock to `millis` since the epoch.
    pub fn set_millis(&mut self, millis: u64) {
        self.now = Timestamp::from_millis(millis);
    }

    /// Sets the stamp of the commands to come.
    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The keys woken since the last call.
    pub fn take_woken(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.woken)
    }

    /// Bytes of keys and values written since the last call.
    pub fn take_written(&mut self) -> usize {
        std::mem::take(&mut self.written)
    }
}

impl Rows for MemoryRows {
    fn context(&self) -> &Context {
        &self.ctx
    }

    fn commit_ts(&self) -> Timestamp {
        self.now
    }

    fn random(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014): reproducible.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.table.get(key).map(|row| row.0.clone()))
    }

    fn get_versioned(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        Ok(self.table.get(key).cloned())
    }

    fn scan(
        &mut self,
        range: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), RowError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut rows = self.table.range(range);
        match order {
            ScanOrder::Ascending => rows.all(|(key, row)| visit(key, &row.0)),
            ScanOrder::Descending => rows.rev().all(|(key, row)| visit(key, &row.0)),
        };
        Ok(())
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.written += key.len() + value.len();
        self.table.insert(key, (value, self.now));
    }

    fn delete(&mut self, key: Bytes) {
        self.written += key.len();
        self.table.remove(&key);
    }

    fn delete_range(&mut self, range: Range<Bytes>) {
        self.written += range.start.len() + range.end.len();
        let doomed: Vec<Bytes> = self
            .table
            .range::<Bytes, _>((Bound::Included(&range.start), Bound::Excluded(&range.end)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in doomed {
            self.table.remove(&key);
        }
    }

    fn wake(&mut self, key: Bytes) {
        self.woken.push(key);
    }

    fn owned(&self) -> Range<Bytes> {
        Bytes::from_static(&[0x00])..Bytes::from_static(&[0xFF])
    }
}

/// One shard in memory, led by node 1, always.
#[derive(Debug)]
pub struct MemoryCoordinator {
    rows: Mutex<MemoryRows>,
    watches: Mutex<Vec<(Vec<Bytes>, oneshot::Sender<()>)>>,
    answered: Mutex<BTreeMap<RequestId, Bytes>>,
    requests: AtomicU64,
    /// Advances the clock by itself when set, so that expiry is seen as in life.
    live_clock: Option<(std::time::Instant, u64)>,
}

impl MemoryCoordinator {
    /// A pristine shard whose clock starts at `unix_millis` and then runs.
    #[must_use]
    pub fn new(unix_millis: u64) -> Self {
        Self {
            rows: Mutex::default(),
            watches: Mutex::default(),
            answered: Mutex::default(),
            requests: AtomicU64::new(1),
            live_clock: Some((std::time::Instant::now(), unix_millis)),
        }
    }

    fn evaluate(&self, operation: &dyn Operation) -> Result<Bytes, KvError> {
        let mut rows = self.rows.lock();
        if let Some((began, unix_millis)) = self.live_clock {
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let now = Timestamp::from_millis(unix_millis + passed);
            rows.now = now.max(Timestamp(rows.now.0 + 1));
        }
        let reply = operation
            .evaluate(&mut *rows)
            .map_err(|error| match error {
                RowError::Refused(why) => KvError::Invalid(why),
                other => KvError::Storage(other.to_string()),
            })?;
        let woken = rows.take_woken();
        drop(rows);
        if !woken.is_empty() {
            let mut watches = self.watches.lock();
            let (wake, keep): (Vec<_>, Vec<_>) = std::mem::take(&mut *watches)
                .into_iter()
                .partition(|(keys, _)| keys.iter().any(|key| woken.contains(key)));
            *watches = keep;
            for (_, sender) in wake {
                // A watch that was dropped meanwhile has nobody to wake.
                sender.send(()).ok();
            }
        }
        Ok(reply)
    }
}

const PROOF: ReadIndex = ReadIndex {
    leader: LeaderId {
        term: Term(1),
        node: NodeId(1),
    },
    index: LogIndex(1),
};

impl Coordinator for MemoryCoordinator {
    fn submit(&self, ctx: &Context, operation: Arc<dyn Operation>) -> PendingReply {
        PendingReply::ready(match ctx.ended() {
            Some(ended) => Err(KvError::NotApplied(ended)),
            None => self.evaluate(operation.as_ref()),
        })
    }

    fn submit_once(
        &self,
        ctx: &Context,
        id: RequestId,
        operation: Arc<dyn Operation>,
    ) -> PendingReply {
        if let Some(reply) = self.answered.lock().get(&id) {
            return PendingReply::ready(Ok(reply.clone()));
        }
        if let Some(ended) = ctx.ended() {
            return PendingReply::ready(Err(KvError::NotApplied(ended)));
        }
        let reply = self.evaluate(operation.as_ref());
        if let Ok(reply) = &reply {
            self.answered.lock().insert(id, reply.clone());
        }
        PendingReply::ready(reply)
    }

    fn next_request_id(&self) -> RequestId {
        RequestId {
            session: 1,
            number: self.requests.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn watch<'a>(
        &'a self,
        _ctx: &'a Context,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<KeyWatch, KvError>> {
        let (sender, watch) = KeyWatch::new();
        self.watches.lock().push((keys.to_vec(), sender));
        Box::pin(std::future::ready(Ok(watch)))
    }

    fn verify_leader<'a>(
        &'a self,
        _ctx: &'a Context,
        _group: GroupId,
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        Box::pin(std::future::ready(Ok(PROOF)))
    }

    fn verify_leader_for_key<'a>(
        &'a self,
        _ctx: &'a Context,
        _key: &'a [u8],
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        Box::pin(std::future::ready(Ok(PROOF)))
    }

    fn known_leader(&self, _group: GroupId) -> Option<NodeId> {
        Some(NodeId(1))
    }
}

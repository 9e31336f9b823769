//! The replicated state of a shard: applies what its executors wrote into the log.
//!
//! # Invariants
//! 1. Apply takes no decision of its own, and reads no clock, no random number and no setting: what
//!    it does follows from the state and the entry alone, so replicas cannot diverge.
//! 2. The fence: a batch takes effect only if it is of the incarnation that began last in the log,
//!    and the successor of the last batch applied. With the log's order: only on exactly the state
//!    that it was evaluated on.
//! 3. Incarnation, last number, highest stamp, ownership and remembered requests are rows, written
//!    in the same atomic batch as the effects, and travel in snapshots.
//! 4. A local executor is told of an apply after storage and cache show it. No reply precedes it.
//! 5. A failure of storage, or an entry that cannot be read, is an error for consensus to stop the
//!    group with: no entry is skipped.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_raft::GroupId;
use leadline_raft::engine::{
    CommittedEntry, SnapshotSink, SnapshotSource, StateError, StateMachine, StateMachines,
};
use leadline_raft::mutations::{self, Mutation};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::executor::Pool;
use crate::executor::entry::{Entry, EntryError, Incarnation, LogEffect};
use crate::executor::evaluate::CacheVersions;
use crate::executor::life::Life;
use crate::executor::requests::Requests;
use crate::hlc::Hlc;
use crate::storage::{self, Batch, GroupStorage, Position, Row, StorageError, Store};
use crate::transaction::Table;
use crate::{RowError, ScanOrder, Timestamp, keyspace};

/// What apply answers for an entry that took effect, and for a batch that the fence held off.
pub(crate) const APPLIED: &[u8] = b"applied";
pub(crate) const IGNORED: &[u8] = b"ignored";

/// Names of private rows: how far the executors are, and what the shard owns. All others lie in the
/// shard's own range, in [`keyspace::area`], to travel with it: those of remembered requests are in
/// [`crate::executor::requests`], those of transactions in [`crate::transaction`].
const HEAD: u8 = b'h';
pub(crate) const OWNED: u8 = b'o';

const HEAD_VERSION: u8 = 1;
const OWNED_VERSION: u8 = 1;

/// How far the executors of a shard are, in its log's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    incarnation: Option<Incarnation>,
    /// The last batch of it that took effect.
    number: u64,
    /// The highest stamp of any batch that took effect.
    stamp: Timestamp,
}

const PRISTINE: Head = Head {
    incarnation: None,
    number: 0,
    stamp: Timestamp(0),
};

impl Head {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(33);
        out.put_u8(HEAD_VERSION);
        out.put_u128(self.incarnation.map_or(0, |incarnation| incarnation.0));
        out.put_u64(self.number);
        out.put_u64(self.stamp.0);
        out.freeze()
    }

    fn decode(mut row: &[u8]) -> Result<Self, StateError> {
        match row.try_get_u8() {
            Ok(HEAD_VERSION) if row.len() == 32 => Ok(Self {
                incarnation: Some(Incarnation(row.get_u128())),
                number: row.get_u64(),
                stamp: Timestamp(row.get_u64()),
            }),
            Ok(version) => Err(unreadable("the executors' head", version, HEAD_VERSION)),
            Err(_) => Err(unreadable("the executors' head", 0, HEAD_VERSION)),
        }
    }
}

fn unreadable(what: &str, version: u8, supported: u8) -> StateError {
    StateError {
        what: format!(
            "{what} has format {version} or is damaged; this program reads up to {supported}"
        ),
        source: None,
    }
}

/// The private row that says which rows a shard owns.
pub(crate) fn encode_owned(owned: &Range<Bytes>) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + owned.start.len() + owned.end.len());
    out.put_u8(OWNED_VERSION);
    out.put_u32(u32::try_from(owned.start.len()).expect("a row key is shorter than 4 GiB"));
    out.put_slice(&owned.start);
    out.put_slice(&owned.end);
    out.freeze()
}

fn decode_owned(row: &Bytes) -> Result<Range<Bytes>, StateError> {
    let mut row = row.clone();
    let damaged = |version| unreadable("a shard's ownership", version, OWNED_VERSION);
    match row.try_get_u8() {
        Ok(OWNED_VERSION) => {}
        Ok(version) => return Err(damaged(version)),
        Err(_) => return Err(damaged(0)),
    }
    let length = row.try_get_u32().map_err(|_| damaged(OWNED_VERSION))? as usize;
    if length > row.len() {
        return Err(damaged(OWNED_VERSION));
    }
    let start = Bytes::copy_from_slice(&row.split_to(length));
    Ok(start..Bytes::copy_from_slice(&row))
}

/// The applied state of one shard on this node, shared by its state machine and its executor.
pub struct ShardState {
    storage: GroupStorage,
    hlc: Arc<Hlc>,
    /// Held while entries are applied or a snapshot is swapped in.
    head: Mutex<Head>,
    owned: ArcSwapOption<Range<Bytes>>,
    requests: Mutex<Requests>,
    transactions: RwLock<Table>,
    /// Whether there are locks of transactions: for readers who only want to know that.
    locked: AtomicBool,
    /// The executor that lives here, and those whose proposals the log has yet to decide.
    lives: Mutex<Vec<Arc<Life>>>,
    /// Odd while a batch with range deletions is being applied.
    ranges: AtomicU64,
}

impl std::fmt::Debug for ShardState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardState")
            .field("group", &self.storage.group())
            .finish_non_exhaustive()
    }
}

impl ShardState {
    fn open(storage: GroupStorage, hlc: Arc<Hlc>) -> Result<Self, StateError> {
        let state = Self {
            storage,
            hlc,
            head: Mutex::new(PRISTINE),
            owned: ArcSwapOption::empty(),
            requests: Mutex::default(),
            transactions: RwLock::default(),
            locked: AtomicBool::new(false),
            lives: Mutex::default(),
            ranges: AtomicU64::new(0),
        };
        state.load(&mut state.head.lock())?;
        Ok(state)
    }

    /// Reads what is kept in memory of the private rows.
    fn load(&self, head: &mut Head) -> Result<(), StateError> {
        let (mut found, mut owned, mut requests) = (PRISTINE, None, Requests::default());
        let prefix = self.storage.private_key(&[]);
        let end = self.storage.private_key(&[0xFF]);
        let mut failed = None;
        self.storage
            .scan(&prefix..&end, ScanOrder::Ascending, &mut |key, value| {
                let value = Bytes::copy_from_slice(value);
                let read = match &key[prefix.len()..] {
                    [HEAD] => Head::decode(&value).map(|head| found = head),
                    [OWNED] => decode_owned(&value).map(|range| owned = Some(range)),
                    _ => Ok(()),
                };
                failed = read.err();
                failed.is_none()
            })?;
        let mut transactions = Table::default();
        if let Some(owned) = owned.as_ref().filter(|_| failed.is_none()) {
            let area = keyspace::area(&owned.start);
            let end = area_end(&area);
            self.storage
                .scan(&area..&end, ScanOrder::Ascending, &mut |key, row| {
                    let name = &key[area.len()..];
                    let noted = Row::decode_ref(row)
                        .map_err(|error| named(&error))
                        .and_then(|(_, value)| {
                            note(&mut requests, &mut transactions, name, Some(value))
                        });
                    failed = noted.err();
                    failed.is_none()
                })?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.hlc.observe(found.stamp);
        *head = found;
        self.owned.store(owned.map(Arc::new));
        *self.requests.lock() = requests;
        self.locked
            .store(transactions.has_locks(), Ordering::SeqCst);
        *self.transactions.write() = transactions;
        Ok(())
    }

    pub fn group(&self) -> GroupId {
        self.storage.group()
    }

    /// The rows this shard owns; `None` until its first executor has begun.
    pub fn owned(&self) -> Option<Range<Bytes>> {
        self.owned.load().as_deref().cloned()
    }

    pub(crate) fn owned_guard(&self) -> arc_swap::Guard<Option<Arc<Range<Bytes>>>> {
        self.owned.load()
    }

    /// The highest stamp of any command that was applied.
    pub fn highest_stamp(&self) -> Timestamp {
        self.head.lock().stamp
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock()
    }

    /// What is known of transactions, as applied.
    pub(crate) fn transactions(&self) -> Table {
        self.transactions.read().clone()
    }

    /// Locks and commit records of transactions over several shards, as applied.
    pub fn transaction_counts(&self) -> (usize, usize) {
        self.transactions.read().counts()
    }

    /// Whether a transaction has locked the row, as far as is applied.
    pub(crate) fn is_locked(&self, key: &[u8]) -> bool {
        self.locked.load(Ordering::SeqCst) && self.transactions.read().blocks(key).is_some()
    }

    /// A stored row, header included. May block on storage.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        self.storage.get(key).map_err(row_error)
    }

    /// A stored row, if the cache knows it.
    pub(crate) fn get_cached(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.storage.get_cached(key)
    }

    /// Stored rows, headers included. May block on storage.
    pub(crate) fn scan(
        &self,
        range: &Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), RowError> {
        self.storage
            .scan(&range.start..&range.end, order, visit)
            .map_err(row_error)
    }

    pub(crate) fn cache_versions(&self) -> CacheVersions {
        CacheVersions {
            batches: self.storage.cache_version(),
            ranges: self.ranges.load(Ordering::SeqCst),
        }
    }

    /// Makes `life` known to apply. Lives that are over with nothing left to decide are let go.
    pub(crate) fn register(&self, life: &Arc<Life>) {
        let mut lives = self.lives.lock();
        lives.retain(|life| !life.is_dead() || life.undecided());
        lives.push(Arc::clone(life));
    }

    pub(crate) fn lives(&self) -> Vec<Arc<Life>> {
        self.lives.lock().clone()
    }

    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError> {
        let mut head = self.head.lock();
        let mut run = Run::new(*head, self.owned(), entries.len());
        for entry in entries {
            self.apply_one(&mut run, entry)?;
        }
        let Some(position) = run.position else {
            return Ok(run.responses);
        };
        if run.head != *head {
            let name = self.storage.private_key(&[HEAD]);
            run.batch.put(name, run.head.encode());
        }
        if run.ranges {
            self.ranges.fetch_add(1, Ordering::SeqCst);
        }
        self.storage.apply(run.batch, position)?;
        if run.ranges {
            self.ranges.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(owned) = run.owned.take() {
            self.owned.store(Some(Arc::new(owned)));
        }
        if !run.private.is_empty() {
            self.note_private(run.private)?;
        }
        self.hlc.observe(run.head.stamp);
        *head = run.head;
        drop(head);
        if !run.events.is_empty() {
            self.tell(&run.events);
        }
        Ok(run.responses)
    }

    /// Adds what `entry` does to the run.
    fn apply_one(&self, run: &mut Run, entry: CommittedEntry) -> Result<(), StateError> {
        let index = entry.index;
        run.position = Some(Position {
            index: index.0,
            state: entry.position,
        });
        let Some(payload) = entry.payload else {
            run.responses.push(Bytes::new());
            return Ok(());
        };
        let unreadable = |error: EntryError| StateError {
            what: format!("entry {index} of group {}: {error}", self.group()),
            source: Some(Box::new(error)),
        };
        match Entry::decode(payload).map_err(unreadable)? {
            Entry::Begin(incarnation) => {
                run.head.incarnation = Some(incarnation);
                run.head.number = 0;
                run.events.push(Event::Begun(incarnation));
            }
            Entry::Batch(batch)
                if !mutations::active(Mutation::NoFence)
                    && (run.head.incarnation != Some(batch.incarnation)
                        || run.head.number.checked_add(1) != Some(batch.number)) =>
            {
                run.responses.push(Bytes::from_static(IGNORED));
                return Ok(());
            }
            Entry::Batch(batch) => {
                for effect in batch.effects {
                    self.take_effect(run, batch.stamp, effect.map_err(unreadable)?)?;
                }
                run.head.number = batch.number;
                run.head.stamp = run.head.stamp.max(batch.stamp);
                run.applied(batch.incarnation, batch.number);
            }
        }
        run.responses.push(Bytes::from_static(APPLIED));
        Ok(())
    }

    fn take_effect(
        &self,
        run: &mut Run,
        stamp: Timestamp,
        effect: LogEffect,
    ) -> Result<(), StateError> {
        match effect {
            LogEffect::Put { key, value } => run.batch.put(key, value),
            LogEffect::Delete { key } => run.batch.delete(key),
            LogEffect::DeleteRange { range } => {
                run.ranges = true;
                run.batch.delete_range(range);
            }
            LogEffect::PutPrivate { key, value } if key[..] == [OWNED] => {
                let owned = decode_owned(&value)?;
                run.area = Some(keyspace::area(&owned.start));
                run.batch.put(self.storage.private_key(&key), value);
                run.owned = Some(owned);
            }
            LogEffect::PutPrivate { key, value } => {
                run.batch
                    .put(run.area_row(&key)?, Row::encode(stamp, &value));
                run.private.push((key, Some(value)));
            }
            LogEffect::DeletePrivate { key } => {
                run.batch.delete(run.area_row(&key)?);
                run.private.push((key, None));
            }
        }
        Ok(())
    }

    /// Takes note of rows of the area that storage now has.
    fn note_private(&self, rows: Vec<(Bytes, Option<Bytes>)>) -> Result<(), StateError> {
        let mut requests = self.requests.lock();
        let mut transactions = self.transactions.write();
        for (name, value) in rows {
            note(&mut requests, &mut transactions, &name, value.as_deref())?;
        }
        self.locked
            .store(transactions.has_locks(), Ordering::SeqCst);
        Ok(())
    }

    fn tell(&self, events: &[Event]) {
        let lives = self.lives();
        for event in events {
            for life in &lives {
                match *event {
                    Event::Begun(incarnation) if life.incarnation == incarnation => life.begun(),
                    Event::Begun(_) => life.superseded(),
                    Event::Applied(incarnation, number) if life.incarnation == incarnation => {
                        life.batches_applied(number);
                    }
                    Event::Applied(..) => {}
                }
            }
        }
    }
}

/// Where an area ends.
fn area_end(area: &[u8]) -> Bytes {
    Bytes::from([area, &[0xFF]].concat())
}

fn named(error: &(dyn std::error::Error + 'static)) -> StateError {
    StateError {
        what: format!("a row of the shard's own: {error}"),
        source: None,
    }
}

/// Takes note of a row of the area: a remembered request, or of a transaction.
fn note(
    requests: &mut Requests,
    transactions: &mut Table,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<(), StateError> {
    let noted = match value {
        Some(value) => {
            requests.row_written(name, value)
                || transactions
                    .row_written(name, value)
                    .map_err(|error| named(&error))?
        }
        None => requests.row_deleted(name) || transactions.row_deleted(name),
    };
    if !noted {
        tracing::debug!(name = ?Bytes::copy_from_slice(name), "a row of the shard's own that nobody knows");
    }
    Ok(())
}

fn row_error(error: StorageError) -> RowError {
    RowError::Storage(error.to_string())
}

/// Something a local executor may want to know.
#[derive(Clone, Copy, Debug)]
enum Event {
    Begun(Incarnation),
    /// Batches of the incarnation up to this one.
    Applied(Incarnation, u64),
}

/// Entries on their way into one storage batch.
struct Run {
    head: Head,
    batch: Batch,
    ranges: bool,
    private: Vec<(Bytes, Option<Bytes>)>,
    /// Where the shard's own rows are; not before it owns anything.
    area: Option<Bytes>,
    /// What the shard owns from now on, if that changes.
    owned: Option<Range<Bytes>>,
    position: Option<Position>,
    events: Vec<Event>,
    responses: Vec<Bytes>,
}

impl Run {
    fn new(head: Head, owned: Option<Range<Bytes>>, entries: usize) -> Self {
        Self {
            area: owned.map(|owned| keyspace::area(&owned.start)),
            owned: None,
            head,
            batch: Batch::default(),
            ranges: false,
            private: Vec::new(),
            position: None,
            events: Vec::new(),
            responses: Vec::with_capacity(entries),
        }
    }

    /// The row key of a row of the area.
    fn area_row(&self, name: &[u8]) -> Result<Bytes, StateError> {
        let area = self.area.as_ref().ok_or_else(|| StateError {
            what: "a shard that owns nothing wrote rows of its own".to_owned(),
            source: None,
        })?;
        Ok(Bytes::from([area, name].concat()))
    }

    fn applied(&mut self, incarnation: Incarnation, number: u64) {
        match self.events.last_mut() {
            Some(Event::Applied(last, up_to)) if *last == incarnation => *up_to = number,
            _ => self.events.push(Event::Applied(incarnation, number)),
        }
    }
}

impl ShardState {
    fn owned_ranges(&self) -> Vec<Range<Bytes>> {
        self.owned().into_iter().collect()
    }
}

/// A shard's state, as consensus drives it.
struct ShardMachine {
    state: Arc<ShardState>,
    pool: Arc<Pool>,
}

impl StateMachine for ShardMachine {
    fn run(&self, apply: Box<dyn FnOnce() + Send>) {
        self.pool.run(apply);
    }

    fn applied(&self) -> Result<Option<Bytes>, StateError> {
        Ok(self.state.storage.position().map(|position| position.state))
    }

    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError> {
        self.state.apply(entries)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, StateError> {
        // Under the lock, so that what is owned is what the view's rows belong to.
        let head = self.state.head.lock();
        let export = self.state.storage.export(&self.state.owned_ranges())?;
        drop(head);
        Ok(Box::new(Source(export)))
    }

    fn begin_install(&self) -> Result<Box<dyn SnapshotSink>, StateError> {
        let install = self
            .state
            .storage
            .begin_install(&self.state.owned_ranges())?;
        Ok(Box::new(Sink {
            state: Arc::clone(&self.state),
            install,
        }))
    }

    fn flush(&self) -> Result<Option<Bytes>, StateError> {
        let head = self.state.head.lock();
        let owned = self.state.owned_ranges();
        // While nothing is owned there is little to write, and ownership must not come meanwhile.
        let held = owned.is_empty().then_some(head);
        let position = self.state.storage.flush(&owned)?;
        drop(held);
        Ok(position.map(|position| position.state))
    }
}

struct Source(storage::Export);

impl SnapshotSource for Source {
    fn position(&self) -> Bytes {
        self.0.position().state.clone()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.next_chunk()?)
    }
}

struct Sink {
    state: Arc<ShardState>,
    install: storage::Install,
}

impl SnapshotSink for Sink {
    fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StateError> {
        Ok(self.install.write_chunk(&chunk)?)
    }

    fn commit(self: Box<Self>, position: Bytes) -> Result<(), StateError> {
        let Self { state, install } = *self;
        let mut head = state.head.lock();
        install.commit(position)?;
        state.load(&mut head)?;
        let now = *head;
        drop(head);
        for life in state.lives() {
            let applied = (now.incarnation == Some(life.incarnation)).then_some(now.number);
            life.state_replaced(applied);
        }
        Ok(())
    }
}

/// The state machines of a node's shards, over one store.
pub struct ShardStateMachines {
    store: Arc<Store>,
    hlc: Arc<Hlc>,
    /// Where they apply.
    pool: Arc<Pool>,
    states: Mutex<HashMap<GroupId, Arc<ShardState>>>,
}

impl std::fmt::Debug for ShardStateMachines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardStateMachines").finish_non_exhaustive()
    }
}

impl ShardStateMachines {
    #[must_use]
    pub fn new(store: Arc<Store>, hlc: Arc<Hlc>, pool: Arc<Pool>) -> Self {
        Self {
            store,
            hlc,
            pool,
            states: Mutex::default(),
        }
    }

    /// The state of `group`, read from storage when it is first asked for. May block.
    pub fn state(&self, group: GroupId) -> Result<Arc<ShardState>, StateError> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(&group) {
            return Ok(Arc::clone(state));
        }
        let storage = self.store.group(group)?;
        let state = Arc::new(ShardState::open(storage, Arc::clone(&self.hlc))?);
        states.insert(group, Arc::clone(&state));
        Ok(state)
    }
}

impl StateMachines for ShardStateMachines {
    fn open(&self, group: GroupId) -> Result<Arc<dyn StateMachine>, StateError> {
        Ok(Arc::new(ShardMachine {
            state: self.state(group)?,
            pool: Arc::clone(&self.pool),
        }))
    }

    fn destroy(&self, group: GroupId) -> Result<(), StateError> {
        let state = self.state(group)?;
        let mut head = state.head.lock();
        state.storage.destroy(&state.owned_ranges())?;
        state.load(&mut head)?;
        drop(head);
        for life in state.lives() {
            life.state_replaced(None);
        }
        self.states.lock().remove(&group);
        Ok(())
    }
}

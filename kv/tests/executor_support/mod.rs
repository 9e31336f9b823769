//! A shard over a simulated engine and a store in memory, and small commands to run on it.

#![allow(clippy::unwrap_used, reason = "test support fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use leadline_kv::executor::{
    Once, Order, Pool, Shard, ShardConfig, ShardMetrics, ShardParts, Submission, Sweep,
};
use leadline_kv::hlc::Hlc;
use leadline_kv::state_machine::{ShardState, ShardStateMachines};
use leadline_kv::storage::{EngineKind, Store, StoreOptions};
use leadline_kv::{
    Access, Door, KvError, Operation, PendingReply, RequestId, Route, RowError, Rows, ScanOrder,
};
use leadline_raft::engine::{
    CommittedEntry, SnapshotSink, SnapshotSource, StateError, StateMachine, StateMachines,
};
use leadline_raft::testing::SimEngine;
use leadline_raft::{Context, GroupId, NodeId};
use parking_lot::Mutex;

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const NODE: NodeId = NodeId(1);

pub(crate) fn key(name: &str) -> Bytes {
    let mut key = BytesMut::from(&[0x10u8][..]);
    key.extend_from_slice(name.as_bytes());
    key.freeze()
}

/// What the shard of these tests owns.
pub(crate) fn owned() -> Range<Bytes> {
    Bytes::from_static(&[0x10])..Bytes::from_static(&[0x20])
}

/// What a test command does. Numbers are stored as decimal text.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Get,
    Set(Bytes),
    SetNx(Bytes),
    Del,
    /// Replies the value, and deletes it.
    Take,
    /// Replies the value, and sets another.
    GetSet(Bytes),
    Incr,
    /// Adds to this key, whose sum it replies, and to the other; or fails in between.
    IncrBoth(Bytes, Option<RowError>),
    /// Both values, in one read.
    GetBoth(Bytes),
    /// Deletes what is between the key and the other, and says `+OK`.
    DelRange(Bytes),
    /// The names between the key and the other, joined by commas.
    Names(Bytes, ScanOrder),
    /// `DEADLINE value` while the clock is before the stored millisecond, else nothing: and then
    /// the row is deleted.
    GetUnlessExpired,
    Push(Bytes),
    Panic,
}

/// A command on one key.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) what: What,
    pub(crate) keys: Vec<Bytes>,
    /// Threads it was evaluated on, by name.
    pub(crate) evaluated: Mutex<Vec<String>>,
}

impl Command {
    pub(crate) fn new(name: &str, what: What) -> Arc<Self> {
        Arc::new(Self {
            what,
            keys: vec![key(name)],
            evaluated: Mutex::default(),
        })
    }

    pub(crate) fn evaluations(&self) -> usize {
        self.evaluated.lock().len()
    }
}

fn number(value: Option<Bytes>) -> i64 {
    value.map_or(0, |text| {
        std::str::from_utf8(&text).unwrap().parse().unwrap()
    })
}

fn text(number: i64) -> Bytes {
    Bytes::from(number.to_string())
}

impl Operation for Command {
    fn name(&self) -> &'static str {
        "TEST"
    }

    fn door(&self) -> Door {
        Door::Redis
    }

    fn access(&self) -> Access {
        match self.what {
            What::Get | What::GetBoth(_) | What::Names(..) | What::GetUnlessExpired => Access::Read,
            _ => Access::Write,
        }
    }

    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }

    fn size(&self) -> usize {
        match &self.what {
            What::Set(value) | What::SetNx(value) | What::Push(value) => 64 + value.len(),
            _ => 64,
        }
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let key = self.keys[0].clone();
        let reply = self.run(key, rows)?;
        let thread = std::thread::current();
        self.evaluated
            .lock()
            .push(thread.name().unwrap_or("unnamed").to_owned());
        Ok(reply)
    }

    fn encode(&self, _out: &mut BytesMut) {
        unimplemented!("test commands stay on one node")
    }
}

impl Command {
    fn run(&self, key: Bytes, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        Ok(match &self.what {
            What::Get => rows.get(&key)?.unwrap_or_default(),
            What::Set(value) => {
                rows.put(key, value.clone());
                Bytes::from_static(b"OK")
            }
            What::SetNx(value) => {
                if rows.get(&key)?.is_some() {
                    return Ok(Bytes::from_static(b"0"));
                }
                rows.put(key, value.clone());
                Bytes::from_static(b"1")
            }
            What::Del => match rows.get(&key)? {
                Some(_) => {
                    rows.delete(key);
                    Bytes::from_static(b"1")
                }
                None => Bytes::from_static(b"0"),
            },
            What::Take => {
                let value = rows.get(&key)?.unwrap_or_default();
                rows.delete(key);
                value
            }
            What::GetSet(next) => {
                let value = rows.get(&key)?.unwrap_or_default();
                rows.put(key, next.clone());
                value
            }
            What::Incr => {
                let sum = number(rows.get(&key)?) + 1;
                rows.put(key, text(sum));
                text(sum)
            }
            What::IncrBoth(other, fail) => {
                let sum = number(rows.get(&key)?) + 1;
                rows.put(key, text(sum));
                if let Some(error) = fail {
                    return Err(error.clone());
                }
                let other_sum = number(rows.get(other)?) + 1;
                rows.put(other.clone(), text(other_sum));
                text(sum)
            }
            What::GetBoth(other) => {
                let (a, b) = (number(rows.get(&key)?), number(rows.get(other)?));
                Bytes::from(format!("{a} {b}"))
            }
            What::DelRange(end) => {
                rows.delete_range(key..end.clone());
                Bytes::from_static(b"OK")
            }
            What::Names(end, order) => {
                let mut names = Vec::new();
                rows.scan(key..end.clone(), *order, &mut |key, _| {
                    names.push(String::from_utf8_lossy(&key[1..]).into_owned());
                    true
                })?;
                Bytes::from(names.join(","))
            }
            What::GetUnlessExpired => {
                let Some(value) = rows.get(&key)? else {
                    return Ok(Bytes::new());
                };
                if rows.commit_ts().millis() >= u64::try_from(number(Some(value.clone()))).unwrap()
                {
                    rows.delete(key);
                    return Ok(Bytes::new());
                }
                value
            }
            What::Push(value) => {
                rows.put(key.clone(), value.clone());
                rows.wake(key);
                Bytes::from_static(b"OK")
            }
            What::Panic => panic!("told to panic"),
        })
    }
}

/// A state machine that keeps the log it is given.
pub(crate) struct Recorder {
    machine: Arc<dyn StateMachine>,
    log: Arc<Mutex<Vec<CommittedEntry>>>,
}

impl StateMachine for Recorder {
    fn applied(&self) -> Result<Option<Bytes>, StateError> {
        self.machine.applied()
    }

    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError> {
        self.log.lock().extend(entries.iter().cloned());
        self.machine.apply(entries)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, StateError> {
        self.machine.snapshot()
    }

    fn begin_install(&self) -> Result<Box<dyn SnapshotSink>, StateError> {
        self.machine.begin_install()
    }

    fn flush(&self) -> Result<Option<Bytes>, StateError> {
        self.machine.flush()
    }
}

/// An empty store in memory, and the directory that must outlive it.
pub(crate) fn memory_store() -> (Arc<Store>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        engine: EngineKind::Memory,
        ..StoreOptions::default()
    };
    (Store::open(dir.path(), options).unwrap().store, dir)
}

/// A node with one shard.
pub(crate) struct Node {
    pub(crate) store: Arc<Store>,
    pub(crate) machines: Arc<ShardStateMachines>,
    pub(crate) state: Arc<ShardState>,
    pub(crate) engine: Arc<SimEngine>,
    pub(crate) shard: Arc<Shard<SimEngine>>,
    /// The wall clock, in milliseconds.
    pub(crate) wall: Arc<AtomicU64>,
    pub(crate) hlc: Arc<Hlc>,
    /// Everything that was committed.
    pub(crate) log: Arc<Mutex<Vec<CommittedEntry>>>,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(ShardConfig::default(), Arc::new([]))
    }

    pub(crate) fn with(config: ShardConfig, sweeps: Arc<[Arc<dyn Sweep>]>) -> Self {
        let (store, dir) = memory_store();
        Self::over(store, dir, config, sweeps, Arc::default())
    }

    fn over(
        store: Arc<Store>,
        dir: tempfile::TempDir,
        config: ShardConfig,
        sweeps: Arc<[Arc<dyn Sweep>]>,
        log: Arc<Mutex<Vec<CommittedEntry>>>,
    ) -> Self {
        let wall = Arc::new(AtomicU64::new(1_000));
        let clock = Arc::clone(&wall);
        let hlc = Arc::new(Hlc::with_wall(move || clock.load(Ordering::SeqCst)));
        let pool = Pool::new(1).unwrap();
        let machines = Arc::new(ShardStateMachines::new(
            Arc::clone(&store),
            Arc::clone(&hlc),
            Arc::clone(&pool),
        ));
        let state = machines.state(GROUP).unwrap();
        let recorder = Recorder {
            machine: machines.open(GROUP).unwrap(),
            log: Arc::clone(&log),
        };
        let engine = SimEngine::new(GROUP, NODE, Arc::new(recorder));
        let parts = ShardParts {
            config,
            hlc: Arc::clone(&hlc),
            metrics: ShardMetrics::default(),
            sweeps,
            doubts: Arc::default(),
            pool,
        };
        let shard = Shard::new(Arc::clone(&engine), Arc::clone(&state), owned(), &parts);
        Self {
            store,
            machines,
            state,
            engine,
            shard,
            wall,
            hlc,
            log,
            _dir: dir,
        }
    }

    /// The process ends and starts again over the same storage.
    pub(crate) async fn restart(self, config: ShardConfig) -> Self {
        self.shard.shutdown(&Context::fallback()).await;
        let Self {
            store,
            shard,
            engine,
            machines,
            state,
            log,
            _dir,
            ..
        } = self;
        drop((shard, engine, machines, state));
        Self::over(store, _dir, config, Arc::new([]), log)
    }

    /// Waits until an executor has begun and said what the shard owns.
    pub(crate) async fn ready(&self) {
        let ctx = Context::fallback();
        loop {
            match self.submit(&ctx, &Command::new("ready", What::Incr)).await {
                Ok(_) => return,
                Err(KvError::NoLeader { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }

    pub(crate) fn submit(&self, ctx: &Context, command: &Arc<Command>) -> PendingReply {
        self.shard.submit(ctx, submission(command))
    }

    pub(crate) fn submit_once(
        &self,
        ctx: &Context,
        command: &Arc<Command>,
        once: Once,
    ) -> PendingReply {
        let submission = Submission {
            once: Some(once),
            ..submission(command)
        };
        self.shard.submit(ctx, submission)
    }

    pub(crate) async fn run(&self, name: &str, what: What) -> Result<Bytes, KvError> {
        self.submit(&Context::fallback(), &Command::new(name, what))
            .await
    }

    /// The value of a row, as soon as there is an executor to say.
    pub(crate) async fn get(&self, name: &str) -> Bytes {
        loop {
            match self.run(name, What::Get).await {
                Err(KvError::NoLeader { .. }) => tokio::task::yield_now().await,
                reply => return reply.unwrap(),
            }
        }
    }

    /// Every row of the group with its key, headers and private rows included.
    pub(crate) fn all_rows(&self) -> Vec<(Bytes, Bytes)> {
        rows_of(&self.store)
    }
}

pub(crate) fn rows_of(store: &Arc<Store>) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    let group = store.group(GROUP).unwrap();
    group
        .scan(
            &[0x00][..]..&[0xFF][..],
            ScanOrder::Ascending,
            &mut |key, value| {
                rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                true
            },
        )
        .unwrap();
    rows
}

pub(crate) fn submission(command: &Arc<Command>) -> Submission {
    Submission {
        operation: Arc::clone(command) as Arc<dyn Operation>,
        order: Order::Free,
        once: None,
    }
}

pub(crate) fn once(number: u64, lowest_open: u64) -> Once {
    Once {
        id: RequestId { session: 7, number },
        lowest_open,
    }
}

/// A context for what must not take long.
pub(crate) fn soon() -> Context {
    Context::with_timeout(Duration::from_secs(10))
}

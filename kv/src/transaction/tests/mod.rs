//! Two shards with their real executors and state machines, and a network between them and the
//! coordinators that the tests rule over.

#![expect(
    clippy::disallowed_methods,
    clippy::cloned_ref_to_slice_refs,
    reason = "a test joins its tasks itself, and keys are cheap to clone"
)]

mod explore;
mod rules;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use leadline_raft::engine::StateMachines;
use leadline_raft::testing::SimEngine;
use leadline_raft::{Context, GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::coordinate::{Network, TransactionCoordinator};
use super::resolve::{Doubt, Doubts};
use super::steps::TransactionOperation;
use crate::coordinator::PendingReply;
use crate::executor::{Order, Pool, Shard, ShardConfig, ShardMetrics, ShardParts, Submission};
use crate::hlc::Hlc;
use crate::metrics::CoordinatorMetrics;
use crate::state_machine::{ShardState, ShardStateMachines};
use crate::storage::{EngineKind, Store, StoreOptions};
use crate::{Access, Door, KvError, Operation, Route, RowError, Rows};

const SHARDS: usize = 2;

/// The row key `name` of a shard.
fn key(shard: usize, name: &str) -> Bytes {
    Bytes::from([&[0x10, 0x40 * shard as u8, 0, 0][..], name.as_bytes()].concat())
}

fn owned(shard: usize) -> Range<Bytes> {
    let border = |shard: usize| Bytes::from(vec![0x10, 0x40 * shard as u8, 0]);
    border(shard)..border(shard + 1)
}

fn shard_of(key: &[u8]) -> usize {
    usize::from(key[1] / 0x40)
}

type Body = dyn Fn(&mut dyn Rows) -> Result<Bytes, RowError> + Send + Sync;

/// An operation that the test wrote.
struct Script {
    keys: Vec<Bytes>,
    access: Access,
    body: Box<Body>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Operation for Script {
    fn name(&self) -> &'static str {
        "SCRIPT"
    }
    fn door(&self) -> Door {
        Door::Redis
    }
    fn access(&self) -> Access {
        self.access
    }
    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }
    fn size(&self) -> usize {
        100
    }
    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        (self.body)(rows)
    }
    fn encode(&self, _out: &mut bytes::BytesMut) {}
}

fn script(
    keys: &[Bytes],
    access: Access,
    body: impl Fn(&mut dyn Rows) -> Result<Bytes, RowError> + Send + Sync + 'static,
) -> Arc<dyn Operation> {
    Arc::new(Script {
        keys: keys.to_vec(),
        access,
        body: Box::new(body),
    })
}

fn number(rows: &mut dyn Rows, key: &[u8]) -> Result<i64, RowError> {
    let value = rows.get(key)?;
    Ok(value.map_or(0, |text| {
        std::str::from_utf8(&text).unwrap().parse().unwrap()
    }))
}

fn put(rows: &mut dyn Rows, key: &Bytes, number: i64) {
    rows.put(key.clone(), number.to_string().into());
}

/// Sets each key to `value`.
fn set_all(keys: &[Bytes], value: i64) -> Arc<dyn Operation> {
    let written = keys.to_vec();
    script(keys, Access::Write, move |rows| {
        for key in &written {
            number(rows, key)?;
            put(rows, key, value);
        }
        Ok(Bytes::from_static(b"+OK"))
    })
}

/// Every key's number, separated by spaces.
fn read_all(keys: &[Bytes]) -> Arc<dyn Operation> {
    let read = keys.to_vec();
    script(keys, Access::Read, move |rows| {
        let numbers: Result<Vec<_>, _> = read.iter().map(|key| number(rows, key)).collect();
        let numbers: Vec<String> = numbers?.iter().map(i64::to_string).collect();
        Ok(numbers.join(" ").into())
    })
}

/// Sets `to` to what is at `from` and 1.
fn follow(from: &Bytes, to: &Bytes) -> Arc<dyn Operation> {
    let (from, to) = (from.clone(), to.clone());
    script(&[from.clone(), to.clone()], Access::Write, move |rows| {
        let seen = number(rows, &from)?;
        number(rows, &to)?;
        put(rows, &to, seen + 1);
        Ok(Bytes::from_static(b"+OK"))
    })
}

struct TestShard {
    state: Arc<ShardState>,
    engine: Arc<SimEngine>,
    shard: Arc<Shard<SimEngine>>,
    metrics: ShardMetrics,
}

/// The shards.
struct Cluster {
    shards: Vec<TestShard>,
    hlc: Arc<Hlc>,
    doubts: Arc<Doubts>,
    _dir: tempfile::TempDir,
}

/// What becomes of a message to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Deliver,
    /// It never arrives, and its sender does not know.
    Lose,
    /// It arrives, and its answer does not.
    LoseAnswer,
    Twice,
}

type Rule = dyn FnMut(&'static str, usize) -> Fate + Send;

/// A coordinator's way to the shards.
struct TestNetwork {
    cluster: Arc<Cluster>,
    rule: Arc<Mutex<Box<Rule>>>,
    /// Messages wait here for the test, if it wants them to.
    gate: Option<Arc<Gate>>,
    owner: usize,
}

/// A message that waits.
struct Gated {
    owner: usize,
    shard: usize,
    ctx: Context,
    step: Arc<TransactionOperation>,
    answer: Option<oneshot::Sender<Result<Bytes, KvError>>>,
}

impl Gated {
    fn step_name(&self) -> &'static str {
        self.step.name()
    }
}

#[derive(Default)]
struct Gate {
    waiting: Mutex<VecDeque<Gated>>,
    /// Coordinators that are dead: nothing new comes from them.
    dead: [AtomicBool; 3],
}

impl Cluster {
    async fn new(lock_ttl: Duration) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            engine: EngineKind::Memory,
            ..StoreOptions::default()
        };
        let store = Store::open(dir.path(), options).unwrap().store;
        let hlc = Arc::new(Hlc::new());
        let pool = Pool::new(1).unwrap();
        let machines = ShardStateMachines::new(store, Arc::clone(&hlc), Arc::clone(&pool));
        let doubts = Arc::new(Doubts::default());
        let shards = (0..SHARDS)
            .map(|at| {
                let group = GroupId(at as u64 + 1);
                let state = machines.state(group).unwrap();
                let engine = SimEngine::new(group, NodeId(1), machines.open(group).unwrap());
                let metrics = ShardMetrics::default();
                let parts = ShardParts {
                    config: ShardConfig {
                        lock_ttl,
                        ..ShardConfig::default()
                    },
                    hlc: Arc::clone(&hlc),
                    metrics: metrics.clone(),
                    sweeps: Arc::new([]),
                    doubts: Arc::clone(&doubts),
                    pool: Arc::clone(&pool),
                };
                let shard = Shard::new(Arc::clone(&engine), Arc::clone(&state), owned(at), &parts);
                TestShard {
                    state,
                    engine,
                    shard,
                    metrics,
                }
            })
            .collect();
        let cluster = Arc::new(Self {
            shards,
            hlc,
            doubts,
            _dir: dir,
        });
        for at in 0..SHARDS {
            cluster.until_leading(at).await;
        }
        cluster
    }

    async fn until_leading(&self, shard: usize) {
        while self
            .on_shard(shard, read_all(&[key(shard, "none")]))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A new life of the executor, under another term.
    async fn elect(&self, shard: usize) {
        let lives = &self.shards[shard].metrics.lives;
        let before = lives.get();
        self.shards[shard].engine.elect();
        while lives.get() == before {
            tokio::task::yield_now().await;
        }
        self.until_leading(shard).await;
    }

    fn coordinator(self: &Arc<Self>) -> Arc<TransactionCoordinator<TestNetwork>> {
        self.ruled(|_, _| Fate::Deliver)
    }

    fn ruled(
        self: &Arc<Self>,
        rule: impl FnMut(&'static str, usize) -> Fate + Send + 'static,
    ) -> Arc<TransactionCoordinator<TestNetwork>> {
        self.forgetting(Duration::ZERO, rule)
    }

    /// With commit records that are forgotten so often.
    fn forgetting(
        self: &Arc<Self>,
        forgetting: Duration,
        rule: impl FnMut(&'static str, usize) -> Fate + Send + 'static,
    ) -> Arc<TransactionCoordinator<TestNetwork>> {
        let network = TestNetwork {
            cluster: Arc::clone(self),
            rule: Arc::new(Mutex::new(Box::new(rule))),
            gate: None,
            owner: 0,
        };
        TransactionCoordinator::new(
            network,
            Arc::clone(&self.hlc),
            CoordinatorMetrics::default(),
            forgetting,
        )
    }

    fn gated(
        self: &Arc<Self>,
        gate: &Arc<Gate>,
        owner: usize,
    ) -> Arc<TransactionCoordinator<TestNetwork>> {
        let network = TestNetwork {
            cluster: Arc::clone(self),
            rule: Arc::new(Mutex::new(Box::new(|_, _| Fate::Deliver))),
            gate: Some(Arc::clone(gate)),
            owner,
        };
        TransactionCoordinator::new(
            network,
            Arc::clone(&self.hlc),
            CoordinatorMetrics::default(),
            Duration::ZERO,
        )
    }

    fn submit(&self, shard: usize, ctx: &Context, operation: Arc<dyn Operation>) -> PendingReply {
        self.shards[shard].shard.submit(
            ctx,
            Submission {
                operation,
                order: Order::AfterMine,
                once: None,
            },
        )
    }

    async fn on_shard(
        &self,
        shard: usize,
        operation: Arc<dyn Operation>,
    ) -> Result<Bytes, KvError> {
        let ctx = Context::with_timeout(Duration::from_secs(2));
        self.submit(shard, &ctx, operation).await
    }

    /// What each shard holds at its key, as a plain command sees it.
    async fn values(&self, keys: &[Bytes]) -> Vec<i64> {
        let mut values = Vec::new();
        for key in keys {
            let read = read_all(std::slice::from_ref(key));
            let text = self.on_shard(shard_of(key), read).await.unwrap();
            values.push(std::str::from_utf8(&text).unwrap().parse().unwrap());
        }
        values
    }

    /// Locks and commit records of both shards, as applied.
    fn left(&self) -> (usize, usize) {
        self.shards
            .iter()
            .map(|shard| shard.state.transaction_counts())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The locks of both shards, as whoever meets one after its time would report it.
    fn locks(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        for shard in &self.shards {
            let table = shard.state.transactions();
            for id in table.lock_ids() {
                let record = table.record(id).unwrap();
                doubts.push(Doubt {
                    attempt: id,
                    primary: record.primary.clone(),
                    held_at: record.anchor(),
                    stamp: record.stamp,
                });
            }
        }
        doubts
    }
}

impl Network for TestNetwork {
    fn send(&self, ctx: &Context, key: &[u8], step: Arc<TransactionOperation>) -> PendingReply {
        let shard = shard_of(key);
        let name = step.name();
        if let Some(gate) = &self.gate {
            if gate.dead[self.owner].load(Ordering::SeqCst) {
                return PendingReply::running(Box::pin(std::future::pending()));
            }
            if name != "TXN.READ" {
                let (answer, answered) = oneshot::channel();
                gate.waiting.lock().push_back(Gated {
                    owner: self.owner,
                    shard,
                    ctx: ctx.clone(),
                    step,
                    answer: Some(answer),
                });
                return PendingReply::waiting(answered);
            }
        }
        let fate = (self.rule.lock())(name, shard);
        let lost = || PendingReply::ready(Err(KvError::Unknown("lost")));
        match fate {
            Fate::Deliver => self.cluster.submit(shard, ctx, step),
            Fate::Lose => lost(),
            Fate::LoseAnswer => {
                let reply = self.cluster.submit(shard, ctx, step);
                PendingReply::running(Box::pin(async move {
                    drop(reply.await);
                    Err(KvError::Unknown("the answer was lost"))
                }))
            }
            Fate::Twice => {
                let first = self.cluster.submit(shard, ctx, Arc::clone(&step) as _);
                let second = self.cluster.submit(shard, ctx, step);
                PendingReply::running(Box::pin(async move {
                    drop(second.await);
                    first.await
                }))
            }
        }
    }

    fn shard_of(&self, key: &[u8]) -> Option<Range<Bytes>> {
        Some(owned(shard_of(key)))
    }

    fn shards(&self, _door: Door) -> Vec<Range<Bytes>> {
        (0..SHARDS).map(owned).collect()
    }
}

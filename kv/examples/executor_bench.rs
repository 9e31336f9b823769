//! CPU per command of one shard's executor, over an engine that commits at once: everything but
//! consensus, the log and the door.
//!
//! `cargo run --release -p leadline-kv --features testing --example executor_bench`

#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use leadline_kv::executor::{
    Order, Pool, Shard, ShardConfig, ShardMetrics, ShardParts, Submission,
};
use leadline_kv::hlc::Hlc;
use leadline_kv::state_machine::ShardStateMachines;
use leadline_kv::storage::{EngineKind, Store, StoreOptions};
use leadline_kv::{Access, Door, Operation, Route, RowError, Rows};
use leadline_raft::engine::StateMachines;
use leadline_raft::testing::SimEngine;
use leadline_raft::{Context, GroupId, NodeId};

const KEYS: u64 = 100_000;
const VALUE: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Set,
    Get,
    Incr,
}

#[derive(Debug)]
struct Command {
    what: What,
    keys: [Bytes; 1],
    value: Bytes,
}

impl Operation for Command {
    fn name(&self) -> &'static str {
        "BENCH"
    }

    fn door(&self) -> Door {
        Door::Redis
    }

    fn access(&self) -> Access {
        if self.what == What::Get {
            Access::Read
        } else {
            Access::Write
        }
    }

    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }

    fn size(&self) -> usize {
        128 + self.value.len()
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let [key] = &self.keys;
        // As a Redis door does: the row says whether it is a string.
        let before = rows.get(key)?;
        match self.what {
            What::Get => return Ok(before.unwrap_or_default()),
            What::Set => rows.put(key.clone(), self.value.clone()),
            What::Incr => {
                let text = before.unwrap_or_else(|| Bytes::from_static(b"0"));
                let sum: u64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
                rows.put(key.clone(), Bytes::from((sum + 1).to_string()));
            }
        }
        Ok(Bytes::from_static(b"+OK\r\n"))
    }

    fn encode(&self, _out: &mut BytesMut) {}
}

fn command(what: What, random: &mut u64, value: &Bytes) -> Submission {
    // xorshift64 (Marsaglia 2003).
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let number = if what == What::Incr {
        KEYS
    } else {
        *random % KEYS
    };
    let key = format!("\x10\x00\x00\x00key:{number:012}\x00");
    Submission {
        operation: Arc::new(Command {
            what,
            keys: [Bytes::from(key)],
            value: value.clone(),
        }),
        order: Order::Free,
        once: None,
    }
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn measure(
    shard: &Arc<Shard<SimEngine>>,
    what: What,
    connections: u64,
    pipeline: usize,
    commands: u64,
) {
    let metrics_before = cpu();
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..connections {
        let shard = Arc::clone(shard);
        tasks.spawn(async move {
            let mut random = 0x9E37_79B9_7F4A_7C15 ^ (connection + 1);
            let value = Bytes::from(vec![b'v'; VALUE]);
            let ctx = Context::with_timeout(Duration::from_secs(600));
            for _ in 0..commands / connections / pipeline as u64 {
                let batch = (0..pipeline)
                    .map(|_| command(what, &mut random, &value))
                    .collect();
                for reply in shard.submit_many(&ctx, batch) {
                    reply.await.unwrap();
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let (wall, used) = (began.elapsed(), cpu() - metrics_before);
    println!(
        "{:<5} connections {connections:<4} pipeline {pipeline:<3} {:>9.0}/s  {:>6.2} us CPU each",
        format!("{what:?}"),
        commands as f64 / wall.as_secs_f64(),
        used.as_secs_f64() * 1e6 / commands as f64,
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for engine in [EngineKind::Memory, EngineKind::Fjall] {
            println!("storage {engine}");
            let dir = tempfile::tempdir().unwrap();
            let options = StoreOptions {
                engine,
                ..StoreOptions::default()
            };
            let store = Store::open(dir.path(), options).unwrap().store;
            let hlc = Arc::new(Hlc::new());
            let pool = Pool::for_this_machine().unwrap();
            let machines = ShardStateMachines::new(store, Arc::clone(&hlc), Arc::clone(&pool));
            let state = machines.state(GroupId(1)).unwrap();
            let engine = SimEngine::new(GroupId(1), NodeId(1), machines.open(GroupId(1)).unwrap());
            engine.set_lease(true);
            let parts = ShardParts {
                config: ShardConfig::default(),
                hlc,
                metrics: ShardMetrics::default(),
                sweeps: Arc::new([]),
                doubts: Arc::default(),
                pool,
            };
            let owned = Bytes::from_static(&[0x10])..Bytes::from_static(&[0x20]);
            let shard = Shard::new(engine, state, owned, &parts);
            while !shard.is_leading() {
                tokio::task::yield_now().await;
            }
            for (connections, pipeline) in [(1, 1), (50, 1), (50, 16)] {
                let commands = if connections == 1 { 50_000 } else { 400_000 };
                for what in [What::Set, What::Get, What::Incr] {
                    measure(&shard, what, connections, pipeline, commands).await;
                }
            }
            shard.shutdown(&Context::fallback()).await;
        }
    });
}

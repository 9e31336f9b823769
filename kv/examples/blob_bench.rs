//! Puts and gets of chunks on one node, or on three nodes of one process over loopback.
//!
//! `cargo run --release -p leadline-kv --example blob_bench -- [NODES] [CLIENTS] [SECONDS] [DIR]`

#![allow(
    clippy::unwrap_used,
    reason = "a measurement fails by panicking, and prints"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_kv::blobs::{Blobs, ChunkRef};
use leadline_kv::catalog::Addresses;
use leadline_kv::keyspace::slot_start;
use leadline_kv::node::{BlobConfig, Bootstrap, Node, NodeConfig};
use leadline_raft::Context;
use leadline_raft::engine::{ReadMode, Timing};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

async fn open(dir: &Path, bootstrap: Bootstrap, serving: &mut JoinSet<()>) -> (Arc<Node>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = NodeConfig {
        data_dir: dir.to_owned(),
        engine: None,
        cache_bytes: 1 << 20,
        memory_budget: 16 << 20,
        bootstrap,
        node: None,
        advertise: Addresses {
            grpc: address.clone(),
            ..Addresses::default()
        },
        tls: None,
        read_mode: ReadMode::ReadIndex,
        timing: Timing::default(),
        codecs: Vec::new(),
        sweeps: Vec::new(),
        blobs: BlobConfig::default(),
        opening: tokio::sync::watch::Sender::default(),
    };
    let ctx = Context::with_timeout(Duration::from_secs(30));
    let node = Node::open(&ctx, config, &mut Registry::default())
        .await
        .unwrap();
    let mut server = node.grpc_server().unwrap();
    let routes = node.grpc_routes();
    serving.spawn(async move {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        server
            .add_routes(routes)
            .serve_with_incoming(incoming.with_nodelay(Some(true)))
            .await
            .unwrap();
    });
    (node, address)
}

/// User and system time of this process, in microseconds, and bytes it caused to be written.
fn spent() -> (u64, u64) {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let micros = usage.tv_sec as u64 * 1_000_000 + usage.tv_nsec as u64 / 1000;
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or(0);
    (micros, written)
}

async fn run(
    nodes: &[Arc<Node>],
    clients: usize,
    seconds: u64,
    size: usize,
    stored: &mut Vec<ChunkRef>,
) {
    let near = Arc::new(slot_start(1).to_vec());
    let count = Arc::new(AtomicU64::new(0));
    for reading in [false, true] {
        let (cpu, written) = spent();
        let began = Instant::now();
        let until = began + Duration::from_secs(seconds);
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let blobs: Arc<dyn Blobs> = nodes[client % nodes.len()].blobs();
            let (near, count) = (Arc::clone(&near), Arc::clone(&count));
            let names = stored.clone();
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                let mut put = Vec::new();
                let mut data = vec![client as u8; size];
                let mut at = client;
                while Instant::now() < until {
                    let ctx = Context::with_timeout(Duration::from_secs(10));
                    let start = Instant::now();
                    if reading {
                        at = (at + clients) % names.len();
                        blobs.get(&ctx, &near, names[at]).await.unwrap();
                    } else {
                        let number = count.fetch_add(1, Ordering::Relaxed);
                        data[..8].copy_from_slice(&number.to_le_bytes());
                        let held = blobs.try_reserve(size).unwrap();
                        let body = Bytes::copy_from_slice(&data);
                        put.push(blobs.put(&ctx, &near, body, &held).await.unwrap());
                    }
                    latencies.push(start.elapsed());
                }
                (latencies, put)
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (took, put) = done.unwrap();
            latencies.extend(took);
            stored.extend(put);
        }
        let elapsed = began.elapsed().as_secs_f64();
        let (cpu_after, written_after) = spent();
        latencies.sort_unstable();
        let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize];
        let ops = latencies.len() as f64;
        let mib = ops * size as f64 / (1 << 20) as f64;
        println!(
            "{} {:>7} B, {clients} clients, {} nodes: {:>7.0}/s {:>7.1} MiB/s, p50 {:?} p99 {:?}, \
             CPU {:.0} us/op {:.2} ms/MiB, written {:.2} x",
            if reading { "get" } else { "put" },
            size,
            nodes.len(),
            ops / elapsed,
            mib / elapsed,
            at(0.5),
            at(0.99),
            (cpu_after - cpu) as f64 / ops,
            (cpu_after - cpu) as f64 / 1000.0 / mib,
            (written_after - written) as f64 / (1 << 20) as f64 / mib / nodes.len() as f64,
        );
    }
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().map_or(default, |arg| arg.parse().unwrap());
    let (wanted, clients, seconds) = (number(1), number(8) as usize, number(5));
    let base = std::env::args()
        .nth(4)
        .unwrap_or_else(|| "blob-bench".to_owned());
    let base = Path::new(&base);
    let mut serving = JoinSet::new();
    let (first, address) = open(&base.join("1"), Bootstrap::New { shards: 1 }, &mut serving).await;
    let mut nodes = vec![first];
    for number in 2..=wanted {
        let join = Bootstrap::Join {
            seeds: vec![address.clone()],
        };
        let (node, _) = open(&base.join(number.to_string()), join, &mut serving).await;
        nodes.push(node);
    }
    let settled = |node: &Arc<Node>| {
        node.status().groups.len() > 1
            && node
                .status()
                .groups
                .iter()
                .all(|group| group.peers.len() + 1 >= wanted as usize && group.leader.is_some())
    };
    while wanted > 1 && !nodes.iter().all(settled) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(wanted.min(5))).await;
    for size in [4 << 10, 64 << 10, 1 << 20] {
        run(&nodes, clients, seconds, size, &mut Vec::new()).await;
    }
    let ctx = Context::with_timeout(Duration::from_secs(20));
    for node in &nodes {
        node.shutdown(&ctx).await;
    }
    serving.abort_all();
    std::fs::remove_dir_all(base).unwrap();
}

//! The Redis door over one shard in memory, for trying clients and measuring the connection layer:
//! `cargo run --release -p leadline-redis --example memory -- 127.0.0.1:7777`.

use std::sync::Arc;
use std::time::Duration;

use leadline_kv::testing::MemoryCoordinator;
use leadline_raft::Context;
use leadline_redis::{Facts, NodeFacts, RedisConfig, RedisServer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// Some day in 2026: nothing here reads the clock.
const UNIX_MILLIS: u64 = 1_767_225_600_000;

struct Alone;

impl NodeFacts for Alone {
    fn facts(&self) -> Facts {
        Facts {
            node_id: 1,
            nodes: 1,
            voters: 1,
            shards: 1,
            shards_led: 1,
            ..Facts::default()
        }
    }

    fn cpu_times(&self) -> (Duration, Duration) {
        (Duration::ZERO, Duration::ZERO)
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn unix_time(&self) -> Duration {
        Duration::from_millis(UNIX_MILLIS)
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7777".to_owned());
    let listener = TcpListener::bind(&address).await?;
    println!("listening on {}", listener.local_addr()?);
    let door = RedisServer::new(
        &RedisConfig::default(),
        None,
        Arc::new(MemoryCoordinator::new(UNIX_MILLIS)),
        Arc::new(Alone),
        &mut Registry::default(),
    );
    tokio::select! {
        () = door.serve(listener) => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    door.stop(&Context::fallback()).await;
    Ok(())
}

//! How long writes fail after a leader is killed.

use std::time::{Duration, Instant};

use crate::client::{Client, Reply};
use crate::cluster::Cluster;
use crate::workload::PATIENCE;

/// Kills the leader of the only shard `kills` times and prints how long writes failed each time.
///
/// # Errors
/// Writes did not come back, or their median time is 2 s or more.
pub(crate) async fn run(mut cluster: Cluster, kills: u32) -> Result<(), String> {
    let mut times = Vec::new();
    for _ in 0..kills {
        let leader = cluster.leader(1).await?;
        let other = cluster
            .numbers()
            .into_iter()
            .find(|number| *number != leader)
            .unwrap_or(1);
        let mut client = Client::connect(&cluster.address(other))
            .await
            .map_err(|error| error.to_string())?;
        cluster.kill(leader)?;
        let killed = Instant::now();
        loop {
            let set = client.call(&["SET", "failover", "x"], PATIENCE).await;
            if matches!(set, Ok(Reply::Text(_))) {
                break;
            }
            if killed.elapsed() > Duration::from_secs(20) {
                return Err(format!("no write for 20 s after the kill; last: {set:?}"));
            }
        }
        times.push(killed.elapsed());
        println!(
            "  node {leader} killed: a write through node {other} after {:.0?}",
            killed.elapsed()
        );
        cluster.start_node(leader)?;
        let nodes = cluster.numbers().len();
        cluster
            .wait(Duration::from_secs(30), "all nodes caught up", |overview| {
                let members = overview["members"].as_array()?;
                let ready = |member: &serde_json::Value| member["readiness"]["ready"] == true;
                (members.len() == nodes && members.iter().all(ready)).then_some(())
            })
            .await?;
        // Past the restarted voter's own start-up.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!(
        "failover: median {median:.0?} of {kills}, longest {:.0?}",
        times.last().copied().unwrap_or_default()
    );
    if median < Duration::from_secs(2) {
        Ok(())
    } else {
        Err(format!("the median failover took {median:?}"))
    }
}

//! What INFO shows, and where its facts about the node come from.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use leadline_kv::{ErrorClass, KvError};
use leadline_raft::Context;

use crate::operation::RedisOperation;
use crate::reply::{Reply, Resp};
use crate::server::Shared;
use crate::{commands, reply};

/// The Redis version whose behaviour clients may expect.
pub(crate) const REDIS_VERSION: &str = "7.2.0";

/// Databases of every server.
pub(crate) const DATABASES: u8 = 16;

/// For so long, or half of what is left of its deadline, INFO waits for the shards, and as long for
/// the disk: clients ask for INFO before they use a connection, people when something is wrong.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the Redis door tells clients about the node and the cluster it is a part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The version of the binary.
    pub version: String,
    pub node_id: u64,
    pub cluster_id: u64,
    pub nodes: usize,
    pub voters: usize,
    /// Shards of the Redis keyspace that this node replicates.
    pub shards: usize,
    /// Those of them that this node leads, as far as it knows.
    pub shards_led: usize,
    /// Such as `"read-index"`.
    pub read_mode: String,
    /// Such as `"fjall"`.
    pub engine: String,
    /// Resident memory of the process.
    pub memory_bytes: u64,
}

/// Where [`Facts`] come from: the node that the door belongs to.
pub trait NodeFacts: Send + Sync + 'static {
    /// Cheap, never waits.
    fn facts(&self) -> Facts;

    /// CPU time of the process, and of the kernel for it. Never waits.
    fn cpu_times(&self) -> (Duration, Duration);

    /// What the node's data takes on its disk, in bytes. Looks at every file, so it may block.
    fn disk_bytes(&self) -> u64;

    /// The node's clock, since the Unix epoch.
    fn unix_time(&self) -> Duration;
}

impl Facts {
    /// How many nodes besides the leader hold every acknowledged write.
    pub(crate) fn acknowledging_replicas(&self) -> usize {
        self.voters / 2
    }

    /// 40 hexadecimal digits that name this node, as clients expect them.
    pub(crate) fn run_id(&self) -> String {
        format!("{:016x}{:024x}", self.cluster_id, self.node_id)
    }
}

const SECTIONS: &[&str] = &[
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "modules",
    "errorstats",
    "cluster",
    "keyspace",
    "leadline",
];

/// Not part of plain INFO.
const EXTRA_SECTIONS: &[&str] = &["commandstats", "latencystats"];

/// The sections that INFO was asked for, in the order of the page.
pub(crate) fn wanted(args: &[Bytes]) -> Vec<&'static str> {
    let asks = |names: &[&str]| {
        args.iter().any(|arg| {
            names
                .iter()
                .any(|name| arg.eq_ignore_ascii_case(name.as_bytes()))
        })
    };
    let usual = args.is_empty() || asks(&["default", "all", "everything"]);
    let everything = asks(&["all", "everything"]);
    let plain = SECTIONS.iter().filter(|name| usual || asks(&[name]));
    let extra = EXTRA_SECTIONS
        .iter()
        .filter(|name| everything || asks(&[name]));
    plain.chain(extra).copied().collect()
}

/// The page of INFO. What is not known in time is left out, and a line says so.
pub(crate) async fn page(shared: Arc<Shared>, ctx: Context, sections: Vec<&'static str>) -> String {
    let patience = || ctx.child(PATIENCE.min(ctx.remaining() / 2));
    let facts = shared.facts.facts();
    let mut page = String::new();
    for (number, section) in sections.into_iter().enumerate() {
        if number > 0 {
            page.push_str("\r\n");
        }
        let mut title = section.to_owned();
        title[..1].make_ascii_uppercase();
        writeln_crlf(&mut page, &format!("# {title}"));
        match section {
            "server" => server(&mut page, &shared, &facts),
            "clients" => clients(&mut page, &shared),
            "memory" => memory(&mut page, &shared, &facts),
            "persistence" => lines(
                &mut page,
                &[
                    ("loading", "0".into()),
                    ("async_loading", "0".into()),
                    ("rdb_bgsave_in_progress", "0".into()),
                    ("rdb_last_bgsave_status", "ok".into()),
                    ("aof_enabled", "1".into()),
                    ("aof_rewrite_in_progress", "0".into()),
                    ("aof_last_bgrewrite_status", "ok".into()),
                    ("aof_last_write_status", "ok".into()),
                ],
            ),
            "stats" => stats(&mut page, &shared),
            "replication" => lines(
                &mut page,
                &[
                    ("role", "master".into()),
                    // As ROLE has it: other nodes are no replicas that a client could turn to.
                    ("connected_slaves", "0".into()),
                    ("master_failover_state", "no-failover".into()),
                    ("master_replid", facts.run_id()),
                    ("master_repl_offset", "0".into()),
                    ("second_repl_offset", "-1".into()),
                    ("repl_backlog_active", "0".into()),
                ],
            ),
            "cpu" => {
                let (user, system) = shared.facts.cpu_times();
                lines(
                    &mut page,
                    &[
                        ("used_cpu_sys", seconds(system)),
                        ("used_cpu_user", seconds(user)),
                    ],
                );
            }
            "errorstats" => {
                for (word, count) in shared.metrics.error_words() {
                    let name = format!("errorstat_{word}");
                    lines(&mut page, &[(&name, format!("count={count}"))]);
                }
            }
            "cluster" => lines(&mut page, &[("cluster_enabled", "0".into())]),
            "keyspace" => keyspace(&mut page, &shared, &patience()).await,
            "leadline" => leadline(&mut page, &shared, &facts, &patience()).await,
            "commandstats" => {
                for (name, calls, micros, refused, failed) in shared.metrics.per_command() {
                    let each = micros as f64 / calls as f64;
                    let key = format!("cmdstat_{name}");
                    let value = format!(
                        "calls={calls},usec={micros},usec_per_call={each:.2},rejected_calls={refused},failed_calls={failed}"
                    );
                    lines(&mut page, &[(&key, value)]);
                }
            }
            // `modules` and `latencystats` are empty.
            _ => {}
        }
    }
    page
}

/// Why something is not known, in one word.
fn why(error: &KvError) -> String {
    match error.class() {
        ErrorClass::NotApplied => "no_answer".into(),
        class => class.label().into(),
    }
}

fn writeln_crlf(page: &mut String, line: &str) {
    page.push_str(line);
    page.push_str("\r\n");
}

fn lines(page: &mut String, pairs: &[(&str, String)]) {
    for (name, value) in pairs {
        // Writing to a String cannot fail.
        write!(page, "{name}:{value}\r\n").ok();
    }
}

fn server(page: &mut String, shared: &Shared, facts: &Facts) {
    let uptime = shared.began.elapsed().as_secs();
    lines(
        page,
        &[
            ("redis_version", REDIS_VERSION.into()),
            ("redis_git_sha1", "00000000".into()),
            ("redis_mode", "standalone".into()),
            (
                "os",
                format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            ),
            ("arch_bits", usize::BITS.to_string()),
            ("process_id", std::process::id().to_string()),
            ("run_id", facts.run_id()),
            ("tcp_port", shared.settings().port().to_string()),
            (
                "server_time_usec",
                shared.facts.unix_time().as_micros().to_string(),
            ),
            ("uptime_in_seconds", uptime.to_string()),
            ("uptime_in_days", (uptime / 86_400).to_string()),
            ("hz", "10".into()),
            ("executable", "leadline".into()),
            ("config_file", String::new()),
        ],
    );
}

fn clients(page: &mut String, shared: &Shared) {
    lines(
        page,
        &[
            ("connected_clients", shared.clients.len().to_string()),
            ("maxclients", shared.settings().maxclients.to_string()),
            (
                "blocked_clients",
                shared.metrics.blocked.load(Ordering::Relaxed).to_string(),
            ),
            ("tracking_clients", "0".into()),
        ],
    );
}

fn memory(page: &mut String, shared: &Shared, facts: &Facts) {
    lines(
        page,
        &[
            ("used_memory", facts.memory_bytes.to_string()),
            ("used_memory_human", human(facts.memory_bytes)),
            ("used_memory_rss", facts.memory_bytes.to_string()),
            ("used_memory_rss_human", human(facts.memory_bytes)),
            ("mem_clients_normal", shared.memory.used().to_string()),
            ("maxmemory", "0".into()),
            ("maxmemory_human", "0B".into()),
            ("maxmemory_policy", "noeviction".into()),
            ("mem_fragmentation_ratio", "1.00".into()),
        ],
    );
}

fn seconds(time: Duration) -> String {
    format!("{:.6}", time.as_secs_f64())
}

fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..0x10_0000 => format!("{:.2}K", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.2}M", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2}G", bytes as f64 / 1_073_741_824.0),
    }
}

fn stats(page: &mut String, shared: &Shared) {
    let metrics = &shared.metrics;
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).to_string();
    let (calls, errors) = metrics.totals();
    lines(
        page,
        &[
            ("total_connections_received", read(&metrics.opened)),
            ("total_commands_processed", calls.to_string()),
            ("instantaneous_ops_per_sec", read(&metrics.per_second)),
            ("total_net_input_bytes", read(&metrics.bytes_in)),
            ("total_net_output_bytes", read(&metrics.bytes_out)),
            ("rejected_connections", read(&metrics.rejected)),
            ("evicted_keys", "0".into()),
            ("pubsub_channels", "0".into()),
            ("pubsub_patterns", "0".into()),
            (
                "total_error_replies",
                errors.iter().sum::<u64>().to_string(),
            ),
        ],
    );
}

async fn disk_bytes(shared: &Shared, ctx: &Context) -> Result<u64, KvError> {
    let turn = ctx.run(shared.disk_look.clone().lock_owned()).await;
    let (turn, source) = (turn.map_err(KvError::NotApplied)?, shared.facts.clone());
    let looked = ctx.run(tokio::task::spawn_blocking(move || {
        let _turn = turn;
        source.disk_bytes()
    }));
    let looked = looked.await.map_err(KvError::NotApplied)?;
    looked.map_err(|error| KvError::Storage(error.to_string()))
}

async fn leadline(page: &mut String, shared: &Shared, facts: &Facts, ctx: &Context) {
    let disk = match disk_bytes(shared, ctx).await {
        Ok(bytes) => ("disk_bytes", bytes.to_string()),
        Err(error) => ("disk_unknown", why(&error)),
    };
    lines(
        page,
        &[
            ("leadline_version", facts.version.clone()),
            ("node_id", facts.node_id.to_string()),
            ("cluster_id", format!("{:016x}", facts.cluster_id)),
            ("nodes", facts.nodes.to_string()),
            ("voters", facts.voters.to_string()),
            ("shards", facts.shards.to_string()),
            ("shards_led", facts.shards_led.to_string()),
            ("read_mode", facts.read_mode.clone()),
            ("storage_engine", facts.engine.clone()),
            disk,
            (
                "fallback_deadline_ms",
                shared.settings().fallback_deadline.as_millis().to_string(),
            ),
            (
                "client_gone",
                shared
                    .metrics
                    .client_gone
                    .load(Ordering::Relaxed)
                    .to_string(),
            ),
        ],
    );
}

async fn keyspace(page: &mut String, shared: &Shared, ctx: &Context) {
    let counts = match key_counts(shared, ctx).await {
        Ok(counts) => counts,
        Err(error) => return lines(page, &[("keyspace_unknown", why(&error))]),
    };
    for (database, keys) in counts.into_iter().enumerate() {
        if keys > 0 {
            // How many have an expiry is not known, and 0 is Redis' word for an unknown `avg_ttl`.
            // Some clients take a line for a list of fields only if it has two.
            let value = format!("keys={keys},avg_ttl=0");
            lines(page, &[(&format!("db{database}"), value)]);
        }
    }
}

/// How many keys each database has, asked of every shard at once: all of them or an error.
async fn key_counts(shared: &Shared, ctx: &Context) -> Result<Vec<i64>, KvError> {
    let spec = commands::find(b"DBSIZE").expect("DBSIZE is in the table");
    let counts = (0..DATABASES)
        .map(|database| {
            let args = vec![Bytes::from_static(b"DBSIZE")];
            let operation = RedisOperation::new(spec, args, database, Resp::V3)
                .map_err(|error| KvError::Invalid(error.to_string()))?;
            Ok(shared.coordinator.submit(ctx, Arc::new(operation)))
        })
        .collect::<Result<Vec<_>, KvError>>()?;
    let counts = ctx.run(futures::future::try_join_all(counts)).await;
    counts
        .map_err(KvError::NotApplied)??
        .into_iter()
        .map(|count| match reply::decode(count) {
            Ok(Reply::Integer(keys)) => Ok(keys),
            other => Err(KvError::Storage(format!("DBSIZE answered {other:?}"))),
        })
        .collect()
}

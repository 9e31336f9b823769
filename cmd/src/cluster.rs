//! `leadline cluster`: looks at a running cluster and changes who belongs to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use leadline_kv::cluster::{ClusterClient, ClusterError};
use leadline_kv::node::{ClusterOverview, GroupOverview};
use leadline_raft::tls::PeerTls;
use leadline_raft::{Context, GroupId, NodeId};

use crate::config::{PeerTlsFiles, is_host_and_port};
use crate::output::say;
use crate::units::{Span, span_above_zero};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        leadline cluster status\n  \
        leadline cluster status --node 10.0.0.2:50051 --json\n  \
        leadline cluster add            how a machine joins\n  \
        leadline cluster drain 2        moves every leadership off node 2 before work on it\n  \
        leadline cluster transfer-leader --shard 3 --to 1\n  \
        leadline cluster remove 3       for a node that will not come back")]
pub(crate) struct ClusterArgs {
    /// gRPC address of any node of the cluster.
    #[arg(
        long,
        global = true,
        env = "LEADLINE_NODE",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:50051"
    )]
    node: String,

    /// How long the command may take.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = span_above_zero)]
    timeout: Span,

    /// Certificate authority of the cluster's nodes (PEM).
    #[arg(long, global = true, env = "LEADLINE_PEER_CA", value_name = "FILE")]
    peer_ca: Option<PathBuf>,

    /// A certificate of that authority (PEM).
    #[arg(long, global = true, env = "LEADLINE_PEER_CERT", value_name = "FILE")]
    peer_cert: Option<PathBuf>,

    /// The key of --peer-cert (PEM).
    #[arg(long, global = true, env = "LEADLINE_PEER_KEY", value_name = "FILE")]
    peer_key: Option<PathBuf>,

    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Who is a member, who leads what, and how many nodes may be lost.
    Status {
        /// Prints the whole overview as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Says how a machine is added: it joins by itself.
    Add,
    /// Removes a node for good. Its id is never used again.
    Remove {
        /// The node's id.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
    },
    /// Hands the leadership of one shard, or of all that a node leads, to another node.
    TransferLeader {
        /// The shard (0 is the meta group).
        #[arg(long, conflicts_with = "from", required_unless_present = "from")]
        shard: Option<u64>,
        /// The node that shall lead [default: of each shard, the one that is furthest].
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
        /// Hands over everything that this node leads.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        from: Option<u64>,
    },
    /// Moves every leadership off a node and keeps them away, before work on it.
    Drain {
        /// The node's id.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Ends the drain: the node may lead again.
        #[arg(long)]
        undo: bool,
    },
}

/// Runs one `leadline cluster` command.
///
/// # Errors
/// One line that says what was not done and why.
pub(crate) fn run(args: ClusterArgs) -> Result<(), String> {
    if let ClusterCommand::Add = args.command {
        say!(
            "A machine joins by itself. On it, with an empty data directory, run:\n\n    \
             leadline serve --join {} --bind 0.0.0.0 --advertise ITS-ADDRESS\n\n\
             It gets copies of every shard and a vote as soon as it has caught up; \
             `leadline cluster status` shows how far it is.",
            args.node
        );
        return Ok(());
    }
    if !is_host_and_port(&args.node) {
        return Err(format!(
            "--node '{}': write the gRPC address of a node, HOST:PORT (10.0.0.1:50051)",
            args.node
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(async move {
        let ctx = Context::with_timeout(args.timeout.0);
        let tls = peer_tls(&args)?;
        let asked = async {
            let mut client = ClusterClient::connect(&ctx, &args.node, tls.as_ref()).await?;
            run_on(&mut client, &ctx, args.command).await
        };
        asked.await.map_err(|failure| match failure {
            Failure::Said(why) => why,
            Failure::Cluster(error) => explain(&error, &args.node, tls.is_some()),
        })
    })
}

/// Why a command failed.
enum Failure {
    /// A line for the user.
    Said(String),
    Cluster(ClusterError),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error)
    }
}

/// What was asked of whom, what came of it, and what to do.
fn explain(error: &ClusterError, node: &str, with_tls: bool) -> String {
    let tls = if with_tls {
        "without --peer-ca, --peer-cert and --peer-key if its nodes have none, otherwise with those \
         of its own authority"
    } else {
        "with --peer-ca, --peer-cert and --peer-key if its nodes have them"
    };
    match error {
        ClusterError::Unreachable { address, why } => format!(
            "no answer from {address} (--node): {why}; give the gRPC address of a running node \
             (--grpc there, 50051 by default), and ask {tls}"
        ),
        ClusterError::Broken(why) => format!(
            "{node} (--node) does not answer as a gRPC port: {why}; give the gRPC address of a node \
             (--grpc there, 50051 by default; not its Redis, S3 or admin port), and ask {tls}"
        ),
        ClusterError::Address(_) | ClusterError::Refused(_) | ClusterError::Unfinished(_) => {
            error.to_string()
        }
    }
}

fn peer_tls(args: &ClusterArgs) -> Result<Option<PeerTls>, String> {
    match (&args.peer_ca, &args.peer_cert, &args.peer_key) {
        (Some(ca), Some(cert), Some(key)) => {
            let files = PeerTlsFiles {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            };
            files.read().map(Some)
        }
        (None, None, None) => Ok(None),
        _ => {
            Err("--peer-ca, --peer-cert and --peer-key go together: give all three or none".into())
        }
    }
}

async fn run_on(
    client: &mut ClusterClient,
    ctx: &Context,
    command: ClusterCommand,
) -> Result<(), Failure> {
    match command {
        // Answered without a node.
        ClusterCommand::Add => Ok(()),
        ClusterCommand::Status { json } => {
            // A part of the time is left for the answer: who does not answer is named in it.
            let asked = ctx.child(ctx.remaining().mul_f64(0.8).min(Duration::from_secs(3)));
            let overview = client.overview(&asked).await?;
            if json {
                let text = serde_json::to_string_pretty(&overview)
                    .map_err(|error| Failure::Said(error.to_string()))?;
                say!("{text}");
            } else {
                print_status(&overview);
            }
            Ok(())
        }
        ClusterCommand::Remove { id } => {
            let left = client.remove(ctx, NodeId(id)).await?;
            if left.is_empty() {
                say!("Node {id} is removed.");
            } else {
                say!(
                    "Node {id} is removed from the catalog; the cluster is still taking it out of {}.",
                    groups(&left)
                );
            }
            Ok(())
        }
        ClusterCommand::TransferLeader {
            shard: Some(shard),
            to,
            ..
        } => {
            let moved = client
                .transfer_leader(ctx, GroupId(shard), to.map(NodeId))
                .await?;
            match to {
                Some(to) if moved => say!("Node {to} leads group {shard} now."),
                Some(to) => say!("Node {to} leads group {shard} already."),
                None => say!("Group {shard} has another leader."),
            }
            Ok(())
        }
        ClusterCommand::TransferLeader { from, to, .. } => {
            let from = from.ok_or_else(|| Failure::Said("give --shard or --from".into()))?;
            if to == Some(from) {
                return Err(Failure::Said("--from and --to name the same node".into()));
            }
            let to = to.map(NodeId);
            match client.transfer_all(ctx, NodeId(from), to).await? {
                0 => say!("Node {from} leads nothing."),
                moved => say!("{moved} groups moved off node {from}."),
            }
            Ok(())
        }
        ClusterCommand::Drain { id, undo: true } => {
            client.undrain(ctx, NodeId(id)).await?;
            say!("Node {id} may lead again.");
            Ok(())
        }
        ClusterCommand::Drain { id, undo: false } => {
            let left = client.drain(ctx, NodeId(id)).await?;
            if left.is_empty() {
                say!("Node {id} leads nothing and will not until `drain {id} --undo`.");
                Ok(())
            } else {
                Err(Failure::Said(format!(
                    "node {id} still leads {}: it is drained and goes on giving them away; ask \
                     again, look at status, or end it with `drain {id} --undo`",
                    groups(&left)
                )))
            }
        }
    }
}

fn groups(groups: &[GroupId]) -> String {
    let names: Vec<String> = groups
        .iter()
        .map(|group| format!("group {group}"))
        .collect();
    names.join(", ")
}

fn print_status(overview: &ClusterOverview) {
    let verdict = if overview.has_quorum {
        format!(
            "every shard has a leader; {} more nodes may be lost",
            overview.may_lose
        )
    } else {
        "NOT every shard has a leader with a quorum".to_owned()
    };
    say!("cluster {}: {verdict}\n", overview.cluster);

    let mut nodes = Table::new();
    nodes.load_preset(presets::NOTHING).set_header([
        "node", "state", "ready", "leads", "lag", "up s", "version", "grpc", "redis", "admin",
    ]);
    for member in &overview.members {
        let ready = match &member.readiness {
            None => "no answer".to_owned(),
            Some(readiness) if readiness.ready => "yes".to_owned(),
            Some(readiness) => format!("no: {}", readiness.reasons.join("; ")),
        };
        let known = |value: Option<String>| value.unwrap_or_else(|| "?".into());
        nodes.add_row([
            member.node.to_string(),
            format!("{:?}", member.state).to_lowercase(),
            ready,
            member.leads.to_string(),
            known(
                member
                    .readiness
                    .as_ref()
                    .map(|readiness| readiness.lag.to_string()),
            ),
            known(member.uptime_seconds.map(|seconds| seconds.to_string())),
            known(member.version.clone()),
            member.addresses.grpc.clone(),
            member.addresses.redis.clone(),
            member.addresses.admin.clone(),
        ]);
    }
    say!("{nodes}\n");

    let mut shards = Table::new();
    shards.load_preset(presets::NOTHING).set_header([
        "group", "slots", "leader", "term", "commit", "replicas", "may lose",
    ]);
    for group in &overview.groups {
        shards.add_row([
            group.group.to_string(),
            keys_of(group),
            group
                .leader
                .map_or_else(|| "NONE".into(), |node| format!("node {node}")),
            group.term.to_string(),
            group.commit_index.to_string(),
            replicas(group),
            group.may_lose.to_string(),
        ]);
    }
    for column in [3, 4, 6] {
        if let Some(column) = shards.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    say!("{shards}");
    for sentence in &overview.unknown {
        say!("not known: {sentence}");
    }
}

/// Whose keys a group holds: a run of Redis slots, the catalog, or else buckets.
fn keys_of(group: &GroupOverview) -> String {
    match group.slots {
        Some((first, last)) => format!("{first}-{last}"),
        None if group.group == GroupId::META => "meta".into(),
        None => "S3".into(),
    }
}

fn replicas(group: &GroupOverview) -> String {
    let names: Vec<String> = group
        .replicas
        .iter()
        .map(|replica| match (&replica.status, replica.lag) {
            (None, _) => format!("{}:?", replica.node),
            (Some(_), Some(lag)) if lag > 0 => format!("{}(-{lag})", replica.node),
            (Some(_), _) => replica.node.to_string(),
        })
        .collect();
    names.join(" ")
}

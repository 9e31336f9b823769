//! Tries to break Leadline's promises: real processes, real faults, and checkers that decide whether
//! what clients saw was allowed.
//!
//! With root, nodes have network namespaces, everything made is named `ll-<pid>-…`, and it is removed
//! at the end. Exit code: 0 valid, 1 a promise was broken, 2 no verdict.

mod client;
mod cluster;
mod failover;
mod incident;
mod nemesis;
mod net;
mod proxy;
mod report;
mod run;
mod s3;
mod suite;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use jepsen::check::Validity;

use crate::cluster::{Cluster, Machines, System};
use crate::nemesis::Composition;
use crate::net::{Mode, Network};
use crate::run::Plan;

#[derive(Debug, Parser)]
#[command(
    name = "leadline-jepsen",
    about = "Hurts real Leadline processes and checks what their clients were told",
    max_term_width = 100,
    after_help = "Examples:\n  \
        leadline-jepsen --workload append --nemesis halves,kill-one --time-limit 60 --rate 300 --seed 7\n  \
        leadline-jepsen --workload all --nemesis all --nodes 5 --time-limit 1800\n  \
        leadline-jepsen --workload register --nemesis pause+clock-jump\n  \
        leadline-jepsen suite --time-limit 60            every workload under every fault\n  \
        leadline-jepsen check --workload append history.jsonl"
)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Clone, Debug)]
struct RunArgs {
    #[arg(long, value_delimiter = ',', default_value = "register", help = one_of::<workload::Kind>(
        "What clients do, names between commas, or `all`:"
    ))]
    workload: Vec<String>,

    #[arg(long, value_delimiter = ',', default_value = "none", help = one_of::<nemesis::Kind>(
        "What is done to the cluster: names between commas, each in its turn; names joined by `+` \
         at once; `none`, or `all` that can be done here:"
    ))]
    nemesis: Vec<String>,
}

/// `text`, and the names that there are.
fn one_of<K: ValueEnum>(text: &str) -> String {
    let names = K::value_variants().iter().filter_map(K::to_possible_value);
    let names: Vec<String> = names.map(|name| name.get_name().to_owned()).collect();
    format!("{text} {}", names.join(", "))
}

#[derive(Args, Clone, Debug)]
struct ClusterArgs {
    /// Seconds of faults in one run.
    #[arg(long, global = true, default_value_t = 60, value_name = "S")]
    time_limit: u64,

    /// Operations per second, all clients together.
    #[arg(long, global = true, default_value_t = 300, value_name = "R")]
    rate: u32,

    /// Clients at once.
    #[arg(long, global = true, default_value_t = 10, value_name = "N")]
    clients: u32,

    /// Printed at the start; the same seed injects the same faults and draws the same operations.
    #[arg(long, global = true, value_name = "X")]
    seed: Option<u64>,

    /// Nodes of the cluster, 1 to 9.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,

    /// The binary under test [default: `leadline` beside this program].
    #[arg(long, global = true)]
    binary: Option<PathBuf>,

    /// What is tested: Leadline, or one `redis-server` as a store known to be good.
    #[arg(long, global = true, value_enum, default_value_t = Peer::Leadline)]
    peer: Peer,

    /// Storage engine of the nodes.
    #[arg(long, global = true, default_value = "fjall")]
    engine: String,

    /// How nodes prove a read: `read-index` or `lease`.
    #[arg(long, global = true, default_value = "read-index")]
    read_mode: String,

    /// Data shards.
    #[arg(long, global = true, default_value_t = 4)]
    shards: u16,

    /// How nodes are kept apart.
    #[arg(long, global = true, value_enum, default_value_t = ModeChoice::Auto)]
    mode: ModeChoice,

    /// Where reports are written [default: `jepsen` beside the profile's directory].
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Environment of the nodes, as NAME=VALUE; may be given again.
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    env: Vec<String>,

    /// Set by the program itself once it runs inside its namespace.
    #[arg(long, global = true, hide = true)]
    inside: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Leadline,
    Redis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeChoice {
    /// Namespaces if they are permitted, else loopback.
    Auto,
    /// A network namespace per node (root).
    Namespaces,
    /// Loopback addresses and user-space proxies.
    Loopback,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The founding incident: followers lose their route while callers keep arriving.
    Incident {
        /// Seconds of each of the two phases.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Callers per second.
        #[arg(long, default_value_t = 200)]
        callers: u32,
    },
    /// How long writes fail after a leader is killed, over several kills.
    Failover {
        #[arg(long, default_value_t = 10)]
        kills: u32,
    },
    /// Each workload under each fault, one run after the other, with a table at the end.
    Suite {
        /// Workloads, names between commas, or `all`.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        workloads: Vec<String>,
        /// Faults, names between commas, or `all`.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        faults: Vec<String>,
    },
    /// Breaks one safety after the other in a binary built with `--features mutations`: each must be
    /// found.
    Mutations {
        /// Only these, names between commas.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Judges a history of JSON lines.
    Check {
        history: PathBuf,
        /// The workload it is of, or several.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        workload: Vec<String>,
    },
}

/// How the program ended, as its exit code says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Valid,
    Invalid,
    NoVerdict,
}

impl From<Validity> for Ended {
    fn from(validity: Validity) -> Self {
        match validity {
            Validity::Valid => Self::Valid,
            Validity::Invalid => Self::Invalid,
            Validity::Unknown => Self::NoVerdict,
        }
    }
}

fn main() -> ExitCode {
    let ended = match begin(Cli::parse()) {
        Ok(Ok(ended)) => ended,
        Ok(Err(code)) => return ExitCode::from(code),
        Err(error) => {
            eprintln!("leadline-jepsen: {error}");
            Ended::NoVerdict
        }
    };
    ExitCode::from(match ended {
        Ended::Valid => 0,
        Ended::Invalid => 1,
        Ended::NoVerdict => 2,
    })
}

/// Runs here, or again inside a namespace: then it is that run's exit code that counts.
fn begin(cli: Cli) -> Result<Result<Ended, u8>, String> {
    if let Some(Command::Check { history, workload }) = &cli.command {
        return judge(history, &kinds(workload)?).map(Ok);
    }
    let mode = match (&cli.cluster.inside, cli.cluster.mode) {
        (Some(_), _) => Mode::Namespaces,
        (None, ModeChoice::Loopback) => Mode::Loopback,
        (None, choice) => match net::are_namespaces_permitted() {
            Ok(()) => return net::enter().map(Err),
            Err(why) if choice == ModeChoice::Namespaces => return Err(why),
            Err(why) => {
                println!("no network namespaces ({why}): loopback and user-space proxies instead");
                Mode::Loopback
            }
        },
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(inside(cli, mode)).map(Ok)
}

async fn inside(cli: Cli, mode: Mode) -> Result<Ended, String> {
    let stage = Stage::new(cli.cluster, mode)?;
    match cli.command {
        Some(Command::Incident { seconds, callers }) => {
            let cluster = stage.one_shard().await?;
            let logs = stage.out.join("incident");
            let phase = Duration::from_secs(seconds);
            Ok(told(incident::run(cluster, &logs, phase, callers).await))
        }
        Some(Command::Failover { kills }) => {
            let cluster = stage.one_shard().await?;
            Ok(told(failover::run(cluster, kills).await))
        }
        Some(Command::Suite { workloads, faults }) => {
            let (kinds, faults) = (stage.workloads(&workloads)?, stage.faults(&faults)?);
            suite::all(&stage, &kinds, &faults).await
        }
        Some(Command::Mutations { only }) => suite::mutations(&stage, &only).await,
        Some(Command::Check { .. }) => Ok(Ended::NoVerdict),
        None => {
            let kinds = stage.workloads(&cli.run.workload)?;
            let faults = stage.faults(&cli.run.nemesis)?;
            let outcome = stage.run(&kinds, &faults, stage.seed).await?;
            Ok(outcome.verdict.validity().into())
        }
    }
}

/// Prints what did not hold.
fn told(result: Result<(), String>) -> Ended {
    match result {
        Ok(()) => Ended::Valid,
        Err(error) => {
            eprintln!("leadline-jepsen: FAILED: {error}");
            Ended::Invalid
        }
    }
}

fn judge(path: &std::path::Path, kinds: &[workload::Kind]) -> Result<Ended, String> {
    let ops = jepsen::history::read(path)?;
    let abilities = workload::Abilities::default();
    let present: Vec<workload::Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| ops.iter().any(|op| workload::is_of(*kind, &op.action)))
        .collect();
    let workload = workload::Workload::new(&present, abilities, Instant::now());
    let verdict = workload.check(&ops, false);
    run::print(&verdict, None);
    Ok(verdict.validity().into())
}

fn kinds(names: &[String]) -> Result<Vec<workload::Kind>, String> {
    if names.iter().any(|name| name == "all" || name == "mix") {
        return Ok(workload::ALL.to_vec());
    }
    names
        .iter()
        .map(|name| {
            workload::Kind::from_str(name, false).map_err(|_| {
                let all: Vec<String> = workload::ALL.iter().map(|kind| kind.name()).collect();
                format!("{name} is no workload; there are: all, {}", all.join(", "))
            })
        })
        .collect()
}

/// Where runs take place: everything that they have in common.
pub(crate) struct Stage {
    args: ClusterArgs,
    mode: Mode,
    prefix: String,
    binary: PathBuf,
    out: PathBuf,
    seed: u64,
}

impl Stage {
    fn new(args: ClusterArgs, mode: Mode) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let binary = args
            .binary
            .clone()
            .unwrap_or_else(|| program.with_file_name("leadline"));
        if args.peer == Peer::Leadline && !binary.exists() {
            return Err(format!(
                "{} is not there: cargo build it first",
                binary.display()
            ));
        }
        let out = args.out.clone().unwrap_or_else(|| {
            let profile = program.parent().and_then(std::path::Path::parent);
            profile
                .map_or_else(std::env::temp_dir, PathBuf::from)
                .join("jepsen")
        });
        Ok(Self {
            prefix: args.inside.clone().unwrap_or_default(),
            seed: args
                .seed
                .unwrap_or_else(|| u64::from(rand::random::<u32>())),
            mode,
            binary,
            out,
            args,
        })
    }

    /// Workloads by their names, but for those that the store under test does not speak.
    fn workloads(&self, names: &[String]) -> Result<Vec<workload::Kind>, String> {
        let mut kinds = kinds(names)?;
        if self.args.peer == Peer::Redis {
            kinds.retain(|kind| !kind.is_s3());
        }
        if kinds.is_empty() {
            return Err("redis-server does not speak S3".into());
        }
        Ok(kinds)
    }

    /// Faults by their names; `all` leaves out what cannot be done here.
    fn faults(&self, names: &[String]) -> Result<Vec<Composition>, String> {
        let mut faults = Vec::new();
        for name in names {
            match name.as_str() {
                "none" => {}
                "all" => {
                    let possible = nemesis::Kind::value_variants().iter().filter(|kind| {
                        let system = self.args.peer == Peer::Leadline || kind.is_for_any_system();
                        let many = self.args.nodes > 1 || kind.is_for_any_system();
                        let root = self.mode == Mode::Namespaces || !kind.needs_root();
                        // Delays put proxies between the nodes, which loss does not reach.
                        system && many && root && !kind.is_proxied()
                    });
                    faults.extend(possible.map(|kind| Composition(vec![*kind])));
                }
                name => faults.push(name.parse()?),
            }
        }
        Ok(faults)
    }

    /// A cluster on which these faults can be done.
    async fn cluster(
        &self,
        faults: &[Composition],
        options: &[&str],
        environment: &[(String, String)],
    ) -> Result<Cluster, String> {
        let any = |is: fn(nemesis::Kind) -> bool| {
            faults
                .iter()
                .any(|faults| faults.0.iter().any(|kind| is(*kind)))
        };
        if self.mode == Mode::Loopback && any(nemesis::Kind::needs_namespaces) {
            return Err("loss and slow-link need network namespaces".into());
        }
        let mut given: Vec<(String, String)> = self
            .args
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        given.extend_from_slice(environment);
        let is_redis = self.args.peer == Peer::Redis;
        // Chunks that no object names any more are kept for an hour. A sparse file: what is not
        // written takes no room.
        let for_chunks = 2 * u32::try_from(self.args.time_limit).unwrap_or(u32::MAX / 4);
        let machines = Machines {
            disk_mib: any(nemesis::Kind::needs_disk).then_some(1024 + for_chunks),
            clocks: any(nemesis::Kind::hurts_clocks),
            environment: given,
            ..Machines::plain(if is_redis { 1 } else { self.args.nodes })
        };
        let network = Network::new(self.mode, &self.prefix, any(nemesis::Kind::is_proxied));
        let shards = self.args.shards.to_string();
        let system = if is_redis {
            System::Redis
        } else {
            let mut all = vec!["--engine", &self.args.engine];
            if !options.contains(&"--shards") {
                all.extend(["--shards", &shards]);
            }
            if !options.contains(&"--read-mode") {
                all.extend(["--read-mode", &self.args.read_mode]);
            }
            all.extend(options);
            System::Leadline {
                binary: self.binary.clone(),
                options: all.into_iter().map(str::to_owned).collect(),
            }
        };
        Cluster::start(network, system, machines).await
    }

    /// The same stage under another load.
    fn under(&self, (clients, rate): (u32, u32)) -> Self {
        let args = ClusterArgs {
            clients,
            rate,
            ..self.args.clone()
        };
        Self {
            args,
            mode: self.mode,
            prefix: self.prefix.clone(),
            binary: self.binary.clone(),
            out: self.out.clone(),
            seed: self.seed,
        }
    }

    async fn one_shard(&self) -> Result<Cluster, String> {
        self.cluster(&[], &["--shards", "1"], &[]).await
    }

    /// One run on a cluster of its own.
    async fn run(
        &self,
        kinds: &[workload::Kind],
        faults: &[Composition],
        seed: u64,
    ) -> Result<run::Outcome, String> {
        self.run_with(kinds, faults, seed, &[], &[]).await
    }

    async fn run_with(
        &self,
        kinds: &[workload::Kind],
        faults: &[Composition],
        seed: u64,
        options: &[&str],
        environment: &[(String, String)],
    ) -> Result<run::Outcome, String> {
        let mut cluster = self.cluster(faults, options, environment).await?;
        let proxied = if cluster.network.is_proxied() {
            ", peers by way of user-space proxies"
        } else {
            ""
        };
        let first = |names: Vec<String>| match names.as_slice() {
            [] => "none".to_owned(),
            [one] => one.clone(),
            [one, ..] => format!("{one}-and-{}-more", names.len() - 1),
        };
        let workloads = first(kinds.iter().map(|kind| kind.name()).collect());
        let nemeses = first(
            faults
                .iter()
                .map(|faults| {
                    let names: Vec<String> = faults.0.iter().map(|kind| kind.name()).collect();
                    names.join("+")
                })
                .collect(),
        );
        let mutation = environment.first().map_or("", |(_, value)| value.as_str());
        let plan = Plan {
            kinds: kinds.to_vec(),
            faults: faults.to_vec(),
            time_limit: Duration::from_secs(self.args.time_limit),
            rate: self.args.rate,
            clients: self.args.clients,
            seed,
            dir: self.out.join(format!(
                "{workloads}.{nemeses}.{}n.{seed}{mutation}",
                self.args.nodes
            )),
            mode: format!("{}{proxied}", self.mode.name()),
        };
        println!(
            "{workloads} under {nemeses}: {} s, seed {seed}, {} nodes apart by {}",
            self.args.time_limit,
            cluster.numbers().len(),
            plan.mode
        );
        let outcome = run::run(&plan, &mut cluster).await?;
        run::print(&outcome.verdict, Some(&plan.dir));
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn workloads_and_faults_are_named_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for name in [
            "s3-register",
            "s3-lock",
            "deadline",
            "kill-one",
            "blackhole",
        ] {
            assert!(help.contains(name), "{name}: {help}");
        }
    }

    #[test]
    fn a_workload_that_does_not_exist_is_refused_with_those_that_do() {
        let error = kinds(&["nothing".into()]).unwrap_err();
        assert!(
            error.contains("append") && error.contains("s3-list"),
            "{error}"
        );
    }
}

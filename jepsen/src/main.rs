//! Fault runs against real Leadline processes, each in a network namespace of its own.
//!
//! Needs root (namespaces, nftables) and the `ip` and `nft` programs. Everything it makes is named
//! `ll-<pid>-…` and removed at the end.

mod check;
mod client;
mod cluster;
mod faults;
mod history;
mod incident;
mod net;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "leadline-jepsen",
    about = "Fault runs against real Leadline processes"
)]
struct Cli {
    /// The binary under test [default: `leadline` beside this program].
    #[arg(long, global = true)]
    binary: Option<PathBuf>,

    /// Set by the program itself once it runs inside its namespace.
    #[arg(long, global = true, hide = true)]
    inside: Option<String>,

    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// The founding incident: followers lose their route while callers keep arriving.
    Incident {
        /// Seconds of each of the two phases.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Callers per second.
        #[arg(long, default_value_t = 200)]
        rate: u32,
    },
    /// Random faults under a workload whose history is checked.
    Faults {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Printed at the start; the same seed injects the same faults.
        #[arg(long)]
        seed: Option<u64>,
        /// Where the history is written as EDN.
        #[arg(long)]
        history: Option<PathBuf>,
        /// Storage engine of the nodes.
        #[arg(long, default_value = "fjall")]
        engine: String,
    },
    /// How long writes fail after a leader is killed, over several kills.
    Failover {
        #[arg(long, default_value_t = 10)]
        kills: u32,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leadline-jepsen: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), String> {
    let Some(prefix) = cli.inside else {
        return net::enter();
    };
    let binary = match cli.binary {
        Some(binary) => binary,
        None => std::env::current_exe()
            .map_err(|error| error.to_string())?
            .with_file_name("leadline"),
    };
    if !binary.exists() {
        return Err(format!(
            "{} is not there: cargo build it first",
            binary.display()
        ));
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        match cli.run {
            Run::Incident { seconds, rate } => {
                incident::run(&prefix, &binary, Duration::from_secs(seconds), rate).await
            }
            Run::Faults {
                seconds,
                seed,
                history,
                engine,
            } => {
                let seed = seed.unwrap_or_else(rand::random);
                let seconds = Duration::from_secs(seconds);
                faults::run(&prefix, &binary, seconds, seed, history.as_deref(), &engine).await
            }
            Run::Failover { kills } => faults::failover(&prefix, &binary, kills).await,
        }
    })
}

//! The `leadline` binary: runs a node, operates a cluster, measures one.

mod bench;
mod cluster;
mod config;
mod logging;
mod output;
mod process;
mod s3;
mod serve;
mod tls;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A replicated key-value store that speaks Redis, and cannot hang.
#[derive(Debug, Parser)]
#[command(
    name = "leadline",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        leadline serve                                  one node, everything on loopback, data in ./leadline-data\n  \
        leadline serve --join 10.0.0.1:50051 \\\n    \
            --advertise 10.0.0.2 --bind 0.0.0.0         a second machine joins the first\n  \
        leadline cluster status                         who leads what, and how many nodes may be lost\n  \
        leadline bench set get --connections 50         what this cluster does, measured from here\n  \
        leadline completions bash > /etc/bash_completion.d/leadline"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one node.
    Serve(Box<config::ServeArgs>),
    /// Looks at a running cluster and changes who belongs to it.
    Cluster(cluster::ClusterArgs),
    /// Manages the access keys of the S3 door.
    S3(s3::S3Args),
    /// Measures a server over its Redis port: throughput, latency percentiles, CPU per operation.
    Bench(bench::BenchArgs),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell that will read it.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => args
            .resolve()
            .map_err(|error| error.to_string())
            .and_then(serve::run),
        Command::Cluster(args) => cluster::run(args),
        Command::S3(args) => s3::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "leadline", &mut script);
            output::say!("{}", String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leadline: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

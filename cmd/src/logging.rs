//! Log lines on standard error, for people or for machines.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Sends what `filter` admits to standard error. openraft reports each step of each election:
/// unless the filter names it, only its errors are shown. Of its heartbeats not even those: a peer
/// that is away fails each of them, and the transport has said so once. Nor that it has stopped:
/// that is logged by whoever stops a group, or finds it stopped. Nor what `s3s` calls an error: every
/// 404 is one.
///
/// # Errors
/// A line that names the bad filter.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let directives = if filter.contains("openraft") {
        filter.to_owned()
    } else {
        format!(
            "{filter},openraft=error,openraft::core::heartbeat=off,\
             openraft::raft::raft_inner=off,fjall=warn,lsm_tree=warn,\
             sled=warn,h2=warn,tonic=warn,s3s=off"
        )
    };
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        format!("--log '{filter}' is no filter ({error}): write error, warn, info, debug or trace")
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

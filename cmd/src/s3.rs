//! `leadline s3 key`: makes, lists, grants and deletes access keys, over a node's admin port.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use leadline_raft::Context;
use leadline_s3::{NewKey, ShownGrant, ShownKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::output::say;
use crate::units::{Span, span_above_zero};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        leadline s3 key create --name backup --grant backups=write\n  \
        leadline s3 key create --name ops --admin\n  \
        leadline s3 key grant LLXXXXXXXXXXXXXXXXXX photos read\n  \
        leadline s3 key list")]
pub(crate) struct S3Args {
    /// Admin address of any node of the cluster.
    #[arg(
        long,
        global = true,
        env = "LEADLINE_ADMIN_ADDRESS",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9001"
    )]
    node: String,

    /// How long the command may take.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = span_above_zero)]
    timeout: Span,

    #[command(subcommand)]
    command: S3Command,
}

#[derive(Debug, Subcommand)]
enum S3Command {
    /// Access keys.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Makes a key and shows its secret, once. The key may make buckets, which it then owns.
    Create {
        /// What the key is for.
        #[arg(long)]
        name: String,
        /// Makes the key an owner of every bucket.
        #[arg(long)]
        admin: bool,
        /// Grants from the beginning.
        #[arg(long, value_name = "BUCKET=LEVEL")]
        grant: Vec<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows every key, without its secret.
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes a key. Other nodes may take it for another second.
    Delete {
        /// The access key.
        key: String,
    },
    /// Grants a key something on a bucket, instead of what it had there.
    Grant {
        /// The access key.
        key: String,
        /// A bucket's name, or * for every bucket.
        bucket: String,
        /// What the key may do.
        level: LevelName,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LevelName {
    /// Nothing: takes the grant back.
    None,
    /// Read and list.
    Read,
    /// Also put and delete objects.
    Write,
    /// Also everything about the bucket itself.
    Owner,
}

impl LevelName {
    fn text(self) -> String {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Write => "write",
            Self::Owner => "owner",
        }
        .to_owned()
    }
}

/// Runs one `leadline s3` command.
///
/// # Errors
/// One line that says what was not done and why.
pub(crate) fn run(args: S3Args) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let S3Command::Key { command } = args.command;
    let admin = Admin {
        address: args.node,
        timeout: args.timeout.0,
    };
    runtime.block_on(key(&admin, command))
}

async fn key(admin: &Admin, command: KeyCommand) -> Result<(), String> {
    match command {
        KeyCommand::Create {
            name,
            admin: all,
            grant,
            json,
        } => {
            let grants = grant
                .iter()
                .map(|text| grant_in(text))
                .collect::<Result<_, _>>()?;
            let new = NewKey {
                name,
                admin: all,
                grants,
            };
            let key: ShownKey = admin.call("POST", "/api/v1/s3/keys", Some(&new)).await?;
            if json {
                return print_json(&key);
            }
            say!("access key: {}", key.access_key);
            say!("secret key: {}", key.secret_key.unwrap_or_default());
            say!("\nThe secret is not shown again.");
            Ok(())
        }
        KeyCommand::List { json } => {
            let keys: Vec<ShownKey> = admin.call("GET", "/api/v1/s3/keys", None::<&()>).await?;
            if json {
                return print_json(&keys);
            }
            let mut table = Table::new();
            table
                .load_preset(presets::NOTHING)
                .set_header(["access key", "name", "grants"]);
            for key in keys {
                let grants: Vec<_> = key
                    .grants
                    .iter()
                    .map(|grant| format!("{}={}", grant.bucket, grant.level))
                    .collect();
                table.add_row([key.access_key, key.name, grants.join(" ")]);
            }
            say!("{table}");
            Ok(())
        }
        KeyCommand::Delete { key } => {
            let path = format!("/api/v1/s3/keys/{key}");
            admin.call::<()>("DELETE", &path, None::<&()>).await?;
            say!("Key {key} is deleted.");
            Ok(())
        }
        KeyCommand::Grant { key, bucket, level } => {
            let path = format!("/api/v1/s3/keys/{key}/grants");
            let grant = ShownGrant {
                bucket,
                level: level.text(),
            };
            let _: ShownKey = admin.call("POST", &path, Some(&grant)).await?;
            say!("Key {key} has {} on {}.", grant.level, grant.bucket);
            Ok(())
        }
    }
}

fn grant_in(text: &str) -> Result<ShownGrant, String> {
    text.split_once('=')
        .map(|(bucket, level)| ShownGrant {
            bucket: bucket.to_owned(),
            level: level.to_owned(),
        })
        .ok_or_else(|| format!("--grant {text}: write BUCKET=read, BUCKET=write or BUCKET=owner"))
}

fn print_json(value: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())?;
    say!("{text}");
    Ok(())
}

/// A node's admin port.
struct Admin {
    address: String,
    timeout: Duration,
}

impl Admin {
    /// One call of the JSON API over a connection of its own.
    async fn call<A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A, String> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        // The node ends a little earlier, and says why.
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nRequest-Timeout: {:.3}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.timeout.mul_f64(0.9).as_secs_f64(),
            body.len()
        );
        let exchange = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            socket.write_all(head.as_bytes()).await?;
            socket.write_all(&body).await?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let ctx = Context::with_timeout(self.timeout);
        let answer = ctx
            .run(exchange)
            .await
            .map_err(|ended| format!("{} did not answer: {ended}", self.address))?
            .map_err(|error| format!("cannot reach {} (--node): {error}", self.address))?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| format!("{} did not answer in HTTP", self.address))?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            let told: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            let why = told["error"].as_str().unwrap_or(body.trim());
            return Err(format!("{status}: {why}"));
        }
        let body = if body.is_empty() { "null" } else { body };
        serde_json::from_str(body).map_err(|error| format!("an answer of another kind: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_a_bucket_and_a_level() {
        assert_eq!(grant_in("b=read").unwrap().bucket, "b");
        assert!(grant_in("b").unwrap_err().contains("BUCKET=read"));
    }
}

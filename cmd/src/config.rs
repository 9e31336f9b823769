//! Settings of `leadline serve`: flags, environment variables and a TOML file, in that order of
//! precedence. Every flag is all three, under one name.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use leadline_raft::engine::ReadMode;
use serde::Deserialize;

use crate::logging::LogFormat;
use crate::units::{Bytes, Span};

/// Data shards of a new cluster. Few, because each is a log of its own and a batch is what the log
/// makes cheap; enough to spread leaders over three nodes (docs/decisions/0001-four-shards.md).
const DEFAULT_SHARDS: u16 = 4;

/// Settings as given; what is absent falls back to the file, then to the default.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[command(
    after_help = "Every flag is also an environment variable (LEADLINE_DATA_DIR) and a key of the TOML file (data-dir).\n\n\
    Examples:\n  \
        leadline serve\n  \
        leadline serve --bind 0.0.0.0 --advertise 10.0.0.1 --requirepass secret\n  \
        leadline serve --join 10.0.0.1:50051 --bind 0.0.0.0 --advertise 10.0.0.2 --requirepass secret\n  \
        leadline serve --config /etc/leadline.toml"
)]
pub(crate) struct ServeArgs {
    /// Reads settings from this TOML file; flags and environment variables override it.
    #[arg(long, env = "LEADLINE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Where this node keeps its data [default: ./leadline-data].
    #[arg(long, env = "LEADLINE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Joins the cluster of these nodes' gRPC addresses. Only for an empty data directory; a node
    /// that belongs to a cluster already goes back to it.
    #[arg(
        long,
        env = "LEADLINE_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    join: Option<Vec<String>>,

    /// The id of a new node, 1 or more. Without it the cluster gives the next free one.
    #[arg(long, env = "LEADLINE_NODE_ID", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    node_id: Option<u64>,

    /// Host that other nodes and clients reach this node under [default: the bind address].
    #[arg(long, env = "LEADLINE_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,

    /// Address that all ports listen on [default: 127.0.0.1].
    #[arg(long, env = "LEADLINE_BIND", value_name = "IP")]
    bind: Option<IpAddr>,

    /// Redis port: PORT or IP:PORT [default: 6379].
    #[arg(long, env = "LEADLINE_REDIS", value_name = "ADDR")]
    redis: Option<String>,

    /// Redis port with TLS: PORT or IP:PORT; needs --tls-cert and --tls-key [default: none].
    #[arg(long, env = "LEADLINE_REDIS_TLS", value_name = "ADDR")]
    redis_tls: Option<String>,

    /// S3 port: PORT or IP:PORT, or `off` [default: 9000].
    #[arg(long, env = "LEADLINE_S3", value_name = "ADDR")]
    s3: Option<String>,

    /// Domains whose subdomains are buckets: with s3.example.com, BUCKET.s3.example.com.
    #[arg(
        long,
        env = "LEADLINE_S3_DOMAIN",
        value_name = "DOMAIN",
        value_delimiter = ','
    )]
    s3_domain: Option<Vec<String>>,

    /// Port of the admin page, the health probes and the metrics [default: 9001].
    #[arg(long, env = "LEADLINE_ADMIN", value_name = "ADDR")]
    admin: Option<String>,

    /// Port for the other nodes and for `leadline cluster` [default: 50051].
    #[arg(long, env = "LEADLINE_GRPC", value_name = "ADDR")]
    grpc: Option<String>,

    /// Data shards of a new cluster, 1 to 1024 [default: 4].
    #[arg(long, env = "LEADLINE_SHARDS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: Option<u16>,

    /// Storage engine of a new data directory.
    #[arg(long, env = "LEADLINE_ENGINE", value_name = "ENGINE")]
    engine: Option<EngineName>,

    /// How a read proves that it is current: a quorum round, or the leader's lease.
    #[arg(long, env = "LEADLINE_READ_MODE", value_name = "MODE")]
    read_mode: Option<ReadModeName>,

    /// Password of the Redis port [default: none].
    #[arg(
        long,
        env = "LEADLINE_REQUIREPASS",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    requirepass: Option<String>,

    /// Deadline of a request that brings none [default: 5s].
    #[arg(long, env = "LEADLINE_FALLBACK_DEADLINE", value_name = "TIME")]
    fallback_deadline: Option<Span>,

    /// Redis connections at once [default: 10000].
    #[arg(long, env = "LEADLINE_MAX_CLIENTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_clients: Option<u32>,

    /// Memory of the row cache [default: 64MiB].
    #[arg(long, env = "LEADLINE_CACHE_BYTES", value_name = "SIZE")]
    cache_bytes: Option<Bytes>,

    /// Memory that requests in flight may hold; more is refused at once [default: 512MiB].
    #[arg(long, env = "LEADLINE_MEMORY_BUDGET", value_name = "SIZE")]
    memory_budget: Option<Bytes>,

    /// Certificate authority of the cluster's nodes (PEM); with --peer-cert and --peer-key, nodes
    /// talk TLS only and admit only each other.
    #[arg(long, env = "LEADLINE_PEER_CA", value_name = "FILE")]
    peer_ca: Option<PathBuf>,

    /// This node's certificate chain for other nodes (PEM).
    #[arg(long, env = "LEADLINE_PEER_CERT", value_name = "FILE")]
    peer_cert: Option<PathBuf>,

    /// The key of --peer-cert (PEM).
    #[arg(long, env = "LEADLINE_PEER_KEY", value_name = "FILE")]
    peer_key: Option<PathBuf>,

    /// Certificate chain that Redis clients see (PEM).
    #[arg(long, env = "LEADLINE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The key of --tls-cert (PEM).
    #[arg(long, env = "LEADLINE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// How long a stopping node may take to hand over and drain [default: 10s].
    #[arg(long, env = "LEADLINE_STOP_TIMEOUT", value_name = "TIME")]
    stop_timeout: Option<Span>,

    /// What is logged: error, warn, info, debug, trace, or a tracing filter [default: info].
    #[arg(long, env = "LEADLINE_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// Form of the log lines.
    #[arg(long, env = "LEADLINE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EngineName {
    #[default]
    Fjall,
    Sled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReadModeName {
    #[default]
    ReadIndex,
    Lease,
}

/// Three PEM files that authenticate nodes to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerTlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Two PEM files that Redis clients see, and where they connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientTls {
    pub(crate) address: SocketAddr,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Settings of one node, complete and checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) join: Vec<String>,
    pub(crate) node_id: Option<u64>,
    /// Host under which others reach this node.
    pub(crate) advertise: String,
    pub(crate) redis: SocketAddr,
    pub(crate) redis_tls: Option<ClientTls>,
    /// `None`: no S3 door.
    pub(crate) s3: Option<SocketAddr>,
    pub(crate) s3_domains: Vec<String>,
    pub(crate) admin: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) shards: u16,
    /// `None`: whatever the data directory has, fjall for a new one.
    pub(crate) engine: Option<EngineName>,
    pub(crate) read_mode: ReadMode,
    pub(crate) requirepass: Option<String>,
    pub(crate) fallback_deadline: std::time::Duration,
    pub(crate) max_clients: u32,
    pub(crate) cache_bytes: u64,
    pub(crate) memory_budget: u64,
    pub(crate) peer_tls: Option<PeerTlsFiles>,
    pub(crate) stop_timeout: std::time::Duration,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

/// What is wrong with the settings, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the settings file {} is wrong in {place}: {}", path.display(), source.message())]
    Parse {
        path: PathBuf,
        /// The line, and the key that it sets; not the value, which may be a secret.
        place: String,
        source: Box<toml::de::Error>,
    },
    #[error("--{flag} {value}: write a port (6379) or an address and port (0.0.0.0:6379)")]
    Address { flag: &'static str, value: String },
    #[error("{0}")]
    Conflict(String),
}

macro_rules! fill {
    ($into:ident, $from:ident: $($field:ident)*) => {
        $( $into.$field = $into.$field.or($from.$field); )*
    };
}

impl ServeArgs {
    /// Completes these settings with the file they name and the defaults, and checks them.
    ///
    /// # Errors
    /// The first thing that is wrong; nothing was created or opened.
    pub(crate) fn resolve(self) -> Result<Settings, ConfigError> {
        let mut args = self;
        // An empty variable is a mistake of whoever set it, and must not take away what the file says.
        for (flag, variable, value) in [
            ("requirepass", "LEADLINE_REQUIREPASS", &args.requirepass),
            ("log", "LEADLINE_LOG", &args.log),
        ] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(conflict(format!(
                    "--{flag} ({variable}) is empty: give it a value, or leave it out"
                )));
            }
        }
        if let Some(path) = &args.config {
            let file = read_file(path)?;
            fill!(args, file: data_dir join node_id advertise bind redis redis_tls s3 s3_domain admin grpc shards
                engine read_mode requirepass fallback_deadline max_clients cache_bytes
                memory_budget peer_ca peer_cert peer_key tls_cert tls_key stop_timeout log log_format);
        }
        args.complete()
    }

    fn complete(self) -> Result<Settings, ConfigError> {
        let bind = self.bind.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let shards = self.shards.unwrap_or(DEFAULT_SHARDS);
        // A file is not checked by the flags' own ranges.
        if !(1..=1024).contains(&shards) {
            return Err(conflict(format!(
                "shards is {shards}: it must be 1 to 1024"
            )));
        }
        if self.max_clients == Some(0) {
            return Err(conflict("max-clients is 0: it must be 1 or more".into()));
        }
        if self.fallback_deadline.is_some_and(|span| span.0.is_zero()) {
            return Err(conflict(
                "--fallback-deadline is 0: no request could be answered; write a time such as 5s"
                    .into(),
            ));
        }
        if self.log.as_ref().is_some_and(String::is_empty) {
            return Err(conflict(
                "log is empty: write error, warn, info, debug or trace".into(),
            ));
        }
        let s3_domains = self.s3_domain.unwrap_or_default();
        if s3_domains.iter().any(String::is_empty) {
            return Err(conflict(
                "--s3-domain is empty: write a domain (s3.example.com), or leave it out".into(),
            ));
        }
        if self.node_id == Some(0) {
            return Err(conflict("node-id is 0: it must be 1 or more".into()));
        }
        let advertise = match self.advertise {
            Some(host) if host.is_empty() || host.contains([':', '/', ' ']) && !is_ipv6(&host) => {
                return Err(conflict(format!(
                    "--advertise '{host}': write a host name or an IP address, without a port"
                )));
            }
            Some(host) => host,
            None if bind.is_unspecified() => {
                return Err(conflict(format!(
                    "--bind {bind} listens everywhere: say with --advertise HOST where others reach this node"
                )));
            }
            None => bind.to_string(),
        };
        let join = self.join.unwrap_or_default();
        if let Some(seed) = join.iter().find(|seed| !is_host_and_port(seed)) {
            return Err(conflict(format!(
                "--join '{seed}': write the gRPC address of a node, HOST:PORT (10.0.0.1:50051)"
            )));
        }
        let peer_tls = match (self.peer_ca, self.peer_cert, self.peer_key) {
            (Some(ca), Some(cert), Some(key)) => Some(PeerTlsFiles { ca, cert, key }),
            (None, None, None) => None,
            _ => {
                return Err(conflict(
                    "--peer-ca, --peer-cert and --peer-key go together: give all three or none"
                        .into(),
                ));
            }
        };
        let redis_tls = match (self.redis_tls, self.tls_cert, self.tls_key) {
            (Some(address), Some(cert), Some(key)) => Some(ClientTls {
                address: address_of("redis-tls", bind, Some(&address), 6380)?,
                cert,
                key,
            }),
            (None, None, None) => None,
            _ => {
                return Err(conflict(
                    "--redis-tls, --tls-cert and --tls-key go together: give all three or none"
                        .into(),
                ));
            }
        };
        Ok(Settings {
            data_dir: self
                .data_dir
                .unwrap_or_else(|| PathBuf::from("leadline-data")),
            join,
            node_id: self.node_id,
            advertise,
            redis: address_of("redis", bind, self.redis.as_deref(), 6379)?,
            redis_tls,
            s3: match self.s3.as_deref() {
                Some("off") => None,
                value => Some(address_of("s3", bind, value, 9000)?),
            },
            s3_domains,
            admin: address_of("admin", bind, self.admin.as_deref(), 9001)?,
            grpc: address_of("grpc", bind, self.grpc.as_deref(), 50051)?,
            shards,
            engine: self.engine,
            read_mode: match self.read_mode.unwrap_or_default() {
                ReadModeName::ReadIndex => ReadMode::ReadIndex,
                ReadModeName::Lease => ReadMode::Lease,
            },
            // In the file, as in redis.conf, an empty password is none.
            requirepass: self.requirepass.filter(|password| !password.is_empty()),
            fallback_deadline: self
                .fallback_deadline
                .map_or(leadline_raft::FALLBACK_DEADLINE, |span| span.0),
            max_clients: self.max_clients.unwrap_or(10_000),
            cache_bytes: self.cache_bytes.map_or(64 << 20, |size| size.0),
            memory_budget: self.memory_budget.map_or(512 << 20, |size| size.0),
            peer_tls,
            stop_timeout: self
                .stop_timeout
                .map_or(std::time::Duration::from_secs(10), |span| span.0),
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

impl Settings {
    /// A new cluster that only this machine reaches.
    pub(crate) fn is_for_trying_out(&self) -> bool {
        self.join.is_empty() && self.s3.is_some_and(|address| address.ip().is_loopback())
    }
}

fn conflict(what: String) -> ConfigError {
    ConfigError::Conflict(what)
}

pub(crate) fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|n| n > 0)
    })
}

fn is_ipv6(host: &str) -> bool {
    host.parse::<std::net::Ipv6Addr>().is_ok()
}

fn read_file(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.into(),
        place: place_in(&text, source.span().map_or(0, |span| span.start)),
        source: Box::new(source),
    })
}

/// The line of `text` that holds the byte `at`, for people: `line 3 (redis)`.
fn place_in(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let number = 1 + before.matches('\n').count();
    let line = text.lines().nth(number - 1).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) => format!("line {number} ({})", key.trim()),
        None => format!("line {number}"),
    }
}

fn address_of(
    flag: &'static str,
    bind: IpAddr,
    value: Option<&str>,
    default_port: u16,
) -> Result<SocketAddr, ConfigError> {
    let Some(value) = value else {
        return Ok(SocketAddr::new(bind, default_port));
    };
    value
        .parse()
        .ok()
        .or_else(|| {
            value
                .trim_start_matches(':')
                .parse()
                .ok()
                .map(|port| SocketAddr::new(bind, port))
        })
        .ok_or_else(|| ConfigError::Address {
            flag,
            value: value.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_flag_everything_is_on_loopback() {
        let settings = ServeArgs::default().resolve().unwrap();
        assert_eq!(settings.redis, "127.0.0.1:6379".parse().unwrap());
        assert_eq!(settings.advertise, "127.0.0.1");
        assert_eq!(settings.data_dir, PathBuf::from("leadline-data"));
    }

    #[test]
    fn a_seed_without_a_port_is_refused_by_name() {
        for wrong in ["10.0.0.1", ":50051", "host:", "host:grpc", "http://host:1"] {
            let args = ServeArgs {
                join: Some(vec!["10.0.0.1:50051".into(), wrong.into()]),
                ..ServeArgs::default()
            };
            let error = args.resolve().unwrap_err().to_string();
            assert!(
                error.contains(wrong) && error.contains("HOST:PORT"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadline.toml");
        std::fs::write(
            &path,
            "shards = 8\nredis = \"7000\"\ncache-bytes = \"1GiB\"\n",
        )
        .unwrap();
        let args = ServeArgs {
            config: Some(path),
            shards: Some(2),
            ..ServeArgs::default()
        };
        let settings = args.resolve().unwrap();
        assert_eq!(settings.shards, 2);
        assert_eq!(settings.redis.port(), 7000);
        assert_eq!(settings.cache_bytes, 1 << 30);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadline.toml");
        std::fs::write(&path, "shrads = 8\n").unwrap();
        let args = ServeArgs {
            config: Some(path),
            ..ServeArgs::default()
        };
        assert!(args.resolve().unwrap_err().to_string().contains("shrads"));
    }

    fn resolved_from(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadline.toml");
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs {
            config: Some(path),
            ..ServeArgs::default()
        };
        args.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_its_line_and_key() {
        for (text, said) in [
            ("shards = 4\nredis = 7961\n", "line 2 (redis)"),
            ("\n\nfallback-deadline = 5\n", "line 3 (fallback-deadline)"),
            ("shards = 4\nshards = 5\n", "line 2 (shards)"),
            ("requirepass = s3cret\n", "line 1 (requirepass)"),
            ("max-clients = 0\n", "max-clients is 0"),
            ("fallback-deadline = \"0s\"\n", "fallback-deadline is 0"),
            ("log = \"\"\n", "log is empty"),
            ("s3-domain = [\"\"]\n", "s3-domain is empty"),
        ] {
            let error = resolved_from(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
            assert!(
                !error.contains("s3cret") && !error.contains('\n'),
                "{error}"
            );
        }
        assert_eq!(
            resolved_from("requirepass = \"\"").unwrap().requirepass,
            None
        );
    }

    /// `LEADLINE_REQUIREPASS=` in a unit file would otherwise open the Redis port to everybody.
    #[test]
    fn an_empty_flag_or_variable_is_refused_and_takes_nothing_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leadline.toml");
        std::fs::write(&path, "requirepass = \"secret\"\nlog = \"warn\"\n").unwrap();
        let (empty, config) = (Some(String::new()), Some(path));
        let password = ServeArgs {
            requirepass: empty.clone(),
            config: config.clone(),
            ..ServeArgs::default()
        };
        let log = ServeArgs {
            log: empty,
            config,
            ..ServeArgs::default()
        };
        for (args, variable) in [(password, "LEADLINE_REQUIREPASS"), (log, "LEADLINE_LOG")] {
            let error = args.resolve().map(|settings| settings.requirepass);
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains(variable) && error.contains("empty"),
                "{error}"
            );
        }
    }

    #[test]
    fn listening_everywhere_needs_an_address_to_advertise() {
        let bind = Some(IpAddr::from([0, 0, 0, 0]));
        let error = ServeArgs {
            bind,
            ..ServeArgs::default()
        }
        .resolve()
        .unwrap_err();
        assert!(error.to_string().contains("--advertise"));
        let advertise = Some("10.0.0.1".into());
        assert!(
            ServeArgs {
                bind,
                advertise,
                ..ServeArgs::default()
            }
            .resolve()
            .is_ok()
        );
    }

    #[test]
    fn half_a_tls_setting_and_a_bad_address_are_refused_by_name() {
        let args = ServeArgs {
            peer_ca: Some("ca.pem".into()),
            ..ServeArgs::default()
        };
        assert!(
            args.resolve()
                .unwrap_err()
                .to_string()
                .contains("--peer-key")
        );
        let args = ServeArgs {
            redis: Some("here".into()),
            ..ServeArgs::default()
        };
        assert!(
            args.resolve()
                .unwrap_err()
                .to_string()
                .contains("--redis here")
        );
    }
}

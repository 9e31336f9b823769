//! `leadline serve`: builds a node from the bottom up, and stops it in reverse.

mod opening;
mod view;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use leadline_admin::Admin;
use leadline_healthz::{Probes, metrics_router};
use leadline_http::{HttpMetrics, ListenerOptions, NodeView, watched};
use leadline_kv::Door;
use leadline_kv::catalog::Addresses;
use leadline_kv::executor::Pool;
use leadline_kv::node::{BlobConfig, Bootstrap, Node, NodeConfig};
use leadline_raft::engine::{ReadMode, Timing};
use leadline_raft::{Context, NodeId};
use leadline_redis::{RedisCodec, RedisConfig, RedisServer};
use leadline_s3::{Keys, S3Codec, S3Config, S3Door, S3References};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::opening::{admin_router, listen, turn_away};
use self::view::View;
use crate::config::{EngineName, Settings};
use crate::logging;
use crate::output::say;
use crate::tls;
use crate::units::Span;

/// How long a node may take to open: to replay its log, or to find a seed that answers.
const OPEN: Duration = Duration::from_secs(300);
/// How long a node whose disk has failed may take to stop.
const FAILED_STOP: Duration = Duration::from_millis(900);

/// Runs a node until it is told to stop or fails.
///
/// # Errors
/// One line that says what to do; the process then exits with a code other than 0.
pub(crate) fn run(settings: Settings) -> Result<(), String> {
    logging::start(&settings.log, settings.log_format)?;
    // Threads that wait for each other's cores cost more than they bring; but one connection's long
    // turn (200 000 arguments to parse, a huge reply to copy) should not be everybody's.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.saturating_sub(Pool::seats_among(cores)).max(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .thread_name("leadline")
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(serve(settings))
}

/// The ports of a node, but for the admin port.
struct Ports {
    redis: TcpListener,
    redis_tls: Option<TcpListener>,
    s3: Option<TcpListener>,
    grpc: TcpListener,
}

impl Ports {
    async fn take(settings: &Settings) -> Result<Self, String> {
        let redis_tls = match &settings.redis_tls {
            Some(tls) => Some(listen("redis-tls", tls.address).await?),
            None => None,
        };
        let s3 = match settings.s3 {
            Some(address) => Some(listen("s3", address).await?),
            None => None,
        };
        Ok(Self {
            redis: listen("redis", settings.redis).await?,
            redis_tls,
            s3,
            grpc: listen("grpc", settings.grpc).await?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &TcpListener> {
        let optional = self.redis_tls.iter().chain(&self.s3);
        [&self.redis, &self.grpc].into_iter().chain(optional)
    }
}

/// The port in use, also where any free one was asked for.
fn port(listener: &TcpListener) -> Result<u16, String> {
    listener
        .local_addr()
        .map(|address| address.port())
        .map_err(|error| error.to_string())
}

fn advertised(
    settings: &Settings,
    ports: &Ports,
    admin: &TcpListener,
) -> Result<Addresses, String> {
    let host = &settings.advertise;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let at = |listener: &TcpListener| Ok::<_, String>(format!("{host}:{}", port(listener)?));
    Ok(Addresses {
        grpc: at(&ports.grpc)?,
        redis: at(&ports.redis)?,
        admin: at(admin)?,
    })
}

fn node_config(
    settings: &Settings,
    advertise: Addresses,
    opening: watch::Sender<String>,
) -> Result<NodeConfig, String> {
    let bootstrap = if settings.join.is_empty() {
        Bootstrap::New {
            shards: settings.shards,
        }
    } else {
        Bootstrap::Join {
            seeds: settings.join.clone(),
        }
    };
    let engine = settings.engine.map(|engine| match engine {
        EngineName::Fjall => "fjall".to_owned(),
        EngineName::Sled => "sled".to_owned(),
    });
    Ok(NodeConfig {
        data_dir: settings.data_dir.clone(),
        engine,
        cache_bytes: settings.cache_bytes,
        memory_budget: usize::try_from(settings.memory_budget).unwrap_or(usize::MAX),
        bootstrap,
        node: settings.node_id.map(NodeId),
        advertise,
        tls: settings
            .peer_tls
            .as_ref()
            .map(|files| files.read())
            .transpose()?,
        read_mode: settings.read_mode,
        timing: Timing::default(),
        codecs: vec![
            (Door::Redis, Arc::new(RedisCodec)),
            (Door::S3, Arc::new(S3Codec)),
        ],
        sweeps: [leadline_redis::sweeps(), leadline_s3::sweeps()].concat(),
        blobs: BlobConfig {
            references: vec![Arc::new(S3References)],
            ..BlobConfig::default()
        },
        opening,
    })
}

async fn serve(settings: Settings) -> Result<(), String> {
    let mut signals = Signals::new()?;
    let client_tls = settings
        .redis_tls
        .as_ref()
        .map(tls::server_config)
        .transpose()?;
    let admin = listen("admin", settings.admin).await?;
    let ports = Ports::take(&settings).await?;
    let addresses = advertised(&settings, &ports, &admin)?;
    let redis_port = port(&ports.redis)?;
    let (opening, doing) = watch::channel("opening: the data directory".to_owned());
    let config = node_config(&settings, addresses.clone(), opening)?;

    let tasks = TaskTracker::new();
    let (http_stop, grpc_stop) = (CancellationToken::new(), CancellationToken::new());
    let stop_timeout = settings.stop_timeout;
    let whole = Arc::new(OnceLock::new());
    tasks.spawn(leadline_http::serve(
        admin,
        admin_router(doing, Arc::clone(&whole)),
        ListenerOptions::default(),
        http_stop.clone(),
        move || Context::with_timeout(stop_timeout),
    ));
    tracing::info!(
        admin = format_args!("http://{}/", addresses.admin),
        "opening"
    );
    let mut registry = Registry::with_prefix("leadline");
    let node = tokio::select! {
        opened = async { Node::open(&Context::with_timeout(OPEN), config, &mut registry).await } => {
            opened.map_err(|error| error.to_string())?
        }
        () = turn_away(ports.all()) => return Err("the ports were lost".to_owned()),
        () = signals.stop() => {
            tracing::info!("stopped before the node was open");
            return Ok(());
        }
    };
    let grpc = node
        .grpc_server()
        .map_err(|error| error.to_string())?
        .add_routes(node.grpc_routes());
    let incoming = tonic::transport::server::TcpIncoming::from(ports.grpc).with_nodelay(Some(true));
    let grpc_stopped = grpc_stop.clone();
    let mut grpc_server = tasks.spawn(async move {
        grpc.serve_with_incoming_shutdown(incoming, grpc_stopped.cancelled_owned())
            .await
    });
    let view = Arc::new(View::new(Arc::clone(&node), &settings));
    let redis = Arc::new(RedisServer::new(
        &RedisConfig {
            max_clients: settings.max_clients as usize,
            password: settings.requirepass.clone(),
            fallback_deadline: settings.fallback_deadline,
            port: redis_port,
            ..RedisConfig::default()
        },
        client_tls,
        node.coordinator(),
        Arc::clone(&view) as _,
        &mut registry,
    ));
    let http_metrics = HttpMetrics::register(&mut registry);
    let s3 = S3Door::new(
        &S3Config {
            fallback_deadline: settings.fallback_deadline,
            domains: settings.s3_domains.clone(),
            ..S3Config::default()
        },
        Arc::clone(&view) as _,
        node.blobs(),
        &mut registry,
    );
    if settings.is_for_trying_out() {
        tell_first_key(&s3.keys(), &settings).await;
    }
    let keys = s3.keys().router(settings.fallback_deadline);
    if let Some(listener) = ports.s3 {
        tasks.spawn(leadline_http::serve(
            listener,
            s3.router(),
            ListenerOptions::default(),
            http_stop.clone(),
            move || Context::with_timeout(stop_timeout),
        ));
    }
    let (plain, listener) = (Arc::clone(&redis), ports.redis);
    tasks.spawn(async move { plain.serve(listener).await });
    if let Some(listener) = ports.redis_tls {
        let encrypted = Arc::clone(&redis);
        tasks.spawn(async move { encrypted.serve_tls(listener).await });
    }
    // Last: whoever finds this node ready may connect to every port.
    whole.get_or_init(|| {
        http_router(
            &view,
            registry,
            http_metrics,
            keys,
            settings.fallback_deadline,
        )
    });
    tracing::info!(
        node = %node.id(),
        cluster = %format_args!("{:016x}", node.cluster().0),
        redis = addresses.redis,
        admin = format_args!("http://{}/", addresses.admin),
        grpc = addresses.grpc,
        data = %settings.data_dir.display(),
        "serving"
    );

    let mut failed = node.failed();
    let mut stop_timeout = settings.stop_timeout;
    let ended = tokio::select! {
        () = signals.stop() => {
            tracing::info!("stopping: handing over, draining, flushing");
            Ok(())
        }
        why = disk_failure(&mut failed) => {
            // Nothing can be handed over or flushed, and until it is gone its callers wait for it.
            stop_timeout = stop_timeout.min(FAILED_STOP);
            Err(format!("stopped to keep what is written: {why}"))
        }
        ended = &mut grpc_server => Err(match ended {
            Ok(Ok(())) => "the gRPC port closed".to_owned(),
            Ok(Err(error)) => format!("the gRPC port failed: {error}"),
            Err(error) => format!("the gRPC port failed: {error}"),
        }),
    };

    let ctx = Context::with_timeout(stop_timeout);
    let closed = tokio::select! {
        closed = async {
            // A third of the time for each step, so that a stuck one leaves room for the flush.
            let step = stop_timeout / 3;
            node.prepare_stop(&ctx.child(step)).await;
            redis.stop(&ctx.child(step)).await;
            http_stop.cancel();
            let closed = node.shutdown(&ctx).await;
            grpc_stop.cancel();
            tasks.close();
            if ctx.run(tasks.wait()).await.is_err() {
                tracing::warn!("not every listener closed in time");
            }
            closed
        } => closed,
        () = signals.stop() => {
            return Err("stopped at the second signal, without waiting for the rest".into());
        }
    };
    ended?;
    if !closed {
        return Err(format!(
            "stopped, and the store was not closed (--stop-timeout is {}): nothing acknowledged is \
             lost, the next start replays the log",
            Span(stop_timeout)
        ));
    }
    tracing::info!("stopped: everything is on disk and closed");
    Ok(())
}

/// Makes and shows an access key for S3 where there is none: at the first start of a node that only
/// this machine reaches.
async fn tell_first_key(keys: &Keys, settings: &Settings) {
    let ctx = Context::with_timeout(settings.fallback_deadline);
    match keys.first_key(&ctx).await {
        Ok(Some(key)) => say!(
            "S3 access key for development (shown once; `leadline s3 key` makes others):\n  \
             AWS_ACCESS_KEY_ID={}\n  AWS_SECRET_ACCESS_KEY={}",
            key.access_key,
            key.secret_key.unwrap_or_default()
        ),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "no S3 access key for development was made"),
    }
}

fn http_router(
    view: &Arc<View>,
    registry: Registry,
    metrics: HttpMetrics,
    keys: Router,
    fallback: Duration,
) -> Router {
    let node = Arc::clone(view) as Arc<dyn NodeView>;
    let registry = Arc::new(registry);
    Probes::new(Arc::clone(&node), fallback)
        .router()
        .merge(metrics_router(Arc::clone(&registry)))
        .merge(Admin::new(node, registry, fallback).router())
        .merge(keys)
        .layer(axum::middleware::from_fn_with_state(metrics, watched))
}

async fn disk_failure(failed: &mut tokio::sync::watch::Receiver<Option<String>>) -> String {
    match failed.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        // The sender goes with the node, which this process owns.
        Err(_) => std::future::pending().await,
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot handle signals: {error}"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether reads are proved by a lease, for people.
pub(crate) fn read_mode_name(mode: ReadMode) -> &'static str {
    match mode {
        ReadMode::ReadIndex => "read-index",
        ReadMode::Lease => "lease",
    }
}

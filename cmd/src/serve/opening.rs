//! What a node answers until it is open: while it replays its log, or asks for a place in a cluster.
//!
//! Every port is taken before anything is opened, so that one in use costs nothing. The admin port
//! answers from then on. The others close each connection at once: whoever connects may try another
//! node, which says more to a client, a balancer or a peer than a connection that waits. They listen
//! all the same, for a port that is only bound can be taken by another process.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use leadline_healthz::metrics_router;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

/// How long to wait where a connection cannot even be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// # Errors
/// A line that names the flag.
pub(super) async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| unusable(flag, address, &error))
}

/// Closes every connection at once, for as long as it is polled. Cancel safe.
pub(super) async fn turn_away(listeners: impl IntoIterator<Item = &TcpListener>) {
    let each = listeners.into_iter().map(|listener| async move {
        loop {
            if listener.accept().await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    futures::future::join_all(each).await;
}

fn unusable(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use: stop what listens there, or choose another with --{flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{address} may not be listened on: choose a port above 1023 with --{flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine: choose another with --{flag}")
        }
        _ => format!("cannot listen on {address} (--{flag}): {error}"),
    }
}

/// The admin port: `doing` says why nothing else can be had, until `open` holds what an open node
/// answers.
pub(super) fn admin_router(doing: watch::Receiver<String>, open: Arc<OnceLock<Router>>) -> Router {
    let mut registry = Registry::with_prefix("leadline");
    registry.register(
        "node_ready",
        "1 while this node may be sent requests",
        Gauge::<i64>::default(),
    );
    let opening = leadline_healthz::opening_router(doing.clone())
        .merge(leadline_admin::opening_router(doing))
        .merge(metrics_router(Arc::new(registry)));
    Router::new().fallback(move |request: Request| {
        let router = open.get().unwrap_or(&opening).clone();
        answer(router, request)
    })
}

async fn answer(router: Router, request: Request) -> Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

//! What a node answers until it is open: while it replays its log, or asks for a place in a cluster.
//!
//! Every port is taken before anything is opened, so that one in use costs nothing. The admin port
//! answers from then on. The others do not listen yet: whoever connects is refused at once and may
//! try another node, which says more to a client, a balancer or a peer than a connection that waits.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use leadline_healthz::metrics_router;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tower::ServiceExt;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A port that is taken, and does not listen yet.
pub(super) struct Port {
    flag: &'static str,
    address: SocketAddr,
    socket: TcpSocket,
}

impl Port {
    /// # Errors
    /// A line that names the flag.
    pub(super) fn take(flag: &'static str, address: SocketAddr) -> Result<Self, String> {
        let take = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // A restart must not wait for connections of the process before.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            // Where any free port was asked for, the one that was taken.
            let address = socket.local_addr()?;
            Ok(Self {
                flag,
                address,
                socket,
            })
        };
        take().map_err(|error| unusable(flag, address, &error))
    }

    pub(super) fn number(&self) -> u16 {
        self.address.port()
    }

    /// Lets clients in.
    ///
    /// # Errors
    /// A line that names the flag: another process may have taken the same port without listening.
    pub(super) fn listen(self) -> Result<TcpListener, String> {
        let (flag, address) = (self.flag, self.address);
        self.socket
            .listen(BACKLOG)
            .map_err(|error| unusable(flag, address, &error))
    }
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

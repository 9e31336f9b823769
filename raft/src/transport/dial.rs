//! Connections to peers, each under a token that ends all of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::lane::Remote;
use super::wire::peer_client::PeerClient;
use super::{Limits, Link, PeerError};
use crate::MAX_ENTRY_BYTES;

/// HTTP/2 asks an idle peer for a sign of life this often, and gives it this long.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// What may be under way on a stream, and on a connection, before the reader has read it.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 8 << 20;

/// The largest message that is read: the largest entry, and a frame of others beside it.
pub(super) fn message_limit(limits: &Limits) -> usize {
    MAX_ENTRY_BYTES + limits.frame_bytes + (1 << 20)
}

/// Runs a connection's tasks where they are counted and joined, and ends them with their token.
struct Owned {
    tasks: TaskTracker,
    alive: CancellationToken,
}

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Owned {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let alive = self.alive.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = alive.cancelled() => {}
                () = task => {}
            }
        });
    }
}

/// Connects to a peer: address, TCP, TLS, each bounded. The connection lives as long as its channel,
/// but not longer than `alive` (by default: the peer's place in the pool).
pub(super) async fn connect(
    link: &Link,
    remote: &Remote,
    alive: Option<CancellationToken>,
) -> Result<Channel, PeerError> {
    let unreachable = |why: String| PeerError::Unreachable {
        node: remote.node,
        why: why.into(),
    };
    let address = remote
        .address
        .lock()
        .current
        .clone()
        .ok_or_else(|| unreachable("its address is not known".to_owned()))?;
    let scheme = if link.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| unreachable(format!("its address {address:?} is not usable: {error}")))?
        .connect_timeout(link.limits.connect)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .executor(Owned {
            tasks: link.tasks.clone(),
            alive: alive.unwrap_or_else(|| remote.gone.clone()),
        });
    if let Some(tls) = &link.tls {
        endpoint = endpoint
            .tls_config(tls.client())
            .map_err(|error| unreachable(format!("TLS: {}", chain(&error))))?;
    }
    match timeout(
        link.limits.connect + link.limits.handshake,
        endpoint.connect(),
    )
    .await
    {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(unreachable(format!("{address}: {}", chain(&error)))),
        Err(_) => Err(unreachable(format!("{address}: no connection in time"))),
    }
}

pub(super) fn client(channel: Channel, limits: &Limits) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(message_limit(limits))
        .max_encoding_message_size(message_limit(limits))
}

/// What a failed call says about the peer, in words that do not change from one attempt to the next.
pub(super) fn refusal(status: &tonic::Status) -> Arc<str> {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated => {
            format!("it refuses us: {}", status.message()).into()
        }
        _ => format!("the stream broke: {}", chain(status)).into(),
    }
}

/// An error with its causes, for one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

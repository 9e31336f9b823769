//! Health probes for load balancers and orchestrators, and the metrics page.
//!
//! | path | 200 means |
//! |---|---|
//! | `/livez` | the process runs |
//! | `/readyz` | this node has replayed its log, is not draining, and keeps up |
//! | `/healthz` | the process runs and can answer |
//! | `/healthz/leader[?shard=N\|key=K]` | this node proved, just now, that it leads the group |
//! | `/metrics` | the metrics in OpenMetrics text |
//!
//! Until a node is open, [`opening_router`] answers instead.
//!
//! # Invariants
//! 1. Never 200 from a guess: `/healthz/leader` asks for a proof that began after the request.
//! 2. A probe ends by its own deadline, and at once when its connection closes.
//! 3. GET and HEAD only; anything else is 405. No redirects: a probe that follows them would be
//!    answered by somebody else.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use leadline_http::{NodeView, request_context};
use leadline_kv::{KvError, keyspace};
use leadline_raft::{Context, Ended, GroupId, NodeId};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// Names the node that leads as far as this one knows, by its id.
pub const LEADER_HEADER: &str = "x-leadline-leader";

/// What the probes answer from.
#[derive(Clone)]
pub struct Probes {
    node: Arc<dyn NodeView>,
    fallback: Duration,
}

impl Probes {
    /// `fallback` is the deadline of a probe that brings none.
    #[must_use]
    pub fn new(node: Arc<dyn NodeView>, fallback: Duration) -> Self {
        Self { node, fallback }
    }

    /// The routes of the probes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(ok))
            .route("/healthz", get(ok))
            .route("/readyz", get(ready))
            .route("/healthz/leader", get(leader))
            .with_state(self)
    }
}

/// The probes of a node that is not open yet: alive, not ready, and leading nothing. `doing` says
/// what it is doing; whatever else is asked for is 503 too.
pub fn opening_router(doing: watch::Receiver<String>) -> Router {
    Router::new()
        .route("/livez", get(ok))
        .route("/healthz", get(ok))
        .fallback(not_open)
        .with_state(doing)
}

async fn not_open(State(doing): State<watch::Receiver<String>>) -> Response {
    unavailable(format!("not ready: {}\n", *doing.borrow()), None)
}

/// The route of the metrics page.
pub fn metrics_router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(registry)
}

async fn ok() -> &'static str {
    "ok\n"
}

async fn ready(State(probes): State<Probes>, parts: Parts) -> Response {
    // It does not wait, but who asks is told that his next probe would not do what he means.
    if let Err(error) = request_context(&parts, probes.fallback) {
        return bad_request(error.to_string());
    }
    let readiness = probes.node.readiness();
    if readiness.ready {
        return "ok\n".into_response();
    }
    unavailable(
        format!("not ready: {}\n", readiness.reasons.join("; ")),
        None,
    )
}

/// 503; a node that is not the leader now may be it a second from now.
fn unavailable(text: String, leader: Option<NodeId>) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    if let Some(leader) = leader {
        headers.insert(LEADER_HEADER, HeaderValue::from(leader.0));
    }
    response
}

fn bad_request(text: String) -> Response {
    (StatusCode::BAD_REQUEST, format!("{text}\n")).into_response()
}

/// Whose leadership is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Group(GroupId),
    /// A Redis key.
    Key(Vec<u8>),
}

fn target(query: &str) -> Result<Target, String> {
    let mut named = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let target = match name {
            "shard" => {
                let number = value
                    .parse()
                    .map_err(|_| format!("shard={value}: write the number of a shard"))?;
                Target::Group(GroupId(number))
            }
            "key" => Target::Key(unescape(value)?),
            // `timeout` is read elsewhere; what a prober adds for itself (`verbose`) is not ours.
            _ => continue,
        };
        if named.replace(target).is_some() {
            return Err("name one shard or one key".to_owned());
        }
    }
    Ok(named.unwrap_or(Target::Group(GroupId::META)))
}

/// Undoes percent encoding (RFC 3986, section 2.1).
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(format!(
                "key={text}: a percent sign needs two hexadecimal digits"
            ));
        };
        // Two hexadecimal digits make at most 255.
        out.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
    }
    Ok(out)
}

async fn leader(State(probes): State<Probes>, parts: Parts) -> Response {
    let (ctx, target) = match (
        request_context(&parts, probes.fallback),
        target(parts.uri.query().unwrap_or_default()),
    ) {
        (Ok(ctx), Ok(target)) => (ctx, target),
        (Err(error), _) => return bad_request(error.to_string()),
        (_, Err(error)) => return bad_request(error),
    };
    // Dropped with the handler, which is dropped with the connection.
    let _gone = ctx.guard();
    prove(&probes, &ctx, target).await
}

async fn prove(probes: &Probes, ctx: &Context, target: Target) -> Response {
    let coordinator = probes.node.coordinator();
    let (proof, known) = match &target {
        Target::Group(group) => (
            coordinator.verify_leader(ctx, *group).await,
            coordinator.known_leader(*group),
        ),
        Target::Key(key) => {
            let row = keyspace::slot_start(keyspace::slot(key));
            (coordinator.verify_leader_for_key(ctx, &row).await, None)
        }
    };
    match proof {
        Ok(proof) => {
            let text = format!(
                "ok: node {} leads in term {}\n",
                proof.leader.node, proof.leader.term
            );
            let mut response = text.into_response();
            response
                .headers_mut()
                .insert(LEADER_HEADER, HeaderValue::from(proof.leader.node.0));
            response
        }
        Err(error) => {
            let leader = match &error {
                KvError::NoLeader { leader } => leader.or(known),
                _ => known,
            };
            // A leader that cannot prove itself is no hint to itself.
            let leader = leader.filter(|leader| *leader != probes.node.node());
            match error {
                KvError::Invalid(text) => bad_request(text),
                KvError::NotApplied(Ended::Deadline) => unavailable(
                    "no proof of leadership before the deadline\n".into(),
                    leader,
                ),
                KvError::NoLeader { leader: now } => {
                    let who = match (now, leader) {
                        (Some(now), _) => format!("node {now} leads"),
                        (None, Some(last)) => format!("no leader is known; node {last} led last"),
                        (None, None) => "no leader is known".to_owned(),
                    };
                    unavailable(format!("not the leader: {who}\n"), leader)
                }
                error => unavailable(format!("not the leader: {error}\n"), leader),
            }
        }
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics could not be written: {error}\n"),
        )
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_names_a_shard_or_an_escaped_key() {
        assert_eq!(target(""), Ok(Target::Group(GroupId::META)));
        assert_eq!(target("timeout=1s&shard=3"), Ok(Target::Group(GroupId(3))));
        assert_eq!(target("key=a%2Fb%00"), Ok(Target::Key(b"a/b\0".to_vec())));
        assert!(
            target("shard=three")
                .unwrap_err()
                .contains("number of a shard")
        );
        assert!(target("key=%4").is_err());
        for contradictory in [
            "shard=1&key=a",
            "key=a&shard=1",
            "shard=1&shard=2",
            "key=a&key=b",
        ] {
            assert!(
                target(contradictory)
                    .unwrap_err()
                    .contains("one shard or one key")
            );
        }
    }
}

//! The admin door: a JSON API, and the web page that shows it.
//!
//! | path | answers |
//! |---|---|
//! | `/` | the page, embedded in the binary; it asks nobody but this node |
//! | `/api/v1/overview` | the cluster as this node could collect it within the request's deadline |
//! | `/api/v1/node` | this node: id, version, readiness |
//! | `/api/v1/metrics` | this node's metrics as JSON: families, samples, labels |
//!
//! All of these only read; the S3 door adds the calls that make its access keys (`/api/v1/s3/keys`).
//! Errors are JSON too: [`leadline_http::failure`].

mod families;
mod page;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Json, Router};
use leadline_http::{NodeView, failure, fresh, refusal, request_context, status_of};
use leadline_kv::Outcome;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;

/// What the admin door answers from.
#[derive(Clone)]
pub struct Admin {
    node: Arc<dyn NodeView>,
    registry: Arc<Registry>,
    fallback: Duration,
}

impl Admin {
    /// `fallback` is the deadline of a request that brings none.
    #[must_use]
    pub fn new(node: Arc<dyn NodeView>, registry: Arc<Registry>, fallback: Duration) -> Self {
        Self {
            node,
            registry,
            fallback,
        }
    }

    /// The API and the page.
    pub fn router(self) -> Router {
        Router::new()
            .route("/api/v1/overview", get(overview))
            .route("/api/v1/node", get(node))
            .route("/api/v1/metrics", get(metrics))
            .route("/api/{*rest}", get(no_such_call))
            .route("/", get(page::index))
            .route("/{*path}", get(page::file))
            .with_state(self)
    }
}

/// The API of a node that is not open yet: it can do nothing. `doing` says why.
pub fn opening_router(doing: watch::Receiver<String>) -> Router {
    Router::new()
        .route("/api/{*rest}", any(not_open))
        .with_state(doing)
}

async fn not_open(State(doing): State<watch::Receiver<String>>) -> Response {
    let why = format!("not ready: {}", *doing.borrow());
    failure(StatusCode::SERVICE_UNAVAILABLE, &why, Outcome::NotApplied)
}

async fn overview(State(admin): State<Admin>, parts: Parts) -> Response {
    let ctx = match request_context(&parts, admin.fallback) {
        Ok(ctx) => ctx,
        Err(error) => return refusal(&error.to_string()),
    };
    // Dropped with the handler, which is dropped with the connection.
    let _gone = ctx.guard();
    match admin.node.overview(&ctx).await {
        Ok(overview) => fresh(Json(overview)),
        Err(error) => failure(status_of(&error), &error.to_string(), error.outcome()),
    }
}

async fn node(State(admin): State<Admin>, parts: Parts) -> Response {
    if let Err(error) = request_context(&parts, admin.fallback) {
        return refusal(&error.to_string());
    }
    fresh(Json(json!({
        "node": admin.node.node(),
        "version": env!("CARGO_PKG_VERSION"),
        "readiness": admin.node.readiness(),
    })))
}

async fn metrics(State(admin): State<Admin>, parts: Parts) -> Response {
    if let Err(error) = request_context(&parts, admin.fallback) {
        return refusal(&error.to_string());
    }
    match families::collect(&admin.registry) {
        Ok(families) => fresh(Json(json!({ "families": families }))),
        Err(error) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the metrics could not be read: {error}"),
            Outcome::NotApplied,
        ),
    }
}

async fn no_such_call() -> Response {
    failure(
        StatusCode::NOT_FOUND,
        "no such call: there are /api/v1/overview, /api/v1/node, /api/v1/metrics, /api/v1/s3/keys, \
         /api/v1/s3/keys/KEY and /api/v1/s3/keys/KEY/grants",
        Outcome::NotApplied,
    )
}

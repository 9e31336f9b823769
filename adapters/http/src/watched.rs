//! Counts requests, their durations and the clients that left before their answer.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    /// The route, not the path: a bounded set.
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// RED metrics of the HTTP port, and its departed clients.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    client_gone: Counter,
}

impl HttpMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0001, 4.0, 9))
            }),
            client_gone: Counter::default(),
        };
        registry.register(
            "http_requests",
            "HTTP requests answered",
            this.requests.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "Time from a request's head to its answer's head",
            this.seconds.clone(),
        );
        registry.register(
            "http_client_gone",
            "HTTP clients that left before their answer",
            this.client_gone.clone(),
        );
        this
    }

    /// Clients that left before their answer.
    #[must_use]
    pub fn client_gone(&self) -> u64 {
        self.client_gone.get()
    }
}

/// Counts a client as gone unless its answer was ready.
struct Departure<'a> {
    metrics: &'a HttpMetrics,
    route: &'a str,
    answered: bool,
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.client_gone.inc();
            tracing::debug!(route = self.route, "the client left before its answer");
        }
    }
}

/// Middleware that keeps [`HttpMetrics`]. A client that closes its connection drops the handler,
/// and with it every wait below.
pub async fn watched(State(metrics): State<HttpMetrics>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let began = Instant::now();
    let mut departure = Departure {
        metrics: &metrics,
        route: &route,
        answered: false,
    };
    let response = next.run(request).await;
    departure.answered = true;
    drop(departure);
    let took: Duration = began.elapsed();
    let status = response.status().as_u16();
    metrics
        .requests
        .get_or_create(&Answered {
            route: route.clone(),
            status,
        })
        .inc();
    metrics
        .seconds
        .get_or_create(&Route { route })
        .observe(took.as_secs_f64());
    response
}

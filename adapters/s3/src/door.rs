//! The S3 port: HTTP around the service.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use leadline_healthz::Probes;
use leadline_http::{NodeView, request_context};
use leadline_kv::blobs::Blobs;
use leadline_raft::{Context, ContextGuard, DeadlineSource};
use prometheus_client::registry::Registry;
use s3s::config::{S3Config as ProtocolConfig, StaticConfigProvider};
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3ErrorCode, S3Result};
use tokio::time::Instant;
use tower::Service as _;

use crate::answers;
use crate::body::{Pace, ReadBudget};
use crate::checked::{Checked, Digests};
use crate::cors;
use crate::document::Document;
use crate::error;
use crate::form::{Form, is_form};
use crate::identity::Keyring;
use crate::keys::Keys;
use crate::metrics::{S3Metrics, Seen};
use crate::rewrite::Rewrite;
use crate::service::Service;
use crate::signatures::{self, Verify};
use crate::store::Store;

/// The longest that a request without a deadline of its own may take while it makes progress.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The largest XML document: a completion of 10 000 parts with checksums.
const XML_BYTES: usize = 8 << 20;
/// The largest file of a POST form, which is checked against its policy before it is stored.
const FORM_FILE_BYTES: u64 = 16 << 20;

/// What the S3 door is opened with.
#[derive(Clone, Debug)]
pub struct S3Config {
    /// Deadline of control operations, and of each step of a body, without one of the request's own.
    pub fallback_deadline: Duration,
    /// Domains whose subdomains are buckets (virtual-host style); path style always works.
    pub domains: Vec<String>,
    /// Bytes that bodies on their way to clients may hold.
    pub read_budget: usize,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            fallback_deadline: leadline_raft::FALLBACK_DEADLINE,
            domains: Vec::new(),
            read_budget: 256 << 20,
        }
    }
}

/// The S3 door of a node.
#[derive(Clone)]
pub struct S3Door {
    service: S3Service,
    /// For forms, which live as long as their policy and not as their signature.
    forms: S3Service,
    verifier: S3Service,
    plain: Service,
    keys: Keys,
    node: Arc<dyn NodeView>,
    domains: Arc<[String]>,
    fallback: Duration,
}

impl S3Door {
    /// A door over a node's coordinator and its blobs. Metrics go to `registry`.
    pub fn new(
        config: &S3Config,
        node: Arc<dyn NodeView>,
        blobs: Arc<dyn Blobs>,
        registry: &mut Registry,
    ) -> Self {
        let store = Store::new(node.coordinator());
        let keyring = Keyring::new(store.clone(), config.fallback_deadline);
        let plain = Service {
            store: store.clone(),
            blobs,
            reads: Arc::new(ReadBudget::new(config.read_budget)),
            lanes: crate::hashes::Lanes::new(),
            metrics: S3Metrics::register(registry),
        };
        let domains: Arc<[String]> = config
            .domains
            .iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        let mut protocol = ProtocolConfig::default();
        protocol.xml_max_body_size = XML_BYTES;
        protocol.post_object_max_file_size = FORM_FILE_BYTES;
        let builder = |protocol: &ProtocolConfig| {
            let mut builder = S3ServiceBuilder::new(plain.clone());
            let protocol = Arc::new(protocol.clone());
            builder.set_config(Arc::new(StaticConfigProvider::new(protocol)));
            builder.set_auth(keyring.clone());
            builder.set_access(keyring.clone());
            if !domains.is_empty() {
                builder.set_host(Domains(Arc::clone(&domains)));
            }
            builder
        };
        let mut service = builder(&protocol);
        let inner = builder(&protocol).build();
        service.set_route(Rewrite { inner });
        let mut verifier = builder(&protocol);
        verifier.set_route(Verify);
        protocol.presigned_url_max_skew_time_secs = u32::MAX;
        Self {
            service: service.build(),
            forms: builder(&protocol).build(),
            verifier: verifier.build(),
            plain,
            keys: Keys::new(store, keyring),
            node,
            domains,
            fallback: config.fallback_deadline,
        }
    }

    /// The access keys, for the admin API.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.keys.clone()
    }

    /// What the S3 port serves: the health probes, and S3 for all else.
    pub fn router(self) -> Router {
        let probes = Probes::new(Arc::clone(&self.node), self.fallback).router();
        Router::new().fallback(route).with_state((self, probes))
    }

    fn metrics(&self) -> &S3Metrics {
        &self.plain.metrics
    }

    /// The bucket that has a host of its own.
    fn bucket_of_host<'r>(&self, request: &'r Request) -> Option<&'r str> {
        let host = request.headers().get(header::HOST)?.to_str().ok()?;
        bucket_of_host(&self.domains, host)
    }

    /// The bucket that a request is about, for CORS.
    fn bucket_of(&self, request: &Request) -> Option<String> {
        if let Some(bucket) = self.bucket_of_host(request) {
            return Some(bucket.to_owned());
        }
        let path = request.uri().path().trim_start_matches('/');
        let bucket = path.split('/').next().unwrap_or_default();
        (!bucket.is_empty()).then(|| bucket.to_owned())
    }

    async fn serve(&self, mut request: Request, seen: &Seen, ctx: &Context) -> Response {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let bucket = origin.as_ref().and_then(|_| self.bucket_of(&request));
        let method = request.method().clone();
        let pace = Pace::new(ctx.clone(), self.fallback);
        if method == Method::OPTIONS {
            return match (&origin, &bucket) {
                (Some(_), Some(bucket)) => {
                    let headers = request.headers();
                    cors::preflight(&self.plain.store, &pace, bucket, headers).await
                }
                _ => cors::forbidden("a preflight names its Origin and a bucket"),
            };
        }
        let held = match self.reserve(&request) {
            Ok(held) => held,
            Err(refused) => return rendered(refused),
        };
        if let Err(wrong) = signatures::check_expiry(request.uri()) {
            return rendered(wrong);
        }
        let mut service = &self.service;
        if is_form(&method, request.headers()) {
            request = match with_form(&pace, request).await {
                Ok(request) => request,
                Err(wrong) => return rendered(wrong),
            };
            // Nothing else may have a signature there, which would never be too old.
            if !request.headers().contains_key(header::AUTHORIZATION)
                && request.uri().query().is_none()
            {
                service = &self.forms;
            }
        } else if self.bucket_of_host(&request).is_none() {
            signatures::end_bucket_with_slash(&self.verifier, &mut request).await;
        }
        let digests = Digests::default();
        let (parts, body) = Document::keep(request).into_parts();
        let body = Checked::new(body, &parts.headers, digests.clone());
        let mut request = Request::from_parts(parts, s3s::Body::http_body_unsync(body));
        request.extensions_mut().insert(digests.clone());
        request.extensions_mut().insert(pace.clone());
        request.extensions_mut().insert(seen.clone());
        let mut response = match service.call(request).await {
            Ok(response) => answers::finished(&method, response),
            Err(error) => {
                let error: s3s::StdError = error.into();
                tracing::error!(%error, "an S3 answer could not be written");
                rendered(S3Error::new(S3ErrorCode::InternalError))
            }
        };
        // `s3s` takes a body that breaks off for a failure of the server.
        if let Some(refused) = digests.refused() {
            response = rendered(refused);
        }
        drop(held);
        if let (Some(origin), Some(bucket)) = (origin, bucket) {
            let store = &self.plain.store;
            cors::allow(
                store,
                &pace,
                &bucket,
                &method,
                &origin,
                response.headers_mut(),
            )
            .await;
        }
        response
    }

    /// Memory for what `s3s` holds whole: XML documents and form files.
    fn reserve(&self, request: &Request) -> S3Result<Option<leadline_kv::blobs::BytePermit>> {
        let query = request.uri().query().unwrap_or_default();
        let part = query.contains("uploadId=");
        let whole = match *request.method() {
            Method::POST => true,
            Method::PUT => !part && !query.is_empty() && !query.contains("X-Amz-Signature="),
            _ => false,
        };
        if !whole {
            return Ok(None);
        }
        let most = if query.is_empty() {
            FORM_FILE_BYTES
        } else {
            XML_BYTES as u64
        };
        let length = request.body().size_hint().upper().unwrap_or(most).min(most);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX).max(1);
        match self.plain.blobs.try_reserve(bytes) {
            Ok(held) => Ok(Some(held)),
            Err(busy) => {
                self.metrics().refused_bodies.inc();
                Err(error::slow_down(&busy.to_string(), busy.retry_after_ms))
            }
        }
    }
}

pub(crate) fn rendered(error: S3Error) -> Response {
    let mut response = match error.to_http_response() {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    answers::typed(&mut response);
    response
}

/// A form whose fields are read.
async fn with_form(pace: &Pace, request: Request) -> S3Result<Request> {
    let (mut parts, body) = request.into_parts();
    let (form, body) = Form::read(pace, &parts.headers, body).await?;
    form.check()?;
    parts.extensions.insert(form);
    Ok(Request::from_parts(parts, body))
}

/// Keys of a bucket that has a host of its own are not probes.
async fn route(State((door, mut probes)): State<(S3Door, Router)>, request: Request) -> Response {
    let probe = matches!(
        request.uri().path(),
        "/livez" | "/readyz" | "/healthz" | "/healthz/leader"
    );
    if probe && door.bucket_of_host(&request).is_none() {
        return probes.call(request).await.into_response();
    }
    answer(door, request).await
}

/// Counts a request that ends without an answer: its client has left.
struct Running {
    metrics: S3Metrics,
    answered: bool,
}

impl Running {
    fn begin(metrics: &S3Metrics) -> Self {
        metrics.running.inc();
        Self {
            metrics: metrics.clone(),
            answered: false,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.running.dec();
        if !self.answered {
            self.metrics.client_gone.inc();
            tracing::debug!("an S3 client left before its answer");
        }
    }
}

async fn answer(door: S3Door, request: Request) -> Response {
    let began = Instant::now();
    let mut running = Running::begin(door.metrics());
    let seen = Seen::default();
    let (parts, body) = request.into_parts();
    let sent = parts.method != Method::HEAD;
    let closes = expects_to_send_nothing(&parts.headers);
    let id = format!("{:016X}", rand::random::<u64>());
    let mut response = match request_context(&parts, door.fallback) {
        Err(wrong) => rendered(S3Error::with_message(
            S3ErrorCode::InvalidArgument,
            wrong.to_string(),
        )),
        Ok(ctx) => {
            let ctx = match ctx.source() {
                DeadlineSource::Caller => ctx,
                DeadlineSource::Fallback => Context::with_timeout(LONGEST),
            }
            .as_caller();
            // Dropped with the connection, or with the body of the answer.
            let gone = ctx.guard();
            let request = Request::from_parts(parts, body);
            let response = door.serve(request, &seen, &ctx).await;
            response.map(|body| {
                Body::new(Guarded {
                    body,
                    metrics: door.metrics().clone(),
                    sent,
                    _gone: gone,
                })
            })
        }
    };
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    if closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    running.answered = true;
    door.metrics()
        .answered(seen.name(), response.status().as_u16(), began.elapsed());
    response
}

/// Whether the client waits for `100 Continue` before a body of no bytes. None is sent then, and
/// botocore, which does not expect that, takes the next answer on the connection for it
/// (boto/botocore#3755): so there is no next one.
fn expects_to_send_nothing(headers: &HeaderMap) -> bool {
    let is = |name, text: &str| {
        let value: Option<&HeaderValue> = headers.get(name);
        value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(text.as_bytes()))
    };
    is(header::EXPECT, "100-continue") && is(header::CONTENT_LENGTH, "0")
}

/// A body whose end, or loss, ends its request.
struct Guarded {
    body: Body,
    metrics: S3Metrics,
    /// The answer to a HEAD has a body that nobody sends.
    sent: bool,
    _gone: ContextGuard,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(task)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.sent && self.body.size_hint().exact().is_some_and(|left| left > 0) {
            self.metrics.client_gone.inc();
            tracing::debug!("an S3 client left before the end of a body");
        }
    }
}

/// The bucket in a host name, where it is a subdomain of one of `domains`.
fn bucket_of_host<'h>(domains: &[String], host: &'h str) -> Option<&'h str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    domains.iter().find_map(|domain| {
        let at = name.len().checked_sub(domain.len())?;
        let (bucket, rest) = name.split_at_checked(at)?;
        if !rest.eq_ignore_ascii_case(domain) {
            return None;
        }
        bucket.strip_suffix('.').filter(|bucket| !bucket.is_empty())
    })
}

/// Virtual-host style for the domains given; any other host is path style.
struct Domains(Arc<[String]>);

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        Ok(match bucket_of_host(&self.0, host) {
            Some(bucket) => VirtualHost::new(host).with_bucket(bucket),
            None => VirtualHost::new(host),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subdomain_of_a_given_domain_is_a_bucket_and_no_other_host_is() {
        let domains = ["s3.example.com".to_owned()];
        assert_eq!(
            bucket_of_host(&domains, "my.bucket.S3.example.com:9000"),
            Some("my.bucket")
        );
        for host in [
            "s3.example.com",
            "localhost:9000",
            "127.0.0.1",
            "xs3.example.com",
        ] {
            assert_eq!(bucket_of_host(&domains, host), None, "{host}");
        }
    }
}

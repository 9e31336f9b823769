//! A door over one shard in memory, and a client that signs what it is told to sign.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use leadline_http::NodeView;
use leadline_kv::blobs::MemoryBlobs;
use leadline_kv::node::{ClusterOverview, Readiness};
use leadline_kv::testing::MemoryCoordinator;
use leadline_kv::{Coordinator, KvError};
use leadline_raft::{Context, NodeId};
use leadline_s3::{Keys, NewKey, S3Config, S3Door, ShownGrant, ShownKey};
use prometheus_client::registry::Registry;
use ring::{digest, hmac};
use time::OffsetDateTime;
use tower::Service;

/// 2026-01-01.
const UNIX_MILLIS: u64 = 1_767_225_600_000;
const HOST: &str = "127.0.0.1:9000";
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

struct OneNode(Arc<MemoryCoordinator>);

impl NodeView for OneNode {
    fn node(&self) -> NodeId {
        NodeId(1)
    }

    fn coordinator(&self) -> Arc<dyn Coordinator> {
        Arc::clone(&self.0) as _
    }

    fn readiness(&self) -> Readiness {
        Readiness {
            ready: true,
            reasons: Vec::new(),
            lag: 0,
            draining: false,
        }
    }

    fn overview<'a>(&'a self, _: &'a Context) -> BoxFuture<'a, Result<ClusterOverview, KvError>> {
        unreachable!("the S3 door does not ask")
    }
}

/// A request as its sender means it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: &'static str,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    /// Added once the rest is signed.
    added: Vec<(String, String)>,
    body: Bytes,
    payload: Option<String>,
}

/// `target` is a path and a query, both as they are sent.
pub(crate) fn ask(method: &'static str, target: &str) -> Ask {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ask {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: BTreeMap::new(),
        added: Vec::new(),
        body: Bytes::new(),
        payload: None,
    }
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn unsigned(mut self, name: &str, value: impl Into<String>) -> Self {
        self.added.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Another `x-amz-content-sha256` than the body's.
    pub(crate) fn payload(mut self, payload: &str) -> Self {
        self.payload = Some(payload.to_owned());
        self
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    pub(crate) headers: http::HeaderMap,
}

impl Seen {
    /// The status and the code of an error, `200 ` without one.
    pub(crate) fn outcome(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.element("Code"))
    }

    pub(crate) fn element(&self, name: &str) -> &str {
        let inner = self.text.split_once(&format!("<{name}>"));
        inner
            .and_then(|(_, rest)| rest.split_once("</"))
            .map_or("", |(inner, _)| inner)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) struct World {
    router: Router,
    keys: Keys,
    /// Owns the bucket `box`.
    pub(crate) owner: ShownKey,
}

impl World {
    pub(crate) async fn new() -> Self {
        let door = S3Door::new(
            &S3Config::default(),
            Arc::new(OneNode(Arc::new(MemoryCoordinator::new(UNIX_MILLIS)))),
            Arc::new(MemoryBlobs::new(64 << 20)),
            &mut Registry::default(),
        );
        let keys = door.keys();
        let owner = new_key(&keys, &[]).await;
        let world = Self {
            router: door.router(),
            keys,
            owner,
        };
        let made = world.send(ask("PUT", "/box")).await;
        assert_eq!(made.outcome(), "200 ", "{made:?}");
        world
    }

    /// A key with one grant on `box`.
    pub(crate) async fn key(&self, level: &str) -> ShownKey {
        let grant = ShownGrant {
            bucket: "box".to_owned(),
            level: level.to_owned(),
        };
        new_key(&self.keys, &[grant]).await
    }

    pub(crate) async fn send(&self, ask: Ask) -> Seen {
        self.send_as(&self.owner, ask).await
    }

    /// Signed in the `Authorization` header.
    pub(crate) async fn send_as(&self, key: &ShownKey, ask: Ask) -> Seen {
        self.dispatch(authorized(key, ask).0).await
    }

    pub(crate) async fn send_anonymously(&self, ask: Ask) -> Seen {
        self.dispatch(ask).await
    }

    /// Signed in the query: by the owner, over the host and the headers of `ask`.
    pub(crate) async fn send_presigned(&self, ask: Ask) -> Seen {
        self.dispatch(presigned(&self.owner, ask)).await
    }

    /// In `aws-chunked` pieces, each signed, of which the last `cut` bytes do not come.
    pub(crate) async fn send_in_pieces(&self, ask: Ask, pieces: &[&[u8]], cut: usize) -> Seen {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let ask = ask
            .header("x-amz-decoded-content-length", length.to_string())
            .payload("STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
        let (mut ask, seal) = authorized(&self.owner, ask);
        let mut signature = seal.signature.clone();
        let mut body = Vec::new();
        for piece in pieces.iter().chain([&&b""[..]]) {
            let (empty, whole) = (sha256(b""), sha256(piece));
            let text = format!(
                "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{signature}\n{empty}\n{whole}",
                seal.time, seal.scope
            );
            signature = hex(&sign(&seal.key, &text));
            let head = format!("{:x};chunk-signature={signature}\r\n", piece.len());
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(piece);
            body.extend_from_slice(b"\r\n");
        }
        body.truncate(body.len() - cut);
        ask.body = body.into();
        self.dispatch(ask).await
    }

    async fn dispatch(&self, ask: Ask) -> Seen {
        let target = if ask.query.is_empty() {
            ask.path
        } else {
            format!("{}?{}", ask.path, ask.query)
        };
        let mut request = Request::builder().method(ask.method).uri(target);
        request = request.header("host", HOST);
        if !ask.body.is_empty() || matches!(ask.method, "PUT" | "POST") {
            request = request.header("content-length", ask.body.len());
        }
        for (name, value) in ask.headers.into_iter().chain(ask.added) {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(ask.body)).unwrap();
        let response = self.router.clone().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 16 << 20).await.unwrap();
        Seen {
            status: head.status,
            text: String::from_utf8_lossy(&body).into_owned(),
            headers: head.headers,
        }
    }
}

async fn new_key(keys: &Keys, grants: &[ShownGrant]) -> ShownKey {
    let ctx = Context::with_timeout(Duration::from_secs(5));
    let new = NewKey {
        name: "test".to_owned(),
        grants: grants.to_vec(),
        ..NewKey::default()
    };
    keys.create(&ctx, &new).await.unwrap()
}

/// What a signature was made with, for those that follow it.
struct Seal {
    time: String,
    scope: String,
    key: Vec<u8>,
    signature: String,
}

fn authorized(key: &ShownKey, mut ask: Ask) -> (Ask, Seal) {
    let payload = ask.payload.clone().unwrap_or_else(|| sha256(&ask.body));
    let time = now();
    ask = ask
        .header("x-amz-date", &*time)
        .header("x-amz-content-sha256", &*payload);
    let (names, seal) = seal(key, &ask, time, &payload);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={}",
        key.access_key, seal.scope, seal.signature
    );
    (ask.unsigned("authorization", authorization), seal)
}

fn presigned(key: &ShownKey, mut ask: Ask) -> Ask {
    let time = now();
    let names = signed_names(&ask).replace(';', "%3B");
    let credential = format!("{}/{}", key.access_key, scope_of(&time)).replace('/', "%2F");
    let join = if ask.query.is_empty() { "" } else { "&" };
    ask.query = format!(
        "{}{join}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={time}&X-Amz-Expires=60&X-Amz-SignedHeaders={names}",
        ask.query
    );
    let (_, seal) = seal(key, &ask, time, UNSIGNED);
    ask.query = format!("{}&X-Amz-Signature={}", ask.query, seal.signature);
    ask
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

fn scope_of(time: &str) -> String {
    format!("{}/us-east-1/s3/aws4_request", &time[..8])
}

fn signed_names(ask: &Ask) -> String {
    let mut names: Vec<_> = ask.headers.keys().map(String::as_str).collect();
    names.push("host");
    names.sort_unstable();
    names.join(";")
}

fn seal(key: &ShownKey, ask: &Ask, time: String, payload: &str) -> (String, Seal) {
    let names = signed_names(ask);
    let mut headers = ask.headers.clone();
    headers.insert("host".to_owned(), HOST.to_owned());
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let mut query: Vec<_> = ask
        .query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .collect();
    query.sort_unstable();
    let query: Vec<_> = query
        .into_iter()
        .map(|pair| match pair.contains('=') {
            true => pair.to_owned(),
            false => format!("{pair}="),
        })
        .collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{names}\n{payload}",
        ask.method,
        ask.path,
        query.join("&")
    );
    let scope = scope_of(&time);
    let text = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        sha256(canonical.as_bytes())
    );
    let secret = format!("AWS4{}", key.secret_key.as_deref().unwrap());
    let mut signing = sign(secret.as_bytes(), &time[..8]);
    for step in ["us-east-1", "s3", "aws4_request"] {
        signing = sign(&signing, step);
    }
    let signature = hex(&sign(&signing, &text));
    let seal = Seal {
        time,
        scope,
        key: signing,
        signature,
    };
    (names, seal)
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower)
}

//! The door over one shard in memory, and clients that sign as AWS' own do.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use leadline_http::NodeView;
use leadline_kv::blobs::MemoryBlobs;
use leadline_kv::node::{ClusterOverview, Readiness};
use leadline_kv::testing::MemoryCoordinator;
use leadline_kv::{Coordinator, KvError};
use leadline_raft::{Context, NodeId};
use leadline_s3::{NewKey, S3Config, S3Door, ShownGrant};
use prometheus_client::registry::Registry;
use ring::{digest, hmac};
use time::OffsetDateTime;
use tower::Service;

/// The host of path-style requests; its subdomains are buckets.
pub(crate) const HOST: &str = "s3.test";
/// What requests are signed for.
pub(crate) const REGION: &str = "us-east-1";
/// The header with the hash of the body, or what there is in its place.
pub(crate) const PAYLOAD: &str = "x-amz-content-sha256";

struct OneNode(Arc<MemoryCoordinator>);

impl NodeView for OneNode {
    fn node(&self) -> NodeId {
        NodeId(1)
    }

    fn coordinator(&self) -> Arc<dyn Coordinator> {
        self.0.clone()
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
        Box::pin(async { unreachable!("no probe asks for it") })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) access: String,
    pub(crate) secret: String,
}

pub(crate) struct World {
    door: S3Door,
    pub(crate) router: Router,
    /// Owner of every bucket.
    pub(crate) admin: Key,
}

/// A request without a signature.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) host: String,
    /// As on the wire, percent-encoded, and the query too.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of an error.
    pub(crate) fn code(&self) -> &str {
        self.element("Code")
    }

    /// The status and the code of an error, `200 ` without one.
    pub(crate) fn outcome(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.code())
    }

    /// The text of the first element of this name, else empty.
    pub(crate) fn element(&self, name: &str) -> &str {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        self.text
            .split_once(open.as_str())
            .and_then(|(_, rest)| rest.split_once(close.as_str()))
            .map_or("", |(text, _)| text)
    }

    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

/// `target` is a path, with a query behind `?`, both percent-encoded.
pub(crate) fn ask(method: &str, target: &str) -> Ask {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ask {
        method: method.parse().unwrap(),
        host: HOST.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    }
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Behind its query.
    pub(crate) fn parameter(mut self, name: &str, value: &str) -> Self {
        let join = if self.query.is_empty() { "" } else { "&" };
        self.query += &format!("{join}{name}={value}");
        self
    }

    /// What is signed of its headers: all there are yet, and the host.
    fn to_sign(&self) -> Vec<(&str, &str)> {
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
        let mut headers: Vec<_> = headers.chain([("host", self.host.as_str())]).collect();
        headers.sort_unstable();
        headers
    }

    fn names_to_sign(&self) -> String {
        let headers = self.to_sign();
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }

    fn signature(&self, key: &Key, date: &str, payload: &str) -> String {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        let mut query: Vec<_> = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        query.sort_unstable();
        let query: Vec<_> = query.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let headers = self.to_sign();
        let lines: String = headers
            .iter()
            .map(|(name, value)| {
                // Spaces count once.
                let value: Vec<_> = value.split_ascii_whitespace().collect();
                format!("{name}:{}\n", value.join(" "))
            })
            .collect();
        let canonical = format!(
            "{}\n{}\n{}\n{lines}\n{}\n{payload}",
            self.method,
            self.path,
            query.join("&"),
            self.names_to_sign()
        );
        let (scope, hashed) = (scope(date), sha256(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}");
        sign_text(key, &date[..8], &text)
    }

    /// Signed by its headers, all it has yet; says the hash of its body unless it says one.
    pub(crate) fn signed(mut self, key: &Key) -> Self {
        let (date, _) = now();
        let said = self.headers.iter().find(|(name, _)| name == PAYLOAD);
        let payload = match said {
            Some((_, said)) => said.clone(),
            None => {
                let hash = sha256(&self.body);
                self = self.header(PAYLOAD, &hash);
                hash
            }
        };
        self = self.header("x-amz-date", &date);
        let (access, scope, names) = (&key.access, scope(&date), self.names_to_sign());
        let signature = self.signature(key, &date, &payload);
        self.header(
            "authorization",
            &format!(
                "AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
            ),
        )
    }

    /// Signed by its query, with the headers it has yet.
    pub(crate) fn presigned(mut self, key: &Key, expires_s: u64) -> Self {
        let (date, _) = now();
        let credential = format!("{}/{}", key.access, scope(&date));
        let names = self.names_to_sign();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", &credential.replace('/', "%2F")),
            ("X-Amz-Date", &date),
            ("X-Amz-Expires", &expires_s.to_string()),
            ("X-Amz-SignedHeaders", &names.replace(';', "%3B")),
        ] {
            self = self.parameter(name, value);
        }
        let signature = self.signature(key, &date, "UNSIGNED-PAYLOAD");
        self.parameter("X-Amz-Signature", &signature)
    }

    /// Signed by its headers, as is each of the `aws-chunked` pieces of its body.
    pub(crate) fn signed_in_pieces(self, key: &Key, pieces: &[&[u8]]) -> Self {
        let length = pieces.concat().len().to_string();
        let mut signed = self
            .header("x-amz-decoded-content-length", &length)
            .header(PAYLOAD, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
            .signed(key);
        let said = |name| signed.headers.iter().find(|(known, _)| known == name);
        let (_, date) = said("x-amz-date").unwrap();
        let (_, authorization) = said("authorization").unwrap();
        let (_, signature) = authorization.rsplit_once('=').unwrap();
        let (scope, nothing, mut signature) = (scope(date), sha256(b""), signature.to_owned());
        let mut body = Vec::new();
        for piece in pieces.iter().chain([&&b""[..]]) {
            let hashed = sha256(piece);
            let text = format!(
                "AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{signature}\n{nothing}\n{hashed}"
            );
            signature = sign_text(key, &date[..8], &text);
            body.extend(format!("{:x};chunk-signature={signature}\r\n", piece.len()).bytes());
            body.extend(piece.iter().chain(b"\r\n"));
        }
        signed.body = body;
        signed
    }
}

/// The time in the form of `X-Amz-Date`, and its day.
pub(crate) fn now() -> (String, String) {
    at(OffsetDateTime::now_utc())
}

pub(crate) fn at(time: OffsetDateTime) -> (String, String) {
    let day = format!(
        "{:04}{:02}{:02}",
        time.year(),
        u8::from(time.month()),
        time.day()
    );
    let date = format!(
        "{day}T{:02}{:02}{:02}Z",
        time.hour(),
        time.minute(),
        time.second()
    );
    (date, day)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(
        digest::digest(&digest::SHA256, bytes),
        hex_simd::AsciiCase::Lower,
    )
}

fn hmac256(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// The signature of `text` with a key for `day`.
pub(crate) fn sign_text(key: &Key, day: &str, text: &str) -> String {
    let mut signing = hmac256(format!("AWS4{}", key.secret).as_bytes(), day);
    for part in [REGION, "s3", "aws4_request"] {
        signing = hmac256(signing.as_ref(), part);
    }
    let tag = hmac256(signing.as_ref(), text);
    hex_simd::encode_to_string(tag, hex_simd::AsciiCase::Lower)
}

fn scope(date: &str) -> String {
    format!("{}/{REGION}/s3/aws4_request", &date[..8])
}

impl World {
    pub(crate) async fn new() -> Self {
        let millis = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        let coordinator = MemoryCoordinator::new(u64::try_from(millis).unwrap());
        let config = S3Config {
            domains: vec![HOST.to_owned()],
            ..S3Config::default()
        };
        let door = S3Door::new(
            &config,
            Arc::new(OneNode(Arc::new(coordinator))),
            Arc::new(MemoryBlobs::new(256 << 20)),
            &mut Registry::default(),
        );
        let mut world = Self {
            router: door.clone().router(),
            door,
            admin: Key {
                access: String::new(),
                secret: String::new(),
            },
        };
        world.admin = world.key(true, &[]).await;
        world
    }

    /// With a bucket.
    pub(crate) async fn with(bucket: &str) -> Self {
        let world = Self::new().await;
        world.admin(ask("PUT", &format!("/{bucket}"))).await.is(200);
        world
    }

    pub(crate) async fn key(&self, admin: bool, grants: &[(&str, &str)]) -> Key {
        let new = NewKey {
            name: "test".to_owned(),
            admin,
            grants: grants
                .iter()
                .map(|(bucket, level)| ShownGrant {
                    bucket: (*bucket).to_owned(),
                    level: (*level).to_owned(),
                })
                .collect(),
        };
        let ctx = Context::with_timeout(Duration::from_secs(60));
        let made = self.door.keys().create(&ctx, &new).await.unwrap();
        Key {
            access: made.access_key,
            secret: made.secret_key.unwrap(),
        }
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, ask: Ask) -> Answer {
        let target = if ask.query.is_empty() {
            ask.path
        } else {
            format!("{}?{}", ask.path, ask.query)
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(target)
            .header("host", &ask.host);
        if !ask.body.is_empty() || ask.method == Method::PUT || ask.method == Method::POST {
            request = request.header("content-length", ask.body.len());
        }
        for (name, value) in &ask.headers {
            request = request.header(name, value.as_bytes());
        }
        let request = request.body(Body::from(ask.body)).unwrap();
        let response = self.router.clone().call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    /// Sends a request that the admin signs.
    pub(crate) async fn admin(&self, ask: Ask) -> Answer {
        self.send(ask.signed(&self.admin)).await
    }
}

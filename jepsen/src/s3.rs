//! S3 as bare as can be: whole objects and listings over one connection, and what answers mean.
//! What is sent and when it is given up is the test's business, so nothing is sent twice.
//!
//! The buckets of a run are open to everybody: requests are not signed. Only who makes them signs,
//! and that is `curl`.

use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ETAG, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use jepsen::history::{Action, End, Key};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::Failed;
use crate::cluster::Cluster;
use crate::workload::{DEADLINE, Missing, PATIENCE, TORN};

/// The S3 port of every node.
const PORT: u16 = 9000;

/// Buckets of a run; each is in one shard, and neighbouring keys are in different ones.
const BUCKETS: Key = 4;

/// Keys of one page of a listing: few, so that listings have several.
const PAGE: usize = 100;

fn bucket(key: Key) -> String {
    format!("jepsen-{}", key % BUCKETS)
}

/// The bytes of the object that is `value`, from a few to some megabytes: most lie in a row, some
/// are one chunk, few are several. No part is like another, so whatever is torn, missing or in
/// another's place shows.
fn encode(value: i64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(value as u64);
    let upto = match random.next_u32() % 32 {
        0 => 2_500_000,
        1..5 => 256 << 10,
        _ => 16 << 10,
    };
    let mut bytes = format!("{value}:").into_bytes();
    let head = bytes.len();
    bytes.resize(head + random.next_u32() as usize % upto, 0);
    random.fill_bytes(&mut bytes[head..]);
    bytes
}

/// The value that these bytes are, or [`TORN`].
fn decode(bytes: &[u8]) -> i64 {
    let number = bytes.split(|byte| *byte == b':').next().unwrap_or_default();
    let value = std::str::from_utf8(number)
        .ok()
        .and_then(|n| n.parse().ok());
    match value {
        Some(value) if encode(value) == bytes => value,
        _ => TORN,
    }
}

/// What an error means for the request it answers: only one of the server's own may have been
/// applied, and not where the server says that it is to be sent again.
fn means(status: StatusCode) -> End {
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        End::Info
    } else {
        End::Fail
    }
}

struct Answer {
    status: StatusCode,
    etag: String,
    body: Bytes,
}

impl Answer {
    fn refused(&self) -> Missing {
        let text = String::from_utf8_lossy(&self.body);
        let code = between(&text, "Code").unwrap_or_default();
        let message = between(&text, "Message").unwrap_or_default();
        Missing::Refused(
            means(self.status),
            format!("{} {code}: {message}", self.status.as_u16()),
        )
    }
}

/// The text of the first element of this name.
fn between<'t>(xml: &'t str, element: &str) -> Option<&'t str> {
    let (_, rest) = xml.split_once(&format!("<{element}>"))?;
    rest.split_once("</").map(|(text, _)| text)
}

/// One connection to one node.
pub(crate) struct Connection {
    address: String,
    sender: SendRequest<Full<Bytes>>,
    /// Ends with the connection.
    _driver: JoinSet<()>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Self, Failed> {
        let opening = async {
            let socket = TcpStream::connect((address, PORT)).await?;
            socket.set_nodelay(true)?;
            handshake(TokioIo::new(socket))
                .await
                .map_err(io::Error::other)
        };
        let (sender, connection) = tokio::time::timeout(Duration::from_secs(2), opening)
            .await
            .map_err(|_| Failed::Connect(io::ErrorKind::TimedOut.into()))?
            .map_err(Failed::Connect)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What ends the connection ends the request on it, which tells.
            connection.await.ok();
        });
        Ok(Self {
            address: address.to_owned(),
            sender,
            _driver: driver,
        })
    }

    /// Sends one request, which has [`DEADLINE`], and waits for the whole answer, [`PATIENCE`] at
    /// the most.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        condition: Option<(HeaderName, &str)>,
        body: Vec<u8>,
    ) -> Result<Answer, Failed> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(
                "x-envoy-expected-rq-timeout-ms",
                DEADLINE.as_millis() as u64,
            );
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let broken = |error: hyper::Error| Failed::Broken(io::Error::other(error));
        let request = request
            .body(Full::new(body.into()))
            .map_err(|error| Failed::Connect(io::Error::other(error)))?;
        let answering = async {
            // Closed since the last answer: nothing was sent.
            let ready = self.sender.ready().await;
            ready.map_err(|error| Failed::Connect(io::Error::other(error)))?;
            let answer = self.sender.send_request(request).await.map_err(broken)?;
            let (head, body) = answer.into_parts();
            let etag = head.headers.get(ETAG).and_then(|etag| etag.to_str().ok());
            Ok(Answer {
                status: head.status,
                etag: etag.unwrap_or_default().to_owned(),
                body: body.collect().await.map_err(broken)?.to_bytes(),
            })
        };
        tokio::time::timeout(PATIENCE, answering)
            .await
            .map_err(|_| Failed::Silent(PATIENCE))?
    }

    /// The value of an object, and its ETag.
    async fn read(&mut self, path: &str) -> Result<Option<(i64, String)>, Missing> {
        let answer = self.call(Method::GET, path, None, Vec::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(Some((decode(&answer.body), answer.etag))),
            StatusCode::NOT_FOUND if is_no_such_key(&answer) => Ok(None),
            _ => Err(answer.refused()),
        }
    }

    /// Whether the condition held, and the object was put.
    async fn put(
        &mut self,
        path: &str,
        body: Vec<u8>,
        condition: Option<(HeaderName, &str)>,
    ) -> Result<bool, Missing> {
        let conditional = condition.is_some();
        let answer = self.call(Method::PUT, path, condition, body).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::PRECONDITION_FAILED if conditional => Ok(false),
            // If-Match, and nothing is there.
            StatusCode::NOT_FOUND if conditional && is_no_such_key(&answer) => Ok(false),
            _ => Err(answer.refused()),
        }
    }

    async fn delete(&mut self, path: &str) -> Result<(), Missing> {
        let answer = self.call(Method::DELETE, path, None, Vec::new()).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(answer.refused()),
        }
    }

    /// The numbers at the end of the keys below `prefix`, page by page.
    async fn list(&mut self, bucket: &str, prefix: &str) -> Result<Vec<i64>, Missing> {
        let mut values = Vec::new();
        let mut token = String::new();
        loop {
            let path = format!("/{bucket}?list-type=2&max-keys={PAGE}&prefix={prefix}{token}");
            let answer = self.call(Method::GET, &path, None, Vec::new()).await?;
            if answer.status != StatusCode::OK {
                return Err(answer.refused());
            }
            let text = String::from_utf8_lossy(&answer.body);
            for found in text.split("<Key>").skip(1) {
                let (key, _) = found.split_once("</Key>").unwrap_or((found, ""));
                let value = key
                    .strip_prefix(prefix)
                    .and_then(|value| value.parse().ok());
                values.push(value.unwrap_or(TORN));
            }
            match between(&text, "NextContinuationToken") {
                Some(next) => token = format!("&continuation-token={}", escaped(next)),
                None => return Ok(values),
            }
        }
    }

    /// Asks what `action` is about the object or the listing `name`; `tried` becomes what may have
    /// been applied, as soon as that is known.
    pub(crate) async fn attempt(
        &mut self,
        name: &str,
        action: &Action,
        tried: &mut Action,
    ) -> Result<Action, Missing> {
        Ok(match action {
            Action::Read { key, .. } => {
                let found = self.read(&path(*key, name)).await?;
                Action::Read {
                    key: *key,
                    value: found.map(|(value, _)| value),
                }
            }
            Action::Write { key, value } => {
                self.put(&path(*key, name), encode(*value), None).await?;
                action.clone()
            }
            Action::Delete { key } => {
                self.delete(&path(*key, name)).await?;
                action.clone()
            }
            Action::Create { key, value, .. } => {
                let absent = Some((IF_NONE_MATCH, "*"));
                Action::Create {
                    key: *key,
                    value: *value,
                    won: self.put(&path(*key, name), encode(*value), absent).await?,
                }
            }
            Action::Cas { key, to, .. } => {
                let path = path(*key, name);
                let Some((from, etag)) = self.read(&path).await? else {
                    return Ok(Action::Read {
                        key: *key,
                        value: None,
                    });
                };
                let (key, to) = (*key, *to);
                *tried = Action::Cas { key, from, to };
                if self.put(&path, encode(to), Some((IF_MATCH, &etag))).await? {
                    Action::Cas { key, from, to }
                } else {
                    // What it saw before it came too late.
                    Action::Read {
                        key,
                        value: Some(from),
                    }
                }
            }
            Action::Add { key, value } => {
                let path = format!("{}/{value}", path(*key, name));
                self.put(&path, value.to_string().into(), None).await?;
                action.clone()
            }
            Action::Remove { key, value } => {
                self.delete(&format!("{}/{value}", path(*key, name)))
                    .await?;
                action.clone()
            }
            Action::Members { key, .. } => Action::Members {
                key: *key,
                values: self.list(&bucket(*key), &format!("{name}/")).await?,
            },
            other => return Err(Missing::Strange(format!("S3 has no {other:?}"))),
        })
    }
}

fn is_no_such_key(answer: &Answer) -> bool {
    let text = String::from_utf8_lossy(&answer.body);
    between(&text, "Code") == Some("NoSuchKey")
}

fn path(key: Key, name: &str) -> String {
    format!("/{}/{name}", bucket(key))
}

/// As a query has it.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Makes the buckets of a run, which everybody may read, list and write.
pub(crate) async fn open_buckets(cluster: &Cluster) -> Result<(), String> {
    let address = cluster.address(1);
    let admin = format!("{address}:{}", crate::client::ADMIN_PORT);
    let arguments = [
        "s3",
        "--node",
        &admin,
        "key",
        "create",
        "--name",
        "fault-run",
        "--admin",
        "--json",
    ];
    let made = cluster.leadline(&arguments).await?;
    let key: serde_json::Value = serde_json::from_str(&made).map_err(|error| error.to_string())?;
    let user = match (key["access_key"].as_str(), key["secret_key"].as_str()) {
        (Some(key), Some(secret)) => format!("{key}:{secret}"),
        _ => return Err("the new access key cannot be read".into()),
    };
    for key in 0..BUCKETS {
        let bucket = bucket(key);
        let policy = format!(
            r#"{{"Statement": [{{"Effect": "Allow", "Principal": "*", "Action": "s3:*",
                "Resource": ["arn:aws:s3:::{bucket}", "arn:aws:s3:::{bucket}/*"]}}]}}"#
        );
        let url = format!("http://{address}:{PORT}/{bucket}");
        put_signed(&user, &url, "").await?;
        put_signed(&user, &format!("{url}?policy="), &policy).await?;
    }
    Ok(())
}

/// Sends a request until it is answered as it should be, for a few seconds: a new key, and a new
/// leader, take a moment.
async fn put_signed(user: &str, url: &str, body: &str) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let output = tokio::process::Command::new("curl")
            .args(["-sS", "--fail-with-body", "--max-time", "5", "-X", "PUT"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", user])
            // Not every version of curl sends it unasked.
            .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .args(["--data-binary", body, url])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| format!("S3 workloads need curl: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        // An answer to the first attempt may have been lost.
        if output.status.success() || said.contains("BucketAlreadyOwnedByYou") {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(15) {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("PUT {url}: {} {said}", error.trim()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_is_cut_or_changed_anywhere_is_torn() {
        let mut sizes = Vec::new();
        for value in 1..200 {
            let whole = encode(value);
            assert_eq!(decode(&whole), value);
            let middle = whole.len() / 2;
            let mut changed = whole.clone();
            changed[middle] ^= 1;
            assert_eq!(decode(&changed), TORN);
            assert_eq!(decode(&whole[..middle]), TORN);
            assert_eq!(decode(&[&whole[..], b"x"].concat()), TORN);
            sizes.push(whole.len());
        }
        assert!(sizes.iter().any(|size| *size < 16 << 10));
        assert!(sizes.iter().any(|size| (16 << 10..1 << 20).contains(size)));
        assert!(sizes.iter().any(|size| *size > 1 << 20));
        assert_eq!(decode(b""), TORN);
    }

    #[test]
    fn chunks_of_an_object_in_another_order_are_torn() {
        let large = (1..).map(encode).find(|bytes| bytes.len() > 2 << 20);
        let mut bytes = large.unwrap();
        let (first, second) = bytes[1 << 10..].split_at_mut(1 << 20);
        first.swap_with_slice(&mut second[..1 << 20]);
        assert_eq!(decode(&bytes), TORN);
    }

    #[test]
    fn only_a_server_error_that_does_not_ask_to_be_tried_again_may_have_been_applied() {
        assert_eq!(means(StatusCode::INTERNAL_SERVER_ERROR), End::Info);
        assert_eq!(means(StatusCode::GATEWAY_TIMEOUT), End::Info);
        assert_eq!(means(StatusCode::SERVICE_UNAVAILABLE), End::Fail);
        assert_eq!(means(StatusCode::PRECONDITION_FAILED), End::Fail);
        assert_eq!(means(StatusCode::CONFLICT), End::Fail);
    }

    #[test]
    fn elements_are_found_in_an_answer() {
        let xml = "<R><Code>NoSuchKey</Code><Message>Not there.</Message></R>";
        assert_eq!(between(xml, "Code"), Some("NoSuchKey"));
        assert_eq!(between(xml, "Message"), Some("Not there."));
        assert_eq!(between(xml, "Key"), None);
        assert_eq!(escaped("a=/"), "%61%3D%2F");
    }
}

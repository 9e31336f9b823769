//! Just enough of S3 to measure a server that speaks it: PUT and GET of whole objects by signed
//! requests (Signature Version 4, path style), one at a time per connection.

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use ring::{digest, hmac};
use time::OffsetDateTime;
use tokio::net::TcpStream;

const BUCKET: &str = "leadline-bench";
const REGION: &str = "us-east-1";
/// SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An access key, and whether the bodies of PUTs are hashed into their signatures.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) key: String,
    pub(super) secret: String,
    pub(super) sign_payload: bool,
}

/// One connection to one server.
pub(super) struct S3 {
    address: String,
    access: Access,
    value: Bytes,
    sender: SendRequest<Full<Bytes>>,
}

impl S3 {
    /// Connects, and makes the bucket if it is not there. Runs the connection on the thread's
    /// local set.
    pub(super) async fn connect(
        address: &str,
        access: &Access,
        value: Bytes,
    ) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{address}: {error}");
        let socket = TcpStream::connect(address)
            .await
            .map_err(|error| failed(&format_args!("cannot connect: {error}")))?;
        socket.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) = handshake(TokioIo::new(socket))
            .await
            .map_err(|error| failed(&error))?;
        tokio::task::spawn_local(async move {
            // What ends the connection ends the request on it, which tells.
            connection.await.ok();
        });
        let mut s3 = Self {
            address: address.to_owned(),
            access: access.clone(),
            value,
            sender,
        };
        let path = format!("/{BUCKET}");
        let made = s3.call(Method::PUT, &path, None).await?;
        // Another connection may have been faster, which servers say in several ways.
        if made.is_success() || s3.call(Method::HEAD, &path, None).await?.is_success() {
            return Ok(s3);
        }
        Err(failed(&format_args!(
            "the bucket {BUCKET} could not be made: {made}"
        )))
    }

    /// Stores the value with a random number in front: no two bodies are alike, in this run or one
    /// before, so that a server that keeps equal ones once neither gains nor loses.
    pub(super) async fn put(&mut self, key: &str) -> Result<(), String> {
        let path = format!("/{BUCKET}/{key}");
        let mut body = BytesMut::from(&self.value[..]);
        for (byte, of) in body.iter_mut().zip(rand::random::<u64>().to_be_bytes()) {
            *byte = of;
        }
        let put = self.call(Method::PUT, &path, Some(body.freeze())).await;
        put.and_then(whole)
    }

    /// An object that is not there is an answer too.
    pub(super) async fn get(&mut self, key: &str) -> Result<(), String> {
        let path = format!("/{BUCKET}/{key}");
        match self.call(Method::GET, &path, None).await? {
            StatusCode::NOT_FOUND => Ok(()),
            other => whole(other),
        }
    }

    /// Sends one request and reads its answer to the end.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<StatusCode, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.address);
        let hash = match &body {
            Some(body) if self.access.sign_payload => {
                hex(digest::digest(&digest::SHA256, body).as_ref())
            }
            Some(_) => "UNSIGNED-PAYLOAD".to_owned(),
            None => NOTHING.to_owned(),
        };
        let (date, authorization) = self.sign(&method, path, &hash);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("x-amz-date", date)
            .header("x-amz-content-sha256", hash)
            .header("authorization", authorization)
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| failed(&error))?;
        self.sender.ready().await.map_err(|error| failed(&error))?;
        let answer = self
            .sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        let status = answer.status();
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| failed(&error))?;
        }
        Ok(status)
    }

    /// The date and the authorization that a request carries.
    fn sign(&self, method: &Method, path: &str, hash: &str) -> (String, String) {
        let now = OffsetDateTime::now_utc();
        let day = format!(
            "{:04}{:02}{:02}",
            now.year(),
            u8::from(now.month()),
            now.day()
        );
        let date = format!(
            "{day}T{:02}{:02}{:02}Z",
            now.hour(),
            now.minute(),
            now.second()
        );
        let names = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!(
            "{method}\n{path}\n\nhost:{}\nx-amz-content-sha256:{hash}\nx-amz-date:{date}\n\n{names}\n{hash}",
            self.address
        );
        let scope = format!("{day}/{REGION}/s3/aws4_request");
        let canonical = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        let mut key = format!("AWS4{}", self.access.secret).into_bytes();
        for part in [&day, REGION, "s3", "aws4_request", &text] {
            let signer = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&signer, part.as_bytes()).as_ref().to_vec();
        }
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            self.access.key,
            hex(&key)
        );
        (date, authorization)
    }
}

fn whole(status: StatusCode) -> Result<(), String> {
    if status.is_success() {
        return Ok(());
    }
    Err(status.to_string())
}

fn hex(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower)
}

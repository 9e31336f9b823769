//! Just enough of S3 to measure a server that speaks it: PUT and GET of whole objects by signed
//! requests (Signature Version 4, path style), one at a time per connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use ring::{digest, hmac};
use time::OffsetDateTime;
use tokio::net::TcpStream;

const BUCKET: &str = "leadline-bench";
const REGION: &str = "us-east-1";
/// Bodies differ at the end of each piece of so many bytes: servers that keep equal pieces once cut
/// them no smaller.
const PIECE: usize = 1024 * 1024;

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
    value: Value,
    sender: SendRequest<Pieces>,
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
            value: Value::new(value),
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

    /// Stores the value with random numbers in it: no two bodies are alike, in this run or one
    /// before, so that a server that keeps equal ones once neither gains nor loses.
    pub(super) async fn put(&mut self, key: &str) -> Result<(), String> {
        let path = format!("/{BUCKET}/{key}");
        let body = self.value.body(rand::random());
        let put = self.call(Method::PUT, &path, Some(body)).await;
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
        body: Option<Pieces>,
    ) -> Result<StatusCode, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.address);
        let hash = match &body {
            Some(body) if self.access.sign_payload => hex(self.value.digest(body).as_ref()),
            Some(_) => "UNSIGNED-PAYLOAD".to_owned(),
            None => hex(digest::digest(&digest::SHA256, b"").as_ref()),
        };
        let (date, authorization) = self.sign(&method, path, &hash);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("x-amz-date", date)
            .header("x-amz-content-sha256", hash)
            .header("authorization", authorization)
            .body(body.unwrap_or_default())
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

/// What is stored, but for the numbers that tell one body from another. A body shares all else with
/// the value and the hash of what comes first: a load generator that copied and hashed every body
/// would take a good part of the processor from a server on the same machine.
struct Value {
    pieces: Vec<Bytes>,
    /// SHA-256 of the first piece, as far as it is the same in all bodies.
    begun: digest::Context,
}

impl Value {
    fn new(mut value: Bytes) -> Self {
        let mut pieces = Vec::new();
        while !value.is_empty() {
            pieces.push(value.split_to(value.len().min(PIECE)));
        }
        let mut begun = digest::Context::new(&digest::SHA256);
        if let Some(first) = pieces.first() {
            begun.update(same(first));
        }
        Self { pieces, begun }
    }

    fn body(&self, number: u64) -> Pieces {
        let mut frames = VecDeque::with_capacity(2 * self.pieces.len());
        for piece in &self.pieces {
            let same = same(piece).len();
            let own = &number.to_be_bytes()[..piece.len() - same];
            frames.push_back(piece.slice(..same));
            frames.push_back(Bytes::copy_from_slice(own));
        }
        Pieces(frames)
    }

    fn digest(&self, body: &Pieces) -> digest::Digest {
        let mut hash = self.begun.clone();
        for frame in body.0.iter().skip(1) {
            hash.update(frame);
        }
        hash.finish()
    }
}

/// What of a piece is the same in all bodies.
fn same(piece: &[u8]) -> &[u8] {
    &piece[..piece.len().saturating_sub(size_of::<u64>())]
}

/// A body in frames, of a length that is known.
#[derive(Default)]
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|frame| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|frame| frame.len() as u64).sum())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_body(body: &Pieces) -> Vec<u8> {
        body.0.iter().flatten().copied().collect()
    }

    #[test]
    fn bodies_differ_in_each_piece_and_their_digest_is_that_of_the_whole() {
        for size in [0, 1, 8, 9, 4096, PIECE, PIECE + 3, 3 * PIECE + 100] {
            let value = Value::new(vec![7; size].into());
            let (one, other) = (value.body(1 << 60), value.body(2 << 60));
            assert_eq!(one.size_hint().exact(), Some(size as u64));
            let (bytes, others) = (whole_body(&one), whole_body(&other));
            for (piece, another) in bytes.chunks(PIECE).zip(others.chunks(PIECE)) {
                assert_ne!(piece, another, "{size}");
            }
            let expected = digest::digest(&digest::SHA256, &bytes);
            assert_eq!(value.digest(&one).as_ref(), expected.as_ref(), "{size}");
        }
    }
}

//! Bodies that are held against what their request says of them, where `s3s` does not.
//!
//! 1. A document (the XML or JSON of a request) is what its digests say before anything is done with it.
//!    `s3s` reads it whole and verifies nothing but the payload's SHA-256, whose mismatch it takes for a
//!    failure of the server. So its bytes are hashed on their way there, and the last ones do not arrive
//!    unless all digests agree.
//! 2. A body in `aws-chunked` pieces ends with the empty one. `s3s` takes the end of the stream for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use s3s::{S3Error, S3ErrorCode, S3Result, StdError};

use crate::error;
use crate::hashes::Hashes;
use crate::service::{algorithm_named, check_body, checksum_in};

/// The operations whose body is a document.
const DOCUMENTS: [&str; 11] = [
    "CompleteMultipartUpload",
    "CreateBucket",
    "DeleteObjects",
    "PutBucketAcl",
    "PutBucketCors",
    "PutBucketLifecycleConfiguration",
    "PutBucketPolicy",
    "PutBucketTagging",
    "PutBucketVersioning",
    "PutObjectAcl",
    "PutObjectTagging",
];

/// Refuses checksums that nobody here would verify.
pub(crate) fn known_checksums(headers: &HeaderMap) -> S3Result<()> {
    let unknown = |name: &str| {
        let algorithm = name.strip_prefix("x-amz-checksum-")?;
        let known = matches!(algorithm, "algorithm" | "mode" | "type")
            || algorithm_named(algorithm).is_some();
        (!known).then(|| algorithm.to_owned())
    };
    let values = |name: &str| {
        let values = headers.get_all(name).into_iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        texts.flat_map(|text| text.split(',')).map(str::trim)
    };
    let named = ["x-amz-checksum-algorithm", "x-amz-sdk-checksum-algorithm"];
    let wrong = None
        .or_else(|| headers.keys().find_map(|name| unknown(name.as_str())))
        .or_else(|| values("x-amz-trailer").find_map(|name| unknown(&name.to_ascii_lowercase())))
        .or_else(|| {
            let mut named = named.into_iter().flat_map(values);
            let wrong = named.find(|name| !name.is_empty() && algorithm_named(name).is_none());
            wrong.map(str::to_owned)
        });
    match wrong {
        None => Ok(()),
        Some(algorithm) => Err(S3Error::with_message(
            S3ErrorCode::InvalidRequest,
            format!(
                "The checksum algorithm {algorithm} is not supported: use CRC32, CRC32C, CRC64NVME, SHA1 or SHA256"
            ),
        )),
    }
}

/// What a request says of its body, and whether that was so.
#[derive(Clone, Default)]
pub(crate) struct Digests(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// There will be no bytes, and maybe nobody to ask for them.
    empty: bool,
    expected: Option<Expected>,
    refused: Option<S3Error>,
}

struct Expected {
    hashes: Hashes,
    content_md5: Option<String>,
    checksum: Option<String>,
    sha256: Option<Vec<u8>>,
}

impl Digests {
    /// From here on the body must be what `headers` say, if the operation takes a document.
    pub(crate) fn expect(&self, operation: &str, headers: &HeaderMap) -> S3Result<()> {
        if !DOCUMENTS.contains(&operation) {
            return Ok(());
        }
        let said = match operation {
            // Here they are said of the object.
            "CompleteMultipartUpload" => None,
            _ => checksum_in(headers)?,
        };
        let (algorithm, checksum) = said.unzip();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let expected = Expected {
            hashes: Hashes::new(algorithm.unwrap_or_default(), true),
            content_md5: text("content-md5").map(str::to_owned),
            checksum,
            sha256: text("x-amz-content-sha256")
                .and_then(|hex| hex_simd::decode_to_vec(hex).ok())
                .filter(|digest| digest.len() == 32),
        };
        let mut state = self.0.lock();
        if state.empty {
            return expected.verify();
        }
        state.expected = Some(expected);
        Ok(())
    }

    /// Why the body was not let through.
    pub(crate) fn refused(&self) -> Option<S3Error> {
        self.0.lock().refused.take()
    }

    fn update(&self, bytes: &[u8]) {
        if let Some(expected) = &mut self.0.lock().expected {
            expected.hashes.update(bytes);
        }
    }

    /// Whether the body, now whole, may arrive.
    fn agree(&self) -> bool {
        let mut state = self.0.lock();
        match state.expected.take().map(Expected::verify) {
            None | Some(Ok(())) => true,
            Some(Err(error)) => {
                state.refused = Some(error);
                false
            }
        }
    }
}

impl Expected {
    fn verify(self) -> S3Result<()> {
        let hashed = self.hashes.finish();
        if let Some(sha256) = self.sha256
            && hashed.sha256.is_none_or(|computed| sha256 != computed)
        {
            return Err(error::payload_mismatch());
        }
        check_body(
            &hashed,
            self.content_md5.as_deref(),
            self.checksum.as_deref(),
        )
    }
}

/// A body on its way to `s3s`.
pub(crate) struct Checked {
    body: Body,
    digests: Digests,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    pieces: Option<Pieces>,
}

impl Checked {
    pub(crate) fn new(body: Body, headers: &HeaderMap, digests: Digests) -> Self {
        let payload = headers.get("x-amz-content-sha256");
        let left = body.size_hint().exact();
        digests.0.lock().empty = left == Some(0);
        let pieces = payload.is_some_and(|payload| payload.as_bytes().starts_with(b"STREAMING-"));
        Self {
            body,
            digests,
            left,
            pieces: pieces.then(Pieces::default),
        }
    }
}

impl http_body::Body for Checked {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        let polled = std::task::ready!(Pin::new(&mut this.body).poll_frame(task)?);
        if let Some(bytes) = polled.as_ref().and_then(Frame::data_ref) {
            this.digests.update(bytes);
            this.left = this
                .left
                .map(|left| left.saturating_sub(bytes.len() as u64));
            if let Some(pieces) = &mut this.pieces {
                pieces.read(bytes);
            }
        }
        let whole = polled.is_none() || this.left == Some(0);
        if whole && !this.digests.agree() {
            return Poll::Ready(Some(Err("the body is not what its digests say".into())));
        }
        if polled.is_none() && this.pieces.take().is_some_and(|pieces| !pieces.ended()) {
            return Poll::Ready(Some(Err(
                "the body ended before its last, empty chunk".into()
            )));
        }
        Poll::Ready(polled.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// After the bytes of a piece comes `\r\n`.
const LINE_END: u64 = 2;

/// The framing of `aws-chunked`, read as far as it says where the pieces end: each is its size in
/// hexadecimal, maybe `;` and its signature, a line's end, its bytes, a line's end.
#[derive(Default)]
struct Pieces {
    at: At,
    /// Of a piece whose line is read; what is to come of one whose bytes are.
    size: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    Bytes,
    /// Past the line of an empty piece.
    End,
}

impl Pieces {
    fn read(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.at {
                At::End => return,
                At::Bytes => {
                    let taken = usize::try_from(self.size)
                        .map_or(bytes.len(), |size| size.min(bytes.len()));
                    self.size -= taken as u64;
                    bytes = &bytes[taken..];
                    if self.size == 0 {
                        self.at = At::Size;
                    }
                    continue;
                }
                At::Size | At::Extension if first == b'\n' => {
                    self.at = if self.size == 0 { At::End } else { At::Bytes };
                    self.size = self.size.saturating_add(LINE_END);
                }
                At::Size => match char::from(first).to_digit(16) {
                    Some(digit) => self.size = self.size << 4 | u64::from(digit),
                    None => self.at = At::Extension,
                },
                At::Extension => {}
            }
            bytes = rest;
        }
    }

    fn ended(&self) -> bool {
        self.at == At::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_an_empty_one_however_they_are_cut() {
        let body = b"5;chunk-signature=0\r\n0\r\n\r\n\r\n10\r\n0123456789abcdef\r\n0;chunk-signature=0\r\n\r\n";
        let ended = |bytes: &[u8], step: usize| {
            let mut pieces = Pieces::default();
            bytes.chunks(step).for_each(|bytes| pieces.read(bytes));
            pieces.ended()
        };
        for step in [1, 2, 7, body.len()] {
            assert!(ended(body, step), "{step}");
            assert!(ended(&body[..body.len() - 2], step), "its own end may lack");
            for length in 0..body.len() - 2 {
                assert!(!ended(&body[..length], step), "{length} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_checksum_that_nobody_would_verify_is_refused_by_name() {
        let refused = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            known_checksums(&headers).err()
        };
        for (name, value) in [
            ("x-amz-checksum-md5", "AAAA"),
            ("x-amz-checksum-sha512", "AAAA"),
            (
                "x-amz-trailer",
                "x-amz-checksum-crc32, X-Amz-Checksum-XXHash64",
            ),
            ("x-amz-sdk-checksum-algorithm", "SHA512"),
            ("x-amz-checksum-algorithm", "MD5"),
        ] {
            let error = refused(name, value).unwrap();
            assert_eq!(error.code(), &S3ErrorCode::InvalidRequest, "{name}");
            assert!(error.message().unwrap().contains("CRC64NVME"), "{error:?}");
        }
        for (name, value) in [
            ("x-amz-checksum-crc64nvme", "AAAA"),
            ("x-amz-checksum-mode", "ENABLED"),
            ("x-amz-checksum-type", "COMPOSITE"),
            ("x-amz-trailer", "x-amz-checksum-sha256"),
            ("x-amz-sdk-checksum-algorithm", "crc32"),
            ("x-amz-meta-checksum-md5", "mine"),
        ] {
            assert!(refused(name, value).is_none(), "{name}: {value}");
        }
    }
}

//! The configuration that a bucket is made with, as it came: `s3s` does not read its tags.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::Method;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use s3s::dto::Tagging;
use s3s::xml::{DeError, DeResult, Deserializer};

/// The largest one.
const MOST_BYTES: u64 = 64 << 10;

/// How deep its elements may be nested.
const DEEPEST: usize = 16;

/// What has been read of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document(Arc<Mutex<Vec<u8>>>);

impl Document {
    /// Keeps what is read of the request, if it may be one that makes a bucket.
    pub(crate) fn keep(request: Request) -> Request {
        let length = request.body().size_hint().upper();
        let path = request.uri().path().trim_matches('/');
        if *request.method() != Method::PUT
            || path.contains('/')
            || !length.is_some_and(|length| (1..=MOST_BYTES).contains(&length))
        {
            return request;
        }
        let document = Self::default();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(document.clone());
        Request::from_parts(parts, Body::new(Kept { body, document }))
    }

    /// The tags of the bucket.
    pub(crate) fn tags(&self) -> Option<Tagging> {
        let text = self.0.lock();
        let mut tags = None;
        let mut xml = Deserializer::new(&text);
        xml.named_element("CreateBucketConfiguration", |xml| {
            xml.for_each_element(|xml, name| {
                if name == b"Tags" {
                    tags = Some(xml.list_content("Tag")?);
                    return Ok(());
                }
                skip(xml, DEEPEST)
            })
        })
        .ok()?;
        tags.map(|tag_set| Tagging { tag_set })
    }
}

/// Skips what is in an element, which a stranger may have nested to any depth.
fn skip(xml: &mut Deserializer<'_>, deeper: usize) -> DeResult {
    let deeper = deeper.checked_sub(1).ok_or(DeError::InvalidContent)?;
    xml.for_each_element(|xml, _| skip(xml, deeper))
}

struct Kept {
    body: Body,
    document: Document,
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(task)?);
        if let Some(bytes) = polled.as_ref().and_then(Frame::data_ref) {
            self.document.0.lock().extend_from_slice(bytes);
        }
        Poll::Ready(polled.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

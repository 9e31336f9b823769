//! What the data plane and the blob store say, as S3 says it: one `match` for each, without a rest.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use leadline_kv::KvError;
use leadline_kv::blobs::BlobError;
use leadline_raft::Ended;
use s3s::{S3Error, S3ErrorCode};

use crate::operation::{Refusal, Refused};
use crate::rows::ObjectRow;

/// How long a client should wait where nothing says how long.
const RETRY_AFTER_S: u64 = 1;

fn retryable(code: S3ErrorCode, text: String, retry_after_ms: u64) -> S3Error {
    let mut error = S3Error::with_message(code, text);
    error.set_status_code(StatusCode::SERVICE_UNAVAILABLE);
    let mut headers = HeaderMap::new();
    headers.insert(
        header::RETRY_AFTER,
        HeaderValue::from(retry_after_ms.div_ceil(1000).max(RETRY_AFTER_S)),
    );
    error.set_headers(headers);
    error
}

/// A code that `s3s` does not list.
pub(crate) fn custom(code: &'static str, status: StatusCode, text: impl Into<String>) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), text.into());
    error.set_status_code(status);
    error
}

/// The body is not the one that was signed.
pub(crate) fn payload_mismatch() -> S3Error {
    custom(
        "XAmzContentSHA256Mismatch",
        StatusCode::BAD_REQUEST,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    )
}

/// DESIGN: errors of the data plane over HTTP.
pub(crate) fn of_kv(error: &KvError) -> S3Error {
    let text = error.to_string();
    match error {
        KvError::NoLeader { .. } | KvError::Stopping => {
            retryable(S3ErrorCode::ServiceUnavailable, text, 0)
        }
        KvError::Overloaded { retry_after_ms, .. } => {
            retryable(S3ErrorCode::SlowDown, text, *retry_after_ms)
        }
        KvError::NotApplied(ended) => of_ended(*ended),
        KvError::Unknown(_) => S3Error::with_message(
            S3ErrorCode::InternalError,
            format!("The outcome is unknown: {text}. Read before you write again."),
        ),
        KvError::Invalid(_) => S3Error::with_message(S3ErrorCode::InvalidRequest, text),
        KvError::CrossShard | KvError::Storage(_) => {
            S3Error::with_message(S3ErrorCode::InternalError, text)
        }
    }
}

pub(crate) fn of_blob(error: BlobError) -> S3Error {
    of_kv(&KvError::from(error))
}

/// A request that ended before anything was applied.
pub(crate) fn of_ended(ended: Ended) -> S3Error {
    match ended {
        Ended::Deadline => retryable(
            S3ErrorCode::RequestTimeout,
            "Not applied: the request's deadline passed.".to_owned(),
            0,
        ),
        // Nobody reads this.
        Ended::Cancelled => retryable(
            S3ErrorCode::ServiceUnavailable,
            "Not applied: the client is gone.".to_owned(),
            0,
        ),
    }
}

/// 503 at once: a budget is spent. The body, if there is one, is not read, so the connection is of
/// no more use, and says so.
pub(crate) fn slow_down(what: &str, retry_after_ms: u64) -> S3Error {
    let mut error = retryable(S3ErrorCode::SlowDown, what.to_owned(), retry_after_ms);
    let mut headers = error.headers().cloned().unwrap_or_default();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    error.set_headers(headers);
    error
}

/// What a version is called in headers of an error about it.
fn version_headers(found: &ObjectRow) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    if found.delete_marker {
        insert("x-amz-delete-marker", "true".to_owned());
        insert("x-amz-version-id", found.version_id());
    } else {
        insert("etag", format!("\"{}\"", found.etag));
        insert("last-modified", http_date(found.modified_ms));
        if !found.null {
            insert("x-amz-version-id", found.version_id());
        }
    }
    headers
}

pub(crate) fn http_date(millis: u64) -> String {
    let mut text = Vec::new();
    timestamp(millis)
        .format(s3s::dto::TimestampFormat::HttpDate, &mut text)
        .ok();
    String::from_utf8(text).unwrap_or_default()
}

/// Milliseconds since the epoch as `s3s` has times.
pub(crate) fn timestamp(millis: u64) -> s3s::dto::Timestamp {
    let nanos = i128::from(millis) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .into()
}

/// Which configuration was asked for, to say that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Policy,
    Cors,
    Tags,
    Lifecycle,
    Other,
}

/// Why an operation did nothing, as S3 says it.
pub(crate) fn of_refused(refused: &Refused, asked: Asked) -> S3Error {
    let code = match refused.why() {
        Refusal::Unspecified => S3ErrorCode::InternalError,
        Refusal::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        Refusal::NoSuchKey => S3ErrorCode::NoSuchKey,
        Refusal::NoSuchVersion => S3ErrorCode::NoSuchVersion,
        Refusal::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        Refusal::BucketAlreadyOwnedByYou => S3ErrorCode::BucketAlreadyOwnedByYou,
        Refusal::BucketAlreadyExists => S3ErrorCode::BucketAlreadyExists,
        Refusal::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
        Refusal::PreconditionFailed => S3ErrorCode::PreconditionFailed,
        Refusal::NotModified => S3ErrorCode::NotModified,
        Refusal::InvalidPart => S3ErrorCode::InvalidPart,
        Refusal::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        Refusal::EntityTooSmall => S3ErrorCode::EntityTooSmall,
        Refusal::AccessDenied => S3ErrorCode::AccessDenied,
        Refusal::DeleteMarker => S3ErrorCode::MethodNotAllowed,
        Refusal::InvalidRange => S3ErrorCode::InvalidRange,
        Refusal::NoSuchConfiguration => match asked {
            Asked::Policy => S3ErrorCode::NoSuchBucketPolicy,
            Asked::Cors => S3ErrorCode::NoSuchCORSConfiguration,
            Asked::Tags => S3ErrorCode::NoSuchTagSet,
            Asked::Lifecycle => S3ErrorCode::NoSuchLifecycleConfiguration,
            Asked::Other => S3ErrorCode::NoSuchKey,
        },
        Refusal::BadDigest => S3ErrorCode::BadDigest,
        Refusal::InvalidRequest => S3ErrorCode::InvalidRequest,
        Refusal::InvalidBucketState => S3ErrorCode::InvalidBucketState,
        Refusal::KeyExists => S3ErrorCode::InvalidRequest,
        Refusal::InvalidPartNumber => S3ErrorCode::Custom("InvalidPartNumber".into()),
    };
    let text = if refused.text.is_empty() {
        explanation(refused.why()).to_owned()
    } else {
        refused.text.clone()
    };
    let not_modified = code == S3ErrorCode::NotModified;
    let mut error = S3Error::with_message(code, text);
    if not_modified {
        error.set_status_code(StatusCode::NOT_MODIFIED);
    }
    if refused.why() == Refusal::InvalidPartNumber {
        error.set_status_code(StatusCode::RANGE_NOT_SATISFIABLE);
    }
    if let Some(found) = &refused.found {
        let mut headers = version_headers(found);
        if refused.why() == Refusal::DeleteMarker {
            headers.insert(header::ALLOW, HeaderValue::from_static("DELETE"));
            if let Ok(modified) = HeaderValue::try_from(http_date(found.modified_ms)) {
                headers.insert(header::LAST_MODIFIED, modified);
            }
        }
        error.set_headers(headers);
    }
    error
}

fn explanation(why: Refusal) -> &'static str {
    match why {
        Refusal::NoSuchBucket => "The specified bucket does not exist",
        Refusal::NoSuchKey => "The specified key does not exist.",
        Refusal::NoSuchVersion => "The specified version does not exist.",
        Refusal::NoSuchUpload => "The specified upload does not exist, was aborted or completed.",
        Refusal::BucketAlreadyOwnedByYou => "You own a bucket of this name already.",
        Refusal::BucketAlreadyExists => "The bucket name is taken.",
        Refusal::BucketNotEmpty => "The bucket you tried to delete is not empty",
        Refusal::PreconditionFailed => {
            "At least one of the pre-conditions you specified did not hold"
        }
        Refusal::NotModified => "Not modified",
        Refusal::InvalidPart => "A part was not found, or its ETag does not match",
        Refusal::InvalidPartOrder => "The list of parts was not in ascending order",
        Refusal::EntityTooSmall => "A part other than the last is smaller than 5 MiB",
        Refusal::AccessDenied => "Access Denied",
        Refusal::DeleteMarker => "The version is a delete marker",
        Refusal::InvalidRange => "The requested range is not satisfiable",
        Refusal::NoSuchConfiguration => "The bucket has no such configuration",
        Refusal::BadDigest => "The checksum you specified did not match what was received",
        Refusal::InvalidRequest => "Invalid request",
        Refusal::InvalidBucketState => "Not valid for the state of the bucket",
        Refusal::KeyExists => "The access key exists",
        Refusal::InvalidPartNumber => "The requested part number is not satisfiable",
        Refusal::Unspecified => "Internal error",
    }
}

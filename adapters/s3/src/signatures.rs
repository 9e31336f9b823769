//! Signatures that AWS reads otherwise than `s3s`.

use axum::body::Body;
use axum::extract::Request;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, Method, Request as HttpRequest, StatusCode, Uri};
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{S3Request, S3Response, S3Result};

use crate::error;
use crate::rewrite::pairs;

/// The longest life of a presigned URL: a week.
const LONGEST_S: u64 = 7 * 24 * 3600;

/// Refuses a presigned URL that would live too long.
pub(crate) fn check_expiry(uri: &Uri) -> S3Result<()> {
    let too_long = pairs(uri).any(|(name, value)| {
        name == "X-Amz-Expires" && value.parse::<u64>().is_ok_and(|life_s| life_s > LONGEST_S)
    });
    if too_long {
        return Err(error::custom(
            "AuthorizationQueryParametersError",
            StatusCode::BAD_REQUEST,
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds",
        ));
    }
    Ok(())
}

/// Says that a signature holds, and does nothing else.
pub(crate) struct Verify;

#[async_trait::async_trait]
impl S3Route for Verify {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        true
    }

    async fn call(&self, _: S3Request<s3s::Body>) -> S3Result<S3Response<s3s::Body>> {
        Ok(S3Response::new(s3s::Body::empty()))
    }
}

/// Signatures of the second version name a bucket `/bucket/`, whether or not its request is for
/// `/bucket`; those that name it as it is asked for hold too. Gives the request the path that is
/// signed; to `s3s` both are the bucket.
pub(crate) async fn end_bucket_with_slash(verifier: &S3Service, request: &mut Request<Body>) {
    let uri = request.uri();
    let header = request.headers().get(AUTHORIZATION);
    let second = header.is_some_and(|signed| signed.as_bytes().starts_with(b"AWS "))
        || uri
            .query()
            .is_some_and(|query| query.contains("Signature="))
            && uri
                .query()
                .is_some_and(|query| query.contains("AWSAccessKeyId="));
    let bucket = uri.path().trim_start_matches('/');
    if !second || bucket.is_empty() || bucket.contains('/') {
        return;
    }
    let query = uri
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    let Ok(with_slash) = format!("/{bucket}/{query}").parse::<Uri>() else {
        return;
    };
    let mut probe = HttpRequest::new(s3s::Body::empty());
    *probe.method_mut() = request.method().clone();
    *probe.uri_mut() = with_slash.clone();
    *probe.headers_mut() = request.headers().clone();
    let verified = verifier.call(probe).await;
    if verified.is_ok_and(|answer| answer.status() == StatusCode::OK) {
        *request.uri_mut() = with_slash;
    }
}

//! What a signature covers.
//!
//! `s3s` verifies a signature over the headers that the request lists. That the list leaves out no header
//! that S3 obeys is seen here: whoever was given a presigned URL could add one and have, in the name of the
//! signer, another object copied, or the upload published.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::rewrite::pairs;

/// Refuses headers of S3's own that a V4 signature leaves out. One of V2 covers them all.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap) -> S3Result<()> {
    let Some(signed) = signed_headers(uri, headers) else {
        return Ok(());
    };
    let covered = |name: &str| {
        // Clients add the hash to presigned URLs, and the body is held against it.
        name == "x-amz-content-sha256"
            || signed.split(';').any(|listed| listed == name)
            // The query is signed as a whole, and a header may come from there.
            || pairs(uri).any(|(parameter, value)| {
                let same = |header: &HeaderValue| header.as_bytes() == value.as_bytes();
                parameter.eq_ignore_ascii_case(name) && headers.get_all(name).iter().all(same)
            })
    };
    let left_out = headers
        .keys()
        .map(HeaderName::as_str)
        .find(|name| name.starts_with("x-amz-") && !covered(name));
    match left_out {
        None => Ok(()),
        Some(name) => Err(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            format!("There were headers present in the request which were not signed: {name}"),
        )),
    }
}

/// The names that a V4 signature lists: of a presigned URL, else of the `Authorization` header.
fn signed_headers(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let presigned = pairs(uri).find(|(name, _)| name == "X-Amz-SignedHeaders");
    presigned.map(|(_, listed)| listed).or_else(|| {
        // Whatever else it says: `s3s` takes any name of an algorithm, which nothing signs.
        let authorization = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (_, rest) = std::str::from_utf8(authorization)
            .ok()?
            .split_once("SignedHeaders=")?;
        Some(rest.split(',').next().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_found_wherever_s3s_would_find_it() {
        let signed = |uri: &'static str, authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            signed_headers(&Uri::from_static(uri), &headers)
        };
        let header = "AWS4-HMAC-SHA256 Credential=K/d/r/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0";
        for authorization in [header, &header.replace("AWS4-HMAC-SHA256", "\u{e9}")] {
            assert_eq!(signed("/b", authorization).unwrap(), "host;x-amz-date");
        }
        assert_eq!(
            signed("/b?X%2DAmz-SignedHeaders=host%3Bx-amz-acl", header).unwrap(),
            "host;x-amz-acl"
        );
        assert_eq!(signed("/b?X-Amz-SignedHeaders", header).unwrap(), "");
        assert_eq!(signed("/b", "AWS key:signature"), None, "V2 signs all");
    }

    #[test]
    fn a_header_that_repeats_the_signed_query_is_signed() {
        let checked = |acls: &[&str]| {
            let mut headers = HeaderMap::new();
            for acl in acls {
                headers.append("x-amz-acl", acl.parse().unwrap());
            }
            let uri = "/b/k?X-Amz-SignedHeaders=host&X-Amz-Acl=public%2Dread";
            check(&Uri::from_static(uri), &headers).is_ok()
        };
        assert!(checked(&["public-read"]));
        assert!(!checked(&["private"]));
        assert!(!checked(&["public-read", "private"]));
    }
}

//! Which query parameters a request may have.
//!
//! `s3s` takes the operation from the parameters it knows and ignores all others, so that what AWS calls by
//! a newer name would be the plain operation here: `DELETE /b?metadataConfiguration` would delete the
//! bucket. Who names a sub-resource means it, so it is served or refused.

use http::Method;
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::service::unescape;

/// What AWS knows as something else than the bucket or the object itself.
const SUBRESOURCES: [&str; 40] = [
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versioning",
    "versions",
    "website",
];

/// Parameters that clients send without a value, too; `response-` and `x-amz-` begin others.
const PLAIN: [&str; 21] = [
    "bucket-region",
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "key-marker",
    "list-type",
    "marker",
    "max-buckets",
    "max-keys",
    "max-parts",
    "max-uploads",
    "part-number-marker",
    "partNumber",
    "prefix",
    "start-after",
    "timeout",
    "upload-id-marker",
    "version-id-marker",
    "versionId",
    "x-id",
];

/// The sub-resource that an operation is about, of those that are served.
fn served(operation: &str) -> Option<&'static str> {
    Some(match operation {
        "GetBucketAcl" | "PutBucketAcl" | "GetObjectAcl" | "PutObjectAcl" => "acl",
        "GetBucketCors" | "PutBucketCors" | "DeleteBucketCors" => "cors",
        "GetBucketLifecycleConfiguration"
        | "PutBucketLifecycleConfiguration"
        | "DeleteBucketLifecycle" => "lifecycle",
        "GetBucketLocation" => "location",
        "GetBucketPolicy" | "PutBucketPolicy" | "DeleteBucketPolicy" => "policy",
        "GetBucketPolicyStatus" => "policyStatus",
        "GetBucketTagging"
        | "PutBucketTagging"
        | "DeleteBucketTagging"
        | "GetObjectTagging"
        | "PutObjectTagging"
        | "DeleteObjectTagging" => "tagging",
        "GetBucketVersioning" | "PutBucketVersioning" => "versioning",
        "GetObjectAttributes" => "attributes",
        "DeleteObjects" => "delete",
        "ListObjectVersions" => "versions",
        "ListMultipartUploads" | "CreateMultipartUpload" => "uploads",
        "UploadPart"
        | "UploadPartCopy"
        | "ListParts"
        | "CompleteMultipartUpload"
        | "AbortMultipartUpload" => "uploadId",
        _ => return None,
    })
}

/// Refuses a query that asks for something else than `operation` does.
pub(crate) fn check(
    operation: &str,
    method: &Method,
    path: &S3Path,
    query: Option<&str>,
) -> S3Result<()> {
    let served = served(operation);
    let object = matches!(path, S3Path::Object { .. });
    // Fonts and cache busters come as `key?name`: harmless where nothing but the object can be meant.
    let lenient = object && matches!(*method, Method::GET | Method::HEAD);
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = unescape(name).unwrap_or_else(|| name.to_owned());
        if matches!(operation, "PutObject" | "CopyObject")
            && matches!(&*name, "uploadId" | "partNumber")
        {
            return Err(s3_error!(
                InvalidArgument,
                "A part of an upload is put with both uploadId and partNumber"
            ));
        }
        let asks_for_more = if SUBRESOURCES.contains(&&*name) {
            served != Some(&name)
        } else {
            value.is_empty() && !name.is_empty() && !lenient && !is_plain(&name)
        };
        if asks_for_more {
            return Err(S3Error::with_message(
                S3ErrorCode::NotImplemented,
                format!("{operation} with ?{name} is not implemented (docs/s3.md)"),
            ));
        }
    }
    Ok(())
}

fn is_plain(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    PLAIN.contains(&name) || lower.starts_with("x-amz-") || lower.starts_with("response-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_refused_and_what_means_nothing_is_not() {
        let bucket = S3Path::bucket("b");
        let object = S3Path::object("b", "k");
        let refused = |operation, method: Method, path, query| {
            let checked = check(operation, &method, path, Some(query));
            checked.err().map(|error| error.code().as_str().to_owned())
        };
        let not_implemented = Some("NotImplemented".to_owned());
        for (operation, method, path, query) in [
            (
                "DeleteBucket",
                Method::DELETE,
                &bucket,
                "metadataConfiguration",
            ),
            ("DeleteBucket", Method::DELETE, &bucket, "acl"),
            ("DeleteBucket", Method::DELETE, &bucket, "unheard-of="),
            ("ListObjects", Method::GET, &bucket, "abac"),
            ("ListObjectsV2", Method::GET, &bucket, "list-type=2&abac="),
            ("PutObject", Method::PUT, &object, "encryption"),
            ("PutObject", Method::PUT, &object, "encryption=x"),
            ("PutObject", Method::PUT, &object, "renam%65Object"),
            ("DeleteObject", Method::DELETE, &object, "acl&versionId=1"),
            ("GetObject", Method::GET, &object, "versionId=1&torrent"),
            ("GetBucketAcl", Method::GET, &bucket, "acl&policy"),
        ] {
            let seen = refused(operation, method, path, query);
            assert_eq!(seen, not_implemented, "{operation} {query}");
        }
        for query in ["uploadId=1", "partNumber=1", "partNumber"] {
            let seen = refused("PutObject", Method::PUT, &object, query);
            assert_eq!(seen.as_deref(), Some("InvalidArgument"), "{query}");
        }
        for (operation, method, path, query) in [
            (
                "ListObjects",
                Method::GET,
                &bucket,
                "prefix=&marker=&delimiter",
            ),
            (
                "ListObjectsV2",
                Method::GET,
                &bucket,
                "list-type=2&fetch-owner=&x-id=ListObjectsV2",
            ),
            (
                "ListObjectVersions",
                Method::GET,
                &bucket,
                "versions&key-marker=",
            ),
            ("GetObject", Method::GET, &object, "iefix"),
            (
                "GetObject",
                Method::GET,
                &object,
                "v=1&response-content-type=a&partNumber=1",
            ),
            ("PutObject", Method::PUT, &object, ""),
            (
                "PutObject",
                Method::PUT,
                &object,
                "foo=bar&X-Amz-Security-Token=",
            ),
            (
                "UploadPart",
                Method::PUT,
                &object,
                "partNumber=1&uploadId=2",
            ),
            ("DeleteObjects", Method::POST, &bucket, "delete="),
        ] {
            let seen = refused(operation, method, path, query);
            assert_eq!(seen, None, "{operation} {query}");
        }
    }
}

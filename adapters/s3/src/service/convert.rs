//! Between `s3s`' types and what the rows have.

use http::HeaderMap;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::error::timestamp;
use crate::hashes;
use crate::rows::{Acl, Algorithm, ChecksumRow, ObjectRow, Pair, Versioning};

/// The most bytes of user metadata.
const METADATA_BYTES: usize = 2 << 10;
const MOST_TAGS: usize = 10;
const MOST_BUCKET_TAGS: usize = 50;

/// What is asked for in headers and is not there: refused by name rather than ignored, since
/// whoever asks for encryption or a lock relies on it.
pub(crate) fn unsupported(headers: &HeaderMap) -> S3Result<()> {
    for name in headers.keys() {
        let name = name.as_str();
        let what = if name.starts_with("x-amz-server-side-encryption")
            || name.starts_with("x-amz-copy-source-server-side-encryption")
        {
            "server-side encryption"
        } else if name.starts_with("x-amz-object-lock")
            || (name == "x-amz-bucket-object-lock-enabled"
                && headers.get(name).is_some_and(|value| value != "false"))
        {
            "object lock"
        } else if name == "x-amz-write-offset-bytes" {
            "appending to objects"
        } else if name == "x-amz-mfa" {
            "MFA"
        } else if name.starts_with("x-amz-grant-") {
            "ACLs other than the canned ones"
        } else {
            continue;
        };
        return Err(S3Error::with_message(
            S3ErrorCode::NotImplemented,
            format!("{name}: {what} is not implemented (docs/s3.md)"),
        ));
    }
    Ok(())
}

pub(super) fn etag(text: &str) -> ETag {
    ETag::Strong(text.to_owned())
}

/// As rows and operations have conditions: without quotes, `*` for any, empty for none.
pub(super) fn condition(condition: Option<&ETagCondition>) -> String {
    match condition {
        None => String::new(),
        Some(ETagCondition::Any) => "*".to_owned(),
        Some(ETagCondition::ETag(etag)) => etag.value().to_owned(),
    }
}

/// Whole seconds since the epoch, as HTTP dates have.
pub(super) fn seconds(time: &Timestamp) -> u64 {
    let time: time::OffsetDateTime = time.clone().into();
    u64::try_from(time.unix_timestamp()).unwrap_or(0)
}

pub(super) fn metadata_in(metadata: Option<Metadata>) -> S3Result<Vec<Pair>> {
    let mut pairs: Vec<_> = metadata
        .into_iter()
        .flatten()
        .map(|(name, value)| Pair { name, value })
        .collect();
    pairs.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes: usize = pairs
        .iter()
        .map(|pair| pair.name.len() + pair.value.len())
        .sum();
    if bytes > METADATA_BYTES {
        return Err(s3_error!(MetadataTooLarge));
    }
    Ok(pairs)
}

pub(super) fn metadata_out(object: &ObjectRow) -> Option<Metadata> {
    if object.metadata.is_empty() {
        return None;
    }
    let pairs = object.metadata.iter();
    Some(
        pairs
            .map(|pair| (pair.name.clone(), pair.value.clone()))
            .collect(),
    )
}

pub(super) fn acl_in(acl: Option<&str>) -> S3Result<Acl> {
    match acl {
        None | Some("private" | "bucket-owner-full-control" | "bucket-owner-read") => {
            Ok(Acl::Private)
        }
        Some("public-read") => Ok(Acl::PublicRead),
        Some("public-read-write") => Ok(Acl::PublicReadWrite),
        Some("authenticated-read") => Ok(Acl::AuthenticatedRead),
        Some(other) => Err(S3Error::with_message(
            S3ErrorCode::InvalidArgument,
            format!("{other} is not a canned ACL that this store has (docs/s3.md)"),
        )),
    }
}

/// What a write does besides: a policy may speak of an object's ACL and of its tags.
pub(super) fn also(acl: Option<&ObjectCannedACL>, tags: bool) -> Vec<String> {
    let acl = acl.is_some().then(|| "s3:PutObjectAcl".to_owned());
    let tags = tags.then(|| "s3:PutObjectTagging".to_owned());
    acl.into_iter().chain(tags).collect()
}

const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
const AUTHENTICATED_USERS: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";

/// How a request to set an ACL says it.
pub(super) enum AclSaid {
    Canned(Acl),
    Grants(Grants),
}

/// An ACL comes as a header or as a document.
pub(super) fn acl_said(
    canned: Option<&str>,
    document: Option<AccessControlPolicy>,
) -> S3Result<AclSaid> {
    match (canned, document) {
        (Some(canned), None) => acl_in(Some(canned)).map(AclSaid::Canned),
        (None, Some(document)) => document.grants.map(AclSaid::Grants).ok_or_else(|| {
            s3_error!(
                MalformedACLError,
                "an AccessControlPolicy has an AccessControlList"
            )
        }),
        (None, None) => Err(s3_error!(
            MissingSecurityHeader,
            "an ACL comes as x-amz-acl or as an AccessControlPolicy document"
        )),
        (Some(_), Some(_)) => Err(s3_error!(
            UnexpectedContent,
            "an ACL comes as x-amz-acl or as an AccessControlPolicy document, not as both"
        )),
    }
}

/// The canned ACL that a list of grants is, where it is one. `owner` is the bucket's.
pub(super) fn acl_of_grants(grants: Grants, owner: &str) -> S3Result<Acl> {
    let mut read_all = false;
    let mut write_all = false;
    let mut read_authenticated = false;
    for grant in grants {
        let Some(grantee) = &grant.grantee else {
            return Err(s3_error!(MalformedACLError, "a grant names its grantee"));
        };
        let permission = grant.permission.as_ref().map_or("", Permission::as_str);
        match (grantee.uri.as_deref(), permission) {
            (None, _) if grantee.id.as_deref() == Some(owner) => {}
            (Some(ALL_USERS), "READ") => read_all = true,
            (Some(ALL_USERS), "WRITE") => write_all = true,
            (Some(AUTHENTICATED_USERS), "READ") => read_authenticated = true,
            (uri, _) => {
                let ids = [uri, grantee.id.as_deref(), grantee.email_address.as_deref()];
                let named = ids.into_iter().flatten().next().unwrap_or("nobody");
                return Err(S3Error::with_message(
                    S3ErrorCode::NotImplemented,
                    format!(
                        "a grant of {permission} to {named} is not implemented: an ACL grants to the owner {owner}, READ or WRITE to AllUsers, READ to AuthenticatedUsers; for others use a bucket policy (docs/s3.md)"
                    ),
                ));
            }
        }
    }
    Ok(match (read_all, write_all, read_authenticated) {
        (true, true, _) => Acl::PublicReadWrite,
        (true, false, _) => Acl::PublicRead,
        (false, true, _) => {
            return Err(s3_error!(NotImplemented, "no canned ACL is write-only"));
        }
        (false, false, true) => Acl::AuthenticatedRead,
        (false, false, false) => Acl::Private,
    })
}

pub(super) fn owner(id: &str) -> Owner {
    Owner {
        display_name: Some(id.to_owned()),
        id: Some(id.to_owned()),
    }
}

pub(super) fn grants(acl: Acl, owner: &str) -> Grants {
    let group = |uri: &str, permission: &'static str| Grant {
        grantee: Some(Grantee {
            display_name: None,
            email_address: None,
            id: None,
            type_: Type::from_static(Type::GROUP),
            uri: Some(uri.to_owned()),
        }),
        permission: Some(Permission::from_static(permission)),
    };
    let mut grants = vec![Grant {
        grantee: Some(Grantee {
            display_name: Some(owner.to_owned()),
            email_address: None,
            id: Some(owner.to_owned()),
            type_: Type::from_static(Type::CANONICAL_USER),
            uri: None,
        }),
        permission: Some(Permission::from_static(Permission::FULL_CONTROL)),
    }];
    match acl {
        Acl::Private => {}
        Acl::PublicRead => grants.push(group(ALL_USERS, Permission::READ)),
        Acl::PublicReadWrite => {
            grants.push(group(ALL_USERS, Permission::READ));
            grants.push(group(ALL_USERS, Permission::WRITE));
        }
        Acl::AuthenticatedRead => grants.push(group(AUTHENTICATED_USERS, Permission::READ)),
    }
    grants
}

fn is_in_tags(letter: char) -> bool {
    letter.is_alphanumeric()
        || (letter.is_whitespace() && !letter.is_control())
        || "+-=._:/@".contains(letter)
}

fn checked_tags(pairs: Vec<Pair>, most: usize) -> S3Result<Vec<Pair>> {
    if pairs.len() > most {
        return Err(S3Error::with_message(
            S3ErrorCode::InvalidTag,
            format!("there may be at most {most} tags"),
        ));
    }
    for (at, pair) in pairs.iter().enumerate() {
        if pair.name.is_empty()
            || pair.name.chars().count() > 128
            || pair.value.chars().count() > 256
        {
            return Err(s3_error!(
                InvalidTag,
                "a tag's key has 1 to 128 characters, its value at most 256"
            ));
        }
        if pair.name.starts_with("aws:") {
            return Err(s3_error!(
                InvalidTag,
                "System tags cannot be added/updated by requester"
            ));
        }
        if !pair.name.chars().chain(pair.value.chars()).all(is_in_tags) {
            return Err(s3_error!(
                InvalidTag,
                "tags have letters, digits, spaces and + - = . _ : / @"
            ));
        }
        if pairs[..at].iter().any(|before| before.name == pair.name) {
            return Err(s3_error!(InvalidTag, "a tag's key may be there once"));
        }
    }
    Ok(pairs)
}

pub(super) fn tags_in(tagging: Tagging) -> S3Result<Vec<Pair>> {
    let pairs = tagging.tag_set.into_iter().map(|tag| Pair {
        name: tag.key.unwrap_or_default(),
        value: tag.value.unwrap_or_default(),
    });
    checked_tags(pairs.collect(), MOST_TAGS)
}

pub(super) fn check_bucket_tags(tagging: &Tagging) -> S3Result<()> {
    let pairs = tagging.tag_set.iter().map(|tag| Pair {
        name: tag.key.clone().unwrap_or_default(),
        value: tag.value.clone().unwrap_or_default(),
    });
    checked_tags(pairs.collect(), MOST_BUCKET_TAGS).map(drop)
}

pub(super) fn tags_out(tags: &[Pair]) -> TagSet {
    tags.iter()
        .map(|pair| Tag {
            key: Some(pair.name.clone()),
            value: Some(pair.value.clone()),
        })
        .collect()
}

/// `x-amz-tagging`: a query string.
pub(super) fn tags_of_header(header: Option<&str>) -> S3Result<Vec<Pair>> {
    let header = header.unwrap_or_default();
    let pairs = header
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some(Pair {
                name: unescape(name)?,
                value: unescape(value)?,
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| s3_error!(InvalidArgument, "x-amz-tagging is not a query string"))?;
    checked_tags(pairs, MOST_TAGS)
}

pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// Keys for listings with `encoding-type=url`.
pub(crate) fn escape(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' | b'/' => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

/// The checksum algorithm by its name in headers and XML.
pub(crate) fn algorithm_named(name: &str) -> Option<Algorithm> {
    Some(match name.to_ascii_uppercase().as_str() {
        "CRC32" => Algorithm::Crc32,
        "CRC32C" => Algorithm::Crc32c,
        "CRC64NVME" => Algorithm::Crc64Nvme,
        "SHA1" => Algorithm::Sha1,
        "SHA256" => Algorithm::Sha256,
        _ => return None,
    })
}

pub(super) fn algorithm_name(algorithm: Algorithm) -> Option<ChecksumAlgorithm> {
    Some(ChecksumAlgorithm::from_static(match algorithm {
        Algorithm::None => return None,
        Algorithm::Crc32 => ChecksumAlgorithm::CRC32,
        Algorithm::Crc32c => ChecksumAlgorithm::CRC32C,
        Algorithm::Crc64Nvme => ChecksumAlgorithm::CRC64NVME,
        Algorithm::Sha1 => ChecksumAlgorithm::SHA1,
        Algorithm::Sha256 => ChecksumAlgorithm::SHA256,
    }))
}

/// What a request says of its body: the algorithm, and the value if it comes before the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) algorithm: Option<Algorithm>,
    pub(super) value: Option<String>,
    /// The header that comes after the body with the value.
    pub(super) trailer: Option<&'static str>,
}

const HEADERS: [(&str, Algorithm); 5] = [
    ("x-amz-checksum-crc32", Algorithm::Crc32),
    ("x-amz-checksum-crc32c", Algorithm::Crc32c),
    ("x-amz-checksum-crc64nvme", Algorithm::Crc64Nvme),
    ("x-amz-checksum-sha1", Algorithm::Sha1),
    ("x-amz-checksum-sha256", Algorithm::Sha256),
];

/// The one checksum that the headers give a value of, if any.
pub(crate) fn checksum_in(headers: &HeaderMap) -> S3Result<Option<(Algorithm, String)>> {
    let mut given = HEADERS.into_iter().filter_map(|(name, algorithm)| {
        let value = headers.get(name)?.to_str().unwrap_or_default();
        Some((algorithm, value.to_owned()))
    });
    let first = given.next();
    if given.next().is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "Expecting a single x-amz-checksum- header"
        ));
    }
    Ok(first)
}

/// Reads what is announced: one header with a value, a trailer, or only the algorithm's name.
pub(super) fn announced(
    headers: &HeaderMap,
    fields: [Option<&String>; 5],
    named: Option<&str>,
) -> S3Result<Announced> {
    let mut announced = Announced::default();
    for ((_, algorithm), value) in HEADERS.into_iter().zip(fields) {
        if let Some(value) = value {
            if announced.value.is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "Expecting a single x-amz-checksum- header"
                ));
            }
            announced.algorithm = Some(algorithm);
            announced.value = Some(value.clone());
        }
    }
    let trailers = headers.get("x-amz-trailer").and_then(|v| v.to_str().ok());
    for trailer in trailers.unwrap_or_default().split(',') {
        let found = HEADERS
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(trailer.trim()));
        if let Some((name, algorithm)) = found {
            if announced.algorithm.is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "Expecting a single x-amz-checksum- header"
                ));
            }
            announced.algorithm = Some(algorithm);
            announced.trailer = Some(name);
        }
    }
    if announced.algorithm.is_none()
        && let Some(name) = named
    {
        announced.algorithm = Some(algorithm_named(name).ok_or_else(|| {
            s3_error!(InvalidRequest, "The algorithm type you specified in x-amz-sdk-checksum-algorithm header is invalid.")
        })?);
    }
    Ok(announced)
}

impl Announced {
    /// The value that the client says, once the body is read.
    pub(super) fn said(&self, trailers: Option<&s3s::TrailingHeaders>) -> S3Result<Option<String>> {
        if self.value.is_some() {
            return Ok(self.value.clone());
        }
        let Some(name) = self.trailer else {
            return Ok(None);
        };
        let value = trailers.and_then(|trailers| {
            trailers.read(|headers| {
                let value = headers.get(name)?;
                value.to_str().ok().map(|text| text.trim().to_owned())
            })
        });
        match value.flatten() {
            Some(value) => Ok(Some(value)),
            None => Err(crate::error::custom(
                "MalformedTrailerError",
                http::StatusCode::BAD_REQUEST,
                format!("the trailer {name} was announced and did not come"),
            )),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(Algorithm::None)
    }
}

/// A body is what its sender says it is.
pub(crate) fn check_body(
    hashed: &hashes::Hashed,
    content_md5: Option<&str>,
    said: Option<&str>,
) -> S3Result<()> {
    if let Some(md5) = content_md5 {
        let digest = hashes::from_base64(md5).filter(|digest| digest.len() == 16);
        let digest = digest.ok_or_else(|| s3_error!(InvalidDigest))?;
        if digest != hashed.md5 {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
    }
    if let Some(said) = said
        && said != hashed.checksum
    {
        return Err(s3_error!(
            BadDigest,
            "The checksum you specified did not match the calculated checksum."
        ));
    }
    Ok(())
}

pub(super) fn checksum_row(algorithm: Algorithm, value: String) -> Option<ChecksumRow> {
    (algorithm != Algorithm::None).then(|| ChecksumRow {
        algorithm: algorithm.into(),
        composite: false,
        value,
    })
}

/// A checksum by its field, as outputs have it.
pub(super) fn checksum_out(checksum: Option<&ChecksumRow>) -> Checksum {
    let mut out = Checksum::default();
    let Some(checksum) = checksum else { return out };
    let value = Some(checksum.value.clone());
    match checksum.algorithm() {
        Algorithm::None => return out,
        Algorithm::Crc32 => out.checksum_crc32 = value,
        Algorithm::Crc32c => out.checksum_crc32c = value,
        Algorithm::Crc64Nvme => out.checksum_crc64nvme = value,
        Algorithm::Sha1 => out.checksum_sha1 = value,
        Algorithm::Sha256 => out.checksum_sha256 = value,
    }
    out.checksum_type = Some(ChecksumType::from_static(if checksum.composite {
        ChecksumType::COMPOSITE
    } else {
        ChecksumType::FULL_OBJECT
    }));
    out
}

/// The version id that an answer shows: none for a bucket that never kept versions.
pub(super) fn version_out(object: &ObjectRow, versioning: Versioning) -> Option<String> {
    (versioning != Versioning::Never || !object.null).then(|| object.version_id())
}

pub(super) fn modified(object: &ObjectRow) -> Option<Timestamp> {
    // HTTP dates have whole seconds, and listings should say the same.
    Some(timestamp(object.modified_ms / 1000 * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_from_a_query_string_and_are_checked() {
        let tags = tags_of_header(Some("a=1&b%20c=d+e")).unwrap();
        assert_eq!(
            (tags[1].name.as_str(), tags[1].value.as_str()),
            ("b c", "d e")
        );
        assert!(tags_of_header(Some("a=1&a=2")).is_err());
        assert!(tags_of_header(Some("a=%4")).is_err());
    }

    #[test]
    fn a_list_of_grants_is_a_canned_acl_or_refused() {
        let to = |grantee: Grantee, permission: &'static str| Grant {
            grantee: Some(grantee),
            permission: Some(Permission::from_static(permission)),
        };
        let key = |id: &str| Grantee {
            display_name: None,
            email_address: None,
            id: Some(id.to_owned()),
            type_: Type::from_static(Type::CANONICAL_USER),
            uri: None,
        };
        let group = |uri: &str| Grantee {
            id: None,
            uri: Some(uri.to_owned()),
            ..key("")
        };
        for acl in [
            Acl::Private,
            Acl::PublicRead,
            Acl::PublicReadWrite,
            Acl::AuthenticatedRead,
        ] {
            let shown = acl_of_grants(grants(acl, "OWNER"), "OWNER");
            assert_eq!(shown.unwrap(), acl, "what is shown is taken back");
        }
        for grant in [
            to(key("OTHER"), "READ"),
            to(key("OTHER"), "FULL_CONTROL"),
            to(
                Grantee {
                    id: None,
                    ..key("")
                },
                "READ",
            ),
            to(group(ALL_USERS), "FULL_CONTROL"),
            to(group(AUTHENTICATED_USERS), "WRITE"),
            to(
                group("http://acs.amazonaws.com/groups/s3/LogDelivery"),
                "WRITE",
            ),
        ] {
            let refused = acl_of_grants(vec![grant], "OWNER").unwrap_err();
            assert_eq!(refused.code(), &S3ErrorCode::NotImplemented);
        }
        let nobody = Grant::default();
        let refused = acl_of_grants(vec![nobody], "OWNER").unwrap_err();
        assert_eq!(refused.code(), &S3ErrorCode::MalformedACLError);
    }

    #[test]
    fn encryption_and_locks_are_refused_by_name() {
        let mut headers = HeaderMap::new();
        assert!(unsupported(&headers).is_ok());
        headers.insert("x-amz-server-side-encryption", "AES256".parse().unwrap());
        let error = unsupported(&headers).unwrap_err();
        assert_eq!(error.code(), &S3ErrorCode::NotImplemented);
        assert!(error.message().unwrap().contains("encryption"));
    }

    #[test]
    fn a_trailer_names_the_algorithm_and_two_values_are_one_too_many() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-trailer", "x-amz-checksum-crc32".parse().unwrap());
        let found = announced(&headers, [None; 5], Some("CRC32")).unwrap();
        assert_eq!(found.algorithm, Some(Algorithm::Crc32));
        assert!(found.said(None).is_err(), "it did not come");
        let value = "AAAA".to_owned();
        assert!(
            announced(
                &headers,
                [Some(&value), Some(&value), None, None, None],
                None
            )
            .is_err()
        );
        let both = announced(&headers, [None, Some(&value), None, None, None], None);
        assert!(both.is_err(), "only one of them would be verified");
        let trailers = "x-amz-checksum-crc32,x-amz-checksum-sha1";
        headers.insert("x-amz-trailer", trailers.parse().unwrap());
        assert!(announced(&headers, [None; 5], None).is_err());
    }
}

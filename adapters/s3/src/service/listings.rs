//! Listings of objects and versions.

use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::convert::{algorithm_name, escape, etag, modified, owner};
use super::objects::{signed, storage_class};
use super::{Asking, Service, expect_answer};
use crate::hashes;
use crate::operation::{Action, Entry, List, Listed};
use crate::rows::{Algorithm, ObjectRow};

/// Keys of a page, unless asked for fewer.
const PAGE: i32 = 1000;

pub(super) fn most_of(asked: Option<i32>) -> S3Result<u32> {
    u32::try_from(asked.unwrap_or(PAGE))
        .map_err(|_| s3_error!(InvalidArgument, "max-keys must not be negative"))
}

/// Writes keys as the client asked for.
pub(super) fn writer(encoding: Option<&EncodingType>) -> S3Result<fn(&str) -> String> {
    match encoding.map(EncodingType::as_str) {
        None => Ok(str::to_owned),
        Some(EncodingType::URL) => Ok(escape),
        Some(_) => Err(s3_error!(InvalidArgument, "encoding-type is url")),
    }
}

/// The sums of a listed version.
fn sums(object: &ObjectRow) -> (Option<Vec<ChecksumAlgorithm>>, Option<ChecksumType>) {
    let Some(checksum) = &object.checksum else {
        return (None, None);
    };
    let kind = if checksum.composite {
        ChecksumType::COMPOSITE
    } else {
        ChecksumType::FULL_OBJECT
    };
    let algorithm: Algorithm = checksum.algorithm();
    (
        algorithm_name(algorithm).map(|name| vec![name]),
        Some(ChecksumType::from_static(kind)),
    )
}

pub(super) fn prefixes(listed: &Listed, write: fn(&str) -> String) -> Option<CommonPrefixList> {
    let found: Vec<_> = listed
        .entries
        .iter()
        .filter(|entry| entry.object.is_none() && entry.upload.is_none())
        .map(|entry| CommonPrefix {
            prefix: Some(write(&entry.key)),
        })
        .collect();
    (!found.is_empty()).then_some(found)
}

fn contents(listed: &Listed, write: fn(&str) -> String, owners: bool) -> Option<ObjectList> {
    let found: Vec<_> = listed
        .entries
        .iter()
        .filter_map(|entry| Some((entry, entry.object.as_deref()?)))
        .map(|(entry, object)| shown(entry, object, write, owners))
        .collect();
    (!found.is_empty()).then_some(found)
}

fn shown(entry: &Entry, object: &ObjectRow, write: fn(&str) -> String, owners: bool) -> Object {
    let (checksum_algorithm, checksum_type) = sums(object);
    Object {
        checksum_algorithm,
        checksum_type,
        e_tag: Some(etag(&object.etag)),
        key: Some(write(&entry.key)),
        last_modified: modified(object),
        owner: owners.then(|| owner(&object.owner)),
        restore_status: None,
        size: Some(signed(object.size)),
        storage_class: Some(ObjectStorageClass::from(storage_class(object))),
    }
}

impl Service {
    pub(super) async fn page(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        act: Action,
    ) -> S3Result<Listed> {
        let answer = self.on(asking, bucket, action, act).await?;
        Ok(expect_answer!(answer, Listed))
    }

    pub(super) async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let write = writer(input.encoding_type.as_ref())?;
        let most = most_of(input.max_keys)?;
        let list = List {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: input.marker.clone().unwrap_or_default(),
            most,
            ..List::default()
        };
        let listed = self
            .page(&asking, &input.bucket, "s3:ListBucket", Action::List(list))
            .await?;
        Ok(S3Response::new(ListObjectsOutput {
            common_prefixes: prefixes(&listed, write),
            contents: contents(&listed, write, true),
            delimiter: input
                .delimiter
                .as_deref()
                .filter(|d| !d.is_empty())
                .map(write),
            encoding_type: input.encoding_type,
            is_truncated: Some(listed.truncated),
            marker: Some(write(input.marker.as_deref().unwrap_or_default())),
            max_keys: Some(input.max_keys.unwrap_or(PAGE)),
            name: Some(input.bucket),
            next_marker: listed.truncated.then(|| write(&listed.next)),
            prefix: Some(write(input.prefix.as_deref().unwrap_or_default())),
            ..ListObjectsOutput::default()
        }))
    }

    pub(super) async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let write = writer(input.encoding_type.as_ref())?;
        let most = most_of(input.max_keys)?;
        let after = match &input.continuation_token {
            Some(token) => hashes::from_base64(token)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .filter(|key| !key.is_empty())
                .ok_or_else(|| {
                    s3_error!(
                        InvalidArgument,
                        "The continuation token provided is incorrect"
                    )
                })?,
            None => input.start_after.clone().unwrap_or_default(),
        };
        let list = List {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after,
            most,
            ..List::default()
        };
        let listed = self
            .page(&asking, &input.bucket, "s3:ListBucket", Action::List(list))
            .await?;
        Ok(S3Response::new(ListObjectsV2Output {
            common_prefixes: prefixes(&listed, write),
            contents: contents(&listed, write, input.fetch_owner == Some(true)),
            continuation_token: input.continuation_token,
            delimiter: input
                .delimiter
                .as_deref()
                .filter(|d| !d.is_empty())
                .map(write),
            encoding_type: input.encoding_type,
            is_truncated: Some(listed.truncated),
            key_count: i32::try_from(listed.entries.len()).ok(),
            max_keys: Some(input.max_keys.unwrap_or(PAGE)),
            name: Some(input.bucket),
            next_continuation_token: listed
                .truncated
                .then(|| hashes::base64(listed.next.as_bytes())),
            prefix: Some(write(input.prefix.as_deref().unwrap_or_default())),
            start_after: input.start_after.as_deref().map(write),
            ..ListObjectsV2Output::default()
        }))
    }

    pub(super) async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let write = writer(input.encoding_type.as_ref())?;
        if input.key_marker.is_none() && input.version_id_marker.is_some() {
            return Err(s3_error!(
                InvalidArgument,
                "A version-id marker cannot be specified without a key marker."
            ));
        }
        let list = List {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: input.key_marker.clone().unwrap_or_default(),
            after_id: input.version_id_marker.clone().unwrap_or_default(),
            most: most_of(input.max_keys)?,
            versions: true,
        };
        let listed = self
            .page(
                &asking,
                &input.bucket,
                "s3:ListBucketVersions",
                Action::List(list),
            )
            .await?;
        let (mut versions, mut markers) = (Vec::new(), Vec::new());
        for entry in &listed.entries {
            let Some(object) = entry.object.as_deref() else {
                continue;
            };
            let key = Some(write(&entry.key));
            if object.delete_marker {
                markers.push(DeleteMarkerEntry {
                    is_latest: Some(entry.latest),
                    key,
                    last_modified: modified(object),
                    owner: Some(owner(&object.owner)),
                    version_id: Some(object.version_id()),
                });
                continue;
            }
            let (checksum_algorithm, checksum_type) = sums(object);
            versions.push(ObjectVersion {
                checksum_algorithm,
                checksum_type,
                e_tag: Some(etag(&object.etag)),
                is_latest: Some(entry.latest),
                key,
                last_modified: modified(object),
                owner: Some(owner(&object.owner)),
                restore_status: None,
                size: Some(signed(object.size)),
                storage_class: Some(ObjectVersionStorageClass::from(storage_class(object))),
                version_id: Some(object.version_id()),
            });
        }
        Ok(S3Response::new(ListObjectVersionsOutput {
            common_prefixes: prefixes(&listed, write),
            delete_markers: (!markers.is_empty()).then_some(markers),
            versions: (!versions.is_empty()).then_some(versions),
            delimiter: input
                .delimiter
                .as_deref()
                .filter(|d| !d.is_empty())
                .map(write),
            encoding_type: input.encoding_type,
            is_truncated: Some(listed.truncated),
            key_marker: Some(write(input.key_marker.as_deref().unwrap_or_default())),
            max_keys: Some(input.max_keys.unwrap_or(PAGE)),
            name: Some(input.bucket),
            next_key_marker: listed.truncated.then(|| write(&listed.next)),
            next_version_id_marker: (listed.truncated && !listed.next_id.is_empty())
                .then(|| listed.next_id.clone()),
            prefix: Some(write(input.prefix.as_deref().unwrap_or_default())),
            version_id_marker: input.version_id_marker,
            ..ListObjectVersionsOutput::default()
        }))
    }
}

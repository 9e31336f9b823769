//! Objects: PUT, GET, HEAD, DELETE, tags, ACLs, attributes.

use futures::stream;
use s3s::dto::*;
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result, StdError, TrailingHeaders, s3_error,
};

use super::convert::{
    AclSaid, acl_in, acl_of_grants, acl_said, also, announced, check_body, checksum_out,
    checksum_row, condition, etag, grants, metadata_in, metadata_out, modified, owner, seconds,
    tags_in, tags_of_header, tags_out, unescape, version_out,
};
use super::{Asking, Service, expect_answer};
use crate::answers;
use crate::body::{Download, INLINE, Receiver, Segment};
use crate::form::Form;
use crate::hashes::{self, Hashes};
use crate::operation::{
    self, Action, DeleteItem, Found, Get, HeadBucket, Put, ReadConditions, ReadParts, SetAcl,
    SetTags, WriteConditions,
};
use crate::rewrite::{Expires, read_date};
use crate::rows::{ContentHeaders, Level, ObjectRow, PartRow, Versioning};

/// The largest body of one PUT: 5 GiB.
pub(super) const LARGEST_PUT: u64 = 5 << 30;

/// Deletions that one operation does.
const DELETED_AT_ONCE: usize = 250;
/// Keys that DeleteObjects may name.
const MOST_DELETED: usize = 1000;

/// A length from a header.
pub(super) fn length_of(header: Option<i64>) -> S3Result<Option<u64>> {
    header
        .map(|length| {
            u64::try_from(length)
                .map_err(|_| s3_error!(InvalidRequest, "a negative Content-Length"))
        })
        .transpose()
}

pub(super) fn check_size(length: Option<u64>) -> S3Result<()> {
    if length.is_some_and(|length| length > LARGEST_PUT) {
        return Err(s3_error!(
            EntityTooLarge,
            "A single PUT takes at most 5 GiB: use a multipart upload"
        ));
    }
    Ok(())
}

/// A version id from a query; `null` is one.
fn version_in(version: Option<String>) -> String {
    version.unwrap_or_default()
}

/// `Expires` is a date, or a text that the extensions of the request have.
macro_rules! content_headers {
    ($input:expr, $expires:expr) => {
        crate::rows::ContentHeaders {
            content_type: $input.content_type.take(),
            content_encoding: $input
                .content_encoding
                .take()
                .and_then(crate::service::objects::without_aws_chunked),
            content_disposition: $input.content_disposition.take(),
            content_language: $input.content_language.take(),
            cache_control: $input.cache_control.take(),
            expires: $expires.or_else(|| {
                let date = $input.expires.take()?;
                let seconds = crate::service::convert::seconds(&date);
                Some(crate::error::http_date(seconds * 1000))
            }),
            website_redirect: $input.website_redirect_location.take(),
        }
    };
}
pub(super) use content_headers;

/// `aws-chunked` says how the body travelled, not what it is.
pub(super) fn without_aws_chunked(encoding: String) -> Option<String> {
    let rest: Vec<_> = encoding
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!rest.is_empty()).then(|| rest.join(", "))
}

impl Service {
    pub(super) async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let asking = Asking::of(&request)?;
        let trailers = trailers_of(&mut request);
        let form = request.extensions.get::<Form>().cloned();
        let expires = Expires::of(&request.extensions);
        let input = &mut request.input;
        if let Some(form) = &form {
            form.fill(input)?;
        }
        let length = length_of(input.content_length)?;
        check_size(length)?;
        let fields = [
            input.checksum_crc32.as_ref(),
            input.checksum_crc32c.as_ref(),
            input.checksum_crc64nvme.as_ref(),
            input.checksum_sha1.as_ref(),
            input.checksum_sha256.as_ref(),
        ];
        let named = input.checksum_algorithm.as_ref().map(|name| name.as_str());
        let announced = announced(&request.headers, fields, named)?;
        let conditions = WriteConditions {
            if_match: condition(input.if_match.as_ref()),
            if_none_match: condition(input.if_none_match.as_ref()),
            ..WriteConditions::default()
        };
        let mut object = ObjectRow {
            headers: Some(content_headers!(input, expires)),
            metadata: metadata_in(input.metadata.take())?,
            tags: tags_of_header(input.tagging.as_deref())?,
            acl: acl_in(input.acl.as_ref().map(|acl| acl.as_str()))?.into(),
            owner: asking.identity.access_key().to_owned(),
            storage_class: input
                .storage_class
                .take()
                .map_or_else(String::new, |class| class.as_str().to_owned()),
            ..ObjectRow::default()
        };
        let also = also(input.acl.as_ref(), !object.tags.is_empty());
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        if length.is_none_or(|length| length > INLINE as u64) {
            // Whoever will be refused need not send the body first.
            let head = HeadBucket {
                key: key.clone(),
                level: Level::Write.into(),
                conditions: Some(conditions.clone()),
                also: also.clone(),
            };
            self.on(&asking, &bucket, "s3:PutObject", Action::HeadBucket(head))
                .await?;
        }
        let receiver = Receiver {
            blobs: &*self.blobs,
            metrics: &self.metrics,
            pace: &asking.pace,
            near: Self::near(&bucket),
            lanes: &self.lanes,
        };
        let held = receiver.reserve(length)?;
        let hashing = Hashes::new(announced.algorithm(), false);
        let received = receiver
            .receive(input.body.take(), length, hashing, held)
            .await?;
        let said = announced.said(trailers.as_ref())?;
        check_body(
            &received.hashed,
            input.content_md5.as_deref(),
            said.as_deref(),
        )?;
        object.size = received.size;
        object.etag = hashes::hex(&received.hashed.md5);
        object.checksum = checksum_row(announced.algorithm(), received.hashed.checksum.clone());
        let put = Put {
            key,
            object: Some(object),
            parts: received.parts.clone(),
            conditions: Some(conditions),
            also,
        };
        let who = asking.identity.who(&bucket);
        let ctx = asking.pace.step().child(received.fresh);
        let act = Action::Put(Box::new(put));
        let answer = self
            .store
            .on(&ctx, who, &bucket, "s3:PutObject", act)
            .await?;
        let found = *expect_answer!(answer, Object);
        let versioning = found.versioning();
        let stored = found.object.unwrap_or_default();
        let checksum = checksum_out(stored.checksum.as_ref());
        let mut response = S3Response::new(PutObjectOutput {
            e_tag: Some(etag(&stored.etag)),
            version_id: version_out(&stored, versioning),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            checksum_type: checksum.checksum_type,
            ..PutObjectOutput::default()
        });
        if let Some(form) = form {
            let (bucket, key) = (&request.input.bucket, &request.input.key);
            let path = answers::path_of_form(request.uri.path(), key);
            let location = answers::location(&request.headers, &request.uri, &path);
            answers::of_form(&form, &location, (bucket, key), &mut response);
        }
        Ok(response)
    }

    /// The bytes that a read found, as they will be sent.
    pub(super) fn segments(
        &self,
        asking: &Asking,
        bucket: &str,
        found: &mut Found,
    ) -> impl futures::Stream<Item = Result<Segment, StdError>> + Send + use<> {
        let object = found.object.clone().unwrap_or_default();
        let state = Reading {
            service: self.clone(),
            asking: asking.clone(),
            bucket: bucket.to_owned(),
            next: found.first_part as usize,
            at: object.parts[..(found.first_part as usize).min(object.parts.len())]
                .iter()
                .map(|part| part.size)
                .sum(),
            range: found.start..found.end,
            known: std::mem::take(&mut found.parts).into(),
            ready: Vec::new().into_iter(),
            object,
        };
        stream::try_unfold(state, Reading::next)
    }

    pub(super) async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let asking = Asking::of(&request)?;
        check_overrides(&asking, &request.uri)?;
        let (if_range, if_range_s) = if_range(&request.headers);
        let input = request.input;
        let (first, last, suffix) = range_in(input.range);
        let get = Get {
            key: input.key,
            version: version_in(input.version_id),
            conditions: Some(ReadConditions {
                if_match: condition(input.if_match.as_ref()),
                if_none_match: condition(input.if_none_match.as_ref()),
                if_modified_since_s: input.if_modified_since.as_ref().map(seconds),
                if_unmodified_since_s: input.if_unmodified_since.as_ref().map(seconds),
                if_range,
                if_range_s,
            }),
            body: true,
            first,
            last,
            suffix,
            part: part_in(input.part_number)?,
        };
        let action = if get.version.is_empty() {
            "s3:GetObject"
        } else {
            "s3:GetObjectVersion"
        };
        let part = get.part;
        let answer = self
            .on(&asking, &input.bucket, action, Action::Get(get))
            .await?;
        let mut found = *expect_answer!(answer, Object);
        let length = found.end - found.start;
        let tags = found.object.as_ref().map_or(0, |object| object.tags.len());
        let tag_count = i32::try_from(tags).ok().filter(|&count| count > 0);
        let segments = self.segments(&asking, &input.bucket, &mut found);
        let body = Download::start(
            self.blobs.clone(),
            &self.reads,
            &self.metrics,
            asking.pace.clone(),
            Self::near(&input.bucket),
            length,
            segments,
        )?;
        let shown = input.checksum_mode.is_some() && !found.partial;
        let head = shown_head(&found, part, shown);
        let mut response = S3Response::new(GetObjectOutput {
            body: Some(body),
            accept_ranges: head.accept_ranges,
            cache_control: head.cache_control,
            checksum_crc32: head.checksum_crc32,
            checksum_crc32c: head.checksum_crc32c,
            checksum_crc64nvme: head.checksum_crc64nvme,
            checksum_sha1: head.checksum_sha1,
            checksum_sha256: head.checksum_sha256,
            checksum_type: head.checksum_type,
            content_disposition: head.content_disposition,
            content_encoding: head.content_encoding,
            content_language: head.content_language,
            content_length: head.content_length,
            content_range: head.content_range,
            content_type: head.content_type,
            e_tag: head.e_tag,
            expires: head.expires,
            last_modified: head.last_modified,
            metadata: head.metadata,
            parts_count: head.parts_count,
            storage_class: head.storage_class,
            tag_count,
            version_id: head.version_id,
            website_redirect_location: head.website_redirect_location,
            ..GetObjectOutput::default()
        });
        if input.response_expires.is_none() {
            response.headers.extend(odd_expires(&found));
        }
        Ok(response)
    }

    pub(super) async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let asking = Asking::of(&request)?;
        check_overrides(&asking, &request.uri)?;
        let (if_range, if_range_s) = if_range(&request.headers);
        let input = request.input;
        let (first, last, suffix) = range_in(input.range);
        let get = Get {
            key: input.key,
            version: version_in(input.version_id),
            conditions: Some(ReadConditions {
                if_match: condition(input.if_match.as_ref()),
                if_none_match: condition(input.if_none_match.as_ref()),
                if_modified_since_s: input.if_modified_since.as_ref().map(seconds),
                if_unmodified_since_s: input.if_unmodified_since.as_ref().map(seconds),
                if_range,
                if_range_s,
            }),
            body: false,
            first,
            last,
            suffix,
            part: part_in(input.part_number)?,
        };
        let (part, action) = (get.part, action_of(&get.version));
        let answer = self
            .on(&asking, &input.bucket, action, Action::Get(get))
            .await?;
        let found = *expect_answer!(answer, Object);
        let shown = input.checksum_mode.is_some() && !found.partial;
        let mut head = shown_head(&found, part, shown);
        let odd_expires = odd_expires(&found).filter(|_| input.response_expires.is_none());
        let replace = |header: &mut Option<String>, asked: Option<String>| {
            if asked.is_some() {
                *header = asked;
            }
        };
        replace(&mut head.cache_control, input.response_cache_control);
        replace(
            &mut head.content_disposition,
            input.response_content_disposition,
        );
        replace(&mut head.content_encoding, input.response_content_encoding);
        replace(&mut head.content_language, input.response_content_language);
        replace(&mut head.content_type, input.response_content_type);
        head.expires = input.response_expires.or(head.expires);
        let mut response = S3Response::new(head);
        response.headers.extend(odd_expires);
        Ok(response)
    }

    pub(super) async fn get_object_attributes(
        &self,
        request: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let version = version_in(input.version_id);
        let get = Get {
            key: input.key,
            version: version.clone(),
            ..Get::default()
        };
        let both = HeadBucket {
            key: get.key.clone(),
            level: Level::Read.into(),
            ..HeadBucket::default()
        };
        let action = action_on(
            &version,
            ["s3:GetObjectAttributes", "s3:GetObjectVersionAttributes"],
        );
        self.on(&asking, &input.bucket, action, Action::HeadBucket(both))
            .await?;
        let answer = self
            .on(
                &asking,
                &input.bucket,
                action_of(&version),
                Action::Get(get),
            )
            .await?;
        let found = *expect_answer!(answer, Object);
        let versioning = found.versioning();
        let object = found.object.unwrap_or_default();
        let wants = |name: &'static str| {
            input
                .object_attributes
                .iter()
                // Clients send them as one header.
                .flat_map(|attributes| attributes.as_str().split(','))
                .any(|attribute| attribute.trim() == name)
        };
        let parts = if wants(ObjectAttributes::OBJECT_PARTS) && object.multipart {
            let after = input.part_number_marker.unwrap_or_default();
            let most = input.max_parts.unwrap_or(1000);
            Some(
                self.attribute_parts(&asking, &input.bucket, &object, after, most)
                    .await?,
            )
        } else {
            None
        };
        let mut response = S3Response::new(GetObjectAttributesOutput {
            checksum: (wants(ObjectAttributes::CHECKSUM) && object.checksum.is_some())
                .then(|| checksum_out(object.checksum.as_ref())),
            e_tag: wants(ObjectAttributes::ETAG).then(|| etag(&object.etag)),
            object_size: wants(ObjectAttributes::OBJECT_SIZE).then(|| signed(object.size)),
            storage_class: wants(ObjectAttributes::STORAGE_CLASS)
                .then(|| StorageClass::from(storage_class(&object))),
            object_parts: parts,
            last_modified: modified(&object),
            version_id: version_out(&object, versioning),
            ..GetObjectAttributesOutput::default()
        });
        response.extensions.insert(answers::BareEtag);
        Ok(response)
    }

    async fn attribute_parts(
        &self,
        asking: &Asking,
        bucket: &str,
        object: &ObjectRow,
        after: i32,
        most: i32,
    ) -> S3Result<GetObjectAttributesParts> {
        let most = usize::try_from(most).unwrap_or(0).min(1000);
        let later: Vec<_> = object
            .parts
            .iter()
            .filter(|part| i64::from(part.number) > i64::from(after))
            .collect();
        let numbers: Vec<_> = later.iter().take(most).map(|part| part.number).collect();
        let with_checksums = object.checksum.is_some();
        let mut parts = Vec::new();
        if with_checksums {
            let mut left = &numbers[..];
            while !left.is_empty() {
                let read = ReadParts {
                    data: object.data.clone(),
                    numbers: left.to_vec(),
                };
                let answer = self
                    .on(asking, bucket, "s3:GetObject", Action::ReadParts(read))
                    .await?;
                let got = expect_answer!(answer, Parts).parts;
                if got.is_empty() {
                    return Err(s3_error!(NoSuchKey, "the object was overwritten meanwhile"));
                }
                left = &left[got.len()..];
                for part in got {
                    let row = part.part.unwrap_or_default();
                    let sum = checksum_out(row.checksum.as_ref());
                    parts.push(ObjectPart {
                        part_number: i32::try_from(part.number).ok(),
                        size: Some(signed(row.size)),
                        checksum_crc32: sum.checksum_crc32,
                        checksum_crc32c: sum.checksum_crc32c,
                        checksum_crc64nvme: sum.checksum_crc64nvme,
                        checksum_sha1: sum.checksum_sha1,
                        checksum_sha256: sum.checksum_sha256,
                    });
                }
            }
        }
        Ok(GetObjectAttributesParts {
            is_truncated: Some(later.len() > numbers.len()),
            max_parts: i32::try_from(most).ok(),
            next_part_number_marker: numbers.last().and_then(|last| i32::try_from(*last).ok()),
            part_number_marker: Some(after),
            parts: with_checksums.then_some(parts),
            total_parts_count: i32::try_from(object.parts.len()).ok(),
        })
    }

    pub(super) async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let item = DeleteItem {
            key: input.key,
            version: version_in(input.version_id),
            conditions: Some(WriteConditions {
                if_match: condition(input.if_match.as_ref()),
                if_none_match: String::new(),
                if_size: input
                    .if_match_size
                    .and_then(|size| u64::try_from(size).ok()),
                if_modified_s: input.if_match_last_modified_time.as_ref().map(seconds),
            }),
        };
        let action = item.action();
        let act = Action::Delete(operation::Delete { items: vec![item] });
        let answer = self.on(&asking, &input.bucket, action, act).await?;
        let item = expect_answer!(answer, Deleted)
            .items
            .pop()
            .unwrap_or_default();
        if let Some(refused) = &item.refused {
            return Err(crate::error::of_refused(
                refused,
                crate::error::Asked::Other,
            ));
        }
        let mut response = S3Response::new(DeleteObjectOutput {
            delete_marker: item.delete_marker.then_some(true),
            version_id: (!item.version.is_empty()).then_some(item.version),
            ..DeleteObjectOutput::default()
        });
        response.status = Some(http::StatusCode::NO_CONTENT);
        Ok(response)
    }

    pub(super) async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        if input.delete.objects.is_empty() || input.delete.objects.len() > MOST_DELETED {
            return Err(s3_error!(
                MalformedXML,
                "DeleteObjects takes 1 to 1000 keys"
            ));
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let items: Vec<_> = input
            .delete
            .objects
            .into_iter()
            .map(|named| DeleteItem {
                conditions: Some(WriteConditions {
                    if_match: named
                        .e_tag
                        .map_or_else(String::new, |etag| etag.value().to_owned()),
                    if_none_match: String::new(),
                    if_size: named.size.and_then(|size| u64::try_from(size).ok()),
                    if_modified_s: named.last_modified_time.as_ref().map(seconds),
                }),
                key: named.key,
                version: version_in(named.version_id),
            })
            .collect();
        let mut deleted = Vec::new();
        let mut errors = Vec::new();
        for items in items.chunks(DELETED_AT_ONCE) {
            let act = Action::Delete(operation::Delete {
                items: items.to_vec(),
            });
            let answer = self
                .on(&asking, &input.bucket, "s3:DeleteObject", act)
                .await?;
            let outcomes = expect_answer!(answer, Deleted).items;
            for (item, outcome) in items.iter().zip(outcomes) {
                let asked_version = (!item.version.is_empty()).then(|| item.version.clone());
                if let Some(refused) = &outcome.refused {
                    let error = crate::error::of_refused(refused, crate::error::Asked::Other);
                    errors.push(Error {
                        code: Some(error.code().as_str().to_owned()),
                        key: Some(item.key.clone()),
                        message: error.message().map(str::to_owned),
                        version_id: asked_version,
                    });
                } else if !quiet {
                    deleted.push(DeletedObject {
                        delete_marker: outcome.delete_marker.then_some(true),
                        delete_marker_version_id: outcome
                            .delete_marker
                            .then(|| outcome.version.clone()),
                        key: Some(item.key.clone()),
                        version_id: asked_version,
                    });
                }
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..DeleteObjectsOutput::default()
        }))
    }

    /// A version's head, for what is told of it.
    pub(super) async fn look(
        &self,
        asking: &Asking,
        bucket: &str,
        key: String,
        version: String,
        action: &str,
    ) -> S3Result<Found> {
        let get = Get {
            key,
            version,
            ..Get::default()
        };
        let answer = self.on(asking, bucket, action, Action::Get(get)).await?;
        Ok(*expect_answer!(answer, Object))
    }

    pub(super) async fn get_object_tagging(
        &self,
        request: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let version = version_in(input.version_id);
        let action = action_on(
            &version,
            ["s3:GetObjectTagging", "s3:GetObjectVersionTagging"],
        );
        let found = self
            .look(&asking, &input.bucket, input.key, version, action)
            .await?;
        let versioning = found.versioning();
        let object = found.object.unwrap_or_default();
        Ok(S3Response::new(GetObjectTaggingOutput {
            tag_set: tags_out(&object.tags),
            version_id: version_out(&object, versioning),
        }))
    }

    async fn set_tags(
        &self,
        asking: &Asking,
        bucket: &str,
        set: SetTags,
        action: &str,
    ) -> S3Result<Option<String>> {
        let answer = self
            .on(asking, bucket, action, Action::SetTags(set))
            .await?;
        let found = *expect_answer!(answer, Object);
        let versioning = found.versioning();
        Ok(version_out(&found.object.unwrap_or_default(), versioning))
    }

    pub(super) async fn put_object_tagging(
        &self,
        request: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let set = SetTags {
            key: input.key,
            version: version_in(input.version_id),
            tags: tags_in(input.tagging)?,
        };
        let action = action_on(
            &set.version,
            ["s3:PutObjectTagging", "s3:PutObjectVersionTagging"],
        );
        let version_id = self.set_tags(&asking, &input.bucket, set, action).await?;
        Ok(S3Response::new(PutObjectTaggingOutput { version_id }))
    }

    pub(super) async fn delete_object_tagging(
        &self,
        request: S3Request<DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let set = SetTags {
            key: input.key,
            version: version_in(input.version_id),
            tags: Vec::new(),
        };
        let action = action_on(
            &set.version,
            ["s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging"],
        );
        let version_id = self.set_tags(&asking, &input.bucket, set, action).await?;
        Ok(S3Response::new(DeleteObjectTaggingOutput { version_id }))
    }

    pub(super) async fn get_object_acl(
        &self,
        request: S3Request<GetObjectAclInput>,
    ) -> S3Result<S3Response<GetObjectAclOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let version = version_in(input.version_id);
        let action = action_on(&version, ["s3:GetObjectAcl", "s3:GetObjectVersionAcl"]);
        let found = self
            .look(&asking, &input.bucket, input.key, version, action)
            .await?;
        let object = found.object.unwrap_or_default();
        Ok(S3Response::new(GetObjectAclOutput {
            grants: Some(grants(object.acl(), &found.bucket_owner)),
            owner: Some(owner(&found.bucket_owner)),
            ..GetObjectAclOutput::default()
        }))
    }

    pub(super) async fn put_object_acl(
        &self,
        request: S3Request<PutObjectAclInput>,
    ) -> S3Result<S3Response<PutObjectAclOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let version = version_in(input.version_id);
        let action = action_on(&version, ["s3:PutObjectAcl", "s3:PutObjectVersionAcl"]);
        let canned = input.acl.as_ref().map(|acl| acl.as_str());
        let acl = match acl_said(canned, input.access_control_policy)? {
            AclSaid::Canned(acl) => acl,
            AclSaid::Grants(grants) => {
                let (key, version) = (input.key.clone(), version.clone());
                let found = self
                    .look(&asking, &input.bucket, key, version, action)
                    .await?;
                acl_of_grants(grants, &found.bucket_owner)?
            }
        };
        let set = SetAcl {
            key: input.key,
            version,
            acl: acl.into(),
        };
        self.on(&asking, &input.bucket, action, Action::SetAcl(set))
            .await?;
        Ok(S3Response::new(PutObjectAclOutput::default()))
    }
}

/// The first of the names is the current version's.
fn action_on(version: &str, [current, named]: [&'static str; 2]) -> &'static str {
    if version.is_empty() { current } else { named }
}

fn action_of(version: &str) -> &'static str {
    action_on(version, ["s3:GetObject", "s3:GetObjectVersion"])
}

/// Trailers to come; of a request that was brought to other words they are beside it.
pub(super) fn trailers_of<T>(request: &mut S3Request<T>) -> Option<TrailingHeaders> {
    let trailers = request.trailing_headers.take();
    trailers.or_else(|| request.extensions.get().cloned())
}

fn part_in(number: Option<i32>) -> S3Result<u32> {
    match number {
        None => Ok(0),
        Some(number) => u32::try_from(number)
            .ok()
            .filter(|number| (1..=u32::from(operation::MOST_PARTS)).contains(number))
            .ok_or_else(|| {
                s3_error!(
                    InvalidArgument,
                    "Part number must be an integer between 1 and 10000"
                )
            }),
    }
}

/// First, last and suffix.
fn range_in(range: Option<Range>) -> (Option<u64>, Option<u64>, Option<u64>) {
    match range {
        None => (None, None, None),
        Some(Range::Int { first, last }) => (Some(first), last, None),
        Some(Range::Suffix { length }) => (None, None, Some(length)),
    }
}

/// What a range is to be of: an ETag, or a time.
fn if_range(headers: &http::HeaderMap) -> (Option<String>, Option<u64>) {
    let Some(version) = headers.get(http::header::IF_RANGE) else {
        return (None, None);
    };
    if let Some(date) = read_date(version) {
        return (None, Some(date / 1000));
    }
    // A weak ETag is no version's, and neither is what is no ETag.
    let etag = version.to_str().ok().and_then(|text| {
        let text = text.trim().strip_prefix('"')?;
        text.strip_suffix('"')
    });
    (Some(etag.unwrap_or_default().to_owned()), None)
}

fn check_overrides(asking: &Asking, uri: &http::Uri) -> S3Result<()> {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    let overrides = |pair: &str| {
        let name = pair.split('=').next().and_then(unescape);
        name.is_some_and(|name| name.starts_with("response-"))
    };
    if asking.identity.access_key().is_empty() && pairs.any(overrides) {
        return Err(s3_error!(
            InvalidRequest,
            "Request specific response headers cannot be used for anonymous GET requests."
        ));
    }
    Ok(())
}

/// `Expires` that is not a date.
fn odd_expires(found: &Found) -> Option<(http::HeaderName, http::HeaderValue)> {
    let headers = found.object.as_ref()?.headers.as_ref()?;
    let text = headers.expires.as_deref()?;
    if Timestamp::parse(TimestampFormat::HttpDate, text).is_ok() {
        return None;
    }
    let value = http::HeaderValue::try_from(text).ok()?;
    Some((http::header::EXPIRES, value))
}

pub(super) fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn storage_class(object: &ObjectRow) -> String {
    if object.storage_class.is_empty() {
        StorageClass::STANDARD.to_owned()
    } else {
        object.storage_class.clone()
    }
}

/// What GET and HEAD say before the bytes.
fn shown_head(found: &Found, part: u32, checksum: bool) -> HeadObjectOutput {
    let versioning: Versioning = found.versioning();
    let object = found.object.clone().unwrap_or_default();
    let checksum = checksum_out(object.checksum.as_ref().filter(|_| checksum));
    let headers: ContentHeaders = object.headers.clone().unwrap_or_default();
    let content_range = found.partial.then(|| {
        if found.start < found.end {
            format!("bytes {}-{}/{}", found.start, found.end - 1, object.size)
        } else {
            format!("bytes */{}", object.size)
        }
    });
    HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        cache_control: headers.cache_control,
        checksum_crc32: checksum.checksum_crc32,
        checksum_crc32c: checksum.checksum_crc32c,
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        checksum_sha1: checksum.checksum_sha1,
        checksum_sha256: checksum.checksum_sha256,
        checksum_type: checksum.checksum_type,
        content_disposition: headers.content_disposition,
        content_encoding: headers.content_encoding,
        content_language: headers.content_language,
        content_length: Some(signed(found.end - found.start)),
        content_range,
        content_type: Some(
            headers
                .content_type
                .unwrap_or_else(|| "binary/octet-stream".to_owned()),
        ),
        e_tag: Some(etag(&object.etag)),
        expires: headers
            .expires
            .and_then(|date| Timestamp::parse(TimestampFormat::HttpDate, &date).ok()),
        last_modified: modified(&object),
        metadata: metadata_out(&object),
        parts_count: (part != 0 && object.multipart)
            .then(|| i32::try_from(object.parts.len()).unwrap_or(i32::MAX)),
        storage_class: (!object.storage_class.is_empty()
            && object.storage_class != StorageClass::STANDARD)
            .then(|| StorageClass::from(object.storage_class.clone())),
        version_id: version_out(&object, versioning),
        website_redirect_location: headers.website_redirect,
        ..HeadObjectOutput::default()
    }
}

/// A read of an object's parts in order, those beyond the first answer asked for as it goes.
struct Reading {
    service: Service,
    asking: Asking,
    bucket: String,
    object: ObjectRow,
    /// Position of the next part, and where it begins in the object.
    next: usize,
    at: u64,
    range: std::ops::Range<u64>,
    known: std::collections::VecDeque<PartRow>,
    ready: std::vec::IntoIter<Segment>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Segment, Self)>, StdError> {
        loop {
            if let Some(segment) = self.ready.next() {
                return Ok(Some((segment, self)));
            }
            let Some(size) = self.object.parts.get(self.next).map(|part| part.size) else {
                return Ok(None);
            };
            if self.at >= self.range.end {
                return Ok(None);
            }
            if self.known.is_empty() {
                self.ask().await?;
            }
            let Some(part) = self.known.pop_front() else {
                return Err("the object was overwritten while it was read".into());
            };
            let (start, end) = (self.at, self.at + size);
            let within = self.range.start.max(start) - start..self.range.end.min(end) - start;
            self.ready = Segment::of_part(&part, within)?.into_iter();
            self.at = end;
            self.next += 1;
        }
    }

    async fn ask(&mut self) -> Result<(), StdError> {
        let mut at = self.at;
        let mut numbers = Vec::new();
        for part in &self.object.parts[self.next..] {
            if at >= self.range.end || numbers.len() == 1000 {
                break;
            }
            numbers.push(part.number);
            at += part.size;
        }
        let read = Action::ReadParts(ReadParts {
            data: self.object.data.clone(),
            numbers,
        });
        let answer = self
            .service
            .on(&self.asking, &self.bucket, "s3:GetObject", read)
            .await
            .map_err(S3Error::from)?;
        let operation::Answer::Parts(parts) = answer else {
            return Err("an answer of another kind".into());
        };
        self.known
            .extend(parts.parts.into_iter().filter_map(|part| part.part));
        Ok(())
    }
}

/// All pieces of bytes that a read found, for a copy of them.
pub(super) async fn all_segments(
    segments: impl futures::Stream<Item = Result<Segment, StdError>>,
) -> S3Result<Vec<Segment>> {
    use futures::TryStreamExt;
    segments
        .try_collect()
        .await
        .map_err(|source| S3Error::with_source(S3ErrorCode::InternalError, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_body_travelled_is_not_its_encoding() {
        assert_eq!(without_aws_chunked("aws-chunked".into()), None);
        assert_eq!(
            without_aws_chunked("aws-chunked, gzip".into()).as_deref(),
            Some("gzip")
        );
    }
}

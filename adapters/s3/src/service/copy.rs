//! Copies made by the server: chunk lists, not bytes.

use bytes::Bytes;
use leadline_kv::blobs::ChunkRef;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::convert::{
    acl_in, also, checksum_out, condition, etag, metadata_in, modified, seconds, tags_of_header,
    version_out,
};
use super::objects::{LARGEST_PUT, all_segments, content_headers};
use super::{Asking, Service, expect_answer};
use crate::body::{Segment, piece_rows};
use crate::error;
use crate::operation::{Action, Found, Get, Put, ReadConditions, Refusal, WriteConditions};
use crate::rewrite::Expires;
use crate::rows::{ObjectRow, PartRow, Piece};
use crate::store::Failure;

/// What a copy is made of.
pub(super) struct Source {
    pub(super) bucket: String,
    pub(super) found: Found,
    pub(super) segments: Vec<Segment>,
}

/// Conditions on the source.
pub(super) struct SourceConditions<'a> {
    pub(super) if_match: Option<&'a ETagCondition>,
    pub(super) if_none_match: Option<&'a ETagCondition>,
    pub(super) if_modified_since: Option<&'a Timestamp>,
    pub(super) if_unmodified_since: Option<&'a Timestamp>,
}

impl SourceConditions<'_> {
    fn read(&self) -> ReadConditions {
        ReadConditions {
            if_match: condition(self.if_match),
            if_none_match: condition(self.if_none_match),
            if_modified_since_s: self.if_modified_since.map(seconds),
            if_unmodified_since_s: self.if_unmodified_since.map(seconds),
            ..ReadConditions::default()
        }
    }
}

impl Service {
    /// Reads what a copy will be made of.
    pub(super) async fn source(
        &self,
        asking: &Asking,
        source: &CopySource,
        conditions: SourceConditions<'_>,
        range: Option<(u64, u64)>,
    ) -> S3Result<Source> {
        let CopySource::Bucket {
            bucket,
            key,
            version_id,
        } = source
        else {
            return Err(s3_error!(
                NotImplemented,
                "access points are not implemented (docs/s3.md)"
            ));
        };
        let version = version_id.as_deref().unwrap_or_default().to_owned();
        let action = if version.is_empty() {
            "s3:GetObject"
        } else {
            "s3:GetObjectVersion"
        };
        let get = Get {
            key: key.to_string(),
            version,
            conditions: Some(conditions.read()),
            body: true,
            first: range.map(|(first, _)| first),
            last: range.map(|(_, last)| last),
            ..Get::default()
        };
        let answer = match self.on(asking, bucket, action, Action::Get(get)).await {
            Ok(answer) => answer,
            // A copy has no 304.
            Err(Failure::Refused(refused)) if refused.why() == Refusal::NotModified => {
                return Err(s3_error!(PreconditionFailed));
            }
            Err(Failure::Refused(refused)) if refused.why() == Refusal::DeleteMarker => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The source of a copy request may not specifically refer to a delete marker by version id."
                ));
            }
            Err(failure) => return Err(failure.into()),
        };
        let mut found = *expect_answer!(answer, Object);
        if range.is_some_and(|(_, last)| last >= found.object.as_ref().map_or(0, |o| o.size)) {
            return Err(s3_error!(
                InvalidRange,
                "The specified copy range is outside of the source object"
            ));
        }
        if found.end - found.start > LARGEST_PUT {
            return Err(s3_error!(
                InvalidRequest,
                "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120"
            ));
        }
        let segments = all_segments(self.segments(asking, bucket, &mut found)).await?;
        Ok(Source {
            bucket: bucket.to_string(),
            found,
            segments,
        })
    }

    /// Makes the chunks of `segments` as good as just put for `bucket`.
    pub(super) async fn adopt(
        &self,
        asking: &Asking,
        bucket: &str,
        source: &str,
        segments: &[Segment],
    ) -> S3Result<()> {
        let chunks: Vec<ChunkRef> = segments
            .iter()
            .filter_map(|segment| match segment {
                Segment::Chunk(piece) => Some(piece.chunk),
                Segment::Inline(_) => None,
            })
            .collect();
        let (near, from) = (Self::near(bucket), Self::near(source));
        // Each step is bounded, so that progress is seen.
        for chunks in chunks.chunks(64) {
            self.blobs
                .adopt(&asking.pace.step(), &near, &from, chunks)
                .await
                .map_err(error::of_blob)?;
        }
        Ok(())
    }

    pub(super) async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let asking = Asking::of(&request)?;
        let conditions = write_conditions(&request.headers);
        let expires = Expires::of(&request.extensions);
        let mut input = request.input;
        let replaces = input
            .metadata_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        let replaces_tags = input
            .tagging_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == TaggingDirective::REPLACE);
        if let CopySource::Bucket {
            bucket,
            key,
            version_id: None,
        } = &input.copy_source
            && **bucket == *input.bucket
            && **key == *input.key
            && !replaces
            && input.storage_class.is_none()
            && input.website_redirect_location.is_none()
        {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes."
            ));
        }
        let source_conditions = SourceConditions {
            if_match: input.copy_source_if_match.as_ref(),
            if_none_match: input.copy_source_if_none_match.as_ref(),
            if_modified_since: input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        let source = self
            .source(&asking, &input.copy_source, source_conditions, None)
            .await?;
        self.adopt(&asking, &input.bucket, &source.bucket, &source.segments)
            .await?;
        let source_versioning = source.found.versioning();
        let from = source.found.object.unwrap_or_default();
        let mut object = ObjectRow {
            size: from.size,
            etag: from.etag.clone(),
            checksum: from.checksum.clone(),
            headers: from.headers.clone(),
            metadata: from.metadata.clone(),
            tags: from.tags.clone(),
            acl: acl_in(input.acl.as_ref().map(|acl| acl.as_str()))?.into(),
            owner: asking.identity.access_key().to_owned(),
            storage_class: input
                .storage_class
                .take()
                .map_or_else(String::new, |class| class.as_str().to_owned()),
            ..ObjectRow::default()
        };
        if let Some(headers) = &mut object.headers {
            headers.website_redirect = input.website_redirect_location.clone();
        }
        if replaces {
            object.headers = Some(content_headers!(input, expires));
            object.metadata = metadata_in(input.metadata.take())?;
        }
        if replaces_tags {
            object.tags = tags_of_header(input.tagging.as_deref())?;
        }
        let also = also(input.acl.as_ref(), !object.tags.is_empty());
        let put = Put {
            key: input.key,
            object: Some(object),
            parts: rows_of(&source.segments),
            conditions: Some(conditions),
            also,
        };
        let act = Action::Put(Box::new(put));
        let answer = self.on(&asking, &input.bucket, "s3:PutObject", act).await?;
        let found = *expect_answer!(answer, Object);
        let versioning = found.versioning();
        let stored = found.object.unwrap_or_default();
        let sum = checksum_out(stored.checksum.as_ref());
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(CopyObjectResult {
                e_tag: Some(etag(&stored.etag)),
                last_modified: modified(&stored),
                checksum_crc32: sum.checksum_crc32,
                checksum_crc32c: sum.checksum_crc32c,
                checksum_crc64nvme: sum.checksum_crc64nvme,
                checksum_sha1: sum.checksum_sha1,
                checksum_sha256: sum.checksum_sha256,
                checksum_type: sum.checksum_type,
            }),
            copy_source_version_id: version_out(&from, source_versioning),
            version_id: version_out(&stored, versioning),
            ..CopyObjectOutput::default()
        }))
    }
}

/// `If-Match` and `If-None-Match` of a copy speak of its destination; `s3s` does not read them.
fn write_conditions(headers: &http::HeaderMap) -> WriteConditions {
    let read = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.map_or_else(String::new, |text| text.trim().trim_matches('"').to_owned())
    };
    WriteConditions {
        if_match: read("if-match"),
        if_none_match: read("if-none-match"),
        ..WriteConditions::default()
    }
}

/// Rows for the bytes of a copy.
pub(super) fn rows_of(segments: &[Segment]) -> Vec<PartRow> {
    let mut rows = Vec::new();
    let mut pieces: Vec<Piece> = Vec::new();
    let flush = |pieces: &mut Vec<Piece>, rows: &mut Vec<PartRow>| {
        rows.extend(piece_rows(pieces));
        pieces.clear();
    };
    for segment in segments {
        match segment {
            Segment::Chunk(piece) => pieces.push(*piece),
            Segment::Inline(bytes) => {
                flush(&mut pieces, &mut rows);
                rows.push(PartRow {
                    size: bytes.len() as u64,
                    inline: Bytes::clone(bytes),
                    ..PartRow::default()
                });
            }
        }
    }
    flush(&mut pieces, &mut rows);
    rows
}

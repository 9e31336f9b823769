//! Multipart uploads.

use futures::StreamExt;
use http::StatusCode;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::convert::{
    acl_in, algorithm_name, algorithm_named, also, announced, check_body, checksum_in,
    checksum_out, checksum_row, condition, etag, metadata_in, owner, tags_of_header, version_out,
};
use super::copy::SourceConditions;
use super::listings::{most_of, prefixes, writer};
use super::objects::{check_size, content_headers, length_of, signed, storage_class, trailers_of};
use super::{Asking, Service, expect_answer};
use crate::answers;
use crate::body::{Download, Receiver, Segment};
use crate::error::{self, timestamp};
use crate::hashes::{self, Hashes};
use crate::operation::{
    Action, Complete, CompletePart, List, MOST_PARTS, PutPart, UploadName, UploadRowFor,
    WriteConditions,
};
use crate::rewrite::Expires;
use crate::rows::{Algorithm, ChecksumRow, ObjectRow, PartRow, Piece, UploadRow};

/// Pieces of one part's row are joined: a part is at most 5 GiB.
fn one_row(rows: Vec<PartRow>) -> S3Result<PartRow> {
    let mut rows = rows.into_iter();
    let Some(mut first) = rows.next() else {
        return Ok(PartRow::default());
    };
    let more: Vec<_> = rows.collect();
    if more.is_empty() {
        return Ok(first);
    }
    let mut pieces = first.pieces.to_vec();
    for row in more {
        if !row.inline.is_empty() {
            return Err(s3_error!(InternalError, "a part of rows and chunks"));
        }
        pieces.extend_from_slice(&row.pieces);
        first.size += row.size;
    }
    first.pieces = pieces.into();
    Ok(first)
}

fn upload_in(id: &str) -> S3Result<bytes::Bytes> {
    let bytes = hex_simd::decode_to_vec(id).ok();
    let bytes = bytes.filter(|bytes| bytes.len() == 16);
    bytes
        .map(bytes::Bytes::from)
        .ok_or_else(|| s3_error!(NoSuchUpload))
}

fn number_in(number: i32) -> S3Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=u32::from(MOST_PARTS)).contains(number))
        .ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "Part number must be an integer between 1 and 10000, inclusive"
            )
        })
}

fn kind_out(algorithm: Algorithm, composite: bool) -> Option<ChecksumType> {
    (algorithm != Algorithm::None).then(|| {
        ChecksumType::from_static(if composite {
            ChecksumType::COMPOSITE
        } else {
            ChecksumType::FULL_OBJECT
        })
    })
}

impl Service {
    pub(super) async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let asking = Asking::of(&request)?;
        let expires = Expires::of(&request.extensions);
        let mut input = request.input;
        let algorithm = match &input.checksum_algorithm {
            None => Algorithm::None,
            Some(name) => algorithm_named(name.as_str()).ok_or_else(|| {
                s3_error!(
                    InvalidRequest,
                    "Checksum algorithm provided is unsupported."
                )
            })?,
        };
        let composite = match input.checksum_type.as_ref().map(|kind| kind.as_str()) {
            Some(ChecksumType::COMPOSITE) => true,
            Some(ChecksumType::FULL_OBJECT) => false,
            Some(_) => return Err(s3_error!(InvalidRequest, "an unknown checksum type")),
            None => algorithm != Algorithm::Crc64Nvme,
        };
        let impossible = match algorithm {
            Algorithm::None => false,
            Algorithm::Crc32 | Algorithm::Crc32c => false,
            Algorithm::Crc64Nvme => composite,
            Algorithm::Sha1 | Algorithm::Sha256 => !composite,
        };
        if impossible {
            return Err(s3_error!(
                InvalidRequest,
                "The checksum type cannot be used with the checksum algorithm."
            ));
        }
        let object = ObjectRow {
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
        let create = UploadRowFor {
            also: also(input.acl.as_ref(), !object.tags.is_empty()),
            key: input.key.clone(),
            upload: Some(UploadRow {
                initiated_ms: 0,
                object: Some(object),
                algorithm: algorithm.into(),
                composite: composite && algorithm != Algorithm::None,
            }),
        };
        let act = Action::CreateUpload(Box::new(create));
        let answer = self.on(&asking, &input.bucket, "s3:PutObject", act).await?;
        let name = expect_answer!(answer, Upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(hashes::hex(&name.upload)),
            checksum_algorithm: algorithm_name(algorithm),
            checksum_type: kind_out(algorithm, composite),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    /// The upload that a part is for; refused before the part's body is read.
    async fn upload(
        &self,
        asking: &Asking,
        bucket: &str,
        name: &UploadName,
    ) -> S3Result<UploadRow> {
        let act = Action::GetUpload(name.clone());
        let answer = self.on(asking, bucket, "s3:PutObject", act).await?;
        Ok(expect_answer!(answer, UploadRow))
    }

    async fn put_part(
        &self,
        asking: &Asking,
        bucket: &str,
        fresh: std::time::Duration,
        put: PutPart,
    ) -> S3Result<PartRow> {
        let who = asking.identity.who(bucket);
        let ctx = asking.pace.step().child(fresh);
        let act = Action::PutPart(Box::new(put));
        let answer = self
            .store
            .on(&ctx, who, bucket, "s3:PutObject", act)
            .await?;
        let part = expect_answer!(answer, Parts).parts.pop();
        Ok(part.and_then(|part| part.part).unwrap_or_default())
    }

    pub(super) async fn upload_part(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let asking = Asking::of(&request)?;
        let trailers = trailers_of(&mut request);
        let input = &mut request.input;
        let number = number_in(input.part_number)?;
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
        let name = UploadName {
            key: input.key.clone(),
            upload: upload_in(&input.upload_id)?,
        };
        let upload = self.upload(&asking, &input.bucket, &name).await?;
        let algorithm = match (upload.algorithm(), announced.algorithm) {
            (Algorithm::None, announced) => announced.unwrap_or(Algorithm::None),
            (algorithm, None) => algorithm,
            (algorithm, Some(announced)) if algorithm == announced => algorithm,
            (_, Some(_)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Checksum Type mismatch occurred: the upload has another algorithm"
                ));
            }
        };
        let receiver = Receiver {
            blobs: &*self.blobs,
            metrics: &self.metrics,
            pace: &asking.pace,
            near: Self::near(&input.bucket),
            lanes: &self.lanes,
        };
        let held = receiver.reserve(length)?;
        let received = receiver
            .receive(
                input.body.take(),
                length,
                Hashes::new(algorithm, false),
                held,
            )
            .await?;
        let said = announced.said(trailers.as_ref())?;
        check_body(
            &received.hashed,
            input.content_md5.as_deref(),
            said.as_deref(),
        )?;
        let part = PartRow {
            md5: hashes::hex(&received.hashed.md5),
            checksum: checksum_row(algorithm, received.hashed.checksum.clone()),
            ..one_row(received.parts.clone())?
        };
        let put = PutPart {
            name: Some(name),
            number,
            part: Some(part),
        };
        let stored = self
            .put_part(&asking, &input.bucket, received.fresh, put)
            .await?;
        let sum = checksum_out(stored.checksum.as_ref());
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(etag(&stored.md5)),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..UploadPartOutput::default()
        }))
    }

    pub(super) async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let number = number_in(input.part_number)?;
        let range = input
            .copy_source_range
            .as_deref()
            .map(copy_range)
            .transpose()?;
        let name = UploadName {
            key: input.key.clone(),
            upload: upload_in(&input.upload_id)?,
        };
        let upload = self.upload(&asking, &input.bucket, &name).await?;
        let conditions = SourceConditions {
            if_match: input.copy_source_if_match.as_ref(),
            if_none_match: input.copy_source_if_none_match.as_ref(),
            if_modified_since: input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: input.copy_source_if_unmodified_since.as_ref(),
        };
        let source = self
            .source(&asking, &input.copy_source, conditions, range)
            .await?;
        // The part's ETag is the MD5 of its bytes, which no chunk list knows.
        let algorithm = upload.algorithm();
        let length = source.found.end - source.found.start;
        let segments = futures::stream::iter(source.segments.clone().into_iter().map(Ok));
        let mut bytes = Download::start(
            self.blobs.clone(),
            &self.reads,
            &self.metrics,
            asking.pace.clone(),
            Self::near(&source.bucket),
            length,
            segments,
        )?;
        let mut hashing = Hashes::new(algorithm, false);
        while let Some(chunk) = bytes.next().await {
            let chunk =
                chunk.map_err(|source| S3Error::with_source(S3ErrorCode::InternalError, source))?;
            let begun = hashing.start(&self.lanes, chunk);
            hashing = begun.finish(&asking.pace.step()).await?;
        }
        let hashed = hashing.finish();
        self.adopt(&asking, &input.bucket, &source.bucket, &source.segments)
            .await?;
        let part = PartRow {
            md5: hashes::hex(&hashed.md5),
            checksum: checksum_row(algorithm, hashed.checksum),
            ..self
                .part_of(&asking, &input.bucket, &source.segments)
                .await?
        };
        let put = PutPart {
            name: Some(name),
            number,
            part: Some(part),
        };
        let fresh = leadline_kv::blobs::FRESH;
        let stored = self.put_part(&asking, &input.bucket, fresh, put).await?;
        let sum = checksum_out(stored.checksum.as_ref());
        let source_versioning = source.found.versioning();
        let from = source.found.object.unwrap_or_default();
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(CopyPartResult {
                e_tag: Some(etag(&stored.md5)),
                last_modified: Some(timestamp(stored.modified_ms)),
                checksum_crc32: sum.checksum_crc32,
                checksum_crc32c: sum.checksum_crc32c,
                checksum_crc64nvme: sum.checksum_crc64nvme,
                checksum_sha1: sum.checksum_sha1,
                checksum_sha256: sum.checksum_sha256,
            }),
            copy_source_version_id: version_out(&from, source_versioning),
            ..UploadPartCopyOutput::default()
        }))
    }

    /// One row for a part that was copied. Bytes that lie in a row at the source become a chunk, unless
    /// they are all there is.
    async fn part_of(
        &self,
        asking: &Asking,
        bucket: &str,
        segments: &[Segment],
    ) -> S3Result<PartRow> {
        if let [Segment::Inline(bytes)] = segments {
            return Ok(PartRow {
                size: bytes.len() as u64,
                inline: bytes.clone(),
                ..PartRow::default()
            });
        }
        let near = Self::near(bucket);
        let mut pieces = Vec::with_capacity(segments.len());
        for segment in segments {
            pieces.push(match segment {
                Segment::Chunk(piece) => *piece,
                Segment::Inline(bytes) => {
                    let held = self
                        .blobs
                        .try_reserve(bytes.len())
                        .map_err(|busy| error::slow_down(&busy.to_string(), busy.retry_after_ms))?;
                    let put = self
                        .blobs
                        .put(&asking.pace.step(), &near, bytes.clone(), &held)
                        .await;
                    Piece::whole(put.map_err(error::of_blob)?)
                }
            });
        }
        Ok(PartRow {
            size: pieces.iter().map(|piece| u64::from(piece.len)).sum(),
            pieces: Piece::encode_all(&pieces),
            ..PartRow::default()
        })
    }

    pub(super) async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let after = input.part_number_marker.unwrap_or(0);
        let act = Action::ListParts(crate::operation::ListParts {
            name: Some(UploadName {
                key: input.key.clone(),
                upload: upload_in(&input.upload_id)?,
            }),
            after: u32::try_from(after).unwrap_or(0),
            most: most_of(input.max_parts)?,
        });
        let answer = self
            .on(&asking, &input.bucket, "s3:ListMultipartUploadParts", act)
            .await?;
        let page = expect_answer!(answer, Parts);
        let upload = page.upload.unwrap_or_default();
        let object = upload.object.clone().unwrap_or_default();
        let last = page.parts.last().map_or(0, |part| part.number);
        let parts: Vec<_> = page
            .parts
            .into_iter()
            .map(|part| {
                let row = part.part.unwrap_or_default();
                let sum = checksum_out(row.checksum.as_ref());
                Part {
                    e_tag: Some(etag(&row.md5)),
                    last_modified: Some(timestamp(row.modified_ms / 1000 * 1000)),
                    part_number: i32::try_from(part.number).ok(),
                    size: Some(signed(row.size)),
                    checksum_crc32: sum.checksum_crc32,
                    checksum_crc32c: sum.checksum_crc32c,
                    checksum_crc64nvme: sum.checksum_crc64nvme,
                    checksum_sha1: sum.checksum_sha1,
                    checksum_sha256: sum.checksum_sha256,
                }
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            is_truncated: Some(page.truncated),
            max_parts: Some(input.max_parts.unwrap_or(1000)),
            next_part_number_marker: i32::try_from(last).ok(),
            part_number_marker: Some(after),
            parts: Some(parts),
            owner: Some(owner(&object.owner)),
            initiator: Some(Initiator {
                display_name: Some(object.owner.clone()),
                id: Some(object.owner.clone()),
            }),
            storage_class: Some(StorageClass::from(storage_class(&object))),
            checksum_algorithm: algorithm_name(upload.algorithm()),
            checksum_type: kind_out(upload.algorithm(), upload.composite),
            ..ListPartsOutput::default()
        }))
    }

    pub(super) async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let write = writer(input.encoding_type.as_ref())?;
        let list = List {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: input.key_marker.clone().unwrap_or_default(),
            after_id: input
                .upload_id_marker
                .clone()
                .filter(|_| input.key_marker.is_some())
                .unwrap_or_default(),
            most: most_of(input.max_uploads)?,
            versions: false,
        };
        let (bucket, action) = (&input.bucket, "s3:ListBucketMultipartUploads");
        let listed = self
            .page(&asking, bucket, action, Action::ListUploads(list))
            .await?;
        let uploads: Vec<_> = listed
            .entries
            .iter()
            .filter_map(|entry| Some((entry, entry.upload.as_deref()?)))
            .map(|(entry, upload)| {
                let object = upload.object.clone().unwrap_or_default();
                MultipartUpload {
                    checksum_algorithm: algorithm_name(upload.algorithm()),
                    checksum_type: kind_out(upload.algorithm(), upload.composite),
                    initiated: Some(timestamp(upload.initiated_ms)),
                    initiator: Some(Initiator {
                        display_name: Some(object.owner.clone()),
                        id: Some(object.owner.clone()),
                    }),
                    key: Some(write(&entry.key)),
                    owner: Some(owner(&object.owner)),
                    storage_class: Some(StorageClass::from(storage_class(&object))),
                    upload_id: Some(hashes::hex(&entry.upload_id)),
                }
            })
            .collect();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            common_prefixes: prefixes(&listed, write),
            delimiter: input
                .delimiter
                .as_deref()
                .filter(|d| !d.is_empty())
                .map(write),
            encoding_type: input.encoding_type,
            is_truncated: Some(listed.truncated),
            key_marker: Some(write(input.key_marker.as_deref().unwrap_or_default())),
            max_uploads: Some(input.max_uploads.unwrap_or(1000)),
            next_key_marker: listed.truncated.then(|| write(&listed.next)),
            next_upload_id_marker: listed.truncated.then(|| listed.next_id.clone()),
            prefix: Some(write(input.prefix.as_deref().unwrap_or_default())),
            upload_id_marker: input.upload_id_marker,
            uploads: (!uploads.is_empty()).then_some(uploads),
            bucket: Some(input.bucket),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    pub(super) async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let act = Action::AbortUpload(UploadName {
            key: input.key,
            upload: upload_in(&input.upload_id)?,
        });
        self.on(&asking, &input.bucket, "s3:AbortMultipartUpload", act)
            .await?;
        let mut response = S3Response::new(AbortMultipartUploadOutput::default());
        response.status = Some(StatusCode::NO_CONTENT);
        Ok(response)
    }

    pub(super) async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let asking = Asking::of(&request)?;
        let location = answers::location(&request.headers, &request.uri, request.uri.path());
        let input = request.input;
        let named = input.multipart_upload.unwrap_or_default().parts;
        let parts = named
            .unwrap_or_default()
            .into_iter()
            .map(|part| {
                let checksum = [
                    part.checksum_crc32,
                    part.checksum_crc32c,
                    part.checksum_crc64nvme,
                    part.checksum_sha1,
                    part.checksum_sha256,
                ];
                Ok(CompletePart {
                    number: number_in(part.part_number.unwrap_or(0))?,
                    etag: part
                        .e_tag
                        .map_or_else(String::new, |etag| etag.into_value()),
                    checksum: checksum.into_iter().flatten().next().unwrap_or_default(),
                })
            })
            .collect::<S3Result<Vec<_>>>()?;
        if parts.is_empty() {
            return Err(s3_error!(
                MalformedXML,
                "You must specify at least one part"
            ));
        }
        let checksum = checksum_in(&request.headers)?.map(|(algorithm, value)| ChecksumRow {
            algorithm: algorithm.into(),
            composite: value.contains('-'),
            value,
        });
        let composite = match input.checksum_type.as_ref().map(|kind| kind.as_str()) {
            None => None,
            Some(ChecksumType::COMPOSITE) => Some(true),
            Some(ChecksumType::FULL_OBJECT) => Some(false),
            Some(_) => return Err(s3_error!(InvalidRequest, "an unknown checksum type")),
        };
        let complete = Complete {
            name: Some(UploadName {
                key: input.key.clone(),
                upload: upload_in(&input.upload_id)?,
            }),
            parts,
            conditions: Some(WriteConditions {
                if_match: condition(input.if_match.as_ref()),
                if_none_match: condition(input.if_none_match.as_ref()),
                ..WriteConditions::default()
            }),
            checksum,
            size: input
                .mpu_object_size
                .and_then(|size| u64::try_from(size).ok()),
            composite,
        };
        let act = Action::Complete(complete);
        let answer = self.on(&asking, &input.bucket, "s3:PutObject", act).await?;
        let found = *expect_answer!(answer, Object);
        let versioning = found.versioning();
        let stored = found.object.unwrap_or_default();
        let sum = checksum_out(stored.checksum.as_ref());
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(location),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&stored.etag)),
            version_id: version_out(&stored, versioning),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
            ..CompleteMultipartUploadOutput::default()
        }))
    }
}

/// `bytes=first-last`.
fn copy_range(text: &str) -> S3Result<(u64, u64)> {
    let bounds = text
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .filter(|(first, last)| first <= last);
    bounds.ok_or_else(|| {
        s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last"
        )
    })
}

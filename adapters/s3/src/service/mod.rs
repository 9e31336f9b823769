//! What S3 requests mean: each becomes an operation on its bucket's shard, with the bytes of bodies
//! around it.

mod buckets;
mod convert;
mod copy;
mod listings;
mod multipart;
mod objects;
mod rules;

use std::sync::Arc;

use leadline_kv::blobs::Blobs;
use s3s::dto::*;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use crate::body::{Pace, ReadBudget};
use crate::error::Asked;
use crate::identity::Identity;
use crate::metrics::S3Metrics;
use crate::operation::{Action, Answer};
use crate::rows::BucketKeys;
use crate::store::{Failure, Store};

pub(crate) use convert::{algorithm_named, check_body, checksum_in, escape, unescape, unsupported};

/// The S3 service of a node.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) reads: Arc<ReadBudget>,
    pub(crate) lanes: crate::hashes::Lanes,
    pub(crate) metrics: S3Metrics,
}

/// A request's own: who sends it and how long it may take.
#[derive(Clone, Debug)]
struct Asking {
    identity: Identity,
    pace: Pace,
}

impl Asking {
    fn of<T>(request: &S3Request<T>) -> S3Result<Self> {
        let pace = request.extensions.get::<Pace>();
        let identity = request.extensions.get::<Identity>();
        match (pace, identity) {
            (Some(pace), Some(identity)) => Ok(Self {
                identity: identity.clone(),
                pace: pace.clone(),
            }),
            _ => Err(s3_error!(InternalError, "a request without its context")),
        }
    }
}

impl Service {
    /// Runs an operation on a bucket, as whoever asks.
    async fn on(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        act: Action,
    ) -> Result<Answer, Failure> {
        let who = asking.identity.who(bucket);
        self.store
            .on(&asking.pace.step(), who, bucket, action, act)
            .await
    }

    fn near(bucket: &str) -> bytes::Bytes {
        BucketKeys::new(bucket).prefix()
    }
}

/// The answer of the kind that was asked for.
macro_rules! expect_answer {
    ($answer:expr, $kind:ident) => {
        match $answer {
            crate::operation::Answer::$kind(answer) => answer,
            _ => return Err(crate::store::Failure::Malformed.into()),
        }
    };
}
use expect_answer;

fn as_s3(asked: Asked) -> impl FnOnce(Failure) -> S3Error {
    move |failure| failure.into_s3(asked)
}

/// Passes each S3 operation on to the method that does it.
macro_rules! operations {
    ($($name:ident: $input:ident => $output:ident,)*) => {
        #[async_trait::async_trait]
        impl S3 for Service {
            $(
                async fn $name(
                    &self,
                    request: S3Request<$input>,
                ) -> S3Result<S3Response<$output>> {
                    Service::$name(self, request).await
                }
            )*
        }
    };
}

operations! {
    list_buckets: ListBucketsInput => ListBucketsOutput,
    create_bucket: CreateBucketInput => CreateBucketOutput,
    head_bucket: HeadBucketInput => HeadBucketOutput,
    delete_bucket: DeleteBucketInput => DeleteBucketOutput,
    get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput,
    get_bucket_versioning: GetBucketVersioningInput => GetBucketVersioningOutput,
    put_bucket_versioning: PutBucketVersioningInput => PutBucketVersioningOutput,
    get_bucket_policy: GetBucketPolicyInput => GetBucketPolicyOutput,
    put_bucket_policy: PutBucketPolicyInput => PutBucketPolicyOutput,
    delete_bucket_policy: DeleteBucketPolicyInput => DeleteBucketPolicyOutput,
    get_bucket_policy_status: GetBucketPolicyStatusInput => GetBucketPolicyStatusOutput,
    get_bucket_acl: GetBucketAclInput => GetBucketAclOutput,
    put_bucket_acl: PutBucketAclInput => PutBucketAclOutput,
    get_bucket_cors: GetBucketCorsInput => GetBucketCorsOutput,
    put_bucket_cors: PutBucketCorsInput => PutBucketCorsOutput,
    delete_bucket_cors: DeleteBucketCorsInput => DeleteBucketCorsOutput,
    get_bucket_tagging: GetBucketTaggingInput => GetBucketTaggingOutput,
    put_bucket_tagging: PutBucketTaggingInput => PutBucketTaggingOutput,
    delete_bucket_tagging: DeleteBucketTaggingInput => DeleteBucketTaggingOutput,
    get_bucket_lifecycle_configuration: GetBucketLifecycleConfigurationInput => GetBucketLifecycleConfigurationOutput,
    put_bucket_lifecycle_configuration: PutBucketLifecycleConfigurationInput => PutBucketLifecycleConfigurationOutput,
    delete_bucket_lifecycle: DeleteBucketLifecycleInput => DeleteBucketLifecycleOutput,
    put_object: PutObjectInput => PutObjectOutput,
    get_object: GetObjectInput => GetObjectOutput,
    head_object: HeadObjectInput => HeadObjectOutput,
    get_object_attributes: GetObjectAttributesInput => GetObjectAttributesOutput,
    delete_object: DeleteObjectInput => DeleteObjectOutput,
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
    get_object_tagging: GetObjectTaggingInput => GetObjectTaggingOutput,
    put_object_tagging: PutObjectTaggingInput => PutObjectTaggingOutput,
    delete_object_tagging: DeleteObjectTaggingInput => DeleteObjectTaggingOutput,
    get_object_acl: GetObjectAclInput => GetObjectAclOutput,
    put_object_acl: PutObjectAclInput => PutObjectAclOutput,
    copy_object: CopyObjectInput => CopyObjectOutput,
    list_objects: ListObjectsInput => ListObjectsOutput,
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
    list_object_versions: ListObjectVersionsInput => ListObjectVersionsOutput,
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
    upload_part: UploadPartInput => UploadPartOutput,
    upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput,
    list_parts: ListPartsInput => ListPartsOutput,
    list_multipart_uploads: ListMultipartUploadsInput => ListMultipartUploadsOutput,
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput,
}

//! Buckets and their configurations.

use bytes::Bytes;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::convert::{AclSaid, acl_in, acl_of_grants, acl_said, check_bucket_tags, grants, owner};
use super::{Asking, Service, as_s3, expect_answer, rules};
use crate::document::Document;
use crate::error::{Asked, timestamp};
use crate::operation::{
    Action, Configuration, Configure, CreateBucket, Empty, HeadBucket, Kind, policy_is_public,
};
use crate::policy;
use crate::rows::{BucketRow, Level, Versioning};

/// Paths of the probes, which share the port: no bucket may hide them.
const RESERVED: [&str; 3] = ["healthz", "readyz", "livez"];

/// Rules of one configuration.
const MOST_CORS_RULES: usize = 100;

/// The region of a store that has none.
pub(crate) const REGION: &str = "us-east-1";

impl Service {
    pub(super) async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let asking = Asking::of(&request)?;
        if asking.identity.access_key().is_empty() {
            return Err(s3_error!(AccessDenied));
        }
        let input = request.input;
        let answer = self
            .on(
                &asking,
                "",
                "s3:ListAllMyBuckets",
                Action::ListBuckets(Empty {}),
            )
            .await?;
        let all = expect_answer!(answer, Buckets).buckets;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.unwrap_or_default();
        let most = input
            .max_buckets
            .and_then(|most| usize::try_from(most).ok())
            .unwrap_or(usize::MAX);
        let mut shown: Vec<_> = all
            .into_iter()
            .filter(|bucket| asking.identity.sees(&bucket.name, &bucket.owner))
            .filter(|bucket| bucket.name.starts_with(&prefix) && bucket.name > after)
            .take(most.saturating_add(1))
            .collect();
        let more = shown.len() > most;
        shown.truncate(most);
        Ok(S3Response::new(ListBucketsOutput {
            continuation_token: shown
                .last()
                .filter(|_| more)
                .map(|bucket| bucket.name.clone()),
            buckets: Some(
                shown
                    .into_iter()
                    .map(|bucket| Bucket {
                        bucket_region: None,
                        creation_date: Some(timestamp(bucket.created_ms)),
                        name: Some(bucket.name),
                    })
                    .collect(),
            ),
            owner: Some(owner(asking.identity.access_key())),
            prefix: input.prefix,
        }))
    }

    pub(super) async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let asking = Asking::of(&request)?;
        let tags = request.extensions.get().and_then(Document::tags);
        let input = request.input;
        if RESERVED.contains(&input.bucket.as_str()) {
            return Err(S3Error::with_message(
                S3ErrorCode::InvalidBucketName,
                format!("/{} is a health probe on this port", input.bucket),
            ));
        }
        if input.object_lock_enabled_for_bucket == Some(true) {
            return Err(s3_error!(
                NotImplemented,
                "object lock is not implemented (docs/s3.md)"
            ));
        }
        let region = input
            .create_bucket_configuration
            .and_then(|configuration| configuration.location_constraint)
            .map_or_else(String::new, |region| region.as_str().to_owned());
        let mut create = CreateBucket {
            region,
            acl: acl_in(input.acl.as_ref().map(|acl| acl.as_str()))?.into(),
            tagging: None,
        };
        if let Some(tagging) = tags {
            check_bucket_tags(&tagging)?;
            let text = serde_json::to_vec(&tagging).map_err(S3Error::internal_error)?;
            create.tagging = Some(text.into());
        }
        self.on(
            &asking,
            &input.bucket,
            "s3:CreateBucket",
            Action::CreateBucket(create),
        )
        .await?;
        Ok(S3Response::new(CreateBucketOutput {
            location: Some(format!("/{}", input.bucket)),
        }))
    }

    /// The bucket, if whoever asks has `level` there.
    async fn bucket(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        level: Level,
    ) -> S3Result<BucketRow> {
        let head = HeadBucket {
            level: level.into(),
            ..HeadBucket::default()
        };
        let answer = self
            .on(asking, bucket, action, Action::HeadBucket(head))
            .await?;
        Ok(expect_answer!(answer, Bucket))
    }

    pub(super) async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = self
            .bucket(&asking, &request.input.bucket, "s3:ListBucket", Level::Read)
            .await?;
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(region_of(&bucket)),
            ..HeadBucketOutput::default()
        }))
    }

    pub(super) async fn delete_bucket(
        &self,
        request: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let asking = Asking::of(&request)?;
        let act = Action::DeleteBucket(Empty {});
        self.on(&asking, &request.input.bucket, "s3:DeleteBucket", act)
            .await?;
        let mut response = S3Response::new(DeleteBucketOutput::default());
        response.status = Some(http::StatusCode::NO_CONTENT);
        Ok(response)
    }

    pub(super) async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = self
            .bucket(
                &asking,
                &request.input.bucket,
                "s3:GetBucketLocation",
                Level::Read,
            )
            .await?;
        // The first region is an absent one.
        let constraint =
            Some(bucket.region).filter(|region| !region.is_empty() && region != REGION);
        Ok(S3Response::new(GetBucketLocationOutput {
            location_constraint: constraint.map(BucketLocationConstraint::from),
        }))
    }

    pub(super) async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = self
            .bucket(
                &asking,
                &request.input.bucket,
                "s3:GetBucketVersioning",
                Level::Read,
            )
            .await?;
        let status = match bucket.versioning() {
            Versioning::Never => None,
            Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
            Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
        };
        Ok(S3Response::new(GetBucketVersioningOutput {
            mfa_delete: None,
            status: status.map(BucketVersioningStatus::from_static),
        }))
    }

    pub(super) async fn put_bucket_versioning(
        &self,
        request: S3Request<PutBucketVersioningInput>,
    ) -> S3Result<S3Response<PutBucketVersioningOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let wanted = input.versioning_configuration;
        if wanted
            .mfa_delete
            .is_some_and(|mfa| mfa.as_str() == MFADelete::ENABLED)
        {
            return Err(s3_error!(
                NotImplemented,
                "MFA delete is not implemented (docs/s3.md)"
            ));
        }
        let versioning = match wanted.status.as_ref().map(|status| status.as_str()) {
            Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
            Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
            _ => return Err(s3_error!(MalformedXML, "Status is Enabled or Suspended")),
        };
        let change = Configure {
            kind: Kind::Versioning.into(),
            versioning: versioning.into(),
            ..Configure::default()
        };
        self.configure(&asking, &input.bucket, "s3:PutBucketVersioning", change)
            .await?;
        Ok(S3Response::new(PutBucketVersioningOutput::default()))
    }

    async fn configure(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        change: Configure,
    ) -> S3Result<()> {
        self.on(asking, bucket, action, Action::Configure(change))
            .await?;
        Ok(())
    }

    /// Keeps a configuration as JSON, or drops it.
    async fn keep<T: Serialize>(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        kind: Kind,
        configuration: Option<&T>,
    ) -> S3Result<()> {
        let text = configuration
            .map(serde_json::to_vec)
            .transpose()
            .map_err(S3Error::internal_error)?;
        let change = Configure {
            kind: kind.into(),
            text: text.map(Bytes::from),
            ..Configure::default()
        };
        self.configure(asking, bucket, action, change).await
    }

    async fn kept_text(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        kind: Kind,
        asked: Asked,
    ) -> S3Result<Bytes> {
        let which = Configuration {
            kind: kind.into(),
            internal: false,
        };
        let answer = self
            .on(asking, bucket, action, Action::Configuration(which))
            .await
            .map_err(as_s3(asked))?;
        Ok(expect_answer!(answer, Text))
    }

    async fn kept<T: DeserializeOwned>(
        &self,
        asking: &Asking,
        bucket: &str,
        action: &str,
        kind: Kind,
        asked: Asked,
    ) -> S3Result<T> {
        let text = self.kept_text(asking, bucket, action, kind, asked).await?;
        serde_json::from_slice(&text).map_err(S3Error::internal_error)
    }

    pub(super) async fn get_bucket_policy(
        &self,
        request: S3Request<GetBucketPolicyInput>,
    ) -> S3Result<S3Response<GetBucketPolicyOutput>> {
        let asking = Asking::of(&request)?;
        let text = self
            .kept_text(
                &asking,
                &request.input.bucket,
                "s3:GetBucketPolicy",
                Kind::Policy,
                Asked::Policy,
            )
            .await?;
        let policy = String::from_utf8(text.to_vec()).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(GetBucketPolicyOutput {
            policy: Some(policy),
        }))
    }

    pub(super) async fn put_bucket_policy(
        &self,
        request: S3Request<PutBucketPolicyInput>,
    ) -> S3Result<S3Response<PutBucketPolicyOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let compiled = policy::compile(&input.bucket, &input.policy)
            .map_err(|why| S3Error::with_message(S3ErrorCode::MalformedPolicy, why))?;
        let change = Configure {
            kind: Kind::Policy.into(),
            text: Some(Bytes::from(input.policy)),
            policy: Some(compiled),
            ..Configure::default()
        };
        self.configure(&asking, &input.bucket, "s3:PutBucketPolicy", change)
            .await?;
        let mut response = S3Response::new(PutBucketPolicyOutput::default());
        response.status = Some(http::StatusCode::NO_CONTENT);
        Ok(response)
    }

    pub(super) async fn delete_bucket_policy(
        &self,
        request: S3Request<DeleteBucketPolicyInput>,
    ) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
        let asking = Asking::of(&request)?;
        let change = Configure {
            kind: Kind::Policy.into(),
            ..Configure::default()
        };
        let bucket = &request.input.bucket;
        self.configure(&asking, bucket, "s3:DeleteBucketPolicy", change)
            .await?;
        Ok(no_content(DeleteBucketPolicyOutput::default()))
    }

    pub(super) async fn get_bucket_policy_status(
        &self,
        request: S3Request<GetBucketPolicyStatusInput>,
    ) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        let row = self
            .bucket(&asking, bucket, "s3:GetBucketPolicyStatus", Level::Owner)
            .await?;
        let Some(policy) = &row.policy else {
            return Err(s3_error!(NoSuchBucketPolicy));
        };
        Ok(S3Response::new(GetBucketPolicyStatusOutput {
            policy_status: Some(PolicyStatus {
                is_public: Some(policy_is_public(policy)),
            }),
        }))
    }

    pub(super) async fn get_bucket_acl(
        &self,
        request: S3Request<GetBucketAclInput>,
    ) -> S3Result<S3Response<GetBucketAclOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        let row = self
            .bucket(&asking, bucket, "s3:GetBucketAcl", Level::Owner)
            .await?;
        Ok(S3Response::new(GetBucketAclOutput {
            grants: Some(grants(row.acl(), &row.owner)),
            owner: Some(owner(&row.owner)),
        }))
    }

    pub(super) async fn put_bucket_acl(
        &self,
        request: S3Request<PutBucketAclInput>,
    ) -> S3Result<S3Response<PutBucketAclOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let canned = input.acl.as_ref().map(|acl| acl.as_str());
        let acl = match acl_said(canned, input.access_control_policy)? {
            AclSaid::Canned(acl) => acl,
            AclSaid::Grants(grants) => {
                let row = self
                    .bucket(&asking, &input.bucket, "s3:PutBucketAcl", Level::Owner)
                    .await?;
                acl_of_grants(grants, &row.owner)?
            }
        };
        let change = Configure {
            kind: Kind::Acl.into(),
            acl: acl.into(),
            ..Configure::default()
        };
        self.configure(&asking, &input.bucket, "s3:PutBucketAcl", change)
            .await?;
        Ok(S3Response::new(PutBucketAclOutput::default()))
    }

    pub(super) async fn get_bucket_cors(
        &self,
        request: S3Request<GetBucketCorsInput>,
    ) -> S3Result<S3Response<GetBucketCorsOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        let kept: CORSConfiguration = self
            .kept(&asking, bucket, "s3:GetBucketCORS", Kind::Cors, Asked::Cors)
            .await?;
        Ok(S3Response::new(GetBucketCorsOutput {
            cors_rules: Some(kept.cors_rules),
        }))
    }

    pub(super) async fn put_bucket_cors(
        &self,
        request: S3Request<PutBucketCorsInput>,
    ) -> S3Result<S3Response<PutBucketCorsOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let cors = input.cors_configuration;
        if cors.cors_rules.is_empty() || cors.cors_rules.len() > MOST_CORS_RULES {
            return Err(s3_error!(MalformedXML, "there are 1 to 100 CORS rules"));
        }
        for rule in &cors.cors_rules {
            for method in &rule.allowed_methods {
                if !matches!(method.as_str(), "GET" | "PUT" | "POST" | "DELETE" | "HEAD") {
                    return Err(S3Error::with_message(
                        S3ErrorCode::InvalidRequest,
                        format!("{method} is not a method that CORS may allow"),
                    ));
                }
            }
        }
        self.keep(
            &asking,
            &input.bucket,
            "s3:PutBucketCORS",
            Kind::Cors,
            Some(&cors),
        )
        .await?;
        Ok(S3Response::new(PutBucketCorsOutput::default()))
    }

    pub(super) async fn delete_bucket_cors(
        &self,
        request: S3Request<DeleteBucketCorsInput>,
    ) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        self.keep::<()>(&asking, bucket, "s3:PutBucketCORS", Kind::Cors, None)
            .await?;
        Ok(no_content(DeleteBucketCorsOutput::default()))
    }

    pub(super) async fn get_bucket_tagging(
        &self,
        request: S3Request<GetBucketTaggingInput>,
    ) -> S3Result<S3Response<GetBucketTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        let kept: Tagging = self
            .kept(
                &asking,
                bucket,
                "s3:GetBucketTagging",
                Kind::Tagging,
                Asked::Tags,
            )
            .await?;
        Ok(S3Response::new(GetBucketTaggingOutput {
            tag_set: kept.tag_set,
        }))
    }

    pub(super) async fn put_bucket_tagging(
        &self,
        request: S3Request<PutBucketTaggingInput>,
    ) -> S3Result<S3Response<PutBucketTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        check_bucket_tags(&input.tagging)?;
        let tags = Some(&input.tagging);
        self.keep(
            &asking,
            &input.bucket,
            "s3:PutBucketTagging",
            Kind::Tagging,
            tags,
        )
        .await?;
        Ok(no_content(PutBucketTaggingOutput::default()))
    }

    pub(super) async fn delete_bucket_tagging(
        &self,
        request: S3Request<DeleteBucketTaggingInput>,
    ) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
        let asking = Asking::of(&request)?;
        let bucket = &request.input.bucket;
        self.keep::<()>(&asking, bucket, "s3:PutBucketTagging", Kind::Tagging, None)
            .await?;
        Ok(no_content(DeleteBucketTaggingOutput::default()))
    }

    pub(super) async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
        let asking = Asking::of(&request)?;
        let kept: rules::Kept = self
            .kept(
                &asking,
                &request.input.bucket,
                "s3:GetLifecycleConfiguration",
                Kind::Lifecycle,
                Asked::Lifecycle,
            )
            .await?;
        let smallest = kept.smallest();
        let mut response = S3Response::new(GetBucketLifecycleConfigurationOutput {
            rules: Some(kept.configuration.rules),
            ..GetBucketLifecycleConfigurationOutput::default()
        });
        response.headers.insert(rules::SMALLEST, smallest);
        Ok(response)
    }

    pub(super) async fn put_bucket_lifecycle_configuration(
        &self,
        request: S3Request<PutBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
        let asking = Asking::of(&request)?;
        let input = request.input;
        let configuration = input.lifecycle_configuration.unwrap_or_default();
        let smallest = request.headers.get(rules::SMALLEST);
        let kept = rules::Kept::new(configuration, smallest)?;
        self.keep(
            &asking,
            &input.bucket,
            "s3:PutLifecycleConfiguration",
            Kind::Lifecycle,
            Some(&kept),
        )
        .await?;
        let mut response = S3Response::new(PutBucketLifecycleConfigurationOutput::default());
        response.headers.insert(rules::SMALLEST, kept.smallest());
        Ok(response)
    }

    pub(super) async fn delete_bucket_lifecycle(
        &self,
        request: S3Request<DeleteBucketLifecycleInput>,
    ) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
        let asking = Asking::of(&request)?;
        let (bucket, action) = (&request.input.bucket, "s3:PutLifecycleConfiguration");
        self.keep::<()>(&asking, bucket, action, Kind::Lifecycle, None)
            .await?;
        Ok(no_content(DeleteBucketLifecycleOutput::default()))
    }
}

fn no_content<T>(output: T) -> S3Response<T> {
    let mut response = S3Response::new(output);
    response.status = Some(http::StatusCode::NO_CONTENT);
    response
}

fn region_of(bucket: &BucketRow) -> String {
    if bucket.region.is_empty() {
        REGION.to_owned()
    } else {
        bucket.region.clone()
    }
}

//! Lifecycle rules as AWS takes them. Rules that would do nothing, or something else than they say,
//! are refused.

use std::collections::HashSet;

use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, Time};

/// Rules of one configuration.
const MOST_RULES: usize = 1000;
/// Characters of a rule's name.
const LONGEST_ID: usize = 255;

/// The header that says which objects transitions leave alone. There are no transitions, and clients
/// ask until they read what they wrote.
pub(super) const SMALLEST: &str = "x-amz-transition-default-minimum-object-size";
const SMALLEST_UNSAID: &str = TransitionDefaultMinimumObjectSize::ALL_STORAGE_CLASSES_128K;

/// A lifecycle configuration as it is kept; the sweep reads only its rules.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(flatten)]
    pub(super) configuration: BucketLifecycleConfiguration,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    smallest: Option<String>,
}

impl Kept {
    /// `smallest` is the header's value.
    pub(super) fn new(
        mut configuration: BucketLifecycleConfiguration,
        smallest: Option<&http::HeaderValue>,
    ) -> S3Result<Self> {
        check(&configuration.rules)?;
        for rule in &mut configuration.rules {
            rule.id
                .get_or_insert_with(|| format!("{:032x}", rand::random::<u128>()));
        }
        let smallest = match smallest.map(http::HeaderValue::as_bytes) {
            None => None,
            Some(b"all_storage_classes_128K") => Some(SMALLEST_UNSAID.to_owned()),
            Some(b"varies_by_storage_class") => {
                Some(TransitionDefaultMinimumObjectSize::VARIES_BY_STORAGE_CLASS.to_owned())
            }
            Some(_) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Invalid value for x-amz-transition-default-minimum-object-size header"
                ));
            }
        };
        Ok(Self {
            configuration,
            smallest,
        })
    }

    /// The header's value in answers.
    pub(super) fn smallest(&self) -> http::HeaderValue {
        let said = self.smallest.as_deref().unwrap_or(SMALLEST_UNSAID);
        http::HeaderValue::from_str(said).unwrap_or(http::HeaderValue::from_static(SMALLEST_UNSAID))
    }
}

fn wrong(code: S3ErrorCode, why: &'static str) -> S3Result<()> {
    Err(S3Error::with_message(code, why))
}

fn check(rules: &[LifecycleRule]) -> S3Result<()> {
    if rules.is_empty() || rules.len() > MOST_RULES {
        return wrong(
            S3ErrorCode::MalformedXML,
            "there are 1 to 1000 lifecycle rules",
        );
    }
    let mut ids = HashSet::new();
    for rule in rules {
        if let Some(id) = &rule.id {
            if id.chars().count() > LONGEST_ID {
                return wrong(
                    S3ErrorCode::InvalidArgument,
                    "ID length should not exceed allowed limit of 255",
                );
            }
            if !ids.insert(id) {
                return wrong(
                    S3ErrorCode::InvalidArgument,
                    "Rule ID must be unique. Found same ID for more than one rule",
                );
            }
        }
        check_rule(rule)?;
        check_filter(rule)?;
    }
    Ok(())
}

fn check_rule(rule: &LifecycleRule) -> S3Result<()> {
    if rule.transitions.is_some() || rule.noncurrent_version_transitions.is_some() {
        return wrong(
            S3ErrorCode::NotImplemented,
            "there is one storage class: transitions are not implemented (docs/s3.md)",
        );
    }
    let older = rule.noncurrent_version_expiration.as_ref();
    if older.is_some_and(|older| older.newer_noncurrent_versions.is_some()) {
        return wrong(
            S3ErrorCode::NotImplemented,
            "NewerNoncurrentVersions is not implemented (docs/s3.md)",
        );
    }
    let abort = rule.abort_incomplete_multipart_upload.as_ref();
    let expiration = rule.expiration.as_ref();
    let days = [
        expiration.and_then(|expiration| expiration.days),
        older.and_then(|older| older.noncurrent_days),
        abort.and_then(|abort| abort.days_after_initiation),
    ];
    if days.into_iter().flatten().any(|days| days < 1) {
        return wrong(S3ErrorCode::InvalidArgument, "days are 1 or more");
    }
    if expiration.is_none() && older.is_none() && abort.is_none() {
        return wrong(
            S3ErrorCode::InvalidRequest,
            "a lifecycle rule has at least one action",
        );
    }
    let empty = older.is_some_and(|older| older.noncurrent_days.is_none())
        || abort.is_some_and(|abort| abort.days_after_initiation.is_none());
    if empty {
        return wrong(S3ErrorCode::MalformedXML, "an action has its days");
    }
    if let Some(expiration) = expiration {
        let marker = expiration.expired_object_delete_marker;
        let said = [
            expiration.days.is_some(),
            expiration.date.is_some(),
            marker.is_some(),
        ];
        if said.into_iter().filter(|said| *said).count() != 1 {
            return wrong(
                S3ErrorCode::MalformedXML,
                "an Expiration has one of Days, Date and ExpiredObjectDeleteMarker",
            );
        }
        let date = expiration.date.clone().map(OffsetDateTime::from);
        if date.is_some_and(|date| date.to_offset(time::UtcOffset::UTC).time() != Time::MIDNIGHT) {
            return wrong(
                S3ErrorCode::InvalidArgument,
                "'Date' must be at midnight GMT",
            );
        }
    }
    if !matches!(
        rule.status.as_str(),
        ExpirationStatus::ENABLED | ExpirationStatus::DISABLED
    ) {
        return wrong(S3ErrorCode::MalformedXML, "Status is Enabled or Disabled");
    }
    Ok(())
}

fn check_filter(rule: &LifecycleRule) -> S3Result<()> {
    let filter = match (&rule.filter, &rule.prefix) {
        (Some(filter), None) => filter,
        (None, Some(_)) => return Ok(()),
        (None, None) | (Some(_), Some(_)) => {
            return wrong(S3ErrorCode::MalformedXML, "a rule has a Filter or a Prefix");
        }
    };
    let count = |said: &[bool]| said.iter().filter(|said| **said).count();
    let and = filter.and.as_ref();
    let said = [
        filter.prefix.is_some(),
        filter.tag.is_some(),
        filter.object_size_greater_than.is_some(),
        filter.object_size_less_than.is_some(),
        and.is_some(),
    ];
    if count(&said) > 1 {
        return wrong(
            S3ErrorCode::MalformedXML,
            "a Filter has one condition; more are in And",
        );
    }
    let tags = and.and_then(|and| and.tags.as_ref()).map_or(0, Vec::len);
    let above = filter
        .object_size_greater_than
        .or(and.and_then(|and| and.object_size_greater_than));
    let below = filter
        .object_size_less_than
        .or(and.and_then(|and| and.object_size_less_than));
    if let Some(and) = and {
        let sizes = [above.is_some(), below.is_some(), and.prefix.is_some()];
        if tags + count(&sizes) < 2 {
            return wrong(S3ErrorCode::MalformedXML, "an And has two conditions");
        }
    }
    if above
        .zip(below)
        .is_some_and(|(above, below)| above >= below)
    {
        return wrong(
            S3ErrorCode::InvalidRequest,
            "ObjectSizeGreaterThan is less than ObjectSizeLessThan",
        );
    }
    let tagged = filter.tag.is_some() || tags > 0;
    let marker = rule.expiration.as_ref();
    let marker = marker.and_then(|expiration| expiration.expired_object_delete_marker);
    if tagged && marker.is_some() {
        return wrong(
            S3ErrorCode::InvalidRequest,
            "ExpiredObjectDeleteMarker cannot be specified with tags",
        );
    }
    let sized = above.is_some() || below.is_some();
    if rule.abort_incomplete_multipart_upload.is_some() && (tagged || sized) {
        return wrong(
            S3ErrorCode::InvalidRequest,
            "AbortIncompleteMultipartUpload cannot be specified with tags or sizes",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_the_sweep_reads() {
        let rule = LifecycleRule {
            abort_incomplete_multipart_upload: None,
            expiration: Some(LifecycleExpiration {
                days: Some(1),
                ..LifecycleExpiration::default()
            }),
            filter: Some(LifecycleRuleFilter::default()),
            id: None,
            noncurrent_version_expiration: None,
            noncurrent_version_transitions: None,
            prefix: None,
            status: ExpirationStatus::from_static(ExpirationStatus::ENABLED),
            transitions: None,
        };
        let given = BucketLifecycleConfiguration { rules: vec![rule] };
        let before = serde_json::to_vec(&given).unwrap();
        let smallest = http::HeaderValue::from_static("varies_by_storage_class");
        let kept = Kept::new(given, Some(&smallest)).unwrap();
        let text = serde_json::to_vec(&kept).unwrap();
        let read: BucketLifecycleConfiguration = serde_json::from_slice(&text).unwrap();
        assert!(read == kept.configuration);
        // What was kept before there was the header.
        let old: Kept = serde_json::from_slice(&before).unwrap();
        assert_eq!(old.smallest(), SMALLEST_UNSAID);
    }
}

//! Buckets and their configurations.

use leadline_kv::{Rows, ScanOrder};

use super::{
    Answer, Buckets, Configuration, Configure, CreateBucket, Empty, Evaluated, HeadBucket, Kind,
    NamedBucket, On, Refusal, Request, access, refused, versions,
};
use crate::rows::{self, BucketKeys, BucketRow, Level, Region, Versioning};

pub(super) fn create(rows: &mut dyn Rows, request: &Request, create: &CreateBucket) -> Evaluated {
    let who = request.who.clone().unwrap_or_default();
    if !who.creates {
        return Err(Refusal::AccessDenied.into());
    }
    let keys = BucketKeys::new(&request.bucket);
    if let Some(known) = rows.get(&keys.bucket())? {
        let known: BucketRow = rows::decode(&known)?;
        return Err(if access::is_owner(&known, request) {
            Refusal::BucketAlreadyOwnedByYou.into()
        } else {
            Refusal::BucketAlreadyExists.into()
        });
    }
    let bucket = BucketRow {
        created_ms: rows.commit_ts().millis(),
        owner: who.access_key,
        acl: create.acl,
        region: create.region.clone(),
        ..BucketRow::default()
    };
    rows.put(keys.bucket(), rows::encode(&bucket));
    if let Some(tagging) = &create.tagging {
        let row = keys.configuration(kind_byte(Kind::Tagging));
        rows.put(row, tagging.clone());
    }
    Ok(Answer::Bucket(bucket))
}

pub(super) fn head(on: &mut On<'_>, head: &HeadBucket) -> Evaluated {
    let key = (!head.key.is_empty()).then_some(head.key.as_str());
    on.authorize(key, head.level())?;
    for action in &head.also {
        on.authorize_action(action, key, head.level())?;
    }
    if let (Some(key), Some(conditions)) = (key, &head.conditions) {
        let current = versions::current(on, key)?;
        versions::check_write(current.as_ref(), conditions)?;
    }
    Ok(Answer::Bucket(on.bucket.clone()))
}

pub(super) fn delete(on: &mut On<'_>) -> Evaluated {
    on.owner_only()?;
    for region in [Region::Objects, Region::Versions] {
        let mut empty = true;
        let range = on.keys.region(region);
        on.rows.scan(range, ScanOrder::Ascending, &mut |_, _| {
            empty = false;
            false
        })?;
        if !empty {
            return Err(Refusal::BucketNotEmpty.into());
        }
    }
    // Uploads that nobody will complete go with the bucket.
    on.rows.delete_range(on.keys.all());
    Ok(Answer::Done(Empty {}))
}

/// Every bucket of the shard, each found by a jump over the rows of the one before.
pub(super) fn list(rows: &mut dyn Rows) -> Evaluated {
    let all = rows::keyspace();
    let owned = rows.owned();
    let (mut at, end) = (all.start.max(owned.start), all.end.min(owned.end));
    let mut buckets = Vec::new();
    while at < end {
        let mut first = None;
        rows.scan(at..end.clone(), ScanOrder::Ascending, &mut |key, row| {
            first = Some((bytes::Bytes::copy_from_slice(key), row.clone()));
            false
        })?;
        let Some((row_key, row)) = first else { break };
        if let Some(past) = rows::past_executor_rows(&row_key) {
            at = past;
            continue;
        }
        let Some(name) = rows::bucket_of(&row_key).map(str::to_owned) else {
            return Err(refused(Refusal::Unspecified, "a damaged bucket row"));
        };
        let keys = BucketKeys::new(&name);
        // The first row of a bucket is its own.
        if row_key == keys.bucket() {
            let bucket: BucketRow = rows::decode(&row)?;
            buckets.push(NamedBucket {
                name,
                created_ms: bucket.created_ms,
                owner: bucket.owner,
            });
        }
        at = keys.all().end;
    }
    Ok(Answer::Buckets(Buckets { buckets }))
}

pub(super) fn configure(on: &mut On<'_>, change: &Configure) -> Evaluated {
    on.owner_only()?;
    let kind = change.kind();
    match kind {
        Kind::Unspecified => return Err(Refusal::Unspecified.into()),
        Kind::Versioning => {
            // Once there may be versions there is no way back to none.
            if change.versioning() == Versioning::Never {
                return Err(Refusal::InvalidRequest.into());
            }
            on.bucket.versioning = change.versioning;
        }
        Kind::Acl => on.bucket.acl = change.acl,
        Kind::Policy => on.bucket.policy = change.policy.clone(),
        Kind::Lifecycle => on.bucket.lifecycle = change.text.is_some(),
        Kind::Cors | Kind::Tagging => {}
    }
    let row = on.keys.configuration(kind_byte(kind));
    match (&change.text, kind) {
        (_, Kind::Versioning | Kind::Acl) => {}
        (Some(text), _) => on.rows.put(row, text.clone()),
        (None, _) => on.rows.delete(row),
    }
    if !matches!(kind, Kind::Cors | Kind::Tagging) {
        let bucket = rows::encode(&on.bucket);
        on.rows.put(on.keys.bucket(), bucket);
    }
    Ok(Answer::Done(Empty {}))
}

pub(super) fn configuration(on: &mut On<'_>, which: &Configuration) -> Evaluated {
    if !which.internal {
        on.authorize(None, Level::Owner)?;
    }
    let row = on.keys.configuration(kind_byte(which.kind()));
    match on.rows.get(&row)? {
        Some(text) => Ok(Answer::Text(text)),
        None => Err(Refusal::NoSuchConfiguration.into()),
    }
}

pub(super) fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Unspecified => 0,
        Kind::Policy => 1,
        Kind::Cors => 2,
        Kind::Tagging => 3,
        Kind::Lifecycle => 4,
        Kind::Versioning => 5,
        Kind::Acl => 6,
    }
}

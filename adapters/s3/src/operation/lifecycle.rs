//! Lifecycle rules, in bounded steps by the leader of each shard: expiry of objects and of older
//! versions, and the end of uploads that nobody completes.
//!
//! A pass begins every [`EVERY`]; a step looks at so many rows or bytes ([`Budget`]) and says where the next one goes
//! on. Where a pass stands is the leader's memory only: a new leader begins again, and finds nothing
//! left where the old one was.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use leadline_kv::executor::Sweep;
use leadline_kv::{Access, Door, Operation, Route, RowError, Rows, ScanOrder};
use parking_lot::Mutex;
use s3s::dto::{BucketLifecycleConfiguration, ExpirationStatus, LifecycleRule};
use tokio::time::Instant;

use super::{
    Action, Answer, Empty, Kind, Lifecycle, On, Request, Stop, Who, answer, buckets, versions,
};
use crate::rows::{
    self, BucketKeys, BucketRow, Level, ObjectRow, Region, UploadRow, Versioning, after,
};

/// How often a pass over a shard begins.
const EVERY: Duration = Duration::from_secs(60);
/// Rows that one step looks at.
const LOOKED_AT: usize = 1000;
/// Bytes of them. What expires may be written anew as an older version, and all of that must stay
/// far below what one command may write.
const BYTES_LOOKED_AT: usize = 2 << 20;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The lifecycle of the shards that this node leads.
#[derive(Debug, Default)]
pub(crate) struct LifecycleSweep {
    passes: Arc<Mutex<HashMap<Bytes, Pass>>>,
}

/// Where a shard's pass is.
#[derive(Clone, Debug)]
struct Pass {
    began: Instant,
    /// `None`: over.
    after: Option<Bytes>,
}

impl Sweep for LifecycleSweep {
    fn next(&self, owned: &Range<Bytes>) -> Option<Arc<dyn Operation>> {
        let all = rows::keyspace();
        if owned.start >= all.end || owned.end <= all.start {
            return None;
        }
        let mut passes = self.passes.lock();
        let pass = passes.entry(owned.start.clone()).or_insert_with(|| Pass {
            began: Instant::now(),
            after: Some(Bytes::new()),
        });
        if pass.after.is_none() && pass.began.elapsed() >= EVERY {
            *pass = Pass {
                began: Instant::now(),
                after: Some(Bytes::new()),
            };
        }
        let step = Lifecycle {
            after: pass.after.clone()?,
        };
        Some(Arc::new(Step {
            shard: owned.start.clone(),
            keys: [owned.start.clone().max(all.start)],
            step,
            passes: Arc::clone(&self.passes),
        }))
    }
}

/// One step, which notes where it stopped.
#[derive(Debug)]
struct Step {
    shard: Bytes,
    keys: [Bytes; 1],
    step: Lifecycle,
    passes: Arc<Mutex<HashMap<Bytes, Pass>>>,
}

impl Operation for Step {
    fn name(&self) -> &'static str {
        "s3.lifecycle"
    }

    fn door(&self) -> Door {
        Door::S3
    }

    fn access(&self) -> Access {
        Access::Write
    }

    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }

    fn size(&self) -> usize {
        256
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let evaluated = evaluate(rows, &self.step);
        if let Ok((_, next)) = &evaluated
            && let Some(pass) = self.passes.lock().get_mut(&self.shard)
        {
            pass.after.clone_from(next);
        }
        answer(evaluated.map(|(answer, _)| answer))
    }

    fn encode(&self, out: &mut BytesMut) {
        let request = Request {
            act: Some(Action::Lifecycle(self.step.clone())),
            ..Request::default()
        };
        prost::Message::encode(&request, out).expect("a BytesMut grows as needed");
    }
}

/// What a step may still look at.
struct Budget {
    rows: usize,
    bytes: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }

    /// The last row may be larger than what is left.
    fn spend(&mut self, bytes: usize) {
        self.rows -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Does one step; gives where the next goes on, if it does.
pub(super) fn evaluate(
    rows: &mut dyn Rows,
    step: &Lifecycle,
) -> Result<(Answer, Option<Bytes>), Stop> {
    let all = rows::keyspace();
    let owned = rows.owned();
    let end = all.end.min(owned.end);
    let mut at = step.after.clone().max(all.start).max(owned.start);
    let mut budget = Budget {
        rows: LOOKED_AT,
        bytes: BYTES_LOOKED_AT,
    };
    while !budget.is_spent() && at < end {
        let mut first = None;
        rows.scan(
            at.clone()..end.clone(),
            ScanOrder::Ascending,
            &mut |key, _| {
                first = Some(Bytes::copy_from_slice(key));
                false
            },
        )?;
        let Some(row_key) = first else {
            return Ok((Answer::Done(Empty {}), None));
        };
        if let Some(past) = rows::past_executor_rows(&row_key) {
            at = past;
            continue;
        }
        let Some(name) = rows::bucket_of(&row_key).map(str::to_owned) else {
            let shown = row_key[..row_key.len().min(40)].escape_ascii();
            return Err(Stop::Rows(RowError::Storage(format!(
                "a damaged S3 row key {shown}"
            ))));
        };
        let keys = BucketKeys::new(&name);
        at = match with_rules(rows, &keys)? {
            None => {
                budget.spend(0);
                keys.all().end
            }
            Some((bucket, rules)) => {
                let request = Request {
                    who: Some(Who {
                        level: Level::Owner.into(),
                        ..Who::default()
                    }),
                    bucket: name,
                    ..Request::default()
                };
                let mut on = On {
                    rows: &mut *rows,
                    request: &request,
                    keys,
                    bucket,
                };
                walk(&mut on, &rules, row_key, &mut budget)?
            }
        };
    }
    Ok((Answer::Done(Empty {}), (at < end).then_some(at)))
}

fn with_rules(
    rows: &mut dyn Rows,
    keys: &BucketKeys,
) -> Result<Option<(BucketRow, Vec<LifecycleRule>)>, Stop> {
    let Some(row) = rows.get(&keys.bucket())? else {
        return Ok(None);
    };
    let bucket: BucketRow = rows::decode(&row)?;
    if !bucket.lifecycle {
        return Ok(None);
    }
    let text = rows.get(&keys.configuration(buckets::kind_byte(Kind::Lifecycle)))?;
    let Some(text) = text else { return Ok(None) };
    let rules: BucketLifecycleConfiguration = serde_json::from_slice(&text)
        .map_err(|error| RowError::Storage(format!("damaged lifecycle rules: {error}")))?;
    let enabled = rules
        .rules
        .into_iter()
        .filter(|rule| rule.status.as_str() == ExpirationStatus::ENABLED)
        .collect();
    Ok(Some((bucket, enabled)))
}

/// Looks at rows of one bucket from `at` on; gives where to go on.
fn walk(
    on: &mut On<'_>,
    rules: &[LifecycleRule],
    at: Bytes,
    budget: &mut Budget,
) -> Result<Bytes, Stop> {
    let now_ms = on.rows.commit_ts().millis();
    for region in [Region::Objects, Region::Versions, Region::Uploads] {
        let range = on.keys.region(region);
        let from = at.clone().max(range.start);
        if from >= range.end {
            continue;
        }
        let mut seen = Vec::new();
        on.rows
            .scan(from..range.end, ScanOrder::Ascending, &mut |key, row| {
                if budget.is_spent() {
                    return false;
                }
                budget.spend(key.len() + row.len());
                seen.push((Bytes::copy_from_slice(key), row.clone()));
                true
            })?;
        for (row_key, row) in &seen {
            match region {
                Region::Objects => expire_current(on, rules, now_ms, row_key, row)?,
                Region::Versions => expire_older(on, rules, now_ms, row_key, row)?,
                _ => end_upload(on, rules, now_ms, row_key, row)?,
            }
        }
        if budget.is_spent() {
            let last = seen.last().map_or(at, |(row_key, _)| after(row_key));
            return Ok(last);
        }
    }
    Ok(on.keys.all().end)
}

fn older_than(now_ms: u64, then_ms: u64, days: Option<i32>) -> bool {
    days.and_then(|days| u64::try_from(days).ok())
        .is_some_and(|days| now_ms >= then_ms.saturating_add(days * DAY_MS))
}

/// Whether the rule is for this key, size and these tags.
fn speaks_of(rule: &LifecycleRule, key: &str, object: Option<&ObjectRow>) -> bool {
    let has_prefix = |prefix: &Option<String>| {
        prefix
            .as_ref()
            .is_none_or(|prefix| key.starts_with(prefix.as_str()))
    };
    let has_tag = |tag: &s3s::dto::Tag| {
        object.is_some_and(|object| {
            object.tags.iter().any(|pair| {
                Some(&pair.name) == tag.key.as_ref() && Some(&pair.value) == tag.value.as_ref()
            })
        })
    };
    let above = |bound: Option<i64>| {
        bound.is_none_or(|bound| {
            object.is_none_or(|object| i128::from(object.size) > i128::from(bound))
        })
    };
    let below = |bound: Option<i64>| {
        bound.is_none_or(|bound| {
            object.is_none_or(|object| i128::from(object.size) < i128::from(bound))
        })
    };
    if !has_prefix(&rule.prefix) {
        return false;
    }
    let Some(filter) = &rule.filter else {
        return true;
    };
    let and = filter.and.as_ref().is_none_or(|and| {
        has_prefix(&and.prefix)
            && and.tags.iter().flatten().all(has_tag)
            && above(and.object_size_greater_than)
            && below(and.object_size_less_than)
    });
    and && has_prefix(&filter.prefix)
        && filter.tag.iter().all(has_tag)
        && above(filter.object_size_greater_than)
        && below(filter.object_size_less_than)
}

fn expire_current(
    on: &mut On<'_>,
    rules: &[LifecycleRule],
    now_ms: u64,
    row_key: &[u8],
    row: &[u8],
) -> Result<(), Stop> {
    let object: ObjectRow = rows::decode(row)?;
    let key = String::from_utf8_lossy(on.keys.object_key(row_key)).into_owned();
    let due = rules.iter().any(|rule| {
        rule.expiration.as_ref().is_some_and(|expiration| {
            let passed = expiration.date.clone().is_some_and(|date| {
                let date: time::OffsetDateTime = date.into();
                i128::from(now_ms) >= date.unix_timestamp_nanos() / 1_000_000
            });
            (passed || older_than(now_ms, object.modified_ms, expiration.days))
                && speaks_of(rule, &key, Some(&object))
        })
    });
    if !due {
        return Ok(());
    }
    if on.bucket.versioning() == Versioning::Never {
        versions::drop_data(on, &object);
        on.rows.delete(on.keys.object(&key));
    } else {
        versions::mark_deleted(on, &key, Some(object))?;
    }
    Ok(())
}

fn expire_older(
    on: &mut On<'_>,
    rules: &[LifecycleRule],
    now_ms: u64,
    row_key: &[u8],
    row: &[u8],
) -> Result<(), Stop> {
    let object: ObjectRow = rows::decode(row)?;
    let Some((key, _)) = on.keys.version_of(row_key) else {
        return Ok(());
    };
    let key = String::from_utf8_lossy(key).into_owned();
    let newest = versions::newest_older(on, &key)?;
    let is_newest = newest.is_some_and(|newest| newest.stamp == object.stamp);
    let hides = is_newest && versions::current(on, &key)?.is_none();
    if hides {
        // The newest version, a delete marker: it goes when it hides nothing any more.
        let mut older = 0;
        let range = on.keys.versions(&key);
        on.rows.scan(range, ScanOrder::Ascending, &mut |_, _| {
            older += 1;
            older < 2
        })?;
        let due = older == 1
            && rules.iter().any(|rule| {
                rule.expiration
                    .as_ref()
                    .is_some_and(|expiration| expiration.expired_object_delete_marker == Some(true))
                    && speaks_of(rule, &key, None)
            });
        if due {
            versions::remove(on, &key, versions::Place::Older, &object)?;
        }
        return Ok(());
    }
    // Counted from when it was made, which is never later than when it stopped being current: see
    // `superseded_ms`.
    let since = superseded_ms(on, &key, &object)?;
    let due = rules.iter().any(|rule| {
        rule.noncurrent_version_expiration
            .as_ref()
            .is_some_and(|expiration| {
                older_than(now_ms, since, expiration.noncurrent_days)
                    && speaks_of(rule, &key, Some(&object))
            })
    });
    if due {
        versions::remove(on, &key, versions::Place::Older, &object)?;
    }
    Ok(())
}

/// When a version stopped being current: when the next newer one was made.
fn superseded_ms(on: &mut On<'_>, key: &str, object: &ObjectRow) -> Result<u64, Stop> {
    let own = on.keys.version(key, leadline_kv::Timestamp(object.stamp));
    let start = on.keys.versions(key).start;
    let mut newer = None;
    on.rows
        .scan(start..own, ScanOrder::Descending, &mut |_, row| {
            newer = Some(row.clone());
            false
        })?;
    if let Some(newer) = newer {
        let newer: ObjectRow = rows::decode(&newer)?;
        return Ok(newer.modified_ms);
    }
    let current = versions::current(on, key)?;
    Ok(current.map_or(object.modified_ms, |current| current.modified_ms))
}

fn end_upload(
    on: &mut On<'_>,
    rules: &[LifecycleRule],
    now_ms: u64,
    row_key: &[u8],
    row: &[u8],
) -> Result<(), Stop> {
    let upload: UploadRow = rows::decode(row)?;
    let Some((key, id)) = on.keys.upload_of(row_key) else {
        return Ok(());
    };
    let key = String::from_utf8_lossy(key).into_owned();
    let due = rules.iter().any(|rule| {
        rule.abort_incomplete_multipart_upload
            .as_ref()
            .is_some_and(|abort| {
                older_than(now_ms, upload.initiated_ms, abort.days_after_initiation)
                    && speaks_of(rule, &key, None)
            })
    });
    if due {
        on.rows.delete(on.keys.upload(&key, &id));
        on.rows.delete_range(on.keys.data(&id));
    }
    Ok(())
}

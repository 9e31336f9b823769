//! Versions of a key: which is current, how one takes another's place, and what conditions say.
//!
//! Keeps the invariants 1 and 2 of [`crate::rows`]' keys: the object row is the newest version
//! unless that is a delete marker; all others are in the version region.

use bytes::Bytes;
use leadline_kv::{RowError, ScanOrder, Timestamp};

use super::{On, Refusal, Refused, Stop, WriteConditions};
use crate::rows::{self, NULL_VERSION, ObjectRow, Versioning};

/// Bodies of more parts than this go as a range, which costs more than a few rows.
const FEW_PARTS: usize = 8;

/// Where a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The object row.
    Current,
    /// The version region.
    Older,
}

/// The current version, if it is an object.
pub(super) fn current(on: &mut On<'_>, key: &str) -> Result<Option<ObjectRow>, RowError> {
    let row = on.rows.get(&on.keys.object(key))?;
    row.map(|row| rows::decode(&row)).transpose()
}

/// The newest version that is not the object row.
pub(super) fn newest_older(on: &mut On<'_>, key: &str) -> Result<Option<ObjectRow>, RowError> {
    if on.bucket.versioning() == Versioning::Never {
        return Ok(None);
    }
    let mut newest = None;
    let range = on.keys.versions(key);
    on.rows.scan(range, ScanOrder::Ascending, &mut |_, row| {
        newest = Some(row.clone());
        false
    })?;
    newest.map(|row| rows::decode(&row)).transpose()
}

/// The stamp that a version id names.
fn stamp_of(version: &str) -> Option<Timestamp> {
    if version.len() != 16 {
        return None;
    }
    u64::from_str_radix(version, 16).ok().map(Timestamp)
}

/// The version with an id.
pub(super) fn find(
    on: &mut On<'_>,
    key: &str,
    version: &str,
) -> Result<Option<(Place, ObjectRow)>, RowError> {
    if let Some(current) = current(on, key)?
        && current.version_id() == version
    {
        return Ok(Some((Place::Current, current)));
    }
    let stamp = if version == NULL_VERSION {
        let pointer = on.rows.get(&on.keys.null_version(key))?;
        pointer
            .and_then(|stamp| Some(u64::from_be_bytes(stamp.as_ref().try_into().ok()?)))
            .map(Timestamp)
    } else {
        stamp_of(version)
    };
    let Some(stamp) = stamp else { return Ok(None) };
    let Some(row) = on.rows.get(&on.keys.version(key, stamp))? else {
        return Ok(None);
    };
    let found: ObjectRow = rows::decode(&row)?;
    // A `null` one is known by that name only.
    Ok((found.version_id() == version).then_some((Place::Older, found)))
}

/// Writes a version back to where it is.
pub(super) fn rewrite(on: &mut On<'_>, key: &str, place: Place, object: &ObjectRow) {
    let row_key = match place {
        Place::Current => on.keys.object(key),
        Place::Older => on.keys.version(key, Timestamp(object.stamp)),
    };
    on.rows.put(row_key, rows::encode(object));
}

/// Makes `object` the current version and gives back what was stored.
pub(super) fn install(
    on: &mut On<'_>,
    key: &str,
    current: Option<ObjectRow>,
    mut object: ObjectRow,
) -> Result<ObjectRow, RowError> {
    let stamp = on.rows.commit_ts();
    object.stamp = stamp.0;
    object.modified_ms = stamp.millis();
    object.null = on.bucket.versioning() != Versioning::Enabled;
    set_aside(on, key, current)?;
    on.rows.put(on.keys.object(key), rows::encode(&object));
    Ok(object)
}

/// Puts a delete marker above all versions.
pub(super) fn mark_deleted(
    on: &mut On<'_>,
    key: &str,
    current: Option<ObjectRow>,
) -> Result<ObjectRow, RowError> {
    let stamp = on.rows.commit_ts();
    let marker = ObjectRow {
        stamp: stamp.0,
        modified_ms: stamp.millis(),
        null: on.bucket.versioning() != Versioning::Enabled,
        delete_marker: true,
        owner: on.bucket.owner.clone(),
        ..ObjectRow::default()
    };
    let had_current = current.is_some();
    set_aside(on, key, current)?;
    if had_current {
        on.rows.delete(on.keys.object(key));
    }
    keep_older(on, key, &marker);
    Ok(marker)
}

/// Clears the place of the current version for another: keeps it as an older one, or drops it if
/// it is the `null` version and the next one is, too.
fn set_aside(on: &mut On<'_>, key: &str, current: Option<ObjectRow>) -> Result<(), RowError> {
    match (on.bucket.versioning(), current) {
        (Versioning::Never, None) => Ok(()),
        (Versioning::Never, Some(current)) => {
            drop_data(on, &current);
            Ok(())
        }
        (Versioning::Enabled, current) => {
            if let Some(current) = current {
                keep_older(on, key, &current);
            }
            Ok(())
        }
        (Versioning::Suspended, current) => {
            match current {
                Some(current) if current.null => drop_data(on, &current),
                Some(current) => keep_older(on, key, &current),
                None => {}
            }
            if let Some((Place::Older, null)) = find(on, key, NULL_VERSION)? {
                forget_older(on, key, &null);
                drop_data(on, &null);
            }
            Ok(())
        }
    }
}

fn keep_older(on: &mut On<'_>, key: &str, object: &ObjectRow) {
    let stamp = Timestamp(object.stamp);
    on.rows
        .put(on.keys.version(key, stamp), rows::encode(object));
    if object.null {
        let pointer = Bytes::copy_from_slice(&object.stamp.to_be_bytes());
        on.rows.put(on.keys.null_version(key), pointer);
    }
}

fn forget_older(on: &mut On<'_>, key: &str, object: &ObjectRow) {
    on.rows
        .delete(on.keys.version(key, Timestamp(object.stamp)));
    if object.null {
        on.rows.delete(on.keys.null_version(key));
    }
}

/// Deletes the rows of a body.
pub(super) fn drop_data(on: &mut On<'_>, object: &ObjectRow) {
    let Some(data) = object.data_id() else { return };
    if object.parts.len() > FEW_PARTS {
        on.rows.delete_range(on.keys.data(&data));
        return;
    }
    for part in &object.parts {
        let number = u16::try_from(part.number).unwrap_or(u16::MAX);
        on.rows.delete(on.keys.part(&data, number));
    }
}

/// Removes one version for good; the next newest becomes current, if it is an object.
pub(super) fn remove(
    on: &mut On<'_>,
    key: &str,
    place: Place,
    object: &ObjectRow,
) -> Result<(), RowError> {
    drop_data(on, object);
    match place {
        Place::Current => on.rows.delete(on.keys.object(key)),
        Place::Older => forget_older(on, key, object),
    }
    let beneath = match place {
        Place::Current => true,
        // Beneath a current object nothing moves up.
        Place::Older => current(on, key)?.is_none(),
    };
    if beneath
        && let Some(next) = newest_older(on, key)?
        && !next.delete_marker
    {
        forget_older(on, key, &next);
        on.rows.put(on.keys.object(key), rows::encode(&next));
    }
    Ok(())
}

/// Whether a list of ETags (without quotes, separated by commas) or `*` names `etag`.
pub(super) fn names_etag(list: &str, etag: &str) -> bool {
    list == "*" || list.split(',').any(|named| named.trim() == etag)
}

/// Refuses a write whose conditions the current version does not meet.
pub(super) fn check_write(
    current: Option<&ObjectRow>,
    conditions: &WriteConditions,
) -> Result<(), Stop> {
    if !conditions.if_match.is_empty() {
        match current {
            None => return Err(Refusal::NoSuchKey.into()),
            Some(current) if !names_etag(&conditions.if_match, &current.etag) => {
                return Err(Refusal::PreconditionFailed.into());
            }
            Some(_) => {}
        }
    }
    if let Some(current) = current {
        let refused = (!conditions.if_none_match.is_empty()
            && names_etag(&conditions.if_none_match, &current.etag))
            || conditions.if_size.is_some_and(|size| size != current.size)
            || conditions
                .if_modified_s
                .is_some_and(|time| time != current.modified_ms / 1000);
        if refused {
            return Err(Refusal::PreconditionFailed.into());
        }
    }
    Ok(())
}

/// A refusal that shows the version it is about.
pub(super) fn refused_with(why: Refusal, found: ObjectRow) -> Stop {
    Stop::Refused(Refused {
        why: why.into(),
        text: String::new(),
        found: Some(Box::new(found)),
    })
}

//! Objects put in one piece or copied, and what is changed of an object without its bytes.

use super::{
    Answer, Empty, Evaluated, Found, On, Put, Refusal, SetAcl, SetTags, refused, versions,
};
use crate::rows::{self, DataId, Level, ObjectRow, PartEntry};

/// A name for a body: the command's stamp, which the shard gives once, and chance against the
/// stamps of another shard that a bucket may come from one day.
pub(super) fn new_data_id(on: &mut On<'_>) -> DataId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&on.rows.commit_ts().0.to_be_bytes());
    id[8..].copy_from_slice(&on.rows.random().to_be_bytes());
    id
}

pub(super) fn put(on: &mut On<'_>, put: &Put) -> Evaluated {
    on.authorize_write(&put.key, &put.also)?;
    let current = versions::current(on, &put.key)?;
    if let Some(conditions) = &put.conditions {
        versions::check_write(current.as_ref(), conditions)?;
    }
    let mut object = put.object.clone().unwrap_or_default();
    object.parts.clear();
    if !put.parts.is_empty() {
        let data = new_data_id(on);
        object.data = bytes::Bytes::copy_from_slice(&data);
        for (number, part) in (1_u16..).zip(&put.parts) {
            object.parts.push(PartEntry {
                number: number.into(),
                size: part.size,
            });
            on.rows.put(on.keys.part(&data, number), rows::encode(part));
        }
    }
    if object.size != put.parts.iter().map(|part| part.size).sum::<u64>() {
        return Err(refused(
            Refusal::InvalidRequest,
            "the parts are not the whole",
        ));
    }
    let stored = versions::install(on, &put.key, current, object)?;
    Ok(found(on, stored))
}

/// A version that was written, without its bytes.
pub(super) fn found(on: &On<'_>, object: ObjectRow) -> Answer {
    Answer::Object(Box::new(Found {
        object: Some(object),
        versioning: on.bucket.versioning,
        bucket_owner: on.bucket.owner.clone(),
        ..Found::default()
    }))
}

/// The version that a request means.
pub(super) fn named(
    on: &mut On<'_>,
    key: &str,
    version: &str,
) -> Result<(versions::Place, ObjectRow), super::Stop> {
    let found = if version.is_empty() {
        versions::current(on, key)?.map(|object| (versions::Place::Current, object))
    } else {
        versions::find(on, key, version)?
    };
    match found {
        Some((_, object)) if object.delete_marker => {
            Err(versions::refused_with(Refusal::DeleteMarker, object))
        }
        Some(found) => Ok(found),
        None if version.is_empty() => {
            // Whether a delete marker hides it is part of the answer.
            let hidden = versions::newest_older(on, key)?;
            Err(match hidden {
                Some(marker) => versions::refused_with(Refusal::NoSuchKey, marker),
                None => Refusal::NoSuchKey.into(),
            })
        }
        None => Err(Refusal::NoSuchVersion.into()),
    }
}

pub(super) fn set_tags(on: &mut On<'_>, set: &SetTags) -> Evaluated {
    on.authorize(Some(&set.key), Level::Write)?;
    let (place, mut object) = named(on, &set.key, &set.version)?;
    object.tags.clone_from(&set.tags);
    versions::rewrite(on, &set.key, place, &object);
    Ok(found(on, object))
}

pub(super) fn set_acl(on: &mut On<'_>, set: &SetAcl) -> Evaluated {
    on.authorize(Some(&set.key), Level::Write)?;
    let (place, mut object) = named(on, &set.key, &set.version)?;
    object.acl = set.acl;
    versions::rewrite(on, &set.key, place, &object);
    Ok(Answer::Done(Empty {}))
}

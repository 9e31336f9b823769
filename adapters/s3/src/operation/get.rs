//! Reads of one version: what it is, and where the bytes asked for are.

use std::ops::Range;

use super::{
    Answer, Evaluated, Found, Get, NumberedPart, On, Parts, ReadConditions, ReadParts, Refusal,
    Stop, access, put, versions,
};
use crate::rows::{self, DataId, Level, ObjectRow, PartRow};

/// Bytes of part rows in one reply: the pieces of some 90 000 chunks. Whoever needs more reads
/// on with [`ReadParts`].
const REPLY_BYTES: usize = 4 << 20;

pub(super) fn get(on: &mut On<'_>, get: &Get) -> Evaluated {
    // An object's own ACL may allow what nothing else does; without the right to read, whether
    // there is an object is not told.
    let named = put::named(on, &get.key, &get.version);
    let readable = match &named {
        Ok((_, object)) => Some(object),
        Err(_) => None,
    };
    if !access::allows(
        &on.bucket,
        on.request,
        &on.request.action,
        Some(&get.key),
        Level::Read,
        readable,
    ) {
        return Err(Refusal::AccessDenied.into());
    }
    let (_, object) = match named {
        Err(absent) if hides(on, &absent) => return Err(Refusal::AccessDenied.into()),
        named => named?,
    };
    let mut get = get.clone();
    if let Some(conditions) = &get.conditions {
        check_read(&object, conditions)?;
        if is_of_another(&object, conditions) {
            (get.first, get.last, get.suffix) = (None, None, None);
        }
    }
    let get = &get;
    let range = wanted(&object, get)?;
    let mut found = Found {
        start: range.start,
        end: range.end,
        partial: get.part != 0 || get.first.is_some() || get.last.is_some() || get.suffix.is_some(),
        versioning: on.bucket.versioning,
        bucket_owner: on.bucket.owner.clone(),
        ..Found::default()
    };
    if get.body && range.start < range.end {
        let (first, numbers) = parts_of(&object, &range);
        found.first_part = first;
        if let Some(data) = object.data_id() {
            found.parts = read(on, &data, &numbers)?;
        }
    }
    found.object = Some(object);
    Ok(Answer::Object(Box::new(found)))
}

/// Whether there is no such key, and the requester may not list keys and see it there.
fn hides(on: &On<'_>, absent: &Stop) -> bool {
    let Stop::Refused(refused) = absent else {
        return false;
    };
    refused.why() == Refusal::NoSuchKey
        && !access::allows(
            &on.bucket,
            on.request,
            "s3:ListBucket",
            None,
            Level::Read,
            None,
        )
}

/// RFC 9110, 13.1.5: the range that is asked for is one of another version.
fn is_of_another(object: &ObjectRow, conditions: &ReadConditions) -> bool {
    let etag = conditions.if_range.as_ref();
    let modified_s = conditions.if_range_s;
    etag.is_some_and(|etag| *etag != object.etag)
        || modified_s.is_some_and(|then| then != object.modified_ms / 1000)
}

/// RFC 9110, 13.2.2.
fn check_read(object: &ObjectRow, conditions: &ReadConditions) -> Result<(), Stop> {
    let modified_s = object.modified_ms / 1000;
    if !conditions.if_match.is_empty() {
        if !versions::names_etag(&conditions.if_match, &object.etag) {
            return Err(Refusal::PreconditionFailed.into());
        }
    } else if conditions
        .if_unmodified_since_s
        .is_some_and(|since| modified_s > since)
    {
        return Err(Refusal::PreconditionFailed.into());
    }
    let unchanged = if conditions.if_none_match.is_empty() {
        conditions
            .if_modified_since_s
            .is_some_and(|since| modified_s <= since)
    } else {
        versions::names_etag(&conditions.if_none_match, &object.etag)
    };
    if unchanged {
        return Err(versions::refused_with(Refusal::NotModified, object.clone()));
    }
    Ok(())
}

/// The bytes that are asked for.
fn wanted(object: &ObjectRow, get: &Get) -> Result<Range<u64>, Stop> {
    let size = object.size;
    if get.part != 0 {
        if !object.multipart {
            return if get.part == 1 {
                Ok(0..size)
            } else {
                Err(Refusal::InvalidPartNumber.into())
            };
        }
        let mut start = 0;
        for part in &object.parts {
            if part.number == get.part {
                return Ok(start..start + part.size);
            }
            start += part.size;
        }
        return Err(Refusal::InvalidPartNumber.into());
    }
    match (get.first, get.last, get.suffix) {
        (Some(first), _, _) if first >= size => Err(Refusal::InvalidRange.into()),
        (Some(first), last, _) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            Ok(first..end.max(first))
        }
        (None, _, Some(suffix)) => {
            if suffix == 0 || size == 0 {
                return Err(Refusal::InvalidRange.into());
            }
            Ok(size.saturating_sub(suffix)..size)
        }
        (None, _, None) => Ok(0..size),
    }
}

/// The position of the first part that has bytes of `range`, and the numbers of all that have.
fn parts_of(object: &ObjectRow, range: &Range<u64>) -> (u32, Vec<u32>) {
    let mut start = 0;
    let mut first = None;
    let mut numbers = Vec::new();
    for (position, part) in (0_u32..).zip(&object.parts) {
        let end = start + part.size;
        if start < range.end && range.start < end {
            first.get_or_insert(position);
            numbers.push(part.number);
        }
        start = end;
    }
    (first.unwrap_or(0), numbers)
}

/// Rows of parts in the order of `numbers`, until the reply is full.
fn read(on: &mut On<'_>, data: &DataId, numbers: &[u32]) -> Result<Vec<PartRow>, Stop> {
    let mut parts = Vec::new();
    let mut bytes = 0;
    for &number in numbers {
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        let Some(row) = on.rows.get(&on.keys.part(data, number))? else {
            break;
        };
        bytes += row.len();
        if !parts.is_empty() && bytes > REPLY_BYTES {
            break;
        }
        parts.push(rows::decode(&row)?);
    }
    Ok(parts)
}

/// More parts of a body whose first ones a [`Get`] answered, which has also decided that they may be
/// read: the name of the body is known to nobody else.
pub(super) fn read_parts(on: &mut On<'_>, wanted: &ReadParts) -> Evaluated {
    let Ok(data) = DataId::try_from(wanted.data.as_ref()) else {
        return Err(Refusal::InvalidRequest.into());
    };
    let parts = read(on, &data, &wanted.numbers)?;
    let parts = wanted
        .numbers
        .iter()
        .zip(parts)
        .map(|(&number, part)| NumberedPart {
            number,
            part: Some(part),
        })
        .collect();
    Ok(Answer::Parts(Parts {
        parts,
        ..Parts::default()
    }))
}

//! Multipart uploads: the parts are rows of a body whose name is the upload's, so completing one
//! moves no bytes and no chunk lists: the object names the body.

use std::collections::BTreeMap;

use bytes::Bytes;
use leadline_kv::ScanOrder;

use super::{
    Answer, Complete, Empty, Evaluated, LEAST_PART, ListParts, MOST_PARTS, NumberedPart, On, Parts,
    PutPart, Refusal, Stop, UploadName, UploadRowFor, put, refused, versions,
};
use crate::hashes;
use crate::rows::{
    self, Algorithm, BucketKeys, ChecksumRow, DataId, Level, PartEntry, PartRow, UploadRow,
};

/// Parts of one page.
const MOST_LISTED: u32 = 1000;

pub(super) fn create(on: &mut On<'_>, create: &UploadRowFor) -> Evaluated {
    on.authorize_write(&create.key, &create.also)?;
    let upload = put::new_data_id(on);
    let row = UploadRow {
        initiated_ms: on.rows.commit_ts().millis(),
        ..create.upload.clone().unwrap_or_default()
    };
    on.rows
        .put(on.keys.upload(&create.key, &upload), rows::encode(&row));
    Ok(Answer::Upload(UploadName {
        key: create.key.clone(),
        upload: Bytes::copy_from_slice(&upload),
    }))
}

/// The upload that a name means.
fn named<'n>(
    on: &mut On<'_>,
    name: Option<&'n UploadName>,
    level: Level,
) -> Result<(&'n str, DataId, UploadRow), Stop> {
    let name = name.ok_or(Refusal::NoSuchUpload)?;
    on.authorize(Some(&name.key), level)?;
    let upload = DataId::try_from(name.upload.as_ref()).map_err(|_| Refusal::NoSuchUpload)?;
    let row = on.rows.get(&on.keys.upload(&name.key, &upload))?;
    let row = row.ok_or(Refusal::NoSuchUpload)?;
    Ok((&name.key, upload, rows::decode(&row)?))
}

pub(super) fn get(on: &mut On<'_>, name: &UploadName) -> Evaluated {
    let (_, _, row) = named(on, Some(name), Level::Write)?;
    Ok(Answer::UploadRow(row))
}

pub(super) fn put_part(on: &mut On<'_>, put: &PutPart) -> Evaluated {
    let (_, upload, _) = named(on, put.name.as_ref(), Level::Write)?;
    let number = u16::try_from(put.number).unwrap_or(0);
    if !(1..=MOST_PARTS).contains(&number) {
        return Err(refused(
            Refusal::InvalidRequest,
            format!("part numbers are 1 to {MOST_PARTS}"),
        ));
    }
    let part = PartRow {
        modified_ms: on.rows.commit_ts().millis(),
        ..put.part.clone().unwrap_or_default()
    };
    on.rows
        .put(on.keys.part(&upload, number), rows::encode(&part));
    Ok(Answer::Parts(Parts {
        parts: vec![NumberedPart {
            number: put.number,
            part: Some(PartRow {
                inline: Bytes::new(),
                pieces: Bytes::new(),
                ..part
            }),
        }],
        ..Parts::default()
    }))
}

pub(super) fn list_parts(on: &mut On<'_>, list: &ListParts) -> Evaluated {
    let (_, upload, row) = named(on, list.name.as_ref(), Level::Read)?;
    let most = list.most.min(MOST_LISTED) as usize;
    let first = u16::try_from(list.after.saturating_add(1)).unwrap_or(u16::MAX);
    let mut page = Parts {
        upload: Some(row),
        ..Parts::default()
    };
    let mut failed = None;
    on.rows.scan(
        on.keys.parts_from(&upload, first),
        ScanOrder::Ascending,
        &mut |row_key, row| {
            if page.parts.len() == most {
                page.truncated = most > 0;
                return false;
            }
            match rows::decode::<PartRow>(row) {
                Ok(part) => {
                    page.parts.push(NumberedPart {
                        number: BucketKeys::part_number(row_key).into(),
                        part: Some(PartRow {
                            inline: Bytes::new(),
                            pieces: Bytes::new(),
                            ..part
                        }),
                    });
                    true
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        },
    )?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Answer::Parts(page)),
    }
}

pub(super) fn abort(on: &mut On<'_>, name: &UploadName) -> Evaluated {
    let (key, upload, _) = named(on, Some(name), Level::Write)?;
    on.rows.delete(on.keys.upload(key, &upload));
    on.rows.delete_range(on.keys.data(&upload));
    Ok(Answer::Done(Empty {}))
}

pub(super) fn complete(on: &mut On<'_>, complete: &Complete) -> Evaluated {
    let (key, upload, row) = match named(on, complete.name.as_ref(), Level::Write) {
        Ok(named) => named,
        // Sent again after its answer was lost: the object is there.
        Err(Stop::Refused(refusal)) if refusal.why() == Refusal::NoSuchUpload => {
            if let Some(name) = &complete.name
                && let Some(current) = versions::current(on, &name.key)?
                && current.multipart
                && current.data == name.upload
            {
                return Ok(put::found(on, current));
            }
            return Err(Stop::Refused(refusal));
        }
        Err(stop) => return Err(stop),
    };
    let current = versions::current(on, key)?;
    if let Some(conditions) = &complete.conditions {
        versions::check_write(current.as_ref(), conditions)?;
    }
    if !complete.parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Refusal::InvalidPartOrder.into());
    }
    let mut stored = stored_parts(on, &upload)?;
    let mut object = row.object.clone().unwrap_or_default();
    object.parts.clear();
    object.size = 0;
    let mut md5s = Vec::with_capacity(complete.parts.len());
    let mut checksums = Vec::with_capacity(complete.parts.len());
    let last = complete.parts.len().saturating_sub(1);
    for (position, wanted) in complete.parts.iter().enumerate() {
        let part = u16::try_from(wanted.number)
            .ok()
            .and_then(|number| stored.remove(&number))
            .filter(|part| part.md5 == wanted.etag)
            .ok_or_else(|| invalid_part(wanted.number))?;
        let known = part.checksum.clone().unwrap_or_default();
        if !wanted.checksum.is_empty() && wanted.checksum != known.value {
            return Err(invalid_part(wanted.number));
        }
        if position != last && part.size < LEAST_PART {
            return Err(Refusal::EntityTooSmall.into());
        }
        object.size += part.size;
        object.parts.push(PartEntry {
            number: wanted.number,
            size: part.size,
        });
        md5s.push(part.md5);
        checksums.push((known, part.size));
    }
    if object.parts.is_empty() {
        return Err(refused(
            Refusal::InvalidRequest,
            "an upload has at least one part",
        ));
    }
    if complete.size.is_some_and(|size| size != object.size) {
        return Err(refused(
            Refusal::InvalidRequest,
            format!("the parts are {} bytes", object.size),
        ));
    }
    object.etag = hashes::multipart_etag(&md5s).ok_or(Refusal::InvalidPart)?;
    object.multipart = true;
    object.data = Bytes::copy_from_slice(&upload);
    object.checksum = whole_checksum(&row, &checksums)?;
    check_whole(complete, object.checksum.as_ref(), &checksums)?;
    for &number in stored.keys() {
        on.rows.delete(on.keys.part(&upload, number));
    }
    on.rows.delete(on.keys.upload(key, &upload));
    let stored = versions::install(on, key, current, object)?;
    Ok(put::found(on, stored))
}

fn invalid_part(number: u32) -> Stop {
    refused(
        Refusal::InvalidPart,
        format!("part {number} was not uploaded, or is not what the ETag or checksum says"),
    )
}

/// All parts, without where their bytes are.
fn stored_parts(on: &mut On<'_>, upload: &DataId) -> Result<BTreeMap<u16, PartRow>, Stop> {
    let mut parts = BTreeMap::new();
    let mut failed = None;
    on.rows.scan(
        on.keys.data(upload),
        ScanOrder::Ascending,
        &mut |row_key, row| match rows::decode::<PartRow>(row) {
            Ok(part) => {
                let part = PartRow {
                    inline: Bytes::new(),
                    pieces: Bytes::new(),
                    ..part
                };
                parts.insert(BucketKeys::part_number(row_key), part);
                true
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        },
    )?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(parts),
    }
}

/// The checksum of the whole: of the bytes, put together from the parts', or of the parts'
/// checksums.
fn whole_checksum(
    upload: &UploadRow,
    parts: &[(ChecksumRow, u64)],
) -> Result<Option<ChecksumRow>, Stop> {
    let algorithm = upload.algorithm();
    if algorithm == Algorithm::None {
        return Ok(None);
    }
    if parts.iter().any(|(sum, _)| sum.algorithm() != algorithm) {
        return Err(refused(
            Refusal::InvalidRequest,
            "a part has no checksum of the upload's algorithm",
        ));
    }
    let value = if upload.composite {
        hashes::composite(algorithm, parts.iter().map(|(sum, _)| sum.value.as_str()))
            .map(|value| format!("{value}-{}", parts.len()))
    } else {
        hashes::combined(
            algorithm,
            parts.iter().map(|(sum, size)| (sum.value.as_str(), *size)),
        )
    };
    let value = value.ok_or_else(|| {
        refused(
            Refusal::InvalidRequest,
            "the parts' checksums cannot be put together",
        )
    })?;
    Ok(Some(ChecksumRow {
        algorithm: algorithm.into(),
        composite: upload.composite,
        value,
    }))
}

/// Refuses what the client says of the whole, where it is not so or nobody can know. `known` is the
/// checksum that the object will have.
fn check_whole(
    complete: &Complete,
    known: Option<&ChecksumRow>,
    parts: &[(ChecksumRow, u64)],
) -> Result<(), Stop> {
    if let (Some(said), Some(known)) = (complete.composite, known)
        && said != known.composite
    {
        let kind = if known.composite {
            "COMPOSITE"
        } else {
            "FULL_OBJECT"
        };
        return Err(refused(
            Refusal::InvalidRequest,
            format!("the upload was created with the checksum type {kind}"),
        ));
    }
    let Some(said) = &complete.checksum else {
        return Ok(());
    };
    let algorithm = said.algorithm();
    let value = match known {
        Some(known) => (known.algorithm() == algorithm).then(|| known.value.clone()),
        // Parts may have what their upload did not name.
        None => {
            let upload = UploadRow {
                algorithm: algorithm.into(),
                composite: said.composite,
                ..UploadRow::default()
            };
            let whole = whole_checksum(&upload, parts).ok().flatten();
            whole.map(|whole| whole.value)
        }
    };
    let Some(value) = value else {
        let of = known.map_or(Algorithm::None, ChecksumRow::algorithm);
        let [said, of] = [algorithm, of].map(|name| format!("{name:?}").to_uppercase());
        return Err(refused(
            Refusal::InvalidRequest,
            format!(
                "a {said} of the whole cannot be verified: the upload was created with the checksum algorithm {of}"
            ),
        ));
    };
    // A composite one is written with the number of parts or without.
    let bare = value.split('-').next().unwrap_or_default();
    if said.value == value || said.value == bare {
        Ok(())
    } else {
        Err(Refusal::BadDigest.into())
    }
}

//! Listings, in the order of the keys' bytes: a page is one read at one instant.
//!
//! Keys that share a prefix up to a delimiter are told once, and jumped over: what a common prefix
//! hides costs one step, however many keys that is.

use std::ops::Range;

use bytes::Bytes;
use leadline_kv::{RowError, ScanOrder, Timestamp};

use super::{Answer, Entry, Evaluated, List, Listed, On, versions};
use crate::rows::{self, Level, ObjectRow, Region, UploadRow, after, successor};

/// The first byte string that a key after `key` can be. Keys have no zero byte, and behind one lie the
/// versions and uploads of `key` itself.
fn next_key(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(1);
    next.into()
}

/// Entries of a page.
const MOST: u32 = 1000;

/// A page as it fills.
struct Page<'a> {
    list: &'a List,
    most: usize,
    listed: Listed,
}

impl<'a> Page<'a> {
    fn new(list: &'a List) -> Self {
        Self {
            list,
            most: list.most.min(MOST) as usize,
            listed: Listed::default(),
        }
    }

    /// Takes an entry, or marks that there are more; `false`: the page is full.
    fn push(&mut self, entry: Entry, id: impl FnOnce() -> String) -> bool {
        if self.listed.entries.len() == self.most {
            self.listed.truncated = self.most > 0;
            return false;
        }
        self.listed.next.clone_from(&entry.key);
        self.listed.next_id = id();
        self.listed.entries.push(entry);
        true
    }

    fn push_prefix(&mut self, prefix: &[u8]) -> bool {
        let entry = Entry {
            key: text(prefix),
            ..Entry::default()
        };
        self.push(entry, String::new)
    }

    /// The common prefix that `key` belongs to.
    fn common_prefix<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let delimiter = self.list.delimiter.as_bytes();
        if delimiter.is_empty() {
            return None;
        }
        let rest = key.get(self.list.prefix.len()..)?;
        let at = rest
            .windows(delimiter.len())
            .position(|window| window == delimiter)?;
        Some(&key[..self.list.prefix.len() + at + delimiter.len()])
    }

    /// The first key to look at, and whether it may be `list.after` itself.
    fn begin(&self, with_ids: bool) -> Bytes {
        let prefix = self.list.prefix.as_bytes();
        let marker = self.list.after.as_bytes();
        if marker.is_empty() || marker < prefix {
            return Bytes::copy_from_slice(prefix);
        }
        // A marker within a common prefix: that prefix is not after it.
        if marker.starts_with(prefix)
            && let Some(common) = self.common_prefix(marker)
        {
            return successor(common);
        }
        if with_ids && !self.list.after_id.is_empty() {
            Bytes::copy_from_slice(marker)
        } else {
            next_key(marker)
        }
    }

    fn finish(mut self) -> Answer {
        if !self.listed.truncated {
            self.listed.next.clear();
            self.listed.next_id.clear();
        }
        Answer::Listed(self.listed)
    }
}

/// Keys came in as text.
fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// What a listing tells of a version.
fn shown(row: &Bytes) -> Result<Box<ObjectRow>, RowError> {
    let object: ObjectRow = rows::decode(row)?;
    Ok(Box::new(ObjectRow {
        parts: Vec::new(),
        headers: None,
        metadata: Vec::new(),
        tags: Vec::new(),
        data: Bytes::new(),
        ..object
    }))
}

pub(super) fn objects(on: &mut On<'_>, list: &List) -> Evaluated {
    on.authorize(None, Level::Read)?;
    let mut page = Page::new(list);
    let end = on.keys.region(Region::Objects).end;
    let mut at = on.keys.at(Region::Objects, &page.begin(false));
    let mut jump = Some(at.clone());
    while let Some(from) = jump.take() {
        at = from;
        if at >= end {
            break;
        }
        let keys = on.keys.clone();
        let mut failed = None;
        on.rows.scan(
            at..end.clone(),
            ScanOrder::Ascending,
            &mut |row_key, row| {
                let key = keys.object_key(row_key);
                if !key.starts_with(list.prefix.as_bytes()) {
                    return false;
                }
                if let Some(common) = page.common_prefix(key) {
                    if page.push_prefix(common) {
                        jump = Some(keys.at(Region::Objects, &successor(common)));
                    }
                    return false;
                }
                match shown(row) {
                    Ok(object) => {
                        let entry = Entry {
                            key: text(key),
                            object: Some(object),
                            ..Entry::default()
                        };
                        page.push(entry, String::new)
                    }
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                }
            },
        )?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(page.finish())
}

/// The first row of a range.
fn first(on: &mut On<'_>, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, RowError> {
    let mut first = None;
    on.rows.scan(range, ScanOrder::Ascending, &mut |key, row| {
        first = Some((Bytes::copy_from_slice(key), row.clone()));
        false
    })?;
    Ok(first)
}

pub(super) fn versions(on: &mut On<'_>, list: &List) -> Evaluated {
    on.authorize(None, Level::Read)?;
    let mut page = Page::new(list);
    let mut at = page.begin(true);
    let (objects_end, versions_end) = (
        on.keys.region(Region::Objects).end,
        on.keys.region(Region::Versions).end,
    );
    loop {
        // The next key is in one of the two regions, or in both.
        let current = first(on, on.keys.at(Region::Objects, &at)..objects_end.clone())?;
        let older = first(on, on.keys.at(Region::Versions, &at)..versions_end.clone())?;
        let current_key = current.as_ref().map(|(row, _)| on.keys.object_key(row));
        let older_key = older
            .as_ref()
            .and_then(|(row, _)| Some(on.keys.version_of(row)?.0));
        let key = match (current_key, older_key) {
            (Some(a), Some(b)) => a.min(b),
            (Some(key), None) | (None, Some(key)) => key,
            (None, None) => break,
        };
        if !key.starts_with(list.prefix.as_bytes()) {
            break;
        }
        if let Some(common) = page.common_prefix(key) {
            if !page.push_prefix(common) {
                break;
            }
            at = successor(common);
            continue;
        }
        let key = text(key);
        // Entries of the marker's own key that the page before told are left out.
        let told = if key == list.after && !list.after_id.is_empty() {
            versions::find(on, &key, &list.after_id)?
                .map(|(_, object)| object.stamp)
                .or_else(|| u64::from_str_radix(&list.after_id, 16).ok())
        } else {
            None
        };
        let mut latest = true;
        let mut full = false;
        if let Some((row_key, row)) = &current
            && on.keys.object_key(row_key) == key.as_bytes()
        {
            let object = shown(row)?;
            if told.is_none_or(|told| object.stamp < told) {
                full = !push_version(&mut page, &key, object, true);
            }
            latest = false;
        }
        if !full {
            let range = match told {
                Some(told) => {
                    after(&on.keys.version(&key, Timestamp(told)))..on.keys.versions(&key).end
                }
                None => on.keys.versions(&key),
            };
            latest &= told.is_none();
            let mut failed = None;
            on.rows.scan(
                range,
                ScanOrder::Ascending,
                &mut |_, row| match shown(row) {
                    Ok(object) => {
                        full = !push_version(&mut page, &key, object, latest);
                        latest = false;
                        !full
                    }
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                },
            )?;
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        if full {
            break;
        }
        at = next_key(key.as_bytes());
    }
    Ok(page.finish())
}

fn push_version(page: &mut Page<'_>, key: &str, object: Box<ObjectRow>, latest: bool) -> bool {
    let id = object.version_id();
    let entry = Entry {
        key: key.to_owned(),
        object: Some(object),
        latest,
        ..Entry::default()
    };
    page.push(entry, || id)
}

pub(super) fn uploads(on: &mut On<'_>, list: &List) -> Evaluated {
    on.authorize(None, Level::Read)?;
    let mut page = Page::new(list);
    let end = on.keys.region(Region::Uploads).end;
    let begin = page.begin(true);
    let mut jump = Some(on.keys.at(Region::Uploads, &begin));
    while let Some(at) = jump.take() {
        if at >= end {
            break;
        }
        let keys = on.keys.clone();
        let mut failed = None;
        on.rows.scan(
            at..end.clone(),
            ScanOrder::Ascending,
            &mut |row_key, row| {
                let Some((key, upload)) = keys.upload_of(row_key) else {
                    return true;
                };
                if !key.starts_with(list.prefix.as_bytes()) {
                    // Keys lie here with a zero byte behind: a shorter one may come first.
                    return key < list.prefix.as_bytes();
                }
                let id = hex_simd::encode_to_string(upload, hex_simd::AsciiCase::Lower);
                let told = key == list.after.as_bytes() && id <= list.after_id;
                if told || key < &begin[..] {
                    return true;
                }
                if let Some(common) = page.common_prefix(key) {
                    if page.push_prefix(common) {
                        jump = Some(keys.at(Region::Uploads, &successor(common)));
                    }
                    return false;
                }
                match rows::decode::<UploadRow>(row) {
                    Ok(row) => {
                        let entry = Entry {
                            key: text(key),
                            upload: Some(Box::new(row)),
                            upload_id: Bytes::copy_from_slice(&upload),
                            ..Entry::default()
                        };
                        page.push(entry, || id)
                    }
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                }
            },
        )?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(page.finish())
}

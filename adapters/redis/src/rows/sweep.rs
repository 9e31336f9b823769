//! Removal of what nobody can see any more, in bounded steps: expired keys, and elements of
//! collections that were deleted or replaced.

use bytes::Bytes;
use leadline_kv::{Rows, ScanOrder};

use super::DATABASES;
use super::db::Db;
use super::layout::{self, Type};
use crate::reply::ReplyError;

/// Expired keys that one step deletes.
const KEYS_PER_STEP: usize = 1024;
/// Bytes of keys that one step takes on: each is written a few times over, to the rows of elements
/// and of the index, and all of that must stay far below what one command may write.
const KEY_BYTES_PER_STEP: usize = 1 << 20;
/// Element rows that one step deletes.
const ROWS_PER_STEP: usize = 4096;
/// Dead generations that one step looks at.
const GENERATIONS_PER_STEP: usize = 64;

/// What a sweeping step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Keys or element rows that were deleted.
    pub(crate) removed: usize,
    /// There is more to do at once.
    pub(crate) more: bool,
}

/// Deletes expired keys, the earliest first, by the expiry index.
pub(crate) fn sweep_expired(rows: &mut dyn Rows) -> Result<Swept, ReplyError> {
    let owned = rows.owned();
    let now_ms = rows.commit_ts().millis();
    let mut doomed: Vec<Bytes> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    for database in 0..DATABASES {
        rows.scan(
            layout::expired_index_rows(&owned.start, database, now_ms),
            ScanOrder::Ascending,
            &mut |row_key, _| {
                more = doomed.len() == KEYS_PER_STEP || bytes >= KEY_BYTES_PER_STEP;
                if !more {
                    bytes += row_key.len();
                    doomed.push(Bytes::copy_from_slice(row_key));
                }
                !more
            },
        )?;
        if more {
            break;
        }
    }
    for row_key in &doomed {
        let Some((database, _, key)) = layout::parse_expiry_index_row(row_key) else {
            return Err(damaged("an expiry index row"));
        };
        // Looking at an expired key deletes it.
        if Db::new(rows, database).exists(key)? {
            return Err(damaged("the expiry index"));
        }
    }
    Ok(Swept {
        removed: doomed.len(),
        more,
    })
}

/// Deletes element rows of dead generations, and each generation's row when it has no more.
pub(crate) fn sweep_generations(rows: &mut dyn Rows) -> Result<Swept, ReplyError> {
    let owned = rows.owned();
    let mut dead: Vec<(Bytes, Bytes)> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    rows.scan(
        layout::dead_generation_rows(&owned.start),
        ScanOrder::Ascending,
        &mut |row_key, kind| {
            more = dead.len() == GENERATIONS_PER_STEP || bytes >= KEY_BYTES_PER_STEP;
            if !more {
                bytes += row_key.len();
                dead.push((Bytes::copy_from_slice(row_key), kind.clone()));
            }
            !more
        },
    )?;
    let mut swept = Swept { removed: 0, more };
    for (row_key, kind) in dead {
        let (Some((generation, prefix)), Some(kind)) = (
            layout::parse_dead_generation_row(&row_key),
            kind.first().and_then(|&tag| Type::from_tag(tag)),
        ) else {
            return Err(damaged("a dead generation row"));
        };
        for &element in kind.element_kinds() {
            let room = ROWS_PER_STEP - swept.removed;
            let range = prefix.elements(element, generation);
            let (mut seen, mut after) = (0, None);
            rows.scan(range.clone(), ScanOrder::Ascending, &mut |row_key, _| {
                if seen == room {
                    after = Some(Bytes::copy_from_slice(row_key));
                    return false;
                }
                seen += 1;
                true
            })?;
            swept.removed += seen;
            // One effect for all of them; a replica's work at apply is still bounded by `room`.
            if seen > 0 {
                let end = after.clone().unwrap_or(range.end);
                rows.delete_range(range.start..end);
            }
            if after.is_some() {
                swept.more = true;
                return Ok(swept);
            }
        }
        rows.delete(row_key);
    }
    Ok(swept)
}

fn damaged(what: &str) -> ReplyError {
    leadline_kv::RowError::Storage(format!("{what} is damaged")).into()
}

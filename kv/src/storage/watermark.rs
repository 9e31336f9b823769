//! Our own record of how far each group was made durable, outside the engine.
//!
//! An engine that opens with less than this has lost data, whatever it says itself.
//!
//! ```text
//! | "LLWM" | version u8 = 1 | count u32 | { group u64 | index u64 }* | crc32c u32 |   little endian
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use leadline_raft::GroupId;

use super::{StorageError, files};

const MAGIC: &[u8; 4] = b"LLWM";
const VERSION: u8 = 1;

/// The record, in memory and on disk alike.
#[derive(Debug)]
pub(super) struct Watermark {
    path: PathBuf,
    durable: BTreeMap<GroupId, u64>,
}

impl Watermark {
    /// Reads the record, `None` if there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, StorageError> {
        let Some(bytes) = files::read(path)? else {
            return Ok(None);
        };
        let durable = decode(path, &bytes)?;
        Ok(Some(Self {
            path: path.to_owned(),
            durable,
        }))
    }

    /// Writes an empty record.
    pub(super) fn create(path: &Path) -> Result<Self, StorageError> {
        let record = Self {
            path: path.to_owned(),
            durable: BTreeMap::new(),
        };
        files::replace(path, &encode(&record.durable))?;
        Ok(record)
    }

    pub(super) fn durable(&self) -> &BTreeMap<GroupId, u64> {
        &self.durable
    }

    /// Replaces the record, durably before it returns; does nothing when nothing changed.
    pub(super) fn update(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<GroupId, u64>),
    ) -> Result<(), StorageError> {
        let mut durable = self.durable.clone();
        change(&mut durable);
        if durable != self.durable {
            files::replace(&self.path, &encode(&durable))?;
            self.durable = durable;
        }
        Ok(())
    }
}

fn encode(durable: &BTreeMap<GroupId, u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(13 + durable.len() * 16);
    out.extend_from_slice(MAGIC);
    out.push(VERSION);
    out.extend_from_slice(
        &u32::try_from(durable.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    for (group, index) in durable {
        out.extend_from_slice(&group.0.to_le_bytes());
        out.extend_from_slice(&index.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

fn decode(path: &Path, bytes: &[u8]) -> Result<BTreeMap<GroupId, u64>, StorageError> {
    let damaged = |what: &str| StorageError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let (body, checksum) = bytes
        .split_last_chunk::<4>()
        .ok_or_else(|| damaged("too short"))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(damaged("checksum mismatch"));
    }
    let rest = body
        .strip_prefix(MAGIC)
        .ok_or_else(|| damaged("not a watermark file"))?;
    let (&version, rest) = rest.split_first().ok_or_else(|| damaged("too short"))?;
    if version > VERSION {
        return Err(StorageError::Newer {
            path: path.to_owned(),
            found: version.into(),
            supported: VERSION.into(),
        });
    }
    let (count, rest) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| damaged("too short"))?;
    if rest.len() != u32::from_le_bytes(*count) as usize * 16 {
        return Err(damaged("wrong length"));
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    Ok(rest
        .chunks_exact(16)
        .map(|entry| (GroupId(number(&entry[..8])), number(&entry[8..])))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_any_flipped_or_missing_byte_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        assert!(Watermark::load(&path).unwrap().is_none());
        let mut record = Watermark::create(&path).unwrap();
        record
            .update(|durable| {
                durable.insert(GroupId(3), 17);
                durable.insert(GroupId(900), u64::MAX);
            })
            .unwrap();
        let read = Watermark::load(&path).unwrap().unwrap();
        assert_eq!(read.durable(), record.durable());

        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x40;
            assert!(decode(&path, &flipped).is_err(), "flip at {at}");
            assert!(decode(&path, &bytes[..at]).is_err(), "cut at {at}");
        }
    }
}

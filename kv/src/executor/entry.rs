//! What a shard's executor writes into the group's log: the begin of an executor's life, and effect
//! batches.
//!
//! ```text
//! entry   | format u8 = 1 | kind u8 | incarnation u128 BE | rest
//! begin   kind 1, no rest
//! batch   kind 2          | number u64 BE | highest stamp u64 BE | effect …
//! effect  1 put           | key | value        value as stored: under its row header
//!         2 delete        | key
//!         3 delete range  | start | end
//!         4 put private   | key | value        rows of the executor itself, out of commands' reach
//!         5 delete private| key
//! ```
//! Keys and values stand behind their length as a LEB128 varint. The log has its own checksums.
//!
//! # Invariants
//! 1. Range deletions come first, and no row has two effects: a batch's effects have no order.
//! 2. Decoding copies nothing, and answers every byte string with an entry or an error.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Timestamp;

const FORMAT: u8 = 1;
const BEGIN: u8 = 1;
const BATCH: u8 = 2;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const PUT_PRIVATE: u8 = 4;
const DELETE_PRIVATE: u8 = 5;

/// Where the stamp stands in a batch: known only once the batch is complete.
const STAMP_AT: usize = 2 + 16 + 8;

/// One life of an executor: random, compared for equality only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Incarnation(pub(crate) u128);

/// Why a log entry cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("a log entry has format {0}, and this program reads up to {FORMAT}: start a newer one")]
    Newer(u8),
    #[error("a log entry is malformed: {0}")]
    Malformed(&'static str),
}

/// A decoded entry.
#[derive(Debug)]
pub(crate) enum Entry {
    Begin(Incarnation),
    Batch(BatchEntry),
}

#[derive(Debug)]
pub(crate) struct BatchEntry {
    pub(crate) incarnation: Incarnation,
    pub(crate) number: u64,
    /// The highest stamp of the batch's commands.
    pub(crate) stamp: Timestamp,
    pub(crate) effects: Effects,
}

/// One change, unconditional and idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogEffect {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
    DeleteRange { range: Range<Bytes> },
    PutPrivate { key: Bytes, value: Bytes },
    DeletePrivate { key: Bytes },
}

/// The effects of a batch, decoded as they are taken.
#[derive(Clone, Debug)]
pub(crate) struct Effects(Bytes);

impl Entry {
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, EntryError> {
        const SHORT: EntryError = EntryError::Malformed("cut short");
        match bytes.try_get_u8() {
            Ok(FORMAT) => {}
            Ok(0) => return Err(EntryError::Malformed("format 0")),
            Ok(newer) => return Err(EntryError::Newer(newer)),
            Err(_) => return Err(SHORT),
        }
        let kind = bytes.try_get_u8().map_err(|_| SHORT)?;
        let incarnation = Incarnation(bytes.try_get_u128().map_err(|_| SHORT)?);
        match kind {
            BEGIN if bytes.is_empty() => Ok(Self::Begin(incarnation)),
            BEGIN => Err(EntryError::Malformed(
                "bytes after the begin of an executor",
            )),
            BATCH => Ok(Self::Batch(BatchEntry {
                incarnation,
                number: bytes.try_get_u64().map_err(|_| SHORT)?,
                stamp: Timestamp(bytes.try_get_u64().map_err(|_| SHORT)?),
                effects: Effects(bytes),
            })),
            _ => Err(EntryError::Malformed("unknown kind of entry")),
        }
    }
}

/// The entry that begins an executor's life.
pub(crate) fn encode_begin(incarnation: Incarnation) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(FORMAT);
    out.put_u8(BEGIN);
    out.put_u128(incarnation.0);
    out.freeze()
}

/// Writes a batch.
#[derive(Debug)]
pub(crate) struct BatchWriter {
    out: BytesMut,
}

impl BatchWriter {
    /// `capacity` is a guess at the bytes of the effects.
    pub(crate) fn new(incarnation: Incarnation, number: u64, capacity: usize) -> Self {
        let mut out = BytesMut::with_capacity(STAMP_AT + 8 + capacity);
        out.put_u8(FORMAT);
        out.put_u8(BATCH);
        out.put_u128(incarnation.0);
        out.put_u64(number);
        out.put_u64(0);
        Self { out }
    }

    /// Appends a row under the header that `header` writes; returns without copying the value twice.
    pub(crate) fn put(&mut self, key: &[u8], row_bytes: usize, row: impl FnOnce(&mut BytesMut)) {
        self.out.put_u8(PUT);
        put_bytes(&mut self.out, key);
        put_varint(&mut self.out, row_bytes as u64);
        let before = self.out.len();
        row(&mut self.out);
        assert_eq!(
            self.out.len() - before,
            row_bytes,
            "a row of the size announced"
        );
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.out.put_u8(DELETE);
        put_bytes(&mut self.out, key);
    }

    pub(crate) fn delete_range(&mut self, range: &Range<Bytes>) {
        self.out.put_u8(DELETE_RANGE);
        put_bytes(&mut self.out, &range.start);
        put_bytes(&mut self.out, &range.end);
    }

    pub(crate) fn put_private(&mut self, key: &[u8], value: &[u8]) {
        self.out.put_u8(PUT_PRIVATE);
        put_bytes(&mut self.out, key);
        put_bytes(&mut self.out, value);
    }

    pub(crate) fn delete_private(&mut self, key: &[u8]) {
        self.out.put_u8(DELETE_PRIVATE);
        put_bytes(&mut self.out, key);
    }

    pub(crate) fn finish(mut self, stamp: Timestamp) -> Bytes {
        self.out[STAMP_AT..STAMP_AT + 8].copy_from_slice(&stamp.0.to_be_bytes());
        self.out.freeze()
    }
}

impl Iterator for Effects {
    type Item = Result<LogEffect, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let effect = self.read();
        if effect.is_err() {
            // Nothing behind a malformed effect can be read.
            self.0.clear();
        }
        Some(effect)
    }
}

impl Effects {
    fn read(&mut self) -> Result<LogEffect, EntryError> {
        let bytes = &mut self.0;
        Ok(match bytes.get_u8() {
            PUT => LogEffect::Put {
                key: get_bytes(bytes)?,
                value: get_bytes(bytes)?,
            },
            DELETE => LogEffect::Delete {
                key: get_bytes(bytes)?,
            },
            DELETE_RANGE => LogEffect::DeleteRange {
                range: get_bytes(bytes)?..get_bytes(bytes)?,
            },
            PUT_PRIVATE => LogEffect::PutPrivate {
                key: get_bytes(bytes)?,
                value: get_bytes(bytes)?,
            },
            DELETE_PRIVATE => LogEffect::DeletePrivate {
                key: get_bytes(bytes)?,
            },
            _ => return Err(EntryError::Malformed("unknown effect")),
        })
    }
}

/// Appends `value` as LEB128: seven bits a byte, the lowest first.
fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn get_varint(bytes: &mut Bytes) -> Result<u64, EntryError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes
            .try_get_u8()
            .map_err(|_| EntryError::Malformed("cut short in a length"))?;
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(EntryError::Malformed("a length of more than 64 bits"))
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn get_bytes(bytes: &mut Bytes) -> Result<Bytes, EntryError> {
    let length = get_varint(bytes)?;
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() => Ok(bytes.split_to(length)),
        _ => Err(EntryError::Malformed("a length beyond the entry's end")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
    }

    fn effect() -> impl Strategy<Value = LogEffect> {
        prop_oneof![
            (text(), text()).prop_map(|(key, value)| LogEffect::Put { key, value }),
            text().prop_map(|key| LogEffect::Delete { key }),
            (text(), text()).prop_map(|(start, end)| LogEffect::DeleteRange { range: start..end }),
            (text(), text()).prop_map(|(key, value)| LogEffect::PutPrivate { key, value }),
            text().prop_map(|key| LogEffect::DeletePrivate { key }),
        ]
    }

    fn encode(incarnation: u128, number: u64, stamp: u64, effects: &[LogEffect]) -> Bytes {
        let mut writer = BatchWriter::new(Incarnation(incarnation), number, 64);
        for effect in effects {
            match effect {
                LogEffect::Put { key, value } => {
                    writer.put(key, value.len(), |out| out.put_slice(value));
                }
                LogEffect::Delete { key } => writer.delete(key),
                LogEffect::DeleteRange { range } => writer.delete_range(range),
                LogEffect::PutPrivate { key, value } => writer.put_private(key, value),
                LogEffect::DeletePrivate { key } => writer.delete_private(key),
            }
        }
        writer.finish(Timestamp(stamp))
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_was(
            incarnation: u128,
            number: u64,
            stamp: u64,
            effects in prop::collection::vec(effect(), 0..20),
        ) {
            let bytes = encode(incarnation, number, stamp, &effects);
            let Entry::Batch(batch) = Entry::decode(bytes).unwrap() else {
                panic!("a batch")
            };
            prop_assert_eq!(batch.incarnation, Incarnation(incarnation));
            prop_assert_eq!((batch.number, batch.stamp), (number, Timestamp(stamp)));
            let back: Vec<_> = batch.effects.collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(back, effects);
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(mut bytes: Vec<u8>, valid_start: bool) {
            if valid_start && bytes.len() > 2 {
                bytes[0] = FORMAT;
                bytes[1] = BATCH;
            }
            if let Ok(Entry::Batch(batch)) = Entry::decode(Bytes::from(bytes)) {
                let _ = batch.effects.collect::<Result<Vec<_>, _>>();
            }
        }

        #[test]
        fn a_batch_cut_anywhere_is_an_error_or_a_prefix_of_its_effects(
            effects in prop::collection::vec(effect(), 1..8),
            cut: prop::sample::Index,
        ) {
            let bytes = encode(1, 2, 3, &effects);
            let cut = cut.index(bytes.len());
            if let Ok(Entry::Batch(batch)) = Entry::decode(bytes.slice(..cut))
                && let Ok(back) = batch.effects.collect::<Result<Vec<_>, _>>()
            {
                prop_assert!(back.len() < effects.len());
                prop_assert_eq!(&back[..], &effects[..back.len()]);
            }
        }
    }

    #[test]
    fn an_entry_of_a_newer_format_is_refused_by_name() {
        let error = Entry::decode(Bytes::from_static(&[2, 1])).unwrap_err();
        assert_eq!(error, EntryError::Newer(2));
    }

    #[test]
    fn a_begin_comes_back_as_it_was() {
        let begin = Entry::decode(encode_begin(Incarnation(7)));
        assert!(matches!(begin, Ok(Entry::Begin(Incarnation(7)))));
    }
}

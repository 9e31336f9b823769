//! Row keys: how they are built and cut. See the table in the module above.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use leadline_kv::keyspace;
use xxhash_rust::xxh3::xxh3_64;

/// The type of a Redis value. The discriminant is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Type {
    String = 0,
    Hash = 1,
    List = 2,
    Set = 3,
    SortedSet = 4,
}

impl Type {
    /// As `TYPE` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Hash => "hash",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
        }
    }

    pub(crate) fn from_tag(tag: u8) -> Option<Self> {
        [
            Self::String,
            Self::Hash,
            Self::List,
            Self::Set,
            Self::SortedSet,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == tag)
    }

    /// The kinds of element rows a collection of this type has.
    pub(crate) fn element_kinds(self) -> &'static [ElementKind] {
        match self {
            Self::String => &[],
            Self::Hash => &[ElementKind::HashField],
            Self::List => &[ElementKind::ListElement],
            Self::Set => &[ElementKind::SetMember],
            Self::SortedSet => &[ElementKind::SortedSetMember, ElementKind::SortedSetScore],
        }
    }
}

/// The kind byte of an element row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ElementKind {
    HashField = 0x10,
    SetMember = 0x20,
    ListElement = 0x30,
    SortedSetMember = 0x40,
    SortedSetScore = 0x41,
}

const FIRST: u8 = 0x01;
const EXPIRY_INDEX: u8 = 0xFC;
const DEAD_GENERATION: u8 = 0xFD;
const KEY_COUNT: u8 = 0xFE;

/// The part that all rows of one key share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(Bytes);

/// The row keys of a slot of one database begin with this.
pub(crate) fn slot_prefix(slot: u16, database: u8) -> Bytes {
    let [kind, high, low] = keyspace::slot_start(slot);
    Bytes::copy_from_slice(&[kind, high, low, database])
}

/// The first row's key; the prefix is all of it but the last byte.
pub(crate) fn first_row_key(database: u8, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + 8);
    out.put_slice(&keyspace::slot_start(keyspace::slot(key)));
    out.put_u8(database);
    if key.contains(&0) {
        for &byte in key {
            out.put_u8(byte);
            if byte == 0 {
                out.put_u8(0xFF);
            }
        }
    } else {
        out.put_slice(key);
    }
    out.put_slice(&[0, FIRST]);
    out.freeze()
}

impl Prefix {
    pub(crate) fn new(database: u8, key: &[u8]) -> Self {
        let mut first = first_row_key(database, key);
        first.truncate(first.len() - 1);
        Self(first)
    }

    pub(crate) fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    pub(crate) fn first_row(&self) -> Bytes {
        join(&[&self.0, &[FIRST]])
    }

    /// The row of one element; `parts` are its sub-key.
    pub(crate) fn element(&self, kind: ElementKind, generation: u64, parts: &[&[u8]]) -> Bytes {
        let length = self.0.len() + 9 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut out = BytesMut::with_capacity(length);
        out.put_slice(&self.0);
        out.put_u8(kind as u8);
        out.put_u64(generation);
        for part in parts {
            out.put_slice(part);
        }
        out.freeze()
    }

    /// The row of an element that lies in hash order (a field or a member).
    pub(crate) fn hashed(&self, kind: ElementKind, generation: u64, element: &[u8]) -> Bytes {
        self.element(kind, generation, &[&hash48(element), element])
    }

    /// All elements of one kind.
    pub(crate) fn elements(&self, kind: ElementKind, generation: u64) -> Range<Bytes> {
        let start = self.element(kind, generation, &[]);
        let end = end_of_prefix(&start);
        start..end
    }

    /// Bytes of an element row's key before its sub-key.
    pub(crate) fn element_header(&self) -> usize {
        self.0.len() + 9
    }
}

/// The database and the user's key of a first row's key; `None` for any other row.
pub(crate) fn parse_first_row(row_key: &[u8]) -> Option<(u8, Bytes)> {
    let (database, rest) = row_key.get(3..)?.split_first()?;
    if *database >= EXPIRY_INDEX {
        return None;
    }
    let mut key = BytesMut::with_capacity(rest.len());
    let mut at = 0;
    loop {
        match (rest.get(at)?, rest.get(at + 1)) {
            (0, Some(0xFF)) => {
                key.put_u8(0);
                at += 2;
            }
            (0, Some(&FIRST)) if at + 2 == rest.len() => return Some((*database, key.freeze())),
            (0, _) => return None,
            (byte, _) => {
                key.put_u8(*byte);
                at += 1;
            }
        }
    }
}

/// The first key after every key that begins with `prefix` (whose last byte is not 0xFF alone).
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            break;
        }
    }
    Bytes::from(end)
}

/// 48 bits of XXH3, big endian: few enough for a cursor that every client can hold, also as a
/// double. Stored, so never to be changed.
pub(crate) fn hash48(element: &[u8]) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = xxh3_64(element).to_be_bytes();
    [a, b, c, d, e, f]
}

/// A list position in an order-preserving form.
pub(crate) fn list_position(position: i64) -> [u8; 8] {
    (position.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// A score in an order-preserving form; `-0` is `0`.
pub(crate) fn score_bytes(score: f64) -> [u8; 8] {
    let bits = if score == 0.0 { 0 } else { score.to_bits() };
    let ordered = if bits >> 63 == 1 {
        !bits
    } else {
        bits | (1 << 63)
    };
    ordered.to_be_bytes()
}

/// The score that [`score_bytes`] wrote.
pub(crate) fn score_from_bytes(bytes: [u8; 8]) -> f64 {
    let ordered = u64::from_be_bytes(bytes);
    f64::from_bits(if ordered >> 63 == 1 {
        ordered & !(1 << 63)
    } else {
        !ordered
    })
}

/// The rows that concern a shard as a whole stand under the first slot it owns.
fn shard_row(owned_start: &[u8], kind: u8, parts: &[&[u8]]) -> Bytes {
    let slot = match owned_start {
        [keyspace::REDIS, high, low, ..] => [*high, *low],
        _ => [0, 0],
    };
    let mut out = BytesMut::with_capacity(4 + parts.iter().map(|part| part.len()).sum::<usize>());
    out.put_u8(keyspace::REDIS);
    out.put_slice(&slot);
    out.put_u8(kind);
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

pub(crate) fn expiry_index_row(owned_start: &[u8], expires_at: u64, db: u8, key: &[u8]) -> Bytes {
    shard_row(
        owned_start,
        EXPIRY_INDEX,
        &[&expires_at.to_be_bytes(), &[db], key],
    )
}

/// Index rows of everything that expires at or before `now`.
pub(crate) fn expired_index_rows(owned_start: &[u8], now: u64) -> Range<Bytes> {
    shard_row(owned_start, EXPIRY_INDEX, &[])
        ..shard_row(
            owned_start,
            EXPIRY_INDEX,
            &[&now.saturating_add(1).to_be_bytes()],
        )
}

/// The database and key that an expiry index row names.
pub(crate) fn parse_expiry_index_row(row_key: &[u8]) -> Option<(u8, &[u8])> {
    let (database, key) = row_key.get(12..)?.split_first()?;
    Some((*database, key))
}

pub(crate) fn dead_generation_row(owned_start: &[u8], generation: u64, prefix: &Prefix) -> Bytes {
    shard_row(
        owned_start,
        DEAD_GENERATION,
        &[&generation.to_be_bytes(), prefix.as_bytes()],
    )
}

pub(crate) fn dead_generation_rows(owned_start: &[u8]) -> Range<Bytes> {
    shard_row(owned_start, DEAD_GENERATION, &[])..shard_row(owned_start, DEAD_GENERATION + 1, &[])
}

/// The generation and prefix that a dead-generation row names.
pub(crate) fn parse_dead_generation_row(row_key: &[u8]) -> Option<(u64, Prefix)> {
    let generation = row_key.get(4..12)?.try_into().ok()?;
    Some((
        u64::from_be_bytes(generation),
        Prefix(Bytes::copy_from_slice(row_key.get(12..)?)),
    ))
}

pub(crate) fn key_count_row(owned_start: &[u8], database: u8) -> Bytes {
    shard_row(owned_start, KEY_COUNT, &[&[database]])
}

fn join(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_first_row_names_its_database_and_key(database in 0u8..16, key: Vec<u8>) {
            let row = first_row_key(database, &key);
            prop_assert_eq!(parse_first_row(&row), Some((database, Bytes::from(key))));
        }

        #[test]
        fn rows_of_two_keys_never_interleave(a: Vec<u8>, b: Vec<u8>) {
            prop_assume!(a != b);
            let (p, q) = (Prefix::new(0, &a), Prefix::new(0, &b));
            prop_assert!(!p.as_bytes().starts_with(q.as_bytes()));
            prop_assert!(!q.as_bytes().starts_with(p.as_bytes()));
        }

        #[test]
        fn scores_and_positions_keep_their_order(a: f64, b: f64, i: i64, j: i64) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(score_from_bytes(score_bytes(a)), a);
            if a < b {
                prop_assert!(score_bytes(a) < score_bytes(b));
            }
            prop_assert_eq!(i.cmp(&j), list_position(i).cmp(&list_position(j)));
        }
    }
}

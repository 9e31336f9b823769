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

/// Whether `row_key` is the first row's key of `key`. May say no for a key with a zero byte in it.
pub(crate) fn is_first_row_of(row_key: &[u8], database: u8, key: &[u8]) -> bool {
    row_key.len() == key.len() + 6
        && row_key[3] == database
        && row_key[4..row_key.len() - 2] == *key
        && !key.contains(&0)
}

impl Prefix {
    pub(crate) fn new(database: u8, key: &[u8]) -> Self {
        Self::of_first_row(&first_row_key(database, key))
    }

    /// The prefix of the key whose first row this is, sharing its bytes.
    pub(crate) fn of_first_row(row_key: &Bytes) -> Self {
        Self(row_key.slice(..row_key.len() - 1))
    }

    /// A prefix as [`Prefix::as_bytes`] gave it, read back from a row.
    pub(crate) fn stored(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }

    /// The slot and database that rows with this prefix are in.
    pub(crate) fn place(&self) -> &[u8] {
        &self.0[..4]
    }

    pub(crate) fn as_bytes(&self) -> &Bytes {
        &self.0
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

/// What a row key in the part of the databases says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPlace<'a> {
    pub(crate) slot: u16,
    /// Below [`DATABASES`](super::DATABASES), or the kind of a row that concerns the whole shard.
    pub(crate) database: u8,
    /// What all rows of this row's key begin with; the whole row key in a row of the shard.
    pub(crate) prefix: &'a [u8],
    /// This is a key's first row.
    pub(crate) is_first: bool,
}

impl RowPlace<'_> {
    /// The user's key.
    pub(crate) fn key(&self) -> Bytes {
        let escaped = &self.prefix[4..self.prefix.len() - 1];
        if !escaped.contains(&0) {
            return Bytes::copy_from_slice(escaped);
        }
        let mut key = BytesMut::with_capacity(escaped.len());
        let mut rest = escaped;
        while let Some((&byte, after)) = rest.split_first() {
            key.put_u8(byte);
            rest = if byte == 0 { &after[1..] } else { after };
        }
        key.freeze()
    }
}

/// Whether a row key of the Redis keyspace is that of a key's first row.
pub(crate) fn is_first_row(row_key: &[u8]) -> bool {
    row_key.last() == Some(&FIRST) && row_place(row_key).is_some_and(|place| place.is_first)
}

/// Cuts a row key of the Redis keyspace; `None` if it is none.
pub(crate) fn row_place(row_key: &[u8]) -> Option<RowPlace<'_>> {
    let &[keyspace::REDIS, high, low, database, ref rest @ ..] = row_key else {
        return None;
    };
    let slot = u16::from_be_bytes([high, low]);
    if database >= EXPIRY_INDEX {
        return Some(RowPlace {
            slot,
            database,
            prefix: row_key,
            is_first: false,
        });
    }
    let mut from = 0;
    loop {
        let zero = from + rest[from..].iter().position(|&byte| byte == 0)?;
        match rest.get(zero + 1)? {
            0xFF => from = zero + 2,
            kind => {
                return Some(RowPlace {
                    slot,
                    database,
                    prefix: &row_key[..zero + 5],
                    is_first: *kind == FIRST && zero + 2 == rest.len(),
                });
            }
        }
    }
}

/// The slots that a shard owns.
pub(crate) fn owned_slots(owned: &Range<Bytes>) -> Range<u16> {
    let slot_of = |border: &[u8], otherwise: u16| match border {
        [keyspace::REDIS, high, low, ..] => u16::from_be_bytes([*high, *low]),
        [kind, ..] if *kind > keyspace::REDIS => keyspace::SLOTS,
        _ => otherwise,
    };
    slot_of(&owned.start, 0)..slot_of(&owned.end, 0)
}

/// Every row of some slots, rows of the shard included.
pub(crate) fn slot_rows(slots: Range<u16>) -> Range<Bytes> {
    Bytes::copy_from_slice(&keyspace::slot_start(slots.start))
        ..Bytes::copy_from_slice(&keyspace::slot_start(slots.end))
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
        &[&[db], &expires_at.to_be_bytes(), key],
    )
}

/// The expiry index of one database.
pub(crate) fn expiry_index_rows(owned_start: &[u8], database: u8) -> Range<Bytes> {
    shard_row(owned_start, EXPIRY_INDEX, &[&[database]])
        ..shard_row(owned_start, EXPIRY_INDEX, &[&[database + 1]])
}

/// Index rows of everything in one database that expires at or before `now`.
pub(crate) fn expired_index_rows(owned_start: &[u8], database: u8, now: u64) -> Range<Bytes> {
    let after = now.saturating_add(1).to_be_bytes();
    shard_row(owned_start, EXPIRY_INDEX, &[&[database]])
        ..shard_row(owned_start, EXPIRY_INDEX, &[&[database], &after])
}

/// The database, expiry and key that an expiry index row names.
pub(crate) fn parse_expiry_index_row(row_key: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (expires_at, key) = row_key.get(5..)?.split_first_chunk()?;
    Some((row_key[4], u64::from_be_bytes(*expires_at), key))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_first_row_names_its_database_and_key(database in 0u8..16, key: Vec<u8>) {
            let row = first_row_key(database, &key);
            let place = row_place(&row).unwrap();
            prop_assert!(place.is_first);
            prop_assert_eq!((place.database, place.key()), (database, Bytes::from(key)));
        }

        #[test]
        fn an_element_row_is_known_by_its_prefix(key: Vec<u8>, element: Vec<u8>) {
            let prefix = Prefix::new(3, &key);
            let row = prefix.hashed(ElementKind::SetMember, 1, &element);
            let place = row_place(&row).unwrap();
            prop_assert!(!place.is_first);
            prop_assert_eq!(place.prefix, prefix.as_bytes());
        }

        #[test]
        fn a_routed_row_key_is_taken_only_for_its_own_key(a: Vec<u8>, b: Vec<u8>) {
            let row = first_row_key(0, &a);
            prop_assert_eq!(is_first_row_of(&row, 0, &a), !a.contains(&0));
            prop_assert!(a == b || !is_first_row_of(&row, 0, &b));
            prop_assert!(!is_first_row_of(&row, 1, &a));
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

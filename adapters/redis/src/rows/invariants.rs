//! The module's invariants, checked over every row of a shard.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use leadline_kv::{Rows, ScanOrder};

use super::db::{First, Value};
use super::layout::{self, Prefix, Type};

type Generation = (Bytes, u64);

/// What a look at every row found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) keys: usize,
    /// Element rows that belong to dead generations.
    pub(crate) dead_elements: usize,
    pub(crate) dead_generations: usize,
}

/// # Panics
/// If the rows break one of the invariants 2, 3 and 4, or the count of keys is wrong.
pub(crate) fn check(rows: &mut dyn Rows) -> Census {
    let owned = rows.owned();
    let mut all = Vec::new();
    rows.scan(owned.clone(), ScanOrder::Ascending, &mut |key, value| {
        all.push((Bytes::copy_from_slice(key), value.clone()));
        true
    })
    .unwrap();

    let mut counts: BTreeMap<u8, u64> = BTreeMap::new();
    let (mut live, mut dead): (BTreeMap<Generation, (Type, u64)>, BTreeSet<Generation>) =
        Default::default();
    let (mut expected, mut index): (BTreeSet<Bytes>, BTreeSet<Bytes>) = Default::default();
    let mut elements: BTreeMap<(Generation, u8), u64> = BTreeMap::new();
    let mut counted: BTreeMap<u8, u64> = BTreeMap::new();
    let mut keys = 0;
    for (row_key, value) in all {
        let place = layout::row_place(&row_key).expect("a Redis row");
        if place.is_first {
            keys += 1;
            *counts.entry(place.database).or_default() += 1;
            let first = First::decode(value).unwrap();
            if let Some(at) = first.expires_at {
                expected.insert(layout::expiry_index_row(
                    &owned.start,
                    at,
                    place.database,
                    &place.key(),
                ));
            }
            if let Value::Collection(collection) = first.value {
                assert!(collection.count > 0, "an empty collection is stored");
                let own = Prefix::stored(place.prefix);
                let home = collection.home.unwrap_or(own);
                let generation = (home.as_bytes().clone(), collection.generation);
                let twice = live.insert(generation, (collection.kind, collection.count));
                assert_eq!(twice, None, "two keys share their elements");
            }
            continue;
        }
        match place.database {
            // Of the store itself.
            0xFF => {}
            0xFC => drop(index.insert(row_key)),
            0xFD => {
                let (generation, prefix) = layout::parse_dead_generation_row(&row_key).unwrap();
                dead.insert((prefix.as_bytes().clone(), generation));
            }
            0xFE => {
                let count = u64::from_be_bytes(value[..].try_into().unwrap());
                if count > 0 {
                    counted.insert(row_key[4], count);
                }
            }
            _ => {
                let rest = &row_key[place.prefix.len()..];
                let generation = u64::from_be_bytes(rest[1..9].try_into().unwrap());
                let owner = (Bytes::copy_from_slice(place.prefix), generation);
                *elements.entry((owner, rest[0])).or_default() += 1;
            }
        }
    }
    assert_eq!(counted, counts, "the count of keys");
    assert_eq!(index, expected, "the expiry index");
    let mut dead_elements = 0;
    for ((owner, kind), count) in &elements {
        if dead.contains(owner) {
            assert!(!live.contains_key(owner), "a generation is dead and alive");
            dead_elements += usize::try_from(*count).unwrap();
            continue;
        }
        let Some((of, _)) = live.get(owner) else {
            panic!("elements of kind {kind:#x} that nobody owns or sweeps: {owner:?}");
        };
        assert!(of.element_kinds().iter().any(|known| *known as u8 == *kind));
    }
    for (owner, (kind, count)) in &live {
        for element in kind.element_kinds() {
            let there = elements.get(&(owner.clone(), *element as u8)).copied();
            assert_eq!(there, Some(*count), "elements of {owner:?}");
        }
    }
    Census {
        keys,
        dead_elements,
        dead_generations: dead.len(),
    }
}

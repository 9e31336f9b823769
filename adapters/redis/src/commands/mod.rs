//! Every command: one file per family, and the table that finds them by name.

mod lists;
mod strings;

use std::collections::HashMap;
use std::sync::LazyLock;

use leadline_kv::keyspace::SLOTS;

use crate::args::parse_integer;
use crate::reply::ReplyError;
use crate::spec::Spec;

/// The families' tables.
const FAMILIES: &[&[Spec]] = &[strings::SPECS, lists::SPECS];

/// The longest name in the table; longer ones are unknown without a look.
const LONGEST_NAME: usize = 32;

static TABLE: LazyLock<HashMap<&'static [u8], &'static Spec>> =
    LazyLock::new(|| all().map(|spec| (spec.name.as_bytes(), spec)).collect());

/// Every command, internal ones too.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().copied().flatten()
}

/// The command called `name`, in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Spec> {
    let mut upper = [0; LONGEST_NAME];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    TABLE.get(&*upper).copied()
}

/// The slot at which a SCAN cursor goes on.
pub(crate) fn scan_cursor_slot(cursor: &[u8]) -> Result<u16, ReplyError> {
    parse_integer(cursor)
        .and_then(|cursor| u16::try_from(cursor >> SCAN_POSITION_BITS).ok())
        .filter(|slot| *slot < SLOTS)
        .ok_or_else(|| ReplyError::err("invalid cursor"))
}

/// A SCAN cursor is a slot above this many bits of a position within it: 52 bits in all, which
/// every client can hold.
pub(crate) const SCAN_POSITION_BITS: u32 = 38;

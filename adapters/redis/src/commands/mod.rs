//! Every command: one file per family, and the table that finds them by name.

mod connection;
mod lists;
mod strings;

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::Bytes;
use leadline_kv::keyspace::SLOTS;

use crate::args::parse_integer;
use crate::reply::ReplyError;
use crate::spec::Spec;

/// The families' tables.
#[rustfmt::skip] // One per line: families come one at a time.
const FAMILIES: &[&[Spec]] = &[
    connection::SPECS,
    lists::SPECS,
    strings::SPECS,
];

/// The longest name in the table; longer ones are unknown without a look.
const LONGEST_NAME: usize = 32;

/// Every command by its name, with its place in [`all`].
static TABLE: LazyLock<HashMap<&'static [u8], (usize, &'static Spec), NameHash>> =
    LazyLock::new(|| {
        all()
            .enumerate()
            .map(|(place, spec)| (spec.name.as_bytes(), (place, spec)))
            .collect()
    });

static PLACES: LazyLock<Vec<&'static Spec>> = LazyLock::new(|| all().collect());

/// Every command, internal ones too.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().copied().flatten()
}

/// How many commands there are.
pub(crate) fn count() -> usize {
    PLACES.len()
}

/// The command at a place in [`all`].
pub(crate) fn nth(place: usize) -> Option<&'static Spec> {
    PLACES.get(place).copied()
}

/// The command called `name`, in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Spec> {
    locate(name).map(|(_, spec)| spec)
}

/// The command that a client may call by `name`, with its place in [`all`].
pub(crate) fn lookup(name: &[u8]) -> Option<(usize, &'static Spec)> {
    locate(name).filter(|(_, spec)| !spec.flags.internal)
}

fn locate(name: &[u8]) -> Option<(usize, &'static Spec)> {
    let mut upper = [0; LONGEST_NAME];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    TABLE.get(&*upper).copied()
}

/// The error line for a command that does not exist.
pub(crate) fn unknown(args: &[Bytes]) -> ReplyError {
    const SHOWN: usize = 128;
    let shown = |arg: &Bytes, room: usize| {
        String::from_utf8_lossy(&arg[..arg.len().min(room)]).into_owned()
    };
    let mut rest = String::new();
    for arg in args.iter().skip(1) {
        if rest.len() >= SHOWN {
            break;
        }
        rest += &format!("'{}' ", shown(arg, SHOWN - rest.len()));
    }
    let name = args
        .first()
        .map_or_else(String::new, |name| shown(name, SHOWN));
    ReplyError::err(format_args!(
        "unknown command '{name}', with args beginning with: {rest}"
    ))
}

/// Hashes names of the table: short, and not chosen by anyone who wants them to collide.
type NameHash = std::hash::BuildHasherDefault<xxhash_rust::xxh3::Xxh3Default>;

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

//! Every command: one file per family, and the table that finds them by name.

mod bitmaps;
mod collection_scan;
mod command;
mod connection;
mod counters;
mod expire;
mod hashes;
mod keys;
mod lcs;
mod lists;
mod pops;
mod scan;
mod server;
mod sets;
mod sorted_sets;
mod strings;
mod sweep;
mod transactions;

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::Bytes;
use leadline_kv::keyspace::SLOTS;

use crate::args::parse_integer;
use crate::reply::ReplyError;
use crate::rows::SCAN_POSITION_BITS;
use crate::script;
use crate::spec::{Command, Spec};

pub use sweep::sweeps;

/// The families' tables.
#[rustfmt::skip] // One per line: families come one at a time.
const FAMILIES: &[&[Spec]] = &[
    bitmaps::SPECS,
    collection_scan::SPECS,
    command::SPECS,
    connection::SPECS,
    counters::SPECS,
    expire::SPECS,
    hashes::SPECS,
    keys::SPECS,
    lcs::SPECS,
    lists::SPECS,
    scan::SPECS,
    script::SPECS,
    script::INTERNAL,
    server::SPECS,
    sets::SPECS,
    strings::SPECS,
    sweep::SPECS,
    transactions::SPECS,
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
    FAMILIES.iter().chain(sorted_sets::SPECS).copied().flatten()
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

/// A parsed command, as a spec's `parse` gives it.
pub(crate) fn boxed(command: impl Command) -> Result<Box<dyn Command>, ReplyError> {
    Ok(Box::new(command))
}

/// What a shard answered to its part of a walk is not what was asked for.
fn damaged_part() -> ReplyError {
    ReplyError::err("a shard answered with a damaged reply")
}

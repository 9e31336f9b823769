//! How Redis values lie in rows, and typed access to them.
//!
//! ```text
//! first row   P 0x01                          string: flags, expiry, value
//!                                             collection: flags, expiry, generation, count, ends, home
//! hash        P 0x10 generation hash48 field         -> value
//! set         P 0x20 generation hash48 member        -> empty
//! list        P 0x30 generation position             -> element
//! sorted set  P 0x40 generation hash48 member        -> score
//!             P 0x41 generation score member         -> empty
//!   where P = 0x10 | slot u16 BE | database u8 | key escaped | 0x00
//!
//! shard rows  0x10 | first slot of the shard | 0xFC database expiry key   -> empty (expiry index)
//!                                            | 0xFD generation P          -> type (dead generation)
//!                                            | 0xFE database              -> count of keys
//!                                            | 0xFF …                     the store's own
//! ```
//!
//! # Invariants
//! 1. Every write to a key also writes its first row: that row's stamp is the key's version.
//! 2. An element row is live only under the generation that the first row names. A generation is
//!    a random number drawn when the collection is made, so it is never used twice for a key.
//!    The elements lie under the P of the key that created them: a RENAME within a slot leaves them
//!    there and the new first row names that P as its home.
//! 3. A collection has a first row exactly while it has elements.
//! 4. The expiry index has one row for each first row with an expiry, and no other.
//! 5. Elements with a hash lie in hash order, which is what SSCAN, HSCAN and ZSCAN cursors name.

mod db;
mod draw;
mod hashed;
#[cfg(test)]
pub(crate) mod invariants;
mod layout;
mod relocate;
mod sweep;
mod walk;

pub(crate) use db::{Collection, Db, First, Value, version_of};
pub(crate) use hashed::Hashed;
pub(crate) use layout::{
    ElementKind, Prefix, Type, end_of_prefix, first_row_key, is_first_row, list_position,
    owned_slots, score_bytes, score_from_bytes, slot_prefix,
};
pub(crate) use sweep::{Swept, sweep_expired, sweep_generations};
pub(crate) use walk::SCAN_POSITION_BITS;

/// Databases that SELECT knows; they are really separate.
pub(crate) const DATABASES: u8 = 16;

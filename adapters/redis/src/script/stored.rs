//! Scripts and libraries as rows, beside the slots of keys: in the one shard that owns the end of
//! the Redis keyspace. FLUSHALL leaves them alone, as in Redis.
//!
//! ```text
//! 0x10 0x4000 s digest   -> origin, body     a script
//! 0x10 0x4000 r place    -> digest           the ring of scripts that EVAL brought
//! 0x10 0x4000 n          -> the place in the ring that is next
//! 0x10 0x4000 f          -> every library
//! 0x10 0x4000 v          -> the version of that
//! ```
//!
//! SCRIPT LOAD keeps a script until SCRIPT FLUSH. What EVAL brought is kept in a ring: so many
//! scripts at most, the oldest goes first.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_kv::keyspace::{SLOTS, slot_start};
use leadline_kv::{RowError, Rows};

use super::catalogue::{Catalogue, Existing, Library};
use super::known::Digest;
use super::{digest, dump, shebang, vm};
use crate::args::Args;
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

/// The place of these rows, for routing.
pub(crate) fn place() -> Bytes {
    row(b'f', &[])
}

/// A larger script than this is remembered by the node it was sent to only.
pub(super) const SEEN_BYTES: usize = 64 << 10;

/// So many scripts that EVAL brought are kept.
const RING: u64 = 1024;

pub(super) const READ: Spec = Spec::read(
    "LEADLINE.STORED.READ",
    "leadline.stored.read",
    "scripting",
    Arity::AtLeast(2),
    Keys::Beside,
    Read::parse,
)
.internal();

pub(super) const WRITE: Spec = Spec::write(
    "LEADLINE.STORED.WRITE",
    "leadline.stored.write",
    "scripting",
    Arity::AtLeast(2),
    Keys::Beside,
    Write::parse,
)
.internal();

fn row(kind: u8, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + rest.len());
    out.put_slice(&slot_start(SLOTS));
    out.put_u8(kind);
    out.put_slice(rest);
    out.freeze()
}

fn rows_of(kind: u8) -> Range<Bytes> {
    row(kind, &[])..row(kind + 1, &[])
}

/// Who brought a script. The discriminant is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Origin {
    Loaded = 0,
    Seen = 1,
}

fn script(rows: &mut dyn Rows, digest: Digest) -> Result<Option<(Origin, Bytes)>, RowError> {
    let Some(mut stored) = rows.get(&row(b's', &digest))? else {
        return Ok(None);
    };
    let origin = match stored.try_get_u8() {
        Ok(0) => Origin::Loaded,
        Ok(1) => Origin::Seen,
        _ => return Err(RowError::Storage("a script row is damaged".to_owned())),
    };
    Ok(Some((origin, stored)))
}

fn put_script(rows: &mut dyn Rows, digest: Digest, origin: Origin, body: &[u8]) {
    let mut value = BytesMut::with_capacity(body.len() + 1);
    value.put_u8(origin as u8);
    value.put_slice(body);
    rows.put(row(b's', &digest), value.freeze());
}

fn number(stored: Option<Bytes>) -> Result<u64, RowError> {
    match stored {
        None => Ok(0),
        Some(mut stored) => stored
            .try_get_u64()
            .map_err(|_| RowError::Storage("a counter row is damaged".to_owned())),
    }
}

/// Looks at scripts and libraries.
#[derive(Debug)]
enum Read {
    /// `SCRIPT digest`: its body or null.
    Script(Digest),
    /// `LIBRARIES version`: every library, or null if the version is still this.
    Libraries(u64),
}

impl Read {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(if args.take("SCRIPT") {
            Self::Script(given_digest(args)?)
        } else if args.take("LIBRARIES") {
            Self::Libraries(args.unsigned()?)
        } else {
            return Err(ReplyError::Syntax);
        })
    }
}

fn given_digest(args: &mut Args<'_>) -> Result<Digest, ReplyError> {
    Digest::try_from(&args.bytes()?[..]).map_err(|_| ReplyError::Syntax)
}

impl Command for Read {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let rows = db.rows();
        Ok(match self {
            Self::Script(digest) => match script(rows, *digest)? {
                Some((_, body)) => Reply::Bulk(body),
                None => Reply::Null,
            },
            Self::Libraries(known) => {
                if number(rows.get(&row(b'v', &[]))?)? == *known {
                    return Ok(Reply::Null);
                }
                match rows.get(&row(b'f', &[]))? {
                    Some(libraries) => Reply::Bulk(libraries),
                    None => Reply::Null,
                }
            }
        })
    }
}

/// Changes scripts and libraries.
#[derive(Debug)]
enum Write {
    /// `LOAD body`: answers the digest.
    Load(Bytes),
    /// `SEEN body`: EVAL brought it.
    Seen(Bytes),
    /// `FLUSH`: no script is left.
    Flush,
    /// `ADD code replace`: answers the library's name.
    Add(Bytes, Existing),
    /// `DELETE library`
    Delete(Bytes),
    /// `CLEAR`: no library is left.
    Clear,
    /// `RESTORE payload policy`
    Restore(Bytes, Policy),
}

/// What RESTORE does with the libraries that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Append,
    Replace,
    Flush,
}

impl Write {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(if args.take("LOAD") {
            Self::Load(args.bytes()?)
        } else if args.take("SEEN") {
            Self::Seen(args.bytes()?)
        } else if args.take("FLUSH") {
            Self::Flush
        } else if args.take("ADD") {
            let code = args.bytes()?;
            let existing = if args.take("REPLACE") {
                Existing::Replace
            } else {
                Existing::Refuse
            };
            Self::Add(code, existing)
        } else if args.take("DELETE") {
            Self::Delete(args.bytes()?)
        } else if args.take("CLEAR") {
            Self::Clear
        } else if args.take("RESTORE") {
            let payload = args.bytes()?;
            let policy = if args.take("REPLACE") {
                Policy::Replace
            } else if args.take("FLUSH") {
                Policy::Flush
            } else {
                Policy::Append
            };
            Self::Restore(payload, policy)
        } else {
            return Err(ReplyError::Syntax);
        })
    }
}

impl Command for Write {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        match self {
            Self::Load(body) => {
                vm::check(body, db)?;
                let name = digest(body);
                put_script(db.rows(), raw(&name), Origin::Loaded, body);
                Ok(Reply::Bulk(name.into()))
            }
            Self::Seen(body) => {
                seen(db.rows(), raw(&digest(body)), body)?;
                Ok(Reply::OK)
            }
            Self::Flush => {
                for kind in *b"sr" {
                    db.rows().delete_range(rows_of(kind));
                }
                Ok(Reply::OK)
            }
            Self::Add(code, existing) => {
                let name = shebang::library_name(code)?;
                let library = loaded(code, db)?;
                change(db, |catalogue| {
                    catalogue.add(name.clone(), library, *existing)
                })?;
                Ok(Reply::Bulk(name))
            }
            Self::Delete(name) => {
                change(db, |catalogue| match catalogue.libraries.remove(name) {
                    Some(_) => Ok(()),
                    None => Err(ReplyError::err("Library not found")),
                })?;
                Ok(Reply::OK)
            }
            Self::Clear => {
                change(db, |catalogue| {
                    catalogue.libraries.clear();
                    Ok(())
                })?;
                Ok(Reply::OK)
            }
            Self::Restore(payload, policy) => {
                let mut libraries = Vec::new();
                for code in dump::read(payload)? {
                    let name = shebang::library_name(&code)?;
                    libraries.push((name, loaded(&code, db)?));
                }
                change(db, |catalogue| {
                    if *policy == Policy::Flush {
                        catalogue.libraries.clear();
                    }
                    let existing = if *policy == Policy::Replace {
                        Existing::Replace
                    } else {
                        Existing::Refuse
                    };
                    for (name, library) in libraries {
                        catalogue.add(name, library, existing)?;
                    }
                    Ok(())
                })?;
                Ok(Reply::OK)
            }
        }
    }
}

fn raw(digest: &str) -> Digest {
    super::known::parse_digest(digest.as_bytes()).expect("a digest is forty digits")
}

fn loaded(code: &Bytes, db: &mut Db<'_>) -> Result<Library, ReplyError> {
    Ok(Library {
        code: code.clone(),
        functions: vm::load(code, db)?,
    })
}

/// Changes the libraries, or not at all.
fn change(
    db: &mut Db<'_>,
    change: impl FnOnce(&mut Catalogue) -> Result<(), ReplyError>,
) -> Result<(), ReplyError> {
    let rows = db.rows();
    let mut catalogue = match rows.get(&row(b'f', &[]))? {
        Some(stored) => Catalogue::decode(stored)?,
        None => Catalogue::default(),
    };
    change(&mut catalogue)?;
    catalogue.version += 1;
    rows.put(row(b'f', &[]), catalogue.encode());
    let version = Bytes::copy_from_slice(&catalogue.version.to_be_bytes());
    rows.put(row(b'v', &[]), version);
    Ok(())
}

/// Keeps what EVAL brought, in the place of the oldest of its kind.
fn seen(rows: &mut dyn Rows, digest: Digest, body: &[u8]) -> Result<(), RowError> {
    if script(rows, digest)?.is_some() {
        return Ok(());
    }
    let next = number(rows.get(&row(b'n', &[]))?)?;
    let place = row(b'r', &(next % RING).to_be_bytes());
    if let Some(oldest) = rows.get(&place)?
        && let Ok(oldest) = Digest::try_from(&oldest[..])
        && let Some((Origin::Seen, _)) = script(rows, oldest)?
    {
        rows.delete(row(b's', &oldest));
    }
    put_script(rows, digest, Origin::Seen, body);
    rows.put(place, Bytes::copy_from_slice(&digest));
    let next = Bytes::copy_from_slice(&(next + 1).to_be_bytes());
    rows.put(row(b'n', &[]), next);
    Ok(())
}

#[cfg(test)]
mod tests {
    use leadline_kv::testing::MemoryRows;

    use super::*;

    fn keep(rows: &mut MemoryRows, number: u64) -> Digest {
        let body = format!("return {number}");
        let digest = raw(&digest(body.as_bytes()));
        seen(rows, digest, body.as_bytes()).unwrap();
        digest
    }

    /// An application that writes its arguments into its scripts must not fill the disk.
    #[test]
    fn of_the_scripts_that_eval_brought_the_newest_are_kept_and_loaded_ones_for_good() {
        let mut rows = MemoryRows::default();
        let first = keep(&mut rows, 0);
        let loaded = keep(&mut rows, 1);
        put_script(&mut rows, loaded, Origin::Loaded, b"return 1");
        for number in 2..=RING + 1 {
            keep(&mut rows, number);
        }
        assert!(script(&mut rows, first).unwrap().is_none());
        assert!(script(&mut rows, loaded).unwrap().is_some());
        assert!(rows.len() as u64 <= 2 * RING + 2);
    }
}

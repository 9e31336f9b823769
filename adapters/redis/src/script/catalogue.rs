//! The libraries of functions, all together: one value, so that a change is one write.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_kv::RowError;

use super::shebang::Flags;
use super::vm::Registered;
use crate::reply::ReplyError;

const FORMAT: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) code: Bytes,
    pub(super) functions: Vec<Registered>,
}

/// Every library by its name.
///
/// # Invariants
/// 1. No two functions have one name, whatever their libraries.
/// 2. The version rises with each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalogue {
    pub(super) version: u64,
    pub(super) libraries: BTreeMap<Bytes, Library>,
}

/// What a change does with a library that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Refuse,
    Replace,
}

impl Catalogue {
    /// The library that has the function `name`, and the function.
    pub(super) fn find(&self, name: &[u8]) -> Option<(&Library, &Registered)> {
        self.libraries.values().find_map(|library| {
            let function = library
                .functions
                .iter()
                .find(|function| function.name == name)?;
            Some((library, function))
        })
    }

    /// Adds a library.
    ///
    /// # Errors
    /// The line that Redis gives when it, or one of its functions, is there already.
    pub(super) fn add(
        &mut self,
        name: Bytes,
        library: Library,
        existing: Existing,
    ) -> Result<(), ReplyError> {
        let shown = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let old = self.libraries.remove(&name);
        if old.is_some() && existing == Existing::Refuse {
            return Err(ReplyError::err(format_args!(
                "Library '{}' already exists",
                shown(&name)
            )));
        }
        if let Some(taken) = library
            .functions
            .iter()
            .find(|function| self.find(&function.name).is_some())
        {
            return Err(ReplyError::err(format_args!(
                "Function {} already exists",
                shown(&taken.name)
            )));
        }
        self.libraries.insert(name, library);
        Ok(())
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u64(self.version);
        out.put_u32(length(self.libraries.len()));
        for (name, library) in &self.libraries {
            put(&mut out, name);
            put(&mut out, &library.code);
            out.put_u32(length(library.functions.len()));
            for function in &library.functions {
                put(&mut out, &function.name);
                match &function.description {
                    Some(description) => {
                        out.put_u8(1);
                        put(&mut out, description);
                    }
                    None => out.put_u8(0),
                }
                out.put_u8(function.flags.to_byte());
            }
        }
        out.freeze()
    }

    pub(super) fn decode(mut row: Bytes) -> Result<Self, RowError> {
        read(&mut row).ok_or_else(|| RowError::Storage("the libraries row is damaged".to_owned()))
    }
}

/// A row is bounded far below 4 GiB.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(length(bytes.len()));
    out.put_slice(bytes);
}

fn read(row: &mut Bytes) -> Option<Catalogue> {
    if row.try_get_u8().ok()? != FORMAT {
        return None;
    }
    let mut catalogue = Catalogue {
        version: row.try_get_u64().ok()?,
        libraries: BTreeMap::new(),
    };
    for _ in 0..row.try_get_u32().ok()? {
        let name = bytes(row)?;
        let mut library = Library {
            code: bytes(row)?,
            functions: Vec::new(),
        };
        for _ in 0..row.try_get_u32().ok()? {
            let name = bytes(row)?;
            let description = match row.try_get_u8().ok()? {
                0 => None,
                _ => Some(bytes(row)?),
            };
            library.functions.push(Registered {
                name,
                description,
                flags: Flags::from_byte(row.try_get_u8().ok()?),
            });
        }
        catalogue.libraries.insert(name, library);
    }
    row.is_empty().then_some(catalogue)
}

fn bytes(row: &mut Bytes) -> Option<Bytes> {
    let count = row.try_get_u32().ok()? as usize;
    (row.len() >= count).then(|| row.split_to(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(functions: &[&'static str]) -> Library {
        let functions = functions
            .iter()
            .map(|name| Registered {
                name: Bytes::from_static(name.as_bytes()),
                description: Some(Bytes::from_static(b"what it does")),
                flags: Flags::FUNCTION,
            })
            .collect();
        Library {
            code: Bytes::from_static(b"#!lua name=x\n"),
            functions,
        }
    }

    #[test]
    fn a_catalogue_is_read_back_as_it_was_written() {
        let mut catalogue = Catalogue {
            version: 7,
            ..Catalogue::default()
        };
        let both = library(&["f", "g"]);
        catalogue.add("a".into(), both, Existing::Refuse).unwrap();
        assert_eq!(Catalogue::decode(catalogue.encode()).unwrap(), catalogue);
    }

    #[test]
    fn a_function_is_in_one_library_only_and_a_replaced_library_makes_room() {
        let mut catalogue = Catalogue::default();
        let add = |catalogue: &mut Catalogue,
                   name: &'static str,
                   functions: &[&'static str],
                   how| { catalogue.add(name.into(), library(functions), how) };
        add(&mut catalogue, "a", &["f"], Existing::Refuse).unwrap();
        add(&mut catalogue.clone(), "a", &["f"], Existing::Refuse).unwrap_err();
        add(&mut catalogue.clone(), "b", &["f"], Existing::Replace).unwrap_err();
        add(&mut catalogue, "a", &["f", "g"], Existing::Replace).unwrap();
        assert!(catalogue.find(b"g").is_some());
    }
}

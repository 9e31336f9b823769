//! HSCAN, SSCAN and ZSCAN: `key cursor [MATCH pattern] [COUNT n]`. An element that is there from the
//! first call to the last is answered; the cursor is a place in hash order and needs no memory.

use bytes::Bytes;

use crate::args::Args;
use crate::commands::scan::{ScanOptions, page, parse_cursor};
use crate::commands::{boxed, sorted_sets};
use crate::reply::{Reply, ReplyError, format_double};
use crate::rows::{Db, Hashed, Type};
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    spec("HSCAN", "hscan", "hash", |args| {
        CollectionScan::parse(args, Type::Hash)
    }),
    spec("SSCAN", "sscan", "set", |args| {
        CollectionScan::parse(args, Type::Set)
    }),
    spec("ZSCAN", "zscan", "sortedset", |args| {
        CollectionScan::parse(args, Type::SortedSet)
    }),
];

const fn spec(
    name: &'static str,
    lower: &'static str,
    category: &'static str,
    parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
) -> Spec {
    Spec::read(name, lower, category, Arity::AtLeast(3), Keys::At(1), parse)
}

#[derive(Debug)]
struct CollectionScan {
    key: Bytes,
    kind: Type,
    cursor: u64,
    /// Looked at only if there is a collection, as in Redis.
    options: Result<ScanOptions, ReplyError>,
}

impl CollectionScan {
    fn parse(args: &mut Args<'_>, kind: Type) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self {
            key: args.key()?,
            kind,
            cursor: parse_cursor(args)?,
            options: ScanOptions::parse(args, false),
        })
    }
}

impl Command for CollectionScan {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(collection) = Hashed::open(db, &self.key, self.kind)? else {
            return Ok(page(0, Vec::new()));
        };
        let options = self.options.as_ref().map_err(Clone::clone)?;
        let (cursor, found) = collection.page(db, self.cursor, options.count)?;
        let mut items = Vec::with_capacity(found.len() * 2);
        for (element, value) in found {
            if !options.admits(&element) {
                continue;
            }
            items.push(Reply::Bulk(element));
            match self.kind {
                Type::Hash => items.push(Reply::Bulk(value)),
                Type::SortedSet => {
                    let score = format_double(sorted_sets::decode_score(value)?);
                    items.push(Reply::Bulk(Bytes::from(score)));
                }
                Type::Set | Type::String | Type::List => {}
            }
        }
        Ok(page(cursor, items))
    }
}

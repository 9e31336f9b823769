//! A collection whose elements lie in hash order: the fields of a hash, the members of a set or of
//! a sorted set. The same code opens, reads, changes, walks and samples all three.

use bytes::Bytes;
use leadline_kv::{RowError, ScanOrder};

use super::db::{Collection, Db};
use super::draw::Draw;
use super::layout::{ElementKind, Prefix, Type};
use crate::reply::ReplyError;

/// Up to this many elements, a random one is drawn evenly by its place; above, near a random hash.
const EVEN_DRAW_MAX: u64 = 128;

/// Elements that a draw near a random hash picks among, to even out the gaps between hashes.
const DRAW_WINDOW: usize = 16;

/// An open collection: its first row in memory, to be saved after its elements were changed.
pub(crate) struct Hashed<'k> {
    pub(crate) key: &'k [u8],
    pub(crate) prefix: Prefix,
    pub(crate) meta: Collection,
    pub(crate) expires_at: Option<u64>,
    kind: ElementKind,
}

fn element_kind(kind: Type) -> ElementKind {
    match kind {
        Type::Set => ElementKind::SetMember,
        Type::SortedSet => ElementKind::SortedSetMember,
        Type::Hash | Type::String | Type::List => ElementKind::HashField,
    }
}

impl<'k> Hashed<'k> {
    /// The collection at `key`; an error if it is of another type.
    pub(crate) fn open(
        db: &mut Db<'_>,
        key: &'k [u8],
        kind: Type,
    ) -> Result<Option<Self>, ReplyError> {
        let found = db.collection(key, kind)?;
        Ok(found.map(|(meta, expires_at)| Self {
            key,
            prefix: db.home(key, &meta),
            meta,
            expires_at,
            kind: element_kind(kind),
        }))
    }

    /// The collection at `key`, or an empty one that is stored when it is saved.
    pub(crate) fn open_or_new(
        db: &mut Db<'_>,
        key: &'k [u8],
        kind: Type,
    ) -> Result<Self, ReplyError> {
        let (meta, expires_at) = db.collection_or_new(key, kind)?;
        Ok(Self {
            key,
            prefix: db.home(key, &meta),
            meta,
            expires_at,
            kind: element_kind(kind),
        })
    }

    /// An empty collection that replaces whatever is at `key` when it is saved.
    pub(crate) fn replacing(db: &mut Db<'_>, key: &'k [u8], kind: Type) -> Self {
        let meta = db.new_collection(kind);
        Self {
            key,
            prefix: db.prefix(key),
            meta,
            expires_at: None,
            kind: element_kind(kind),
        }
    }

    /// Writes the first row; an empty collection goes.
    pub(crate) fn save(self, db: &mut Db<'_>) -> Result<(), ReplyError> {
        db.save_collection(self.key, self.meta, self.expires_at)
    }

    fn row(&self, element: &[u8]) -> Bytes {
        self.prefix.hashed(self.kind, self.meta.generation, element)
    }

    pub(crate) fn get(&self, db: &mut Db<'_>, element: &[u8]) -> Result<Option<Bytes>, ReplyError> {
        Ok(db.rows().get(&self.row(element))?)
    }

    pub(crate) fn contains(&self, db: &mut Db<'_>, element: &[u8]) -> Result<bool, ReplyError> {
        Ok(self.get(db, element)?.is_some())
    }

    /// Writes an element; gives the value it had.
    pub(crate) fn put(
        &mut self,
        db: &mut Db<'_>,
        element: &[u8],
        value: Bytes,
    ) -> Result<Option<Bytes>, ReplyError> {
        let row = self.row(element);
        // A collection that this command creates has no rows to look at.
        let old = if self.meta.count == 0 && self.meta.fresh {
            None
        } else {
            db.rows().get(&row)?
        };
        if old.is_none() {
            self.meta.count += 1;
        }
        if old.as_ref() != Some(&value) {
            db.rows().put(row, value);
        }
        Ok(old)
    }

    /// Deletes an element; gives the value it had.
    pub(crate) fn remove(
        &mut self,
        db: &mut Db<'_>,
        element: &[u8],
    ) -> Result<Option<Bytes>, ReplyError> {
        let row = self.row(element);
        let old = db.rows().get(&row)?;
        if old.is_some() {
            db.rows().delete(row);
            self.meta.count -= 1;
        }
        Ok(old)
    }

    /// Visits every element, in hash order, until `visit` says stop.
    pub(crate) fn each(
        &self,
        db: &mut Db<'_>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), ReplyError> {
        Ok(self.each_from(db, 0, &mut |_, element, value| visit(element, value))?)
    }

    /// Every element with its value.
    pub(crate) fn all(&self, db: &mut Db<'_>) -> Result<Vec<(Bytes, Bytes)>, ReplyError> {
        let mut all = Vec::new();
        self.each(db, &mut |element, value| {
            all.push((Bytes::copy_from_slice(element), value.clone()));
            true
        })?;
        Ok(all)
    }

    fn each_from(
        &self,
        db: &mut Db<'_>,
        cursor: u64,
        visit: &mut dyn FnMut(u64, &[u8], &Bytes) -> bool,
    ) -> Result<(), RowError> {
        let all = self.prefix.elements(self.kind, self.meta.generation);
        let [_, _, from @ ..] = cursor.to_be_bytes();
        let start = self
            .prefix
            .element(self.kind, self.meta.generation, &[&from]);
        let header = self.prefix.element_header();
        db.rows()
            .scan(start..all.end, ScanOrder::Ascending, &mut |row, value| {
                let (hash, element) = row[header..].split_at(6);
                visit(cursor_of(hash), element, value)
            })
    }

    /// The elements from `cursor` on, `count` or a few more, and the cursor that goes on behind
    /// them; 0 at the end. Elements of one hash come together, so whoever stays in the collection
    /// from the first call to the last is returned.
    pub(crate) fn page(
        &self,
        db: &mut Db<'_>,
        cursor: u64,
        count: usize,
    ) -> Result<(u64, Vec<(Bytes, Bytes)>), ReplyError> {
        let (mut page, mut last, mut next) = (Vec::new(), None, 0);
        if cursor >> 48 != 0 {
            return Ok((0, page));
        }
        self.each_from(db, cursor, &mut |hash, element, value| {
            if page.len() >= count && last != Some(hash) {
                next = hash;
                return false;
            }
            last = Some(hash);
            page.push((Bytes::copy_from_slice(element), value.clone()));
            true
        })?;
        Ok((next, page))
    }

    /// One random element of a collection that is not empty.
    pub(crate) fn draw(&self, db: &mut Db<'_>) -> Result<Option<(Bytes, Bytes)>, ReplyError> {
        let random = db.rows().random();
        if self.meta.count <= EVEN_DRAW_MAX {
            let mut skip = random % self.meta.count.max(1);
            let mut drawn = None;
            self.each(db, &mut |element, value| {
                if skip == 0 {
                    drawn = Some((Bytes::copy_from_slice(element), value.clone()));
                    return false;
                }
                skip -= 1;
                true
            })?;
            return Ok(drawn);
        }
        let mut window = Vec::with_capacity(DRAW_WINDOW);
        let mut collect = |_: u64, element: &[u8], value: &Bytes| {
            window.push((Bytes::copy_from_slice(element), value.clone()));
            window.len() < DRAW_WINDOW
        };
        self.each_from(db, random >> 16, &mut collect)?;
        if window.is_empty() {
            self.each_from(db, 0, &mut |_, element, value| {
                window.push((Bytes::copy_from_slice(element), value.clone()));
                window.len() < DRAW_WINDOW
            })?;
        }
        if window.is_empty() {
            return Ok(None);
        }
        let place = usize::try_from((random & 0xFFFF) % window.len() as u64).unwrap_or(0);
        Ok(Some(window.swap_remove(place)))
    }

    /// `count` random elements, one perhaps several times.
    pub(crate) fn draw_repeated(
        &self,
        db: &mut Db<'_>,
        count: u64,
    ) -> Result<Vec<(Bytes, Bytes)>, ReplyError> {
        let mut drawn = Vec::new();
        if self.meta.count > EVEN_DRAW_MAX && count < self.meta.count {
            for _ in 0..count {
                drawn.extend(self.draw(db)?);
            }
            return Ok(drawn);
        }
        // Reading all of them once is cheaper than a seek for each.
        let all = self.all(db)?;
        let mut draw = Draw::new(db.rows().random());
        for _ in 0..count {
            let place = draw.below(all.len().max(1) as u64);
            drawn.extend(
                usize::try_from(place)
                    .ok()
                    .and_then(|at| all.get(at))
                    .cloned(),
            );
        }
        Ok(drawn)
    }

    /// `count` different random elements, or all of them, in no order.
    pub(crate) fn draw_distinct(
        &self,
        db: &mut Db<'_>,
        count: u64,
    ) -> Result<Vec<(Bytes, Bytes)>, ReplyError> {
        if count >= self.meta.count {
            return self.all(db);
        }
        if count.saturating_mul(4) < self.meta.count && self.meta.count > EVEN_DRAW_MAX {
            // Few of many: drawing again after a repetition ends soon.
            let mut drawn = std::collections::BTreeMap::new();
            let mut tries = count.saturating_mul(32) + 64;
            while (drawn.len() as u64) < count && tries > 0 {
                tries -= 1;
                if let Some((element, value)) = self.draw(db)? {
                    drawn.insert(element, value);
                }
            }
            if drawn.len() as u64 == count {
                return Ok(drawn.into_iter().collect());
            }
        }
        // Selection sampling (Knuth, volume 2, algorithm S): one pass, each subset equally likely.
        let (mut left, mut wanted) = (self.meta.count, count);
        let mut draw = Draw::new(db.rows().random());
        let mut drawn = Vec::new();
        self.each(db, &mut |element, value| {
            if draw.below(left.max(1)) < wanted {
                drawn.push((Bytes::copy_from_slice(element), value.clone()));
                wanted -= 1;
            }
            left = left.saturating_sub(1);
            wanted > 0
        })?;
        Ok(drawn)
    }
}

fn cursor_of(hash: &[u8]) -> u64 {
    hash.iter()
        .fold(0, |cursor, byte| cursor << 8 | u64::from(*byte))
}

/// The cursor at which an element stands.
#[cfg(test)]
fn cursor_of_element(element: &[u8]) -> u64 {
    cursor_of(&super::layout::hash48(element))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use leadline_kv::testing::MemoryRows;
    use proptest::prelude::*;

    use super::*;

    fn filled(rows: &mut MemoryRows, members: &BTreeSet<Vec<u8>>) {
        rows.set_millis(1);
        let mut db = Db::new(rows, 0);
        let mut set = Hashed::open_or_new(&mut db, b"k", Type::Set).unwrap();
        for member in members {
            set.put(&mut db, member, Bytes::new()).unwrap();
        }
        set.save(&mut db).unwrap();
    }

    proptest! {
        #[test]
        fn pages_give_every_element_exactly_once(
            members in proptest::collection::btree_set(proptest::collection::vec(0u8.., 0..6), 1..200),
            count in 1usize..20,
        ) {
            let mut rows = MemoryRows::default();
            filled(&mut rows, &members);
            let mut db = Db::new(&mut rows, 0);
            let set = Hashed::open(&mut db, b"k", Type::Set).unwrap().unwrap();
            prop_assert_eq!(set.meta.count, members.len() as u64);
            let (mut cursor, mut seen) = (0, Vec::new());
            loop {
                let (next, page) = set.page(&mut db, cursor, count).unwrap();
                seen.extend(page.into_iter().map(|(member, _)| member.to_vec()));
                if next == 0 {
                    break;
                }
                prop_assert!(next > cursor);
                cursor = next;
            }
            prop_assert_eq!(seen.len(), members.len());
            prop_assert!(seen.is_sorted_by_key(|member| cursor_of_element(member)));
            prop_assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), members);
        }

        #[test]
        fn distinct_draws_are_distinct_members(
            members in proptest::collection::btree_set(proptest::collection::vec(0u8.., 0..6), 1..300),
            count in 0u64..320,
        ) {
            let mut rows = MemoryRows::default();
            filled(&mut rows, &members);
            let mut db = Db::new(&mut rows, 0);
            let set = Hashed::open(&mut db, b"k", Type::Set).unwrap().unwrap();
            let drawn = set.draw_distinct(&mut db, count).unwrap();
            prop_assert_eq!(drawn.len() as u64, count.min(members.len() as u64));
            let distinct: BTreeSet<Vec<u8>> =
                drawn.into_iter().map(|(member, _)| member.to_vec()).collect();
            prop_assert_eq!(distinct.len() as u64, count.min(members.len() as u64));
            prop_assert!(distinct.is_subset(&members));
        }
    }
}

//! Typed access to the keys of one database, with expiry, counting and dead generations kept right.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_kv::{RowError, Rows};

use super::layout::{self, Prefix, Type};
use crate::reply::ReplyError;

/// A key's first row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    /// Unix milliseconds.
    pub(crate) expires_at: Option<u64>,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    String(Bytes),
    Collection(Collection),
}

/// What the first row of a collection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Collection {
    pub(crate) kind: Type,
    pub(crate) generation: u64,
    pub(crate) count: u64,
    /// Lists only: the position of the first element and the one after the last.
    pub(crate) head: i64,
    pub(crate) tail: i64,
    /// Where the elements lie, when not under the key's own prefix: a key that was renamed within
    /// its slot leaves them where they are.
    pub(crate) home: Option<Prefix>,
    /// New and not stored yet: no element row can be there. Not stored itself.
    pub(crate) fresh: bool,
}

const HAS_EXPIRY: u8 = 0x80;
const HAS_HOME: u8 = 0x40;

impl Collection {
    /// Bytes that a first row has for it, beside its home.
    fn stored_len(&self) -> usize {
        if self.kind == Type::List { 32 } else { 16 }
    }
}

impl First {
    pub(crate) fn kind(&self) -> Type {
        match &self.value {
            Value::String(_) => Type::String,
            Value::Collection(collection) => collection.kind,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let (body, home) = match &self.value {
            Value::String(value) => (value.len(), None),
            Value::Collection(collection) => {
                let home = collection.home.as_ref().map(Prefix::as_bytes);
                (collection.stored_len() + home.map_or(0, Bytes::len), home)
            }
        };
        // Exactly as long: what is longer has to be kept track of once it is frozen.
        let expiry = self.expires_at.map_or(0, |_| 8);
        let mut out = BytesMut::with_capacity(1 + expiry + body);
        let mut flags = self.kind() as u8;
        if self.expires_at.is_some() {
            flags |= HAS_EXPIRY;
        }
        if home.is_some() {
            flags |= HAS_HOME;
        }
        out.put_u8(flags);
        if let Some(expires_at) = self.expires_at {
            out.put_u64(expires_at);
        }
        match &self.value {
            Value::String(value) => out.put_slice(value),
            Value::Collection(collection) => {
                out.put_u64(collection.generation);
                out.put_u64(collection.count);
                if collection.kind == Type::List {
                    out.put_i64(collection.head);
                    out.put_i64(collection.tail);
                }
                if let Some(home) = home {
                    out.put_slice(home);
                }
            }
        }
        out.freeze()
    }

    pub(crate) fn decode(mut row: Bytes) -> Result<Self, RowError> {
        let damaged = || RowError::Storage("a first row is damaged".into());
        let flags = row.try_get_u8().map_err(|_| damaged())?;
        let expires_at = match flags & HAS_EXPIRY {
            0 => None,
            _ => Some(row.try_get_u64().map_err(|_| damaged())?),
        };
        let value = match Type::from_tag(flags & !(HAS_EXPIRY | HAS_HOME)).ok_or_else(damaged)? {
            Type::String => Value::String(row),
            kind => {
                let generation = row.try_get_u64().map_err(|_| damaged())?;
                let count = row.try_get_u64().map_err(|_| damaged())?;
                let (head, tail) = match kind {
                    Type::List => (
                        row.try_get_i64().map_err(|_| damaged())?,
                        row.try_get_i64().map_err(|_| damaged())?,
                    ),
                    _ => (0, 0),
                };
                Value::Collection(Collection {
                    kind,
                    generation,
                    count,
                    head,
                    tail,
                    home: (flags & HAS_HOME != 0).then(|| Prefix::stored(&row)),
                    fresh: false,
                })
            }
        };
        Ok(Self { expires_at, value })
    }

    /// Whether this value is past its time at `now_ms`.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at.is_some_and(|at| at <= now_ms)
    }
}

/// The stamp of the first row at `row_key`, if it is there and has not expired.
pub(crate) fn version_of(rows: &mut dyn Rows, row_key: &[u8]) -> Result<Option<u64>, RowError> {
    let Some((value, stamp)) = rows.get_versioned(row_key)? else {
        return Ok(None);
    };
    let expired = First::decode(value)?.is_expired(rows.commit_ts().millis());
    Ok((!expired).then_some(stamp.0))
}

/// One database of one shard, during one command.
pub(crate) struct Db<'a> {
    rows: &'a mut dyn Rows,
    number: u8,
    /// First-row keys of the command's keys, in its order, as routing built them.
    routed: &'a [Bytes],
    /// Where in `routed` the next key of the command is expected.
    next_routed: usize,
    /// The first row looked at last, so that a read and the write after it cost one row read.
    /// Coherent because only [`Db::write_first`] writes first rows.
    seen: Option<Seen>,
}

struct Seen {
    row_key: Bytes,
    first: Option<First>,
}

impl<'a> Db<'a> {
    pub(crate) fn new(rows: &'a mut dyn Rows, number: u8) -> Self {
        Self::routed(rows, number, &[])
    }

    /// As [`Db::new`], for a command whose first-row keys are built already.
    pub(crate) fn routed(rows: &'a mut dyn Rows, number: u8, routed: &'a [Bytes]) -> Self {
        Self {
            rows,
            number,
            routed,
            next_routed: 0,
            seen: None,
        }
    }

    /// The rows below, for scans and elements.
    pub(crate) fn rows(&mut self) -> &mut dyn Rows {
        self.rows
    }

    pub(super) fn rows_ref(&self) -> &dyn Rows {
        self.rows
    }

    /// Forgets what was read of first rows, after they were deleted by range.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// The same shard, another database.
    pub(crate) fn other(&mut self, number: u8) -> Db<'_> {
        // The other may be this very database.
        self.seen = None;
        Db::new(self.rows, number)
    }

    /// The command's time, Unix milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        self.rows.commit_ts().millis()
    }

    pub(crate) fn prefix(&self, key: &[u8]) -> Prefix {
        match &self.seen {
            Some(seen) if layout::is_first_row_of(&seen.row_key, self.number, key) => {
                Prefix::of_first_row(&seen.row_key)
            }
            _ => Prefix::new(self.number, key),
        }
    }

    /// What the rows of `collection`'s elements begin with; `key` is where it is stored.
    pub(crate) fn home(&self, key: &[u8], collection: &Collection) -> Prefix {
        collection.home.clone().unwrap_or_else(|| self.prefix(key))
    }

    fn row_key(&mut self, key: &[u8]) -> Bytes {
        match self.routed.get(self.next_routed) {
            Some(row_key) if layout::is_first_row_of(row_key, self.number, key) => {
                self.next_routed += 1;
                row_key.clone()
            }
            _ => layout::first_row_key(self.number, key),
        }
    }

    /// The first row of `key` as stored, expired or not.
    fn see(&mut self, key: &[u8]) -> Result<&mut Seen, RowError> {
        let number = self.number;
        let seen = match self.seen.take() {
            Some(seen) if layout::is_first_row_of(&seen.row_key, number, key) => seen,
            _ => {
                let row_key = self.row_key(key);
                let first = self.rows.get(&row_key)?.map(First::decode).transpose()?;
                Seen { row_key, first }
            }
        };
        Ok(self.seen.insert(seen))
    }

    /// The first row of `key`. An expired key is deleted, and that deletion is part of this
    /// command's effects: another leader's clock cannot revive it.
    pub(crate) fn lookup(&mut self, key: &[u8]) -> Result<Option<First>, ReplyError> {
        let now_ms = self.now_ms();
        match &self.see(key)?.first {
            Some(first) if first.is_expired(now_ms) => {
                self.write_first(key, None, Elements::Left)?;
                Ok(None)
            }
            first => Ok(first.clone()),
        }
    }

    /// The version of `key`: the stamp of its first row, if it is there and has not expired.
    pub(crate) fn version(&mut self, key: &[u8]) -> Result<Option<u64>, RowError> {
        let row_key = self.row_key(key);
        version_of(self.rows, &row_key)
    }

    pub(crate) fn exists(&mut self, key: &[u8]) -> Result<bool, ReplyError> {
        Ok(self.lookup(key)?.is_some())
    }

    /// The string at `key`.
    pub(crate) fn string(&mut self, key: &[u8]) -> Result<Option<Bytes>, ReplyError> {
        Ok(self.string_and_expiry(key)?.map(|(value, _)| value))
    }

    /// The string at `key` and when it expires.
    pub(crate) fn string_and_expiry(
        &mut self,
        key: &[u8],
    ) -> Result<Option<(Bytes, Option<u64>)>, ReplyError> {
        match self.lookup(key)? {
            None => Ok(None),
            Some(First {
                value: Value::String(value),
                expires_at,
            }) => Ok(Some((value, expires_at))),
            Some(_) => Err(ReplyError::WrongType),
        }
    }

    /// Makes `key` a string, whatever it was.
    pub(crate) fn set_string(
        &mut self,
        key: &[u8],
        value: Bytes,
        expires_at: Option<u64>,
    ) -> Result<(), ReplyError> {
        let first = First {
            expires_at,
            value: Value::String(value),
        };
        self.write_first(key, Some(first), Elements::Left)
    }

    /// The collection at `key`, and when it expires; an error if it is of another type.
    pub(crate) fn collection(
        &mut self,
        key: &[u8],
        kind: Type,
    ) -> Result<Option<(Collection, Option<u64>)>, ReplyError> {
        match self.lookup(key)? {
            None => Ok(None),
            Some(First {
                value: Value::Collection(collection),
                expires_at,
            }) if collection.kind == kind => Ok(Some((collection, expires_at))),
            Some(_) => Err(ReplyError::WrongType),
        }
    }

    /// The collection at `key`, or a new, empty one (not stored until saved).
    pub(crate) fn collection_or_new(
        &mut self,
        key: &[u8],
        kind: Type,
    ) -> Result<(Collection, Option<u64>), ReplyError> {
        Ok(self
            .collection(key, kind)?
            .unwrap_or_else(|| (self.new_collection(kind), None)))
    }

    /// An empty collection of a generation never used before. (Not the command's stamp: a script or
    /// a transaction may make a collection at one key several times under one stamp.)
    pub(crate) fn new_collection(&mut self, kind: Type) -> Collection {
        Collection {
            kind,
            generation: self.rows.random(),
            count: 0,
            head: 0,
            tail: 0,
            home: None,
            fresh: true,
        }
    }

    /// Writes a collection's first row after its elements were changed; an empty one is deleted
    /// (its element rows must be gone by then).
    pub(crate) fn save_collection(
        &mut self,
        key: &[u8],
        collection: Collection,
        expires_at: Option<u64>,
    ) -> Result<(), ReplyError> {
        let first = (collection.count > 0).then_some(First {
            expires_at,
            value: Value::Collection(collection),
        });
        let elements = if first.is_some() {
            Elements::Left
        } else {
            Elements::Gone
        };
        self.write_first(key, first, elements)
    }

    /// Writes a first row as it is: for RENAME, COPY, EXPIRE, PERSIST.
    pub(crate) fn save(&mut self, key: &[u8], first: First) -> Result<(), ReplyError> {
        self.write_first(key, Some(first), Elements::Left)
    }

    /// Deletes `key`; says whether it was there (and not expired). Elements are swept later.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<bool, ReplyError> {
        let there = self.lookup(key)?.is_some();
        if there {
            self.write_first(key, None, Elements::Left)?;
        }
        Ok(there)
    }

    /// Deletes `key`'s first row and leaves its elements alive: they have a new owner.
    pub(crate) fn give_up(&mut self, key: &[u8]) -> Result<(), ReplyError> {
        self.write_first(key, None, Elements::Gone)
    }

    /// How many keys this database has in these shards, expired ones not yet deleted included.
    pub(crate) fn key_count(&mut self) -> Result<u64, ReplyError> {
        let mut count = 0;
        for owned in self.rows.shards() {
            count += self.read_count(&layout::key_count_row(&owned.start, self.number))?;
        }
        Ok(count)
    }

    /// Wakes whoever waits for `key` once this command is applied.
    pub(crate) fn wake(&mut self, key: &[u8]) {
        self.rows.wake(layout::first_row_key(self.number, key));
    }

    /// The one place that writes a first row: keeps the count, the expiry index and the list of
    /// dead generations in step with it.
    fn write_first(
        &mut self,
        key: &[u8],
        mut new: Option<First>,
        elements: Elements,
    ) -> Result<(), ReplyError> {
        if let Some(First {
            value: Value::Collection(collection),
            ..
        }) = &mut new
        {
            collection.fresh = false;
        }
        let seen = self.see(key)?;
        let old = seen.first.take();
        let row_key = seen.row_key.clone();
        self.count_change(&row_key, old.is_some(), new.is_some())?;
        self.index_expiry(
            &row_key,
            key,
            old.as_ref().and_then(|first| first.expires_at),
            new.as_ref().and_then(|first| first.expires_at),
        );
        if let Some(Value::Collection(dead)) = old.map(|first| first.value)
            && elements == Elements::Left
            && !matches!(&new, Some(First { value: Value::Collection(live), .. })
                if live.generation == dead.generation)
        {
            let owned = self.rows.shard_of(&row_key);
            let home = self.home(key, &dead);
            let row = layout::dead_generation_row(&owned.start, dead.generation, &home);
            self.rows
                .put(row, Bytes::copy_from_slice(&[dead.kind as u8]));
        }
        match &new {
            Some(first) => self.rows.put(row_key.clone(), first.encode()),
            None => self.rows.delete(row_key.clone()),
        }
        self.seen = Some(Seen {
            row_key,
            first: new,
        });
        Ok(())
    }

    fn index_expiry(&mut self, row_key: &[u8], key: &[u8], old: Option<u64>, new: Option<u64>) {
        if old == new {
            return;
        }
        let owned = self.rows.shard_of(row_key);
        if let Some(at) = old {
            self.rows
                .delete(layout::expiry_index_row(&owned.start, at, self.number, key));
        }
        if let Some(at) = new {
            self.rows.put(
                layout::expiry_index_row(&owned.start, at, self.number, key),
                Bytes::new(),
            );
        }
    }

    fn count_change(&mut self, row_key: &[u8], was: bool, is: bool) -> Result<(), RowError> {
        if was == is {
            return Ok(());
        }
        let owned = self.rows.shard_of(row_key);
        let row = layout::key_count_row(&owned.start, self.number);
        self.rows.add(row, if is { 1 } else { -1 })
    }

    fn read_count(&mut self, row: &[u8]) -> Result<u64, RowError> {
        match self.rows.get(row)? {
            None => Ok(0),
            Some(mut count) => count
                .try_get_u64()
                .map_err(|_| RowError::Storage("a key count row is damaged".into())),
        }
    }
}

/// Whether element rows of the old value may still be there when its first row goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Elements {
    Left,
    Gone,
}

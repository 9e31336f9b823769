//! Values that change their key: RENAME, COPY, MOVE.

use bytes::BytesMut;
use leadline_kv::ScanOrder;

use super::db::{Db, First, Value};
use super::layout::Prefix;
use crate::reply::ReplyError;

/// A collection that must be copied element by element may have so many element rows …
const MOST_ROWS: u64 = 16_384;
/// … of so many bytes: one command's effects must fit into one batch.
const MOST_BYTES: usize = 4 << 20;

impl Db<'_> {
    /// Moves the value `first` of `from` to `to`, over whatever is there.
    ///
    /// Within a slot this writes two rows, whatever the size: the elements stay where they are and
    /// the new first row says so. Between slots, which may come to different shards some day, the
    /// elements are copied.
    pub(crate) fn rename(
        &mut self,
        from: &[u8],
        to: &[u8],
        first: First,
    ) -> Result<(), ReplyError> {
        let First { expires_at, value } = first;
        match value {
            Value::Collection(mut collection) => {
                let (home, own) = (self.home(from, &collection), self.prefix(to));
                if home.place() != own.place() {
                    let number = self.number();
                    let value = Value::Collection(collection);
                    self.copy(from, number, to, First { expires_at, value })?;
                    self.remove(from)?;
                    return Ok(());
                }
                collection.home = (home != own).then_some(home);
                self.give_up(from)?;
                let value = Value::Collection(collection);
                self.save(to, First { expires_at, value })?;
            }
            value => {
                self.give_up(from)?;
                self.save(to, First { expires_at, value })?;
            }
        }
        self.wake(to);
        Ok(())
    }

    /// Copies the value `first` of `from` to `to` of database `number`, over whatever is there.
    ///
    /// # Errors
    /// A collection of more elements than one batch takes; nothing was copied.
    pub(crate) fn copy(
        &mut self,
        from: &[u8],
        number: u8,
        to: &[u8],
        first: First,
    ) -> Result<(), ReplyError> {
        let First { expires_at, value } = first;
        let value = match value {
            Value::String(value) => Value::String(value),
            Value::Collection(mut collection) => {
                let kinds = collection.kind.element_kinds();
                if collection.count.saturating_mul(kinds.len() as u64) > MOST_ROWS {
                    return Err(too_large());
                }
                let source = self.home(from, &collection);
                let target = Prefix::new(number, to);
                let old_generation = collection.generation;
                collection.generation = self.new_collection(collection.kind).generation;
                collection.home = None;
                let mut rows = Vec::new();
                let mut bytes = 0;
                for &kind in kinds {
                    let header = target.element(kind, collection.generation, &[]);
                    self.rows().scan(
                        source.elements(kind, old_generation),
                        ScanOrder::Ascending,
                        &mut |row_key, value| {
                            let sub_key = &row_key[source.element_header()..];
                            let mut row = BytesMut::with_capacity(header.len() + sub_key.len());
                            row.extend_from_slice(&header);
                            row.extend_from_slice(sub_key);
                            bytes += row.len() + value.len();
                            rows.push((row.freeze(), value.clone()));
                            bytes <= MOST_BYTES
                        },
                    )?;
                }
                if bytes > MOST_BYTES {
                    return Err(too_large());
                }
                for (row, value) in rows {
                    self.rows().put(row, value);
                }
                Value::Collection(collection)
            }
        };
        let mut target = self.other(number);
        target.save(to, First { expires_at, value })?;
        target.wake(to);
        Ok(())
    }
}

fn too_large() -> ReplyError {
    ReplyError::err(format_args!(
        "the collection is too large to copy in one step: at most {MOST_ROWS} elements and \
         {MOST_BYTES} bytes (a RENAME between keys of one hash tag has no limit)"
    ))
}

//! A batch of effects in order, and how it becomes writes of single rows.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use super::{Reader, Storage, StorageError, Write};
use crate::ScanOrder;

/// How many rows one range deletion takes along in the batch's own atomic write. What is beyond is
/// deleted before it, in steps of this many rows.
const ROWS_PER_STEP: usize = 4096;

/// One unconditional, idempotent change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
    DeleteRange { range: Range<Bytes> },
}

/// Effects in order: a later one wins over an earlier one on the same row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    effects: Vec<Effect>,
}

impl Batch {
    #[must_use]
    pub fn with_capacity(effects: usize) -> Self {
        Self {
            effects: Vec::with_capacity(effects),
        }
    }

    /// Writes a row.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.effects.push(Effect::Put { key, value });
    }

    /// Deletes a row; an absent row is no error.
    pub fn delete(&mut self, key: Bytes) {
        self.effects.push(Effect::Delete { key });
    }

    /// Deletes every row in `range` that was there before the batch or that an earlier effect of
    /// the batch wrote.
    ///
    /// Costs a scan of the range. When the range holds more than some thousand rows, they go in
    /// several steps, before the batch: a view opened meanwhile may see a part of the range gone,
    /// and so may whoever reads after a crash, until the batch is applied again from the log.
    pub fn delete_range(&mut self, range: Range<Bytes>) {
        self.effects.push(Effect::DeleteRange { range });
    }

    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.effects.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    #[must_use]
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// The batch as writes of distinct rows. `deleted` is told of rows that had to be deleted ahead
    /// of them because a range was too large to go into one write.
    pub(super) fn into_writes(
        self,
        engine: &dyn Storage,
        deleted: &mut dyn FnMut(&[Write]),
    ) -> Result<Vec<Write>, StorageError> {
        let ranges = self
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::DeleteRange { .. }));
        if ranges {
            self.into_writes_with_ranges(engine, deleted)
        } else {
            Ok(self.into_last_writes())
        }
    }

    /// Keeps the last effect on each row. There are no range deletions.
    fn into_last_writes(self) -> Vec<Write> {
        let mut last = vec![true; self.effects.len()];
        if self.effects.len() > 1 {
            let mut seen = HashSet::with_capacity(self.effects.len());
            for (effect, last) in self.effects.iter().zip(&mut last).rev() {
                if let Effect::Put { key, .. } | Effect::Delete { key } = effect {
                    *last = seen.insert(&key[..]);
                }
            }
        }
        // One more place: the position joins them.
        let mut writes = Vec::with_capacity(self.effects.len() + 1);
        for (effect, last) in self.effects.into_iter().zip(last) {
            match effect {
                Effect::Put { key, value } if last => writes.push(Write {
                    key,
                    value: Some(value),
                }),
                Effect::Delete { key } if last => writes.push(Write { key, value: None }),
                Effect::Put { .. } | Effect::Delete { .. } | Effect::DeleteRange { .. } => {}
            }
        }
        writes
    }

    fn into_writes_with_ranges(
        self,
        engine: &dyn Storage,
        deleted: &mut dyn FnMut(&[Write]),
    ) -> Result<Vec<Write>, StorageError> {
        let mut rows: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        for effect in self.effects {
            match effect {
                Effect::Put { key, value } => {
                    rows.insert(key, Some(value));
                }
                Effect::Delete { key } => {
                    rows.insert(key, None);
                }
                Effect::DeleteRange { range } => {
                    if range.start >= range.end {
                        continue;
                    }
                    for (_, value) in rows.range_mut(range.clone()) {
                        *value = None;
                    }
                    // Each step resumes where the last one ended, so that none walks over what
                    // the ones before it deleted.
                    let mut doomed = first_rows(engine, &range.start, &range.end)?;
                    while doomed.len() == ROWS_PER_STEP {
                        engine.apply(&doomed)?;
                        deleted(&doomed);
                        let last = doomed.pop().expect("a full step has rows");
                        doomed = first_rows(engine, &last.key, &range.end)?;
                    }
                    for write in doomed {
                        rows.entry(write.key).or_insert(None);
                    }
                }
            }
        }
        Ok(rows
            .into_iter()
            .map(|(key, value)| Write { key, value })
            .collect())
    }
}

/// Deletions of the first rows between `start` and `end`, at most [`ROWS_PER_STEP`].
fn first_rows(reader: &dyn Reader, start: &[u8], end: &[u8]) -> Result<Vec<Write>, StorageError> {
    let mut doomed = Vec::new();
    reader.scan(start..end, ScanOrder::Ascending, &mut |key, _| {
        doomed.push(Write {
            key: Bytes::copy_from_slice(key),
            value: None,
        });
        doomed.len() < ROWS_PER_STEP
    })?;
    Ok(doomed)
}

/// Deletes every row between `start` and `end`, in steps of bounded size.
pub(super) fn wipe(engine: &dyn Storage, start: &[u8], end: &[u8]) -> Result<(), StorageError> {
    let mut start = Bytes::copy_from_slice(start);
    loop {
        let doomed = first_rows(engine, &start, end)?;
        if let Some(last) = doomed.last() {
            start = last.key.clone();
            engine.apply(&doomed)?;
        }
        if doomed.len() < ROWS_PER_STEP {
            return Ok(());
        }
    }
}

//! The effects that are evaluated and not yet applied, over which the next command is evaluated.
//!
//! Commands write straight into the overlay; an undo log takes a failed command back. A batch is
//! the set of rows whose last writer belongs to it: merging effects costs nothing.
//!
//! # Invariants
//! 1. An entry leaves only when its batch is applied, which the executor is told once storage and
//!    cache show it: a reader that looks here first never misses an effect.
//! 2. A row in `rows` is newer than every range deletion that covers it: a range deletion takes
//!    what it covers out of `rows`.
//! 3. Owned by the executor: no lock.
//! 4. No row is in a gap, neither here nor in the applied state: only the executor's commands change
//!    rows, and each row they put is taken out of the gaps.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Range};

use bytes::Bytes;

use super::deletions::Deletions;
use super::entry::BatchWriter;
use crate::storage::Row;
use crate::{ScanOrder, Timestamp};

/// What the overlay knows of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Value(Bytes, Timestamp),
    Deleted,
}

#[derive(Clone, Debug)]
struct Pending {
    /// The batch of the last writer.
    number: u64,
    row: Known,
}

enum Undo {
    Row(Bytes, Option<Pending>),
    Range(Vec<(Bytes, Pending)>),
}

/// How many gaps are remembered.
const GAPS: usize = 8;

/// An effect costs about this much beside its key and value.
const EFFECT_BYTES: usize = 16;

pub(crate) struct Overlay {
    rows: BTreeMap<Bytes, Pending>,
    /// Range deletions with their batch, oldest first.
    ranges: VecDeque<(u64, Range<Bytes>)>,
    /// Rows that each proposed batch wrote.
    proposed: VecDeque<(u64, Vec<Bytes>)>,
    /// The batch that is being built, and the rows it wrote.
    number: u64,
    written: Vec<Bytes>,
    bytes: usize,
    /// Takes the command that is being evaluated back.
    undo: Vec<Undo>,
    mark: (usize, usize),
    /// Ranges that scans found empty, newest last. An engine reads over what was deleted, row by
    /// row, until it compacts: taking element after element off one end of a collection would cost
    /// more each time.
    gaps: VecDeque<Range<Bytes>>,
    deletions: Deletions,
}

impl Overlay {
    /// An empty overlay, about to build batch 1. `life` is never given twice.
    pub(crate) fn new(life: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            ranges: VecDeque::new(),
            proposed: VecDeque::new(),
            number: 1,
            written: Vec::new(),
            bytes: 0,
            undo: Vec::new(),
            mark: (0, 0),
            gaps: VecDeque::new(),
            deletions: Deletions::new(life),
        }
    }

    /// What was deleted here, and when.
    pub(crate) fn deletions(&self) -> &Deletions {
        &self.deletions
    }

    /// Remembers that no row is in `range`.
    pub(crate) fn add_gap(&mut self, range: Range<Bytes>) {
        if range.start >= range.end {
            return;
        }
        self.gaps
            .retain(|gap| gap.start < range.start || gap.end > range.end);
        if self.gaps.len() == GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(range);
    }

    /// `range` without the known gap at its start or at its end, whichever a scan in `order` meets
    /// first.
    pub(crate) fn without_gap(&self, range: Range<Bytes>, order: ScanOrder) -> Range<Bytes> {
        let Range { mut start, mut end } = range;
        for gap in self.gaps.iter().rev() {
            match order {
                ScanOrder::Ascending if gap.contains(&start) => start = gap.end.clone(),
                ScanOrder::Descending if gap.start < end && end <= gap.end => {
                    end = gap.start.clone();
                }
                ScanOrder::Ascending | ScanOrder::Descending => {}
            }
        }
        start..end
    }

    /// The batch that is being built.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// About how large the effects of the batch that is being built are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.proposed.is_empty()
    }

    /// What is known of a row, and the batch that it is known from; `None`: ask the applied state.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(&Known, u64)> {
        if self.rows.is_empty() && self.ranges.is_empty() {
            return None;
        }
        match self.rows.get(key) {
            Some(pending) => Some((&pending.row, pending.number)),
            None => self.covered(key).map(|number| (&Known::Deleted, number)),
        }
    }

    /// The last batch with a range deletion that covers the applied row at `key`.
    pub(crate) fn covered(&self, key: &[u8]) -> Option<u64> {
        self.ranges
            .iter()
            .rev()
            .find(|(_, range)| *range.start <= *key && *key < *range.end)
            .map(|(number, _)| *number)
    }

    /// The last batch that changed anything here: what a scan may have seen.
    pub(crate) fn newest(&self) -> u64 {
        if self.batch_has_effects() {
            self.number
        } else {
            self.number - 1
        }
    }

    /// The rows known in `range`, in key order.
    pub(crate) fn range(
        &self,
        range: &Range<Bytes>,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, &Known)> {
        self.rows
            .range::<[u8], _>((
                Bound::Included(&range.start[..]),
                Bound::Excluded(&range.end[..]),
            ))
            .map(|(key, pending)| (key, &pending.row))
    }

    /// Begins the effects of one command.
    pub(crate) fn begin_command(&mut self) {
        self.undo.clear();
        self.mark = (self.written.len(), self.bytes);
    }

    /// Whether the command that is being evaluated has effects.
    pub(crate) fn has_effects(&self) -> bool {
        !self.undo.is_empty()
    }

    /// Bytes of effects of the command that is being evaluated.
    pub(crate) fn command_bytes(&self) -> usize {
        self.bytes - self.mark.1
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes, stamp: Timestamp) {
        if !self.gaps.is_empty() {
            self.fill_gaps(&key);
        }
        self.bytes += key.len() + value.len() + EFFECT_BYTES;
        self.write(key, Known::Value(value, stamp));
    }

    /// Takes `key` out of the gaps (invariant 4): of each, what lies before it stays one.
    fn fill_gaps(&mut self, key: &Bytes) {
        for gap in &mut self.gaps {
            if gap.contains(key) {
                gap.end = key.clone();
            }
        }
        self.gaps.retain(|gap| gap.start < gap.end);
    }

    pub(crate) fn delete(&mut self, key: Bytes) {
        self.bytes += key.len() + EFFECT_BYTES;
        self.deletions.row(&key);
        self.write(key, Known::Deleted);
    }

    fn write(&mut self, key: Bytes, row: Known) {
        let number = self.number;
        let before = self.rows.insert(key.clone(), Pending { number, row });
        if before.as_ref().is_none_or(|before| before.number != number) {
            self.written.push(key.clone());
        }
        self.undo.push(Undo::Row(key, before));
    }

    pub(crate) fn delete_range(&mut self, range: Range<Bytes>) {
        if range.start >= range.end {
            return;
        }
        self.bytes += range.start.len() + range.end.len() + EFFECT_BYTES;
        self.deletions.range(&range);
        let covered: Vec<Bytes> = self.range(&range).map(|(key, _)| key.clone()).collect();
        let removed = covered
            .into_iter()
            .filter_map(|key| self.rows.remove_entry(&key))
            .collect();
        self.ranges.push_back((self.number, range));
        self.undo.push(Undo::Range(removed));
    }

    /// Takes the effects of the command back.
    pub(crate) fn roll_back(&mut self) {
        // What the command deleted is there again.
        if !self.undo.is_empty() {
            self.gaps.clear();
        }
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Row(key, Some(before)) => {
                    self.rows.insert(key, before);
                }
                Undo::Row(key, None) => {
                    self.rows.remove(&key);
                }
                Undo::Range(removed) => {
                    self.ranges.pop_back();
                    self.rows.extend(removed);
                }
            }
        }
        self.written.truncate(self.mark.0);
        self.bytes = self.mark.1;
    }

    /// Whether the batch that is being built has effects.
    pub(crate) fn batch_has_effects(&self) -> bool {
        !self.written.is_empty() || self.ranges.back().is_some_and(|(n, _)| *n == self.number)
    }

    /// Writes the effects of the batch that is being built, and begins the next one.
    pub(crate) fn close_batch(&mut self, out: &mut BatchWriter) {
        let first = self
            .ranges
            .iter()
            .rposition(|(number, _)| *number != self.number)
            .map_or(0, |older| older + 1);
        for (_, range) in self.ranges.iter().skip(first) {
            out.delete_range(range);
        }
        // A row that a range deletion took out and a later command wrote again is listed twice.
        if self.ranges.len() > first {
            self.written.sort_unstable();
            self.written.dedup();
        }
        for key in &self.written {
            match self.rows.get(key) {
                Some(Pending { number, row }) if *number == self.number => match row {
                    Known::Value(value, stamp) => {
                        out.put(key, Row::HEADER + value.len(), |out| {
                            Row::encode_into(*stamp, value, out);
                        });
                    }
                    Known::Deleted => out.delete(key),
                },
                // Written, then taken out by a range deletion of the same batch.
                _ => {}
            }
        }
        self.proposed
            .push_back((self.number, std::mem::take(&mut self.written)));
        self.number += 1;
        self.bytes = 0;
        self.undo.clear();
        self.mark = (0, 0);
    }

    /// Forgets what batches up to `applied` wrote: storage and cache show it (invariant 1).
    pub(crate) fn prune(&mut self, applied: u64) {
        while let Some((number, keys)) = self.proposed.front_mut()
            && *number <= applied
        {
            let keys = std::mem::take(keys);
            self.proposed.pop_front();
            if self.proposed.is_empty() && self.written.is_empty() {
                // The last one: nothing newer is here.
                self.rows.clear();
                break;
            }
            for key in keys {
                if self.rows.get(&key).is_some_and(|row| row.number <= applied) {
                    self.rows.remove(&key);
                }
            }
        }
        while self
            .ranges
            .front()
            .is_some_and(|(number, _)| *number <= applied)
        {
            self.ranges.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::executor::entry::{Entry, Incarnation, LogEffect};

    #[derive(Clone, Debug)]
    enum Change {
        Put(u8, u8),
        Delete(u8),
        DeleteRange(u8, u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => (0..12u8, any::<u8>()).prop_map(|(key, value)| Change::Put(key, value)),
            2 => (0..12u8).prop_map(Change::Delete),
            1 => (0..12u8, 0..12u8).prop_map(|(start, end)| Change::DeleteRange(start, end)),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Command(Vec<Change>, bool),
        Close,
        /// Applies the oldest batch in flight, and tells the overlay.
        Apply,
        /// Scans from a row, in the middle of a command or between two.
        Look(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (prop::collection::vec(change(), 0..4), prop::bool::weighted(0.8))
                .prop_map(|(changes, succeeds)| Step::Command(changes, succeeds)),
            1 => Just(Step::Close),
            1 => Just(Step::Apply),
            2 => (0..12u8).prop_map(Step::Look),
        ]
    }

    type Table = BTreeMap<u8, u8>;

    fn key(key: u8) -> Bytes {
        Bytes::copy_from_slice(&[key])
    }

    /// Remembers the gaps on both sides of `at`, as a scan from it would.
    fn look(overlay: &mut Overlay, model: &Table, at: u8) {
        let next = model.range(at..).next().map_or(12, |(&found, _)| found);
        overlay.add_gap(key(at)..key(next));
        let before = model
            .range(..at)
            .next_back()
            .map_or(0, |(&found, _)| found + 1);
        overlay.add_gap(key(before)..key(at));
    }

    fn apply(table: &mut Table, entry: Bytes) {
        let Entry::Batch(batch) = Entry::decode(entry).unwrap() else {
            panic!("a batch")
        };
        let mut rows = BTreeSet::new();
        for effect in batch.effects {
            match effect.unwrap() {
                LogEffect::Put { key, value } => {
                    assert!(rows.insert(key.clone()), "one effect per row");
                    table.insert(key[0], Row::decode(&value).unwrap().value[0]);
                }
                LogEffect::Delete { key } => {
                    assert!(rows.insert(key.clone()), "one effect per row");
                    table.remove(&key[0]);
                }
                LogEffect::DeleteRange { range } => {
                    assert!(rows.is_empty(), "range deletions come first");
                    table.retain(|key, _| *key < range.start[0] || *key >= range.end[0]);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        /// The overlay over the applied state always shows what evaluating in order would.
        #[test]
        fn overlay_over_state_is_the_state_after_every_successful_command(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let mut overlay = Overlay::new(1);
            let (mut model, mut state) = (Table::new(), Table::new());
            let mut flight = VecDeque::new();
            for step in steps {
                match step {
                    Step::Command(changes, succeeds) => {
                        let before = model.clone();
                        overlay.begin_command();
                        for change in changes {
                            match change {
                                Change::Put(k, v) => {
                                    overlay.put(key(k), Bytes::copy_from_slice(&[v]), Timestamp(1));
                                    model.insert(k, v);
                                }
                                Change::Delete(k) => {
                                    overlay.delete(key(k));
                                    model.remove(&k);
                                }
                                Change::DeleteRange(start, end) => {
                                    overlay.delete_range(key(start)..key(end));
                                    model.retain(|k, _| *k < start || *k >= end);
                                }
                            }
                            look(&mut overlay, &model, 6);
                        }
                        if !succeeds {
                            overlay.roll_back();
                            model = before;
                        }
                    }
                    Step::Close if overlay.batch_has_effects() => {
                        let number = overlay.number();
                        let mut out = BatchWriter::new(Incarnation(1), number, 0);
                        overlay.close_batch(&mut out);
                        flight.push_back((number, out.finish(Timestamp(1))));
                    }
                    Step::Close => {}
                    Step::Look(at) => look(&mut overlay, &model, at),
                    Step::Apply => if let Some((number, entry)) = flight.pop_front() {
                        apply(&mut state, entry);
                        overlay.prune(number);
                    },
                }
                for gap in &overlay.gaps {
                    let inside = model.keys().find(|&&k| gap.contains(&key(k)));
                    prop_assert_eq!(inside, None, "in the gap {:?}", gap);
                }
                for k in 0..12 {
                    let seen = match overlay.get(&key(k)) {
                        Some((Known::Value(value, _), _)) => Some(value[0]),
                        Some((Known::Deleted, _)) => None,
                        None => state.get(&k).copied(),
                    };
                    prop_assert_eq!(seen, model.get(&k).copied(), "key {}", k);
                }
            }
        }
    }
}

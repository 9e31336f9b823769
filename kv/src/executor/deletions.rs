//! What one life of an executor has deleted, so that it can tell whether what is absent was so
//! throughout.
//!
//! A row that is there has a stamp that no other commit of it has. One that is absent has none: it
//! may have come and gone between two looks. But then it was deleted between them.
//!
//! # Invariants
//! 1. Every deletion of the life is counted when it is evaluated, before anything is evaluated after
//!    it.
//! 2. The answer "none since" is never wrong; "some" may be, for a row of the same stripe.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::Moment;

/// Rows share so many places by a checksum of their key.
const STRIPES: usize = 4096;

/// Deletions of ranges that are remembered one by one.
const RANGES: usize = 64;

pub(crate) struct Deletions {
    now: Moment,
    /// The last deletion of a row of each stripe.
    stripes: Box<[u64]>,
    /// The last deletions of ranges, oldest first.
    ranges: VecDeque<(u64, Range<Bytes>)>,
    /// The last of those of ranges that are not remembered any more.
    forgotten: u64,
}

impl Deletions {
    /// `life` is never given twice.
    pub(super) fn new(life: u64) -> Self {
        Self {
            now: Moment { life, deletions: 0 },
            stripes: vec![0; STRIPES].into(),
            ranges: VecDeque::new(),
            forgotten: 0,
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    pub(super) fn row(&mut self, key: &[u8]) {
        self.now.deletions += 1;
        self.stripes[stripe(key)] = self.now.deletions;
    }

    pub(super) fn range(&mut self, range: &Range<Bytes>) {
        self.now.deletions += 1;
        if self.ranges.len() == RANGES
            && let Some((at, _)) = self.ranges.pop_front()
        {
            self.forgotten = at;
        }
        // Copies: the keys may lie in the buffer of a large request.
        let range = Bytes::copy_from_slice(&range.start)..Bytes::copy_from_slice(&range.end);
        self.ranges.push_back((self.now.deletions, range));
    }

    /// Whether the row at `key` was not deleted since `then`.
    pub(crate) fn none_of_row_since(&self, then: Moment, key: &[u8]) -> bool {
        then.life == self.now.life
            && self.stripes[stripe(key)] <= then.deletions
            && self.forgotten <= then.deletions
            && self
                .ranges
                .iter()
                .rev()
                .take_while(|(at, _)| *at > then.deletions)
                .all(|(_, range)| !(*range.start <= *key && *key < *range.end))
    }

    /// Whether nothing at all was deleted since `then`.
    pub(crate) fn none_since(&self, then: Moment) -> bool {
        then == self.now
    }
}

fn stripe(key: &[u8]) -> usize {
    crc32c::crc32c(key) as usize % STRIPES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: u8) -> Bytes {
        Bytes::copy_from_slice(&[key])
    }

    #[derive(Clone, Debug)]
    enum Deletion {
        Row(u8),
        Range(u8, u8),
    }

    fn deletion() -> impl Strategy<Value = Deletion> {
        prop_oneof![
            1 => any::<u8>().prop_map(Deletion::Row),
            2 => (any::<u8>(), 0..20u8)
                .prop_map(|(start, rows)| Deletion::Range(start, start.saturating_add(rows))),
        ]
    }

    proptest! {
        /// Invariant 2, with more ranges than are remembered.
        #[test]
        fn a_row_that_was_deleted_since_is_never_called_untouched(
            deletions in prop::collection::vec(deletion(), 1..200),
            looked_after in any::<prop::sample::Index>(),
        ) {
            let looked_after = looked_after.index(deletions.len());
            let mut counted = Deletions::new(7);
            let mut then = counted.now();
            let mut deleted = [false; 256];
            for (at, deletion) in deletions.iter().enumerate() {
                if at == looked_after {
                    then = counted.now();
                    deleted = [false; 256];
                }
                match *deletion {
                    Deletion::Row(row) => {
                        counted.row(&key(row));
                        deleted[usize::from(row)] = true;
                    }
                    Deletion::Range(start, end) => {
                        counted.range(&(key(start)..key(end)));
                        deleted[usize::from(start)..usize::from(end)].fill(true);
                    }
                }
            }
            for row in 0..=255 {
                let untouched = counted.none_of_row_since(then, &key(row));
                prop_assert!(!(untouched && deleted[usize::from(row)]), "row {}", row);
                let elsewhere = Moment { life: 8, ..then };
                prop_assert!(!counted.none_of_row_since(elsewhere, &key(row)));
            }
            prop_assert!(!counted.none_since(then));
            prop_assert!(counted.none_since(counted.now()));
        }
    }

    #[test]
    fn what_others_delete_is_not_in_the_way() {
        let mut counted = Deletions::new(7);
        let then = counted.now();
        counted.row(b"a");
        counted.range(&(Bytes::from_static(b"c")..Bytes::from_static(b"e")));
        assert!(counted.none_of_row_since(then, b"b"));
        assert!(!counted.none_of_row_since(then, b"d"));
    }
}

//! Point-in-time views for an engine that has none: overwritten rows are kept while a view is open.
//!
//! Every applied batch has a number. A view is the number of the last batch it sees. Before a batch
//! changes a row that an open view can see, the row's old value is kept under the batch's number:
//! the first kept value above a view's number is what that view sees, and if there is none, the
//! row is as it is now.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::StorageError;

/// Beside its bytes a kept row costs about this much.
const ENTRY_OVERHEAD: usize = 160;

/// The overwritten rows, and the views that may need them.
#[derive(Debug)]
pub(super) struct History {
    applied: u64,
    /// Open views by the batch they see last, with how many there are.
    views: BTreeMap<u64, usize>,
    kept: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    bytes: usize,
    limit: usize,
    /// Views below this number lost what they would need.
    expired: u64,
}

impl History {
    /// Keeps at most `limit` bytes; views that would need more expire.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            applied: 0,
            views: BTreeMap::new(),
            kept: BTreeMap::new(),
            bytes: 0,
            limit,
            expired: 0,
        }
    }

    pub(super) fn open(&mut self) -> u64 {
        *self.views.entry(self.applied).or_insert(0) += 1;
        self.applied
    }

    pub(super) fn close(&mut self, view: u64) {
        if let Some(count) = self.views.get_mut(&view) {
            *count -= 1;
            if *count == 0 {
                self.views.remove(&view);
            }
        }
        if self.views.is_empty() {
            self.kept.clear();
            self.bytes = 0;
        }
    }

    /// Begins the next batch; its rows come next, by [`History::overwrite`].
    pub(super) fn begin(&mut self) {
        self.applied += 1;
        if self.bytes > self.limit / 2 {
            self.prune();
        }
        if self.bytes > self.limit {
            self.expired = self.applied;
            self.kept.clear();
            self.bytes = 0;
        }
    }

    /// Notes that the batch begun last changes `key`, which had the value `old`.
    pub(super) fn overwrite(&mut self, key: &Bytes, old: Option<&[u8]>) {
        let Some((&newest, _)) = self.views.last_key_value() else {
            return;
        };
        if newest < self.expired {
            return;
        }
        let kept = self.kept.get(&key[..]).and_then(|values| values.last());
        if kept.is_some_and(|(batch, _)| *batch > newest) {
            return;
        }
        self.bytes += entry_size(key, old.map_or(0, <[u8]>::len));
        self.kept
            .entry(Bytes::copy_from_slice(key))
            .or_default()
            .push((self.applied, old.map(Bytes::copy_from_slice)));
    }

    pub(super) fn check(&self, view: u64) -> Result<(), StorageError> {
        if view < self.expired {
            return Err(StorageError::ViewExpired);
        }
        Ok(())
    }

    /// What `view` sees of `key`; `None`: the row as it is now.
    pub(super) fn get(&self, view: u64, key: &[u8]) -> Option<&Option<Bytes>> {
        seen(self.kept.get(key)?, view)
    }

    /// What `view` sees of the rows in `range` that changed since.
    pub(super) fn range(
        &self,
        view: u64,
        range: Range<&[u8]>,
    ) -> impl Iterator<Item = (&Bytes, &Option<Bytes>)> {
        let bounds = (
            std::ops::Bound::Included(range.start),
            std::ops::Bound::Excluded(range.end),
        );
        self.kept
            .range::<[u8], _>(bounds)
            .filter_map(move |(key, values)| Some((key, seen(values, view)?)))
    }

    /// Drops what no open view needs.
    fn prune(&mut self) {
        let views = &self.views;
        let mut bytes = 0;
        self.kept.retain(|key, values| {
            let mut from = 0;
            values.retain(|(batch, old)| {
                let needed = views.range(from..*batch).next().is_some();
                from = *batch;
                if needed {
                    bytes += entry_size(key, old.as_ref().map_or(0, Bytes::len));
                }
                needed
            });
            !values.is_empty()
        });
        self.bytes = bytes;
    }
}

fn entry_size(key: &[u8], value: usize) -> usize {
    ENTRY_OVERHEAD + key.len() + value
}

fn seen(values: &[(u64, Option<Bytes>)], view: u64) -> Option<&Option<Bytes>> {
    let first = values.partition_point(|(batch, _)| *batch <= view);
    values.get(first).map(|(_, old)| old)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn a_view_keeps_the_first_overwritten_value_and_later_views_their_own() {
        let mut history = History::new(1 << 20);
        let first = history.open();
        history.begin();
        history.overwrite(&key("a"), Some(b"1"));
        history.begin();
        history.overwrite(&key("a"), Some(b"2"));
        let second = history.open();
        history.begin();
        history.overwrite(&key("a"), Some(b"3"));
        assert_eq!(history.get(first, b"a"), Some(&Some(key("1"))));
        assert_eq!(history.get(second, b"a"), Some(&Some(key("3"))));
        assert_eq!(history.get(second, b"b"), None);
        history.close(first);
        history.prune();
        assert_eq!(history.get(second, b"a"), Some(&Some(key("3"))));
        history.close(second);
        assert!(history.kept.is_empty() && history.bytes == 0);
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_view_that_needs_more_says_so() {
        let mut history = History::new(1000);
        let view = history.open();
        for row in 0..20u8 {
            history.begin();
            history.overwrite(&Bytes::from(vec![row]), Some(&[0; 100]));
            assert!(history.bytes <= 1000 + entry_size(&[row], 100));
        }
        assert!(matches!(
            history.check(view),
            Err(StorageError::ViewExpired)
        ));
        let fresh = history.open();
        assert!(history.check(fresh).is_ok());
    }
}

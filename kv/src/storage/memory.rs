//! An engine in memory, for tests: a view is the map as it was.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Reader, Storage, StorageError, Write};
use crate::ScanOrder;

type Map = BTreeMap<Bytes, Bytes>;

/// Rows in a map. Nothing is durable.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    rows: RwLock<Arc<Map>>,
}

struct MemoryView(Arc<Map>);

impl MemoryStorage {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Reader for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut rows = self.0.range::<[u8], _>((
            std::ops::Bound::Included(range.start),
            std::ops::Bound::Excluded(range.end),
        ));
        match order {
            ScanOrder::Ascending => rows.all(|(key, value)| visit(key, value)),
            ScanOrder::Descending => rows.rev().all(|(key, value)| visit(key, value)),
        };
        Ok(())
    }
}

impl Reader for MemoryStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError> {
        let rows = self.rows.read().clone();
        MemoryView(rows).scan(range, order, visit)
    }
}

impl Storage for MemoryStorage {
    fn apply(&self, writes: &[Write]) -> Result<(), StorageError> {
        let mut rows = self.rows.write();
        // Copies the map only while a view holds it.
        let rows = Arc::make_mut(&mut rows);
        for write in writes {
            match &write.value {
                Some(value) => rows.insert(write.key.clone(), value.clone()),
                None => rows.remove(&write.key),
            };
        }
        Ok(())
    }

    fn view(&self) -> Result<Arc<dyn Reader>, StorageError> {
        Ok(Arc::new(MemoryView(self.rows.read().clone())))
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn approximate_size(&self) -> u64 {
        let rows = self.rows.read();
        let bytes: usize = rows
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        bytes as u64
    }
}

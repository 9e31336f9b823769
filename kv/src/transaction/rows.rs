//! The rows of many shards, as an operation over them sees them: read where they are, with their
//! stamps; written into a buffer.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use leadline_raft::Context;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};

use super::execute::Digest;
use crate::wire::row_change::Change;
use crate::wire::{RowChange, RowsRead, SeenRange};
use crate::{Moment, Operation, RowError, Rows, ScanOrder, Timestamp};

/// The longest row key that storage takes.
pub(super) const KEY_BYTES: usize = u16::MAX as usize;

/// Rows that a scan asks a shard for: at first, and at most.
const FIRST_PAGE: u32 = 64;
const LARGEST_PAGE: u32 = 1024;

/// What an evaluation asks of its coordinator, from its blocking thread.
#[derive(Debug)]
pub(super) enum Ask {
    Read(Bytes),
    Scan {
        range: Range<Bytes>,
        order: ScanOrder,
        most_rows: u32,
    },
}

/// An ask, and where its answer goes.
pub(super) type Asked = (Ask, oneshot::Sender<Result<RowsRead, RowError>>);

/// Where the borders between shards are.
pub(super) trait Borders: Send + Sync {
    /// The rows that the shard of `key` owns.
    fn shard_of(&self, key: &[u8]) -> Range<Bytes>;
    /// What each shard with rows of the operation's door owns, in order.
    fn shards(&self) -> Vec<Range<Bytes>>;
}

/// Rows as far as they were read, with their stamps.
#[derive(Debug, Default)]
pub(super) struct KnownRows {
    rows: HashMap<Bytes, Option<(Bytes, Timestamp)>>,
    /// By the start of its shard: when the first that is absent was seen to be. `None`: in another
    /// life of the executor than the next, or it did not say.
    absent_since: BTreeMap<Bytes, Option<Moment>>,
}

impl KnownRows {
    /// Takes what the shard that starts at `shard` answered for `keys`.
    pub(super) fn learn(&mut self, shard: Bytes, keys: Vec<Bytes>, read: RowsRead) {
        if read.rows.iter().any(|row| row.value.is_none()) {
            self.absent(shard, &read);
        }
        for (key, row) in keys.into_iter().zip(read.rows) {
            let stamp = Timestamp(row.stamp);
            self.rows.insert(key, row.value.map(|value| (value, stamp)));
        }
    }

    /// Something of what the shard answered is absent.
    fn absent(&mut self, shard: Bytes, read: &RowsRead) {
        let now = read.moment.map(Moment::from);
        self.absent_since
            .entry(shard)
            .and_modify(|first| {
                *first = match (*first, now) {
                    (Some(first), Some(now)) if first.life == now.life => Some(Moment {
                        deletions: first.deletions.min(now.deletions),
                        ..first
                    }),
                    _ => None,
                };
            })
            .or_insert(now);
    }
}

/// Rows of all shards, during one evaluation.
pub(super) struct TransactionRows {
    ctx: Context,
    operation: Arc<dyn Operation>,
    borders: Arc<dyn Borders>,
    stamp: Timestamp,
    random: SmallRng,
    known: KnownRows,
    /// `None`: what is not known ends the evaluation, to be begun again where it may wait.
    asks: Option<mpsc::Sender<Asked>>,
    pub(super) seen: BTreeMap<Bytes, Option<Timestamp>>,
    pub(super) seen_ranges: Vec<SeenRange>,
    /// `None`: deleted.
    writes: BTreeMap<Bytes, Option<Bytes>>,
    adds: BTreeMap<Bytes, i64>,
    pub(super) deleted: Vec<Range<Bytes>>,
    pub(super) wakes: Vec<Bytes>,
}

/// The sum of a counter row and `delta`, as the row has it.
pub(crate) fn sum(row: Option<&Bytes>, delta: i64) -> Result<Bytes, RowError> {
    let now = match row {
        None => 0,
        Some(row) => (&row[..])
            .try_get_u64()
            .map_err(|_| RowError::Storage("a counter row is damaged".to_owned()))?,
    };
    let sum = now.saturating_add_signed(delta);
    Ok(Bytes::copy_from_slice(&sum.to_be_bytes()))
}

fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

impl TransactionRows {
    pub(super) fn new(
        ctx: &Context,
        operation: Arc<dyn Operation>,
        borders: Arc<dyn Borders>,
        stamp: Timestamp,
        known: KnownRows,
        asks: Option<mpsc::Sender<Asked>>,
    ) -> Self {
        Self {
            ctx: ctx.clone(),
            operation,
            borders,
            stamp,
            random: SmallRng::from_os_rng(),
            known,
            asks,
            seen: BTreeMap::new(),
            seen_ranges: Vec::new(),
            writes: BTreeMap::new(),
            adds: BTreeMap::new(),
            deleted: Vec::new(),
            wakes: Vec::new(),
        }
    }

    /// What was read so far, for the next evaluation of the same attempt.
    pub(super) fn into_known(self) -> KnownRows {
        self.known
    }

    /// When the first row of a shard that is absent was seen to be, if that can be compared.
    pub(super) fn absent_since(&self, shard: &[u8]) -> Option<Moment> {
        *self.known.absent_since.get(shard)?
    }

    /// Drops all changes; what was seen stays.
    pub(super) fn drop_effects(&mut self) {
        self.writes.clear();
        self.adds.clear();
        self.deleted.clear();
        self.wakes.clear();
    }

    /// Whether anything was changed.
    pub(super) fn has_effects(&self) -> bool {
        !(self.writes.is_empty() && self.adds.is_empty() && self.deleted.is_empty())
    }

    pub(super) fn is_written(&self, key: &[u8]) -> bool {
        self.writes.contains_key(key)
            || self
                .deleted
                .iter()
                .any(|range| *range.start <= *key && *key < *range.end)
    }

    /// The changes, in key order, and those to counters.
    pub(super) fn take_changes(&mut self) -> Vec<RowChange> {
        let writes = std::mem::take(&mut self.writes);
        let adds = std::mem::take(&mut self.adds);
        writes
            .into_iter()
            .map(|(key, value)| RowChange {
                key,
                change: Some(match value {
                    Some(value) => Change::Put(value),
                    None => Change::Delete(true),
                }),
            })
            .chain(
                adds.into_iter()
                    .filter(|(_, delta)| *delta != 0)
                    .map(|(key, delta)| RowChange {
                        key,
                        change: Some(Change::Add(delta)),
                    }),
            )
            .collect()
    }

    fn ask(&self, ask: Ask) -> Result<RowsRead, RowError> {
        let asks = self.asks.as_ref().ok_or(RowError::NeedsExecutor)?;
        let (answer, answered) = oneshot::channel();
        // The coordinator has gone: the request ended.
        asks.blocking_send((ask, answer))
            .map_err(|_| RowError::Ended)?;
        answered.blocking_recv().map_err(|_| RowError::Ended)?
    }

    fn read(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        if !self.known.rows.contains_key(key) {
            let key = Bytes::copy_from_slice(key);
            let read = self.ask(Ask::Read(key.clone()))?;
            let shard = self.borders.shard_of(&key).start;
            self.known.learn(shard, vec![key], read);
        }
        let found = self.known.rows.get(key).cloned().flatten();
        if self.operation.is_version(key) && !self.seen.contains_key(key) {
            let stamp = found.as_ref().map(|(_, stamp)| *stamp);
            self.seen.insert(Bytes::copy_from_slice(key), stamp);
        }
        Ok(found)
    }

    fn is_deleted(&self, key: &[u8]) -> bool {
        self.deleted
            .iter()
            .any(|range| *range.start <= *key && *key < *range.end)
    }

    /// Scans one shard's part; says whether the visitor wants more.
    fn scan_shard(
        &mut self,
        range: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<bool, RowError> {
        let own: Vec<(Bytes, Option<Bytes>)> = {
            let own = self
                .writes
                .range::<Bytes, _>((Bound::Included(&range.start), Bound::Excluded(&range.end)))
                .map(|(key, value)| (key.clone(), value.clone()));
            match order {
                ScanOrder::Ascending => own.collect(),
                ScanOrder::Descending => own.rev().collect(),
            }
        };
        let mut own = own.into_iter().peekable();
        let before = |a: &[u8], b: &[u8]| match order {
            ScanOrder::Ascending => a < b,
            ScanOrder::Descending => a > b,
        };
        let compare = self.operation.is_version(&range.start);
        let (whole, mut left) = (range.clone(), range);
        let mut looked_at: Vec<(Bytes, Timestamp)> = Vec::new();
        let mut most_rows = FIRST_PAGE;
        let mut going = true;
        let mut last = None;
        'pages: loop {
            let page = self.ask(Ask::Scan {
                range: left.clone(),
                order,
                most_rows,
            })?;
            most_rows = (most_rows * 2).min(LARGEST_PAGE);
            if compare {
                let shard = self.borders.shard_of(&whole.start).start;
                self.known.absent(shard, &page);
            }
            for row in page.rows {
                let Some(value) = row.value else { continue };
                while let Some((key, _)) = own.peek()
                    && before(key, &row.key)
                {
                    if let Some((key, Some(value))) = own.next()
                        && !visit(&key, &value)
                    {
                        going = false;
                        break 'pages;
                    }
                }
                last = Some(row.key.clone());
                if compare {
                    looked_at.push((row.key.clone(), Timestamp(row.stamp)));
                }
                if let Some((_, own)) = own.next_if(|(key, _)| *key == row.key) {
                    going = own.is_none_or(|value| visit(&row.key, &value));
                } else if !self.is_deleted(&row.key) {
                    going = visit(&row.key, &value);
                }
                if !going {
                    break 'pages;
                }
            }
            match (&last, page.more) {
                (Some(last), true) => match order {
                    ScanOrder::Ascending => left.start = after(last),
                    ScanOrder::Descending => left.end = last.clone(),
                },
                _ => break,
            }
        }
        while going && let Some((key, value)) = own.next() {
            if let Some(value) = value {
                going = visit(&key, &value);
            }
        }
        if compare {
            let looked = match (going, last, order) {
                (false, Some(last), ScanOrder::Ascending) => whole.start..after(&last),
                (false, Some(last), ScanOrder::Descending) => last..whole.end,
                _ => whole,
            };
            if order == ScanOrder::Descending {
                looked_at.reverse();
            }
            let mut digest = Digest::default();
            for (key, stamp) in looked_at {
                digest.add(&key, stamp);
            }
            self.seen_ranges.push(digest.seen(&looked));
        }
        Ok(going)
    }
}

impl Rows for TransactionRows {
    fn context(&self) -> &Context {
        &self.ctx
    }

    fn commit_ts(&self) -> Timestamp {
        self.stamp
    }

    fn random(&mut self) -> u64 {
        self.random.random()
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, RowError> {
        Ok(self.get_versioned(key)?.map(|(value, _)| value))
    }

    fn get_versioned(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError> {
        let found = match self.writes.get(key) {
            Some(own) => own.clone().map(|value| (value, self.stamp)),
            None if self.is_deleted(key) => None,
            None => self.read(key)?,
        };
        match self.adds.get(key) {
            None => Ok(found),
            Some(&delta) => {
                let now = found.map(|(value, _)| value);
                Ok(Some((sum(now.as_ref(), delta)?, self.stamp)))
            }
        }
    }

    fn scan(
        &mut self,
        range: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), RowError> {
        if range.start >= range.end {
            return Ok(());
        }
        let mut shards = self.borders.shards();
        if order == ScanOrder::Descending {
            shards.reverse();
        }
        for shard in shards {
            let part = range.start.clone().max(shard.start)..range.end.clone().min(shard.end);
            if part.start < part.end && !self.scan_shard(part, order, visit)? {
                break;
            }
        }
        Ok(())
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.adds.remove(&key);
        self.writes.insert(key, Some(value));
    }

    fn delete(&mut self, key: Bytes) {
        self.adds.remove(&key);
        self.writes.insert(key, None);
    }

    fn delete_range(&mut self, range: Range<Bytes>) {
        if range.start >= range.end {
            return;
        }
        self.writes
            .retain(|key, _| *key < range.start || *key >= range.end);
        self.adds
            .retain(|key, _| *key < range.start || *key >= range.end);
        for shard in self.borders.shards() {
            let part = range.start.clone().max(shard.start)..range.end.clone().min(shard.end);
            if part.start < part.end {
                self.deleted.push(part);
            }
        }
    }

    fn add(&mut self, key: Bytes, delta: i64) -> Result<(), RowError> {
        if let Some(Some(own)) = self.writes.get(&key) {
            let now = sum(Some(own), delta)?;
            self.writes.insert(key, Some(now));
        } else {
            *self.adds.entry(key).or_default() += delta;
        }
        Ok(())
    }

    fn wake(&mut self, key: Bytes) {
        self.wakes.push(key);
    }

    fn owned(&self) -> Range<Bytes> {
        let shards = self.borders.shards();
        match (shards.first(), shards.last()) {
            (Some(first), Some(last)) => first.start.clone()..last.end.clone(),
            _ => Bytes::new()..Bytes::new(),
        }
    }

    fn shard_of(&self, key: &[u8]) -> Range<Bytes> {
        self.borders.shard_of(key)
    }

    fn shards(&self) -> Vec<Range<Bytes>> {
        self.borders.shards()
    }
}

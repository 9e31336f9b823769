//! One group's part of the log, in memory: what callers see, and where the entries are on disk.
//!
//! [`View`] changes at the call. [`OnDisk`] changes when the flusher encodes the operation, so it
//! always is what a replay of the stream up to that point gives; recovery builds it with the same
//! methods.
//!
//! # Invariants
//! 1. An entry that is not durable is in the view's tail. So a read that must go to disk finds it there.
//! 2. The tail ends where the view ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;

use parking_lot::Mutex;

use crate::GroupId;
use crate::types::{Entry, LogId, Vote};

use super::record::{self, Checkpoint};

/// Where an entry's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// 0 for an entry that recovery has heard of but not found yet.
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// Of the record, padding included.
    pub(super) length: u32,
}

impl Location {
    const UNKNOWN: Self = Self {
        segment: 0,
        offset: 0,
        length: 0,
    };
}

/// What a group has in one segment.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    entries: u64,
    bytes: u64,
}

/// The group as of some point in the stream of records.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    first: u64,
    locations: VecDeque<Location>,
    shares: BTreeMap<u32, Share>,
    live_bytes: u64,
}

impl OnDisk {
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            last: self.last,
            first: self.first,
            count: self.locations.len() as u64,
        }
    }

    /// The state that `checkpoint` tells of, its entries yet to be found.
    pub(super) fn restore(checkpoint: Checkpoint) -> Self {
        Self {
            vote: checkpoint.vote,
            committed: checkpoint.committed,
            purged: checkpoint.purged,
            last: checkpoint.last,
            first: checkpoint.first,
            locations: (0..checkpoint.count).map(|_| Location::UNKNOWN).collect(),
            shares: BTreeMap::new(),
            live_bytes: 0,
        }
    }

    pub(super) fn indexes(&self) -> Range<u64> {
        self.first..self.first + self.locations.len() as u64
    }

    /// Whether an entry at `index` continues the log.
    pub(super) fn continues_at(&self, index: u64) -> bool {
        continues(self.indexes(), self.purged.as_ref(), index)
    }

    pub(super) fn push(&mut self, log_id: LogId, location: Location) {
        if self.locations.is_empty() {
            self.first = log_id.index;
        }
        self.locations.push_back(location);
        self.count_in(location);
        self.last = Some(log_id);
    }

    pub(super) fn truncate(&mut self, after: Option<&LogId>) {
        let end = after.map_or(0, |log_id| log_id.index + 1);
        if self.indexes().end <= end {
            return;
        }
        while self.indexes().end > end
            && let Some(location) = self.locations.pop_back()
        {
            self.count_out(location);
        }
        self.last = if self.locations.is_empty() {
            self.purged
        } else {
            after.copied()
        };
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index
            && let Some(location) = self.locations.pop_front()
        {
            self.count_out(location);
            self.first += 1;
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
        if self.locations.is_empty() {
            self.first = upto.index + 1;
            self.last = self.purged;
        }
    }

    pub(super) fn location(&self, index: u64) -> Option<Location> {
        let at = index.checked_sub(self.first)?;
        self.locations.get(at as usize).copied()
    }

    /// Says that the entry at `index` is at `location` now.
    pub(super) fn relocate(&mut self, index: u64, location: Location) {
        let Some(at) = index.checked_sub(self.first) else {
            return;
        };
        if let Some(slot) = self.locations.get_mut(at as usize) {
            let old = std::mem::replace(slot, location);
            self.count_out(old);
            self.count_in(location);
        }
    }

    /// The oldest segment that holds a live entry.
    pub(super) fn oldest_segment(&self) -> Option<u32> {
        self.shares.keys().next().copied()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Entries in `segment`, from the first, until they are `limit` bytes together.
    pub(super) fn entries_in(&self, segment: u32, limit: u64) -> Vec<(u64, Location)> {
        let Some(share) = self.shares.get(&segment) else {
            return Vec::new();
        };
        let mut bytes = 0;
        (self.first..)
            .zip(self.locations.iter().copied())
            .filter(|(_, location)| location.segment == segment)
            .take(share.entries as usize)
            .take_while(|(_, location)| {
                let fits = bytes < limit;
                bytes += u64::from(location.length);
                fits
            })
            .collect()
    }

    /// The first entry that should be in the log and was not found.
    pub(super) fn missing(&self) -> Option<u64> {
        (self.first..)
            .zip(&self.locations)
            .find(|(_, location)| **location == Location::UNKNOWN)
            .map(|(index, _)| index)
    }

    fn count_in(&mut self, location: Location) {
        let share = self.shares.entry(location.segment).or_default();
        share.entries += 1;
        share.bytes += u64::from(location.length);
        self.live_bytes += u64::from(location.length);
    }

    fn count_out(&mut self, location: Location) {
        let Some(share) = self.shares.get_mut(&location.segment) else {
            return;
        };
        share.entries -= 1;
        share.bytes -= u64::from(location.length);
        self.live_bytes -= u64::from(location.length);
        if share.entries == 0 {
            self.shares.remove(&location.segment);
        }
    }
}

fn continues(indexes: Range<u64>, purged: Option<&LogId>, index: u64) -> bool {
    if !indexes.is_empty() {
        return index == indexes.end;
    }
    // An empty log begins behind what was purged, or, if nothing was, anywhere.
    purged.is_none_or(|purged| index == purged.index + 1)
}

/// The group as callers see it.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    first: u64,
    end: u64,
    /// Where each term begins: first index, term.
    terms: VecDeque<(u64, u64)>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// Entries before this index are durable.
    durable_end: u64,
    /// Counts truncations, so that the end of an append that was truncated says nothing of what took
    /// its place.
    truncations: u64,
    removed: bool,
    /// Entries being carried forward, whose new location is not durable yet.
    pub(super) moving: BTreeMap<u64, Entry>,
}

/// What an entry costs in memory, about.
fn cost(entry: &Entry) -> usize {
    size_of::<Entry>() + record::entry_stride(entry)
}

impl View {
    /// The view of a recovered group. `terms` has where each term begins.
    pub(super) fn recovered(disk: &OnDisk, terms: VecDeque<(u64, u64)>) -> Self {
        let Range { start, end } = disk.indexes();
        Self {
            vote: disk.vote,
            // What was said to be committed may have been ahead of what became durable.
            committed: disk.committed.min(disk.last),
            purged: disk.purged,
            first: start,
            end,
            terms,
            durable_end: end,
            ..Self::default()
        }
    }

    pub(super) fn indexes(&self) -> Range<u64> {
        self.first..self.end
    }

    /// Forgets everything, for good.
    pub(super) fn remove(&mut self) {
        *self = Self {
            removed: true,
            ..Self::default()
        };
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    /// Nothing was ever stored.
    pub(super) fn is_pristine(&self) -> bool {
        self.vote.is_none() && self.purged.is_none() && self.end == 0
    }

    pub(super) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    pub(super) fn truncations(&self) -> u64 {
        self.truncations
    }

    pub(super) fn last(&self) -> Option<LogId> {
        if self.indexes().is_empty() {
            self.purged
        } else {
            self.log_id(self.end - 1)
        }
    }

    /// The log id of a present entry.
    pub(super) fn log_id(&self, index: u64) -> Option<LogId> {
        if !self.indexes().contains(&index) {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.terms.get(run.checked_sub(1)?)?;
        Some(record::log_id(*term, index))
    }

    /// The last log id of each term in `range`.
    pub(super) fn key_log_ids(&self, range: Range<u64>) -> Vec<LogId> {
        let range = range.start.max(self.first)..range.end.min(self.end);
        if range.is_empty() {
            return Vec::new();
        }
        let nexts = self.terms.iter().skip(1).map(|(first, _)| *first);
        nexts
            .filter(|next| *next > range.start && *next < range.end)
            .chain([range.end])
            .filter_map(|next| self.log_id(next - 1))
            .collect()
    }

    /// Adds `entries` to the end.
    ///
    /// # Errors
    /// If they would leave a hole or overlap; nothing has changed then.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(first) = entries.first().map(|entry| entry.log_id.index) else {
            return Ok(());
        };
        let consecutive = (first..)
            .zip(entries)
            .all(|(index, entry)| entry.log_id.index == index);
        if !consecutive || !continues(self.indexes(), self.purged.as_ref(), first) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("entries from {first} do not continue {:?}", self.indexes()),
            ));
        }
        if self.indexes().is_empty() {
            self.first = first;
            self.durable_end = first;
        }
        for entry in entries {
            let term = entry.log_id.leader_id.term;
            if self.terms.back().is_none_or(|(_, last)| *last != term) {
                self.terms.push_back((entry.log_id.index, term));
            }
            self.tail_bytes += cost(entry);
            self.tail.push_back(entry.clone());
        }
        self.end = first + entries.len() as u64;
        Ok(())
    }

    pub(super) fn truncate(&mut self, after: Option<&LogId>) {
        let end = after.map_or(0, |log_id| log_id.index + 1).max(self.first);
        while self.end > end {
            self.end -= 1;
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= cost(&entry);
            }
        }
        while self.terms.back().is_some_and(|(first, _)| *first >= end) {
            self.terms.pop_back();
        }
        self.durable_end = self.durable_end.min(end);
        self.truncations += 1;
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        let first = upto.index + 1;
        while self.tail_first() < first
            && let Some(entry) = self.tail.pop_front()
        {
            self.tail_bytes -= cost(&entry);
        }
        if self.first < first {
            self.first = first;
        }
        if self.end < first {
            self.end = first;
            self.durable_end = first;
        }
        while let Some((next, _)) = self.terms.get(1)
            && *next <= self.first
        {
            self.terms.pop_front();
        }
        if self.indexes().is_empty() {
            self.terms.clear();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    fn tail_first(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    /// An entry that is in memory.
    pub(super) fn in_memory(&self, index: u64) -> Option<&Entry> {
        match index.checked_sub(self.tail_first()) {
            Some(at) => self.tail.get(at as usize),
            None => self.moving.get(&index),
        }
    }

    /// Says that an append that ended before `end` is durable, made when `truncations` was as given.
    pub(super) fn durable(&mut self, end: u64, truncations: u64) {
        if truncations == self.truncations {
            self.durable_end = self.durable_end.max(end);
        }
    }

    /// Drops at least `bytes` of the oldest entries from memory, as far as they are durable. Returns
    /// how much was dropped.
    pub(super) fn evict(&mut self, bytes: usize) -> usize {
        let before = self.tail_bytes;
        while before - self.tail_bytes < bytes
            && self.tail_first() < self.durable_end
            && let Some(entry) = self.tail.pop_front()
        {
            self.tail_bytes -= cost(&entry);
        }
        before - self.tail_bytes
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) view: View,
    pub(super) disk: OnDisk,
}

/// A group. Locked before the flusher's queue, never after it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) state: Mutex<State>,
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            state: Mutex::default(),
        }
    }
}

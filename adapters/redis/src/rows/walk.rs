//! Walks over the keys of a database: SCAN, KEYS, RANDOMKEY, FLUSHDB.
//!
//! A shard's keys lie slot by slot, every database's within each slot, a key's elements behind its
//! first row. A walk reads on while that is cheap and seeks past what it does not want.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use leadline_kv::ScanOrder;
use leadline_kv::keyspace::{self, SLOTS};
use xxhash_rust::xxh3::xxh3_64;

use super::db::{Db, First, Value};
use super::draw::Draw;
use super::layout::{self, Type};
use super::{DATABASES, end_of_prefix, slot_prefix};
use crate::reply::ReplyError;

/// A SCAN cursor is a slot above this many bits of a position within it: 52 bits in all, which
/// every client can hold.
pub(crate) const SCAN_POSITION_BITS: u32 = 38;
/// A slot of at most so many keys is answered whole.
const WHOLE_SLOT: usize = 1024;
/// SCAN's COUNT is a hint; above this it is taken as this.
const MOST_COUNT: usize = 1 << 16;
/// Jumps over other databases' rows that one SCAN may make.
const JUMPS: usize = 1024;
/// Element rows that are read over before a seek is cheaper.
const READ_OVER: usize = 16;
/// RANDOMKEY chooses among so many neighbours of a random place.
const NEIGHBOURS: u64 = 64;

/// A key that a walk found, and its type.
pub(crate) type Found = (Bytes, Type);

/// How a walk ended.
enum Walked {
    /// Everything in the range was seen.
    Whole,
    /// The visitor said `false`.
    Stopped,
    /// Out of jumps, every key before this slot was seen.
    Tired(u16),
}

impl Db<'_> {
    /// The slots of this shard.
    fn slots(&self) -> Range<u16> {
        layout::owned_slots(&self.rows_ref().owned())
    }

    /// Calls `visit` with each key in `slots` that has not expired, in row order.
    fn walk(
        &mut self,
        slots: Range<u16>,
        mut jumps: usize,
        visit: &mut dyn FnMut(u16, Bytes, &First) -> bool,
    ) -> Result<Walked, ReplyError> {
        let (number, now_ms) = (self.number(), self.now_ms());
        let Range { mut start, end } = layout::slot_rows(slots.clone());
        if slots.start < slots.end {
            start = slot_prefix(slots.start, number);
        }
        loop {
            let mut seek = None;
            let mut stopped = false;
            let mut failed = None;
            let mut read_over = 0;
            let scan = start..end.clone();
            self.rows()
                .scan(scan, ScanOrder::Ascending, &mut |row_key, row| {
                    let Some(place) = layout::row_place(row_key) else {
                        return false;
                    };
                    if place.database != number {
                        let slot = place.slot + u16::from(place.database > number);
                        seek = Some((slot_prefix(slot, number), Some(slot)));
                        return false;
                    }
                    if !place.is_first {
                        read_over += 1;
                        if read_over > READ_OVER {
                            seek = Some((end_of_prefix(place.prefix), None));
                        }
                        return read_over <= READ_OVER;
                    }
                    read_over = 0;
                    match First::decode(row.clone()) {
                        Err(error) => {
                            failed = Some(error);
                            false
                        }
                        Ok(first) if first.is_expired(now_ms) => true,
                        Ok(first) => {
                            stopped = !visit(place.slot, place.key(), &first);
                            !stopped
                        }
                    }
                })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
            match seek {
                _ if stopped => return Ok(Walked::Stopped),
                None => return Ok(Walked::Whole),
                Some((_, Some(slot))) if jumps == 0 => return Ok(Walked::Tired(slot)),
                Some((next, slot)) => {
                    jumps = jumps.saturating_sub(usize::from(slot.is_some()));
                    start = next;
                }
            }
        }
    }

    /// Every key of this database in this shard, until `visit` says `false`.
    pub(crate) fn each_key(
        &mut self,
        visit: &mut dyn FnMut(Bytes, &First) -> bool,
    ) -> Result<(), ReplyError> {
        if self.key_count()? > 0 {
            self.walk(self.slots(), usize::MAX, &mut |_, key, first| {
                visit(key, first)
            })?;
        }
        Ok(())
    }

    /// About `count` keys from `cursor` on, and the cursor after them, 0 at the end of the
    /// keyspace. A key that is there from the first call to the last is answered.
    ///
    /// A slot is answered whole, or, if it is large, in the order of a hash of its keys, which
    /// keeps its place while keys come and go.
    pub(crate) fn scan_keys(
        &mut self,
        cursor: u64,
        count: usize,
    ) -> Result<(u64, Vec<Found>), ReplyError> {
        let slots = self.slots();
        let count = count.min(MOST_COUNT);
        let whole = count.max(WHOLE_SLOT);
        let mut slot = u16::try_from(cursor >> SCAN_POSITION_BITS).unwrap_or(SLOTS);
        slot = slot.max(slots.start);
        let position = cursor & ((1 << SCAN_POSITION_BITS) - 1);
        let mut found = Vec::new();
        if slot >= slots.end || self.key_count()? == 0 {
            return Ok((cursor_at(slots.end.max(slot)), found));
        }
        if position > 0 {
            let next = self.scan_slot(slot, position, whole, &mut found)?;
            if next != 0 {
                return Ok((cursor_at(slot) | next, found));
            }
            slot += 1;
        }
        // Where the keys of the slot being walked begin in `found`.
        let (mut current, mut begin) = (slot, found.len());
        let mut large = false;
        let walked = if found.len() >= count {
            Walked::Tired(slot)
        } else {
            self.walk(slot..slots.end, JUMPS, &mut |slot, key, first| {
                if slot != current {
                    (current, begin) = (slot, found.len());
                    if begin >= count {
                        return false;
                    }
                }
                found.push((key, first.kind()));
                large = found.len() - begin > whole;
                !large
            })?
        };
        match walked {
            Walked::Whole => Ok((cursor_at(slots.end), found)),
            Walked::Tired(slot) => Ok((cursor_at(slot), found)),
            Walked::Stopped if large && begin == 0 => {
                found.clear();
                let next = self.scan_slot(current, 0, whole, &mut found)?;
                let after = if next == 0 { current + 1 } else { current };
                Ok((cursor_at(after) | next, found))
            }
            Walked::Stopped => {
                found.truncate(begin);
                Ok((cursor_at(current), found))
            }
        }
    }

    /// The `wanted` keys of `slot` with the smallest hashes from `position` on, and the position
    /// after them, 0 if there is no more. Holds no more than that in memory.
    fn scan_slot(
        &mut self,
        slot: u16,
        position: u64,
        wanted: usize,
        found: &mut Vec<Found>,
    ) -> Result<u64, ReplyError> {
        let mut nearest: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
        let mut held = 0;
        let mut more = false;
        self.walk(slot..slot + 1, usize::MAX, &mut |_, key, first| {
            let hash = xxh3_64(&key) >> (64 - SCAN_POSITION_BITS);
            if hash < position {
                return true;
            }
            if held >= wanted
                && nearest
                    .last_key_value()
                    .is_some_and(|(&last, _)| hash > last)
            {
                more = true;
                return true;
            }
            nearest.entry(hash).or_default().push((key, first.kind()));
            held += 1;
            // Keys of one hash stay together: the position after them is past them all.
            while let Some(last) = nearest.last_entry()
                && held - last.get().len() >= wanted
            {
                held -= last.remove().len();
                more = true;
            }
            true
        })?;
        let next = match nearest.last_key_value() {
            Some((last, _)) if more => (last + 1) & ((1 << SCAN_POSITION_BITS) - 1),
            _ => 0,
        };
        found.extend(nearest.into_values().flatten());
        Ok(next)
    }

    /// A key, each about as likely as another while keys are spread over slots.
    pub(crate) fn random_key(&mut self) -> Result<Option<Bytes>, ReplyError> {
        let slots = self.slots();
        let count = self.key_count()?;
        if count == 0 || slots.is_empty() {
            return Ok(None);
        }
        let mut draw = Draw::new(self.rows().random());
        let width = u64::from(slots.end - slots.start);
        // Few keys leave wide gaps between slots: then all are looked at.
        let (from, among) = if count <= NEIGHBOURS {
            (slots.start, count)
        } else {
            let offset = u16::try_from(draw.below(width)).unwrap_or(0);
            (slots.start + offset, NEIGHBOURS)
        };
        let mut seen = 0;
        let mut chosen = None;
        for part in [from..slots.end, slots.start..from] {
            self.walk(part, usize::MAX, &mut |_, key, _| {
                // Each of the first n is the choice with probability 1/n (reservoir sampling).
                seen += 1;
                if draw.below(seen) == 0 {
                    chosen = Some(key);
                }
                seen < among
            })?;
            if seen >= among {
                break;
            }
        }
        Ok(chosen)
    }

    /// Deletes every key of this database in this shard, as effects by range.
    pub(crate) fn flush(&mut self) -> Result<(), ReplyError> {
        let number = self.number();
        let slots = self.slots();
        let mut others = 0;
        for other in (0..DATABASES).filter(|&other| other != number) {
            others += self.other(other).key_count()?;
        }
        if others == 0 {
            return self.flush_shard();
        }
        let Range { mut start, end } = layout::slot_rows(slots.clone());
        let mut doomed = Vec::new();
        while start < end {
            let mut next = None;
            self.rows().scan(
                start..end.clone(),
                ScanOrder::Ascending,
                &mut |row_key, _| {
                    next = layout::row_place(row_key).map(|place| (place.slot, place.database));
                    false
                },
            )?;
            let Some((slot, database)) = next else { break };
            start = match database {
                lower if lower < number => slot_prefix(slot, number),
                higher if higher > number => slot_prefix(slot + 1, number),
                _ => {
                    let prefix = slot_prefix(slot, number);
                    let after = end_of_prefix(&prefix);
                    doomed.push(prefix..after.clone());
                    after
                }
            };
        }
        for range in doomed {
            self.rows().delete_range(range);
        }
        for owned in self.rows().shards() {
            let index = layout::expiry_index_rows(&owned.start, number);
            self.rows().delete_range(index);
            self.rows()
                .delete(layout::key_count_row(&owned.start, number));
        }
        self.forget();
        Ok(())
    }

    /// Deletes every key of every database in this shard, as effects by range.
    pub(crate) fn flush_shard(&mut self) -> Result<(), ReplyError> {
        for owned in self.rows().shards() {
            let slots = layout::owned_slots(&owned);
            if slots.is_empty() {
                continue;
            }
            // What the store itself keeps in the shard stays.
            let own = keyspace::area(&owned.start);
            let Range { start, end } = layout::slot_rows(slots);
            if own < start || own >= end {
                self.rows().delete_range(start..end);
                continue;
            }
            let after = end_of_prefix(&own);
            self.rows().delete_range(start..own);
            self.rows().delete_range(after..end);
        }
        self.forget();
        Ok(())
    }

    /// Elements of `first`, stored at `key`, for a look at their sizes: at most `most`.
    pub(crate) fn first_elements(
        &mut self,
        key: &[u8],
        first: &First,
        most: usize,
        visit: &mut dyn FnMut(&[u8], &Bytes),
    ) -> Result<(), ReplyError> {
        let Value::Collection(collection) = &first.value else {
            return Ok(());
        };
        let Some(&kind) = collection.kind.element_kinds().first() else {
            return Ok(());
        };
        let home = self.home(key, collection);
        // What stands before the element: a hash, or a list's position.
        let header = home.element_header() + if collection.kind == Type::List { 8 } else { 6 };
        let mut left = most;
        self.rows().scan(
            home.elements(kind, collection.generation),
            ScanOrder::Ascending,
            &mut |row_key, value| {
                visit(&row_key[header..], value);
                left = left.saturating_sub(1);
                left > 0
            },
        )?;
        Ok(())
    }
}

/// The cursor that names the beginning of `slot`; 0 after the last.
fn cursor_at(slot: u16) -> u64 {
    if slot >= SLOTS {
        0
    } else {
        u64::from(slot) << SCAN_POSITION_BITS
    }
}

//! How much log a group keeps, by bytes.
//!
//! openraft counts entries; what a log costs is bytes. So the applier marks an index every so many
//! bytes, the state machine is flushed when enough has been applied since the last flush, and the
//! log is purged up to the mark that leaves the tail that lagging peers catch up from.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// What an entry costs in the log beside its payload.
const ENTRY_OVERHEAD: u64 = 64;

/// Between two marks.
const MARK: u64 = 256 << 10;

#[derive(Clone, Copy)]
struct Mark {
    index: u64,
    /// Bytes applied when `index` was.
    total: u64,
}

#[derive(Default)]
struct Counts {
    total: u64,
    last_applied: u64,
    /// `total` as of the last flush asked for.
    flushed: u64,
    marks: VecDeque<Mark>,
}

/// What is to be done for a group's log now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upkeep {
    /// Make the state durable.
    pub(crate) flush: bool,
    /// Purge up to this index, as far as the state is durable.
    pub(crate) purge: Option<u64>,
}

/// The applied part of a group's log, measured.
#[derive(Default)]
pub(crate) struct LogTail {
    counts: Mutex<Counts>,
}

impl LogTail {
    /// `entries` of `bytes` in all were applied, the last at `index`.
    pub(crate) fn applied(&self, index: u64, entries: u64, bytes: u64) {
        let mut counts = self.counts.lock();
        counts.total += bytes + entries * ENTRY_OVERHEAD;
        counts.last_applied = index;
        let total = counts.total;
        if counts
            .marks
            .back()
            .is_none_or(|mark| total - mark.total >= MARK)
        {
            counts.marks.push_back(Mark { index, total });
        }
    }

    /// What to do, for a tail of `retain` bytes and a state that is `durable` so far; `quiet`: flush
    /// whatever is not.
    pub(crate) fn upkeep(&self, retain: u64, quiet: bool, durable: u64) -> Upkeep {
        let mut counts = self.counts.lock();
        let unflushed = counts.total - counts.flushed;
        let flush = unflushed >= (retain / 4).max(1) || (quiet && durable < counts.last_applied);
        if flush {
            counts.flushed = counts.total;
        }
        let mut purge = None;
        while let Some(mark) = counts.marks.front().copied()
            && mark.index <= durable
            && counts.total - mark.total >= retain
        {
            purge = Some(mark.index);
            counts.marks.pop_front();
        }
        Upkeep { flush, purge }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETAIN: u64 = 32 << 20;
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_log_is_purged_to_the_retained_tail_and_no_further_than_is_durable() {
        let tail = LogTail::default();
        for index in 1..=100 {
            tail.applied(index, 1, MIB - ENTRY_OVERHEAD);
        }
        assert_eq!(tail.upkeep(RETAIN, false, 0).purge, None);
        assert_eq!(tail.upkeep(RETAIN, false, 40).purge, Some(40));
        assert_eq!(tail.upkeep(RETAIN, false, 100).purge, Some(68));
        assert_eq!(tail.upkeep(RETAIN, false, 100).purge, None);
    }

    #[test]
    fn a_flush_is_due_after_enough_bytes_or_when_the_group_is_quiet() {
        let tail = LogTail::default();
        assert!(!tail.upkeep(RETAIN, true, 0).flush);
        tail.applied(1, 1, 100);
        assert!(!tail.upkeep(RETAIN, false, 0).flush);
        assert!(tail.upkeep(RETAIN, true, 0).flush);
        assert!(tail.upkeep(RETAIN, true, 0).flush, "until it is durable");
        assert!(!tail.upkeep(RETAIN, true, 1).flush);
        tail.applied(2, 1, RETAIN);
        assert!(tail.upkeep(RETAIN, false, 0).flush);
    }

    #[test]
    fn many_small_entries_count_with_their_overhead() {
        let tail = LogTail::default();
        tail.applied(200_000, 200_000, 0);
        assert!(tail.upkeep(RETAIN, false, 0).flush);
    }
}

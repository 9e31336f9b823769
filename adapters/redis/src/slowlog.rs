//! The slow log: the last commands that took longer than `slowlog-log-slower-than`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

/// Arguments kept of an entry, and bytes of each, as in Redis.
const ARGS: usize = 32;
const ARG_BYTES: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) unix_s: u64,
    pub(crate) took: Duration,
    pub(crate) args: Vec<Bytes>,
    pub(crate) address: String,
    pub(crate) name: Bytes,
}

#[derive(Debug, Default)]
pub(crate) struct SlowLog {
    ring: Mutex<(i64, VecDeque<Entry>)>,
    /// A second, and how many entries were taken in it.
    taken: Mutex<(u64, usize)>,
}

impl SlowLog {
    /// Whether another entry is taken in this `second` of any clock: as many as are kept. Under load
    /// every command may be slow, and what nobody could read would make them slower.
    pub(crate) fn takes(&self, second: u64, keep: usize) -> bool {
        let mut taken = self.taken.lock();
        if taken.0 != second {
            *taken = (second, 0);
        }
        taken.1 += 1;
        taken.1 <= keep
    }

    /// Remembers `entry` (its id is given here) and forgets what is beyond `keep`.
    pub(crate) fn push(&self, mut entry: Entry, keep: usize) {
        let mut ring = self.ring.lock();
        entry.id = ring.0;
        ring.0 += 1;
        ring.1.push_front(entry);
        ring.1.truncate(keep);
    }

    /// The newest `count` entries, newest first.
    pub(crate) fn newest(&self, count: usize) -> Vec<Entry> {
        self.ring.lock().1.iter().take(count).cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.lock().1.len()
    }

    pub(crate) fn clear(&self) {
        self.ring.lock().1.clear();
    }
}

/// What the slow log keeps of a command's arguments: copies, so that it pins no request.
pub(crate) fn shortened(args: &[Bytes]) -> Vec<Bytes> {
    let short = |arg: &Bytes| match arg.len().checked_sub(ARG_BYTES) {
        None | Some(0) => Bytes::copy_from_slice(arg),
        Some(more) => Bytes::from(
            [
                &arg[..ARG_BYTES],
                format!("... ({more} more bytes)").as_bytes(),
            ]
            .concat(),
        ),
    };
    if args.len() <= ARGS {
        return args.iter().map(short).collect();
    }
    let left = args.len() - (ARGS - 1);
    args[..ARGS - 1]
        .iter()
        .map(short)
        .chain([Bytes::from(format!("... ({left} more arguments)"))])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_as_many_entries_as_are_kept() {
        let log = SlowLog::default();
        let taken = |second| (0..10).filter(|_| log.takes(second, 3)).count();
        assert_eq!((taken(7), taken(7), taken(8)), (3, 0, 3));
        assert!(!log.takes(9, 0));
    }
}

//! Hybrid logical clock: the only source of commit timestamps.
//!
//! A [`Timestamp`] is 48 bits of Unix milliseconds above a 16-bit counter, so integer order is
//! time order. The wall clock is an input here and nowhere else.
//!
//! # Invariants
//! 1. Monotonic: [`Hlc::next`] exceeds every timestamp issued or observed before it.
//! 2. Carried by the log: applying a batch observes its highest stamp, and an executor issues its
//!    first stamp after its `begin` is applied, so stamps rise along each log, through every change
//!    of leader, whatever the wall clocks do.
//! 3. Leader only: a follower calls [`Hlc::observe`], never `next`.
//!
//! Source: Kulkarni et al., *Logical Physical Clocks* (OPODIS 2014).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Timestamp;

/// The last millisecond that 48 bits hold (the year 10889).
const LAST_MILLIS: u64 = (1 << 48) - 1;

/// Where physical time comes from: Unix milliseconds. Tests inject their own.
type Wall = Box<dyn Fn() -> u64 + Send + Sync>;

/// The clock of one node, shared by its shards.
pub struct Hlc {
    last: AtomicU64,
    wall: Wall,
}

impl std::fmt::Debug for Hlc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hlc")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Default for Hlc {
    fn default() -> Self {
        Self::with_wall(system_millis)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the wall clock enters"
)]
fn system_millis() -> u64 {
    // A clock before 1970 counts as 1970: the logical part keeps order.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(LAST_MILLIS)
        })
}

impl Hlc {
    /// A clock over the system's wall clock.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A clock over a wall clock of the caller's.
    pub fn with_wall(wall: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            last: AtomicU64::new(0),
            wall: Box::new(wall),
        }
    }

    fn physical(&self) -> u64 {
        Timestamp::from_millis((self.wall)().min(LAST_MILLIS)).0
    }

    /// A timestamp above every one issued or observed before.
    #[must_use]
    pub fn next(&self) -> Timestamp {
        let physical = self.physical();
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            // Wraps in the year 10889 or after an observed stamp of all ones, which no clock issues.
            let next = physical.max(last.saturating_add(1));
            match self
                .last
                .compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Timestamp(next),
                Err(seen) => last = seen,
            }
        }
    }

    /// The time for a read that issues no timestamp: not below anything issued or observed.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.physical().max(self.last.load(Ordering::Acquire)))
    }

    /// Takes note of a timestamp from the log or from another node.
    pub fn observe(&self, seen: Timestamp) {
        if self.last.load(Ordering::Relaxed) < seen.0 {
            self.last.fetch_max(seen.0, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn clock(wall: &Arc<AtomicU64>) -> Hlc {
        let wall = Arc::clone(wall);
        Hlc::with_wall(move || wall.load(Ordering::Relaxed))
    }

    #[test]
    fn timestamps_rise_while_the_wall_clock_stands_still_or_runs_backwards() {
        let wall = Arc::new(AtomicU64::new(1_000));
        let hlc = clock(&wall);
        let first = hlc.next();
        let second = hlc.next();
        wall.store(10, Ordering::Relaxed);
        let third = hlc.next();
        assert!(first < second && second < third);
        assert_eq!(third.millis(), 1_000);
    }

    #[test]
    fn timestamps_follow_the_wall_clock_when_it_is_ahead() {
        let wall = Arc::new(AtomicU64::new(1_000));
        let hlc = clock(&wall);
        let _ = hlc.next();
        wall.store(2_000, Ordering::Relaxed);
        assert_eq!(hlc.next(), Timestamp::from_millis(2_000));
    }

    #[test]
    fn a_timestamp_exceeds_what_was_observed_from_a_faster_clock() {
        let wall = Arc::new(AtomicU64::new(1_000));
        let hlc = clock(&wall);
        hlc.observe(Timestamp::from_millis(9_000));
        assert_eq!(hlc.now(), Timestamp::from_millis(9_000));
        assert!(hlc.next() > Timestamp::from_millis(9_000));
        hlc.observe(Timestamp::from_millis(1));
        assert!(hlc.next() > Timestamp::from_millis(9_000));
    }

    #[test]
    fn sixty_five_thousand_stamps_in_one_millisecond_carry_into_the_next() {
        let hlc = Hlc::with_wall(|| 5);
        let first = hlc.next();
        for _ in 0..0x1_0000 {
            let _ = hlc.next();
        }
        assert_eq!(first.millis() + 1, hlc.now().millis());
    }
}

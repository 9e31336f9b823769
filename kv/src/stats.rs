//! What a door tells about its traffic, for dashboards: totals since the process began. A reader
//! that wants rates takes two and subtracts.

use leadline_raft::Ended;

use crate::KvError;

/// Errors, sorted by what their receiver should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The request itself was wrong (wrong type, bad argument): do not repeat it.
    Refused,
    /// No leader, or a stopping node: repeat it.
    NoLeader,
    /// A queue or budget was full: repeat it later.
    Overloaded,
    /// The deadline passed and nothing was applied.
    NotApplied,
    /// The write may have been applied.
    Unknown,
    /// Storage failed.
    Storage,
}

impl ErrorClass {
    pub const ALL: [Self; 6] = [
        Self::Refused,
        Self::NoLeader,
        Self::Overloaded,
        Self::NotApplied,
        Self::Unknown,
        Self::Storage,
    ];

    /// The label in metrics and JSON.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NoLeader => "no_leader",
            Self::Overloaded => "overloaded",
            Self::NotApplied => "not_applied",
            Self::Unknown => "unknown",
            Self::Storage => "storage",
        }
    }
}

impl KvError {
    /// Where this error is counted.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoLeader { .. } | Self::Stopping => ErrorClass::NoLeader,
            Self::Overloaded { .. } => ErrorClass::Overloaded,
            Self::NotApplied(Ended::Deadline | Ended::Cancelled) => ErrorClass::NotApplied,
            Self::Unknown(_) => ErrorClass::Unknown,
            Self::CrossShard | Self::Invalid(_) => ErrorClass::Refused,
            Self::Storage(_) => ErrorClass::Storage,
        }
    }
}

/// Totals of one door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorStats {
    /// Such as `"redis"`.
    pub door: &'static str,
    /// Requests answered, errors included.
    pub requests: u64,
    /// In the order of [`ErrorClass::ALL`].
    pub errors: [u64; ErrorClass::ALL.len()],
    /// Clients that left while their requests were running.
    pub client_gone: u64,
    /// Connections open now.
    pub connections: u64,
    /// Connections refused or closed for breaking a limit.
    pub rejected: u64,
    /// Requests that wait for something to happen (`BLPOP`) now.
    pub waiting: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub latency: Latencies,
}

/// A door that counts.
pub trait DoorStatistics: Send + Sync + 'static {
    /// The totals now. Cheap, never waits.
    fn stats(&self) -> DoorStats;
}

/// How often each latency was seen: four buckets per power of two of microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; Latencies::BUCKETS],
}

impl Latencies {
    pub const BUCKETS: usize = 104;

    #[must_use]
    pub fn new(counts: [u64; Self::BUCKETS]) -> Self {
        Self { counts }
    }

    /// The bucket of a latency.
    #[must_use]
    pub fn bucket(micros: u64) -> usize {
        if micros < 4 {
            return usize::try_from(micros).unwrap_or(0);
        }
        let octave = 63 - micros.leading_zeros();
        let quarter = (micros >> (octave - 2)) & 3;
        let bucket = u64::from(octave - 1) * 4 + quarter;
        usize::try_from(bucket).map_or(Self::BUCKETS - 1, |bucket| bucket.min(Self::BUCKETS - 1))
    }

    /// The longest latency of a bucket, in microseconds.
    #[must_use]
    pub fn longest(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 4 {
            bucket
        } else {
            ((5 + bucket % 4) << (bucket / 4 - 1)) - 1
        }
    }

    /// How many latencies were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was seen after `earlier`, which was taken from the same door.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (now, then) in counts.iter_mut().zip(earlier.counts) {
            *now = now.saturating_sub(then);
        }
        Self { counts }
    }

    /// The latency in microseconds that `permille` of a thousand requests did not exceed; at most a
    /// quarter too high. `None` when nothing was seen.
    #[must_use]
    pub fn quantile(&self, permille: u64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (count * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        self.counts
            .iter()
            .position(|&n| {
                seen += n;
                seen >= rank
            })
            .map(Self::longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_lies_in_the_bucket_that_ends_at_or_after_it() {
        for micros in (0..5000).chain([1 << 20, (1 << 20) - 1, 60_000_000]) {
            let bucket = Latencies::bucket(micros);
            assert!(Latencies::longest(bucket) >= micros, "{micros}");
            assert!(
                bucket == 0 || Latencies::longest(bucket - 1) < micros,
                "{micros}"
            );
        }
        assert_eq!(Latencies::bucket(u64::MAX), Latencies::BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_high() {
        let mut counts = [0; Latencies::BUCKETS];
        for micros in 1..=1000 {
            counts[Latencies::bucket(micros)] += 1;
        }
        let latencies = Latencies::new(counts);
        for (permille, exact) in [(500, 500), (990, 990), (1, 1)] {
            let found = latencies.quantile(permille).unwrap();
            assert!(
                (exact..=exact * 5 / 4).contains(&found),
                "{permille}: {found}"
            );
        }
        assert_eq!(Latencies::new([0; Latencies::BUCKETS]).quantile(500), None);
    }
}

//! How often and how soon requests are sent again.

use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;

/// The first pause, and the longest.
const FIRST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(250);

/// The pause before try `tries` (from 0): doubles from 2 ms to 250 ms, less up to half of it at
/// random, so that those who failed together do not come back together.
pub(crate) fn backoff(tries: u8) -> Duration {
    let full = FIRST.saturating_mul(1_u32 << tries.min(10)).min(LONGEST);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// A budget of retries for the whole node: a burst is free (every change of leader makes one), a
/// storm is not.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    burst: f64,
    per_second: f64,
    left: Mutex<(f64, Instant)>,
}

impl RetryBudget {
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst: f64::from(burst),
            per_second: f64::from(per_second),
            left: Mutex::new((f64::from(burst), Instant::now())),
        }
    }

    /// Takes one retry out of the budget, if there is one.
    pub(crate) fn take(&self) -> bool {
        let now = Instant::now();
        let (left, since) = &mut *self.left.lock();
        let earned = now.duration_since(*since).as_secs_f64() * self.per_second;
        *left = (*left + earned).min(self.burst);
        *since = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_spent_retry_budget_refuses_until_time_has_earned_some() {
        let budget = RetryBudget::new(3, 10);
        assert_eq!((0..5).filter(|_| budget.take()).count(), 3);
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!((0..5).filter(|_| budget.take()).count(), 2);
    }

    #[test]
    fn the_pause_grows_and_stays_bounded() {
        assert!(backoff(0) <= FIRST && backoff(0) >= FIRST / 2);
        assert!(backoff(255) <= LONGEST && backoff(255) >= LONGEST / 2);
    }
}

//! tokio as openraft runs on it, with two changes to its sleeps.
//!
//! openraft has two uses for a sleep until an instant. Each group's core ticks; and the task that
//! reports finished log writes sleeps a microsecond when two finish within one, to report them
//! together. tokio's clock has steps of a millisecond, so that microsecond would hold up every
//! commit of a busy group by a thousand of them: here it is no sleep at all. And the ticks of a
//! node's groups, a fifth of a heartbeat apart and spread by chance, would wake the process
//! thousands of times a second for a hundred idle groups: here they fall on common instants, ten a
//! second, which is often enough for heartbeats and elections.

use std::cell::Cell;
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use openraft::AsyncRuntime;
use openraft::Instant as _;
use openraft_rt_tokio::{
    TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch,
};
use tokio::time::{Instant, Sleep, Timeout};

/// Ticks are put off to the next multiple of this, counted from one instant of the process.
const GRID: Duration = Duration::from_millis(100);

/// The longest that openraft waits for a second finished write.
const AT_ONCE: Duration = Duration::from_micros(1);

thread_local! {
    /// Until when somebody slept last, and was not made to.
    static SKIPPED: Cell<Option<Instant>> = const { Cell::new(None) };
}

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// openraft's runtime.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

/// When to wake who wants to sleep for `left`; `None`: at once.
fn wake_at(now: Instant, left: Duration) -> Option<Instant> {
    let deadline = now + left;
    // A tick that is due so soon asks again, for the same instant: where the clock stands still, as
    // in tests, it would do so for ever.
    if left <= AT_ONCE && SKIPPED.replace(Some(deadline)) != Some(deadline) {
        return None;
    }
    // Never earlier than asked for: openraft reckons its next tick from the time it wakes.
    let since = deadline.saturating_duration_since(*ORIGIN).as_nanos();
    let beyond = since % GRID.as_nanos();
    let put_off = (GRID.as_nanos() - beyond) % GRID.as_nanos();
    Some(deadline + Duration::from_nanos(put_off as u64))
}

impl Runtime {
    /// A sleep that is not put off to a common instant.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn sleep_exactly_until(deadline: TokioInstant) -> Either<Ready<()>, Sleep> {
        Either::Right(TokioRuntime::sleep_until(deadline))
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = Either<Ready<()>, Sleep>;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = Timeout<T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: Send + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Either::Right(tokio::time::sleep(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = TokioInstant::now();
        // Its difference panics where it would be negative.
        let left = if deadline > now {
            deadline - now
        } else {
            Duration::ZERO
        };
        match wake_at(Instant::now(), left) {
            Some(at) => Either::Right(tokio::time::sleep_until(at)),
            None => Either::Left(ready(())),
        }
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_below_the_clocks_resolution_is_none() {
        let now = Instant::now();
        assert_eq!(wake_at(now, Duration::ZERO), None);
        assert_eq!(wake_at(now, Duration::from_micros(1)), None);
    }

    #[test]
    fn ticks_of_many_groups_fall_on_common_instants_and_never_early() {
        let now = *ORIGIN + Duration::from_secs(7);
        let wakes: std::collections::BTreeSet<Instant> = (0..1000)
            .map(|group| {
                let left = Duration::from_millis(200) + Duration::from_micros(group * 197);
                let at = wake_at(now, left).unwrap();
                assert!(at >= now + left && at - (now + left) < GRID);
                at
            })
            .collect();
        assert!(wakes.len() <= 5, "{wakes:?}");
    }

    #[test]
    fn a_sleep_that_is_asked_for_again_and_again_is_one() {
        let now = Instant::now();
        let left = Duration::from_nanos(900);
        assert_eq!(wake_at(now, left), None);
        assert!(wake_at(now, left).is_some_and(|at| at >= now + left));
        assert_eq!(wake_at(now + left, Duration::from_nanos(1)), None);
    }
}

//! Randomness of a simulation: one seed per thread, from which everything is drawn. A thread without
//! a seed draws as anybody does, and blocking work goes to threads of its own as anybody's does.

use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::OptionalSend;
use rand_of_openraft::SeedableRng;
use rand_of_openraft::rngs::StdRng;

use crate::runtime::Runtime;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread draws from `seed`, and does blocking work in place.
pub fn seed(seed: Option<u64>) {
    STATE.set(seed);
}

/// Whether this thread is a simulation's.
pub(crate) fn is_seeded() -> bool {
    STATE.get().is_some()
}

/// The next number.
#[must_use]
pub fn next() -> u64 {
    let Some(state) = STATE.get() else {
        return rand::random();
    };
    // splitmix64 (Steele, Lea, Flood 2014).
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(Some(state));
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number below `bound`.
#[must_use]
pub fn below(bound: u64) -> u64 {
    next() % bound.max(1)
}

/// A time within `range`.
pub(crate) fn duration(range: &Range<Duration>) -> Duration {
    let span = range.end.saturating_sub(range.start).as_micros();
    range.start + Duration::from_micros(below(u64::try_from(span).unwrap_or(u64::MAX)))
}

/// The runtime, whose random numbers and ticks are the simulation's.
#[derive(Debug)]
pub(crate) struct SeededRuntime(Runtime);

impl AsyncRuntime for SeededRuntime {
    type JoinError = <Runtime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Runtime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Runtime as AsyncRuntime>::Sleep;
    type Instant = <Runtime as AsyncRuntime>::Instant;
    type TimeoutError = <Runtime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <Runtime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = StdRng;
    type Mpsc = <Runtime as AsyncRuntime>::Mpsc;
    type Watch = <Runtime as AsyncRuntime>::Watch;
    type Oneshot = <Runtime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Runtime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Runtime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Runtime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        if is_seeded() {
            // The common instants of ticks are the process', and outlive a simulation.
            return Runtime::sleep_exactly_until(deadline);
        }
        Runtime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Runtime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Runtime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Runtime::is_panic(join_error)
    }

    fn thread_rng() -> StdRng {
        StdRng::seed_from_u64(next())
    }

    fn new(threads: usize) -> Self {
        Self(Runtime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

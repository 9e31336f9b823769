//! What the kernel tells of processes on this machine.

use std::io;
use std::time::Duration;

/// CPU time of process `pid`, and of the kernel for it.
///
/// # Errors
/// A process that is not there.
pub(crate) fn cpu_times(pid: u32) -> io::Result<(Duration, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything: fields are counted behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let each = rustix::param::clock_ticks_per_second().max(1);
    let time = |field: usize| {
        let ticks: Option<u64> = fields
            .split_whitespace()
            .nth(field)
            .and_then(|ticks| ticks.parse().ok());
        Duration::from_micros(ticks.unwrap_or(0) * 1_000_000 / each)
    };
    Ok((time(11), time(12)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_what_is_computed() {
        let cpu_times = || cpu_times(std::process::id()).unwrap();
        let began = std::time::Instant::now();
        let (before, _) = cpu_times();
        while cpu_times().0 < before + Duration::from_millis(100) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{:?}",
                cpu_times()
            );
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
        // No more than all processors can give, give or take a tick.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = began.elapsed() * u32::try_from(cores).unwrap() + Duration::from_millis(50);
        assert!(cpu_times().0 - before < most, "{:?}", cpu_times());
    }
}

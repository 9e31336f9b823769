//! CPU time that servers on this machine have used.

use std::time::Duration;

/// User and system time of some processes, summed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuClock {
    used: Duration,
}

impl CpuClock {
    /// # Errors
    /// A process that is not there.
    pub(super) fn read(pids: &[u32]) -> Result<Self, String> {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let mut used = Duration::ZERO;
        for pid in pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_err(|error| format!("--pid {pid}: no such process here ({error})"))?;
            // The name, in parentheses, may hold spaces: fields are counted behind it.
            let fields: Vec<&str> = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace()
                .collect();
            let spent: u64 = [11, 12]
                .iter()
                .filter_map(|field| fields.get(*field)?.parse::<u64>().ok())
                .sum();
            used += Duration::from_micros(spent * 1_000_000 / ticks);
        }
        Ok(Self { used })
    }

    pub(super) fn since(&self, before: &Self) -> Duration {
        self.used.saturating_sub(before.used)
    }
}

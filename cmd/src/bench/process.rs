//! CPU time that servers on this machine have used.

use std::time::Duration;

use crate::process;

/// User and system time of some processes, summed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuClock {
    used: Duration,
}

impl CpuClock {
    /// # Errors
    /// A process that is not there.
    pub(super) fn read(pids: &[u32]) -> Result<Self, String> {
        let mut used = Duration::ZERO;
        for pid in pids {
            let (user, system) = process::cpu_times(*pid)
                .map_err(|error| format!("--pid {pid}: no such process here ({error})"))?;
            used += user + system;
        }
        Ok(Self { used })
    }

    pub(super) fn since(&self, before: &Self) -> Duration {
        self.used.saturating_sub(before.used)
    }
}

//! openraft's configuration, and the times derived from [`Timing`].
//!
//! A follower elects no sooner than one *lease* after the last message of its leader, and then
//! waits for an election timeout of its own: both together are between [`Timing::election_min`] and
//! [`Timing::election_max`] (plus a tick). openraft takes its lease to be its longest timeout, so
//! half of `election_max` is the lease and half is the longest timeout.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy, StepDownPolicy};

use crate::engine::{ReadMode, Timing};
use crate::mutations::{self, Mutation};

use super::pending::Bounds;
use super::proof::{BootClock, SystemBootClock};

/// Proposals in flight per group: far below what openraft's channel takes, which so never fills.
const BOUNDS: Bounds = Bounds {
    proposals: 4096,
    bytes: 128 << 20,
};

/// Far more than is written while one snapshot is sent.
const LAG: u64 = 500_000;

/// What all groups of a node have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) timing: Timing,
    pub(crate) read_mode: ReadMode,
    pub(crate) max_entry_bytes: usize,
    /// Log kept after a flush, over all groups.
    pub(crate) tail_bytes: u64,
    pub(crate) bounds: Bounds,
    pub(crate) clock: Arc<dyn BootClock>,
}

impl Settings {
    /// Times and bounds as they are by default, for a log with a tail of `tail_bytes`.
    pub(crate) fn new(timing: Timing, read_mode: ReadMode, tail_bytes: u64) -> Self {
        Self {
            timing,
            read_mode,
            max_entry_bytes: crate::MAX_ENTRY_BYTES,
            tail_bytes,
            bounds: BOUNDS,
            clock: Arc::new(SystemBootClock),
        }
    }

    /// How long a follower refuses to elect another leader after a message of its own.
    pub(crate) fn lease(&self) -> Duration {
        self.timing.election_max / 2
    }

    /// After how long without a quorum's acknowledgement a leader counts as none.
    pub(crate) fn quorum_check(&self) -> Duration {
        if mutations::active(Mutation::NoLeaseMargin) {
            return self.lease() * 8;
        }
        self.lease()
    }

    /// After how long leadership that was given away must have been taken, by whomever: time for two
    /// elections.
    pub(crate) fn takeover(&self) -> Duration {
        self.timing.election_max * 2
    }

    /// How long one ReadIndex round may take before it is sent again.
    pub(crate) fn round(&self) -> Duration {
        self.timing.heartbeat * 2
    }

    /// How long a restarted voter neither votes nor campaigns: it may have promised a lease that it
    /// does not remember.
    pub(crate) fn hold(&self) -> Duration {
        match self.read_mode {
            ReadMode::ReadIndex => Duration::ZERO,
            ReadMode::Lease => self.lease(),
        }
    }

    /// # Errors
    /// When the times do not fit each other.
    pub(crate) fn openraft(&self, campaign: bool) -> Result<Arc<Config>, ConfigError> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let lease = ms(self.lease());
        // Looked at by ticks: a little less, so that one that comes early sends it too.
        let heartbeat = ms(self.timing.heartbeat * 9 / 10);
        let config = Config {
            cluster_name: "leadline".to_owned(),
            heartbeat_interval: heartbeat,
            election_timeout_min: ms(self.timing.election_min)
                .saturating_sub(lease)
                .max(heartbeat + 1),
            election_timeout_max: lease,
            install_snapshot_timeout: 10 * 60 * 1000,
            // Entries per message; the log caps them by bytes.
            max_payload_entries: 1024,
            replication_lag_threshold: LAG,
            // Flush and purge are driven by bytes: `LogTail`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_elect: campaign,
            enable_pre_vote: Some(true),
            // A restarted leader may lack entries that it sent out before its own fsync.
            enable_leader_restore: Some(false),
            // A heartbeat's refusal may come after the appends that made it untrue: a new follower
            // is then probed again. That no log ever shrinks is for its owner's watermark to tell.
            allow_log_reversion: Some(true),
            // Ends a livelock under a partial partition.
            quorum_loss_probe_interval: Some(2 * lease),
            removed_leader_step_down: StepDownPolicy::After(150),
            backoff: "50ms 100ms 200ms 400ms ...1000ms".to_owned(),
            ..Config::default()
        };
        config.validate().map(Arc::new)
    }
}

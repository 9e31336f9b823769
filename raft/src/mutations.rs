//! Switches that break Leadline on purpose, so that those who test it can prove that they would
//! notice: compiled in by the cargo feature `mutations` alone, and thrown by the environment
//! variable `LEADLINE_MUTATION` (names between commas) when the process starts.
//!
//! | name | what is dropped | who must notice |
//! |---|---|---|
//! | `no-fence` | apply takes batches of any incarnation, in any order | lost and doubled writes |
//! | `no-validate` | transactions over shards do not look again at what they only read | write skew (G2) |
//! | `no-fsync` | the log acknowledges without `fdatasync` | lost writes after a power cut |
//! | `no-lease-margin` | a leader without a quorum believes in itself and in its lease eight times as long as followers promised | stale reads with `--read-mode lease` |

/// A safety that can be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    NoFence,
    NoValidate,
    NoFsync,
    NoLeaseMargin,
}

impl Mutation {
    /// As it is called in `LEADLINE_MUTATION`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoFence => "no-fence",
            Self::NoValidate => "no-validate",
            Self::NoFsync => "no-fsync",
            Self::NoLeaseMargin => "no-lease-margin",
        }
    }
}

/// Every one of them.
pub const ALL: [Mutation; 4] = [
    Mutation::NoFence,
    Mutation::NoValidate,
    Mutation::NoFsync,
    Mutation::NoLeaseMargin,
];

#[cfg(feature = "mutations")]
mod switches {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::{ALL, Mutation};

    static THROWN: LazyLock<AtomicU8> = LazyLock::new(|| {
        let names = std::env::var("LEADLINE_MUTATION").unwrap_or_default();
        let mut thrown = 0;
        for name in names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match ALL.iter().find(|mutation| mutation.name() == name) {
                Some(&mutation) => thrown |= bit(mutation),
                None => tracing::error!(name, "LEADLINE_MUTATION names no mutation"),
            }
        }
        if thrown != 0 {
            tracing::warn!(names, "this process is broken on purpose");
        }
        AtomicU8::new(thrown)
    });

    fn bit(mutation: Mutation) -> u8 {
        1 << mutation as u8
    }

    /// Whether `mutation` is in force in this process.
    #[must_use]
    pub fn active(mutation: Mutation) -> bool {
        THROWN.load(Ordering::Relaxed) & bit(mutation) != 0
    }

    /// Throws or takes back a switch of this process: for tests in it.
    pub fn set(mutation: Mutation, thrown: bool) {
        if thrown {
            THROWN.fetch_or(bit(mutation), Ordering::Relaxed);
        } else {
            THROWN.fetch_and(!bit(mutation), Ordering::Relaxed);
        }
    }
}

#[cfg(feature = "mutations")]
pub use switches::{active, set};

/// Never, in a program built without the feature `mutations`.
#[cfg(not(feature = "mutations"))]
#[must_use]
pub const fn active(_mutation: Mutation) -> bool {
    false
}

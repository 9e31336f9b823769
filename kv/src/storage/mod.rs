//! Storage of the replicated state: one ordered map of rows per node, shared by all groups.
//!
//! ```text
//! GroupStorage    one group's rows: batches with its position, views, snapshots, flush
//!   Store         all groups of a node: row cache, watermark, installs, the engine's directory
//!     Storage     an engine: fjall (default), sled, or memory for tests
//! ```
//!
//! Row keys are those of [`crate::keyspace`], whose first byte is 0x01 or above. Below them, under
//! 0x00 and the group's number, lie a group's private rows: its position, and whatever the state
//! machine keeps beside the data (see [`GroupStorage::private_key`]).
//!
//! # Invariants
//! 1. A group's position is written in the same atomic batch as the effects it stands for.
//! 2. After a crash an engine holds a prefix of what was applied, and all that was flushed; what
//!    it holds is compared with our own record (`watermark`) at open. A gap is a refusal to start,
//!    or, for sled, a rebuild from snapshot files of our own.
//! 3. The row cache never holds what the engine does not, once the apply that changed it returned.
//! 4. A snapshot is installed wholly or not at all, also over a crash.
//!
//! Everything here blocks on the disk: call it from threads made for that.

mod batch;
mod cache;
#[cfg(test)]
mod conformance;
mod files;
mod fjall;
mod identity;
mod journal_check;
mod memory;
mod row;
mod sled;
mod snapshot;
mod store;
mod view;
mod watermark;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use leadline_raft::GroupId;

pub use self::batch::{Batch, Effect};
pub use self::cache::{CacheStats, RowCache};
pub use self::fjall::{FjallOptions, FjallStorage};
pub use self::identity::{DirLock, Identity, IdentityError};
pub use self::memory::MemoryStorage;
pub use self::row::{Row, RowFormatError};
pub use self::sled::{SledOptions, SledStorage};
pub use self::snapshot::{Export, Install};
pub use self::store::{GroupStorage, GroupView, Opened, Position, Store, StoreOptions};

use crate::ScanOrder;

/// The engine that keeps the rows. A data directory remembers its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// A log-structured merge tree in pure Rust: the default.
    #[default]
    Fjall,
    /// sled 0.34.
    Sled,
    /// A map in memory that forgets at exit: for tests.
    Memory,
}

impl EngineKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fjall => "fjall",
            Self::Sled => "sled",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "fjall" => Ok(Self::Fjall),
            "sled" => Ok(Self::Sled),
            "memory" => Ok(Self::Memory),
            other => Err(format!("no storage engine {other:?}: fjall or sled")),
        }
    }
}

/// Reads of the engine as it is now, or of a view of it.
pub trait Reader: Send + Sync {
    /// The value of a row.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Calls `visit` with each row in `range` (start included, end excluded), in `order`, until it
    /// returns `false`. One scan sees one point in time, also while batches are applied. An empty
    /// or inverted range has no rows.
    fn scan(
        &self,
        range: Range<&[u8]>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StorageError>;
}

/// One row's new value, or its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// A storage engine: an ordered map of byte strings.
///
/// A key has 1 to 65 535 bytes, a value less than 4 GiB.
pub trait Storage: Reader {
    /// Applies `writes` as one: a view and a crash see all of them or none. No key is in `writes`
    /// twice. Returns without waiting for the disk, unless the engine cannot keep up.
    ///
    /// After an error the engine's state is not known; stop and open it again.
    fn apply(&self, writes: &[Write]) -> Result<(), StorageError>;

    /// The rows as of now, unchanged by what is applied later.
    fn view(&self) -> Result<Arc<dyn Reader>, StorageError>;

    /// Makes everything applied before the call durable: it survives a power cut.
    fn flush(&self) -> Result<(), StorageError>;

    /// About how many bytes the engine takes on disk.
    fn approximate_size(&self) -> u64;
}

/// Why storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused to read or write.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The engine failed for a reason that is not known to be damage.
    #[error("storage engine in {}: {what}", dir.display())]
    Engine { dir: PathBuf, what: String },
    /// Bytes on disk are not what was written.
    #[error(
        "{} is damaged ({what}); this node cannot start from it: restore the directory from a \
         backup, or remove this node from the cluster and add it again with an empty data directory",
        path.display()
    )]
    Damaged { path: PathBuf, what: String },
    /// The engine lost what it had reported durable.
    #[error(
        "{} lost data: group {group} is at {found}, and {recorded} had been made durable; restore \
         the directory from a backup, or remove this node from the cluster and add it again with \
         an empty data directory",
        dir.display()
    )]
    Gap {
        dir: PathBuf,
        group: GroupId,
        found: u64,
        recorded: u64,
    },
    /// A file was written by a newer version of this program.
    #[error(
        "{} has format {found}, and this program reads up to {supported}: start the version that \
         wrote it, or a newer one",
        path.display()
    )]
    Newer {
        path: PathBuf,
        found: u64,
        supported: u64,
    },
    /// The rows of the group are being replaced by a snapshot.
    #[error("group {0} is installing a snapshot")]
    Installing(GroupId),
    /// A snapshot stream is not well-formed.
    #[error("malformed snapshot: {0}")]
    BadSnapshot(String),
    /// A view was open for so long that keeping what it sees cost too much memory.
    #[error("the view is too old: more was overwritten than is kept for it")]
    ViewExpired,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StorageError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// Whether bytes on disk were found not to be what was written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Gap { .. })
    }
}

impl From<StorageError> for leadline_raft::engine::StateError {
    fn from(error: StorageError) -> Self {
        Self {
            what: error.to_string(),
            source: Some(Box::new(error)),
        }
    }
}

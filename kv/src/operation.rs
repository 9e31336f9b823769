//! What an adapter hands to the data plane, and what it sees of the rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use leadline_raft::Context;

/// A hybrid logical timestamp: 48 bits of Unix milliseconds above a 16-bit counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The first timestamp of a millisecond.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << 16)
    }
}

/// The adapter that made an operation, and so knows how to decode it on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Door {
    Meta = 0x01,
    /// Steps of transactions over several shards.
    Transaction = 0x02,
    Redis = 0x10,
    S3 = 0x20,
}

/// Whether an operation may change rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing. (It may still find an expired key, whose deletion is then replicated.)
    Read,
    /// May change rows, and may also find that there is nothing to change.
    Write,
}

/// Where an operation belongs.
#[derive(Clone, Copy, Debug)]
pub enum Route<'a> {
    /// To the shard that owns these row keys (prefixes of the rows it touches). Never empty.
    Keys(&'a [Bytes]),
    /// To every shard that owns a part of this door's keyspace; see [`Operation::scatter`].
    EveryShard,
}

/// A request id: a session (one life of one coordinator) and a number rising within it. A shard
/// remembers recent ids with their replies, so that a command sent twice takes effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    pub session: u128,
    pub number: u64,
}

/// One command, ready to be evaluated by the executor of one shard, here or on another node.
///
/// The reply is bytes in the door's own form; errors that a command answers (wrong type, not an
/// integer) are replies too.
pub trait Operation: Send + Sync + fmt::Debug + 'static {
    /// A name for spans and metrics, such as `"GET"`.
    fn name(&self) -> &'static str;

    fn door(&self) -> Door;

    fn access(&self) -> Access;

    fn route(&self) -> Route<'_>;

    /// Bytes this operation holds in memory while it waits, for the memory budget. At least what
    /// [`Self::encode`] appends.
    fn size(&self) -> usize;

    /// Does the work: rows in, effects and a reply out. Runs on a thread that may block on storage,
    /// may be run again after an error (effects of the failed run are dropped), never waits.
    ///
    /// # Errors
    /// [`RowError`] from `rows`, passed on with `?`.
    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError>;

    /// Appends what [`OperationCodec::decode`] of the same door needs to build this operation again.
    fn encode(&self, out: &mut BytesMut);

    /// Runs code of the client (a script): it may touch keys that its route does not name, and may
    /// run long. When it finds a row of another shard ([`RowError::OtherShard`], passed on with
    /// `?`), it is run again as a transaction over all shards.
    fn open_ended(&self) -> bool {
        false
    }

    /// Whether the stamp of the row `key` is the version of something that is read. A row for which
    /// this says no is covered by one that the same evaluation reads too, and that every writer of
    /// it writes too: transactions over several shards compare the versions alone.
    fn is_version(&self, key: &[u8]) -> bool {
        let _ = key;
        true
    }

    /// Whether this may be answered beneath locks if it meets one after the other: for walks over
    /// everything, which promise less.
    fn may_overlook_locks(&self) -> bool {
        false
    }

    /// This operation as a step of a transaction. Not for adapters.
    #[doc(hidden)]
    fn transaction(&self) -> Option<&crate::TransactionOperation> {
        None
    }

    /// For [`Route::EveryShard`]: how each shard is asked for its part, at its own moment. `None`:
    /// this is one transaction over all of them, as everything is that names keys of several.
    fn scatter(self: Arc<Self>) -> Option<Scattered> {
        None
    }
}

/// An operation in parts, one for each shard; see [`Operation::scatter`].
pub struct Scattered {
    /// What every shard is sent.
    pub part: Arc<dyn Operation>,
    /// Puts the replies of the shards, in the order of their ranges, together into one.
    pub gather: Gather,
}

/// Makes one reply of those of several shards.
pub type Gather = Box<dyn FnOnce(Vec<Bytes>) -> Bytes + Send>;

/// Builds the operations of one door from what [`Operation::encode`] wrote, on a node that a
/// request was forwarded to.
pub trait OperationCodec: Send + Sync + 'static {
    /// # Errors
    /// A description of what is malformed; nothing was evaluated.
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String>;
}

/// Why rows could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The request's context ended during a long scan.
    #[error("the request ended during evaluation")]
    Ended,
    /// The read needs the executor: it met storage on a path that must not block, or has something
    /// to replicate (an expired key). The caller sends the operation to the executor instead.
    #[error("needs the executor")]
    NeedsExecutor,
    /// The storage engine failed.
    #[error("storage failed: {0}")]
    Storage(String),
    /// The row belongs to another shard. Nothing is applied; the operation is run again over all
    /// shards if it is [`Operation::open_ended`], else refused.
    #[error("a row of another shard")]
    OtherShard,
    /// The row is locked by a transaction over several shards. The operation is evaluated again
    /// when that is decided.
    #[error("the row is locked")]
    Locked,
    /// The operation left its shard's range or would exceed the largest batch. Nothing is applied.
    #[error("{0}")]
    Refused(String),
}

/// The direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanOrder {
    Ascending,
    Descending,
}

/// A moment in one life of a shard's executor: what is absent then and at a later one of the same
/// life, and was not deleted between them, was absent throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Never given twice.
    pub(crate) life: u64,
    /// Rows and ranges that were deleted in this life so far.
    pub(crate) deletions: u64,
}

/// The rows of one shard as a command sees them: the applied state, the effects of the commands
/// before it, and its own. Row keys are whole keys of the keyspace.
///
/// A row's *value* here is the adapter's; its header (format version, `commit_ts`) is added and
/// removed below.
pub trait Rows {
    /// What the command runs under: long work looks at it as it goes, and ends with
    /// [`RowError::Ended`] when it has ended.
    fn context(&self) -> &Context;

    /// The stamp of this command: its time, and the version of all it writes.
    fn commit_ts(&self) -> Timestamp;

    /// A random number that is drawn once, at the leader.
    fn random(&mut self) -> u64;

    /// The value of a row.
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, RowError>;

    /// The value of a row and the stamp of the command that wrote it.
    fn get_versioned(&mut self, key: &[u8]) -> Result<Option<(Bytes, Timestamp)>, RowError>;

    /// Calls `visit` with each row in `range`, in `order`, until it returns `false`. Looks at the
    /// request's context as it goes.
    fn scan(
        &mut self,
        range: Range<Bytes>,
        order: ScanOrder,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<(), RowError>;

    /// Writes a row.
    fn put(&mut self, key: Bytes, value: Bytes);

    /// Deletes a row; an absent row is no error.
    fn delete(&mut self, key: Bytes);

    /// Deletes every row in `range`, as one effect.
    fn delete_range(&mut self, range: Range<Bytes>);

    /// Adds `delta` to the counter at `key` (u64, big endian; absent: 0). Two transactions that only
    /// add to a counter do not stand in each other's way.
    fn add(&mut self, key: Bytes, delta: i64) -> Result<(), RowError> {
        let now = self.get(&key)?;
        self.put(key, crate::counter_sum(now.as_ref(), delta)?);
        Ok(())
    }

    /// After this command is applied, wakes whoever watches `key` (a row key prefix that was given
    /// to [`crate::Coordinator::watch`]).
    fn wake(&mut self, key: Bytes);

    /// The row keys this shard owns; those of all shards in a transaction over several.
    fn owned(&self) -> Range<Bytes>;

    /// The row keys that the shard of `key` owns.
    fn shard_of(&self, key: &[u8]) -> Range<Bytes> {
        let _ = key;
        self.owned()
    }

    /// What each shard owns that these rows span.
    fn shards(&self) -> Vec<Range<Bytes>> {
        vec![self.owned()]
    }

    /// Now, for a step of a transaction that tells of absent rows. Only an executor knows.
    fn moment(&self) -> Result<Moment, RowError> {
        Err(RowError::NeedsExecutor)
    }
}

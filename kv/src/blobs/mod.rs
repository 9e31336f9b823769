//! Blobs: the bytes of large objects, which neither travel a Raft log nor sit whole in memory.
//!
//! A body is cut into chunks of at most [`CHUNK_BYTES`], named by what they hold ([`ChunkRef`]). A
//! row, the *manifest*, names the chunks in order and travels the log of its shard. Chunks lie on
//! the disks of the nodes that replicate the manifest's shard: so every call here takes `near`, the
//! manifest's row key. `docs/blobs.md` has the formats, the protocol and the reasons.
//!
//! A write is: [`Blobs::try_reserve`], then [`Blobs::put`] for each chunk, then
//! [`Blobs::adopt`] for chunks that are not fresh (below), then the manifest, proposed as any row.
//! Until the manifest is applied nobody sees the chunks, so *every* error here means that nothing
//! was applied; chunks that no manifest names are collected later.
//!
//! # Invariants
//! 1. A chunk whose `put` returned is whole and on the disks (fsynced) of a majority of the shard's
//!    voters, whatever is killed after.
//! 2. A chunk is kept for [`GRACE`] after it was last put, adopted, or seen named by a row, on each
//!    node by that node's own count of good time. Hence the caller's part of the bargain: **a
//!    manifest is proposed within [`FRESH`] of the `put` or `adopt` of each chunk it names**, and
//!    [`Upload`] keeps that count.
//! 3. What is read is what was put: a chunk is checked on its way from the disk and from a peer, and
//!    a damaged copy is fetched again.

mod chunk;
mod disk;
mod error;
mod fetch;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod metrics;
mod peers;
mod permits;
mod promotion;
mod references;
mod replicated;
mod service;
#[cfg(test)]
mod tests;
mod upkeep;
mod upload;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use leadline_raft::Context;

pub use chunk::{ChunkHash, ChunkRef};
pub(crate) use disk::ChunkStore;
pub use disk::chunk_buffer;
pub use error::{BlobError, Busy};
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryBlobs;
pub(crate) use metrics::BlobMetrics;
pub(crate) use peers::{BlobPeers, GrpcPeers, Placement, Replicas};
pub use permits::BytePermit;
pub use references::ChunkReferences;
pub(crate) use replicated::{Bounds, ReplicatedBlobs};
pub(crate) use service::BlobService;
pub(crate) use upkeep::{Manifests, Upkeep};
pub use upload::Upload;

/// The most bytes of a chunk. Bodies are best cut into chunks of just this size.
pub const CHUNK_BYTES: usize = 1 << 20;

/// How long an unreferenced chunk is kept, at least.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// How long after its `put` or `adopt` a chunk may be named by a new manifest.
pub const FRESH: Duration = Duration::from_secs(15 * 60);

/// Chunks on the disks of the nodes that replicate a shard.
///
/// `near` is always a row key: the manifest's, or any other of its shard.
pub trait Blobs: Send + Sync + 'static {
    /// Stores `chunk` on the replicas of the shard of `near`, and returns when a majority of its
    /// voters has it on disk; the others go on by themselves for a while, and what they miss is
    /// repaired. Idempotent. A chunk that is there already is not sent or written again.
    ///
    /// `held` is what the caller reserved for it: this node's disk work keeps a share of it until
    /// it has ended, also when the caller leaves. Cancel safe: a dropped call leaves at most a chunk
    /// that nobody names.
    ///
    /// # Errors
    /// Nothing was applied, and it is safe to put again: `NotApplied` at the end of `ctx`,
    /// `NoMajority`, `Overloaded`, `TooLarge` (above [`CHUNK_BYTES`], or empty), `Disk`, `Stopping`.
    fn put<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        chunk: Bytes,
        held: &'a BytePermit,
    ) -> BoxFuture<'a, Result<ChunkRef, BlobError>>;

    /// Reads a chunk: from this node's disk, else from a replica of the shard of `near`. All who
    /// want the same missing chunk share one fetch, and one of them leaving does not end it. Local
    /// reads and fetches draw on separate pools. Cancel safe.
    ///
    /// # Errors
    /// `Missing`: every replica answered that it does not have it. `Unreachable`: some did not
    /// answer; `NotApplied` at the end of `ctx`, `Overloaded`, `Disk`, `Stopping`.
    fn get<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        chunk: ChunkRef,
    ) -> BoxFuture<'a, Result<Bytes, BlobError>>;

    /// Makes `chunks`, named by a row at `source` until now, as good as just put at `near`: on a
    /// majority of the disks there, and fresh. Copies between nodes what they lack (nothing, where
    /// both rows are in one shard and all is well). For server-side copies, for completing a
    /// multipart upload, and for an upload that took longer than [`FRESH`] (then `source` is `near`).
    ///
    /// # Errors
    /// As `put` and `get`. `Missing` when a chunk is gone: its row was deleted long ago.
    fn adopt<'a>(
        &'a self,
        ctx: &'a Context,
        near: &'a [u8],
        source: &'a [u8],
        chunks: &'a [ChunkRef],
    ) -> BoxFuture<'a, Result<(), BlobError>>;

    /// Whether this node has the chunk on its disk: a hint, for choosing between a cheap path and an
    /// expensive one. Never waits.
    fn is_local(&self, chunk: ChunkRef) -> bool;

    /// Takes `bytes` from the node's budget for bodies on their way to disk, *before* a body is
    /// read. Never waits.
    ///
    /// # Errors
    /// [`Busy`] when the budget is spent: refuse the request, retryably.
    fn try_reserve(&self, bytes: usize) -> Result<BytePermit, Busy>;
}

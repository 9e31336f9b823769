//! One body on its way: its chunks in order, and how fresh they are.

use std::time::Duration;

use bytes::Bytes;
use leadline_raft::Context;
use tokio::time::Instant;

use super::{BlobError, Blobs, BytePermit, ChunkRef, FRESH};

/// Chunks put for one manifest, in order. [`Upload::settle`] comes right before the manifest is
/// proposed, and the proposal gets the time that it returns.
#[derive(Debug, Default)]
pub struct Upload {
    chunks: Vec<ChunkRef>,
    /// Before the oldest of them was put or adopted.
    since: Option<Instant>,
}

impl Upload {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the next chunk.
    ///
    /// # Errors
    /// As [`Blobs::put`]; the upload is as it was.
    pub async fn put(
        &mut self,
        ctx: &Context,
        blobs: &dyn Blobs,
        near: &[u8],
        chunk: Bytes,
        held: &BytePermit,
    ) -> Result<ChunkRef, BlobError> {
        let began = Instant::now();
        let chunk = blobs.put(ctx, near, chunk, held).await?;
        self.note(began, chunk);
        Ok(chunk)
    }

    /// Notes the next chunk, whose `put` was called at `began`: for callers that put several at a
    /// time and note them in order.
    pub fn note(&mut self, began: Instant, chunk: ChunkRef) {
        self.since = Some(self.since.map_or(began, |since| since.min(began)));
        self.chunks.push(chunk);
    }

    #[must_use]
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Makes every chunk fresh again if some are not, and says how long the manifest's proposal may
    /// take to be evaluated: propose under `ctx.child(..)` of it.
    ///
    /// # Errors
    /// As [`Blobs::adopt`].
    pub async fn settle(
        &mut self,
        ctx: &Context,
        blobs: &dyn Blobs,
        near: &[u8],
    ) -> Result<Duration, BlobError> {
        let Some(since) = self.since else {
            return Ok(FRESH);
        };
        // Half of the time is left for the proposal, which never needs it.
        if since.elapsed() > FRESH / 2 {
            let began = Instant::now();
            blobs.adopt(ctx, near, near, &self.chunks).await?;
            self.since = Some(began);
        }
        Ok(FRESH.saturating_sub(self.since.map_or(Duration::ZERO, |since| since.elapsed())))
    }
}

//! Chunks in a map: for adapters' tests.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use leadline_raft::Context;
use parking_lot::Mutex;

use super::permits::Budget;
use super::{BlobError, Blobs, Busy, BytePermit, CHUNK_BYTES, ChunkHash, ChunkRef};

/// Chunks in memory, under a budget, with failures that a test arranges.
#[derive(Debug)]
pub struct MemoryBlobs {
    chunks: Mutex<HashMap<ChunkHash, Bytes>>,
    failures: Mutex<Vec<BlobError>>,
    budget: Arc<Budget>,
}

impl MemoryBlobs {
    /// Bodies under way may hold `budget` bytes.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self {
            chunks: Mutex::default(),
            failures: Mutex::default(),
            budget: Budget::new(budget),
        }
    }

    /// The next call that stores or reads fails with `error`.
    pub fn fail_next(&self, error: BlobError) {
        self.failures.lock().insert(0, error);
    }

    /// Loses a chunk.
    pub fn forget(&self, chunk: ChunkRef) {
        self.chunks.lock().remove(&chunk.hash);
    }

    /// How many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.lock().is_empty()
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.budget.held()
    }

    fn admit(&self, ctx: &Context) -> Result<(), BlobError> {
        if let Some(ended) = ctx.ended() {
            return Err(BlobError::NotApplied(ended));
        }
        self.failures.lock().pop().map_or(Ok(()), Err)
    }

    fn find(&self, chunk: ChunkRef) -> Result<Bytes, BlobError> {
        let chunks = self.chunks.lock();
        let found = chunks.get(&chunk.hash).cloned();
        found.ok_or(BlobError::Missing(chunk))
    }
}

impl Blobs for MemoryBlobs {
    fn put<'a>(
        &'a self,
        ctx: &'a Context,
        _near: &'a [u8],
        chunk: Bytes,
        _held: &'a BytePermit,
    ) -> BoxFuture<'a, Result<ChunkRef, BlobError>> {
        async move {
            self.admit(ctx)?;
            if chunk.is_empty() || chunk.len() > CHUNK_BYTES {
                return Err(BlobError::TooLarge(chunk.len()));
            }
            let name = ChunkRef::of(&chunk);
            self.chunks.lock().insert(name.hash, chunk);
            Ok(name)
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        ctx: &'a Context,
        _near: &'a [u8],
        chunk: ChunkRef,
    ) -> BoxFuture<'a, Result<Bytes, BlobError>> {
        async move {
            self.admit(ctx)?;
            self.find(chunk)
        }
        .boxed()
    }

    fn adopt<'a>(
        &'a self,
        ctx: &'a Context,
        _near: &'a [u8],
        _source: &'a [u8],
        chunks: &'a [ChunkRef],
    ) -> BoxFuture<'a, Result<(), BlobError>> {
        async move {
            self.admit(ctx)?;
            chunks
                .iter()
                .try_for_each(|&chunk| self.find(chunk).map(drop))
        }
        .boxed()
    }

    fn is_local(&self, chunk: ChunkRef) -> bool {
        self.chunks.lock().contains_key(&chunk.hash)
    }

    fn try_reserve(&self, bytes: usize) -> Result<BytePermit, Busy> {
        self.budget.try_reserve(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::blobs::{FRESH, Upload};

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_took_long_makes_its_chunks_fresh_before_the_manifest() {
        let blobs = MemoryBlobs::new(1 << 20);
        let ctx = Context::with_timeout(Duration::from_secs(24 * 3600));
        let held = blobs.try_reserve(10).unwrap();
        let mut upload = Upload::new();
        let near = b"manifest";
        let body = Bytes::from_static(b"chunk");
        let chunk = upload.put(&ctx, &blobs, near, body, &held).await.unwrap();
        assert!(upload.settle(&ctx, &blobs, near).await.unwrap() >= FRESH / 2);

        tokio::time::advance(FRESH).await;
        assert_eq!(upload.settle(&ctx, &blobs, near).await.unwrap(), FRESH);

        tokio::time::advance(FRESH).await;
        blobs.forget(chunk);
        assert_eq!(
            upload.settle(&ctx, &blobs, near).await,
            Err(BlobError::Missing(chunk))
        );
    }
}

//! Bodies on their way in and out.
//!
//! In: permits first, then chunks of [`CHUNK_BYTES`]; while one is received, the one before is hashed
//! on other threads and pushed to the replicas. Out: piece by piece, the next fetched while one
//! is sent.
//!
//! # Invariants
//! 1. A body in flight holds at most [`WINDOW`] bytes, reserved before its first byte is read.
//! 2. Hashing is in the order of the bytes; pushing is not, and the manifest names chunks in order.
//! 3. A step that makes no progress for the fallback deadline ends the body; a deadline that the
//!    caller gave ends it in any case.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{Stream, StreamExt, TryStreamExt};
use leadline_kv::blobs::{
    BlobError, Blobs, BytePermit, CHUNK_BYTES, ChunkRef, Upload, chunk_buffer,
};
use leadline_raft::{Context, DeadlineSource};
use s3s::dto::StreamingBlob;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Error, S3ErrorCode, S3Result, StdError, s3_error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error;
use crate::hashes::{Hashed, Hashes, Hashing, Lanes};
use crate::metrics::S3Metrics;
use crate::rows::{PartRow, Piece};

/// A body up to this many bytes lies in a row.
pub(crate) const INLINE: usize = 16 << 10;

/// Chunks that are pushed at a time.
const PUSHED_AT_ONCE: usize = 3;

/// Bytes that a body in flight may hold: one chunk that is received, those that are pushed.
const WINDOW: usize = (PUSHED_AT_ONCE + 1) * CHUNK_BYTES;

/// Pieces of one part row of an object that was put in one piece.
const PIECES_IN_A_ROW: usize = 64;

/// Bytes that a body on its way out may hold.
const READ_WINDOW: usize = 2 * CHUNK_BYTES;

/// What may be held of bodies on their way out, in KiB.
pub(crate) struct ReadBudget {
    permits: Arc<Semaphore>,
}

impl ReadBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let kib = (bytes >> 10).clamp(READ_WINDOW >> 10, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(kib)),
        }
    }

    fn try_take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let held = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(READ_WINDOW);
        let kib = u32::try_from(held.div_ceil(1024)).unwrap_or(u32::MAX);
        Arc::clone(&self.permits).try_acquire_many_owned(kib).ok()
    }
}

/// The time that a request has: its own deadline, or none but that each step makes progress.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    ctx: Context,
    step: Duration,
}

impl Pace {
    pub(crate) fn new(ctx: Context, step: Duration) -> Self {
        Self { ctx, step }
    }

    /// A context for the next step.
    pub(crate) fn step(&self) -> Context {
        self.ctx
            .sharing(Instant::now() + self.step, DeadlineSource::Fallback)
    }
}

/// A body that is on the replicas, or small enough for a row.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) parts: Vec<PartRow>,
    pub(crate) size: u64,
    pub(crate) hashed: Hashed,
    /// How long the manifest's proposal may take.
    pub(crate) fresh: Duration,
    /// Back with the manifest's answer.
    pub(crate) _held: BytePermit,
}

/// Takes bodies in.
pub(crate) struct Receiver<'a> {
    pub(crate) blobs: &'a dyn Blobs,
    pub(crate) metrics: &'a S3Metrics,
    pub(crate) pace: &'a Pace,
    /// A row key of the bucket.
    pub(crate) near: Bytes,
    pub(crate) lanes: &'a Lanes,
}

/// A chunk on the replicas, and when its push began.
type Pushed = Result<(Instant, ChunkRef), BlobError>;

impl Receiver<'_> {
    /// Reserves the memory for a body of `length` bytes (if known): before it is read.
    pub(crate) fn reserve(&self, length: Option<u64>) -> S3Result<BytePermit> {
        let window = length
            .and_then(|length| usize::try_from(length).ok())
            .map_or(WINDOW, |length| length.clamp(1, WINDOW));
        self.blobs.try_reserve(window).map_err(|busy| {
            self.metrics.refused_bodies.inc();
            error::slow_down(&busy.to_string(), busy.retry_after_ms)
        })
    }

    /// Reads `body` to its end.
    pub(crate) async fn receive(
        &self,
        body: Option<StreamingBlob>,
        length: Option<u64>,
        hashes: Hashes,
        held: BytePermit,
    ) -> S3Result<Received> {
        let mut buffer = BytesMut::new();
        // Of the frame received last, what did not fit into the chunk.
        let mut left = Bytes::new();
        let mut size = 0_u64;
        let mut upload = Upload::new();
        let mut pushes = FuturesOrdered::new();
        let Some(mut body) = body else {
            return Ok(inline(Bytes::new(), 0, hashes, held));
        };
        let _under_way = self.lanes.body();
        let mut hashing = Hashing::of(hashes);
        loop {
            // The next chunk, while those before are pushed.
            while buffer.len() < CHUNK_BYTES {
                if !left.is_empty() {
                    let before = size - left.len() as u64;
                    let rest = length.map(|length| length.saturating_sub(before));
                    fill(&mut buffer, &mut left, rest);
                    continue;
                }
                let step = self.pace.step();
                let frame = tokio::select! {
                    biased;
                    Some(pushed) = pushes.next(), if !pushes.is_empty() => {
                        note(&mut upload, pushed)?;
                        continue;
                    }
                    frame = step.run(body.next()) => frame.map_err(error::of_ended)?,
                };
                match frame {
                    Some(Ok(bytes)) => {
                        size += bytes.len() as u64;
                        self.metrics.received.inc_by(bytes.len() as u64);
                        if length.is_some_and(|length| size > length) {
                            return Err(s3_error!(
                                IncompleteBody,
                                "the body is longer than it said"
                            ));
                        }
                        left = bytes;
                    }
                    Some(Err(source)) => return Err(broken(source)),
                    None => {
                        if length.is_some_and(|length| size != length) {
                            return Err(s3_error!(IncompleteBody));
                        }
                        if upload.chunks().is_empty() && pushes.is_empty() && buffer.len() <= INLINE
                        {
                            let hashes = hashing.finish(&self.pace.step()).await?;
                            return Ok(inline(buffer.freeze(), size, hashes, held));
                        }
                        if !buffer.is_empty() {
                            let chunk = buffer.freeze();
                            pushes.push_back(self.push(chunk.clone(), held.clone()));
                            hashing = self.hash(hashing, chunk, &mut pushes, &mut upload).await?;
                        }
                        while let Some(pushed) = pushes.next().await {
                            note(&mut upload, pushed)?;
                        }
                        let hashes = hashing.finish(&self.pace.step()).await?;
                        let fresh = upload
                            .settle(&self.pace.step(), self.blobs, &self.near)
                            .await
                            .map_err(error::of_blob)?;
                        return Ok(Received {
                            parts: part_rows(upload.chunks()),
                            size,
                            hashed: hashes.finish(),
                            fresh,
                            _held: held,
                        });
                    }
                }
            }
            let chunk = std::mem::take(&mut buffer).freeze();
            while pushes.len() >= PUSHED_AT_ONCE {
                if let Some(pushed) = pushes.next().await {
                    note(&mut upload, pushed)?;
                }
            }
            pushes.push_back(self.push(chunk.clone(), held.clone()));
            hashing = self.hash(hashing, chunk, &mut pushes, &mut upload).await?;
        }
    }

    /// Begins to hash `chunk` when the one before is hashed; meanwhile pushes go on.
    async fn hash(
        &self,
        before: Hashing,
        chunk: Bytes,
        pushes: &mut FuturesOrdered<impl Future<Output = Pushed>>,
        upload: &mut Upload,
    ) -> S3Result<Hashing> {
        let step = self.pace.step();
        let hashes = beside(pushes, upload, before.finish(&step)).await?;
        Ok(hashes.start(self.lanes, chunk))
    }

    async fn push(&self, chunk: Bytes, held: BytePermit) -> Pushed {
        let began = Instant::now();
        let ctx = self.pace.step();
        let chunk = self.blobs.put(&ctx, &self.near, chunk, &held).await?;
        Ok((began, chunk))
    }
}

/// Does `work` while pushes go on.
async fn beside<T>(
    pushes: &mut FuturesOrdered<impl Future<Output = Pushed>>,
    upload: &mut Upload,
    work: impl Future<Output = S3Result<T>>,
) -> S3Result<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            Some(pushed) = pushes.next(), if !pushes.is_empty() => note(upload, pushed)?,
        }
    }
}

/// Moves what fits of `frame` into the chunk in `chunk`, of which, with the frame, `rest` bytes are to
/// come, if that is known. What may be no chunk but a row takes no more memory than it needs.
fn fill(chunk: &mut BytesMut, frame: &mut Bytes, rest: Option<u64>) {
    let taken = frame.len().min(CHUNK_BYTES - chunk.len());
    let full = chunk.len() + taken;
    let wanted = match rest {
        Some(rest) => usize::try_from(rest).map_or(CHUNK_BYTES, |rest| {
            chunk.len().saturating_add(rest).min(CHUNK_BYTES)
        }),
        None if full > INLINE => CHUNK_BYTES,
        None => full,
    };
    if wanted > INLINE && wanted > chunk.capacity() {
        let mut placed = chunk_buffer(wanted);
        placed.extend_from_slice(chunk);
        *chunk = placed;
    }
    chunk.extend_from_slice(&frame[..taken]);
    frame.advance(taken);
    if frame.is_empty() {
        // An empty view would keep what the frame was read into for as long as the sender is silent.
        *frame = Bytes::new();
    }
}

fn note(upload: &mut Upload, pushed: Pushed) -> S3Result<()> {
    let (began, chunk) = pushed.map_err(error::of_blob)?;
    upload.note(began, chunk);
    Ok(())
}

fn inline(bytes: Bytes, size: u64, mut hashes: Hashes, held: BytePermit) -> Received {
    hashes.update(&bytes);
    let parts = if bytes.is_empty() {
        Vec::new()
    } else {
        vec![PartRow {
            size,
            inline: bytes,
            ..PartRow::default()
        }]
    };
    Received {
        parts,
        size,
        hashed: hashes.finish(),
        fresh: leadline_kv::blobs::FRESH,
        _held: held,
    }
}

/// A body that broke off, or was not what its signature or framing says.
fn broken(source: StdError) -> S3Error {
    let text = source.to_string();
    if text.contains("Sha256Mismatch") {
        return error::payload_mismatch();
    }
    let code = if text.contains("SignatureMismatch") {
        S3ErrorCode::SignatureDoesNotMatch
    } else {
        S3ErrorCode::IncompleteBody
    };
    let mut error = S3Error::with_message(code, text);
    error.set_source(source);
    error
}

/// Rows for the chunks of a body put in one piece.
pub(crate) fn part_rows(chunks: &[ChunkRef]) -> Vec<PartRow> {
    let pieces: Vec<_> = chunks.iter().map(|&chunk| Piece::whole(chunk)).collect();
    piece_rows(&pieces)
}

pub(crate) fn piece_rows(pieces: &[Piece]) -> Vec<PartRow> {
    pieces
        .chunks(PIECES_IN_A_ROW)
        .map(|pieces| PartRow {
            size: pieces.iter().map(|piece| u64::from(piece.len)).sum(),
            pieces: Piece::encode_all(pieces),
            ..PartRow::default()
        })
        .collect()
}

/// Bytes that a download will send.
#[derive(Clone, Debug)]
pub(crate) enum Segment {
    Inline(Bytes),
    Chunk(Piece),
}

impl Segment {
    /// What `range` of a part's bytes is.
    pub(crate) fn of_part(
        part: &PartRow,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<Self>, String> {
        if part.pieces.is_empty() {
            let narrow = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let range = narrow(range.start)..narrow(range.end);
            if range.end > part.inline.len() || range.start > range.end {
                return Err("a part is shorter than it says".to_owned());
            }
            return Ok(vec![Self::Inline(part.inline.slice(range))]);
        }
        let pieces = Piece::decode_all(&part.pieces)?;
        Ok(Piece::cut(&pieces, range)
            .into_iter()
            .map(Self::Chunk)
            .collect())
    }
}

/// A body on its way out.
pub(crate) struct Download {
    stream: BoxStream<'static, Result<Bytes, StdError>>,
    remaining: usize,
    /// A body that is not read to its end has an end nonetheless: with its connection.
    _held: Option<OwnedSemaphorePermit>,
    metrics: S3Metrics,
}

impl Download {
    /// Sends what `segments` gives, `length` bytes.
    pub(crate) fn start(
        blobs: Arc<dyn Blobs>,
        budget: &ReadBudget,
        metrics: &S3Metrics,
        pace: Pace,
        near: Bytes,
        length: u64,
        segments: impl Stream<Item = Result<Segment, StdError>> + Send + 'static,
    ) -> S3Result<StreamingBlob> {
        let held = if length > INLINE as u64 {
            let held = budget.try_take(length).ok_or_else(|| {
                metrics.refused_bodies.inc();
                error::slow_down("the memory for bodies on their way out is spent", 250)
            })?;
            Some(held)
        } else {
            None
        };
        let stream = segments
            .map_ok(move |segment| {
                let (blobs, near, pace) = (Arc::clone(&blobs), near.clone(), pace.clone());
                async move {
                    match segment {
                        Segment::Inline(bytes) => Ok(bytes),
                        Segment::Chunk(piece) => fetch(&*blobs, &pace, &near, piece).await,
                    }
                }
            })
            .try_buffered(READ_WINDOW / CHUNK_BYTES)
            .boxed();
        Ok(StreamingBlob::new(Unshared::new(Self {
            stream,
            remaining: usize::try_from(length).unwrap_or(usize::MAX),
            _held: held,
            metrics: metrics.clone(),
        })))
    }
}

async fn fetch(
    blobs: &dyn Blobs,
    pace: &Pace,
    near: &[u8],
    piece: Piece,
) -> Result<Bytes, StdError> {
    let chunk = blobs.get(&pace.step(), near, piece.chunk).await?;
    let (offset, len) = (piece.offset as usize, piece.len as usize);
    if chunk.len() < offset + len {
        return Err("a chunk is shorter than it says".into());
    }
    Ok(chunk.slice(offset..offset + len))
}

impl Stream for Download {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.poll_next_unpin(task);
        match &next {
            Poll::Ready(Some(Ok(bytes))) => {
                self.remaining = self.remaining.saturating_sub(bytes.len());
                self.metrics.sent.inc_by(bytes.len() as u64);
            }
            Poll::Ready(Some(Err(error))) => {
                // The head is out: all that can be said is the end of the connection.
                tracing::warn!(%error, "a body broke off on its way to the client");
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        next
    }
}

/// Makes a stream shareable between threads by never sharing it: whoever polls it has it alone.
struct Unshared(parking_lot::Mutex<Download>);

impl Unshared {
    fn new(stream: Download) -> Self {
        Self(parking_lot::Mutex::new(stream))
    }
}

impl Stream for Unshared {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.0.get_mut().poll_next_unpin(task)
    }
}

impl ByteStream for Unshared {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(self.0.lock().remaining)
    }
}

#[cfg(test)]
mod tests {
    use leadline_kv::blobs::{BlobError, MemoryBlobs};
    use leadline_raft::Ended;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::rows::Algorithm;

    struct World {
        blobs: Arc<MemoryBlobs>,
        metrics: S3Metrics,
        pace: Pace,
        lanes: Lanes,
    }

    impl World {
        fn new(budget: usize) -> Self {
            Self {
                blobs: Arc::new(MemoryBlobs::new(budget)),
                metrics: S3Metrics::register(&mut Registry::default()),
                lanes: Lanes::new(),
                pace: Pace::new(
                    Context::with_timeout(Duration::from_secs(3600)),
                    Duration::from_secs(5),
                ),
            }
        }

        fn receiver(&self) -> Receiver<'_> {
            Receiver {
                blobs: &*self.blobs,
                metrics: &self.metrics,
                pace: &self.pace,
                near: Bytes::from_static(b"near"),
                lanes: &self.lanes,
            }
        }

        async fn take(&self, frames: Vec<Bytes>, length: Option<u64>) -> S3Result<Received> {
            let receiver = self.receiver();
            let held = receiver.reserve(length)?;
            let frames = futures::stream::iter(frames.into_iter().map(Ok::<_, std::io::Error>));
            let body = Some(StreamingBlob::wrap(frames));
            let hashes = Hashes::new(Algorithm::Crc32, false);
            receiver.receive(body, length, hashes, held).await
        }

        async fn read(&self, parts: &[PartRow], range: std::ops::Range<u64>) -> Vec<u8> {
            let mut at = 0;
            let mut segments = Vec::new();
            for part in parts {
                let (start, end) = (at, at + part.size);
                at = end;
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    segments.extend(Segment::of_part(part, from - start..to - start).unwrap());
                }
            }
            let download = Download::start(
                Arc::clone(&self.blobs) as _,
                &ReadBudget::new(8 << 20),
                &self.metrics,
                self.pace.clone(),
                Bytes::from_static(b"near"),
                range.end - range.start,
                futures::stream::iter(segments.into_iter().map(Ok)),
            );
            let chunks: Vec<Bytes> = download.unwrap().try_collect().await.unwrap();
            chunks.concat()
        }
    }

    fn bytes(length: usize) -> Bytes {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn frames(whole: &Bytes, size: usize) -> Vec<Bytes> {
        (0..whole.len())
            .step_by(size)
            .map(|at| whole.slice(at..(at + size).min(whole.len())))
            .collect()
    }

    #[tokio::test]
    async fn a_body_is_cut_into_chunks_hashed_in_order_and_read_back_by_any_range() {
        let world = World::new(64 << 20);
        let whole = bytes(5 * CHUNK_BYTES + 1234);
        let received = world
            .take(frames(&whole, 70_001), Some(whole.len() as u64))
            .await
            .unwrap();
        let mut expected = Hashes::new(Algorithm::Crc32, false);
        expected.update(&whole);
        assert_eq!(received.hashed, expected.finish());
        assert_eq!(world.blobs.len(), 6);
        for range in [0..whole.len(), 7..9, CHUNK_BYTES - 3..2 * CHUNK_BYTES + 3] {
            let wide = range.start as u64..range.end as u64;
            assert_eq!(world.read(&received.parts, wide).await, whole[range]);
        }
        drop(received);
        assert_eq!(world.blobs.reserved(), 0, "the permit came back");
    }

    /// A disk takes chunks from where they were received: whatever the frames, and whether the length
    /// was known.
    #[tokio::test]
    async fn chunks_lie_where_the_disk_wants_them() {
        let page = |bytes: &[u8]| bytes.as_ptr().addr() % 4096;
        let wanted = page(&chunk_buffer(1));
        let world = World::new(64 << 20);
        let whole = bytes(2 * CHUNK_BYTES + INLINE + 1);
        for length in [Some(whole.len() as u64), None] {
            for size in [999, 70_001, CHUNK_BYTES + 5, whole.len()] {
                let received = world.take(frames(&whole, size), length).await.unwrap();
                let pieces = received.parts.iter();
                let pieces: Vec<_> = pieces
                    .flat_map(|part| Piece::decode_all(&part.pieces).unwrap())
                    .collect();
                assert_eq!(pieces.len(), 3);
                for piece in pieces {
                    let ctx = world.pace.step();
                    let chunk = world.blobs.get(&ctx, b"near", piece.chunk).await;
                    assert_eq!(page(&chunk.unwrap()), wanted, "{size} {length:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_small_body_goes_into_its_row_and_an_empty_one_nowhere() {
        let world = World::new(64 << 20);
        let whole = bytes(INLINE);
        let received = world.take(frames(&whole, 1000), None).await.unwrap();
        assert_eq!(received.parts[0].inline, whole);
        assert!(world.blobs.is_empty());
        let empty = world.take(Vec::new(), Some(0)).await.unwrap();
        assert!(empty.parts.is_empty() && empty.size == 0);
        let more = world.take(frames(&bytes(INLINE + 1), 999), None).await;
        assert!(!more.unwrap().parts[0].pieces.is_empty());
    }

    #[tokio::test]
    async fn without_memory_a_body_is_refused_before_it_is_read() {
        let world = World::new(CHUNK_BYTES);
        let Err(refused) = world.take(Vec::new(), Some(100 << 20)).await else {
            panic!("taken")
        };
        assert_eq!(refused.code(), &S3ErrorCode::SlowDown);
        let headers = refused.headers().unwrap();
        assert!(headers.contains_key(http::header::RETRY_AFTER));
        assert_eq!(world.blobs.reserved(), 0);
    }

    #[tokio::test]
    async fn a_body_of_another_length_than_it_said_is_not_taken() {
        let world = World::new(64 << 20);
        for said in [10, 30] {
            let taken = world.take(vec![bytes(20)], Some(said)).await;
            assert_eq!(taken.unwrap_err().code(), &S3ErrorCode::IncompleteBody);
        }
    }

    #[tokio::test]
    async fn a_chunk_that_no_majority_has_fails_the_body() {
        let world = World::new(64 << 20);
        world
            .blobs
            .fail_next(BlobError::NotApplied(Ended::Deadline));
        let whole = bytes(2 * CHUNK_BYTES);
        let taken = world.take(frames(&whole, 100_000), None).await;
        assert_eq!(taken.unwrap_err().code(), &S3ErrorCode::RequestTimeout);
        assert_eq!(world.blobs.reserved(), 0);
    }

    /// Promise 4: a sender that stops sending ends at the step's deadline, not never.
    #[tokio::test(start_paused = true)]
    async fn a_body_without_progress_ends_after_one_step() {
        let world = World::new(64 << 20);
        let receiver = world.receiver();
        let held = receiver.reserve(None).unwrap();
        let began = Instant::now();
        let first = futures::stream::iter([Ok::<_, std::io::Error>(bytes(100))]);
        let body = StreamingBlob::wrap(first.chain(futures::stream::pending()));
        let hashes = Hashes::new(Algorithm::None, false);
        let taken = receiver.receive(Some(body), None, hashes, held).await;
        assert_eq!(taken.unwrap_err().code(), &S3ErrorCode::RequestTimeout);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}

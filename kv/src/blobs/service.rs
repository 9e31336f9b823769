//! What peers ask of this node's chunks.

use std::sync::Arc;
use std::time::Duration;

use leadline_raft::{Context, GroupId, LogIndex, grpc};
use tonic::{Request, Response, Status};

use super::peers::MESSAGE_BYTES;
use super::replicated::{Inner, off_worker};
use super::{BlobError, ChunkRef, Upkeep};
use crate::wire;
use crate::wire::blobs_server::{Blobs, BlobsServer};

/// What is kept of a request's time for its answer.
const ANSWER: Duration = Duration::from_millis(200);

/// Serves peers.
#[derive(Clone)]
pub(crate) struct BlobService {
    inner: Arc<Inner>,
    upkeep: Upkeep,
}

impl BlobService {
    /// The gRPC service.
    pub(crate) fn server(upkeep: &Upkeep) -> BlobsServer<Self> {
        BlobsServer::new(Self {
            inner: Arc::clone(&upkeep.inner),
            upkeep: upkeep.clone(),
        })
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
    }

    fn admit(&self, cluster: u64) -> Result<(), Status> {
        if cluster == self.inner.cluster.0 {
            return Ok(());
        }
        Err(Status::failed_precondition(
            "this node is of another cluster",
        ))
    }
}

#[tonic::async_trait]
impl Blobs for BlobService {
    async fn store_chunk(
        &self,
        request: Request<wire::StoreChunkRequest>,
    ) -> Result<Response<wire::StoreChunkReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        self.admit(request.cluster)?;
        let chunk = name(request.chunk.as_ref())?;
        let stored = self.inner.store_for_peer(&ctx, chunk, request).await;
        let stored = stored.map_err(status)?;
        Ok(Response::new(wire::StoreChunkReply { stored }))
    }

    async fn fetch_chunk(
        &self,
        request: Request<wire::FetchChunkRequest>,
    ) -> Result<Response<wire::FetchChunkReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        self.admit(request.cluster)?;
        let chunk = name(request.chunk.as_ref())?;
        let data = self.inner.read_for_peer(&ctx, chunk).await;
        let data = data.map_err(status)?;
        Ok(Response::new(wire::FetchChunkReply { data }))
    }

    async fn hold_chunks(
        &self,
        request: Request<wire::HoldChunksRequest>,
    ) -> Result<Response<wire::HoldChunksReply>, Status> {
        let request = request.into_inner();
        self.admit(request.cluster)?;
        let chunks: Vec<ChunkRef> = request
            .chunks
            .iter()
            .map(|chunk| name(Some(chunk)))
            .collect::<Result<_, _>>()?;
        let missing = self.inner.hold_here(&chunks);
        Ok(Response::new(wire::HoldChunksReply {
            missing: missing.into_iter().map(|at| at as u32).collect(),
        }))
    }

    async fn lacking_chunks(
        &self,
        request: Request<wire::LackingChunksRequest>,
    ) -> Result<Response<wire::LackingChunksReply>, Status> {
        let ctx = grpc::context(&request);
        let request = request.into_inner();
        self.admit(request.cluster)?;
        // Ends before the asker does, so that it hears why.
        let asked = ctx.child(ctx.remaining().saturating_sub(ANSWER));
        let (group, applied) = (GroupId(request.group), LogIndex(request.applied));
        let lacking = self.upkeep.lacking(&asked, group, applied).await;
        let lacking = lacking.map_err(Status::unavailable)?;
        Ok(Response::new(wire::LackingChunksReply { lacking }))
    }
}

impl Inner {
    /// Says whether the chunk is on this disk, once it is if its data came along.
    pub(super) async fn store_for_peer(
        &self,
        ctx: &Context,
        chunk: ChunkRef,
        request: wire::StoreChunkRequest,
    ) -> Result<bool, BlobError> {
        let (crc, data) = (request.crc, request.data);
        if data.is_empty() {
            return self.still_here(ctx, chunk).await;
        }
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        // Refused rather than waited for: the sender holds it and can wait better.
        let Ok(_place) = Arc::clone(&self.inbound).try_acquire_many_owned(bytes) else {
            self.metrics.refused.inc();
            return Err(BlobError::Overloaded {
                what: "too many bytes from peers wait for the disk",
                retry_after_ms: super::error::RETRY_AFTER_MS,
            });
        };
        // The checksum was made beside the hash, so it tells whether this is what was hashed.
        let checked = data.clone();
        let whole = off_worker(ctx, data.len(), move || crc32c::crc32c(&checked) == crc).await?;
        if !whole || data.len() != chunk.len as usize {
            return Ok(false);
        }
        self.store_here(ctx, chunk, crc, data, None).await?;
        Ok(true)
    }

    pub(super) async fn read_for_peer(
        &self,
        ctx: &Context,
        chunk: ChunkRef,
    ) -> Result<Option<bytes::Bytes>, BlobError> {
        if !self.store.contains(chunk) {
            return Ok(None);
        }
        self.read_here(ctx, &self.serves, chunk).await
    }
}

fn name(chunk: Option<&wire::Chunk>) -> Result<ChunkRef, Status> {
    chunk
        .and_then(wire::Chunk::name)
        .ok_or_else(|| Status::invalid_argument("not the name of a chunk"))
}

fn status(error: BlobError) -> Status {
    let said = error.to_string();
    match error {
        BlobError::Overloaded { .. } => Status::resource_exhausted(said),
        BlobError::NotApplied(leadline_raft::Ended::Deadline) => Status::deadline_exceeded(said),
        BlobError::NotApplied(leadline_raft::Ended::Cancelled) => Status::cancelled(said),
        BlobError::Missing(_) => Status::not_found(said),
        BlobError::TooLarge(_) => Status::invalid_argument(said),
        BlobError::NoMajority { .. }
        | BlobError::Unreachable { .. }
        | BlobError::Disk(_)
        | BlobError::Stopping => Status::unavailable(said),
    }
}

//! The other replicas: who they are, and how they are asked. Traits, so that tests need no sockets.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use leadline_raft::{ClusterId, Context, GroupId, NodeId, RaftNode, grpc};
use std::sync::Arc;
use tonic::transport::Channel;

use super::{CHUNK_BYTES, ChunkHash, ChunkRef};
use crate::wire;
use crate::wire::blobs_client::BlobsClient;

/// The largest message: a chunk, and what goes with it.
pub(super) const MESSAGE_BYTES: usize = CHUNK_BYTES + (64 << 10);

/// Who keeps the chunks of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replicas {
    pub(crate) group: GroupId,
    pub(crate) voters: Vec<NodeId>,
    /// Have the rows and will have the chunks, and do not count yet.
    pub(crate) learners: Vec<NodeId>,
    /// Of them: those that were removed from the cluster for good. They are asked for what they
    /// have, and one that does not answer is not waited for.
    pub(crate) removed: Vec<NodeId>,
}

impl Replicas {
    /// How many voters make a majority.
    pub(super) fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    pub(super) fn all(&self) -> impl Iterator<Item = NodeId> {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// Finds the replicas of a row's shard.
pub(crate) trait Placement: Send + Sync + 'static {
    /// As this node knows them now.
    fn replicas(&self, near: &[u8]) -> Replicas;
}

/// Asks other nodes. An error is why there is no answer.
pub(crate) trait BlobPeers: Send + Sync + 'static {
    /// Stores a chunk on `node`; true when it is on disk there. Without `data`: asks whether it is
    /// there already, and makes it young.
    fn store(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
        crc: u32,
        data: Option<Bytes>,
    ) -> BoxFuture<'static, Result<bool, String>>;

    /// The chunk, `None` if `node` does not have it. Not checked.
    fn fetch(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>>;

    /// Makes chunks on `node` young; positions of those it does not have.
    fn hold(
        &self,
        ctx: Context,
        node: NodeId,
        chunks: Vec<ChunkRef>,
    ) -> BoxFuture<'static, Result<Vec<usize>, String>>;
}

/// Peers over the connections for large messages that consensus' transport keeps.
pub(crate) struct GrpcPeers {
    pub(crate) raft: Arc<RaftNode>,
    pub(crate) cluster: ClusterId,
}

impl GrpcPeers {
    fn connect(
        &self,
        ctx: &Context,
        node: NodeId,
    ) -> impl Future<Output = Result<BlobsClient<Channel>, String>> + use<> {
        let (raft, ctx) = (Arc::clone(&self.raft), ctx.clone());
        async move {
            let channel = raft.bulk_channel(&ctx, node).await;
            let channel = channel.map_err(|error| error.to_string())?;
            Ok(BlobsClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES))
        }
    }
}

impl BlobPeers for GrpcPeers {
    fn store(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
        crc: u32,
        data: Option<Bytes>,
    ) -> BoxFuture<'static, Result<bool, String>> {
        let client = self.connect(&ctx, node);
        let request = wire::StoreChunkRequest {
            cluster: self.cluster.0,
            chunk: Some(chunk.into()),
            crc,
            data: data.unwrap_or_default(),
        };
        async move {
            let answer = async {
                let mut client = client.await?;
                let reply = client.store_chunk(grpc::request(&ctx, request)).await;
                Ok(reply.map_err(said)?.into_inner().stored)
            };
            ctx.run(answer)
                .await
                .unwrap_or_else(|ended| Err(ended.to_string()))
        }
        .boxed()
    }

    fn fetch(
        &self,
        ctx: Context,
        node: NodeId,
        chunk: ChunkRef,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        let client = self.connect(&ctx, node);
        let request = wire::FetchChunkRequest {
            cluster: self.cluster.0,
            chunk: Some(chunk.into()),
        };
        async move {
            let answer = async {
                let mut client = client.await?;
                let reply = client.fetch_chunk(grpc::request(&ctx, request)).await;
                Ok(reply.map_err(said)?.into_inner().data)
            };
            ctx.run(answer)
                .await
                .unwrap_or_else(|ended| Err(ended.to_string()))
        }
        .boxed()
    }

    fn hold(
        &self,
        ctx: Context,
        node: NodeId,
        chunks: Vec<ChunkRef>,
    ) -> BoxFuture<'static, Result<Vec<usize>, String>> {
        let client = self.connect(&ctx, node);
        let request = wire::HoldChunksRequest {
            cluster: self.cluster.0,
            chunks: chunks.into_iter().map(wire::Chunk::from).collect(),
        };
        async move {
            let answer = async {
                let mut client = client.await?;
                let reply = client.hold_chunks(grpc::request(&ctx, request)).await;
                let missing = reply.map_err(said)?.into_inner().missing;
                Ok(missing.into_iter().map(|at| at as usize).collect())
            };
            ctx.run(answer)
                .await
                .unwrap_or_else(|ended| Err(ended.to_string()))
        }
        .boxed()
    }
}

fn said(status: tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

impl From<ChunkRef> for wire::Chunk {
    fn from(chunk: ChunkRef) -> Self {
        Self {
            hash: Bytes::copy_from_slice(&chunk.hash.0),
            len: chunk.len,
        }
    }
}

impl wire::Chunk {
    /// The name of a chunk, if it can be one.
    pub(super) fn name(&self) -> Option<ChunkRef> {
        let hash = self.hash.as_ref().try_into().ok()?;
        let possible = self.len > 0 && self.len as usize <= CHUNK_BYTES;
        possible.then_some(ChunkRef {
            hash: ChunkHash(hash),
            len: self.len,
        })
    }
}

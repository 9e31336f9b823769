//! Just enough of etcd's gRPC API (`etcdserverpb.KV`) to measure it as a peer: `Put`, and `Range`
//! of one key, which is linearizable unless asked otherwise.

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// `etcdserverpb.PutRequest`, the fields used here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.RangeRequest`, the field used here.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// Any answer: only its arrival counts.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {}

/// One connection to one etcd member.
pub(super) struct Etcd {
    grpc: Grpc<Channel>,
}

impl Etcd {
    pub(super) async fn connect(address: &str) -> Result<Self, String> {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address}: {error}"))?
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|error| format!("{address}: cannot connect: {error}"))?;
        Ok(Self {
            grpc: Grpc::new(channel),
        })
    }

    pub(super) async fn put(&mut self, key: Vec<u8>, value: Bytes) -> Result<(), String> {
        self.call(
            "/etcdserverpb.KV/Put",
            PutRequest {
                key: key.into(),
                value,
            },
        )
        .await
    }

    pub(super) async fn get(&mut self, key: Vec<u8>) -> Result<(), String> {
        self.call("/etcdserverpb.KV/Range", RangeRequest { key: key.into() })
            .await
    }

    async fn call<M: prost::Message + Default + 'static>(
        &mut self,
        path: &'static str,
        message: M,
    ) -> Result<(), String> {
        self.grpc.ready().await.map_err(|error| error.to_string())?;
        let codec: ProstCodec<M, Answer> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        let request = tonic::Request::new(message);
        self.grpc
            .unary(request, path, codec)
            .await
            .map(drop)
            .map_err(|status| status.to_string())
    }
}

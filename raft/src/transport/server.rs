//! The answering side: what peers ask, put to this node's [`Inbound`].
//!
//! A stream is served where it is polled, by its connection's own task: requests are started as they
//! are read, answered as they end, and everything that has ended goes into one message. A peer that
//! does not read its answers stops its own stream, and nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Wake, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Response, Status, Streaming};

use super::wire::{self, peer_server};
use super::{Inbound, Pool, Refused, dial, snapshot};
use crate::{Context, GroupId, NodeId};

/// The transport's gRPC service.
pub(crate) type PeerService = peer_server::PeerServer<Peers>;

/// Requests of one stream that may be worked on at a time; the rest waits at the sender.
const RUNNING: usize = 4096;
/// Answers in one message, at most.
const FRAME_RESPONSES: usize = 1024;

pub(super) fn service(pool: Arc<Pool>, inbound: Arc<dyn Inbound>) -> PeerService {
    let limit = dial::message_limit(&pool.link.limits);
    peer_server::PeerServer::new(Peers { pool, inbound })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit)
}

/// Answers peers.
pub(crate) struct Peers {
    pool: Arc<Pool>,
    inbound: Arc<dyn Inbound>,
}

impl Peers {
    /// Refuses who shows no certificate, where certificates are in use.
    fn authenticate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if self.pool.link.tls.is_some() && request.peer_certs().is_none() {
            return Err(Status::unauthenticated(
                "a peer must show a certificate of the cluster's authority",
            ));
        }
        Ok(())
    }

    /// Who greets us, if it means us; its address is the newest we can know.
    fn admit(&self, hello: Option<&wire::Hello>) -> Result<NodeId, Status> {
        let from = self.pool.link.admit(hello).map_err(|why| {
            tracing::debug!("refused a peer: {why}");
            Status::failed_precondition(why)
        })?;
        if let Some(address) = hello.map(|hello| &hello.address)
            && !address.is_empty()
        {
            self.pool.learn_address(from, address.clone());
        }
        Ok(from)
    }
}

#[tonic::async_trait]
impl peer_server::Peer for Peers {
    type ExchangeStream = Serving;
    type InstallSnapshotStream = ReceiverStream<Result<wire::SnapshotReply, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::Frame>>,
    ) -> Result<Response<Serving>, Status> {
        self.authenticate(&request)?;
        let link = &self.pool.link;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(link.limits.handshake, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let from = self.admit(first.as_ref().and_then(|frame| frame.hello.as_ref()))?;
        Ok(Response::new(Serving {
            hello: Some(link.hello(from)),
            requests: Some(inbound),
            running: FuturesUnordered::new(),
            inbound: Arc::clone(&self.inbound),
            longest: link.limits.bulk_stall,
            shutdown: Box::pin(link.shutdown.clone().cancelled_owned()),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        self.authenticate(&request)?;
        let mut parts = request.into_inner();
        let stall = self.pool.link.limits.snapshot_stall;
        let first = tokio::time::timeout(stall, parts.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no snapshot came"))??;
        let Some(wire::snapshot_part::Part::Begin(begin)) = first.and_then(|first| first.part)
        else {
            return Err(Status::invalid_argument(
                "a snapshot must begin with its head",
            ));
        };
        let from = self.admit(begin.hello.as_ref())?;
        let permit = Arc::clone(&self.pool.receiving)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many snapshots are being received"))?;
        let replies = snapshot::receive(
            &self.pool,
            Arc::clone(&self.inbound),
            from,
            begin,
            parts,
            permit,
        );
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn greet(&self, request: Request<wire::Hello>) -> Result<Response<wire::Hello>, Status> {
        self.authenticate(&request)?;
        let from = self.admit(Some(request.get_ref()))?;
        Ok(Response::new(self.pool.link.hello(from)))
    }
}

/// One peer's stream being answered.
pub(crate) struct Serving {
    hello: Option<wire::Hello>,
    /// `None` once the peer has said all it will.
    requests: Option<Streaming<wire::Frame>>,
    running: FuturesUnordered<BoxFuture<'static, wire::Response>>,
    inbound: Arc<dyn Inbound>,
    /// No request is worked on for longer, whatever it says.
    longest: Duration,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for Serving {
    type Item = Result<wire::Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Wake<'_>) -> Poll<Option<Self::Item>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(Ok(wire::Frame {
                hello: Some(hello),
                ..wire::Frame::default()
            })));
        }
        if self.shutdown.poll_unpin(cx).is_ready() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(status) = self.poll_requests(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        let mut responses = Vec::new();
        while responses.len() < FRAME_RESPONSES {
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(response)) => responses.push(response),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if !responses.is_empty() {
            return Poll::Ready(Some(Ok(wire::Frame {
                responses,
                ..wire::Frame::default()
            })));
        }
        if self.requests.is_none() && self.running.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl Serving {
    /// Starts what the peer asks, as far as it has come; ready only with an error.
    fn poll_requests(&mut self, cx: &mut Wake<'_>) -> Poll<Status> {
        while self.running.len() < RUNNING
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    for request in frame.requests {
                        let response = self.start(request);
                        self.running.push(response);
                    }
                }
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    return Poll::Ready(status);
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn start(&self, request: wire::Request) -> BoxFuture<'static, wire::Response> {
        use wire::request::Body as Ask;
        use wire::response::Body as Answer;

        let id = request.id;
        let group = GroupId(request.group);
        let remaining = Duration::from_millis(request.remaining_ms.into()).min(self.longest);
        let ctx = Context::with_timeout(remaining);
        let inbound = &self.inbound;
        let work = match request.body {
            Some(Ask::Append(append)) => wire::append_in(append).map(|append| {
                inbound
                    .append(&ctx, group, append)
                    .map(|reply| Ok(Answer::Append(wire::append_reply_out(&reply?))))
                    .boxed()
            }),
            Some(Ask::Vote(vote)) => wire::vote_request_in(vote).map(|vote| {
                inbound
                    .vote(&ctx, group, vote)
                    .map(|reply| Ok(Answer::Vote(wire::vote_reply_out(&reply?))))
                    .boxed()
            }),
            Some(Ask::PreVote(vote)) => wire::vote_request_in(vote).map(|vote| {
                inbound
                    .pre_vote(&ctx, group, vote)
                    .map(|reply| Ok(Answer::Vote(wire::vote_reply_out(&reply?))))
                    .boxed()
            }),
            Some(Ask::TransferLeader(transfer)) => wire::transfer_in(transfer).map(|transfer| {
                inbound
                    .transfer_leader(&ctx, group, transfer)
                    .map(|reply| Ok(Answer::TransferLeader(wire::transfer_reply_out(&reply?))))
                    .boxed()
            }),
            None => Err(wire::Malformed("a request of an unknown kind")),
        };
        Box::pin(async move {
            let outcome: Result<Answer, Refused> = match work {
                Ok(work) => match ctx.run(work).await {
                    Ok(outcome) => outcome,
                    Err(ended) => Err(Refused(ended.to_string())),
                },
                Err(malformed) => Err(malformed.into()),
            };
            wire::Response {
                id,
                body: Some(outcome.unwrap_or_else(|Refused(why)| Answer::Refused(why))),
            }
        })
    }
}

//! The transport as openraft sees it: one network per group and peer, all of them over the peer's
//! lanes.
//!
//! A heartbeat is an append without entries that waits a little for those of other groups, so that
//! many groups' are one message, answered by one. It does not wait while a ReadIndex round does
//! ([`Haste`]), and whatever else goes to the peer takes it along.
//!
//! What openraft makes of errors decides which one is returned: `Unreachable` makes it back off,
//! all others make it try again at once.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::lane::{Answer, Class, Outgoing};
use super::wire::{self, AppendPart};
use super::{BUDGET_UNIT, Haste, Peer, PeerError, Pool, Refused, snapshot};
use crate::types::{self, LogId, Snapshot, SnapshotData, TypeConfig, Vote};
use crate::{GroupId, NodeId};

type RpcError = RPCError<TypeConfig>;
type Appended = Result<StreamAppendResult<TypeConfig>, RpcError>;

/// Makes the networks of one group.
pub(crate) struct GroupNetworks {
    pool: Arc<Pool>,
    group: GroupId,
}

impl GroupNetworks {
    pub(super) fn new(pool: Arc<Pool>, group: GroupId) -> Self {
        Self { pool, group }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetworks {
    type Network = GroupNetwork;

    async fn new_client(&mut self, target: u64, node: &types::Peer) -> GroupNetwork {
        self.network(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &types::Peer) -> GroupNetwork {
        self.network(target, node, true)
    }
}

impl GroupNetworks {
    fn network(&self, target: u64, node: &types::Peer, heartbeats: bool) -> GroupNetwork {
        let peer = self.pool.peer(NodeId(target));
        if !node.address.is_empty() {
            peer.member_address(&node.address);
        }
        GroupNetwork {
            pool: Arc::clone(&self.pool),
            peer,
            group: self.group,
            heartbeats: heartbeats.then(|| self.pool.haste(self.group)),
        }
    }
}

/// One group's way to one peer.
pub(crate) struct GroupNetwork {
    pool: Arc<Pool>,
    peer: Arc<Peer>,
    group: GroupId,
    /// Of a network that sends heartbeats only: they have time, unless this says otherwise.
    heartbeats: Option<Haste>,
}

impl From<PeerError> for RpcError {
    fn from(error: PeerError) -> Self {
        Self::Unreachable(Unreachable::new(&error))
    }
}

impl GroupNetwork {
    fn node(&self) -> NodeId {
        self.peer.remote.node
    }

    fn refused(&self, why: impl ToString) -> PeerError {
        PeerError::Refused {
            node: self.node(),
            why: why.to_string(),
        }
    }

    /// The right to `bytes` of the peer's budget; heartbeats need none. `Err(None)`: wait for an
    /// answer first, it brings some back.
    async fn permit(
        &self,
        class: Class,
        bytes: usize,
        may_wait: bool,
    ) -> Result<Option<OwnedSemaphorePermit>, Option<PeerError>> {
        if bytes <= BUDGET_UNIT {
            return Ok(None);
        }
        let budget = &self.peer.budget;
        let units = bytes
            .min(self.pool.link.limits.unacknowledged_bytes)
            .div_ceil(BUDGET_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(budget).try_acquire_many_owned(units) {
            return Ok(Some(permit));
        }
        if !may_wait {
            return Err(None);
        }
        let stall = self.peer.lane(class).stall();
        match timeout(stall, Arc::clone(budget).acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) => Err(Some(PeerError::Closed)),
            Err(_) => Err(Some(PeerError::Full { node: self.node() })),
        }
    }

    /// Puts one request into a lane, without waiting.
    fn send(
        &self,
        class: Class,
        body: wire::request::Body,
        bytes: usize,
        permit: Option<OwnedSemaphorePermit>,
        wait: Duration,
    ) -> Result<oneshot::Receiver<Answer>, PeerError> {
        let lane = self.peer.lane(class);
        let urgent = !matches!(body, wire::request::Body::Append(_));
        let (reply, answer) = oneshot::channel();
        let remaining = wait.min(lane.stall()).as_millis().max(1);
        let request = wire::Request {
            id: 0,
            group: self.group.0,
            remaining_ms: u32::try_from(remaining).unwrap_or(u32::MAX),
            body: Some(body),
        };
        lane.send(
            Outgoing {
                request,
                bytes,
                patient: self.heartbeats.clone(),
                reply,
                permit,
            },
            urgent,
        )?;
        Ok(answer)
    }

    /// Waits for an answer until `until`.
    async fn answer(
        &self,
        answer: &mut oneshot::Receiver<Answer>,
        until: Instant,
    ) -> Result<wire::response::Body, PeerError> {
        match timeout_at(until, answer).await {
            Ok(Ok(Ok(wire::response::Body::Refused(why)))) => Err(self.refused(why)),
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(why))) => Err(PeerError::Unreachable {
                node: self.node(),
                why,
            }),
            Ok(Err(_)) => Err(PeerError::Closed),
            Err(_) => Err(PeerError::Silent { node: self.node() }),
        }
    }

    /// One small request and its answer.
    async fn ask(
        &self,
        body: wire::request::Body,
        option: &RPCOption,
    ) -> Result<wire::response::Body, PeerError> {
        let wait = option.soft_ttl();
        let mut answer = self.send(Class::Consensus, body, 64, None, wait)?;
        self.answer(&mut answer, Instant::now() + wait).await
    }

    fn unexpected(&self) -> RpcError {
        self.refused("its answer does not fit the question").into()
    }
}

impl RaftNetworkV2<TypeConfig> for GroupNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let whole = rpc
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(rpc.prev_log_id);
        let input = futures::stream::iter([rpc]);
        let mut answers = Box::pin(RaftNetworkV2::stream_append(self, input, option).await?);
        let mut last = None;
        while let Some(answer) = answers.next().await {
            last = Some(answer?);
        }
        drop(answers);
        match last.ok_or_else(|| self.unexpected())? {
            Ok(matched) if matched != whole => Ok(AppendEntriesResponse::PartialSuccess(matched)),
            result => Ok(result.into()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // Nothing is sent before the stream is polled: an error from here would be retried without
        // any back-off.
        let appends = Appends {
            network: self,
            input: Some(input),
            parts: VecDeque::new(),
            in_flight: VecDeque::new(),
            class: Class::Consensus,
            progressed: Instant::now(),
            ended: false,
        };
        let answers: BoxStream<'s, Appended> =
            Box::pin(futures::stream::unfold(appends, |mut appends| async move {
                Some((appends.next().await?, appends))
            }));
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = wire::request::Body::Vote(wire::vote_request_out(&rpc));
        match self.ask(body, &option).await? {
            wire::response::Body::Vote(reply) => {
                Ok(wire::vote_reply_in(reply).map_err(|error| self.refused(error))?)
            }
            _ => Err(self.unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = wire::request::Body::PreVote(wire::vote_request_out(&rpc));
        match self.ask(body, &option).await? {
            wire::response::Body::Vote(reply) => {
                Ok(wire::vote_reply_in(reply).map_err(|error| self.refused(error))?)
            }
            _ => Err(self.unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let install = option.soft_ttl();
        let sending = snapshot::send(&self.pool, &self.peer, self.group, vote, snapshot, install);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            // Also what took too long is `Unreachable`: a timeout would be tried again at once.
            sent = sending => sent.map_err(|error| {
                StreamingError::Unreachable(Unreachable::new(&error))
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = wire::request::Body::TransferLeader(wire::transfer_out(&req));
        match self.ask(body, &option).await? {
            wire::response::Body::TransferLeader(reply) => {
                Ok(wire::transfer_reply_in(reply).map_err(|error| self.refused(error))?)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let limits = self.pool.link.limits;
        Some(Backoff::new((0..).map(move |tries| limits.backoff(tries))))
    }
}

/// The appends of one group to one peer: a few under way at a time, answered in order.
struct Appends<'s, S> {
    network: &'s GroupNetwork,
    /// `None` once openraft has nothing more to send.
    input: Option<S>,
    /// Cut from the last request, to be sent next.
    parts: VecDeque<AppendPart>,
    in_flight: VecDeque<InFlight>,
    /// The lane of those in flight.
    class: Class,
    /// When the last answer came, or else the first of those in flight was sent.
    progressed: Instant,
    ended: bool,
}

struct InFlight {
    answer: oneshot::Receiver<Answer>,
    prev: Option<LogId>,
    last: Option<LogId>,
}

impl<S> Appends<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// The next answer; after an error or a refusal there is none. Cancel safe as far as openraft
    /// needs it: it drops the whole stream.
    async fn next(&mut self) -> Option<Appended> {
        if self.ended {
            return None;
        }
        match self.advance().await {
            Ok(Some(result)) => {
                self.ended |= result.is_err();
                Some(Ok(result))
            }
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error.into()))
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<StreamAppendResult<TypeConfig>>, PeerError> {
        let most = self.network.pool.link.limits.appends_in_flight;
        let frame_bytes = self.network.pool.link.limits.frame_bytes;
        loop {
            while self.in_flight.len() < most && self.send_next().await? {}

            let until = self.progressed + self.network.peer.lane(self.class).stall();
            let more = self.parts.is_empty() && self.in_flight.len() < most;
            let network = self.network;
            match (self.in_flight.front_mut(), &mut self.input) {
                (None, None) => return Ok(None),
                (None, Some(input)) => match input.next().await {
                    Some(request) => self.take(request, frame_bytes)?,
                    None => self.input = None,
                },
                (Some(oldest), Some(input)) if more => {
                    tokio::select! {
                        biased;
                        body = network.answer(&mut oldest.answer, until) => {
                            return self.answered(body?).map(Some);
                        }
                        request = input.next() => match request {
                            Some(request) => self.take(request, frame_bytes)?,
                            None => self.input = None,
                        },
                    }
                }
                (Some(oldest), _) => {
                    let body = network.answer(&mut oldest.answer, until).await?;
                    return self.answered(body).map(Some);
                }
            }
        }
    }

    fn take(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        limit: usize,
    ) -> Result<(), PeerError> {
        let parts =
            wire::append_out(request, limit).map_err(|Refused(why)| self.network.refused(why))?;
        self.parts.extend(parts);
        Ok(())
    }

    /// Sends the next part, unless it has to wait for an answer first: then `false`.
    async fn send_next(&mut self) -> Result<bool, PeerError> {
        let Some(part) = self.parts.front() else {
            return Ok(false);
        };
        let wanted = if part.bytes > self.network.pool.link.limits.bulk_threshold {
            Class::Bulk
        } else {
            Class::Consensus
        };
        // A lane is changed only between answers, so that no append overtakes the one before it.
        // Small ones go on in the bulk lane while it is in use.
        match (self.in_flight.is_empty(), self.class, wanted) {
            (true, _, wanted) => self.class = wanted,
            (false, Class::Consensus, Class::Bulk) => return Ok(false),
            (false, _, _) => {}
        }
        let (network, may_wait) = (self.network, self.in_flight.is_empty());
        let permit = match network.permit(self.class, part.bytes, may_wait).await {
            Ok(permit) => permit,
            Err(None) => return Ok(false),
            Err(Some(error)) => return Err(error),
        };
        let Some(part) = self.parts.pop_front() else {
            return Ok(false);
        };
        let stall = self.network.peer.lane(self.class).stall();
        let body = wire::request::Body::Append(part.append);
        let answer = self
            .network
            .send(self.class, body, part.bytes, permit, stall)?;
        if self.in_flight.is_empty() {
            self.progressed = Instant::now();
        }
        self.in_flight.push_back(InFlight {
            answer,
            prev: part.prev,
            last: part.last,
        });
        Ok(true)
    }

    /// Turns the answer to the oldest append into openraft's result.
    fn answered(
        &mut self,
        body: wire::response::Body,
    ) -> Result<StreamAppendResult<TypeConfig>, PeerError> {
        let Some(append) = self.in_flight.pop_front() else {
            return Err(self.network.refused("an answer nobody asked for"));
        };
        self.progressed = Instant::now();
        let wire::response::Body::Append(reply) = body else {
            return Err(self.network.refused("its answer does not fit the question"));
        };
        let reply = wire::append_reply_in(reply).map_err(|error| self.network.refused(error))?;
        match reply {
            AppendEntriesResponse::Success => Ok(Ok(append.last)),
            AppendEntriesResponse::PartialSuccess(matched) => {
                // The rest must be sent again, by a new stream.
                self.ended = matched != append.last;
                Ok(Ok(matched))
            }
            AppendEntriesResponse::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
            AppendEntriesResponse::Conflict => match append.prev {
                Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
                None => Err(self.network.refused("a conflict before the first entry")),
            },
        }
    }
}

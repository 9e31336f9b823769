//! A network of function calls between the nodes of one process, that can be cut, slow and lossy.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::Config;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::memory_log::MemoryLogs;
use super::seeded;
use crate::node::host::Inbox;
use crate::node::proof::BootClock;
use crate::node::state::StateAdapter;
use crate::node::substrate::{Raft, StartError, Substrate, start};
use crate::transport::{Inbound, Refused};
use crate::types::{Peer, Snapshot, SnapshotData, TypeConfig, Vote};
use crate::{Context, GroupId, NodeId};

/// What a message that goes nowhere costs its sender.
const SILENCE: Duration = Duration::from_millis(400);

/// Boot time that follows the test's virtual time.
#[derive(Debug)]
pub(crate) struct VirtualClock(pub(crate) Instant);

impl BootClock for VirtualClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The links between nodes.
#[derive(Default)]
pub(crate) struct Wire {
    inboxes: Mutex<HashMap<NodeId, Inbox>>,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
    mute: Mutex<HashSet<NodeId>>,
    weather: Mutex<Weather>,
}

/// How long messages take, and how many are lost.
#[derive(Clone, Default)]
pub(crate) struct Weather {
    /// One way; `None`: no time at all.
    pub(crate) latency: Option<Range<Duration>>,
    /// In a hundred.
    pub(crate) lost: u64,
}

impl Wire {
    pub(crate) fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    pub(crate) fn connect(&self, node: NodeId, inbox: Inbox) {
        self.inboxes.lock().insert(node, inbox);
    }

    pub(crate) fn disconnect(&self, node: NodeId) {
        self.inboxes.lock().remove(&node);
    }

    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.cut.lock().insert((from, to));
    }

    /// What `node` asks is lost; what it answers arrives.
    #[cfg(test)]
    pub(crate) fn mute(&self, node: NodeId) {
        self.mute.lock().insert(node);
    }

    pub(crate) fn heal(&self) {
        self.cut.lock().clear();
        self.mute.lock().clear();
    }

    /// One way over a link: takes its time; says whether the message arrives.
    async fn travel(&self, from: NodeId, to: NodeId) -> bool {
        let weather = self.weather.lock().clone();
        if let Some(latency) = &weather.latency {
            tokio::time::sleep(seeded::duration(latency)).await;
        }
        let lost = weather.lost > 0 && seeded::below(100) < weather.lost;
        !lost && !self.is_cut(from, to)
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.lock().contains(&(from, to))
    }

    /// Calls `to`, both ways over links that may be cut meanwhile.
    async fn call<T, F>(
        &self,
        from: NodeId,
        to: NodeId,
        ask: impl FnOnce(Inbox, Context) -> F,
    ) -> Result<T, Lost>
    where
        F: Future<Output = Result<T, Refused>>,
    {
        let arrives = self.travel(from, to).await && !self.mute.lock().contains(&from);
        let inbox = self.inboxes.lock().get(&to).cloned();
        let Some(inbox) = inbox.filter(|_| arrives) else {
            tokio::time::sleep(SILENCE).await;
            return Err(Lost("no answer".to_owned()));
        };
        let answer = ask(inbox, Context::fallback()).await;
        if !self.travel(to, from).await {
            tokio::time::sleep(SILENCE).await;
            return Err(Lost("no answer".to_owned()));
        }
        answer.map_err(|refused| Lost(refused.0))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(String);

impl From<Lost> for RPCError<TypeConfig> {
    fn from(lost: Lost) -> Self {
        Self::Unreachable(Unreachable::new(&lost))
    }
}

struct Networks {
    wire: Arc<Wire>,
    from: NodeId,
    group: GroupId,
}

struct Network {
    wire: Arc<Wire>,
    from: NodeId,
    to: NodeId,
    group: GroupId,
}

impl RaftNetworkFactory<TypeConfig> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _: &Peer) -> Network {
        Network {
            wire: self.wire.clone(),
            from: self.from,
            to: NodeId(target),
            group: self.group,
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let group = self.group;
        let ask = |inbox: Inbox, ctx: Context| inbox.append(&ctx, group, rpc);
        Ok(self.wire.call(self.from, self.to, ask).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let group = self.group;
        let ask = |inbox: Inbox, ctx: Context| inbox.vote(&ctx, group, rpc);
        Ok(self.wire.call(self.from, self.to, ask).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let group = self.group;
        let ask = |inbox: Inbox, ctx: Context| inbox.pre_vote(&ctx, group, rpc);
        Ok(self.wire.call(self.from, self.to, ask).await?)
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let group = self.group;
        let ask = |inbox: Inbox, ctx: Context| inbox.transfer_leader(&ctx, group, rpc);
        Ok(self.wire.call(self.from, self.to, ask).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Source(mut source) = snapshot.snapshot else {
            panic!("a snapshot to send is a source");
        };
        let (group, meta) = (self.group, snapshot.meta);
        let ask = |inbox: Inbox, ctx: Context| async move {
            let mut sink = inbox.begin_snapshot(&ctx, group, &meta).await?;
            while let Some(chunk) = source.next_chunk().expect("a readable snapshot") {
                sink.write_chunk(chunk)
                    .expect("a snapshot that can be written");
            }
            let snapshot = Snapshot {
                meta,
                snapshot: SnapshotData::Sink(sink),
            };
            inbox.install_snapshot(&ctx, group, vote, snapshot).await
        };
        match self.wire.call(self.from, self.to, ask).await {
            Ok(response) => Ok(response),
            Err(lost) => Err(StreamingError::Unreachable(Unreachable::new(&lost))),
        }
    }
}

pub(crate) struct TestSubstrate {
    pub(crate) wire: Arc<Wire>,
    pub(crate) node: NodeId,
    pub(crate) logs: MemoryLogs,
}

impl Substrate for TestSubstrate {
    fn groups(&self) -> Vec<GroupId> {
        self.logs.groups()
    }

    fn start(
        &self,
        node: NodeId,
        group: GroupId,
        config: Arc<Config>,
        state: StateAdapter,
    ) -> BoxFuture<'_, Result<Raft, StartError>> {
        let network = Networks {
            wire: self.wire.clone(),
            from: self.node,
            group,
        };
        start(node, config, network, self.logs.group(group), state).boxed()
    }

    fn haste(&self, _group: GroupId) -> Option<crate::transport::Haste> {
        None
    }

    fn remove(&self, group: GroupId) -> BoxFuture<'_, Result<(), String>> {
        self.logs.remove(group);
        async { Ok(()) }.boxed()
    }
}

//! openraft, configured: what a log entry, a member and a response are inside this crate.

use std::fmt;

use bytes::Bytes;

use crate::engine::{SnapshotSink, SnapshotSource};

/// What a layer above proposed, opaque here. `Bytes`, so that a clone is a reference count.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Payload(pub(crate) Bytes);

/// What the state machine answered.
#[derive(Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Response(pub(crate) Bytes);

/// Where a member is dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Peer {
    pub(crate) address: String,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} bytes)", self.0.len())
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

/// What openraft carries between a state machine and the network as "the snapshot".
pub(crate) enum SnapshotData {
    /// At the sender: a view of the state, to be streamed. Blocks: read it on a blocking thread.
    Source(Box<dyn SnapshotSource>),
    /// At the receiver: every chunk is written, nothing is visible yet; installing commits it.
    Sink(Box<dyn SnapshotSink>),
    /// A snapshot that openraft only needs to know of: the state on this node's disk.
    OnDisk,
}

/// Takes the end of one request to openraft's core. If it is dropped uncalled, so is what it owns.
pub(crate) struct Answer<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Answer<T> {
    pub(crate) fn new(take: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(take))
    }
}

impl<T: Send + 'static> openraft::raft::responder::Responder<TypeConfig, T> for Answer<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// Tests draw openraft's random numbers from a seed where they set one.
#[cfg(any(test, feature = "testing"))]
type AsyncRuntime = crate::testing::seeded::SeededRuntime;
#[cfg(not(any(test, feature = "testing")))]
type AsyncRuntime = crate::runtime::Runtime;

/// openraft's choices of types. One leader per term, as in Ongaro's Raft (`leader_id_std`).
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig {}

// By hand and not by `declare_raft_types!`, which cannot name a generic responder.
impl openraft::RaftTypeConfig for TypeConfig {
    type D = Payload;
    type R = Response;
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry =
        openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = Answer<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = AsyncRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type Entry = <TypeConfig as openraft::RaftTypeConfig>::Entry;
pub(crate) type Vote = <TypeConfig as openraft::RaftTypeConfig>::Vote;
pub(crate) type LogId = openraft::LogId<
    <<TypeConfig as openraft::RaftTypeConfig>::LeaderId as openraft::vote::RaftLeaderId>::Committed,
>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

//! One Raft group as the layers above see it, cut into the small traits its callers need, and the
//! state machine as consensus sees it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::{Context, GroupId, LeaderId, LogIndex, NodeId, RaftError, Term};

/// What a node believes about a group's leadership. Local and cheap, may be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This node leads, as far as it knows; a quorum has acknowledged it within an election timeout.
    Leader(LeaderId),
    /// Another node leads.
    Follower { leader: LeaderId },
    /// No leader is known, or this leader has lost its quorum.
    Unknown,
}

/// A proof of leadership: at some instant after the call, `leader` led, and everything acknowledged
/// before that instant is at or below `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    pub leader: LeaderId,
    pub index: LogIndex,
}

/// Leadership: what is believed, and its proof (Ongaro, section 6.4).
pub trait LeaderView: Send + Sync + 'static {
    /// What this node believes now.
    fn leadership(&self) -> Leadership;

    /// Follows [`LeaderView::leadership`]; a change is seen within one election timeout.
    fn leadership_changes(&self) -> watch::Receiver<Leadership>;

    /// Proves that this node leads at some instant after the call: by a ReadIndex round shared with
    /// all who wait for the same one, or by the lease where leases are on. Cancel safe.
    ///
    /// # Errors
    /// `NotLeader`, `NotApplied` at the end of `ctx`, `Overloaded`, `Stopped`.
    fn verify_leader(
        &self,
        ctx: &Context,
    ) -> impl Future<Output = Result<ReadIndex, RaftError>> + Send;

    /// Proves leadership at this instant without waiting: a valid lease where leases are on, or a
    /// group whose only voter is this node. `None` means: ask [`LeaderView::verify_leader`].
    fn verify_leader_now(&self) -> Option<ReadIndex>;

    /// As `verify_leader`, and then waits until this node has applied the index it names.
    fn linearizable_read(
        &self,
        ctx: &Context,
    ) -> impl Future<Output = Result<LogIndex, RaftError>> + Send;
}

/// A proposal's end: what the state machine answered for the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub index: LogIndex,
    pub response: Bytes,
}

/// Called exactly once, from a task that must not block, with the fate of one proposal.
pub type OnApplied = Box<dyn FnOnce(Result<Applied, RaftError>) + Send>;

/// Appends to the group's log.
pub trait Proposer: Send + Sync + 'static {
    /// Enqueues `entry` at the call, in call order, to be appended only under `leader`, and returns
    /// without waiting for it. `done` is called exactly once, at the latest at the end of `ctx`
    /// (the batch's own context, never one caller's). May be called from any thread; blocks at most
    /// for a bounded queue's place, and not longer than `ctx`.
    ///
    /// `done` gets `NotLeader`, `Overloaded`, `TooLarge`, `NotApplied` or `Stopped` when nothing was
    /// appended, `OutcomeUnknown` when it may have been.
    fn enqueue(&self, ctx: &Context, leader: LeaderId, entry: Bytes, done: OnApplied);

    /// [`Proposer::enqueue`] under whatever leadership this node has, and waits until this node has
    /// applied the entry. Dropping the future does not take the proposal back.
    ///
    /// # Errors
    /// As `done` above; at the end of `ctx`: `OutcomeUnknown`.
    fn propose(
        &self,
        ctx: &Context,
        entry: Bytes,
    ) -> impl Future<Output = Result<Applied, RaftError>> + Send;
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Voter,
    Learner,
    /// Votes in the new set of a change of voters that is not finished: [`Membership::promote`]
    /// finishes it. Until then a quorum of the old set is needed as well (joint consensus).
    IncomingVoter,
    /// Votes in the old set only: [`Membership::remove`] finishes the change.
    OutgoingVoter,
}

/// One member of a group: where it is dialled, and its part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    pub address: String,
    pub role: Role,
}

/// The members of one group and their changes (Ongaro, chapter 4). One change at a time.
pub trait Membership: Send + Sync + 'static {
    /// Members as of the last membership entry this node has.
    fn members(&self) -> BTreeMap<NodeId, Member>;

    /// Adds `node` as a learner and returns once that is committed; catching up goes on.
    fn add_learner(
        &self,
        ctx: &Context,
        node: NodeId,
        address: String,
    ) -> impl Future<Output = Result<(), RaftError>> + Send;

    /// Makes a learner that has caught up a voter; waits for it to catch up until `ctx` ends. A
    /// change takes two steps, and whoever asked for it may be gone after the first, or the leader:
    /// then the member is a [`Role::IncomingVoter`] until this is called again, which waits for a
    /// quorum of both sets and not for the member.
    fn promote(
        &self,
        ctx: &Context,
        node: NodeId,
    ) -> impl Future<Output = Result<(), RaftError>> + Send;

    /// Removes `node`, voter or learner. Removing an absent node succeeds. As with
    /// [`Membership::promote`], a change that was left half done is finished by asking again.
    fn remove(
        &self,
        ctx: &Context,
        node: NodeId,
    ) -> impl Future<Output = Result<(), RaftError>> + Send;

    /// Hands leadership to `to` (or to the best voter), the lease given up first; returns once it
    /// leads (or any other node). An error if who is elected is another than was wanted.
    fn transfer_leadership(
        &self,
        ctx: &Context,
        to: Option<NodeId>,
    ) -> impl Future<Output = Result<(), RaftError>> + Send;
}

/// What a leader knows of one peer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerStatus {
    pub node: NodeId,
    pub role: Role,
    /// Highest index known to be on the peer's disk; only a leader knows it.
    pub matched: Option<LogIndex>,
    /// Since the last acknowledgement; only a leader knows it.
    pub last_ack_ms: Option<u64>,
}

/// A group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GroupStatus {
    pub group: GroupId,
    pub node: NodeId,
    pub term: Term,
    pub leader: Option<LeaderId>,
    /// This node leads and a quorum has acknowledged it within an election timeout.
    pub leading: bool,
    /// This node leads, or has heard from its leader within an election timeout. A follower that is
    /// cut off goes on naming its `leader`.
    #[serde(default)]
    pub in_contact: bool,
    pub last_log_index: LogIndex,
    /// What this node has of what is committed.
    pub commit_index: LogIndex,
    /// What it has heard to be committed; more than `commit_index` while it catches up.
    #[serde(default)]
    pub heard_commit_index: LogIndex,
    pub last_applied: LogIndex,
    pub snapshot_index: LogIndex,
    pub peers: Vec<PeerStatus>,
    /// Proposals whose end is not known yet.
    pub pending_proposals: u64,
    /// Callers waiting for a ReadIndex round.
    pub pending_reads: u64,
    /// Why the group stopped, if it has.
    pub stopped: Option<String>,
}

/// A look at a group for status pages and metrics.
pub trait Status: Send + Sync + 'static {
    fn status(&self) -> GroupStatus;
}

/// One Raft group: all of the above.
pub trait Engine: LeaderView + Proposer + Membership + Status {
    fn group(&self) -> GroupId;
    fn node(&self) -> NodeId;
}

/// A failed read or write of the state machine's storage. Fatal for the group on this node: apply
/// never skips an entry.
#[derive(Debug, thiserror::Error)]
#[error("state machine storage: {what}")]
pub struct StateError {
    pub what: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// One committed entry for the state machine, in log order.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    pub index: LogIndex,
    /// Consensus' own record of how far the group is (log id, membership), opaque above. Stored in
    /// the same atomic batch as the effects, and given back by [`StateMachine::applied`].
    pub position: Bytes,
    /// What was proposed; `None` for consensus' own entries (blank, membership).
    pub payload: Option<Bytes>,
}

/// Opens the state machine of a group: at start for every group in the log, and when a leader makes
/// this node a replica of a group it has not hosted before.
pub trait StateMachines: Send + Sync + 'static {
    /// Opens (or creates, pristine) the state machine of `group`. May block on storage.
    fn open(&self, group: GroupId) -> Result<std::sync::Arc<dyn StateMachine>, StateError>;

    /// Deletes what `group` stored here, after this node was removed from it. May block.
    fn destroy(&self, group: GroupId) -> Result<(), StateError>;
}

/// The replicated state of one group. Every method but [`StateMachine::run`] may block on storage:
/// consensus calls them on threads made for that, never on an async worker.
pub trait StateMachine: Send + Sync + 'static {
    /// Runs `apply` (which calls [`StateMachine::apply`]) soon on a thread that may block. One at a
    /// time per group. By default on one of tokio's blocking threads.
    fn run(&self, apply: Box<dyn FnOnce() + Send>) {
        crate::blocking::start(apply);
    }

    /// The `position` stored last, with the state it belongs to; `None` for a pristine group.
    fn applied(&self) -> Result<Option<Bytes>, StateError>;

    /// Applies `entries` in order; each entry's effects and its position go into one atomic batch
    /// (several entries may share one). Returns one response per entry. Deterministic: no clock, no
    /// randomness, no setting.
    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError>;

    /// A point-in-time copy of the state to stream, bounded in memory; never stops applies.
    /// The position it starts with is the one of the copied state.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, StateError>;

    /// Begins to receive a snapshot. What is written stays invisible until `commit`.
    fn begin_install(&self) -> Result<Box<dyn SnapshotSink>, StateError>;

    /// Makes everything applied so far durable and returns the position that is now durable: the
    /// log is purged no further than this.
    fn flush(&self) -> Result<Option<Bytes>, StateError>;
}

/// A stream of snapshot chunks.
pub trait SnapshotSource: Send {
    fn position(&self) -> Bytes;
    /// The next chunk, at most about 1 MiB; `None` at the end. Chunks carry their own checksums.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError>;
}

/// The receiving side of a snapshot. Dropping it unfinished leaves the old state as it was.
pub trait SnapshotSink: Send {
    fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StateError>;
    /// Swaps the received state in, atomically also over a crash, flushed before it returns.
    fn commit(self: Box<Self>, position: Bytes) -> Result<(), StateError>;
}

/// Election and heartbeat times of all groups of a node.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(750),
            election_max: Duration::from_millis(1500),
        }
    }
}

/// How `verify_leader` proves leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// A quorum round (the default): rests on no clock.
    #[default]
    ReadIndex,
    /// The leader's lease while it is valid: rests on a bounded drift rate of monotonic clocks.
    Lease,
}

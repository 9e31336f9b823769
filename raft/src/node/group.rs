//! [`Group`]: one Raft group on this node, over the openraft instance that runs it at the moment.
//!
//! # Invariants
//! 1. Leadership is announced only while a quorum has acknowledged this leader within one lease,
//!    whatever openraft's own state says.
//! 2. When a leader loses its quorum, or its openraft stops, every proposal in flight ends at once
//!    as unknown.
//! 3. A group whose openraft has died is built again from disk, with back-off, and never while
//!    anything of the dead one may still touch the state machine.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError,
    RaftError as OpenraftError,
};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::ClientWriteResult;
use openraft::vote::RaftLeaderId;
use openraft::{Instant as _, LinearizerOption, RaftMetrics, ServerState, TokioInstant};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{
    self, Engine, GroupStatus, LeaderView, Leadership, Member, OnApplied, PeerStatus, Proposer,
    ReadIndex, Role, StateMachine, Status,
};
use crate::transport::Haste;
use crate::types::{Answer, LogId, Payload, TypeConfig};
use crate::{Context, GroupId, LeaderId, LogIndex, NodeId, RaftError, Term};

use super::pending::{Pending, Ticket};
use super::proof::{Applied, Observed, Proofs};
use super::read_index::{ReadIndexQueue, Round, Rounds};
use super::settings::Settings;
use super::state::StateAdapter;
use super::substrate::{Raft, StartError, Substrate};
use super::tail::LogTail;

/// Between two attempts to build a dead group again.
const REBUILD_MIN: Duration = Duration::from_millis(100);
const REBUILD_MAX: Duration = Duration::from_secs(10);

/// How long openraft may take to stop before it is left to itself.
const STOP: Duration = Duration::from_secs(5);

/// One Raft group on this node.
pub struct Group {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) settings: Arc<Settings>,
    substrate: Arc<dyn Substrate>,
    haste: Option<Haste>,
    pub(super) machine: Arc<dyn StateMachine>,
    /// `None` while the group is stopped, or dead and not built again yet.
    pub(super) raft: ArcSwapOption<Raft>,
    applied: Arc<Applied>,
    tail: Arc<LogTail>,
    pub(super) proofs: Proofs,
    reads: ReadIndexQueue,
    pending: Arc<Pending>,
    leadership: watch::Sender<Leadership>,
    /// When a leader's message was taken last.
    heard: Mutex<Option<Instant>>,
    /// Until when this node neither votes nor campaigns.
    pub(super) hold_until: Mutex<Option<Instant>>,
    /// The term whose leadership was given away, and until when somebody must have taken it.
    given_away: Mutex<Option<(Term, Instant)>>,
    stopped: Mutex<Option<String>>,
    /// Held by whatever may touch the state machine.
    tenure: Arc<Semaphore>,
    pub(super) leader_changes: AtomicU64,
    pub(super) rebuilds: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a group could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("the state machine: {0}")]
    State(#[from] std::io::Error),
    #[error("the configuration: {0}")]
    Config(#[from] openraft::ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the group is stopping")]
    Stopping,
}

/// What is needed of openraft's metrics, taken in one look.
struct Look {
    leadership: Leadership,
    /// openraft is in its leader state.
    leading: bool,
    observed: Option<Observed>,
    /// When to look again without a change.
    again: Option<Instant>,
}

impl Group {
    /// Builds the group from disk and starts it.
    pub(crate) async fn start(
        id: GroupId,
        node: NodeId,
        settings: Arc<Settings>,
        substrate: Arc<dyn Substrate>,
        machine: Arc<dyn StateMachine>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, BuildError> {
        let lease = match settings.read_mode {
            engine::ReadMode::ReadIndex => None,
            engine::ReadMode::Lease => Some(settings.lease()),
        };
        let group = Arc::new(Self {
            id,
            node,
            haste: substrate.haste(id),
            substrate,
            machine,
            raft: ArcSwapOption::empty(),
            applied: Arc::default(),
            tail: Arc::default(),
            proofs: Proofs::new(node, lease, settings.clock.clone()),
            reads: ReadIndexQueue::default(),
            pending: Pending::new(settings.bounds),
            leadership: watch::channel(Leadership::Unknown).0,
            heard: Mutex::default(),
            hold_until: Mutex::default(),
            given_away: Mutex::default(),
            stopped: Mutex::default(),
            tenure: Arc::new(Semaphore::new(1)),
            leader_changes: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            stop,
            tasks: TaskTracker::new(),
            settings,
        });
        let raft = group.build().await?;
        let driver = group.clone();
        group.tasks.spawn(async move {
            let rounds = QuorumRounds(driver.clone());
            driver
                .stop
                .run_until_cancelled(driver.reads.drive(&rounds))
                .await;
            driver
                .reads
                .refuse_waiting(&RaftError::Stopped("the group is stopping".to_owned()));
        });
        let sweeper = group.clone();
        group.tasks.spawn(async move {
            let sweep = async {
                loop {
                    sweeper.pending.sweep_due().await;
                    sweeper.pending.sweep();
                }
            };
            sweeper.stop.run_until_cancelled(sweep).await;
        });
        let supervised = group.clone();
        group
            .tasks
            .spawn(async move { supervised.supervise(raft).await });
        group.tasks.close();
        Ok(group)
    }

    /// Stops the group and waits until nothing of it touches log or state machine any more.
    pub(crate) async fn stop(&self, ctx: &Context) -> Result<(), crate::Ended> {
        ctx.run(self.stopped()).await
    }

    /// [`Group::stop`], however long it takes.
    pub(super) async fn stopped(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
        // Closed never, so an error cannot be.
        drop(self.tenure.acquire().await);
    }

    async fn build(&self) -> Result<Arc<Raft>, BuildError> {
        // Waits until nothing of an earlier openraft touches the state machine.
        let tenure = self
            .stop
            .run_until_cancelled(self.tenure.clone().acquire_owned())
            .await
            .ok_or(BuildError::Stopping)?
            .map_err(|_| BuildError::Stopping)?;
        let (machine, applied, tail) = (
            self.machine.clone(),
            self.applied.clone(),
            self.tail.clone(),
        );
        let opened = crate::blocking::run(move || {
            StateAdapter::open(machine, applied, tail, Some(Arc::new(tenure)))
        });
        let state = opened.await.map_err(std::io::Error::other)??;
        let hold = self.settings.hold();
        let running = state.running_mark();
        *self.hold_until.lock() = (!hold.is_zero()).then(|| Instant::now() + hold);
        let config = self.settings.openraft(hold.is_zero())?;
        let raft = self
            .substrate
            .start(self.node, self.id, config, state)
            .await?;
        running.set();
        let raft = Arc::new(raft);
        *self.stopped.lock() = None;
        self.raft.store(Some(raft.clone()));
        Ok(raft)
    }

    async fn supervise(&self, mut raft: Arc<Raft>) {
        loop {
            let died = self.stop.run_until_cancelled(self.watch(&raft)).await;
            self.raft.store(None);
            *self.stopped.lock() = Some(died.clone().unwrap_or_else(|| "stopping".to_owned()));
            self.proofs.withdraw();
            self.announce(Leadership::Unknown);
            let halted = tokio::time::timeout(STOP, raft.shutdown()).await;
            if halted.is_err() {
                tracing::warn!(group = %self.id, "openraft did not stop in time");
            }
            self.pending.fail_all("the group has stopped");
            let Some(why) = died else {
                return;
            };
            tracing::error!(group = %self.id, why, "the group ended; building it again from disk");
            drop(raft);
            match self.rebuild().await {
                Some(again) => raft = again,
                None => return,
            }
        }
    }

    async fn rebuild(&self) -> Option<Arc<Raft>> {
        let mut pause = REBUILD_MIN;
        loop {
            self.stop
                .run_until_cancelled(tokio::time::sleep(pause))
                .await?;
            self.rebuilds.fetch_add(1, Ordering::Relaxed);
            match self.build().await {
                Ok(raft) => return Some(raft),
                Err(BuildError::Stopping) => return None,
                Err(error) => {
                    tracing::error!(group = %self.id, %error, "the group cannot be built");
                    *self.stopped.lock() = Some(error.to_string());
                    pause = (pause * 2).min(REBUILD_MAX);
                }
            }
        }
    }

    /// Follows openraft's state until it dies; returns why.
    async fn watch(&self, raft: &Raft) -> String {
        let mut server = raft.server_metrics();
        let mut all = raft.metrics();
        loop {
            let look = self.look(&all.borrow_watched());
            self.proofs.observe(look.observed.as_ref());
            self.announce(look.leadership);
            // openraft publishes the one before the other. And a leader that waits for its quorum
            // is looked at whenever anything changes.
            let unsettled = behind(&all.borrow_watched(), &server.borrow_watched())
                || (look.leading && !matches!(look.leadership, Leadership::Leader(_)));
            let hold = *self.hold_until.lock();
            let untaken = self.untaken(&look);
            let again = [look.again, hold, untaken].into_iter().flatten().min();
            let changed = tokio::select! {
                changed = server.changed() => changed.is_ok(),
                changed = all.changed(), if unsettled => changed.is_ok(),
                () = sleep_until(again) => true,
            };
            if !changed {
                break;
            }
            if hold.is_some_and(|until| until <= Instant::now()) {
                *self.hold_until.lock() = None;
                raft.runtime_config().elect(true);
            }
            if untaken.is_some_and(|until| until <= Instant::now()) {
                return "nobody took over the leadership that it gave away".to_owned();
            }
        }
        let end = all.borrow_watched().running_state.clone();
        match end {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "openraft ended without a word".to_owned(),
        }
    }

    /// Remembers that leadership in `term` is about to be given away.
    ///
    /// openraft's leader then takes no more proposals and sends no more heartbeats, for good. Should
    /// nobody else be able to win (the others hear it and are not heard), it is built again as a
    /// follower, which may.
    pub(super) fn gives_away(&self, term: Term) {
        *self.given_away.lock() = Some((term, Instant::now() + self.settings.takeover()));
    }

    /// Until when somebody must have taken over what this leader gave away.
    fn untaken(&self, look: &Look) -> Option<Instant> {
        let (term, until) = (*self.given_away.lock())?;
        let observed = look.observed.as_ref()?;
        (observed.term == term.0).then_some(until)
    }

    fn look(&self, metrics: &RaftMetrics<TypeConfig>) -> Look {
        let leader = metrics.vote.leader_id();
        let leader_id = LeaderId {
            term: Term(leader.term),
            node: NodeId(*leader.node_id()),
        };
        let committed = metrics.vote.is_committed();
        let leading =
            metrics.state == ServerState::Leader && committed && leader_id.node == self.node;
        if !leading {
            let leadership = if committed && leader_id.node != self.node {
                Leadership::Follower { leader: leader_id }
            } else {
                Leadership::Unknown
            };
            return Look {
                leadership,
                leading,
                observed: None,
                again: None,
            };
        }
        let mut voters = metrics.membership_config.voter_ids();
        let alone = voters.next() == Some(self.node.0) && voters.next().is_none();
        let voter = metrics
            .membership_config
            .voter_ids()
            .any(|id| id == self.node.0);
        let settled =
            metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
        let acked: Option<Instant> = metrics
            .last_quorum_acked
            .as_ref()
            .map(|acked| instant(**acked));
        let lost_at = acked.map(|acked| acked + self.settings.quorum_check());
        let now = Instant::now();
        let led = alone || lost_at.is_some_and(|at| now < at);
        let refresh = match self.settings.read_mode {
            engine::ReadMode::Lease => Some(now + self.settings.timing.heartbeat / 2),
            engine::ReadMode::ReadIndex => None,
        };
        Look {
            leadership: if led {
                Leadership::Leader(leader_id)
            } else {
                Leadership::Unknown
            },
            leading,
            observed: Some(Observed {
                term: leader_id.term.0,
                sole_voter: alone && settled,
                quorum_acked: acked.filter(|_| voter && !alone),
            }),
            again: if alone || !led {
                None
            } else {
                [lost_at, refresh].into_iter().flatten().min()
            },
        }
    }

    fn announce(&self, now: Leadership) {
        let before = *self.leadership.borrow();
        if before == now {
            return;
        }
        tracing::info!(group = %self.id, ?before, ?now, "leadership");
        self.leadership.send_replace(now);
        if known(now).is_some_and(|leader| Some(leader) != known(before)) {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(before, Leadership::Leader(_)) && now == Leadership::Unknown {
            self.pending.fail_all("the leader has lost its quorum");
        }
    }

    /// Makes the state durable and purges the log, as far as it is time to.
    pub(crate) async fn upkeep(&self, retain: u64, quiet: bool) {
        let Some(raft) = self.raft.load_full() else {
            return;
        };
        let durable = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.snapshot.as_ref().map_or(0, LogId::index)
        };
        let due = self.tail.upkeep(retain, quiet, durable);
        // A failure means that openraft has stopped: the supervisor sees that too.
        if let Some(index) = due.purge {
            let _ = raft.trigger().purge_log(index).await;
        }
        if due.flush {
            let _ = raft.trigger().snapshot().await;
        }
    }

    /// Notes that a message of the leader has come, and was taken.
    pub(super) fn hears_its_leader(&self) {
        *self.heard.lock() = Some(Instant::now());
    }

    fn in_contact(&self, leadership: Leadership) -> bool {
        match leadership {
            Leadership::Leader(_) => true,
            Leadership::Follower { .. } => {
                let heard = *self.heard.lock();
                heard.is_some_and(|at| at.elapsed() < self.settings.timing.election_max)
            }
            Leadership::Unknown => false,
        }
    }

    pub(super) fn running(&self) -> Result<Arc<Raft>, RaftError> {
        self.raft.load_full().ok_or_else(|| self.why_stopped())
    }

    fn why_stopped(&self) -> RaftError {
        let why = self.stopped.lock().clone();
        RaftError::Stopped(why.unwrap_or_else(|| "not started".to_owned()))
    }

    fn not_leader(&self) -> RaftError {
        RaftError::NotLeader {
            leader: known(*self.leadership.borrow()).map(|leader| leader.node),
        }
    }
}

fn known(leadership: Leadership) -> Option<LeaderId> {
    match leadership {
        Leadership::Leader(leader) | Leadership::Follower { leader } => Some(leader),
        Leadership::Unknown => None,
    }
}

/// openraft's instant as tokio's, never later than it was.
pub(super) fn instant(at: TokioInstant) -> Instant {
    let now = Instant::now();
    let age = at.elapsed();
    now.checked_sub(age).unwrap_or(now)
}

/// Whether `all` is older than `server`.
fn behind(all: &RaftMetrics<TypeConfig>, server: &RaftServerMetrics<TypeConfig>) -> bool {
    all.vote != server.vote
        || all.state != server.state
        || all.membership_config.log_id() != server.membership_config.log_id()
        || all.committed_membership_config.log_id() != server.committed_membership_config.log_id()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Why openraft did not take a request on.
pub(super) fn forwarded(forward: &ForwardToLeader<TypeConfig>) -> RaftError {
    RaftError::NotLeader {
        leader: match forward.reason {
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                forward.leader_id.map(NodeId)
            }
            ForwardReason::LeaseExpired => None,
        },
    }
}

/// ReadIndex rounds of the openraft that runs at the moment.
struct QuorumRounds(Arc<Group>);

impl Rounds for QuorumRounds {
    async fn round(&self) -> Round {
        let group = &self.0;
        let raft = match group.running() {
            Ok(raft) => raft,
            Err(stopped) => return Round::Refused(stopped),
        };
        let _in_haste = group.haste.as_ref().map(Haste::hurry);
        let bound = group.settings.round();
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(bound);
        // openraft's own wait begins when its core takes the request, which may be late.
        let read = tokio::time::timeout(bound * 2, raft.get_read_linearizer(option)).await;
        match read {
            Err(_) => Round::NoQuorum,
            Ok(Ok(linearizer)) => {
                let read = linearizer.read_log_id();
                Round::Confirmed(ReadIndex {
                    leader: LeaderId {
                        term: Term(read.committed_leader_id().term),
                        node: group.node,
                    },
                    index: LogIndex(read.index()),
                })
            }
            Ok(Err(OpenraftError::APIError(error))) => match error {
                LinearizableReadError::QuorumNotEnough(_) => Round::NoQuorum,
                LinearizableReadError::ForwardToLeader(forward) => {
                    Round::Refused(forwarded(&forward))
                }
            },
            Ok(Err(OpenraftError::Fatal(fatal))) => {
                Round::Refused(RaftError::Stopped(fatal.to_string()))
            }
        }
    }
}

impl LeaderView for Group {
    fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    fn leadership_changes(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn verify_leader(&self, ctx: &Context) -> Result<ReadIndex, RaftError> {
        if let Some(read) = self.verify_leader_now() {
            return Ok(read);
        }
        if let Leadership::Follower { leader } = self.leadership() {
            return Err(RaftError::NotLeader {
                leader: Some(leader.node),
            });
        }
        if self.stop.is_cancelled() {
            return Err(self.why_stopped());
        }
        self.reads.verify(ctx).await
    }

    fn verify_leader_now(&self) -> Option<ReadIndex> {
        self.proofs.now(&self.applied)
    }

    async fn linearizable_read(&self, ctx: &Context) -> Result<LogIndex, RaftError> {
        let read = self.verify_leader(ctx).await?;
        if self.applied.index() < read.index {
            let raft = self.running()?;
            let mut progress = raft.watch_apply_progress();
            let reached = async {
                while self.applied.index() < read.index {
                    if progress.changed().await.is_err() {
                        return Err(self.why_stopped());
                    }
                }
                Ok(())
            };
            ctx.run(reached).await.map_err(RaftError::NotApplied)??;
        }
        Ok(read.index)
    }
}

impl Proposer for Group {
    fn enqueue(&self, ctx: &Context, leader: LeaderId, entry: Bytes, done: OnApplied) {
        let size = entry.len();
        let limit = self.settings.max_entry_bytes;
        if size > limit {
            return done(Err(RaftError::TooLarge { size, limit }));
        }
        if let Some(ended) = ctx.ended() {
            return done(Err(RaftError::NotApplied(ended)));
        }
        if self.leadership() != Leadership::Leader(leader) {
            return done(Err(self.not_leader()));
        }
        let raft = match self.running() {
            Ok(raft) => raft,
            Err(stopped) => return done(Err(stopped)),
        };
        let ticket = match self.pending.insert(ctx, size, done) {
            Ok(ticket) => ticket,
            Err(done) => return done(Err(RaftError::Overloaded("proposals in flight"))),
        };
        let answer = Answer::new(move |result| end(ticket, result));
        let write = raft
            .write(Payload(entry))
            .with_leader(leader.term.0)
            .responder(answer)
            .into_future();
        // Sent at the call, to keep the order of calls, and from any thread: openraft's queue is
        // longer than what may be in flight. Where it is not taken, the answer is dropped, and the
        // ticket in it ends the proposal as unknown.
        let _ = tokio::task::unconstrained(write).now_or_never();
    }

    async fn propose(&self, ctx: &Context, entry: Bytes) -> Result<engine::Applied, RaftError> {
        let Leadership::Leader(leader) = self.leadership() else {
            return Err(self.not_leader());
        };
        let (tx, rx) = oneshot::channel();
        self.enqueue(
            ctx,
            leader,
            entry,
            // A caller that is gone needs no answer.
            Box::new(move |result| drop(tx.send(result))),
        );
        match ctx.run(rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RaftError::OutcomeUnknown("the group let go of it")),
            Err(_) => Err(RaftError::OutcomeUnknown("the caller stopped waiting")),
        }
    }
}

fn end(ticket: Ticket, result: ClientWriteResult<TypeConfig>) {
    ticket.end(match result {
        Ok(written) => Ok(engine::Applied {
            index: LogIndex(written.log_id.index()),
            response: written.data.0,
        }),
        Err(ClientWriteError::ForwardToLeader(forward)) => Err(forwarded(&forward)),
        Err(ClientWriteError::LogEntryDiscarded(_)) => Err(RaftError::OutcomeUnknown(
            "another leader's log replaced it",
        )),
        // Neither is a normal entry's: nothing was appended.
        Err(error @ ClientWriteError::ChangeMembershipError(_))
        | Err(error @ ClientWriteError::PreconditionFailed(_)) => {
            Err(RaftError::Stopped(error.to_string()))
        }
    });
}

impl Status for Group {
    fn status(&self) -> GroupStatus {
        let leadership = self.leadership();
        let mut status = GroupStatus {
            group: self.id,
            node: self.node,
            term: Term(0),
            leader: known(leadership),
            leading: matches!(leadership, Leadership::Leader(_)),
            in_contact: self.in_contact(leadership),
            last_log_index: LogIndex(0),
            commit_index: LogIndex(0),
            heard_commit_index: LogIndex(0),
            last_applied: self.applied.index(),
            snapshot_index: LogIndex(0),
            peers: Vec::new(),
            pending_proposals: self.pending.len() as u64,
            pending_reads: self.reads.waiting() as u64,
            stopped: None,
        };
        let raft = match self.running() {
            Ok(raft) => raft,
            Err(error) => {
                status.stopped = Some(error.to_string());
                return status;
            }
        };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        status.term = Term(metrics.current_term);
        status.last_log_index = LogIndex(metrics.last_log_index.unwrap_or(0));
        let commit = metrics.local_committed.as_ref().map_or(0, LogId::index);
        status.commit_index = LogIndex(commit);
        let heard = metrics.cluster_committed.as_ref().map_or(0, LogId::index);
        status.heard_commit_index = LogIndex(heard.max(commit));
        let snapshot = metrics.snapshot.as_ref().map_or(0, LogId::index);
        status.snapshot_index = LogIndex(snapshot);
        let now = Instant::now();
        status.peers = members(&metrics)
            .into_iter()
            .filter(|(node, _)| *node != self.node)
            .map(|(node, member)| PeerStatus {
                node,
                role: member.role,
                matched: metrics
                    .replication
                    .as_ref()
                    .and_then(|all| all.get(&node.0))
                    .map(|matched| LogIndex(matched.as_ref().map_or(0, LogId::index))),
                last_ack_ms: metrics
                    .heartbeat
                    .as_ref()
                    .and_then(|all| all.get(&node.0))
                    .and_then(|acked| acked.as_ref())
                    .map(|acked| {
                        let acked = instant(**acked);
                        let age = now.saturating_duration_since(acked);
                        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
                    }),
            })
            .collect();
        status
    }
}

/// The members of the effective membership.
pub(super) fn members(metrics: &RaftMetrics<TypeConfig>) -> BTreeMap<NodeId, Member> {
    let stored = &metrics.membership_config;
    // One set of voters, or the old and the new one of a change.
    let (old, new) = match stored.get_joint_config().as_slice() {
        [] => return BTreeMap::new(),
        [only] => (only, only),
        [old, .., new] => (old, new),
    };
    stored
        .nodes()
        .map(|(id, peer)| {
            let member = Member {
                address: peer.address.clone(),
                role: match (old.contains(id), new.contains(id)) {
                    (true, true) => Role::Voter,
                    (false, true) => Role::IncomingVoter,
                    (true, false) => Role::OutgoingVoter,
                    (false, false) => Role::Learner,
                },
            };
            (NodeId(*id), member)
        })
        .collect()
}

impl Group {
    /// ReadIndex rounds sent so far.
    pub(super) fn rounds(&self) -> u64 {
        self.reads.rounds()
    }
}

impl Engine for Group {
    fn group(&self) -> GroupId {
        self.id
    }

    fn node(&self) -> NodeId {
        self.node
    }
}

//! Proofs of leadership that need no round: being the only voter, and the leader's lease.
//!
//! # Invariants
//! 1. *Only voter.* The proof for term T stands only while the committed membership has this node
//!    as its only voter and no change of it is under way. Before this node proposes any change of
//!    voters in T, it fences the proof for T for good ([`Proofs::fence_sole`]), and proposes it
//!    under the condition that T still is the term.
//! 2. *Lease.* It ends a lease after the moment a quorum-acknowledged message was **sent**, less a
//!    margin for drift, by a clock that counts suspend. Before leadership is handed on in T the
//!    lease is fenced for T for good ([`Proofs::fence_lease`]).
//! 3. Neither proves anything before an entry of the term is applied here: until then this node may
//!    lack what earlier leaders acknowledged.
//!
//! Reading a proof takes a few atomic loads (and a clock, for the lease): it is on the path of
//! every read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::engine::ReadIndex;
use crate::mutations::{self, Mutation};
use crate::{LeaderId, LogIndex, NodeId, Term};

/// Clocks may drift apart by a tenth over one lease (and are set to agree far better).
const DRIFT: u32 = 10;

/// Monotonic and boot time advance together to within this, unless the machine was suspended.
const SUSPENDED: Duration = Duration::from_millis(5);

/// A monotonic clock that goes on while the machine is suspended.
pub(crate) trait BootClock: Send + Sync + std::fmt::Debug {
    /// Since boot.
    fn now(&self) -> Duration;
}

/// `CLOCK_BOOTTIME`.
#[derive(Debug)]
pub(crate) struct SystemBootClock;

impl BootClock for SystemBootClock {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither part is negative since boot.
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }
}

/// How far the state machine is, for readers on any thread.
#[derive(Default)]
pub(crate) struct Applied {
    term: AtomicU64,
    index: AtomicU64,
}

impl Applied {
    /// Called by the only applier, before anyone is told that the entry is applied.
    pub(crate) fn advance(&self, term: u64, index: u64) {
        self.index.store(index, Ordering::Release);
        self.term.store(term, Ordering::Release);
    }

    pub(crate) fn index(&self) -> LogIndex {
        LogIndex(self.index.load(Ordering::Acquire))
    }

    /// The last applied index, if it is an entry of `term`.
    fn index_in(&self, term: u64) -> Option<LogIndex> {
        // The term first: an index read after it is at least of that term.
        (self.term.load(Ordering::Acquire) == term).then(|| self.index())
    }
}

/// What the group's supervisor saw of openraft, at one instant.
pub(crate) struct Observed {
    pub(crate) term: u64,
    /// Leader, and the committed membership has this node as its only voter.
    pub(crate) sole_voter: bool,
    /// When the latest message was sent that a quorum has acknowledged.
    pub(crate) quorum_acked: Option<Instant>,
}

#[derive(Default)]
struct Fences {
    sole: u64,
    lease: u64,
    /// Boot time less monotonic time, as last seen: it jumps when the machine was suspended.
    offset: Option<Duration>,
    /// Only what was sent after this instant counts for a lease.
    floor: Option<Instant>,
}

/// The proofs of one group on this node.
pub(crate) struct Proofs {
    node: NodeId,
    /// Zero where leases are off.
    lease: Duration,
    clock: Arc<dyn BootClock>,
    /// An instant and its boot time's zero, to compare the clocks by.
    origin: Instant,
    /// The term in which this node is the only voter and leads; 0: none.
    sole_term: AtomicU64,
    /// The term of the lease; 0: none. Written before `lease_until`, cleared after.
    lease_term: AtomicU64,
    /// Boot time in nanoseconds at which the lease ends.
    lease_until: AtomicU64,
    fences: Mutex<Fences>,
}

impl Proofs {
    /// `lease` is how long followers refuse to elect another leader; `None`: no lease reads.
    pub(crate) fn new(node: NodeId, lease: Option<Duration>, clock: Arc<dyn BootClock>) -> Self {
        Self {
            node,
            lease: lease.map_or(Duration::ZERO, |lease| {
                if mutations::active(Mutation::NoLeaseMargin) {
                    return lease * 8;
                }
                lease - lease / DRIFT
            }),
            clock,
            origin: Instant::now(),
            sole_term: AtomicU64::new(0),
            lease_term: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            fences: Mutex::default(),
        }
    }

    /// A proof that this node leads at this instant, if it has one.
    pub(crate) fn now(&self, applied: &Applied) -> Option<ReadIndex> {
        let sole = self.sole_term.load(Ordering::Acquire);
        let term = if sole != 0 { sole } else { self.leased_term()? };
        let index = applied.index_in(term)?;
        Some(ReadIndex {
            leader: LeaderId {
                term: Term(term),
                node: self.node,
            },
            index,
        })
    }

    fn leased_term(&self) -> Option<u64> {
        let until = self.lease_until.load(Ordering::Acquire);
        if until == 0 {
            return None;
        }
        // The end belongs to this term: a new term is written before its own end.
        let term = self.lease_term.load(Ordering::Acquire);
        let same = self.lease_until.load(Ordering::Acquire) == until;
        (same && nanos(self.clock.now()) < until).then_some(term)
    }

    /// Renews or withdraws the proofs by what was seen of openraft.
    pub(crate) fn observe(&self, seen: Option<&Observed>) {
        let mut fences = self.fences.lock();
        let Some(seen) = seen else {
            return self.withdraw_locked();
        };
        let sole = seen.sole_voter && fences.sole < seen.term;
        self.sole_term
            .store(if sole { seen.term } else { 0 }, Ordering::Release);
        if self.lease.is_zero() {
            return;
        }
        let until = self.lease_end(&mut fences, seen);
        if self.lease_term.load(Ordering::Acquire) != seen.term {
            // Never the old end under the new term.
            self.lease_until.store(0, Ordering::Release);
            self.lease_term.store(seen.term, Ordering::Release);
        }
        self.lease_until.store(until, Ordering::Release);
    }

    fn lease_end(&self, fences: &mut Fences, seen: &Observed) -> u64 {
        let (now, boot) = (Instant::now(), self.clock.now());
        let monotonic = now.saturating_duration_since(self.origin);
        let offset = boot.saturating_sub(monotonic);
        if fences
            .offset
            .is_some_and(|before| offset.abs_diff(before) > SUSPENDED)
        {
            fences.floor = Some(now);
        }
        fences.offset = Some(offset);
        if fences.lease >= seen.term {
            return 0;
        }
        match seen.quorum_acked {
            Some(sent) if fences.floor.is_none_or(|floor| sent > floor) => {
                let age = now.saturating_duration_since(sent);
                match self.lease.checked_sub(age) {
                    Some(left) => nanos(boot + left),
                    None => 0,
                }
            }
            _ => 0,
        }
    }

    /// Withdraws every proof until the next [`Proofs::observe`].
    pub(crate) fn withdraw(&self) {
        let _fences = self.fences.lock();
        self.withdraw_locked();
    }

    fn withdraw_locked(&self) {
        self.sole_term.store(0, Ordering::SeqCst);
        self.lease_until.store(0, Ordering::SeqCst);
    }

    /// From now on, in terms up to `term`, being the only voter proves nothing.
    pub(crate) fn fence_sole(&self, term: Term) {
        let mut fences = self.fences.lock();
        fences.sole = fences.sole.max(term.0);
        self.sole_term.store(0, Ordering::SeqCst);
    }

    /// From now on there is no lease in terms up to `term`.
    pub(crate) fn fence_lease(&self, term: Term) {
        let mut fences = self.fences.lock();
        fences.lease = fences.lease.max(term.0);
        self.lease_until.store(0, Ordering::SeqCst);
    }
}

fn nanos(duration: Duration) -> u64 {
    // 584 years.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1000);

    /// Follows tokio's paused clock, ahead by what a test added.
    #[derive(Debug)]
    struct TestClock {
        origin: Instant,
        ahead: Mutex<Duration>,
    }

    impl BootClock for TestClock {
        fn now(&self) -> Duration {
            Duration::from_secs(100) + self.origin.elapsed() + *self.ahead.lock()
        }
    }

    fn clock() -> Arc<TestClock> {
        Arc::new(TestClock {
            origin: Instant::now(),
            ahead: Mutex::default(),
        })
    }

    fn leader(term: u64, acked: Option<Instant>) -> Observed {
        Observed {
            term,
            sole_voter: false,
            quorum_acked: acked,
        }
    }

    fn applied(term: u64, index: u64) -> Applied {
        let applied = Applied::default();
        applied.advance(term, index);
        applied
    }

    fn sole(term: u64) -> Observed {
        Observed {
            term,
            sole_voter: true,
            quorum_acked: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_voter_proves_leadership_once_an_entry_of_its_term_is_applied() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), None, clock.clone());
        proofs.observe(Some(&sole(3)));
        assert_eq!(proofs.now(&applied(2, 10)), None);
        let proof = proofs.now(&applied(3, 11)).unwrap();
        assert_eq!(proof.index, LogIndex(11));
        assert_eq!(proof.leader.term, Term(3));
    }

    /// What was seen before a change of voters was proposed may arrive after it.
    #[tokio::test(start_paused = true)]
    async fn a_fence_holds_against_what_was_seen_before_it() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), None, clock.clone());
        proofs.observe(Some(&sole(3)));
        proofs.fence_sole(Term(3));
        assert_eq!(proofs.now(&applied(3, 11)), None);
        proofs.observe(Some(&sole(3)));
        assert_eq!(proofs.now(&applied(3, 11)), None);
        proofs.observe(Some(&sole(4)));
        assert!(proofs.now(&applied(4, 12)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_from_the_sending_and_ends_a_margin_early() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), Some(LEASE), clock.clone());
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(300)).await;
        proofs.observe(Some(&leader(2, Some(sent))));
        tokio::time::advance(Duration::from_millis(599)).await;
        assert!(proofs.now(&applied(2, 5)).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(proofs.now(&applied(2, 5)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_given_up_stays_given_up_in_that_term() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), Some(LEASE), clock.clone());
        proofs.observe(Some(&leader(2, Some(Instant::now()))));
        assert!(proofs.now(&applied(2, 5)).is_some());
        proofs.fence_lease(Term(2));
        assert_eq!(proofs.now(&applied(2, 5)), None);
        proofs.observe(Some(&leader(2, Some(Instant::now()))));
        assert_eq!(proofs.now(&applied(2, 5)), None);
        proofs.observe(Some(&leader(3, Some(Instant::now()))));
        assert!(proofs.now(&applied(3, 6)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn suspend_ends_the_lease_and_discounts_what_was_sent_before_it() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), Some(LEASE), clock.clone());
        let sent = Instant::now();
        proofs.observe(Some(&leader(2, Some(sent))));
        *clock.ahead.lock() += Duration::from_secs(60);
        assert_eq!(proofs.now(&applied(2, 5)), None);
        proofs.observe(Some(&leader(2, Some(sent))));
        assert_eq!(proofs.now(&applied(2, 5)), None);
        tokio::time::advance(Duration::from_millis(10)).await;
        proofs.observe(Some(&leader(2, Some(Instant::now()))));
        assert!(proofs.now(&applied(2, 5)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn without_leases_an_acknowledged_leader_proves_nothing() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), None, clock.clone());
        proofs.observe(Some(&leader(2, Some(Instant::now()))));
        assert_eq!(proofs.now(&applied(2, 5)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn losing_leadership_withdraws_the_lease() {
        let clock = clock();
        let proofs = Proofs::new(NodeId(1), Some(LEASE), clock.clone());
        proofs.observe(Some(&leader(2, Some(Instant::now()))));
        proofs.observe(None);
        assert_eq!(proofs.now(&applied(2, 5)), None);
    }
}

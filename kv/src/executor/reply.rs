//! Where a command's reply is left, and the future that fetches it.
//!
//! The commands of one pipeline share one [`ReplyGroup`]: one allocation, and replies that come
//! together are left under one lock and wake their reader once.
//!
//! # Invariants
//! 1. A command is either claimed for evaluation or given up, never both: whoever gives up a
//!    command that was not claimed may say *not applied*, because nobody will evaluate it.
//! 2. Every [`Responder`] leaves exactly one reply, if need be when it is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use bytes::Bytes;
use leadline_raft::{Context, Ended};
use parking_lot::Mutex;

use crate::KvError;

pub(crate) type Reply = Result<Bytes, KvError>;

const STOPPED: &str = "the shard stopped before it answered";
const DEADLINE: &str = "the deadline passed while the write was replicated";
const GONE: &str = "the caller left while the write was replicated";

#[derive(Debug)]
enum State {
    Queued,
    Claimed,
    Done(Reply),
    /// Given up before evaluation, or the reply was taken.
    Closed,
}

#[derive(Debug)]
struct Slot {
    state: State,
    waker: Option<Waker>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            state: State::Queued,
            waker: None,
        }
    }

    fn leave(&mut self, reply: Reply) -> Option<Waker> {
        if matches!(self.state, State::Queued | State::Claimed) {
            self.state = State::Done(reply);
        }
        self.waker.take()
    }
}

/// The replies to come of commands that were submitted together.
#[derive(Debug)]
pub(crate) struct ReplyGroup(Mutex<Slots>);

/// The first slot stands apart so that a lone command costs one allocation.
#[derive(Debug)]
struct Slots {
    first: Slot,
    rest: Vec<Slot>,
}

impl Slots {
    fn at(&mut self, index: usize) -> &mut Slot {
        match index {
            0 => &mut self.first,
            _ => &mut self.rest[index - 1],
        }
    }
}

impl ReplyGroup {
    /// Slots for `commands` replies, at least one.
    pub(crate) fn new(commands: usize) -> Arc<Self> {
        let rest = (1..commands).map(|_| Slot::new()).collect();
        Arc::new(Self(Mutex::new(Slots {
            first: Slot::new(),
            rest,
        })))
    }
}

/// The executor's end of one slot.
#[derive(Debug)]
pub(crate) struct Responder {
    group: Option<Arc<ReplyGroup>>,
    index: usize,
}

impl Responder {
    pub(crate) fn new(group: &Arc<ReplyGroup>, index: usize) -> Self {
        Self {
            group: Some(Arc::clone(group)),
            index,
        }
    }

    /// Takes the command for evaluation; `false` when its caller has given it up.
    pub(crate) fn claim(&self) -> bool {
        let Some(group) = &self.group else {
            return false;
        };
        let mut slots = group.0.lock();
        let slot = slots.at(self.index);
        let queued = matches!(slot.state, State::Queued);
        if queued {
            slot.state = State::Claimed;
        }
        queued
    }

    /// Gives the claim back: the command was not evaluated after all, and left no effect.
    pub(crate) fn unclaim(&self) {
        if let Some(group) = &self.group {
            let mut slots = group.0.lock();
            let slot = slots.at(self.index);
            if matches!(slot.state, State::Claimed) {
                slot.state = State::Queued;
            }
        }
    }

    /// Whether the caller has given the command up, or has its reply.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.group
            .as_ref()
            .is_none_or(|group| matches!(group.0.lock().at(self.index).state, State::Closed))
    }

    /// Leaves the reply and wakes who waits for it.
    pub(crate) fn send(mut self, reply: Reply) {
        if let Some(group) = self.group.take() {
            let waker = group.0.lock().at(self.index).leave(reply);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            let waker = {
                let mut slots = group.0.lock();
                let slot = slots.at(self.index);
                let reply = match slot.state {
                    State::Queued => KvError::NoLeader { leader: None },
                    _ => KvError::Unknown(STOPPED),
                };
                slot.leave(Err(reply))
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Leaves many replies: neighbours of one group under one lock, and each reader is woken once.
pub(crate) fn send_all(replies: impl IntoIterator<Item = (Responder, Reply)>) {
    let mut replies = replies.into_iter().peekable();
    while let Some((mut responder, reply)) = replies.next() {
        let Some(group) = responder.group.take() else {
            continue;
        };
        let mut woken: Option<Waker> = None;
        let mut slots = group.0.lock();
        let mut leave = |slots: &mut Slots, index: usize, reply: Reply| {
            if let Some(waker) = slots.at(index).leave(reply) {
                match &woken {
                    Some(first) if first.will_wake(&waker) => {}
                    // Readers of one group in several tasks are rare: wake the earlier one now.
                    _ => {
                        if let Some(other) = woken.replace(waker) {
                            other.wake();
                        }
                    }
                }
            }
        };
        leave(&mut slots, responder.index, reply);
        while let Some((mut next, reply)) = replies.next_if(|(next, _)| {
            next.group
                .as_ref()
                .is_some_and(|other| Arc::ptr_eq(other, &group))
        }) {
            next.group = None;
            leave(&mut slots, next.index, reply);
        }
        drop(slots);
        if let Some(waker) = woken {
            waker.wake();
        }
    }
}

/// The caller's end of one slot: resolves when the reply is there, at the latest when `ctx` ends.
pub(crate) struct ReplyFuture {
    group: Arc<ReplyGroup>,
    index: usize,
    ctx: Context,
    /// A read that ends unanswered changed nothing.
    read: bool,
    /// Made only once a reply has to be waited for.
    ended: Option<Pin<Box<dyn Future<Output = Ended> + Send>>>,
}

impl ReplyFuture {
    pub(crate) fn new(group: &Arc<ReplyGroup>, index: usize, ctx: &Context, read: bool) -> Self {
        Self {
            group: Arc::clone(group),
            index,
            ctx: ctx.clone(),
            read,
            ended: None,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.group.0.lock().at(self.index).state, State::Done(_))
    }

    fn take(slot: &mut Slot) -> Option<Reply> {
        match std::mem::replace(&mut slot.state, State::Closed) {
            State::Done(reply) => Some(reply),
            State::Closed => Some(Err(KvError::Unknown("the reply was taken already"))),
            waiting @ (State::Queued | State::Claimed) => {
                slot.state = waiting;
                None
            }
        }
    }

    /// What to say of a command whose context has ended without a reply (invariant 1).
    fn give_up(&self, ended: Ended) -> Reply {
        let mut slots = self.group.0.lock();
        let slot = slots.at(self.index);
        if let Some(reply) = Self::take(slot) {
            return reply;
        }
        let claimed = matches!(slot.state, State::Claimed);
        slot.state = State::Closed;
        slot.waker = None;
        Err(match ended {
            _ if self.read || !claimed => KvError::NotApplied(ended),
            Ended::Deadline => KvError::Unknown(DEADLINE),
            Ended::Cancelled => KvError::Unknown(GONE),
        })
    }
}

impl Future for ReplyFuture {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Reply> {
        let this = &mut *self;
        {
            let mut slots = this.group.0.lock();
            let slot = slots.at(this.index);
            if let Some(reply) = Self::take(slot) {
                return Poll::Ready(reply);
            }
            match &mut slot.waker {
                Some(waker) => waker.clone_from(task.waker()),
                none => *none = Some(task.waker().clone()),
            }
        }
        let ended = this.ended.get_or_insert_with(|| {
            let ctx = this.ctx.clone();
            Box::pin(async move { ctx.done().await })
        });
        match ended.as_mut().poll(task) {
            Poll::Ready(ended) => Poll::Ready(this.give_up(ended)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    fn ctx() -> Context {
        Context::with_timeout(Duration::from_secs(1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_given_up_before_evaluation_is_not_applied_and_cannot_be_claimed() {
        let group = ReplyGroup::new(1);
        let responder = Responder::new(&group, 0);
        let reply = ReplyFuture::new(&group, 0, &ctx(), false).await;
        assert_eq!(reply, Err(KvError::NotApplied(Ended::Deadline)));
        assert!(!responder.claim());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_given_up_after_evaluation_is_unknown_and_a_read_is_not_applied() {
        let group = ReplyGroup::new(2);
        let (write, read) = (Responder::new(&group, 0), Responder::new(&group, 1));
        assert!(write.claim() && read.claim());
        let reply = ReplyFuture::new(&group, 0, &ctx(), false).await;
        assert_eq!(reply, Err(KvError::Unknown(DEADLINE)));
        let reply = ReplyFuture::new(&group, 1, &ctx(), true).await;
        assert_eq!(reply, Err(KvError::NotApplied(Ended::Deadline)));
    }

    #[tokio::test]
    async fn a_responder_dropped_unsent_says_unknown_once_evaluated_and_not_applied_before() {
        let group = ReplyGroup::new(2);
        let (first, second) = (Responder::new(&group, 0), Responder::new(&group, 1));
        assert!(first.claim());
        drop((first, second));
        let reply = ReplyFuture::new(&group, 0, &ctx(), false).await;
        assert_eq!(reply, Err(KvError::Unknown(STOPPED)));
        let reply = ReplyFuture::new(&group, 1, &ctx(), false).await;
        assert_eq!(reply, Err(KvError::NoLeader { leader: None }));
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn replies_of_one_pipeline_that_come_together_wake_their_reader_once() {
        let group = ReplyGroup::new(8);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut task = TaskContext::from_waker(&waker);
        let ctx = ctx();
        let mut futures: Vec<_> = (0..8)
            .map(|index| ReplyFuture::new(&group, index, &ctx, false))
            .collect();
        for future in &mut futures {
            assert!(Pin::new(future).poll(&mut task).is_pending());
        }
        send_all((0..8).map(|index| (Responder::new(&group, index), Ok(Bytes::new()))));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        for future in &mut futures {
            assert!(Pin::new(future).poll(&mut task).is_ready());
        }
    }
}

//! Commands that wait for a key: BLPOP and its like.
//!
//! # Invariants
//! 1. A key is watched before it is tried: a push between the two wakes the watch.
//! 2. One attempt at a time, and none while an earlier one is unsettled: two pops never take
//!    effect for one command.
//! 3. An attempt keeps its request id until its outcome is known. The next one gets a new id: an
//!    id that was held for the whole wait would keep its session's remembered ids alive with it.
//! 4. The nil of a timeout is answered only when no attempt is unsettled.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use leadline_kv::{Coordinator, KeyWatch, KvError, Operation, Outcome, RequestId};
use leadline_raft::{Context, DeadlineSource, Ended};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clients::Unblock;
use crate::operation::RedisOperation;
use crate::reply::{Reply, ReplyError, Resp};
use crate::rows::first_row_key;
use crate::spec::Blocking;

/// Each operation inside a wait may take as long as the fallback deadline, but not beyond the end
/// of the wait, and never less than this: a pop that begins as the time runs out gets a chance.
const LEAST: Duration = Duration::from_millis(250);

/// Between attempts to reach a shard without a leader.
const RETRY: Duration = Duration::from_millis(50);

/// One attempt, ready to be sent as often as it takes.
struct Try {
    key: [Bytes; 1],
    operation: Arc<RedisOperation>,
    /// Lost when it has woken; registered anew before the next attempt.
    watch: Option<KeyWatch>,
}

/// Gives a request id back when it is dropped.
struct Finish<'a>(&'a dyn Coordinator, RequestId);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish_request_id(self.1);
    }
}

/// A blocking command of one client.
pub(crate) struct Wait {
    coordinator: Arc<dyn Coordinator>,
    root: Context,
    tries: Vec<Try>,
    /// When the client gets `on_timeout`.
    ends: Option<Instant>,
    /// The deadline of the command itself, if it has one (`DEADLINE ms BLPOP …`).
    limit: Option<Instant>,
    on_timeout: Reply,
    resp: Resp,
    operation_timeout: Duration,
    unblock: oneshot::Receiver<Unblock>,
}

/// How a wait goes on.
enum Next {
    Woken,
    TimedOut,
    Unblocked(Unblock),
}

impl Wait {
    /// # Errors
    /// The error line for attempts that cannot be parsed.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a fact of its own; called once"
    )]
    pub(crate) fn new(
        coordinator: Arc<dyn Coordinator>,
        root: Context,
        blocking: Blocking,
        database: u8,
        resp: Resp,
        now: Instant,
        limit: Option<Duration>,
        operation_timeout: Duration,
        unblock: oneshot::Receiver<Unblock>,
    ) -> Result<Self, ReplyError> {
        let tries = blocking
            .attempts
            .into_iter()
            .map(|attempt| {
                Ok(Try {
                    key: [first_row_key(database, &attempt.watch)],
                    operation: Arc::new(RedisOperation::from_args(attempt.args, database, resp)?),
                    watch: None,
                })
            })
            .collect::<Result<_, ReplyError>>()?;
        Ok(Self {
            coordinator,
            root,
            tries,
            ends: blocking
                .timeout
                .and_then(|timeout| now.checked_add(timeout)),
            limit: limit.and_then(|limit| now.checked_add(limit)),
            on_timeout: blocking.on_timeout,
            resp,
            operation_timeout,
            unblock,
        })
    }

    /// Waits until an attempt succeeds or the time is up. Dropping it gives up: a pop in flight may
    /// still take effect.
    pub(crate) async fn run(mut self) -> Result<Bytes, KvError> {
        let mut failing_since = None;
        loop {
            match self.attempt_changed().await {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => failing_since = None,
                // A shard between two leaders is part of waiting, for as long as one operation may take.
                Err(error @ KvError::NoLeader { .. }) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() + RETRY >= self.operation_timeout || self.over(RETRY) {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            match self.wait().await {
                Next::Woken => {}
                Next::TimedOut if self.limit_comes_first() => {
                    return Err(KvError::NotApplied(Ended::Deadline));
                }
                Next::TimedOut | Next::Unblocked(Unblock::Timeout) => {
                    return Ok(self.encoded(&self.on_timeout));
                }
                Next::Unblocked(Unblock::Error) => {
                    return Ok(self.encoded(&Reply::Error(Bytes::from_static(
                        b"UNBLOCKED client unblocked via CLIENT UNBLOCK",
                    ))));
                }
                Next::Unblocked(Unblock::Stopping) => return Err(KvError::Stopping),
            }
        }
    }

    fn encoded(&self, reply: &Reply) -> Bytes {
        let mut out = bytes::BytesMut::new();
        crate::reply::encode(reply, self.resp, &mut out);
        out.freeze()
    }

    fn limit_comes_first(&self) -> bool {
        match (self.limit, self.ends) {
            (Some(limit), Some(ends)) => limit < ends,
            (limit, _) => limit.is_some(),
        }
    }

    /// When waiting ends, whatever the answer is then.
    fn end(&self) -> Option<Instant> {
        match (self.limit, self.ends) {
            (Some(limit), Some(ends)) => Some(limit.min(ends)),
            (limit, ends) => limit.or(ends),
        }
    }

    fn over(&self, margin: Duration) -> bool {
        self.end().is_some_and(|end| end <= Instant::now() + margin)
    }

    /// The context of one operation inside the wait.
    fn operation_context(&self) -> Context {
        let now = Instant::now();
        let timeout = self.end().map_or(self.operation_timeout, |end| {
            end.saturating_duration_since(now)
                .clamp(LEAST.min(self.operation_timeout), self.operation_timeout)
        });
        let deadline = match self.limit {
            Some(limit) => limit.min(now + timeout),
            None => now + timeout,
        };
        self.root.sharing(deadline, DeadlineSource::Caller)
    }

    /// Tries, in order, the keys that were not tried since they changed. `None`: nothing there.
    async fn attempt_changed(&mut self) -> Result<Option<Bytes>, KvError> {
        let changed: Vec<usize> = (0..self.tries.len())
            .filter(|&at| self.tries[at].watch.is_none())
            .collect();
        let ctx = self.operation_context();
        let watches = join_all(
            changed
                .iter()
                .map(|&at| self.coordinator.watch(&ctx, &self.tries[at].key)),
        )
        .await;
        // Every watch is in place before the first attempt, and is kept only if its key is tried.
        let watches: Vec<KeyWatch> = watches.into_iter().collect::<Result<_, _>>()?;
        for (at, watch) in changed.into_iter().zip(watches) {
            let reply = self.attempt(at).await?;
            // The empty string is `Reply::Block`.
            if !reply.is_empty() {
                return Ok(Some(reply));
            }
            self.tries[at].watch = Some(watch);
        }
        Ok(None)
    }

    /// One attempt, sent again under its id until its outcome is known or its deadline passes.
    async fn attempt(&self, at: usize) -> Result<Bytes, KvError> {
        let ctx = self.operation_context();
        let id = self.coordinator.next_request_id();
        // However this ends, the id is not sent again, and shards may forget it.
        let _finish = Finish(&*self.coordinator, id);
        let mut unsettled = false;
        loop {
            let operation = self.tries[at].operation.clone() as Arc<dyn Operation>;
            let error = match self.coordinator.submit_once(&ctx, id, operation).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match error.outcome() {
                Outcome::Unknown => unsettled = true,
                // "This sending was not applied" says nothing of an earlier one.
                Outcome::NotApplied if unsettled => {}
                Outcome::NotApplied => return Err(error),
            }
            let left = ctx.remaining();
            if left.is_zero() || ctx.ended().is_some() {
                return Err(KvError::Unknown("the pop was not confirmed in time"));
            }
            tokio::time::sleep(RETRY.min(left)).await;
        }
    }

    /// Waits for a change of a watched key, the end of the time, or CLIENT UNBLOCK.
    async fn wait(&mut self) -> Next {
        let end = self.end();
        let mut timer = pin!(async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        });
        let (tries, unblock) = (&mut self.tries, &mut self.unblock);
        let mut unblock_open = true;
        poll_fn(|cx| {
            let mut woken = false;
            for attempt in tries.iter_mut() {
                if let Some(watch) = &mut attempt.watch
                    && pin!(watch.woken()).poll(cx).is_ready()
                {
                    attempt.watch = None;
                    woken = true;
                }
            }
            if woken {
                return Poll::Ready(Next::Woken);
            }
            if unblock_open && let Poll::Ready(how) = pin!(&mut *unblock).poll(cx) {
                match how {
                    Ok(how) => return Poll::Ready(Next::Unblocked(how)),
                    // The sender lives with the client; without it only the time is left.
                    Err(_) => unblock_open = false,
                }
            }
            timer.as_mut().poll(cx).map(|()| Next::TimedOut)
        })
        .await
    }
}

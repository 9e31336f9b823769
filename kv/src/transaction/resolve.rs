//! Locks whose coordinator may be gone: whoever meets one after its time to live has it settled, by
//! first writing the abort record at the shard that decides (rule 5).

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::AttemptId;

/// Doubts that may wait; the executor tells of those beyond again later.
const MOST: usize = 1024;

/// A lock that is overdue.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    pub(crate) attempt: AttemptId,
    /// Whose shard decides.
    pub(crate) primary: Bytes,
    /// A row key of the shard that holds the lock, and the stamp of it.
    pub(crate) held_at: Bytes,
    pub(crate) stamp: u64,
}

/// Overdue locks of transactions, on their way from a node's executors to its coordinator.
#[derive(Debug, Default)]
pub struct Doubts {
    waiting: Mutex<VecDeque<Doubt>>,
    more: Notify,
}

impl Doubts {
    pub(crate) fn raise(&self, doubts: Vec<Doubt>) {
        if doubts.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        let room = MOST.saturating_sub(waiting.len());
        waiting.extend(doubts.into_iter().take(room));
        drop(waiting);
        self.more.notify_one();
    }

    /// The next doubt. Cancel safe.
    pub(crate) async fn next(&self) -> Doubt {
        loop {
            if let Some(doubt) = self.waiting.lock().pop_front() {
                return doubt;
            }
            self.more.notified().await;
        }
    }
}

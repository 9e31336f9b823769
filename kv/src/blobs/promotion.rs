//! Whether a new replica may vote: a voter counts as one that has the chunks its rows name, so a
//! learner becomes one only when it has them.
//!
//! The group's leader asks the learner before it promotes it. The learner goes through its manifests
//! of that group, has what its disk lacks fetched as every walk does, and says how many that are.
//! The leader asks again until there are none.
//!
//! # Invariants
//! 1. "None" is said of a view that had everything applied that some asking leader had committed.
//! 2. One check of a group at a time. Who asks meanwhile hears how far that one is.
//! 3. What every replica has answered not to have holds nobody back: no waiting brings it.
//! 4. Not knowing is an error, never "none".

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use leadline_raft::{Context, GroupId, LogIndex};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::Instant;

use super::upkeep::{Missing, Upkeep};
use super::{ChunkHash, ChunkRef};

/// How long going through a group's rows may take.
const WALK: Duration = Duration::from_secs(600);
/// A check that brought not all is followed by a rest of so many times the length of its walk.
const REST: u32 = 4;
/// Between two looks at how far the rows are applied.
const LOOK: Duration = Duration::from_millis(20);
/// How long it is believed that no replica has a chunk.
const LOST_FOR: Duration = Duration::from_secs(60);

type Answer = Option<Result<u64, String>>;

pub(super) type Checks = HashMap<GroupId, Check>;

/// The last check of a group.
pub(super) enum Check {
    UnderWay(watch::Receiver<Answer>),
    /// It was over at `at`, and `lost` is what no replica had.
    Over {
        lost: HashSet<ChunkHash>,
        at: Instant,
    },
}

impl Upkeep {
    /// How many chunks this node lacks of those that the rows of `group` name, as of rows applied up
    /// to `applied` at least; they are being fetched when this returns. Cancel safe: a check that
    /// was begun goes on, and who asks again hears of it.
    ///
    /// # Errors
    /// It is not known, and why.
    pub(super) async fn lacking(
        &self,
        ctx: &Context,
        group: GroupId,
        applied: LogIndex,
    ) -> Result<u64, String> {
        self.inner.metrics.asked.inc();
        ctx.run(self.caught_up(group, applied))
            .await
            .map_err(|_| "its rows have not caught up".to_owned())?;
        let mut check = self.check(ctx, group);
        let answer = ctx
            .run(check.wait_for(Option::is_some))
            .await
            .map_err(|_| "it is still going through its rows".to_owned())?;
        match answer.as_deref() {
            Ok(Some(answer)) => answer.clone(),
            // The check has ended without a word.
            Ok(None) | Err(_) => Err("it is stopping".to_owned()),
        }
    }

    /// How often it was asked.
    #[cfg(test)]
    pub(crate) fn times_asked(&self) -> u64 {
        self.inner.metrics.asked.get()
    }

    /// Leaves every peer that wants a chunk waiting until what is returned is dropped.
    #[cfg(test)]
    pub(crate) fn hold_up_peers(&self) -> Vec<tokio::sync::OwnedSemaphorePermit> {
        std::iter::from_fn(|| self.inner.serves.try_take()).collect()
    }

    async fn caught_up(&self, group: GroupId, applied: LogIndex) {
        loop {
            // A group that was not here yet comes with its first message.
            if self
                .manifests
                .applied(group)
                .is_some_and(|here| here >= applied)
            {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Joins the check of a group, or begins it.
    fn check(&self, ctx: &Context, group: GroupId) -> watch::Receiver<Answer> {
        let mut checks = self.checks.lock();
        let lost = match checks.remove(&group) {
            // Unless its task has come to grief.
            Some(Check::UnderWay(answer)) if answer.has_changed().is_ok() => {
                checks.insert(group, Check::UnderWay(answer.clone()));
                return answer;
            }
            Some(Check::Over { lost, at }) if at.elapsed() < LOST_FOR => lost,
            Some(_) | None => HashSet::new(),
        };
        let (said, answer) = watch::channel(None);
        checks.insert(group, Check::UnderWay(answer.clone()));
        let mut progress = Progress {
            said,
            lacking: self.inner.metrics.lacking.clone(),
            shown: 0,
        };
        let (this, stop) = (self.clone(), self.inner.stop.clone());
        // Not the asker's: it asks again, and a walk that takes longer than it waits must get to its
        // end.
        let own = ctx.detach(WALK);
        self.inner.tasks.spawn(async move {
            // Ends the walk's thread if this ends first.
            let _guard = own.guard();
            let check = this.look_and_fetch(&own, group, lost, &mut progress);
            let lost = stop.run_until_cancelled(check).await.unwrap_or_default();
            // `progress` goes after the entry: an entry whose sender is gone counts as abandoned (2).
            let mut checks = this.checks.lock();
            checks.remove(&group);
            if !lost.is_empty() {
                let at = Instant::now();
                checks.insert(group, Check::Over { lost, at });
            }
            drop(progress);
        });
        answer
    }

    /// One check, to its end; what no replica has.
    async fn look_and_fetch(
        &self,
        ctx: &Context,
        group: GroupId,
        mut lost: HashSet<ChunkHash>,
        progress: &mut Progress,
    ) -> HashSet<ChunkHash> {
        let began = Instant::now();
        let looked = self.look(ctx, group, lost.clone()).await;
        let rest = began.elapsed().saturating_mul(REST);
        let Missing { count, chunks } = match looked {
            Ok(missing) => missing,
            Err(why) => {
                progress.say(Err(why));
                tokio::time::sleep(rest).await;
                return lost;
            }
        };
        progress.say(Ok(count));
        if count == 0 {
            return HashSet::new();
        }
        let named = chunks.len();
        let repaired = self
            .repair(chunks, |brought| {
                // Only a walk says "none": what was fetched may not be on the disk yet.
                let left = count.saturating_sub(brought as u64);
                progress.say(Ok(left.max(1)));
            })
            .await;
        if repaired.brought + repaired.lost.len() < named {
            // Some could not be fetched now, and the rows were gone through only now.
            tokio::time::sleep(rest).await;
        }
        lost.extend(repaired.lost);
        lost
    }

    /// Marks what the rows of `group` name; gives what is missing, except what is known as lost.
    async fn look(
        &self,
        ctx: &Context,
        group: GroupId,
        lost: HashSet<ChunkHash>,
    ) -> Result<Missing, String> {
        let store = Arc::clone(&self.inner.store);
        let manifests = Arc::clone(&self.manifests);
        // Before the view, as every walk does.
        let now = store.now();
        let walking = {
            let ctx = ctx.clone();
            tokio::task::spawn_blocking(move || {
                let mut missing = Missing::default();
                manifests.walk_group(&ctx, group, &mut |near: &[u8], chunk: ChunkRef| {
                    if !store.mark(chunk, now) && !lost.contains(&chunk.hash) {
                        missing.add(near, chunk);
                    }
                })?;
                Ok(missing)
            })
        };
        let walked = ctx.run(walking).await.map_err(|ended| ended.to_string())?;
        walked.map_err(|error| error.to_string())?
    }
}

/// Where a check says how far it is.
struct Progress {
    said: watch::Sender<Answer>,
    lacking: Gauge,
    shown: i64,
}

impl Progress {
    fn say(&mut self, answer: Result<u64, String>) {
        let lacking = answer.as_ref().map_or(0, |&count| count);
        self.show(i64::try_from(lacking).unwrap_or(i64::MAX));
        self.said.send_replace(Some(answer));
    }

    /// The gauge is the sum over all checks.
    fn show(&mut self, lacking: i64) {
        self.lacking.inc_by(lacking - self.shown);
        self.shown = lacking;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show(0);
    }
}

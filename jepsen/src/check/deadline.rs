//! Every operation ends by its deadline: plus a tenth or 20 ms, whichever is more, and plus what a
//! busy machine takes, as the run's own timer shows it. What *not applied* meant is for the workload's checker.
//!
//! Nodes and clients share a machine's processors: one call in a thousand may be later, by
//! [`HICCUP`] at the most.

use super::Verdict;
use crate::history::{Fault, Op, show};

/// What a call of the one in a thousand may be late.
const HICCUP: u64 = 100_000_000;

/// What was late shortly before or after was so meanwhile too: the timer is looked at now and then.
const AROUND: u64 = 50_000_000;

/// Client, node, leader, follower: on a busy machine each waits its turn.
const PROCESSES: u64 = 4;

/// And so many in a run, however short.
const FEW: usize = 5;

/// Where the run's own timer was late: from, to, by how much (nanoseconds).
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub began: u64,
    pub ended: u64,
    pub late: u64,
}

/// Checks every operation that has a deadline, but for those of nodes that were silenced.
#[must_use]
pub fn check(ops: &[Op], faults: &[Fault], stalls: &[Stall]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut late: Vec<(u64, &Op)> = Vec::new();
    for op in ops {
        let Some(deadline_ms) = op.deadline_ms else {
            continue;
        };
        let silenced = faults.iter().any(|fault| {
            fault.silenced.contains(&op.node)
                && fault.began <= op.returned
                && fault.ended >= op.called
        });
        if silenced || op.returned == u64::MAX {
            continue;
        }
        verdict.checked += 1;
        let deadline = deadline_ms * 1_000_000;
        let stalled = stalls
            .iter()
            .filter(|stall| {
                stall.began <= op.returned + AROUND && stall.ended + AROUND >= op.called
            })
            .map(|stall| stall.late * PROCESSES)
            .max()
            .unwrap_or(0);
        let limit = deadline + (deadline / 10).max(20_000_000) + stalled;
        let took = op.returned.saturating_sub(op.called);
        if took > limit {
            late.push((took - limit, op));
        }
    }
    late.sort_by_key(|(by, _)| std::cmp::Reverse(*by));
    let allowed = verdict.checked / 1000 + FEW;
    let excusable = late.iter().filter(|(by, _)| *by <= HICCUP).count();
    for (by, op) in &late {
        if *by > HICCUP || excusable > allowed {
            verdict.found(
                "late",
                format!(
                    "an operation ended {} ms later than its limit ({} of {} were late)",
                    by / 1_000_000,
                    late.len(),
                    verdict.checked
                ),
                [show(op)],
            );
        }
    }
    verdict.notes.push(format!(
        "{} of {} operations were later than their limit",
        late.len(),
        verdict.checked
    ));
    verdict
}

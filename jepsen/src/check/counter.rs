//! Counters that only go up by one. An increment's answer is its place in the one order, so the
//! history is linearizable if no place is taken twice, places follow real time, and each value lies
//! between what was acknowledged before and what was called until then.

use std::collections::{BTreeMap, HashMap};

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Checks each counter by itself.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Action::Increment { key, .. } | Action::Count { key, .. } = op.action {
            keys.entry(key).or_default().push(op);
            verdict.checked += 1;
        }
    }
    for (key, ops) in keys {
        one(key, &ops, &mut verdict);
    }
    verdict
}

fn one(key: Key, ops: &[&Op], verdict: &mut Verdict) {
    let is_increment = |op: &&&Op| matches!(op.action, Action::Increment { .. });
    let mut acknowledged: Vec<u64> = ops
        .iter()
        .filter(is_increment)
        .filter(|op| op.end == End::Ok)
        .map(|op| op.returned)
        .collect();
    let mut called: Vec<u64> = ops
        .iter()
        .filter(is_increment)
        .filter(|op| op.end != End::Fail)
        .map(|op| op.called)
        .collect();
    acknowledged.sort_unstable();
    called.sort_unstable();
    let mut takers: HashMap<i64, &Op> = HashMap::new();
    // An increment to n is at 2n - 1, a read of n at 2n.
    let mut placed: Vec<(i64, &Op)> = Vec::new();
    for op in ops.iter().filter(|op| op.end == End::Ok) {
        let (value, own) = match op.action {
            Action::Increment { value, .. } => {
                if let Some(other) = takers.insert(value, op) {
                    verdict.found(
                        "duplicate-increment",
                        format!("two increments of counter {key} were told {value}"),
                        [show(other), show(op)],
                    );
                }
                placed.push((2 * value - 1, op));
                (value, 1)
            }
            Action::Count { value, .. } => {
                placed.push((2 * value, op));
                (value, 0)
            }
            _ => continue,
        };
        let before = acknowledged.partition_point(|at| *at < op.called);
        let until = called.partition_point(|at| *at <= op.returned);
        let (low, high) = (before as i64 + own, until as i64);
        if value < low {
            verdict.found(
                "lost-increment",
                format!("counter {key} is {value} after {low} increments were acknowledged"),
                [show(op)],
            );
        }
        if value > high {
            verdict.found(
                "extra-increment",
                format!(
                    "counter {key} is {value}, but only {high} increments that were not refused \
                     had been called"
                ),
                [show(op)],
            );
        }
    }
    // In order of calls, against the highest place answered before each.
    let mut by_return = placed.clone();
    by_return.sort_by_key(|(_, op)| op.returned);
    placed.sort_by_key(|(_, op)| op.called);
    let mut highest: Option<(i64, &Op)> = None;
    let mut at = 0;
    for (place, op) in placed {
        while let Some((earlier, other)) = by_return.get(at)
            && other.returned < op.called
        {
            if highest.is_none_or(|(highest, _)| *earlier > highest) {
                highest = Some((*earlier, other));
            }
            at += 1;
        }
        if let Some((earlier, other)) = highest
            && earlier > place
        {
            verdict.found(
                "counter-went-back",
                format!("counter {key} went back in real time"),
                [show(other), show(op)],
            );
        }
    }
}

//! First-in-first-out queues with blocked takers: what was acknowledged is delivered once, what was
//! refused never; order follows real time; and nobody sleeps through what is there.

use std::collections::{BTreeMap, HashMap};

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Checks each queue by itself. The history must end with the queues drained.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Action::Enqueue { key, .. } | Action::Dequeue { key, .. } = op.action {
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
    let mut put: HashMap<i64, &Op> = HashMap::new();
    let mut taken: HashMap<i64, &Op> = HashMap::new();
    let mut asleep: Vec<&Op> = Vec::new();
    let mut unknown_takes = 0;
    for op in ops {
        if let Action::Enqueue { value, .. } = op.action {
            put.insert(value, op);
        }
    }
    for op in ops {
        let Action::Dequeue { value, .. } = op.action else {
            continue;
        };
        match (op.end, value) {
            (End::Fail, _) => {}
            (End::Info, _) => unknown_takes += 1,
            (End::Ok, None) => asleep.push(op),
            (End::Ok, Some(value)) => {
                if let Some(other) = taken.insert(value, op) {
                    verdict.found(
                        "delivered-twice",
                        format!("queue {key} delivered {value} twice"),
                        [show(other), show(op)],
                    );
                }
                match put.get(&value) {
                    None => verdict.found(
                        "unexpected-element",
                        format!("nobody put {value} into queue {key}"),
                        [show(op)],
                    ),
                    Some(from) if from.end == End::Fail => verdict.found(
                        "refused-put-delivered",
                        format!("{value} was refused as not applied, and queue {key} delivered it"),
                        [show(from), show(op)],
                    ),
                    Some(from) if from.called > op.returned => verdict.found(
                        "future-read",
                        format!("queue {key} delivered {value} before it was put"),
                        [show(op), show(from)],
                    ),
                    Some(_) => {}
                }
            }
        }
    }
    let lost: Vec<&&Op> = put
        .iter()
        .filter(|(value, op)| op.end == End::Ok && !taken.contains_key(value))
        .map(|(_, op)| op)
        .collect();
    // A take of unknown outcome may have taken one that then nobody got.
    if lost.len() > unknown_takes {
        verdict.found(
            "lost-element",
            format!(
                "{} acknowledged elements of queue {key} were never delivered; {unknown_takes} \
                 takes are of unknown outcome",
                lost.len()
            ),
            lost.iter().take(8).map(|op| show(op)),
        );
    }
    order(key, &put, &taken, verdict);
    for sleeper in asleep {
        let there = put.iter().find(|(value, op)| {
            op.end == End::Ok
                && op.returned < sleeper.called
                && taken
                    .get(value)
                    .is_some_and(|take| take.called > sleeper.returned)
        });
        if let Some((value, op)) = there {
            verdict.found(
                "slept-through",
                format!("queue {key} had {value}, and a taker was told that nothing came"),
                [show(op), show(sleeper), show(taken[value])],
            );
        }
    }
}

/// What was put first is taken first, as far as real time tells both.
fn order(key: Key, put: &HashMap<i64, &Op>, taken: &HashMap<i64, &Op>, verdict: &mut Verdict) {
    let mut both: Vec<(&Op, &Op)> = put
        .iter()
        .filter(|(_, op)| op.end == End::Ok)
        .filter_map(|(value, put)| Some((*put, *taken.get(value)?)))
        .collect();
    // In order of puts' calls, against the latest call of a take among what was put before.
    both.sort_by_key(|(put, _)| put.called);
    let mut by_return = both.clone();
    by_return.sort_by_key(|(put, _)| put.returned);
    let mut latest: Option<(&Op, &Op)> = None;
    let mut at = 0;
    for (put, take) in both {
        while let Some((earlier, its)) = by_return.get(at)
            && earlier.returned < put.called
        {
            if latest.is_none_or(|(_, latest)| its.called > latest.called) {
                latest = Some((earlier, its));
            }
            at += 1;
        }
        if let Some((earlier, its)) = latest
            && its.called > take.returned
        {
            verdict.found(
                "overtaken",
                format!("queue {key} delivered what was put later first"),
                [show(earlier), show(put), show(take), show(its)],
            );
        }
    }
}

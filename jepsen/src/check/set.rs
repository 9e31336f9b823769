//! Sets that only grow: what was added, or seen, is in every reading that begins later; nothing else
//! is ever in one.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Checks each set by itself.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Action::Add { key, .. } | Action::Members { key, .. } = op.action {
            keys.entry(key).or_default().push(op);
            verdict.checked += 1;
        }
    }
    for (key, ops) in keys {
        one(key, &ops, &mut verdict);
    }
    verdict
}

fn one<'a>(key: Key, ops: &[&'a Op], verdict: &mut Verdict) {
    let mut adds: HashMap<i64, &Op> = HashMap::new();
    // When each value was certainly there, and who says so.
    let mut known: HashMap<i64, &'a Op> = HashMap::new();
    let mut note = |value: i64, op: &'a Op| {
        let first = known.entry(value).or_insert(op);
        if op.returned < first.returned {
            *first = op;
        }
    };
    for op in ops {
        match &op.action {
            Action::Add { value, .. } => {
                adds.insert(*value, op);
                if op.end == End::Ok {
                    note(*value, op);
                }
            }
            Action::Members { values, .. } if op.end == End::Ok => {
                for value in values {
                    note(*value, op);
                }
            }
            _ => {}
        }
    }
    for op in ops.iter().filter(|op| op.end == End::Ok) {
        let Action::Members { values, .. } = &op.action else {
            continue;
        };
        let present: HashSet<i64> = values.iter().copied().collect();
        for value in values {
            match adds.get(value) {
                Some(add) if add.end == End::Fail => verdict.found(
                    "refused-add-present",
                    format!("{value} was refused as not applied, and is in set {key}"),
                    [show(add), show(op)],
                ),
                Some(add) if add.called <= op.returned => {}
                Some(add) => verdict.found(
                    "future-read",
                    format!("set {key} had {value} before it was added"),
                    [show(op), show(add)],
                ),
                None => verdict.found(
                    "unexpected-element",
                    format!("nobody added {value} to set {key}"),
                    [show(op)],
                ),
            }
        }
        for (value, since) in &known {
            if since.returned < op.called && !present.contains(value) {
                verdict.found(
                    "lost-element",
                    format!("{value} was in set {key}, and a later reading lacks it"),
                    [show(since), show(op)],
                );
            }
        }
    }
}

//! Values that expire, each key written once: not before its time, not (much) after it, and never
//! back again once it was seen gone.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Nanoseconds in a millisecond.
const MILLI: u64 = 1_000_000;

/// Checks each key by itself, allowing clocks `slack_ms` of difference; `None`: clocks were hurt,
/// and only what does not rest on them is checked.
#[must_use]
pub fn check(ops: &[Op], slack_ms: Option<u64>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Action::Expiring { key, .. } | Action::Read { key, .. } = op.action {
            keys.entry(key).or_default().push(op);
            verdict.checked += 1;
        }
    }
    for (key, ops) in keys {
        one(key, &ops, slack_ms, &mut verdict);
    }
    verdict
}

fn one(key: Key, ops: &[&Op], slack_ms: Option<u64>, verdict: &mut Verdict) {
    let write = ops
        .iter()
        .find(|op| matches!(op.action, Action::Expiring { .. }));
    let mut reads: Vec<&&Op> = ops
        .iter()
        .filter(|op| op.end == End::Ok && matches!(op.action, Action::Read { .. }))
        .collect();
    reads.sort_by_key(|op| op.returned);
    let value = |op: &Op| match op.action {
        Action::Read { value, .. } => value,
        _ => None,
    };
    let Some(write) = write else {
        if let Some(read) = reads.iter().find(|read| value(read).is_some()) {
            verdict.found(
                "unexpected-value",
                format!("nobody wrote key {key}"),
                [show(read)],
            );
        }
        return;
    };
    let Action::Expiring {
        value: written,
        ttl_ms,
        ..
    } = write.action
    else {
        return;
    };
    for read in &reads {
        if let Some(seen) = value(read) {
            if write.end == End::Fail || seen != written {
                verdict.found(
                    "refused-write-read",
                    format!("key {key} has {seen}"),
                    [show(write), show(read)],
                );
            }
            // It was seen, or set, and gone, and there again.
            let gone = reads.iter().find(|gone| {
                value(gone).is_none()
                    && gone.returned < read.called
                    && (write.settled() < gone.called
                        || reads
                            .iter()
                            .any(|other| value(other).is_some() && other.returned < gone.called))
            });
            if let Some(gone) = gone {
                verdict.found(
                    "resurrected",
                    format!("key {key} was gone and came back"),
                    [show(write), show(gone), show(read)],
                );
            }
        }
        let Some(slack) = slack_ms else { continue };
        match value(read) {
            Some(_) if write.end == End::Ok => {
                let latest = write.returned + (ttl_ms + slack) * MILLI;
                if read.called > latest {
                    verdict.found(
                        "outlived",
                        format!(
                            "key {key} was there {} ms after it should be gone",
                            (read.called - write.returned) / MILLI - ttl_ms
                        ),
                        [show(write), show(read)],
                    );
                }
            }
            None if write.end == End::Ok && read.called > write.returned => {
                let earliest = (write.called + ttl_ms * MILLI).saturating_sub(slack * MILLI);
                if read.returned < earliest {
                    verdict.found(
                        "expired-early",
                        format!(
                            "key {key} was gone {} ms before its time",
                            (write.called + ttl_ms * MILLI - read.returned) / MILLI
                        ),
                        [show(write), show(read)],
                    );
                }
            }
            _ => {}
        }
    }
}

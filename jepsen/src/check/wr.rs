//! Transactions over registers that are read and written: strict serializability, as far as reads
//! tell. Values are written once per register, so a read names its writer; the order of a register's
//! versions is inferred from nothing being before all, from transactions that read one version and
//! write the next, and from real time (registers of a strictly serializable store are linearizable).

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verdict;
use super::append::add_real_time;
use super::graph::{Edge, Graph, Kind, report};
use crate::history::{Action, End, Key, Mop, Op, show};

fn mops(op: &Op) -> &[Mop] {
    match &op.action {
        Action::Txn(mops) => mops,
        _ => &[],
    }
}

/// What a transaction did to one register, seen from outside.
#[derive(Clone, Copy, Default)]
struct Touch {
    /// What it read before it wrote.
    read: Option<Option<i64>>,
    /// What it wrote last.
    wrote: Option<i64>,
}

/// Checks a history of register transactions.
#[must_use]
pub fn check(history: &[Op]) -> Verdict {
    let mut ops: Vec<&Op> = history
        .iter()
        .filter(|op| matches!(op.action, Action::Txn(_)))
        .collect();
    ops.sort_by_key(|op| op.called);
    let mut verdict = Verdict {
        checked: ops.len(),
        ..Verdict::default()
    };
    // By register and value: the transaction, and whether it was its last write there.
    let mut writers: HashMap<(Key, i64), (usize, bool)> = HashMap::new();
    for (txn, op) in ops.iter().enumerate() {
        let mut last: HashMap<Key, i64> = HashMap::new();
        for mop in mops(op) {
            if let Mop::Write(key, value) = mop {
                last.insert(*key, *value);
                writers.insert((*key, *value), (txn, false));
            }
        }
        for (key, value) in last {
            writers.insert((key, value), (txn, true));
        }
    }
    let mut touches: BTreeMap<Key, Vec<(usize, Touch)>> = BTreeMap::new();
    let mut observed: HashSet<(Key, i64)> = HashSet::new();
    for (txn, op) in ops.iter().enumerate() {
        if op.end != End::Ok {
            continue;
        }
        let mut own: BTreeMap<Key, Touch> = BTreeMap::new();
        for mop in mops(op) {
            match mop {
                Mop::Write(key, value) => own.entry(*key).or_default().wrote = Some(*value),
                Mop::Read(key, value) => {
                    let touch = own.entry(*key).or_default();
                    let expected = touch.wrote.map(Some).or(touch.read);
                    if expected.is_some_and(|expected| expected != *value) {
                        verdict.found(
                            "internal",
                            format!("a transaction does not see its own state of key {key}"),
                            [show(op)],
                        );
                    }
                    if touch.wrote.is_none() {
                        touch.read = Some(*value);
                        if let Some(value) = value {
                            observed.insert((*key, *value));
                            inspect(txn, op, (*key, *value), &ops, &writers, &mut verdict);
                        }
                    }
                }
                Mop::Append(..) | Mop::List(..) => {}
            }
        }
        for (key, touch) in own {
            touches.entry(key).or_default().push((txn, touch));
        }
    }
    // A write of unknown outcome that somebody saw happened.
    for (txn, op) in ops.iter().enumerate() {
        if op.end != End::Info {
            continue;
        }
        for mop in mops(op) {
            if let Mop::Write(key, value) = mop
                && observed.contains(&(*key, *value))
                && writers[&(*key, *value)].1
            {
                let touch = Touch {
                    read: None,
                    wrote: Some(*value),
                };
                touches.entry(*key).or_default().push((txn, touch));
            }
        }
    }

    let mut graph = Graph::new(ops.len());
    for (key, touches) in &touches {
        let versions = versions(&ops, touches);
        if let Some((before, after)) = contradiction(&versions) {
            verdict.found(
                "cyclic-versions",
                format!("key {key} had {after:?} both after and before {before:?}"),
                touches
                    .iter()
                    .filter(|(_, touch)| {
                        [before, after]
                            .iter()
                            .any(|value| touch.wrote == *value || touch.read == Some(*value))
                    })
                    .map(|(txn, _)| show(ops[*txn]))
                    .take(8),
            );
        }
        let mut readers: HashMap<Option<i64>, Vec<usize>> = HashMap::new();
        for (txn, touch) in touches {
            if let Some(read) = touch.read {
                readers.entry(read).or_default().push(*txn);
            }
        }
        let writer = |value: Option<i64>| {
            value
                .and_then(|value| writers.get(&(*key, value)))
                .map(|(txn, _)| *txn)
        };
        for (value, txns) in &readers {
            if let Some(from) = writer(*value) {
                for to in txns {
                    let edge = Edge {
                        to: *to,
                        kind: Kind::Wr,
                        key: *key,
                        before: None,
                        after: *value,
                    };
                    graph.add(from, edge);
                }
            }
        }
        for (before, after) in versions {
            let Some(to) = writer(after) else { continue };
            let edge = |kind| Edge {
                to,
                kind,
                key: *key,
                before,
                after,
            };
            if let Some(from) = writer(before) {
                graph.add(from, edge(Kind::Ww));
            }
            for from in readers.get(&before).map_or(&[][..], Vec::as_slice) {
                graph.add(*from, edge(Kind::Rw));
            }
        }
    }
    let refused: HashSet<usize> = (0..ops.len())
        .filter(|txn| ops[*txn].end == End::Fail)
        .collect();
    add_real_time(&mut graph, &ops, &refused);
    report(&graph, &ops, &mut verdict);
    verdict
}

/// What a read of one value says by itself.
fn inspect(
    txn: usize,
    op: &Op,
    (key, value): (Key, i64),
    ops: &[&Op],
    writers: &HashMap<(Key, i64), (usize, bool)>,
    verdict: &mut Verdict,
) {
    match writers.get(&(key, value)) {
        None => verdict.found(
            "unexpected-value",
            format!("nobody wrote {value} to key {key}"),
            [show(op)],
        ),
        Some((writer, _)) if ops[*writer].end == End::Fail => verdict.found(
            "G1a",
            format!("aborted read: {value} of key {key} was refused as not applied, and is there"),
            [show(ops[*writer]), show(op)],
        ),
        Some((writer, false)) if *writer != txn => verdict.found(
            "G1b",
            format!("intermediate read: key {key} was seen in the middle of a transaction"),
            [show(ops[*writer]), show(op)],
        ),
        Some(_) => {}
    }
}

/// Pairs of versions of one register of which the first was there before the second.
fn versions(ops: &[&Op], touches: &[(usize, Touch)]) -> HashSet<(Option<i64>, Option<i64>)> {
    let mut pairs = HashSet::new();
    let mut pair = |before: Option<i64>, after: Option<i64>| {
        if before != after && after.is_some() {
            pairs.insert((before, after));
        }
    };
    for (_, touch) in touches {
        if let Some(wrote) = touch.wrote {
            pair(None, Some(wrote));
            if let Some(read) = touch.read {
                pair(read, Some(wrote));
            }
        }
    }
    // Real time, without what is implied: the last states of what was answered before a call.
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (nth, (txn, _)) in touches.iter().enumerate() {
        events.push((ops[*txn].called, false, nth));
        events.push((ops[*txn].settled(), true, nth));
    }
    events.sort_unstable();
    let mut frontier: Vec<usize> = Vec::new();
    for (at, is_return, nth) in events {
        if at == u64::MAX {
            break;
        }
        let (txn, touch) = touches[nth];
        if is_return {
            frontier.retain(|earlier| ops[touches[*earlier].0].settled() >= ops[txn].called);
            frontier.push(nth);
            continue;
        }
        for earlier in &frontier {
            let left = touches[*earlier].1;
            let before = left.wrote.or(left.read.flatten());
            let after = touch.read.unwrap_or(touch.wrote);
            pair(before, after);
        }
    }
    pairs
}

/// Two versions that are each before the other, directly.
fn contradiction(
    pairs: &HashSet<(Option<i64>, Option<i64>)>,
) -> Option<(Option<i64>, Option<i64>)> {
    pairs
        .iter()
        .find(|(before, after)| pairs.contains(&(*after, *before)))
        .copied()
}

//! Transactions over lists that are only appended to: strict serializability, as Elle finds its
//! violations. A list tells the order of everything ever appended to it, so what depends on what can
//! be read off what clients saw. Values are appended once.
//!
//! Beside the cycles of [`graph`](super::graph): aborted reads (G1a), intermediate reads (G1b), lists
//! that disagree, duplicates, values from nowhere, transactions that do not see their own appends,
//! and appends that were acknowledged and are gone.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verdict;
use super::graph::{Edge, Graph, Kind, report};
use crate::history::{Action, End, Key, Mop, Op, show};

/// Who appended a value.
#[derive(Clone, Copy)]
struct Writer {
    txn: usize,
    /// Its last append to that list.
    is_final: bool,
}

fn mops(op: &Op) -> &[Mop] {
    match &op.action {
        Action::Txn(mops) => mops,
        _ => &[],
    }
}

/// Checks a history of list-append transactions.
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
    let mut writers: HashMap<(Key, i64), Writer> = HashMap::new();
    for (txn, op) in ops.iter().enumerate() {
        let mut last: HashMap<Key, i64> = HashMap::new();
        for mop in mops(op) {
            if let Mop::Append(key, value) = mop {
                last.insert(*key, *value);
            }
        }
        for mop in mops(op) {
            if let Mop::Append(key, value) = mop {
                let is_final = last.get(key) == Some(value);
                writers.insert((*key, *value), Writer { txn, is_final });
            }
        }
    }

    let mut longest: BTreeMap<Key, (usize, &[i64])> = BTreeMap::new();
    // Reads of other transactions' appends: transaction, key, what it saw.
    let mut reads: Vec<(usize, Key, &[i64])> = Vec::new();
    for (txn, op) in ops.iter().enumerate() {
        if op.end != End::Ok {
            continue;
        }
        inspect(txn, op, &ops, &writers, &mut verdict);
        let mut appended: HashSet<Key> = HashSet::new();
        for mop in mops(op) {
            match mop {
                Mop::Append(key, _) => {
                    appended.insert(*key);
                }
                Mop::List(key, list) => {
                    let known = longest.entry(*key).or_insert((txn, list));
                    if list.len() > known.1.len() {
                        *known = (txn, list);
                    }
                    if !appended.contains(key) {
                        reads.push((txn, *key, list));
                    }
                }
                Mop::Write(..) | Mop::Read(..) => {}
            }
        }
    }
    for (txn, op) in ops.iter().enumerate() {
        if op.end != End::Ok {
            continue;
        }
        for mop in mops(op) {
            if let Mop::List(key, list) = mop {
                let (other, order) = longest[key];
                if !order.starts_with(list) {
                    verdict.found(
                        "incompatible-order",
                        format!("key {key} was read as two lists, none the beginning of the other"),
                        [show(ops[txn]), show(ops[other])],
                    );
                }
            }
        }
    }
    lost_appends(&ops, &reads, &mut verdict);

    let mut graph = Graph::new(ops.len());
    for (key, (_, order)) in &longest {
        for pair in order.windows(2) {
            let ends = (writers.get(&(*key, pair[0])), writers.get(&(*key, pair[1])));
            if let (Some(before), Some(after)) = ends {
                let edge = Edge {
                    to: after.txn,
                    kind: Kind::Ww,
                    key: *key,
                    before: Some(pair[0]),
                    after: Some(pair[1]),
                };
                graph.add(before.txn, edge);
            }
        }
    }
    for (txn, key, list) in &reads {
        let (_, order) = longest[key];
        if !order.starts_with(list) {
            continue;
        }
        let last = list.last().copied();
        if let Some(writer) = last.and_then(|value| writers.get(&(*key, value))) {
            let edge = Edge {
                to: *txn,
                kind: Kind::Wr,
                key: *key,
                before: None,
                after: last,
            };
            graph.add(writer.txn, edge);
        }
        let next = order.get(list.len()).copied();
        if let Some(writer) = next.and_then(|value| writers.get(&(*key, value))) {
            let edge = Edge {
                to: writer.txn,
                kind: Kind::Rw,
                key: *key,
                before: last,
                after: next,
            };
            graph.add(*txn, edge);
        }
    }
    // What was refused is not there, and orders nothing.
    let alive: Vec<&Op> = ops.clone();
    let refused: HashSet<usize> = (0..ops.len())
        .filter(|txn| ops[*txn].end == End::Fail)
        .collect();
    add_real_time(&mut graph, &alive, &refused);
    report(&graph, &ops, &mut verdict);
    verdict
}

/// Real-time edges among all but the refused.
pub(super) fn add_real_time(graph: &mut Graph, ops: &[&Op], refused: &HashSet<usize>) {
    if refused.is_empty() {
        graph.add_real_time(ops);
        return;
    }
    // A refused transaction neither precedes nor follows: as if it had never been answered.
    let masked: Vec<Op> = ops
        .iter()
        .enumerate()
        .map(|(nth, op)| Op {
            process: op.process,
            node: op.node,
            action: Action::Txn(Vec::new()),
            called: op.called,
            returned: op.returned,
            end: if refused.contains(&nth) {
                End::Info
            } else {
                op.end
            },
            error: None,
            deadline_ms: None,
        })
        .collect();
    graph.add_real_time(&masked.iter().collect::<Vec<_>>());
}

/// What one acknowledged transaction says by itself.
fn inspect(
    txn: usize,
    op: &Op,
    ops: &[&Op],
    writers: &HashMap<(Key, i64), Writer>,
    verdict: &mut Verdict,
) {
    let mut own: HashMap<Key, Vec<i64>> = HashMap::new();
    let mut seen: HashMap<Key, &[i64]> = HashMap::new();
    for mop in mops(op) {
        match mop {
            Mop::Append(key, value) => own.entry(*key).or_default().push(*value),
            Mop::List(key, list) => {
                let mine = own.get(key).map_or(&[][..], Vec::as_slice);
                let consistent = match seen.get(key) {
                    // Nothing but its own appends between two of its reads.
                    Some(before) => list.starts_with(before) && list.ends_with(mine),
                    None => list.ends_with(mine),
                };
                if !consistent {
                    verdict.found(
                        "internal",
                        format!("a transaction does not see its own appends to key {key}"),
                        [show(op)],
                    );
                }
                seen.insert(key_of(mop), list);
                let mut values = HashSet::new();
                for value in list {
                    if !values.insert(*value) {
                        verdict.found(
                            "duplicate-elements",
                            format!("key {key} has {value} twice"),
                            [show(op)],
                        );
                    }
                    match writers.get(&(*key, *value)) {
                        None => verdict.found(
                            "unexpected-element",
                            format!("nobody appended {value} to key {key}"),
                            [show(op)],
                        ),
                        Some(writer) if ops[writer.txn].end == End::Fail => verdict.found(
                            "G1a",
                            format!(
                                "aborted read: {value} of key {key} was refused as not applied, \
                                 and is there"
                            ),
                            [show(ops[writer.txn]), show(op)],
                        ),
                        Some(_) => {}
                    }
                }
                let last = list.last().and_then(|value| writers.get(&(*key, *value)));
                if let Some(writer) = last
                    && !writer.is_final
                    && writer.txn != txn
                {
                    verdict.found(
                        "G1b",
                        format!(
                            "intermediate read: key {key} was seen in the middle of a transaction"
                        ),
                        [show(ops[writer.txn]), show(op)],
                    );
                }
            }
            Mop::Write(..) | Mop::Read(..) => {}
        }
    }
}

fn key_of(mop: &Mop) -> Key {
    match mop {
        Mop::Append(key, _) | Mop::List(key, _) | Mop::Write(key, _) | Mop::Read(key, _) => *key,
    }
}

/// Appends that were acknowledged before a read began which does not have them.
fn lost_appends(ops: &[&Op], reads: &[(usize, Key, &[i64])], verdict: &mut Verdict) {
    // Only the last read of each key: where an earlier one misses what a later one has, there is a
    // cycle of real time and anti-dependency.
    let mut last: HashMap<Key, (usize, HashSet<i64>)> = HashMap::new();
    for (txn, key, list) in reads {
        let known = last.get(key);
        if known.is_none_or(|(other, _)| ops[*other].called < ops[*txn].called) {
            last.insert(*key, (*txn, list.iter().copied().collect()));
        }
    }
    for op in ops {
        if op.end != End::Ok {
            continue;
        }
        for mop in mops(op) {
            if let Mop::Append(key, value) = mop
                && let Some((read, list)) = last.get(key)
                && ops[*read].called > op.returned
                && !list.contains(value)
            {
                verdict.found(
                    "lost-append",
                    format!("{value} was acknowledged on key {key}, and a later read lacks it"),
                    [show(op), show(ops[*read])],
                );
            }
        }
    }
}

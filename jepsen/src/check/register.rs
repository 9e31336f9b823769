//! Registers with reads, writes, deletions, compare-and-set and creation of what is absent: each is
//! linearizable. Values are written once.

use std::collections::BTreeMap;

use super::Verdict;
use super::linear::{Found, Model, search, shrink};
use crate::history::{Action, End, Key, Op, show};

/// An absent register at first.
pub struct Register;

/// Whether `op` may have been told this value.
fn reads(op: &Op, value: i64) -> bool {
    match op.action {
        Action::Read { value: seen, .. } => op.end == End::Ok && seen == Some(value),
        // A compare-and-set of unknown outcome may have seen it.
        Action::Cas { from, .. } => from == value && op.end != End::Fail,
        _ => false,
    }
}

fn sees(op: &Op, value: i64) -> bool {
    match op.action {
        // It saw some value.
        Action::Create { won, .. } => op.end == End::Ok && !won,
        _ => reads(op, value),
    }
}

fn sees_absence(op: &Op) -> bool {
    match op.action {
        Action::Read { value, .. } => op.end == End::Ok && value.is_none(),
        Action::Create { won, .. } => won || op.end == End::Info,
        _ => false,
    }
}

fn written(op: &Op) -> Option<i64> {
    match op.action {
        Action::Write { value, .. } => Some(value),
        Action::Cas { to, .. } => Some(to),
        Action::Create { value, won, .. } => (won || op.end == End::Info).then_some(value),
        _ => None,
    }
}

/// Whether nobody saw what `op` did: then no verdict rests on it.
fn is_unseen(op: &Op, history: &[Op]) -> bool {
    match op.action {
        Action::Delete { .. } => !history.iter().any(sees_absence),
        _ => written(op).is_none_or(|value| !history.iter().any(|other| sees(other, value))),
    }
}

impl Model for Register {
    type State = Option<i64>;

    fn initial(&self) -> Option<i64> {
        None
    }

    fn step(&self, state: &Option<i64>, op: &Op) -> Option<Option<i64>> {
        match op.action {
            Action::Read { value, .. } => (*state == value).then_some(*state),
            Action::Write { value, .. } => Some(Some(value)),
            Action::Cas { from, to, .. } => (*state == Some(from)).then_some(Some(to)),
            Action::Delete { .. } => Some(None),
            Action::Create { won: false, .. } if op.end == End::Ok => {
                state.is_some().then_some(*state)
            }
            Action::Create { value, .. } => state.is_none().then_some(Some(value)),
            _ => None,
        }
    }

    /// A read that nobody heard of, or a write of a value that nobody saw.
    fn is_invisible(&self, op: &Op, history: &[Op]) -> bool {
        is_unseen(op, history)
    }

    /// Deletions; writes, and creations, of values that nobody saw for what they are.
    fn alike(&self, op: &Op, history: &[Op]) -> Option<u8> {
        let is_read = |value| history.iter().any(|other| reads(other, value));
        match op.action {
            Action::Delete { .. } => Some(0),
            Action::Write { value, .. } if !is_read(value) => Some(1),
            Action::Create { value, .. } if !is_read(value) => Some(2),
            _ => None,
        }
    }
}

/// States that one key's search may visit.
pub const LIMIT: usize = 3_000_000;

/// The key of a register operation.
fn key(op: &Op) -> Option<Key> {
    match op.action {
        Action::Read { key, .. }
        | Action::Write { key, .. }
        | Action::Cas { key, .. }
        | Action::Delete { key }
        | Action::Create { key, .. } => Some(key),
        _ => None,
    }
}

/// Checks each register by itself.
#[must_use]
pub fn check(ops: &[Op], limit: usize) -> Verdict {
    let mut keys: BTreeMap<Key, Vec<Op>> = BTreeMap::new();
    for op in ops {
        if let Some(key) = key(op) {
            keys.entry(key).or_default().push(op.clone());
        }
    }
    let mut verdict = Verdict::default();
    for (key, mut history) in keys {
        verdict.checked += history.len();
        history.sort_by_key(|op| op.called);
        match search(&Register, &history, limit) {
            Found::Linearizable => {}
            Found::Undecided => verdict
                .undecided
                .push(format!("register {key}: no verdict within {limit} states")),
            Found::Impossible { deepest } => {
                let small = shrink(&Register, &history, limit, is_unseen);
                verdict.found(
                    "nonlinearizable",
                    format!(
                        "register {key}: no order of these {} operations explains their answers \
                         (of {}, {deepest} can be ordered)",
                        small.len(),
                        history.len()
                    ),
                    small.iter().map(show),
                );
            }
        }
    }
    verdict
}

//! Registers with reads, writes and compare-and-set: each is linearizable. Values are written once.

use std::collections::BTreeMap;

use super::Verdict;
use super::linear::{Found, Model, search, shrink};
use crate::history::{Action, End, Key, Op, show};

/// An absent register at first.
pub struct Register;

fn sees(op: &Op, value: i64) -> bool {
    match op.action {
        Action::Read { value: seen, .. } => op.end == End::Ok && seen == Some(value),
        // A compare-and-set of unknown outcome may have seen it.
        Action::Cas { from, .. } => from == value && op.end != End::Fail,
        _ => false,
    }
}

fn written(op: &Op) -> Option<i64> {
    match op.action {
        Action::Write { value, .. } => Some(value),
        Action::Cas { to, .. } => Some(to),
        _ => None,
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
            _ => None,
        }
    }

    /// A read that nobody heard of, or a write of a value that nobody saw.
    fn is_invisible(&self, op: &Op, history: &[Op]) -> bool {
        written(op).is_none_or(|value| !history.iter().any(|other| sees(other, value)))
    }
}

/// States that one key's search may visit.
pub const LIMIT: usize = 3_000_000;

/// The key of a register operation.
fn key(op: &Op) -> Option<Key> {
    match op.action {
        Action::Read { key, .. } | Action::Write { key, .. } | Action::Cas { key, .. } => Some(key),
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
                let small = shrink(&Register, &history, limit, |op, rest| {
                    written(op).is_none_or(|value| !rest.iter().any(|other| sees(other, value)))
                });
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

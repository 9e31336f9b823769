//! Is a history linearizable? Wing and Gong's search (1993) with Lowe's memory (*Testing for
//! linearizability*, 2017): operations are taken as late as their answers force it, and what was
//! tried with the same operations done and the same state is not tried again. Callers cut a history
//! into independent objects first (Horn and Kroening's P-compositionality).
//!
//! An operation of unknown outcome may take effect at any time after its call, or never.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::history::{End, Op};

/// What an object does, one operation at a time.
pub trait Model {
    type State: Clone + Eq + Hash;

    fn initial(&self) -> Self::State;

    /// The state after `op`; `None` if `op` cannot have been answered so in `state`.
    fn step(&self, state: &Self::State, op: &Op) -> Option<Self::State>;

    /// Whether leaving `op`, whose outcome is unknown, out of `history` changes no verdict.
    fn is_invisible(&self, op: &Op, history: &[Op]) -> bool;

    /// Operations of unknown outcome with the same number are alike: in whatever order one of them
    /// is taken, another that was called before it could stand there. `None`: it is like no other.
    fn alike(&self, op: &Op, history: &[Op]) -> Option<u8>;
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Linearizable,
    /// No order explains the history; `deepest` operations could be ordered at the most.
    Impossible {
        deepest: usize,
    },
    /// The search was cut off.
    Undecided,
}

const NONE: usize = usize::MAX;

/// Calls and returns in a list from which what is done is lifted out (Lowe, section 3).
struct Entries {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Entries {
    fn lift(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        if next != NONE {
            self.previous[next] = previous;
        }
    }

    fn unlift(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        if next != NONE {
            self.previous[next] = at;
        }
    }
}

/// Searches for an order of one object's operations, visiting at most `limit` states.
pub fn search<M: Model>(model: &M, history: &[Op], limit: usize) -> Found {
    let ops: Vec<&Op> = history
        .iter()
        .filter(|op| match op.end {
            End::Ok => true,
            End::Fail => false,
            End::Info => !model.is_invisible(op, history),
        })
        .collect();
    // Of those that are alike, the one called first is taken first: it waits for its elder.
    let mut last_alike: HashMap<u8, usize> = HashMap::new();
    let mut by_call: Vec<usize> = (0..ops.len()).collect();
    by_call.sort_by_key(|nth| ops[*nth].called);
    let mut elder = vec![NONE; ops.len()];
    for nth in by_call {
        if ops[nth].end == End::Info
            && let Some(class) = model.alike(ops[nth], history)
        {
            elder[nth] = last_alike.insert(class, nth).unwrap_or(NONE);
        }
    }
    // Entry 0 is the list's head; a call of operation n is 2n + 1, its return 2n + 2.
    let mut order: Vec<usize> = (1..=ops.len() * 2).collect();
    order.sort_by_key(|entry| {
        let op = ops[(entry - 1) / 2];
        let is_return = entry % 2 == 0;
        let at = if is_return { op.settled() } else { op.called };
        (at, is_return)
    });
    let mut entries = Entries {
        next: vec![NONE; ops.len() * 2 + 1],
        previous: vec![NONE; ops.len() * 2 + 1],
    };
    let mut last = 0;
    for entry in order {
        entries.next[last] = entry;
        entries.previous[entry] = last;
        last = entry;
    }

    let mut tried: HashSet<(Box<[u64]>, M::State)> = HashSet::new();
    let mut done: Box<[u64]> = vec![0; ops.len().div_ceil(64)].into();
    let mut state = model.initial();
    let mut taken: Vec<(usize, M::State)> = Vec::new();
    let mut deepest = 0;
    let mut at = entries.next[0];
    loop {
        if at == NONE {
            return Found::Linearizable;
        }
        let nth = (at - 1) / 2;
        let op = ops[nth];
        if at % 2 == 1 {
            let elder = elder[nth];
            let waits = elder != NONE && done[elder / 64] & (1 << (elder % 64)) == 0;
            if !waits && let Some(after) = model.step(&state, op) {
                done[nth / 64] |= 1 << (nth % 64);
                if tried.insert((done.clone(), after.clone())) {
                    if tried.len() > limit {
                        return Found::Undecided;
                    }
                    taken.push((nth, std::mem::replace(&mut state, after)));
                    deepest = deepest.max(taken.len());
                    entries.lift(at);
                    entries.lift(at + 1);
                    at = entries.next[0];
                    continue;
                }
                done[nth / 64] &= !(1 << (nth % 64));
            }
            at = entries.next[at];
            continue;
        }
        if op.end == End::Info {
            // Everything that was answered is done; the rest need never happen.
            return Found::Linearizable;
        }
        let Some((nth, before)) = taken.pop() else {
            return Found::Impossible { deepest };
        };
        state = before;
        done[nth / 64] &= !(1 << (nth % 64));
        let call = nth * 2 + 1;
        entries.unlift(call + 1);
        entries.unlift(call);
        at = entries.next[call];
    }
}

/// A history without an order, cut down to what has none either: what returned last is cut off
/// while nothing changes, then whatever `is_droppable` allows. Each of the many searches visits a
/// part of `limit` states; what is not decided by then is kept.
pub fn shrink<M: Model>(
    model: &M,
    history: &[Op],
    limit: usize,
    is_droppable: impl Fn(&Op, &[Op]) -> bool,
) -> Vec<Op> {
    let impossible =
        |ops: &[Op]| matches!(search(model, ops, limit / 30), Found::Impossible { .. });
    let cut = |at: u64| -> Vec<Op> {
        history
            .iter()
            .filter(|op| op.called <= at)
            .cloned()
            .map(|mut op| {
                if op.returned > at && op.end == End::Ok {
                    op.end = End::Info;
                }
                op
            })
            .collect()
    };
    let mut returns: Vec<u64> = history
        .iter()
        .filter(|op| op.end == End::Ok)
        .map(|op| op.returned)
        .collect();
    returns.sort_unstable();
    // The shortest prefix without an order: prefixes of linearizable histories are linearizable.
    let shortest = returns.partition_point(|at| !impossible(&cut(*at)));
    let mut ops = returns
        .get(shortest)
        .map_or_else(|| history.to_vec(), |at| cut(*at));
    ops.retain(|op| op.end != End::Fail);
    let mut changed = true;
    while changed {
        changed = false;
        let mut nth = 0;
        while nth < ops.len() {
            if is_droppable(&ops[nth], &ops) {
                let op = ops.remove(nth);
                if impossible(&ops) {
                    changed = true;
                    continue;
                }
                ops.insert(nth, op);
            }
            nth += 1;
        }
    }
    ops
}

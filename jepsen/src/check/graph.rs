//! Dependencies between transactions, and the cycles in them that no serial order allows.
//!
//! Source: Adya, *Weak consistency* (1999), for the classes; Kingsbury and Alvaro, *Elle* (2020),
//! for finding them in what clients saw; Tarjan (1972) for strongly connected components.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Verdict;
use crate::history::{Key, Op, show};

/// Why one transaction is before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It wrote the version before the other's.
    Ww,
    /// The other read its version.
    Wr,
    /// It read the version that the other replaced.
    Rw,
    /// It was answered before the other was called.
    Rt,
}

impl Kind {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A reason, and the versions it rests on.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    pub to: usize,
    pub kind: Kind,
    pub key: Key,
    pub before: Option<i64>,
    pub after: Option<i64>,
}

/// Transactions by their place in the history.
#[derive(Debug, Default)]
pub struct Graph {
    edges: Vec<Vec<Edge>>,
}

const WW: u8 = 1;
const WR: u8 = 2;
const RW: u8 = 4;
const RT: u8 = 8;

/// The classes: name, the edge that begins the cycle, what the rest may be made of.
const CLASSES: [(&str, u8, u8); 8] = [
    ("G0", WW, WW),
    ("G1c", WR, WW | WR),
    ("G-single", RW, WW | WR),
    ("G2-item", RW, WW | WR | RW),
    ("G0-realtime", WW, WW | RT),
    ("G1c-realtime", WR, WW | WR | RT),
    ("G-single-realtime", RW, WW | WR | RT),
    ("G2-item-realtime", RW, WW | WR | RW | RT),
];

/// Searches that one class is worth.
const SEARCHES: usize = 5000;

impl Graph {
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            edges: vec![Vec::new(); nodes],
        }
    }

    /// Says that `from` is before `edge.to`.
    pub fn add(&mut self, from: usize, edge: Edge) {
        let known = self.edges[from]
            .iter()
            .any(|other| other.to == edge.to && other.kind == edge.kind);
        if from != edge.to && !known {
            self.edges[from].push(edge);
        }
    }

    /// Real time, without the edges that others imply: only what was answered last before a call
    /// and not yet before another such answer's call.
    pub fn add_real_time(&mut self, ops: &[&Op]) {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(ops.len() * 2);
        for (nth, op) in ops.iter().enumerate() {
            events.push((op.called, false, nth));
            events.push((op.settled(), true, nth));
        }
        // A call at the time of an answer counts as concurrent: calls first.
        events.sort_unstable();
        let mut frontier: Vec<usize> = Vec::new();
        for (at, is_return, nth) in events {
            if at == u64::MAX {
                break;
            }
            if is_return {
                frontier.retain(|earlier| ops[*earlier].settled() >= ops[nth].called);
                frontier.push(nth);
                continue;
            }
            for earlier in &frontier {
                self.add(
                    *earlier,
                    Edge {
                        to: nth,
                        kind: Kind::Rt,
                        key: 0,
                        before: None,
                        after: None,
                    },
                );
            }
        }
    }

    /// The strongly connected components of what `allowed` leaves: a number per node.
    fn components(&self, allowed: u8) -> Vec<usize> {
        const OPEN: usize = usize::MAX;
        let nodes = self.edges.len();
        let mut index = vec![OPEN; nodes];
        let mut low = vec![0; nodes];
        let mut component = vec![OPEN; nodes];
        let (mut counter, mut components) = (0, 0);
        let mut stack = Vec::new();
        let mut work: Vec<(usize, usize)> = Vec::new();
        for root in 0..nodes {
            if index[root] != OPEN {
                continue;
            }
            work.push((root, 0));
            while let Some((node, at)) = work.pop() {
                if at == 0 {
                    index[node] = counter;
                    low[node] = counter;
                    counter += 1;
                    stack.push(node);
                }
                let step = self.edges[node]
                    .iter()
                    .enumerate()
                    .skip(at)
                    .find(|(_, edge)| edge.kind.bit() & allowed != 0 && component[edge.to] == OPEN);
                let Some((nth, edge)) = step else {
                    if low[node] == index[node] {
                        while let Some(member) = stack.pop() {
                            component[member] = components;
                            if member == node {
                                break;
                            }
                        }
                        components += 1;
                    }
                    if let Some((parent, _)) = work.last() {
                        low[*parent] = low[*parent].min(low[node]);
                    }
                    continue;
                };
                work.push((node, nth + 1));
                if index[edge.to] == OPEN {
                    work.push((edge.to, 0));
                } else {
                    low[node] = low[node].min(index[edge.to]);
                }
            }
        }
        component
    }

    /// The shortest way from `from` to `to` over `allowed`, within one component.
    fn path(
        &self,
        from: usize,
        to: usize,
        allowed: u8,
        component: &[usize],
        longest: usize,
    ) -> Option<Vec<(usize, Edge)>> {
        let mut came: HashMap<usize, (usize, Edge)> = HashMap::new();
        let mut queue = VecDeque::from([(from, 0)]);
        while let Some((node, length)) = queue.pop_front() {
            if length >= longest {
                return None;
            }
            for edge in &self.edges[node] {
                if edge.kind.bit() & allowed == 0 || component[edge.to] != component[from] {
                    continue;
                }
                if edge.to == from || came.contains_key(&edge.to) {
                    continue;
                }
                came.insert(edge.to, (node, *edge));
                if edge.to == to {
                    let mut way = Vec::new();
                    let mut at = to;
                    while at != from {
                        let (previous, edge) = came[&at];
                        way.push((previous, edge));
                        at = previous;
                    }
                    way.reverse();
                    return Some(way);
                }
                queue.push_back((edge.to, length + 1));
            }
        }
        None
    }

    /// The shortest cycle of each class that there is.
    #[must_use]
    pub fn cycles(&self) -> BTreeMap<&'static str, Vec<(usize, Edge)>> {
        let mut found: BTreeMap<&'static str, Vec<(usize, Edge)>> = BTreeMap::new();
        for (class, first, rest) in CLASSES {
            let plain = class.trim_end_matches("-realtime");
            if found.contains_key(plain) {
                continue;
            }
            let component = self.components(first | rest);
            let mut best: Option<Vec<(usize, Edge)>> = None;
            let candidates = self
                .edges
                .iter()
                .enumerate()
                .flat_map(|(from, edges)| edges.iter().map(move |edge| (from, *edge)))
                .filter(|(from, edge)| {
                    edge.kind.bit() & first != 0 && component[*from] == component[edge.to]
                })
                .take(SEARCHES);
            for (from, edge) in candidates {
                let longest = best.as_ref().map_or(usize::MAX, |cycle| cycle.len() - 1);
                let Some(mut way) = self.path(edge.to, from, rest, &component, longest) else {
                    continue;
                };
                way.insert(0, (from, edge));
                // A cycle of one anti-dependency is G-single, whatever was allowed.
                let anti = way.iter().filter(|(_, edge)| edge.kind == Kind::Rw).count();
                if plain == "G2-item" && anti < 2 {
                    continue;
                }
                if best.as_ref().is_none_or(|best| way.len() < best.len()) {
                    best = Some(way);
                }
            }
            if let Some(cycle) = best {
                found.insert(class, cycle);
            }
        }
        found
    }
}

/// Adds every cycle of `graph` to `verdict`, told in words.
pub fn report(graph: &Graph, ops: &[&Op], verdict: &mut Verdict) {
    for (class, cycle) in graph.cycles() {
        let mut evidence: Vec<String> = Vec::new();
        for (nth, (from, _)) in cycle.iter().enumerate() {
            evidence.push(format!("T{} = {}", nth + 1, show(ops[*from])));
        }
        for (nth, (_, edge)) in cycle.iter().enumerate() {
            let (a, b) = (nth + 1, (nth + 1) % cycle.len() + 1);
            let value = |value: Option<i64>| {
                value.map_or_else(|| "nothing".to_owned(), |value| value.to_string())
            };
            let (key, before, after) = (edge.key, value(edge.before), value(edge.after));
            evidence.push(match edge.kind {
                Kind::Ww => format!(
                    "T{a} is before T{b} (ww): of key {key}, T{b} wrote {after} over T{a}'s {before}"
                ),
                Kind::Wr => {
                    format!("T{a} is before T{b} (wr): T{b} read T{a}'s {after} of key {key}")
                }
                Kind::Rw => format!(
                    "T{a} is before T{b} (rw): T{a} read key {key} at {before}, without T{b}'s {after}"
                ),
                Kind::Rt => {
                    format!("T{a} is before T{b} (real time): it was answered before T{b} was called")
                }
            });
        }
        verdict.found(
            class,
            format!("a cycle of {} transactions", cycle.len()),
            evidence,
        );
    }
}

//! Listings of objects that are put once each, and deleted: what was put and not deleted is in every
//! listing that begins later, what was deleted is in none, nothing else is ever in one. Each object
//! is looked at by itself, so a listing in several pages need not be of one instant.

use std::collections::{BTreeMap, HashSet};

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Checks each listing's objects by themselves.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Action::Add { key, .. } | Action::Remove { key, .. } | Action::Members { key, .. } =
            op.action
        {
            keys.entry(key).or_default().push(op);
            verdict.checked += 1;
        }
    }
    for (key, ops) in keys {
        one(key, &ops, &mut verdict);
    }
    verdict
}

/// What a history says of one object.
#[derive(Default)]
struct Object<'a> {
    put: Option<&'a Op>,
    deletes: Vec<&'a Op>,
    /// Who was told first that it is there.
    there: Option<&'a Op>,
    /// Who was told first that it is there no more.
    gone: Option<&'a Op>,
}

/// Keeps the one that returned first.
fn earliest<'a>(known: &mut Option<&'a Op>, op: &'a Op) {
    if known.is_none_or(|first| op.returned < first.returned) {
        *known = Some(op);
    }
}

fn is_before(known: Option<&Op>, op: &Op) -> bool {
    known.is_some_and(|known| known.returned < op.called)
}

fn one<'a>(key: Key, ops: &[&'a Op], verdict: &mut Verdict) {
    let mut objects: BTreeMap<i64, Object<'a>> = BTreeMap::new();
    let mut listings: Vec<(&'a Op, HashSet<i64>)> = Vec::new();
    for &op in ops {
        match &op.action {
            Action::Add { value, .. } => {
                let object = objects.entry(*value).or_default();
                object.put = Some(op);
                if op.end == End::Ok {
                    earliest(&mut object.there, op);
                }
            }
            Action::Remove { value, .. } => objects.entry(*value).or_default().deletes.push(op),
            Action::Members { values, .. } if op.end == End::Ok => {
                let mut present = HashSet::new();
                for value in values {
                    if !present.insert(*value) {
                        verdict.found(
                            "listed-twice",
                            format!("{value} is twice in one listing of {key}"),
                            [show(op)],
                        );
                    }
                    earliest(&mut objects.entry(*value).or_default().there, op);
                }
                listings.push((op, present));
            }
            _ => {}
        }
    }
    for (value, object) in &mut objects {
        // A deletion, or a listing without it, says that it is gone if it was there before.
        let lacking = listings
            .iter()
            .filter(|(_, present)| !present.contains(value))
            .map(|(op, _)| *op);
        let deleted = object
            .deletes
            .iter()
            .copied()
            .filter(|op| op.end == End::Ok);
        for op in deleted.chain(lacking) {
            if is_before(object.there, op) {
                earliest(&mut object.gone, op);
            }
        }
    }
    for (listing, present) in &listings {
        for (value, object) in &objects {
            if present.contains(value) {
                listed(key, *value, object, listing, verdict);
            } else if is_before(object.there, listing)
                && !object
                    .deletes
                    .iter()
                    .any(|op| op.end != End::Fail && op.called <= listing.returned)
            {
                let evidence: Vec<&Op> = object.there.into_iter().chain([*listing]).collect();
                verdict.found(
                    "lost-object",
                    format!("{value} was in {key} and not deleted, and a later listing lacks it"),
                    evidence.into_iter().map(show),
                );
            }
        }
    }
}

/// Whether `listing` may have `value`.
fn listed(key: Key, value: i64, object: &Object<'_>, listing: &Op, verdict: &mut Verdict) {
    match object.put {
        None => verdict.found(
            "unexpected-object",
            format!("nobody put {value} into {key}"),
            [show(listing)],
        ),
        Some(put) if put.end == End::Fail => verdict.found(
            "refused-put-listed",
            format!("{value} was refused as not applied, and is in {key}"),
            [show(put), show(listing)],
        ),
        Some(put) if put.called > listing.returned => verdict.found(
            "future-listing",
            format!("{key} had {value} before it was put"),
            [show(listing), show(put)],
        ),
        Some(_) => {}
    }
    if let Some(gone) = object.gone
        && gone.returned < listing.called
    {
        verdict.found(
            "came-back",
            format!("{value} was gone from {key}, and a later listing has it"),
            [show(gone), show(listing)],
        );
    }
}

//! Transfers between accounts: every reading of all accounts has the same total, none is below zero,
//! and the last reading is what the acknowledged transfers made, give or take the unknown ones.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Action, End, Key, Op, show};

/// Checks against accounts that began with `opening` each.
#[must_use]
pub fn check(ops: &[Op], accounts: Key, opening: i64) -> Verdict {
    let mut verdict = Verdict::default();
    let total = i64::from(accounts) * opening;
    // What each account has at the least and at the most when all is done.
    let mut bounds: BTreeMap<Key, (i64, i64)> = (0..accounts)
        .map(|account| (account, (opening, opening)))
        .collect();
    let mut last: Option<&Op> = None;
    for op in ops {
        match &op.action {
            Action::Transfer { from, to, amount } => {
                verdict.checked += 1;
                let sure = op.end == End::Ok;
                if op.end == End::Fail {
                    continue;
                }
                if let Some(bound) = bounds.get_mut(from) {
                    bound.0 -= amount;
                    bound.1 -= if sure { *amount } else { 0 };
                }
                if let Some(bound) = bounds.get_mut(to) {
                    bound.0 += if sure { *amount } else { 0 };
                    bound.1 += amount;
                }
            }
            Action::Balances(balances) if op.end == End::Ok => {
                verdict.checked += 1;
                let sum: i64 = balances.iter().map(|(_, balance)| balance).sum();
                if sum != total || balances.len() != accounts as usize {
                    verdict.found(
                        "wrong-total",
                        format!("{} accounts have {sum}, not {total}", balances.len()),
                        [show(op)],
                    );
                }
                if let Some((account, balance)) = balances.iter().find(|(_, balance)| *balance < 0)
                {
                    verdict.found(
                        "negative-balance",
                        format!("account {account} has {balance}"),
                        [show(op)],
                    );
                }
                if last.is_none_or(|last| last.called < op.called) {
                    last = Some(op);
                }
            }
            _ => {}
        }
    }
    // Only a reading after all transfers can be held against their sum.
    let Some(last) = last else {
        verdict.undecided.push("no reading of the accounts".into());
        return verdict;
    };
    let is_last = ops.iter().all(|op| {
        !matches!(op.action, Action::Transfer { .. })
            || op.end != End::Ok
            || op.returned < last.called
    });
    if let (true, Action::Balances(balances)) = (is_last, &last.action) {
        for (account, balance) in balances {
            let (low, high) = bounds.get(account).copied().unwrap_or_default();
            if *balance < low || *balance > high {
                verdict.found(
                    "lost-transfer",
                    format!(
                        "account {account} has {balance} in the end; the transfers allow {low} to {high}"
                    ),
                    [show(last)],
                );
            }
        }
    }
    verdict
}

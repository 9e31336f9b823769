//! Transactions over several shards: optimistic two-phase commit through the executors
//! (`docs/transactions.md`).
//!
//! ```text
//! read ─► evaluate ─► lock ─► validate ─► decide ─► reply
//!   rows with   over what   every     what is    one record    └► roll forward the other shards,
//!   stamps      was read    shard     not locked  at one shard    then forget the record
//! ```
//! An operation over several shards is evaluated by its coordinator, over rows that it reads from
//! the shards with their stamps ([`rows`]); what it changed is buffered. Each shard to be changed
//! checks the stamps and replicates a *lock*: a row with the new values ([`record`]). The shard of
//! the *primary* row decides, and needs no lock of its own where nothing is validated elsewhere: it
//! compares, changes and decides at once. Each step is a command of the shard's executor
//! ([`steps`]), and what it changes are rows: apply decides nothing.
//!
//! A transaction whose keys share a shard never comes here: it is one command there.
//!
//! # Rules
//! Numbered as in `docs/transactions.md`, which names the tests.
//! 1. *Validate* begins when every lock is granted, and covers what is read and not locked.
//! 2. Read-only and failing operations validate too before they answer.
//! 3. Nothing reads or writes beneath another's lock.
//! 4. An attempt's id is never reused, a granted lock has a stamp, and only a lock with that id and
//!    stamp is rolled forward or decided upon. A decision without a lock is made or refused once: a
//!    record says so to every copy of it.
//! 5. A commit record goes when every lock it lists is gone; an abort record only below its
//!    session's mark. Never by age.
//! 6. A new attempt begins only when the last is known aborted.

mod coordinate;
mod execute;
mod record;
mod resolve;
mod rows;
pub(crate) mod steps;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use coordinate::{FORGETTING, Network, TransactionCoordinator};
pub(crate) use execute::execute;
pub(crate) use resolve::Doubt;
pub use resolve::Doubts;
pub(crate) use rows::sum as counter_sum;
pub(crate) use steps::TransactionCodec;
pub use steps::TransactionOperation;
pub(crate) use table::{Blocked, Table};

use crate::RequestId;

/// One attempt at a transaction; never reused.
pub(crate) type AttemptId = RequestId;

/// A lock whose attempt has not been settled for so long is resolved by whoever meets it, by the
/// monotonic clock of the executor that holds it.
pub(crate) const LOCK_TTL: Duration = Duration::from_secs(2);

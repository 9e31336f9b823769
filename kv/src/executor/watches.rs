//! Who waits for which keys, in order of arrival.
//!
//! # Invariants
//! 1. A watch registered before a wake of one of its keys is woken by it.
//! 2. The end of the executor wakes every watch, to register again at the next one.
//! 3. Bounded: registrations whose watch was dropped are cleared away before one is refused, and
//!    often enough to cost a constant per registration.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{KeyWatch, KvError};

/// Registrations of watches and keys that one shard holds at most.
const MOST: usize = 1 << 20;

/// Below this many, dropped registrations are left alone.
const FEW: usize = 64;

type Waiter = Arc<Mutex<Option<oneshot::Sender<()>>>>;

#[derive(Debug, Default)]
struct Table {
    waiters: HashMap<Bytes, Vec<Waiter>>,
    registrations: usize,
    /// Registrations left after the last clearing.
    live: usize,
    closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<Table>);

impl Table {
    fn clear_dropped(&mut self) {
        self.waiters.retain(|_, waiters| {
            waiters.retain(|waiter| {
                waiter
                    .lock()
                    .as_ref()
                    .is_some_and(|sender| !sender.is_closed())
            });
            !waiters.is_empty()
        });
        self.registrations = self.waiters.values().map(Vec::len).sum();
        self.live = self.registrations;
    }
}

impl Watches {
    pub(crate) fn register(&self, keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        let (sender, watch) = KeyWatch::new();
        let waiter = Arc::new(Mutex::new(Some(sender)));
        let mut table = self.0.lock();
        if table.closed {
            return Err(KvError::NoLeader { leader: None });
        }
        if table.registrations >= FEW.max(2 * table.live) || table.registrations >= MOST {
            table.clear_dropped();
        }
        if table.registrations + keys.len() > MOST {
            return Err(KvError::Overloaded {
                what: "watched keys",
                retry_after_ms: 1000,
            });
        }
        for key in keys {
            // Copied: a slice would keep the whole request alive while it waits.
            let key = Bytes::copy_from_slice(key);
            table
                .waiters
                .entry(key)
                .or_default()
                .push(Arc::clone(&waiter));
        }
        table.registrations += keys.len();
        Ok(watch)
    }

    /// Wakes who watches one of `keys`.
    pub(crate) fn wake(&self, keys: &[Bytes]) {
        for key in keys {
            let waiters = {
                let mut table = self.0.lock();
                if table.waiters.is_empty() {
                    return;
                }
                let waiters = table.waiters.remove(key).unwrap_or_default();
                table.registrations -= waiters.len();
                waiters
            };
            for waiter in waiters {
                if let Some(sender) = waiter.lock().take() {
                    // A watch that was dropped meanwhile has nobody to wake.
                    sender.send(()).ok();
                }
            }
        }
    }

    /// Wakes all, and takes no more.
    pub(crate) fn close(&self) {
        let waiters = {
            let mut table = self.0.lock();
            table.closed = true;
            table.registrations = 0;
            std::mem::take(&mut table.waiters)
        };
        // Dropping a sender wakes its watch.
        drop(waiters);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().registrations
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn keys(names: &[&'static str]) -> Vec<Bytes> {
        names
            .iter()
            .map(|name| Bytes::from_static(name.as_bytes()))
            .collect()
    }

    #[tokio::test]
    async fn a_wake_reaches_the_watches_of_its_key_and_no_other() {
        let watches = Watches::default();
        let mut both = watches.register(&keys(&["a", "b"])).unwrap();
        let mut other = watches.register(&keys(&["c"])).unwrap();
        watches.wake(&keys(&["b"]));
        assert!(both.woken().now_or_never().is_some());
        assert!(other.woken().now_or_never().is_none());
    }

    #[tokio::test]
    async fn the_end_wakes_every_watch_and_refuses_new_ones() {
        let watches = Watches::default();
        let mut watch = watches.register(&keys(&["a"])).unwrap();
        watches.close();
        assert!(watch.woken().now_or_never().is_some());
        assert!(watches.register(&keys(&["a"])).is_err());
    }

    #[test]
    fn watches_that_come_and_go_leave_nothing_behind() {
        let watches = Watches::default();
        let kept = watches.register(&keys(&["kept"])).unwrap();
        for number in 0..10_000 {
            let key = Bytes::from(format!("key {number}"));
            drop(watches.register(&[key]).unwrap());
        }
        assert!(watches.len() <= 2 * FEW, "{} registrations", watches.len());
        drop(kept);
    }
}

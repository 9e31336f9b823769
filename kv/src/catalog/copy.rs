//! This node's copy of the catalog, and who waits for it to change.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::Catalog;

/// The catalog as this node last saw it. Reading it is wait-free.
#[derive(Debug)]
pub struct CatalogCopy {
    current: ArcSwapOption<Catalog>,
    epoch: watch::Sender<u64>,
}

impl Default for CatalogCopy {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            epoch: watch::Sender::new(0),
        }
    }
}

impl CatalogCopy {
    /// The copy; none until this node has seen a catalog.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.current.load_full()
    }

    /// Takes `catalog` if it is newer than the copy.
    pub fn offer(&self, catalog: Catalog) -> bool {
        let epoch = catalog.epoch();
        let catalog = Arc::new(catalog);
        // The watch's lock orders two offers; invariant 3 of the catalog.
        self.epoch.send_if_modified(|known| {
            let newer = epoch > *known;
            if newer {
                self.current.store(Some(catalog));
                *known = epoch;
            }
            newer
        })
    }

    /// Follows the epoch of the copy.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }
}

//! Which rows name chunks, and which chunks they name: said by the adapter whose rows they are.

use std::ops::Range;

use bytes::Bytes;

use super::ChunkRef;

/// Reads the manifests of one door. Repair and collection walk the applied rows of each shard with
/// it, on a thread that may block.
pub trait ChunkReferences: Send + Sync + 'static {
    /// The row keys among which manifests are. Every row in here is shown to `chunks`.
    fn range(&self) -> Range<Bytes>;

    /// Calls `visit` with every chunk that the row names; not at all for a row that names none.
    ///
    /// # Errors
    /// A row that cannot be read: then nothing is collected on this node until it can be, since it
    /// might name anything.
    fn chunks(
        &self,
        key: &[u8],
        value: &[u8],
        visit: &mut dyn FnMut(ChunkRef),
    ) -> Result<(), String>;
}

//! Which rows name chunks: those of bodies.

use std::ops::Range;

use bytes::Bytes;
use leadline_kv::blobs::{ChunkRef, ChunkReferences};
use prost::Message;

use crate::rows::{self, PartRow, Piece};

/// Reads the chunks that S3 rows name.
#[derive(Clone, Copy, Debug, Default)]
pub struct S3References;

impl ChunkReferences for S3References {
    fn range(&self) -> Range<Bytes> {
        rows::keyspace()
    }

    fn chunks(
        &self,
        key: &[u8],
        value: &[u8],
        visit: &mut dyn FnMut(ChunkRef),
    ) -> Result<(), String> {
        if !rows::is_data(key) {
            return Ok(());
        }
        let part = PartRow::decode(value).map_err(|error| error.to_string())?;
        for piece in Piece::decode_all(&part.pieces)? {
            visit(piece.chunk);
        }
        Ok(())
    }
}

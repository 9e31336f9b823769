//! The name of a chunk: what it holds, hashed, and how long it is.

use std::fmt;

use bytes::{BufMut, BytesMut};

/// BLAKE3 of a chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// Hashes a chunk: about a third of a millisecond for [`super::CHUNK_BYTES`].
    #[must_use]
    pub fn of(chunk: &[u8]) -> Self {
        Self(*blake3::hash(chunk).as_bytes())
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to find it in a log.
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A chunk as manifests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    pub hash: ChunkHash,
    /// Bytes, 1 to [`super::CHUNK_BYTES`].
    pub len: u32,
}

impl ChunkRef {
    /// Bytes of an encoded reference.
    pub const ENCODED: usize = 36;

    /// The name of `chunk`.
    ///
    /// # Panics
    /// For a chunk of 4 GiB and more, which nobody can have.
    #[must_use]
    pub fn of(chunk: &[u8]) -> Self {
        Self {
            hash: ChunkHash::of(chunk),
            len: u32::try_from(chunk.len()).expect("a chunk is shorter than 4 GiB"),
        }
    }

    /// Appends what [`ChunkRef::decode`] reads: the hash, then the length in big endian.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_slice(&self.hash.0);
        out.put_u32(self.len);
    }

    /// Reads a reference off the front of `bytes`, and gives the rest.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (hash, rest) = bytes.split_first_chunk::<32>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let chunk = Self {
            hash: ChunkHash(*hash),
            len: u32::from_be_bytes(*len),
        };
        Some((chunk, rest))
    }
}

impl fmt::Display for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.hash, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_the_same_after_encoding_and_a_short_one_is_refused() {
        let chunk = ChunkRef::of(b"some bytes");
        let mut out = BytesMut::new();
        chunk.encode(&mut out);
        assert_eq!(out.len(), ChunkRef::ENCODED);
        out.put_u8(7);
        assert_eq!(ChunkRef::decode(&out), Some((chunk, &[7][..])));
        assert_eq!(ChunkRef::decode(&out[..35]), None);
    }
}

//! Row values, as Protocol Buffers: a field that an older binary does not know is kept from
//! nobody, and one that is absent has its default. Field numbers are never reused.

use bytes::{BufMut, Bytes, BytesMut};
use leadline_kv::RowError;
use leadline_kv::blobs::ChunkRef;
use prost::Message;

/// Reads a row value.
pub(crate) fn decode<M: Message + Default>(value: &[u8]) -> Result<M, RowError> {
    M::decode(value).map_err(|error| RowError::Storage(format!("a damaged S3 row: {error}")))
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Whether a bucket keeps older versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Versioning {
    Never = 0,
    Enabled = 1,
    Suspended = 2,
}

/// Canned access control lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Acl {
    Private = 0,
    PublicRead = 1,
    PublicReadWrite = 2,
    AuthenticatedRead = 3,
}

/// A bucket.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BucketRow {
    #[prost(uint64, tag = "1")]
    pub(crate) created_ms: u64,
    /// The access key that made it.
    #[prost(string, tag = "2")]
    pub(crate) owner: String,
    #[prost(enumeration = "Versioning", tag = "3")]
    pub(crate) versioning: i32,
    #[prost(enumeration = "Acl", tag = "4")]
    pub(crate) acl: i32,
    #[prost(string, tag = "5")]
    pub(crate) region: String,
    /// The policy, ready to be asked.
    #[prost(message, optional, tag = "6")]
    pub(crate) policy: Option<PolicyRow>,
    /// The bucket has lifecycle rules.
    #[prost(bool, tag = "7")]
    pub(crate) lifecycle: bool,
}

/// A bucket policy, compiled.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PolicyRow {
    #[prost(message, repeated, tag = "1")]
    pub(crate) statements: Vec<StatementRow>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatementRow {
    #[prost(bool, tag = "1")]
    pub(crate) deny: bool,
    /// Access keys; `*` is everybody.
    #[prost(string, repeated, tag = "2")]
    pub(crate) principals: Vec<String>,
    /// Patterns such as `s3:Get*`.
    #[prost(string, repeated, tag = "3")]
    pub(crate) actions: Vec<String>,
    /// Patterns of `bucket` and `bucket/key`.
    #[prost(string, repeated, tag = "4")]
    pub(crate) resources: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Pair {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// Headers that are stored with an object and given back with it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContentHeaders {
    #[prost(string, optional, tag = "1")]
    pub(crate) content_type: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) content_encoding: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) content_disposition: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) content_language: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub(crate) cache_control: Option<String>,
    /// An HTTP date.
    #[prost(string, optional, tag = "6")]
    pub(crate) expires: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(crate) website_redirect: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Algorithm {
    None = 0,
    Crc32 = 1,
    Crc32c = 2,
    Crc64Nvme = 3,
    Sha1 = 4,
    Sha256 = 5,
}

/// A checksum in Base64, for a composite one with `-N` behind.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ChecksumRow {
    #[prost(enumeration = "Algorithm", tag = "1")]
    pub(crate) algorithm: i32,
    /// Of the parts' checksums, not of the bytes.
    #[prost(bool, tag = "2")]
    pub(crate) composite: bool,
    #[prost(string, tag = "3")]
    pub(crate) value: String,
}

/// One part of an object that was uploaded in parts.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PartEntry {
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) size: u64,
}

/// A version of an object, or a delete marker.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ObjectRow {
    /// Its place among the versions of its key, and, unless `null`, its version id.
    #[prost(fixed64, tag = "1")]
    pub(crate) stamp: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) modified_ms: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) size: u64,
    /// Without quotes.
    #[prost(string, tag = "4")]
    pub(crate) etag: String,
    /// Where its bytes are: 16 bytes, or none for an object without bytes.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) data: Bytes,
    /// In order; one, numbered 1, for an object put in one piece.
    #[prost(message, repeated, tag = "6")]
    pub(crate) parts: Vec<PartEntry>,
    #[prost(bool, tag = "7")]
    pub(crate) multipart: bool,
    #[prost(message, optional, tag = "8")]
    pub(crate) headers: Option<ContentHeaders>,
    #[prost(message, repeated, tag = "9")]
    pub(crate) metadata: Vec<Pair>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) tags: Vec<Pair>,
    #[prost(message, optional, tag = "11")]
    pub(crate) checksum: Option<ChecksumRow>,
    /// The version that is called `null`: made while the bucket kept no versions.
    #[prost(bool, tag = "12")]
    pub(crate) null: bool,
    #[prost(bool, tag = "13")]
    pub(crate) delete_marker: bool,
    #[prost(enumeration = "Acl", tag = "14")]
    pub(crate) acl: i32,
    #[prost(string, tag = "15")]
    pub(crate) owner: String,
    #[prost(string, tag = "16")]
    pub(crate) storage_class: String,
}

impl ObjectRow {
    /// The version id that clients see.
    pub(crate) fn version_id(&self) -> String {
        if self.null {
            NULL_VERSION.to_owned()
        } else {
            format!("{:016x}", self.stamp)
        }
    }

    pub(crate) fn data_id(&self) -> Option<super::DataId> {
        self.data.as_ref().try_into().ok()
    }
}

/// The id of the version that has none.
pub(crate) const NULL_VERSION: &str = "null";

/// Bytes of a body: at most one of `inline` and `pieces`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PartRow {
    #[prost(uint64, tag = "1")]
    pub(crate) size: u64,
    /// Hexadecimal.
    #[prost(string, tag = "2")]
    pub(crate) md5: String,
    #[prost(uint64, tag = "3")]
    pub(crate) modified_ms: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) inline: Bytes,
    /// [`Piece`]s, encoded one after the other.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) pieces: Bytes,
    #[prost(message, optional, tag = "6")]
    pub(crate) checksum: Option<ChecksumRow>,
}

/// A multipart upload under way.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UploadRow {
    #[prost(uint64, tag = "1")]
    pub(crate) initiated_ms: u64,
    /// What the object will be, without its bytes.
    #[prost(message, optional, tag = "2")]
    pub(crate) object: Option<ObjectRow>,
    #[prost(enumeration = "Algorithm", tag = "3")]
    pub(crate) algorithm: i32,
    /// The checksum will be one of the parts' checksums.
    #[prost(bool, tag = "4")]
    pub(crate) composite: bool,
}

/// Some bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) chunk: ChunkRef,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Piece {
    const ENCODED: usize = ChunkRef::ENCODED + 8;

    pub(crate) fn whole(chunk: ChunkRef) -> Self {
        Self {
            chunk,
            offset: 0,
            len: chunk.len,
        }
    }

    pub(crate) fn encode_all(pieces: &[Self]) -> Bytes {
        let mut out = BytesMut::with_capacity(pieces.len() * Self::ENCODED);
        for piece in pieces {
            piece.chunk.encode(&mut out);
            out.put_u32(piece.offset);
            out.put_u32(piece.len);
        }
        out.freeze()
    }

    pub(crate) fn decode_all(mut bytes: &[u8]) -> Result<Vec<Self>, String> {
        let damaged = || "a damaged list of chunks".to_owned();
        let mut pieces = Vec::with_capacity(bytes.len() / Self::ENCODED);
        while !bytes.is_empty() {
            let (chunk, rest) = ChunkRef::decode(bytes).ok_or_else(damaged)?;
            let (offset, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            pieces.push(Self {
                chunk,
                offset: u32::from_be_bytes(*offset),
                len: u32::from_be_bytes(*len),
            });
            bytes = rest;
        }
        Ok(pieces)
    }

    /// The pieces of `range` of the bytes that `pieces` are.
    pub(crate) fn cut(pieces: &[Self], range: std::ops::Range<u64>) -> Vec<Self> {
        let mut at = 0;
        let mut cut = Vec::new();
        for piece in pieces {
            let (start, end) = (at, at + u64::from(piece.len));
            at = end;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                // Within a piece, so within 32 bits.
                let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
                cut.push(Self {
                    chunk: piece.chunk,
                    offset: piece.offset + narrow(from - start),
                    len: narrow(to - from),
                });
            }
        }
        cut
    }
}

/// What a key may do to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Level {
    Nothing = 0,
    Read = 1,
    Write = 2,
    Owner = 3,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct GrantRow {
    /// A bucket's name, or `*`.
    #[prost(string, tag = "1")]
    pub(crate) bucket: String,
    #[prost(enumeration = "Level", tag = "2")]
    pub(crate) level: i32,
}

/// An access key.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct KeyRow {
    #[prost(string, tag = "1")]
    pub(crate) access_key: String,
    /// In the clear: whoever checks a signature must have it.
    #[prost(string, tag = "2")]
    pub(crate) secret: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(uint64, tag = "4")]
    pub(crate) created_ms: u64,
    /// May make buckets.
    #[prost(bool, tag = "5")]
    pub(crate) creates: bool,
    #[prost(message, repeated, tag = "6")]
    pub(crate) grants: Vec<GrantRow>,
}

impl KeyRow {
    /// What the key's grants allow for a bucket.
    pub(crate) fn level(&self, bucket: &str) -> Level {
        self.grants
            .iter()
            .filter(|grant| grant.bucket == "*" || grant.bucket == bucket)
            .map(GrantRow::level)
            .max()
            .unwrap_or(Level::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use leadline_kv::blobs::ChunkHash;

    use super::*;

    fn piece(id: u8, offset: u32, len: u32) -> Piece {
        Piece {
            chunk: ChunkRef {
                hash: ChunkHash([id; 32]),
                len: 100,
            },
            offset,
            len,
        }
    }

    #[test]
    fn a_range_is_cut_out_of_pieces_that_are_themselves_parts_of_chunks() {
        let pieces = [piece(1, 0, 100), piece(2, 40, 10), piece(3, 0, 100)];
        assert_eq!(
            Piece::cut(&pieces, 95..113),
            [piece(1, 95, 5), piece(2, 40, 10), piece(3, 0, 3)]
        );
        assert_eq!(Piece::cut(&pieces, 100..110), [piece(2, 40, 10)]);
        assert!(Piece::cut(&pieces, 210..220).is_empty());
        let encoded = Piece::encode_all(&pieces);
        assert_eq!(Piece::decode_all(&encoded).unwrap(), pieces);
        assert!(Piece::decode_all(&encoded[1..]).is_err());
    }
}

//! Row keys of the S3 keyspace.
//!
//! ```text
//! 0x20 | hash of the bucket u16 BE | bucket | 0x00 |
//!     0x00                                  the bucket
//!     0x01 | kind u8                        a configuration of the bucket, as it was given
//!     0x10 | key                            an object: the newest version, if it is not a delete marker
//!     0x20 | key | 0x00 | !stamp u64 BE     an older version, or a delete marker; newest first
//!     0x21 | key                            the stamp of the older version that is called `null`
//!     0x30 | key | 0x00 | upload            a multipart upload under way
//!     0x31 | data | part u16 BE             bytes: of a part, or of an object put in one piece
//! 0x01 | 0x20 | access key                  an access key (meta group)
//! ```
//!
//! All rows of a bucket are neighbours, and a shard's border never falls between them: what
//! decides about a bucket or an object is one operation on one shard. Object rows lie in the order of
//! their keys' bytes, which is the order that listings have.
//!
//! # Invariants
//! 1. An object row is there if and only if the newest version of its key is not a delete marker.
//! 2. Versions of a key that are not its object row are in the version region, each once.
//! 3. Keys have no zero byte, so no key's versions lie among another's.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use leadline_kv::Timestamp;
use leadline_kv::keyspace::{AREA, META, S3, bucket_hash, bucket_hash_start};

/// Below [`META`]: access keys.
const ACCESS_KEYS: u8 = 0x20;

/// The name of what holds a body: an upload, or the put that made it.
pub(crate) type DataId = [u8; 16];

/// What the rows of a bucket are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Region {
    Bucket = 0x00,
    Configuration = 0x01,
    Objects = 0x10,
    Versions = 0x20,
    NullVersions = 0x21,
    Uploads = 0x30,
    Data = 0x31,
}

/// Where the rows of one bucket are.
#[derive(Clone, Debug)]
pub(crate) struct BucketKeys {
    prefix: Bytes,
}

impl BucketKeys {
    pub(crate) fn new(bucket: &str) -> Self {
        let mut prefix = BytesMut::with_capacity(bucket.len() + 4);
        prefix.put_slice(&bucket_hash_start(bucket_hash(bucket.as_bytes())));
        prefix.put_slice(bucket.as_bytes());
        prefix.put_u8(0);
        Self {
            prefix: prefix.freeze(),
        }
    }

    /// What every row key of the bucket begins with.
    pub(crate) fn prefix(&self) -> Bytes {
        self.prefix.clone()
    }

    /// All rows of the bucket.
    pub(crate) fn all(&self) -> Range<Bytes> {
        self.prefix.clone()..successor(&self.prefix)
    }

    fn key(&self, region: Region, parts: &[&[u8]]) -> Bytes {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut key = BytesMut::with_capacity(self.prefix.len() + 1 + length);
        key.put_slice(&self.prefix);
        key.put_u8(region as u8);
        for part in parts {
            key.put_slice(part);
        }
        key.freeze()
    }

    /// The rows of a region.
    pub(crate) fn region(&self, region: Region) -> Range<Bytes> {
        let start = self.key(region, &[]);
        let end = successor(&start);
        start..end
    }

    /// How long the prefix of a region's keys is.
    pub(crate) fn head(&self) -> usize {
        self.prefix.len() + 1
    }

    pub(crate) fn bucket(&self) -> Bytes {
        self.key(Region::Bucket, &[])
    }

    pub(crate) fn configuration(&self, kind: u8) -> Bytes {
        self.key(Region::Configuration, &[&[kind]])
    }

    pub(crate) fn object(&self, key: &str) -> Bytes {
        self.key(Region::Objects, &[key.as_bytes()])
    }

    /// The first key of a region at or after `key`.
    pub(crate) fn at(&self, region: Region, key: &[u8]) -> Bytes {
        self.key(region, &[key])
    }

    pub(crate) fn version(&self, key: &str, stamp: Timestamp) -> Bytes {
        self.key(
            Region::Versions,
            &[key.as_bytes(), &[0], &(!stamp.0).to_be_bytes()],
        )
    }

    /// The older versions of a key, newest first.
    pub(crate) fn versions(&self, key: &str) -> Range<Bytes> {
        let start = self.key(Region::Versions, &[key.as_bytes(), &[0]]);
        let end = self.key(Region::Versions, &[key.as_bytes(), &[1]]);
        start..end
    }

    pub(crate) fn null_version(&self, key: &str) -> Bytes {
        self.key(Region::NullVersions, &[key.as_bytes()])
    }

    pub(crate) fn upload(&self, key: &str, upload: &DataId) -> Bytes {
        self.key(Region::Uploads, &[key.as_bytes(), &[0], upload])
    }

    pub(crate) fn part(&self, data: &DataId, part: u16) -> Bytes {
        self.key(Region::Data, &[data, &part.to_be_bytes()])
    }

    /// The parts of a body from `first` on.
    pub(crate) fn parts_from(&self, data: &DataId, first: u16) -> Range<Bytes> {
        self.part(data, first)..successor(&self.key(Region::Data, &[data]))
    }

    /// All that one body has.
    pub(crate) fn data(&self, data: &DataId) -> Range<Bytes> {
        self.parts_from(data, 0)
    }

    /// The part number in a row key that [`BucketKeys::part`] made.
    pub(crate) fn part_number(row_key: &[u8]) -> u16 {
        row_key
            .last_chunk::<2>()
            .map_or(0, |number| u16::from_be_bytes(*number))
    }

    /// The object key of a row of [`Region::Objects`].
    pub(crate) fn object_key<'a>(&self, row_key: &'a [u8]) -> &'a [u8] {
        row_key.get(self.head()..).unwrap_or_default()
    }

    /// The object key of a row whose key ends in a zero byte and `tail` more.
    fn key_before_tail<'a>(&self, row_key: &'a [u8], tail: usize) -> Option<(&'a [u8], &'a [u8])> {
        let rest = row_key.get(self.head()..)?;
        let (key, tail) = rest.split_at_checked(rest.len().checked_sub(tail)?)?;
        Some((key.strip_suffix(&[0])?, tail))
    }

    /// The object key and the stamp of a row of [`Region::Versions`].
    pub(crate) fn version_of<'a>(&self, row_key: &'a [u8]) -> Option<(&'a [u8], Timestamp)> {
        let (key, stamp) = self.key_before_tail(row_key, 8)?;
        Some((key, Timestamp(!u64::from_be_bytes(stamp.try_into().ok()?))))
    }

    /// The object key and the upload of a row of [`Region::Uploads`].
    pub(crate) fn upload_of<'a>(&self, row_key: &'a [u8]) -> Option<(&'a [u8], DataId)> {
        let (key, upload) = self.key_before_tail(row_key, 16)?;
        Some((key, upload.try_into().ok()?))
    }
}

/// The bucket that a row key belongs to.
pub(crate) fn bucket_of(row_key: &[u8]) -> Option<&str> {
    let rest = row_key.get(3..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Where to go on after a row that is no bucket's: rows that the shard's executor keeps in its range
/// (remembered requests, locks) lie behind the buckets of its first hash, at a byte that no name has.
pub(crate) fn past_executor_rows(row_key: &[u8]) -> Option<Bytes> {
    (row_key.get(3) == Some(&AREA)).then(|| successor(&row_key[..4]))
}

/// Whether a row is one of [`Region::Data`].
pub(crate) fn is_data(row_key: &[u8]) -> bool {
    let Some(bucket) = bucket_of(row_key) else {
        return false;
    };
    row_key.get(3 + bucket.len() + 1) == Some(&(Region::Data as u8))
}

/// The whole S3 keyspace.
pub(crate) fn keyspace() -> Range<Bytes> {
    Bytes::from_static(&[S3])..Bytes::from_static(&[S3 + 1])
}

/// The row of an access key.
pub(crate) fn access_key(key: &str) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len() + 2);
    row.put_slice(&[META, ACCESS_KEYS]);
    row.put_slice(key.as_bytes());
    row.freeze()
}

/// The rows of all access keys.
pub(crate) fn access_keys() -> Range<Bytes> {
    Bytes::from_static(&[META, ACCESS_KEYS])..Bytes::from_static(&[META, ACCESS_KEYS + 1])
}

/// The first byte string that does not begin with `prefix`.
pub(crate) fn successor(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            return end.into();
        }
    }
    // Only of all-ones, which no row key begins with.
    Bytes::from_static(&[0xFF])
}

/// The first byte string after `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Invariant 3, and that versions come newest first.
        #[test]
        fn versions_of_a_key_are_found_again_and_never_among_those_of_another(
            key in "[a-z\u{1}/\u{10FFFF}]{1,12}",
            other in "[a-z\u{1}/\u{10FFFF}]{1,12}",
            stamp in any::<u64>(),
        ) {
            let keys = BucketKeys::new("bucket");
            let row = keys.version(&key, Timestamp(stamp));
            prop_assert_eq!(keys.version_of(&row), Some((key.as_bytes(), Timestamp(stamp))));
            prop_assert!(keys.versions(&key).contains(&row));
            prop_assert_eq!(keys.versions(&other).contains(&row), key == other);
            if let Some(newer) = stamp.checked_add(1) {
                prop_assert!(keys.version(&key, Timestamp(newer)) < row);
            }
            let upload = keys.upload(&key, &[7; 16]);
            prop_assert_eq!(keys.upload_of(&upload), Some((key.as_bytes(), [7; 16])));
        }

        #[test]
        fn objects_lie_in_the_order_of_their_keys_bytes(a in ".{1,12}", b in ".{1,12}") {
            let keys = BucketKeys::new("bucket");
            prop_assert_eq!(
                keys.object(&a).cmp(&keys.object(&b)),
                a.as_bytes().cmp(b.as_bytes())
            );
        }
    }

    #[test]
    fn a_bucket_s_rows_are_its_own() {
        let keys = BucketKeys::new("bucket");
        let other = BucketKeys::new("bucket-2");
        assert_eq!(bucket_of(&keys.object("a/b")), Some("bucket"));
        assert!(!keys.all().contains(&other.bucket()));
        assert!(is_data(&keys.part(&[1; 16], 3)) && !is_data(&keys.object("x")));
        let executor_s = [S3, 0xAA, 0xAA, 0xFF, b'r', 0, 1];
        assert_eq!(
            past_executor_rows(&executor_s).unwrap()[..],
            [S3, 0xAA, 0xAB][..]
        );
        assert_eq!(past_executor_rows(&keys.bucket()), None);
        assert_eq!(BucketKeys::part_number(&keys.part(&[1; 16], 9999)), 9999);
    }
}

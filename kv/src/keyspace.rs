//! The one byte-ordered keyspace: the first byte of every row key says whose row it is.
//!
//! ```text
//! 0x01 meta   group 0 for ever
//! 0x10 redis  | slot u16 BE | database u8 | key, escaped | 0x00 | row kind | generation | sub-key
//! 0x20 s3     | hash of the bucket u16 BE | bucket | 0x00 | region | …
//! 0x30 dynamodb   0x40 sqs   0x50 raw
//! ```

use bytes::Bytes;

/// Rows of the catalog, the members and the settings.
pub const META: u8 = 0x01;
/// Rows of the Redis keyspace.
pub const REDIS: u8 = 0x10;
/// Rows of the S3 keyspace.
pub const S3: u8 = 0x20;

/// Hash slots of the Redis keyspace (Redis Cluster specification, *Key distribution model*).
pub const SLOTS: u16 = 16384;

/// The slot of a Redis key: CRC16 (XMODEM) of the key, or of its hash tag, modulo 16384.
///
/// The hash tag is what stands between the first `{` and the first `}` after it, unless empty
/// (Redis Cluster specification, *Hash tags*).
#[must_use]
pub fn slot(key: &[u8]) -> u16 {
    let hashed = key
        .iter()
        .position(|&b| b == b'{')
        .and_then(|open| {
            let rest = &key[open + 1..];
            let close = rest.iter().position(|&b| b == b'}')?;
            (close > 0).then(|| &rest[..close])
        })
        .unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(hashed) % SLOTS
}

/// The first byte string of `slot` in the keyspace; `slot` may be [`SLOTS`], the end of the range.
#[must_use]
pub fn slot_start(slot: u16) -> [u8; 3] {
    let [high, low] = slot.to_be_bytes();
    [REDIS, high, low]
}

/// Where a bucket lies in the S3 keyspace: CRC16 (XMODEM) of its name.
#[must_use]
pub fn bucket_hash(bucket: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(bucket)
}

/// The first byte string of the buckets with `hash`.
#[must_use]
pub fn bucket_hash_start(hash: u16) -> [u8; 3] {
    let [high, low] = hash.to_be_bytes();
    [S3, high, low]
}

/// Where a shard keeps rows of its own executors that must travel with its range: under the first
/// slot it owns, out of reach of commands. `owned_start` is where the shard begins.
#[must_use]
pub fn area(owned_start: &[u8]) -> Bytes {
    let mut area = match owned_start {
        [door @ (REDIS | S3), rest @ ..] => {
            let slot = |at: usize| rest.get(at).copied().unwrap_or(0);
            vec![*door, slot(0), slot(1)]
        }
        [] => vec![META],
        other => other.to_vec(),
    };
    area.push(AREA);
    area.into()
}

/// The byte that stands where a database would, in rows of [`area`].
pub const AREA: u8 = 0xFF;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
    }
}

//! The bytes of segments and of their hints. All numbers are little endian.
//!
//! ```text
//! segment   | magic "LLBLOBSG" | format u16 = 2 | 0 u16 | crc u32 | seed u64 | number u64 | 0 … |   4096 bytes
//!           | record | record | …                                  each at a multiple of 4096
//! record    | crc u32 | magic "LLBR" | len u32 | payload crc u32 | hash 32 | write u64 | kind u8 = 1
//!           | flags u8 | 0 … |                                     64 bytes
//!           | payload | 0 … |
//! hint      | magic "LLBLOBIX" | format u16 = 1 | 0 u16 | crc u32 | seed u64 | end u64 | count u64 |
//!           | hash 32 | offset u32 | len u32 | payload crc u32 | 0 u32 | …
//! ```
//! A record's crc covers its header, the segment's seed (random for each segment) and its own
//! offset, so nothing that lay on the disk before is taken for a record. The payload's crc does not:
//! it travels with the chunk from the node that hashed it. Flag 1 marks the first record of a write.
//!
//! In segments of format 1 records begin at multiples of 64. They are read; none are written.

use crate::blobs::{ChunkHash, ChunkRef};

/// The highest format of segments that this program reads, and the one it writes.
pub(super) const FORMAT: u16 = 2;
/// The first format: its records begin at multiples of [`FIRST_ALIGN`].
const FIRST_FORMAT: u16 = 1;
pub(super) const FIRST_ALIGN: u64 = 64;
const HINT_FORMAT: u16 = 1;
/// Where a segment's records begin.
pub(super) const DATA_START: u64 = 4096;
/// Records begin at multiples of this, so that whole pages are written, past the page cache.
pub(super) const PAGE: usize = 4096;
pub(super) const RECORD_HEADER: usize = 64;

const SEGMENT_MAGIC: [u8; 8] = *b"LLBLOBSG";
const HINT_MAGIC: [u8; 8] = *b"LLBLOBIX";
const RECORD_MAGIC: [u8; 4] = *b"LLBR";
const HEAD: usize = 32;
const HINT_HEAD: usize = 40;
const HINT_ENTRY: usize = 48;
const CHUNK: u8 = 1;
const FIRST: u8 = 1;

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::blobs) struct Location {
    pub(super) segment: u32,
    /// Of the record.
    pub(super) offset: u32,
    pub(super) len: u32,
    /// CRC-32C of the payload.
    pub(super) crc: u32,
}

impl Location {
    pub(super) fn payload_offset(self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER as u64
    }

    /// Bytes of the record, without what fills it up.
    pub(in crate::blobs) fn bytes(self) -> u64 {
        RECORD_HEADER as u64 + u64::from(self.len)
    }
}

/// Bytes from a record's first to the next record's first, as they are written now.
pub(super) fn stride(len: u32) -> u64 {
    (RECORD_HEADER as u64 + u64::from(len)).next_multiple_of(PAGE as u64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) chunk: ChunkRef,
    pub(super) crc: u32,
    /// Number of the write it was part of.
    pub(super) write: u64,
    /// It opened its write: everything before it was synced.
    pub(super) first: bool,
}

impl RecordHeader {
    pub(super) fn encode(&self, seed: u64, offset: u64) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[4..8].copy_from_slice(&RECORD_MAGIC);
        bytes[8..12].copy_from_slice(&self.chunk.len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.crc.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.chunk.hash.0);
        bytes[48..56].copy_from_slice(&self.write.to_le_bytes());
        bytes[56] = CHUNK;
        bytes[57] = if self.first { FIRST } else { 0 };
        let crc = record_crc(seed, offset, &bytes);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at `bytes`, which is at `offset` of the segment with `seed`.
    pub(super) fn decode(bytes: &[u8], seed: u64, offset: u64) -> Option<Self> {
        let bytes = bytes.first_chunk::<RECORD_HEADER>()?;
        if bytes[4..8] != RECORD_MAGIC || bytes[56] != CHUNK {
            return None;
        }
        if u32_at(bytes, 0) != record_crc(seed, offset, bytes) {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[16..48]);
        Some(Self {
            chunk: ChunkRef {
                hash: ChunkHash(hash),
                len: u32_at(bytes, 8),
            },
            crc: u32_at(bytes, 12),
            write: u64_at(bytes, 48),
            first: bytes[57] & FIRST != 0,
        })
    }
}

fn record_crc(seed: u64, offset: u64, bytes: &[u8; RECORD_HEADER]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&seed.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &bytes[4..])
}

/// Why a segment's head or a hint cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Damaged,
    Newer(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) seed: u64,
    pub(super) number: u32,
    pub(super) format: u16,
}

impl SegmentHead {
    /// The head of a new segment.
    pub(super) fn new(number: u32) -> Self {
        Self {
            seed: rand::random(),
            number,
            format: FORMAT,
        }
    }

    /// Records begin at multiples of this.
    pub(super) fn align(self) -> u64 {
        match self.format {
            FIRST_FORMAT => FIRST_ALIGN,
            _ => PAGE as u64,
        }
    }

    /// Bytes from the first of a chunk's record to the next record's first.
    pub(super) fn stride(self, at: Location) -> u64 {
        at.bytes().next_multiple_of(self.align())
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = vec![0; DATA_START as usize];
        bytes[16..24].copy_from_slice(&self.seed.to_le_bytes());
        bytes[24..32].copy_from_slice(&u64::from(self.number).to_le_bytes());
        seal(&mut bytes[..HEAD], SEGMENT_MAGIC, self.format);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let bytes = bytes.first_chunk::<HEAD>().ok_or(Bad::Damaged)?;
        Ok(Self {
            format: unseal(bytes, SEGMENT_MAGIC, FORMAT)?,
            seed: u64_at(bytes, 16),
            number: u32::try_from(u64_at(bytes, 24)).map_err(|_| Bad::Damaged)?,
        })
    }
}

/// What a sealed segment holds.
pub(super) fn encode_hint(seed: u64, end: u64, records: &[(ChunkHash, Location)]) -> Vec<u8> {
    let mut bytes = vec![0; HINT_HEAD];
    bytes.reserve(records.len() * HINT_ENTRY);
    bytes[16..24].copy_from_slice(&seed.to_le_bytes());
    bytes[24..32].copy_from_slice(&end.to_le_bytes());
    bytes[32..40].copy_from_slice(&(records.len() as u64).to_le_bytes());
    for (hash, at) in records {
        bytes.extend_from_slice(&hash.0);
        bytes.extend_from_slice(&at.offset.to_le_bytes());
        bytes.extend_from_slice(&at.len.to_le_bytes());
        bytes.extend_from_slice(&at.crc.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
    }
    seal(&mut bytes, HINT_MAGIC, HINT_FORMAT);
    bytes
}

/// The end and the records of the segment with `head`, if `bytes` is its hint.
pub(super) fn decode_hint(
    bytes: &[u8],
    head: SegmentHead,
) -> Option<(u64, Vec<(ChunkHash, Location)>)> {
    unseal(bytes, HINT_MAGIC, HINT_FORMAT).ok()?;
    if bytes.len() < HINT_HEAD || u64_at(bytes, 16) != head.seed {
        return None;
    }
    let entries = &bytes[HINT_HEAD..];
    if u64_at(bytes, 32) != (entries.len() / HINT_ENTRY) as u64
        || !entries.len().is_multiple_of(HINT_ENTRY)
    {
        return None;
    }
    let records = entries
        .chunks_exact(HINT_ENTRY)
        .map(|entry| {
            let mut hash = [0; 32];
            hash.copy_from_slice(&entry[..32]);
            let at = Location {
                segment: head.number,
                offset: u32_at(entry, 32),
                len: u32_at(entry, 36),
                crc: u32_at(entry, 40),
            };
            (ChunkHash(hash), at)
        })
        .collect();
    Some((u64_at(bytes, 24), records))
}

/// Fills in magic, format and checksum (bytes 0 to 16).
fn seal(bytes: &mut [u8], magic: [u8; 8], format: u16) {
    bytes[..8].copy_from_slice(&magic);
    bytes[8..10].copy_from_slice(&format.to_le_bytes());
    bytes[10..16].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The format of what [`seal`] made, if that is not above `newest`.
fn unseal(bytes: &[u8], magic: [u8; 8], newest: u16) -> Result<u16, Bad> {
    if bytes.len() < 16 || bytes[..8] != magic {
        return Err(Bad::Damaged);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
    if u32_at(bytes, 12) != crc32c::crc32c_append(crc, &bytes[16..]) {
        return Err(Bad::Damaged);
    }
    match u16::from_le_bytes([bytes[8], bytes[9]]) {
        0 => Err(Bad::Damaged),
        format if format <= newest => Ok(format),
        newer => Err(Bad::Newer(newer)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_is_read_back_and_only_from_its_own_place(
            hash in any::<[u8; 32]>(), len in any::<u32>(), crc in any::<u32>(),
            write in any::<u64>(), first in any::<bool>(), seed in any::<u64>(),
            offset in any::<u32>(), bit in 0..RECORD_HEADER * 8,
        ) {
            let header = RecordHeader {
                chunk: ChunkRef { hash: ChunkHash(hash), len },
                crc, write, first,
            };
            let offset = u64::from(offset);
            let mut bytes = header.encode(seed, offset);
            prop_assert_eq!(RecordHeader::decode(&bytes, seed, offset), Some(header));
            prop_assert_eq!(RecordHeader::decode(&bytes, seed, offset + FIRST_ALIGN), None);
            prop_assert_eq!(RecordHeader::decode(&bytes, !seed, offset), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(RecordHeader::decode(&bytes, seed, offset), None);
        }

        #[test]
        fn a_hint_is_read_back_and_a_changed_one_is_refused(
            places in proptest::collection::vec((any::<[u8; 32]>(), any::<[u32; 3]>()), 0..20),
            seed in any::<u64>(), end in any::<u64>(), bit in any::<proptest::sample::Index>(),
        ) {
            let head = SegmentHead { seed, number: 7, format: FORMAT };
            let records: Vec<_> = places
                .into_iter()
                .map(|(hash, [offset, len, crc])| {
                    (ChunkHash(hash), Location { segment: 7, offset, len, crc })
                })
                .collect();
            let mut bytes = encode_hint(seed, end, &records);
            prop_assert_eq!(decode_hint(&bytes, head), Some((end, records)));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_hint(&bytes, head), None);
        }
    }

    #[test]
    fn a_segment_of_a_newer_format_is_told_from_a_damaged_one() {
        let head = SegmentHead::new(2);
        let mut bytes = head.encode();
        assert_eq!(SegmentHead::decode(&bytes), Ok(head));
        bytes[8] = 3;
        assert_eq!(SegmentHead::decode(&bytes), Err(Bad::Damaged));
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(&bytes[..HEAD]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHead::decode(&bytes), Err(Bad::Newer(3)));
    }
}

//! What is in a segment file: a header, then records, each with its own checksum.
//!
//! ```text
//! segment  magic 8 | version u16 | 0 u16 | crc u32 | log id u64 | segment u64 | size u64 | 0 … 4096
//! record   crc u32 | body length u32 | segment u32 | kind u8 | flags u8 | check u16 | group u64 | body | 0 to a multiple of 8
//! ```
//! Numbers are little endian.
//!
//! # Invariants
//! 1. A record's checksum is seeded with the log's random id, its segment's number and its own
//!    offset, and the record names its segment. So what a recycled file held before, or what a user
//!    stored as a value, is never taken for a record.
//!    The check is of the header alone, so that searching for records costs little also where a user
//!    stored what looks like headers.
//! 2. The first record of each write carries [`BATCH_START`]. A write begins only when the one before
//!    it is synced, so damage with such a record behind it is not a torn tail.
//! 3. Length, version and checksum of a header keep their meaning in every version, so that an older
//!    binary can tell a newer format from damage.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{EntryPayload, Membership};

use crate::GroupId;
use crate::types::{Entry, LogId, Payload, Peer, Vote};

/// The format this code writes, and the newest it reads.
pub(super) const FORMAT: u16 = 1;
/// Where records begin. The header has this block to itself: nothing rewrites it.
pub(super) const DATA_START: u64 = 4096;
pub(super) const RECORD_HEADER: usize = 24;
pub(super) const BATCH_START: u8 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"LLRAFTLG";
const SEGMENT_HEADER: usize = 40;
/// Term, index and the kind of the payload: what an entry's body begins with.
const ENTRY_HEAD: usize = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Opens a segment; [`Kind::Checkpoint`] records of every group follow it.
    Start = 1,
    Checkpoint = 2,
    Entry = 3,
    /// An entry that is in the log already, carried forward from an old segment.
    Rewrite = 4,
    Vote = 5,
    Truncate = 6,
    Purge = 7,
    Committed = 8,
    Remove = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Start,
            2 => Self::Checkpoint,
            3 => Self::Entry,
            4 => Self::Rewrite,
            5 => Self::Vote,
            6 => Self::Truncate,
            7 => Self::Purge,
            8 => Self::Committed,
            9 => Self::Remove,
            _ => return None,
        })
    }
}

/// What the checksums of one segment begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed {
    crc: u32,
    segment: u32,
}

impl Seed {
    pub(super) fn new(log: u64, segment: u64) -> Self {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&log.to_le_bytes()), &segment.to_le_bytes());
        // Numbers of segments outlast 32 bits only after 100 PiB of log.
        let segment = segment as u32;
        Self { crc, segment }
    }

    fn checksum(self, offset: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(
            crc32c::crc32c_append(self.crc, &offset.to_le_bytes()),
            bytes,
        )
    }

    /// Of a record's header without the two checksums.
    fn check(self, offset: u64, header: &[u8]) -> u16 {
        let mut checked = [0; 18];
        checked[..10].copy_from_slice(&header[4..14]);
        checked[10..].copy_from_slice(&header[16..24]);
        self.checksum(offset, &checked) as u16
    }
}

/// A record in a buffer, verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) kind: Kind,
    pub(super) batch_start: bool,
    pub(super) group: GroupId,
    pub(super) body: &'a [u8],
}

impl Raw<'_> {
    /// Bytes from this record's first to the next record's first.
    pub(super) fn stride(&self) -> usize {
        stride(self.body.len())
    }
}

pub(super) fn stride(body: usize) -> usize {
    (RECORD_HEADER + body).next_multiple_of(8)
}

/// Appends a record whose body is `head` and then `rest` to `buffer`; `offset` is where in the
/// segment the end of `buffer` will be.
pub(super) fn put(
    buffer: &mut Vec<u8>,
    seed: Seed,
    offset: u64,
    (kind, flags): (Kind, u8),
    group: GroupId,
    head: &[u8],
    rest: &[u8],
) {
    let start = buffer.len();
    let length = head.len() + rest.len();
    buffer.reserve(stride(length));
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&(length as u32).to_le_bytes());
    buffer.extend_from_slice(&seed.segment.to_le_bytes());
    buffer.extend_from_slice(&[kind as u8, flags, 0, 0]);
    buffer.extend_from_slice(&group.0.to_le_bytes());
    buffer.extend_from_slice(head);
    buffer.extend_from_slice(rest);
    let check = seed.check(offset, &buffer[start..]);
    buffer[start + 14..start + 16].copy_from_slice(&check.to_le_bytes());
    // The padding is part of what is checked: every byte of the log is.
    buffer.resize(start + stride(length), 0);
    let crc = seed.checksum(offset, &buffer[start + 4..]);
    buffer[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The record that begins at `bytes`, which is at `offset` of its segment; `None` if there is no
/// whole record.
pub(super) fn get(bytes: &[u8], seed: Seed, offset: u64) -> Option<Raw<'_>> {
    let header = bytes.first_chunk::<RECORD_HEADER>()?;
    if u32_at(header, 8) != seed.segment
        || header[14..16] != seed.check(offset, header).to_le_bytes()
    {
        return None;
    }
    let length = u32_at(header, 4) as usize;
    let whole = bytes.get(..stride(length))?;
    if seed.checksum(offset, &whole[4..]) != u32_at(header, 0) {
        return None;
    }
    Some(Raw {
        kind: Kind::of(header[12])?,
        batch_start: header[13] & BATCH_START != 0,
        group: GroupId(u64_at(header, 16)),
        body: &whole[RECORD_HEADER..RECORD_HEADER + length],
    })
}

/// The offset of the first synced write that begins in `segment` at or behind `from`.
pub(super) fn find_batch_start(segment: &[u8], seed: Seed, from: u64) -> Option<u64> {
    (from.next_multiple_of(8)..segment.len() as u64)
        .step_by(8)
        .find(|&offset| {
            get(&segment[offset as usize..], seed, offset).is_some_and(|record| record.batch_start)
        })
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log: u64,
    pub(super) segment: u64,
    pub(super) size: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged,
    Newer(u16),
}

impl SegmentHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DATA_START as usize);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&self.log.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        seal(&mut bytes);
        bytes.resize(DATA_START as usize, 0);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes = bytes
            .first_chunk::<SEGMENT_HEADER>()
            .ok_or(BadHeader::Damaged)?;
        unseal(bytes, SEGMENT_MAGIC)?;
        Ok(Self {
            log: u64_at(bytes, 16),
            segment: u64_at(bytes, 24),
            size: u64_at(bytes, 32),
        })
    }
}

/// Fills in the checksum (bytes 12 to 16) of a header that begins with magic and version.
pub(super) fn seal(bytes: &mut [u8]) {
    bytes[12..16].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// Verifies what [`seal`] sealed.
pub(super) fn unseal<const N: usize>(bytes: &[u8; N], magic: [u8; 8]) -> Result<(), BadHeader> {
    let mut unsealed = *bytes;
    unsealed[12..16].fill(0);
    if bytes[..8] != magic || crc32c::crc32c(&unsealed) != u32_at(bytes, 12) {
        return Err(BadHeader::Damaged);
    }
    match u16::from_le_bytes([bytes[8], bytes[9]]) {
        FORMAT => Ok(()),
        newer if newer > FORMAT => Err(BadHeader::Newer(newer)),
        _ => Err(BadHeader::Damaged),
    }
}

/// The body of [`Kind::Start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Where the segment before this one ends.
    pub(super) previous_end: u64,
    /// Records in the log before this segment.
    pub(super) records: u64,
    /// How many [`Kind::Checkpoint`] records follow.
    pub(super) groups: u64,
}

impl Start {
    pub(super) fn encode(self) -> [u8; 24] {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&self.previous_end.to_le_bytes());
        body[8..16].copy_from_slice(&self.records.to_le_bytes());
        body[16..].copy_from_slice(&self.groups.to_le_bytes());
        body
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let start = Self {
            previous_end: body.u64()?,
            records: body.u64()?,
            groups: body.u64()?,
        };
        body.end(start)
    }
}

/// All of a group but its entries, as of the head of a segment: the body of [`Kind::Checkpoint`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    /// Index of the first entry, and how many there are.
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(96);
        match &self.vote {
            None => body.push(0),
            Some(vote) => {
                body.push(1);
                body.extend_from_slice(&encode_vote(vote));
            }
        }
        for log_id in [&self.committed, &self.purged, &self.last] {
            put_log_id(&mut body, log_id.as_ref());
        }
        body.extend_from_slice(&self.first.to_le_bytes());
        body.extend_from_slice(&self.count.to_le_bytes());
        body
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let checkpoint = Self {
            vote: match body.u8()? {
                0 => None,
                1 => Some(body.vote()?),
                _ => return None,
            },
            committed: body.log_id()?,
            purged: body.log_id()?,
            last: body.log_id()?,
            first: body.u64()?,
            count: body.u64()?,
        };
        body.end(checkpoint)
    }
}

pub(super) fn encode_vote(vote: &Vote) -> [u8; 17] {
    let mut body = [0; 17];
    body[..8].copy_from_slice(&vote.leader_id.term.to_le_bytes());
    body[8..16].copy_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    body[16] = u8::from(vote.committed);
    body
}

pub(super) fn decode_vote(body: &[u8]) -> Option<Vote> {
    let mut body = Reader(body);
    let vote = body.vote()?;
    body.end(vote)
}

/// The body of [`Kind::Truncate`], [`Kind::Purge`] and [`Kind::Committed`].
pub(super) fn encode_log_id(log_id: Option<&LogId>) -> Vec<u8> {
    let mut body = Vec::with_capacity(17);
    put_log_id(&mut body, log_id);
    body
}

pub(super) fn decode_log_id(body: &[u8]) -> Option<Option<LogId>> {
    let mut body = Reader(body);
    let log_id = body.log_id()?;
    body.end(log_id)
}

fn put_log_id(body: &mut Vec<u8>, log_id: Option<&LogId>) {
    match log_id {
        None => body.push(0),
        Some(log_id) => {
            body.push(1);
            body.extend_from_slice(&log_id.leader_id.term.to_le_bytes());
            body.extend_from_slice(&log_id.index.to_le_bytes());
        }
    }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// Calls `with` with the two parts of an entry's body. The payload is not copied.
pub(super) fn with_entry_body<T>(entry: &Entry, with: impl FnOnce(&[u8], &[u8]) -> T) -> T {
    let mut head = [0; ENTRY_HEAD];
    head[..8].copy_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    head[8..16].copy_from_slice(&entry.log_id.index.to_le_bytes());
    match &entry.payload {
        EntryPayload::Blank => with(&head, &[]),
        EntryPayload::Normal(Payload(payload)) => {
            head[16] = 1;
            with(&head, payload)
        }
        EntryPayload::Membership(membership) => {
            head[16] = 2;
            with(&head, &encode_membership(membership))
        }
    }
}

/// Bytes that `entry` takes in the log.
pub(super) fn entry_stride(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => stride(ENTRY_HEAD),
        EntryPayload::Normal(Payload(payload)) => stride(ENTRY_HEAD + payload.len()),
        EntryPayload::Membership(membership) => {
            stride(ENTRY_HEAD + encode_membership(membership).len())
        }
    }
}

pub(super) fn decode_entry(body: &[u8]) -> Option<Entry> {
    let log_id = decode_entry_id(body)?;
    let rest = &body[ENTRY_HEAD..];
    let payload = match body[16] {
        0 if rest.is_empty() => EntryPayload::Blank,
        1 => EntryPayload::Normal(Payload(Bytes::copy_from_slice(rest))),
        2 => EntryPayload::Membership(decode_membership(rest)?),
        _ => return None,
    };
    Some(Entry { log_id, payload })
}

pub(super) fn decode_entry_id(body: &[u8]) -> Option<LogId> {
    let head = body.first_chunk::<ENTRY_HEAD>()?;
    Some(log_id(u64_at(head, 0), u64_at(head, 8)))
}

fn encode_membership(membership: &Membership<u64, Peer>) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    let configs = membership.get_joint_config();
    body.extend_from_slice(&(configs.len() as u32).to_le_bytes());
    for config in configs {
        body.extend_from_slice(&(config.len() as u32).to_le_bytes());
        for node in config {
            body.extend_from_slice(&node.to_le_bytes());
        }
    }
    for (node, peer) in membership.nodes() {
        body.extend_from_slice(&node.to_le_bytes());
        body.extend_from_slice(&(peer.address.len() as u32).to_le_bytes());
        body.extend_from_slice(peer.address.as_bytes());
    }
    body
}

fn decode_membership(body: &[u8]) -> Option<Membership<u64, Peer>> {
    let mut body = Reader(body);
    let mut configs = Vec::new();
    for _ in 0..body.u32()? {
        let mut config = BTreeSet::new();
        for _ in 0..body.u32()? {
            config.insert(body.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    while !body.0.is_empty() {
        let node = body.u64()?;
        let length = body.u32()? as usize;
        let address = String::from_utf8(body.take(length)?.to_vec()).ok()?;
        nodes.insert(node, Peer { address });
    }
    Membership::new(configs, nodes).ok()
}

/// Reads numbers off the front of a body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32_at(bytes, 0))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64_at(bytes, 0))
    }

    fn vote(&mut self) -> Option<Vote> {
        let (term, node) = (self.u64()?, self.u64()?);
        Some(match self.u8()? {
            0 => Vote::new(term, node),
            1 => Vote::new_committed(term, node),
            _ => return None,
        })
    }

    fn log_id(&mut self) -> Option<Option<LogId>> {
        Some(match self.u8()? {
            0 => None,
            1 => Some(log_id(self.u64()?, self.u64()?)),
            _ => return None,
        })
    }

    /// `value`, if nothing is left over.
    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

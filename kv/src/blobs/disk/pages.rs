//! Memory as a disk takes it: whole pages, at addresses of pages. What is so can be written past the
//! page cache, by the disk itself (`O_DIRECT`).
//!
//! A record is a header and its payload, so a payload [`RECORD_HEADER`] bytes behind a page's address
//! is where it belongs but for its first page, which it shares with the header, and its last, which is
//! filled up. Those two are copied. A payload that lies elsewhere is copied whole.

use std::ops::Range;

use bytes::{Buf, BytesMut};

use super::record::{PAGE, RECORD_HEADER};

/// An empty buffer with room for a chunk of `len` bytes, which lies where this node's disk takes it
/// from without a copy: as long as nothing more is put into it.
#[must_use]
pub fn chunk_buffer(len: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(len + PAGE);
    let before = before(buffer.as_ptr(), RECORD_HEADER);
    buffer.resize(before, 0);
    buffer.advance(before);
    buffer
}

/// Bytes from `memory` on to the first that lies `place` bytes behind a page's address.
pub(super) fn before(memory: *const u8, place: usize) -> usize {
    place.wrapping_sub(memory.addr()) % PAGE
}

/// What of `payload` lies in pages of its own, if its record begins with a page's address.
fn whole_pages(payload: &[u8]) -> Range<usize> {
    let first = PAGE - RECORD_HEADER;
    let placed = payload.as_ptr().addr() % PAGE == RECORD_HEADER;
    if !placed || payload.len() < first + PAGE {
        return payload.len()..payload.len();
    }
    first..payload.len() - (payload.len() - first) % PAGE
}

/// Pages to be written that are copies. Their memory is kept from one write to the next.
#[derive(Default)]
pub(super) struct Pages {
    bytes: Vec<u8>,
    /// Of the first page.
    start: usize,
}

enum Part<'a> {
    Copied(Range<usize>),
    Lent(&'a [u8]),
}

impl Pages {
    /// Lays `records`, headers and payloads, one behind the other, each filled up to whole pages:
    /// slices that begin at pages' addresses.
    pub(super) fn lay_out<'a>(
        &'a mut self,
        records: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    ) -> Vec<&'a [u8]> {
        let copied = |(header, payload): (&[u8], &[u8])| {
            (header.len() + payload.len() - whole_pages(payload).len()).next_multiple_of(PAGE)
        };
        self.empty(records.clone().map(copied).sum());
        let mut parts = Vec::new();
        let mut from = self.start;
        for (header, payload) in records {
            let lent = whole_pages(payload);
            self.bytes.extend_from_slice(header);
            self.bytes.extend_from_slice(&payload[..lent.start]);
            if !lent.is_empty() {
                parts.push(Part::Copied(from..self.bytes.len()));
                parts.push(Part::Lent(&payload[lent.clone()]));
                from = self.bytes.len();
            }
            self.bytes.extend_from_slice(&payload[lent.end..]);
            let filled = (self.bytes.len() - self.start).next_multiple_of(PAGE);
            self.bytes.resize(self.start + filled, 0);
        }
        parts.push(Part::Copied(from..self.bytes.len()));
        let parts = parts.into_iter().map(|part| match part {
            Part::Copied(range) => &self.bytes[range],
            Part::Lent(bytes) => bytes,
        });
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Makes room for `bytes` bytes of pages: filling it moves nothing.
    fn empty(&mut self, bytes: usize) {
        self.bytes.clear();
        if self.bytes.capacity() < bytes + PAGE {
            self.bytes = Vec::with_capacity(bytes + PAGE);
        }
        self.start = before(self.bytes.as_ptr(), 0);
        self.bytes.resize(self.start, 0);
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes};

    use super::*;

    const HEADER: [u8; RECORD_HEADER] = [7; RECORD_HEADER];

    fn placed(payload: &[u8]) -> Bytes {
        let mut buffer = chunk_buffer(payload.len());
        let address = buffer.as_ptr();
        buffer.put_slice(payload);
        assert_eq!(buffer.as_ptr(), address, "there was room");
        buffer.freeze()
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    /// Payloads in place and elsewhere, around all borders; the memory is used again and again.
    #[test]
    fn what_is_laid_out_is_every_record_in_whole_pages_at_pages_addresses() {
        let mut pages = Pages::default();
        let edge = PAGE - RECORD_HEADER;
        let lengths = [1, edge - 1, edge, edge + 1, edge + PAGE - 1, edge + PAGE];
        let lengths = lengths.into_iter().chain([1 << 20, 5, 100_000]);
        for in_place in [true, false] {
            let payloads: Vec<Bytes> = lengths
                .clone()
                .map(|len| match in_place {
                    true => placed(&bytes(len)),
                    false => placed(&bytes(len + 1)).slice(1..),
                })
                .collect();
            let mut expected = Vec::new();
            for payload in &payloads {
                expected.extend_from_slice(&HEADER);
                expected.extend_from_slice(payload);
                expected.resize(expected.len().next_multiple_of(PAGE), 0);
            }
            let records = payloads.iter().map(|payload| (&HEADER[..], &payload[..]));
            let parts = pages.lay_out(records);
            for part in &parts {
                assert!(part.as_ptr().addr().is_multiple_of(PAGE));
                assert!(part.len().is_multiple_of(PAGE));
            }
            assert!(parts.concat() == expected);
            // Three payloads have pages of their own, and lend them only from where they belong.
            let lent = parts.iter().filter(|part| {
                let lends = |payload: &Bytes| payload.as_ptr_range().contains(&part.as_ptr());
                payloads.iter().any(lends)
            });
            assert_eq!(lent.count(), if in_place { 3 } else { 0 });
        }
    }
}

//! What is to be written to a client: small replies packed together, big ones by reference.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Replies from this size on are not copied.
const BY_REFERENCE: usize = 16 * 1024;

/// A drained buffer above this capacity goes back to the allocator.
const KEPT: usize = 64 * 1024;

/// Parts of one write call.
const PARTS: usize = 32;

/// Bytes on their way to a client, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Before `tail`.
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    length: usize,
}

impl Output {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory held, for the budget and CLIENT LIST.
    pub(crate) fn memory(&self) -> usize {
        self.length - self.tail.len() + self.tail.capacity()
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() < BY_REFERENCE {
            self.tail.extend_from_slice(&bytes);
        } else {
            if !self.tail.is_empty() {
                self.parts.push_back(self.tail.split().freeze());
            }
            self.parts.push_back(bytes);
        }
    }

    /// Lets `write` append to the end.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.length += self.tail.len() - before;
    }

    /// Writes as much as `io` takes. Ready when nothing is left.
    ///
    /// # Errors
    /// The socket's; the client is gone then.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.parts.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); PARTS];
                let parts = self.parts.iter().map(Bytes::as_ref).chain([&self.tail[..]]);
                let mut count = 0;
                for (slot, part) in slices.iter_mut().zip(parts) {
                    *slot = IoSlice::new(part);
                    count += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Pin::new(io).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(part) = self.parts.front_mut() {
            if written < part.len() {
                part.advance(written);
                return;
            }
            written -= part.len();
            self.parts.pop_front();
        }
        self.tail.advance(written);
        if self.tail.is_empty() {
            if self.tail.capacity() > KEPT {
                self.tail = BytesMut::new();
            } else {
                self.tail.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn small_and_big_replies_arrive_in_order_through_a_narrow_pipe() {
        let (mut near, mut far) = tokio::io::duplex(1000);
        let mut output = Output::default();
        let mut expected = Vec::new();
        for size in [3, 40_000, 7, 16_384, 16_383, 1] {
            let reply = Bytes::from(vec![u8::try_from(size % 251).unwrap(); size]);
            expected.extend_from_slice(&reply);
            output.push(reply);
        }
        assert_eq!(output.len(), expected.len());
        let mut received = vec![0; expected.len()];
        let (written, read) = tokio::join!(
            poll_fn(|cx| output.poll_write(&mut near, cx)),
            far.read_exact(&mut received)
        );
        written.unwrap();
        read.unwrap();
        assert_eq!(received, expected);
        assert!(output.is_empty());
        assert!(output.memory() <= KEPT);
    }
}

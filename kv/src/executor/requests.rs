//! Remembered requests: a command that is sent twice under one request id takes effect once.
//!
//! A command with effects that came with a request id leaves its reply in a private row, in the
//! same batch. What is remembered goes only below its session's mark, never by age. A command
//! without effects is not remembered: evaluating it again is as good.
//!
//! # Invariants
//! 1. What is applied here changes only with the rows that say so, in the batch's atomic write.
//! 2. A number below its session's mark is refused, so forgetting it is safe.
//! 3. A session remembers a bounded number of replies and bytes; more open requests are refused.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::Once;
use super::entry::BatchWriter;
use crate::{KvError, RequestId};

/// First byte of the names of private rows that hold a reply, and a session's mark.
pub(crate) const REPLY: u8 = b'r';
pub(crate) const MARK: u8 = b'm';

/// Replies forgotten by one command at most, and how many make it worthwhile.
const FORGET_AT_ONCE: usize = 128;
const WORTH_FORGETTING: usize = 32;

/// Bytes of a session's replies that make it worthwhile however few they are, and at which it is
/// told to close some.
const WORTH_FORGETTING_BYTES: usize = 1 << 20;
const MOST_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
struct Session {
    mark: u64,
    replies: BTreeMap<u64, Bytes>,
    /// Of all replies.
    bytes: usize,
}

impl Session {
    /// Whether replies below `lowest_open` are many, or large.
    fn worth_forgetting(&self, lowest_open: u64) -> bool {
        let least = match self.bytes {
            ..WORTH_FORGETTING_BYTES => WORTH_FORGETTING,
            WORTH_FORGETTING_BYTES.. => 1,
        };
        self.replies.range(..lowest_open).nth(least - 1).is_some()
    }
}

/// The remembered requests of a shard, as applied.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    sessions: HashMap<u128, Session>,
}

fn reply_name(id: RequestId) -> Bytes {
    let mut name = BytesMut::with_capacity(25);
    name.put_u8(REPLY);
    name.put_u128(id.session);
    name.put_u64(id.number);
    name.freeze()
}

fn mark_name(session: u128) -> Bytes {
    let mut name = BytesMut::with_capacity(17);
    name.put_u8(MARK);
    name.put_u128(session);
    name.freeze()
}

impl Requests {
    /// Takes note of a private row that was written. `false`: not a row of requests, or malformed.
    pub(crate) fn row_written(&mut self, name: &[u8], value: &[u8]) -> bool {
        if let Some(id) = parse_reply_name(name) {
            let session = self.sessions.entry(id.session).or_default();
            // Copied: a slice would keep the whole log entry in memory.
            let reply = Bytes::copy_from_slice(value);
            session.bytes += reply.len();
            if let Some(before) = session.replies.insert(id.number, reply) {
                session.bytes -= before.len();
            }
            return true;
        }
        match (parse_mark_name(name), <[u8; 8]>::try_from(value)) {
            (Some(session), Ok(mark)) => {
                self.sessions.entry(session).or_default().mark = u64::from_be_bytes(mark);
                true
            }
            _ => false,
        }
    }

    /// Takes note of a private row that was deleted.
    pub(crate) fn row_deleted(&mut self, name: &[u8]) -> bool {
        let Some(id) = parse_reply_name(name) else {
            return false;
        };
        if let Some(session) = self.sessions.get_mut(&id.session)
            && let Some(reply) = session.replies.remove(&id.number)
        {
            session.bytes -= reply.len();
        }
        true
    }
}

fn parse_reply_name(name: &[u8]) -> Option<RequestId> {
    let (kind, rest) = name.split_first()?;
    let (session, number) = rest.split_first_chunk::<16>()?;
    (*kind == REPLY).then_some(RequestId {
        session: u128::from_be_bytes(*session),
        number: u64::from_be_bytes(number.try_into().ok()?),
    })
}

fn parse_mark_name(name: &[u8]) -> Option<u128> {
    let (kind, session) = name.split_first()?;
    let session = <[u8; 16]>::try_from(session).ok()?;
    (*kind == MARK).then(|| u128::from_be_bytes(session))
}

/// What is to be done with a command that has a request id.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is new.
    Evaluate,
    /// It took effect in the batch of this number (0: it is applied), with this reply.
    Remembered {
        number: u64,
        reply: Bytes,
    },
    Refused(KvError),
}

/// What the batches that are not yet applied will remember: the executor's part.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    replies: HashMap<RequestId, (u64, Bytes)>,
    marks: HashMap<u128, (u64, u64)>,
    order: VecDeque<(u64, RequestId)>,
    /// For the batch that is being built: rows to write and to delete.
    writes: Vec<(Bytes, Bytes)>,
    deletes: Vec<Bytes>,
    bytes: usize,
}

impl PendingRequests {
    /// Looks a request up, in what is pending and in what is applied.
    pub(crate) fn look_up(&self, applied: &Requests, once: &Once, most: usize) -> Verdict {
        let Once { id, lowest_open } = *once;
        if let Some((number, reply)) = self.replies.get(&id) {
            return Verdict::Remembered {
                number: *number,
                reply: reply.clone(),
            };
        }
        let session = applied.sessions.get(&id.session);
        let pending_mark = self.marks.get(&id.session).map_or(0, |(_, mark)| *mark);
        let mark = session.map_or(0, |session| session.mark).max(pending_mark);
        if id.number < mark {
            return Verdict::Refused(KvError::Unknown(
                "the request is below its session's mark: it was settled before",
            ));
        }
        let Some(session) = session else {
            return Verdict::Evaluate;
        };
        if let Some(reply) = session.replies.get(&id.number) {
            return Verdict::Remembered {
                number: 0,
                reply: reply.clone(),
            };
        }
        let open = || session.replies.range(lowest_open.max(mark)..);
        let many = session.replies.len() >= most && open().count() + self.replies.len() >= most;
        let large = session.bytes >= MOST_BYTES
            && open().map(|(_, reply)| reply.len()).sum::<usize>() >= MOST_BYTES;
        if many || large {
            return Verdict::Refused(KvError::Overloaded {
                what: "open requests of one session",
                retry_after_ms: 100,
            });
        }
        Verdict::Evaluate
    }

    /// Bytes that the batch that is being built remembers.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Remembers a command that had effects, in batch `number`.
    pub(crate) fn remember(&mut self, applied: &Requests, once: &Once, number: u64, reply: &Bytes) {
        let Once { id, lowest_open } = *once;
        self.replies.insert(id, (number, reply.clone()));
        self.order.push_back((number, id));
        self.writes.push((reply_name(id), reply.clone()));
        let pending_mark = self.marks.get(&id.session).map_or(0, |(_, mark)| *mark);
        if let Some(session) = applied.sessions.get(&id.session)
            && lowest_open > session.mark.max(pending_mark)
            && session.worth_forgetting(lowest_open)
        {
            let forgotten = session.replies.range(..lowest_open).take(FORGET_AT_ONCE);
            self.deletes.extend(forgotten.map(|(number, _)| {
                reply_name(RequestId {
                    session: id.session,
                    number: *number,
                })
            }));
            self.marks.insert(id.session, (number, lowest_open));
            self.writes.push((
                mark_name(id.session),
                Bytes::copy_from_slice(&lowest_open.to_be_bytes()),
            ));
        }
        self.bytes += 32 + reply.len();
    }

    /// Writes what the batch that is being built remembers and forgets.
    pub(crate) fn close_batch(&mut self, out: &mut BatchWriter) {
        for (name, value) in self.writes.drain(..) {
            out.put_private(&name, &value);
        }
        for name in self.deletes.drain(..) {
            out.delete_private(&name);
        }
        self.bytes = 0;
    }

    /// Forgets what is applied.
    pub(crate) fn prune(&mut self, applied: u64) {
        while let Some((number, id)) = self.order.front()
            && *number <= applied
        {
            self.replies.remove(id);
            self.order.pop_front();
        }
        if !self.marks.is_empty() {
            self.marks.retain(|_, (number, _)| *number > applied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::entry::{Entry, Incarnation, LogEffect};

    fn once(number: u64, lowest_open: u64) -> Once {
        Once {
            id: RequestId { session: 9, number },
            lowest_open,
        }
    }

    fn apply(pending: &mut PendingRequests, applied: &mut Requests, number: u64) {
        let mut out = BatchWriter::new(Incarnation(1), number, 0);
        pending.close_batch(&mut out);
        let Ok(Entry::Batch(batch)) = Entry::decode(out.finish(crate::Timestamp(1))) else {
            panic!("a batch")
        };
        for effect in batch.effects {
            assert!(match effect.unwrap() {
                LogEffect::PutPrivate { key, value } => applied.row_written(&key, &value),
                LogEffect::DeletePrivate { key } => applied.row_deleted(&key),
                other => panic!("{other:?}"),
            });
        }
        pending.prune(number);
    }

    #[test]
    fn a_request_is_remembered_in_flight_and_applied_and_forgotten_only_below_the_mark() {
        let (mut applied, mut pending) = (Requests::default(), PendingRequests::default());
        let reply = Bytes::from_static(b"+OK");
        for number in 1..=200 {
            let verdict = pending.look_up(&applied, &once(number, 1), 1000);
            assert!(matches!(verdict, Verdict::Evaluate));
            pending.remember(&applied, &once(number, 1), number, &reply);
            let verdict = pending.look_up(&applied, &once(number, 1), 1000);
            assert!(matches!(verdict, Verdict::Remembered { .. }));
            apply(&mut pending, &mut applied, number);
        }
        for number in 1..=200 {
            let verdict = pending.look_up(&applied, &once(number, 1), 1000);
            assert!(matches!(verdict, Verdict::Remembered { .. }));
        }
        pending.remember(&applied, &once(201, 100), 201, &reply);
        apply(&mut pending, &mut applied, 201);
        let below = pending.look_up(&applied, &once(99, 100), 1000);
        assert!(matches!(below, Verdict::Refused(KvError::Unknown(_))));
        let above = pending.look_up(&applied, &once(100, 100), 1000);
        assert!(matches!(above, Verdict::Remembered { .. }));
        assert_eq!(applied.sessions[&9].replies.len(), 102);
    }

    #[test]
    fn large_replies_are_forgotten_early_and_too_many_bytes_of_them_are_refused() {
        let (mut applied, mut pending) = (Requests::default(), PendingRequests::default());
        let reply = Bytes::from(vec![0; 16 << 20]);
        for number in 1..=4 {
            let verdict = pending.look_up(&applied, &once(number, 1), 1000);
            assert!(matches!(verdict, Verdict::Evaluate));
            pending.remember(&applied, &once(number, 1), number, &reply);
            apply(&mut pending, &mut applied, number);
        }
        let refused = pending.look_up(&applied, &once(5, 1), 1000);
        assert!(matches!(
            refused,
            Verdict::Refused(KvError::Overloaded { .. })
        ));
        // One of them is closed.
        let verdict = pending.look_up(&applied, &once(5, 2), 1000);
        assert!(matches!(verdict, Verdict::Evaluate));
        pending.remember(&applied, &once(5, 5), 5, &reply);
        apply(&mut pending, &mut applied, 5);
        let session = &applied.sessions[&9];
        assert_eq!((session.replies.len(), session.bytes), (1, reply.len()));
    }

    #[test]
    fn a_session_with_too_many_open_requests_is_refused_until_some_are_closed() {
        let (mut applied, mut pending) = (Requests::default(), PendingRequests::default());
        for number in 1..=64 {
            pending.remember(&applied, &once(number, 1), number, &Bytes::new());
            apply(&mut pending, &mut applied, number);
        }
        let refused = pending.look_up(&applied, &once(65, 1), 64);
        assert!(matches!(
            refused,
            Verdict::Refused(KvError::Overloaded { .. })
        ));
        let verdict = pending.look_up(&applied, &once(65, 60), 64);
        assert!(matches!(verdict, Verdict::Evaluate));
    }
}

//! Between openraft's messages and the protocol's.
//!
//! Payloads are `Bytes` on both sides: going out they are referenced, coming in they are slices of
//! the received frame. Nothing is copied but into and out of the socket.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::Refused;
use crate::types::{Entry, LogId, Payload, TypeConfig, Vote};

mod generated {
    #![allow(
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("leadline.transport.v1");
}

pub(super) use generated::*;

/// A message that no peer of this version sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.to_string())
    }
}

/// Bytes that a message carries besides its payloads, per request and per entry, generously.
const OVERHEAD: usize = 64;

pub(super) fn vote_out(vote: &Vote) -> generated::Vote {
    generated::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote_in(vote: Option<generated::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed("a vote is missing"))?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    })
}

pub(super) fn log_id_out(id: LogId) -> generated::LogId {
    generated::LogId {
        term: *id.leader_id,
        index: id.index,
    }
}

pub(super) fn log_id_in(id: generated::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    // A log id names a leader by its term alone.
    let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64> { term, voted_for: 0 };
    LogId::new(openraft::vote::RaftLeaderId::to_committed(&leader), index)
}

fn entry_out(entry: Entry) -> Result<generated::Entry, Refused> {
    let payload = match entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(Payload(bytes)) => Some(entry::Payload::Normal(bytes)),
        EntryPayload::Membership(membership) => {
            let json = serde_json::to_vec(&membership)
                .map_err(|error| Refused(format!("membership cannot be encoded: {error}")))?;
            Some(entry::Payload::Membership(json.into()))
        }
    };
    Ok(generated::Entry {
        term: *entry.log_id.leader_id,
        index: entry.log_id.index,
        payload,
    })
}

fn entry_in(entry: generated::Entry) -> Result<Entry, Malformed> {
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(entry::Payload::Normal(bytes)) => EntryPayload::Normal(Payload(bytes)),
        Some(entry::Payload::Membership(json)) => EntryPayload::Membership(
            serde_json::from_slice(&json).map_err(|_| Malformed("a membership is not readable"))?,
        ),
    };
    Ok(Entry {
        log_id: log_id(entry.term, entry.index),
        payload,
    })
}

/// What an entry takes in a message, about.
fn entry_size(entry: &Entry) -> usize {
    OVERHEAD
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(Payload(bytes)) => bytes.len(),
            // Rare and small; the estimate need not be close.
            EntryPayload::Membership(_) => 4096,
        }
}

/// One message's worth of an append.
pub(super) struct AppendPart {
    pub(super) append: Append,
    pub(super) bytes: usize,
    pub(super) prev: Option<LogId>,
    pub(super) last: Option<LogId>,
}

/// Cuts an append into parts of at most `limit` bytes each (or one entry, if that alone is larger),
/// each following the one before it.
pub(super) fn append_out(
    request: AppendEntriesRequest<TypeConfig>,
    limit: usize,
) -> Result<Vec<AppendPart>, Refused> {
    let vote = vote_out(&request.vote);
    let commit = request.leader_commit.map(log_id_out);
    let part = |prev: Option<LogId>| AppendPart {
        append: Append {
            vote: Some(vote),
            prev: prev.map(log_id_out),
            commit,
            entries: Vec::new(),
        },
        bytes: OVERHEAD,
        prev,
        last: prev,
    };
    let mut parts = Vec::with_capacity(1);
    let mut current = part(request.prev_log_id);
    current.append.entries.reserve(request.entries.len());
    for entry in request.entries {
        let size = entry_size(&entry);
        if !current.append.entries.is_empty() && current.bytes + size > limit {
            let next = part(current.last);
            parts.push(std::mem::replace(&mut current, next));
        }
        current.last = Some(entry.log_id);
        current.bytes += size;
        current.append.entries.push(entry_out(entry)?);
    }
    parts.push(current);
    Ok(parts)
}

pub(super) fn append_in(append: Append) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: vote_in(append.vote)?,
        prev_log_id: append.prev.map(log_id_in),
        entries: append
            .entries
            .into_iter()
            .map(entry_in)
            .collect::<Result<_, _>>()?,
        leader_commit: append.commit.map(log_id_in),
    })
}

pub(super) fn append_reply_out(reply: &AppendEntriesResponse<TypeConfig>) -> AppendReply {
    use append_reply::Outcome;
    AppendReply {
        outcome: Some(match reply {
            AppendEntriesResponse::Success => Outcome::Success(true),
            AppendEntriesResponse::Conflict => Outcome::Conflict(true),
            AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(vote_out(vote)),
            AppendEntriesResponse::PartialSuccess(matched) => Outcome::Partial(PartialSuccess {
                matched: matched.map(log_id_out),
            }),
        }),
    }
}

pub(super) fn append_reply_in(
    reply: AppendReply,
) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use append_reply::Outcome;
    match reply.outcome {
        Some(Outcome::Success(_)) => Ok(AppendEntriesResponse::Success),
        Some(Outcome::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
        Some(Outcome::HigherVote(vote)) => {
            Ok(AppendEntriesResponse::HigherVote(vote_in(Some(vote))?))
        }
        Some(Outcome::Partial(partial)) => Ok(AppendEntriesResponse::PartialSuccess(
            partial.matched.map(log_id_in),
        )),
        None => Err(Malformed("an append's outcome is missing")),
    }
}

pub(super) fn vote_request_out(request: &VoteRequest<TypeConfig>) -> generated::VoteRequest {
    generated::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_in(
    request: generated::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, Malformed> {
    Ok(VoteRequest {
        vote: vote_in(request.vote)?,
        last_log_id: request.last.map(log_id_in),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(super) fn vote_reply_out(reply: &VoteResponse<TypeConfig>) -> VoteReply {
    VoteReply {
        vote: Some(vote_out(&reply.vote)),
        last: reply.last_log_id.map(log_id_out),
        granted: reply.vote_granted,
    }
}

pub(super) fn vote_reply_in(reply: VoteReply) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse {
        vote: vote_in(reply.vote)?,
        last_log_id: reply.last.map(log_id_in),
        vote_granted: reply.granted,
    })
}

pub(super) fn transfer_out(request: &TransferLeaderRequest<TypeConfig>) -> TransferLeader {
    TransferLeader {
        from: Some(vote_out(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().copied().map(log_id_out),
    }
}

pub(super) fn transfer_in(
    request: TransferLeader,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(
        vote_in(request.from)?,
        request.to,
        request.last.map(log_id_in),
    ))
}

pub(super) fn transfer_reply_out(
    reply: &TransferLeaderResponse<TypeConfig>,
) -> TransferLeaderReply {
    use transfer_leader_reply::Outcome;
    TransferLeaderReply {
        outcome: Some(match reply {
            Ok(()) => Outcome::Accepted(true),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Outcome::VoteChanged(VoteChanged {
                    expected: Some(vote_out(expected)),
                    actual: Some(vote_out(actual)),
                })
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Outcome::LogNotFlushed(LogNotFlushed {
                    expected: expected.map(log_id_out),
                    actual: actual.map(log_id_out),
                })
            }
        }),
    }
}

pub(super) fn transfer_reply_in(
    reply: TransferLeaderReply,
) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    use transfer_leader_reply::Outcome;
    match reply.outcome {
        Some(Outcome::Accepted(_)) => Ok(Ok(())),
        Some(Outcome::VoteChanged(changed)) => Ok(Err(TransferLeaderError::VoteChanged {
            expected: vote_in(changed.expected)?,
            actual: vote_in(changed.actual)?,
        })),
        Some(Outcome::LogNotFlushed(found)) => Ok(Err(TransferLeaderError::LogNotFlushed {
            expected: found.expected.map(log_id_in),
            actual: found.actual.map(log_id_in),
        })),
        None => Err(Malformed("a transfer's outcome is missing")),
    }
}

/// A snapshot chunk with its place and checksum.
pub(super) fn chunk_out(sequence: u64, data: Bytes) -> SnapshotChunk {
    SnapshotChunk {
        sequence,
        crc32c: crc32c::crc32c(&data),
        data,
    }
}

/// The data of the chunk that must come now, whole.
pub(super) fn chunk_in(chunk: SnapshotChunk, expected: u64) -> Result<Bytes, Malformed> {
    if chunk.sequence != expected {
        return Err(Malformed("a snapshot chunk is out of order"));
    }
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return Err(Malformed("a snapshot chunk is damaged"));
    }
    Ok(chunk.data)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::types::Peer;

    fn payload() -> impl Strategy<Value = <TypeConfig as openraft::RaftTypeConfig>::Payload> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            Just(EntryPayload::Blank),
            bytes.prop_map(|bytes| EntryPayload::Normal(Payload(bytes.into()))),
            (1_u64..9, "[a-z0-9.:]{0,20}").prop_map(|(node, address)| {
                let voters = vec![BTreeSet::from([node])];
                let nodes = BTreeMap::from([(node, Peer { address })]);
                let membership = openraft::Membership::new(voters, nodes);
                EntryPayload::Membership(membership.expect("one voter, and it is a node"))
            }),
        ]
    }

    proptest! {
        /// Through the bytes of a frame, whatever its parts: nothing lost, nothing made up.
        #[test]
        fn an_append_arrives_as_it_was_sent_however_it_is_cut(
            term in 1_u64..9,
            prev in proptest::option::of(0_u64..9),
            commit in proptest::option::of(0_u64..9),
            payloads in proptest::collection::vec(payload(), 0..20),
            limit in 1_usize..2000,
        ) {
            let first = prev.map_or(0, |prev| prev + 1);
            let entries: Vec<Entry> = (first..)
                .zip(payloads)
                .map(|(index, payload)| Entry { log_id: log_id(term, index), payload })
                .collect();
            let request = AppendEntriesRequest::<TypeConfig> {
                vote: Vote::new_committed(term, 2),
                prev_log_id: prev.map(|index| log_id(1, index)),
                entries: entries.clone(),
                leader_commit: commit.map(|index| log_id(1, index)),
            };
            let parts = append_out(request.clone(), limit).unwrap();
            let (mut arrived, mut at) = (Vec::new(), request.prev_log_id);
            for part in parts {
                prop_assert!(part.bytes <= limit.max(OVERHEAD) || part.append.entries.len() <= 1);
                prop_assert_eq!(part.prev, at);
                at = part.last;
                let bytes = Bytes::from(part.append.encode_to_vec());
                let decoded = append_in(Append::decode(bytes).unwrap()).unwrap();
                prop_assert_eq!(decoded.vote, request.vote);
                prop_assert_eq!(decoded.prev_log_id, part.prev);
                prop_assert_eq!(decoded.leader_commit, request.leader_commit);
                arrived.extend(decoded.entries);
            }
            prop_assert_eq!(at, entries.last().map(|e| e.log_id).or(request.prev_log_id));
            prop_assert_eq!(arrived, entries);
        }

        /// Bytes that no peer sends are an error, never a panic.
        #[test]
        fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(append) = Append::decode(Bytes::from(noise)) {
                let _ = append_in(append);
            }
        }
    }
}

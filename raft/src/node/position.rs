//! How far a group is, as bytes that its state machine stores with its effects.
//!
//! Format 1: version, then the log id (term, index) and the membership with its own log id. All
//! integers little-endian. The membership is encoded once per membership change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{LogId, Membership, Peer, StoredMembership};

const VERSION: u8 = 1;

/// The log id of the last applied entry, and the membership as of then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Position {
    pub(crate) fn encode(&self) -> Bytes {
        encode(self.log_id, &encode_membership(&self.membership))
    }

    /// # Errors
    /// `InvalidData` for another format or bytes cut short.
    pub(crate) fn decode(mut bytes: &[u8]) -> io::Result<Self> {
        let bytes = &mut bytes;
        let version = bytes.try_get_u8().map_err(short)?;
        if version != VERSION {
            return Err(invalid(format!(
                "position format {version}: this version reads up to {VERSION}"
            )));
        }
        let log_id = get_log_id(bytes)?;
        let at = get_log_id(bytes)?;
        let mut configs = Vec::new();
        for _ in 0..get_count(bytes)? {
            let mut voters = BTreeSet::new();
            for _ in 0..get_count(bytes)? {
                voters.insert(bytes.try_get_u64_le().map_err(short)?);
            }
            configs.push(voters);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..get_count(bytes)? {
            let id = bytes.try_get_u64_le().map_err(short)?;
            let length = get_count(bytes)?;
            if length > bytes.len() {
                return Err(invalid("a position is cut short".to_owned()));
            }
            let (address, rest) = bytes.split_at(length);
            *bytes = rest;
            let address = std::str::from_utf8(address)
                .map_err(|_| invalid("an address is not UTF-8".to_owned()))?
                .to_owned();
            nodes.insert(id, Peer { address });
        }
        if !bytes.is_empty() {
            return Err(invalid("a position has bytes to spare".to_owned()));
        }
        let membership =
            Membership::new(configs, nodes).map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            log_id,
            membership: StoredMembership::new(at, membership),
        })
    }
}

/// The position at `log_id` under a membership already encoded.
pub(crate) fn encode(log_id: Option<LogId>, membership: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(18 + membership.len());
    out.put_u8(VERSION);
    put_log_id(&mut out, log_id);
    out.put_slice(membership);
    out.freeze()
}

pub(crate) fn encode_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    put_log_id(&mut out, *stored.log_id());
    let membership = stored.membership();
    let configs = membership.get_joint_config();
    put_count(&mut out, configs.len());
    for voters in configs {
        put_count(&mut out, voters.len());
        for voter in voters {
            out.put_u64_le(*voter);
        }
    }
    put_count(&mut out, membership.nodes().count());
    for (id, peer) in membership.nodes() {
        out.put_u64_le(*id);
        put_count(&mut out, peer.address.len());
        out.put_slice(peer.address.as_bytes());
    }
    out.freeze()
}

fn put_log_id(out: &mut BytesMut, log_id: Option<LogId>) {
    match log_id {
        None => out.put_u8(0),
        Some(log_id) => {
            out.put_u8(1);
            out.put_u64_le(**log_id.committed_leader_id());
            out.put_u64_le(log_id.index());
        }
    }
}

fn get_log_id(bytes: &mut &[u8]) -> io::Result<Option<LogId>> {
    match bytes.try_get_u8().map_err(short)? {
        0 => Ok(None),
        1 => {
            let term = bytes.try_get_u64_le().map_err(short)?;
            let index = bytes.try_get_u64_le().map_err(short)?;
            Ok(Some(LogId::new(term.into(), index)))
        }
        other => Err(invalid(format!("{other} is no mark of a log id"))),
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    // Members and addresses: far below.
    out.put_u32_le(u32::try_from(count).expect("fewer than 2^32 members"));
}

fn get_count(bytes: &mut &[u8]) -> io::Result<usize> {
    Ok(bytes.try_get_u32_le().map_err(short)? as usize)
}

fn short(_: bytes::TryGetError) -> io::Error {
    invalid("a position is cut short".to_owned())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn positions()(
            log_id in proptest::option::of((any::<u64>(), any::<u64>())),
            at in proptest::option::of((any::<u64>(), any::<u64>())),
            configs in vec(btree_set(0u64..9, 1..5), 1..3),
            learners in btree_set(0u64..20, 0..5),
            address in "[a-zé.:]{0,20}",
        ) -> Position {
            let id = |(term, index): (u64, u64)| LogId::new(term.into(), index);
            let ids: BTreeSet<u64> =
                configs.iter().flatten().copied().chain(learners).collect();
            let nodes: BTreeMap<u64, Peer> = ids
                .into_iter()
                .map(|id| (id, Peer { address: format!("{address}{id}") }))
                .collect();
            let membership = Membership::new(configs, nodes).unwrap();
            Position {
                log_id: log_id.map(id),
                membership: StoredMembership::new(at.map(id), membership),
            }
        }
    }

    proptest! {
        #[test]
        fn a_position_comes_back_as_it_was(position in positions()) {
            prop_assert_eq!(Position::decode(&position.encode()).unwrap(), position);
        }

        #[test]
        fn a_position_cut_short_is_refused(position in positions(), cut in 1usize..40) {
            let bytes = position.encode();
            let end = bytes.len().saturating_sub(cut);
            prop_assert!(Position::decode(&bytes[..end]).is_err());
        }

        #[test]
        fn any_bytes_give_a_position_or_an_error(bytes in vec(any::<u8>(), 0..80)) {
            let _ = Position::decode(&bytes);
        }
    }
}

//! The catalog: who is a member, which shard owns which part of the keyspace, and which group
//! replicates it.
//!
//! It is one row of the meta group, so a change is one put and a reader never sees half of one.
//! Every node holds a copy that follows the row as the group applies it ([`CatalogCopy`]); a copy
//! may be stale, and is a hint: an executor refuses what its shard does not own.
//!
//! # Invariants
//! 1. Every key of the keyspace belongs to exactly one group.
//! 2. Borders between shards in the Redis keyspace are slot borders; in the S3 keyspace they are
//!    borders of bucket hashes, so that a bucket is whole in one shard.
//! 3. The epoch rises with every change, and a copy never goes back.
//! 4. A node id is given once.
//! 5. Outside this module nobody knows how many shards there are.

mod copy;
mod operation;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use leadline_raft::{ClusterId, GroupId, NodeId};
use prost::Message;

pub use copy::CatalogCopy;
pub use operation::{MetaCodec, MetaOperation, MetaReply};

use crate::keyspace::{META, REDIS, S3, SLOTS, bucket_hash_start, slot_start};
use crate::{Door, wire};

/// The highest catalog format this binary reads, and the one it writes.
pub const FORMAT: u32 = 1;

/// The row that holds the catalog.
pub const ROW: [u8; 2] = [META, 0x01];

/// Where the keyspace ends: no row key begins with this byte.
const END: [u8; 1] = [0xFF];

/// How many replicas a shard gets if there are that many nodes.
pub const REPLICATION_FACTOR: u32 = 3;

/// The most shards that can be dealt at bootstrap: one per slot would be absurd, this is not.
pub const MOST_SHARDS: u16 = 1024;

/// The most shards that the S3 keyspace is dealt.
const MOST_S3_SHARDS: u16 = 16;

/// Shards of the S3 keyspace when the Redis keyspace gets `shards`: three for four, so that the
/// default gives each node of three one of them to lead (docs/decisions/0011-a-bucket-is-one-shard.md);
/// and no more than a few buckets that are busy at a time can use, since each costs every replica
/// its heartbeats.
fn s3_shards(shards: u16) -> u16 {
    (shards - shards / 4).min(MOST_S3_SHARDS)
}

/// Where a node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    pub grpc: String,
    /// Empty: no such door.
    pub redis: String,
    pub admin: String,
}

/// A member's part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Has an id, is not yet a replica of the meta group.
    Joining,
    Up,
    /// Gives its leaderships away and gets no new ones.
    Draining,
    /// Out for good; its id is not given again.
    Removed,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    pub addresses: Addresses,
    pub state: MemberState,
    pub(crate) join_nonce: Bytes,
}

/// A shard: the keys from `start` to the next shard's, and the group that replicates them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shard {
    start: Bytes,
    group: GroupId,
    replicas: Vec<NodeId>,
    /// Those of `replicas` that do not vote.
    learners: Vec<NodeId>,
}

/// One version of the catalog.
#[derive(Clone, PartialEq, Eq)]
pub struct Catalog {
    epoch: u64,
    cluster: ClusterId,
    next_node: NodeId,
    replication_factor: u32,
    members: BTreeMap<NodeId, MemberInfo>,
    meta_replicas: Vec<NodeId>,
    shards: Vec<Shard>,
    /// The position of the shard of each Redis slot: routing a Redis key is one look-up.
    slots: Box<[u16]>,
}

/// Why bytes are not a catalog this binary can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error(
        "the catalog has format {found}, this binary reads up to {FORMAT}: use a newer leadline"
    )]
    NewerFormat { found: u32 },
    #[error("the catalog row is damaged: {0}")]
    Malformed(String),
}

impl Catalog {
    /// The first catalog of a cluster: the Redis slots dealt evenly to groups 1 to `shards`, the
    /// hashes of S3 buckets to the groups after them, all of which `first` alone replicates; the
    /// last also owns what lies behind the S3 keyspace.
    ///
    /// # Panics
    /// Unless `shards` is between 1 and [`MOST_SHARDS`].
    #[must_use]
    pub fn deal(cluster: ClusterId, shards: u16, first: NodeId, addresses: Addresses) -> Self {
        assert!(
            (1..=MOST_SHARDS).contains(&shards),
            "shards: 1 to {MOST_SHARDS}"
        );
        let border = |whole: u32, i: u16, parts: u16| {
            u16::try_from(whole * u32::from(i) / u32::from(parts)).expect("below the whole")
        };
        let redis = (0..shards).map(|i| slot_start(border(SLOTS.into(), i, shards)));
        let of_s3 = s3_shards(shards);
        let s3 = (0..of_s3).map(|i| bucket_hash_start(border(1 << 16, i, of_s3)));
        let dealt = (1..)
            .zip(redis.chain(s3))
            .map(|(group, start)| Shard {
                start: Bytes::copy_from_slice(&start),
                group: GroupId(group),
                replicas: vec![first],
                learners: Vec::new(),
            })
            .collect();
        let member = MemberInfo {
            addresses,
            state: MemberState::Up,
            join_nonce: Bytes::new(),
        };
        Self {
            epoch: 1,
            cluster,
            next_node: NodeId(first.0 + 1),
            replication_factor: REPLICATION_FACTOR,
            members: BTreeMap::from([(first, member)]),
            meta_replicas: vec![first],
            slots: Box::default(),
            shards: dealt,
        }
        .indexed()
    }

    fn indexed(mut self) -> Self {
        self.slots = (0..SLOTS)
            .map(|slot| {
                let position = self.search(&slot_start(slot));
                u16::try_from(position).expect("at most MOST_SHARDS")
            })
            .collect();
        self
    }

    fn search(&self, key: &[u8]) -> usize {
        self.shards.partition_point(|shard| shard.start <= key)
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    #[must_use]
    pub fn replication_factor(&self) -> usize {
        self.replication_factor as usize
    }

    /// Every member there ever was, the removed ones too.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, MemberInfo> {
        &self.members
    }

    /// Members that are not removed.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &MemberInfo)> {
        self.members
            .iter()
            .filter(|(_, member)| member.state != MemberState::Removed)
            .map(|(&node, member)| (node, member))
    }

    /// The position of the group that owns `key`; 0 is the meta group. Positions hold for one
    /// version of the catalog.
    pub(crate) fn position(&self, key: &[u8]) -> usize {
        match key {
            [REDIS, high, low, ..] => {
                let slot = u16::from_be_bytes([*high, *low]);
                self.slots
                    .get(usize::from(slot))
                    .map_or_else(|| self.search(key), |&position| usize::from(position))
            }
            _ => self.search(key),
        }
    }

    /// The group that owns `key`.
    #[must_use]
    pub fn group_of(&self, key: &[u8]) -> GroupId {
        self.group_at(self.position(key))
    }

    fn group_at(&self, position: usize) -> GroupId {
        match position.checked_sub(1) {
            None => GroupId::META,
            Some(shard) => self.shards[shard].group,
        }
    }

    /// Every group, the meta group first, in the order of their positions.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        (0..=self.shards.len()).map(|position| self.group_at(position))
    }

    /// The groups that own a part of the keyspace of `door`.
    pub fn groups_of(&self, door: Door) -> impl Iterator<Item = GroupId> {
        self.positions_of(door)
            .map(|position| self.group_at(position))
    }

    /// Positions of the groups that own a part of the keyspace of `door`.
    #[must_use]
    pub fn positions_of(&self, door: Door) -> Range<usize> {
        match door {
            Door::Meta | Door::Transaction => 0..1,
            Door::Redis => {
                let first = self.search(&slot_start(0));
                let last = self.search(&slot_start(SLOTS - 1));
                first..last + 1
            }
            Door::S3 => {
                let first = self.search(&bucket_hash_start(0));
                let last = self.search(&bucket_hash_start(u16::MAX));
                first..last + 1
            }
        }
    }

    /// The row keys that `group` owns.
    #[must_use]
    pub fn owned(&self, group: GroupId) -> Option<Range<Bytes>> {
        let after = |position: usize| {
            self.shards
                .get(position)
                .map_or_else(|| Bytes::from_static(&END), |shard| shard.start.clone())
        };
        if group == GroupId::META {
            return Some(Bytes::from_static(&[META])..after(0));
        }
        let at = self.shards.iter().position(|shard| shard.group == group)?;
        Some(self.shards[at].start.clone()..after(at + 1))
    }

    /// The Redis slots that `group` owns, for cluster-aware clients.
    #[must_use]
    pub fn slots_of(&self, group: GroupId) -> Range<u16> {
        let position = 1 + self
            .shards
            .iter()
            .position(|shard| shard.group == group)
            .unwrap_or(self.shards.len());
        let border = |position: usize| {
            let slots = self.slots.partition_point(|&at| usize::from(at) < position);
            u16::try_from(slots).expect("at most SLOTS")
        };
        border(position)..border(position + 1)
    }

    /// Who replicates `group`, as last recorded; consensus itself knows better.
    #[must_use]
    pub fn replicas(&self, group: GroupId) -> &[NodeId] {
        if group == GroupId::META {
            return &self.meta_replicas;
        }
        self.shards
            .iter()
            .find(|shard| shard.group == group)
            .map_or(&[], |shard| &shard.replicas)
    }

    /// Those of [`Catalog::replicas`] that do not vote, as last recorded; not recorded of the meta
    /// group.
    #[must_use]
    pub fn learners(&self, group: GroupId) -> &[NodeId] {
        self.shards
            .iter()
            .find(|shard| shard.group == group)
            .map_or(&[], |shard| &shard.learners)
    }

    /// # Errors
    /// [`CatalogError`]: a newer format, or not a catalog.
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let malformed = |error: prost::DecodeError| CatalogError::Malformed(error.to_string());
        Self::from_wire(wire::Catalog::decode(bytes).map_err(malformed)?)
    }

    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.to_wire().encode_to_vec().into()
    }

    pub(crate) fn from_wire(from: wire::Catalog) -> Result<Self, CatalogError> {
        if from.format > FORMAT {
            return Err(CatalogError::NewerFormat { found: from.format });
        }
        let malformed = |what: &str| CatalogError::Malformed(what.to_owned());
        if from.format == 0 || from.epoch == 0 {
            return Err(malformed("no format or no epoch"));
        }
        let shards: Vec<Shard> = from
            .shards
            .into_iter()
            .map(|shard| Shard {
                start: shard.start,
                group: GroupId(shard.group),
                replicas: shard.replicas.into_iter().map(NodeId).collect(),
                learners: shard.learners.into_iter().map(NodeId).collect(),
            })
            .collect();
        if shards.is_empty() || shards.len() > 2 * usize::from(MOST_SHARDS) {
            return Err(malformed("an impossible number of shards"));
        }
        if !shards.is_sorted_by(|a, b| a.start < b.start) {
            return Err(malformed("shards out of order"));
        }
        // Invariant 2.
        if !shards.iter().all(|shard| is_border(&shard.start)) {
            return Err(malformed("a border inside a slot"));
        }
        let mut groups: Vec<_> = shards.iter().map(|shard| shard.group).collect();
        groups.sort_unstable();
        groups.dedup();
        if groups.len() != shards.len() || groups.contains(&GroupId::META) {
            return Err(malformed("a group with two ranges"));
        }
        let members = from
            .members
            .into_iter()
            .map(|member| {
                let info = MemberInfo {
                    state: MemberState::from_wire(member.state())
                        .ok_or_else(|| malformed("a member without a state"))?,
                    addresses: Addresses::from_wire(member.addresses.unwrap_or_default()),
                    join_nonce: member.join_nonce,
                };
                Ok((NodeId(member.node), info))
            })
            .collect::<Result<_, CatalogError>>()?;
        Ok(Self {
            epoch: from.epoch,
            cluster: ClusterId(from.cluster),
            next_node: NodeId(from.next_node),
            replication_factor: from.replication_factor.max(1),
            members,
            meta_replicas: from.meta_replicas.into_iter().map(NodeId).collect(),
            shards,
            slots: Box::default(),
        }
        .indexed())
    }

    pub(crate) fn to_wire(&self) -> wire::Catalog {
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        wire::Catalog {
            format: FORMAT,
            epoch: self.epoch,
            cluster: self.cluster.0,
            next_node: self.next_node.0,
            replication_factor: self.replication_factor,
            members: self
                .members
                .iter()
                .map(|(node, member)| wire::Member {
                    node: node.0,
                    addresses: Some(member.addresses.to_wire()),
                    state: member.state.to_wire().into(),
                    join_nonce: member.join_nonce.clone(),
                })
                .collect(),
            shards: self
                .shards
                .iter()
                .map(|shard| wire::Shard {
                    start: shard.start.clone(),
                    group: shard.group.0,
                    replicas: numbers(&shard.replicas),
                    learners: numbers(&shard.learners),
                })
                .collect(),
            meta_replicas: numbers(&self.meta_replicas),
        }
    }
}

/// Whether a shard may begin at `key`: at the start of a slot or of a bucket hash, or outside the
/// Redis and S3 keyspaces.
fn is_border(key: &[u8]) -> bool {
    match key {
        [REDIS, high, low] => u16::from_be_bytes([*high, *low]) < SLOTS,
        [S3, _, _] => true,
        [REDIS | S3, ..] | [] => false,
        [door, ..] => *door > META && *door < END[0],
    }
}

impl Addresses {
    pub(crate) fn from_wire(from: wire::Addresses) -> Self {
        Self {
            grpc: from.grpc,
            redis: from.redis,
            admin: from.admin,
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Addresses {
        wire::Addresses {
            grpc: self.grpc.clone(),
            redis: self.redis.clone(),
            admin: self.admin.clone(),
        }
    }
}

impl MemberState {
    pub(crate) fn from_wire(from: wire::MemberState) -> Option<Self> {
        match from {
            wire::MemberState::Unspecified => None,
            wire::MemberState::Joining => Some(Self::Joining),
            wire::MemberState::Up => Some(Self::Up),
            wire::MemberState::Draining => Some(Self::Draining),
            wire::MemberState::Removed => Some(Self::Removed),
        }
    }

    pub(crate) fn to_wire(self) -> wire::MemberState {
        match self {
            Self::Joining => wire::MemberState::Joining,
            Self::Up => wire::MemberState::Up,
            Self::Draining => wire::MemberState::Draining,
            Self::Removed => wire::MemberState::Removed,
        }
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("epoch", &self.epoch)
            .field("cluster", &self.cluster)
            .field("members", &self.members)
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dealt(shards: u16) -> Catalog {
        let addresses = Addresses {
            grpc: "127.0.0.1:50051".into(),
            ..Addresses::default()
        };
        Catalog::deal(ClusterId(7), shards, NodeId(1), addresses)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Invariants 1 and 2, and that the deal is even.
        #[test]
        fn every_slot_is_owned_by_exactly_one_group_and_the_deal_is_even(shards in 1..=MOST_SHARDS) {
            let catalog = dealt(shards);
            let mut sizes = Vec::new();
            let mut next = 0;
            for group in catalog.groups().skip(1).take(shards.into()) {
                let slots = catalog.slots_of(group);
                prop_assert_eq!(slots.start, next);
                next = slots.end;
                sizes.push(slots.len());
                let owned = catalog.owned(group).unwrap();
                for slot in [slots.start, slots.end - 1] {
                    let mut key = slot_start(slot).to_vec();
                    key.extend_from_slice(b"\0key");
                    prop_assert_eq!(catalog.group_of(&key), group);
                    prop_assert!(owned.contains(&Bytes::from(key)));
                }
            }
            prop_assert_eq!(next, SLOTS);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }

        /// Invariant 1, for keys of any door.
        #[test]
        fn the_owner_of_a_key_is_the_group_whose_range_holds_it(
            shards in 1..64_u16,
            mut key in proptest::collection::vec(any::<u8>(), 1..6),
        ) {
            // What is below is no row: a state machine's private ones are there.
            key[0] = key[0].clamp(META, 0xFE);
            let catalog = dealt(shards);
            let key = Bytes::from(key);
            let holders: Vec<_> = catalog
                .groups()
                .filter(|&group| catalog.owned(group).unwrap().contains(&key))
                .collect();
            prop_assert_eq!(holders, vec![catalog.group_of(&key)]);
        }

        #[test]
        fn a_catalog_is_the_same_after_encoding(shards in 1..=MOST_SHARDS) {
            let catalog = dealt(shards);
            prop_assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let newer = wire::Catalog {
            format: FORMAT + 1,
            ..dealt(1).to_wire()
        };
        assert_eq!(
            Catalog::decode(&newer.encode_to_vec()),
            Err(CatalogError::NewerFormat { found: FORMAT + 1 })
        );
    }

    #[test]
    fn a_border_inside_a_slot_is_refused() {
        let mut bent = dealt(4).to_wire();
        bent.shards[1].start = Bytes::from_static(&[REDIS, 0x10, 0x00, 0x01]);
        assert!(matches!(
            Catalog::decode(&bent.encode_to_vec()),
            Err(CatalogError::Malformed(_))
        ));
        let mut bent = dealt(4).to_wire();
        bent.shards[5].start = Bytes::from_static(&[S3, 0x70, 0x00, b'b']);
        assert!(matches!(
            Catalog::decode(&bent.encode_to_vec()),
            Err(CatalogError::Malformed(_))
        ));
    }

    #[test]
    fn each_door_has_groups_of_its_own() {
        let catalog = dealt(4);
        assert_eq!(catalog.group_of(&ROW), GroupId::META);
        assert_eq!(catalog.positions_of(Door::Meta), 0..1);
        assert_eq!(catalog.positions_of(Door::Redis), 1..5);
        assert_eq!(catalog.positions_of(Door::S3), 5..8);
        assert!(catalog.slots_of(GroupId(6)).is_empty());
    }

    /// Catalogs of clusters made before there was an S3 door stay as they are.
    #[test]
    fn without_shards_of_their_own_buckets_belong_to_the_last_shard() {
        let mut older = dealt(4).to_wire();
        older.shards.truncate(4);
        let older = Catalog::decode(&older.encode_to_vec()).unwrap();
        assert_eq!(older.positions_of(Door::S3), 4..5);
        assert_eq!(older.group_of(&[S3, 0x80, 0x00, b'b']), GroupId(4));
    }
}

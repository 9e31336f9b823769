//! The meta door: operations that read or change the catalog, evaluated by the meta group's
//! executor like any other.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use leadline_raft::{GroupId, NodeId};
use prost::Message;

use super::{Addresses, Catalog, CatalogError, FORMAT, MemberInfo, MemberState, ROW};
use crate::wire::{self, meta_request::Change};
use crate::{Access, Door, Operation, OperationCodec, Route, RowError, Rows};

/// A read or a change of the catalog. The reply is a [`MetaReply`].
#[derive(Clone, Debug)]
pub struct MetaOperation {
    change: Change,
    keys: [Bytes; 1],
}

/// What a [`MetaOperation`] answers.
#[derive(Clone, Debug)]
pub struct MetaReply {
    /// Why nothing was changed, for a person to read.
    pub refused: Option<String>,
    /// The member an [`MetaOperation::add_member`] made.
    pub node: Option<NodeId>,
    /// The catalog as it is now; none before bootstrap.
    pub catalog: Option<Catalog>,
}

impl MetaOperation {
    fn new(change: Change) -> Self {
        Self {
            change,
            keys: [Bytes::from_static(&ROW)],
        }
    }

    /// Reads the catalog.
    #[must_use]
    pub fn read() -> Self {
        Self::new(Change::Read(wire::ReadCatalog {}))
    }

    /// Writes the first catalog; does nothing if there is one.
    #[must_use]
    pub fn bootstrap(catalog: &Catalog) -> Self {
        Self::new(Change::Bootstrap(catalog.to_wire()))
    }

    /// Gives a joining node an id: the next free one, or `wanted` if no node ever had that. Sent
    /// again with the same nonce it answers the same id.
    #[must_use]
    pub fn add_member(addresses: &Addresses, join_nonce: Bytes, wanted: Option<NodeId>) -> Self {
        Self::new(Change::AddMember(wire::AddMember {
            addresses: Some(addresses.to_wire()),
            join_nonce,
            wanted: wanted.map_or(0, |node| node.0),
        }))
    }

    /// Changes where a member is reached.
    #[must_use]
    pub fn move_member(node: NodeId, addresses: &Addresses) -> Self {
        Self::new(Change::UpdateMember(wire::UpdateMember {
            node: node.0,
            addresses: Some(addresses.to_wire()),
            state: wire::MemberState::Unspecified.into(),
        }))
    }

    /// Changes a member's state.
    #[must_use]
    pub fn set_member_state(node: NodeId, state: MemberState) -> Self {
        Self::new(Change::UpdateMember(wire::UpdateMember {
            node: node.0,
            addresses: None,
            state: state.to_wire().into(),
        }))
    }

    /// Records who replicates a group, and which of them do not vote.
    #[must_use]
    pub fn set_replicas(group: GroupId, replicas: &[NodeId], learners: &[NodeId]) -> Self {
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        Self::new(Change::SetReplicas(wire::SetReplicas {
            group: group.0,
            replicas: numbers(replicas),
            learners: numbers(learners),
        }))
    }

    /// What the change makes of `catalog`: the new catalog if it changes, and the reply.
    fn apply(&self, catalog: Option<Catalog>) -> (Option<Catalog>, wire::MetaReply) {
        let reply = wire::MetaReply::default();
        let refused = |why: String| wire::MetaReply {
            refused: why,
            ..wire::MetaReply::default()
        };
        let Some(mut catalog) = catalog else {
            return match &self.change {
                Change::Bootstrap(first) => match Catalog::from_wire(first.clone()) {
                    Ok(first) => (Some(first), reply),
                    Err(error) => (None, refused(error.to_string())),
                },
                Change::Read(_) => (None, reply),
                Change::AddMember(_) | Change::UpdateMember(_) | Change::SetReplicas(_) => {
                    (None, refused("the cluster has no catalog yet".into()))
                }
            };
        };
        let before = catalog.clone();
        let done = match &self.change {
            Change::Bootstrap(_) | Change::Read(_) => Ok(reply),
            Change::AddMember(add) => catalog.add_member(add).map(|node| wire::MetaReply {
                node: node.0,
                ..reply
            }),
            Change::UpdateMember(update) => catalog.update_member(update).map(|()| reply),
            Change::SetReplicas(set) => catalog.set_replicas(set).map(|()| reply),
        };
        match done {
            Err(why) => (None, refused(why)),
            Ok(reply) if catalog == before => (None, reply),
            Ok(reply) => {
                // Invariant 3 of the catalog.
                catalog.epoch = before.epoch + 1;
                (Some(catalog), reply)
            }
        }
    }
}

impl Catalog {
    fn add_member(&mut self, add: &wire::AddMember) -> Result<NodeId, String> {
        let addresses = Addresses::from_wire(add.addresses.clone().unwrap_or_default());
        if addresses.grpc.is_empty() || add.join_nonce.is_empty() {
            return Err("a joining node must say where it is reached".into());
        }
        let known = self
            .members
            .iter()
            .find(|(_, member)| member.join_nonce == add.join_nonce);
        if let Some((&node, _)) = known {
            return Ok(node);
        }
        let taken = self
            .members
            .iter_mut()
            .filter(|(_, member)| member.state != MemberState::Removed)
            .find(|(_, member)| member.addresses.grpc == addresses.grpc);
        match taken {
            None => {}
            // It asked for an id and never came up with it: the id dies, the address is free.
            Some((_, member)) if member.state == MemberState::Joining => {
                member.state = MemberState::Removed;
            }
            Some((node, _)) => {
                return Err(format!(
                    "node {node} already has the address {}: give the new node its own with \
                     --advertise, or, if it replaces that node, first run \
                     `leadline cluster remove {node}`",
                    addresses.grpc
                ));
            }
        }
        let node = match add.wanted {
            0 => self.next_node,
            // Removed members stay in the catalog, so that no id is used twice.
            wanted if self.members.contains_key(&NodeId(wanted)) => {
                return Err(format!(
                    "node id {wanted} is or was in use, and ids are never used again: choose \
                     another with --node-id, or leave it to the cluster"
                ));
            }
            wanted => NodeId(wanted),
        };
        self.next_node = self.next_node.max(NodeId(node.0.saturating_add(1)));
        let member = MemberInfo {
            addresses,
            state: MemberState::Joining,
            join_nonce: add.join_nonce.clone(),
        };
        self.members.insert(node, member);
        Ok(node)
    }

    fn update_member(&mut self, update: &wire::UpdateMember) -> Result<(), String> {
        let node = NodeId(update.node);
        let others_up = self
            .present()
            .filter(|&(other, member)| other != node && member.state == MemberState::Up)
            .count();
        let state = MemberState::from_wire(update.state());
        let left_alone = (state == Some(MemberState::Draining))
            .then(|| self.only_one_that_may_lead(node))
            .flatten();
        let Some(member) = self.members.get_mut(&node) else {
            return Err(format!("there is no node {node}"));
        };
        if member.state == MemberState::Removed {
            return match state {
                Some(MemberState::Removed) => Ok(()),
                _ => Err(format!(
                    "node {node} was removed: start it with an empty data directory and --join"
                )),
            };
        }
        if state == Some(MemberState::Removed) && others_up == 0 {
            return Err(format!("node {node} is the last one: it cannot be removed"));
        }
        // Whoever drains already may be told so again.
        if let (Some(group), false) = (left_alone, member.state == MemberState::Draining) {
            return Err(format!(
                "node {node} cannot be drained: nobody could take over group {group}, because no \
                 other node that is up and not drained itself has a vote in it"
            ));
        }
        if let Some(addresses) = update.addresses.clone() {
            member.addresses = Addresses::from_wire(addresses);
        }
        if let Some(state) = state {
            member.state = state;
        }
        Ok(())
    }

    /// A group in which no node but `node` votes and may lead.
    fn only_one_that_may_lead(&self, node: NodeId) -> Option<GroupId> {
        let may_lead = |other: &NodeId| {
            self.members.get(other).is_some_and(|member| {
                matches!(member.state, MemberState::Up | MemberState::Joining)
            })
        };
        self.groups().find(|&group| {
            let voters = self.replicas(group).iter();
            let mut voters = voters.filter(|voter| !self.learners(group).contains(voter));
            voters.clone().any(|&voter| voter == node)
                && !voters.any(|&voter| voter != node && may_lead(&voter))
        })
    }

    fn set_replicas(&mut self, set: &wire::SetReplicas) -> Result<(), String> {
        let replicas: Vec<_> = set.replicas.iter().copied().map(NodeId).collect();
        if GroupId(set.group) == GroupId::META {
            self.meta_replicas = replicas;
            return Ok(());
        }
        let shard = self
            .shards
            .iter_mut()
            .find(|shard| shard.group.0 == set.group)
            .ok_or_else(|| format!("there is no group {}", set.group))?;
        shard.replicas = replicas;
        shard.learners = set.learners.iter().copied().map(NodeId).collect();
        Ok(())
    }
}

impl Operation for MetaOperation {
    fn name(&self) -> &'static str {
        match self.change {
            Change::Bootstrap(_) => "catalog.bootstrap",
            Change::AddMember(_) => "catalog.add_member",
            Change::UpdateMember(_) => "catalog.update_member",
            Change::SetReplicas(_) => "catalog.set_replicas",
            Change::Read(_) => "catalog.read",
        }
    }

    fn door(&self) -> Door {
        Door::Meta
    }

    fn access(&self) -> Access {
        match self.change {
            Change::Read(_) => Access::Read,
            Change::Bootstrap(_)
            | Change::AddMember(_)
            | Change::UpdateMember(_)
            | Change::SetReplicas(_) => Access::Write,
        }
    }

    fn route(&self) -> Route<'_> {
        Route::Keys(&self.keys)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.to_wire().encoded_len()
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let stored = rows.get(&ROW)?;
        let catalog = match stored.as_deref().map(Catalog::decode).transpose() {
            Ok(catalog) => catalog,
            Err(error @ CatalogError::NewerFormat { .. }) => {
                return Err(RowError::Refused(error.to_string()));
            }
            Err(error @ CatalogError::Malformed(_)) => {
                return Err(RowError::Storage(error.to_string()));
            }
        };
        let (changed, mut reply) = self.apply(catalog.clone());
        if let Some(changed) = &changed {
            rows.put(Bytes::from_static(&ROW), changed.encode());
        }
        reply.catalog = changed.or(catalog).map(|catalog| catalog.to_wire());
        Ok(reply.encode_to_vec().into())
    }

    fn encode(&self, out: &mut BytesMut) {
        self.to_wire()
            .encode(out)
            .expect("a BytesMut grows as needed");
    }
}

impl MetaOperation {
    fn to_wire(&self) -> wire::MetaRequest {
        wire::MetaRequest {
            change: Some(self.change.clone()),
        }
    }
}

impl MetaReply {
    /// # Errors
    /// [`CatalogError`], as [`Catalog::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let reply = wire::MetaReply::decode(bytes)
            .map_err(|error| CatalogError::Malformed(error.to_string()))?;
        Ok(Self {
            refused: (!reply.refused.is_empty()).then_some(reply.refused),
            node: (reply.node != 0).then_some(NodeId(reply.node)),
            catalog: reply.catalog.map(Catalog::from_wire).transpose()?,
        })
    }
}

/// Decodes [`MetaOperation`]s that were forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetaCodec;

impl OperationCodec for MetaCodec {
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        let request = wire::MetaRequest::decode(bytes).map_err(|error| error.to_string())?;
        let change = request
            .change
            .ok_or_else(|| format!("not a meta operation of format {FORMAT}"))?;
        Ok(Arc::new(MetaOperation::new(change)))
    }
}

#[cfg(test)]
mod tests {
    use leadline_raft::ClusterId;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::MemoryRows;

    fn addresses(port: u16) -> Addresses {
        Addresses {
            grpc: format!("10.0.0.1:{port}"),
            ..Addresses::default()
        }
    }

    fn run(rows: &mut MemoryRows, operation: &MetaOperation) -> MetaReply {
        // Through the codec, as a forwarded one.
        let mut encoded = BytesMut::new();
        operation.encode(&mut encoded);
        let operation = MetaCodec.decode(encoded.freeze()).unwrap();
        MetaReply::decode(&operation.evaluate(rows).unwrap()).unwrap()
    }

    fn bootstrapped() -> MemoryRows {
        let mut rows = MemoryRows::default();
        let catalog = Catalog::deal(ClusterId(9), 4, NodeId(1), addresses(1));
        run(&mut rows, &MetaOperation::bootstrap(&catalog));
        rows
    }

    #[test]
    fn a_second_bootstrap_changes_nothing() {
        let mut rows = bootstrapped();
        let other = Catalog::deal(ClusterId(8), 2, NodeId(1), addresses(2));
        let reply = run(&mut rows, &MetaOperation::bootstrap(&other));
        assert_eq!(reply.catalog.unwrap().cluster(), ClusterId(9));
    }

    #[test]
    fn a_join_sent_twice_gets_one_id_and_another_node_another() {
        let mut rows = bootstrapped();
        let join = |nonce: &'static [u8], port| {
            MetaOperation::add_member(&addresses(port), Bytes::from_static(nonce), None)
        };
        assert_eq!(run(&mut rows, &join(b"a", 2)).node, Some(NodeId(2)));
        assert_eq!(run(&mut rows, &join(b"a", 2)).node, Some(NodeId(2)));
        assert_eq!(run(&mut rows, &join(b"b", 3)).node, Some(NodeId(3)));
    }

    #[test]
    fn a_wanted_id_is_given_once_and_never_again() {
        let mut rows = bootstrapped();
        let join = |nonce: &'static [u8], port, wanted| {
            let nonce = Bytes::from_static(nonce);
            MetaOperation::add_member(&addresses(port), nonce, Some(NodeId(wanted)))
        };
        assert_eq!(run(&mut rows, &join(b"a", 2, 7)).node, Some(NodeId(7)));
        let remove = MetaOperation::set_member_state(NodeId(7), MemberState::Removed);
        run(&mut rows, &remove);
        let taken = run(&mut rows, &join(b"b", 3, 7));
        assert!(taken.refused.unwrap().contains("never used again"));
        let next = MetaOperation::add_member(&addresses(3), Bytes::from_static(b"c"), None);
        assert_eq!(run(&mut rows, &next).node, Some(NodeId(8)));
    }

    #[test]
    fn an_address_in_use_is_refused_and_one_of_a_join_never_finished_is_not() {
        let mut rows = bootstrapped();
        let taken = run(
            &mut rows,
            &MetaOperation::add_member(&addresses(1), Bytes::from_static(b"a"), None),
        );
        assert!(taken.refused.unwrap().contains("cluster remove 1"));
        let join = |nonce: &'static [u8]| {
            MetaOperation::add_member(&addresses(2), Bytes::from_static(nonce), None)
        };
        assert_eq!(run(&mut rows, &join(b"b")).node, Some(NodeId(2)));
        let again = run(&mut rows, &join(b"c"));
        assert_eq!(again.node, Some(NodeId(3)));
        let members = again.catalog.unwrap().members().clone();
        assert_eq!(members[&NodeId(2)].state, MemberState::Removed);
    }

    #[test]
    fn the_last_node_cannot_be_removed_and_a_removed_one_does_not_come_back() {
        let mut rows = bootstrapped();
        let set = |node, state| MetaOperation::set_member_state(NodeId(node), state);
        let last = run(&mut rows, &set(1, MemberState::Removed));
        assert!(last.refused.unwrap().contains("the last one"));
        run(
            &mut rows,
            &MetaOperation::add_member(&addresses(2), Bytes::from_static(b"a"), None),
        );
        run(&mut rows, &set(2, MemberState::Removed));
        let back = run(&mut rows, &set(2, MemberState::Up));
        assert!(back.refused.unwrap().contains("was removed"));
    }

    fn any_change() -> impl Strategy<Value = MetaOperation> {
        let states = prop_oneof![
            Just(MemberState::Up),
            Just(MemberState::Draining),
            Just(MemberState::Removed)
        ];
        prop_oneof![
            (1..5_u16, 0..6_u8).prop_map(|(port, nonce)| MetaOperation::add_member(
                &addresses(port),
                Bytes::copy_from_slice(&[nonce]),
                None
            )),
            (1..6_u64, states)
                .prop_map(|(node, state)| MetaOperation::set_member_state(NodeId(node), state)),
            (
                0..6_u64,
                proptest::collection::vec(1..5_u64, 0..4),
                0..4_usize
            )
                .prop_map(|(group, nodes, voters)| {
                    let nodes: Vec<_> = nodes.into_iter().map(NodeId).collect();
                    let learners = nodes.get(voters..).unwrap_or_default();
                    MetaOperation::set_replicas(GroupId(group), &nodes, learners)
                }),
            Just(MetaOperation::read()),
        ]
    }

    /// Such a drain could never end, and would leave a cluster in which nobody is ready.
    #[test]
    fn a_node_is_not_drained_while_nobody_could_take_over_from_it() {
        let mut rows = bootstrapped();
        let join = MetaOperation::add_member(&addresses(2), Bytes::from_static(b"a"), None);
        let set = MetaOperation::set_member_state;
        let drain = |rows: &mut MemoryRows, node| {
            let reply = run(rows, &set(NodeId(node), MemberState::Draining));
            let state = reply.catalog.unwrap().members()[&NodeId(node)].state;
            assert_eq!(reply.refused.is_none(), state == MemberState::Draining);
            reply.refused
        };
        assert!(
            drain(&mut rows, 1)
                .unwrap()
                .contains("nobody could take over")
        );
        run(&mut rows, &join);
        run(&mut rows, &set(NodeId(2), MemberState::Up));
        let groups: Vec<_> = {
            let catalog = run(&mut rows, &MetaOperation::read()).catalog.unwrap();
            catalog.groups().collect()
        };
        let both = [NodeId(1), NodeId(2)];
        for (at, group) in groups.iter().enumerate() {
            // Until it votes everywhere the second node cannot take over everything.
            assert!(drain(&mut rows, 1).is_some(), "{at} of {}", groups.len());
            let learners = if at == 1 { &both[1..] } else { &[] };
            run(
                &mut rows,
                &MetaOperation::set_replicas(*group, &both, learners),
            );
        }
        assert!(
            drain(&mut rows, 1).unwrap().contains("group 1,"),
            "a learner"
        );
        run(
            &mut rows,
            &MetaOperation::set_replicas(groups[1], &both, &[]),
        );
        assert_eq!(drain(&mut rows, 1), None);
        assert_eq!(drain(&mut rows, 1), None, "again");
        assert!(drain(&mut rows, 2).is_some());
        run(&mut rows, &set(NodeId(1), MemberState::Up));
        assert_eq!(drain(&mut rows, 2), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Invariants 3 and 4 of the catalog.
        #[test]
        fn the_epoch_rises_with_every_change_and_only_then(
            changes in proptest::collection::vec(any_change(), 1..20),
        ) {
            let mut rows = bootstrapped();
            let mut before = run(&mut rows, &MetaOperation::read()).catalog.unwrap();
            for change in changes {
                let after = run(&mut rows, &change).catalog.unwrap();
                prop_assert!(after.next_node >= before.next_node);
                if after == before {
                    continue;
                }
                prop_assert_eq!(after.epoch(), before.epoch() + 1);
                before = after;
            }
        }
    }
}

//! The replicated state of a shard.

/// The applied state of one shard on this node, shared by its state machine and its executor.
#[derive(Debug)]
pub struct ShardState {}

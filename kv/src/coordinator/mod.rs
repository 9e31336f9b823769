//! The way from an adapter to the shard that owns a key, wherever its leader is.

mod flight;
mod interface;
mod lane;
mod open_ids;
mod order;
mod reply;
mod retry;
mod sharded;

pub(crate) use flight::Request;
pub use interface::{Coordinator, KeyWatch};
pub(crate) use lane::HostedShard;
#[cfg(test)]
pub(crate) use lane::LocalShard;
pub(crate) use open_ids::OpenIds;
pub use reply::PendingReply;
pub(crate) use reply::Reply;
pub(crate) use retry::backoff;
pub use sharded::ShardedCoordinator;

//! The way from an adapter to the shard that owns a key, wherever its leader is.

mod interface;

pub use interface::{Coordinator, KeyWatch, PendingReply};

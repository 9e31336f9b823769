//! What a node is opened with, and why that can fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leadline_raft::NodeId;
use leadline_raft::engine::{ReadMode, Timing};
use leadline_raft::tls::PeerTls;
use tokio::sync::watch;

use crate::blobs::ChunkReferences;
use crate::catalog::Addresses;
use crate::executor::Sweep;
use crate::{Door, OperationCodec};

/// How a node comes to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Makes a cluster of one node, its keyspace cut into `shards`. In a data directory that
    /// already has a cluster: as `Existing`.
    New { shards: u16 },
    /// Asks one of `seeds` (gRPC addresses) for a place in its cluster. In a data directory that
    /// already has a cluster: as `Existing`.
    Join { seeds: Vec<String> },
    /// Goes on in the cluster that the data directory belongs to.
    Existing,
}

/// What a node is opened with.
pub struct NodeConfig {
    pub data_dir: PathBuf,
    /// `"fjall"` or `"sled"`; `None`: what the data directory has, or fjall.
    pub engine: Option<String>,
    pub cache_bytes: u64,
    /// Bytes that requests under way may hold.
    pub memory_budget: usize,
    pub bootstrap: Bootstrap,
    /// The id that a joining node would like; `None`: the cluster gives the next free one. A node
    /// that has an id already must be given that one or none.
    pub node: Option<NodeId>,
    /// Where the other nodes and clients reach this one.
    pub advertise: Addresses,
    pub tls: Option<PeerTls>,
    pub read_mode: ReadMode,
    pub timing: Timing,
    /// One per door whose operations may be forwarded to this node.
    pub codecs: Vec<(Door, Arc<dyn OperationCodec>)>,
    pub sweeps: Vec<Arc<dyn Sweep>>,
    pub blobs: BlobConfig,
    /// Told what the node is doing until it is open, for a person to read.
    pub opening: watch::Sender<String>,
}

/// The bytes of large objects.
#[derive(Clone)]
pub struct BlobConfig {
    /// One per door whose rows name chunks; without any, nothing is repaired or collected.
    pub references: Vec<Arc<dyn ChunkReferences>>,
    /// Bytes of bodies that may be on their way to disk.
    pub budget_bytes: usize,
    /// How often rows are walked for chunks that this node lacks or nobody needs.
    pub walk_every: Duration,
}

impl Default for BlobConfig {
    fn default() -> Self {
        Self {
            references: Vec::new(),
            budget_bytes: 192 << 20,
            walk_every: Duration::from_secs(30),
        }
    }
}

/// Why a node did not open: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used (in use, not writable, damaged, another engine or format).
    #[error("{0}")]
    DataDirectory(String),
    /// The data directory has no cluster and none was asked for.
    #[error("{0} has no cluster yet: start without --join to make one, or with --join HOST:PORT")]
    NoCluster(String),
    /// No seed gave this node a place.
    #[error("cannot join: {0}")]
    Join(String),
    /// A flag or an address makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The context ended first.
    #[error("not open in time: {0}")]
    TimedOut(String),
}

//! Leadline's S3 door: buckets and objects over the replicated keyspace.
//!
//! `s3s` speaks the protocol (signatures, XML, chunked bodies); what requests mean is here. A
//! request becomes one [`leadline_kv::Operation`] on the shard of its bucket, decided there at one
//! instant; bytes of large objects go to the blob store before the operation that names them.
//! `docs/s3.md` says what is there and what is not.

mod answers;
mod body;
mod checked;
mod cors;
mod document;
mod door;
mod error;
mod form;
mod hashes;
mod identity;
mod keys;
mod metrics;
mod operation;
mod policy;
mod references;
mod rewrite;
mod rows;
mod service;
mod signatures;
mod signed;
mod store;
mod subresource;

use std::sync::Arc;

use leadline_kv::executor::Sweep;

pub use door::{S3Config, S3Door};
pub use keys::{KeyError, Keys, NewKey, ShownGrant, ShownKey};
pub use operation::S3Codec;
pub use references::S3References;

/// The door's background work on its rows: lifecycle rules.
#[must_use]
pub fn sweeps() -> Vec<Arc<dyn Sweep>> {
    vec![Arc::new(operation::LifecycleSweep::default())]
}

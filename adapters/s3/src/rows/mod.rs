//! What the S3 door keeps in the keyspace: row keys and row values.

mod keys;
mod model;

pub(crate) use keys::*;
pub(crate) use model::*;

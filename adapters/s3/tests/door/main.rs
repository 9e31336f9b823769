//! What the S3 port answers, as clients see it.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

mod access;
mod configurations;
mod connection;
mod forms;
mod reads;
mod refusals;
mod signatures;
mod world;
mod writes;

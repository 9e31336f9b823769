//! Groups of several nodes in one process, in virtual time, over a network that a test can cut.

mod cluster;
mod memory_log;
mod scenarios;
mod sockets;

//! Groups of several nodes in one process, in virtual time, over a network that a test can cut; and
//! whole nodes over real logs and sockets.

mod chaos;
mod cluster;
mod nodes;
mod scenarios;
mod simulation;
mod sockets;
mod suite;

//! Cluster membership: joining, leaving, and the controller that keeps every group replicated.

mod client;
mod controller;
mod plan;
mod service;

pub use client::{ClusterClient, ClusterError};
pub(crate) use controller::Controller;
pub(crate) use service::{ClusterService, Learners, change_here};

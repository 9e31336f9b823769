//! What the HTTP doors share: the request's deadline, clients that leave, the listener, and the
//! view of the node that they answer from.

mod deadline;
mod listener;
mod node;
mod watched;

pub use deadline::{BadTimeout, request_context};
pub use listener::{ListenerOptions, serve};
pub use node::NodeView;
pub use watched::{HttpMetrics, watched};

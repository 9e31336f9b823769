//! What the HTTP doors share: the request's deadline, clients that leave, the listener, the view of
//! the node that they answer from, and the form of the JSON API.

mod api;
mod deadline;
mod listener;
mod node;
mod watched;

pub use api::{failure, fresh, refusal, status_of};
pub use deadline::{BadTimeout, request_context};
pub use listener::{ListenerOptions, serve};
pub use node::NodeView;
pub use watched::{HttpMetrics, watched};

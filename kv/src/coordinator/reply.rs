//! A reply to come, wherever the request is meanwhile: at a local executor, on its way to another
//! node's leader, or waiting for a leader to be known.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::flight::Flight;
use super::lane::Parked;
use crate::KvError;
use crate::executor::ReplyFuture;
use crate::proxy::Forwarded;

/// What a request ends with.
pub(crate) type Reply = Result<Bytes, KvError>;

/// A reply to come. A future; resolves by the deadline of the context it was begun with.
#[derive(Debug)]
pub struct PendingReply {
    at: Place,
    /// See [`PendingReply::is_transaction`].
    transaction: bool,
    /// What is needed to send the request again, and what it holds meanwhile.
    flight: Option<Box<Flight>>,
}

/// Where the request is.
enum Place {
    Ready(Option<Reply>),
    Waiting(oneshot::Receiver<Reply>),
    Executing(ReplyFuture),
    Forwarded(Forwarded),
    Parked(Parked),
    Running(BoxFuture<'static, Reply>),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Waiting(_) => "Waiting",
            Self::Executing(_) => "Executing",
            Self::Forwarded(_) => "Forwarded",
            Self::Parked(_) => "Parked",
            Self::Running(_) => "Running",
        })
    }
}

impl From<Place> for PendingReply {
    fn from(at: Place) -> Self {
        Self {
            at,
            transaction: false,
            flight: None,
        }
    }
}

impl PendingReply {
    /// A reply that is already there.
    #[must_use]
    pub fn ready(reply: Result<Bytes, KvError>) -> Self {
        Place::Ready(Some(reply)).into()
    }

    /// A reply that someone else sends. A sender dropped unsent means: outcome unknown.
    #[must_use]
    pub fn waiting(receiver: oneshot::Receiver<Result<Bytes, KvError>>) -> Self {
        Place::Waiting(receiver).into()
    }

    /// A reply that the executor of a local shard leaves.
    pub(crate) fn executing(future: ReplyFuture) -> Self {
        Place::Executing(future).into()
    }

    /// A reply that another node's leader makes.
    pub(crate) fn forwarded(future: Forwarded) -> Self {
        Place::Forwarded(future).into()
    }

    /// A reply of a request that waits for a leader.
    pub(crate) fn parked(future: Parked) -> Self {
        Place::Parked(future).into()
    }

    /// A reply that `future` makes; it must end by its context's deadline.
    #[must_use]
    pub fn running(future: BoxFuture<'static, Result<Bytes, KvError>>) -> Self {
        Place::Running(future).into()
    }

    /// A reply of a transaction over several shards.
    pub(crate) fn transaction(future: BoxFuture<'static, Result<Bytes, KvError>>) -> Self {
        Self {
            transaction: true,
            ..Place::Running(future).into()
        }
    }

    /// Whether this is the reply of a transaction over several shards. It does nothing before it is
    /// polled, and takes its place among its caller's operations only while it runs: a caller to
    /// whom their order matters submits nothing more until it has the reply.
    #[must_use]
    pub fn is_transaction(&self) -> bool {
        self.transaction
    }

    /// The same, sent again on a refusal as far as `flight` allows.
    pub(crate) fn in_flight(mut self, flight: Flight) -> Self {
        // Boxed: replies are moved about in queues.
        self.flight = Some(Box::new(flight));
        self
    }

    /// Whether the reply is there already.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.at {
            Place::Ready(reply) => reply.is_some(),
            Place::Executing(future) => future.is_ready(),
            Place::Waiting(_) | Place::Forwarded(_) | Place::Parked(_) | Place::Running(_) => false,
        }
    }

    /// The refusal for want of a leader that this reply already is, if it is one.
    pub(crate) fn refused(&self) -> bool {
        matches!(&self.at, Place::Ready(Some(Err(KvError::NoLeader { .. }))))
    }
}

impl Future for PendingReply {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Reply> {
        let this = &mut *self;
        loop {
            let polled = match &mut this.at {
                Place::Ready(reply) => Poll::Ready(
                    reply
                        .take()
                        .unwrap_or(Err(KvError::Unknown("the reply was taken already"))),
                ),
                Place::Waiting(receiver) => Pin::new(receiver).poll(task).map(|received| {
                    received.unwrap_or(Err(KvError::Unknown(
                        "the shard stopped before it answered",
                    )))
                }),
                Place::Executing(future) => Pin::new(future).poll(task),
                Place::Forwarded(future) => Pin::new(future).poll(task),
                Place::Running(future) => future.as_mut().poll(task),
                Place::Parked(parked) => match Pin::new(parked).poll(task) {
                    Poll::Ready(Ok(next)) => {
                        this.at = next.at;
                        continue;
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                },
            };
            let Poll::Ready(reply) = polled else {
                return Poll::Pending;
            };
            if let (Err(error), Some(flight)) = (&reply, &mut this.flight)
                && let Some(next) = flight.again(error)
            {
                this.at = next.at;
                continue;
            }
            let flight = this.flight.take();
            return Poll::Ready(match flight {
                Some(flight) => reply.map_err(|error| flight.ended(error)),
                None => reply,
            });
        }
    }
}

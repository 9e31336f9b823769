//! The way from a request to its decision: an operation through the coordinator.

use std::sync::Arc;

use leadline_kv::{Access, Coordinator, KvError, Operation, RequestId};
use leadline_raft::Context;
use prost::Message;
use s3s::{S3Error, S3ErrorCode};

use crate::error::{self, Asked};
use crate::operation::{Action, Answer, KeyAction, Reply, S3Operation, Who};
use crate::rows::KeyRow;

/// The rows of the S3 door, wherever they are led.
#[derive(Clone)]
pub(crate) struct Store {
    coordinator: Arc<dyn Coordinator>,
}

/// Why no answer came.
#[derive(Debug)]
pub(crate) enum Failure {
    Kv(KvError),
    Refused(crate::operation::Refused),
    Malformed,
}

impl Failure {
    pub(crate) fn into_s3(self, asked: Asked) -> S3Error {
        match self {
            Self::Kv(error) => error::of_kv(&error),
            Self::Refused(refused) => error::of_refused(&refused, asked),
            Self::Malformed => S3Error::with_message(
                S3ErrorCode::InternalError,
                "the answer was not of the kind that was asked for",
            ),
        }
    }
}

impl From<Failure> for S3Error {
    fn from(failure: Failure) -> Self {
        failure.into_s3(Asked::Other)
    }
}

/// A request id that is finished however its request ends.
struct Number<'a>(&'a dyn Coordinator, RequestId);

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.0.finish_request_id(self.1);
    }
}

impl Store {
    pub(crate) fn new(coordinator: Arc<dyn Coordinator>) -> Self {
        Self { coordinator }
    }

    /// Runs one operation. A write takes effect once, however often it is sent on the way.
    pub(crate) async fn run(
        &self,
        ctx: &Context,
        operation: S3Operation,
    ) -> Result<Answer, Failure> {
        let reply = match operation.access() {
            Access::Read => self.coordinator.submit(ctx, Arc::new(operation)).await,
            Access::Write => {
                let number = Number(&*self.coordinator, self.coordinator.next_request_id());
                self.coordinator
                    .submit_once(ctx, number.1, Arc::new(operation))
                    .await
            }
        };
        let reply = reply.map_err(Failure::Kv)?;
        match Reply::decode(reply).map(|reply| reply.answer) {
            Ok(Some(Answer::Refused(refused))) => Err(Failure::Refused(refused)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(Failure::Malformed),
        }
    }

    pub(crate) async fn on(
        &self,
        ctx: &Context,
        who: Who,
        bucket: &str,
        action: &str,
        act: Action,
    ) -> Result<Answer, Failure> {
        self.run(ctx, S3Operation::new(who, bucket, action, act))
            .await
    }

    pub(crate) async fn keys(&self, ctx: &Context, act: KeyAction) -> Result<Vec<KeyRow>, Failure> {
        match self.run(ctx, S3Operation::on_keys(act)).await? {
            Answer::Keys(list) => Ok(list.keys),
            Answer::Done(_) => Ok(Vec::new()),
            _ => Err(Failure::Malformed),
        }
    }
}

//! Deadlines over gRPC: `grpc-timeout` becomes a [`Context`] on the way in, and a context becomes
//! `grpc-timeout` on the way out.
//!
//! # Invariants
//! 1. A request that ends at its deadline is answered with `DEADLINE_EXCEEDED` (tonic by itself
//!    answers `CANCELLED`).
//! 2. A request without `grpc-timeout` gets the fallback; the handler can tell
//!    ([`DeadlineSource::Fallback`](crate::DeadlineSource)).
//! 3. A client that leaves cancels its context: handlers and all they started see it at once.
//!
//! The deadline bounds the time to the response's head. A stream that answers for longer looks at
//! its own context, or has none by design (peers' streams).

use std::future::Future;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{Context, ContextGuard, Ended, FALLBACK_DEADLINE};

/// Gives every request of a gRPC server its [`Context`], and enforces it.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    fallback: Duration,
}

impl DeadlineLayer {
    /// `fallback` is for requests without `grpc-timeout`.
    #[must_use]
    pub fn new(fallback: Duration) -> Self {
        Self { fallback }
    }
}

impl Default for DeadlineLayer {
    fn default() -> Self {
        Self::new(FALLBACK_DEADLINE)
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline {
            inner,
            fallback: self.fallback,
        }
    }
}

/// The service that [`DeadlineLayer`] makes.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    fallback: Duration,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let ctx = match remaining(request.headers()) {
            Some(timeout) => Context::with_timeout(timeout),
            None => Context::fallback_of(self.fallback),
        };
        let guard = ctx.guard();
        request.extensions_mut().insert(ctx.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            match ctx.run(answer).await {
                Ok(Ok(response)) => Ok(response.map(|body| {
                    Body::new(GuardedBody {
                        body,
                        _guard: guard,
                    })
                })),
                Ok(Err(error)) => Err(error),
                Err(Ended::Deadline) => {
                    Ok(Status::deadline_exceeded("the request's deadline passed").into_http())
                }
                Err(Ended::Cancelled) => Ok(Status::cancelled("the caller is gone").into_http()),
            }
        })
    }
}

/// A response body that keeps its request's context alive: a client that leaves in the middle drops
/// the body, and with it cancels the context.
struct GuardedBody {
    body: Body,
    _guard: ContextGuard,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(ready!(http_body::Body::poll_frame(
            Pin::new(&mut self.body),
            cx
        )))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The time that `grpc-timeout` leaves, as the gRPC specification writes it: up to eight digits and
/// a unit. A malformed header counts as none.
fn remaining(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// The context of a request that came through [`DeadlineLayer`]; else a fallback one.
#[must_use]
pub fn context<T>(request: &tonic::Request<T>) -> Context {
    request
        .extensions()
        .get::<Context>()
        .cloned()
        .unwrap_or_else(Context::fallback)
}

/// A request that tells the other side how long `ctx` may still take.
#[must_use]
pub fn request<T>(ctx: &Context, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(ctx.remaining());
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeadlineSource;

    fn with_timeout(value: &'static str) -> Request<()> {
        Request::builder()
            .header("grpc-timeout", value)
            .body(())
            .unwrap()
    }

    fn status_of(response: &Response<Body>) -> tonic::Code {
        Status::from_header_map(response.headers()).unwrap().code()
    }

    #[test]
    fn every_unit_of_the_grpc_specification_is_understood_and_nonsense_is_not() {
        let parsed = |value| remaining(with_timeout(value).headers());
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parsed("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parsed("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parsed("50m"), Some(Duration::from_millis(50)));
        assert_eq!(parsed("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(parsed("7n"), Some(Duration::from_nanos(7)));
        for nonsense in [
            "",
            "S",
            "1",
            "1x",
            "-1S",
            "+1S",
            "999999999S",
            "1.5S",
            "1 S",
        ] {
            assert_eq!(parsed(nonsense), None, "{nonsense:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_past_its_grpc_timeout_is_answered_with_deadline_exceeded() {
        let mut stuck = DeadlineLayer::default().layer(tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Body>, Status>>()
        }));
        let began = tokio::time::Instant::now();
        let response = stuck.call(with_timeout("50m")).await.unwrap();
        assert_eq!(status_of(&response), tonic::Code::DeadlineExceeded);
        assert_eq!(began.elapsed(), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_timeout_gets_the_fallback_and_the_handler_can_tell() {
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let mut service = DeadlineLayer::new(Duration::from_secs(3)).layer(tower::service_fn(
            move |request: Request<()>| {
                let ctx = request.extensions().get::<Context>().cloned().unwrap();
                told.try_send(ctx).unwrap();
                std::future::pending::<Result<Response<Body>, Status>>()
            },
        ));
        let response = service.call(Request::new(())).await.unwrap();
        assert_eq!(status_of(&response), tonic::Code::DeadlineExceeded);
        let ctx = heard.recv().await.unwrap();
        assert_eq!(ctx.source(), DeadlineSource::Fallback);
    }

    /// A body that has more to say, some day.
    struct Unfinished;

    impl http_body::Body for Unfinished {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_cancels_its_context_before_and_during_the_answer() {
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let mut service =
            DeadlineLayer::default().layer(tower::service_fn(move |request: Request<()>| {
                let ctx = request.extensions().get::<Context>().cloned().unwrap();
                told.try_send(ctx).unwrap();
                async { Ok::<_, Status>(Response::new(Body::new(Unfinished))) }
            }));

        drop(service.call(Request::new(())));
        assert_eq!(heard.recv().await.unwrap().ended(), Some(Ended::Cancelled));

        let answered = service.call(Request::new(())).await.unwrap();
        let ctx = heard.recv().await.unwrap();
        assert_eq!(ctx.ended(), None);
        drop(answered);
        assert_eq!(ctx.ended(), Some(Ended::Cancelled));
    }
}

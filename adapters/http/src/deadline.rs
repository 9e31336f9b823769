//! The deadline that an HTTP request brings, in each of the forms that its senders use.

use std::time::Duration;

use http::request::Parts;
use leadline_raft::Context;

/// A timeout that cannot be read. What is wrong, and what is allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct BadTimeout(pub String);

impl std::fmt::Display for BadTimeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The context of a request: the earliest of the timeouts it names, else `fallback`.
///
/// Read are the query parameter `timeout` (`1s`, `500ms`, as Kubernetes' API server takes it), and
/// the headers `Request-Timeout` (seconds), `grpc-timeout` (gRPC over HTTP/2, *Requests*) and
/// `x-envoy-expected-rq-timeout-ms`.
///
/// # Errors
/// The first timeout that is malformed.
pub fn request_context(parts: &Parts, fallback: Duration) -> Result<Context, BadTimeout> {
    let mut earliest: Option<Duration> = None;
    let mut take = |timeout: Duration| {
        earliest = Some(earliest.map_or(timeout, |known| known.min(timeout)));
    };
    for pair in parts.uri.query().unwrap_or_default().split('&') {
        if let Some(text) = pair.strip_prefix("timeout=") {
            take(parse_span(text).ok_or_else(|| {
                BadTimeout(format!("timeout={text}: write a number and ms, s, m or h"))
            })?);
        }
    }
    type Parser = fn(&str) -> Option<Duration>;
    let headers: [(&str, Parser, &str); 3] = [
        (
            "request-timeout",
            parse_seconds,
            "write seconds, such as 1.5",
        ),
        (
            "grpc-timeout",
            parse_grpc,
            "write at most 8 digits and H, M, S, m, u or n",
        ),
        (
            "x-envoy-expected-rq-timeout-ms",
            parse_millis,
            "write whole milliseconds",
        ),
    ];
    for (name, parse, allowed) in headers {
        let Some(value) = parts.headers.get(name) else {
            continue;
        };
        let text = value.to_str().unwrap_or("not text");
        take(parse(text).ok_or_else(|| BadTimeout(format!("{name}: {text}: {allowed}")))?);
    }
    Ok(earliest.map_or_else(|| Context::fallback_of(fallback), Context::with_timeout))
}

/// `1s`, `1.5s`, `500ms`, `2m`, `1h`.
fn parse_span(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| c.is_ascii_alphabetic())?;
    let scale = match &text[end..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    seconds(text[..end].parse::<f64>().ok()? * scale)
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

fn parse_seconds(text: &str) -> Option<Duration> {
    seconds(text.trim().parse().ok()?)
}

fn parse_millis(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_millis)
}

fn parse_grpc(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use leadline_raft::DeadlineSource;

    use super::*;

    fn context(uri: &str, headers: &[(&str, &str)]) -> Result<Context, BadTimeout> {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        request_context(&parts, Duration::from_secs(5))
    }

    #[tokio::test(start_paused = true)]
    async fn each_sender_s_form_of_a_timeout_is_read() {
        for (uri, header, expected_ms) in [
            ("/healthz?timeout=1s", None, 1000),
            ("/healthz?verbose&timeout=250ms", None, 250),
            ("/healthz", Some(("Request-Timeout", "1.5")), 1500),
            ("/healthz", Some(("grpc-timeout", "20m")), 20),
            (
                "/healthz",
                Some(("x-envoy-expected-rq-timeout-ms", "70")),
                70,
            ),
        ] {
            let ctx = context(uri, header.as_slice()).unwrap();
            assert_eq!(
                ctx.remaining(),
                Duration::from_millis(expected_ms),
                "{uri} {header:?}"
            );
            assert_eq!(ctx.source(), DeadlineSource::Caller);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_wins_and_none_means_the_fallback() {
        let ctx = context("/?timeout=9s", &[("Request-Timeout", "2")]).unwrap();
        assert_eq!(ctx.remaining(), Duration::from_secs(2));
        let ctx = context("/", &[]).unwrap();
        assert_eq!(ctx.remaining(), Duration::from_secs(5));
        assert_eq!(ctx.source(), DeadlineSource::Fallback);
    }

    #[tokio::test]
    async fn a_malformed_timeout_is_named_not_ignored() {
        for (uri, headers) in [
            ("/?timeout=soon", [].as_slice()),
            ("/?timeout=-1s", &[]),
            ("/?timeout=5", &[]),
            ("/", &[("grpc-timeout", "5")]),
            ("/", &[("grpc-timeout", "999999999S")]),
            ("/", &[("request-timeout", "NaN")]),
        ] {
            assert!(context(uri, headers).is_err(), "{uri} {headers:?}");
        }
    }
}

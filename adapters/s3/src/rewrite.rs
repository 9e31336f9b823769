//! Requests that AWS understands and `s3s` does not, in words that `s3s` understands.
//!
//! What is signed cannot be changed before its signature is verified, so this happens between two
//! services: the outer one verifies, and passes what [`needed`] finds on to the inner one, changed
//! and without its signature. All other requests never leave the outer one.

use http::header::{
    AUTHORIZATION, CONTENT_TYPE, EXPIRES, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri};
use s3s::dto::{Range, Timestamp, TimestampFormat};
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{
    Body, HttpRequest, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders,
};
use time::{Date, Month, OffsetDateTime, Time};

use crate::error::http_date;
use crate::service::unescape;

/// Who sends a request whose signature is verified, and gone.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) access_key: Option<String>,
}

/// `Expires` of an object, where it is not a date: AWS keeps what it is given.
#[derive(Clone, Debug)]
pub(crate) struct Expires(String);

impl Expires {
    pub(crate) fn of(extensions: &Extensions) -> Option<String> {
        extensions.get().map(|Self(text)| text.clone())
    }
}

/// The way from the service that verifies to the one that answers.
pub(crate) struct Rewrite {
    pub(crate) inner: S3Service,
}

#[async_trait::async_trait]
impl S3Route for Rewrite {
    fn is_match(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        _: &mut Extensions,
    ) -> bool {
        needed(method, uri, headers)
    }

    /// What the signature covers is seen here, where it still is; access is the inner service's business.
    async fn check_access(&self, verified: &mut S3Request<Body>) -> S3Result<()> {
        crate::signed::check(&verified.uri, &verified.headers)
    }

    async fn call(&self, mut verified: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut request = HttpRequest::new(verified.input);
        *request.method_mut() = verified.method;
        *request.extensions_mut() = verified.extensions;
        let headers = &mut verified.headers;
        for (name, value) in said_in_query(&verified.uri, headers) {
            if !headers.contains_key(&name) {
                headers.append(name, value);
            }
        }
        let range = only(headers, &RANGE).and_then(read_range);
        headers.remove(RANGE);
        headers.extend(range.map(|range| (RANGE, range)));
        for name in [IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
            let date = headers.remove(&name).as_ref().and_then(read_date);
            if let Some(date) = date.and_then(|date| HeaderValue::try_from(http_date(date)).ok()) {
                headers.insert(name, date);
            }
        }
        if !is_date(headers, &EXPIRES)
            && let Some(text) = headers.remove(EXPIRES)
            && let Ok(text) = text.to_str()
            && !text.is_empty()
        {
            request.extensions_mut().insert(Expires(text.to_owned()));
        }
        headers.remove(AUTHORIZATION);
        *request.uri_mut() = without_signature(&verified.uri)?;
        *request.headers_mut() = verified.headers;
        request.extensions_mut().insert(Verified {
            access_key: verified.credentials.map(|known| known.access_key),
        });
        if let Some(trailers) = verified.trailing_headers {
            request.extensions_mut().insert::<TrailingHeaders>(trailers);
        }
        let response = self.inner.call(request).await;
        let (parts, body) = response
            .map_err(|error| S3Error::with_source(S3ErrorCode::InternalError, error.into()))?
            .into_parts();
        let mut response = S3Response::new(body);
        response.status = Some(parts.status);
        response.headers = parts.headers;
        response.extensions = parts.extensions;
        Ok(response)
    }
}

/// Whether `s3s` would refuse the request, or overlook what it says.
fn needed(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    // A form is read with its signature, and cannot be passed on.
    let form = headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes().trim_ascii_start();
        *method == Method::POST && kind.len() > 10 && kind[..10].eq_ignore_ascii_case(b"multipart/")
    });
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let odd_read = reads
        && (headers.contains_key(RANGE) && !is_single_range(headers)
            || !is_date(headers, &IF_MODIFIED_SINCE)
            || !is_date(headers, &IF_UNMODIFIED_SINCE));
    !form
        && (odd_read
            || (!reads && !is_date(headers, &EXPIRES))
            || said_in_query(uri, headers).next().is_some())
}

/// The header's only value.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

fn is_single_range(headers: &HeaderMap) -> bool {
    let range = only(headers, &RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| Range::parse(range).is_ok())
}

/// A range as `s3s` reads it; its numbers may be beyond every object.
fn read_range(text: &HeaderValue) -> Option<HeaderValue> {
    const LAST: u64 = i64::MAX as u64;
    let (first, last) = text
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let read = |number: &str| {
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| number.parse().unwrap_or(LAST).min(LAST))
    };
    let range = match (read(first), read(last)) {
        (Some(first), Some(last)) if first <= last => format!("bytes={first}-{last}"),
        (Some(first), None) if last.is_empty() => format!("bytes={first}-"),
        (None, Some(last)) if first.is_empty() => format!("bytes=-{last}"),
        _ => return None,
    };
    HeaderValue::try_from(range).ok()
}

/// Whether the header is absent, or a date as `s3s` reads it.
fn is_date(headers: &HeaderMap, name: &HeaderName) -> bool {
    let date = only(headers, name).and_then(|date| date.to_str().ok());
    !headers.contains_key(name)
        || date.is_some_and(|date| Timestamp::parse(TimestampFormat::HttpDate, date).is_ok())
}

/// Milliseconds since the epoch, by any of the three forms of RFC 9110, 5.6.7.
pub(crate) fn read_date(text: &HeaderValue) -> Option<u64> {
    let words: Vec<_> = text
        .to_str()
        .ok()?
        .split([' ', '-'])
        .filter(|word| !word.is_empty())
        .collect();
    let (day, month, year, clock) = match words[..] {
        [_, day, month, year, clock, "GMT"] => (day, month, year, clock),
        [_, month, day, clock, year] => (day, month, year, clock),
        _ => return None,
    };
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = MONTHS.iter().position(|known| *known == month)?;
    let month = Month::try_from(u8::try_from(month + 1).ok()?).ok()?;
    let year: i32 = match year.parse().ok()? {
        year @ 0..70 => 2000 + year,
        year @ 70..100 => 1900 + year,
        year => year,
    };
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u8>().ok());
    let time = Time::from_hms(clock.next()??, clock.next()??, clock.next()??).ok()?;
    let date = Date::from_calendar_date(year, month, day.parse().ok()?).ok()?;
    let seconds = OffsetDateTime::new_utc(date, time).unix_timestamp();
    u64::try_from(seconds).ok().map(|seconds| seconds * 1000)
}

/// The query, decoded; what is no text there is nothing that a header could be.
pub(crate) fn pairs(uri: &Uri) -> impl Iterator<Item = (String, String)> {
    let query = uri.query().unwrap_or_default().split('&');
    query.filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((unescape(name)?, unescape(value)?))
    })
}

/// Headers that a presigned query has instead of the request: its signature covers them there.
/// AWS does not take tags from it.
fn said_in_query(
    uri: &Uri,
    headers: &HeaderMap,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    const SIGNATURE: [&str; 8] = [
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-amz-signature",
        "x-amz-security-token",
        "x-amz-content-sha256",
    ];
    // Only of the signature that covers the whole query, where no other one goes before it.
    let mut signed = false;
    let mut other = headers.contains_key(AUTHORIZATION);
    for (name, _) in pairs(uri) {
        signed |= name == "X-Amz-Signature";
        other |= name == "Signature";
    }
    let said: Vec<_> = pairs(uri)
        .filter(|_| signed && !other)
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, _)| {
            name.starts_with("x-amz-")
                && name != "x-amz-tagging"
                && !SIGNATURE.contains(&name.as_str())
        })
        .filter_map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
            Some((HeaderName::try_from(name).ok()?, value))
        })
        .collect();
    said.into_iter()
}

fn without_signature(uri: &Uri) -> S3Result<Uri> {
    let query = uri.query().unwrap_or_default();
    let left: Vec<_> = query
        .split('&')
        .filter(|pair| {
            let name = unescape(pair.split('=').next().unwrap_or_default());
            !pair.is_empty() && !matches!(name.as_deref(), Some("X-Amz-Signature" | "Signature"))
        })
        .collect();
    let target = if left.is_empty() {
        uri.path().to_owned()
    } else {
        format!("{}?{}", uri.path(), left.join("&"))
    };
    target.parse().map_err(S3Error::internal_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_three_forms() {
        let then = Some(784_111_777_000);
        for (text, read) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", then),
            ("Sunday, 06-Nov-94 08:49:37 GMT", then),
            ("Sun Nov  6 08:49:37 1994", then),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 36 Nov 1994 08:49:37 GMT", None),
            ("1994-11-06T08:49:37Z", None),
            ("0", None),
        ] {
            assert_eq!(read_date(&text.parse().unwrap()), read, "{text}");
        }
    }

    #[test]
    fn a_query_counts_as_headers_only_where_its_signature_is_the_one_that_counts() {
        let said = |target: &str, signed: bool| {
            let mut headers = HeaderMap::new();
            if signed {
                headers.insert(AUTHORIZATION, HeaderValue::from_static("AWS a:b"));
            }
            said_in_query(&target.parse().unwrap(), &headers)
                .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
                .collect::<Vec<_>>()
        };
        let target = "/b/k?X-Amz-Date=d&x-amz-meta-a=b%20c&X-Amz-Acl=private&X-Amz-Signature=s&x-amz-tagging=t";
        assert_eq!(
            said(target, false),
            ["x-amz-meta-a=b c", "x-amz-acl=private"]
        );
        assert!(said(target, true).is_empty());
        assert!(said(&format!("{target}&Signature=s"), false).is_empty());
        assert!(said("/b/k?x-amz-acl=private", false).is_empty());
        let left = without_signature(&target.parse().unwrap()).unwrap();
        assert!(!left.to_string().contains("Signature"), "{left}");
    }
}

//! Answers as AWS gives them, where `s3s` gives others.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use s3s::dto::PutObjectOutput;
use s3s::{HttpResponse, S3Response};

use crate::form::Form;
use crate::service::escape;

/// What a form is answered with when it asks for 201.
#[derive(Clone, Debug)]
struct Created(String);

/// An answer whose ETag has no quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BareEtag;

/// The URL of `path`, by the host that the client named.
pub(crate) fn location(headers: &HeaderMap, uri: &Uri, path: &str) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = text("host").or(authority).unwrap_or_default();
    // A proxy in front may speak TLS; this port does not.
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        _ => "http",
    };
    format!("{scheme}://{host}{path}")
}

/// Says of a form's object where it is and what it is.
pub(crate) fn of_form(
    form: &Form,
    location: &str,
    (bucket, key): (&str, &str),
    response: &mut S3Response<PutObjectOutput>,
) {
    let Some(etag) = response.output.e_tag.take() else {
        return;
    };
    let quoted = format!("\"{}\"", etag.value());
    let mut insert = |name, text: &str| {
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers.insert(name, value);
        }
    };
    insert(header::ETAG, &quoted);
    if !form.redirects() {
        insert(header::LOCATION, location);
        let created = [
            ("Location", location),
            ("Bucket", bucket),
            ("Key", key),
            ("ETag", &quoted),
        ];
        let elements = created.map(|(name, text)| format!("<{name}>{}</{name}>", xml(text)));
        response.extensions.insert(Created(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse>{}</PostResponse>",
            elements.concat()
        )));
    }
    // It comes to the query of a redirection as it is here.
    response.output.e_tag = Some(s3s::dto::ETag::Strong(quoted));
}

/// The path of the object that a form at `path` made.
pub(crate) fn path_of_form(path: &str, key: &str) -> String {
    format!("{}/{}", path.trim_end_matches('/'), escape(key))
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

/// The answer as it leaves.
pub(crate) fn finished(method: &Method, response: HttpResponse) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut body = match body.bytes() {
        _ if parts.status == StatusCode::NOT_MODIFIED => nothing(),
        Some(text) if parts.extensions.remove::<BareEtag>().is_some() => {
            Body::from(without_quotes(&text))
        }
        _ => Body::new(body),
    };
    if let Some(Created(text)) = parts.extensions.remove()
        && parts.status == StatusCode::CREATED
    {
        body = Body::from(text);
    }
    // `s3s` does not pass on the status of a HEAD.
    if *method == Method::HEAD
        && parts.status == StatusCode::OK
        && parts.headers.contains_key(header::CONTENT_RANGE)
    {
        parts.status = StatusCode::PARTIAL_CONTENT;
    }
    let mut response = Response::from_parts(parts, body);
    typed(&mut response);
    response
}

/// An error with headers of its own comes without the type of its body.
pub(crate) fn typed(response: &mut Response) {
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if failed && !response.headers().contains_key(header::CONTENT_TYPE) {
        let xml = HeaderValue::from_static("application/xml");
        response.headers_mut().insert(header::CONTENT_TYPE, xml);
    }
}

/// No body, and no length said: that of a 304 would be another's.
fn nothing() -> Body {
    Body::from_stream(futures::stream::empty::<Result<Bytes, axum::Error>>())
}

/// The attributes of an object have its ETag without quotes.
fn without_quotes(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let text = text.replace("<ETag>\"", "<ETag>");
    text.replace("\"</ETag>", "</ETag>").into_bytes()
}

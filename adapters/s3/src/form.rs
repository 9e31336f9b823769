//! What comes before the file of a form (`POST` with `multipart/form-data`).
//!
//! `s3s` checks a form against its policy and stores its file, and shows nobody the fields that it
//! does not know, `acl` and `tagging` among them. So they are read here first. What `s3s` then gets
//! is written anew from what was read: both see the same fields, however the form was written.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use s3s::dto::{ObjectCannedACL, PutObjectInput, Tagging};
use s3s::xml::{Deserialize, Deserializer};
use s3s::{S3Result, s3_error};

use crate::body::Pace;
use crate::error;
use crate::service::{escape, unsupported};

/// The largest head of a form; AWS takes 20 KB. It is looked through again whenever a piece of it comes.
const HEAD_BYTES: usize = 64 << 10;

/// The fields of a form before its file, by their names in lower case; each is there once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    fields: Vec<(String, String)>,
}

/// Whether `s3s` reads the request as a form.
pub(crate) fn is_form(method: &Method, headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = kind.and_then(|kind| kind.split(|&byte| byte == b';').next());
    method == Method::POST
        && kind.is_some_and(|kind| {
            kind.trim_ascii()
                .eq_ignore_ascii_case(b"multipart/form-data")
        })
}

fn boundary(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let boundary = kind.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then_some(value)
    })?;
    let boundary = boundary
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(boundary);
    (!boundary.is_empty() && !boundary.contains('"')).then_some(boundary)
}

impl Form {
    /// Reads the form up to its file. Gives its fields, and a body that has them and the file.
    pub(crate) async fn read(
        pace: &Pace,
        headers: &HeaderMap,
        body: Body,
    ) -> S3Result<(Self, Body)> {
        let boundary = boundary(headers)
            .ok_or_else(|| s3_error!(MalformedPOSTRequest, "a form has a boundary"))?;
        let mut chunks = body.into_data_stream();
        let mut held = BytesMut::new();
        let (form, file) = loop {
            let chunk = pace.step().run(chunks.next()).await;
            match chunk.map_err(error::of_ended)? {
                Some(Ok(chunk)) => held.extend_from_slice(&chunk),
                Some(Err(_)) | None => {
                    return Err(s3_error!(
                        MalformedPOSTRequest,
                        "the form ends before its file"
                    ));
                }
            }
            if let Some(found) = Self::parse(&held, boundary)? {
                break found;
            }
            if held.len() > HEAD_BYTES {
                return Err(error::custom(
                    "MaxPostPreDataLengthExceeded",
                    StatusCode::BAD_REQUEST,
                    "Your POST request fields preceding the upload file were too large.",
                ));
            }
        };
        let mut head = BytesMut::new();
        for (name, value) in &form.fields {
            let field = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            head.extend_from_slice(field.as_bytes());
        }
        head.extend_from_slice(&held[file..]);
        let head = futures::stream::iter([Ok::<Bytes, axum::Error>(head.freeze())]);
        Ok((form, Body::from_stream(head.chain(chunks))))
    }

    /// The fields, and where the file begins with its boundary; `None` before the file is there.
    fn parse(held: &[u8], boundary: &str) -> S3Result<Option<(Self, usize)>> {
        let wrong = |why: &'static str| s3_error!(MalformedPOSTRequest, "{why}");
        let line = format!("--{boundary}\r\n");
        let delimiter = format!("\r\n{line}");
        let mut at = if held.starts_with(b"\r\n") { 2 } else { 0 };
        if held.len() < at + line.len() {
            return Ok(None);
        }
        if !held[at..].starts_with(line.as_bytes()) {
            return Err(wrong("the form does not begin with its boundary"));
        }
        let mut form = Self::default();
        loop {
            let head = at + line.len();
            let Some(length) = find(&held[head..], b"\r\n\r\n") else {
                return Ok(None);
            };
            let name = std::str::from_utf8(&held[head..head + length])
                .ok()
                .and_then(name_of)
                .ok_or_else(|| wrong("a field without a name"))?;
            if name == "file" {
                return Ok(Some((form, at)));
            }
            // An empty value may share its line's end with the delimiter.
            let value = head + length + 4;
            let Some(length) = find(&held[value - 2..], delimiter.as_bytes()) else {
                return Ok(None);
            };
            let end = value - 2 + length;
            let text = std::str::from_utf8(&held[value.min(end)..end])
                .map_err(|_| wrong("a field is not UTF-8"))?;
            form.fields.retain(|(known, _)| *known != name);
            form.fields.push((name, text.to_owned()));
            at = end + 2;
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    /// Refuses what is refused in headers.
    pub(crate) fn check(&self) -> S3Result<()> {
        let names = self.fields.iter();
        let headers: HeaderMap = names
            .filter_map(|(name, value)| {
                let name = HeaderName::try_from(name.as_str()).ok()?;
                let value = HeaderValue::from_bytes(value.as_bytes());
                Some((name, value.unwrap_or(HeaderValue::from_static(""))))
            })
            .collect();
        unsupported(&headers)
    }

    /// What the fields say that only forms have.
    pub(crate) fn fill(&self, input: &mut PutObjectInput) -> S3Result<()> {
        if let Some(acl) = self.field("acl").filter(|acl| !acl.is_empty()) {
            input.acl = Some(ObjectCannedACL::from(acl.to_owned()));
        }
        if let Some(text) = self.field("tagging").filter(|text| !text.is_empty()) {
            let tagging = Tagging::deserialize(&mut Deserializer::new(text.as_bytes()));
            let tagging = tagging.map_err(|_| s3_error!(MalformedXML, "tagging is a Tagging"))?;
            let pairs: Vec<_> = tagging
                .tag_set
                .iter()
                .map(|tag| {
                    let [key, value] = [&tag.key, &tag.value]
                        .map(|text| escape(text.as_deref().unwrap_or_default()));
                    format!("{key}={value}")
                })
                .collect();
            input.tagging = Some(pairs.join("&"));
        }
        Ok(())
    }

    /// Whether the answer sends the browser elsewhere.
    pub(crate) fn redirects(&self) -> bool {
        self.field("success_action_redirect").is_some() || self.field("redirect").is_some()
    }
}

fn find(held: &[u8], text: &[u8]) -> Option<usize> {
    held.windows(text.len()).position(|window| window == text)
}

/// The field's name in lower case, by the head of its part.
fn name_of(head: &str) -> Option<String> {
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-disposition")
            .then(|| value.trim())
    })?;
    let (name, _) = disposition
        .strip_prefix("form-data; name=\"")?
        .split_once('"')?;
    (!name.contains(['\r', '\n'])).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Option<Vec<(String, String)>> {
        let (form, file) = Form::parse(text.as_bytes(), "b").unwrap()?;
        assert!(text[file..].starts_with("--b\r\n"), "{}", &text[file..]);
        Some(form.fields)
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn fields_are_read_up_to_the_file_and_the_last_of_a_name_counts() {
        let field = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let file = "--b\r\ncontent-type: a/b\r\ncontent-disposition: form-data; name=\"FILE\"; filename=\"x\"\r\n\r\nbytes";
        let text = format!(
            "{}{}{}{}{file}",
            field("ACL", "private"),
            field("empty", ""),
            field("lines", "a\r\n--b c"),
            field("acl", "public-read")
        );
        let all = vec![
            pair("empty", ""),
            pair("lines", "a\r\n--b c"),
            pair("acl", "public-read"),
        ];
        assert_eq!(fields(&text), Some(all.clone()));
        assert_eq!(fields(&format!("\r\n{text}")), Some(all));
        for cut in 0..text.len() - "\r\n\r\nbytes".len() {
            assert_eq!(fields(&text[..cut]), None, "{cut}");
        }
        assert!(Form::parse(b"--c\r\n\r\n\r\n", "b").is_err());
        assert!(Form::parse(b"--b\r\nname: x\r\n\r\n", "b").is_err());
    }

    #[test]
    fn a_boundary_may_have_quotes() {
        let of = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            let form = is_form(&Method::POST, &headers);
            (form, boundary(&headers).map(str::to_owned))
        };
        let found = (true, Some("a".to_owned()));
        assert_eq!(of("multipart/form-data; boundary=a"), found);
        assert_eq!(of("Multipart/Form-Data;Boundary=\"a\""), found);
        assert_eq!(of("multipart/form-data; boundary=\""), (true, None));
        assert!(!of("multipart/mixed").0);
    }
}

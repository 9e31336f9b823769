//! Cross-origin requests of browsers, by the rules of their bucket.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use s3s::dto::{CORSConfiguration, CORSRule};

use crate::body::Pace;
use crate::door::rendered;
use crate::error;
use crate::operation::{Action, Answer, Configuration, Kind, Who, matches_pattern};
use crate::store::Store;

async fn rules(store: &Store, pace: &Pace, bucket: &str) -> Option<CORSConfiguration> {
    let which = Configuration {
        kind: Kind::Cors.into(),
        internal: true,
    };
    let act = Action::Configuration(which);
    let answer = store
        .on(
            &pace.step(),
            Who::default(),
            bucket,
            "s3:GetBucketCORS",
            act,
        )
        .await
        .ok()?;
    match answer {
        Answer::Text(text) => serde_json::from_slice(&text).ok(),
        _ => None,
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    matches_pattern(pattern.as_bytes(), text.as_bytes())
}

fn rule_for<'r>(
    rules: &'r CORSConfiguration,
    origin: &str,
    method: &str,
    headers: &[&str],
) -> Option<&'r CORSRule> {
    rules.cors_rules.iter().find(|rule| {
        let allowed = rule.allowed_headers.as_deref().unwrap_or_default();
        rule.allowed_origins
            .iter()
            .any(|known| matches(known, origin))
            && rule.allowed_methods.iter().any(|known| known == method)
            && headers.iter().all(|asked| {
                allowed
                    .iter()
                    .any(|known| matches(&known.to_ascii_lowercase(), &asked.to_ascii_lowercase()))
            })
    })
}

fn write(rule: &CORSRule, origin: &HeaderValue, out: &mut HeaderMap) {
    let anyone = rule.allowed_origins.iter().any(|known| known == "*");
    let shown = if anyone {
        HeaderValue::from_static("*")
    } else {
        origin.clone()
    };
    out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, shown);
    if !anyone {
        let allowed = HeaderValue::from_static("true");
        out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, allowed);
    }
    let mut insert = |name, values: Vec<String>| {
        if let Ok(value) = HeaderValue::try_from(values.join(", "))
            && !values.is_empty()
        {
            out.insert(name, value);
        }
    };
    insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        rule.allowed_methods.clone(),
    );
    insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        rule.expose_headers.clone().unwrap_or_default(),
    );
    out.append(header::VARY, HeaderValue::from_static("Origin"));
}

pub(crate) fn forbidden(why: &'static str) -> Response {
    rendered(error::custom("AccessForbidden", StatusCode::FORBIDDEN, why))
}

/// Answers a preflight. Nobody signs one, so nothing but the rules decides.
pub(crate) async fn preflight(
    store: &Store,
    pace: &Pace,
    bucket: &str,
    headers: &HeaderMap,
) -> Response {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let (Some(origin), Some(method)) = (
        headers.get(header::ORIGIN),
        text(header::ACCESS_CONTROL_REQUEST_METHOD),
    ) else {
        return forbidden("a preflight has Origin and Access-Control-Request-Method");
    };
    let asked: Vec<_> = text(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let Some(rules) = rules(store, pace, bucket).await else {
        return forbidden("CORSResponse: CORS is not enabled for this bucket.");
    };
    let from = origin.to_str().unwrap_or_default();
    let Some(rule) = rule_for(&rules, from, method, &asked) else {
        return forbidden("CORSResponse: This CORS request is not allowed.");
    };
    let mut response = StatusCode::OK.into_response();
    let out = response.headers_mut();
    write(rule, origin, out);
    if let Ok(value) = HeaderValue::try_from(asked.join(", "))
        && !asked.is_empty()
    {
        out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value);
    }
    if let Some(seconds) = rule.max_age_seconds {
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(seconds));
    }
    response
}

/// Marks the answer to a cross-origin request that the bucket's rules allow.
pub(crate) async fn allow(
    store: &Store,
    pace: &Pace,
    bucket: &str,
    method: &Method,
    origin: &HeaderValue,
    out: &mut HeaderMap,
) {
    let Some(rules) = rules(store, pace, bucket).await else {
        return;
    };
    let from = origin.to_str().unwrap_or_default();
    if let Some(rule) = rule_for(&rules, from, method.as_str(), &[]) {
        write(rule, origin, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_by_origin_method_and_headers() {
        let rules = CORSConfiguration {
            cors_rules: vec![CORSRule {
                allowed_origins: vec!["https://*.example.com".into()],
                allowed_methods: vec!["PUT".into()],
                allowed_headers: Some(vec!["x-amz-*".into()]),
                ..CORSRule::default()
            }],
        };
        let found =
            |origin, method, headers: &[&str]| rule_for(&rules, origin, method, headers).is_some();
        assert!(found("https://a.example.com", "PUT", &["X-Amz-Date"]));
        assert!(!found("https://a.example.com", "GET", &[]));
        assert!(!found("https://a.example.org", "PUT", &[]));
        assert!(!found("https://a.example.com", "PUT", &["authorization"]));
    }
}

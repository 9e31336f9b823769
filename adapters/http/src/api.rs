//! Answers of the JSON API: nobody may keep them, and an error says what is known of the outcome.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use leadline_kv::{KvError, Outcome};

/// An answer that nobody may keep.
pub fn fresh(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `{"error": …, "outcome": "not applied" | "unknown"}`.
pub fn failure(status: StatusCode, text: &str, outcome: Outcome) -> Response {
    let outcome = match outcome {
        Outcome::NotApplied => "not applied",
        Outcome::Unknown => "unknown",
    };
    let body = serde_json::json!({ "error": text, "outcome": outcome });
    fresh((status, Json(body)))
}

/// A request that makes no sense; nothing was done.
pub fn refusal(text: &str) -> Response {
    failure(StatusCode::BAD_REQUEST, text, Outcome::NotApplied)
}

/// The status that an error of the store is answered with.
#[must_use]
pub fn status_of(error: &KvError) -> StatusCode {
    match error {
        KvError::NoLeader { .. }
        | KvError::Overloaded { .. }
        | KvError::NotApplied(_)
        | KvError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        KvError::CrossShard | KvError::Invalid(_) => StatusCode::BAD_REQUEST,
        KvError::Unknown(_) | KvError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

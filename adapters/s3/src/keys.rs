//! The administration of access keys: what `leadline s3 key` and the admin API do.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use leadline_http::{failure, fresh, request_context, status_of};
use leadline_kv::{KvError, Outcome};
use leadline_raft::Context;
use rand::Rng;
use rand::distr::Alphanumeric;
use s3s::path::check_bucket_name;
use serde::{Deserialize, Serialize};

use crate::identity::Keyring;
use crate::operation::{Empty, Grant, KeyAction, Refusal};
use crate::rows::{GrantRow, KeyRow, Level};
use crate::store::{Failure, Store};

/// The access keys of the cluster.
#[derive(Clone)]
pub struct Keys {
    store: Store,
    keyring: Keyring,
}

/// A key as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ShownKey {
    pub access_key: String,
    /// Shown once: when the key is made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret_key: Option<String>,
    pub name: String,
    pub created_ms: u64,
    /// Whether the key may make buckets, which it then owns.
    pub creates_buckets: bool,
    pub grants: Vec<ShownGrant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownGrant {
    /// A bucket, or `*` for all.
    pub bucket: String,
    /// `read`, `write` or `owner`; `none` takes a grant back.
    pub level: String,
}

/// What a new key shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What the key is for: whoever lists the keys must know which may go.
    #[serde(default)]
    pub name: String,
    /// Owner of every bucket.
    #[serde(default)]
    pub admin: bool,
    /// Grants from the beginning.
    #[serde(default)]
    pub grants: Vec<ShownGrant>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The request makes no sense.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    NotFound(String),
    /// The store could not do it, or does not know whether it did.
    #[error("{0}")]
    Failed(KvError),
    /// An answer of another kind: it is not known what was done.
    #[error("an answer of another kind")]
    Strange,
}

impl From<Failure> for KeyError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) if refused.why() == Refusal::NoSuchKey => {
                Self::NotFound(refused.text)
            }
            Failure::Refused(refused) => Self::Wrong(refused.text),
            Failure::Kv(error) => Self::Failed(error),
            Failure::Malformed => Self::Strange,
        }
    }
}

fn level_in(text: &str) -> Result<Level, KeyError> {
    match text {
        "none" => Ok(Level::Nothing),
        "read" => Ok(Level::Read),
        "write" => Ok(Level::Write),
        "owner" => Ok(Level::Owner),
        other => Err(KeyError::Wrong(format!(
            "{other} is not a grant: write read, write, owner or none"
        ))),
    }
}

fn level_out(level: Level) -> &'static str {
    match level {
        Level::Nothing => "none",
        Level::Read => "read",
        Level::Write => "write",
        Level::Owner => "owner",
    }
}

fn grant_in(grant: &ShownGrant) -> Result<GrantRow, KeyError> {
    let level = level_in(&grant.level)?;
    // Taking back what was never valid must stay possible.
    let is_bucket = grant.bucket == "*" || check_bucket_name(&grant.bucket);
    if !is_bucket && level != Level::Nothing {
        return Err(KeyError::Wrong(format!(
            "'{}' is not the name of a bucket: a grant names one (3 to 63 of a-z, 0-9, . and -), or *",
            grant.bucket
        )));
    }
    Ok(GrantRow {
        bucket: grant.bucket.clone(),
        level: level.into(),
    })
}

fn shown(key: KeyRow, with_secret: bool) -> ShownKey {
    ShownKey {
        secret_key: with_secret.then_some(key.secret),
        access_key: key.access_key,
        name: key.name,
        created_ms: key.created_ms,
        creates_buckets: key.creates,
        grants: key
            .grants
            .iter()
            .map(|grant| ShownGrant {
                bucket: grant.bucket.clone(),
                level: level_out(grant.level()).to_owned(),
            })
            .collect(),
    }
}

/// Letters and digits from the system's generator.
fn random_text(length: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(length)
        .map(char::from)
        .collect()
}

impl Keys {
    pub(crate) fn new(store: Store, keyring: Keyring) -> Self {
        Self { store, keyring }
    }

    /// Makes a key. Its secret is in the answer, and shown never again.
    ///
    /// # Errors
    /// [`KeyError`]; the key was not made, unless the outcome is unknown.
    pub async fn create(&self, ctx: &Context, new: &NewKey) -> Result<ShownKey, KeyError> {
        if new.name.trim().is_empty() {
            return Err(KeyError::Wrong(
                "a key has a name: say what it is for".to_owned(),
            ));
        }
        let mut grants = new
            .grants
            .iter()
            .map(grant_in)
            .collect::<Result<Vec<_>, _>>()?;
        if new.admin {
            grants.push(GrantRow {
                bucket: "*".to_owned(),
                level: Level::Owner.into(),
            });
        }
        let key = KeyRow {
            access_key: format!("LL{}", random_text(18).to_ascii_uppercase()),
            secret: random_text(40),
            name: new.name.clone(),
            created_ms: 0,
            creates: true,
            grants,
        };
        let made = self.store.keys(ctx, KeyAction::Create(key)).await?;
        let made = made.into_iter().next();
        made.map(|key| shown(key, true)).ok_or(KeyError::Strange)
    }

    /// Every key, without secrets.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn list(&self, ctx: &Context) -> Result<Vec<ShownKey>, KeyError> {
        let keys = self.store.keys(ctx, KeyAction::List(Empty {})).await?;
        Ok(keys.into_iter().map(|key| shown(key, false)).collect())
    }

    /// Deletes a key. Other nodes may take it for another second.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn delete(&self, ctx: &Context, access_key: &str) -> Result<(), KeyError> {
        let act = KeyAction::Delete(access_key.to_owned());
        self.store.keys(ctx, act).await?;
        self.keyring.forget(access_key);
        Ok(())
    }

    /// Grants a key something on a bucket, instead of what it had there.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn grant(
        &self,
        ctx: &Context,
        access_key: &str,
        grant: &ShownGrant,
    ) -> Result<ShownKey, KeyError> {
        let act = KeyAction::Grant(Grant {
            access_key: access_key.to_owned(),
            grant: Some(grant_in(grant)?),
        });
        let keys = self.store.keys(ctx, act).await?;
        self.keyring.forget(access_key);
        keys.into_iter()
            .next()
            .map(|key| shown(key, false))
            .ok_or(KeyError::Strange)
    }

    /// An admin key for a store that has none yet, for trying things out.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn first_key(&self, ctx: &Context) -> Result<Option<ShownKey>, KeyError> {
        if !self.list(ctx).await?.is_empty() {
            return Ok(None);
        }
        let new = NewKey {
            name: "development".to_owned(),
            admin: true,
            grants: Vec::new(),
        };
        self.create(ctx, &new).await.map(Some)
    }

    /// The admin API of the keys; `fallback` is the deadline of a call that brings none.
    pub fn router(self, fallback: Duration) -> Router {
        Router::new()
            .route("/api/v1/s3/keys", get(list).post(create))
            .route("/api/v1/s3/keys/{key}", delete(remove))
            .route("/api/v1/s3/keys/{key}/grants", post(grant))
            .with_state(Api {
                keys: self,
                fallback,
            })
    }
}

/// What the admin API of the keys answers from.
#[derive(Clone)]
struct Api {
    keys: Keys,
    fallback: Duration,
}

impl Api {
    /// The context of a call, by the rules of the whole admin port.
    fn context(&self, parts: &Parts) -> Result<Context, KeyError> {
        request_context(parts, self.fallback).map_err(|error| KeyError::Wrong(error.to_string()))
    }
}

fn failed(error: &KeyError) -> Response {
    let (status, outcome) = match error {
        KeyError::Wrong(_) => (StatusCode::BAD_REQUEST, Outcome::NotApplied),
        KeyError::NotFound(_) => (StatusCode::NOT_FOUND, Outcome::NotApplied),
        KeyError::Failed(error) => (status_of(error), error.outcome()),
        KeyError::Strange => (StatusCode::INTERNAL_SERVER_ERROR, Outcome::Unknown),
    };
    failure(status, &error.to_string(), outcome)
}

fn answered<T>(done: Result<T, KeyError>, answer: impl FnOnce(T) -> Response) -> Response {
    match done {
        Ok(done) => fresh(answer(done)),
        Err(error) => failed(&error),
    }
}

/// A body, if it is what the call takes.
type Body<T> = Result<Json<T>, JsonRejection>;

fn body_of<T>(body: Body<T>) -> Result<T, KeyError> {
    match body {
        Ok(Json(body)) => Ok(body),
        Err(rejection) => Err(KeyError::Wrong(rejection.body_text())),
    }
}

async fn list(State(api): State<Api>, parts: Parts) -> Response {
    let done = async {
        let ctx = api.context(&parts)?;
        let _gone = ctx.guard();
        api.keys.list(&ctx).await
    };
    answered(done.await, |keys| Json(keys).into_response())
}

async fn create(State(api): State<Api>, parts: Parts, new: Body<NewKey>) -> Response {
    let done = async {
        let ctx = api.context(&parts)?;
        let _gone = ctx.guard();
        api.keys.create(&ctx, &body_of(new)?).await
    };
    answered(done.await, |key| {
        (StatusCode::CREATED, Json(key)).into_response()
    })
}

async fn remove(State(api): State<Api>, Path(key): Path<String>, parts: Parts) -> Response {
    let done = async {
        let ctx = api.context(&parts)?;
        let _gone = ctx.guard();
        api.keys.delete(&ctx, &key).await
    };
    answered(done.await, |()| StatusCode::NO_CONTENT.into_response())
}

async fn grant(
    State(api): State<Api>,
    Path(key): Path<String>,
    parts: Parts,
    grant: Body<ShownGrant>,
) -> Response {
    let done = async {
        let ctx = api.context(&parts)?;
        let _gone = ctx.guard();
        api.keys.grant(&ctx, &key, &body_of(grant)?).await
    };
    answered(done.await, |key| Json(key).into_response())
}

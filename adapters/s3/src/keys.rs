//! The administration of access keys: what `leadline s3 key` and the admin API do.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use leadline_raft::Context;
use rand::Rng;
use rand::distr::Alphanumeric;
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
    #[serde(default)]
    pub name: String,
    /// Owner of every bucket.
    #[serde(default)]
    pub admin: bool,
    /// Grants from the beginning.
    #[serde(default)]
    pub grants: Vec<ShownGrant>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The request makes no sense.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    NotFound(String),
    /// No answer in time, or no leader: try again.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Failure> for KeyError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) if refused.why() == Refusal::NoSuchKey => {
                Self::NotFound(refused.text)
            }
            Failure::Refused(refused) => Self::Wrong(refused.text),
            Failure::Kv(error) => Self::Unavailable(error.to_string()),
            Failure::Malformed => Self::Unavailable("an answer of another kind".to_owned()),
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
    if grant.bucket.is_empty() {
        return Err(KeyError::Wrong("a grant names a bucket, or *".to_owned()));
    }
    Ok(GrantRow {
        bucket: grant.bucket.clone(),
        level: level_in(&grant.level)?.into(),
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
        made.map(|key| shown(key, true))
            .ok_or_else(|| KeyError::Unavailable("an answer without the key".to_owned()))
    }

    /// Every key, without secrets.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
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
            .ok_or_else(|| KeyError::Unavailable("an answer without the key".to_owned()))
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

    /// The admin API of the keys.
    pub fn router(self) -> Router {
        Router::new()
            .route("/api/v1/s3/keys", get(list).post(create))
            .route("/api/v1/s3/keys/{key}", delete(remove))
            .route("/api/v1/s3/keys/{key}/grants", post(grant))
            .with_state(self)
    }
}

fn failed(error: &KeyError) -> Response {
    let status = match error {
        KeyError::Wrong(_) => StatusCode::BAD_REQUEST,
        KeyError::NotFound(_) => StatusCode::NOT_FOUND,
        KeyError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = serde_json::json!({ "error": error.to_string() });
    (status, Json(text)).into_response()
}

async fn list(State(keys): State<Keys>) -> Response {
    let ctx = Context::fallback();
    let _gone = ctx.guard();
    match keys.list(&ctx).await {
        Ok(keys) => Json(keys).into_response(),
        Err(error) => failed(&error),
    }
}

async fn create(State(keys): State<Keys>, Json(new): Json<NewKey>) -> Response {
    let ctx = Context::fallback();
    let _gone = ctx.guard();
    match keys.create(&ctx, &new).await {
        Ok(key) => (StatusCode::CREATED, Json(key)).into_response(),
        Err(error) => failed(&error),
    }
}

async fn remove(State(keys): State<Keys>, Path(key): Path<String>) -> Response {
    let ctx = Context::fallback();
    let _gone = ctx.guard();
    match keys.delete(&ctx, &key).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error),
    }
}

async fn grant(
    State(keys): State<Keys>,
    Path(key): Path<String>,
    Json(grant): Json<ShownGrant>,
) -> Response {
    let ctx = Context::fallback();
    let _gone = ctx.guard();
    match keys.grant(&ctx, &key, &grant).await {
        Ok(key) => Json(key).into_response(),
        Err(error) => failed(&error),
    }
}

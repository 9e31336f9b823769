//! Who sends a request: access keys, as this node last read them from the meta group.
//!
//! A key is read again when it is older than [`FRESH`], so that a deleted key or a changed grant holds
//! everywhere within about a second; while the meta group has no leader, a key that was known less
//! than [`STALE`] ago goes on to work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use leadline_raft::Context;
use parking_lot::Mutex;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use tokio::time::Instant;

use crate::checked::{self, Digests};
use crate::operation::{KeyAction, Who};
use crate::rewrite::Verified;
use crate::rows::{KeyRow, Level};
use crate::store::Store;

/// Keys are read again after this long.
const FRESH: Duration = Duration::from_secs(1);
/// Keys are believed this long while they cannot be read.
const STALE: Duration = Duration::from_secs(300);
/// Keys remembered, unknown ones included; beyond it all are forgotten.
const MOST_REMEMBERED: usize = 10_000;

/// Who sends a request, as every handler finds it among the request's extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    key: Option<Arc<KeyRow>>,
    /// Buckets, and who they say owns them.
    expected_owners: Vec<(String, String)>,
}

impl Identity {
    /// What the data plane is told of the requester, for one bucket.
    pub(crate) fn who(&self, bucket: &str) -> Who {
        let expected = self.expected_owners.iter();
        let expected_owners = expected
            .filter(|(known, _)| known == bucket)
            .map(|(_, owner)| owner.clone())
            .collect();
        match &self.key {
            None => Who {
                expected_owners,
                ..Who::default()
            },
            Some(key) => Who {
                access_key: key.access_key.clone(),
                level: key.level(bucket).into(),
                creates: key.creates,
                expected_owners,
            },
        }
    }

    pub(crate) fn access_key(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.access_key)
    }

    /// Whether a bucket is shown in a list.
    pub(crate) fn sees(&self, bucket: &str, owner: &str) -> bool {
        self.key
            .as_ref()
            .is_some_and(|key| key.access_key == owner || key.level(bucket) >= Level::Read)
    }
}

#[derive(Clone, Debug)]
struct Remembered {
    key: Option<Arc<KeyRow>>,
    /// When it was last asked for, and when it was last answered.
    asked: Instant,
    read: Instant,
}

/// The access keys that this node has met.
#[derive(Clone)]
pub(crate) struct Keyring {
    store: Store,
    fallback: Duration,
    remembered: Arc<Mutex<HashMap<String, Remembered>>>,
}

impl Keyring {
    pub(crate) fn new(store: Store, fallback: Duration) -> Self {
        Self {
            store,
            fallback,
            remembered: Arc::default(),
        }
    }

    /// Forgets what may have changed by this node's own hand.
    pub(crate) fn forget(&self, access_key: &str) {
        self.remembered.lock().remove(access_key);
    }

    async fn find(&self, access_key: &str) -> S3Result<Option<Arc<KeyRow>>> {
        let now = Instant::now();
        let known = {
            let mut remembered = self.remembered.lock();
            let known = remembered.get_mut(access_key);
            match known {
                Some(known) if now.duration_since(known.asked) < FRESH => {
                    return Ok(known.key.clone());
                }
                Some(known) => {
                    // Whoever comes while this one asks uses what is known.
                    known.asked = now;
                    Some(known.clone())
                }
                None => None,
            }
        };
        let ctx = Context::fallback_of(self.fallback).as_caller();
        let _gone = ctx.guard();
        let act = KeyAction::Get(access_key.to_owned());
        let key = match self.store.keys(&ctx, act).await {
            Ok(keys) => keys.into_iter().next().map(Arc::new),
            Err(failure) => match known {
                Some(known) if now.duration_since(known.read) < STALE => return Ok(known.key),
                _ => return Err(failure.into()),
            },
        };
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        let fresh = Remembered {
            key: key.clone(),
            asked: now,
            read: now,
        };
        remembered.insert(access_key.to_owned(), fresh);
        Ok(key)
    }
}

#[async_trait::async_trait]
impl S3Auth for Keyring {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.find(access_key).await? {
            Some(key) => Ok(SecretKey::from(key.secret.as_str())),
            None => Err(s3_error!(
                InvalidAccessKeyId,
                "The access key does not exist: see `leadline s3 key list`"
            )),
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Keyring {
    /// Says who it is; what they may do is decided with the request itself.
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        crate::signed::check(cx.uri(), cx.headers())?;
        crate::service::unsupported(cx.headers())?;
        checked::known_checksums(cx.headers())?;
        let digests = cx.extensions_mut().get::<Digests>().cloned();
        let (operation, query) = (cx.s3_op().name(), cx.uri().query());
        crate::subresource::check(operation, cx.method(), cx.s3_path(), query)?;
        if let Some(digests) = digests {
            digests.expect(operation, cx.headers())?;
        }
        if cx
            .s3_path()
            .get_object_key()
            .is_some_and(|key| key.contains('\0'))
        {
            return Err(s3_error!(InvalidArgument, "a key may not have a zero byte"));
        }
        let credentials = cx.credentials().map(|known| known.access_key.clone());
        let access_key = match cx.extensions_mut().get::<Verified>() {
            Some(verified) => verified.access_key.clone(),
            None => credentials,
        };
        let key = match access_key {
            Some(access_key) => self.find(&access_key).await?,
            None => None,
        };
        let seen = cx.extensions_mut().get::<crate::metrics::Seen>().cloned();
        if let Some(seen) = seen {
            seen.operation(cx.s3_op().name());
        }
        let expected_owners = expected_owners(cx);
        cx.extensions_mut().insert(Identity {
            key,
            expected_owners,
        });
        Ok(())
    }
}

/// Whom the request expects to own the buckets that it names.
fn expected_owners(cx: &S3AccessContext<'_>) -> Vec<(String, String)> {
    let text = |name| cx.headers().get(name).and_then(|value| value.to_str().ok());
    let source = text("x-amz-copy-source").and_then(|source| {
        let bucket = source.trim_start_matches('/').split(['/', '%']).next();
        bucket.filter(|bucket| !bucket.is_empty())
    });
    [
        (
            cx.s3_path().get_bucket_name(),
            "x-amz-expected-bucket-owner",
        ),
        (source, "x-amz-source-expected-bucket-owner"),
    ]
    .into_iter()
    .filter_map(|(bucket, name)| Some((bucket?.to_owned(), text(name)?.to_owned())))
    .collect()
}

//! A node's first start: it makes a cluster, or asks for a place in one.

use std::time::Duration;

use bytes::Bytes;
use leadline_raft::{ClusterId, Context, NodeId};
use tokio::time::Instant;

use super::{Bootstrap, FIRST, NodeConfig, OpenError, remember};
use crate::catalog::Catalog;
use crate::cluster::{ClusterClient, ClusterError};
use crate::coordinator::backoff;
use crate::storage::{EngineKind, Identity};

/// How long one seed may take.
const SEED: Duration = Duration::from_secs(2);
/// And where the answer is only useful.
const GLANCE: Duration = Duration::from_millis(300);
/// How often a node that finds no seed says so.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Gives an empty data directory an identity; a node that joins also learns the catalog.
pub(super) async fn first_start(
    ctx: &Context,
    config: &NodeConfig,
    engine: EngineKind,
) -> Result<(Identity, Option<Catalog>), OpenError> {
    let (cluster, node, catalog) = match &config.bootstrap {
        Bootstrap::Existing => {
            let dir = config.data_dir.display().to_string();
            return Err(OpenError::NoCluster(dir));
        }
        Bootstrap::New { .. } if config.node.is_some_and(|node| node != FIRST) => {
            return Err(OpenError::Invalid(
                "the first node of a cluster is node 1: leave out --node-id, or --join a cluster"
                    .into(),
            ));
        }
        Bootstrap::New { .. } => (ClusterId(rand::random()), FIRST, None),
        Bootstrap::Join { seeds } => {
            let (node, catalog) = ask(ctx, config, seeds).await?;
            (catalog.cluster(), node, Some(catalog))
        }
    };
    let identity = Identity {
        cluster,
        node,
        engine,
    };
    remember(&config.data_dir, identity).await?;
    Ok((identity, catalog))
}

/// A node that has its place looks at what the seeds it was given say: they may be of another
/// cluster, and know the members of this one better than a replica that was away.
pub(super) async fn ask_again(
    ctx: &Context,
    config: &NodeConfig,
    identity: Identity,
) -> Result<Option<Catalog>, OpenError> {
    let Bootstrap::Join { seeds } = &config.bootstrap else {
        return Ok(None);
    };
    for seed in seeds {
        let child = ctx.child(GLANCE);
        let Ok(mut client) = ClusterClient::connect(&child, seed, config.tls.as_ref()).await else {
            continue;
        };
        match child.run(client.catalog(&child)).await {
            Ok(Ok(Some(catalog))) if catalog.cluster() != identity.cluster => {
                return Err(OpenError::Join(format!(
                    "{} belongs to cluster {:016x}, and {seed} to cluster {:016x}: start with an \
                     empty --data-dir, or join the right cluster",
                    config.data_dir.display(),
                    identity.cluster.0,
                    catalog.cluster().0
                )));
            }
            Ok(Ok(Some(catalog))) => return Ok(Some(catalog)),
            Ok(Ok(None) | Err(_)) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Asks the seeds, one after the other and again, until one gives a place or `ctx` ends.
async fn ask(
    ctx: &Context,
    config: &NodeConfig,
    seeds: &[String],
) -> Result<(NodeId, Catalog), OpenError> {
    let joining = |what: &str| config.opening.send_replace(format!("joining: {what}"));
    joining(&format!("asking {}", seeds.join(", ")));
    let nonce = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
    let mut last = "no seed was given: --join HOST:PORT".to_owned();
    let mut said: Option<(String, Instant)> = None;
    let mut tries = 0_u8;
    loop {
        for seed in seeds {
            let child = ctx.child(SEED);
            match ask_one(&child, config, seed, nonce.clone()).await {
                Ok(place) => return Ok(place),
                Err(ClusterError::Refused(why)) => return Err(OpenError::Join(why)),
                Err(ClusterError::Address(why)) => return Err(OpenError::Invalid(why)),
                Err(error) => {
                    last = match error {
                        ClusterError::Broken(why) => format!(
                            "{seed} does not answer as a gRPC port ({why}): give the gRPC address \
                             of a node, and the peer certificates if its nodes have them"
                        ),
                        error => error.to_string(),
                    };
                    joining(&last);
                }
            }
        }
        let is_new = said
            .as_ref()
            .is_none_or(|(text, at)| *text != last || at.elapsed() > SAY_AGAIN);
        if is_new && !seeds.is_empty() {
            tracing::warn!("no place in the cluster yet: {last}; asking again");
            said = Some((last.clone(), Instant::now()));
        }
        if seeds.is_empty() || ctx.run(tokio::time::sleep(backoff(tries))).await.is_err() {
            break;
        }
        tries = tries.saturating_add(1);
    }
    Err(OpenError::Join(last))
}

async fn ask_one(
    ctx: &Context,
    config: &NodeConfig,
    seed: &str,
    nonce: Bytes,
) -> Result<(NodeId, Catalog), ClusterError> {
    let mut client = ClusterClient::connect(ctx, seed, config.tls.as_ref()).await?;
    match ctx
        .run(client.join(ctx, &config.advertise, nonce, config.node))
        .await
    {
        Ok(joined) => joined,
        Err(ended) => Err(ClusterError::Unreachable {
            address: seed.to_owned(),
            why: ended.to_string(),
        }),
    }
}

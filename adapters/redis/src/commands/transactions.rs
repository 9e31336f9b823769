//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: transactions of one connection, over any number of shards.
//!
//! A version is the stamp of a key's first row. It survives a change of leader, so a WATCH does too.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use leadline_kv::PendingReply;

use crate::args::Args;
use crate::commands::boxed;
use crate::exec::{Multi, Watched};
use crate::operation::RedisOperation;
use crate::reply::{self, Reply, ReplyError, Resp};
use crate::rows::{Db, first_row_key};
use crate::session::{Answer, Session};
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    connection("DISCARD", "discard", Arity::Exactly(1), discard),
    connection("EXEC", "exec", Arity::Exactly(1), |_, _| Ok(Answer::Exec)).slow(),
    connection("MULTI", "multi", Arity::Exactly(1), multi),
    connection("UNWATCH", "unwatch", Arity::Exactly(1), unwatch),
    Spec {
        keys: EVERY,
        ..connection("WATCH", "watch", Arity::AtLeast(2), watch)
    },
    Spec::read(
        VERSIONS,
        "watch.versions",
        "transaction",
        Arity::AtLeast(2),
        EVERY,
        Versions::parse,
    )
    .internal(),
];

const EVERY: Keys = Keys::Every {
    first: 1,
    step: 1,
    last_from_end: 0,
};

const VERSIONS: &str = "WATCH.VERSIONS";

const fn connection(
    name: &'static str,
    lower: &'static str,
    arity: Arity,
    run: crate::spec::ConnectionCommand,
) -> Spec {
    Spec::connection(name, lower, "transaction", arity, run)
}

/// `MULTI`
fn multi(session: &mut Session, _: &[Bytes]) -> Result<Answer, ReplyError> {
    if session.multi.is_some() {
        return Err(ReplyError::err("MULTI calls can not be nested"));
    }
    session.multi = Some(Multi::default());
    session.client.queued.store(0, Ordering::Relaxed);
    Ok(Reply::OK.into())
}

/// `DISCARD`
fn discard(session: &mut Session, _: &[Bytes]) -> Result<Answer, ReplyError> {
    if session.multi.take().is_none() {
        return Err(ReplyError::err("DISCARD without MULTI"));
    }
    session.watched.clear();
    session.client.transaction_is_over();
    Ok(Reply::OK.into())
}

/// `UNWATCH`
fn unwatch(session: &mut Session, _: &[Bytes]) -> Result<Answer, ReplyError> {
    session.watched.clear();
    session.client.watching.store(0, Ordering::Relaxed);
    Ok(Reply::OK.into())
}

/// `WATCH key [key ...]`: EXEC does nothing if one of them has changed by then, or has expired.
fn watch(session: &mut Session, args: &[Bytes]) -> Result<Answer, ReplyError> {
    if session.multi.is_some() {
        return Err(ReplyError::err("WATCH inside MULTI is not allowed"));
    }
    let database = session.database;
    let count = args.len() - 1;
    session.client.watching.fetch_add(count, Ordering::Relaxed);
    let keys = args[1..]
        .iter()
        .map(|key| first_row_key(database, key))
        .collect();
    let watched = Arc::new(Watched::new(keys));
    session.watched.push(Arc::clone(&watched));
    let mut look = args.to_vec();
    look[0] = Bytes::from_static(VERSIONS.as_bytes());
    let look = RedisOperation::from_args(look, database, Resp::V3)?;
    Ok(Answer::Barrier(Box::new(move |session, ctx| {
        let seen = session.shared.coordinator.submit(ctx, Arc::new(look));
        let ok = session.encode(&Reply::OK);
        Ok(PendingReply::running(Box::pin(async move {
            let versions = seen.await?;
            watched.saw(reply::decode(versions));
            Ok(ok)
        })))
    })))
}

/// The version of each key; nil for one that is not there.
#[derive(Debug)]
struct Versions(Vec<Bytes>);

impl Versions {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        boxed(Self(args.rest().to_vec()))
    }
}

impl Command for Versions {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let versions = self.0.iter().map(|key| {
            let version = db.version(key)?;
            Ok(version.map_or(Reply::Null, |stamp| Reply::Integer(stamp.cast_signed())))
        });
        Ok(Reply::Array(versions.collect::<Result<_, ReplyError>>()?))
    }
}

//! The sweeper's steps as commands that only nodes send each other: each shard's executor runs
//! them on its own rows, and answers how much was removed and whether there is more.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use leadline_kv::executor::Sweep as ShardSweep;
use leadline_kv::{Operation, Rows};

use crate::args::Args;
use crate::commands::boxed;
use crate::operation::RedisOperation;
use crate::reply::{Reply, ReplyError, Resp};
use crate::rows::{self, Db, Swept};
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[
    step("SWEEP.EXPIRED", "sweep.expired", |_| {
        boxed(Sweep(rows::sweep_expired))
    }),
    step("SWEEP.GENERATIONS", "sweep.generations", |_| {
        boxed(Sweep(rows::sweep_generations))
    }),
];

const fn step(
    name: &'static str,
    lower: &'static str,
    parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
) -> Spec {
    let arity = Arity::Exactly(1);
    Spec::write(name, lower, "keyspace", arity, Keys::EveryShard, parse)
        .frees()
        .internal()
}

/// The background work of a shard that has Redis rows: for the executor's configuration.
#[must_use]
pub fn sweeps() -> Vec<Arc<dyn ShardSweep>> {
    SPECS
        .iter()
        .map(|spec| {
            let args = vec![Bytes::from_static(spec.name.as_bytes())];
            let operation = RedisOperation::new(spec, args, 0, Resp::V3)
                .expect("a sweeping step has no arguments");
            Arc::new(EveryTime(Arc::new(operation))) as Arc<dyn ShardSweep>
        })
        .collect()
}

/// Whether there is something to do is known only from the rows, so each turn looks.
struct EveryTime(Arc<dyn Operation>);

impl ShardSweep for EveryTime {
    fn next(&self, owned: &Range<Bytes>) -> Option<Arc<dyn Operation>> {
        // A shard of another door's rows has nothing for us.
        (!rows::owned_slots(owned).is_empty()).then(|| self.0.clone())
    }
}

#[derive(Debug)]
struct Sweep(fn(&mut dyn Rows) -> Result<Swept, ReplyError>);

impl Command for Sweep {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let swept = (self.0)(db.rows())?;
        Ok(Reply::Array(vec![
            Reply::count(swept.removed),
            Reply::Integer(i64::from(swept.more)),
        ]))
    }
}

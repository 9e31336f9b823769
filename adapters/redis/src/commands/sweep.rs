//! The sweeper's steps as commands that only nodes send each other: each shard's executor runs
//! them on its own rows, and answers how much was removed and whether there is more.

use leadline_kv::Rows;

use crate::args::Args;
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
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

    fn gather(&self, _parts: &[Vec<usize>], replies: Vec<Reply>) -> Result<Reply, ReplyError> {
        let (mut removed, mut more) = (0, 0);
        for reply in replies {
            let Reply::Array(part) = reply else {
                return Err(super::damaged_part());
            };
            let [Reply::Integer(part_removed), Reply::Integer(part_more)] = part[..] else {
                return Err(super::damaged_part());
            };
            removed += part_removed;
            more |= part_more;
        }
        Ok(Reply::Array(vec![
            Reply::Integer(removed),
            Reply::Integer(more),
        ]))
    }
}

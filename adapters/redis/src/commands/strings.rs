//! String commands.

use bytes::Bytes;

use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

pub(super) const SPECS: &[Spec] = &[Spec::read(
    "GET",
    "get",
    "string",
    Arity::Exactly(2),
    Keys::At(1),
    Get::parse,
)
.fast()];

/// `GET key`: the string at `key`, or null.
#[derive(Debug)]
struct Get {
    key: Bytes,
}

impl Get {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self { key: args.key()? }))
    }
}

impl Command for Get {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        Ok(db.string(&self.key)?.map_or(Reply::Null, Reply::Bulk))
    }
}

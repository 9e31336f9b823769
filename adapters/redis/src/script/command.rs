//! `LEADLINE.SCRIPT ro|rw body function numkeys key … arg …`: runs a script, or a function of the
//! library `body`. What EVAL, EVALSHA and FCALL become once the node that a client asked knows the
//! body: the node that evaluates it need not.

use bytes::Bytes;

use super::vm;
use crate::args::Args;
use crate::commands::boxed;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::spec::{Arity, Command, Keys, Spec};

pub(crate) const RUN: &str = "LEADLINE.SCRIPT";

/// Always a write: a script must not run on the thread of whoever asks.
pub(super) const SPEC: Spec = Spec::write(
    RUN,
    "leadline.script",
    "scripting",
    Arity::AtLeast(5),
    Keys::Counted(4),
    Script::parse,
)
.internal();

/// The arguments of [`RUN`] for a call with `rest`: the count of keys, the keys, the arguments.
pub(crate) fn args(
    read_only: bool,
    body: Bytes,
    function: Option<Bytes>,
    rest: &[Bytes],
) -> Vec<Bytes> {
    let mut args = Vec::with_capacity(rest.len() + 4);
    args.extend([
        Bytes::from_static(RUN.as_bytes()),
        Bytes::from_static(if read_only { b"ro" } else { b"rw" }),
        body,
        function.unwrap_or_default(),
    ]);
    args.extend_from_slice(rest);
    args
}

#[derive(Debug)]
struct Script {
    read_only: bool,
    body: Bytes,
    function: Option<Bytes>,
    keys: Vec<Bytes>,
    args: Vec<Bytes>,
}

impl Script {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        let read_only = args.bytes()? == "ro";
        let (body, function) = (args.bytes()?, args.bytes()?);
        let count = usize::try_from(args.unsigned()?).map_err(|_| ReplyError::NotInteger)?;
        let rest = args.rest();
        let (keys, args) = rest.split_at_checked(count).ok_or(ReplyError::Syntax)?;
        boxed(Self {
            read_only,
            body,
            function: (!function.is_empty()).then_some(function),
            keys: keys.to_vec(),
            args: args.to_vec(),
        })
    }
}

impl Command for Script {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let run = vm::Run {
            body: &self.body,
            function: self.function.as_ref(),
            read_only: self.read_only,
            keys: &self.keys,
            args: &self.args,
        };
        vm::run(run, db)
    }

    fn open_ended(&self) -> bool {
        true
    }
}

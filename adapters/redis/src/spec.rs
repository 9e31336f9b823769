//! What is known of a command before it runs: arity, keys, flags, categories, and how it is parsed.

use std::time::Duration;

use bytes::Bytes;

use crate::args::Args;
use crate::reply::{Reply, ReplyError};
use crate::rows::Db;
use crate::script::Scripted;
use crate::session::{Answer, Session};

/// How many arguments, the command's name included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arity {
    Exactly(usize),
    AtLeast(usize),
}

impl Arity {
    pub(crate) fn admits(self, count: usize) -> bool {
        match self {
            Self::Exactly(n) => count == n,
            Self::AtLeast(n) => count >= n,
        }
    }

    /// As `COMMAND` writes it: negative for "at least".
    pub(crate) fn as_redis(self) -> i64 {
        match self {
            Self::Exactly(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Self::AtLeast(n) => -i64::try_from(n).unwrap_or(i64::MAX),
        }
    }
}

/// Where the keys stand, counted from the command's name at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// No key; the command concerns the connection or the server.
    None,
    /// One key at this position.
    At(usize),
    /// Every `step`-th argument from `first` to the end, `last_from_end` left out at the end.
    Every {
        first: usize,
        step: usize,
        last_from_end: usize,
    },
    /// From `first` to `last`, both included.
    Range { first: usize, last: usize },
    /// A count at this position, and as many keys after it.
    Counted(usize),
    /// A destination at the first position, a count at the second, as many keys after it.
    DestinationCounted { destination: usize, count: usize },
    /// No key, but rows of every shard (DBSIZE, FLUSHALL); see [`Walk`].
    EveryShard,
    /// No key, but rows beside all slots: scripts and libraries.
    Beside,
    /// The slot that a SCAN cursor at this position names.
    ScanCursor(usize),
}

/// What a command does, for `COMMAND`, admission and (later) ACLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) write: bool,
    /// Constant time or nearly so.
    pub(crate) fast: bool,
    pub(crate) blocking: bool,
    /// Known only among nodes: what another command or a node's own work consists of.
    pub(crate) internal: bool,
    /// May grow memory or disk: refused when full.
    pub(crate) denyoom: bool,
    /// Allowed before AUTH.
    pub(crate) no_auth: bool,
    /// For operators: shows or changes the server.
    pub(crate) admin: bool,
}

impl Flags {
    const NONE: Self = Self {
        write: false,
        fast: false,
        blocking: false,
        internal: false,
        denyoom: false,
        no_auth: false,
        admin: false,
    };
}

/// How a command is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    /// Over rows, in a shard's executor.
    Rows(fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>),
    /// As attempts that may have to wait; see [`Blocking`].
    Blocking(fn(&mut Args<'_>) -> Result<Blocking, ReplyError>),
    /// By the connection, which finds the script and has it run over rows.
    Script(Scripted),
    /// By the connection itself.
    Connection(ConnectionCommand),
    /// By the connection, according to the second word.
    Container(&'static [Subcommand]),
}

/// How a command over every shard ([`Keys::EveryShard`]) is answered: each shard runs a part, at its
/// own moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// The name of the part, a command without arguments; `None`: the command itself.
    pub(crate) part: Option<&'static str>,
    /// Makes one reply of those of the parts, none of which is an error.
    pub(crate) gather: fn(Vec<Reply>) -> Result<Reply, ReplyError>,
}

/// A command of the connection; its arguments have the name first.
pub(crate) type ConnectionCommand = fn(&mut Session, &[Bytes]) -> Result<Answer, ReplyError>;

/// One subcommand of a [`Run::Container`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subcommand {
    /// Upper case.
    pub(crate) name: &'static str,
    /// Lower case with its container, such as `"client|id"`, for error lines.
    pub(crate) lower: &'static str,
    /// With both words counted.
    pub(crate) arity: Arity,
    /// What stands behind the name in `HELP`.
    pub(crate) syntax: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) run: ConnectionCommand,
}

/// One command, as data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Upper case; a subcommand is written `"CLIENT|ID"` in `COMMAND` output only.
    pub(crate) name: &'static str,
    /// Lower case, for error lines.
    pub(crate) lower: &'static str,
    pub(crate) arity: Arity,
    pub(crate) keys: Keys,
    pub(crate) flags: Flags,
    /// ACL categories without their `@`, such as `"string"`.
    pub(crate) category: &'static str,
    pub(crate) run: Run,
    pub(crate) walk: Option<Walk>,
}

impl Spec {
    /// A command that changes nothing.
    pub(crate) const fn read(
        name: &'static str,
        lower: &'static str,
        category: &'static str,
        arity: Arity,
        keys: Keys,
        parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
    ) -> Self {
        let flags = Flags::NONE;
        Self {
            name,
            lower,
            arity,
            keys,
            flags,
            category,
            run: Run::Rows(parse),
            walk: None,
        }
    }

    /// A command that may change rows and may need room for it.
    pub(crate) const fn write(
        name: &'static str,
        lower: &'static str,
        category: &'static str,
        arity: Arity,
        keys: Keys,
        parse: fn(&mut Args<'_>) -> Result<Box<dyn Command>, ReplyError>,
    ) -> Self {
        let flags = Flags {
            write: true,
            denyoom: true,
            ..Flags::NONE
        };
        Self {
            name,
            lower,
            arity,
            keys,
            flags,
            category,
            run: Run::Rows(parse),
            walk: None,
        }
    }

    /// The same, known to be fast.
    pub(crate) const fn fast(mut self) -> Self {
        self.flags.fast = true;
        self
    }

    /// The same, never refused for want of room: it frees or moves.
    pub(crate) const fn frees(mut self) -> Self {
        self.flags.denyoom = false;
        self
    }

    /// The same, over every shard.
    pub(crate) const fn walking(mut self, walk: Walk) -> Self {
        self.walk = Some(walk);
        self
    }

    /// The same, callable only by other nodes.
    pub(crate) const fn internal(mut self) -> Self {
        self.flags.internal = true;
        self
    }

    /// A command that may wait for a key.
    pub(crate) const fn blocking(
        name: &'static str,
        lower: &'static str,
        category: &'static str,
        arity: Arity,
        keys: Keys,
        parse: fn(&mut Args<'_>) -> Result<Blocking, ReplyError>,
    ) -> Self {
        let flags = Flags {
            write: true,
            blocking: true,
            denyoom: true,
            ..Flags::NONE
        };
        Self {
            name,
            lower,
            arity,
            keys,
            flags,
            category,
            run: Run::Blocking(parse),
            walk: None,
        }
    }

    /// A command that runs Lua.
    pub(crate) const fn script(
        name: &'static str,
        lower: &'static str,
        arity: Arity,
        keys: Keys,
        how: Scripted,
    ) -> Self {
        let flags = Flags {
            write: !how.is_read_only(),
            ..Flags::NONE
        };
        Self {
            name,
            lower,
            arity,
            keys,
            flags,
            category: "scripting",
            run: Run::Script(how),
            walk: None,
        }
    }

    /// A command of the connection or the server, without keys.
    pub(crate) const fn connection(
        name: &'static str,
        lower: &'static str,
        category: &'static str,
        arity: Arity,
        run: ConnectionCommand,
    ) -> Self {
        let flags = Flags {
            fast: true,
            ..Flags::NONE
        };
        Self {
            name,
            lower,
            arity,
            keys: Keys::None,
            flags,
            category,
            run: Run::Connection(run),
            walk: None,
        }
    }

    /// A command of the connection or the server with subcommands.
    pub(crate) const fn container(
        name: &'static str,
        lower: &'static str,
        category: &'static str,
        subcommands: &'static [Subcommand],
    ) -> Self {
        Self {
            name,
            lower,
            arity: Arity::AtLeast(2),
            keys: Keys::None,
            flags: Flags::NONE,
            category,
            run: Run::Container(subcommands),
            walk: None,
        }
    }

    /// The same, allowed before AUTH.
    pub(crate) const fn no_auth(mut self) -> Self {
        self.flags.no_auth = true;
        self
    }

    /// The same, not known to be fast.
    pub(crate) const fn slow(mut self) -> Self {
        self.flags.fast = false;
        self
    }

    /// The same, for operators.
    pub(crate) const fn admin(mut self) -> Self {
        self.flags.admin = true;
        self.flags.fast = false;
        self
    }
}

/// A parsed command over rows: a value that cannot be wrong.
///
/// Runs inside a shard's executor: no frames, no waiting. May run again after a failed evaluation,
/// hence `&self`.
pub(crate) trait Command: std::fmt::Debug + Send + Sync + 'static {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError>;

    /// Runs code of the client, which may touch keys that the command does not name. A
    /// [`ReplyError::Rows`] that it meets is passed on, whatever that code makes of errors: on
    /// [`leadline_kv::RowError::OtherShard`] the command is run again over all shards.
    fn open_ended(&self) -> bool {
        false
    }
}

/// A command that waits until one of its attempts succeeds, as `BLPOP` does.
#[derive(Debug)]
pub(crate) struct Blocking {
    /// `None` waits for ever (`timeout` 0).
    pub(crate) timeout: Option<Duration>,
    /// Tried in order; an attempt that answers [`Reply::Block`] found nothing.
    pub(crate) attempts: Vec<Attempt>,
    /// What the client gets when the time is up.
    pub(crate) on_timeout: Reply,
}

/// One try of a blocking command: a plain command, and the key whose change makes it worth another.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) watch: Bytes,
    /// Arguments of a command (name first) that pops or answers [`Reply::Block`].
    pub(crate) args: Vec<Bytes>,
}

//! What a connection does with EVAL, EVALSHA, FCALL, SCRIPT and FUNCTION.
//!
//! # Invariants
//! 1. What a script's command becomes has the whole body: the node that evaluates it needs no other.
//! 2. NOSCRIPT is answered only after a linearizable look at the stored scripts.
//! 3. FCALL sees every change of the libraries that was answered before it began: it asks whether
//!    what this node remembers is still current.
//! 4. What must ask first holds up the commands behind it: they are begun in order.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use leadline_kv::{KvError, Operation, PendingReply, RowError};
use leadline_raft::Context;

use super::catalogue::{Catalogue, Library};
use super::known::{Digest, parse_digest};
use super::vm::Registered;
use super::vm::control::{self, Kind};
use super::{command, digest, dump, stored};
use crate::args::{Args, parse_integer};
use crate::operation::RedisOperation;
use crate::reply::{self, Reply, ReplyError, Resp};
use crate::server::Shared;
use crate::session::{Answer, Session};
use crate::spec::{Arity, Subcommand};

/// EVAL's answer waits no longer for its script to be stored.
const STORE: Duration = Duration::from_millis(250);

/// Where a command finds its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Body,
    Digest,
    Function,
}

/// A command that runs Lua.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scripted {
    source: Source,
    read_only: bool,
}

impl Scripted {
    pub(super) const EVAL: Self = Self::of(Source::Body);
    pub(super) const EVALSHA: Self = Self::of(Source::Digest);
    pub(super) const FCALL: Self = Self::of(Source::Function);

    const fn of(source: Source) -> Self {
        Self {
            source,
            read_only: false,
        }
    }

    pub(crate) const fn is_read_only(self) -> bool {
        self.read_only
    }

    /// The same, promising to change nothing.
    pub(super) const fn read_only(self) -> Self {
        Self {
            source: self.source,
            read_only: true,
        }
    }
}

/// What a command that runs Lua becomes.
pub(crate) enum Begun {
    /// The command over rows with these arguments.
    Run(Vec<Bytes>),
    /// A reply to come. Those behind it wait: it begins later, or may be a transaction.
    Waits(PendingReply),
}

fn no_script() -> ReplyError {
    ReplyError::Line("NOSCRIPT No matching script. Please use EVAL.".to_owned())
}

/// The count of keys and what is behind it.
fn call(args: &[Bytes]) -> Result<&[Bytes], ReplyError> {
    let rest = &args[2..];
    let count = parse_integer(&rest[0]).ok_or(ReplyError::NotInteger)?;
    let count =
        usize::try_from(count).map_err(|_| ReplyError::err("Number of keys can't be negative"))?;
    if count > rest.len() - 1 {
        return Err(ReplyError::err(
            "Number of keys can't be greater than number of args",
        ));
    }
    Ok(rest)
}

/// The arguments of the command that a command with code that is known here becomes.
///
/// # Errors
/// The error line the client gets; `NOSCRIPT` may mean that [`find`] was not called.
pub(crate) fn known(
    session: &Session,
    how: Scripted,
    args: &[Bytes],
) -> Result<Vec<Bytes>, ReplyError> {
    let rest = call(args)?;
    let known = &session.shared.scripts;
    let (body, function) = match how.source {
        Source::Body => (args[1].clone(), None),
        Source::Digest => {
            let digest = parse_digest(&args[1]).ok_or_else(no_script)?;
            (known.script(&digest).ok_or_else(no_script)?, None)
        }
        Source::Function => {
            let catalogue = known.catalogue();
            let (library, function) = function_of(&catalogue, &args[1])?;
            (library.code.clone(), Some(function.name.clone()))
        }
    };
    Ok(command::args(how.read_only, body, function, rest))
}

fn function_of<'c>(
    catalogue: &'c Catalogue,
    name: &[u8],
) -> Result<(&'c Library, &'c Registered), ReplyError> {
    catalogue
        .find(name)
        .ok_or_else(|| ReplyError::err("Function not found"))
}

/// Learns the code of a command that EXEC will run; `None` if it is known already. The reply to
/// come is the one to queueing.
pub(crate) fn find(
    session: &Session,
    how: Scripted,
    args: &[Bytes],
    ctx: &Context,
) -> Option<PendingReply> {
    let asker = Asker::new(session, ctx);
    let queued = Reply::Simple("QUEUED");
    match how.source {
        Source::Body => {
            if let Some(digest) = parse_digest(digest(&args[1]).as_bytes()) {
                session.shared.scripts.remember(digest, args[1].clone());
            }
            None
        }
        Source::Digest => {
            let digest = parse_digest(&args[1])?;
            if session.shared.scripts.script(&digest).is_some() {
                return None;
            }
            let look = asker.look_up(digest).ok()?;
            Some(PendingReply::running(Box::pin(async move {
                // What cannot be found is EXEC's to say.
                if let Ok(Reply::Bulk(body)) = read(look.await?) {
                    asker.shared.scripts.remember(digest, body);
                }
                Ok(asker.encoded(&queued))
            })))
        }
        Source::Function => {
            let current = asker.clone().current().ok()?;
            Some(PendingReply::running(Box::pin(async move {
                let reply = match current.await? {
                    Ok(_) => queued,
                    Err(error) => Reply::from_result(Err(error)),
                };
                Ok(asker.encoded(&reply))
            })))
        }
    }
}

/// Begins a command that runs Lua.
///
/// # Errors
/// The error line the client gets.
pub(crate) fn begin(
    session: &Session,
    how: Scripted,
    args: &[Bytes],
    ctx: &Context,
) -> Result<Begun, ReplyError> {
    let rest = call(args)?;
    let known = &session.shared.scripts;
    match how.source {
        Source::Body => {
            let body = args[1].clone();
            let run = command::args(how.read_only, body.clone(), None, rest);
            if !known.is_new(&body) {
                return Ok(Begun::Run(run));
            }
            let name = digest(&body);
            if let Some(digest) = parse_digest(name.as_bytes()) {
                known.remember(digest, body.clone());
            }
            if body.len() > stored::SEEN_BYTES {
                return Ok(Begun::Run(run));
            }
            let asker = Asker::new(session, ctx);
            let running = asker.submit(RedisOperation::from_args(
                run,
                session.database,
                session.resp,
            )?);
            let store = asker.ask(stored::WRITE.name, [b"SEEN".as_slice().into(), body])?;
            Ok(Begun::Waits(PendingReply::running(Box::pin(async move {
                // A script that could not be stored is still known here: EVAL does not fail for it.
                let stored = tokio::time::timeout(STORE, store);
                let (reply, _) = tokio::join!(running, stored);
                reply
            }))))
        }
        Source::Digest => {
            let digest = parse_digest(&args[1]).ok_or_else(no_script)?;
            if let Some(body) = known.script(&digest) {
                return Ok(Begun::Run(command::args(how.read_only, body, None, rest)));
            }
            let asker = Asker::new(session, ctx);
            let (database, rest) = (session.database, rest.to_vec());
            let look = asker.look_up(digest)?;
            Ok(Begun::Waits(PendingReply::running(Box::pin(async move {
                match read(look.await?) {
                    Ok(Reply::Bulk(body)) => {
                        asker.shared.scripts.remember(digest, body.clone());
                        let args = command::args(how.read_only, body, None, &rest);
                        asker.run(args, database).await
                    }
                    Ok(Reply::Null) => Ok(asker.encoded(&Reply::from_result(Err(no_script())))),
                    other => Ok(asker.encoded(&Reply::from_result(other))),
                }
            }))))
        }
        Source::Function => {
            let asker = Asker::new(session, ctx);
            let database = session.database;
            let function = args[1].clone();
            let rest = rest.to_vec();
            let mut current = Box::pin(asker.clone().current()?);
            let found = move |catalogue: Result<Arc<Catalogue>, ReplyError>| {
                let catalogue = catalogue?;
                let (library, _) = function_of(&catalogue, &function)?;
                let code = library.code.clone();
                let function = Some(function.clone());
                Ok::<_, ReplyError>(command::args(how.read_only, code, function, &rest))
            };
            // Where the answer is there at once, nothing need wait.
            if let Some(known) = (&mut current).now_or_never() {
                return match known {
                    Ok(catalogue) => found(catalogue).map(Begun::Run),
                    Err(error) => Ok(Begun::Waits(PendingReply::ready(Err(error)))),
                };
            }
            Ok(Begun::Waits(PendingReply::running(Box::pin(async move {
                match found(current.await?) {
                    Ok(args) => asker.run(args, database).await,
                    Err(error) => Ok(asker.encoded(&Reply::from_result(Err(error)))),
                }
            }))))
        }
    }
}

/// Asks the data plane for one command, in a future of its own.
#[derive(Clone)]
struct Asker {
    shared: Arc<Shared>,
    ctx: Context,
    resp: Resp,
}

impl Asker {
    fn new(session: &Session, ctx: &Context) -> Self {
        Self {
            shared: Arc::clone(&session.shared),
            ctx: ctx.clone(),
            resp: session.resp,
        }
    }

    fn submit(&self, operation: RedisOperation) -> PendingReply {
        let operation = Arc::new(operation) as Arc<dyn Operation>;
        self.shared.coordinator.submit(&self.ctx, operation)
    }

    /// An internal command, whose reply is to be read here.
    fn ask(
        &self,
        name: &'static str,
        args: impl IntoIterator<Item = Bytes>,
    ) -> Result<PendingReply, ReplyError> {
        let mut all = vec![Bytes::from_static(name.as_bytes())];
        all.extend(args);
        Ok(self.submit(RedisOperation::from_args(all, 0, Resp::V3)?))
    }

    /// The body of a stored script, or null.
    fn look_up(&self, digest: Digest) -> Result<PendingReply, ReplyError> {
        let digest = Bytes::copy_from_slice(&digest);
        self.ask(stored::READ.name, [Bytes::from_static(b"SCRIPT"), digest])
    }

    /// Runs a script's command.
    async fn run(&self, args: Vec<Bytes>, database: u8) -> Result<Bytes, KvError> {
        match RedisOperation::from_args(args, database, self.resp) {
            Ok(operation) => self.submit(operation).await,
            Err(error) => Ok(self.encoded(&Reply::from_result(Err(error)))),
        }
    }

    fn encoded(&self, reply: &Reply) -> Bytes {
        let mut out = BytesMut::new();
        reply::encode(reply, self.resp, &mut out);
        out.freeze()
    }

    /// The libraries as they are now.
    fn current(
        self,
    ) -> Result<impl Future<Output = Result<Result<Arc<Catalogue>, ReplyError>, KvError>>, ReplyError>
    {
        let remembered = self.shared.scripts.catalogue().version;
        let version = Bytes::from(remembered.to_string());
        let look = self.ask(
            stored::READ.name,
            [Bytes::from_static(b"LIBRARIES"), version],
        )?;
        Ok(async move {
            Ok(match read(look.await?) {
                Ok(Reply::Bulk(newer)) => match Catalogue::decode(newer) {
                    Ok(newer) => {
                        self.shared.scripts.replace(newer);
                        Ok(self.shared.scripts.catalogue())
                    }
                    Err(error) => Err(damaged(&error)),
                },
                Ok(Reply::Null) => Ok(self.shared.scripts.catalogue()),
                Ok(_) => Err(ReplyError::err("a shard answered with a damaged reply")),
                Err(error) => Err(error),
            })
        })
    }
}

fn damaged(error: &RowError) -> ReplyError {
    ReplyError::err(error)
}

/// A reply of an internal command; an error line is an error.
fn read(reply: Bytes) -> Result<Reply, ReplyError> {
    match reply::decode(reply)? {
        Reply::Error(line) => Err(ReplyError::Line(
            String::from_utf8_lossy(&line).into_owned(),
        )),
        reply => Ok(reply),
    }
}

type Answered = Result<Answer, ReplyError>;

fn later(
    begin: impl FnOnce(Asker) -> Result<PendingReply, ReplyError> + Send + 'static,
) -> Answered {
    Ok(Answer::Later(Box::new(|session, ctx| {
        begin(Asker::new(session, ctx))
    })))
}

/// A change of scripts or libraries, answered as it is.
fn write(session: &Session, args: impl IntoIterator<Item = Bytes>) -> Answered {
    let mut all = vec![Bytes::from_static(stored::WRITE.name.as_bytes())];
    all.extend(args);
    let operation = RedisOperation::from_args(all, 0, session.resp)?;
    later(move |asker| Ok(asker.submit(operation)))
}

/// A reply made of the libraries as they are now.
fn of_catalogue(reply: impl FnOnce(&Catalogue) -> Reply + Send + 'static) -> Answered {
    later(move |asker| {
        let current = asker.clone().current()?;
        Ok(PendingReply::running(Box::pin(async move {
            let reply = match current.await? {
                Ok(catalogue) => reply(&catalogue),
                Err(error) => Reply::from_result(Err(error)),
            };
            Ok(asker.encoded(&reply))
        })))
    })
}

const fn subcommand(
    name: &'static str,
    lower: &'static str,
    arity: Arity,
    syntax: &'static str,
    summary: &'static str,
    run: crate::spec::ConnectionCommand,
) -> Subcommand {
    Subcommand {
        name,
        lower,
        arity,
        syntax,
        summary,
        run,
    }
}

pub(super) const SCRIPT: &[Subcommand] = &[
    subcommand(
        "DEBUG",
        "script|debug",
        Arity::Exactly(3),
        "(YES|SYNC|NO)",
        "Not supported.",
        |_, _| {
            Err(ReplyError::err(
                "not supported: scripts run where the data is, without a debugger",
            ))
        },
    ),
    subcommand(
        "EXISTS",
        "script|exists",
        Arity::AtLeast(3),
        "<sha1> [<sha1> ...]",
        "Say which scripts are known.",
        script_exists,
    ),
    subcommand(
        "FLUSH",
        "script|flush",
        Arity::AtLeast(2),
        "[ASYNC|SYNC]",
        "Forget the stored scripts.",
        |session, args| {
            let word = args.get(2).map_or(&b"SYNC"[..], |word| word);
            let known = [b"SYNC".as_slice(), b"ASYNC"];
            if args.len() > 3 || !known.iter().any(|known| word.eq_ignore_ascii_case(known)) {
                return Err(ReplyError::err(
                    "SCRIPT FLUSH only support SYNC|ASYNC option",
                ));
            }
            session.shared.scripts.forget_scripts();
            write(session, [Bytes::from_static(b"FLUSH")])
        },
    ),
    subcommand(
        "KILL",
        "script|kill",
        Arity::Exactly(2),
        "",
        "Stop the scripts that run on this node; nothing of them is applied.",
        |_, _| killed(Kind::Script),
    ),
    subcommand(
        "LOAD",
        "script|load",
        Arity::Exactly(3),
        "<script>",
        "Keep a script for EVALSHA, on every node.",
        |session, args| {
            let body = args[2].clone();
            // At once, for an EVALSHA that comes right behind.
            if let Some(digest) = parse_digest(digest(&body).as_bytes()) {
                session.shared.scripts.remember(digest, body.clone());
            }
            write(session, [Bytes::from_static(b"LOAD"), body])
        },
    ),
];

fn killed(kind: Kind) -> Answered {
    if control::kill(kind) {
        Ok(Reply::OK.into())
    } else {
        Err(ReplyError::Line(
            "NOTBUSY No scripts in execution right now.".to_owned(),
        ))
    }
}

/// `SCRIPT EXISTS sha1 …`
fn script_exists(_: &mut Session, args: &[Bytes]) -> Answered {
    let digests: Vec<_> = args[2..].iter().map(|text| parse_digest(text)).collect();
    later(move |asker| {
        let mut looks = Vec::with_capacity(digests.len());
        for digest in digests {
            looks.push(match digest {
                None => None,
                Some(digest) if asker.shared.scripts.script(&digest).is_some() => Some(None),
                Some(digest) => Some(Some(asker.look_up(digest)?)),
            });
        }
        Ok(PendingReply::running(Box::pin(async move {
            let mut found = Vec::with_capacity(looks.len());
            for look in looks {
                let there = match look {
                    None => false,
                    Some(None) => true,
                    Some(Some(look)) => match read(look.await?) {
                        Ok(reply) => reply != Reply::Null,
                        Err(error) => return Ok(asker.encoded(&Reply::from_result(Err(error)))),
                    },
                };
                found.push(Reply::Integer(i64::from(there)));
            }
            Ok(asker.encoded(&Reply::Array(found)))
        })))
    })
}

pub(super) const FUNCTION: &[Subcommand] = &[
    subcommand(
        "DELETE",
        "function|delete",
        Arity::Exactly(3),
        "<LIBRARY NAME>",
        "Delete the given library.",
        |session, args| write(session, [Bytes::from_static(b"DELETE"), args[2].clone()]),
    ),
    subcommand(
        "DUMP",
        "function|dump",
        Arity::Exactly(2),
        "",
        "Return every library as one payload for FUNCTION RESTORE.",
        |_, _| {
            of_catalogue(|catalogue| {
                let codes = catalogue.libraries.values().map(|library| &library.code);
                Reply::Bulk(dump::write(codes))
            })
        },
    ),
    subcommand(
        "FLUSH",
        "function|flush",
        Arity::AtLeast(2),
        "[ASYNC|SYNC]",
        "Delete all the libraries.",
        |session, args| {
            let word = args.get(2).map_or(&b"SYNC"[..], |word| word);
            let known = [b"SYNC".as_slice(), b"ASYNC"];
            if args.len() > 3 || !known.iter().any(|known| word.eq_ignore_ascii_case(known)) {
                return Err(ReplyError::err(
                    "FUNCTION FLUSH only supports SYNC|ASYNC option",
                ));
            }
            write(session, [Bytes::from_static(b"CLEAR")])
        },
    ),
    subcommand(
        "KILL",
        "function|kill",
        Arity::Exactly(2),
        "",
        "Stop the functions that run on this node; nothing of them is applied.",
        |_, _| killed(Kind::Function),
    ),
    subcommand(
        "LIST",
        "function|list",
        Arity::AtLeast(2),
        "[LIBRARYNAME PATTERN] [WITHCODE]",
        "Return what libraries there are, with their functions.",
        function_list,
    ),
    subcommand(
        "LOAD",
        "function|load",
        Arity::AtLeast(3),
        "[REPLACE] <FUNCTION CODE>",
        "Add a library, on every node.",
        |session, args| {
            let (code, words) = args[2..].split_last().ok_or(ReplyError::Syntax)?;
            for word in words {
                if !word.eq_ignore_ascii_case(b"REPLACE") {
                    return Err(ReplyError::err(format_args!(
                        "Unknown option given: {}",
                        String::from_utf8_lossy(word)
                    )));
                }
            }
            let mut all = vec![Bytes::from_static(b"ADD"), code.clone()];
            all.extend(words.first().cloned());
            write(session, all)
        },
    ),
    subcommand(
        "RESTORE",
        "function|restore",
        Arity::AtLeast(3),
        "<PAYLOAD> [FLUSH|APPEND|REPLACE]",
        "Add the libraries of a payload (default: APPEND).",
        |session, args| {
            if args.len() > 4 {
                return Err(ReplyError::Arity("function|restore".into()));
            }
            let mut all = vec![Bytes::from_static(b"RESTORE"), args[2].clone()];
            if let Some(policy) = args.get(3) {
                let known = [b"FLUSH".as_slice(), b"APPEND", b"REPLACE"];
                if !known.iter().any(|known| policy.eq_ignore_ascii_case(known)) {
                    return Err(ReplyError::err(
                        "Wrong restore policy given, value should be either FLUSH, APPEND or REPLACE.",
                    ));
                }
                all.push(policy.clone());
            }
            write(session, all)
        },
    ),
    subcommand(
        "STATS",
        "function|stats",
        Arity::Exactly(2),
        "",
        "Return what function runs on this node, and how many there are.",
        |_, _| of_catalogue(function_stats),
    ),
];

/// `FUNCTION LIST [LIBRARYNAME pattern] [WITHCODE]`
fn function_list(_: &mut Session, args: &[Bytes]) -> Answered {
    let mut rest = Args::new("function|list", &args[2..]);
    let (mut pattern, mut with_code) = (None, false);
    while !rest.is_empty() {
        if !with_code && rest.take("WITHCODE") {
            with_code = true;
        } else if pattern.is_none() && rest.take("LIBRARYNAME") {
            if rest.is_empty() {
                return Err(ReplyError::err("library name argument was not given"));
            }
            pattern = Some(rest.bytes()?);
        } else {
            return Err(ReplyError::err(format_args!(
                "Unknown argument {}",
                String::from_utf8_lossy(&rest.bytes()?)
            )));
        }
    }
    of_catalogue(move |catalogue| {
        let libraries = catalogue.libraries.iter().filter(|(name, _)| {
            pattern
                .as_ref()
                .is_none_or(|pattern| crate::glob::matches(pattern, name))
        });
        let described = libraries.map(|(name, library)| {
            let functions = library.functions.iter().map(|function| {
                let flags = function.flags.names().map(text).collect();
                let description = function
                    .description
                    .clone()
                    .map_or(Reply::Null, Reply::Bulk);
                Reply::Map(vec![
                    (text("name"), Reply::Bulk(function.name.clone())),
                    (text("description"), description),
                    (text("flags"), Reply::Set(flags)),
                ])
            });
            let mut facts = vec![
                (text("library_name"), Reply::Bulk(name.clone())),
                (text("engine"), text("LUA")),
                (text("functions"), Reply::Array(functions.collect())),
            ];
            if with_code {
                facts.push((text("library_code"), Reply::Bulk(library.code.clone())));
            }
            Reply::Map(facts)
        });
        Reply::Array(described.collect())
    })
}

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

fn function_stats(catalogue: &Catalogue) -> Reply {
    let running = match control::running_function() {
        None => Reply::Null,
        Some((name, command, ran)) => Reply::Map(vec![
            (text("name"), Reply::Bulk(name)),
            (text("command"), Reply::bulks(command)),
            (
                text("duration_ms"),
                Reply::Integer(i64::try_from(ran.as_millis()).unwrap_or(i64::MAX)),
            ),
        ]),
    };
    let functions = catalogue
        .libraries
        .values()
        .map(|library| library.functions.len())
        .sum();
    let counts = Reply::Map(vec![
        (
            text("libraries_count"),
            Reply::count(catalogue.libraries.len()),
        ),
        (text("functions_count"), Reply::count(functions)),
    ]);
    Reply::Map(vec![
        (text("running_script"), running),
        (text("engines"), Reply::Map(vec![(text("LUA"), counts)])),
    ])
}

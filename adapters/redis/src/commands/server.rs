//! Commands of the server: what it is, how it is set, what it has to say about itself.

use bytes::Bytes;
use leadline_kv::PendingReply;

use super::command::{CATEGORIES, in_category};
use super::connection::millis;
use crate::args::{Args, parse_integer};
use crate::info;
use crate::reply::{self, Reply, ReplyError};
use crate::rows::{Db, Value};
use crate::session::{Answer, Session, wrong_subcommand};
use crate::spec::{Arity, Command, ConnectionCommand, Keys, Spec, Subcommand};

type Answered = Result<Answer, ReplyError>;

pub(super) const SPECS: &[Spec] = &[
    Spec::container("ACL", "acl", "server", ACL),
    refused("BGREWRITEAOF", "bgrewriteaof", |_, _| {
        no("the log compacts itself")
    }),
    refused("BGSAVE", "bgsave", |_, _| no(DURABLE)),
    Spec::container("CONFIG", "config", "server", CONFIG).admin(),
    refused("FAILOVER", "failover", |_, _| {
        no("use 'leadline cluster transfer-leader'")
    }),
    Spec::connection("INFO", "info", "server", Arity::AtLeast(1), info).slow(),
    Spec::connection(
        "LASTSAVE",
        "lastsave",
        "server",
        Arity::Exactly(1),
        |session, _| {
            // Every acknowledged write is durable, so the last save is always now.
            Ok(Reply::Integer(unix_s(session)).into())
        },
    ),
    Spec::container("LATENCY", "latency", "server", LATENCY).admin(),
    Spec::connection("LOLWUT", "lolwut", "server", Arity::AtLeast(1), |_, _| {
        Ok(Reply::Verbatim("txt", Bytes::from_static(LOLWUT)).into())
    }),
    Spec::container("MEMORY", "memory", "server", MEMORY),
    Spec::container("MODULE", "module", "server", MODULE).admin(),
    Spec::read(
        KEY_SIZE,
        "leadline.keysize",
        "server",
        Arity::Exactly(2),
        Keys::At(1),
        KeySize::parse,
    )
    .internal(),
    refused("REPLICAOF", "replicaof", |_, _| {
        no("use 'leadline serve --join'")
    }),
    Spec::connection("ROLE", "role", "server", Arity::Exactly(1), |_, _| {
        Ok(Reply::Array(vec![
            text("master"),
            Reply::Integer(0),
            Reply::Array(Vec::new()),
        ])
        .into())
    }),
    refused("SAVE", "save", |_, _| no(DURABLE)),
    refused("SHUTDOWN", "shutdown", |_, _| {
        no("send SIGTERM to the process, or use 'leadline cluster drain'")
    }),
    refused("SLAVEOF", "slaveof", |_, _| {
        no("use 'leadline serve --join'")
    }),
    Spec::container("SLOWLOG", "slowlog", "server", SLOWLOG).admin(),
    refused("SWAPDB", "swapdb", |_, _| no("databases cannot be swapped")),
    Spec::connection("TIME", "time", "server", Arity::Exactly(1), |session, _| {
        let now = session.shared.facts.unix_time();
        Ok(Reply::bulks([
            Bytes::from(now.as_secs().to_string()),
            Bytes::from(now.subsec_micros().to_string()),
        ])
        .into())
    }),
    Spec::connection("WAIT", "wait", "connection", Arity::Exactly(3), wait).slow(),
    Spec::connection(
        "WAITAOF",
        "waitaof",
        "connection",
        Arity::Exactly(4),
        wait_aof,
    )
    .slow(),
];

const DURABLE: &str = "every acknowledged write is durable already";

const LOLWUT: &[u8] = b"\
      |\n\
      |   by the deep six\n\
      |\n\
     (_)  Leadline\n";

const fn refused(name: &'static str, lower: &'static str, run: ConnectionCommand) -> Spec {
    Spec::connection(name, lower, "server", Arity::AtLeast(1), run).admin()
}

fn no(instead: &str) -> Answered {
    Err(ReplyError::err(format_args!("not supported: {instead}")))
}

fn ok() -> Answered {
    Ok(Reply::OK.into())
}

fn text(text: impl Into<Bytes>) -> Reply {
    Reply::Bulk(text.into())
}

fn count(number: usize) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn unix_s(session: &Session) -> i64 {
    i64::try_from(session.shared.facts.unix_time().as_secs()).unwrap_or(i64::MAX)
}

/// `INFO [section ...]`
fn info(_: &mut Session, args: &[Bytes]) -> Answered {
    let sections = info::wanted(&args[1..]);
    Ok(Answer::Later(Box::new(move |session, ctx| {
        let (shared, ctx, resp) = (session.shared.clone(), ctx.clone(), session.resp);
        Ok(PendingReply::running(Box::pin(async move {
            let page = info::page(shared, ctx, sections).await;
            let mut out = bytes::BytesMut::new();
            reply::encode(&Reply::Verbatim("txt", Bytes::from(page)), resp, &mut out);
            Ok(out.freeze())
        })))
    })))
}

/// `WAIT numreplicas timeout`: a write is answered when a majority holds it, so there is nothing
/// left to wait for, and nothing more to promise.
fn wait(session: &mut Session, args: &[Bytes]) -> Answered {
    parse_integer(&args[1]).ok_or(ReplyError::NotInteger)?;
    millis(&args[2])?;
    let replicas = session.shared.facts.facts().acknowledging_replicas();
    Ok(Answer::Acknowledged(i64::try_from(replicas).unwrap_or(0)))
}

/// `WAITAOF numlocal numreplicas timeout`
fn wait_aof(_: &mut Session, _: &[Bytes]) -> Answered {
    no("a write is answered when a majority of the nodes has it on disk; see WAIT")
}

const fn subcommand(
    name: &'static str,
    lower: &'static str,
    arity: Arity,
    syntax: &'static str,
    summary: &'static str,
    run: ConnectionCommand,
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

const ACL: &[Subcommand] = &[
    subcommand(
        "CAT",
        "acl|cat",
        Arity::AtLeast(2),
        "[<category>]",
        "List the categories of commands, or the commands of a category.",
        acl_cat,
    ),
    subcommand(
        "LIST",
        "acl|list",
        Arity::Exactly(2),
        "",
        "Show the users' rules.",
        |session, _| {
            let password = if session.shared.settings().requirepass.is_empty() {
                "nopass"
            } else {
                "#(hidden)"
            };
            Ok(Reply::bulks([Bytes::from(format!(
                "user default on {password} sanitize-payload ~* &* +@all"
            ))])
            .into())
        },
    ),
    subcommand(
        "USERS",
        "acl|users",
        Arity::Exactly(2),
        "",
        "List the users: only `default`.",
        |_, _| Ok(Reply::bulks([Bytes::from_static(b"default")]).into()),
    ),
    subcommand(
        "WHOAMI",
        "acl|whoami",
        Arity::Exactly(2),
        "",
        "Return the user of the connection.",
        |_, _| Ok(text("default").into()),
    ),
];

/// `ACL CAT [category]`
fn acl_cat(_: &mut Session, args: &[Bytes]) -> Answered {
    let names = match &args[2..] {
        [] => CATEGORIES.to_vec(),
        [category] => in_category(category).collect(),
        _ => return Err(wrong_subcommand("ACL", "CAT")),
    };
    if names.is_empty() {
        let category = String::from_utf8_lossy(&args[2][..args[2].len().min(128)]);
        let error = format_args!("Unknown category '{category}'");
        return Err(ReplyError::err(error));
    }
    let names = names.into_iter().map(str::as_bytes);
    Ok(Reply::bulks(names.map(Bytes::from_static)).into())
}

const CONFIG: &[Subcommand] = &[
    subcommand(
        "GET",
        "config|get",
        Arity::AtLeast(3),
        "<pattern> [<pattern> ...]",
        "Return the parameters that match, with their values.",
        |session, args| {
            let pairs = session.shared.settings().matching(&args[2..]);
            let pairs = pairs
                .into_iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect();
            Ok(Reply::Map(pairs).into())
        },
    ),
    subcommand(
        "RESETSTAT",
        "config|resetstat",
        Arity::Exactly(2),
        "",
        "Begin the counters of INFO anew.",
        |session, _| {
            session.shared.metrics.reset();
            ok()
        },
    ),
    subcommand(
        "REWRITE",
        "config|rewrite",
        Arity::Exactly(2),
        "",
        "Not supported: the configuration file is the operator's.",
        |_, _| {
            Err(ReplyError::err(
                "The server is running without a config file",
            ))
        },
    ),
    subcommand(
        "SET",
        "config|set",
        Arity::AtLeast(4),
        "<directive> <value> [<directive> <value> ...]",
        "Change parameters of this node, until it stops.",
        |session, args| {
            if args.len() % 2 != 0 {
                return Err(ReplyError::Arity("config|set".into()));
            }
            session
                .shared
                .configure(&args[2..])
                .map_err(ReplyError::Line)?;
            ok()
        },
    ),
];

const LATENCY: &[Subcommand] = &[
    subcommand(
        "DOCTOR",
        "latency|doctor",
        Arity::Exactly(2),
        "",
        "Say where latencies are measured.",
        |_, _| {
            let advice = "Latencies of every command are at /metrics on the admin port.\n";
            Ok(Reply::Verbatim("txt", Bytes::from_static(advice.as_bytes())).into())
        },
    ),
    subcommand(
        "HISTOGRAM",
        "latency|histogram",
        Arity::AtLeast(2),
        "[command ...]",
        "Empty: see /metrics.",
        |_, _| Ok(Reply::Map(Vec::new()).into()),
    ),
    subcommand(
        "HISTORY",
        "latency|history",
        Arity::Exactly(3),
        "<event>",
        "Empty: no events are recorded.",
        |_, _| Ok(Reply::Array(Vec::new()).into()),
    ),
    subcommand(
        "LATEST",
        "latency|latest",
        Arity::Exactly(2),
        "",
        "Empty: no events are recorded.",
        |_, _| Ok(Reply::Array(Vec::new()).into()),
    ),
    subcommand(
        "RESET",
        "latency|reset",
        Arity::AtLeast(2),
        "[event ...]",
        "Forget no events.",
        |_, _| Ok(Reply::Integer(0).into()),
    ),
];

const MEMORY: &[Subcommand] = &[
    subcommand(
        "DOCTOR",
        "memory|doctor",
        Arity::Exactly(2),
        "",
        "Say how memory is doing.",
        |session, _| {
            let bytes = session.shared.facts.facts().memory_bytes;
            let report = format!("The process uses {bytes} bytes. Data lives on disk.\n");
            Ok(Reply::Verbatim("txt", Bytes::from(report)).into())
        },
    ),
    subcommand(
        "PURGE",
        "memory|purge",
        Arity::Exactly(2),
        "",
        "Accepted: memory is returned without being asked.",
        |_, _| ok(),
    ),
    subcommand(
        "STATS",
        "memory|stats",
        Arity::Exactly(2),
        "",
        "Return what memory is used for.",
        |session, _| {
            let shared = &session.shared;
            let total = shared.facts.facts().memory_bytes;
            Ok(Reply::Map(vec![
                (
                    text("total.allocated"),
                    Reply::Integer(i64::try_from(total).unwrap_or(i64::MAX)),
                ),
                (text("clients.normal"), count(shared.memory.used())),
            ])
            .into())
        },
    ),
    subcommand(
        "USAGE",
        "memory|usage",
        Arity::AtLeast(3),
        "<key> [SAMPLES <count>]",
        "Estimate how many bytes a key takes.",
        |_, args| {
            let mut rest = Args::new("memory|usage", &args[3..]);
            if rest.take("SAMPLES") {
                rest.unsigned()?;
            }
            rest.end()?;
            let name = Bytes::from_static(KEY_SIZE.as_bytes());
            Ok(Answer::Instead(vec![name, args[2].clone()]))
        },
    ),
];

const KEY_SIZE: &str = "LEADLINE.KEYSIZE";

/// What a row costs besides its key and value, and what an element is taken to hold.
const ROW: usize = 48;
const ELEMENT: u64 = 64;

/// `LEADLINE.KEYSIZE key`: about how many bytes a key takes, without looking at its elements.
#[derive(Debug)]
struct KeySize {
    key: Bytes,
}

impl KeySize {
    fn parse(args: &mut Args<'_>) -> Result<Box<dyn Command>, ReplyError> {
        Ok(Box::new(Self { key: args.key()? }))
    }
}

impl Command for KeySize {
    fn execute(&self, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let Some(first) = db.lookup(&self.key)? else {
            return Ok(Reply::Null);
        };
        let row = self.key.len() + ROW;
        let body = match first.value {
            Value::String(value) => value.len(),
            Value::Collection(collection) => {
                let each = self.key.len() as u64 + ELEMENT;
                usize::try_from(collection.count.saturating_mul(each)).unwrap_or(usize::MAX)
            }
        };
        Ok(count(row.saturating_add(body)))
    }
}

const MODULE: &[Subcommand] = &[subcommand(
    "LIST",
    "module|list",
    Arity::Exactly(2),
    "",
    "List the modules: there are none.",
    |_, _| Ok(Reply::Array(Vec::new()).into()),
)];

const SLOWLOG: &[Subcommand] = &[
    subcommand(
        "GET",
        "slowlog|get",
        Arity::AtLeast(2),
        "[<count>]",
        "Return the newest entries (default: 10; -1: all).",
        slowlog_get,
    ),
    subcommand(
        "LEN",
        "slowlog|len",
        Arity::Exactly(2),
        "",
        "Return how many entries there are.",
        |session, _| Ok(count(session.shared.slowlog.len()).into()),
    ),
    subcommand(
        "RESET",
        "slowlog|reset",
        Arity::Exactly(2),
        "",
        "Forget the entries.",
        |session, _| {
            session.shared.slowlog.clear();
            ok()
        },
    ),
];

/// `SLOWLOG GET [count]`
fn slowlog_get(session: &mut Session, args: &[Bytes]) -> Answered {
    let mut rest = Args::new("slowlog|get", &args[2..]);
    let wanted = if rest.is_empty() { 10 } else { rest.integer()? };
    rest.end_arity()?;
    if wanted < -1 {
        return Err(ReplyError::err(
            "count should be greater than or equal to -1",
        ));
    }
    let entries = session
        .shared
        .slowlog
        .newest(usize::try_from(wanted).unwrap_or(usize::MAX));
    let number = |number: u128| Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let entries = entries
        .into_iter()
        .map(|entry| {
            Reply::Array(vec![
                Reply::Integer(entry.id),
                number(entry.unix_s.into()),
                number(entry.took.as_micros()),
                Reply::bulks(entry.args),
                text(entry.address),
                Reply::Bulk(entry.name),
            ])
        })
        .collect();
    Ok(Reply::Array(entries).into())
}

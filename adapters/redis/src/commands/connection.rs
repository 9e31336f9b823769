//! Commands of the connection: who it is, what it speaks, which database it uses.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::args::{Args, parse_integer};
use crate::clients::{KILL, Unblock};
use crate::info::{DATABASES, REDIS_VERSION};
use crate::reply::{Reply, ReplyError, Resp};
use crate::server::Pause;
use crate::session::{Answer, Replies, Session, wrong_subcommand};
use crate::spec::{Arity, Spec, Subcommand};

type Answered = Result<Answer, ReplyError>;

pub(super) const SPECS: &[Spec] = &[
    Spec::connection("AUTH", "auth", "connection", Arity::AtLeast(2), auth).no_auth(),
    Spec::container("CLIENT", "client", "connection", CLIENT),
    Spec::connection(
        "DEADLINE",
        "deadline",
        "connection",
        Arity::AtLeast(3),
        deadline,
    ),
    Spec::connection("ECHO", "echo", "connection", Arity::Exactly(2), echo),
    Spec::connection("HELLO", "hello", "connection", Arity::AtLeast(1), hello).no_auth(),
    Spec::connection("PING", "ping", "connection", Arity::AtLeast(1), ping),
    Spec::connection("QUIT", "quit", "connection", Arity::AtLeast(1), quit).no_auth(),
    Spec::connection("RESET", "reset", "connection", Arity::Exactly(1), reset).no_auth(),
    Spec::connection("SELECT", "select", "connection", Arity::Exactly(2), select),
];

fn ok() -> Answered {
    Ok(Reply::OK.into())
}

fn text(text: impl Into<Bytes>) -> Reply {
    Reply::Bulk(text.into())
}

/// `PING [message]`
fn ping(_: &mut Session, args: &[Bytes]) -> Answered {
    match args {
        [_] => Ok(Reply::Simple("PONG").into()),
        [_, message] => Ok(Reply::Bulk(message.clone()).into()),
        _ => Err(ReplyError::Arity("ping".into())),
    }
}

/// `ECHO message`
fn echo(_: &mut Session, args: &[Bytes]) -> Answered {
    Ok(Reply::Bulk(args[1].clone()).into())
}

/// `SELECT index`
fn select(session: &mut Session, args: &[Bytes]) -> Answered {
    let index = parse_integer(&args[1]).ok_or(ReplyError::NotInteger)?;
    match u8::try_from(index) {
        Ok(database) if database < DATABASES => {
            session.select(database);
            ok()
        }
        _ => Err(ReplyError::err("DB index is out of range")),
    }
}

/// `QUIT`
fn quit(_: &mut Session, _: &[Bytes]) -> Answered {
    Ok(Answer::Close(Reply::OK))
}

/// `RESET`
fn reset(session: &mut Session, _: &[Bytes]) -> Answered {
    session.reset();
    Ok(Answer::Aloud(Reply::Simple("RESET")))
}

/// `AUTH [username] password`
fn auth(session: &mut Session, args: &[Bytes]) -> Answered {
    let (user, password) = match args {
        [_, password] => {
            if session.shared.settings().requirepass.is_empty() {
                return Err(ReplyError::err(
                    "AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
                ));
            }
            (None, password)
        }
        [_, user, password] => (Some(user), password),
        _ => return Err(ReplyError::Syntax),
    };
    authenticate(session, user, password)?;
    ok()
}

fn authenticate(
    session: &mut Session,
    user: Option<&Bytes>,
    password: &[u8],
) -> Result<(), ReplyError> {
    let known = user.is_none_or(|user| user == "default");
    let secret = session.shared.settings().requirepass.clone();
    // Without a password the user `default` accepts any, as in Redis.
    let right = secret.is_empty() || same(password, &secret);
    if known && right {
        session.authenticated = true;
        Ok(())
    } else {
        Err(ReplyError::Line(
            "WRONGPASS invalid username-password pair or user is disabled.".into(),
        ))
    }
}

/// Compares in a time that depends on the length of `given` only.
fn same(given: &[u8], secret: &[u8]) -> bool {
    let mut difference = given.len() ^ secret.len();
    for (at, byte) in given.iter().enumerate() {
        let expected = secret.get(at % secret.len().max(1)).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(byte ^ expected));
    }
    std::hint::black_box(difference) == 0
}

/// `HELLO [protover [AUTH username password] [SETNAME clientname]]`
fn hello(session: &mut Session, args: &[Bytes]) -> Answered {
    let mut args = Args::new("hello", &args[1..]);
    let mut resp = session.resp;
    let mut name = None;
    let mut credentials = None;
    if let Some(version) = args.peek() {
        let version = parse_integer(version)
            .ok_or_else(|| ReplyError::err("Protocol version is not an integer or out of range"))?;
        resp = match version {
            2 => Resp::V2,
            3 => Resp::V3,
            _ => {
                return Err(ReplyError::Line(
                    "NOPROTO unsupported protocol version".into(),
                ));
            }
        };
        args.bytes()?;
    }
    while let Some(option) = args.peek() {
        if args.len() >= 3 && args.take("AUTH") {
            credentials = Some((args.bytes()?, args.bytes()?));
        } else if args.len() >= 2 && args.take("SETNAME") {
            name = Some(printable(args.bytes()?, "Client names")?);
        } else {
            return Err(ReplyError::err(format_args!(
                "Syntax error in HELLO option '{}'",
                String::from_utf8_lossy(option)
            )));
        }
    }
    if let Some((user, password)) = credentials {
        authenticate(session, Some(&user), &password)?;
    }
    if !session.authenticated {
        return Err(ReplyError::Line(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time".into(),
        ));
    }
    if let Some(name) = name {
        session.client.names.lock().name = name;
    }
    session.speak(resp);
    let pair = |name: &'static str, value| (text(name), value);
    Ok(Reply::Map(vec![
        pair("server", text("redis")),
        pair("version", text(REDIS_VERSION)),
        pair(
            "proto",
            Reply::Integer(if resp == Resp::V3 { 3 } else { 2 }),
        ),
        pair("id", id_reply(session.client.id)),
        pair("mode", text("standalone")),
        pair("role", text("master")),
        pair("modules", Reply::Array(Vec::new())),
    ])
    .into())
}

fn id_reply(id: u64) -> Reply {
    Reply::Integer(i64::try_from(id).unwrap_or(i64::MAX))
}

/// Names stand in lines of CLIENT LIST: no blanks, no control characters.
fn printable(name: Bytes, what: &str) -> Result<Bytes, ReplyError> {
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        // Names live as long as the connection: not as a slice of a request.
        Ok(Bytes::copy_from_slice(&name))
    } else {
        Err(ReplyError::err(format_args!(
            "{what} cannot contain spaces, newlines or special characters."
        )))
    }
}

/// `DEADLINE milliseconds command [arg ...]`: runs one command within a deadline of its own.
fn deadline(_: &mut Session, args: &[Bytes]) -> Answered {
    let deadline = millis(&args[1])?;
    if deadline.is_zero() {
        return Err(ReplyError::err("a deadline must be at least 1 millisecond"));
    }
    if args[2].eq_ignore_ascii_case(b"DEADLINE") {
        return Err(ReplyError::err("a command has one deadline"));
    }
    Ok(Answer::Within(deadline, args[2..].to_vec()))
}

pub(super) fn millis(text: &[u8]) -> Result<Duration, ReplyError> {
    let millis = parse_integer(text)
        .ok_or_else(|| ReplyError::err("timeout is not an integer or out of range"))?;
    u64::try_from(millis)
        .map(Duration::from_millis)
        .map_err(|_| ReplyError::err("timeout is negative"))
}

const fn subcommand(
    name: &'static str,
    lower: &'static str,
    arity: Arity,
    syntax: &'static str,
    summary: &'static str,
    run: fn(&mut Session, &[Bytes]) -> Answered,
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

const CLIENT: &[Subcommand] = &[
    subcommand(
        "CACHING",
        "client|caching",
        Arity::Exactly(3),
        "(YES|NO)",
        "Not supported: there is no client tracking.",
        |_, _| {
            Err(ReplyError::err(
                "CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
            ))
        },
    ),
    subcommand(
        "DEADLINE",
        "client|deadline",
        Arity::AtLeast(2),
        "[milliseconds]",
        "Give every command of this connection so long (0: the server's fallback), or show it.",
        client_deadline,
    ),
    subcommand(
        "GETNAME",
        "client|getname",
        Arity::Exactly(2),
        "",
        "Return the name of the current connection.",
        |session, _| {
            let name = session.client.names.lock().name.clone();
            Ok(if name.is_empty() {
                Reply::Null
            } else {
                Reply::Bulk(name)
            }
            .into())
        },
    ),
    subcommand(
        "GETREDIR",
        "client|getredir",
        Arity::Exactly(2),
        "",
        "Return the client that tracking redirects to: always -1, there is no tracking.",
        |_, _| Ok(Reply::Integer(-1).into()),
    ),
    subcommand(
        "ID",
        "client|id",
        Arity::Exactly(2),
        "",
        "Return the id of the current connection.",
        |session, _| Ok(id_reply(session.client.id).into()),
    ),
    subcommand(
        "INFO",
        "client|info",
        Arity::Exactly(2),
        "",
        "Return information about the current connection.",
        |session, _| {
            let line = session.client.describe(Instant::now());
            Ok(Reply::Verbatim("txt", Bytes::from(line + "\n")).into())
        },
    ),
    subcommand(
        "KILL",
        "client|kill",
        Arity::AtLeast(3),
        "<ip:port> | <option> <value> ...",
        "Kill connections, by address or by ID, TYPE, USER, ADDR, LADDR, SKIPME, MAXAGE.",
        client_kill,
    ),
    subcommand(
        "LIST",
        "client|list",
        Arity::AtLeast(2),
        "[TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID id ...]",
        "Return information about connections.",
        client_list,
    ),
    subcommand(
        "NO-EVICT",
        "client|no-evict",
        Arity::Exactly(3),
        "(ON|OFF)",
        "Accepted: connections are never evicted for their memory unless all of it is spent.",
        |session, args| {
            let on = on_off(&args[2])?;
            session.client.no_evict.store(on, Ordering::Relaxed);
            ok()
        },
    ),
    subcommand(
        "NO-TOUCH",
        "client|no-touch",
        Arity::Exactly(3),
        "(ON|OFF)",
        "Accepted: no command changes when a key was used last.",
        |session, args| {
            let on = on_off(&args[2])?;
            session.client.no_touch.store(on, Ordering::Relaxed);
            ok()
        },
    ),
    subcommand(
        "PAUSE",
        "client|pause",
        Arity::AtLeast(3),
        "<timeout> [WRITE|ALL]",
        "Hold back commands of all clients of this node for so many milliseconds.",
        client_pause,
    ),
    subcommand(
        "REPLY",
        "client|reply",
        Arity::Exactly(3),
        "(ON|OFF|SKIP)",
        "Control the replies sent to the current connection.",
        client_reply,
    ),
    subcommand(
        "SETINFO",
        "client|setinfo",
        Arity::Exactly(4),
        "(LIB-NAME <name>|LIB-VER <version>)",
        "Name the client library of the current connection.",
        client_setinfo,
    ),
    subcommand(
        "SETNAME",
        "client|setname",
        Arity::Exactly(3),
        "<name>",
        "Name the current connection.",
        |session, args| {
            let name = printable(args[2].clone(), "Client names")?;
            session.client.names.lock().name = name;
            ok()
        },
    ),
    subcommand(
        "TRACKING",
        "client|tracking",
        Arity::AtLeast(3),
        "(ON|OFF) [...]",
        "Not supported, apart from OFF.",
        |_, args| {
            if on_off(&args[2])? {
                Err(ReplyError::err(
                    "client tracking is not supported by this server",
                ))
            } else {
                ok()
            }
        },
    ),
    subcommand(
        "TRACKINGINFO",
        "client|trackinginfo",
        Arity::Exactly(2),
        "",
        "Show the state of tracking: off.",
        |_, _| {
            Ok(Reply::Map(vec![
                (text("flags"), Reply::Set(vec![text("off")])),
                (text("redirect"), Reply::Integer(-1)),
                (text("prefixes"), Reply::Array(Vec::new())),
            ])
            .into())
        },
    ),
    subcommand(
        "UNBLOCK",
        "client|unblock",
        Arity::AtLeast(3),
        "<clientid> [TIMEOUT|ERROR]",
        "End the wait of a client in a blocking command.",
        client_unblock,
    ),
    subcommand(
        "UNPAUSE",
        "client|unpause",
        Arity::Exactly(2),
        "",
        "End CLIENT PAUSE.",
        |session, _| {
            session.shared.set_pause(None);
            ok()
        },
    ),
];

fn on_off(word: &[u8]) -> Result<bool, ReplyError> {
    if word.eq_ignore_ascii_case(b"ON") {
        Ok(true)
    } else if word.eq_ignore_ascii_case(b"OFF") {
        Ok(false)
    } else {
        Err(ReplyError::Syntax)
    }
}

/// `CLIENT DEADLINE [milliseconds]`
fn client_deadline(session: &mut Session, args: &[Bytes]) -> Answered {
    match &args[2..] {
        [] => {
            let current = session
                .deadline
                .unwrap_or_else(|| session.shared.settings().fallback_deadline);
            let millis = i64::try_from(current.as_millis()).unwrap_or(i64::MAX);
            Ok(Reply::Integer(millis).into())
        }
        [text] => {
            let deadline = millis(text)?;
            session.deadline = (!deadline.is_zero()).then_some(deadline);
            ok()
        }
        _ => Err(ReplyError::Arity("client|deadline".into())),
    }
}

/// `CLIENT REPLY ON|OFF|SKIP`
fn client_reply(session: &mut Session, args: &[Bytes]) -> Answered {
    let mut args = Args::new("client|reply", &args[2..]);
    if args.take("ON") {
        session.replies = Replies::On;
        Ok(Answer::Aloud(Reply::OK))
    } else if args.take("OFF") {
        session.replies = Replies::Off;
        ok()
    } else if args.take("SKIP") {
        if session.replies == Replies::On {
            session.replies = Replies::SkipNext;
        }
        ok()
    } else {
        Err(ReplyError::Syntax)
    }
}

/// `CLIENT SETINFO LIB-NAME|LIB-VER value`
fn client_setinfo(session: &mut Session, args: &[Bytes]) -> Answered {
    let option = String::from_utf8_lossy(&args[2]).into_owned();
    let mut names = session.client.names.lock();
    match option.to_ascii_uppercase().as_str() {
        "LIB-NAME" => names.library = printable(args[3].clone(), "lib-name")?,
        "LIB-VER" => names.version = printable(args[3].clone(), "lib-ver")?,
        _ => {
            return Err(ReplyError::err(format_args!(
                "Unrecognized option '{option}'"
            )));
        }
    }
    ok()
}

/// `CLIENT PAUSE timeout [WRITE|ALL]`
fn client_pause(session: &mut Session, args: &[Bytes]) -> Answered {
    let timeout = millis(&args[2])?;
    let writes_only = match &args[3..] {
        [] => false,
        [mode] if mode.eq_ignore_ascii_case(b"ALL") => false,
        [mode] if mode.eq_ignore_ascii_case(b"WRITE") => true,
        [_] => return Err(ReplyError::err("CLIENT PAUSE mode must be WRITE or ALL")),
        _ => return Err(wrong_subcommand("CLIENT", "PAUSE")),
    };
    let until = Instant::now()
        .checked_add(timeout)
        .ok_or_else(|| ReplyError::err("timeout is out of range"))?;
    session.shared.set_pause(Some(Pause { until, writes_only }));
    ok()
}

/// `CLIENT UNBLOCK client-id [TIMEOUT|ERROR]`
fn client_unblock(session: &mut Session, args: &[Bytes]) -> Answered {
    let id = parse_integer(&args[2]).ok_or(ReplyError::NotInteger)?;
    let mut rest = Args::new("client|unblock", &args[3..]);
    let how = if rest.take("ERROR") {
        Unblock::Error
    } else if rest.take("TIMEOUT") || rest.is_empty() {
        Unblock::Timeout
    } else {
        return Err(ReplyError::err(
            "CLIENT UNBLOCK reason should be TIMEOUT or ERROR",
        ));
    };
    rest.end()?;
    // No client has a negative one.
    let unblocked = u64::try_from(id)
        .ok()
        .and_then(|id| session.shared.clients.get(id))
        .is_some_and(|client| client.unblock(how));
    Ok(Reply::Integer(i64::from(unblocked)).into())
}

/// Whether connections of this type are listed: only `normal` ones exist.
fn type_exists(name: &[u8]) -> Result<bool, ReplyError> {
    if name.eq_ignore_ascii_case(b"normal") {
        return Ok(true);
    }
    let others: [&[u8]; 4] = [b"master", b"replica", b"slave", b"pubsub"];
    if others.iter().any(|other| name.eq_ignore_ascii_case(other)) {
        return Ok(false);
    }
    Err(ReplyError::err(format_args!(
        "Unknown client type '{}'",
        String::from_utf8_lossy(name)
    )))
}

/// `CLIENT LIST [TYPE type] [ID id ...]`
fn client_list(session: &mut Session, args: &[Bytes]) -> Answered {
    let now = Instant::now();
    let clients = &session.shared.clients;
    let mut rest = Args::new("client|list", &args[2..]);
    let listed = if rest.is_empty() {
        clients.all()
    } else if rest.len() == 2 && rest.take("TYPE") {
        if type_exists(&rest.bytes()?)? {
            clients.all()
        } else {
            Vec::new()
        }
    } else if rest.len() >= 2 && rest.take("ID") {
        rest.rest()
            .iter()
            .map(|id| parse_integer(id).ok_or_else(|| ReplyError::err("Invalid client ID")))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .filter_map(|id| clients.get(u64::try_from(id).ok()?))
            .collect()
    } else {
        return Err(ReplyError::Syntax);
    };
    let lines: String = listed
        .iter()
        .map(|client| client.describe(now) + "\n")
        .collect();
    Ok(Reply::Verbatim("txt", Bytes::from(lines)).into())
}

/// `CLIENT KILL ip:port`, or with filters
fn client_kill(session: &mut Session, args: &[Bytes]) -> Answered {
    let own = session.client.id;
    let all = session.shared.clients.all();
    if let [_, _, address] = args {
        let Some(client) = all.iter().find(|client| *address == client.address) else {
            return Err(ReplyError::err("No such client"));
        };
        if client.id == own {
            return Ok(Answer::Close(Reply::OK));
        }
        client.signal(KILL);
        return ok();
    }

    let mut doomed = all;
    let mut skip_me = true;
    let mut rest = Args::new("client|kill", &args[2..]);
    while !rest.is_empty() {
        if rest.len() < 2 {
            return Err(ReplyError::Syntax);
        }
        if rest.take("ID") {
            let id = parse_integer(&rest.bytes()?)
                .and_then(|id| u64::try_from(id).ok())
                .filter(|id| *id > 0)
                .ok_or_else(|| ReplyError::err("client-id should be greater than 0"))?;
            doomed.retain(|client| client.id == id);
        } else if rest.take("TYPE") {
            if !type_exists(&rest.bytes()?)? {
                doomed.clear();
            }
        } else if rest.take("ADDR") {
            let address = rest.bytes()?;
            doomed.retain(|client| address == client.address);
        } else if rest.take("LADDR") {
            let address = rest.bytes()?;
            doomed.retain(|client| address == client.local);
        } else if rest.take("USER") {
            let user = rest.bytes()?;
            if user != "default" {
                return Err(ReplyError::err(format_args!(
                    "No such user '{}'",
                    String::from_utf8_lossy(&user)
                )));
            }
        } else if rest.take("MAXAGE") {
            let age = rest.unsigned()?;
            let now = Instant::now();
            doomed.retain(|client| client.age(now).as_secs() >= age);
        } else if rest.take("SKIPME") {
            let word = rest.bytes()?;
            skip_me = if word.eq_ignore_ascii_case(b"yes") {
                true
            } else if word.eq_ignore_ascii_case(b"no") {
                false
            } else {
                return Err(ReplyError::Syntax);
            };
        } else {
            return Err(ReplyError::Syntax);
        }
    }
    if skip_me {
        doomed.retain(|client| client.id != own);
    }
    let count = Reply::Integer(i64::try_from(doomed.len()).unwrap_or(i64::MAX));
    let mut suicide = false;
    for client in doomed {
        if client.id == own {
            suicide = true;
        } else {
            client.signal(KILL);
        }
    }
    Ok(if suicide {
        Answer::Close(count)
    } else {
        count.into()
    })
}

//! What a connection remembers between commands, and what its own commands answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use leadline_kv::PendingReply;
use leadline_raft::{Context, DeadlineSource};
use tokio::time::Instant;

use crate::clients::Client;
use crate::exec::{Multi, Watched};
use crate::reply::{self, Reply, ReplyError, Resp};
use crate::server::Shared;
use crate::spec::Subcommand;

/// What a command of the connection answers.
pub(crate) enum Answer {
    Reply(Reply),
    /// The reply, even to a client that wanted none until now.
    Aloud(Reply),
    /// The reply, then the connection closes.
    Close(Reply),
    /// A reply to come.
    Later(Later),
    /// The same, and nothing is begun before it is there.
    Barrier(Later),
    /// What the commands of the MULTI answer.
    Exec,
    /// The number, or 0 if the outcome of an earlier command of this connection is unknown.
    Acknowledged(i64),
    /// What another command over rows answers, one that only nodes know.
    Instead(Vec<Bytes>),
    /// Another command to be run within a deadline of its own.
    Within(Duration, Vec<Bytes>),
}

/// Begins what gives a reply, already encoded, within the deadline of the command that it answers.
pub(crate) type Later =
    Box<dyn FnOnce(&Session, &Context) -> Result<PendingReply, ReplyError> + Send>;

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Whether replies are sent (`CLIENT REPLY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    On,
    Off,
    /// Not for the next command.
    SkipNext,
}

/// One connection's state.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Arc<Client>,
    /// Ends with the connection.
    pub(crate) root: Context,
    pub(crate) database: u8,
    pub(crate) resp: Resp,
    pub(crate) authenticated: bool,
    /// `CLIENT DEADLINE`.
    pub(crate) deadline: Option<Duration>,
    pub(crate) replies: Replies,
    /// The outcome of an earlier command is unknown: [`Answer::Acknowledged`] cannot vouch for it.
    pub(crate) unsettled: bool,
    /// Between MULTI and EXEC.
    pub(crate) multi: Option<Multi>,
    pub(crate) watched: Vec<Arc<Watched>>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, client: Arc<Client>, root: Context) -> Self {
        let authenticated = shared.settings().requirepass.is_empty();
        Self {
            shared,
            client,
            root,
            database: 0,
            resp: Resp::V2,
            authenticated,
            deadline: None,
            replies: Replies::On,
            unsettled: false,
            multi: None,
            watched: Vec::new(),
        }
    }

    /// The context of a command that begins at `now`.
    pub(crate) fn context(&self, now: Instant, own: Option<Duration>) -> Context {
        match own.or(self.deadline) {
            Some(timeout) => self
                .root
                .sharing(deadline(now, timeout), DeadlineSource::Caller),
            None => {
                let timeout = self.shared.settings().fallback_deadline;
                self.root
                    .sharing(deadline(now, timeout), DeadlineSource::Fallback)
            }
        }
    }

    pub(crate) fn select(&mut self, database: u8) {
        self.database = database;
        self.client.database.store(database, Ordering::Relaxed);
    }

    pub(crate) fn speak(&mut self, resp: Resp) {
        self.resp = resp;
        let version = if resp == Resp::V3 { 3 } else { 2 };
        self.client.resp.store(version, Ordering::Relaxed);
    }

    /// Back to what a new connection has.
    pub(crate) fn reset(&mut self) {
        self.multi = None;
        self.watched.clear();
        self.client.transaction_is_over();
        self.select(0);
        self.speak(Resp::V2);
        self.deadline = None;
        self.replies = Replies::On;
        self.authenticated = self.shared.settings().requirepass.is_empty();
        self.client.names.lock().name = Bytes::new();
        self.client.no_evict.store(false, Ordering::Relaxed);
        self.client.no_touch.store(false, Ordering::Relaxed);
    }

    pub(crate) fn encode(&self, reply: &Reply) -> Bytes {
        let mut out = BytesMut::new();
        reply::encode(reply, self.resp, &mut out);
        out.freeze()
    }
}

/// `timeout` after `now`; a year after if it is longer, which the clock may not be able to say.
fn deadline(now: Instant, timeout: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    now + timeout.min(LONGEST)
}

/// Runs the subcommand that the second argument names.
pub(crate) fn run_subcommand(
    container: &'static str,
    subcommands: &'static [Subcommand],
    session: &mut Session,
    args: &[Bytes],
) -> Result<Answer, ReplyError> {
    let word = args.get(1).map_or(&b""[..], |word| word);
    let upper = container.to_ascii_uppercase();
    if word.eq_ignore_ascii_case(b"HELP") && args.len() == 2 {
        return Ok(help(&upper, subcommands).into());
    }
    let Some(subcommand) = subcommands
        .iter()
        .find(|subcommand| word.eq_ignore_ascii_case(subcommand.name.as_bytes()))
    else {
        return Err(ReplyError::err(format_args!(
            "unknown subcommand '{}'. Try {upper} HELP.",
            String::from_utf8_lossy(&word[..word.len().min(128)]),
        )));
    };
    if !subcommand.arity.admits(args.len()) {
        return Err(ReplyError::Arity(subcommand.lower.into()));
    }
    (subcommand.run)(session, args)
}

/// Too many arguments for a subcommand, as Redis says it where arity alone cannot tell.
pub(crate) fn wrong_subcommand(container: &str, subcommand: &str) -> ReplyError {
    ReplyError::err(format_args!(
        "unknown subcommand or wrong number of arguments for '{subcommand}'. Try {container} HELP."
    ))
}

fn help(container: &str, subcommands: &[Subcommand]) -> Reply {
    let mut lines = vec![format!(
        "{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    )];
    for subcommand in subcommands {
        lines.push(
            format!("{} {}", subcommand.name, subcommand.syntax)
                .trim_end()
                .into(),
        );
        lines.push(format!("    {}", subcommand.summary));
    }
    lines.extend(["HELP".into(), "    Print this help.".into()]);
    Reply::bulks(lines.into_iter().map(Bytes::from))
}

//! One client: requests in, commands begun in their order, replies out in the same order.
//!
//! # Invariants
//! 1. Replies leave in the order of their requests; every request has one (unless the client asked
//!    for none).
//! 2. What is not answered yet is bounded, in commands and in bytes, and so is what is not read by
//!    the client yet: beyond that nothing more is begun, and then nothing more is read.
//! 3. A command that waits for a key holds up those behind it, as in Redis.
//! 4. The end of the connection cancels what it began.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use leadline_kv::{ErrorClass, KvError, PendingReply};
use leadline_raft::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::blocking::Wait;
use crate::clients::{KILL, RESUME, STOP};
use crate::decoder::{Decoder, Limits};
use crate::error;
use crate::exec::{ExecOperation, Part};
use crate::metrics::{self, Metrics};
use crate::operation::RedisOperation;
use crate::output::Output;
use crate::reply::{self, Reply, ReplyError, Resp};
use crate::script::{self, Scripted};
use crate::session::{Answer, Later, Replies, Session, run_subcommand};
use crate::slowlog::{self, Entry};
use crate::spec::{Run, Spec};
use crate::{args::Args, commands};

/// Room made for a read; doubled while reads fill it, so that an idle client costs little.
const SMALLEST_READ: usize = 2 * 1024;
const LARGEST_READ: usize = 64 * 1024;

/// While nothing can be begun, no more than this is read ahead.
const READ_AHEAD: usize = 64 * 1024;

/// While this much waits for the client to read, nothing more is begun.
const OUTPUT_LIMIT: usize = 256 * 1024;

/// Replies are written at this size even though more are to come.
const FLUSH_AT: usize = 32 * 1024;

/// Commands begun and not answered.
const SMALLEST_WINDOW: usize = 8;
const FIRST_WINDOW: usize = 64;
const LARGEST_WINDOW: usize = 1024;

/// Argument bytes of the commands begun and not answered.
const IN_FLIGHT_LIMIT: usize = 4 * 1024 * 1024;

/// A client that closed its sending side may still read: what it began gets so long to end.
const HALF_CLOSED: Duration = Duration::from_millis(250);

/// Above this, a connection gives way when the memory of all together is spent.
const MODEST: usize = 256 * 1024;

const NOAUTH: &str = "NOAUTH Authentication required.";

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By QUIT, by the server's stop, after a protocol error; or the client closed with nothing open.
    Closed,
    /// The client left while its commands were running.
    Gone,
    /// By CLIENT KILL, or for not reading its replies.
    Killed,
    /// The memory of all connections was spent, and this one held much of it.
    OverBudget,
}

/// Something that became possible.
enum Turn {
    /// Input arrived, or room for more commands.
    Dispatch,
    End(End),
}

/// A command that is not answered yet.
struct InFlight {
    reply: PendingReply,
    /// The reply is this number, or 0 if the outcome of an earlier command is unknown.
    acknowledged: Option<i64>,
    command: usize,
    began: Instant,
    silent: bool,
    blocking: bool,
    size: usize,
    restore: Option<(u8, Resp)>,
    /// For the slow log.
    operation: Option<Arc<RedisOperation>>,
}

/// What is known of a command when it begins.
struct Begun {
    command: usize,
    now: Instant,
    silent: bool,
    size: usize,
    /// An EXEC that changed database or protocol: what to go back to if it did nothing.
    restore: Option<(u8, Resp)>,
}

pub(crate) struct Connection<S> {
    io: S,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    read_size: usize,
    output: Output,
    queue: VecDeque<InFlight>,
    in_flight: usize,
    window: usize,
    /// Decoded, and held back by CLIENT PAUSE.
    paused: Option<Vec<Bytes>>,
    /// Something in `input` may be ready to begin, but there is no room for it.
    halted: bool,
    /// The last of `queue` waits for a key.
    blocked: bool,
    /// The last of `queue` is a transaction over several shards, which finds its place among the
    /// commands only while it runs: nothing is begun before it has ended.
    barrier: bool,
    /// Nothing more is begun; the connection ends when all is answered.
    closing: bool,
    end_of_input: bool,
    /// There was no room in the output for replies that may be there.
    cut_short: bool,
    limits: Limits,
    /// Output was ready and more is to come soon: it has been held back once.
    held: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the next command to begin was there: at the start of its round, or when the one before
    /// it was answered at once.
    now: Instant,
    /// What this connection has charged to the memory of all.
    charged: usize,
    run: metrics::Run,
}

/// Counts a blocked client for as long as it lives.
struct Blocked(Arc<Metrics>);

impl Blocked {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics::count(&metrics.blocked);
        Self(metrics)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.run.flush(&self.session.shared.metrics);
        self.session.shared.memory.release(self.charged);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(io: S, session: Session) -> Self {
        Self {
            io,
            session,
            decoder: Decoder::new(),
            input: BytesMut::new(),
            read_size: SMALLEST_READ,
            output: Output::default(),
            queue: VecDeque::new(),
            in_flight: 0,
            window: FIRST_WINDOW,
            paused: None,
            halted: false,
            blocked: false,
            barrier: false,
            closing: false,
            end_of_input: false,
            cut_short: false,
            limits: Limits::UNAUTHENTICATED,
            held: false,
            timer: None,
            now: Instant::now(),
            charged: 0,
            run: metrics::Run::default(),
        }
    }

    /// Serves the client until one of them ends it.
    pub(crate) async fn serve(mut self) -> End {
        // Whatever this connection began ends with it.
        let _guard = self.session.root.guard();
        loop {
            self.dispatch();
            if !self.within_budget() {
                return End::OverBudget;
            }
            match poll_fn(|cx| self.poll_turn(cx)).await {
                Turn::Dispatch => {}
                Turn::End(end) => return end,
            }
        }
    }

    /// Begins what has arrived, in order, as far as there is room.
    fn dispatch(&mut self) {
        if self.input.is_empty() && self.paused.is_none() {
            self.halted = false;
            return;
        }
        self.now = Instant::now();
        let mut ctx = None;
        self.set_limits();
        loop {
            if self.is_full() {
                self.halted = true;
                return;
            }
            let args = match self.paused.take() {
                Some(args) => args,
                None => match self.decoder.next(&mut self.input, self.limits) {
                    Ok(Some(args)) => args,
                    Ok(None) => {
                        self.halted = false;
                        return;
                    }
                    Err(error) => {
                        metrics::count(&self.session.shared.metrics.rejected);
                        let begun = self.begun(commands::count(), self.now, 0);
                        self.answer(begun, &Reply::from_result(Err(ReplyError::err(error))));
                        self.closing = true;
                        return;
                    }
                },
            };
            if let Some(until) = self.session.shared.paused(&args[0], self.now) {
                self.timer = Some(Box::pin(tokio::time::sleep_until(until)));
                self.paused = Some(args);
                self.halted = true;
                return;
            }
            self.begin(args, self.now, None, &mut ctx);
        }
    }

    fn is_full(&self) -> bool {
        self.blocked
            || self.barrier
            || self.closing
            || self.queue.len() >= self.window
            || self.in_flight >= IN_FLIGHT_LIMIT
            || self.output.len() >= OUTPUT_LIMIT
    }

    fn set_limits(&mut self) {
        self.limits = if self.session.authenticated {
            Limits::authenticated(self.session.shared.settings().proto_max_bulk_len)
        } else {
            Limits::UNAUTHENTICATED
        };
    }

    fn begun(&mut self, command: usize, now: Instant, size: usize) -> Begun {
        let session = &mut self.session;
        let silent = session.replies != Replies::On;
        if session.replies == Replies::SkipNext {
            session.replies = Replies::On;
        }
        Begun {
            command,
            now,
            silent,
            size,
            restore: None,
        }
    }

    /// Begins one command. `ctx` is shared by the commands of a round that bring no deadline.
    fn begin(
        &mut self,
        args: Vec<Bytes>,
        now: Instant,
        own: Option<Duration>,
        ctx: &mut Option<Context>,
    ) {
        let Some((command, spec)) = commands::lookup(&args[0]) else {
            self.spoil();
            let begun = self.begun(commands::count(), now, 0);
            if is_http(&args[0]) {
                // A browser was tricked into talking to us: nothing it says is meant for a store.
                tracing::warn!(
                    client = self.session.client.id,
                    "HTTP on the Redis port: closed"
                );
                metrics::count(&self.session.shared.metrics.rejected);
                self.closing = true;
                return;
            }
            self.refuse(begun, commands::unknown(&args));
            return;
        };
        self.session.client.requested(now, command);
        let size = args.iter().map(Bytes::len).sum();
        let begun = self.begun(command, now, size);
        if !spec.arity.admits(args.len()) {
            self.spoil();
            let arity = ReplyError::Arity(spec.lower.into());
            if spec.name == "EXEC" {
                let why = arity.to_string();
                return self.abort(begun, why.trim_start_matches("ERR "));
            }
            self.refuse(begun, arity);
            return;
        }
        if !self.session.authenticated && !spec.flags.no_auth {
            self.spoil();
            if spec.name == "EXEC" {
                return self.abort(begun, NOAUTH);
            }
            self.refuse(begun, ReplyError::Line(NOAUTH.into()));
            return;
        }
        if self.session.multi.is_some() && !is_done_at_once(spec, &args) {
            return self.queue_up(begun, spec, args, own);
        }
        match spec.run {
            Run::Rows(_) => self.submit(begun, spec, args, own, ctx),
            Run::Script(how) => self.script(begun, how, args, own, ctx),
            Run::Blocking(parse) => match self.wait(spec, parse, &args, now, own) {
                Ok(reply) => {
                    self.blocked = true;
                    self.push(begun, reply, None);
                }
                Err(error) => self.refuse(begun, error),
            },
            Run::Connection(run) => {
                let answer = run(&mut self.session, &args);
                self.answered(begun, answer, own, ctx);
            }
            Run::Container(subcommands) => {
                let answer = run_subcommand(spec.lower, subcommands, &mut self.session, &args);
                self.answered(begun, answer, own, ctx);
            }
        }
    }

    /// Keeps a command for EXEC.
    fn queue_up(
        &mut self,
        begun: Begun,
        spec: &'static Spec,
        args: Vec<Bytes>,
        own: Option<Duration>,
    ) {
        let found = match spec.run {
            Run::Script(how) => {
                let ctx = self.session.context(begun.now, own);
                script::find(&self.session, how, &args, &ctx)
            }
            _ => None,
        };
        if let Some(multi) = &mut self.session.multi {
            multi.queue(spec, args);
            let queued = i64::try_from(multi.commands.len()).unwrap_or(i64::MAX);
            let client = &self.session.client;
            client.queued.store(queued, Ordering::Relaxed);
        }
        match found {
            None => self.answer(begun, &Reply::Simple("QUEUED")),
            // Its script must be known when EXEC comes.
            Some(queued) => {
                self.push(begun, queued, None);
                self.barrier = !self.queue.is_empty();
            }
        }
    }

    /// A command was refused: if it was to be queued, EXEC will do nothing.
    fn spoil(&mut self) {
        if let Some(multi) = &mut self.session.multi {
            multi.failed = true;
        }
    }

    /// An EXEC was refused itself: that ends the MULTI, if there is one.
    fn abort(&mut self, begun: Begun, why: &str) {
        self.session.multi = None;
        self.session.watched.clear();
        self.session.client.transaction_is_over();
        let line = format!("EXECABORT Transaction discarded because of: {why}");
        self.refuse(begun, ReplyError::Line(line));
    }

    /// Runs the commands of the MULTI as one operation.
    fn exec(&mut self, mut begun: Begun, own: Option<Duration>, ctx: &mut Option<Context>) {
        let Some(multi) = self.session.multi.take() else {
            return self.refuse(begun, ReplyError::err("EXEC without MULTI"));
        };
        let watched = std::mem::take(&mut self.session.watched);
        if multi.failed {
            let aborted = "EXECABORT Transaction discarded because of previous errors.";
            return self.refuse(begun, ReplyError::Line(aborted.into()));
        }
        let mut watches = Vec::new();
        for watched in &watched {
            match watched.seen() {
                Some(seen) => watches.extend(seen),
                None => {
                    let aborted = "EXECABORT Transaction discarded because a WATCH failed.";
                    return self.refuse(begun, ReplyError::Line(aborted.into()));
                }
            }
        }
        let before = (self.session.database, self.session.resp);
        let parts = multi
            .commands
            .into_iter()
            .map(|(spec, args)| self.part(spec, args))
            .collect();
        *ctx = None;
        self.set_limits();
        let operation = ExecOperation::new(before.1, watches, parts);
        if !operation.needs_rows() {
            let reply = PendingReply::ready(Ok(operation.ready()));
            return self.push(begun, reply, None);
        }
        let session = &self.session;
        let ctx = session.context(begun.now, own);
        let reply = session.shared.coordinator.submit(&ctx, Arc::new(operation));
        // A SELECT or HELLO in it did not take place if the EXEC did not: what comes next must know.
        let changed = (session.database, session.resp) != before;
        begun.restore = changed.then_some(before);
        self.push(begun, reply, None);
        self.barrier |= changed && !self.queue.is_empty();
    }

    /// A command of a MULTI, as its EXEC runs it. One of the connection is done now.
    fn part(&mut self, spec: &'static Spec, args: Vec<Bytes>) -> Part {
        let done =
            |session: &Session, result| Part::Ready(session.encode(&Reply::from_result(result)));
        let operation = |session: &Session, spec, args| {
            RedisOperation::new(spec, args, session.database, session.resp)
        };
        let answer = match spec.run {
            Run::Rows(_) => {
                return match operation(&self.session, spec, args) {
                    Ok(operation) => Part::Run(operation),
                    Err(error) => done(&self.session, Err(error)),
                };
            }
            Run::Script(how) => {
                let session = &self.session;
                let known = script::known(session, how, &args).and_then(|args| {
                    RedisOperation::from_args(args, session.database, session.resp)
                });
                return match known {
                    Ok(operation) => Part::Run(operation),
                    Err(error) => done(session, Err(error)),
                };
            }
            Run::Blocking(parse) => {
                let session = &self.session;
                let tries = parse(&mut Args::new(spec.lower, &args[1..])).and_then(|blocking| {
                    let tries = blocking.attempts.into_iter().map(|attempt| {
                        RedisOperation::from_args(attempt.args, session.database, session.resp)
                    });
                    Ok((tries.collect::<Result<_, _>>()?, blocking.on_timeout))
                });
                return match tries {
                    Ok((tries, otherwise)) => Part::Attempts(tries, session.encode(&otherwise)),
                    Err(error) => done(session, Err(error)),
                };
            }
            Run::Connection(run) => run(&mut self.session, &args),
            Run::Container(subcommands) => {
                run_subcommand(spec.lower, subcommands, &mut self.session, &args)
            }
        };
        let session = &self.session;
        match answer {
            Ok(Answer::Reply(reply) | Answer::Aloud(reply) | Answer::Close(reply)) => {
                done(session, Ok(reply))
            }
            Ok(Answer::Acknowledged(count)) => done(session, Ok(Reply::Integer(count))),
            Ok(Answer::Instead(args) | Answer::Within(_, args)) => {
                match commands::lookup(&args[0]) {
                    Some((_, inner)) if !inner.arity.admits(args.len()) => {
                        done(session, Err(ReplyError::Arity(inner.lower.into())))
                    }
                    Some((_, inner)) => self.part(inner, args),
                    None => done(session, Err(commands::unknown(&args))),
                }
            }
            Ok(Answer::Later(_) | Answer::Barrier(_) | Answer::Exec) => done(
                session,
                Err(ReplyError::err("Command not allowed inside a transaction")),
            ),
            Err(error) => done(session, Err(error)),
        }
    }

    /// Hands a command over rows to the data plane.
    fn submit(
        &mut self,
        begun: Begun,
        spec: &'static Spec,
        args: Vec<Bytes>,
        own: Option<Duration>,
        ctx: &mut Option<Context>,
    ) {
        let session = &self.session;
        match RedisOperation::new(spec, args, session.database, session.resp) {
            Ok(operation) => {
                let operation = Arc::new(operation);
                let ctx = match own {
                    Some(_) => &session.context(begun.now, own),
                    None => ctx.get_or_insert_with(|| session.context(begun.now, None)),
                };
                let reply = session.shared.coordinator.submit(ctx, operation.clone());
                self.push(begun, reply, Some(operation));
            }
            Err(error) => self.refuse(begun, error),
        }
    }

    /// Has a script run, or finds it first.
    fn script(
        &mut self,
        begun: Begun,
        how: Scripted,
        args: Vec<Bytes>,
        own: Option<Duration>,
        ctx: &mut Option<Context>,
    ) {
        let session = &self.session;
        let started = match own {
            Some(_) => script::begin(session, how, &args, &session.context(begun.now, own)),
            None => {
                let ctx = ctx.get_or_insert_with(|| session.context(begun.now, None));
                script::begin(session, how, &args, ctx)
            }
        };
        match started {
            Ok(script::Begun::Run(args)) => match commands::find(script::RUN.as_bytes()) {
                Some(spec) => self.submit(begun, spec, args, own, ctx),
                None => self.refuse(begun, commands::unknown(&args)),
            },
            Ok(script::Begun::Waits(reply)) => {
                self.push(begun, reply, None);
                self.barrier = !self.queue.is_empty();
            }
            Err(error) => self.refuse(begun, error),
        }
    }

    /// Does what a command of the connection answered.
    fn answered(
        &mut self,
        mut begun: Begun,
        answer: Result<Answer, ReplyError>,
        own: Option<Duration>,
        ctx: &mut Option<Context>,
    ) {
        // AUTH, CLIENT DEADLINE and CLIENT REPLY hold from here on.
        *ctx = None;
        self.set_limits();
        begun.silent |= self.session.replies != Replies::On;
        match answer {
            Ok(Answer::Aloud(reply)) => {
                begun.silent = false;
                self.answer(begun, &reply);
            }
            Ok(Answer::Reply(reply)) => self.answer(begun, &reply),
            Ok(Answer::Close(reply)) => {
                self.answer(begun, &reply);
                self.closing = true;
            }
            Ok(Answer::Instead(args)) => match commands::find(&args[0]) {
                Some(spec) => self.submit(begun, spec, args, own, ctx),
                None => self.refuse(begun, commands::unknown(&args)),
            },
            Ok(Answer::Later(begin)) => self.later(begun, begin, own),
            Ok(Answer::Barrier(begin)) => {
                self.later(begun, begin, own);
                self.barrier = !self.queue.is_empty();
            }
            Ok(Answer::Exec) => {
                self.exec(begun, own, ctx);
                self.session.client.transaction_is_over();
            }
            Ok(Answer::Acknowledged(count)) => {
                // What it says depends on the outcomes before it: decided when its turn comes.
                let turn = PendingReply::ready(Ok(Bytes::new()));
                let waiting = self.in_flight(begun, turn, None, Some(count));
                self.queue.push_back(waiting);
            }
            Ok(Answer::Within(deadline, args)) => {
                // The inner command counts as the command, with this one's place in CLIENT REPLY.
                if begun.silent && self.session.replies == Replies::On {
                    self.session.replies = Replies::SkipNext;
                }
                self.begin(args, begun.now, Some(deadline), ctx);
            }
            Err(error) => self.refuse(begun, error),
        }
    }

    fn later(&mut self, begun: Begun, begin: Later, own: Option<Duration>) {
        let ctx = self.session.context(begun.now, own);
        match begin(&self.session, &ctx) {
            Ok(reply) => self.push(begun, reply, None),
            Err(error) => self.refuse(begun, error),
        }
    }

    fn wait(
        &self,
        spec: &'static Spec,
        parse: fn(&mut Args<'_>) -> Result<crate::spec::Blocking, ReplyError>,
        args: &[Bytes],
        now: Instant,
        own: Option<Duration>,
    ) -> Result<PendingReply, ReplyError> {
        let session = &self.session;
        let blocking = parse(&mut Args::new(spec.lower, &args[1..]))?;
        let wait = Wait::new(
            session.shared.coordinator.clone(),
            session.root.clone(),
            blocking,
            session.database,
            session.resp,
            now,
            own,
            session.shared.settings().fallback_deadline,
            session.client.block(),
        )
        .inspect_err(|_| session.client.unblocked())?;
        let counted = Blocked::new(session.shared.metrics.clone());
        Ok(PendingReply::running(Box::pin(async move {
            let _counted = counted;
            wait.run().await
        })))
    }

    fn refuse(&mut self, begun: Begun, error: ReplyError) {
        self.answer(begun, &Reply::from_result(Err(error)));
    }

    /// Gives a reply that is known at once.
    fn answer(&mut self, begun: Begun, reply: &Reply) {
        let resp = self.session.resp;
        if !self.queue.is_empty() {
            let mut bytes = BytesMut::new();
            reply::encode(reply, resp, &mut bytes);
            self.push(begun, PendingReply::ready(Ok(bytes.freeze())), None);
            return;
        }
        self.now = Instant::now();
        let took = self.now.saturating_duration_since(begun.now);
        let metrics = &self.session.shared.metrics;
        self.run.add(metrics, begun.command, took);
        if let Reply::Error(line) = reply {
            metrics.failed(begun.command, ErrorClass::Refused, line);
        }
        if !begun.silent {
            self.output.append(|tail| reply::encode(reply, resp, tail));
        }
    }

    fn in_flight(
        &mut self,
        begun: Begun,
        reply: PendingReply,
        operation: Option<Arc<RedisOperation>>,
        acknowledged: Option<i64>,
    ) -> InFlight {
        self.in_flight += begun.size;
        InFlight {
            reply,
            acknowledged,
            command: begun.command,
            began: begun.now,
            silent: begun.silent,
            blocking: self.blocked,
            restore: begun.restore,
            size: begun.size,
            operation,
        }
    }

    /// Queues a reply to come; one that is there already is given at once if its turn has come.
    fn push(
        &mut self,
        begun: Begun,
        mut reply: PendingReply,
        operation: Option<Arc<RedisOperation>>,
    ) {
        if self.queue.is_empty()
            && reply.is_ready()
            && let Some(result) = (&mut reply).now_or_never()
        {
            let waiting = self.in_flight(begun, reply, operation, None);
            self.now = Instant::now();
            self.finish(waiting, result, self.now);
            return;
        }
        self.barrier |= reply.is_transaction();
        let waiting = self.in_flight(begun, reply, operation, None);
        self.queue.push_back(waiting);
    }

    /// Takes the replies that are there, in order, as far as there is room for them.
    fn drain(&mut self, cx: &mut TaskContext<'_>) {
        let mut now = None;
        let (before, mut count) = (self.output.len(), 0);
        self.cut_short = false;
        while let Some(front) = self.queue.front_mut() {
            if self.output.len() >= OUTPUT_LIMIT {
                self.cut_short = true;
                break;
            }
            let Poll::Ready(mut result) = Pin::new(&mut front.reply).poll(cx) else {
                break;
            };
            if let Some(count) = front.acknowledged {
                let count = if self.session.unsettled { 0 } else { count };
                result = Ok(self.session.encode(&Reply::Integer(count)));
            }
            if let Some(waiting) = self.queue.pop_front() {
                // Nothing was begun behind what holds others up.
                self.barrier &= !self.queue.is_empty();
                let now = *now.get_or_insert_with(Instant::now);
                self.finish(waiting, result, now);
                count += 1;
            }
        }
        if let Some(size) = (self.output.len() - before).checked_div(count) {
            self.run.flush(&self.session.shared.metrics);
            self.resize_window(size);
        }
    }

    /// Big replies make the window small: replies that nobody reads are held in memory.
    fn resize_window(&mut self, reply_size: usize) {
        let fitting = OUTPUT_LIMIT / reply_size.max(1);
        self.window = fitting.clamp(SMALLEST_WINDOW, (self.window * 2).min(LARGEST_WINDOW));
    }

    fn finish(&mut self, waiting: InFlight, result: Result<Bytes, KvError>, now: Instant) {
        let shared = &self.session.shared;
        let took = now.saturating_duration_since(waiting.began);
        self.in_flight -= waiting.size;
        self.run.add(&shared.metrics, waiting.command, took);
        if waiting.blocking {
            self.blocked = false;
            self.session.client.unblocked();
        } else if let Some(operation) = &waiting.operation
            && shared.is_slow(took)
            && let keep = shared.settings().slowlog_max_len
            && let since_start = now.saturating_duration_since(shared.began)
            && shared.slowlog.takes(since_start.as_secs(), keep)
        {
            shared.slowlog.push(
                Entry {
                    id: 0,
                    unix_s: shared.facts.unix_time().as_secs(),
                    took,
                    args: slowlog::shortened(operation.args()),
                    address: self.session.client.address.clone(),
                    name: self.session.client.names.lock().name.clone(),
                },
                keep,
            );
        }
        if let Some((database, resp)) = waiting.restore
            && result
                .as_ref()
                .map_or(true, |reply| *reply == ExecOperation::nil(resp))
        {
            self.session.select(database);
            self.session.speak(resp);
        }
        let shared = &self.session.shared;
        match result {
            Ok(bytes) => {
                if let Some(line) = bytes.strip_prefix(b"-") {
                    let refused = ErrorClass::Refused;
                    shared.metrics.failed(waiting.command, refused, line);
                }
                if !waiting.silent {
                    self.output.push(bytes);
                }
            }
            Err(error) => {
                let line = error::line(&error);
                let metrics = &shared.metrics;
                metrics.failed(waiting.command, error.class(), &line);
                self.session.unsettled |= matches!(error, KvError::Unknown(_));
                if !waiting.silent {
                    let reply = Reply::Error(line);
                    let resp = self.session.resp;
                    self.output.append(|tail| reply::encode(&reply, resp, tail));
                }
            }
        }
    }

    /// Charges what this connection holds; false when it must give way.
    fn within_budget(&mut self) -> bool {
        let (input, output) = (
            self.input.capacity() + self.decoder.held(),
            self.output.memory(),
        );
        let queued = self.session.multi.as_ref().map_or(0, |multi| multi.size);
        let held = input + output + self.in_flight + queued;
        let client = &self.session.client;
        client.input.store(input, Ordering::Relaxed);
        client.output.store(output, Ordering::Relaxed);
        let fits = self.session.shared.memory.recharge(&mut self.charged, held);
        fits || held <= MODEST
    }

    /// One look at everything that can happen next.
    fn poll_turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<Turn> {
        self.session.client.register(cx.waker());
        let signals = self.session.client.signals();
        if signals & KILL != 0 {
            return Poll::Ready(Turn::End(End::Killed));
        }
        if signals & STOP != 0 {
            self.closing = true;
        }
        if signals & RESUME != 0 {
            self.session.client.clear(RESUME);
            if self.paused.is_some() {
                self.timer = None;
                return Poll::Ready(Turn::Dispatch);
            }
        }

        self.drain(cx);
        if self.poll_output(cx).is_err() {
            return Poll::Ready(Turn::End(End::Gone));
        }
        if self.cut_short && self.output.len() < OUTPUT_LIMIT {
            return Poll::Ready(Turn::Dispatch);
        }
        if self.queue.is_empty() && self.output.is_empty() {
            self.run.flush(&self.session.shared.metrics);
            if self.closing || (self.end_of_input && !self.halted) {
                return Poll::Ready(Turn::End(End::Closed));
            }
        }
        if self.halted && !self.is_full() && self.paused.is_none() {
            return Poll::Ready(Turn::Dispatch);
        }

        match self.poll_input(cx) {
            Poll::Ready(Ok(0)) => {
                self.end_of_input = true;
                if self.blocked || self.paused.is_some() {
                    return Poll::Ready(Turn::End(End::Gone));
                }
                self.timer = Some(Box::pin(tokio::time::sleep(HALF_CLOSED)));
                return Poll::Ready(Turn::Dispatch);
            }
            Poll::Ready(Ok(_)) => return Poll::Ready(Turn::Dispatch),
            Poll::Ready(Err(error)) => {
                tracing::debug!(client = self.session.client.id, %error, "connection lost");
                let idle = self.queue.is_empty();
                return Poll::Ready(Turn::End(if idle { End::Closed } else { End::Gone }));
            }
            Poll::Pending => {}
        }

        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
            return Poll::Ready(if self.end_of_input {
                Turn::End(End::Gone)
            } else {
                // A pause is over, or has been made longer.
                Turn::Dispatch
            });
        }
        Poll::Pending
    }

    /// Writes what is to be written. Replies that come close together leave together: while more are
    /// on their way, the first waits for one more turn of this task.
    fn poll_output(&mut self, cx: &mut TaskContext<'_>) -> std::io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        if !self.queue.is_empty() && self.output.len() < FLUSH_AT && !self.held {
            self.held = true;
            cx.waker().wake_by_ref();
            return Ok(());
        }
        let before = self.output.len();
        let written = self.output.poll_write(&mut self.io, cx);
        let sent = before - self.output.len();
        let shared = &self.session.shared;
        shared
            .metrics
            .bytes_out
            .fetch_add(sent as u64, Ordering::Relaxed);
        match written {
            Poll::Ready(Ok(())) => {
                self.held = false;
                self.session.client.output_stuck(None);
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => {
                if sent > 0 || !self.session.client.is_stuck() {
                    self.session.client.output_stuck(Some(Instant::now()));
                }
                Ok(())
            }
        }
    }

    /// Reads once, if there is room. `Ok(0)` is the end of the client's requests.
    fn poll_input(&mut self, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<usize>> {
        if self.end_of_input || self.closing || (self.halted && self.input.len() >= READ_AHEAD) {
            return Poll::Pending;
        }
        let spare = self.input.capacity() - self.input.len();
        if spare < self.read_size / 4 {
            // Not more than has arrived already, so that memory follows what was received.
            let wanted = self
                .decoder
                .wanted(&self.input)
                .clamp(self.read_size, self.read_size.max(self.input.len()));
            self.input.reserve(wanted);
            self.decoder.set_chunk(self.input.capacity());
        }
        let spare = self.input.capacity() - self.input.len();
        let read = pin!(self.io.read_buf(&mut self.input)).poll(cx);
        if let Poll::Ready(Ok(count)) = read {
            if count == spare {
                self.read_size = (self.read_size * 2).min(LARGEST_READ);
            }
            let bytes_in = &self.session.shared.metrics.bytes_in;
            bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        }
        read
    }
}

/// Commands that MULTI does not queue.
fn is_done_at_once(spec: &Spec, args: &[Bytes]) -> bool {
    match spec.name {
        "EXEC" | "DISCARD" | "MULTI" | "WATCH" | "QUIT" | "RESET" => true,
        // A deadline for one of these is one for it, not a command to queue.
        "DEADLINE" => args
            .get(2)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"EXEC")),
        _ => false,
    }
}

/// What Redis, too, takes for HTTP that was smuggled in.
fn is_http(word: &[u8]) -> bool {
    word.eq_ignore_ascii_case(b"POST") || word.eq_ignore_ascii_case(b"Host:")
}

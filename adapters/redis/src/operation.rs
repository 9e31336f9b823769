//! A Redis command as the data plane sees it.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_kv::{Access, Door, Operation, OperationCodec, Route, RowError, Rows, Scattered};

use crate::args::Args;
use crate::commands;
use crate::exec::{self, ExecOperation};
use crate::reply::{self, Reply, ReplyError, Resp};
use crate::rows::{Db, first_row_key, is_first_row, slot_prefix};
use crate::script;
use crate::spec::{Command, Keys, Run, Spec, Walk};

/// The format that [`RedisOperation::encode`] writes.
const FORMAT: u8 = 1;

/// A parsed command, its database, and the protocol its reply is written in.
#[derive(Debug)]
pub(crate) struct RedisOperation {
    spec: &'static Spec,
    /// The name first: what another node parses again.
    args: Vec<Bytes>,
    database: u8,
    resp: Resp,
    /// Row keys of the command's keys, in their order.
    keys: RouteKeys,
    command: Box<dyn Command>,
}

/// Row keys; most commands have one.
#[derive(Debug)]
enum RouteKeys {
    One([Bytes; 1]),
    Many(Vec<Bytes>),
}

impl RouteKeys {
    fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(key) => key,
            Self::Many(keys) => keys,
        }
    }
}

impl RedisOperation {
    /// Parses `args` (name first) as the command of `spec`, which must run over rows.
    ///
    /// # Errors
    /// The error line the client gets; nothing was done.
    pub(crate) fn new(
        spec: &'static Spec,
        args: Vec<Bytes>,
        database: u8,
        resp: Resp,
    ) -> Result<Self, ReplyError> {
        if !spec.arity.admits(args.len()) {
            return Err(ReplyError::Arity(spec.lower.into()));
        }
        let Run::Rows(parse) = spec.run else {
            return Err(ReplyError::err(format!(
                "'{}' does not run over rows",
                spec.lower
            )));
        };
        let command = parse(&mut Args::new(spec.lower, &args[1..]))?;
        let keys = route_keys(spec.keys, &args, database)?;
        Ok(Self {
            spec,
            args,
            database,
            resp,
            keys,
            command,
        })
    }

    /// The arguments, name first.
    pub(crate) fn args(&self) -> &[Bytes] {
        &self.args
    }

    /// As [`RedisOperation::new`], for arguments whose spec is looked up by name.
    pub(crate) fn from_args(
        args: Vec<Bytes>,
        database: u8,
        resp: Resp,
    ) -> Result<Self, ReplyError> {
        let spec = args
            .first()
            .and_then(|name| commands::find(name))
            .ok_or_else(|| ReplyError::err("unknown command"))?;
        Self::new(spec, args, database, resp)
    }
}

impl RedisOperation {
    /// Builds what [`Operation::encode`] wrote.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, String> {
        let cut = |_| "a forwarded command is cut short".to_owned();
        let format = bytes.try_get_u8().map_err(cut)?;
        if format != FORMAT {
            return Err(format!(
                "a forwarded command has format {format}; this node reads {FORMAT}"
            ));
        }
        let database = bytes.try_get_u8().map_err(cut)?;
        let resp = match bytes.try_get_u8().map_err(cut)? {
            3 => Resp::V3,
            _ => Resp::V2,
        };
        let mut args = Vec::new();
        while bytes.has_remaining() {
            let length = bytes.try_get_u32().map_err(cut)? as usize;
            if bytes.remaining() < length {
                return Err("a forwarded command is cut short".to_owned());
            }
            args.push(bytes.split_to(length));
        }
        Self::from_args(args, database, resp).map_err(|error| error.to_string())
    }
}

/// Positions of the keys among `args`.
pub(crate) fn key_positions(keys: Keys, args: &[Bytes]) -> Result<Vec<usize>, ReplyError> {
    let count_at = |position: usize| -> Result<usize, ReplyError> {
        args.get(position)
            .and_then(|text| crate::args::parse_integer(text))
            .and_then(|count| usize::try_from(count).ok())
            .ok_or(ReplyError::NotInteger)
    };
    let within = |range: std::ops::Range<usize>| -> Result<Vec<usize>, ReplyError> {
        if range.end > args.len() {
            Err(ReplyError::Syntax)
        } else {
            Ok(range.collect())
        }
    };
    match keys {
        Keys::None | Keys::EveryShard | Keys::Beside | Keys::ScanCursor(_) => Ok(Vec::new()),
        Keys::At(position) => within(position..position + 1),
        Keys::Range { first, last } => within(first..last + 1),
        Keys::Every {
            first,
            step,
            last_from_end,
        } => Ok((first..args.len().saturating_sub(last_from_end))
            .step_by(step)
            .collect()),
        Keys::Counted(position) => {
            let first = position + 1;
            within(first..first.saturating_add(count_at(position)?))
        }
        Keys::DestinationCounted { destination, count } => {
            let first = count + 1;
            let mut positions = within(first..first.saturating_add(count_at(count)?))?;
            positions.insert(0, destination);
            Ok(positions)
        }
    }
}

fn route_keys(keys: Keys, args: &[Bytes], database: u8) -> Result<RouteKeys, ReplyError> {
    let row_key = |position: usize| first_row_key(database, args.get(position).map_or(b"", |a| a));
    Ok(match keys {
        Keys::At(position) if position < args.len() => RouteKeys::One([row_key(position)]),
        Keys::Beside => RouteKeys::One([script::stored_place()]),
        Keys::ScanCursor(position) => {
            let cursor = args.get(position).map_or(b"".as_slice(), |text| text);
            let slot = commands::scan_cursor_slot(cursor)?;
            RouteKeys::One([slot_prefix(slot, database)])
        }
        _ => {
            let keys: Vec<_> = key_positions(keys, args)?
                .into_iter()
                .map(row_key)
                .collect();
            // A form without keys (`OBJECT HELP`) must run somewhere.
            if keys.is_empty() {
                RouteKeys::One([first_row_key(database, b"")])
            } else {
                RouteKeys::Many(keys)
            }
        }
    })
}

impl Operation for RedisOperation {
    fn name(&self) -> &'static str {
        self.spec.name
    }

    fn door(&self) -> Door {
        Door::Redis
    }

    fn access(&self) -> Access {
        if self.spec.flags.write {
            Access::Write
        } else {
            Access::Read
        }
    }

    fn route(&self) -> Route<'_> {
        if self.spec.keys == Keys::EveryShard {
            Route::EveryShard
        } else {
            Route::Keys(self.keys.as_slice())
        }
    }

    fn size(&self) -> usize {
        // Each argument and key also costs its handle and a share of its allocation.
        self.args
            .iter()
            .chain(self.keys.as_slice())
            .map(|bytes| bytes.len() + 48)
            .sum::<usize>()
            + 256
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        let mut db = Db::routed(rows, self.database, self.keys.as_slice());
        let reply = match self.command.execute(&mut db) {
            Err(ReplyError::Rows(error)) => return Err(error),
            result => Reply::from_result(result),
        };
        Ok(encoded(&reply, self.resp))
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&[
            FORMAT,
            self.database,
            if self.resp == Resp::V3 { 3 } else { 2 },
        ]);
        for arg in &self.args {
            // A request is bounded far below 4 GiB before it gets here.
            out.put_u32(u32::try_from(arg.len()).unwrap_or(u32::MAX));
            out.put_slice(arg);
        }
    }

    fn open_ended(&self) -> bool {
        self.command.open_ended()
    }

    /// Every writer of a key writes its first row, and whoever reads of a key reads that first.
    fn is_version(&self, key: &[u8]) -> bool {
        is_first_row(key)
    }

    /// KEYS, SCAN, RANDOMKEY and DBSIZE walk over keys of everyone.
    fn may_overlook_locks(&self) -> bool {
        matches!(self.spec.keys, Keys::EveryShard | Keys::ScanCursor(_)) && !self.spec.flags.write
    }

    fn scatter(self: Arc<Self>) -> Option<Scattered> {
        let walk = self.spec.walk?;
        let resp = self.resp;
        let part = match walk.part {
            None => self,
            Some(name) => {
                let name = Bytes::from_static(name.as_bytes());
                // Read back by `put_together`: RESP3 tells types apart.
                let part = Self::from_args(vec![name], self.database, Resp::V3);
                Arc::new(part.expect("a part has no arguments"))
            }
        };
        let gather = Box::new(move |replies| {
            encoded(&Reply::from_result(put_together(walk, replies)), resp)
        });
        Some(Scattered { part, gather })
    }
}

/// The reply to a walk; an error of one shard is one of the whole.
fn put_together(walk: Walk, replies: Vec<Bytes>) -> Result<Reply, ReplyError> {
    let mut parts = Vec::with_capacity(replies.len());
    for reply in replies {
        match reply::decode(reply)? {
            error @ Reply::Error(_) => return Ok(error),
            part => parts.push(part),
        }
    }
    (walk.gather)(parts)
}

thread_local! {
    /// Where replies are written whose length is not known before.
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

/// Up to so many bytes a reply is copied out of the scratch, in one piece of just its length.
const SHORT_REPLY: usize = 4096;

fn encoded(reply: &Reply, resp: Resp) -> Bytes {
    // The commonest replies cost nothing.
    match (reply, resp) {
        (Reply::Simple("OK"), _) => return Bytes::from_static(b"+OK\r\n"),
        (Reply::Integer(0), _) => return Bytes::from_static(b":0\r\n"),
        (Reply::Integer(1), _) => return Bytes::from_static(b":1\r\n"),
        (Reply::Null, Resp::V2) => return Bytes::from_static(b"$-1\r\n"),
        _ => {}
    }
    SCRATCH.with_borrow_mut(|out| {
        reply::encode(reply, resp, out);
        if out.len() > SHORT_REPLY {
            return std::mem::take(out).freeze();
        }
        let short = Bytes::copy_from_slice(out);
        out.clear();
        short
    })
}

/// Decodes Redis operations that another node forwarded.
#[derive(Debug, Default)]
pub struct RedisCodec;

impl OperationCodec for RedisCodec {
    fn decode(&self, bytes: Bytes) -> Result<Arc<dyn Operation>, String> {
        if bytes.first() == Some(&exec::FORMAT) {
            return Ok(Arc::new(ExecOperation::decode(bytes.slice(1..))?));
        }
        Ok(Arc::new(RedisOperation::decode(bytes)?))
    }
}

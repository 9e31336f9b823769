//! What EXEC runs: the commands of a MULTI as one operation, after a look at what was watched.
//!
//! # Invariants
//! 1. An error of one command is its place in the reply; the others take effect (Redis does not roll
//!    back). A failure of the store is a failure of the whole, and then nothing takes effect.
//! 2. What was watched is compared within the same evaluation: on one shard in the batch of the
//!    commands, over several as part of what the transaction read.
//! 3. A blocking command tries once and does not wait.

use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leadline_kv::{Access, Door, Operation, Route, RowError, Rows};

use crate::operation::RedisOperation;
use crate::reply::{Reply, ReplyError, Resp};
use crate::rows::{is_first_row, version_of};
use crate::spec::Spec;

/// The format that [`ExecOperation::encode`] writes, told from that of a single command.
pub(crate) const FORMAT: u8 = 2;

/// The commands of a connection between MULTI and EXEC.
#[derive(Debug, Default)]
pub(crate) struct Multi {
    pub(crate) commands: Vec<(&'static Spec, Vec<Bytes>)>,
    /// A command was refused: EXEC will do nothing.
    pub(crate) failed: bool,
    /// Bytes that the commands hold.
    pub(crate) size: usize,
}

impl Multi {
    pub(crate) fn queue(&mut self, spec: &'static Spec, args: Vec<Bytes>) {
        self.size += args.iter().map(|arg| arg.len() + 48).sum::<usize>();
        self.commands.push((spec, args));
    }
}

/// Keys that one WATCH named, and their versions once they are known.
#[derive(Debug)]
pub(crate) struct Watched {
    keys: Vec<Bytes>,
    versions: OnceLock<Vec<Option<u64>>>,
}

impl Watched {
    /// `keys` are keys of first rows.
    pub(crate) fn new(keys: Vec<Bytes>) -> Self {
        Self {
            keys,
            versions: OnceLock::new(),
        }
    }

    pub(crate) fn saw(&self, versions: Result<Reply, ReplyError>) {
        if let Ok(Reply::Array(versions)) = versions
            && versions.len() == self.keys.len()
        {
            let versions = versions.into_iter().map(|version| match version {
                Reply::Integer(stamp) => Some(stamp.cast_unsigned()),
                _ => None,
            });
            // Filled once: each WATCH has its own.
            self.versions.set(versions.collect()).ok();
        }
    }

    /// The keys with their versions; `None` if they could not be read.
    pub(crate) fn seen(&self) -> Option<impl Iterator<Item = Watch> + '_> {
        let versions = self.versions.get()?;
        Some(self.keys.iter().zip(versions).map(|(key, version)| Watch {
            key: key.clone(),
            version: *version,
        }))
    }
}

/// A key's first row, and its stamp when it was watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    key: Bytes,
    version: Option<u64>,
}

/// One command of an EXEC.
#[derive(Debug)]
pub(crate) enum Part {
    /// Its reply is known, encoded.
    Ready(Bytes),
    Run(RedisOperation),
    /// The first that does not answer [`Reply::Block`]; else the reply.
    Attempts(Vec<RedisOperation>, Bytes),
}

impl Part {
    fn operations(&self) -> &[RedisOperation] {
        match self {
            Self::Ready(_) => &[],
            Self::Run(operation) => std::slice::from_ref(operation),
            Self::Attempts(operations, _) => operations,
        }
    }
}

/// An EXEC.
#[derive(Debug)]
pub(crate) struct ExecOperation {
    resp: Resp,
    watches: Vec<Watch>,
    parts: Vec<Part>,
    keys: Vec<Bytes>,
    every_shard: bool,
    access: Access,
    open_ended: bool,
    size: usize,
}

impl ExecOperation {
    pub(crate) fn new(resp: Resp, watches: Vec<Watch>, parts: Vec<Part>) -> Self {
        let mut keys: Vec<Bytes> = watches.iter().map(|watch| watch.key.clone()).collect();
        let (mut every_shard, mut access, mut open_ended) = (false, Access::Read, false);
        let mut size = 256;
        for operation in parts.iter().flat_map(Part::operations) {
            match operation.route() {
                Route::Keys(route) => keys.extend_from_slice(route),
                Route::EveryShard => every_shard = true,
            }
            if operation.access() == Access::Write {
                access = Access::Write;
            }
            open_ended |= operation.open_ended();
            size += operation.size();
        }
        keys.sort_unstable();
        keys.dedup();
        Self {
            resp,
            watches,
            parts,
            keys,
            every_shard,
            access,
            open_ended,
            size,
        }
    }

    /// The reply of an EXEC that found a watched key changed.
    pub(crate) fn nil(resp: Resp) -> Bytes {
        Bytes::from_static(match resp {
            Resp::V2 => b"*-1\r\n",
            Resp::V3 => b"_\r\n",
        })
    }

    /// Whether rows are needed at all.
    pub(crate) fn needs_rows(&self) -> bool {
        self.every_shard || !self.keys.is_empty()
    }

    /// The reply of an EXEC whose replies are these.
    fn together(replies: &[Bytes]) -> Bytes {
        let length = replies.iter().map(Bytes::len).sum::<usize>();
        let mut out = BytesMut::with_capacity(length + 16);
        out.put_u8(b'*');
        out.put_slice(replies.len().to_string().as_bytes());
        out.put_slice(b"\r\n");
        for reply in replies {
            out.put_slice(reply);
        }
        out.freeze()
    }

    /// The reply of an EXEC that needs no rows.
    pub(crate) fn ready(&self) -> Bytes {
        let replies: Vec<Bytes> = self
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Ready(reply) => Some(reply.clone()),
                Part::Run(_) | Part::Attempts(..) => None,
            })
            .collect();
        Self::together(&replies)
    }

    /// Builds what [`Operation::encode`] wrote, behind its format byte.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, String> {
        let cut = || "a forwarded EXEC is cut short".to_owned();
        let short = |_| cut();
        let field = |bytes: &mut Bytes| {
            let length = bytes.try_get_u32().map_err(short)? as usize;
            if length > bytes.len() {
                return Err(cut());
            }
            Ok(bytes.split_to(length))
        };
        let operation = |bytes: &mut Bytes| RedisOperation::decode(field(bytes)?);
        let resp = match bytes.try_get_u8().map_err(short)? {
            3 => Resp::V3,
            _ => Resp::V2,
        };
        let mut watches = Vec::new();
        for _ in 0..bytes.try_get_u32().map_err(short)? {
            let key = field(&mut bytes)?;
            let there = bytes.try_get_u8().map_err(short)? == 1;
            let stamp = bytes.try_get_u64().map_err(short)?;
            watches.push(Watch {
                key,
                version: there.then_some(stamp),
            });
        }
        let mut parts = Vec::new();
        while bytes.has_remaining() {
            parts.push(match bytes.get_u8() {
                0 => Part::Ready(field(&mut bytes)?),
                1 => Part::Run(operation(&mut bytes)?),
                2 => {
                    let otherwise = field(&mut bytes)?;
                    let count = bytes.try_get_u32().map_err(short)?;
                    let tries = (0..count).map(|_| operation(&mut bytes));
                    Part::Attempts(tries.collect::<Result<_, _>>()?, otherwise)
                }
                _ => return Err("a forwarded EXEC has parts that this node does not know".into()),
            });
        }
        Ok(Self::new(resp, watches, parts))
    }
}

fn put_field(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_u32(0);
    write(out);
    // A request is bounded far below 4 GiB before it gets here.
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Operation for ExecOperation {
    fn name(&self) -> &'static str {
        "EXEC"
    }

    fn door(&self) -> Door {
        Door::Redis
    }

    fn access(&self) -> Access {
        self.access
    }

    fn route(&self) -> Route<'_> {
        if self.every_shard {
            Route::EveryShard
        } else {
            Route::Keys(&self.keys)
        }
    }

    fn size(&self) -> usize {
        self.size
    }

    fn open_ended(&self) -> bool {
        self.open_ended
    }

    fn is_version(&self, key: &[u8]) -> bool {
        is_first_row(key)
    }

    fn evaluate(&self, rows: &mut dyn Rows) -> Result<Bytes, RowError> {
        for watch in &self.watches {
            if version_of(rows, &watch.key)? != watch.version {
                return Ok(Self::nil(self.resp));
            }
        }
        let mut replies = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            replies.push(match part {
                Part::Ready(reply) => reply.clone(),
                Part::Run(operation) => operation.evaluate(rows)?,
                Part::Attempts(tries, otherwise) => {
                    let mut reply = otherwise.clone();
                    for attempt in tries {
                        let tried = attempt.evaluate(rows)?;
                        // The empty string is `Reply::Block`.
                        if !tried.is_empty() {
                            reply = tried;
                            break;
                        }
                    }
                    reply
                }
            });
        }
        Ok(Self::together(&replies))
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(FORMAT);
        out.put_u8(if self.resp == Resp::V3 { 3 } else { 2 });
        out.put_u32(count(self.watches.len()));
        for watch in &self.watches {
            put_field(out, |out| out.put_slice(&watch.key));
            out.put_u8(u8::from(watch.version.is_some()));
            out.put_u64(watch.version.unwrap_or(0));
        }
        for part in &self.parts {
            match part {
                Part::Ready(reply) => {
                    out.put_u8(0);
                    put_field(out, |out| out.put_slice(reply));
                }
                Part::Run(operation) => {
                    out.put_u8(1);
                    put_field(out, |out| operation.encode(out));
                }
                Part::Attempts(tries, otherwise) => {
                    out.put_u8(2);
                    put_field(out, |out| out.put_slice(otherwise));
                    out.put_u32(count(tries.len()));
                    for attempt in tries {
                        put_field(out, |out| attempt.encode(out));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use leadline_kv::OperationCodec;

    use super::*;
    use crate::operation::RedisCodec;
    use crate::rows::first_row_key;
    use crate::testing::{Ours, words};

    fn operation(line: &str) -> RedisOperation {
        RedisOperation::from_args(words(line), 0, Resp::V2).unwrap()
    }

    fn watch(key: &str, version: Option<u64>) -> Watch {
        let key = first_row_key(0, key.as_bytes());
        Watch { key, version }
    }

    #[test]
    fn an_exec_that_is_forwarded_stays_the_same() {
        let exec = ExecOperation::new(
            Resp::V3,
            vec![watch("absent", None), watch("there", Some(7))],
            vec![
                Part::Ready(Bytes::from_static(b"+PONG\r\n")),
                Part::Run(operation("SET k v")),
                Part::Attempts(
                    vec![
                        operation("LEADLINE.BPOP a LEFT"),
                        operation("LEADLINE.BPOP b LEFT"),
                    ],
                    Bytes::from_static(b"*-1\r\n"),
                ),
            ],
        );
        let mut sent = BytesMut::new();
        exec.encode(&mut sent);
        let sent = sent.freeze();
        let received = RedisCodec.decode(sent.clone()).unwrap();
        assert_eq!(format!("{received:?}"), format!("{exec:?}"));
        // Cut short anywhere it is refused, or less of it is there; nothing worse.
        for length in 0..sent.len() {
            RedisCodec.decode(sent.slice(..length)).ok();
        }
    }

    /// As in Redis, which deletes an expired key before EXEC looks at it.
    #[test]
    fn a_watched_key_that_expires_counts_as_changed() {
        let mut ours = Ours::at_millis(1_000);
        ours.call("SET k v PX 50");
        let version = version_of(&mut ours.rows, &watch("k", None).key).unwrap();
        assert!(version.is_some());
        let parts = vec![Part::Run(operation("EXISTS k"))];
        let exec = ExecOperation::new(Resp::V2, vec![watch("k", version)], parts);
        for (millis, reply) in [(1_049, "*1\r\n:1\r\n"), (1_050, "*-1\r\n")] {
            ours.set_millis(millis);
            ours.call("EXISTS another");
            assert_eq!(exec.evaluate(&mut ours.rows).unwrap(), reply, "{millis}");
        }
    }
}

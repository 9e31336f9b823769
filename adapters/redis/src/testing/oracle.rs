//! A real `redis-server`, on a socket of its own, and replies as values.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use crate::reply::{Resp, format_double};

/// Set where the oracle must be there: then its absence fails the tests.
const REQUIRED: &str = "LEADLINE_REQUIRE_REDIS";

/// A `redis-server` and one connection to it; both end with this value.
pub(crate) struct Oracle {
    server: Child,
    connection: BufReader<UnixStream>,
    _directory: TempDir,
}

impl Oracle {
    /// `None`, and a line on stderr, if there is no `redis-server` on this machine.
    pub(crate) fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("redis.sock");
        let started = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .args(["--unixsocket".as_ref(), socket.as_os_str()])
            .args(["--dir".as_ref(), directory.path().as_os_str()])
            .stdout(Stdio::null())
            .spawn();
        let server = match started {
            Ok(server) => server,
            Err(error) => {
                assert!(
                    std::env::var_os(REQUIRED).is_none(),
                    "redis-server: {error}"
                );
                eprintln!("SKIPPED: not compared with Redis, redis-server does not start: {error}");
                return None;
            }
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "redis-server: {error}"),
            }
            std::thread::yield_now();
        };
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Some(Self {
            server,
            connection: BufReader::new(connection),
            _directory: directory,
        })
    }

    /// Empties it, and speaks `resp` from now on.
    pub(crate) fn reset(&mut self, resp: Resp) {
        let version: &[u8] = if resp == Resp::V3 { b"3" } else { b"2" };
        self.run(&[
            Bytes::from_static(b"HELLO"),
            Bytes::copy_from_slice(version),
        ]);
        self.run(&[Bytes::from_static(b"FLUSHALL")]);
        self.run(&[Bytes::from_static(b"SELECT"), Bytes::from_static(b"0")]);
    }

    /// Its clock.
    pub(crate) fn unix_millis(&mut self) -> u64 {
        let Value::Items(_, parts) = self.run(&[Bytes::from_static(b"TIME")]) else {
            panic!("TIME answers an array");
        };
        let part = |at: usize| -> u64 {
            let text = parts[at].text().unwrap();
            std::str::from_utf8(text).unwrap().parse().unwrap()
        };
        part(0) * 1000 + part(1) / 1000
    }

    pub(crate) fn run(&mut self, args: &[Bytes]) -> Value {
        let mut out = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        }
        self.connection.get_mut().write_all(&out).unwrap();
        Value::read(&mut self.connection)
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// A reply as it was on the wire, its kind byte included.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Line(u8, Bytes),
    Bulk(u8, Bytes),
    Items(u8, Vec<Value>),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(kind, text) => write!(f, "{}{}", *kind as char, text.escape_ascii()),
            Self::Bulk(_, text) => write!(f, "{:?}", text.escape_ascii().to_string()),
            Self::Items(kind, items) => {
                write!(f, "{}", *kind as char)?;
                f.debug_list().entries(items).finish()
            }
        }
    }
}

impl Value {
    /// # Panics
    /// Unless `bytes` is exactly one reply.
    pub(crate) fn parse_all(bytes: &[u8]) -> Self {
        let mut reader = bytes;
        let value = Self::read(&mut reader);
        assert!(reader.is_empty(), "more than one reply: {bytes:?}");
        value
    }

    fn read(reader: &mut impl BufRead) -> Self {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\r\n"), "a cut reply: {line:?}");
        line.truncate(line.len() - 2);
        let kind = line.remove(0);
        let line = Bytes::from(line);
        let number = || -> i64 { std::str::from_utf8(&line).unwrap().parse().unwrap() };
        match kind {
            b'$' | b'=' if number() >= 0 => {
                let length = usize::try_from(number()).unwrap();
                let mut bulk = vec![0; length + 2];
                reader.read_exact(&mut bulk).unwrap();
                assert!(bulk.ends_with(b"\r\n"));
                bulk.truncate(length);
                Self::Bulk(kind, bulk.into())
            }
            b'*' | b'~' | b'>' if number() >= 0 => {
                Self::Items(kind, (0..number()).map(|_| Self::read(reader)).collect())
            }
            b'%' => {
                let count = number() * 2;
                Self::Items(kind, (0..count).map(|_| Self::read(reader)).collect())
            }
            _ => Self::Line(kind, line),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Line(b'_' | b'$' | b'*', _))
    }

    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Line(b'-', _))
    }

    pub(super) fn is_wrong_type(&self) -> bool {
        matches!(self, Self::Line(b'-', text) if text.starts_with(b"WRONGTYPE"))
    }

    pub(crate) fn text(&self) -> Option<&Bytes> {
        match self {
            Self::Bulk(_, text) | Self::Line(b'+' | b'-', text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        match self {
            Self::Line(b':', text) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> &[Value] {
        match self {
            Self::Items(_, items) => items,
            _ => &[],
        }
    }

    /// The same, its items sorted in groups of `width`.
    pub(crate) fn sorted(self, width: usize) -> Self {
        match self {
            Self::Items(kind, items) => {
                let mut groups: Vec<_> = items.chunks(width).map(<[_]>::to_vec).collect();
                groups.sort();
                Self::Items(kind, groups.concat())
            }
            other => other,
        }
    }

    /// The same, every fraction in its shortest form: Redis 7.0 writes 17 digits where 7.2 writes
    /// as few as read back the same.
    pub(super) fn shortened(self) -> Self {
        let shorter = |text: Bytes| match crate::args::parse_double(&text) {
            Some(number) if text.contains(&b'.') || text.contains(&b'e') => {
                Bytes::from(format_double(number))
            }
            _ => text,
        };
        match self {
            Self::Line(b',', text) => Self::Line(b',', shorter(text)),
            Self::Bulk(kind, text) => Self::Bulk(kind, shorter(text)),
            Self::Items(kind, items) => {
                Self::Items(kind, items.into_iter().map(Self::shortened).collect())
            }
            line => line,
        }
    }

    /// A set of groups of `width` items.
    pub(super) fn listed(items: Vec<Self>, width: usize) -> Self {
        let mut groups: Vec<_> = items.chunks(width).map(<[_]>::to_vec).collect();
        groups.sort();
        groups.dedup();
        Self::Items(b'*', groups.concat())
    }

    /// A cursor and its page.
    pub(super) fn into_page(self) -> Option<(Bytes, Vec<Self>)> {
        match self {
            Self::Items(b'*', items) => match <[Self; 2]>::try_from(items).ok()? {
                [Self::Bulk(_, cursor), Self::Items(_, page)] => Some((cursor, page)),
                _ => None,
            },
            _ => None,
        }
    }
}

//! Replies as values: what a command answers, before it is written in the client's protocol.
//!
//! Source: the RESP protocol description, <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use bytes::{BufMut, Bytes, BytesMut};

/// The protocol version a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resp {
    #[default]
    V2,
    V3,
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// `+OK` and other fixed words.
    Simple(&'static str),
    /// As `Simple`, in words of a script; without line breaks.
    Status(Bytes),
    /// A bulk string; binary safe.
    Bulk(Bytes),
    Integer(i64),
    /// Decimal digits of any length; a bulk string in RESP2.
    BigNumber(Bytes),
    Double(f64),
    Boolean(bool),
    /// Absent: `_` in RESP3, a null bulk string in RESP2.
    Null,
    /// Absent where an array is expected: `_` in RESP3, a null array in RESP2.
    NullArray,
    Array(Vec<Reply>),
    /// A flat list of pairs in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// An array of pairs; flat in RESP2.
    Pairs(Vec<(Reply, Reply)>),
    /// An array in RESP2.
    Set(Vec<Reply>),
    /// Text with a format, such as `txt`; a bulk string in RESP2.
    Verbatim(&'static str, Bytes),
    /// An error line without its `-`.
    Error(Bytes),
    /// A blocking command found nothing: the connection waits. Never sent to a client; as bytes it
    /// is the empty string.
    Block,
}

impl Reply {
    pub(crate) const OK: Self = Self::Simple("OK");

    /// How many.
    pub(crate) fn count(count: usize) -> Self {
        Self::Integer(length(count))
    }

    /// An array of bulk strings.
    pub(crate) fn bulks(items: impl IntoIterator<Item = Bytes>) -> Self {
        Self::Array(items.into_iter().map(Self::Bulk).collect())
    }

    /// This reply, or an error's.
    pub(crate) fn from_result(result: Result<Self, ReplyError>) -> Self {
        result.unwrap_or_else(|error| Self::Error(Bytes::from(error.to_string())))
    }
}

/// An error that a command answers. Its text is the error line that Redis 7.2 gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("ERR value is not a valid float")]
    NotFloat,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR no such key")]
    NoSuchKey,
    #[error("ERR index out of range")]
    IndexOutOfRange,
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(String),
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(&'static str),
    /// Any other line, with its own first word (`ERR`, `NOPROTO`, …).
    #[error("{0}")]
    Line(String),
    /// Rows could not be read: not an answer to the client but a failure of the evaluation.
    #[error("rows: {0}")]
    Rows(#[from] leadline_kv::RowError),
}

impl ReplyError {
    /// An `ERR …` line.
    pub(crate) fn err(text: impl std::fmt::Display) -> Self {
        Self::Line(format!("ERR {text}"))
    }
}

/// Writes `reply` as `resp` to the end of `out`.
pub(crate) fn encode(reply: &Reply, resp: Resp, out: &mut BytesMut) {
    match reply {
        Reply::Simple(word) => line(out, b'+', word.as_bytes()),
        Reply::Status(text) => line(out, b'+', text),
        Reply::BigNumber(digits) => match resp {
            Resp::V3 => line(out, b'(', digits),
            Resp::V2 => bulk(out, b'$', digits),
        },
        Reply::Error(text) => error_line(out, text),
        Reply::Integer(number) => integer_line(out, b':', *number),
        Reply::Bulk(bytes) => bulk(out, b'$', bytes),
        Reply::Null => out.put_slice(if resp == Resp::V3 {
            b"_\r\n"
        } else {
            b"$-1\r\n"
        }),
        Reply::NullArray => out.put_slice(if resp == Resp::V3 {
            b"_\r\n"
        } else {
            b"*-1\r\n"
        }),
        Reply::Double(number) => match resp {
            Resp::V3 => line(out, b',', format_double(*number).as_bytes()),
            Resp::V2 => bulk(out, b'$', format_double(*number).as_bytes()),
        },
        Reply::Boolean(value) => match resp {
            Resp::V3 => out.put_slice(if *value { b"#t\r\n" } else { b"#f\r\n" }),
            Resp::V2 => integer_line(out, b':', i64::from(*value)),
        },
        Reply::Array(items) => list(out, b'*', items, resp),
        Reply::Set(items) => list(out, if resp == Resp::V3 { b'~' } else { b'*' }, items, resp),
        Reply::Map(pairs) => {
            let (kind, count) = match resp {
                Resp::V3 => (b'%', pairs.len()),
                Resp::V2 => (b'*', pairs.len() * 2),
            };
            integer_line(out, kind, length(count));
            for (key, value) in pairs {
                encode(key, resp, out);
                encode(value, resp, out);
            }
        }
        Reply::Pairs(pairs) => {
            let count = match resp {
                Resp::V3 => pairs.len(),
                Resp::V2 => pairs.len() * 2,
            };
            integer_line(out, b'*', length(count));
            for (first, second) in pairs {
                if resp == Resp::V3 {
                    out.put_slice(b"*2\r\n");
                }
                encode(first, resp, out);
                encode(second, resp, out);
            }
        }
        Reply::Verbatim(format, text) => match resp {
            Resp::V3 => {
                integer_line(out, b'=', length(text.len() + 4));
                out.put_slice(format.as_bytes());
                out.put_u8(b':');
                out.put_slice(text);
                out.put_slice(b"\r\n");
            }
            Resp::V2 => bulk(out, b'$', text),
        },
        Reply::Block => {}
    }
}

/// Reads one whole RESP3 reply back: what another shard answered for its part of a command.
///
/// # Errors
/// An error line when `bytes` is not exactly one reply of the kinds that [`encode`] writes.
pub(crate) fn decode(bytes: Bytes) -> Result<Reply, ReplyError> {
    let mut reader = Reader { bytes };
    let reply = reader.reply()?;
    if reader.bytes.is_empty() {
        Ok(reply)
    } else {
        Err(Reader::damaged())
    }
}

struct Reader {
    bytes: Bytes,
}

impl Reader {
    fn damaged() -> ReplyError {
        ReplyError::err("a shard answered with a damaged reply")
    }

    fn line(&mut self) -> Result<Bytes, ReplyError> {
        let end = self
            .bytes
            .windows(2)
            .position(|pair| pair == b"\r\n")
            .ok_or_else(Self::damaged)?;
        let mut line = self.bytes.split_to(end + 2);
        line.truncate(end);
        Ok(line)
    }

    fn items(&mut self, count: i64) -> Result<Vec<Reply>, ReplyError> {
        (0..count).map(|_| self.reply()).collect()
    }

    fn reply(&mut self) -> Result<Reply, ReplyError> {
        let mut line = self.line()?;
        if line.is_empty() {
            return Err(Self::damaged());
        }
        let kind = line.split_to(1)[0];
        let number = || crate::args::parse_integer(&line).ok_or_else(Self::damaged);
        Ok(match kind {
            b'+' if line == "OK" => Reply::OK,
            b'+' => Reply::Bulk(line),
            b'-' => Reply::Error(line),
            b':' => Reply::Integer(number()?),
            b',' => Reply::Double(crate::args::parse_double(&line).unwrap_or(f64::NAN)),
            b'#' => Reply::Boolean(line == "t"),
            b'_' => Reply::Null,
            b'$' => {
                let length = usize::try_from(number()?).map_err(|_| Self::damaged())?;
                if self.bytes.len() < length + 2 {
                    return Err(Self::damaged());
                }
                let mut bulk = self.bytes.split_to(length + 2);
                bulk.truncate(length);
                Reply::Bulk(bulk)
            }
            b'*' => Reply::Array(self.items(number()?)?),
            b'~' => Reply::Set(self.items(number()?)?),
            b'%' => Reply::Map(
                (0..number()?)
                    .map(|_| Ok((self.reply()?, self.reply()?)))
                    .collect::<Result<_, ReplyError>>()?,
            ),
            _ => return Err(Self::damaged()),
        })
    }
}

/// A double as Redis writes it: shortest form that reads back the same, `inf`, `-inf`, `nan`;
/// exponents as C's `%.17g` writes them.
pub(crate) fn format_double(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    if number == number.trunc() && number.abs() < 1e17 {
        return if number == 0.0 && number.is_sign_negative() {
            "-0".into()
        } else {
            format!("{number:.0}")
        };
    }
    let magnitude = number.abs();
    if (1e-5..1e17).contains(&magnitude) {
        return format!("{number}");
    }
    let scientific = format!("{number:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let (sign, digits) = exponent
        .strip_prefix('-')
        .map_or(("+", exponent), |rest| ("-", rest));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn line(out: &mut BytesMut, kind: u8, text: &[u8]) {
    out.put_u8(kind);
    out.put_slice(text);
    out.put_slice(b"\r\n");
}

/// A line break inside an error would end it early: they become spaces, as in Redis.
fn error_line(out: &mut BytesMut, text: &[u8]) {
    out.put_u8(b'-');
    for &byte in text {
        out.put_u8(if byte == b'\r' || byte == b'\n' {
            b' '
        } else {
            byte
        });
    }
    out.put_slice(b"\r\n");
}

/// A number as text of just its length.
pub(crate) fn decimal(number: i64) -> Bytes {
    Bytes::copy_from_slice(itoa::Buffer::new().format(number).as_bytes())
}

fn integer_line(out: &mut BytesMut, kind: u8, number: i64) {
    out.put_u8(kind);
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
    out.put_slice(b"\r\n");
}

fn bulk(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
    out.reserve(bytes.len() + 24);
    integer_line(out, kind, length(bytes.len()));
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

fn list(out: &mut BytesMut, kind: u8, items: &[Reply], resp: Resp) {
    integer_line(out, kind, length(items.len()));
    for item in items {
        encode(item, resp, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, resp: Resp) -> String {
        let mut out = BytesMut::new();
        encode(reply, resp, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_map_is_a_flat_array_in_resp2() {
        let map = Reply::Map(vec![(Reply::Bulk("a".into()), Reply::Double(1.5))]);
        assert_eq!(encoded(&map, Resp::V2), "*2\r\n$1\r\na\r\n$3\r\n1.5\r\n");
        assert_eq!(encoded(&map, Resp::V3), "%1\r\n$1\r\na\r\n,1.5\r\n");
    }

    #[test]
    fn integers_are_written_to_the_last_digit() {
        for number in [0, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(
                encoded(&Reply::Integer(number), Resp::V2),
                format!(":{number}\r\n")
            );
        }
    }

    #[test]
    fn an_error_cannot_smuggle_a_second_line() {
        let reply = Reply::Error("ERR a\r\n+OK".into());
        assert_eq!(encoded(&reply, Resp::V2), "-ERR a  +OK\r\n");
    }

    #[test]
    fn doubles_read_back_the_same_and_look_like_redis() {
        for (number, text) in [
            (3.0, "3"),
            (-0.5, "-0.5"),
            (1e20, "1e+20"),
            (1.5e-7, "1.5e-07"),
            (0.1, "0.1"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(format_double(number), text);
        }
    }
}

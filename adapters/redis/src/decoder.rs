//! Requests from bytes, as they come: multibulk (`*2\r\n$3\r\nGET\r\n…`) and inline (`GET k\r\n`).
//!
//! # Invariants
//! 1. No byte is looked at twice: a request that arrives in pieces goes on where it stopped.
//! 2. Memory follows what was received, never what was announced.
//! 3. An argument is a slice of the read buffer, unless it would keep alive much more than itself.
//! 4. After an error the stream has no meaning any more: the caller answers it and closes.
//!
//! Source: the protocol description, <https://redis.io/docs/latest/develop/reference/protocol-spec/>,
//! and the limits and error lines of Redis 7.2.

use bytes::{Buf, Bytes, BytesMut};

use crate::args::parse_integer;

/// The longest line: an inline request, or the digits of a length.
const LINE_LIMIT: usize = 64 * 1024;

/// The longest line with a length that is still made of a length only.
const LENGTH_DIGITS: usize = 32;

/// Buffers up to this size may be kept alive by any slice of them.
const FREELY_PINNED: usize = 64 * 1024;

/// A slice of a bigger buffer is copied when the buffer is this many times its size.
const PIN_RATIO: usize = 8;

/// Room for arguments that is made before they arrive.
const ARGS_AHEAD: usize = 16;

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) args: i64,
    pub(crate) bulk: i64,
    authenticated: bool,
}

impl Limits {
    /// Before AUTH: enough to authenticate, too little to do harm.
    pub(crate) const UNAUTHENTICATED: Self = Self {
        args: 10,
        bulk: 16 * 1024,
        authenticated: false,
    };

    /// After AUTH, or when none is required.
    pub(crate) fn authenticated(proto_max_bulk_len: u64) -> Self {
        Self {
            args: 1024 * 1024,
            bulk: i64::try_from(proto_max_bulk_len).unwrap_or(i64::MAX),
            authenticated: true,
        }
    }
}

/// Why a stream is no Redis request. The text is the error line that Redis gives, without `ERR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    #[error("Protocol error: expected '$', got '{0}'")]
    ExpectedDollar(char),
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    #[error("Protocol error: expected CRLF after a bulk string")]
    MissingLineEnd,
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between requests.
    Start,
    /// So many arguments to come, the next one's `$` line first.
    Length { left: usize },
    /// The bytes of an argument, and so many arguments after it.
    Body { length: usize, left: usize },
}

/// Reads one client's requests.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    args: Vec<Bytes>,
    /// Bytes of `args`.
    held: usize,
    /// How far the line at the start of the input has been searched for its end.
    searched: usize,
    /// The size of the buffer that the input lies in.
    chunk: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            args: Vec::new(),
            held: 0,
            searched: 0,
            chunk: 0,
        }
    }

    /// Tells how big the allocation is that the input lies in.
    pub(crate) fn set_chunk(&mut self, size: usize) {
        self.chunk = size;
    }

    /// Bytes of memory that the unfinished request holds beyond the input.
    pub(crate) fn held(&self) -> usize {
        self.held + self.args.capacity() * size_of::<Bytes>()
    }

    /// How many bytes more the next step needs, as far as is known.
    pub(crate) fn wanted(&self, input: &BytesMut) -> usize {
        match self.state {
            State::Body { length, .. } => (length + 2).saturating_sub(input.len()),
            State::Start | State::Length { .. } => 0,
        }
    }

    /// Takes the next request off `input`: its arguments, never none. `None`: not all there yet.
    ///
    /// # Errors
    /// What is wrong with the stream; see invariant 4.
    pub(crate) fn next(
        &mut self,
        input: &mut BytesMut,
        limits: Limits,
    ) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        loop {
            match self.state {
                State::Start => match input.first() {
                    None => return Ok(None),
                    Some(b'*') => {
                        let Some(count) = self.count(input, limits)? else {
                            return Ok(None);
                        };
                        if count > 0 {
                            self.args = Vec::with_capacity(count.min(ARGS_AHEAD));
                            self.state = State::Length { left: count };
                        }
                    }
                    Some(_) => match self.inline(input)? {
                        None => return Ok(None),
                        Some(args) if args.is_empty() => {}
                        Some(args) => return Ok(Some(args)),
                    },
                },
                State::Length { left } => {
                    let Some(length) = self.bulk_length(input, limits)? else {
                        return Ok(None);
                    };
                    self.state = State::Body {
                        length,
                        left: left - 1,
                    };
                }
                State::Body { length, left } => {
                    if input.len() < length + 2 {
                        return Ok(None);
                    }
                    if input[length..length + 2] != *b"\r\n" {
                        return Err(ProtocolError::MissingLineEnd);
                    }
                    let arg = self.take(input, length);
                    input.advance(2);
                    self.held += arg.len();
                    self.args.push(arg);
                    self.state = State::Length { left };
                    if left == 0 {
                        self.state = State::Start;
                        self.held = 0;
                        return Ok(Some(std::mem::take(&mut self.args)));
                    }
                }
            }
        }
    }

    fn take(&self, input: &mut BytesMut, length: usize) -> Bytes {
        if self.chunk > FREELY_PINNED && length < self.chunk / PIN_RATIO {
            let copy = Bytes::copy_from_slice(&input[..length]);
            input.advance(length);
            copy
        } else {
            input.split_to(length).freeze()
        }
    }

    fn count(
        &mut self,
        input: &mut BytesMut,
        limits: Limits,
    ) -> Result<Option<usize>, ProtocolError> {
        let Some(count) = self.length_line(
            input,
            ProtocolError::TooBigMultibulkCount,
            ProtocolError::InvalidMultibulkLength,
        )?
        else {
            return Ok(None);
        };
        if count > limits.args {
            return Err(if limits.authenticated {
                ProtocolError::InvalidMultibulkLength
            } else {
                ProtocolError::UnauthenticatedMultibulkLength
            });
        }
        // `*0` and `*-1` are no request, and no error.
        Ok(Some(usize::try_from(count).unwrap_or(0)))
    }

    fn bulk_length(
        &mut self,
        input: &mut BytesMut,
        limits: Limits,
    ) -> Result<Option<usize>, ProtocolError> {
        match input.first() {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => return Err(ProtocolError::ExpectedDollar(other.into())),
        }
        let Some(length) = self.length_line(
            input,
            ProtocolError::TooBigBulkCount,
            ProtocolError::InvalidBulkLength,
        )?
        else {
            return Ok(None);
        };
        if length > limits.bulk && !limits.authenticated && length >= 0 {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        match usize::try_from(length) {
            Ok(size) if length <= limits.bulk => Ok(Some(size)),
            _ => Err(ProtocolError::InvalidBulkLength),
        }
    }

    /// The number in the line at the start of `input`, behind its first byte; takes the line.
    fn length_line(
        &mut self,
        input: &mut BytesMut,
        too_long: ProtocolError,
        invalid: ProtocolError,
    ) -> Result<Option<i64>, ProtocolError> {
        let from = self.searched.max(1).min(input.len());
        let Some(at) = input[from..].iter().position(|&byte| byte == b'\r') else {
            self.searched = input.len();
            return if input.len() > LINE_LIMIT {
                Err(too_long)
            } else {
                Ok(None)
            };
        };
        let end = from + at;
        match input.get(end + 1) {
            None => {
                self.searched = end;
                return Ok(None);
            }
            Some(b'\n') => {}
            Some(_) => return Err(invalid),
        }
        self.searched = 0;
        let number = if end > LENGTH_DIGITS {
            None
        } else {
            parse_integer(&input[1..end])
        };
        input.advance(end + 2);
        number.map(Some).ok_or(invalid)
    }

    /// The words of the line at the start of `input`; takes the line.
    fn inline(&mut self, input: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        let from = self.searched.min(input.len());
        let Some(at) = input[from..].iter().position(|&byte| byte == b'\n') else {
            self.searched = input.len();
            return if input.len() > LINE_LIMIT {
                Err(ProtocolError::TooBigInline)
            } else {
                Ok(None)
            };
        };
        let end = from + at;
        self.searched = 0;
        if end > LINE_LIMIT {
            return Err(ProtocolError::TooBigInline);
        }
        let line = &input[..end];
        let words = split_words(line.strip_suffix(b"\r").unwrap_or(line))
            .ok_or(ProtocolError::UnbalancedQuotes);
        input.advance(end + 1);
        words.map(Some)
    }
}

/// Cuts a line into words as Redis does: blanks separate, `"…"` knows escapes, `'…'` only `\'`.
/// `None` when quotes do not match.
pub(crate) fn split_words(line: &[u8]) -> Option<Vec<Bytes>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let blank = rest.iter().take_while(|byte| is_blank(**byte)).count();
        rest = &rest[blank..];
        // To Redis a line is a C string: it ends at the first zero byte.
        if rest.is_empty() || rest[0] == 0 {
            return Some(words);
        }
        let mut word = Vec::new();
        loop {
            match rest {
                [] | [0, ..] => break,
                [byte, ..] if is_blank(*byte) => break,
                [b'"', quoted @ ..] => {
                    rest = double_quoted(quoted, &mut word)?;
                    break;
                }
                [b'\'', quoted @ ..] => {
                    rest = single_quoted(quoted, &mut word)?;
                    break;
                }
                [byte, tail @ ..] => {
                    word.push(*byte);
                    rest = tail;
                }
            }
        }
        words.push(Bytes::from(word));
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// What follows a closing quote: nothing, or a blank.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    match rest.first() {
        None | Some(0) => Some(rest),
        Some(&byte) if is_blank(byte) => Some(rest),
        Some(_) => None,
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'\\', b'x', high, low, tail @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex(*high) * 16 + hex(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] if *escaped != 0 => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [b'"', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'\\', b'\'', tail @ ..] => {
                word.push(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 512 * 1024 * 1024;

    type Decoded = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

    /// Feeds `pieces` one after the other, as reads from a socket would come.
    fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> Decoded {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        let mut requests = Vec::new();
        for piece in pieces {
            input.put_slice(piece);
            loop {
                match decoder.next(&mut input, limits) {
                    Ok(Some(args)) => {
                        requests.push(args.iter().map(|arg| arg.to_vec()).collect());
                    }
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    }

    fn whole(bytes: &[u8]) -> Decoded {
        feed([bytes], Limits::authenticated(LIMIT))
    }

    fn words(line: &str) -> Option<Vec<String>> {
        split_words(line.as_bytes()).map(|words| {
            words
                .iter()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect()
        })
    }

    #[test]
    fn a_multibulk_request_is_its_arguments() {
        let (requests, error) = whole(b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n");
        assert_eq!(error, None);
        assert_eq!(
            requests,
            [
                vec![b"GET".to_vec(), b"\r\n".to_vec()],
                vec![b"PING".to_vec()]
            ]
        );
    }

    #[test]
    fn empty_requests_and_empty_lines_are_nothing() {
        let (requests, error) = whole(b"*0\r\n*-1\r\n\r\n\n   \r\nPING\r\n");
        assert_eq!(error, None);
        assert_eq!(requests, [vec![b"PING".to_vec()]]);
    }

    #[test]
    fn hostile_streams_get_the_error_lines_of_redis() {
        use ProtocolError as E;
        let endless = vec![b'1'; LINE_LIMIT + 2];
        let with = |start: &[u8]| [start, endless.as_slice()].concat();
        for (bytes, error) in [
            (b"*abc\r\n".to_vec(), E::InvalidMultibulkLength),
            (b"*\r\n".to_vec(), E::InvalidMultibulkLength),
            (b"*1048577\r\n".to_vec(), E::InvalidMultibulkLength),
            (
                b"*99999999999999999999\r\n".to_vec(),
                E::InvalidMultibulkLength,
            ),
            (b"*1\rx".to_vec(), E::InvalidMultibulkLength),
            (b"*1\r\n*1\r\n".to_vec(), E::ExpectedDollar('*')),
            (b"*1\r\n:1\r\n".to_vec(), E::ExpectedDollar(':')),
            (b"*1\r\n$-1\r\n".to_vec(), E::InvalidBulkLength),
            (b"*1\r\n$536870913\r\n".to_vec(), E::InvalidBulkLength),
            (b"*1\r\n$x\r\n".to_vec(), E::InvalidBulkLength),
            (b"*1\r\n$1\r\nabc".to_vec(), E::MissingLineEnd),
            (with(b"*"), E::TooBigMultibulkCount),
            (with(b"*1\r\n$"), E::TooBigBulkCount),
            (with(b"GET "), E::TooBigInline),
            (b"SET k \"open\r\n".to_vec(), E::UnbalancedQuotes),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(30)]).into_owned();
            assert_eq!(whole(&bytes), (Vec::new(), Some(error)), "{shown:?}");
        }
    }

    #[test]
    fn before_auth_only_small_requests_are_taken() {
        let limits = Limits::UNAUTHENTICATED;
        assert_eq!(
            feed([b"*11\r\n".as_slice()], limits).1,
            Some(ProtocolError::UnauthenticatedMultibulkLength)
        );
        assert_eq!(
            feed([b"*1\r\n$16385\r\n".as_slice()], limits).1,
            Some(ProtocolError::UnauthenticatedBulkLength)
        );
        assert_eq!(feed([b"*10\r\n$16384\r\n".as_slice()], limits).1, None);
    }

    #[test]
    fn what_is_announced_takes_no_memory_before_it_arrives() {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::from(&b"*1048576\r\n$536870912\r\nx"[..]);
        let before = input.capacity();
        assert_eq!(
            decoder.next(&mut input, Limits::authenticated(LIMIT)),
            Ok(None)
        );
        assert!(input.capacity() <= before);
        assert!(decoder.held() <= ARGS_AHEAD * size_of::<Bytes>());
    }

    #[test]
    fn a_small_argument_does_not_keep_a_big_buffer_alive() {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::with_capacity(1 << 20);
        decoder.set_chunk(1 << 20);
        input.put_slice(b"*1\r\n$4\r\nPING\r\n");
        let range = input.as_ptr() as usize..input.as_ptr() as usize + (1 << 20);
        let args = decoder
            .next(&mut input, Limits::authenticated(LIMIT))
            .unwrap()
            .unwrap();
        assert!(!range.contains(&(args[0].as_ptr() as usize)));
    }

    #[test]
    fn inline_words_follow_redis_quoting() {
        assert_eq!(words("SET k v").unwrap(), ["SET", "k", "v"]);
        assert_eq!(words(r#"a"b"  "" 'it\'s'"#).unwrap(), ["ab", "", "it's"]);
        assert_eq!(words(r#""\x41\n\q" '\n'"#).unwrap(), ["A\nq", r"\n"]);
        assert_eq!(words(r#""a"b"#), None);
        assert_eq!(words("'a"), None);
        assert_eq!(words("\"\\"), None);
        assert_eq!(words("a\0b c").unwrap(), ["a"]);
    }

    fn multibulk(requests: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for request in requests {
            bytes.extend(format!("*{}\r\n", request.len()).bytes());
            for arg in request {
                bytes.extend(format!("${}\r\n", arg.len()).bytes());
                bytes.extend(arg);
                bytes.extend(b"\r\n");
            }
        }
        bytes
    }

    fn requests() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let arg = prop::collection::vec(any::<u8>(), 0..40);
        prop::collection::vec(prop::collection::vec(arg, 1..6), 1..5)
    }

    /// Cuts `bytes` at `cuts`.
    fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn any_split_of_the_input_gives_the_same_requests(
            sent in requests(),
            inline in "[ -~]{0,30}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut bytes = multibulk(&sent);
            bytes.extend(inline.bytes());
            bytes.extend(b"\r\n");
            bytes.extend(multibulk(&sent));
            let limits = Limits::authenticated(LIMIT);
            prop_assert_eq!(feed(pieces(&bytes, &cuts), limits), whole(&bytes));
        }

        #[test]
        fn valid_frames_are_read_as_redis_protocol_reads_them(sent in requests()) {
            use redis_protocol::resp2::{decode::decode, types::OwnedFrame};
            let bytes = multibulk(&sent);
            let mut expected = Vec::new();
            let mut rest = bytes.as_slice();
            while let Some((frame, length)) = decode(rest).unwrap() {
                rest = &rest[length..];
                let OwnedFrame::Array(items) = frame else { panic!("not an array") };
                expected.push(items.into_iter().map(|item| match item {
                    OwnedFrame::BulkString(arg) => arg,
                    other => panic!("not a bulk string: {other:?}"),
                }).collect::<Vec<_>>());
            }
            prop_assert_eq!(whole(&bytes), (expected, None));
        }

        #[test]
        fn noise_never_panics_and_never_takes_more_memory_than_it_has_bytes(
            noise in prop::collection::vec(
                prop_oneof![
                    4 => prop::sample::select(b"*$\r\n0123456789-\"'\\x GET".to_vec()),
                    1 => any::<u8>(),
                ],
                0..400,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut decoder = Decoder::new();
            let mut input = BytesMut::new();
            'stream: for piece in pieces(&noise, &cuts) {
                input.put_slice(piece);
                loop {
                    match decoder.next(&mut input, Limits::authenticated(LIMIT)) {
                        Ok(Some(args)) => prop_assert!(!args.is_empty()),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
                let slots = 2 * (noise.len() + ARGS_AHEAD) * size_of::<Bytes>();
                prop_assert!(decoder.held() <= noise.len() + slots);
            }
        }
    }
}

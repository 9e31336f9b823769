//! The arguments of one command, read from left to right.

use bytes::Bytes;

use crate::reply::ReplyError;

/// A cursor over a command's arguments; the command's own name (and subcommand) is behind it.
#[derive(Clone, Debug)]
pub(crate) struct Args<'a> {
    name: &'static str,
    rest: &'a [Bytes],
}

impl<'a> Args<'a> {
    /// Arguments after the name; `name` is lower case, for error lines.
    pub(crate) fn new(name: &'static str, rest: &'a [Bytes]) -> Self {
        Self { name, rest }
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything not read yet.
    pub(crate) fn rest(&mut self) -> &'a [Bytes] {
        std::mem::take(&mut self.rest)
    }

    /// The next argument, not consumed.
    pub(crate) fn peek(&self) -> Option<&'a Bytes> {
        self.rest.first()
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, ReplyError> {
        let (first, rest) = self
            .rest
            .split_first()
            .ok_or_else(|| ReplyError::Arity(self.name.into()))?;
        self.rest = rest;
        Ok(first.clone())
    }

    /// The next argument as a key.
    pub(crate) fn key(&mut self) -> Result<Bytes, ReplyError> {
        self.bytes()
    }

    /// The next argument as a signed 64-bit integer, in Redis' strict form.
    pub(crate) fn integer(&mut self) -> Result<i64, ReplyError> {
        parse_integer(&self.bytes()?).ok_or(ReplyError::NotInteger)
    }

    /// The next argument as a non-negative count.
    pub(crate) fn unsigned(&mut self) -> Result<u64, ReplyError> {
        u64::try_from(self.integer()?).map_err(|_| ReplyError::NotInteger)
    }

    /// The next argument as how many to pop, where Redis says so of what is no such number.
    pub(crate) fn positive(&mut self) -> Result<u64, ReplyError> {
        self.unsigned()
            .map_err(|_| ReplyError::err("value is out of range, must be positive"))
    }

    /// Consumes the next argument if it is `word`, in any case.
    pub(crate) fn take(&mut self, word: &str) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if first.eq_ignore_ascii_case(word.as_bytes()) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// # Errors
    /// `Syntax` when an argument is left.
    pub(crate) fn end(&self) -> Result<(), ReplyError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ReplyError::Syntax)
        }
    }

    /// # Errors
    /// `Arity` when an argument is left.
    pub(crate) fn end_arity(&self) -> Result<(), ReplyError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ReplyError::Arity(self.name.into()))
        }
    }
}

/// A signed 64-bit integer as Redis accepts it: no spaces, no `+`, no leading zeros, no `-0`.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let plain = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.len() < 19 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !plain {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A double as Redis accepts it: no spaces, no NaN, `inf` with a sign or without.
pub(crate) fn parse_double(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty()
        || text.starts_with(char::is_whitespace)
        || text.ends_with(char::is_whitespace)
    {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    (!number.is_nan()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_taken_only_in_their_one_plain_form() {
        for (text, number) in [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX)] {
            assert_eq!(parse_integer(text.as_bytes()), Some(number));
        }
        assert_eq!(
            parse_integer(i64::MIN.to_string().as_bytes()),
            Some(i64::MIN)
        );
        for text in [
            "",
            "-",
            "+1",
            "01",
            "-0",
            " 1",
            "1 ",
            "9223372036854775808",
            "1.0",
            "0x1",
        ] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }
}

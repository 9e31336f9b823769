//! JSON as Lua values. Errors say what was found where, in lua-cjson's words.

use mlua::{Lua, Value};

use super::{Config, MAX_DEPTH};
use crate::script::vm::native::Failure;

pub(super) fn decode(lua: &Lua, json: &[u8], config: Config) -> Result<Value, Failure> {
    // A zero byte in front means a wider encoding, which cannot be read byte by byte.
    if json.len() >= 2 && (json[0] == 0 || json[1] == 0) {
        return Err(Failure::text(
            "JSON parser does not support UTF-16 or UTF-32",
        ));
    }
    let mut parser = Parser {
        lua,
        json,
        at: 0,
        config,
        depth: 0,
    };
    let first = parser.token();
    let value = parser.value(first)?;
    match parser.token() {
        (_, Token::End) => Ok(value),
        other => Err(parser.expected("the end", &other)),
    }
}

#[derive(Debug)]
enum Token {
    ObjectBegin,
    ObjectEnd,
    ArrayBegin,
    ArrayEnd,
    Text(Vec<u8>),
    Number(f64),
    Boolean(bool),
    Null,
    Colon,
    Comma,
    End,
    Error(&'static str),
}

impl Token {
    fn name(&self) -> &'static str {
        match self {
            Self::ObjectBegin => "T_OBJ_BEGIN",
            Self::ObjectEnd => "T_OBJ_END",
            Self::ArrayBegin => "T_ARR_BEGIN",
            Self::ArrayEnd => "T_ARR_END",
            Self::Text(_) => "T_STRING",
            Self::Number(_) => "T_NUMBER",
            Self::Boolean(_) => "T_BOOLEAN",
            Self::Null => "T_NULL",
            Self::Colon => "T_COLON",
            Self::Comma => "T_COMMA",
            Self::End => "T_END",
            Self::Error(what) => what,
        }
    }
}

/// Where a token stands, and the token.
type Placed = (usize, Token);

struct Parser<'j> {
    lua: &'j Lua,
    json: &'j [u8],
    at: usize,
    config: Config,
    depth: usize,
}

impl Parser<'_> {
    fn expected(&self, what: &str, (place, found): &Placed) -> Failure {
        Failure::Text(format!(
            "Expected {what} but found {} at character {}",
            found.name(),
            place + 1
        ))
    }

    fn descend(&mut self) -> Result<(), Failure> {
        self.depth += 1;
        let most = usize::try_from(self.config.decode_max_depth).unwrap_or(usize::MAX);
        if self.depth > most.min(MAX_DEPTH) {
            return Err(Failure::Text(format!(
                "Found too many nested data structures ({}) at character {}",
                self.depth, self.at
            )));
        }
        Ok(())
    }

    fn value(&mut self, token: Placed) -> Result<Value, Failure> {
        Ok(match token.1 {
            Token::Text(text) => Value::String(self.lua.create_string(text)?),
            Token::Number(number) => Value::Number(number),
            Token::Boolean(value) => Value::Boolean(value),
            Token::Null => Value::NULL,
            Token::ObjectBegin => self.object()?,
            Token::ArrayBegin => self.array()?,
            _ => return Err(self.expected("value", &token)),
        })
    }

    fn object(&mut self) -> Result<Value, Failure> {
        self.descend()?;
        let table = self.lua.create_table()?;
        let mut token = self.token();
        if !matches!(token.1, Token::ObjectEnd) {
            loop {
                let Token::Text(key) = token.1 else {
                    return Err(self.expected("object key string", &token));
                };
                let colon = self.token();
                if !matches!(colon.1, Token::Colon) {
                    return Err(self.expected("colon", &colon));
                }
                let value = self.token();
                let value = self.value(value)?;
                table.raw_set(self.lua.create_string(key)?, value)?;
                token = self.token();
                match token.1 {
                    Token::ObjectEnd => break,
                    Token::Comma => token = self.token(),
                    _ => return Err(self.expected("comma or object end", &token)),
                }
            }
        }
        self.depth -= 1;
        Ok(Value::Table(table))
    }

    fn array(&mut self) -> Result<Value, Failure> {
        self.descend()?;
        let table = self.lua.create_table()?;
        let mut token = self.token();
        if !matches!(token.1, Token::ArrayEnd) {
            for index in 1.. {
                let value = self.value(token)?;
                table.raw_set(index, value)?;
                token = self.token();
                match token.1 {
                    Token::ArrayEnd => break,
                    Token::Comma => token = self.token(),
                    _ => return Err(self.expected("comma or array end", &token)),
                }
            }
        }
        self.depth -= 1;
        Ok(Value::Table(table))
    }

    fn token(&mut self) -> Placed {
        while matches!(self.json.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        let place = self.at;
        let Some(&first) = self.json.get(place) else {
            return (place, Token::End);
        };
        let single = match first {
            b'{' => Some(Token::ObjectBegin),
            b'}' => Some(Token::ObjectEnd),
            b'[' => Some(Token::ArrayBegin),
            b']' => Some(Token::ArrayEnd),
            b':' => Some(Token::Colon),
            b',' => Some(Token::Comma),
            _ => None,
        };
        if let Some(token) = single {
            self.at += 1;
            return (place, token);
        }
        let rest = &self.json[place..];
        match first {
            b'"' => return self.text(),
            b'-' | b'+' | b'0'..=b'9' => {
                if !self.config.decode_invalid && is_invalid_number(rest) {
                    return (place, Token::Error("invalid number"));
                }
                return self.number(place);
            }
            _ => {}
        }
        for (word, token) in [
            (&b"true"[..], Token::Boolean(true)),
            (b"false", Token::Boolean(false)),
            (b"null", Token::Null),
        ] {
            if rest.starts_with(word) {
                self.at += word.len();
                return (place, token);
            }
        }
        if self.config.decode_invalid
            && matches!(first, b'i' | b'I' | b'n' | b'N')
            && is_invalid_number(rest)
        {
            return self.number(place);
        }
        (place, Token::Error("invalid token"))
    }

    fn number(&mut self, place: usize) -> Placed {
        match parse_number(&self.json[place..]) {
            Some((number, length)) => {
                self.at = place + length;
                (place, Token::Number(number))
            }
            None => (place, Token::Error("invalid number")),
        }
    }

    fn text(&mut self) -> Placed {
        let begin = self.at;
        let mut out = Vec::new();
        self.at += 1;
        loop {
            let plain = self.json[self.at..]
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\'))
                .unwrap_or(self.json.len() - self.at);
            out.extend_from_slice(&self.json[self.at..self.at + plain]);
            self.at += plain;
            match self.json.get(self.at) {
                None => return (self.at, Token::Error("unexpected end of string")),
                Some(b'"') => {
                    self.at += 1;
                    return (begin, Token::Text(out));
                }
                // A backslash.
                Some(_) => {
                    let escape = self.at;
                    let simple = match self.json.get(escape + 1) {
                        Some(b'u') => match self.unicode(escape) {
                            Some((character, length)) => {
                                let mut buffer = [0; 4];
                                let utf8 = character.encode_utf8(&mut buffer);
                                out.extend_from_slice(utf8.as_bytes());
                                self.at = escape + length;
                                continue;
                            }
                            None => {
                                return (escape, Token::Error("invalid unicode escape code"));
                            }
                        },
                        Some(b'"') => b'"',
                        Some(b'\\') => b'\\',
                        Some(b'/') => b'/',
                        Some(b'b') => 0x08,
                        Some(b'f') => 0x0C,
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        _ => return (escape, Token::Error("invalid escape code")),
                    };
                    out.push(simple);
                    self.at = escape + 2;
                }
            }
        }
    }

    /// The character that the escape at `at` stands for, and how many bytes it took.
    fn unicode(&self, at: usize) -> Option<(char, usize)> {
        let unit = |at: usize| {
            let digits = self.json.get(at..at + 6)?;
            let hex = digits.strip_prefix(b"\\u")?;
            if !hex.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
        };
        let first = unit(at)?;
        match first {
            0xD800..0xDC00 => {
                let second = unit(at + 6).filter(|second| (0xDC00..0xE000).contains(second))?;
                let both = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                Some((char::from_u32(both)?, 12))
            }
            _ => Some((char::from_u32(first)?, 6)),
        }
    }
}

/// Hexadecimal, `inf` or `nan`, or with a zero too many in front.
fn is_invalid_number(text: &[u8]) -> bool {
    let text = text
        .strip_prefix(b"+")
        .or_else(|| text.strip_prefix(b"-"))
        .unwrap_or(text);
    match text {
        [b'0', second, ..] => second.eq_ignore_ascii_case(&b'x') || second.is_ascii_digit(),
        [b'0'] => false,
        [b'1'..=b'9', ..] => false,
        _ => {
            let begins = |word: &[u8]| {
                text.len() >= word.len() && text[..word.len()].eq_ignore_ascii_case(word)
            };
            begins(b"inf") || begins(b"nan")
        }
    }
}

/// The number that `text` begins with, as C's `strtod` reads it, and its length.
fn parse_number(text: &[u8]) -> Option<(f64, usize)> {
    let sign = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let negative = text.first() == Some(&b'-');
    let signed = |number: f64| if negative { -number } else { number };
    let body = &text[sign..];
    let begins =
        |word: &[u8]| body.len() >= word.len() && body[..word.len()].eq_ignore_ascii_case(word);
    if begins(b"infinity") {
        return Some((signed(f64::INFINITY), sign + 8));
    }
    if begins(b"inf") {
        return Some((signed(f64::INFINITY), sign + 3));
    }
    if begins(b"nan") {
        return Some((f64::NAN, sign + 3));
    }
    if begins(b"0x") {
        let digits = body[2..]
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits > 0 {
            let number = body[2..2 + digits].iter().fold(0.0, |number, &digit| {
                number * 16.0 + f64::from(char::from(digit).to_digit(16).unwrap_or(0))
            });
            return Some((signed(number), sign + 2 + digits));
        }
    }
    let digits = |from: usize| {
        body[from.min(body.len())..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let whole = digits(0);
    let mut length = whole;
    if body.get(length) == Some(&b'.') {
        let fraction = digits(length + 1);
        if whole + fraction > 0 {
            length += 1 + fraction;
        }
        if whole + fraction == 0 {
            return None;
        }
    } else if whole == 0 {
        return None;
    }
    if matches!(body.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(body.get(length + 1), Some(b'-' | b'+')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
        }
    }
    let number: f64 = std::str::from_utf8(&body[..length]).ok()?.parse().ok()?;
    Some((signed(number), sign + length))
}

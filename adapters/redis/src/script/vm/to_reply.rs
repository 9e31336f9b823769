//! What a script returns, as a reply (Redis documentation, *Lua API reference*, data type conversion).

use std::collections::BTreeMap;

use bytes::Bytes;
use mlua::{LuaString, Table, Value};

use crate::reply::{Reply, ReplyError, Resp};

/// A script answers no more than this; one string may stand in a table many times.
pub(super) const REPLY_BYTES: usize = 64 << 20;

/// What an item costs beside its bytes.
const ITEM_BYTES: usize = 48;

/// Tables nested deeper are no reply.
const DEPTH: usize = 200;

/// The reply for `value`, returned by a script that speaks `resp`.
pub(super) fn reply(value: Value, resp: Resp) -> Result<Reply, ReplyError> {
    let mut conversion = Conversion { resp, bytes: 0 };
    conversion.reply(value, 0)
}

struct Conversion {
    resp: Resp,
    bytes: usize,
}

impl Conversion {
    fn spend(&mut self, bytes: usize) -> Result<(), ReplyError> {
        self.bytes += bytes + ITEM_BYTES;
        if self.bytes > REPLY_BYTES {
            return Err(ReplyError::err(format_args!(
                "a script's reply is larger than {REPLY_BYTES} bytes"
            )));
        }
        Ok(())
    }

    fn text(&mut self, text: &LuaString) -> Result<Bytes, ReplyError> {
        let bytes = text.as_bytes();
        self.spend(bytes.len())?;
        Ok(Bytes::copy_from_slice(&bytes))
    }

    /// A text that fits into one line.
    fn line(&mut self, text: &LuaString) -> Result<Bytes, ReplyError> {
        let line = self.text(text)?;
        if !line.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return Ok(line);
        }
        Ok(line
            .iter()
            .map(|&byte| match byte {
                b'\r' | b'\n' => b' ',
                byte => byte,
            })
            .collect())
    }

    fn reply(&mut self, value: Value, depth: usize) -> Result<Reply, ReplyError> {
        Ok(match value {
            Value::String(text) => Reply::Bulk(self.text(&text)?),
            Value::Integer(number) => Reply::Integer(number),
            // As C casts on the machines Redis runs on: what does not fit is the least integer.
            Value::Number(number) if number.is_nan() || number.abs() >= 9.3e18 => {
                Reply::Integer(i64::MIN)
            }
            Value::Number(number) => Reply::Integer(number as i64),
            Value::Boolean(value) if self.resp == Resp::V3 => Reply::Boolean(value),
            Value::Boolean(true) => Reply::Integer(1),
            Value::Table(table) => self.table(&table, depth)?,
            _ => Reply::Null,
        })
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<Reply, ReplyError> {
        if depth > DEPTH {
            return Err(ReplyError::err("reached lua stack limit"));
        }
        self.spend(0)?;
        let mut marked = Marked::default();
        let mut items = Vec::new();
        let mut later = BTreeMap::new();
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(failed)?;
            match key {
                Value::Integer(index) if index == items.len() as i64 + 1 => {
                    items.push(self.reply(value, depth + 1)?);
                }
                Value::Integer(index) if index > 0 => {
                    later.insert(index, value);
                }
                Value::String(name) => marked.note(&name.as_bytes(), value),
                _ => {}
            }
        }
        if let Some(reply) = self.marked(marked, depth)? {
            return Ok(reply);
        }
        while let Some(value) = later.remove(&(items.len() as i64 + 1)) {
            items.push(self.reply(value, depth + 1)?);
        }
        Ok(Reply::Array(items))
    }

    /// The reply for a table that says by a field what it is; in Redis' order of looking.
    fn marked(&mut self, marked: Marked, depth: usize) -> Result<Option<Reply>, ReplyError> {
        Ok(Some(if let Some(text) = marked.err {
            Reply::Error(self.line(&text)?)
        } else if let Some(text) = marked.ok {
            Reply::Status(self.line(&text)?)
        } else if let Some(number) = marked.double {
            Reply::Double(number)
        } else if let Some(map) = marked.map {
            let mut pairs = Vec::new();
            for pair in map.pairs::<Value, Value>() {
                let (key, value) = pair.map_err(failed)?;
                pairs.push((self.reply(key, depth + 1)?, self.reply(value, depth + 1)?));
            }
            Reply::Map(pairs)
        } else if let Some(set) = marked.set {
            let mut items = Vec::new();
            for pair in set.pairs::<Value, Value>() {
                let (key, _) = pair.map_err(failed)?;
                items.push(self.reply(key, depth + 1)?);
            }
            Reply::Set(items)
        } else if let Some(digits) = marked.big_number {
            Reply::BigNumber(self.line(&digits)?)
        } else if let Some((format, text)) = marked.verbatim {
            let format = if &*format.as_bytes() == b"mkd" {
                "mkd"
            } else {
                "txt"
            };
            Reply::Verbatim(format, self.text(&text)?)
        } else {
            return Ok(None);
        }))
    }
}

fn failed(error: mlua::Error) -> ReplyError {
    ReplyError::err(format_args!(
        "a script's reply cannot be read: {}",
        super::api::first_line(&error)
    ))
}

/// The fields by which a table says that it is no array.
#[derive(Default)]
struct Marked {
    err: Option<LuaString>,
    ok: Option<LuaString>,
    double: Option<f64>,
    map: Option<Table>,
    set: Option<Table>,
    big_number: Option<LuaString>,
    verbatim: Option<(LuaString, LuaString)>,
}

impl Marked {
    fn note(&mut self, name: &[u8], value: Value) {
        match (name, value) {
            (b"err", Value::String(text)) => self.err = Some(text),
            (b"ok", Value::String(text)) => self.ok = Some(text),
            (b"double", Value::Number(number)) => self.double = Some(number),
            (b"double", Value::Integer(number)) => self.double = Some(number as f64),
            (b"map", Value::Table(table)) => self.map = Some(table),
            (b"set", Value::Table(table)) => self.set = Some(table),
            (b"big_number", Value::String(text)) => self.big_number = Some(text),
            (b"verbatim_string", Value::Table(table)) => {
                if let (Ok(Value::String(format)), Ok(Value::String(text))) =
                    (table.raw_get("format"), table.raw_get("string"))
                {
                    self.verbatim = Some((format, text));
                }
            }
            _ => {}
        }
    }
}

//! Replies of commands as Lua values (Redis documentation, *Lua API reference*, data type conversion).

use mlua::{Lua, Table, Value};

use crate::reply::{Reply, Resp, format_double};

/// `reply` as a script that speaks `resp` sees it.
pub(super) fn value(lua: &Lua, reply: Reply, resp: Resp) -> mlua::Result<Value> {
    let newer = resp == Resp::V3;
    Ok(match reply {
        Reply::Bulk(bytes) => text(lua, &bytes)?,
        Reply::Integer(number) => Value::Integer(number),
        Reply::Simple(word) => field(lua, "ok", text(lua, word.as_bytes())?)?,
        Reply::Status(word) => field(lua, "ok", text(lua, &word)?)?,
        Reply::Error(line) => {
            let table = lua.create_table_with_capacity(0, 2)?;
            table.raw_set("err", text(lua, &line)?)?;
            table.raw_set("ignore_error_stats_update", true)?;
            Value::Table(table)
        }
        Reply::Null | Reply::NullArray | Reply::Block => {
            if newer {
                Value::Nil
            } else {
                Value::Boolean(false)
            }
        }
        Reply::Double(number) if newer => field(lua, "double", Value::Number(number))?,
        Reply::Double(number) => text(lua, format_double(number).as_bytes())?,
        Reply::Boolean(value) if newer => Value::Boolean(value),
        Reply::Boolean(value) => Value::Integer(i64::from(value)),
        Reply::BigNumber(digits) if newer => field(lua, "big_number", text(lua, &digits)?)?,
        Reply::BigNumber(digits) => text(lua, &digits)?,
        Reply::Verbatim(format, body) if newer => {
            let table = lua.create_table_with_capacity(0, 2)?;
            table.raw_set("format", text(lua, format.as_bytes())?)?;
            table.raw_set("string", text(lua, &body)?)?;
            field(lua, "verbatim_string", Value::Table(table))?
        }
        Reply::Verbatim(_, body) => text(lua, &body)?,
        Reply::Array(items) => array(lua, items, resp)?,
        Reply::Set(items) if newer => {
            let table = lua.create_table_with_capacity(0, items.len())?;
            for item in items {
                table.raw_set(value(lua, item, resp)?, true)?;
            }
            field(lua, "set", Value::Table(table))?
        }
        Reply::Set(items) => array(lua, items, resp)?,
        Reply::Map(pairs) if newer => {
            let table = lua.create_table_with_capacity(0, pairs.len())?;
            for (key, item) in pairs {
                table.raw_set(value(lua, key, resp)?, value(lua, item, resp)?)?;
            }
            field(lua, "map", Value::Table(table))?
        }
        Reply::Pairs(pairs) if newer => {
            let pairs = pairs
                .into_iter()
                .map(|(first, second)| Reply::Array(vec![first, second]))
                .collect();
            array(lua, pairs, resp)?
        }
        Reply::Map(pairs) | Reply::Pairs(pairs) => {
            let items = pairs
                .into_iter()
                .flat_map(|(first, second)| [first, second])
                .collect();
            array(lua, items, resp)?
        }
    })
}

fn text(lua: &Lua, bytes: &[u8]) -> mlua::Result<Value> {
    lua.create_string(bytes).map(Value::String)
}

fn field(lua: &Lua, name: &str, value: Value) -> mlua::Result<Value> {
    let table = lua.create_table_with_capacity(0, 1)?;
    table.raw_set(name, value)?;
    Ok(Value::Table(table))
}

fn array(lua: &Lua, items: Vec<Reply>, resp: Resp) -> mlua::Result<Value> {
    let table: Table = lua.create_table_with_capacity(items.len(), 0)?;
    for (index, item) in items.into_iter().enumerate() {
        table.raw_set(index + 1, value(lua, item, resp)?)?;
    }
    Ok(Value::Table(table))
}

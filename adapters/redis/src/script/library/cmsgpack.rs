//! `cmsgpack`: MessagePack (<https://github.com/msgpack/msgpack/blob/master/spec.md>), as lua-cmsgpack
//! 0.4 reads and writes it.

use bytes::BufMut;
use mlua::{Lua, MultiValue, Table, Value};

use super::bounded;
use crate::script::vm::native::{Arguments, Failure, Natives};

/// A table nested deeper is packed as nil.
const MAX_NESTING: usize = 16;

/// What is nested deeper is not unpacked: the original has only the stack for a bound.
const MAX_DEPTH: usize = 200;

pub(super) fn register(natives: &Natives<'_>) -> mlua::Result<()> {
    natives.add("cmsgpack.pack", |arguments| {
        if arguments.len() == 0 {
            return Err(Failure::text(
                "bad argument #0 to 'pack' (MessagePack pack needs input.)",
            ));
        }
        let mut out = Vec::new();
        for value in arguments.as_slice() {
            pack(&mut out, value, 0)?;
        }
        Ok(arguments.lua.create_string(out)?)
    })?;
    natives.add("cmsgpack.unpack", |arguments| unpack(arguments, 0, 0))?;
    natives.add("cmsgpack.unpack_one", |arguments| {
        let offset = arguments.integer_or(1, 0)?;
        unpack(arguments, 1, offset)
    })?;
    natives.add("cmsgpack.unpack_limit", |arguments| {
        let limit = arguments.integer(1)?;
        let offset = arguments.integer_or(2, 0)?;
        unpack(arguments, limit, offset)
    })
}

fn pack(out: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), Failure> {
    bounded(out)?;
    match value {
        Value::String(text) => pack_text(out, &text.as_bytes()),
        Value::Boolean(value) => out.put_u8(if *value { 0xC3 } else { 0xC2 }),
        Value::Integer(number) => pack_integer(out, *number),
        Value::Number(number) => pack_number(out, *number),
        Value::Table(table) if depth < MAX_NESTING => return pack_table(out, table, depth),
        _ => out.put_u8(0xC0),
    }
    Ok(())
}

/// No request and no table is 4 GiB large.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn pack_text(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        count @ 0..32 => out.put_u8(0xA0 | count as u8),
        count @ 32..0x100 => out.put_slice(&[0xD9, count as u8]),
        count @ 0x100..0x1_0000 => {
            out.put_u8(0xDA);
            out.put_u16(count as u16);
        }
        count => {
            out.put_u8(0xDB);
            out.put_u32(length(count));
        }
    }
    out.put_slice(text);
}

fn pack_integer(out: &mut Vec<u8>, number: i64) {
    match number {
        0..0x80 => out.put_u8(number as u8),
        0x80..0x100 => out.put_slice(&[0xCC, number as u8]),
        0x100..0x1_0000 => {
            out.put_u8(0xCD);
            out.put_u16(number as u16);
        }
        0x1_0000..0x1_0000_0000 => {
            out.put_u8(0xCE);
            out.put_u32(number as u32);
        }
        0x1_0000_0000.. => {
            out.put_u8(0xCF);
            out.put_i64(number);
        }
        -32..0 => out.put_i8(number as i8),
        -0x80..-32 => {
            out.put_u8(0xD0);
            out.put_i8(number as i8);
        }
        -0x8000..-0x80 => {
            out.put_u8(0xD1);
            out.put_i16(number as i16);
        }
        -0x8000_0000..-0x8000 => {
            out.put_u8(0xD2);
            out.put_i32(number as i32);
        }
        _ => {
            out.put_u8(0xD3);
            out.put_i64(number);
        }
    }
}

fn pack_number(out: &mut Vec<u8>, number: f64) {
    if number == number.trunc() && number.abs() < 9.2e18 {
        pack_integer(out, number as i64);
    } else if f64::from(number as f32) == number {
        out.put_u8(0xCA);
        out.put_f32(number as f32);
    } else {
        out.put_u8(0xCB);
        out.put_f64(number);
    }
}

/// A table is an array if its keys are 1, 2, 3 … without a gap.
fn pack_table(out: &mut Vec<u8>, table: &Table, depth: usize) -> Result<(), Failure> {
    let (mut count, mut most, mut array) = (0usize, 0, true);
    for pair in table.pairs::<Value, Value>() {
        let (key, _) = pair?;
        count += 1;
        match key {
            Value::Integer(index) if index > 0 => most = most.max(index),
            _ => array = false,
        }
    }
    if array && most == i64::try_from(count).unwrap_or(i64::MAX) && count > 0 {
        match count {
            0..16 => out.put_u8(0x90 | count as u8),
            16..0x1_0000 => {
                out.put_u8(0xDC);
                out.put_u16(count as u16);
            }
            _ => {
                out.put_u8(0xDD);
                out.put_u32(length(count));
            }
        }
        for index in 1..=count {
            pack(out, &table.raw_get::<Value>(index)?, depth + 1)?;
        }
        return Ok(());
    }
    match count {
        0 => out.put_u8(0x90),
        1..16 => out.put_u8(0x80 | count as u8),
        16..0x1_0000 => {
            out.put_u8(0xDE);
            out.put_u16(count as u16);
        }
        _ => {
            out.put_u8(0xDF);
            out.put_u32(length(count));
        }
    }
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        pack(out, &key, depth + 1)?;
        pack(out, &value, depth + 1)?;
    }
    Ok(())
}

/// Unpacks from `offset`, at most `limit` values (0: all); with a limit, the offset to go on from
/// (-1 at the end) comes first.
fn unpack(arguments: &Arguments<'_>, limit: i64, offset: i64) -> Result<MultiValue, Failure> {
    let data = arguments.string(0)?;
    let data = data.as_bytes();
    if offset < 0 || limit < 0 {
        return Err(Failure::Text(format!(
            "Invalid request to unpack with offset of {offset} and limit of {}.",
            data.len()
        )));
    }
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    if offset > data.len() {
        return Err(Failure::Text(format!(
            "Start offset {offset} greater than input length {}.",
            data.len()
        )));
    }
    let mut reader = Reader {
        lua: arguments.lua,
        rest: &data[offset..],
    };
    let mut values = Vec::new();
    while !reader.rest.is_empty() && (limit == 0 || (values.len() as i64) < limit) {
        values.push(reader.value(0)?);
    }
    if limit > 0 {
        let next = if reader.rest.is_empty() {
            -1
        } else {
            i64::try_from(data.len() - reader.rest.len()).unwrap_or(-1)
        };
        values.insert(0, Value::Integer(next));
    }
    Ok(MultiValue::from_vec(values))
}

struct Reader<'a> {
    lua: &'a Lua,
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Failure> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| Failure::text("Missing bytes in input."))?;
        self.rest = rest;
        Ok(taken)
    }

    /// A big-endian number of `count` bytes, at most 8.
    fn number(&mut self, count: usize) -> Result<u64, Failure> {
        Ok(self
            .take(count)?
            .iter()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn count(&mut self, bytes: usize) -> Result<usize, Failure> {
        Ok(usize::try_from(self.number(bytes)?).unwrap_or(usize::MAX))
    }

    fn text(&mut self, count: usize) -> Result<Value, Failure> {
        let lua = self.lua;
        let text = self.take(count)?;
        Ok(Value::String(lua.create_string(text)?))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Failure> {
        if depth > MAX_DEPTH {
            return Err(Failure::text("Bad data format in input."));
        }
        let kind = self.take(1)?[0];
        Ok(match kind {
            0x00..=0x7F => Value::Integer(i64::from(kind)),
            0xE0..=0xFF => Value::Integer(i64::from(kind.cast_signed())),
            0x80..=0x8F => self.map(usize::from(kind & 0x0F), depth)?,
            0x90..=0x9F => self.array(usize::from(kind & 0x0F), depth)?,
            0xA0..=0xBF => self.text(usize::from(kind & 0x1F))?,
            0xC0 => Value::Nil,
            0xC2 => Value::Boolean(false),
            0xC3 => Value::Boolean(true),
            0xD9 => {
                let count = self.count(1)?;
                self.text(count)?
            }
            0xDA => {
                let count = self.count(2)?;
                self.text(count)?
            }
            0xDB => {
                let count = self.count(4)?;
                self.text(count)?
            }
            0xCA => Value::Number(f64::from(f32::from_bits(self.number(4)? as u32))),
            0xCB => Value::Number(f64::from_bits(self.number(8)?)),
            0xCC => Value::Number(self.number(1)? as f64),
            0xCD => Value::Number(self.number(2)? as f64),
            0xCE => Value::Number(self.number(4)? as f64),
            0xCF => Value::Number(self.number(8)? as f64),
            0xD0 => Value::Integer(i64::from(self.number(1)? as i8)),
            0xD1 => Value::Integer(i64::from(self.number(2)? as i16)),
            0xD2 => Value::Integer(i64::from(self.number(4)? as i32)),
            0xD3 => Value::Number(self.number(8)?.cast_signed() as f64),
            0xDC => {
                let count = self.count(2)?;
                self.array(count, depth)?
            }
            0xDD => {
                let count = self.count(4)?;
                self.array(count, depth)?
            }
            0xDE => {
                let count = self.count(2)?;
                self.map(count, depth)?
            }
            0xDF => {
                let count = self.count(4)?;
                self.map(count, depth)?
            }
            _ => return Err(Failure::text("Bad data format in input.")),
        })
    }

    fn array(&mut self, count: usize, depth: usize) -> Result<Value, Failure> {
        let table = self.lua.create_table()?;
        for index in 1..=count {
            let value = self.value(depth + 1)?;
            table.raw_set(index, value)?;
        }
        Ok(Value::Table(table))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Value, Failure> {
        let table = self.lua.create_table()?;
        for _ in 0..count {
            let key = self.value(depth + 1)?;
            let value = self.value(depth + 1)?;
            match key {
                // No table can hold these.
                Value::Nil => return Err(Failure::text("table index is nil")),
                Value::Number(number) if number.is_nan() => {
                    return Err(Failure::text("table index is NaN"));
                }
                key => table.raw_set(key, value)?,
            }
        }
        Ok(Value::Table(table))
    }
}

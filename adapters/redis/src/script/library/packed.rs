//! `struct`: values in binary forms (Roberto Ierusalimschy's `struct` 0.2, as Redis has it).
//!
//! ```text
//! > < big, little endian      ! n  alignment (n a power of two; default: the machine's)
//! x   a padding byte          b/B h/H l/L T i/I n   integers: 1, 2, 8, 8, 4 or n bytes
//! f d a float, a double       s    a string that ends with a zero
//! c n  n bytes of a string; c0: as many as the number before says
//! ```

use mlua::{LuaString, MultiValue, Value};

use super::bounded;
use crate::script::vm::native::{Arguments, Failure, Natives};

const MAX_INTEGER: usize = 32;
const NATIVE_ALIGNMENT: usize = 8;

pub(super) fn register(natives: &Natives<'_>) -> mlua::Result<()> {
    natives.add("struct.pack", |arguments| {
        let packed = pack(arguments)?;
        Ok(arguments.lua.create_string(packed)?)
    })?;
    natives.add("struct.unpack", unpack)?;
    natives.add("struct.size", size)
}

/// One item of a format.
#[derive(Clone, Copy, Debug)]
enum Item {
    Padding,
    Integer { size: usize, signed: bool },
    Float,
    Double,
    ZeroEnded,
    Chars(usize),
}

/// Reads a format from left to right.
struct Format<'f> {
    text: &'f [u8],
    big_endian: bool,
    alignment: usize,
}

impl<'f> Format<'f> {
    fn new(text: &'f [u8]) -> Self {
        Self {
            text,
            big_endian: cfg!(target_endian = "big"),
            alignment: 1,
        }
    }

    fn number(&mut self) -> Result<Option<usize>, Failure> {
        let mut number: Option<usize> = None;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.text {
            let digit = usize::from(digit - b'0');
            number = Some(number.unwrap_or(0) * 10 + digit);
            if number > Some(i32::MAX as usize / 10 - 1) {
                return Err(Failure::text("integral size overflow"));
            }
            self.text = rest;
        }
        Ok(number)
    }

    /// The next item, after what only sets how items are read.
    fn next(&mut self, arguments: &Arguments<'_>) -> Result<Option<Item>, Failure> {
        loop {
            let [option, rest @ ..] = self.text else {
                return Ok(None);
            };
            self.text = rest;
            let sized = |size: usize, signed: bool| Item::Integer { size, signed };
            return Ok(Some(match option {
                b'x' => Item::Padding,
                b'b' => sized(1, true),
                b'B' => sized(1, false),
                b'h' => sized(2, true),
                b'H' => sized(2, false),
                b'l' => sized(8, true),
                b'L' | b'T' => sized(8, false),
                b'i' | b'I' => {
                    let size = self.number()?.unwrap_or(4);
                    if size > MAX_INTEGER {
                        return Err(Failure::Text(format!(
                            "integral size {size} is larger than limit of {MAX_INTEGER}"
                        )));
                    }
                    sized(size, *option == b'i')
                }
                b'f' => Item::Float,
                b'd' => Item::Double,
                b's' => Item::ZeroEnded,
                b'c' => Item::Chars(self.number()?.unwrap_or(1)),
                b' ' => continue,
                b'>' => {
                    self.big_endian = true;
                    continue;
                }
                b'<' => {
                    self.big_endian = false;
                    continue;
                }
                b'!' => {
                    let alignment = self.number()?.unwrap_or(NATIVE_ALIGNMENT);
                    if !alignment.is_power_of_two() {
                        return Err(Failure::Text(format!(
                            "alignment {alignment} is not a power of 2"
                        )));
                    }
                    self.alignment = alignment;
                    continue;
                }
                other => {
                    return Err(arguments.bad(
                        0,
                        &format!("invalid format option '{}'", char::from(*other)),
                    ));
                }
            }));
        }
    }

    /// Bytes to skip so that `item` is aligned at `at`.
    fn padding(&self, item: Item, at: usize) -> usize {
        let size = match item {
            Item::Integer { size, .. } => size,
            Item::Float => 4,
            Item::Double => 8,
            Item::Padding | Item::ZeroEnded | Item::Chars(_) => return 0,
        };
        let alignment = size.min(self.alignment);
        if alignment > 1 {
            (alignment - (at & (alignment - 1))) & (alignment - 1)
        } else {
            0
        }
    }
}

fn pack(arguments: &Arguments<'_>) -> Result<Vec<u8>, Failure> {
    let text = arguments.string(0)?;
    let text = text.as_bytes();
    let mut format = Format::new(&text);
    let mut out = Vec::new();
    let mut next = 1;
    while let Some(item) = format.next(arguments)? {
        bounded(&out)?;
        out.resize(out.len() + format.padding(item, out.len()), 0);
        match item {
            Item::Padding => out.push(0),
            Item::Integer { size, .. } => {
                let number = arguments.number(next)?;
                // As C casts: what is negative wraps, what does not fit is the least integer.
                let value = if number < 0.0 {
                    (number as i64).cast_unsigned()
                } else if number < 18_446_744_073_709_551_616.0 {
                    number as u64
                } else {
                    1 << 63
                };
                let fill = if number < 0.0 { 0xFF } else { 0 };
                let mut bytes = [fill; MAX_INTEGER];
                bytes[..8].copy_from_slice(&value.to_le_bytes());
                if size > 8 {
                    // The original writes zeros above 64 bits.
                    bytes[8..].fill(0);
                }
                let bytes = &mut bytes[..size];
                if format.big_endian {
                    bytes.reverse();
                }
                out.extend_from_slice(bytes);
                next += 1;
            }
            Item::Float => {
                let value = arguments.number(next)? as f32;
                out.extend_from_slice(&if format.big_endian {
                    value.to_be_bytes()
                } else {
                    value.to_le_bytes()
                });
                next += 1;
            }
            Item::Double => {
                let value = arguments.number(next)?;
                out.extend_from_slice(&if format.big_endian {
                    value.to_be_bytes()
                } else {
                    value.to_le_bytes()
                });
                next += 1;
            }
            Item::ZeroEnded | Item::Chars(_) => {
                let text = arguments.string(next)?;
                let text = text.as_bytes();
                next += 1;
                let size = match item {
                    Item::Chars(0) | Item::ZeroEnded => text.len(),
                    Item::Chars(size) if text.len() < size => {
                        return Err(arguments.bad(next - 1 + 1, "string too short"));
                    }
                    Item::Chars(size) => size,
                    _ => 0,
                };
                out.extend_from_slice(&text[..size]);
                if matches!(item, Item::ZeroEnded) {
                    out.push(0);
                }
            }
        }
    }
    bounded(&out)?;
    Ok(out)
}

fn unpack(arguments: &Arguments<'_>) -> Result<MultiValue, Failure> {
    let (text, data) = (arguments.string(0)?, arguments.string(1)?);
    let (text, data) = (text.as_bytes(), data.as_bytes());
    let position = arguments.integer_or(2, 1)?;
    let mut at = match usize::try_from(position) {
        Ok(position) if position > 0 => position - 1,
        // The original takes what is before the data for far behind it.
        _ => usize::MAX / 2,
    };
    let mut format = Format::new(&text);
    let mut results: Vec<Value> = Vec::new();
    let short = || arguments.bad(1, "data string too short");
    let take = |at: usize, size: usize| -> Result<&[u8], Failure> {
        at.checked_add(size)
            .and_then(|end| data.get(at..end))
            .ok_or_else(short)
    };
    let string =
        |bytes: &[u8]| -> Result<LuaString, Failure> { Ok(arguments.lua.create_string(bytes)?) };
    while let Some(item) = format.next(arguments)? {
        at += format.padding(item, at);
        match item {
            Item::Padding => {
                take(at, 1)?;
                at += 1;
            }
            Item::Integer { size, signed } => {
                let bytes = take(at, size)?;
                results.push(integer(bytes, signed, format.big_endian));
                at += size;
            }
            Item::Float => {
                let mut bytes: [u8; 4] = take(at, 4)?.try_into().map_err(|_| short())?;
                if format.big_endian {
                    bytes.reverse();
                }
                results.push(Value::Number(f64::from(f32::from_le_bytes(bytes))));
                at += 4;
            }
            Item::Double => {
                let mut bytes: [u8; 8] = take(at, 8)?.try_into().map_err(|_| short())?;
                if format.big_endian {
                    bytes.reverse();
                }
                results.push(Value::Number(f64::from_le_bytes(bytes)));
                at += 8;
            }
            Item::Chars(size) => {
                let size = if size == 0 {
                    let size = match results.pop() {
                        Some(Value::Integer(size)) => size,
                        Some(Value::Number(size)) => size as i64,
                        _ => return Err(Failure::text("format 'c0' needs a previous size")),
                    };
                    usize::try_from(size).map_err(|_| short())?
                } else {
                    size
                };
                results.push(Value::String(string(take(at, size)?)?));
                at += size;
            }
            Item::ZeroEnded => {
                let rest = data.get(at..).ok_or_else(short)?;
                let length = rest
                    .iter()
                    .position(|&byte| byte == 0)
                    .ok_or_else(|| Failure::text("unfinished string in data"))?;
                results.push(Value::String(string(&rest[..length])?));
                at += length + 1;
            }
        }
    }
    results.push(Value::Integer(i64::try_from(at).unwrap_or(i64::MAX) + 1));
    Ok(MultiValue::from_vec(results))
}

fn integer(bytes: &[u8], signed: bool, big_endian: bool) -> Value {
    let mut value: u64 = 0;
    let mut add = |byte: &u8| value = value << 8 | u64::from(*byte);
    if big_endian {
        bytes.iter().for_each(&mut add);
    } else {
        bytes.iter().rev().for_each(&mut add);
    }
    if !signed {
        return Value::Number(value as f64);
    }
    let unused = 64usize.saturating_sub(bytes.len() * 8);
    if unused == 64 {
        return Value::Integer(0);
    }
    Value::Integer(value.cast_signed() << unused >> unused)
}

fn size(arguments: &Arguments<'_>) -> Result<usize, Failure> {
    let text = arguments.string(0)?;
    let text = text.as_bytes();
    let mut format = Format::new(&text);
    let mut total: usize = 0;
    while let Some(item) = format.next(arguments)? {
        total += format.padding(item, total);
        total += match item {
            Item::Padding => 1,
            Item::Integer { size, .. } => size,
            Item::Float => 4,
            Item::Double => 8,
            Item::ZeroEnded => return Err(arguments.bad(0, "option 's' has no fixed size")),
            Item::Chars(0) => return Err(arguments.bad(0, "option 'c0' has no fixed size")),
            Item::Chars(size) => size,
        };
        if total > i32::MAX as usize {
            return Err(Failure::text("not enough memory"));
        }
    }
    Ok(total)
}

//! `cjson`: JSON as lua-cjson 2.1 reads and writes it (<https://kyne.au/~mark/software/lua-cjson-manual.html>).
//!
//! Its settings hold for the script that changes them: each begins with the defaults.

mod decode;
mod encode;

use std::cell::Cell;
use std::rc::Rc;

use mlua::Value;

use crate::script::vm::Settings as VmSettings;
use crate::script::vm::native::{Arguments, Failure, Natives};

/// Deeper than this no setting goes: both ways recurse on the executor's stack.
const MAX_DEPTH: usize = 200;

/// What becomes of numbers that JSON does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    Refuse,
    Write,
    Null,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    sparse_convert: bool,
    sparse_ratio: i64,
    sparse_safe: i64,
    encode_max_depth: i64,
    decode_max_depth: i64,
    precision: i64,
    keep_buffer: bool,
    encode_invalid: Invalid,
    decode_invalid: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sparse_convert: false,
            sparse_ratio: 2,
            sparse_safe: 10,
            encode_max_depth: 1000,
            decode_max_depth: 1000,
            precision: 14,
            keep_buffer: true,
            encode_invalid: Invalid::Refuse,
            decode_invalid: true,
        }
    }
}

/// The settings of the script that runs.
#[derive(Debug, Default)]
pub(in crate::script) struct Settings(Cell<Config>);

impl Settings {
    pub(in crate::script) fn reset(&self) {
        self.0.set(Config::default());
    }

    fn change(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.0.get();
        change(&mut config);
        self.0.set(config);
    }
}

pub(super) fn register(natives: &Natives<'_>, settings: &Rc<VmSettings>) -> mlua::Result<()> {
    let of = Rc::clone(settings);
    natives.add("cjson.encode", move |arguments| {
        only_argument(arguments)?;
        let json = encode::encode(&arguments.value(0), of.cjson.0.get())?;
        Ok(arguments.lua.create_string(json)?)
    })?;
    let of = Rc::clone(settings);
    natives.add("cjson.decode", move |arguments| {
        only_argument(arguments)?;
        let json = arguments.string(0)?;
        decode::decode(arguments.lua, &json.as_bytes(), of.cjson.0.get())
    })?;
    let of = Rc::clone(settings);
    natives.add("cjson.encode_sparse_array", move |arguments| {
        let config = of.cjson.0.get();
        let convert = boolean(arguments, 0, config.sparse_convert)?;
        let ratio = integer(arguments, 1, config.sparse_ratio, 0, i64::from(i32::MAX))?;
        let safe = integer(arguments, 2, config.sparse_safe, 0, i64::from(i32::MAX))?;
        of.cjson.change(|config| {
            config.sparse_convert = convert;
            config.sparse_ratio = ratio;
            config.sparse_safe = safe;
        });
        Ok((convert, ratio, safe))
    })?;
    setting(
        natives,
        settings,
        "cjson.encode_max_depth",
        i64::from(i32::MAX),
        |config| &mut config.encode_max_depth,
    )?;
    setting(
        natives,
        settings,
        "cjson.decode_max_depth",
        i64::from(i32::MAX),
        |config| &mut config.decode_max_depth,
    )?;
    setting(
        natives,
        settings,
        "cjson.encode_number_precision",
        14,
        |config| &mut config.precision,
    )?;
    let of = Rc::clone(settings);
    natives.add("cjson.encode_keep_buffer", move |arguments| {
        let keep = boolean(arguments, 0, of.cjson.0.get().keep_buffer)?;
        of.cjson.change(|config| config.keep_buffer = keep);
        Ok(keep)
    })?;
    let of = Rc::clone(settings);
    natives.add("cjson.encode_invalid_numbers", move |arguments| {
        let invalid = match arguments.value(0) {
            Value::String(word) if &*word.as_bytes() == b"null" => Invalid::Null,
            Value::String(word) => {
                return Err(
                    arguments.bad(0, &format!("invalid option '{}'", word.to_string_lossy()))
                );
            }
            _ => match boolean(
                arguments,
                0,
                of.cjson.0.get().encode_invalid == Invalid::Write,
            )? {
                true => Invalid::Write,
                false if arguments.is_absent(0) => of.cjson.0.get().encode_invalid,
                false => Invalid::Refuse,
            },
        };
        of.cjson.change(|config| config.encode_invalid = invalid);
        Ok(match invalid {
            Invalid::Refuse => Value::Boolean(false),
            Invalid::Write => Value::Boolean(true),
            Invalid::Null => Value::String(arguments.lua.create_string("null")?),
        })
    })?;
    let of = Rc::clone(settings);
    natives.add("cjson.decode_invalid_numbers", move |arguments| {
        let decode = boolean(arguments, 0, of.cjson.0.get().decode_invalid)?;
        of.cjson.change(|config| config.decode_invalid = decode);
        Ok(decode)
    })
}

fn setting(
    natives: &Natives<'_>,
    settings: &Rc<VmSettings>,
    name: &'static str,
    most: i64,
    place: fn(&mut Config) -> &mut i64,
) -> mlua::Result<()> {
    let of = Rc::clone(settings);
    natives.add(name, move |arguments| {
        let mut config = of.cjson.0.get();
        let value = integer(arguments, 0, *place(&mut config), 1, most)?;
        *place(&mut config) = value;
        of.cjson.0.set(config);
        Ok(value)
    })
}

fn only_argument(arguments: &Arguments<'_>) -> Result<(), Failure> {
    if arguments.len() == 1 {
        Ok(())
    } else {
        Err(arguments.bad(0, "expected 1 argument"))
    }
}

fn integer(
    arguments: &Arguments<'_>,
    index: usize,
    now: i64,
    least: i64,
    most: i64,
) -> Result<i64, Failure> {
    if arguments.is_absent(index) {
        return Ok(now);
    }
    let value = arguments.integer(index)?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(arguments.bad(
            index,
            &format!("expected integer between {least} and {most}"),
        ))
    }
}

fn boolean(arguments: &Arguments<'_>, index: usize, now: bool) -> Result<bool, Failure> {
    match arguments.value(index) {
        Value::Nil => Ok(now),
        Value::Boolean(value) => Ok(value),
        Value::String(word) => match &*word.as_bytes() {
            b"on" => Ok(true),
            b"off" => Ok(false),
            other => Err(arguments.bad(
                index,
                &format!("invalid option '{}'", String::from_utf8_lossy(other)),
            )),
        },
        _ => Err(arguments.bad(index, "boolean expected")),
    }
}

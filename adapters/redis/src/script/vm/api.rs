//! The `redis` library but for its commands, random numbers, and what becomes of a script's error.

use std::cell::Cell;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use mlua::{Function, Lua, MultiValue, Table, Value};

use super::control::Control;
use super::native::{self, Arguments, Failure, Natives};
use super::pattern::{Capture, Matcher};
use super::{Registered, Registering, Settings};
use crate::commands;
use crate::info::REDIS_VERSION;
use crate::reply::{ReplyError, Resp};
use crate::script::shebang::{self, Flags};

/// The name of the prelude's chunk: its frames are not shown.
pub(super) const PRELUDE: &str = "=leadline";

const LOG_LEVELS: std::ops::RangeInclusive<i64> = 0..=3;

pub(super) fn register(
    natives: &Natives<'_>,
    settings: &Rc<Settings>,
    registering: &Rc<Registering>,
) -> mlua::Result<()> {
    let lua = natives.lua;
    natives.table.raw_set("version", REDIS_VERSION)?;
    natives.table.raw_set("version_number", version_number())?;
    natives.table.raw_set("null", Value::NULL)?;
    natives.function("located", lua.create_function(located)?)?;

    natives.function(
        "problem",
        lua.create_function(|lua, value: Value| match &value {
            Value::Error(error) => Ok(native::problem(lua, error)?.unwrap_or(value)),
            _ => Ok(value),
        })?,
    )?;
    natives.redis("redis.status_reply", |arguments| {
        single_field(arguments, "ok", Bytes::copy_from_slice)
    })?;
    natives.redis("redis.error_reply", |arguments| {
        single_field(arguments, "err", error_text)
    })?;
    natives.redis("redis.log", |arguments| {
        if arguments.len() < 2 {
            return Err(Failure::text("redis.log() requires two arguments or more."));
        }
        if !matches!(arguments.value(0), Value::Integer(_) | Value::Number(_)) {
            return Err(Failure::text(
                "First argument must be a number (log level).",
            ));
        }
        let level = arguments.integer(0)?;
        if !LOG_LEVELS.contains(&level) {
            return Err(Failure::text("Invalid debug level."));
        }
        let mut words = Vec::new();
        for index in 1..arguments.len() {
            if let Ok(word) = arguments.string(index) {
                words.push(word.to_string_lossy());
            }
        }
        let text = words.join(" ");
        match level {
            0 => tracing::trace!(target: "leadline_redis::script", "{text}"),
            1 => tracing::debug!(target: "leadline_redis::script", "{text}"),
            2 => tracing::info!(target: "leadline_redis::script", "{text}"),
            _ => tracing::warn!(target: "leadline_redis::script", "{text}"),
        }
        Ok(Value::Nil)
    })?;
    natives.redis("redis.sha1hex", |arguments| {
        if arguments.len() != 1 {
            return Err(Failure::text("wrong number of arguments"));
        }
        let text = arguments.string(0)?;
        let digest = crate::script::digest(&text.as_bytes());
        lua_text(arguments, digest.as_bytes())
    })?;
    let resp = Rc::clone(settings);
    natives.redis("redis.setresp", move |arguments| {
        if arguments.len() != 1 {
            return Err(Failure::text("redis.setresp() requires one argument."));
        }
        resp.resp.set(match arguments.integer(0) {
            Ok(2) => Resp::V2,
            Ok(3) => Resp::V3,
            _ => return Err(Failure::text("RESP version must be 2 or 3.")),
        });
        Ok(Value::Nil)
    })?;
    natives.redis("redis.set_repl", |arguments| {
        if arguments.len() != 1 {
            return Err(Failure::text("redis.set_repl() requires two arguments."));
        }
        // Effects are replicated to a majority, always: there is nothing to choose.
        match arguments.integer(0) {
            Ok(0..=3) => Ok(Value::Nil),
            _ => Err(Failure::text(
                "Invalid replication flags. Use REPL_AOF, REPL_REPLICA, REPL_ALL or REPL_NONE.",
            )),
        }
    })?;
    natives.redis("redis.replicate_commands", |_| Ok(true))?;
    natives.redis("redis.acl_check_cmd", |arguments| {
        if arguments.len() == 0 {
            return Err(Failure::text(
                "Please specify at least one argument for this redis lib call",
            ));
        }
        let name = arguments.string(0)?;
        match commands::lookup(&name.as_bytes()) {
            // There is one user, who may do everything.
            Some(_) => Ok(true),
            None => Err(Failure::text(
                "Invalid command passed to redis.acl_check_cmd()",
            )),
        }
    })?;

    let registering = Rc::clone(registering);
    natives.redis("redis.register_function", move |arguments| {
        let mut registering = registering.borrow_mut();
        let Some(registering) = &mut *registering else {
            return Err(Failure::text(
                "redis.register_function can only be called on FUNCTION LOAD command",
            ));
        };
        let (registered, function) = registration(arguments)?;
        if registering
            .iter()
            .any(|(known, _)| known.name == registered.name)
        {
            return Err(Failure::text("Function already exists in the library"));
        }
        registering.push((registered, function));
        Ok(Value::Nil)
    })?;

    let seed = Rc::clone(settings);
    natives.add("random", move |arguments| random(&seed, arguments))?;
    let seed = Rc::clone(settings);
    natives.add("randomseed", move |arguments| {
        seed.random.set(arguments.integer(0)?.cast_unsigned());
        Ok(Value::Nil)
    })
}

/// A table whose `field` is the one argument, as `text` puts it.
fn single_field(
    arguments: &Arguments<'_>,
    field: &str,
    text: fn(&[u8]) -> Bytes,
) -> Result<Value, Failure> {
    let (field, text) = match (arguments.len(), arguments.value(0)) {
        (1, Value::String(given)) => (field, text(&given.as_bytes())),
        _ => (
            "err",
            Bytes::from_static(b"ERR wrong number or type of arguments"),
        ),
    };
    let table = arguments.lua.create_table()?;
    table.raw_set(field, lua_text(arguments, &text)?)?;
    Ok(Value::Table(table))
}

fn lua_text(arguments: &Arguments<'_>, text: &[u8]) -> Result<Value, Failure> {
    Ok(Value::String(arguments.lua.create_string(text)?))
}

/// The text of an error that a script words: with a code in front, `ERR` if it has none.
pub(super) fn error_text(text: &[u8]) -> Bytes {
    let text = text.strip_prefix(b"-").unwrap_or(text).trim_ascii_end();
    if text.contains(&b' ') {
        return Bytes::copy_from_slice(text);
    }
    let mut coded = BytesMut::with_capacity(text.len() + 4);
    coded.put_slice(b"ERR ");
    coded.put_slice(text);
    coded.freeze()
}

/// `major << 16 | minor << 8 | patch`
fn version_number() -> u32 {
    REDIS_VERSION
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0))
        .fold(0, |number, part| number << 8 | part)
}

/// A number from the script's own sequence (splitmix64; Steele, Lea, Flood 2014).
fn random(settings: &Settings, arguments: &Arguments<'_>) -> Result<Value, Failure> {
    let state = settings.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    settings.random.set(state);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    // 53 bits: a double below 1.
    let fraction = (z >> 11) as f64 / (1u64 << 53) as f64;
    let (low, high) = match arguments.len() {
        0 => return Ok(Value::Number(fraction)),
        1 => (1, arguments.integer(0)?),
        2 => (arguments.integer(0)?, arguments.integer(1)?),
        _ => return Err(Failure::text("wrong number of arguments")),
    };
    if low > high {
        return Err(arguments.bad(arguments.len() - 1, "interval is empty"));
    }
    let count = (i128::from(high) - i128::from(low) + 1) as f64;
    Ok(Value::Number(low as f64 + (fraction * count).floor()))
}

/// `redis.register_function(name, callback)`, or with one table of named arguments.
fn registration(arguments: &Arguments<'_>) -> Result<(Registered, Function), Failure> {
    let mut flags = Flags::FUNCTION;
    let mut description = None;
    let (name, callback) = match arguments.len() {
        1 => {
            let Value::Table(named) = arguments.value(0) else {
                return Err(Failure::text(
                    "calling redis.register_function with a single argument is only applicable to \
                     Lua table (representing named arguments).",
                ));
            };
            let (mut name, mut callback) = (Value::Nil, Value::Nil);
            for pair in named.pairs::<Value, Value>() {
                let (key, value) = pair?;
                let Value::String(key) = key else {
                    return Err(Failure::text(
                        "named argument key given to redis.register_function is not a string",
                    ));
                };
                match &*key.as_bytes() {
                    b"function_name" => match value {
                        Value::String(_) => name = value,
                        _ => {
                            return Err(Failure::text(
                                "function_name argument given to redis.register_function must be a string",
                            ));
                        }
                    },
                    b"description" => match value {
                        Value::String(text) => {
                            description = Some(Bytes::copy_from_slice(&text.as_bytes()));
                        }
                        _ => {
                            return Err(Failure::text(
                                "description argument given to redis.register_function must be a string",
                            ));
                        }
                    },
                    b"callback" => match value {
                        Value::Function(_) => callback = value,
                        _ => {
                            return Err(Failure::text(
                                "callback argument given to redis.register_function must be a function",
                            ));
                        }
                    },
                    b"flags" => match value {
                        Value::Table(list) => set_flags(&mut flags, &list)?,
                        _ => {
                            return Err(Failure::text(
                                "flags argument to redis.register_function must be a table representing function flags",
                            ));
                        }
                    },
                    _ => {
                        return Err(Failure::text(
                            "unknown argument given to redis.register_function",
                        ));
                    }
                }
            }
            if name.is_nil() {
                return Err(Failure::text(
                    "redis.register_function must get a function name argument",
                ));
            }
            if callback.is_nil() {
                return Err(Failure::text(
                    "redis.register_function must get a callback argument",
                ));
            }
            (name, callback)
        }
        2 => (arguments.value(0), arguments.value(1)),
        _ => {
            return Err(Failure::text(
                "wrong number of arguments to redis.register_function",
            ));
        }
    };
    let Value::String(name) = name else {
        return Err(Failure::text(
            "first argument to redis.register_function must be a string",
        ));
    };
    let Value::Function(callback) = callback else {
        return Err(Failure::text(
            "second argument to redis.register_function must be a function",
        ));
    };
    let name = Bytes::copy_from_slice(&name.as_bytes());
    if !shebang::is_name(&name) {
        return Err(Failure::text(
            "Library names can only contain letters, numbers, or underscores(_) and must be at \
             least one character long",
        ));
    }
    let registered = Registered {
        name,
        description,
        flags,
    };
    Ok((registered, callback))
}

fn set_flags(flags: &mut Flags, list: &Table) -> Result<(), Failure> {
    for flag in list.sequence_values::<Value>() {
        let known = match flag? {
            Value::String(flag) => flags.set(&flag.as_bytes()),
            _ => false,
        };
        if !known {
            return Err(Failure::text("unknown flag given"));
        }
    }
    Ok(())
}

/// The error handler of every run: makes of any error a table that says where it happened.
fn located(lua: &Lua, problem: Value) -> mlua::Result<Value> {
    let table = match problem {
        Value::Table(table) => table,
        Value::Error(error) => match native::problem(lua, &error)? {
            Some(problem) => return located(lua, problem),
            None => return Ok(Value::Error(error)),
        },
        other => {
            let mut text = b"ERR ".to_vec();
            match &other {
                Value::String(problem) => text.extend_from_slice(&problem.as_bytes()),
                other => text.extend_from_slice(other.to_string()?.as_bytes()),
            }
            let table = lua.create_table()?;
            table.raw_set("err", lua.create_string(text)?)?;
            table
        }
    };
    let place = (1..16).find_map(|level| {
        lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let shown = source.source.as_deref().unwrap_or_default();
            (source.what != "C" && shown != PRELUDE)
                .then(|| (shown.to_owned(), frame.current_line()))
        })
        .flatten()
    });
    if let Some((source, Some(line))) = place {
        table.raw_set("source", source)?;
        table.raw_set("line", line)?;
    }
    Ok(Value::Table(table))
}

/// The error line for what a script raised; `name` is its digest, or the function's name.
pub(super) fn raised(problem: &Value, name: &[u8]) -> ReplyError {
    let name = String::from_utf8_lossy(name);
    let Value::Table(table) = problem else {
        let text = match problem {
            Value::String(text) => text.to_string_lossy(),
            Value::Error(error) => first_line(error),
            _ => "execution failure".to_owned(),
        };
        let text: String = text.chars().take(100).collect();
        return ReplyError::err(format_args!("Error running script {name}, {text}"));
    };
    let field = |field: &str| match table.raw_get::<Value>(field) {
        Ok(Value::String(text)) => Some(text.to_string_lossy()),
        Ok(Value::Integer(number)) => Some(number.to_string()),
        _ => None,
    };
    let text = field("err").unwrap_or_else(|| "ERR unknown error".to_owned());
    match (field("source"), field("line")) {
        (Some(source), Some(line)) => {
            ReplyError::Line(format!("{text} script: {name}, on {source}:{line}."))
        }
        _ => ReplyError::Line(text),
    }
}

/// The error line for a library whose code failed while it was loaded.
pub(super) fn registering_failed(problem: &Value) -> ReplyError {
    let text = match problem {
        Value::Table(table) => match table.raw_get::<Value>("err") {
            Ok(Value::String(text)) => text.to_string_lossy(),
            _ => "unknown error".to_owned(),
        },
        Value::String(text) => text.to_string_lossy(),
        _ => "execution failure".to_owned(),
    };
    let text = text.strip_prefix("ERR ").unwrap_or(&text);
    ReplyError::err(format_args!("Error registering functions: {text}"))
}

/// An error without the traceback that mlua adds.
pub(super) fn first_line(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::RuntimeError(message) | mlua::Error::MemoryError(message) => message.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

/// How a pattern is to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Plain,
    /// Plain if it has nothing special.
    Find,
    /// A `^` in front ties it to the place.
    Match,
    /// A `^` is a character like others.
    Repeated,
}

pub(super) fn register_patterns(natives: &Natives<'_>, control: &Rc<Control>) -> mlua::Result<()> {
    let watched = Rc::clone(control);
    natives.add("string.find", move |arguments| {
        let look = match arguments.value(3) {
            Value::Nil | Value::Boolean(false) => Look::Find,
            _ => Look::Plain,
        };
        let (subject, pattern) = (arguments.string(0)?, arguments.string(1)?);
        let subject = subject.as_bytes();
        let from = place(arguments, subject.len())?;
        match first_match(&watched, &subject, &pattern.as_bytes(), from, look)? {
            None => Ok(MultiValue::from_vec(vec![Value::Nil])),
            Some((start, end, captures)) => {
                let mut results = captured(arguments.lua, &subject, captures)?;
                results.push_front(Value::Integer(end as i64));
                results.push_front(Value::Integer(start as i64 + 1));
                Ok(results)
            }
        }
    })?;
    let watched = Rc::clone(control);
    natives.add("string.match", move |arguments| {
        let (subject, pattern) = (arguments.string(0)?, arguments.string(1)?);
        let subject = subject.as_bytes();
        let from = place(arguments, subject.len())?;
        match first_match(&watched, &subject, &pattern.as_bytes(), from, Look::Match)? {
            None => Ok(MultiValue::from_vec(vec![Value::Nil])),
            Some(found) => whole_or_captured(arguments.lua, &subject, found),
        }
    })?;
    let watched = Rc::clone(control);
    natives.add("string.gmatch", move |arguments| {
        let (subject, pattern) = (arguments.string(0)?, arguments.string(1)?);
        let watched = Rc::clone(&watched);
        let next = Cell::new(0);
        Ok(arguments.lua.create_function(move |lua, ()| {
            let subject = subject.as_bytes();
            let found = if next.get() > subject.len() {
                None
            } else {
                first_match(
                    &watched,
                    &subject,
                    &pattern.as_bytes(),
                    next.get(),
                    Look::Repeated,
                )
                .map_err(|failure| native::raised(lua, failure))?
            };
            let Some(found) = found else {
                next.set(usize::MAX);
                return Ok(MultiValue::from_vec(vec![Value::Nil]));
            };
            // After an empty match, on by one.
            next.set(found.1.max(found.0 + usize::from(found.0 == found.1)));
            whole_or_captured(lua, &subject, found).map_err(|failure| native::raised(lua, failure))
        })?)
    })?;
    // For `string.gsub`: the first and last place of a match, its captures and how many.
    let watched = Rc::clone(control);
    natives.add("string.match_at", move |arguments| {
        let (subject, pattern) = (arguments.string(0)?, arguments.string(1)?);
        let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
        let from = place(arguments, subject.len())?;
        let look = if pattern.starts_with(b"^") {
            Look::Match
        } else {
            Look::Repeated
        };
        let Some((start, end, captures)) = first_match(&watched, &subject, &pattern, from, look)?
        else {
            return Ok((None, 0, Value::Nil, 0));
        };
        let count = captures.len();
        let table = if count == 0 {
            Value::Nil
        } else {
            let captures = captured(arguments.lua, &subject, captures)?;
            Value::Table(arguments.lua.create_sequence_from(captures)?)
        };
        Ok((Some(start + 1), end, table, count))
    })
}

/// Where to begin, from 0: the third argument, which may count from the end.
fn place(arguments: &Arguments<'_>, length: usize) -> Result<usize, Failure> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let from = arguments.integer_or(2, 1)?;
    let from = if from < 0 { length + from } else { from - 1 };
    Ok(usize::try_from(from.clamp(0, length)).unwrap_or(0))
}

fn captured(lua: &Lua, subject: &[u8], captures: Vec<Capture>) -> Result<MultiValue, Failure> {
    let values = captures.into_iter().map(|capture| match capture {
        Capture::Part(part) => lua.create_string(&subject[part]).map(Value::String),
        Capture::Position(position) => Ok(Value::Integer(position as i64)),
    });
    Ok(values.collect::<mlua::Result<MultiValue>>()?)
}

fn whole_or_captured(lua: &Lua, subject: &[u8], found: Found) -> Result<MultiValue, Failure> {
    let (start, end, captures) = found;
    if captures.is_empty() {
        let whole = lua.create_string(&subject[start..end])?;
        return Ok(MultiValue::from_vec(vec![Value::String(whole)]));
    }
    captured(lua, subject, captures)
}

/// Where a match begins and ends, and what its captures took.
type Found = (usize, usize, Vec<Capture>);

fn first_match(
    control: &Control,
    subject: &[u8],
    pattern: &[u8],
    from: usize,
    look: Look,
) -> Result<Option<Found>, Failure> {
    let special = |byte: &u8| b"^$*+?.([%-".contains(byte);
    if look == Look::Plain || (look == Look::Find && !pattern.iter().any(special)) {
        return Ok(find_plain(&subject[from..], pattern)
            .map(|at| (from + at, from + at + pattern.len(), Vec::new())));
    }
    let (pattern, anchored) = match pattern.strip_prefix(b"^") {
        Some(rest) if look != Look::Repeated => (rest, true),
        _ => (pattern, false),
    };
    let mut matcher = Matcher::new(subject, pattern, control);
    for start in from..=subject.len() {
        if let Some(end) = matcher.match_at(start)? {
            return Ok(Some((start, end, matcher.captures()?)));
        }
        if anchored {
            break;
        }
    }
    Ok(None)
}

fn find_plain(subject: &[u8], wanted: &[u8]) -> Option<usize> {
    let Some(&first) = wanted.first() else {
        return Some(0);
    };
    let mut from = 0;
    loop {
        from += subject
            .get(from..)?
            .iter()
            .position(|&byte| byte == first)?;
        if subject[from..].starts_with(wanted) {
            return Some(from);
        }
        from += 1;
    }
}

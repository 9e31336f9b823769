//! `redis.call`: a command of a script, run by the same code and over the same rows as any other.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use leadline_kv::RowError;
use mlua::{Function, Lua, MultiValue, Value};

use super::control::{Control, Stop, stopping};
use super::native::{Natives, table_error};
use super::{Settings, to_lua};
use crate::args::Args;
use crate::commands;
use crate::reply::{Reply, ReplyError, format_double};
use crate::rows::{DATABASES, Db, slot_prefix};
use crate::spec::{Blocking, Keys, Run, Spec};

/// `redis.call` and `redis.pcall`: functions that a library may keep, which run the commands of
/// whatever script runs at the time.
pub(super) fn register(
    natives: &Natives<'_>,
    commands: &Rc<RefCell<Option<Function>>>,
) -> mlua::Result<()> {
    let run = |commands: &RefCell<Option<Function>>, args| -> mlua::Result<(bool, Value)> {
        let current = commands.borrow().clone();
        match current {
            Some(current) => current.call(args),
            None => Err(table_error(
                "ERR redis.call/pcall can only be called inside a script invocation",
            )),
        }
    };
    let current = Rc::clone(commands);
    let call =
        natives
            .lua
            .create_function(move |_, args: MultiValue| match run(&current, args)? {
                (true, reply) => Ok(reply),
                (false, problem) => Err(match &problem {
                    Value::Table(table) => {
                        let text: mlua::LuaString = table.raw_get("err")?;
                        table_error(text.to_string_lossy())
                    }
                    _ => table_error("ERR unknown error"),
                }),
            })?;
    natives.function("redis.call", call)?;
    let current = Rc::clone(commands);
    let pcall = natives
        .lua
        .create_function(move |_, args: MultiValue| run(&current, args).map(|(_, reply)| reply))?;
    natives.function("redis.pcall", pcall)
}

/// Commands of the connection that mean something in a script.
type Simple = fn(&mut Calls<'_, '_>, &[Bytes]) -> Result<Reply, ReplyError>;
const SIMPLE: [(&str, Simple); 4] = [
    ("PING", |_, args| {
        Ok(args
            .get(1)
            .map_or(Reply::Simple("PONG"), |text| Reply::Bulk(text.clone())))
    }),
    ("ECHO", |_, args| Ok(Reply::Bulk(args[1].clone()))),
    ("TIME", |calls, _| {
        let now_ms = calls.db.now_ms();
        Ok(Reply::bulks([
            Bytes::from((now_ms / 1000).to_string()),
            Bytes::from((now_ms % 1000 * 1000).to_string()),
        ]))
    }),
    ("SELECT", |calls, args| {
        let number = crate::args::parse_integer(&args[1])
            .ok_or_else(|| ReplyError::err("value is not an integer or out of range"))?;
        match u8::try_from(number) {
            Ok(number) if number < DATABASES => {
                calls.database = number;
                Ok(Reply::OK)
            }
            _ => Err(ReplyError::err("DB index is out of range")),
        }
    }),
];

/// The commands of one run.
pub(super) struct Calls<'a, 'd> {
    db: &'a mut Db<'d>,
    /// SELECT in a script holds for the script.
    database: u8,
    control: &'a Control,
    settings: &'a Rc<Settings>,
    read_only: bool,
}

impl<'a, 'd> Calls<'a, 'd> {
    pub(super) fn new(
        db: &'a mut Db<'d>,
        control: &'a Control,
        settings: &'a Rc<Settings>,
        read_only: bool,
    ) -> Self {
        Self {
            database: db.number(),
            db,
            control,
            settings,
            read_only,
        }
    }

    /// Answers `true` and the reply, or `false` and the table of an error.
    pub(super) fn call(&mut self, lua: &Lua, args: MultiValue) -> mlua::Result<(bool, Value)> {
        self.control.look();
        if self.control.is_stopped() {
            return Err(stopping());
        }
        let reply = match self.run(args) {
            Err(ReplyError::Rows(error)) => {
                self.control.stop(Stop::Rows(error));
                return Err(stopping());
            }
            result => Reply::from_result(result),
        };
        let failed = matches!(reply, Reply::Error(_));
        Ok((
            !failed,
            to_lua::value(lua, reply, self.settings.resp.get())?,
        ))
    }

    fn run(&mut self, args: MultiValue) -> Result<Reply, ReplyError> {
        if args.is_empty() {
            return Err(ReplyError::err(
                "Please specify at least one argument for this redis lib call",
            ));
        }
        let args: Vec<Bytes> = args
            .iter()
            .map(argument)
            .collect::<Option<_>>()
            .ok_or_else(|| {
                ReplyError::err("Lua redis lib command arguments must be strings or integers")
            })?;
        let unknown = || ReplyError::err("Unknown Redis command called from script");
        let arity = || ReplyError::err("Wrong number of args calling Redis command from script");
        let (_, spec) = commands::lookup(&args[0]).ok_or_else(unknown)?;
        if !spec.arity.admits(args.len()) {
            return Err(arity());
        }
        if self.read_only && spec.flags.write {
            return Err(ReplyError::err(
                "Write commands are not allowed from read-only scripts.",
            ));
        }
        let reply = match spec.run {
            Run::Rows(_) => self.execute(spec, &args),
            Run::Blocking(parse) => self.attempt(spec, parse, &args),
            Run::Connection(_) => match SIMPLE.iter().find(|(name, _)| *name == spec.name) {
                Some((_, simple)) => simple(self, &args),
                None => Err(not_allowed()),
            },
            Run::Container(subcommands) => {
                let word = &args[1];
                if subcommands
                    .iter()
                    .any(|known| word.eq_ignore_ascii_case(known.name.as_bytes()))
                {
                    Err(not_allowed())
                } else {
                    Err(unknown())
                }
            }
            Run::Script(_) => Err(not_allowed()),
        };
        match reply {
            Err(ReplyError::Arity(_)) => Err(arity()),
            reply => reply,
        }
    }

    fn execute(&mut self, spec: &'static Spec, args: &[Bytes]) -> Result<Reply, ReplyError> {
        let Run::Rows(parse) = spec.run else {
            return Err(not_allowed());
        };
        let command = parse(&mut Args::new(spec.lower, &args[1..]))?;
        match spec.keys {
            Keys::EveryShard if !self.is_one_shard() => {
                return Err(ReplyError::err(
                    "a command over the whole keyspace cannot be called from a script while there \
                     are several shards",
                ));
            }
            Keys::ScanCursor(position) => {
                let slot = commands::scan_cursor_slot(&args[position])?;
                let (owned, place) = (self.db.rows().owned(), slot_prefix(slot, self.database));
                if !owned.contains(&place) {
                    return Err(ReplyError::Rows(RowError::OtherShard));
                }
            }
            _ => {}
        }
        if self.db.number() == self.database {
            command.execute(self.db)
        } else {
            command.execute(&mut self.db.other(self.database))
        }
    }

    fn is_one_shard(&mut self) -> bool {
        let first = slot_prefix(0, self.database);
        let slots = crate::rows::owned_slots(&self.db.rows().shard_of(&first));
        slots == (0..leadline_kv::keyspace::SLOTS)
    }

    /// A command that may wait, as if its time were up at once.
    fn attempt(
        &mut self,
        spec: &'static Spec,
        parse: fn(&mut Args<'_>) -> Result<Blocking, ReplyError>,
        args: &[Bytes],
    ) -> Result<Reply, ReplyError> {
        let blocking = parse(&mut Args::new(spec.lower, &args[1..]))?;
        for attempt in &blocking.attempts {
            let spec = commands::find(&attempt.args[0]).ok_or_else(not_allowed)?;
            match self.execute(spec, &attempt.args)? {
                Reply::Block => {}
                reply => return Ok(reply),
            }
        }
        Ok(blocking.on_timeout)
    }
}

fn not_allowed() -> ReplyError {
    ReplyError::err("This Redis command is not allowed from script")
}

/// A value as an argument of a command; `None` if it cannot be one.
fn argument(value: &Value) -> Option<Bytes> {
    Some(match value {
        Value::String(text) => Bytes::copy_from_slice(&text.as_bytes()),
        Value::Integer(number) => decimal(*number),
        Value::Number(number) => Bytes::from(number_text(*number)),
        _ => return None,
    })
}

/// An integer is written in digits while a double tells it from its neighbours (as Redis 7.2 does).
fn decimal(number: i64) -> Bytes {
    const EXACT: u64 = 1 << 52;
    if number.unsigned_abs() <= EXACT {
        Bytes::from(number.to_string())
    } else {
        Bytes::from(number_text(number as f64))
    }
}

/// A double in the fewest digits that read back the same.
pub(super) fn number_text(number: f64) -> String {
    if !number.is_finite() || number == 0.0 {
        return format_double(number);
    }
    // The form of Redis' `fpconv_dtoa`: plain while there are few zeros to write.
    let scientific = format!("{:e}", number.abs());
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let scale = exponent + 1 - count;
    let sign = if number < 0.0 { "-" } else { "" };
    if scale >= 0 && exponent.abs() < count + 7 {
        return format!(
            "{sign}{digits}{}",
            "0".repeat(usize::try_from(scale).unwrap_or(0))
        );
    }
    if scale < 0 && (scale > -7 || exponent.abs() < 4) {
        let point = exponent + 1;
        return match usize::try_from(point) {
            Ok(point) if point > 0 => format!("{sign}{}.{}", &digits[..point], &digits[point..]),
            _ => format!(
                "{sign}0.{}{digits}",
                "0".repeat(usize::try_from(-point).unwrap_or(0))
            ),
        };
    }
    let (first, rest) = digits.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    let mark = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{first}{point}{rest}e{mark}{}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_redis_7_2_writes_a_scripts_arguments() {
        for (number, text) in [
            (3.3, "3.3"),
            (0.1, "0.1"),
            (-0.5, "-0.5"),
            (1e300, "1e+300"),
            (1.5e-10, "1.5e-10"),
            (0.00012, "0.00012"),
            (123456.789, "123456.789"),
        ] {
            assert_eq!(number_text(number), text);
        }
        assert_eq!(decimal(1_000_000_000_000_000), "1000000000000000");
        assert_eq!(decimal(1 << 53), "9007199254740992");
    }
}

//! Functions in Rust that scripts call, and the errors they raise.
//!
//! What Rust raises is an object to Lua. The prelude sees to it that a script that catches one gets
//! what it stands for instead ([`problem`]).

use mlua::{Function, IntoLuaMulti, Lua, LuaString, MultiValue, Table, Value};

/// Why a native failed.
#[derive(Debug)]
pub(in crate::script) enum Failure {
    /// A mistake of the script, as a Lua error.
    Text(String),
    /// The VM itself failed, or the script is being stopped.
    Lua(mlua::Error),
}

impl Failure {
    pub(in crate::script) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl From<mlua::Error> for Failure {
    fn from(error: mlua::Error) -> Self {
        match error {
            mlua::Error::MemoryError(_) => Self::text("not enough memory"),
            error => Self::Lua(error),
        }
    }
}

/// The arguments of one call.
pub(in crate::script) struct Arguments<'a> {
    pub(in crate::script) lua: &'a Lua,
    /// The function's name, for error texts.
    name: &'static str,
    values: MultiValue,
}

impl Arguments<'_> {
    pub(in crate::script) fn len(&self) -> usize {
        self.values.len()
    }

    /// The argument at `index` (from 0), nil if there is none.
    pub(in crate::script) fn value(&self, index: usize) -> Value {
        self.values.get(index).cloned().unwrap_or(Value::Nil)
    }

    pub(in crate::script) fn is_absent(&self, index: usize) -> bool {
        matches!(self.values.get(index), None | Some(Value::Nil))
    }

    /// `bad argument #… to '…' (…)`
    pub(in crate::script) fn bad(&self, index: usize, why: &str) -> Failure {
        Failure::Text(format!(
            "bad argument #{} to '{}' ({why})",
            index + 1,
            self.name
        ))
    }

    fn expected(&self, index: usize, what: &str) -> Failure {
        let got = match self.values.get(index) {
            None => "no value",
            Some(value) => type_name(value),
        };
        self.bad(index, &format!("{what} expected, got {got}"))
    }

    pub(in crate::script) fn number(&self, index: usize) -> Result<f64, Failure> {
        match self.values.get(index) {
            Some(Value::Number(number)) => Ok(*number),
            Some(Value::Integer(number)) => Ok(*number as f64),
            Some(text @ Value::String(_)) => self
                .lua
                .coerce_number(text.clone())?
                .ok_or_else(|| self.expected(index, "number")),
            _ => Err(self.expected(index, "number")),
        }
    }

    /// A number cut to an integer.
    pub(in crate::script) fn integer(&self, index: usize) -> Result<i64, Failure> {
        Ok(self.number(index)? as i64)
    }

    pub(in crate::script) fn integer_or(&self, index: usize, or: i64) -> Result<i64, Failure> {
        if self.is_absent(index) {
            Ok(or)
        } else {
            self.integer(index)
        }
    }

    pub(in crate::script) fn string(&self, index: usize) -> Result<LuaString, Failure> {
        match self.values.get(index) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(number @ (Value::Number(_) | Value::Integer(_))) => self
                .lua
                .coerce_string(number.clone())?
                .ok_or_else(|| self.expected(index, "string")),
            _ => Err(self.expected(index, "string")),
        }
    }

    pub(in crate::script) fn as_slice(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }
}

/// As Lua names the type of `value`.
pub(in crate::script) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::LightUserData(_) | Value::Error(_) | Value::Other(_) => "userdata",
        value => value.type_name(),
    }
}

/// What a native raises: as Lua's own functions, with the place of the call in front.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Raised {
    text: String,
    /// A table with `err`, as `redis.call` raises, not a string.
    table: bool,
}

/// The error of a mistake in a call of a native.
fn mistake(lua: &Lua, text: &str) -> mlua::Error {
    let place = lua
        .inspect_stack(1, |frame| {
            let source = frame.source().short_src.map(|source| source.into_owned());
            source.zip(frame.current_line())
        })
        .flatten();
    let text = match place {
        Some((source, line)) => format!("{source}:{line}: {text}"),
        None => text.to_owned(),
    };
    mlua::Error::external(Raised { text, table: false })
}

/// What a native raises for `failure`.
pub(super) fn raised(lua: &Lua, failure: Failure) -> mlua::Error {
    match failure {
        Failure::Text(text) => mistake(lua, &text),
        Failure::Lua(error) => error,
    }
}

/// The error of the `redis` library: the script sees a table whose `err` is `text`.
pub(super) fn table_error(text: impl Into<String>) -> mlua::Error {
    let text = text.into();
    mlua::Error::external(Raised { text, table: true })
}

/// What a caught object stands for; `None` if it is none of ours to show.
pub(super) fn problem(lua: &Lua, error: &mlua::Error) -> mlua::Result<Option<Value>> {
    let raised = match error {
        mlua::Error::CallbackError { cause, .. } => return problem(lua, cause),
        mlua::Error::ExternalError(error) => error.downcast_ref::<Raised>(),
        mlua::Error::MemoryError(_) => {
            let text = lua.create_string("not enough memory")?;
            return Ok(Some(Value::String(text)));
        }
        _ => None,
    };
    let Some(raised) = raised else {
        return Ok(None);
    };
    let text = Value::String(lua.create_string(&raised.text)?);
    if !raised.table {
        return Ok(Some(text));
    }
    let table = lua.create_table()?;
    table.raw_set("err", text)?;
    table.raw_set("ignore_error_stats_update", true)?;
    Ok(Some(Value::Table(table)))
}

/// Natives, by the names that the prelude looks for.
pub(in crate::script) struct Natives<'a> {
    pub(in crate::script) lua: &'a Lua,
    pub(in crate::script) table: Table,
}

impl Natives<'_> {
    /// A native whose mistakes are raised with the place of its call.
    pub(in crate::script) fn add<R: IntoLuaMulti>(
        &self,
        name: &'static str,
        call: impl Fn(&Arguments<'_>) -> Result<R, Failure> + 'static,
    ) -> mlua::Result<()> {
        self.raising(name, call, mistake)
    }

    /// A native of the `redis` library, whose mistakes are raised as tables.
    pub(in crate::script) fn redis<R: IntoLuaMulti>(
        &self,
        name: &'static str,
        call: impl Fn(&Arguments<'_>) -> Result<R, Failure> + 'static,
    ) -> mlua::Result<()> {
        self.raising(name, call, |_, text| table_error(format!("ERR {text}")))
    }

    fn raising<R: IntoLuaMulti>(
        &self,
        name: &'static str,
        call: impl Fn(&Arguments<'_>) -> Result<R, Failure> + 'static,
        raise: fn(&Lua, &str) -> mlua::Error,
    ) -> mlua::Result<()> {
        let short = name.rsplit_once('.').map_or(name, |(_, short)| short);
        let function = self.lua.create_function(move |lua, values: MultiValue| {
            let arguments = Arguments {
                lua,
                name: short,
                values,
            };
            call(&arguments).map_err(|failure| match failure {
                Failure::Text(text) => raise(lua, &text),
                Failure::Lua(error) => error,
            })
        })?;
        self.function(name, function)
    }

    pub(in crate::script) fn function(
        &self,
        name: &'static str,
        function: Function,
    ) -> mlua::Result<()> {
        self.table.raw_set(name, function)
    }
}

//! The Lua VM in which a script runs, on the thread of the shard's executor.
//!
//! A new VM costs about a hundred microseconds, so each thread keeps one, with the scripts and
//! libraries that it has compiled. Scripts share nothing through it: see `prelude.lua`.
//!
//! # Invariants
//! 1. A VM runs one script at a time and is taken from its thread's place while it does; one in
//!    which something went wrong is dropped instead of put back.
//! 2. A script's memory is bounded by [`MEMORY`], what its commands answer included; what it
//!    answers itself by [`to_reply::REPLY_BYTES`].

mod api;
mod call;
pub(super) mod control;
pub(super) mod native;
mod pattern;
mod to_lua;
mod to_reply;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Value};
use xxhash_rust::xxh3::Xxh3Default;

use self::call::Calls;
use self::control::{Control, Stop};
use self::native::Natives;
use super::library;
use super::shebang::{self, Flags, Shebang};
use crate::reply::{Reply, ReplyError, Resp};
use crate::rows::Db;

/// The most memory that one VM may use.
const MEMORY: usize = 64 << 20;

/// A VM that keeps more than this between scripts is replaced.
const KEPT_MEMORY: usize = 16 << 20;

/// … and one that has compiled more scripts than this.
const KEPT_SCRIPTS: usize = 512;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'r> {
    /// The script, or the library that has the function.
    pub(super) body: &'r Bytes,
    /// The function; `None` runs `body` as a script.
    pub(super) function: Option<&'r Bytes>,
    /// Called by a command that promises to change nothing (EVAL_RO).
    pub(super) read_only: bool,
    pub(super) keys: &'r [Bytes],
    pub(super) args: &'r [Bytes],
}

/// A function that a library registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) name: Bytes,
    pub(super) description: Option<Bytes>,
    pub(super) flags: Flags,
}

thread_local! {
    static KEPT: RefCell<Option<Vm>> = const { RefCell::new(None) };
}

/// Runs a script or function over `db` and gives its reply.
///
/// # Errors
/// The script's own error, or [`ReplyError::Rows`] when it was stopped: then nothing it did is to
/// be applied.
pub(super) fn run(run: Run<'_>, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
    with_vm(|vm| vm.run(run, db))
}

/// Compiles a script, for its errors.
pub(super) fn check(body: &Bytes, db: &mut Db<'_>) -> Result<(), ReplyError> {
    with_vm(|vm| {
        vm.control.begin(db.rows().context().clone(), None);
        let compiled = vm.compiled(body).map(drop);
        vm.ended(compiled)
    })
}

/// Runs a library's code and gives the functions that it registers.
pub(super) fn load(body: &Bytes, db: &mut Db<'_>) -> Result<Vec<Registered>, ReplyError> {
    with_vm(|vm| {
        vm.control.begin(db.rows().context().clone(), None);
        let loaded = vm.loaded(body);
        vm.ended(loaded.map(|loaded| loaded.described()))
    })
}

fn with_vm<R>(work: impl FnOnce(&mut Vm) -> Result<R, ReplyError>) -> Result<R, ReplyError> {
    let kept = KEPT.with(RefCell::take);
    let mut vm = match kept {
        Some(vm) => vm,
        None => Vm::new()
            .map_err(|error| ReplyError::err(format_args!("no Lua VM could be made: {error}")))?,
    };
    let result = work(&mut vm);
    if vm.is_reusable() {
        KEPT.with(|place| place.replace(Some(vm)));
    }
    result
}

/// What scripts of one VM may set for themselves; as new for each.
#[derive(Debug, Default)]
pub(super) struct Settings {
    resp: Cell<Resp>,
    random: Cell<u64>,
    pub(super) cjson: library::cjson::Settings,
}

#[derive(Clone)]
struct Script {
    function: Function,
    flags: Flags,
}

#[derive(Clone)]
struct Library {
    functions: Rc<Vec<(Registered, Function)>>,
}

impl Library {
    fn described(&self) -> Vec<Registered> {
        self.functions
            .iter()
            .map(|(known, _)| known.clone())
            .collect()
    }
}

/// Functions registered so far, while a library is being loaded.
type Registering = RefCell<Option<Vec<(Registered, Function)>>>;

type ByBody<T> = HashMap<Bytes, T, BuildHasherDefault<Xxh3Default>>;

struct Vm {
    control: Rc<Control>,
    settings: Rc<Settings>,
    scripts: ByBody<Script>,
    libraries: ByBody<Library>,
    /// What a library that is being loaded has registered.
    registering: Rc<Registering>,
    /// What `redis.call` comes down to while a script runs.
    commands: Rc<RefCell<Option<Function>>>,
    run_script: Function,
    run_function: Function,
    load_library: Function,
    /// Not to be used again.
    spent: bool,
    lua: Lua,
}

impl Vm {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS;
        let lua = Lua::new_with(libraries, LuaOptions::new())?;
        let settings = Rc::new(Settings::default());
        let registering = Rc::new(RefCell::new(None));
        let commands = Rc::new(RefCell::new(None));
        let control = Control::install(&lua)?;
        let natives = Natives {
            lua: &lua,
            table: lua.create_table()?,
        };
        api::register(&natives, &settings, &registering)?;
        api::register_patterns(&natives, &control)?;
        call::register(&natives, &commands)?;
        library::register(&natives, &settings)?;
        let entry: Table = lua
            .load(include_str!("prelude.lua"))
            .set_name(api::PRELUDE)
            .call(natives.table)?;
        let vm = Self {
            control,
            settings,
            scripts: ByBody::default(),
            libraries: ByBody::default(),
            registering,
            commands,
            run_script: entry.raw_get("script")?,
            run_function: entry.raw_get("function")?,
            load_library: entry.raw_get("load")?,
            spent: false,
            lua,
        };
        vm.lua.gc_collect()?;
        vm.lua.set_memory_limit(MEMORY)?;
        Ok(vm)
    }

    fn is_reusable(&mut self) -> bool {
        if self.spent
            || self.control.is_spent()
            || self.scripts.len() + self.libraries.len() > KEPT_SCRIPTS
        {
            return false;
        }
        if self.lua.used_memory() <= KEPT_MEMORY {
            return true;
        }
        self.lua.gc_collect().is_ok() && self.lua.used_memory() <= KEPT_MEMORY
    }

    /// Marks the end of what [`Control::begin`] began. What was stopped is a failure of the rows,
    /// whatever the script made of it.
    fn ended<R>(&mut self, result: Result<R, ReplyError>) -> Result<R, ReplyError> {
        match self.control.end() {
            None => result,
            Some(stop) => Err(ReplyError::Rows(match stop {
                Stop::Ended => leadline_kv::RowError::Ended,
                Stop::Killed => leadline_kv::RowError::Refused(
                    "Error running script: killed by user with SCRIPT KILL or FUNCTION KILL; \
                         nothing of it was applied"
                        .to_owned(),
                ),
                Stop::Rows(error) => error,
            })),
        }
    }

    fn run(&mut self, run: Run<'_>, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let command = run.function.map(|function| {
            let word = Bytes::from_static(if run.read_only { b"FCALL_RO" } else { b"FCALL" });
            let count = Bytes::from(run.keys.len().to_string());
            let mut command = vec![word, function.clone(), count];
            command.extend(run.keys.iter().chain(run.args).cloned());
            command
        });
        self.control.begin(db.rows().context().clone(), command);
        let result = self.run_begun(run, db);
        self.ended(result)
    }

    fn run_begun(&mut self, run: Run<'_>, db: &mut Db<'_>) -> Result<Reply, ReplyError> {
        let (entry, function, flags) = match run.function {
            None => {
                let script = self.compiled(run.body)?;
                (&self.run_script, script.function, script.flags)
            }
            Some(name) => {
                let library = self.loaded(run.body)?;
                let (known, function) = library
                    .functions
                    .iter()
                    .find(|(known, _)| known.name == *name)
                    .ok_or_else(|| ReplyError::err("Function not found"))?;
                (&self.run_function, function.clone(), known.flags)
            }
        };
        if run.read_only && flags.declared && !flags.no_writes {
            return Err(ReplyError::err(
                "Can not execute a script with write flag using *_ro command.",
            ));
        }
        self.settings.resp.set(Resp::V2);
        self.settings.random.set(db.rows().random());
        self.settings.cjson.reset();

        let calls = RefCell::new(Calls::new(
            db,
            &self.control,
            &self.settings,
            run.read_only || flags.no_writes,
        ));
        let lua = &self.lua;
        let outcome = lua.scope(|scope| {
            let call = scope.create_function(|lua, args: MultiValue| {
                let mut calls = calls
                    .try_borrow_mut()
                    .map_err(|_| mlua::Error::RecursiveMutCallback)?;
                calls.call(lua, args)
            })?;
            let keys = lua.create_sequence_from(run.keys.iter().map(text))?;
            let args = lua.create_sequence_from(run.args.iter().map(text))?;
            *self.commands.borrow_mut() = Some(call);
            let outcome = entry.call::<(bool, Value)>((function, keys, args));
            *self.commands.borrow_mut() = None;
            outcome
        });
        if self.control.is_stopped() {
            // Ends as what stopped it.
            return Ok(Reply::Null);
        }
        let resp = self.settings.resp.get();
        let name = || match run.function {
            None => Bytes::from(super::digest(run.body)),
            Some(function) => function.clone(),
        };
        match outcome {
            Ok((true, value)) => to_reply::reply(value, resp),
            Ok((false, problem)) => Err(api::raised(&problem, &name())),
            Err(error) => {
                self.spent = true;
                Err(ReplyError::err(format_args!(
                    "Error running script {}, {}",
                    String::from_utf8_lossy(&name()),
                    api::first_line(&error)
                )))
            }
        }
    }

    /// The script, compiled in this VM.
    fn compiled(&mut self, body: &Bytes) -> Result<Script, ReplyError> {
        if let Some(script) = self.scripts.get(body) {
            return Ok(script.clone());
        }
        let Shebang { flags, name, code } = shebang::parse(body)?;
        if name.is_some() {
            return Err(ReplyError::err("Unknown lua shebang option: name=..."));
        }
        let function = self
            .lua
            .load(&code[..])
            .set_name("@user_script")
            .set_mode(ChunkMode::Text)
            .into_function()
            .map_err(|error| {
                ReplyError::err(format_args!(
                    "Error compiling script (new function): {}",
                    api::first_line(&error)
                ))
            })?;
        let script = Script { function, flags };
        self.scripts.insert(body.clone(), script.clone());
        Ok(script)
    }

    /// The library, loaded in this VM.
    fn loaded(&mut self, body: &Bytes) -> Result<Library, ReplyError> {
        if let Some(library) = self.libraries.get(body) {
            return Ok(library.clone());
        }
        let code = shebang::code(body);
        let chunk = self
            .lua
            .load(&code[..])
            .set_name("@user_function")
            .set_mode(ChunkMode::Text)
            .into_function()
            .map_err(|error| {
                ReplyError::err(format_args!(
                    "Error compiling function: {}",
                    api::first_line(&error)
                ))
            })?;
        *self.registering.borrow_mut() = Some(Vec::new());
        let outcome = self.load_library.call::<(bool, Value)>(chunk);
        let functions = self.registering.borrow_mut().take().unwrap_or_default();
        match outcome {
            Ok((true, _)) => {}
            Ok((false, problem)) => return Err(api::registering_failed(&problem)),
            Err(error) => {
                self.spent = true;
                return Err(ReplyError::err(format_args!(
                    "Error registering functions: {}",
                    api::first_line(&error)
                )));
            }
        }
        if functions.is_empty() {
            return Err(ReplyError::err("No functions registered"));
        }
        let library = Library {
            functions: Rc::new(functions),
        };
        self.libraries.insert(body.clone(), library.clone());
        Ok(library)
    }
}

/// A key or argument as a Lua string.
fn text(bytes: &Bytes) -> Text<'_> {
    Text(bytes)
}

struct Text<'a>(&'a [u8]);

impl mlua::IntoLua for Text<'_> {
    fn into_lua(self, lua: &Lua) -> mlua::Result<Value> {
        lua.create_string(self.0).map(Value::String)
    }
}

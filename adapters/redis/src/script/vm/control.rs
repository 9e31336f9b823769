//! How a running script is watched and stopped.
//!
//! # Invariants
//! 1. A script that is to end ends, whatever it catches: from the moment of the decision on, every
//!    instruction of the VM raises the error again.
//! 2. What was stopped has no effect: its command fails, and its rows are rolled back below.
//! 3. A VM whose every instruction fails is not used again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_kv::RowError;
use leadline_raft::Context;
use mlua::{HookTriggers, Lua, VmState};
use parking_lot::Mutex;

/// The context is looked at once per this many instructions: some tens of microseconds.
const LOOK_EVERY: u32 = 1024;

/// What is left of a deadline for the answer that the script was stopped; at most a tenth.
const ANSWER: Duration = Duration::from_millis(50);

/// Why a script was stopped.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// The request's deadline passed, or its client left.
    Ended,
    /// SCRIPT KILL or FUNCTION KILL.
    Killed,
    /// The rows could not be read: the command fails as a whole, and may be run again elsewhere.
    Rows(RowError),
}

/// The error that is raised while a script is being stopped; never shown.
#[derive(Debug, thiserror::Error)]
#[error("the script is being stopped")]
struct Stopping;

pub(super) fn stopping() -> mlua::Error {
    mlua::Error::external(Stopping)
}

/// What the hook of one VM looks at.
#[derive(Debug)]
pub(super) struct Control {
    running: Arc<Running>,
    ctx: RefCell<Option<Context>>,
    /// When the script ends: before its context, so that the client still hears of it.
    ends: Cell<Option<tokio::time::Instant>>,
    stop: RefCell<Option<Stop>>,
    /// As `stop`, for a cheap look.
    stopped: Cell<bool>,
    /// Every instruction fails.
    spent: Cell<bool>,
}

impl Control {
    pub(super) fn install(lua: &Lua) -> mlua::Result<Rc<Self>> {
        let control = Rc::new(Self {
            running: Running::register(),
            ctx: RefCell::new(None),
            ends: Cell::new(None),
            stop: RefCell::new(None),
            stopped: Cell::new(false),
            spent: Cell::new(false),
        });
        let watched = Rc::clone(&control);
        let triggers = HookTriggers::new().every_nth_instruction(LOOK_EVERY);
        lua.set_global_hook(triggers, move |lua, _| {
            watched.look();
            if watched.stopped.get() {
                watched.spent.set(true);
                raise_everywhere(lua)?;
                return Err(stopping());
            }
            Ok(VmState::Continue)
        })?;
        Ok(control)
    }

    /// A script, or the function that `command` calls, begins under `ctx`.
    pub(super) fn begin(&self, ctx: Context, command: Option<Vec<Bytes>>) {
        let margin = (ctx.remaining() / 10).min(ANSWER);
        self.ends.set(ctx.deadline().checked_sub(margin));
        *self.ctx.borrow_mut() = Some(ctx);
        let kind = match command {
            None => Kind::Script,
            Some(command) => {
                let began = Instant::now();
                *self.running.function.lock() = Some(Function { command, began });
                Kind::Function
            }
        };
        self.running.state.store(kind as u8, Ordering::Release);
    }

    /// The script has ended; says whether it was stopped.
    pub(super) fn end(&self) -> Option<Stop> {
        self.running.state.store(IDLE, Ordering::Release);
        *self.running.function.lock() = None;
        *self.ctx.borrow_mut() = None;
        self.stopped.set(false);
        self.stop.borrow_mut().take()
    }

    /// Decides to stop the script; the first reason stands.
    pub(super) fn stop(&self, why: Stop) {
        self.stop.borrow_mut().get_or_insert(why);
        self.stopped.set(true);
    }

    /// Whether the VM cannot be used again.
    pub(super) fn is_spent(&self) -> bool {
        self.spent.get()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Decides to stop when the time is up or someone asked for it. For long work outside of Lua
    /// too, which then returns [`stopping`].
    pub(super) fn look(&self) {
        if self.running.state.load(Ordering::Acquire) == KILLED {
            self.stop(Stop::Killed);
        }
        let ended = self
            .ctx
            .borrow()
            .as_ref()
            .is_some_and(|ctx| ctx.ended().is_some());
        let late = self
            .ends
            .get()
            .is_some_and(|ends| ends <= tokio::time::Instant::now());
        if ended || late {
            self.stop(Stop::Ended);
        }
    }
}

/// From now on every instruction fails.
fn raise_everywhere(lua: &Lua) -> mlua::Result<()> {
    lua.set_global_hook(HookTriggers::new().every_nth_instruction(1), |_, _| {
        Err(stopping())
    })
}

/// The kind of a running script. The discriminant is the state of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Script = 1,
    Function = 2,
}

const IDLE: u8 = 0;
const KILLED: u8 = 3;

#[derive(Debug, Default)]
struct Running {
    state: AtomicU8,
    function: Mutex<Option<Function>>,
}

/// A running call of a function.
#[derive(Debug)]
struct Function {
    command: Vec<Bytes>,
    began: Instant,
}

/// Every VM of this process. Scripts run where the leader of their shard is.
static ALL: LazyLock<Mutex<Vec<Weak<Running>>>> = LazyLock::new(Mutex::default);

impl Running {
    fn register() -> Arc<Self> {
        let running = Arc::new(Self::default());
        let mut all = ALL.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&running));
        running
    }
}

fn all() -> Vec<Arc<Running>> {
    ALL.lock().iter().filter_map(Weak::upgrade).collect()
}

/// Stops what runs on this node, one kind only; says whether there was something.
pub(crate) fn kill(kind: Kind) -> bool {
    all()
        .iter()
        .filter(|running| {
            running
                .state
                .compare_exchange(kind as u8, KILLED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
        .count()
        > 0
}

/// The function that has been running longest on this node: its name, its command, for how long.
pub(crate) fn running_function() -> Option<(Bytes, Vec<Bytes>, Duration)> {
    all()
        .iter()
        .filter_map(|running| {
            let function = running.function.lock();
            let function = function.as_ref()?;
            let name = function.command.get(1)?.clone();
            Some((name, function.command.clone(), function.began.elapsed()))
        })
        .max_by_key(|(_, _, ran)| *ran)
}

//! The bounded queue between the callers of a shard and its executor.
//!
//! # Invariants
//! 1. Bounded by commands and by bytes: what does not fit is refused at once.
//! 2. A place is given back when its command leaves for evaluation, not when it is handed over.
//! 3. The executor's job is woken only if it sleeps and can go on: submitting to a busy one is a
//!    push.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use leadline_raft::Context;
use parking_lot::Mutex;

use super::pool::JobHandle;
use super::reply::Responder;
use super::{Once, ShardConfig};
use crate::Operation;

/// A command on its way to evaluation.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) ctx: Context,
    pub(crate) operation: Arc<dyn Operation>,
    pub(crate) once: Option<Once>,
    pub(crate) size: usize,
    pub(crate) responder: Responder,
    /// How often it has met a lock.
    pub(crate) parked: u8,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Command>,
    /// Commands and bytes that hold a place, those in the executor's hands but not yet evaluated
    /// included.
    commands: usize,
    bytes: usize,
    /// Batches proposed and not applied, and their bytes.
    in_flight: usize,
    in_flight_bytes: usize,
    /// Whether batches may be built: the begin of this life is applied.
    begun: bool,
    closed: bool,
    asleep: bool,
}

/// What there is to do for the executor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There are commands, and there is room for a batch.
    Work,
    /// Nothing before something changes: the queue wakes the executor's job then.
    Nothing,
    /// The life is over.
    Closed,
}

/// Why a command was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// The executor's job.
    job: OnceLock<JobHandle>,
    bounds: ShardConfig,
}

/// While this few batches are in flight a lone command is proposed at once; with more, only a batch
/// of [`WORTH_IT`] commands is: it will be committed no later than if it had gone alone.
const EAGER: usize = 2;
const WORTH_IT: usize = 32;

impl State {
    fn room(&self, bounds: &ShardConfig) -> bool {
        let eager = self.in_flight < EAGER || self.commands >= WORTH_IT * self.in_flight;
        eager
            && self.in_flight < bounds.in_flight
            && (self.in_flight == 0 || self.in_flight_bytes < bounds.in_flight_bytes)
    }

    fn work(&self, bounds: &ShardConfig) -> bool {
        self.begun && self.commands > 0 && self.room(bounds)
    }
}

impl Queue {
    pub(crate) fn new(bounds: &ShardConfig) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                commands: 0,
                bytes: 0,
                in_flight: 0,
                in_flight_bytes: 0,
                begun: false,
                closed: false,
                asleep: true,
            }),
            job: OnceLock::new(),
            bounds: bounds.clone(),
        }
    }

    fn wake(&self, state: &mut State) -> bool {
        let wake = state.asleep && (state.closed || state.work(&self.bounds));
        if wake {
            state.asleep = false;
        }
        wake
    }

    /// Takes commands in order, until one does not fit; gives back the refused rest.
    pub(crate) fn push(
        &self,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<(), (Refusal, Vec<Command>)> {
        let mut refused = None;
        let mut commands = commands.into_iter();
        let wake = {
            let mut state = self.state.lock();
            for command in commands.by_ref() {
                if state.closed {
                    refused = Some((Refusal::Closed, command));
                    break;
                }
                let bytes = state.bytes.saturating_add(command.size);
                // A command larger than the whole budget may still go alone.
                if state.commands >= self.bounds.queue_commands
                    || (bytes > self.bounds.queue_bytes && state.commands > 0)
                {
                    refused = Some((Refusal::Full, command));
                    break;
                }
                state.bytes = bytes;
                state.commands += 1;
                state.waiting.push_back(command);
            }
            self.wake(&mut state)
        };
        if wake && let Some(job) = self.job.get() {
            job.wake_soon();
        }
        match refused {
            None => Ok(()),
            Some((why, first)) => Err((why, std::iter::once(first).chain(commands).collect())),
        }
    }

    /// Moves what waits to the end of `backlog`, if there is room for a batch.
    pub(crate) fn next(&self, backlog: &mut VecDeque<Command>) -> Found {
        let mut state = self.state.lock();
        if state.closed {
            return Found::Closed;
        }
        if !state.work(&self.bounds) {
            state.asleep = true;
            return Found::Nothing;
        }
        state.asleep = false;
        if backlog.is_empty() {
            std::mem::swap(backlog, &mut state.waiting);
        } else {
            backlog.append(&mut state.waiting);
        }
        Found::Work
    }

    /// The job that is woken when there is something to do; set once, before the life begins.
    pub(crate) fn set_job(&self, job: JobHandle) {
        let first = self.job.set(job).is_ok();
        debug_assert!(first, "a queue has one executor");
        // What came before could wake nobody.
        self.wake_job();
    }

    fn wake_job(&self) {
        if let Some(job) = self.job.get() {
            job.wake();
        }
    }

    pub(crate) fn begin(&self) {
        self.state.lock().begun = true;
        self.wake_job();
    }

    /// Gives back the places of commands that were evaluated or dropped.
    pub(crate) fn leave(&self, commands: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.commands -= commands;
        state.bytes -= bytes;
    }

    pub(crate) fn proposed(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.in_flight += 1;
        state.in_flight_bytes += bytes;
    }

    /// `batches` proposals of `bytes` in all are applied.
    pub(crate) fn applied(&self, batches: usize, bytes: usize) {
        let wake = {
            let mut state = self.state.lock();
            state.in_flight -= batches;
            state.in_flight_bytes -= bytes;
            self.wake(&mut state)
        };
        if wake {
            self.wake_job();
        }
    }

    /// Takes no more commands and wakes the executor; gives back those that wait.
    pub(crate) fn close(&self) -> VecDeque<Command> {
        let mut state = self.state.lock();
        state.closed = true;
        state.asleep = false;
        self.wake_job();
        std::mem::take(&mut state.waiting)
    }

    pub(crate) fn depth(&self) -> usize {
        self.state.lock().commands
    }
}

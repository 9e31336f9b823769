//! [`MemoryMachines`]: state machines that only remember what was applied, in order.
//!
//! # Invariants
//! 1. Entries apply once and in index order; a violation panics, for the test to see.
//! 2. What [`MemoryMachine::crash`] leaves is a prefix of what was applied, and holds everything
//!    up to the last flush.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::engine::{
    CommittedEntry, SnapshotSink, SnapshotSource, StateError, StateMachine, StateMachines,
};
use crate::{GroupId, LogIndex};

/// Payloads per snapshot chunk: few, so that small tests stream several chunks.
const CHUNK: usize = 64;

/// Bytes per snapshot chunk, unless one payload alone is larger.
const CHUNK_BYTES: usize = 512 << 10;

#[derive(Clone, Default)]
struct State {
    position: Option<Bytes>,
    last_applied: LogIndex,
    payloads: Vec<(LogIndex, Bytes)>,
}

#[derive(Default)]
struct Shared {
    current: Mutex<State>,
    durable: Mutex<State>,
    failing: Mutex<u32>,
    no_installs: Mutex<bool>,
    /// Locked while it applies.
    applying: Mutex<()>,
}

/// The state of one group: the payloads applied so far. The response to an entry is its payload.
#[derive(Clone, Default)]
pub struct MemoryMachine {
    shared: Arc<Shared>,
}

impl MemoryMachine {
    /// What was applied so far, in order.
    #[must_use]
    pub fn payloads(&self) -> Vec<Bytes> {
        let state = self.shared.current.lock();
        state.payloads.iter().map(|(_, p)| p.clone()).collect()
    }

    /// As [`MemoryMachine::payloads`], with each payload's log index.
    #[must_use]
    pub fn indexed_payloads(&self) -> Vec<(LogIndex, Bytes)> {
        self.shared.current.lock().payloads.clone()
    }

    /// Forgets what was never flushed, as a power cut does.
    pub fn crash(&self) {
        let durable = self.shared.durable.lock().clone();
        *self.shared.current.lock() = durable;
    }

    /// Lets the next `count` applies fail with a storage error.
    pub fn fail_applies(&self, count: u32) {
        *self.shared.failing.lock() = count;
    }

    /// Lets applies wait until what is returned is dropped.
    pub fn hold_applies(&self) -> impl Drop + '_ {
        self.shared.applying.lock()
    }

    /// Refuses snapshots from now on, or takes them again.
    pub fn refuse_installs(&self, refuse: bool) {
        *self.shared.no_installs.lock() = refuse;
    }
}

fn failure(what: &str) -> StateError {
    StateError {
        what: what.to_owned(),
        source: None,
    }
}

impl StateMachine for MemoryMachine {
    fn applied(&self) -> Result<Option<Bytes>, StateError> {
        Ok(self.shared.current.lock().position.clone())
    }

    fn apply(&self, entries: Vec<CommittedEntry>) -> Result<Vec<Bytes>, StateError> {
        {
            let mut failing = self.shared.failing.lock();
            if *failing > 0 {
                *failing -= 1;
                return Err(failure("told to fail"));
            }
        }
        let _applying = self.shared.applying.lock();
        let mut state = self.shared.current.lock();
        let mut responses = Vec::with_capacity(entries.len());
        for entry in entries {
            assert!(
                state.position.is_none() || entry.index > state.last_applied,
                "entry {} applied after {}",
                entry.index,
                state.last_applied
            );
            state.last_applied = entry.index;
            state.position = Some(entry.position);
            responses.push(entry.payload.clone().unwrap_or_default());
            if let Some(payload) = entry.payload {
                state.payloads.push((entry.index, payload));
            }
        }
        Ok(responses)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, StateError> {
        Ok(Box::new(MemorySource {
            state: self.shared.current.lock().clone(),
            next: None,
        }))
    }

    fn begin_install(&self) -> Result<Box<dyn SnapshotSink>, StateError> {
        if *self.shared.no_installs.lock() {
            return Err(failure("told to refuse"));
        }
        Ok(Box::new(MemorySink {
            shared: self.shared.clone(),
            state: State::default(),
            begun: false,
        }))
    }

    fn flush(&self) -> Result<Option<Bytes>, StateError> {
        let current = self.shared.current.lock().clone();
        let position = current.position.clone();
        *self.shared.durable.lock() = current;
        Ok(position)
    }
}

struct MemorySource {
    state: State,
    /// `None` until the first chunk, which says how far the state is, has gone out.
    next: Option<usize>,
}

impl SnapshotSource for MemorySource {
    fn position(&self) -> Bytes {
        self.state.position.clone().unwrap_or_default()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        let Some(next) = self.next else {
            self.next = Some(0);
            return Ok(Some(Bytes::copy_from_slice(
                &self.state.last_applied.0.to_le_bytes(),
            )));
        };
        let mut chunk = BytesMut::new();
        let mut end = next;
        for (index, payload) in self.state.payloads[next..].iter().take(CHUNK) {
            if !chunk.is_empty() && chunk.len() + payload.len() > CHUNK_BYTES {
                break;
            }
            chunk.put_u64_le(index.0);
            chunk.put_u64_le(payload.len() as u64);
            chunk.put_slice(payload);
            end += 1;
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        self.next = Some(end);
        Ok(Some(chunk.freeze()))
    }
}

struct MemorySink {
    shared: Arc<Shared>,
    state: State,
    begun: bool,
}

impl SnapshotSink for MemorySink {
    fn write_chunk(&mut self, mut chunk: Bytes) -> Result<(), StateError> {
        let short = |_| failure("a snapshot chunk is cut short");
        if !self.begun {
            self.begun = true;
            self.state.last_applied = LogIndex(chunk.try_get_u64_le().map_err(short)?);
            return Ok(());
        }
        while chunk.has_remaining() {
            let index = LogIndex(chunk.try_get_u64_le().map_err(short)?);
            let length = chunk.try_get_u64_le().map_err(short)?;
            let length = usize::try_from(length)
                .ok()
                .filter(|l| *l <= chunk.remaining());
            let Some(length) = length else {
                return Err(failure("a snapshot chunk is cut short"));
            };
            self.state.payloads.push((index, chunk.split_to(length)));
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>, position: Bytes) -> Result<(), StateError> {
        if !self.begun {
            return Err(failure("the snapshot has no first chunk"));
        }
        self.state.position = Some(position);
        let state = std::mem::take(&mut self.state);
        *self.shared.durable.lock() = state.clone();
        *self.shared.current.lock() = state;
        Ok(())
    }
}

/// The disks of one node: one [`MemoryMachine`] per group, found again after a restart.
#[derive(Clone, Default)]
pub struct MemoryMachines {
    machines: Arc<Mutex<HashMap<GroupId, MemoryMachine>>>,
}

impl MemoryMachines {
    /// The state of `group`, created pristine if there is none.
    #[must_use]
    pub fn machine(&self, group: GroupId) -> MemoryMachine {
        self.machines.lock().entry(group).or_default().clone()
    }

    /// Forgets, in every group, what was never flushed.
    pub fn crash(&self) {
        for machine in self.machines.lock().values() {
            machine.crash();
        }
    }
}

impl StateMachines for MemoryMachines {
    fn open(&self, group: GroupId) -> Result<Arc<dyn StateMachine>, StateError> {
        Ok(Arc::new(self.machine(group)))
    }

    fn destroy(&self, group: GroupId) -> Result<(), StateError> {
        self.machines.lock().remove(&group);
        Ok(())
    }
}

//! The connected clients: what CLIENT LIST shows of them, and how others reach them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use crate::commands;

/// Close the connection at once.
pub(crate) const KILL: u8 = 1;
/// Finish what was begun, then close.
pub(crate) const STOP: u8 = 2;
/// Look again at what a pause held back.
pub(crate) const RESUME: u8 = 4;

/// Why a blocked client goes on without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unblock {
    /// As if its time were up.
    Timeout,
    /// With an error: `CLIENT UNBLOCK id ERROR`.
    Error,
    /// With an error: the server stops.
    Stopping,
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) name: Bytes,
    pub(crate) library: Bytes,
    pub(crate) version: Bytes,
}

/// One connection, as others see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    /// `host:port` of the client.
    pub(crate) address: String,
    /// `host:port` it came to.
    pub(crate) local: String,
    began: Instant,
    signals: AtomicU8,
    waker: AtomicWaker,
    unblock: Mutex<Option<oneshot::Sender<Unblock>>>,
    pub(crate) names: Mutex<Names>,
    pub(crate) database: AtomicU8,
    pub(crate) resp: AtomicU8,
    pub(crate) no_evict: AtomicBool,
    pub(crate) no_touch: AtomicBool,
    /// Commands queued since MULTI; -1: there is none.
    pub(crate) queued: AtomicI64,
    /// Keys that WATCH has named.
    pub(crate) watching: AtomicUsize,
    /// Milliseconds after `began` of the last request, and of the last byte that moved while output
    /// waited (0: none waits).
    last_request: AtomicU64,
    stuck_since: AtomicU64,
    last_command: AtomicUsize,
    pub(crate) input: AtomicUsize,
    pub(crate) output: AtomicUsize,
}

impl Client {
    pub(crate) fn new(id: u64, address: String, local: String) -> Self {
        Self {
            id,
            address,
            local,
            began: Instant::now(),
            signals: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            unblock: Mutex::new(None),
            names: Mutex::default(),
            database: AtomicU8::new(0),
            resp: AtomicU8::new(2),
            no_evict: AtomicBool::new(false),
            no_touch: AtomicBool::new(false),
            queued: AtomicI64::new(-1),
            watching: AtomicUsize::new(0),
            last_request: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            last_command: AtomicUsize::new(usize::MAX),
            input: AtomicUsize::new(0),
            output: AtomicUsize::new(0),
        }
    }

    /// Where signals wake the connection's task.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn signals(&self) -> u8 {
        self.signals.load(Ordering::Acquire)
    }

    pub(crate) fn signal(&self, signal: u8) {
        self.signals.fetch_or(signal, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Forgets a signal that was acted upon.
    pub(crate) fn clear(&self, signal: u8) {
        self.signals.fetch_and(!signal, Ordering::AcqRel);
    }

    /// Marks the client as blocked; whoever unblocks it sends.
    pub(crate) fn block(&self) -> oneshot::Receiver<Unblock> {
        let (sender, receiver) = oneshot::channel();
        *self.unblock.lock() = Some(sender);
        receiver
    }

    pub(crate) fn unblocked(&self) {
        *self.unblock.lock() = None;
    }

    /// Ends the client's wait; false when it was not waiting.
    pub(crate) fn unblock(&self, how: Unblock) -> bool {
        self.unblock
            .lock()
            .take()
            .is_some_and(|sender| sender.send(how).is_ok())
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.unblock.lock().is_some()
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn requested(&self, now: Instant, command: usize) {
        self.last_request.store(self.millis(now), Ordering::Relaxed);
        self.last_command.store(command, Ordering::Relaxed);
    }

    /// Output waits for the client since `now`, or no longer (`None`).
    pub(crate) fn output_stuck(&self, now: Option<Instant>) {
        let since = now.map_or(0, |now| self.millis(now).max(1));
        self.stuck_since.store(since, Ordering::Relaxed);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck_since.load(Ordering::Relaxed) != 0
    }

    /// How long the client has let output wait without taking a byte.
    pub(crate) fn stuck_for(&self, now: Instant) -> Duration {
        match self.stuck_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.millis(now).saturating_sub(since)),
        }
    }

    pub(crate) fn idle_for(&self, now: Instant) -> Duration {
        let last = self.last_request.load(Ordering::Relaxed);
        Duration::from_millis(self.millis(now).saturating_sub(last))
    }

    /// Letters for what is set, as in CLIENT LIST.
    fn flags(&self) -> String {
        let flags: String = [
            ('x', self.queued.load(Ordering::Relaxed) >= 0),
            ('b', self.is_blocked()),
            ('e', self.no_evict.load(Ordering::Relaxed)),
            ('T', self.no_touch.load(Ordering::Relaxed)),
        ]
        .into_iter()
        .filter_map(|(letter, set)| set.then_some(letter))
        .collect();
        if flags.is_empty() { "N".into() } else { flags }
    }

    /// No MULTI any more, and nothing watched.
    pub(crate) fn transaction_is_over(&self) {
        self.queued.store(-1, Ordering::Relaxed);
        self.watching.store(0, Ordering::Relaxed);
    }

    /// One line of CLIENT LIST.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let names = self.names.lock().clone();
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let queued = self.queued.load(Ordering::Relaxed);
        let output = self.output.load(Ordering::Relaxed);
        let input = self.input.load(Ordering::Relaxed);
        let mut line = format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 multi={queued} watch={}",
            self.id,
            self.address,
            self.local,
            text(&names.name),
            self.millis(now) / 1000,
            self.idle_for(now).as_secs(),
            self.flags(),
            self.database.load(Ordering::Relaxed),
            self.watching.load(Ordering::Relaxed),
        );
        // Writing to a String cannot fail.
        write!(
            line,
            " qbuf={input} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl={output} oll=0 omem={output} tot-mem={} events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
            input + output,
            commands::nth(self.last_command.load(Ordering::Relaxed))
                .map_or("NULL", |spec| spec.lower),
            self.resp.load(Ordering::Relaxed),
            text(&names.library),
            text(&names.version),
        )
        .ok();
        line
    }
}

/// All of them, by id.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    by_id: Mutex<BTreeMap<u64, Arc<Client>>>,
    last_id: AtomicU64,
}

impl Clients {
    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn insert(&self, client: Arc<Client>) {
        self.by_id.lock().insert(client.id, client);
    }

    pub(crate) fn remove(&self, id: u64) {
        self.by_id.lock().remove(&id);
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.by_id.lock().get(&id).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.lock().len()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        self.by_id.lock().values().cloned().collect()
    }
}

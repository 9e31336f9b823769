//! The door itself: accepts connections, bounds them, and closes them in order.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use leadline_kv::{Coordinator, DoorStatistics};
use leadline_raft::Context;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::{Client, Clients, KILL, RESUME, STOP, Unblock};
use crate::commands;
use crate::config::{RedisConfig, Settings};
use crate::connection::{Connection, End};
use crate::info::NodeFacts;
use crate::metrics::{self, Metrics, Shown};
use crate::script::Known;
use crate::session::Session;
use crate::slowlog::SlowLog;

/// How often idle and stuck clients are looked for.
const TICK: Duration = Duration::from_secs(1);

/// A client that takes no byte of its replies for so long is closed.
const STUCK: Duration = Duration::from_secs(60);

/// After a failed accept: the first pause, and the longest.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Memory that all connections share. Charged in steps, so that most turns touch no shared counter.
#[derive(Debug)]
pub(crate) struct Memory {
    used: AtomicUsize,
    limit: usize,
}

impl Memory {
    const STEP: usize = 16 * 1024;

    /// Changes a charge from `charged` to about `held`; false when the limit is exceeded.
    pub(crate) fn recharge(&self, charged: &mut usize, held: usize) -> bool {
        let rounded = held.next_multiple_of(Self::STEP);
        if rounded > *charged {
            self.used.fetch_add(rounded - *charged, Ordering::Relaxed);
        } else if rounded < *charged {
            self.used.fetch_sub(*charged - rounded, Ordering::Relaxed);
        }
        *charged = rounded;
        self.used.load(Ordering::Relaxed) <= self.limit
    }

    pub(crate) fn release(&self, charged: usize) {
        self.used.fetch_sub(charged, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// CLIENT PAUSE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pause {
    pub(crate) until: Instant,
    pub(crate) writes_only: bool,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) coordinator: Arc<dyn Coordinator>,
    pub(crate) facts: Arc<dyn NodeFacts>,
    /// Held by a look at the disk until it ends, though its caller may have left: a disk that hangs
    /// takes one thread.
    pub(crate) disk_look: Arc<tokio::sync::Mutex<()>>,
    settings: ArcSwap<Settings>,
    slower_than_us: AtomicI64,
    pub(crate) clients: Clients,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) slowlog: SlowLog,
    pub(crate) scripts: Known,
    pub(crate) memory: Memory,
    is_paused: AtomicBool,
    pause: Mutex<Option<Pause>>,
    pub(crate) began: Instant,
}

impl Shared {
    pub(crate) fn settings(&self) -> arc_swap::Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Changes the settings as a whole: all of `changes` (names and values by turns) or none.
    ///
    /// # Errors
    /// The line that Redis gives.
    pub(crate) fn configure(&self, changes: &[Bytes]) -> Result<(), String> {
        let settings = self.settings.load().with(changes)?;
        self.slower_than_us
            .store(settings.slowlog_log_slower_than_us, Ordering::Relaxed);
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    /// Whether a command that took so long belongs into the slow log.
    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        // Negative is off, zero is everything.
        u64::try_from(self.slower_than_us.load(Ordering::Relaxed))
            .is_ok_and(|limit| took >= Duration::from_micros(limit))
    }

    /// Until when the command `name` is held back, if it is.
    pub(crate) fn paused(&self, name: &[u8], now: Instant) -> Option<Instant> {
        if !self.is_paused.load(Ordering::Relaxed) {
            return None;
        }
        let pause = self.pause.lock().filter(|pause| pause.until > now)?;
        // CLIENT stays, so that someone can end the pause.
        let held = commands::find(name)
            .is_some_and(|spec| spec.name != "CLIENT" && (!pause.writes_only || spec.flags.write));
        held.then_some(pause.until)
    }

    /// Begins, changes or (`None`) ends a pause.
    pub(crate) fn set_pause(&self, pause: Option<Pause>) {
        {
            let mut current = self.pause.lock();
            *current = match (pause, *current) {
                // Of two pauses the later end and the wider scope count, as in Redis.
                (Some(new), Some(old)) if old.until > Instant::now() => Some(Pause {
                    until: new.until.max(old.until),
                    writes_only: new.writes_only && old.writes_only,
                }),
                (new, _) => new,
            };
        }
        self.is_paused.store(pause.is_some(), Ordering::Relaxed);
        if pause.is_none() {
            // What was held back looks again.
            for client in self.clients.all() {
                client.signal(RESUME);
            }
        }
    }
}

/// Serves Redis clients.
pub struct RedisServer {
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    /// Set when no more connections are accepted.
    stopping: CancellationToken,
    /// Cancelled when connections may not finish any more.
    root: Context,
    connections: TaskTracker,
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").finish_non_exhaustive()
    }
}

impl RedisServer {
    /// A door to `coordinator`, whose metrics are in `registry`. `tls` is for
    /// [`RedisServer::serve_tls`].
    #[must_use]
    pub fn new(
        config: &RedisConfig,
        tls: Option<Arc<rustls::ServerConfig>>,
        coordinator: Arc<dyn Coordinator>,
        facts: Arc<dyn NodeFacts>,
        registry: &mut Registry,
    ) -> Self {
        let settings = Settings::new(config);
        let metrics = Arc::new(Metrics::new());
        registry.register_collector(Box::new(Shown(metrics.clone())));
        Self {
            shared: Arc::new(Shared {
                coordinator,
                facts,
                disk_look: Arc::default(),
                slower_than_us: AtomicI64::new(settings.slowlog_log_slower_than_us),
                settings: ArcSwap::from_pointee(settings),
                clients: Clients::default(),
                metrics,
                slowlog: SlowLog::default(),
                scripts: Known::default(),
                memory: Memory {
                    used: AtomicUsize::new(0),
                    limit: config.memory_limit,
                },
                is_paused: AtomicBool::new(false),
                pause: Mutex::new(None),
                began: Instant::now(),
            }),
            tls: tls.map(TlsAcceptor::from),
            stopping: CancellationToken::new(),
            root: Context::with_timeout(Duration::MAX),
            connections: TaskTracker::new(),
        }
    }

    /// What this door counts, for dashboards.
    #[must_use]
    pub fn statistics(&self) -> Arc<dyn DoorStatistics> {
        self.shared.metrics.clone()
    }

    /// Accepts connections from `listener` until [`RedisServer::stop`]. May run for several
    /// listeners at once.
    pub async fn serve(&self, listener: TcpListener) {
        self.accept(listener, None).await;
    }

    /// As [`RedisServer::serve`], every connection beginning with a TLS handshake. Returns at once
    /// when the server was made without certificates.
    pub async fn serve_tls(&self, listener: TcpListener) {
        if self.tls.is_some() {
            self.accept(listener, self.tls.as_ref()).await;
        }
    }

    async fn accept(&self, listener: TcpListener, tls: Option<&TlsAcceptor>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = ACCEPT_PAUSE;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                _ = tick.tick() => {
                    self.shared.metrics.look(Instant::now());
                    self.close_idle_and_stuck();
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    pause = ACCEPT_PAUSE;
                    self.welcome(stream, tls.cloned());
                }
                // A client that left before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, ?pause, "cannot accept Redis connections");
                    tokio::select! {
                        () = self.stopping.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Accepts no more, lets every connection finish what it has begun until `ctx` ends, then
    /// closes them all. Returns when the last is closed.
    pub async fn stop(&self, ctx: &Context) {
        self.stopping.cancel();
        self.connections.close();
        for client in self.shared.clients.all() {
            client.signal(STOP);
            client.unblock(Unblock::Stopping);
        }
        if ctx.run(self.connections.wait()).await.is_err() {
            tracing::info!(
                open = self.shared.clients.len(),
                "Redis connections did not finish in time: closed"
            );
            self.root.cancel();
            for client in self.shared.clients.all() {
                client.signal(KILL);
            }
            self.connections.wait().await;
        }
    }

    fn welcome(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let shared = &self.shared;
        if shared.clients.len() >= shared.settings().maxclients {
            metrics::count(&shared.metrics.rejected);
            // A full socket buffer is impossible here, and a client that is gone needs no answer.
            stream
                .try_write(b"-ERR max number of clients reached\r\n")
                .ok();
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let address = |address: io::Result<std::net::SocketAddr>| {
            address.map_or_else(|_| "?:0".to_owned(), |address| address.to_string())
        };
        let client = Arc::new(Client::new(
            shared.clients.next_id(),
            address(stream.peer_addr()),
            address(stream.local_addr()),
        ));
        shared.clients.insert(client.clone());
        metrics::count(&shared.metrics.opened);
        metrics::count(&shared.metrics.connections);
        let open = Open(shared.clone(), client.clone());
        let root = self.root.child(Duration::MAX).as_caller();
        let session = Session::new(shared.clone(), client, root);
        self.connections.spawn(async move {
            let end = match tls {
                None => Connection::new(stream, session).serve().await,
                Some(acceptor) => {
                    let handshake = session.root.child(HANDSHAKE);
                    match handshake.run(acceptor.accept(stream)).await {
                        Ok(Ok(mut stream)) => {
                            let end = Connection::new(&mut stream, session).serve().await;
                            // Says goodbye; a client that is gone does not hear it.
                            handshake
                                .detach(HANDSHAKE)
                                .run(stream.shutdown())
                                .await
                                .ok();
                            end
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(%error, "TLS handshake failed");
                            metrics::count(&open.0.metrics.rejected);
                            End::Closed
                        }
                        Err(ended) => {
                            tracing::debug!(%ended, "TLS handshake not finished");
                            metrics::count(&open.0.metrics.rejected);
                            End::Closed
                        }
                    }
                }
            };
            open.ended(end);
        });
    }

    fn close_idle_and_stuck(&self) {
        let timeout = Duration::from_secs(self.shared.settings().timeout_s);
        let now = Instant::now();
        for client in self.shared.clients.all() {
            if client.stuck_for(now) >= STUCK {
                tracing::info!(client = client.id, "closed: it does not read its replies");
                metrics::count(&self.shared.metrics.rejected);
                client.signal(KILL);
            } else if !timeout.is_zero() && !client.is_blocked() && client.idle_for(now) >= timeout
            {
                tracing::debug!(client = client.id, "closed: idle");
                client.signal(KILL);
            }
        }
    }
}

/// A connection's place among the clients.
struct Open(Arc<Shared>, Arc<Client>);

impl Open {
    fn ended(&self, end: End) {
        match end {
            End::Closed | End::Killed => {}
            End::Gone => {
                metrics::count(&self.0.metrics.client_gone);
                tracing::debug!(client = self.1.id, "client gone");
            }
            End::OverBudget => {
                metrics::count(&self.0.metrics.rejected);
                tracing::warn!(
                    client = self.1.id,
                    "closed: the memory for Redis connections is spent"
                );
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.clients.remove(self.1.id);
        self.0.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

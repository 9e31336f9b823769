//! A server over memory, and clients made of raw sockets.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use leadline_kv::testing::MemoryCoordinator;
use leadline_kv::{
    Coordinator, DoorStatistics, KeyWatch, KvError, Operation, PendingReply, RequestId,
};
use leadline_raft::engine::ReadIndex;
use leadline_raft::{Context, GroupId, NodeId};
use leadline_redis::{Facts, NodeFacts, RedisConfig, RedisServer};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// 2026-01-01.
pub(crate) const UNIX_MILLIS: u64 = 1_767_225_600_000;

/// Nothing here takes that long; a test that hangs ends.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Facts of a cluster of three.
#[derive(Debug)]
pub(crate) struct ThreeNodes;

impl NodeFacts for ThreeNodes {
    fn facts(&self) -> Facts {
        Facts {
            version: "0.1.0".into(),
            node_id: 1,
            cluster_id: 0xC1,
            nodes: 3,
            voters: 3,
            shards: 1,
            shards_led: 1,
            read_mode: "read-index".into(),
            engine: "fjall".into(),
            memory_bytes: 1 << 20,
        }
    }

    fn cpu_times(&self) -> (Duration, Duration) {
        (Duration::from_millis(1500), Duration::from_micros(250))
    }

    fn disk_bytes(&self) -> u64 {
        4096
    }

    fn unix_time(&self) -> Duration {
        Duration::from_millis(UNIX_MILLIS)
    }
}

pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) door: Arc<RedisServer>,
    pub(crate) registry: Registry,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(RedisConfig::default()).await
    }

    pub(crate) async fn with(config: RedisConfig) -> Self {
        Self::over(Arc::new(MemoryCoordinator::new(UNIX_MILLIS)), config).await
    }

    pub(crate) async fn over(coordinator: Arc<dyn Coordinator>, config: RedisConfig) -> Self {
        Self::of_node(Arc::new(ThreeNodes), coordinator, config).await
    }

    #[expect(clippy::disallowed_methods, reason = "joined in `stop`")]
    pub(crate) async fn of_node(
        facts: Arc<dyn NodeFacts>,
        coordinator: Arc<dyn Coordinator>,
        config: RedisConfig,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        let door = Arc::new(RedisServer::new(
            &config,
            None,
            coordinator,
            facts,
            &mut registry,
        ));
        let serving = door.clone();
        let accepting = tokio::spawn(async move { serving.serve(listener).await });
        Self {
            address,
            door,
            registry,
            accepting,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream }
    }

    pub(crate) fn statistics(&self) -> Arc<dyn DoorStatistics> {
        self.door.statistics()
    }

    pub(crate) async fn stop(self) {
        self.door
            .stop(&Context::with_timeout(Duration::from_secs(2)))
            .await;
        self.accepting.await.unwrap();
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads exactly `expected`; fails as soon as something else comes.
    pub(crate) async fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let mut chunk = vec![0; expected.len() - received.len()];
            let count = tokio::time::timeout(SOON, self.stream.read(&mut chunk))
                .await
                .unwrap_or_else(|_| panic!("no reply in time, expected {:?}", lossy(expected)))
                .unwrap_or_else(|error| panic!("{error}, expected {:?}", lossy(expected)));
            received.extend_from_slice(&chunk[..count]);
            let as_expected = count > 0 && expected.starts_with(&received);
            assert!(
                as_expected,
                "{:?}, expected {:?}",
                lossy(&received),
                lossy(expected)
            );
        }
    }

    /// One request line, one reply of known text.
    pub(crate) async fn ask(&mut self, line: &str, expected: &str) {
        self.send(format!("{line}\r\n")).await;
        self.expect(expected).await;
    }

    /// Everything until the server closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut received = Vec::new();
        let read = self.stream.read_to_end(&mut received);
        tokio::time::timeout(SOON, read)
            .await
            .expect("the server should have closed")
            .ok();
        lossy(&received)
    }

    /// One line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = async {
            while !line.ends_with(b"\r\n") {
                line.push(self.stream.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(SOON, read).await.expect("no line");
        lossy(&line[..line.len() - 2])
    }

    /// The text of a bulk or verbatim string.
    pub(crate) async fn bulk(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        let head = self.line().await;
        assert!(head.starts_with(['$', '=']), "{head}");
        let mut body = vec![0; head[1..].parse::<usize>().unwrap() + 2];
        self.stream.read_exact(&mut body).await.unwrap();
        lossy(&body[..body.len() - 2])
    }
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A multibulk request.
pub(crate) fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend(format!("${}\r\n", arg.len()).bytes());
        bytes.extend_from_slice(arg);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// Waits until `seen` holds.
pub(crate) async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let wait = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// What a [`Gate`] was asked to do.
pub(crate) struct Asked {
    pub(crate) name: &'static str,
    pub(crate) ctx: Context,
    pub(crate) reply: oneshot::Sender<Result<Bytes, KvError>>,
}

/// A coordinator that answers when, and what, the test says.
#[derive(Default)]
pub(crate) struct Gate {
    asked: Mutex<VecDeque<Asked>>,
    requests: AtomicU64,
}

impl Gate {
    /// The oldest request that was not taken yet.
    pub(crate) async fn next(&self) -> Asked {
        let mut next = None;
        until("a request", || {
            next = self.asked.lock().unwrap().pop_front();
            next.is_some()
        })
        .await;
        next.unwrap()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Coordinator for Gate {
    fn submit(&self, ctx: &Context, operation: Arc<dyn Operation>) -> PendingReply {
        let (reply, receiver) = oneshot::channel();
        self.asked.lock().unwrap().push_back(Asked {
            name: operation.name(),
            ctx: ctx.clone(),
            reply,
        });
        PendingReply::waiting(receiver)
    }

    fn submit_once(
        &self,
        ctx: &Context,
        _: RequestId,
        operation: Arc<dyn Operation>,
    ) -> PendingReply {
        self.submit(ctx, operation)
    }

    fn next_request_id(&self) -> RequestId {
        RequestId {
            session: 1,
            number: self.requests.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn watch<'a>(
        &'a self,
        _: &'a Context,
        _: &'a [Bytes],
    ) -> BoxFuture<'a, Result<KeyWatch, KvError>> {
        let (wake, watch) = KeyWatch::new();
        // Nobody wakes it: for as long as the test runs.
        std::mem::forget(wake);
        Box::pin(std::future::ready(Ok(watch)))
    }

    fn verify_leader<'a>(
        &'a self,
        _: &'a Context,
        _: GroupId,
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        Box::pin(std::future::ready(Err(KvError::Stopping)))
    }

    fn verify_leader_for_key<'a>(
        &'a self,
        _: &'a Context,
        _: &'a [u8],
    ) -> BoxFuture<'a, Result<ReadIndex, KvError>> {
        Box::pin(std::future::ready(Err(KvError::Stopping)))
    }

    fn known_leader(&self, _: GroupId) -> Option<NodeId> {
        None
    }
}

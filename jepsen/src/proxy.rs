//! A user-space path between nodes: one listener per node, in front of the port that other nodes
//! dial. It can stop the bytes of one direction between two nodes (nothing is refused, as a route
//! that is gone) and hold each piece back for a time of its own, so that what two connections carry
//! arrives in another order than it was sent in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The port that nodes dial.
const PORT: u16 = 50051;

/// Pieces on their way in one direction of one connection.
const PIECES: usize = 256;

#[derive(Clone, Default)]
struct Rules {
    blocked: BTreeSet<(u8, u8)>,
    delay: Option<(Duration, Duration)>,
}

/// Every proxy of a run, and what they do at the moment.
pub(crate) struct Proxies {
    rules: watch::Sender<Rules>,
    processes: watch::Sender<BTreeMap<u8, i32>>,
    servers: std::sync::Mutex<JoinSet<()>>,
}

impl Default for Proxies {
    fn default() -> Self {
        Self {
            rules: watch::channel(Rules::default()).0,
            processes: watch::channel(BTreeMap::new()).0,
            servers: std::sync::Mutex::default(),
        }
    }
}

impl Proxies {
    /// Listens at `front` for what goes to node `number` at `back`, until dropped.
    pub(crate) async fn serve(&self, number: u8, front: &str, back: &str) -> Result<(), String> {
        let listener = TcpListener::bind((front, PORT))
            .await
            .map_err(|error| format!("a proxy at {front}: {error}"))?;
        let (rules, processes) = (self.rules.subscribe(), self.processes.subscribe());
        let back = back.to_owned();
        let server = async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, peer)) = listener.accept().await {
                let from = sender(&peer.ip().to_string(), peer.port(), &processes.borrow());
                let (rules, back) = (rules.clone(), back.clone());
                connections.spawn(async move { relay(socket, &back, from, number, rules).await });
                while connections.try_join_next().is_some() {}
            }
        };
        // The lock is held by nobody who panics.
        if let Ok(mut servers) = self.servers.lock() {
            servers.spawn(server);
        }
        Ok(())
    }

    pub(crate) fn block(&self, blocked: BTreeSet<(u8, u8)>) {
        self.rules.send_modify(|rules| rules.blocked = blocked);
    }

    pub(crate) fn delay(&self, bounds: Option<(Duration, Duration)>) {
        self.rules.send_modify(|rules| rules.delay = bounds);
    }

    pub(crate) fn is_process(&self, number: u8, pid: i32) {
        self.processes.send_modify(|processes| {
            processes.insert(number, pid);
        });
    }
}

/// The node that dialled: by its address where it has one of its own, else by the process that owns
/// the socket. 0: nobody that is known (a client of the run itself).
fn sender(ip: &str, port: u16, processes: &BTreeMap<u8, i32>) -> u8 {
    if !ip.starts_with("127.") {
        return ip
            .rsplit_once('.')
            .and_then(|(_, last)| last.parse().ok())
            .unwrap_or(0);
    }
    let Some(inode) = inode(port) else { return 0 };
    let link = format!("socket:[{inode}]");
    let owns = |pid: i32| {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        files
            .filter_map(Result::ok)
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.as_os_str() == link.as_str())
    };
    processes
        .iter()
        .find(|(_, pid)| owns(**pid))
        .map_or(0, |(number, _)| *number)
}

/// The inode of the socket with this local port.
fn inode(port: u16) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        (u16::from_str_radix(local, 16).ok()? == port)
            .then(|| fields.get(9)?.parse().ok())
            .flatten()
    })
}

async fn relay(socket: TcpStream, back: &str, from: u8, to: u8, rules: watch::Receiver<Rules>) {
    let Ok(other) = TcpStream::connect((back, PORT)).await else {
        return;
    };
    // A socket that cannot be told so is slower, no more.
    socket.set_nodelay(true).ok();
    other.set_nodelay(true).ok();
    let (near_read, near_write) = socket.into_split();
    let (far_read, far_write) = other.into_split();
    tokio::select! {
        () = pump(near_read, far_write, (from, to), rules.clone()) => {}
        () = pump(far_read, near_write, (to, from), rules) => {}
    }
}

/// Moves bytes one way until an end closes.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pair: (u8, u8),
    mut rules: watch::Receiver<Rules>,
) {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let delays = rules.clone();
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Ok(length @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let delay = delays.borrow().delay.map_or(Duration::ZERO, |(low, high)| {
                rand::rng().random_range(low..=high)
            });
            let piece = (Instant::now() + delay, buffer[..length].to_vec());
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, piece)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            let open = rules.wait_for(|rules| !rules.blocked.contains(&pair));
            if open.await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = write => {}
        // What was read before the end is still on its way.
        () = async { read.await; std::future::pending().await } => {}
    }
}

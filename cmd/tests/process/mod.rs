//! Real processes of the binary, each ended by its own id however a test ends.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with `args`, and without the settings of whoever runs the tests.
pub(crate) fn leadline(args: &[&str]) -> Command {
    // Another binary: what an older one did can be held against these tests.
    let binary = std::env::var("LEADLINE_BINARY")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_leadline").to_owned());
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LEADLINE_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// What a command that ends by itself said: exit code, standard output, standard error.
pub(crate) fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let ended = leadline(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

pub(crate) fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

/// Status and body of one request to a port of this machine.
pub(crate) fn http(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, _, body) = exchange(port, method, path, body).unwrap_or_default();
    (status, body)
}

/// Status, head and body.
pub(crate) fn exchange(
    port: u16,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<(u16, String, String)> {
    let address = ([127, 0, 0, 1], port).into();
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    socket.set_read_timeout(Some(Duration::from_secs(15)))?;
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.unwrap_or(0), head.to_owned(), body.to_owned()))
}

/// What a Redis port answers to an inline command, up to the line that holds `last`.
pub(crate) fn redis(port: u16, command: &str, last: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(command.as_bytes()).unwrap();
    let (mut lines, mut answer) = (BufReader::new(socket), String::new());
    while !answer
        .lines()
        .last()
        .is_some_and(|line| line.contains(last))
    {
        assert!(lines.read_line(&mut answer).unwrap() > 0, "{answer}");
    }
    answer
}

/// One `leadline serve` with a data directory of its own.
pub(crate) struct Node {
    pub(crate) redis: u16,
    pub(crate) s3: u16,
    pub(crate) admin: u16,
    pub(crate) grpc: u16,
    child: Child,
    dir: TempDir,
}

impl Node {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [redis, s3, admin, grpc] = std::array::from_fn(|_| free_port());
        let log = File::create(dir.path().join("log")).unwrap();
        let child = leadline(&["serve", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--redis", &redis.to_string(), "--s3", &s3.to_string()])
            .args(["--admin", &admin.to_string(), "--grpc", &grpc.to_string()])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            redis,
            s3,
            admin,
            grpc,
            child,
            dir,
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until the admin port answers.
    pub(crate) fn until_alive(&mut self) {
        self.until_200("/livez");
    }

    /// Waits until the node may be sent requests.
    pub(crate) fn until_ready(&mut self) {
        self.until_200("/readyz");
    }

    fn until_200(&mut self, path: &str) {
        let began = Instant::now();
        while http(self.admin, "GET", path, "").0 != 200 {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            assert!(
                began.elapsed() < PATIENCE,
                "no 200 of {path}: {}",
                self.log()
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM; the exit code and all that was logged.
    pub(crate) fn stop(&mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(id).status().unwrap().success());
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.log());
            }
            assert!(
                began.elapsed() < PATIENCE,
                "it does not stop: {}",
                self.log()
            );
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Neither does anything to a process that has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

//! Three real processes, and what can be done to them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::http_get;
use crate::net;

/// Node numbers of every run.
pub(crate) const NODES: [u8; 3] = [1, 2, 3];

/// A running cluster. Dropping it ends every process and removes every namespace.
pub(crate) struct Cluster {
    prefix: String,
    binary: PathBuf,
    dir: tempfile::TempDir,
    options: Vec<String>,
    /// By node number, from 1.
    processes: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts three nodes and waits until each group has three voters.
    pub(crate) async fn start(
        prefix: &str,
        binary: &Path,
        options: &[&str],
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut cluster = Self {
            prefix: prefix.to_owned(),
            binary: binary.to_owned(),
            dir,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            processes: Vec::new(),
        };
        for number in NODES {
            net::add_node(prefix, number)?;
            cluster.processes.push(None);
            cluster.start_node(number)?;
            cluster.wait_until_live(number).await?;
        }
        cluster
            .wait(
                Duration::from_secs(60),
                "three voters in every group",
                |overview| {
                    let groups = overview["groups"].as_array()?;
                    let whole = groups.iter().all(|group| {
                        let voters = group["replicas"].as_array().map_or(0, |replicas| {
                            replicas
                                .iter()
                                .filter(|replica| replica["role"] == "voter")
                                .count()
                        });
                        voters == NODES.len() && !group["leader"].is_null()
                    });
                    (whole && groups.len() > 1).then_some(())
                },
            )
            .await?;
        Ok(cluster)
    }

    fn data_dir(&self, number: u8) -> PathBuf {
        self.dir.path().join(format!("n{number}"))
    }

    fn process(&mut self, number: u8) -> &mut Option<Child> {
        &mut self.processes[usize::from(number) - 1]
    }

    /// Starts node `number`, for the first time or again.
    pub(crate) fn start_node(&mut self, number: u8) -> Result<(), String> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("n{number}.log")))
            .map_err(|error| error.to_string())?;
        let mut command = net::command(&self.prefix, number, &self.binary);
        command
            .args(["serve", "--bind", &net::address(number), "--data-dir"])
            .arg(self.data_dir(number))
            .args(&self.options);
        if number != 1 {
            command.args(["--join", &format!("{}:50051", net::address(1))]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start node {number}: {error}"))?;
        *self.process(number) = Some(child);
        Ok(())
    }

    /// What the nodes logged, for a failed run.
    pub(crate) fn keep_logs(&self) -> Result<PathBuf, String> {
        let kept = std::env::temp_dir().join(format!("{}-logs", self.prefix));
        std::fs::create_dir_all(&kept).map_err(|error| error.to_string())?;
        for number in NODES {
            let name = format!("n{number}.log");
            std::fs::copy(self.dir.path().join(&name), kept.join(&name))
                .map_err(|error| error.to_string())?;
        }
        Ok(kept)
    }

    async fn wait_until_live(&mut self, number: u8) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            let answer =
                http_get(&net::address(number), "/livez", Duration::from_millis(500)).await;
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            let exited = match self.process(number) {
                Some(child) => child.try_wait().map_err(|error| error.to_string())?,
                None => None,
            };
            if let Some(status) = exited {
                let log = std::fs::read_to_string(self.dir.path().join(format!("n{number}.log")));
                return Err(format!(
                    "node {number} {status}: {}",
                    log.unwrap_or_default()
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!("node {number} did not answer within 30 s"))
    }

    /// Asks each node in turn for an overview until `found` finds what it looks for.
    pub(crate) async fn wait<T>(
        &self,
        patience: Duration,
        what: &str,
        mut found: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, String> {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < patience {
            for number in NODES {
                let path = "/api/v1/overview?timeout=900ms";
                let asked = http_get(&net::address(number), path, Duration::from_secs(1)).await;
                let Ok((200, body)) = asked else { continue };
                let Ok(overview) = serde_json::from_str(&body) else {
                    continue;
                };
                if let Some(value) = found(&overview) {
                    return Ok(value);
                }
                last = Some(overview);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!(
            "not within {patience:?}: {what}; last seen: {last:?}"
        ))
    }

    /// The leader of `group`, as the nodes tell it.
    pub(crate) async fn leader(&self, group: usize) -> Result<u8, String> {
        self.wait(Duration::from_secs(15), "a leader", |overview| {
            let group = overview["groups"]
                .as_array()?
                .iter()
                .find(|g| g["group"] == group)?;
            u8::try_from(group["leader"].as_u64()?).ok()
        })
        .await
    }

    /// The process id of node `number`; `ip netns exec` becomes the program it runs.
    pub(crate) fn pid(&mut self, number: u8) -> Option<i32> {
        let child = self.process(number).as_ref()?;
        i32::try_from(child.id()).ok()
    }

    pub(crate) fn signal(&mut self, number: u8, signal: Signal) -> Result<(), String> {
        let Some(pid) = self.pid(number).and_then(Pid::from_raw) else {
            return Ok(());
        };
        kill_process(pid, signal).map_err(|error| format!("signalling node {number}: {error}"))
    }

    /// kill -9, and waits for the process to be gone.
    pub(crate) fn kill(&mut self, number: u8) -> Result<(), String> {
        self.signal(number, Signal::KILL)?;
        if let Some(mut child) = self.process(number).take() {
            child.wait().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    pub(crate) fn is_running(&self, number: u8) -> bool {
        self.processes[usize::from(number) - 1].is_some()
    }

    /// CPU time that node `number` has used, and its resident memory in bytes.
    pub(crate) fn usage(&mut self, number: u8) -> Result<(Duration, u64), String> {
        let pid = self.pid(number).ok_or("the node does not run")?;
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}"))
                .map_err(|error| error.to_string())
        };
        let stat = read("stat")?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .iter()
            .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
            .sum();
        let cpu =
            Duration::from_micros(ticks * 1_000_000 / rustix::param::clock_ticks_per_second());
        let pages: u64 = read("statm")?
            .split_whitespace()
            .nth(1)
            .and_then(|p| p.parse().ok())
            .unwrap_or(0);
        Ok((cpu, pages * rustix::param::page_size() as u64))
    }

    /// The sum of a metric's samples on node `number`.
    pub(crate) async fn metric(&self, number: u8, name: &str) -> Result<f64, String> {
        let (status, text) = http_get(&net::address(number), "/metrics", Duration::from_secs(2))
            .await
            .map_err(|error| format!("/metrics of node {number}: {error}"))?;
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with([' ', '{']))
            })
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        if samples.is_empty() {
            return Err(format!(
                "/metrics of node {number} (status {status}) has no {name}"
            ));
        }
        Ok(samples.iter().sum())
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in NODES {
            if self.processes.len() >= usize::from(number) {
                // A process that is gone already is what is wanted.
                self.signal(number, Signal::CONT).ok();
                self.kill(number).ok();
                net::remove_node(&self.prefix, number).ok();
            }
        }
    }
}

//! Real processes, and what can be done to them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::http_get;
use crate::net::{Network, sh};

/// What is under test.
#[derive(Clone, Debug)]
pub(crate) enum System {
    /// The `leadline` binary, with options for `serve`.
    Leadline {
        binary: PathBuf,
        options: Vec<String>,
    },
    /// One `redis-server` that fsyncs every write: the harness's own known-good store.
    Redis,
}

/// How the machines under the nodes are made.
#[derive(Clone, Debug)]
pub(crate) struct Machines {
    pub(crate) nodes: u8,
    /// Each data directory is a file system of its own, of so many MiB, on a loop device.
    pub(crate) disk_mib: Option<u32>,
    /// Wall clocks can be set.
    pub(crate) clocks: bool,
    /// Environment of every node.
    pub(crate) environment: Vec<(String, String)>,
}

impl Machines {
    pub(crate) fn plain(nodes: u8) -> Self {
        Self {
            nodes,
            disk_mib: None,
            clocks: false,
            environment: Vec::new(),
        }
    }
}

#[derive(Default)]
struct Node {
    child: Option<Child>,
    /// How often its data directory was lost.
    lives: u32,
    /// The image of its disk is mounted.
    is_mounted: bool,
}

/// A running cluster. Dropping it ends every process and removes every namespace.
pub(crate) struct Cluster {
    pub(crate) network: Network,
    system: System,
    machines: Machines,
    dir: tempfile::TempDir,
    /// By node number, from 1.
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts the nodes and waits until every group has its voters.
    pub(crate) async fn start(
        network: Network,
        system: System,
        machines: Machines,
    ) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("leadline-jepsen-")
            .tempdir()
            .map_err(|error| error.to_string())?;
        let mut cluster = Self {
            network,
            system,
            machines,
            dir,
            nodes: Vec::new(),
        };
        for number in 1..=cluster.machines.nodes {
            cluster.nodes.push(Node::default());
            cluster.network.add_node(number).await?;
            if cluster.machines.clocks {
                cluster.set_clock(number, 0, 1.0)?;
            }
            cluster.make_disk(number)?;
            cluster.start_node(number)?;
            cluster.wait_until_open(number).await?;
        }
        cluster.wait_until_whole(Duration::from_secs(90)).await?;
        Ok(cluster)
    }

    pub(crate) fn numbers(&self) -> Vec<u8> {
        (1..=self.machines.nodes).collect()
    }

    pub(crate) fn address(&self, number: u8) -> String {
        self.network.address(number)
    }

    pub(crate) fn is_leadline(&self) -> bool {
        matches!(self.system, System::Leadline { .. })
    }

    /// Every group has three voters (all nodes, where there are fewer) that answer, nobody else, and
    /// a leader.
    pub(crate) async fn wait_until_whole(&self, patience: Duration) -> Result<(), String> {
        if !self.is_leadline() {
            return Ok(());
        }
        let voters = usize::from(self.machines.nodes.min(3));
        self.wait(
            patience,
            "every group has its voters and a leader",
            |overview| is_whole(overview, voters).then_some(()),
        )
        .await
    }

    fn data_dir(&self, number: u8) -> PathBuf {
        self.dir.path().join(format!("n{number}"))
    }

    fn log(&self, number: u8) -> PathBuf {
        self.dir.path().join(format!("n{number}.log"))
    }

    fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    fn image(&self, number: u8) -> PathBuf {
        self.dir.path().join(format!("n{number}.img"))
    }

    /// An empty data directory for node `number`, on a disk of its own if that was asked for.
    fn make_disk(&mut self, number: u8) -> Result<(), String> {
        let dir = self.data_dir(number);
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let Some(mib) = self.machines.disk_mib else {
            return Ok(());
        };
        let image = self.image(number);
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(u64::from(mib) << 20)
            .map_err(|error| error.to_string())?;
        sh("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        self.mount(number)
    }

    fn mount(&mut self, number: u8) -> Result<(), String> {
        let (image, dir) = (self.image(number), self.data_dir(number));
        sh(
            "mount",
            &[
                "-o",
                "loop",
                &image.to_string_lossy(),
                &dir.to_string_lossy(),
            ],
        )?;
        self.node(number).is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self, number: u8) -> Result<(), String> {
        if std::mem::take(&mut self.node(number).is_mounted) {
            sh("umount", &[&self.data_dir(number).to_string_lossy()])?;
        }
        Ok(())
    }

    /// Cuts node `number`'s power: what its disk had not made durable is gone. It stays down.
    pub(crate) fn cut_power(&mut self, number: u8) -> Result<(), String> {
        // EXT4_IOC_SHUTDOWN, without writing the journal out first (EXT4_GOING_FLAGS_NOLOGFLUSH).
        let script = "import fcntl,os,struct,sys\n\
             fcntl.ioctl(os.open(sys.argv[1],os.O_RDONLY),0x8004587D,struct.pack('I',2))";
        let dir = self.data_dir(number);
        sh("python3", &["-c", script, &dir.to_string_lossy()])?;
        self.kill(number)?;
        self.unmount(number)?;
        self.mount(number)
    }

    /// Writes node `number`'s disk full.
    pub(crate) fn fill_disk(&mut self, number: u8) -> Result<(), String> {
        use std::io::Write;
        let path = self.data_dir(number).join("ballast");
        let mut file = File::create(path).map_err(|error| error.to_string())?;
        let block = vec![1; 1 << 20];
        // Ends when the disk is full.
        while file.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Ends [`Cluster::fill_disk`].
    pub(crate) fn free_disk(&mut self, number: u8) -> Result<(), String> {
        std::fs::remove_file(self.data_dir(number).join("ballast"))
            .map_err(|error| error.to_string())
    }

    /// Sets node `number`'s wall clock `ahead` seconds of the machine's, to run at `speed` times its
    /// own.
    pub(crate) fn set_clock(&self, number: u8, ahead: i32, speed: f64) -> Result<(), String> {
        let path = self.dir.path().join(format!("n{number}.clock"));
        // Renamed into place: a node reads it at any time.
        let new = path.with_extension("new");
        // libfaketime goes on at the last speed where none is named.
        std::fs::write(&new, format!("{ahead:+}s x{speed:.1}\n"))
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|error| error.to_string())
    }

    /// Starts node `number`, for the first time or again.
    pub(crate) fn start_node(&mut self, number: u8) -> Result<(), String> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(number))
            .map_err(|error| error.to_string())?;
        let address = self.address(number);
        let mut command = match &self.system {
            System::Leadline { binary, options } => {
                let mut command = self.network.command(number, binary);
                command.args(["serve", "--bind", &address, "--data-dir"]);
                command.arg(self.data_dir(number)).args(options);
                command.args(["--advertise", &self.network.advertised(number)]);
                // The first start of node 1 makes the cluster.
                let makes = number == 1 && self.nodes[0].lives == 0;
                let seeds: Vec<String> = self
                    .numbers()
                    .into_iter()
                    .filter(|other| *other != number)
                    .map(|other| format!("{}:50051", self.address(other)))
                    .collect();
                if !makes {
                    command.args(["--join", &seeds.join(",")]);
                }
                command
            }
            System::Redis => {
                let mut command = self.network.command(number, Path::new("redis-server"));
                command.args(["--port", "6379", "--bind", &address, "--save", ""]);
                command.args(["--protected-mode", "no"]);
                command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]);
                command.arg(self.data_dir(number));
                command
            }
        };
        command.envs(self.machines.environment.iter().cloned());
        if self.machines.clocks {
            command
                .env("LD_PRELOAD", faketime()?)
                .env(
                    "FAKETIME_TIMESTAMP_FILE",
                    self.dir.path().join(format!("n{number}.clock")),
                )
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start node {number}: {error}"))?;
        if let Ok(pid) = i32::try_from(child.id()) {
            self.network.is_process(number, pid);
        }
        self.node(number).child = Some(child);
        Ok(())
    }

    /// Copies what the nodes logged to `to`.
    pub(crate) fn keep_logs(&self, to: &Path) -> Result<(), String> {
        std::fs::create_dir_all(to).map_err(|error| error.to_string())?;
        for number in self.numbers() {
            let log = self.log(number);
            if log.exists() {
                std::fs::copy(&log, to.join(format!("n{number}.log")))
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Waits until node `number` is open: has read its log, and has a place in the cluster.
    pub(crate) async fn wait_until_open(&mut self, number: u8) -> Result<(), String> {
        let began = Instant::now();
        let address = self.address(number);
        while began.elapsed() < Duration::from_secs(30) {
            let open = if self.is_leadline() {
                // `/livez` is 200 before that.
                let answer = http_get(&address, "/api/v1/node", Duration::from_millis(500)).await;
                matches!(answer, Ok((200, _)))
            } else {
                crate::client::Client::connect(&address).await.is_ok()
            };
            if open {
                return Ok(());
            }
            if let Some(status) = self.exited(number)? {
                return Err(format!(
                    "node {number} {status}: {}",
                    self.last_words(number)
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!(
            "node {number} did not answer within 30 s: {}",
            self.last_words(number)
        ))
    }

    /// The end of what node `number` logged.
    fn last_words(&self, number: u8) -> String {
        let log = std::fs::read_to_string(self.log(number)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// How node `number` ended, if it did.
    pub(crate) fn exited(
        &mut self,
        number: u8,
    ) -> Result<Option<std::process::ExitStatus>, String> {
        match &mut self.node(number).child {
            Some(child) => child.try_wait().map_err(|error| error.to_string()),
            None => Ok(None),
        }
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
            for number in self.numbers() {
                let path = "/api/v1/overview?timeout=900ms";
                let asked = http_get(&self.address(number), path, Duration::from_secs(1)).await;
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
        let last = last.map_or("nothing".to_owned(), |last: Value| last.to_string());
        Err(format!(
            "not within {patience:?}: {what}; last seen: {last}"
        ))
    }

    /// The leader of `group`, as the nodes tell it; only for runs whose node ids are numbers.
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

    /// The ids of all members, and of node `number` if it is one.
    pub(crate) async fn members(&self, number: u8) -> Result<(Vec<u64>, Option<u64>), String> {
        let advertised = format!("{}:", self.network.advertised(number));
        self.wait(Duration::from_secs(15), "the members", |overview| {
            let members = overview["members"].as_array()?;
            let id = |member: &Value| member["node"].as_u64();
            let own = members
                .iter()
                .filter(|member| member["addresses"].to_string().contains(&advertised))
                .filter_map(id)
                .max();
            Some((members.iter().filter_map(id).collect(), own))
        })
        .await
    }

    /// Runs `leadline cluster …` against node `number`.
    pub(crate) async fn operate(&self, number: u8, args: &[&str]) -> Result<(), String> {
        let node = format!("{}:50051", self.address(number));
        let cluster = ["cluster", "--timeout", "4s", "--node", &node];
        self.leadline(&[&cluster[..], args].concat()).await?;
        Ok(())
    }

    /// Runs `leadline …` and gives what it prints.
    pub(crate) async fn leadline(&self, args: &[&str]) -> Result<String, String> {
        let System::Leadline { binary, .. } = &self.system else {
            return Err("only Leadline has commands".into());
        };
        let output = tokio::process::Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Removes what node `number` had on its disk; it must be down.
    pub(crate) fn lose_data(&mut self, number: u8) -> Result<(), String> {
        self.unmount(number)?;
        std::fs::remove_dir_all(self.data_dir(number)).map_err(|error| error.to_string())?;
        self.node(number).lives += 1;
        self.make_disk(number)
    }

    /// The process id of node `number`; `nsenter` becomes the program it runs.
    pub(crate) fn pid(&mut self, number: u8) -> Option<i32> {
        let child = self.node(number).child.as_ref()?;
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
        if self.exited(number)?.is_none() {
            self.signal(number, Signal::KILL)?;
        }
        if let Some(mut child) = self.node(number).child.take() {
            child.wait().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Starts every node that is down or has ended by itself.
    pub(crate) fn start_all(&mut self) -> Result<(), String> {
        for number in self.numbers() {
            if self.exited(number)?.is_some() {
                self.kill(number)?;
            }
            if self.node(number).child.is_none() {
                self.start_node(number)?;
            }
        }
        Ok(())
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
        let (status, text) = http_get(&self.address(number), "/metrics", Duration::from_secs(2))
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

    /// Cuts node `number` off from `others`, both ways; nothing is refused.
    pub(crate) fn blackhole(&mut self, number: u8, others: &[u8]) -> Result<(), String> {
        let pairs: Vec<(u8, u8)> = others
            .iter()
            .flat_map(|other| [(number, *other), (*other, number)])
            .collect();
        self.network.block(&pairs)
    }
}

/// Whether each group of `overview` has a leader and at least `voters` replicas, all of them voters
/// that answer: the voter on a disk that is lost counts until another has taken its place, and losing
/// a second one before that loses what was promised.
fn is_whole(overview: &Value, voters: usize) -> bool {
    let Some(groups) = overview["groups"].as_array() else {
        return false;
    };
    let whole = |group: &Value| {
        let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        let answers = |replica: &Value| replica["role"] == "voter" && !replica["status"].is_null();
        replicas.len() >= voters && replicas.iter().all(answers) && !group["leader"].is_null()
    };
    groups.len() > 1 && groups.iter().all(whole)
}

/// Where Debian and others put libfaketime.
fn faketime() -> Result<PathBuf, String> {
    [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    .iter()
    .map(|dir| Path::new(dir).join("faketime/libfaketimeMT.so.1"))
    .find(|path| path.exists())
    .ok_or_else(|| "clocks are set by libfaketime: apt-get install libfaketime".to_owned())
}

/// Makes fsync and fdatasync of a process fail or wait, by `strace`; ends when dropped.
pub(crate) struct Meddler(Child);

impl Meddler {
    /// `injection` is what `strace -e inject=` takes: `error=EIO`, `delay_enter=50000`.
    pub(crate) fn attach(pid: i32, injection: &str) -> Result<Self, String> {
        let child = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=fsync,fdatasync",
            ])
            .args(["-e", &format!("inject=fsync,fdatasync:{injection}")])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run strace: {error}"))?;
        Ok(Self(child))
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        // SIGTERM: it lets go of the process before it ends.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).ok();
        }
        self.0.wait().ok();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in self.numbers() {
            if self.nodes.len() >= usize::from(number) {
                // A process that is gone already is what is wanted.
                self.signal(number, Signal::CONT).ok();
                self.kill(number).ok();
                self.unmount(number).ok();
            }
        }
        self.network.remove_all();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_voter_that_does_not_answer_and_one_that_is_no_voter_yet_make_a_group_less_than_whole() {
        let voter = json!({"role": "voter", "status": {"term": 1}});
        let lost = json!({"role": "voter", "status": null});
        let learner = json!({"role": "learner", "status": {"term": 1}});
        let overview = |replicas: &[&Value]| {
            let meta = json!({"leader": 1, "replicas": [voter, voter, voter]});
            json!({"groups": [meta, {"leader": 1, "replicas": replicas}]})
        };
        assert!(is_whole(&overview(&[&voter, &voter, &voter]), 3));
        assert!(!is_whole(&overview(&[&voter, &voter]), 3));
        assert!(!is_whole(&overview(&[&voter, &voter, &lost]), 3));
        assert!(!is_whole(&overview(&[&voter, &voter, &voter, &lost]), 3));
        assert!(!is_whole(&overview(&[&voter, &voter, &voter, &learner]), 3));
        assert!(!is_whole(&json!({}), 3));
    }
}

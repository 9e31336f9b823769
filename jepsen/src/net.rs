//! The network between nodes, and what is done to it.
//!
//! *Namespaces*: each node has a network namespace with an address of its own, on a bridge in the
//! namespace of the clients; nftables drops packets. The program runs itself again inside the
//! clients' namespace, so nothing of the machine's own network is touched, and everything goes when
//! the namespaces go. *Loopback*: where namespaces are not permitted, nodes have loopback addresses
//! and talk through user-space proxies ([`crate::proxy`]), which also delay where asked.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxies;

/// How nodes are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Namespaces,
    Loopback,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "network namespaces and nftables",
            Self::Loopback => "loopback and user-space proxies",
        }
    }

    /// The first three numbers of every address; node `n` has `.n`, its proxy `.100 + n`.
    fn network(self) -> &'static str {
        match self {
            Self::Namespaces => "10.111.7",
            Self::Loopback => "127.0.7",
        }
    }
}

/// The clients' own number.
const CLIENTS: u8 = 254;

/// Nodes that one run can have over its time.
const NODES: u8 = 9;

/// The hardware address of the bridge between the nodes: one of those that anybody may use.
const BRIDGE: &str = "02:00:00:00:00:01";

fn namespace(prefix: &str, number: u8) -> String {
    format!("{prefix}-n{number}")
}

/// Runs a program and waits for it.
///
/// # Errors
/// What it said.
pub(crate) fn sh(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), said.trim()))
}

fn ip(args: &[&str]) -> Result<(), String> {
    sh("ip", args)
}

/// Whether namespaces are permitted here.
///
/// # Errors
/// Why not.
pub(crate) fn are_namespaces_permitted() -> Result<(), String> {
    let probe = format!("ll-{}-p", std::process::id());
    ip(&["netns", "add", &probe])?;
    let used = ip(&["-n", &probe, "link", "set", "lo", "up"]);
    ip(&["netns", "del", &probe])?;
    used
}

/// Makes the clients' namespace, runs this program again inside it, and removes it afterwards.
/// Returns the exit code of that run.
///
/// # Errors
/// What could not be made.
pub(crate) fn enter() -> Result<u8, String> {
    let prefix = format!("ll-{}", std::process::id());
    let own = format!("{prefix}-c");
    ip(&["netns", "add", &own])?;
    let result = (|| {
        let address = format!("{}.{CLIENTS}/24", Mode::Namespaces.network());
        for args in [
            vec!["link", "set", "lo", "up"],
            // With an address of its own: else it takes the least of its ports', another whenever a node
            // comes, and those that were there speak to the old one for half a minute.
            vec!["link", "add", "br0", "address", BRIDGE, "type", "bridge"],
            vec!["addr", "add", &address, "dev", "br0"],
            vec!["link", "set", "br0", "up"],
        ] {
            ip(&[&["-n", &own], &args[..]].concat())?;
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", &own])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .args(["--inside", &prefix]);
        let status = inside.status().map_err(|error| error.to_string())?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.unwrap_or(3))
    })();
    for number in 1..=NODES {
        // Nodes that the run inside could not remove (it was killed); most are not there.
        ip(&["netns", "del", &namespace(&prefix, number)]).ok();
    }
    ip(&["netns", "del", &own])?;
    result
}

/// The network of one run.
pub(crate) struct Network {
    pub(crate) mode: Mode,
    prefix: String,
    nodes: BTreeSet<u8>,
    proxies: Option<Arc<Proxies>>,
    /// Pairs of which the second hears nothing from the first.
    blocked: BTreeSet<(u8, u8)>,
    /// Packets lost per hundred, by node.
    loss: BTreeMap<u8, u8>,
}

impl Network {
    /// With `proxied`, nodes talk through proxies in either mode; without namespaces they always do.
    pub(crate) fn new(mode: Mode, prefix: &str, proxied: bool) -> Self {
        let proxies = (proxied || mode == Mode::Loopback).then(Arc::default);
        Self {
            mode,
            prefix: prefix.to_owned(),
            nodes: BTreeSet::new(),
            proxies,
            blocked: BTreeSet::new(),
            loss: BTreeMap::new(),
        }
    }

    /// Where node `number` listens.
    pub(crate) fn address(&self, number: u8) -> String {
        format!("{}.{number}", self.mode.network())
    }

    /// Where other nodes reach it.
    pub(crate) fn advertised(&self, number: u8) -> String {
        if self.proxies.is_some() {
            format!("{}.{}", self.mode.network(), 100 + number)
        } else {
            self.address(number)
        }
    }

    pub(crate) fn is_proxied(&self) -> bool {
        self.proxies.is_some()
    }

    /// Makes the place of node `number`.
    pub(crate) async fn add_node(&mut self, number: u8) -> Result<(), String> {
        self.nodes.insert(number);
        if self.mode == Mode::Namespaces {
            let name = namespace(&self.prefix, number);
            let plug = format!("v{number}");
            let address = format!("{}/24", self.address(number));
            ip(&["netns", "add", &name])?;
            ip(&[
                "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ])?;
            ip(&["link", "set", &plug, "master", "br0"])?;
            ip(&["link", "set", &plug, "up"])?;
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        if let Some(proxies) = &self.proxies {
            let (front, back) = (self.advertised(number), self.address(number));
            if self.mode == Mode::Namespaces {
                ip(&["addr", "add", &format!("{front}/24"), "dev", "br0"])?;
            }
            proxies.serve(number, &front, &back).await?;
        }
        Ok(())
    }

    /// Removes every node's place.
    pub(crate) fn remove_all(&mut self) {
        for number in std::mem::take(&mut self.nodes) {
            if self.mode == Mode::Namespaces {
                // Removed again by the run outside, should it fail here.
                ip(&["netns", "del", &namespace(&self.prefix, number)]).ok();
            }
        }
    }

    /// From now on the second of each pair hears nothing from the first; nothing is refused.
    pub(crate) fn block(&mut self, pairs: &[(u8, u8)]) -> Result<(), String> {
        self.blocked.extend(pairs);
        self.enforce()
    }

    /// Each node loses so many packets in a hundred.
    pub(crate) fn lose(&mut self, nodes: &[u8], percent: u8) -> Result<(), String> {
        if self.mode == Mode::Loopback {
            return Err("packet loss needs network namespaces".into());
        }
        self.loss.extend(nodes.iter().map(|node| (*node, percent)));
        self.enforce()
    }

    /// What nodes send takes so long, each piece its own time within the bounds.
    pub(crate) fn delay(&self, bounds: Option<(Duration, Duration)>) -> Result<(), String> {
        let proxies = self
            .proxies
            .as_ref()
            .ok_or("delays need proxies between the nodes")?;
        proxies.delay(bounds);
        Ok(())
    }

    /// Each of `nodes` sends through a narrow pipe that queues.
    pub(crate) fn narrow(&self, nodes: &[u8], kbit: u32) -> Result<(), String> {
        if self.mode == Mode::Loopback {
            return Err("slow links need network namespaces".into());
        }
        for number in nodes {
            let (name, rate) = (namespace(&self.prefix, *number), format!("{kbit}kbit"));
            sh(
                "tc",
                &[
                    "-n", &name, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate,
                    "burst", "4kb", "latency", "400ms",
                ],
            )?;
        }
        Ok(())
    }

    /// Ends [`Network::narrow`].
    pub(crate) fn widen(&self, nodes: &[u8]) -> Result<(), String> {
        for number in nodes {
            let name = namespace(&self.prefix, *number);
            sh("tc", &["-n", &name, "qdisc", "del", "dev", "eth0", "root"])?;
        }
        Ok(())
    }

    /// Ends every partition, loss and delay.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.blocked.clear();
        self.loss.clear();
        if let Some(proxies) = &self.proxies {
            proxies.delay(None);
        }
        self.enforce()
    }

    fn enforce(&self) -> Result<(), String> {
        if let Some(proxies) = &self.proxies {
            proxies.block(self.blocked.iter().copied().collect());
        }
        if self.mode == Mode::Loopback {
            return Ok(());
        }
        for to in &self.nodes {
            let mut rules = String::from("table inet faults\ndelete table inet faults\n");
            let from: Vec<String> = self
                .blocked
                .iter()
                .filter(|(_, hears)| hears == to && !self.is_proxied())
                .map(|(from, _)| self.address(*from))
                .collect();
            let loss = self.loss.get(to);
            if !from.is_empty() || loss.is_some() {
                rules += "table inet faults {\n chain in {\n type filter hook input priority 0;\n";
                if !from.is_empty() {
                    rules += &format!("  ip saddr {{ {} }} drop\n", from.join(", "));
                }
                if let Some(percent) = loss {
                    // Clients' packets arrive: it is the nodes' network that is bad.
                    rules += &format!(
                        "  ip saddr {}.{CLIENTS} accept\n  numgen random mod 100 < {percent} drop\n",
                        self.mode.network()
                    );
                }
                rules += " }\n}\n";
            }
            nft(&namespace(&self.prefix, *to), &rules)?;
        }
        Ok(())
    }

    /// Which process is node `number`: proxies on loopback tell nodes apart by it.
    pub(crate) fn is_process(&self, number: u8, pid: i32) {
        if let Some(proxies) = &self.proxies {
            proxies.is_process(number, pid);
        }
    }

    /// A command that runs `program` where node `number` is, in a process group of its own.
    pub(crate) fn command(&self, number: u8, program: &Path) -> Command {
        let mut command = match self.mode {
            Mode::Namespaces => {
                // Not `ip netns exec`: that gives each node mounts of its own, which would keep the
                // disks of others alive.
                let mut command = Command::new("nsenter");
                command
                    .arg(format!(
                        "--net=/run/netns/{}",
                        namespace(&self.prefix, number)
                    ))
                    .arg(program);
                command
            }
            Mode::Loopback => Command::new(program),
        };
        command.process_group(0);
        command
    }
}

fn nft(namespace: &str, rules: &str) -> Result<(), String> {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run nft: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(rules.as_bytes())
            .map_err(|error| error.to_string())?;
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "nft: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

//! Network namespaces: one for the clients with a bridge in it, one per node.
//!
//! The program runs itself again inside the clients' namespace, so nothing of the machine's own
//! network is touched, and everything goes when the namespaces go.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Address of the clients; node `n` has `.n`.
const NETWORK: &str = "10.111.7";
const CLIENTS: u8 = 254;

/// The address of node `number`.
pub(crate) fn address(number: u8) -> String {
    format!("{NETWORK}.{number}")
}

/// The namespace of node `number`.
pub(crate) fn namespace(prefix: &str, number: u8) -> String {
    format!("{prefix}-n{number}")
}

/// Runs a program and waits for it.
fn sh(program: &str, args: &[&str]) -> Result<(), String> {
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

/// Makes the clients' namespace, runs this program again inside it, and removes it afterwards.
pub(crate) fn enter() -> Result<(), String> {
    let prefix = format!("ll-{}", std::process::id());
    let own = format!("{prefix}-c");
    ip(&["netns", "add", &own])?;
    let result = (|| {
        for args in [
            vec!["link", "set", "lo", "up"],
            vec!["link", "add", "br0", "type", "bridge"],
            vec![
                "addr",
                "add",
                &format!("{NETWORK}.{CLIENTS}/24"),
                "dev",
                "br0",
            ],
            vec!["link", "set", "br0", "up"],
        ] {
            ip(&[&["-n", &own], &args[..]].concat())?;
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", &own])
            .arg(program)
            .args(std::env::args_os().skip(1));
        inside.args(["--inside", &prefix]);
        let status = inside.status().map_err(|error| error.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err("see above".to_owned())
        }
    })();
    for number in 1..=9 {
        // Nodes that the run inside could not remove (it was killed); most are not there.
        ip(&["netns", "del", &namespace(&prefix, number)]).ok();
    }
    ip(&["netns", "del", &own])?;
    result
}

/// Makes the namespace of node `number` and plugs it into the bridge.
pub(crate) fn add_node(prefix: &str, number: u8) -> Result<(), String> {
    let name = namespace(prefix, number);
    let plug = format!("v{number}");
    ip(&["netns", "add", &name])?;
    ip(&[
        "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", &name,
    ])?;
    ip(&["link", "set", &plug, "master", "br0"])?;
    ip(&["link", "set", &plug, "up"])?;
    ip(&[
        "-n",
        &name,
        "addr",
        "add",
        &format!("{}/24", address(number)),
        "dev",
        "eth0",
    ])?;
    ip(&["-n", &name, "link", "set", "eth0", "up"])?;
    ip(&["-n", &name, "link", "set", "lo", "up"])
}

/// Removes the namespace of node `number`, and its cable with it.
pub(crate) fn remove_node(prefix: &str, number: u8) -> Result<(), String> {
    ip(&["netns", "del", &namespace(prefix, number)])
}

/// Drops every packet between node `number` and `others`, both ways, answering none.
pub(crate) fn blackhole(prefix: &str, number: u8, others: &[u8]) -> Result<(), String> {
    let name = namespace(prefix, number);
    let mut rules =
        String::from("table inet faults {\n chain in {\n type filter hook input priority 0;\n");
    let addresses: Vec<String> = others.iter().map(|other| address(*other)).collect();
    let set = addresses.join(", ");
    rules += &format!(
        "  ip saddr {{ {set} }} drop\n }}\n chain out {{\n type filter hook output priority 0;\n  ip daddr {{ {set} }} drop\n }}\n}}\n"
    );
    heal(prefix, number)?;
    nft(&name, &rules)
}

/// Drops what reaches node `number` from `others`, but lets out what it sends.
pub(crate) fn deafen(prefix: &str, number: u8, others: &[u8]) -> Result<(), String> {
    let addresses: Vec<String> = others.iter().map(|other| address(*other)).collect();
    let rules = format!(
        "table inet faults {{\n chain in {{\n type filter hook input priority 0;\n  ip saddr {{ {} }} drop\n }}\n}}\n",
        addresses.join(", ")
    );
    heal(prefix, number)?;
    nft(&namespace(prefix, number), &rules)
}

/// Ends every fault of node `number`'s network.
pub(crate) fn heal(prefix: &str, number: u8) -> Result<(), String> {
    nft(
        &namespace(prefix, number),
        "table inet faults\ndelete table inet faults\n",
    )
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

/// A command that runs `program` in the namespace of node `number`, in a process group of its own.
pub(crate) fn command(prefix: &str, number: u8, program: &std::path::Path) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &namespace(prefix, number)])
        .arg(program)
        .process_group(0);
    command
}

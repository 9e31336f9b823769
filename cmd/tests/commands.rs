//! What the other commands print, and how they end.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod process;

use std::process::Stdio;

use process::{Node, leadline, run};

#[test]
fn a_reader_that_leaves_early_ends_a_command_quietly() {
    for shell in ["bash", "zsh", "fish"] {
        let mut child = leadline(&["completions", shell])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{shell}");
    }
    let (code, script, _) = run(&["completions", "bash"]);
    assert!(
        code == Some(0) && script.contains("complete -F _leadline"),
        "{script}"
    );
}

/// A script that measures must not take refusals for throughput.
#[test]
fn a_bench_counts_failures_apart_and_ends_with_an_error_when_nothing_succeeds() {
    let mut node = Node::start(&["--requirepass", "secret"]);
    node.until_ready();
    let address = format!("127.0.0.1:{}", node.redis);
    let bench = |args: &[&str]| {
        let fixed = [
            "bench", "--addr", &address, "-d", "300ms", "-c", "2", "--json",
        ];
        let (code, out, err) = run(&[&fixed, args].concat());
        let line = out.lines().next().unwrap_or_default();
        let row: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        (code, row, err)
    };
    let (code, row, said) = bench(&["exec"]);
    assert_eq!(code, Some(1), "{row} {said}");
    assert!(said.contains("every operation failed of exec"), "{said}");
    assert_eq!(
        (&row["operations"], row["ops_per_second"].as_f64()),
        (&0.into(), Some(0.0))
    );
    assert!(row["errors"].as_u64() > Some(0), "{row}");

    let (code, row, said) = bench(&["set", "-a", "secret"]);
    assert_eq!((code, &row["errors"]), (Some(0), &0.into()), "{row} {said}");
    assert!(row["operations"].as_u64() > Some(0), "{row}");

    let (code, _, said) = run(&["bench", "-d", "0s"]);
    assert!(code == Some(2) && said.contains("0s"), "{said}");
    assert_eq!(node.stop().0, Some(0));
}

/// `LEADLINE_REQUIREPASS=` in a unit file would otherwise open the Redis port to everybody.
#[test]
fn a_variable_that_is_set_and_empty_stops_a_start_with_one_line() {
    for variable in [
        "LEADLINE_REQUIREPASS",
        "LEADLINE_LOG",
        "LEADLINE_S3_DOMAIN",
        "LEADLINE_JOIN",
        "LEADLINE_ADVERTISE",
    ] {
        let dir = tempfile::tempdir().unwrap();
        // It must not start where nothing is refused.
        let ended = leadline(&["serve", "--peer-ca", "x", "--data-dir"])
            .arg(dir.path().join("data"))
            .env(variable, "")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        let flag = variable
            .replace("LEADLINE_", "--")
            .replace('_', "-")
            .to_lowercase();
        assert_eq!(ended.status.code(), Some(1), "{variable}: {said}");
        assert!(said.contains(&flag), "{variable}: {said}");
    }
}

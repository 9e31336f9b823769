//! The life of a real `leadline serve`: how it opens, answers and stops.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod process;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use process::{Node, free_port, http, leadline};

/// With seeds that nobody reaches this lasts for minutes: a liveness probe must not end it, a balancer
/// must not send to it, and no client may hang.
#[test]
fn a_node_that_has_no_place_yet_is_alive_and_not_ready_and_turns_clients_away() {
    let seed = format!("127.0.0.1:{}", free_port());
    let mut node = Node::start(&["--join", &seed]);
    node.until_alive();
    let body = |path: &str| http(node.admin, "GET", path, "");
    assert_eq!(body("/healthz").0, 200);
    let (status, why) = body("/readyz");
    assert_eq!(status, 503);
    assert!(why.contains("joining") && why.contains(&seed), "{why}");
    assert_eq!(body("/healthz/leader").0, 503);
    assert_eq!(body("/").0, 503);
    let (status, why) = body("/api/v1/overview");
    assert_eq!(status, 503);
    assert!(
        why.contains("\"not applied\"") && why.contains("joining"),
        "{why}"
    );
    let (status, metrics) = body("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("\nleadline_node_ready 0\n"), "{metrics}");
    for port in [node.redis, node.s3, node.grpc] {
        let mut turned_away = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let patience = Some(Duration::from_secs(20));
        turned_away.set_read_timeout(patience).unwrap();
        let read = turned_away.read(&mut [0]);
        let reset = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(read.map_or_else(reset, |read| read == 0));
    }
    assert_eq!(node.stop().0, Some(0));
}

const FLAGS: [&str; 4] = ["--redis", "--s3", "--admin", "--grpc"];

#[test]
fn a_port_in_use_is_told_of_before_anything_is_opened() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in FLAGS {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let ended = leadline(&["serve", "--data-dir", data.to_str().unwrap()])
            .args(
                FLAGS
                    .iter()
                    .flat_map(|&other| [other, if other == flag { &port } else { "0" }]),
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("is in use") && said.contains(flag), "{said}");
        assert!(!data.exists());
    }
}

/// Exit code 0 and the last line are what a cold copy of the data directory relies on.
#[test]
fn a_node_that_stops_says_that_all_is_closed_or_ends_with_an_error() {
    let mut node = Node::start(&[]);
    node.until_ready();
    let (code, log) = node.stop();
    assert_eq!(code, Some(0), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains("stopped: everything is on disk and closed"),
        "{log}"
    );

    let mut node = Node::start(&["--stop-timeout", "0s"]);
    node.until_ready();
    let (code, log) = node.stop();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the store was not closed"), "{log}");
    assert!(!log.contains("everything is on disk"), "{log}");
}

/// Whoever reads of a ready node connects at once.
#[test]
fn a_ready_node_lets_clients_in_at_every_port() {
    let mut node = Node::start(&[]);
    node.until_ready();
    for port in [node.redis, node.s3, node.admin, node.grpc] {
        let address = ([127, 0, 0, 1], port).into();
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    }
    assert_eq!(node.stop().0, Some(0));
}

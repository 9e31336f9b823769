//! `leadline cluster` against a real node.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod process;

use process::{Node, http, redis, run};

/// One group at a time and by name: what cannot be done is refused at once, with the reason, and what
/// was not done is not said to be.
#[test]
fn what_one_node_alone_cannot_do_is_refused_and_changes_nothing() {
    let mut node = Node::start(&[]);
    node.until_ready();
    let address = format!("127.0.0.1:{}", node.grpc);
    let cluster = |args: &[&str]| {
        let (code, out, err) = run(&[&["cluster", "--node", &address], args].concat());
        (code, format!("{out}{err}"))
    };
    for (args, exit, said) in [
        (&["drain", "1"][..], 1, "nobody could take over"),
        (&["drain", "9"], 1, "there is no node 9"),
        (
            &["transfer-leader", "--shard", "1", "--to", "1"],
            0,
            "leads group 1 already",
        ),
        (
            &["transfer-leader", "--shard", "1", "--to", "9"],
            1,
            "there is no node 9",
        ),
        (&["transfer-leader", "--shard", "1", "--to", "0"], 2, "--to"),
        (
            &["transfer-leader", "--shard", "99"],
            1,
            "there is no group 99",
        ),
        (
            &["transfer-leader", "--shard", "1"],
            1,
            "no other voter that could lead",
        ),
        (&["transfer-leader", "--from", "9"], 1, "there is no node 9"),
        (
            &["transfer-leader", "--from", "1", "--to", "9"],
            1,
            "there is no node 9",
        ),
        (
            &["transfer-leader", "--from", "1", "--to", "1"],
            1,
            "the same node",
        ),
        (&["transfer-leader", "--to", "1"], 2, "--shard"),
        (&["--timeout", "0s", "status"], 2, "--timeout"),
    ] {
        let (code, text) = cluster(args);
        assert_eq!(code, Some(exit), "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
        assert!(!text.contains("stopped"), "{args:?}: {text}");
        assert!(exit != 1 || text.lines().count() == 1, "{args:?}: {text}");
    }
    assert_eq!(http(node.admin, "GET", "/readyz", ""), (200, "ok\n".into()));

    // Four shards of Redis keys and three of buckets.
    let (code, status) = cluster(&["status"]);
    let areas = |name: &str| {
        status
            .split_whitespace()
            .filter(|word| *word == name)
            .count()
    };
    assert_eq!(
        (code, areas("meta"), areas("S3")),
        (Some(0), 1, 3),
        "{status}"
    );
    let info = redis(node.redis, "INFO leadline\r\n", "shards_led:");
    assert!(info.contains("\nshards:4\r\nshards_led:4\r\n"), "{info}");
    assert_eq!(node.stop().0, Some(0));
}

#[test]
fn an_address_that_is_not_a_node_s_grpc_port_is_told_apart_from_a_node_that_is_away() {
    let mut node = Node::start(&[]);
    node.until_ready();
    let at = |port: u16| format!("127.0.0.1:{port}");
    for (address, said) in [
        (at(node.redis), "not its Redis, S3 or admin port"),
        (at(node.s3), "not its Redis, S3 or admin port"),
        (at(node.admin), "not its Redis, S3 or admin port"),
        (at(process::free_port()), "no answer from"),
        ("127.0.0.1".into(), "HOST:PORT"),
        ("http://127.0.0.1:1".into(), "HOST:PORT"),
    ] {
        let (code, _, text) = run(&["cluster", "--node", &address, "status"]);
        assert_eq!(code, Some(1), "{address}: {text}");
        assert!(
            text.contains(said) && text.contains("--node"),
            "{address}: {text}"
        );
        assert!(text.contains(&address), "{address}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    assert_eq!(node.stop().0, Some(0));
}

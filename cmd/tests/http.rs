//! The admin port of a real node: deadlines, errors, and the calls that make S3 keys.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod process;

use process::{Node, exchange, http, run};

const KEYS: &str = "/api/v1/s3/keys";

/// One rule for the whole port, so that a prober's or a script's mistake shows at once.
#[test]
fn a_malformed_timeout_or_a_contradictory_question_is_400_wherever_it_counts() {
    let mut node = Node::start(&[]);
    node.until_ready();
    for (method, path, status) in [
        ("GET", "/readyz?timeout=soon", 400),
        ("GET", "/healthz/leader?timeout=soon", 400),
        ("GET", "/healthz/leader?shard=1&key=a", 400),
        ("GET", "/healthz/leader?shard=1", 200),
        ("GET", "/api/v1/overview?timeout=5", 400),
        ("GET", "/api/v1/node?timeout=5", 400),
        ("GET", "/api/v1/metrics?timeout=5", 400),
        ("GET", "/api/v1/s3/keys?timeout=5", 400),
        ("POST", "/api/v1/s3/keys?timeout=5", 400),
        ("DELETE", "/api/v1/s3/keys/K?timeout=5", 400),
        ("POST", "/api/v1/s3/keys/K/grants?timeout=5", 400),
        // Nothing waits here, and a node must not look dead over a proxy's header.
        ("GET", "/livez?timeout=soon", 200),
        ("GET", "/metrics?timeout=soon", 200),
    ] {
        let body = match path {
            _ if method != "POST" => "",
            _ if path.contains("grants") => r#"{"bucket": "photos", "level": "read"}"#,
            _ => r#"{"name": "n"}"#,
        };
        let (found, text) = http(node.admin, method, path, body);
        assert_eq!(found, status, "{method} {path}: {text}");
    }
    let (status, keys) = http(node.admin, "GET", KEYS, "");
    assert!(
        status == 200 && !keys.contains("\"n\""),
        "nothing was made: {keys}"
    );
    assert_eq!(node.stop().0, Some(0));
}

#[test]
fn the_calls_of_the_s3_keys_keep_the_rules_of_the_api() {
    let mut node = Node::start(&[]);
    node.until_ready();
    let call = |method, path: &str, body: &str| exchange(node.admin, method, path, body).unwrap();
    let (status, head, made) = call(
        "POST",
        KEYS,
        r#"{"name": "n", "grants": [{"bucket": "photos", "level": "read"}]}"#,
    );
    assert_eq!(status, 201, "{made}");
    assert!(
        head.contains("cache-control: no-store"),
        "it holds a secret: {head}"
    );
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let grants = format!("{KEYS}/{}/grants", made["access_key"].as_str().unwrap());

    for (method, path, body, status) in [
        ("POST", KEYS, "{}", 400),
        ("POST", KEYS, r#"{"name": " "}"#, 400),
        ("POST", KEYS, r#"{"name": "n", "grant": []}"#, 400),
        ("POST", KEYS, "{", 400),
        (
            "POST",
            KEYS,
            r#"{"name": "n", "grants": [{"bucket": "NO/no", "level": "read"}]}"#,
            400,
        ),
        (
            "POST",
            &grants,
            r#"{"bucket": "a b", "level": "owner"}"#,
            400,
        ),
        ("POST", &grants, r#"{"bucket": "", "level": "owner"}"#, 400),
        (
            "POST",
            &grants,
            r#"{"bucket": "photos", "level": "all"}"#,
            400,
        ),
        (
            "POST",
            "/api/v1/s3/keys/NONE/grants",
            r#"{"bucket": "photos", "level": "read"}"#,
            404,
        ),
        ("DELETE", "/api/v1/s3/keys/NONE", "", 404),
        // No time, no answer: nothing was made.
        (
            "POST",
            "/api/v1/s3/keys?timeout=0s",
            r#"{"name": "late"}"#,
            503,
        ),
        ("GET", "/api/v1/s3/keys?timeout=0s", "", 503),
        ("GET", "/api/v1/nosuch", "", 404),
    ] {
        let (found, head, text) = call(method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {text}");
        assert!(
            head.contains("cache-control: no-store"),
            "{method} {path} {body}: {head}"
        );
        let error: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(
            error["outcome"], "not applied",
            "{method} {path} {body}: {text}"
        );
        assert!(error["error"].is_string(), "{text}");
    }
    let (_, _, all) = call("GET", "/api/v1/nosuch", "");
    assert!(all.contains(KEYS), "{all}");
    let (_, _, keys) = call("GET", KEYS, "");
    assert!(!keys.contains("late"), "{keys}");
    assert_eq!(
        call("POST", &grants, r#"{"bucket": "*", "level": "owner"}"#).0,
        200
    );

    let admin = format!("127.0.0.1:{}", node.admin);
    let (code, _, said) = run(&["s3", "--node", &admin, "key", "create"]);
    assert!(code == Some(2) && said.contains("--name"), "{said}");
    assert_eq!(node.stop().0, Some(0));
}

#[test]
fn a_follower_s_probe_says_who_leads_now() {
    let mut first = Node::start(&[]);
    first.until_ready();
    let mut second = Node::start(&["--join", &format!("127.0.0.1:{}", first.grpc)]);
    second.until_ready();
    let probe = |node: &Node| http(node.admin, "GET", "/healthz/leader", "");
    // The catalog's group stays where it is; the new node hears of it in a moment.
    let began = std::time::Instant::now();
    loop {
        let said = probe(&second);
        if said == (503, "not the leader: node 1 leads\n".into()) {
            break;
        }
        assert!(began.elapsed().as_secs() < 30, "{said:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(second.stop().0, Some(0));
    assert_eq!(first.stop().0, Some(0));
}

//! The connection layer, through raw sockets.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Client, Gate, SOON, Server, ThreeNodes, UNIX_MILLIS, request, until};
use leadline_kv::KvError;
use leadline_kv::testing::MemoryCoordinator;
use leadline_raft::{DeadlineSource, Ended};
use leadline_redis::{Facts, NodeFacts, RedisConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_session_reads_as_with_redis() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (line, reply) in [
        ("PING", "+PONG\r\n"),
        ("ping hi", "$2\r\nhi\r\n"),
        (
            "PING a b",
            "-ERR wrong number of arguments for 'ping' command\r\n",
        ),
        ("ECHO \"a b\"", "$3\r\na b\r\n"),
        ("SELECT 15", "+OK\r\n"),
        ("SELECT 16", "-ERR DB index is out of range\r\n"),
        (
            "SELECT x",
            "-ERR value is not an integer or out of range\r\n",
        ),
        ("GET nothing", "$-1\r\n"),
        (
            "NOSUCH a \"b c\"",
            "-ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b c' \r\n",
        ),
        (
            "CLIENT NOSUCH",
            "-ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP.\r\n",
        ),
        (
            "CLIENT SETNAME",
            "-ERR wrong number of arguments for 'client|setname' command\r\n",
        ),
        (
            "GET",
            "-ERR wrong number of arguments for 'get' command\r\n",
        ),
        ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
        (
            "HELLO 3 SETNAME me",
            "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n",
        ),
        ("GET nothing", "_\r\n"),
        ("CLIENT GETNAME", "$2\r\nme\r\n"),
        ("CLIENT ID", ":1\r\n"),
        ("CLIENT SETINFO LIB-NAME redis-py", "+OK\r\n"),
        ("CLIENT DEADLINE", ":5000\r\n"),
        ("CLIENT DEADLINE 70", "+OK\r\n"),
        ("CLIENT DEADLINE", ":70\r\n"),
        ("DEADLINE 50 GET nothing", "_\r\n"),
        (
            "DEADLINE 50 DEADLINE 50 PING",
            "-ERR a command has one deadline\r\n",
        ),
        ("RESET", "+RESET\r\n"),
        ("GET nothing", "$-1\r\n"),
        ("CLIENT DEADLINE", ":5000\r\n"),
        ("QUIT", "+OK\r\n"),
    ] {
        client.ask(line, reply).await;
    }
    assert_eq!(client.rest().await, "");
    server.stop().await;
}

/// As redis-server 7.0 was seen to answer.
#[tokio::test]
async fn a_wrong_argument_is_refused_in_the_words_of_redis() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let not_integer = "-ERR value is not an integer or out of range\r\n";
    let no_timeout = "-ERR timeout is not an integer or out of range\r\n";
    let negative = "-ERR timeout is negative\r\n";
    let config = |name: &str, why: &str| {
        format!("-ERR CONFIG SET failed (possibly related to argument '{name}') - {why}\r\n")
    };
    let between =
        |low: i64, high: i64| format!("argument must be between {low} and {high} inclusive");
    for (line, reply) in [
        ("WAIT 0 abc", no_timeout),
        ("WAIT abc 0", not_integer),
        ("WAIT 0 -1", negative),
        ("WAIT -1 0", ":1\r\n"),
        ("CLIENT LIST ID 0", "$0\r\n\r\n"),
        ("CLIENT LIST ID -1", "$0\r\n\r\n"),
        ("CLIENT LIST ID abc", "-ERR Invalid client ID\r\n"),
        ("CLIENT PAUSE -1", negative),
        ("CLIENT PAUSE abc", no_timeout),
        (
            "CLIENT PAUSE 1 foo",
            "-ERR CLIENT PAUSE mode must be WRITE or ALL\r\n",
        ),
        (
            "CLIENT PAUSE 1 WRITE now",
            "-ERR unknown subcommand or wrong number of arguments for 'PAUSE'. Try CLIENT HELP.\r\n",
        ),
        ("CLIENT UNBLOCK abc", not_integer),
        ("CLIENT UNBLOCK 0", ":0\r\n"),
        ("CLIENT UNBLOCK -1", ":0\r\n"),
        (
            "CLIENT KILL ID 0",
            "-ERR client-id should be greater than 0\r\n",
        ),
        (
            "CONFIG SET timeout 0 Timeout 0",
            &config("Timeout", "duplicate parameter"),
        ),
        (
            "CONFIG SET timeout x timeout 0",
            &config("timeout", "duplicate parameter"),
        ),
        (
            "CONFIG SET nosuch 0 nosuch 0",
            "-ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'\r\n",
        ),
        (
            "CONFIG SET timeout -1",
            &config("timeout", &between(0, i32::MAX.into())),
        ),
        (
            "CONFIG SET maxclients 0",
            &config("maxclients", &between(1, u32::MAX.into())),
        ),
        (
            "CONFIG SET maxclients x",
            &config("maxclients", "argument couldn't be parsed into an integer"),
        ),
        (
            "CONFIG SET slowlog-log-slower-than -2",
            &config("slowlog-log-slower-than", &between(-1, i64::MAX)),
        ),
        (
            "CONFIG SET slowlog-max-len 100001",
            &config("slowlog-max-len", &between(0, 100_000)),
        ),
        (
            "CONFIG SET proto-max-bulk-len 1",
            &config("proto-max-bulk-len", &between(1 << 20, i64::MAX)),
        ),
        (
            "EXEC now",
            "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n",
        ),
    ] {
        client.ask(line, reply).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn binary_arguments_pass_unchanged() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let binary: Vec<u8> = (0..=255).collect();
    client.send(request(&[b"ECHO", &binary])).await;
    let expected = [b"$256\r\n", binary.as_slice(), b"\r\n"].concat();
    client.expect(expected).await;
    server.stop().await;
}

#[tokio::test]
async fn hostile_bytes_get_an_error_line_and_a_closed_connection() {
    let server = Server::start().await;
    let endless = vec![b'x'; 70_000];
    for (bytes, reply) in [
        (
            b"*1048577\r\n".to_vec(),
            "-ERR Protocol error: invalid multibulk length\r\n",
        ),
        (
            b"*1\r\n*1\r\n*1\r\n".to_vec(),
            "-ERR Protocol error: expected '$', got '*'\r\n",
        ),
        (
            b"*1\r\n$536870913\r\n".to_vec(),
            "-ERR Protocol error: invalid bulk length\r\n",
        ),
        (endless, "-ERR Protocol error: too big inline request\r\n"),
        (
            b"SET k \"\r\n".to_vec(),
            "-ERR Protocol error: unbalanced quotes in request\r\n",
        ),
        (
            b"PING\r\n*1\r\n:1\r\nPING\r\n".to_vec(),
            "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n",
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), ""),
    ] {
        let mut client = server.client().await;
        client.send(&bytes).await;
        assert_eq!(client.rest().await, reply);
    }
    // Others are served on.
    server.client().await.ask("PING", "+PONG\r\n").await;
    assert_eq!(server.statistics().stats().rejected, 7);
    server.stop().await;
}

#[tokio::test]
async fn an_announced_giant_costs_nothing_until_it_arrives() {
    let server = Server::start().await;
    let mut giant = server.client().await;
    giant.send(b"*2\r\n$4\r\nECHO\r\n$536870912\r\nabc").await;
    let mut other = server.client().await;
    until_input_is_read(&mut other).await;
    let list = other.bulk("CLIENT LIST").await;
    let input: usize = field(list.lines().next().unwrap(), "qbuf").parse().unwrap();
    assert!(input < 64 * 1024, "{list}");
    server.stop().await;
}

/// A few round trips: the server has had its turn with every other connection.
async fn until_input_is_read(client: &mut Client) {
    for _ in 0..20 {
        client.ask("PING", "+PONG\r\n").await;
        tokio::task::yield_now().await;
    }
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    line.split(' ')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .expect("a field of CLIENT LIST")
}

#[tokio::test]
async fn a_password_is_asked_for_before_anything_else() {
    let server = Server::with(RedisConfig {
        password: Some("secret".into()),
        ..RedisConfig::default()
    })
    .await;
    let mut client = server.client().await;
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    for (line, reply) in [
        ("GET k", "-NOAUTH Authentication required.\r\n"),
        ("PING", "-NOAUTH Authentication required.\r\n"),
        (
            "EXEC",
            "-EXECABORT Transaction discarded because of: NOAUTH Authentication required.\r\n",
        ),
        ("AUTH secre", wrong),
        ("AUTH secretx", wrong),
        ("AUTH other secret", wrong),
        ("HELLO 3 AUTH default no", wrong),
        ("AUTH secret", "+OK\r\n"),
        ("PING", "+PONG\r\n"),
        ("RESET", "+RESET\r\n"),
        ("PING", "-NOAUTH Authentication required.\r\n"),
    ] {
        client.ask(line, reply).await;
    }
    client.send(b"*11\r\n").await;
    assert_eq!(
        client.rest().await,
        "-ERR Protocol error: unauthenticated multibulk length\r\n"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_pipeline_of_ten_thousand_is_answered_in_order() {
    let server = Server::start().await;
    let client = server.client().await;
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    for number in 0..10_000 {
        let digits = number.to_string();
        match number % 3 {
            0 => {
                requests.extend(request(&[b"ECHO", digits.as_bytes()]));
                replies.extend(format!("${}\r\n{digits}\r\n", digits.len()).bytes());
            }
            1 => {
                requests.extend(request(&[b"GET", digits.as_bytes()]));
                replies.extend(b"$-1\r\n");
            }
            _ => {
                requests.extend(format!("SELECT {}\r\n", number % 16).bytes());
                replies.extend(b"+OK\r\n");
            }
        }
    }
    let (mut reader, mut writer) = client.stream.into_split();
    let mut received = vec![0; replies.len()];
    let (sent, read) = tokio::join!(
        writer.write_all(&requests),
        tokio::time::timeout(SOON, reader.read_exact(&mut received)),
    );
    sent.unwrap();
    read.expect("every reply").unwrap();
    assert!(received == replies, "replies out of order");
    server.stop().await;
}

#[tokio::test]
async fn a_request_in_single_bytes_is_a_request() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for byte in request(&[b"ECHO", b"\r\n$3"]) {
        client.send([byte]).await;
    }
    client.expect("$4\r\n\r\n$3\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_held_at_its_limit_and_harms_nobody() {
    let server = Server::start().await;
    let greedy = server.client().await;
    let echo = request(&[b"ECHO", &[b'x'; 50_000]]);
    // Far more than sockets and limits hold: at some point the server stops reading.
    let mut sent = 0;
    while sent < 200_000_000 {
        let write = greedy.stream.writable();
        if tokio::time::timeout(Duration::from_millis(300), write)
            .await
            .is_err()
        {
            break;
        }
        sent += greedy
            .stream
            .try_write(&echo[sent % echo.len()..])
            .unwrap_or(0);
    }
    assert!(sent < 200_000_000, "the server took everything");
    let mut other = server.client().await;
    other.ask("PING", "+PONG\r\n").await;
    let list = other.bulk("CLIENT LIST").await;
    let memory: usize = field(list.lines().next().unwrap(), "tot-mem")
        .parse()
        .unwrap();
    assert!(memory < 2 << 20, "{list}");
    server.stop().await;
}

#[tokio::test]
async fn a_half_closed_client_gets_the_replies_to_what_it_sent() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send("PING\r\nGET k\r\nECHO bye\r\n").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "+PONG\r\n$-1\r\n$3\r\nbye\r\n");
    assert_eq!(server.statistics().stats().client_gone, 0);
    server.stop().await;
}

#[tokio::test]
async fn replies_keep_the_order_of_their_requests_whatever_is_ready_first() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client.send("GET a\r\nGET b\r\nPING\r\n").await;
    let (a, b) = (gate.next().await, gate.next().await);
    b.reply.send(Ok(Bytes::from_static(b":2\r\n"))).unwrap();
    a.reply.send(Ok(Bytes::from_static(b":1\r\n"))).unwrap();
    client.expect(":1\r\n:2\r\n+PONG\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn every_failure_says_whether_the_command_took_effect() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    for (error, start) in [
        (
            KvError::NoLeader { leader: None },
            "-CLUSTERDOWN not applied",
        ),
        (
            KvError::Overloaded {
                what: "queue",
                retry_after_ms: 5,
            },
            "-TRYAGAIN not applied",
        ),
        (KvError::NotApplied(Ended::Deadline), "-TIMEOUT not applied"),
        (
            KvError::Unknown("no majority"),
            "-UNKNOWN the write may have been applied: no majority",
        ),
        (
            KvError::CrossShard,
            "-CROSSSLOT Keys in request don't hash to the same slot",
        ),
        (KvError::Invalid("too big".into()), "-ERR too big"),
        (KvError::Storage("disk".into()), "-MISCONF not applied"),
        (KvError::Stopping, "-CLUSTERDOWN not applied"),
    ] {
        client.send("GET k\r\n").await;
        gate.next().await.reply.send(Err(error)).unwrap();
        let line = client.line().await;
        assert!(line.starts_with(start), "{line}");
    }
    // WAIT vouches for nothing after an unknown outcome.
    client.ask("WAIT 1 100", ":0\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_command_carries_the_deadline_it_was_given() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client
        .send("GET a\r\nDEADLINE 50 GET b\r\nCLIENT DEADLINE 9000\r\nGET c\r\n")
        .await;
    for (millis, source) in [
        (5000, DeadlineSource::Fallback),
        (50, DeadlineSource::Caller),
        (9000, DeadlineSource::Caller),
    ] {
        let asked = gate.next().await;
        let left = asked.ctx.remaining();
        assert!(left <= Duration::from_millis(millis), "{left:?}");
        assert!(
            left + Duration::from_secs(2) > Duration::from_millis(millis),
            "{left:?}"
        );
        assert_eq!(asked.ctx.source(), source);
        asked.reply.send(Ok(Bytes::from_static(b":0\r\n"))).unwrap();
    }
    client.expect(":0\r\n:0\r\n+OK\r\n:0\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn the_prefix_bounds_commands_of_every_kind() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    let digest = "0123456789012345678901234567890123456789";
    for command in [
        "GET k",
        "BLPOP k 9",
        "WATCH k",
        "EVAL return{} 0",
        &format!("EVALSHA {digest} 0"),
        "FCALL f 0",
        "SCRIPT LOAD return{}",
        &format!("SCRIPT EXISTS {digest}"),
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "FUNCTION STATS",
        "FUNCTION FLUSH",
        "DBSIZE",
        "UNWATCH\r\nMULTI\r\nSET k v\r\nDEADLINE 50 EXEC",
    ] {
        client.send(format!("DEADLINE 50 {command}\r\n")).await;
        let asked = gate.next().await;
        assert!(
            asked.ctx.remaining() <= Duration::from_millis(50),
            "{command}: {:?}",
            asked.ctx.remaining()
        );
        assert_eq!(asked.ctx.source(), DeadlineSource::Caller, "{command}");
        // Every request is refused, until the client hears of it.
        asked.reply.send(Err(KvError::Stopping)).unwrap();
        let refused = async {
            loop {
                // EVAL may have heard enough before its script is stored.
                let _ = gate.next().await.reply.send(Err(KvError::Stopping));
            }
        };
        let heard = async { while !client.line().await.starts_with("-CLUSTERDOWN") {} };
        tokio::select! {
            () = refused => {}
            () = heard => {}
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_what_it_began() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client.send("GET a\r\n").await;
    let asked = gate.next().await;
    assert_eq!(asked.ctx.ended(), None);
    drop(client);
    assert_eq!(asked.ctx.done().await, Ended::Cancelled);
    let statistics = server.statistics();
    until("client_gone", || statistics.stats().client_gone == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_begun_and_not_answered_is_bounded() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client.send("GET a\r\n".repeat(5000)).await;
    until("the first", || gate.waiting() > 0).await;
    let mut other = server.client().await;
    until_input_is_read(&mut other).await;
    assert!(gate.waiting() <= 1024, "{}", gate.waiting());
    server.stop().await;
}

#[tokio::test]
async fn a_blocked_client_gets_what_is_pushed_and_then_what_it_sent_meanwhile() {
    let server = Server::start().await;
    let (mut waiter, mut pusher) = (server.client().await, server.client().await);
    let statistics = server.statistics();
    waiter.send("BLPOP a b 0\r\nPING\r\n").await;
    until("blocked", || statistics.stats().waiting == 1).await;
    pusher.ask("RPUSH b v", ":1\r\n").await;
    waiter.expect("*2\r\n$1\r\nb\r\n$1\r\nv\r\n+PONG\r\n").await;
    pusher.ask("LLEN b", ":0\r\n").await;
    assert_eq!(statistics.stats().waiting, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_wait_ends_by_time_by_unblock_or_with_its_client() {
    let server = Server::start().await;
    let (mut waiter, mut other) = (server.client().await, server.client().await);
    let statistics = server.statistics();
    waiter.ask("BLPOP a 0.02", "*-1\r\n").await;
    waiter
        .ask(
            "DEADLINE 20 BLPOP a 0",
            "-TIMEOUT not applied: the command's deadline passed\r\n",
        )
        .await;
    waiter.ask("CLIENT ID", ":1\r\n").await;
    for (how, reply) in [
        ("TIMEOUT", "*-1\r\n"),
        (
            "ERROR",
            "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n",
        ),
    ] {
        waiter.send("BLPOP a 0\r\n").await;
        until("blocked", || statistics.stats().waiting == 1).await;
        other
            .ask(&format!("CLIENT UNBLOCK 1 {how}"), ":1\r\n")
            .await;
        waiter.expect(reply).await;
    }
    other.ask("CLIENT UNBLOCK 1", ":0\r\n").await;
    waiter.send("BLPOP a 0\r\n").await;
    until("blocked", || statistics.stats().waiting == 1).await;
    drop(waiter);
    until("given up", || statistics.stats().waiting == 0).await;
    assert_eq!(statistics.stats().client_gone, 1);
    // Nobody pops what comes later.
    other.ask("RPUSH a v", ":1\r\n").await;
    other.ask("LLEN a", ":1\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_timeout_with_a_pop_unsettled_is_unknown_and_never_nil() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client.send("BLPOP a 0.1\r\n").await;
    // Sent again under its id until its deadline: each time without an answer.
    let answering = async {
        loop {
            let asked = gate.next().await;
            asked.reply.send(Err(KvError::Unknown("lost"))).ok();
        }
    };
    tokio::select! {
        line = client.line() => assert!(line.starts_with("-UNKNOWN"), "{line}"),
        () = answering => {}
    }
    server.stop().await;
}

#[tokio::test]
async fn replies_can_be_switched_off_and_on() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client
        .send("CLIENT REPLY SKIP\r\nPING a\r\nPING b\r\nCLIENT REPLY OFF\r\nPING c\r\nNOSUCH\r\nGET k\r\nCLIENT REPLY ON\r\nPING d\r\n")
        .await;
    client.expect("$1\r\nb\r\n+OK\r\n$1\r\nd\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn clients_are_listed_killed_and_held_back() {
    let server = Server::start().await;
    let (mut first, mut second) = (server.client().await, server.client().await);
    first.ask("CLIENT SETNAME one", "+OK\r\n").await;
    second.ask("PING", "+PONG\r\n").await;
    let list = second.bulk("CLIENT LIST TYPE normal").await;
    assert_eq!(list.lines().count(), 2);
    assert_eq!(field(list.lines().next().unwrap(), "name"), "one");
    assert_eq!(field(list.lines().next().unwrap(), "cmd"), "client");

    second.ask("CLIENT PAUSE 100000 ALL", "+OK\r\n").await;
    first.send("PING\r\n").await;
    until_paused(&mut second).await;
    second.ask("CLIENT UNPAUSE", "+OK\r\n").await;
    first.expect("+PONG\r\n").await;

    second.ask("CLIENT KILL ID 1", ":1\r\n").await;
    assert_eq!(first.rest().await, "");
    second.ask("CLIENT KILL ID 2 SKIPME no", ":1\r\n").await;
    assert_eq!(second.rest().await, "");
    server.stop().await;
}

async fn until_paused(client: &mut Client) {
    for _ in 0..20 {
        client.ask("CLIENT GETREDIR", ":-1\r\n").await;
    }
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let server = Server::with(RedisConfig {
        max_clients: 1,
        ..RedisConfig::default()
    })
    .await;
    let mut first = server.client().await;
    first.ask("PING", "+PONG\r\n").await;
    let mut second = server.client().await;
    assert_eq!(
        second.rest().await,
        "-ERR max number of clients reached\r\n"
    );
    first.ask("PING", "+PONG\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_what_was_begun_finish() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let (mut busy, mut idle) = (server.client().await, server.client().await);
    idle.ask("PING", "+PONG\r\n").await;
    busy.send("GET a\r\n").await;
    let asked = gate.next().await;
    let stop = server.stop();
    let rest = async {
        assert_eq!(idle.rest().await, "");
        asked.reply.send(Ok(Bytes::from_static(b":1\r\n"))).unwrap();
        assert_eq!(busy.rest().await, ":1\r\n");
    };
    tokio::join!(stop, rest);
}

/// A node whose disk hangs until somebody lets it go on, once for each look.
struct StuckDisk {
    looks: AtomicUsize,
    go_on: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl NodeFacts for StuckDisk {
    fn facts(&self) -> Facts {
        ThreeNodes.facts()
    }

    fn cpu_times(&self) -> (Duration, Duration) {
        ThreeNodes.cpu_times()
    }

    fn disk_bytes(&self) -> u64 {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let go_on = self.go_on.lock().expect("no look panics");
        go_on.recv_timeout(SOON).expect("the test lets it go on");
        ThreeNodes.disk_bytes()
    }

    fn unix_time(&self) -> Duration {
        ThreeNodes.unix_time()
    }
}

/// Callers that left do not leave a thread behind each.
#[tokio::test]
async fn a_disk_that_hangs_is_looked_at_once_whoever_asks() {
    let (go_on, waits) = std::sync::mpsc::channel();
    let disk = Arc::new(StuckDisk {
        looks: AtomicUsize::new(0),
        go_on: std::sync::Mutex::new(waits),
    });
    let memory = Arc::new(MemoryCoordinator::new(UNIX_MILLIS));
    let server = Server::of_node(disk.clone(), memory, RedisConfig::default()).await;
    let mut client = server.client().await;
    client.ask("CLIENT DEADLINE 50", "+OK\r\n").await;
    for _ in 0..4 {
        let info = client.bulk("INFO leadline").await;
        assert!(info.contains("disk_unknown:no_answer\r\n"), "{info}");
        assert!(info.contains("voters:3\r\n"), "{info}");
    }
    assert_eq!(disk.looks.load(Ordering::Relaxed), 1);
    client.ask("CLIENT DEADLINE 0", "+OK\r\n").await;
    // Everything but the disk is told meanwhile.
    assert!(client.bulk("INFO cpu").await.contains("used_cpu_user"));
    for _ in 0..2 {
        go_on.send(()).unwrap();
    }
    let info = client.bulk("INFO leadline").await;
    assert!(info.contains("disk_bytes:4096\r\n"), "{info}");
    assert_eq!(disk.looks.load(Ordering::Relaxed), 2);
    server.stop().await;
}

#[tokio::test]
async fn the_server_describes_itself() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.bulk("INFO").await;
    for line in [
        "redis_version:7.2.0",
        "loading:0",
        "role:master",
        "maxmemory_policy:noeviction",
        "voters:3",
        "used_cpu_sys:0.000250",
        "used_cpu_user:1.500000",
        "disk_bytes:4096",
    ] {
        assert!(info.contains(&format!("{line}\r\n")), "{line}: {info}");
    }
    let page = client.bulk("INFO commandstats").await;
    assert!(page.contains("cmdstat_info:calls=1,"), "{page}");
    for (line, reply) in [
        ("WAIT 2 100", ":1\r\n"),
        ("TIME", "*2\r\n$10\r\n1767225600\r\n$1\r\n0\r\n"),
        (
            "CONFIG GET maxmemory-p*",
            "*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n",
        ),
        ("CONFIG SET slowlog-log-slower-than 0", "+OK\r\n"),
        ("GET k", "$-1\r\n"),
        ("CONFIG SET slowlog-log-slower-than -1", "+OK\r\n"),
        ("SLOWLOG LEN", ":1\r\n"),
        (
            "CONFIG SET databases 3",
            "-ERR CONFIG SET failed (possibly related to argument 'databases') - can't set immutable config\r\n",
        ),
        ("COMMAND GETKEYS GET k", "*1\r\n$1\r\nk\r\n"),
        (
            "COMMAND GETKEYS PING",
            "-ERR The command has no key arguments\r\n",
        ),
        ("COMMAND LIST FILTERBY PATTERN ech*", "*1\r\n$4\r\necho\r\n"),
        ("COMMAND INFO nosuch", "*1\r\n*-1\r\n"),
        ("MODULE LIST", "*0\r\n"),
        (
            "SWAPDB 0 1",
            "-ERR not supported: databases cannot be swapped\r\n",
        ),
    ] {
        client.ask(line, reply).await;
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &server.registry).unwrap();
    assert!(
        text.contains("redis_commands_total{command=\"get\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("redis_command_duration_seconds_count{command=\"get\"} 1"),
        "{text}"
    );
    server.stop().await;
}

//! MULTI, EXEC, DISCARD and WATCH, through raw sockets.
//!
//! Source: <https://redis.io/docs/latest/develop/interact/transactions/>, Redis 7.2.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{Client, Gate, Server, until};
use leadline_kv::KvError;
use leadline_redis::RedisConfig;

const OK: &str = "+OK\r\n";
const QUEUED: &str = "+QUEUED\r\n";
const NIL: &str = "$-1\r\n";
/// What EXEC answers when a watched key has changed.
const CHANGED: &str = "*-1\r\n";
const ABORTED: &str = "-EXECABORT Transaction discarded because of previous errors.\r\n";
const WITHOUT_MULTI: &str = "-ERR EXEC without MULTI\r\n";

async fn conversation(client: &mut Client, lines: &[(&str, &str)]) {
    for (line, reply) in lines {
        client.ask(line, reply).await;
    }
}

#[tokio::test]
async fn commands_wait_for_exec_which_answers_for_each_in_their_order() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    let queue = [
        ("MULTI", OK),
        ("SET k 1", QUEUED),
        ("INCR k", QUEUED),
        ("GET absent", QUEUED),
        ("PING", QUEUED),
    ];
    conversation(&mut client, &queue).await;
    other.ask("GET k", NIL).await;
    client
        .ask("EXEC", "*4\r\n+OK\r\n:2\r\n$-1\r\n+PONG\r\n")
        .await;
    other.ask("GET k", "$1\r\n2\r\n").await;
    // The MULTI is over.
    client.ask("GET k", "$1\r\n2\r\n").await;
    conversation(&mut client, &[("MULTI", OK), ("EXEC", "*0\r\n")]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_command_that_cannot_be_queued_makes_exec_do_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (bad, refused, exec) in [
        (
            "NOSUCH x",
            "-ERR unknown command 'NOSUCH', with args beginning with: 'x' \r\n",
            ABORTED,
        ),
        (
            "GET",
            "-ERR wrong number of arguments for 'get' command\r\n",
            ABORTED,
        ),
        // Known among nodes only.
        (
            "WATCH.VERSIONS k",
            "-ERR unknown command 'WATCH.VERSIONS', with args beginning with: 'k' \r\n",
            ABORTED,
        ),
        (
            "EXEC now",
            "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n",
            WITHOUT_MULTI,
        ),
    ] {
        let talk = [
            ("MULTI", OK),
            ("SET k v", QUEUED),
            (bad, refused),
            ("EXEC", exec),
            ("GET k", NIL),
            ("EXEC", WITHOUT_MULTI),
        ];
        conversation(&mut client, &talk).await;
    }
    // Nothing of it is left for the next.
    let talk = [
        ("MULTI", OK),
        ("SET k v", QUEUED),
        ("EXEC", "*1\r\n+OK\r\n"),
    ];
    conversation(&mut client, &talk).await;
    server.stop().await;
}

/// Commands of the transaction itself that are out of place are refused, and change nothing.
#[tokio::test]
async fn what_is_out_of_place_is_refused_and_the_multi_goes_on() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let talk = [
        ("EXEC", WITHOUT_MULTI),
        ("DISCARD", "-ERR DISCARD without MULTI\r\n"),
        ("MULTI", OK),
        ("SET k v", QUEUED),
        ("MULTI", "-ERR MULTI calls can not be nested\r\n"),
        ("WATCH k", "-ERR WATCH inside MULTI is not allowed\r\n"),
        ("EXEC", "*1\r\n+OK\r\n"),
        ("GET k", "$1\r\nv\r\n"),
    ];
    conversation(&mut client, &talk).await;
    server.stop().await;
}

#[tokio::test]
async fn an_error_of_one_command_undoes_none_of_the_others() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let talk = [
        ("MULTI", OK),
        ("SET k v", QUEUED),
        ("LPUSH k x", QUEUED),
        ("SET k v EX soon", QUEUED),
        ("SET other w", QUEUED),
        (
            "EXEC",
            "*4\r\n+OK\r\n-WRONGTYPE Operation against a key holding the wrong kind of value\r\n\
             -ERR value is not an integer or out of range\r\n+OK\r\n",
        ),
        ("MGET k other", "*2\r\n$1\r\nv\r\n$1\r\nw\r\n"),
    ];
    conversation(&mut client, &talk).await;
    server.stop().await;
}

#[tokio::test]
async fn a_watched_key_that_changed_makes_exec_do_nothing() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    for (before, change) in [
        ("SET k old", "SET k new"),
        // The same value again is a change, too.
        ("SET k old", "SET k old"),
        ("SET k old", "DEL k"),
        ("DEL k", "SET k new"),
        ("SET k 100", "EXPIRE k 1000"),
        ("DEL k", "RPUSH k a"),
        ("FLUSHALL", "SADD k a"),
    ] {
        // What it answers is not the point here.
        other.send(format!("{before}\r\n")).await;
        other.line().await;
        client.ask("WATCH unrelated k", OK).await;
        other.send(format!("{change}\r\n")).await;
        other.line().await;
        let talk = [
            ("MULTI", OK),
            ("SET done by-exec", QUEUED),
            ("EXEC", CHANGED),
            ("GET done", NIL),
            // What was watched is forgotten, whatever became of it.
            ("MULTI", OK),
            ("PING", QUEUED),
            ("EXEC", "*1\r\n+PONG\r\n"),
        ];
        conversation(&mut client, &talk).await;
    }
    // A change of one's own before MULTI counts as anyone's.
    let talk = [
        ("WATCH k", OK),
        ("SET k mine", OK),
        ("MULTI", OK),
        ("EXEC", CHANGED),
    ];
    conversation(&mut client, &talk).await;
    client.send("HELLO 3\r\nWATCH k\r\nSET k mine\r\n").await;
    while client.line().await != "*0" {}
    conversation(&mut client, &[("PING", "+OK\r\n+OK\r\n+PONG\r\n")]).await;
    conversation(&mut client, &[("MULTI", OK), ("EXEC", "_\r\n")]).await;
    server.stop().await;
}

#[tokio::test]
async fn exec_runs_if_what_is_watched_stayed_as_it_was() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    client.ask("SET k v", OK).await;
    for (end_of_watch, changed) in [
        // Not looked at by anyone but readers, or in vain.
        ("PING", "GET k"),
        ("PING", "SET k x NX"),
        ("PING", "DEL absent"),
        ("PING", "SET unwatched x"),
        // No longer watched.
        ("UNWATCH", "SET k x"),
        ("MULTI\r\nDISCARD", "SET k x"),
        ("MULTI\r\nGET\r\nEXEC", "SET k x"),
        ("RESET", "SET k x"),
    ] {
        client.ask("WATCH k absent", OK).await;
        client.send(format!("{end_of_watch}\r\n")).await;
        for _ in end_of_watch.lines() {
            client.line().await;
        }
        other.send(format!("{changed}\r\nPING\r\n")).await;
        while other.line().await != "+PONG" {}
        client.ask("MULTI", OK).await;
        client.ask("ECHO ran", QUEUED).await;
        client.send("EXEC\r\n").await;
        assert_eq!(client.line().await, "*1", "{end_of_watch}, {changed}");
        client.expect("$3\r\nran\r\n").await;
    }
    server.stop().await;
}

#[tokio::test]
async fn discard_reset_and_leaving_drop_what_was_queued() {
    let server = Server::start().await;
    let mut other = server.client().await;
    for (end, reply) in [("DISCARD", OK), ("RESET", "+RESET\r\n")] {
        let mut client = server.client().await;
        let talk = [
            ("MULTI", OK),
            ("SET k v", QUEUED),
            (end, reply),
            ("EXEC", WITHOUT_MULTI),
            ("GET k", NIL),
        ];
        conversation(&mut client, &talk).await;
    }
    let mut client = server.client().await;
    conversation(&mut client, &[("MULTI", OK), ("SET k v", QUEUED)]).await;
    drop(client);
    until("the client is gone", || {
        server.statistics().stats().connections == 1
    })
    .await;
    other.ask("GET k", NIL).await;
    server.stop().await;
}

/// SELECT and HELLO in a MULTI hold for what follows them, and have not happened if EXEC did
/// nothing: not even for commands that were sent before EXEC was answered.
#[tokio::test]
async fn a_select_in_a_multi_happens_with_it_or_not_at_all() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    client.ask("WATCH w", OK).await;
    other.ask("SET w x", OK).await;
    client
        .send("MULTI\r\nSELECT 3\r\nHELLO 3\r\nSET k three\r\nEXEC\r\nSET k zero\r\nGET absent\r\n")
        .await;
    client
        .expect([OK, QUEUED, QUEUED, QUEUED, CHANGED, OK, NIL].concat())
        .await;
    other.ask("GET k", "$4\r\nzero\r\n").await;
    client
        .send("MULTI\r\nSELECT 3\r\nSET k three\r\nEXEC\r\nGET k\r\n")
        .await;
    client
        .expect([OK, QUEUED, QUEUED, "*2\r\n", OK, OK, "$5\r\nthree\r\n"].concat())
        .await;
    other.ask("GET k", "$4\r\nzero\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_command_that_waits_tries_once_in_a_multi() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let talk = [
        ("MULTI", OK),
        ("BLPOP l 0", QUEUED),
        ("BZPOPMIN z 0", QUEUED),
        ("RPUSH l a b c", QUEUED),
        ("BLPOP nothing l 0", QUEUED),
        ("BLMPOP 0 2 nothing l RIGHT COUNT 5", QUEUED),
        (
            "EXEC",
            "*5\r\n*-1\r\n*-1\r\n:3\r\n*2\r\n$1\r\nl\r\n$1\r\na\r\n\
             *2\r\n$1\r\nl\r\n*2\r\n$1\r\nc\r\n$1\r\nb\r\n",
        ),
    ];
    conversation(&mut client, &talk).await;
    server.stop().await;
}

/// A pipeline that was sent in one piece: EXEC compares what its WATCH has read.
#[tokio::test]
async fn nothing_begins_behind_a_watch_before_it_knows_the_versions() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client
        .send("WATCH k\r\nMULTI\r\nGET k\r\nEXEC\r\nPING\r\n")
        .await;
    let look = gate.next().await;
    assert_eq!((look.name, gate.waiting()), ("WATCH.VERSIONS", 0));
    look.reply
        .send(Ok(Bytes::from_static(b"*1\r\n:7\r\n")))
        .unwrap();
    let exec = gate.next().await;
    assert_eq!(exec.name, "EXEC");
    exec.reply
        .send(Ok(Bytes::from_static(b"*1\r\n$1\r\nv\r\n")))
        .unwrap();
    client
        .expect([OK, OK, QUEUED, "*1\r\n$1\r\nv\r\n", "+PONG\r\n"].concat())
        .await;
    server.stop().await;
}

#[tokio::test]
async fn exec_does_nothing_after_a_watch_that_could_not_read() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client.send("WATCH k\r\n").await;
    let look = gate.next().await;
    look.reply
        .send(Err(KvError::NoLeader { leader: None }))
        .unwrap();
    let refused = client.line().await;
    assert!(refused.starts_with("-CLUSTERDOWN"), "{refused}");
    let talk = [
        ("MULTI", OK),
        ("SET k v", QUEUED),
        (
            "EXEC",
            "-EXECABORT Transaction discarded because a WATCH failed.\r\n",
        ),
    ];
    conversation(&mut client, &talk).await;
    assert_eq!(gate.waiting(), 0);
    server.stop().await;
}

/// As over memory above, where EXEC is answered at once: here it is answered while its successors wait.
#[tokio::test]
async fn what_follows_an_exec_with_a_select_waits_for_its_outcome() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    client
        .send("MULTI\r\nSELECT 3\r\nGET k\r\nEXEC\r\nGET k\r\nCLIENT INFO\r\n")
        .await;
    let exec = gate.next().await;
    assert_eq!((exec.name, gate.waiting()), ("EXEC", 0));
    exec.reply
        .send(Err(KvError::NoLeader { leader: None }))
        .unwrap();
    let get = gate.next().await;
    get.reply.send(Ok(Bytes::from_static(b"$-1\r\n"))).unwrap();
    client.expect([OK, QUEUED, QUEUED].concat()).await;
    let refused = client.line().await;
    assert!(refused.starts_with("-CLUSTERDOWN"), "{refused}");
    client.expect(NIL).await;
    client.line().await;
    let info = client.line().await;
    assert!(info.contains(" db=0 "), "{info}");
    server.stop().await;
}

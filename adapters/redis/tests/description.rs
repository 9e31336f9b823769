//! What the server says of itself: INFO, COMMAND, ACL CAT, CLIENT LIST, the slow log.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Client, Gate, Server, until};
use leadline_kv::KvError;
use leadline_redis::RedisConfig;

const OK: &str = "+OK\r\n";
const QUEUED: &str = "+QUEUED\r\n";

/// The value of a field in a page of INFO or a line of CLIENT LIST.
fn field<'a>(page: &'a str, name: &str, separator: char) -> Option<&'a str> {
    page.split([' ', '\r', '\n'])
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix(separator))
}

/// The cache answers most reads at once; what those take is what a dashboard shows.
#[tokio::test]
async fn a_command_that_is_answered_at_once_took_time_too() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let push = format!("RPUSH l{}", " x".repeat(1000));
    client.ask(&push, ":1000\r\n").await;
    client.ask("CONFIG SET slowlog-log-slower-than 0", OK).await;
    let begun = Instant::now();
    let all = format!("*1000\r\n{}", "$1\r\nx\r\n".repeat(1000));
    client.ask("LRANGE l 0 -1", &all).await;
    for _ in 0..100 {
        client.ask("PING", "+PONG\r\n").await;
    }
    let longest = begun.elapsed().as_micros();
    let page = client.bulk("INFO commandstats").await;
    for command in ["lrange", "ping"] {
        let line = field(&page, &format!("cmdstat_{command}"), ':').expect(command);
        let usec: u128 = field(&line.replace(',', " "), "usec", '=')
            .and_then(|usec| usec.parse().ok())
            .expect(line);
        assert!((1..=longest).contains(&usec), "{command}: {line}");
    }
    client.send("SLOWLOG GET 1\r\n").await;
    let mut entry = Vec::new();
    while entry.len() < 5 {
        entry.push(client.line().await);
    }
    let took: u128 = entry[4][1..].parse().unwrap();
    assert!((1..=longest).contains(&took), "{entry:?}");
    server.stop().await;
}

/// A client library asks for INFO before it uses a connection.
#[tokio::test]
async fn info_does_not_wait_for_shards_without_a_leader() {
    let gate = Arc::new(Gate::default());
    let server = Server::over(gate.clone(), RedisConfig::default()).await;
    let mut client = server.client().await;
    let (page, asked) = tokio::join!(client.bulk("DEADLINE 200 INFO"), gate.next());
    assert!(asked.ctx.remaining() <= Duration::from_millis(100));
    for line in ["loading:0", "disk_bytes:4096", "keyspace_unknown:no_answer"] {
        assert!(page.contains(&format!("{line}\r\n")), "{line}: {page}");
    }
    while gate.waiting() > 0 {
        gate.next().await;
    }
    let refused = async {
        for _ in 0..16 {
            let asked = gate.next().await;
            assert!(asked.ctx.remaining() <= Duration::from_secs(1));
            let no_leader = Err(KvError::NoLeader { leader: None });
            // The first is enough.
            asked.reply.send(no_leader).ok();
        }
    };
    let (page, ()) = tokio::join!(client.bulk("INFO"), refused);
    assert!(page.contains("keyspace_unknown:no_leader\r\n"), "{page}");
    // One database of which nothing is known is enough: the others would look complete.
    let some = async {
        for database in 0..16 {
            let reply = if database == 3 {
                Err(KvError::Stopping)
            } else {
                Ok(Bytes::from_static(b":7\r\n"))
            };
            gate.next().await.reply.send(reply).ok();
        }
    };
    let (page, ()) = tokio::join!(client.bulk("INFO keyspace"), some);
    assert_eq!(page, "# Keyspace\r\nkeyspace_unknown:no_leader\r\n");
    server.stop().await;
}

#[tokio::test]
async fn info_shows_what_is_true_and_leaves_out_what_it_does_not_know() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
    for (line, reply) in [
        ("RPUSH l a", ":1\r\n"),
        ("GET l", wrong),
        ("INCR l", wrong),
        (
            "INCRBY l x",
            "-ERR value is not an integer or out of range\r\n",
        ),
        ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
    ] {
        client.ask(line, reply).await;
    }
    let page = client.bulk("INFO everything").await;
    for line in [
        "errorstat_ERR:count=1",
        "errorstat_NOPROTO:count=1",
        "errorstat_WRONGTYPE:count=2",
        "total_error_replies:4",
        "connected_slaves:0",
        "db0:keys=1,avg_ttl=0",
        "redis_mode:standalone",
        "loading:0",
        "maxmemory:0",
    ] {
        assert!(page.contains(&format!("{line}\r\n")), "{line}: {page}");
    }
    for name in [
        "redis_version",
        "tcp_port",
        "uptime_in_seconds",
        "connected_clients",
        "used_memory",
        "total_commands_processed",
        "instantaneous_ops_per_sec",
    ] {
        assert!(field(&page, name, ':').is_some(), "{name}: {page}");
    }
    for name in [
        "keyspace_hits",
        "keyspace_misses",
        "expired_keys",
        "errorstat_refused",
        "expires=",
    ] {
        assert!(!page.contains(name), "{name}: {page}");
    }
    client.ask("CONFIG RESETSTAT", OK).await;
    let page = client.bulk("INFO errorstats").await;
    assert_eq!(page, "# Errorstats\r\n");
    server.stop().await;
}

/// Whoever makes up errors in scripts does not make INFO grow.
#[tokio::test]
async fn errors_of_scripts_are_counted_by_a_bounded_number_of_words() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for number in 0..300 {
        let script = format!("EVAL \"return redis.error_reply('CODE{number} why')\" 0");
        client.ask(&script, &format!("-CODE{number} why\r\n")).await;
    }
    let page = client.bulk("INFO errorstats").await;
    let lines = || page.lines().filter(|line| line.starts_with("errorstat_"));
    assert!(page.contains("errorstat_CODE0:count=1\r\n"), "{page}");
    assert!(lines().count() <= 129, "{page}");
    let counted = lines().filter_map(|line| line.split_once("count=")?.1.parse::<u32>().ok());
    assert_eq!(counted.sum::<u32>(), 300, "{page}");
    server.stop().await;
}

#[tokio::test]
async fn client_list_shows_who_is_in_a_multi_and_who_waits() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    async fn shown(other: &mut Client) -> String {
        let list = other.bulk("CLIENT LIST ID 1").await;
        ["flags", "multi", "watch"]
            .map(|name| field(&list, name, '=').unwrap_or("none").to_owned())
            .join(" ")
    }
    for (line, reply, expected) in [
        ("PING", "+PONG\r\n", "N -1 0"),
        ("WATCH a b", OK, "N -1 2"),
        ("WATCH c", OK, "N -1 3"),
        ("MULTI", OK, "x 0 3"),
        ("GET a", QUEUED, "x 1 3"),
        ("CLIENT ID", QUEUED, "x 2 3"),
        ("EXEC", "*2\r\n$-1\r\n:1\r\n", "N -1 0"),
        ("WATCH a", OK, "N -1 1"),
        ("UNWATCH", OK, "N -1 0"),
        ("MULTI", OK, "x 0 0"),
        ("DISCARD", OK, "N -1 0"),
        ("MULTI", OK, "x 0 0"),
        ("RESET", "+RESET\r\n", "N -1 0"),
        ("MULTI", OK, "x 0 0"),
        (
            "EXEC now",
            "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n",
            "N -1 0",
        ),
        ("CLIENT NO-EVICT ON", OK, "e -1 0"),
        ("CLIENT NO-TOUCH ON", OK, "eT -1 0"),
        ("MULTI", OK, "xeT 0 0"),
        ("RESET", "+RESET\r\n", "N -1 0"),
    ] {
        client.ask(line, reply).await;
        assert_eq!(shown(&mut other).await, expected, "{line}");
    }
    client.send("BLPOP nothing 0\r\n").await;
    let statistics = server.statistics();
    until("blocked", || statistics.stats().waiting == 1).await;
    assert_eq!(shown(&mut other).await, "b -1 0");
    server.stop().await;
}

/// Compared with Redis 7.0; what COMMAND INFO says of each command is in `commands/command.rs`.
#[tokio::test]
async fn commands_are_found_by_category_by_subcommand_and_by_their_keys() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let no_keys = "-ERR The command has no key arguments\r\n";
    for (line, reply) in [
        ("ACL CAT foo", "-ERR Unknown category 'foo'\r\n"),
        (
            "ACL CAT @transaction",
            "-ERR Unknown category '@transaction'\r\n",
        ),
        (
            "ACL CAT a b",
            "-ERR unknown subcommand or wrong number of arguments for 'CAT'. Try ACL HELP.\r\n",
        ),
        (
            "ACL CAT transaction",
            "*5\r\n$7\r\ndiscard\r\n$4\r\nexec\r\n$5\r\nmulti\r\n$7\r\nunwatch\r\n$5\r\nwatch\r\n",
        ),
        (
            "COMMAND LIST FILTERBY ACLCAT Transaction",
            "*5\r\n$7\r\ndiscard\r\n$4\r\nexec\r\n$5\r\nmulti\r\n$7\r\nunwatch\r\n$5\r\nwatch\r\n",
        ),
        (
            "COMMAND LIST FILTERBY PATTERN config|?et",
            "*2\r\n$10\r\nconfig|get\r\n$10\r\nconfig|set\r\n",
        ),
        ("COMMAND GETKEYS MEMORY USAGE a", "*1\r\n$1\r\na\r\n"),
        ("COMMAND GETKEYS MEMORY DOCTOR", no_keys),
        (
            "COMMAND GETKEYS MEMORY NOSUCH a",
            "-ERR Invalid command specified\r\n",
        ),
        ("COMMAND GETKEYS OBJECT ENCODING a", "*1\r\n$1\r\na\r\n"),
        ("COMMAND GETKEYS DEADLINE 100 GET a", "*1\r\n$1\r\na\r\n"),
        ("COMMAND GETKEYS DEADLINE 100 PING", no_keys),
        (
            "COMMAND GETKEYSANDFLAGS DEADLINE 100 SET a b",
            "*1\r\n*2\r\n$1\r\na\r\n*1\r\n+RW\r\n",
        ),
        (
            "COMMAND GETKEYSANDFLAGS MEMORY USAGE a",
            "*1\r\n*2\r\n$1\r\na\r\n*1\r\n+RO\r\n",
        ),
        (
            "COMMAND INFO CONFIG|GET nosuch|get",
            "*2\r\n*10\r\n$10\r\nconfig|get\r\n:-3\r\n\
             *4\r\n+admin\r\n+noscript\r\n+loading\r\n+stale\r\n:0\r\n:0\r\n:0\r\n\
             *3\r\n+@admin\r\n+@dangerous\r\n+@slow\r\n*0\r\n*0\r\n*0\r\n*-1\r\n",
        ),
    ] {
        client.ask(line, reply).await;
    }
    server.stop().await;
}

/// In RESP3, where sets differ from arrays.
#[tokio::test]
async fn a_row_of_command_info_is_made_of_sets_of_words() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send("HELLO 3\r\nPING\r\n").await;
    while client.line().await != "+PONG" {}
    client
        .ask(
            "COMMAND INFO get",
            "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n\
             ~3\r\n+@string\r\n+@read\r\n+@fast\r\n~0\r\n\
             ~1\r\n%3\r\n$5\r\nflags\r\n~1\r\n+RO\r\n\
             $12\r\nbegin_search\r\n%2\r\n$4\r\ntype\r\n$5\r\nindex\r\n$4\r\nspec\r\n%1\r\n$5\r\nindex\r\n:1\r\n\
             $9\r\nfind_keys\r\n%2\r\n$4\r\ntype\r\n$5\r\nrange\r\n$4\r\nspec\r\n\
             %3\r\n$7\r\nlastkey\r\n:0\r\n$7\r\nkeystep\r\n:1\r\n$5\r\nlimit\r\n:0\r\n~0\r\n",
        )
        .await;
    server.stop().await;
}

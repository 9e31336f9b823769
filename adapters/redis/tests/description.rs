//! What the server says of itself: INFO, COMMAND, ACL CAT, CLIENT LIST, the slow log.

mod common;

use std::time::Instant;

use common::Server;

const OK: &str = "+OK\r\n";

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

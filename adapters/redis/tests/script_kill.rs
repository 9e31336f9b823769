//! SCRIPT KILL. It stops what runs in the whole process, which is one node; so the test has one of
//! its own. (That nothing of the script is applied, the client suite sees over a real store.)

mod common;

use std::time::{Duration, Instant};

use common::{Client, SOON, Server, request};

const NOTBUSY: &str = "-NOTBUSY No scripts in execution right now.\r\n";

/// Over memory a script holds the thread that its client is served on, so there are two servers.
#[tokio::test]
async fn a_script_is_killed_from_another_connection() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.ask("SCRIPT KILL", NOTBUSY).await;

    let running = std::thread::spawn(endless_script);
    let end = Instant::now() + SOON;
    while !kill(&mut client).await {
        assert!(Instant::now() < end && !running.is_finished());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let error = running.join().unwrap();
    assert!(error.contains("killed by user with SCRIPT KILL"), "{error}");

    client.ask("SCRIPT KILL", NOTBUSY).await;
    server.stop().await;
}

async fn kill(client: &mut Client) -> bool {
    client.send("SCRIPT KILL\r\n").await;
    client.line().await == "+OK"
}

/// Runs a script that ends only from without, or after 15 s of CPU, and gives its reply.
#[tokio::main(flavor = "current_thread")]
async fn endless_script() -> String {
    let server = Server::start().await;
    let mut client = server.client().await;
    let body = b"local began = os.clock() \
                 repeat pcall(function() while os.clock() - began < 15 do end end) \
                 until os.clock() - began >= 15";
    client
        .send(request(&[b"DEADLINE", b"15000", b"EVAL", body, b"0"]))
        .await;
    let reply = client.line().await;
    server.stop().await;
    reply
}

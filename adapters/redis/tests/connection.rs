//! The connection layer, through raw sockets.

mod common;

use common::{Server, request};

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
        ("SELECT x", "-ERR invalid DB index\r\n"),
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

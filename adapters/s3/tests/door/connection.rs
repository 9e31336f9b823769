//! What is said about the connection itself.

use leadline_http::{ListenerOptions, serve};
use leadline_raft::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::world::{Ask, HOST, World, ask};

/// hyper does not say `100 Continue` before a body of no bytes, and botocore takes the answer to
/// the next request on the connection for it (boto/botocore#3755).
#[tokio::test]
async fn an_empty_body_that_expects_to_be_asked_for_ends_its_connection() {
    let world = World::with("bucket").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = serve(
        listener,
        world.router.clone(),
        ListenerOptions::default(),
        stop.clone(),
        || Context::with_timeout(std::time::Duration::from_secs(5)),
    );
    let talk = async {
        let put = |key: &str, body: &str, expect: &str| {
            let signed = ask("PUT", &format!("/bucket/{key}"))
                .body(body)
                .signed(&world.admin);
            let headers = headers_of(&signed);
            format!(
                "PUT /bucket/{key} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {}\r\n{expect}\r\n{body}",
                signed.host,
                body.len()
            )
        };
        let mut socket = TcpStream::connect(address).await.unwrap();
        // A body that has bytes, and one that nobody expects to be asked for, leave it open.
        for (body, expect) in [("full", "expect: 100-continue\r\n"), ("", "")] {
            let request = put("key", body, expect);
            socket.write_all(request.as_bytes()).await.unwrap();
            let answer = one_answer(&mut socket).await;
            assert!(answer.contains("HTTP/1.1 200"), "{answer}");
            assert!(!answer.contains("connection: close"), "{answer}");
        }
        // An answer that nothing follows says no length of what would.
        let request = format!(
            "GET /bucket/key HTTP/1.1\r\nhost: {HOST}\r\n{}\r\n",
            headers_of(
                &ask("GET", "/bucket/key")
                    .header("if-none-match", "*")
                    .signed(&world.admin)
            )
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let answer = one_answer(&mut socket).await;
        assert!(answer.contains("HTTP/1.1 304"), "{answer}");
        assert!(
            !answer.contains("content-length") && !answer.contains("transfer-encoding"),
            "{answer}"
        );
        let request = put("key", "", "expect: 100-continue\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
        assert!(rest.contains("connection: close"), "{rest}");
        stop.cancel();
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        tokio::join!(served, talk)
    })
    .await
    .expect("the server closes the connection");
}

fn headers_of(ask: &Ask) -> String {
    let headers = ask.headers.iter();
    headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect()
}

/// The head of the final answer, whose body is empty.
async fn one_answer(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        socket.read_exact(&mut byte).await.unwrap();
        text.push(byte[0]);
        if text.ends_with(b"\r\n\r\n") {
            if text.starts_with(b"HTTP/1.1 100") {
                text.clear();
                continue;
            }
            return String::from_utf8(text).unwrap();
        }
    }
}

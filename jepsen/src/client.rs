//! A Redis client as bare as can be: what it sends and when it gave up is the test's business.

use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::s3;

/// A reply, as far as the workloads tell replies apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Text(String),
    Integer(i64),
    List(Vec<Reply>),
    Error(String),
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing was sent.
    Connect(std::io::Error),
    /// It was sent; what became of it is not known.
    Broken(std::io::Error),
    /// No reply for so long.
    Silent(Duration),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::Silent(patience) => write!(f, "no answer for {patience:?}"),
        }
    }
}

pub(crate) struct Client {
    socket: TcpStream,
    input: BytesMut,
    /// A connection to the same node's S3 port, where one is needed.
    pub(crate) s3: Option<s3::Connection>,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self, Failed> {
        let connecting = TcpStream::connect((address, PORT));
        let socket = tokio::time::timeout(Duration::from_secs(2), connecting)
            .await
            .map_err(|_| Failed::Connect(std::io::ErrorKind::TimedOut.into()))?
            .map_err(Failed::Connect)?;
        socket.set_nodelay(true).map_err(Failed::Connect)?;
        Ok(Self {
            socket,
            input: BytesMut::new(),
            s3: None,
        })
    }

    /// Sends one command and waits for its reply, `patience` at the most.
    pub(crate) async fn call(
        &mut self,
        args: &[&str],
        patience: Duration,
    ) -> Result<Reply, Failed> {
        let mut replies = self.pipeline(&[args.to_vec()], patience).await?;
        replies
            .pop()
            .ok_or_else(|| Failed::Broken(std::io::ErrorKind::InvalidData.into()))
    }

    /// Sends commands in one go and waits for all their replies, `patience` at the most.
    pub(crate) async fn pipeline(
        &mut self,
        commands: &[Vec<&str>],
        patience: Duration,
    ) -> Result<Vec<Reply>, Failed> {
        let mut out = String::new();
        for args in commands {
            out += &format!("*{}\r\n", args.len());
            for arg in args {
                out += &format!("${}\r\n{arg}\r\n", arg.len());
            }
        }
        let began = Instant::now();
        let sent = tokio::time::timeout(patience, self.socket.write_all(out.as_bytes()));
        sent.await
            .map_err(|_| Failed::Silent(patience))?
            .map_err(Failed::Broken)?;
        let mut replies = Vec::with_capacity(commands.len());
        loop {
            let mut at = 0;
            while replies.len() < commands.len()
                && let Some(reply) = parse(&self.input, &mut at)
            {
                self.input.advance(at);
                at = 0;
                replies.push(reply);
            }
            if replies.len() == commands.len() {
                return Ok(replies);
            }
            let left = patience.saturating_sub(began.elapsed());
            match tokio::time::timeout(left, self.socket.read_buf(&mut self.input)).await {
                Err(_) => return Err(Failed::Silent(patience)),
                Ok(Err(error)) => return Err(Failed::Broken(error)),
                Ok(Ok(0)) => {
                    return Err(Failed::Broken(std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(Ok(_)) => {}
            }
        }
    }
}

/// Ports of every node.
pub(crate) const PORT: u16 = 6379;
pub(crate) const ADMIN_PORT: u16 = 9001;

fn parse(input: &[u8], at: &mut usize) -> Option<Reply> {
    let rest = &input[*at..];
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (kind, line) = (
        *rest.first()?,
        String::from_utf8_lossy(&rest[1..end]).into_owned(),
    );
    *at += end + 2;
    Some(match kind {
        b'+' => Reply::Text(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(line.parse().ok()?),
        b'_' => Reply::Nil,
        b'$' => match usize::try_from(line.parse::<i64>().ok()?) {
            Err(_) => Reply::Nil,
            Ok(length) => {
                let text = input.get(*at..*at + length + 2)?;
                *at += length + 2;
                Reply::Text(String::from_utf8_lossy(&text[..length]).into_owned())
            }
        },
        b'*' => match usize::try_from(line.parse::<i64>().ok()?) {
            Err(_) => Reply::Nil,
            Ok(count) => Reply::List(
                (0..count)
                    .map(|_| parse(input, at))
                    .collect::<Option<_>>()?,
            ),
        },
        _ => Reply::Error(format!("unreadable reply {line}")),
    })
}

/// `GET path` on a node's HTTP port: the status and the body.
pub(crate) async fn http_get(
    address: &str,
    path: &str,
    patience: Duration,
) -> Result<(u16, String), Failed> {
    let ask = async {
        let mut socket = TcpStream::connect((address, ADMIN_PORT))
            .await
            .map_err(Failed::Connect)?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket
            .write_all(request.as_bytes())
            .await
            .map_err(Failed::Broken)?;
        let mut answer = Vec::new();
        socket
            .read_to_end(&mut answer)
            .await
            .map_err(Failed::Broken)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        let body = answer
            .split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned());
        Ok((status, body))
    };
    // Dropping the future closes the connection: the prober hangs up.
    tokio::time::timeout(patience, ask)
        .await
        .unwrap_or(Err(Failed::Silent(patience)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_only_when_it_is_whole() {
        let whole = b"*2\r\n$1\r\na\r\n:7\r\n";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut], &mut 0), None);
        }
        let mut at = 0;
        let list = Reply::List(vec![Reply::Text("a".into()), Reply::Integer(7)]);
        assert_eq!(parse(whole, &mut at), Some(list));
        assert_eq!(at, whole.len());
    }
}

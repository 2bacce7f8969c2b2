//! A bare HTTP/1.1 client: one request after the other on a connection that stays open.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub struct Client {
    tcp: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("the server accepts");
        tcp.set_nodelay(true).expect("a socket option");
        Self { tcp, buffer: vec![0; 4096] }
    }

    /// Posts a body and insists on 200.
    pub async fn post(&mut self, path: &str, body: &[u8]) {
        let mut request = format!("POST {path} HTTP/1.1\r\nHost: leadfold\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        self.tcp.write_all(&request).await.expect("a request");
        let mut have = 0;
        loop {
            have += match self.tcp.read(&mut self.buffer[have..]).await.expect("an answer") {
                0 => panic!("the server hung up"),
                read => read,
            };
            let answer = &self.buffer[..have];
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = std::str::from_utf8(&answer[..end]).expect("headers");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|length| length.parse::<usize>().ok());
                if have >= end + 4 + length.expect("a length") {
                    assert!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
                    return;
                }
            }
        }
    }
}

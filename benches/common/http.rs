//! A bare HTTP/1.1 client: one request after the other on a connection that stays open.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole POST request.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: leadfold\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// One connection.
pub struct Client {
    tcp: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("the server accepts");
        tcp.set_nodelay(true).expect("a socket option");
        Self { tcp, buffer: vec![0; 4096] }
    }

    /// Sends a request and insists on 200.
    pub async fn send(&mut self, request: &[u8]) {
        self.tcp.write_all(request).await.expect("a request");
        let mut have = 0;
        loop {
            have += match self.tcp.read(&mut self.buffer[have..]).await.expect("an answer") {
                0 => panic!("the server hung up"),
                read => read,
            };
            if whole(&self.buffer[..have]) {
                return;
            }
        }
    }
}

fn whole(answer: &[u8]) -> bool {
    let text = std::str::from_utf8(answer).expect("text");
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    assert!(head.starts_with("HTTP/1.1 200"), "{text}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    body.len() >= length.parse().expect("a length")
}

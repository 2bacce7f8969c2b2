//! HTTP/1.1 byte by byte, as no client library sends it.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// A connection.
pub struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
    /// The last request was HEAD: its answer has no body, whatever its headers say.
    is_head: bool,
}

/// An answer.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    /// The value of a header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default()
    }

    /// Whether the connection ends after it.
    pub fn is_last(&self) -> bool {
        self.header("connection") == "close"
    }

    /// The words of a refusal, which must be one line of JSON.
    #[track_caller]
    pub fn error(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        assert!(self.body.ends_with('\n') && self.body.matches('\n').count() == 1, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        body["error"].as_str().filter(|error| !error.is_empty()).unwrap_or_else(|| panic!("no words: {self:?}")).to_owned()
    }
}

impl Raw {
    pub async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        // What is sent is on its way, even if the connection is reset then.
        stream.set_nodelay(true).expect("an option of the socket");
        Self { stream, read: Vec::new(), is_head: false }
    }

    /// Sends what the peer still takes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.is_head = bytes.as_ref().starts_with(b"HEAD ");
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Closes the sending half.
    pub async fn close_half(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("an option of the socket");
    }

    /// The next answer, interim ones left out; `None`: the connection ended instead.
    pub async fn try_answer(&mut self) -> Option<RawAnswer> {
        loop {
            let answer = timeout(PATIENCE, self.next_answer()).await.expect("an answer, or an end, in time")?;
            if answer.status >= 200 {
                return Some(answer);
            }
        }
    }

    /// The next answer, interim ones left out.
    pub async fn answer(&mut self) -> RawAnswer {
        self.try_answer().await.expect("an answer")
    }

    /// Sends a request and returns its answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> RawAnswer {
        self.send(request).await;
        self.answer().await
    }

    /// Whether the peer has closed, or does so within some time. What it sends meanwhile is dropped.
    pub async fn ends_within(&mut self, time: Duration) -> bool {
        let end = async { while self.fill().await {} };
        timeout(time, end).await.is_ok()
    }

    async fn next_answer(&mut self) -> Option<RawAnswer> {
        let end = loop {
            match self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.fill().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_lowercase();
        self.read.drain(..end);
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
        let mut answer = RawAnswer { status, head, body: String::new() };
        let length = answer.header("content-length").parse().ok().filter(|_| !self.is_head).unwrap_or(0);
        while self.read.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        answer.body = String::from_utf8_lossy(&self.read[..length]).into_owned();
        self.read.drain(..length);
        Some(answer)
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(count @ 1..) => {
                self.read.extend_from_slice(&chunk[..count]);
                true
            }
            _ => false,
        }
    }
}

//! An HTTP/2 peer that does what no gRPC library would.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::support::PATIENCE;

/// One connection.
pub struct Peer {
    send: SendRequest<Bytes>,
    address: String,
}

/// A call that was begun. Dropped, it is cancelled.
pub struct Call {
    pub body: SendStream<Bytes>,
    answer: ResponseFuture,
}

/// What came of a call.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    pub headers: HeaderMap,
    /// It is read when somebody does.
    pub body: RecvStream,
}

impl Peer {
    /// Connects. The server may send so much of each answer before it is read.
    pub async fn connect(address: &str, window: u32) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
        let (send, connection) = builder.handshake::<_, Bytes>(tcp).await.expect("a handshake");
        tokio::spawn(async move {
            // That it is ended is what some tests are about.
            let _ = connection.await;
        });
        Self { send, address: address.to_owned() }
    }

    /// Sends the headers of a call.
    pub async fn begin(&self, path: &str, headers: &[(&str, &str)]) -> Call {
        let mut request = Request::post(format!("http://{}{path}", self.address)).header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        let mut send = tokio::time::timeout(PATIENCE, self.send.clone().ready()).await.expect("in time").expect("the connection lives");
        let (answer, body) = send.send_request(request.body(()).expect("a request"), false).expect("it is sent");
        Call { body, answer }
    }

    /// Sends a whole call.
    pub async fn call(&self, path: &str, message: &impl prost::Message, headers: &[(&str, &str)]) -> Call {
        let mut call = self.begin(path, headers).await;
        call.send(framed(message), true);
        call
    }
}

impl Call {
    /// Sends some of the request's body. A server that has answered already may have closed the stream: the answer tells.
    pub fn send(&mut self, bytes: impl Into<Bytes>, is_end: bool) {
        let _ = self.body.send_data(bytes.into(), is_end);
    }

    /// The answer, once it begins.
    pub async fn answer(self) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, self.answer).await.expect("an answer in time");
        Answer::of(answer.expect("an answer"))
    }

    /// The answer, if it begins in time; the call goes on otherwise.
    pub async fn answer_by(&mut self, deadline: tokio::time::Instant) -> Option<Answer> {
        tokio::time::timeout_at(deadline, &mut self.answer).await.ok().map(|answer| Answer::of(answer.expect("an answer")))
    }
}

impl Answer {
    fn of(answer: Response<RecvStream>) -> Self {
        let (parts, body) = answer.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// gRPC's status, where it is in the headers.
    pub fn grpc_status(&self) -> Option<i32> {
        self.headers.get("grpc-status")?.to_str().ok()?.parse().ok()
    }

    pub fn grpc_message(&self) -> String {
        self.headers.get("grpc-message").map(|message| message.to_str().expect("text").replace("%20", " ")).unwrap_or_default()
    }

    /// Reads it to its end: its bytes and gRPC's status.
    pub async fn read(mut self) -> (Vec<u8>, Option<i32>) {
        let all = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = self.body.data().await {
                let chunk = chunk.expect("no error");
                self.body.flow_control().release_capacity(chunk.len()).expect("it was received");
                bytes.extend_from_slice(&chunk);
            }
            let trailers = self.body.trailers().await.expect("no error");
            let status = trailers.and_then(|trailers| trailers.get("grpc-status")?.to_str().ok()?.parse().ok());
            (bytes, status.or(self.grpc_status()))
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the end of the answer in time")
    }
}

/// A message as gRPC frames it.
pub fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], &length[..], &message].concat()
}

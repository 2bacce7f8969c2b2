//! A bare gRPC client on h2: costs little, so that what is measured is the server.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use tokio::net::TcpStream;

/// One connection.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("the server accepts");
        tcp.set_nodelay(true).expect("a socket option");
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false).initial_window_size(1 << 20).initial_connection_window_size(1 << 30).max_send_buffer_size(1 << 20);
        let (send, connection) = builder.handshake(tcp).await.expect("an HTTP/2 handshake");
        tokio::spawn(connection);
        Self { send }
    }

    /// Sends a request and returns the answer's body.
    pub async fn call(&self, path: &str, message: &impl Message) -> RecvStream {
        let mut send = self.send.clone().ready().await.expect("room for a stream");
        let request = Request::post(format!("http://leadfold{path}")).header("content-type", "application/grpc").header("te", "trailers");
        let (response, mut body) = send.send_request(request.body(()).expect("a request"), false).expect("a stream");
        body.send_data(framed(message), true).expect("a body");
        let response = response.await.expect("an answer");
        assert!(response.headers().get("grpc-status").is_none_or(|status| status == "0"), "{:?}", response.headers());
        response.into_body()
    }

    /// Sends a request and reads one message whole.
    pub async fn unary(&self, path: &str, message: &impl Message) -> usize {
        let mut body = self.call(path, message).await;
        let length = next(&mut body).await;
        // A stream that is dropped before its end is a reset, of which peers bear only so many.
        let trailers = body.trailers().await.expect("a sound stream");
        assert!(trailers.is_some_and(|trailers| trailers.get("grpc-status").is_some_and(|status| status == "0")), "a failure");
        length
    }
}

fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut frame).expect("room");
    frame.freeze()
}

/// Reads the next message, and returns its length.
pub async fn next(body: &mut RecvStream) -> usize {
    let (mut have, mut want) = (0, 5);
    let mut header = BytesMut::new();
    while have < want {
        let chunk = body.data().await.expect("a message").expect("a sound stream");
        body.flow_control().release_capacity(chunk.len()).expect("flow control");
        have += chunk.len();
        if header.len() < 5 {
            header.extend_from_slice(&chunk[..chunk.len().min(5)]);
        }
        if header.len() >= 5 {
            want = 5 + u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        }
    }
    want
}

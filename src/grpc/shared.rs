//! Streams whose messages are shared down to the HTTP/2 frame.
//!
//! tonic copies every message into a buffer of its stream, and keeps the buffer. Here the frames are the bytes that
//! were encoded once for all streams: tonic answers with no body, and the stream takes its place (`body.rs`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use futures::stream::Empty;
use http::{HeaderMap, Response};
use prost::Message;
use tonic::Status;

use super::observe::Life;
use super::wire::Encoded;

/// Framed messages. The error is the status that the stream ends with; one without would end with `OK`.
pub(super) type FrameStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
/// What tonic is told to send: nothing.
pub(super) type NoMessages = Empty<Result<Encoded, Status>>;

/// A message behind its length, as gRPC frames it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// Rides on an answer to where its body is exchanged. Extensions are cloned, a stream is not.
#[derive(Clone)]
struct Rider(Arc<Mutex<Option<(FrameStream, Life)>>>);

/// An answer of this rpc that will have this stream as its body.
pub(super) fn response<T>(rpc: &'static str, stream: FrameStream) -> tonic::Response<Empty<Result<T, Status>>> {
    let mut response = tonic::Response::new(futures::stream::empty());
    response.extensions_mut().insert(Rider(Arc::new(Mutex::new(Some((stream, Life::new(rpc)))))));
    response
}

/// The stream that is to be the body of an answer, if one was made for it.
pub(super) fn take_stream<B>(response: &mut Response<B>) -> Option<(FrameStream, Life)> {
    let Rider(stream) = response.extensions_mut().remove()?;
    stream.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// How a status ends a stream.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if let Err(instead) = status.add_header(&mut trailers) {
        // Details that no header can hold: the code and the words will do.
        trailers.clear();
        let _ = Status::new(instead.code(), instead.message()).add_header(&mut trailers);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    #[test]
    fn a_frame_is_a_flag_a_length_and_the_message() {
        let message = api::WatchLeadResponse { event: Some(api::watch_lead_response::Event::Heartbeat(api::Heartbeat { version: 7 })) };
        let frame = framed(&message);
        assert_eq!(frame[..5], [0, 0, 0, 0, 4]);
        assert_eq!(frame[5..], message.encode_to_vec());
    }
}

//! Bodies of `application/grpc-web-text`: base64, which may come in parts that were padded one by one. tonic-web takes
//! only one part.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body::Frame;

/// A body that is decoded as it comes.
pub(super) struct Base64Body {
    inner: Body,
    /// What is not decoded yet: less than four characters.
    rest: BytesMut,
}

impl Base64Body {
    pub(super) fn new(inner: Body) -> Self {
        Self { inner, rest: BytesMut::new() }
    }

    /// Decodes what is whole. Four characters stand alone: padding ends a part, and the next one begins behind it.
    fn decode(&mut self, chunk: &[u8]) -> Result<Bytes, axum::Error> {
        self.rest.extend_from_slice(chunk);
        let whole = self.rest.split_to(self.rest.len() / 4 * 4);
        let mut decoded = Vec::with_capacity(whole.len() / 4 * 3);
        let mut begin = 0;
        while begin < whole.len() {
            let padding = whole[begin..].iter().position(|byte| *byte == b'=');
            let end = padding.map_or(whole.len(), |padding| begin + padding / 4 * 4 + 4);
            STANDARD.decode_vec(&whole[begin..end], &mut decoded).map_err(axum::Error::new)?;
            begin = end;
        }
        Ok(decoded.into())
    }
}

impl http_body::Body for Base64Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => match self.decode(&chunk) {
                        Ok(decoded) if decoded.is_empty() => {}
                        decoded => return Poll::Ready(Some(decoded.map(Frame::data))),
                    },
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                None if !self.rest.is_empty() => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(axum::Error::new("the base64 ends within its last four characters"))));
                }
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    async fn decoded(chunks: &[&'static str]) -> Option<Vec<u8>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes()))).collect();
        let body = Base64Body::new(Body::from_stream(stream::iter(chunks)));
        Some(body.collect().await.ok()?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn parts_are_joined_wherever_they_are_cut_and_padded() {
        for chunks in
            [&["AAECAwQF"][..], &["AA==AQ==AgMEBQ=="], &["A", "A=", "=A", "QIDBA==B", "Q=="], &["AAEC", "", "AwQF"], &["AAE=AgMEBQ=="]]
        {
            assert_eq!(decoded(chunks).await, Some(vec![0, 1, 2, 3, 4, 5]), "{chunks:?}");
        }
        assert_eq!(decoded(&[]).await, Some(vec![]));
        for broken in ["AAE", "A===", "====", "A=AA", "AA=A", "AAE!", "AAE_"] {
            assert_eq!(decoded(&[broken]).await, None, "{broken}");
        }
    }
}

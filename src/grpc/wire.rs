//! Messages that are encoded already, and a codec with small buffers.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType};
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// What tonic's buffers start with (it would take 8 KiB a stream), and when it hands them on.
const BUFFER_BYTES: usize = 512;
const YIELD_BYTES: usize = 32 * 1024;

/// A message as bytes, encoded once and shared by all who get it.
#[derive(Clone, Debug, Default)]
pub struct Encoded(pub Bytes);

impl Encoded {
    /// Fields that are encoded already, and the rest of their message.
    pub(super) fn with<M: prost::Message>(mut fields: BytesMut, rest: &M) -> Self {
        fields.reserve(rest.encoded_len());
        // There is room.
        let _ = rest.encode(&mut fields);
        Self(fields.freeze())
    }
}

impl prost::Message for Encoded {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(&mut self, _: u32, _: WireType, _: &mut impl Buf, _: DecodeContext) -> Result<(), DecodeError> {
        // Only ever sent. Nothing decodes it, and there is no field that it could be put into.
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// prost's codec with buffers that fit 10,000 idle streams.
#[derive(Debug)]
pub struct SmallBufferCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBufferCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBufferCodec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api;

    #[test]
    fn encoded_is_byte_for_byte_what_prost_would_send() {
        let message = api::WatchLeadResponse { event: Some(api::watch_lead_response::Event::Heartbeat(api::Heartbeat { version: 7 })) };
        let encoded = Encoded(message.encode_to_vec().into());
        assert_eq!(encoded.encode_to_vec(), message.encode_to_vec());
        assert_eq!(encoded.encode_length_delimited_to_vec(), message.encode_length_delimited_to_vec());
    }
}

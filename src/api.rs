//! The API, generated from `proto/`: messages, client and server.

#![allow(missing_docs, clippy::all, clippy::pedantic)] // generated; its documentation is in the proto files

tonic::include_proto!("leadfold.v1");

/// The descriptors of the API and of all that it imports, for reflection and for JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

//! Compiles the protos without protoc, and writes down when it was built.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const PROTOS: [&str; 2] = ["leadfold/v1/lead_service.proto", "leadfold/v1/dead_letter_service.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rustc-env=LEADFOLD_BUILT_AT={}", built_at()?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // The compiler's own encoding: going through prost-types would drop options and comments from reflection.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure().build_server(false).compile_fds(compiler.file_descriptor_set())?;

    // The server takes messages with leads as bytes, encoded once for all who get them, and buffers that suit small
    // messages: see src/grpc/wire.rs.
    let server = out.join("server");
    std::fs::create_dir_all(&server)?;
    let mut generator = tonic_prost_build::configure().build_client(false).extern_path(".leadfold.v1", "crate::api");
    for message in ["GetLead", "BatchGetLeads", "ListLeads", "WatchLead", "WatchLeads"] {
        generator = generator.extern_path(format!(".leadfold.v1.{message}Response"), "crate::grpc::wire::Encoded");
    }
    generator.codec_path("crate::grpc::wire::SmallBufferCodec").out_dir(server).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Seconds since the epoch: what `SOURCE_DATE_EPOCH` says, for builds that can be repeated, or else the present. This is
/// a lower bound of the present for `src/time/clock.rs`, so it need not be told anew at every build.
fn built_at() -> Result<u64, String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds.parse().map_err(|_| format!("SOURCE_DATE_EPOCH is {seconds:?}: write seconds since 1970")),
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
    }
}

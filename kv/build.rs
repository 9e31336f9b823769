//! Generates the gRPC types from `proto/`, with a compiler written in Rust: no protoc needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = protox::compile(["proto/kv.proto", "proto/blobs.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(proto)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

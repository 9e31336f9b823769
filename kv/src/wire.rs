//! The generated messages and services of `proto/kv.proto` and `proto/blobs.proto`.

#![expect(
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

tonic::include_proto!("leadline.kv.v1");

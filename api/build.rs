//! Generates Rust from `proto/` with protox and tonic-prost-build: no protoc, nothing generated is committed.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

const FILES: [&str; 15] = [
    "portico/discovery/v1/discovery_service.proto",
    "portico/discovery/v1/resource.proto",
    "portico/discovery/v1/service.proto",
    "portico/discovery/v1/endpoint.proto",
    "portico/discovery/v1/node.proto",
    "portico/discovery/v1/settings.proto",
    "portico/discovery/v1/certificate.proto",
    "portico/discovery/v1/workload.proto",
    "portico/discovery/v1/namespace.proto",
    "portico/discovery/v1/slice.proto",
    "portico/discovery/v1/hop_keys.proto",
    "portico/node/v1/node_status_service.proto",
    "portico/health/v1/node_health_service.proto",
    "portico/inspect/v1/inspect_service.proto",
    "portico/echo/v1/echo_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../proto");
    println!("cargo:rerun-if-changed=third_party");
    let files = FILES.iter().chain(&["grpc/health/v1/health.proto"]);
    let descriptors = protox::compile(files, ["../proto", "third_party"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

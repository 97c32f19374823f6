//! Compiles the wire formats with a compiler written in Rust: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "externalscaler.proto",
        "ebb/v1/inference.proto",
        "ebb/v1/result.proto",
        "ebb/v1/status.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let target = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(target, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

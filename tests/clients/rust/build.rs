//! In: the service's definition. Out: its messages and client, in Rust. Needs no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../../../loadtest/proto";
    println!("cargo:rerun-if-changed={folder}/echo.proto");
    let files = protox::compile(["echo.proto"], [folder])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(files)?;
    Ok(())
}

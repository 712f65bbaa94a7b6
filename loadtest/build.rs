//! In: `proto/echo.proto`. Out: its messages and the server's trait, in Rust. Needs no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/echo.proto");
    let files = protox::compile(["proto/echo.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_transport(false).bytes(".").compile_fds(files)?;
    Ok(())
}

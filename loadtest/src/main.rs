//! The `loadtest` command: parses its arguments and leaves the rest to the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match loadtest::main(loadtest::args::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

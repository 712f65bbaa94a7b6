//! `sluice-agent`: reads the command line, does as told, and turns an error into a line and an exit status.

use std::process::ExitCode;

use clap::Parser;
use sluice_agent::config::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(config) => sluice_agent::run::run(&config),
        Command::Check(config) => match sluice_agent::check::run(&config) {
            Ok(true) => Ok(()),
            // What failed is said already.
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Command::Status(config) => sluice_agent::look::status(&config),
        Command::Top(config) => sluice_agent::look::top(&config),
        Command::Tap(config) => sluice_agent::look::tap(&config),
        Command::LogLevel(config) => sluice_agent::look::log_level(&config),
        Command::Maps(config) => sluice_agent::look::maps(&config),
        Command::Version => {
            println!("sluice-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        // Before the log is there, or where it is off.
        Err(error) => {
            eprintln!("sluice-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! Peers that do harm, as processes for pods of a simulated node: `client ATTACK IP:PORT SECONDS`, `server HARM PORT`; and
//! `tap PORT BEHIND`, which counts what a server before which it stands is sent. For the tests of the agent's bounds.

mod client;
mod frames;
mod server;
mod tap;

use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "abuser client ATTACK IP:PORT SECONDS | server HARM PORT | tap PORT BEHIND";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("abuser: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("abuser: cannot make sense of {arguments:?}; {USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Option<std::io::Result<()>> {
    match arguments {
        ["client", attack, target, seconds] => {
            let end = Instant::now() + Duration::from_secs_f64(seconds.parse().ok()?);
            client::run(attack, target.parse().ok()?, end).map(Ok)
        }
        ["server", harm, port] => server::run(harm, port.parse().ok()?),
        ["tap", port, behind] => Some(tap::run(port.parse().ok()?, behind.parse().ok()?)),
        _ => None,
    }
}

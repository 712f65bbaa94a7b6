//! A gRPC echo server (`server`), a load generator (`run`), a comparison of several targets under the same load
//! (`compare`), and the same while servers misbehave (`scenarios`). The server is tonic over hyper; the client speaks gRPC straight over the `h2` crate, because it has to
//! outrun what it measures. Knows nothing of the agent.

pub mod args;
pub mod call;
pub mod code;
pub mod compare;
pub mod connection;
mod html;
mod html_chart;
mod pace;
mod progress;
pub mod report;
pub mod run;
pub mod scenarios;
pub mod server;
pub mod stats;
mod table;
pub mod units;

use std::process::ExitCode;

use anyhow::Context;

/// The messages and the service of `proto/echo.proto`.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/sluice.loadtest.v1.rs"));
}

/// Carries out one command line. `Ok` holds the exit code of a command that was carried out.
pub fn main(cli: args::Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        args::Command::Server(args) => {
            let runtime = match args.threads {
                1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
                n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build(),
            };
            runtime.context("cannot start the runtime")?.block_on(server::main(args))
        }
        args::Command::Run(args) => single_thread()?.block_on(run::main(args)),
        args::Command::Compare(args) => single_thread()?.block_on(compare::main(args)),
        args::Command::Scenarios(args) => single_thread()?.block_on(scenarios::main(args)),
    }
}

/// One thread: a load generator that spreads over cores takes them from what it measures.
fn single_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

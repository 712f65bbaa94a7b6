//! Drives tonic with default settings through the scenarios of ../README.md.
//! In: the command line. Out: one JSON line per scenario, exit status. It knows nothing of sluice.

mod expect;
mod scenarios;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Map, Value, json};
use tonic::transport::{Channel, Endpoint};

use pb::echo_client::EchoClient;

mod pb {
    #![allow(unreachable_pub, reason = "generated")]
    tonic::include_proto!("sluice.loadtest.v1");
}

/// What a scenario saw besides its verdict.
type Facts = Map<String, Value>;

/// Drives tonic through the scenarios.
#[derive(Parser)]
struct Options {
    /// The client's view of its peer must be TARGET.
    #[arg(long)]
    expect_peer: bool,
    /// The server's view of the client must be this.
    #[arg(long, value_name = "IP")]
    expect_source: Option<IpAddr>,
    target: SocketAddr,
    /// All of them, if none is named.
    #[arg(value_parser = scenarios::NAMES)]
    scenario: Vec<String>,
}

/// What every scenario works with: one channel and what the command line expects of it.
struct Client {
    echo: EchoClient<Channel>,
    channel: Channel,
    options: Options,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let channel = Endpoint::from_shared(format!("http://{}", options.target))?.connect_lazy();
    let mut client = Client { echo: EchoClient::new(channel.clone()), channel, options };
    let mut chosen = client.options.scenario.clone();
    if chosen.is_empty() {
        chosen = scenarios::NAMES.map(str::to_owned).to_vec();
    }
    let mut failed = false;
    for name in chosen {
        let mut line = Facts::new();
        let outcome = scenarios::run(&name, &mut client, &mut line).await;
        failed |= outcome.is_err();
        line.insert("client".into(), json!("rust"));
        line.insert("scenario".into(), json!(name));
        line.insert("ok".into(), json!(outcome.is_ok()));
        line.insert("detail".into(), json!(outcome.unwrap_or_else(|error| format!("{error:#}"))));
        println!("{}", Value::Object(line));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

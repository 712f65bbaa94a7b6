//! What one bad peer costs the others: scripted attackers and endpoints that do harm beside a client that makes 500 calls a
//! second, through the same agent to the same endpoints; real BPF, real processes. Each test prints its figures: the calm
//! client's latency, the agent's memory and CPU, and what the endpoints saw. Nothing is asserted about times.
//! Needs root, `sluice-agent` and `loadtest` built. The long form, 30 s for each attack, all of it built for release: with
//! endpoints that are not, it is their slowness that the calm client's latency shows.
//! `cargo build --release -p sluice-agent -p loadtest`
//! `cargo test --release -p testbed --test abuse -- --ignored --nocapture --test-threads 1`.

mod attacks;
mod figures;
mod stage;

use std::time::Duration;

use anyhow::Result;

use attacks::{BY_CLIENTS, BY_ENDPOINTS};
use stage::{Attacker, Stage};

const SHORT: Duration = Duration::from_secs(2);

/// `$SLUICE_ABUSE_SECONDS`, or half a minute.
fn long() -> Duration {
    let said = std::env::var("SLUICE_ABUSE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(said.unwrap_or(30))
}

#[test]
fn a_bad_client_costs_another_pod_nothing() -> Result<()> {
    Stage::new(Attacker::InItsOwnPod)?.play(BY_CLIENTS, SHORT)
}

#[test]
fn a_bad_connection_costs_its_own_pods_other_connections_no_call() -> Result<()> {
    let some = |attack: &&attacks::Attack| attacks::AMONG_NEIGHBOURS.contains(&attack.name);
    Stage::new(Attacker::InTheCalmPod)?.play(BY_CLIENTS.iter().filter(some), SHORT)
}

#[test]
fn a_bad_endpoint_costs_other_services_nothing() -> Result<()> {
    Stage::new(Attacker::AnEndpoint)?.play(BY_ENDPOINTS, SHORT)
}

#[test]
#[ignore = "half a minute for each attack"]
fn a_bad_client_costs_another_pod_nothing_for_long() -> Result<()> {
    Stage::new(Attacker::InItsOwnPod)?.play(BY_CLIENTS, long())
}

/// Nothing is limited then: what is left is what the machine and the endpoints suffer by themselves, the measure for the others.
#[test]
#[ignore = "half a minute for each attack"]
fn what_a_bad_client_costs_another_pod_past_the_agent_for_long() -> Result<()> {
    Stage::new(Attacker::PastTheAgent)?.play(BY_CLIENTS, long())
}

#[test]
#[ignore = "half a minute for each attack"]
fn a_bad_connection_costs_its_own_pods_other_connections_no_call_for_long() -> Result<()> {
    Stage::new(Attacker::InTheCalmPod)?.play(BY_CLIENTS, long())
}

#[test]
#[ignore = "half a minute for each attack"]
fn a_bad_endpoint_costs_other_services_nothing_for_long() -> Result<()> {
    Stage::new(Attacker::AnEndpoint)?.play(BY_ENDPOINTS, long())
}

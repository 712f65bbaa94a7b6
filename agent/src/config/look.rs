//! The command lines of those who look at a running agent.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Output, address, filter, level_name};
use crate::duration;

/// Where the agent is, and how it is to be shown.
#[derive(Clone, Debug, Args)]
pub struct Look {
    /// The agent's own --admin: its local socket has that name. To be run on the same node, in the agent's network namespace; in a
    /// cluster: kubectl exec.
    #[arg(long, env = "SLUICE_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:9966", value_parser = address)]
    pub admin: SocketAddr,

    /// For people or for programs.
    #[arg(long, env = "SLUICE_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

/// What `sluice-agent status` is told.
#[derive(Clone, Debug, Args)]
pub struct Status {
    /// Only what has this in its name: a Service, a pod, an endpoint's address.
    pub name: Option<String>,

    /// Services that no pod of this node has dialled, too, and all endpoints of each.
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub look: Look,
}

/// What a line of `top` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Service,
    Endpoint,
    Method,
}

/// What `sluice-agent top` is told.
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// What a line stands for; keys change it.
    #[arg(long, value_name = "WHAT", default_value = "service")]
    pub by: By,

    /// How often it looks: a number with ms, s, m or h.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = every)]
    pub every: Duration,

    /// Ends after so many looks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    #[command(flatten)]
    pub look: Look,
}

/// What `sluice-agent tap` is told.
#[derive(Clone, Debug, Args)]
pub struct Tap {
    /// Only calls of this pod: namespace/name, or the name alone; * stands for anything.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,

    /// Only calls of this Service: namespace/name, with or without :port, or the name alone; * stands for anything.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,

    /// Only calls of this method: package.Service/Method, or one of both; * stands for anything.
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,

    /// Only calls that end like this: a grpc-status' name, `error` for all but OK, or an HTTP status' number.
    #[arg(long, value_name = "STATUS", value_parser = status)]
    pub status: Option<String>,

    /// Header fields of request and response, too; what may be a secret is hidden.
    #[arg(long)]
    pub metadata: bool,

    /// HTTP/2 frames, too.
    #[arg(long)]
    pub frames: bool,

    /// Ends after so many calls have ended.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    #[command(flatten)]
    pub look: Look,
}

/// What `sluice-agent log-level` is told.
#[derive(Clone, Debug, Args)]
pub struct LogLevel {
    /// What the kernel programs say from now on; from debug on one line for each verdict, which is much.
    #[arg(long, value_name = "LEVEL", value_parser = level_name())]
    pub bpf: Option<String>,

    /// What the agent says from now on, as for `run --log`.
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    pub log: Option<String>,

    #[command(flatten)]
    pub look: Look,
}

/// What `sluice-agent maps` is told.
#[derive(Clone, Debug, Args)]
pub struct Maps {
    /// Only this map: SERVICES, PODS, FLOWS, HEARTBEAT, COUNTERS or CONFIG.
    pub name: Option<String>,

    #[command(flatten)]
    pub look: Look,
}

fn every(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).filter(|time| *time >= Duration::from_millis(100));
    time.ok_or_else(|| "give a time of 100ms or more, such as 1s".into())
}

/// `error`, an HTTP status, or the name of a grpc-status in any spelling.
fn status(text: &str) -> Result<String, String> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    // RFC 9110 §15: three digits, the first of them 1 to 5.
    let is_http = text.len() == 3 && text.parse().is_ok_and(|code| (100..600).contains(&code));
    match () {
        () if text.eq_ignore_ascii_case("error") => Ok("error".to_owned()),
        () if is_http || crate::calls::CODES.contains(&&*name) => Ok(name),
        () => Err(format!("give error, an HTTP status, or one of {}", crate::calls::CODES.join(", "))),
    }
}

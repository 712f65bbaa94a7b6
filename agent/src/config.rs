//! The command line. In: arguments and `SLUICE_…` environment variables; out: what the agent is to do, every value
//! checked by itself. It touches nothing: whether a path or a privilege is there, the first use tells.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::duration;
use crate::intercept::MAX_WORKERS;
use crate::splitter::{LimitSetting, Limits, NAMED};

mod look;

pub use look::{By, LogLevel, Look, Maps, Status, Tap, Top};

/// Worker threads unless `--workers` says otherwise: one moves some hundred thousand calls a second, and a node's cores
/// belong to its pods.
const MAX_DEFAULT_WORKERS: usize = 4;

/// sluice spreads every gRPC call of this node's pods over the endpoints of the Service that was dialled.
#[derive(Debug, Parser)]
#[command(name = "sluice-agent", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node: redirect its pods' connections to gRPC Services and spread their streams.
    #[command(after_help = EXAMPLES, next_line_help = true)]
    Run(Run),
    /// Look at this node before sluice runs there, or when something does not work: each thing that sluice needs is tried, and each line
    /// that is not ok comes with its cure.
    #[command(after_help = CHECKS, next_line_help = true)]
    Check(Check),
    /// Show the agent of this node: Services, endpoints with their shares and health, pods, and why calls are not spread.
    #[command(
        next_line_help = true,
        after_help = "Examples:\n  sluice-agent status\n  sluice-agent status shop/cart --output json\n  kubectl -n sluice-system exec ds/sluice-agent -- sluice-agent status"
    )]
    Status(Status),
    /// Show what goes on now, by Service, endpoint or method: rates, success, latencies.
    #[command(
        next_line_help = true,
        after_help = "Keys: s, e, m what a line stands for; q the end.\n\nExamples:\n  sluice-agent top\n  sluice-agent top --by method --every 5s\n  sluice-agent top --count 1 --output json"
    )]
    Top(Top),
    /// Show calls while they happen: those that begin while it looks.
    #[command(
        next_line_help = true,
        after_help = "Examples:\n  sluice-agent tap --service shop/cart --status error\n  sluice-agent tap --pod shop/web-* --method shop.Cart/Add --metadata\n  sluice-agent tap --frames --count 1\n  sluice-agent tap --output json | jq ."
    )]
    Tap(Tap),
    /// Show or change what the agent and its kernel programs say in the log, while they run.
    #[command(
        next_line_help = true,
        after_help = "Examples:\n  sluice-agent log-level\n  sluice-agent log-level --bpf debug\n  sluice-agent log-level --log info,sluice_agent::pods=debug"
    )]
    LogLevel(LogLevel),
    /// Print the kernel's maps, decoded.
    #[command(next_line_help = true)]
    Maps(Maps),
    /// Print the version.
    Version,
}

const EXAMPLES: &str = "\
Every flag can be given as an environment variable; the flag wins.

SIGTERM and SIGINT stop the redirection at once, let open streams finish for --grace and exit with 0; a second
signal exits at once. The agent needs root's capabilities BPF, PERFMON, NET_ADMIN, SYS_ADMIN and SYS_PTRACE, and
in a pod hostPID: true.

Examples:
  sluice-agent run --source kube --node-name node-1
  sluice-agent run --source /etc/sluice/manifests
  sluice-agent run --source ./manifests --cgroup /sys/fs/cgroup/kubepods.slice --workers 2 --log debug
  SLUICE_SOURCE=./manifests SLUICE_GRACE=2m sluice-agent run";

const CHECKS: &str = "\
Without --source the node alone is looked at. Nothing stays behind on it, and no pod notices. The exit status is 0 if nothing failed (warnings are allowed), 1
otherwise.

Examples:
  sluice-agent check
  sluice-agent check --source kube --node-name $(hostname)
  sluice-agent check --source ./manifests --output json
  kubectl -n sluice-system exec ds/sluice-agent -- sluice-agent check";

/// Where the agent is and what it serves, the same for all commands.
#[derive(Clone, Debug, Args)]
pub struct Site {
    /// Where Services, EndpointSlices, Pods and Namespaces come from: `kube`, the cluster's API server; or a folder of
    /// Kubernetes YAML or JSON, read again whenever it changes.
    #[arg(long, env = "SLUICE_SOURCE", value_name = "kube|DIR", value_parser = source)]
    pub source: Option<SourceSpec>,

    /// The cgroup (v2) that holds this node's pods [default: the kubepods group that the agent itself is in, or else
    /// /sys/fs/cgroup/kubepods.slice or /sys/fs/cgroup/kubepods]
    #[arg(long, env = "SLUICE_CGROUP", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,

    /// This node's name in the cluster, in a pod the field spec.nodeName. `--source kube` needs it; with a folder the agent
    /// does not know its zone without it.
    #[arg(long, env = "SLUICE_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<Arc<str>>,

    /// How to reach the API server [default: $KUBECONFIG, ~/.kube/config, or the ServiceAccount of the agent's pod]
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where the objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    Kube,
    Dir(PathBuf),
}

/// What `sluice-agent check` is told.
#[derive(Clone, Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub site: Site,

    /// For people or for programs.
    #[arg(long, env = "SLUICE_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// What `sluice-agent run` is told.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("source", |source| source.required(true)))]
pub struct Run {
    #[command(flatten)]
    pub site: Site,

    /// Threads that move bytes, 1 to 256 [default: the number of cores, at most 4]
    #[arg(long, env = "SLUICE_WORKERS", value_name = "N", value_parser = workers)]
    pub workers: Option<NonZeroUsize>,

    /// Address and port of the admin pages: / for people, /livez, /readyz, /status.json, /metrics. The local socket that
    /// `status`, `top`, `tap` and others use has this name, too.
    #[arg(long, env = "SLUICE_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:9966", value_parser = address)]
    pub admin: SocketAddr,

    /// How long open streams may go on after SIGTERM: a number with ms, s, m or h.
    #[arg(long, env = "SLUICE_GRACE", value_name = "TIME", default_value = "30s", value_parser = grace)]
    pub grace: Duration,

    /// What a peer may do, several with commas.
    #[arg(long = "limit", env = "SLUICE_LIMIT", value_name = "NAME=VALUE", value_delimiter = ',', long_help = limits_help())]
    pub limits: Vec<LimitSetting>,

    /// What the kernel programs say; from debug on one line for each verdict, which is much.
    #[arg(long, env = "SLUICE_BPF_LOG", value_name = "LEVEL", default_value = "off", value_parser = level())]
    pub bpf_log: LevelFilter,

    /// Writes a line of JSON on standard output for this share of the calls: 0 for none, 1 for all.
    #[arg(long, env = "SLUICE_ACCESS_LOG", value_name = "SHARE", default_value = "0", value_parser = share)]
    pub access_log: f32,

    /// Sends a span for each call that carries a sampled W3C traceparent to this collector, by OTLP over HTTP with JSON.
    #[arg(long, env = "SLUICE_OTLP", value_name = "http://IP:PORT", value_parser = Collector::read)]
    pub otlp: Option<Collector>,

    /// What the agent says on standard error: off, error, warn, info, debug or trace, also for one part alone, such as
    /// `info,sluice_agent::pods=debug`.
    #[arg(long, env = "SLUICE_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    pub log: String,
}

impl Run {
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.workers.map_or_else(|| cores().min(MAX_DEFAULT_WORKERS), NonZeroUsize::get)
    }

    /// The limits of each pod; an error says what is wrong with them together.
    pub fn limits(&self) -> Result<Limits, String> {
        Limits::with(&self.limits).map_err(|error| format!("--limit: {error}"))
    }
}

/// Whether `run` would take what its environment variables say, though the command line asks for something else.
pub fn of_environment() -> Result<(), String> {
    match Cli::try_parse_from(["sluice-agent", "run", "--source=kube"]) {
        Ok(Cli { command: Command::Run(run) }) => run.limits().map(drop),
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            Err(text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned())
        }
    }
}

fn limits_help() -> String {
    let mut help = String::from("Sets a limit on what a peer may do; repeatable, or several with commas:\n");
    for named in NAMED {
        help += &format!("\n{:<21}{:>9}  {}", named.name, named.default_value(), named.what);
    }
    help
}

fn source(text: &str) -> Result<SourceSpec, String> {
    match text {
        "" => Err("empty; give kube, or a folder of Kubernetes YAML (./kube for one of that name)".into()),
        "kube" => Ok(SourceSpec::Kube),
        folder => Ok(SourceSpec::Dir(folder.into())),
    }
}

/// A Node's name goes into a field selector as it is.
fn node_name(text: &str) -> Result<Arc<str>, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if text.is_empty() || text.len() > 253 || !text.chars().all(valid) {
        return Err("give the name that `kubectl get nodes` shows".into());
    }
    Ok(text.into())
}

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() <= MAX_WORKERS as usize);
    number.ok_or_else(|| format!("give a number from 1 to {MAX_WORKERS}"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "give an IP address and a port, such as 127.0.0.1:9966 or [::]:9966".into())
}

fn level_name() -> PossibleValuesParser {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
}

fn level() -> impl TypedValueParser<Value = LevelFilter> {
    level_name().try_map(|level: String| level.parse::<LevelFilter>())
}

pub(crate) fn filter(text: &str) -> Result<String, String> {
    let cure = "give a level such as info, or PART=LEVEL, several with commas";
    // Taken for a part by the library, whose lines alone would be shown.
    if let Some(word) = text.split(',').find(|it| !it.contains(['=', '[']) && it.parse::<LevelFilter>().is_err()) {
        return Err(format!("{word} is no level; {cure}"));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; {cure}")),
    }
}

fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "give a number from 0 to 1, such as 0.01 for one call in a hundred".into())
}

fn grace(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| "give numbers with ms, s, m or h, up to 24h, such as 30s or 1m30s".into())
}

/// Where a collector is, as `--otlp` names it: `http://IP:PORT`. No name: the agent's image has no resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collector(pub SocketAddr);

impl Collector {
    /// From a flag's text.
    pub fn read(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse().ok());
        let cure = "give http://IP:PORT of a collector near the agent, such as http://127.0.0.1:4318; in a pod, its node's by status.hostIP";
        address.map(Self).ok_or_else(|| cure.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(arguments: &[&str]) -> Result<Run, String> {
        let all = ["sluice-agent", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Run(run) => Ok(run),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_an_environment_variable_too_and_the_help_says_so() {
        let mut cli = Cli::command();
        for command in ["run", "check"] {
            let command = cli.find_subcommand_mut(command).unwrap();
            let help = command.render_long_help().to_string();
            for flag in command.get_arguments().filter(|flag| flag.get_long().is_some_and(|long| long != "help")) {
                let variable = format!("SLUICE_{}", flag.get_long().unwrap().replace('-', "_").to_uppercase());
                assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(&*variable));
                assert!(help.contains(&format!("[env: {variable}=")), "{help}");
            }
        }
    }

    #[test]
    fn defaults_stand_where_nothing_is_said() {
        let run = run(&["--source", "/m"]).unwrap();
        assert_eq!((run.site.source, run.site.cgroup), (Some(SourceSpec::Dir("/m".into())), None));
        assert_eq!(run.admin, "127.0.0.1:9966".parse().unwrap());
        assert_eq!(run.grace, Duration::from_secs(30));
        assert_eq!((run.bpf_log, &*run.log), (LevelFilter::OFF, "info"));
    }

    #[test]
    fn the_cluster_is_a_source_and_a_folder_of_that_name_needs_its_path() {
        let source = |text: &str| run(&["--source", text]).unwrap().site.source.unwrap();
        assert_eq!(source("kube"), SourceSpec::Kube);
        assert_eq!(source("./kube"), SourceSpec::Dir("./kube".into()));
    }

    #[test]
    fn values_are_read_with_their_units() {
        let run = run(&["--source=/m", "--workers=2", "--grace=1500ms", "--bpf-log=debug", "--admin=[::1]:0"]).unwrap();
        assert_eq!((run.workers(), run.grace, run.bpf_log), (2, Duration::from_millis(1500), LevelFilter::DEBUG));
        assert!(grace("25h").unwrap_err().contains("1m30s"));
    }

    #[test]
    fn limits_are_set_one_by_one_or_with_commas() {
        let run = run(&["--source=/m", "--limit=pings=5,settings=6", "--limit", "resets=7"]).unwrap();
        let floods = run.limits().unwrap().floods;
        assert_eq!((floods.pings, floods.settings, floods.resets), (5, 6, 7));
        assert!(limits_help().contains("\npings                    20000  PING, a second"), "{}", limits_help());
    }

    #[test]
    fn limits_that_do_not_fit_each_other_are_refused_with_their_flag() {
        let error = run(&["--source=/m", "--limit=stream-window=2000000"]).unwrap().limits().unwrap_err();
        assert!(error.contains("--limit") && error.contains("connection-window"), "{error}");
    }

    #[test]
    fn a_bad_value_is_refused_with_flag_and_cure() {
        for (argument, cure) in [
            ("--source=", "give kube, or a folder"),
            ("--node-name=", "kubectl get nodes"),
            ("--node-name=a,b", "kubectl get nodes"),
            ("--workers=0", "from 1 to 256"),
            ("--workers=257", "from 1 to 256"),
            ("--admin=9966", "such as 127.0.0.1:9966"),
            ("--grace=30", "ms, s, m or h"),
            ("--grace=s", "ms, s, m or h"),
            ("--grace=99999999999999999999h", "ms, s, m or h"),
            ("--grace=25h", "up to 24h"),
            ("--limit=pongs=5", "there are resets, stream-errors"),
            ("--limit=pings=5,client-streams=0", "from 1 to 1000000"),
            ("--bpf-log=loud", "possible values: off"),
            ("--log=a=b=c", "such as info"),
            ("--log=blah", "such as info"),
        ] {
            let error = run(&["--source=/m", argument][usize::from(argument.starts_with("--source"))..]).unwrap_err();
            assert!(error.contains(argument.split('=').next().unwrap()), "{error}");
            assert!(error.contains(cure), "{error}");
        }
    }

    #[test]
    fn a_collector_has_an_address_and_a_port() {
        assert!(Collector::read("http://127.0.0.1:4318").is_ok() && Collector::read("http://[::1]:4318/").is_ok());
        for bad in ["127.0.0.1:4318", "https://1.2.3.4:1", "http://1.2.3.4", "http://otel:1", "http://1.2.3.4:1/v1"] {
            assert!(Collector::read(bad).unwrap_err().contains("http://127.0.0.1:4318"), "{bad}");
        }
    }

    #[test]
    fn a_missing_source_is_named() {
        let mut cli = Cli::command().mut_subcommand("run", |run| run.mut_arg("source", |source| source.env(None)));
        let error = cli.try_get_matches_from_mut(["sluice-agent", "run"]).unwrap_err().to_string();
        assert!(error.contains("--source <kube|DIR>"), "{error}");
        let mut cli =
            Cli::command().mut_subcommand("check", |check| check.mut_arg("source", |source| source.env(None)));
        cli.try_get_matches_from_mut(["sluice-agent", "check"]).unwrap();
    }
}

//! The command line. Pure: parses and checks, opens nothing.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::code::Code;
use crate::scenarios::Words;
use crate::server::ServerOptions;
use crate::stats::Endpoint;
use crate::units::{self, DelaySpan};

/// A gRPC echo server, a load generator, and a comparison of how targets spread the same load.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, after_help = "Durations are a number and a unit: 250us, 5ms, 1.5s, 2m, 1h.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Echo service until SIGTERM, then finish the running calls and exit 0
    #[command(after_help = SERVER_EXAMPLES)]
    Server(ServerArgs),
    /// Put load on one target and report shares per endpoint, latency and failures
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Put the same load on several targets in turn and show the results side by side
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Put the same load on several addresses of the same servers while one of these is slow, fails or vanishes
    #[command(after_help = SCENARIOS_EXAMPLES)]
    Scenarios(ScenariosArgs),
}

const SERVER_EXAMPLES: &str = "\
Every answer carries the headers x-sluice-pod (the pod's name) and x-sluice-endpoint (the address of the pod that the
connection was made to) and the trailer x-sluice-trailer: end.

--control takes one JSON object by PUT and shows by GET what is in force. What the object does not name is as usual:
  slow        --service-time is so many times as long
  fail        calls fail at once: share (1), code (\"unavailable\"), after_headers (false: Trailers-Only)
  black_hole  every packet for the Echo service is dropped before TCP sees it, and nothing new is sent
  for_ms      so long, then as usual again

Examples:
  loadtest server --pod backend-1
  loadtest server --listen 127.0.0.1:50051 --listen '[::1]:50051' --delay 5ms..20ms
  loadtest server --error-rate 0.01 --error-code resource-exhausted --max-connection-age 30s
  loadtest server --slots 4 --service-time 5ms --control '[::]:50052'
  curl -X PUT http://10.1.0.3:50052 -d '{\"slow\": 20, \"fail\": {\"share\": 0.1}, \"for_ms\": 5000}'";

const RUN_EXAMPLES: &str = "\
rpcs counts the calls that started and ended, failed ones included. Shares are of the calls that an endpoint answered.
Latency is of the calls that succeeded or ran into their deadline; with --rate it counts from the moment when the call
was due, so that a stalled target cannot hide its stall. An answer with the wrong number or content of messages is
counted as DATA_LOSS. Calls that were due and never started, because all streams were taken, are reported.
Exit code: 0 the load ran to its end, 1 it did not or more than --max-failed calls failed, 2 the command line is wrong.

Examples:
  loadtest run 10.96.0.10:50051 --rpcs 20000 --streams 20
  loadtest run echo:50051 --rate 2000 --duration 30s --connections 4 --streams 50 --reconnect
  loadtest run '[fd00::10]:50051' --kind bidi --messages 100 --size 1024 --json result.json";

const COMPARE_EXAMPLES: &str = "\
Examples:
  loadtest compare --rpcs 20000 --run kube-proxy=10.96.0.11:50051 --run sluice=10.96.0.10:50051
  loadtest compare --run before=echo:50051 --run after=echo:50051 --before after='systemctl start sluice' \\
      --expect 10.1.0.3:50051,10.1.0.4:50051 --json report.json --html report.html";

const SCENARIOS_EXAMPLES: &str = "\
Each scenario runs once through each --via, on connections of its own. Calls are made on a fixed schedule, however many
are open; latency counts from the moment when a call was due. The pod that is made bad is the first of --control that has
answered calls. A call that nobody answered while it was slow or in a black hole counts as its own.

  equal                  all pods are well
  slow                   one works 20 times as long on each call
  failing-trailers-only  one answers every call at once with UNAVAILABLE, as Trailers-Only
  failing-after-headers  the same, in trailers after response headers; --only failing means both
  black-hole             all packets to one are lost
  flapping               one fails, is well again, fails again, five seconds each
  roll-out               --hook roll-out=CMD replaces one endpoint each time; it finds its number in $SLUICE_STEP, and
                         may print the control addresses that are good from then on
  bursts                 for the first 200 ms of each second the load is five times as high
  streams                nine of ten open calls are streams of up to 30 s with a message a second

--hook before=CMD runs ahead of each run, with $SLUICE_SCENARIO and $SLUICE_VIA: it may start a proxy afresh, which then
remembers nothing of the run before.

Examples:
  loadtest scenarios --via kube-proxy=10.96.0.11:50051 --via sluice=10.96.0.10:50051 \\
      --control 10.1.0.3:50052,10.1.0.4:50052 --only slow,failing --seconds 10 --html report.html";

#[derive(Args, Debug)]
pub struct ServerArgs {
    /// Address to listen on; repeatable. [::] takes IPv4 too; port 0: the kernel's choice, printed on stdout
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:50051")]
    pub listen: Vec<SocketAddr>,
    /// Pod name in the answers [default: the host's name]
    #[arg(long, env = "POD_NAME", value_name = "NAME", value_parser = pod_name)]
    pub pod: Option<String>,
    /// Extra wait before each call's first answer: a duration or a span
    #[arg(long, value_name = "5ms[..20ms]", default_value = "0")]
    pub delay: DelaySpan,
    /// Share of the calls that fail, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub error_rate: f64,
    /// Status of the calls that --error-rate lets fail: a name or a number
    #[arg(long, value_name = "CODE", default_value = "unavailable", value_parser = error_code)]
    pub error_code: Code,
    /// Send GOAWAY on a connection of this age; its running calls finish
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub max_connection_age: Option<Duration>,
    /// Calls that a client may have open on one connection [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrent_streams: Option<u32>,
    /// How long running calls may take after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = units::duration)]
    pub grace: Duration,
    /// Calls that are worked on at a time, the others wait in order: with --service-time a capacity [default: no limit]
    #[arg(long, value_name = "N", value_parser = count(1_000_000), requires = "service_time")]
    pub slots: Option<usize>,
    /// How long each call is worked on before its first answer: a duration or a span
    #[arg(long, value_name = "5ms[..20ms]", default_value = "0")]
    pub service_time: DelaySpan,
    /// A test tool, off unless given: a second listener, plain HTTP, that changes how the server behaves while it runs
    #[arg(long, value_name = "IP:PORT")]
    pub control: Option<SocketAddr>,
    /// Threads that serve
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(1024))]
    pub threads: usize,
}

impl ServerArgs {
    pub(crate) fn options(&self) -> ServerOptions {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        ServerOptions {
            pod: self.pod.clone().unwrap_or_else(host),
            delay: self.delay,
            error_rate: self.error_rate,
            error_code: Some(self.error_code),
            max_connection_age: self.max_connection_age,
            max_concurrent_streams: self.max_concurrent_streams,
            slots: self.slots,
            service_time: self.service_time,
        }
    }
}

/// The four kinds of gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One message each way
    Unary,
    /// --messages up, one down
    ClientStream,
    /// One up, --messages down
    ServerStream,
    /// --messages each way, each sent when the one before is answered
    Bidi,
}

/// What load to make; the same for `run` and each run of `compare`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// TCP connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(100_000))]
    pub connections: usize,
    /// Calls open at a time on each connection
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = count(100_000))]
    pub streams: usize,
    /// End after so many calls [default: 10000, unless --duration is given]
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub rpcs: Option<NonZeroU64>,
    /// Start calls for so long
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// Calls per second, on a fixed schedule (open loop) [default: the next as soon as one ends]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// Kind of call
    #[arg(long, value_enum, default_value_t = Kind::Unary)]
    pub kind: Kind,
    /// Messages per call of the streaming kinds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub messages: u32,
    /// Payload bytes of each request message
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u32).range(..=64 << 20))]
    pub size: u32,
    /// Payload bytes of each response message; 0: as the request's
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=64 << 20))]
    pub response_size: u32,
    /// Deadline of each call; 0: none
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = units::duration)]
    pub timeout: Duration,
    /// Dial again after GOAWAY or a lost connection, as gRPC clients do; calls that never started go on the new one
    #[arg(long)]
    pub reconnect: bool,
    /// Endpoints that ought to answer; one that does not is listed with share 0
    #[arg(long, value_name = "IP:PORT,…", value_delimiter = ',', value_parser = endpoint)]
    pub expect: Vec<Endpoint>,
    /// Exit with 1 if more calls than this fail (in any one run)
    #[arg(long, value_name = "N")]
    pub max_failed: Option<u64>,
    /// Write the result as JSON to this file; -: to stdout, and the table to stderr
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// HOST:PORT of the target; IPv6 as [::1]:50051
    #[arg(value_parser = target)]
    pub target: String,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// A target and the name that the report gives it; twice or more, in the order of the runs
    #[arg(long = "run", value_name = "NAME=HOST:PORT", value_parser = named_target, required = true)]
    pub runs: Vec<Named>,
    /// Shell command to carry out before the run of that name
    #[arg(long, value_name = "NAME=CMD", value_parser = named_command)]
    pub before: Vec<Named>,
    /// Write the report as one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct ScenariosArgs {
    /// An address of the servers and the name that the report gives it; repeatable, in the order of the runs
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = named_target, required = true)]
    pub via: Vec<Named>,
    /// The control listeners of the servers behind every --via
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', value_parser = target, required = true)]
    pub control: Vec<String>,
    /// Scenarios to run, in their own order [default: all; roll-out if it has a hook]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub only: Vec<Words>,
    /// How long each run of a scenario lasts
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=3600))]
    pub seconds: u64,
    /// Calls per second in the mean [default: 60 % of what the servers can do, or 1000 where they have no --slots]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// TCP connections
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count(10_000))]
    pub connections: usize,
    /// Deadline of each call
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = positive_duration)]
    pub timeout: Duration,
    /// Shell command: roll-out, which replaces an endpoint, or before, which runs ahead of each run
    #[arg(long, value_name = "NAME=CMD", value_parser = named_command)]
    pub hook: Vec<Named>,
    /// Write the report as JSON to this file; -: to stdout, and the tables to stderr
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `NAME=VALUE` of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub value: String,
}

fn named(text: &str, example: &str) -> Result<Named, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() && !value.is_empty() => {
            Ok(Named { name: name.trim().to_owned(), value: value.to_owned() })
        }
        _ => Err(format!("write a name, \"=\" and the rest, as in {example}")),
    }
}

fn named_target(text: &str) -> Result<Named, String> {
    let named = named(text, "sluice=10.96.0.10:50051")?;
    target(&named.value)?;
    Ok(named)
}

fn named_command(text: &str) -> Result<Named, String> {
    named(text, "sluice='systemctl start sluice'")
}

fn target(text: &str) -> Result<String, String> {
    let is_target = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && !bare_v6 && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    match is_target && text.parse::<http::uri::Authority>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err("write HOST:PORT without a scheme, as in echo:50051, 10.96.0.10:50051 or [fd00::10]:50051".into()),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    match Endpoint::from(text.trim()) {
        address @ Endpoint::Address(_) => Ok(address),
        Endpoint::Name(_) => Err("write IP:PORT, as in 10.1.0.3:50051 or [fd00::3]:50051".into()),
    }
}

fn pod_name(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        true => Ok(text.to_owned()),
        false => Err("a pod's name is printable ASCII without spaces".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a share from 0 to 1: 0.01 is one call of a hundred".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "write calls per second from 0.001 to 10000000, without a unit".into())
}

fn error_code(text: &str) -> Result<Code, String> {
    match text.parse()? {
        Code::OK => Err("OK is no failure; write a name such as unavailable or a number from 1 to 16".into()),
        code => Ok(code),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err("must be longer than 0; leave the option away instead".into()),
        duration => Ok(duration),
    }
}

/// A number from 1 to `most`.
fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("write a whole number from 1 to {most}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn error(line: &str) -> String {
        Cli::try_parse_from(line.split(' ')).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_input_is_refused_with_its_cure() {
        assert!(error("loadtest run a:1 --duration 5").contains("5ms"));
        assert!(error("loadtest run a:1 --strems 5").contains("--streams"));
        assert!(error("loadtest run http://a:1").contains("HOST:PORT"));
        assert!(error("loadtest run ::1:50051").contains("[fd00::10]:50051"));
        assert!(error("loadtest run a:1 --rpcs 5 --duration 5s").contains("cannot be used with"));
        assert!(error("loadtest run a:1 --expect pod-a").contains("10.1.0.3:50051"));
        assert!(error("loadtest server --error-rate 2").contains("0 to 1"));
        assert!(error("loadtest server --error-code ok").contains("unavailable"));
        assert!(error("loadtest server --slots 4").contains("--service-time"));
        assert!(error("loadtest compare --run a:1").contains("sluice=10.96.0.10:50051"));
    }

    #[test]
    fn scenarios_need_servers_that_can_be_made_bad_and_names_that_are_known() {
        let scenarios = |rest: &str| error(&format!("loadtest scenarios --via a=h:1 {rest}"));
        assert!(scenarios("--seconds 10").contains("--control"));
        assert!(scenarios("--control h:2 --only slower").contains("black-hole"));
        assert!(scenarios("--control h:2 --seconds 1").contains("4..="));
        assert!(scenarios("--control h").contains("HOST:PORT"));
        assert!(error("loadtest scenarios --control h:2").contains("--via"));
    }

    #[test]
    fn a_comparison_is_read_in_the_order_of_its_runs() {
        let line = ["loadtest", "compare", "--run", "a=h:1", "--run", "b=[::1]:2", "--before", "b=x=1 y"];
        let Command::Compare(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not compare") };
        let names: Vec<_> = args.runs.iter().map(|run| (&*run.name, &*run.value)).collect();
        assert_eq!(names, [("a", "h:1"), ("b", "[::1]:2")]);
        assert_eq!(args.before[0], Named { name: "b".into(), value: "x=1 y".into() });
    }
}

//! Unmodified gRPC clients (tests/clients) on a simulated node with the agent on: through the ClusterIP every promise of
//! the Echo service holds as it does straight to a pod, calls spread over all endpoints, addresses are the true ones, and
//! `sluice-agent tap` shows each call as it ended.
//! Needs root, `sluice-agent` and `loadtest` built, and what tests/clients/README.md lists; fails without.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Agent, Node, Pod, Process, ServiceSpec, Tap, program, target_folder};

const PORT: u16 = 50051;
const ENDPOINTS: u64 = 3;
/// How many calls the scenario `unary_spread` makes.
const SPREAD_CALLS: u64 = 50;
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Seconds for all scenarios of one client. They take about 5; a client that waits for ever shall fail its test.
const CLIENT_ENDS_WITHIN: &str = "300";

#[test]
fn grpc_go_notices_nothing() {
    notices_nothing("go").unwrap();
}

#[test]
fn grpc_python_on_v4_mapped_sockets_notices_nothing() {
    notices_nothing("python").unwrap();
}

#[test]
fn grpc_node_notices_nothing() {
    notices_nothing("node").unwrap();
}

#[test]
fn grpc_java_on_v4_mapped_sockets_notices_nothing() {
    notices_nothing("java").unwrap();
}

#[test]
fn tonic_notices_nothing() {
    notices_nothing("rust").unwrap();
}

fn notices_nothing(language: &str) -> Result<()> {
    let program = testbed::set_up_client(language, &target_folder()?)?;
    let node = Node::new()?;
    let backends = (0..ENDPOINTS).map(|n| Backend::start(&node, n)).collect::<Result<Vec<_>>>()?;
    // In turn: the one policy whose shares are exact.
    let spec = ServiceSpec::grpc("echo", PORT).annotation("sluice.dev/load-balancer", "round-robin");
    let service = node.service(spec)?;
    for backend in &backends {
        service.add_endpoint(&backend.pod)?;
    }
    let pod = node.pod("client")?;
    let agent = node.agent().start()?;
    let client = Client { pod: &pod, program: &program };

    let (source4, source6) = (pod.ip4().into(), pod.ip6().into());
    let [first, ..] = &backends[..] else { unreachable!("there are {ENDPOINTS}") };
    let direct4 = client.run((first.pod.ip4(), PORT).into(), source4)?;
    let direct6 = client.run((first.pod.ip6(), PORT).into(), source6)?;
    let tap = Tap::open(&node, &agent, &["--output", "json", "--pod", "default/client"])?;
    let through4 = client.run(service.address4(), source4).with_context(|| log_of(&agent))?;
    let through6 = client.run(service.address6(), source6).with_context(|| log_of(&agent))?;

    tap_showed_each_call(language, &agent, &tap).with_context(|| log_of(&agent))?;

    let everyone4 = backends.iter().map(|backend| SocketAddr::from((backend.pod.ip4(), PORT)));
    let everyone6 = backends.iter().map(|backend| SocketAddr::from((backend.pod.ip6(), PORT)));
    through4.is_even_over(everyone4)?;
    through6.is_even_over(everyone6)?;
    for (through, direct) in [(&through4, &direct4), (&through6, &direct6)] {
        through.pods_are_even(&backends)?;
        // Nothing of the client's run straight to a pod looks different.
        assert_eq!(through.comparable(), direct.comparable(), "through the ClusterIP (left) and straight to a pod");
        direct.goes_only_to(&first.pod)?;
    }
    Ok(())
}

/// A pod with an Echo server.
struct Backend {
    pod: Pod,
    _server: Process,
}

impl Backend {
    fn start(node: &Node, number: u64) -> Result<Self> {
        let pod = node.pod(format!("echo-{number}"))?;
        let listen = format!("[::]:{PORT}");
        let server =
            pod.command(program("loadtest")?).args(["server", "--listen", &listen, "--pod", pod.name()]).spawn()?;
        pod.wait_listening(PORT, LISTENS_WITHIN)?;
        Ok(Self { pod, _server: server })
    }
}

fn log_of(agent: &Agent) -> String {
    format!("the agent's log:\n{}", agent.log().unwrap_or_else(|error| format!("{error:#}")))
}

/// With the status that the agent counted it under, within a second of its end; a busy machine may keep some for longer.
fn tap_showed_each_call(language: &str, agent: &Agent, tap: &Tap) -> Result<()> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    let (ends, shown) = loop {
        let mut ends = tap.events()?;
        ends.retain(|(_, event)| event["event"] == "end");
        let mut shown = BTreeMap::new();
        for (_, end) in &ends {
            *shown.entry(end["grpc_status"].as_str().context("a status")?.to_owned()).or_default() += 1;
        }
        let counted = counted(&agent.metrics()?)?;
        if shown == counted {
            break (ends, shown);
        }
        ensure!(Instant::now() < deadline, "tap showed {shown:?}, the agent counted {counted:?}");
        thread::sleep(Duration::from_millis(50));
    };
    ensure!(shown.len() > 1 && shown.contains_key("OK"), "calls that end well and others: {shown:?}");
    let took = ends.iter().map(|(read, end)| age(*read, end["time"].as_str().unwrap_or_default()));
    let mut took = took.collect::<Option<Vec<_>>>().context("times in RFC 3339")?;
    took.sort_unstable();
    let (usual, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{language}: tap showed {} calls, {usual} ms after their end, {longest} ms at most: {shown:?}",
        took.len()
    );
    ensure!(usual < 1000, "{took:?}");
    Ok(())
}

/// Calls that have ended, by status.
fn counted(metrics: &str) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("sluice_rpcs_total{")) {
        let (_, rest) = line.split_once("grpc_code=\"").context("a code")?;
        let (code, count) = rest.split_once("\"} ").context("a count")?;
        *counts.entry(code.to_owned()).or_default() += count.parse::<u64>()?;
    }
    Ok(counts)
}

/// Milliseconds since a time of the same day, or of the one before.
fn age(read: SystemTime, time: &str) -> Option<u64> {
    const DAY: u64 = 24 * 3600 * 1000;
    let (_, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let parts: Vec<u64> = clock.split([':', '.']).map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second, millis] = parts[..] else { return None };
    let then = ((hour * 60 + minute) * 60 + second) * 1000 + millis;
    let now = read.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis() as u64;
    Some((now % DAY + DAY - then) % DAY)
}

/// One client in its pod.
struct Client<'a> {
    pod: &'a Pod,
    program: &'a Path,
}

impl Client<'_> {
    /// All scenarios over one channel; an error if one fails, or if the client sees another peer than `target`, or
    /// the server another client than `source`.
    fn run(&self, target: SocketAddr, source: IpAddr) -> Result<Observed> {
        let output = self
            .pod
            .command("timeout")
            .arg(CLIENT_ENDS_WITHIN)
            .arg(self.program)
            .args(["--expect-peer", "--expect-source", &source.to_string(), &target.to_string()])
            .output()?;
        let lines = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "{} against {target}: {}\n{lines}{}",
            self.program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let mut scenarios = BTreeMap::new();
        for line in lines.lines() {
            let facts: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            ensure!(facts["ok"] == true, "{target}: {line}");
            scenarios.insert(facts["scenario"].as_str().context("a scenario's name")?.to_owned(), facts);
        }
        // As many as tests/clients/README.md lists.
        ensure!(scenarios.len() == 13, "{target}: only {:?} ran", scenarios.keys());
        let observed = Observed { scenarios };
        ensure!(observed.fact("peer", "peer").parse() == Ok(target), "{target}: the peer is another");
        ensure!(observed.fact("peer", "source").parse() == Ok(source), "{target}: the source is another");
        Ok(observed)
    }
}

/// What a client reported, by scenario.
struct Observed {
    scenarios: BTreeMap<String, Value>,
}

impl Observed {
    fn fact(&self, scenario: &str, name: &str) -> &str {
        self.scenarios[scenario][name].as_str().unwrap_or_default()
    }

    /// How often each key of a fact of `unary_spread` answered.
    fn spread(&self, fact: &str) -> Result<BTreeMap<String, u64>> {
        let counts = self.scenarios["unary_spread"][fact].as_object().with_context(|| format!("no {fact}"))?;
        counts.iter().map(|(key, n)| Ok((key.clone(), n.as_u64().context("a count")?))).collect()
    }

    fn is_even_over(&self, endpoints: impl Iterator<Item = SocketAddr>) -> Result<()> {
        even("endpoints", &self.spread("endpoints")?, endpoints.map(|it| it.to_string()))
    }

    fn pods_are_even(&self, backends: &[Backend]) -> Result<()> {
        even("pods", &self.spread("pods")?, backends.iter().map(|backend| backend.pod.name().to_owned()))
    }

    fn goes_only_to(&self, pod: &Pod) -> Result<()> {
        let pods = self.spread("pods")?;
        let only = BTreeMap::from([(pod.name().to_owned(), SPREAD_CALLS)]);
        ensure!(pods == only, "straight to {}: {pods:?} answered", pod.name());
        Ok(())
    }

    /// What must not depend on who answers: every scenario's account, and the metadata it saw.
    fn comparable(&self) -> BTreeMap<&str, [&Value; 3]> {
        self.scenarios
            .iter()
            .map(|(name, facts)| (name.as_str(), [&facts["detail"], &facts["headers"], &facts["trailers"]]))
            .collect()
    }
}

/// Each of `all` answered, nobody else did, and no two differ by more than one call.
fn even(what: &str, counts: &BTreeMap<String, u64>, all: impl Iterator<Item = String>) -> Result<()> {
    let share = SPREAD_CALLS / ENDPOINTS;
    let within_one = counts.values().all(|n| (share..=share + 1).contains(n));
    ensure!(
        counts.keys().cloned().collect::<Vec<_>>() == sorted(all) && within_one,
        "{what}: {counts:?} is not even within one call"
    );
    ensure!(counts.values().sum::<u64>() == SPREAD_CALLS, "{what}: {counts:?} are not {SPREAD_CALLS} calls");
    Ok(())
}

fn sorted(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

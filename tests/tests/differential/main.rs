//! The same generated calls (tests/recorder) once straight to a pod and once through the ClusterIP of a Service with two:
//! what the client heard and what the server heard must be the same, call by call, but for what `allowed` lists. The
//! seed is printed; `SLUICE_SEED` sets it. Needs root and `sluice-agent` built; fails without.

mod allowed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::{Agent, Node, Pod, Process, ServiceSpec};

const RECORDER: &str = env!("CARGO_BIN_EXE_recorder");
const PORT: u16 = 50051;
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// Seconds; 600 calls take a few.
const CLIENT_ENDS_WITHIN: &str = "3600";
/// What is under way to a server when the client has ended.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// Differences that are printed in full, one of each pattern and side.
const SHOWN: usize = 12;
/// The longest line of a record that is printed.
const LINE: usize = 1_000;

#[test]
fn calls_mean_the_same_through_sluice() {
    compare(600).unwrap();
}

#[test]
#[ignore = "some minutes"]
fn twenty_thousand_calls_mean_the_same_through_sluice() {
    compare(20_000).unwrap();
}

fn compare(shapes: u32) -> Result<()> {
    let seed = match std::env::var("SLUICE_SEED") {
        Ok(seed) => seed.parse().context("SLUICE_SEED is a number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    println!("SLUICE_SEED={seed}");
    let node = Node::new()?;
    let alone = Server::start(&node, seed, 1)?;
    let several = [Server::start(&node, seed, 2)?, Server::start(&node, seed, 3)?];
    // In turn, so that both have their part.
    let service =
        node.service(ServiceSpec::grpc("recorder", PORT).annotation("sluice.dev/load-balancer", "round-robin"))?;
    several.iter().try_for_each(|server| service.add_endpoint(&server.pod))?;
    let client = Client { pod: node.pod("client")?, seed, shapes };
    let agent = node.agent().start()?;

    let start = Instant::now();
    let direct = client.run((alone.pod.ip4(), PORT).into(), &node.folder().join("direct"))?;
    ensure!(redirected(&agent)? == 0, "straight to a pod, and redirected all the same");
    let between = start.elapsed();
    let through = client.run(service.address4(), &node.folder().join("through")).with_context(|| log_of(&agent))?;
    ensure!(redirected(&agent)? == 4, "not each of four connections was redirected");
    println!("{shapes} calls: {between:.1?} direct, {:.1?} through sluice", start.elapsed() - between);

    for server in &several {
        ensure!(!server.records()?.is_empty(), "{} had no call", server.pod.name());
    }
    let direct = Observed { server: arrived(&[&alone], &direct)?, client: direct };
    let through = Observed { server: arrived(&[&several[0], &several[1]], &through)?, client: through };
    judge(seed, shapes, &direct, &through).with_context(|| log_of(&agent))
}

/// What servers heard, when they have heard of all calls of the client's but those that race; or what there is by the end
/// of a generous time.
fn arrived(servers: &[&Server], client: &Records) -> Result<Records> {
    let deadline = Instant::now() + ARRIVES_WITHIN;
    loop {
        let mut all = Records::new();
        for server in servers {
            server.records()?.into_iter().for_each(|(number, records)| all.entry(number).or_default().extend(records));
        }
        let missing = |(number, made): (&u32, &Vec<Value>)| made[0]["racing"] == false && !all.contains_key(number);
        if !client.iter().any(missing) || Instant::now() > deadline {
            return Ok(all);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Records by the shape's number.
type Records = BTreeMap<u32, Vec<Value>>;

/// What both sides heard in one run.
struct Observed {
    client: Records,
    server: Records,
}

fn judge(seed: u64, shapes: u32, direct: &Observed, through: &Observed) -> Result<()> {
    let mut differences = Vec::new();
    let mut allowances: BTreeMap<&str, u32> = BTreeMap::new();
    for number in 0..shapes {
        let of = |records: &Records| records.get(&number).cloned().unwrap_or_default();
        let [direct_client, direct_server] = [of(&direct.client), of(&direct.server)];
        // The measure itself: each side has one record, and a whole one.
        for (side, records) in [("client", &direct_client), ("server", &direct_server)] {
            let whole = matches!(&records[..], [one] if is_whole(one));
            ensure!(
                whole,
                "direct, {side}, not one whole record but {}:\n{}{}",
                records.len(),
                show(seed, number)?,
                account(records)
            );
        }
        for (side, direct, through) in
            [("client", &direct_client, of(&through.client)), ("server", &direct_server, of(&through.server))]
        {
            match allowed::difference(side, &direct[0], &through) {
                allowed::Verdict::Same => {}
                allowed::Verdict::Allowed(reason) => *allowances.entry(reason).or_default() += 1,
                allowed::Verdict::Different => {
                    let pattern = direct[0]["pattern"].as_str().unwrap_or_default();
                    differences.push((number, pattern.to_owned(), side, direct[0].clone(), through));
                }
            }
        }
    }
    println!("of {shapes} calls, with both sides' records: {} differ; allowed: {allowances:?}", differences.len());
    if differences.is_empty() {
        return Ok(());
    }
    let mut text = format!("{} records differ (SLUICE_SEED={seed} makes the same calls again)\n", differences.len());
    let mut patterns: BTreeMap<_, u32> = BTreeMap::new();
    differences.iter().for_each(|(_, pattern, side, ..)| *patterns.entry((pattern, side)).or_default() += 1);
    writeln!(text, "by pattern and side: {patterns:?}")?;
    // The client's part first: what the server has not heard, the client has been told.
    differences.sort_by_key(|(number, _, side, ..)| (*side != "client", *number));
    let mut shown = BTreeSet::new();
    differences.retain(|(_, pattern, side, ..)| shown.insert((pattern.clone(), *side)));
    for (number, _, side, direct, through) in differences.iter().take(SHOWN) {
        writeln!(text, "\n{}what the {side} heard, direct:", cut(&show(seed, *number)?))?;
        write!(text, "{}", account(std::slice::from_ref(direct)))?;
        writeln!(text, "what the {side} heard, through sluice ({} records):", through.len())?;
        write!(text, "{}", account(through))?;
    }
    bail!("{text}")
}

fn is_whole(record: &Value) -> bool {
    let fine = |event: &Value| event["unfinished"].is_null() && event["intact"] != false;
    record["events"].as_array().is_some_and(|events| events.iter().all(fine))
}

/// One line an event.
fn account(records: &[Value]) -> String {
    let events = records.iter().flat_map(|record| record["events"].as_array().into_iter().flatten());
    cut(&events.map(|event| format!("    {event}\n")).collect::<String>())
}

fn cut(text: &str) -> String {
    let short = |line: &str| line.chars().take(LINE).collect::<String>() + "\n";
    text.lines().map(short).collect()
}

/// The shape in words.
fn show(seed: u64, number: u32) -> Result<String> {
    let output = Command::new(RECORDER).args(["show", "--seed", &seed.to_string(), &number.to_string()]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// A pod that serves the calls.
struct Server {
    pod: Pod,
    records: PathBuf,
    _process: Process,
}

impl Server {
    fn start(node: &Node, seed: u64, number: u32) -> Result<Self> {
        let pod = node.pod(format!("server-{number}"))?;
        let records = node.folder().join(pod.name());
        let process = pod
            .command(RECORDER)
            .args(["server", &format!("[::]:{PORT}"), "--seed", &seed.to_string(), "--records"])
            .arg(&records)
            .stdin(Stdio::null())
            .spawn()?;
        pod.wait_listening(PORT, LISTENS_WITHIN)?;
        Ok(Self { pod, records, _process: process })
    }

    fn records(&self) -> Result<Records> {
        read(&self.records)
    }
}

struct Client {
    pod: Pod,
    seed: u64,
    shapes: u32,
}

impl Client {
    fn run(&self, to: SocketAddr, records: &Path) -> Result<Records> {
        let output = self
            .pod
            .command("timeout")
            .args([CLIENT_ENDS_WITHIN, RECORDER, "client", &to.to_string()])
            .args(["--seed", &self.seed.to_string(), "--shapes", &self.shapes.to_string(), "--records"])
            .arg(records)
            .output()?;
        // What it could not do is missing in the records, and a difference.
        print!("{}", String::from_utf8_lossy(&output.stderr));
        read(records)
    }
}

fn read(path: &Path) -> Result<Records> {
    let mut records = Records::new();
    for line in fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let number = record["shape"].as_u64().and_then(|number| number.try_into().ok()).context("a shape's number")?;
        records.entry(number).or_default().push(record);
    }
    Ok(records)
}

fn redirected(agent: &Agent) -> Result<u64> {
    agent.status()?["kernel_verdicts"]["redirected"].as_u64().context("a counter of redirected connections")
}

fn log_of(agent: &Agent) -> String {
    format!("the agent's log:\n{}", agent.log().unwrap_or_else(|error| format!("{error:#}")))
}

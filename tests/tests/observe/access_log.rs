//! The access log: a line of JSON for each call, or for a share of them; and nothing of a call changes on its way.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::scene::{Backend, PORT, in_turn, serve, wait_for};
use testbed::{Agent, Node, Service};

use crate::peers::{ADD, Client, Endpoint};
use crate::scene::calls;

/// Those of an agent's lines that are JSON. What it says otherwise goes the same way here.
fn lines(agent: &Agent) -> Result<Vec<Value>> {
    let log = agent.log()?;
    let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
    let json = whole.lines().filter(|line| line.starts_with('{'));
    json.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

struct Scene {
    service: Service,
    backends: Vec<Backend>,
    client: testbed::Pod,
    agent: Agent,
    _node: Node,
}

impl Scene {
    fn new(share: &str) -> Result<Self> {
        let node = Node::new()?;
        let backends =
            ["one", "two"].map(|name| Backend::start(&node, name)).into_iter().collect::<Result<Vec<_>>>()?;
        let service = serve(&node, in_turn("echo"), backends.iter().map(|it| &it.pod))?;
        let client = node.pod("client")?;
        let agent = node.agent().workers(2).arg("--access-log").arg(share).start()?;
        Ok(Self { service, backends, client, agent, _node: node })
    }
}

#[test]
fn every_call_is_a_line_with_status_endpoint_and_duration() -> Result<()> {
    const CALLS: usize = 500;
    let scene = Scene::new("1")?;
    calls(&scene.client, &scene.service, &["--rpcs", &CALLS.to_string()])?;
    let lines = wait_for("all calls are in the log", || Ok(Some(lines(&scene.agent)?).filter(|it| it.len() >= CALLS)))?;
    ensure!(lines.len() == CALLS, "{} lines", lines.len());
    for line in &lines {
        ensure!(line["event"] == "end" && line["grpc_status"] == "OK" && line["pod"] == "default/client", "{line}");
        ensure!(line["service"] == "default/echo:grpc" && line["path"] == "/sluice.loadtest.v1.Echo/Unary", "{line}");
        ensure!(line["duration_ms"].as_f64().is_some_and(|it| it > 0.0) && line["time"].is_string(), "{line}");
        ensure!(line["metadata"].is_null(), "no header fields: {line}");
    }
    for backend in &scene.backends {
        let endpoint = format!("{}:{PORT}", backend.pod.ip4());
        let count = lines.iter().filter(|line| line["endpoint"] == *endpoint).count();
        ensure!(count == CALLS / 2, "{endpoint}: {count}");
    }
    println!("{}", lines[0]);
    Ok(())
}

#[test]
fn of_many_calls_the_share_that_was_asked_for_is_logged() -> Result<()> {
    let scene = Scene::new("0.1")?;
    calls(&scene.client, &scene.service, &["--rpcs", "2000"])?;
    // By the time a later call is in the log, those before it are.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let count = lines(&scene.agent)?.len();
    println!("{count} of 2000 calls are in the log");
    // 200, give or take 7.5 standard deviations.
    ensure!((100..=300).contains(&count), "{count}");
    Ok(())
}

#[test]
fn without_being_asked_for_there_is_none_and_a_share_that_is_none_is_refused() -> Result<()> {
    let scene = Scene::new("0")?;
    calls(&scene.client, &scene.service, &["--rpcs", "100"])?;
    ensure!(lines(&scene.agent)?.is_empty());
    let program = testbed::program("sluice-agent")?;
    let refused = scene._node.command(program).args(["run", "--source", "/", "--access-log", "2"]).output()?;
    let why = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && why.contains("--access-log") && why.contains('2'), "{why}");
    Ok(())
}

#[test]
fn traceparent_reaches_the_backend_unchanged() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().arg("--access-log").arg("1").start()?;
    let fields = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("baggage", "userId=alice,isProduction=false"),
        ("grpc-trace-bin", "AAAK92UZFs1D3YRI6yEcgDGcAbetq3FpIDMxAgE"),
    ];
    let connection = client.connect(service.address4())?;
    connection.call(ADD, &fields)?;
    connection.call(ADD, &[])?;
    let seen = endpoint.seen();
    ensure!(seen.len() == 2, "{seen:?}");
    for (name, value) in fields {
        let came: Vec<_> = seen[0].get_all(name).iter().collect();
        ensure!(came == [value], "{name}: {came:?}");
        // And none is made where there was none.
        ensure!(!seen[1].contains_key(name), "{:?}", seen[1]);
    }
    wait_for("both calls are in the log", || Ok((lines(&agent)?.len() == 2).then_some(())))
}

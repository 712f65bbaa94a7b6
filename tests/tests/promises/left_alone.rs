//! What sluice must not touch, each with its reason in the kernel's counters; and of what it does touch, that the
//! application sees the address it dialled and the backend sees the pod that dialled.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::scene::{Backend, PORT, serve, wait_for, with_log};
use testbed::{Agent, Node, Pod, PodSpec, PortSpec, Service, ServiceSpec};

use crate::probe::{Connection, Probe, peer};
use crate::scene::{echo, pod_line, traffic, verdicts};

/// Connects of each kind.
const CONNECTS: usize = 5;

/// Two backends and a client pod; `services` are made before the agent starts.
struct Scene {
    backends: Vec<Backend>,
    client: Pod,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        Ok(Self { backends: Backend::start_some(&node, 2)?, client: node.pod("client")?, node })
    }

    fn serve(&self, spec: ServiceSpec) -> Result<Service> {
        serve(&self.node, spec, &self.backends)
    }
}

/// Connects from the pod are left alone: they reach a backend as from anywhere, and only the counter of `reason` rises.
fn left_alone(agent: &Agent, client: &Pod, to: SocketAddr, reason: &str) -> Result<()> {
    let mut probe = Probe::start(client)?;
    let names = ["redirected", reason];
    let before = verdicts(agent, names)?;
    let connections = with_log(agent, probe.connect(to, CONNECTS))?;
    let after = verdicts(agent, names)?;
    ensure!(connections.iter().all(|it| it.local == client.ip4() && it.peer == to), "{connections:?}");
    ensure!(connections.iter().all(|it| it.answers[0].1.ip() == client.ip4()), "{connections:?}");
    let rise = [after[0] - before[0], after[1] - before[1]];
    ensure!(rise == [0, CONNECTS as u64], "redirected and {reason} rose by {rise:?}");
    Ok(())
}

/// The reason in the status page, which names the Service.
fn reason(agent: &Agent, service: &str) -> Result<String> {
    let status = agent.status()?;
    let lines = status["left_alone"].as_array().context("left_alone")?;
    let line = lines.iter().find(|line| line["name"].as_str().is_some_and(|name| name.contains(service)));
    let line = line.with_context(|| format!("{service} is not among {lines:?}"))?;
    Ok(line["reason"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn services_that_are_not_ours_are_left_alone_for_a_reason_that_is_told() -> Result<()> {
    let scene = Scene::new()?;
    scene.node.namespace("off", &[("sluice.dev/redirect", "false")])?;
    let plain = ServiceSpec::new("plain").port(PortSpec::new("web", PORT));
    let cases = [
        (plain, "not selected"),
        (ServiceSpec::grpc("sticky", PORT).field("sessionAffinity", "ClientIP"), "sessionAffinity"),
        (ServiceSpec::grpc("opted-out", PORT).annotation("sluice.dev/redirect", "false"), "on the Service"),
        (ServiceSpec::grpc("in-off", PORT).namespace("off"), "on the Namespace"),
    ];
    let names = ["plain", "sticky", "opted-out", "in-off"];
    let services = cases.map(|(spec, why)| (scene.serve(spec), why));
    let agent = scene.node.agent().start()?;
    for ((service, why), name) in services.into_iter().zip(names) {
        let service = service?;
        left_alone(&agent, &scene.client, service.address4(), "not_service").with_context(|| name)?;
        let told = reason(&agent, name)?;
        ensure!(told.contains(why), "{name}: {told}");
    }
    Ok(())
}

#[test]
fn a_headless_service_and_a_pods_own_address_are_left_alone() -> Result<()> {
    let scene = Scene::new()?;
    let headless = ServiceSpec::grpc("headless", PORT).field("clusterIP", "None").field("clusterIPs", json!(["None"]));
    let _services = [scene.serve(headless)?, scene.serve(echo())?];
    let agent = scene.node.agent().start()?;
    ensure!(reason(&agent, "headless")?.contains("headless"));
    // What DNS gives for a headless name is what a client that knows the pods dials.
    let pod = SocketAddr::from((scene.backends[0].pod.ip4(), PORT));
    left_alone(&agent, &scene.client, pod, "not_service")
}

#[test]
fn a_pod_that_opts_out_is_left_alone_from_then_on_and_another_is_not() -> Result<()> {
    let mut scene = Scene::new()?;
    let service = scene.serve(echo())?;
    let out = scene.node.pod(PodSpec::new("out").annotation("sluice.dev/redirect", "false"))?;
    let agent = scene.node.agent().start()?;
    left_alone(&agent, &out, service.address4(), "pod_opted_out")?;

    let mut probe = Probe::start(&scene.client)?;
    ensure!(probe.calls(service.address4(), 1)?.redirected());
    scene.client.annotate("sluice.dev/redirect", Some("false"))?;
    let opted_out = |wanted: bool, client: &Pod| {
        wait_for("the annotation", || Ok((pod_line(&agent.status()?, client)?["opted_out"] == wanted).then_some(())))
    };
    opted_out(true, &scene.client)?;
    left_alone(&agent, &scene.client, service.address4(), "pod_opted_out")?;
    scene.client.annotate("sluice.dev/redirect", None)?;
    opted_out(false, &scene.client)?;
    ensure!(probe.calls(service.address4(), 1)?.redirected());
    Ok(())
}

#[test]
fn datagrams_are_left_alone() -> Result<()> {
    let scene = Scene::new()?;
    let service = scene.serve(echo())?;
    let server = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 50051))
print('ready', flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data + b' from ' + peer[0].encode(), peer)";
    let pod = &scene.backends[0].pod;
    let mut process = pod.command("python3").args(["-c", server]).stdout(Stdio::piped()).spawn()?;
    std::io::Read::read_exact(&mut process.stdout().context("no stdout")?, &mut [0; 6])?;
    let agent = scene.node.agent().start()?;
    let mut probe = Probe::start(&scene.client)?;
    let names = ["redirected", "not_tcp"];
    let before = verdicts(&agent, names)?;
    for _ in 0..CONNECTS {
        let answer = probe.udp(service.address4(), json!({}))?;
        ensure!(peer(&answer)? == service.address4(), "{answer}");
        let answer = probe.udp((pod.ip4(), PORT).into(), json!({ "echo": true }))?;
        ensure!(answer["text"] == format!("datagram from {}", scene.client.ip4()), "{answer}");
    }
    let after = verdicts(&agent, names)?;
    let rise = [after[0] - before[0], after[1] - before[1]];
    ensure!(rise == [0, 2 * CONNECTS as u64], "redirected and not_tcp rose by {rise:?}");
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_as_ever_until_it_has_one() -> Result<()> {
    let scene = Scene::new()?;
    let service = scene.node.service(echo())?;
    let agent = scene.node.agent().start()?;
    ensure!(reason(&agent, "echo")?.contains("no usable endpoints"));
    let mut probe = Probe::start(&scene.client)?;
    let refused = |probe: &mut Probe| -> Result<()> {
        let before = verdicts(&agent, ["redirected", "not_service"])?;
        for _ in 0..CONNECTS {
            let answer = probe.tcp(service.address4(), json!({}))?;
            ensure!(answer["error"].as_str().is_some_and(|error| error.contains("ConnectionRefused")), "{answer}");
        }
        let after = verdicts(&agent, ["redirected", "not_service"])?;
        ensure!(after == [before[0], before[1] + CONNECTS as u64], "{before:?} {after:?}");
        Ok(())
    };
    refused(&mut probe)?;
    service.add_endpoint(&scene.backends[0].pod)?;
    crate::scene::wait_endpoints(&agent, &service, 1)?;
    ensure!(probe.calls(service.address4(), 1)?.redirected());
    service.remove_endpoint(&scene.backends[0].pod)?;
    crate::scene::wait_endpoints(&agent, &service, 0)?;
    refused(&mut probe)
}

/// Redirected, and nobody can tell: the client sees the ClusterIP, the backend the client's pod.
fn nobody_can_tell(connection: &Connection, dialled: SocketAddr, client: impl Into<std::net::IpAddr>) -> Result<()> {
    let client = client.into();
    ensure!(connection.redirected() && connection.peer == dialled, "{connection:?}");
    let answers = &connection.answers;
    ensure!(answers.iter().all(|(_, seen)| seen.ip() == client), "the backend must see {client}: {connection:?}");
    Ok(())
}

#[test]
fn both_families_and_mapped_addresses_show_the_service_to_the_client_and_the_pod_to_the_backend() -> Result<()> {
    let scene = Scene::new()?;
    let service = scene.serve(echo())?;
    let agent = scene.node.agent().start()?;
    let mut probe = Probe::start(&scene.client)?;
    let (four, six) = (service.address4(), service.address6());
    let before = verdicts(&agent, ["redirected"])?[0];
    nobody_can_tell(&probe.calls(four, 4)?, four, scene.client.ip4())?;
    nobody_can_tell(&probe.calls(six, 4)?, six, scene.client.ip6())?;
    nobody_can_tell(&probe.one(four, json!({ "mapped": true, "calls": 4 }))?, four, scene.client.ip4())?;
    ensure!(verdicts(&agent, ["redirected"])?[0] - before == 3);
    Ok(())
}

#[test]
fn a_pod_that_calls_its_own_service_is_served_by_itself_too() -> Result<()> {
    let scene = Scene::new()?;
    let service = scene.serve(echo())?;
    let agent = scene.node.agent().start()?;
    let own = &scene.backends[0].pod;
    let mut probe = Probe::start(own)?;
    for (address, ip) in [(service.address4(), own.ip4().into()), (service.address6(), own.ip6().into())] {
        let address: SocketAddr = address;
        let ip: std::net::IpAddr = ip;
        let connection = with_log(&agent, probe.calls(address, 10))?;
        nobody_can_tell(&connection, address, ip)?;
        let itself = connection.answers.iter().filter(|(pod, _)| pod == own.name()).count();
        ensure!(itself == 5, "{connection:?}");
    }
    Ok(())
}

#[test]
fn a_pods_listener_serves_redirected_connects_of_that_pod_alone() -> Result<()> {
    let scene = Scene::new()?;
    let service = scene.serve(echo())?;
    let agent = scene.node.agent().start()?;
    let other = &scene.backends[0].pod;
    let status = agent.status()?;
    let port = |pod: &Pod, field: &str| -> Result<u16> {
        Ok(u16::try_from(pod_line(&status, pod)?[field].as_u64().context("a port")?)?)
    };
    let (mine, mine6) = (port(&scene.client, "port4")?, port(&scene.client, "port6")?);
    let error = |answer: &Value| answer["error"].as_str().unwrap_or_default().to_owned();

    // From outside of the pod nobody listens there, neither on its addresses nor on the caller's loopback.
    let mut probe = Probe::start(other)?;
    let mut targets: Vec<SocketAddr> = vec![(scene.client.ip4(), mine).into(), (scene.client.ip6(), mine6).into()];
    if mine != port(other, "port4")? {
        targets.push((Ipv4Addr::LOCALHOST, mine).into());
    }
    for target in targets {
        let answer = probe.tcp(target, json!({}))?;
        ensure!(error(&answer).contains("ConnectionRefused"), "{target}: {answer}");
    }

    // Inside of it the listener is there, and closes what was not redirected.
    let mut probe = Probe::start(&scene.client)?;
    for _ in 0..CONNECTS {
        let answer = probe.tcp((Ipv4Addr::LOCALHOST, mine).into(), json!({ "send": "hello" }))?;
        let closed = answer["length"] == 0 || error(&answer).contains("ConnectionReset");
        ensure!(closed, "{answer}");
    }
    wait_for("the listener's account", || {
        Ok((traffic(&agent, &scene.client, "without_flow")? == CONNECTS as u64).then_some(()))
    })?;
    nobody_can_tell(&probe.calls(service.address4(), 2)?, service.address4(), scene.client.ip4())?;
    Ok(())
}

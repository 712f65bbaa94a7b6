//! Why calls may not be spread: each reason caused for real, and told by `sluice-agent status`, for people and for programs,
//! with the Service, the pod, the number of connections and the cure.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::scene::{PORT, SOON, in_turn, serve, wait_for, with_log};
use testbed::{Agent, Node, Pod, PodSpec, PortSpec, ServiceSpec};

use crate::cli::Cli;
use crate::peers::{ADD, Client, Endpoint};
use crate::scene::{list, name};

/// What is to be said of a pod's connections.
struct Told<'a> {
    pod: &'a Pod,
    service: &'a str,
    connections: u64,
    reason: &'a str,
    cure: &'a str,
}

impl Told<'_> {
    /// Both forms of `status` say it. What is seen of connections may be five seconds old.
    fn by(&self, node: &Node, agent: &Agent) -> Result<()> {
        let cli = Cli::new(node, agent);
        let found = wait_for(self.reason, || self.in_json(cli));
        let (reason, cure) = with_log(agent, found.with_context(|| self.all(cli)))?;
        let Self { service, connections, .. } = self;
        let line = format!("  {} → {service}, {connections} open: {reason}\n    cure: {cure}\n", name(self.pod));
        let text = cli.say(&["status"])?;
        ensure!(text.contains(&line), "{line} is not in\n{text}");
        // Also where only one name is asked for.
        let text = cli.say(&["status", self.pod.name()])?;
        ensure!(text.contains(&line), "{line} is not in\n{text}");
        println!("{line}");
        Ok(())
    }

    /// Reason and cure, whole.
    fn in_json(&self, cli: Cli) -> Result<Option<(String, String)>> {
        let page = cli.json(&["status"])?;
        let has = |text: &serde_json::Value, part: &str| text.as_str().is_some_and(|text| text.contains(part));
        let line = list(&page["not_spread"]).iter().find(|line| {
            line["pod"] == name(self.pod)
                && line["service"] == self.service
                && line["connections"] == self.connections
                && has(&line["reason"], self.reason)
                && has(&line["cure"], self.cure)
        });
        let word = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Ok(line.map(|line| (word(line, "reason"), word(line, "cure"))))
    }

    fn all(&self, cli: Cli) -> String {
        cli.json(&["status"]).map_or_else(|error| format!("{error:#}"), |page| page["not_spread"].to_string())
    }
}

/// Nothing else is said of anybody.
fn nothing_else(node: &Node, agent: &Agent, lines: usize) -> Result<()> {
    let page = Cli::new(node, agent).json(&["status"])?;
    ensure!(list(&page["not_spread"]).len() == lines, "{}", page["not_spread"]);
    Ok(())
}

#[test]
fn status_names_why_calls_to_a_port_that_is_not_selected_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let plain = serve(&node, ServiceSpec::new("plain").port(PortSpec::new("web", PORT)), [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;
    let connections = [client.connect(plain.address4())?, client.connect(plain.address6())?];
    connections.iter().try_for_each(|it| it.call(ADD, &[]).map(drop))?;
    let (reason, cure) = ("neither appProtocol, port name nor annotation says gRPC", "name the port grpc");
    Told { pod: &client.pod, service: "default/plain:web", connections: 2, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)
}

#[test]
fn status_names_why_calls_of_a_client_that_dials_endpoints_itself_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoints = ["one", "two"].map(|name| Endpoint::start(&node, name)).into_iter().collect::<Result<Vec<_>>>()?;
    let service = serve(&node, in_turn("shop"), endpoints.iter().map(|it| &it.pod))?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;
    let direct = |at: usize| client.connect((endpoints[at].pod.ip4(), PORT).into());
    // What goes by the ClusterIP is spread, and nothing is said of it.
    let connections = [direct(0)?, direct(0)?, direct(1)?, client.connect(service.address4())?];
    connections.iter().try_for_each(|it| it.call(ADD, &[]).map(drop))?;
    let (reason, cure) = ("dials endpoints itself (client-side load balancing", "name and ClusterIP");
    Told { pod: &client.pod, service: "default/shop:grpc", connections: 3, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)
}

#[test]
fn status_names_why_calls_to_a_headless_service_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let spec = ServiceSpec::grpc("headless", PORT).field("clusterIP", "None").field("clusterIPs", json!(["None"]));
    let _service = serve(&node, spec, [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;
    // As DNS gives them for the name of such a Service.
    let connection = client.connect((endpoint.pod.ip4(), PORT).into())?;
    connection.call(ADD, &[])?;
    let (reason, cure) = ("dials the pods of a headless Service", "give the Service a ClusterIP");
    Told { pod: &client.pod, service: "default/headless:grpc", connections: 1, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)
}

#[test]
fn status_names_why_calls_of_an_old_connection_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, "client")?;
    let old = client.connect(service.address4())?;
    old.call(ADD, &[])?;
    let agent = node.agent().start()?;
    old.call(ADD, &[])?;
    let (reason, cure) = ("older than the agent", "the client has to dial again");
    Told { pod: &client.pod, service: "default/shop:grpc", connections: 1, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)?;

    // The cure is one.
    drop(old);
    client.connect(service.address4())?.call(ADD, &[])?;
    wait_for("nothing is left to be cured", || {
        Ok(list(&Cli::new(&node, &agent).json(&["status"])?["not_spread"]).is_empty().then_some(()))
    })
}

#[test]
fn status_names_why_calls_over_tls_or_without_http2_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let folder = node.folder();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=shop.default.svc", "-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(folder)
        .output()
        .context("cannot start openssl: apt-get install openssl")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let secure = node.pod("secure")?;
    let server = ["s_server", "-accept", &PORT.to_string(), "-cert", "certificate.pem", "-key", "key.pem", "-quiet"];
    let server = secure.command("openssl").args(server).current_dir(folder).stdin(Stdio::piped());
    let _server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    secure.wait_listening(PORT, SOON)?;
    let service = serve(&node, in_turn("secure"), [&secure])?;
    let mute = node.pod("mute")?;
    let _listener = mute.run_in_netns(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
    let other = serve(&node, in_turn("mute"), [&mute])?;
    let client = Client::start(&node, "client")?;
    let agent = node.agent().start()?;

    let address = service.address4().to_string();
    let tls =
        client.pod.command("openssl").args(["s_client", "-connect", &address, "-alpn", "h2"]).stdin(Stdio::piped());
    let log = fs::File::create(folder.join("s_client.log"))?;
    let _tls = tls.stdout(log.try_clone()?).stderr(log).spawn()?;
    let mut http1 = client.dial(other.address4())?;
    http1.write_all(b"GET / HTTP/1.1\r\n\r\n")?;

    let (reason, cure) = ("the client speaks TLS", "insecure credentials");
    let told =
        Told { pod: &client.pod, service: "default/secure:grpc", connections: 1, reason, cure }.by(&node, &agent);
    told.with_context(|| fs::read_to_string(folder.join("s_client.log")).unwrap_or_default())?;
    let (reason, cure) = ("does not speak HTTP/2", "sluice.dev/redirect: \"false\"");
    Told { pod: &client.pod, service: "default/mute:grpc", connections: 1, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 2)
}

#[test]
fn status_names_why_calls_of_a_pod_that_opted_out_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    let client = Client::start(&node, PodSpec::new("client").annotation("sluice.dev/redirect", "false"))?;
    let agent = node.agent().start()?;
    let connection = client.connect(service.address4())?;
    connection.call(ADD, &[])?;
    let (reason, cure) = ("the pod opted out", "remove the annotation from the Pod's template");
    Told { pod: &client.pod, service: "default/shop:grpc", connections: 1, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)
}

/// Takes both ports that its namespace gives to whoever asks for any, on loopback; then dials from one of its own choice.
const WITHOUT_PORTS: &str = "
import socket, sys
taken = [socket.create_server(('127.0.0.1', port)) for port in (32768, 32769)]
print('taken', flush=True)
address, port = sys.stdin.readline().split()
with socket.create_connection((address, int(port)), source_address=('', 40000)) as connection:
    print('connected', flush=True)
    sys.stdin.read()";

#[test]
fn status_names_why_calls_of_a_pod_that_is_not_enrolled_are_not_spread() -> Result<()> {
    let node = Node::new()?;
    let endpoint = Endpoint::start(&node, "one")?;
    let service = serve(&node, in_turn("shop"), [&endpoint.pod])?;
    // sluice finds no port for its listener.
    let pod = node.pod("client")?;
    pod.run_in_netns(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 32769"))??;
    let client = pod.command("python3").args(["-c", WITHOUT_PORTS]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut to, mut from) = (client.stdin().context("stdin")?, BufReader::new(client.stdout().context("stdout")?));
    let mut says = |word: &str| -> Result<()> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        ensure!(line.trim() == word, "{line}");
        Ok(())
    };
    says("taken")?;
    let agent = node.agent().start()?;
    writeln!(to, "{} {}", service.ip4(), PORT)?;
    says("connected")?;
    let (reason, cure) = ("the pod is not enrolled", "sluice-agent check");
    Told { pod: &pod, service: "default/shop:grpc", connections: 1, reason, cure }.by(&node, &agent)?;
    nothing_else(&node, &agent, 1)?;
    // The cure leads to the log.
    let said =
        |line: &&str| line.contains("WARN") && line.contains(pod.uid()) && line.contains("cannot listen on 127.0.0.1");
    let found = wait_for("the log says why", || Ok(agent.log()?.lines().find(said).map(str::to_owned)));
    println!("{}", with_log(&agent, found)?);
    Ok(())
}

//! What else may run over a selected port: whatever is not HTTP/2 without TLS passes unchanged to one endpoint, through
//! the redirect; HTTP/2 is known as such however slowly its first bytes come.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::scene::{Backend, PORT, SOON, serve, wait_for, with_log};
use testbed::{Agent, Node, Pod, Process, Service, target_folder};

use crate::probe::{Probe, peer, redirected, spread};
use crate::scene::{echo, traffic};

/// Two pods that run `script` with python3 on the Service's port, one client pod, the agent.
struct Scene {
    service: Service,
    client: Pod,
    agent: Agent,
    _servers: Vec<(Pod, Process)>,
    _node: Node,
}

impl Scene {
    fn new(script: &str) -> Result<Self> {
        Self::with(|pod| pod.command("python3").args(["-c", script]))
    }

    fn with(server: impl Fn(&Pod) -> testbed::Launch) -> Result<Self> {
        let node = Node::new()?;
        let service = node.service(echo())?;
        let mut servers = Vec::new();
        for name in ["one", "two"] {
            let pod = node.pod(name)?;
            let process = server(&pod).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            pod.wait_listening(PORT, SOON)?;
            service.add_endpoint(&pod)?;
            servers.push((pod, process));
        }
        let client = node.pod("client")?;
        let agent = node.agent().start()?;
        Ok(Self { service, client, agent, _servers: servers, _node: node })
    }

    /// One connection of a fresh probe; it was the agent's, and showed the ClusterIP.
    fn tcp(&self, extra: Value) -> Result<Value> {
        let mut probe = Probe::start(&self.client)?;
        let answer = with_log(&self.agent, probe.tcp(self.service.address4(), extra))?;
        ensure!(answer["error"].is_null(), "{answer}");
        ensure!(redirected(&answer)?, "the agent did not have the connection: {answer}");
        ensure!(peer(&answer)? == self.service.address4(), "{answer}");
        Ok(answer)
    }

    /// The agent had so many connections, and has none any more.
    fn all_over(&self, accepted: u64) -> Result<()> {
        ensure!(traffic(&self.agent, &self.client, "accepted")? == accepted);
        wait_for("the end of all connections", || {
            let open = traffic(&self.agent, &self.client, "opaque_connections")?;
            Ok((open == 0).then_some(()))
        })
    }
}

/// Answers a connection when the client's half is over: its length and digest and the client's address.
const COUNTS: &str = "
import hashlib, socket, socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        got = b''.join(iter(lambda: self.request.recv(1 << 20), b''))
        self.request.sendall(f'{len(got)} {hashlib.sha256(got).hexdigest()} {self.client_address[0]}'.encode())
socketserver.ThreadingTCPServer.request_queue_size = 100
socketserver.ThreadingTCPServer(('', 50051), Handler).serve_forever()";

/// sha256 of 10 MiB of `x`, as `printf x%.0s {1..10485760} | sha256sum` says.
const TEN_MIB: usize = 10 << 20;
const DIGEST: &str = "462a12a876c0364e4f1f3d12ed33dcae125f1198010ff78d8f4c3f4de0412d49";

#[test]
fn a_client_that_closes_its_half_still_gets_the_answer() -> Result<()> {
    let scene = Scene::new(COUNTS)?;
    let answer = scene.tcp(json!({ "send": "half of it", "half_close": true }))?;
    let text = answer["text"].as_str().unwrap_or_default();
    ensure!(text.starts_with("10 ") && text.ends_with(&scene.client.ip4().to_string()), "{answer}");
    scene.all_over(1)
}

#[test]
fn ten_mebibytes_pass_unchanged_both_ways() -> Result<()> {
    let up = Scene::new(COUNTS)?;
    let answer = up.tcp(json!({ "bytes": TEN_MIB, "half_close": true }))?;
    let text = answer["text"].as_str().unwrap_or_default();
    ensure!(text.starts_with(&format!("{TEN_MIB} {DIGEST} ")), "{answer}");
    up.all_over(1)?;

    // Both ways at once: what comes in goes back while more comes.
    let echo = Scene::new(
        "
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while some := self.request.recv(65536):
            self.request.sendall(some)
socketserver.ThreadingTCPServer(('', 50051), Handler).serve_forever()",
    )?;
    let answer = echo.tcp(json!({ "bytes": TEN_MIB, "half_close": true }))?;
    ensure!(answer["length"] == TEN_MIB && answer["digest"] == DIGEST, "{answer}");
    echo.all_over(1)
}

#[test]
fn a_server_that_speaks_first_is_heard() -> Result<()> {
    let scene = Scene::new(
        "
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'220 ready\\r\\n')
        self.wfile.write(b'250 hello ' + self.rfile.readline())
socketserver.ThreadingTCPServer(('', 50051), Handler).serve_forever()",
    )?;
    let answer = scene.tcp(json!({ "first": 11, "send": "me\r\n" }))?;
    ensure!(answer["first"] == "220 ready\r\n" && answer["text"] == "250 hello me\r\n", "{answer}");
    scene.all_over(1)
}

#[test]
fn http1_is_served_and_keeps_its_connection_alive() -> Result<()> {
    let scene = Scene::new(
        "
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = f'{self.path} {self.client_address[0]}:{self.client_address[1]} {socket.gethostname()}\\n'.encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('', 50051), Handler).serve_forever()",
    )?;
    let address = scene.service.address4();
    let client = "
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)
for number in range(20):
    connection.request('GET', f'/{number}')
    answer = connection.getresponse()
    print(answer.status, answer.read().decode(), end='')";
    let python = ["-c", client, &address.ip().to_string(), &address.port().to_string()];
    let said = with_log(&scene.agent, scene.client.command("python3").args(python).read())?;
    let lines: Vec<Vec<_>> = said.lines().map(|line| line.split(' ').collect()).collect();
    ensure!(lines.len() == 20 && lines.iter().all(|line| line[0] == "200"), "{said}");
    // One connection of the client is one to one endpoint, under the client's own address.
    ensure!(lines.iter().all(|line| line[2..] == lines[0][2..]), "{said}");
    ensure!(lines[0][2].starts_with(&format!("{}:", scene.client.ip4())), "{said}");
    scene.all_over(1)
}

#[test]
fn a_client_that_drips_the_preface_is_http2_and_its_calls_spread() -> Result<()> {
    let node = Node::new()?;
    let backends = Backend::start_some(&node, 3)?;
    let service = serve(&node, echo(), &backends)?;
    let client = node.pod("client")?;
    let agent = node.agent().start()?;
    let mut probe = Probe::start(&client)?;
    let connection = with_log(&agent, probe.one(service.address4(), json!({ "drip": true, "calls": 30 })))?;
    let pods = spread(&connection.answers);
    ensure!(connection.redirected() && pods.len() == 3 && pods.values().all(|&calls| calls == 10), "{pods:?}");
    ensure!(traffic(&agent, &client, "streams")? == 30 && traffic(&agent, &client, "opaque_connections")? == 0);
    Ok(())
}

#[test]
fn grpc_over_tls_is_end_to_end() -> Result<()> {
    let folder = tempdir("sluice-tls")?;
    let (key, certificate) = (folder.0.join("key.pem"), folder.0.join("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=echo.default.svc", "-addext", "subjectAltName=DNS:echo.default.svc"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("cannot start openssl: apt-get install openssl")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promises/tls.py");
    let (python, generated) = grpcio()?;
    let grpc = |pod: &Pod, role: &str| {
        let launch = pod.command(&python).arg(script).arg(role).arg(&certificate).env("PYTHONPATH", &generated);
        launch.env("PYTHONDONTWRITEBYTECODE", "1")
    };
    let scene = Scene::with(|pod| grpc(pod, "server").arg(&key).arg(PORT.to_string()))?;
    let address = scene.service.address4();
    let calls = with_log(&scene.agent, grpc(&scene.client, "client").arg(address.to_string()).read())?;
    let calls: Vec<_> = calls.lines().collect();
    ensure!(calls.len() == 20 && calls.iter().all(|line| *line == calls[0]), "one endpoint answers all: {calls:?}");
    let (pod, seen) = calls[0].split_once(' ').context("pod and peer")?;
    ensure!(["one", "two"].contains(&pod) && seen.contains(&scene.client.ip4().to_string()), "{calls:?}");
    ensure!(traffic(&scene.agent, &scene.client, "streams")? == 0, "the agent looked into TLS");
    scene.all_over(1)
}

/// The Python with grpcio of tests/clients, and the folder of its generated code.
fn grpcio() -> Result<(PathBuf, PathBuf)> {
    let target = target_folder()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/setup.sh");
    let status = Command::new(script).arg("python").env("CARGO_TARGET_DIR", &target).status()?;
    ensure!(status.success(), "{script} python: {status}; what is missing stands above");
    let clients = target.join("clients/python");
    Ok((clients.join("venv/bin/python"), clients.join("gen")))
}

/// A folder of this test's own, gone with it.
struct Folder(PathBuf);

fn tempdir(name: &str) -> Result<Folder> {
    let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(Folder(path))
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

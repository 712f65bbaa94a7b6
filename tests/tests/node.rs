//! The simulated node itself: its network, kube-proxy's part, its processes, its objects. Needs root and fails without.
//! The agent is not involved: a script stands for it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::{Driver, Node, Pod, PodSpec, PortSpec, Process, Qos, ServiceSpec};

const LIMIT: Duration = Duration::from_secs(10);

/// Serves on the pod's port for as long as the result lives: to each connection the pod's name and the peer's address.
fn serve_name(pod: &Pod, port: u16) -> Result<Process> {
    let server = "import os, socket, sys
s = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, peer = s.accept()
    c.sendall(f'{socket.gethostname()} {peer[0]}'.encode())
    c.close()
";
    let process = pod.command("python3").args(["-c", server, &port.to_string()]).stdin(Stdio::null()).spawn()?;
    pod.wait_listening(port, LIMIT)?;
    Ok(process)
}

/// Connects from the pod's namespace and reads all that the server says.
fn ask(pod: &Pod, address: SocketAddr) -> Result<String> {
    pod.run_in_netns(|| -> Result<String> {
        let mut text = String::new();
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect {address}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// The names of the pods that answer on the address, asked often enough to meet each of a few.
fn who_answers(pod: &Pod, address: SocketAddr) -> Result<BTreeSet<String>> {
    // Of three endpoints one is missed by 60 random picks with a probability of 3 × (2/3)^60 < 10^-10.
    (0..60).map(|_| Ok(ask(pod, address)?.split(' ').next().unwrap_or_default().to_owned())).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn pods_reach_each_other_and_the_node_in_both_families_under_their_own_addresses() -> Result<()> {
    let node = Node::new()?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let _process = serve_name(&server, 7000)?;
    let four = ask(&client, SocketAddr::new(server.ip4().into(), 7000))?;
    let six = ask(&client, SocketAddr::new(server.ip6().into(), 7000))?;
    assert_eq!(four, format!("server ::ffff:{}", client.ip4()));
    assert_eq!(six, format!("server {}", client.ip6()));

    for ip in [IpAddr::V4(node.ip4()), IpAddr::V6(node.ip6())] {
        let listener = node.run_in_netns(|| TcpListener::bind((ip, 0)))??;
        let address = listener.local_addr()?;
        let greet = thread::spawn(move || -> Result<()> { Ok(listener.accept()?.0.write_all(b"the node")?) });
        assert_eq!(ask(&client, address)?, "the node");
        greet.join().unwrap()?;
    }
    Ok(())
}

#[test]
fn a_cluster_ip_leads_to_every_ready_endpoint_in_both_families() -> Result<()> {
    let node = Node::new()?;
    let client = node.pod("client")?;
    let (one, two, three) = (node.pod("one")?, node.pod("two")?, node.pod("three")?);
    let _servers = [serve_name(&one, 7000)?, serve_name(&two, 7000)?, serve_name(&three, 7000)?];
    let service = node.service(ServiceSpec::new("echo").port(PortSpec::new("grpc", 80).target_port(7000)))?;
    assert!(ask(&client, service.address4()).is_err(), "a Service without endpoints must refuse");
    for pod in [&one, &two, &three] {
        service.add_endpoint(pod)?;
    }
    for address in [service.address4(), service.address6()] {
        assert_eq!(who_answers(&client, address)?, names(&["one", "two", "three"]));
    }
    service.mark_terminating(&one)?;
    service.remove_endpoint(&two)?;
    for address in [service.address4(), service.address6()] {
        assert_eq!(who_answers(&client, address)?, names(&["three"]));
    }
    service.mark_terminating(&three)?;
    assert_eq!(who_answers(&client, service.address4())?, names(&["one", "three"]), "none is ready: those that serve");
    service.delete()?;
    let gone = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 10).into(), 80);
    assert!(ask(&client, gone).is_err());
    Ok(())
}

#[test]
fn an_open_connection_keeps_its_endpoint_when_the_endpoints_change() -> Result<()> {
    let node = Node::new()?;
    let (client, old, new) = (node.pod("client")?, node.pod("old")?, node.pod("new")?);
    let listener = old.run_in_netns(|| TcpListener::bind(("::", 7000)))??;
    let service = node.service(ServiceSpec::grpc("echo", 7000))?;
    service.add_endpoint(&old)?;
    let address = service.address4();
    let mut stream = client.run_in_netns(|| TcpStream::connect_timeout(&address, LIMIT))??;
    let (mut accepted, _) = listener.accept()?;
    service.remove_endpoint(&old)?;
    service.add_endpoint(&new)?;
    stream.write_all(b"still there")?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    accepted.set_read_timeout(Some(LIMIT))?;
    accepted.read_to_string(&mut text)?;
    assert_eq!(text, "still there");
    assert!(ask(&client, address).is_err(), "new connections go to the new endpoint, where nothing listens");
    Ok(())
}

#[test]
fn the_node_itself_reaches_a_cluster_ip() -> Result<()> {
    let node = Node::new()?;
    let server = node.pod("server")?;
    let _process = serve_name(&server, 7000)?;
    let service = node.service(ServiceSpec::grpc("echo", 7000))?;
    service.add_endpoint(&server)?;
    for address in [service.address4(), service.address6()] {
        let mut text = String::new();
        node.run_in_netns(|| TcpStream::connect_timeout(&address, LIMIT))??.read_to_string(&mut text)?;
        assert!(text.starts_with("server "), "{text}");
    }
    Ok(())
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("only")?;
    let _process = serve_name(&pod, 7000)?;
    let service = node.service(ServiceSpec::grpc("echo", 7000))?;
    service.add_endpoint(&pod)?;
    assert_eq!(ask(&pod, service.address4())?, format!("only ::ffff:{}", node.ip4()));
    assert_eq!(ask(&pod, service.address6())?, format!("only {}", node.ip6()));
    Ok(())
}

#[test]
fn a_process_of_a_pod_is_in_its_cgroup_its_namespace_and_under_its_name() -> Result<()> {
    for (driver, qos, tail) in [
        (Driver::Cgroupfs, Qos::Burstable, "kubepods/burstable/pod"),
        (Driver::Systemd, Qos::BestEffort, "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod"),
    ] {
        let node = Node::builder().driver(driver).build()?;
        let pod = node.pod(PodSpec::new("web-0").qos(qos))?;
        assert!(pod.cgroup().starts_with(node.kubepods()));
        let script = "cat /proc/self/cgroup; hostname; echo $POD_NAME $POD_IP; readlink /proc/self/ns/net";
        let said = pod.command("sh").args(["-c", script]).read()?;
        let mut lines = said.lines().filter(|line| !line.contains(":/") || line.starts_with("0::"));
        let group = lines.next().unwrap();
        assert!(group.contains(tail), "{group}");
        assert_eq!(lines.next(), Some("web-0"));
        assert_eq!(lines.next(), Some(format!("web-0 {}", pod.ip4()).as_str()));
        let namespace = pod.run_in_netns(|| fs::read_link("/proc/thread-self/ns/net"))??;
        assert_eq!(lines.next().map(Path::new), Some(namespace.as_path()));
    }
    Ok(())
}

#[test]
fn two_nodes_live_side_by_side_with_the_same_addresses() -> Result<()> {
    let (left, right) = (Node::new()?, Node::new()?);
    let (here, there) = (left.pod("here")?, right.pod("there")?);
    assert_eq!(here.ip4(), there.ip4());
    let _servers = [serve_name(&here, 7000)?, serve_name(&there, 7000)?];
    for (node, pod) in [(&left, &here), (&right, &there)] {
        let service = node.service(ServiceSpec::grpc("echo", 7000))?;
        service.add_endpoint(pod)?;
        let client = node.pod("client")?;
        assert_eq!(who_answers(&client, service.address4())?, names(&[pod.name()]));
    }
    Ok(())
}

#[test]
fn what_a_process_started_dies_with_its_guard_and_a_pod_with_its_own() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("parent")?;
    let mut process = pod
        .command("sh")
        .args(["-c", "setsid sleep 1000 & echo $!; wait"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut grandchild = String::new();
    BufReader::new(process.stdout().unwrap()).read_line(&mut grandchild)?;
    let grandchild = PathBuf::from(format!("/proc/{}", grandchild.trim()));
    assert!(fs::read_to_string(grandchild.join("cgroup"))?.contains(pod.uid()));
    let container = process.cgroup().to_owned();
    drop(process);
    assert!(!container.exists());
    // An orphan's zombie waits for init to collect it; it runs no more, and has no program any more.
    assert!(fs::read_link(grandchild.join("exe")).is_err());

    let object = node.source_dir().join("pod-default-parent.yaml");
    let (group, survivor) = (pod.cgroup().to_owned(), pod.command("sleep").arg("1000").spawn()?);
    assert!(object.exists() && group.exists());
    pod.delete()?;
    assert!(!object.exists() && !group.exists());
    drop(survivor);
    Ok(())
}

/// All objects of the folder, by kind and name.
fn objects(node: &Node) -> Result<Vec<(String, Value)>> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(node.source_dir())? {
        let path = entry?.path();
        assert_eq!(path.extension().and_then(|it| it.to_str()), Some("yaml"), "{path:?}: no draft stays");
        for document in fs::read_to_string(&path)?.split("---\n") {
            let object: Value = serde_saphyr::from_str(document).with_context(|| format!("{path:?}"))?;
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            objects.push((format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"])), object));
        }
    }
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(objects)
}

#[test]
fn the_folder_holds_what_a_cluster_would_hold() -> Result<()> {
    let node = Node::new()?;
    node.namespace("shop", &[("sluice.dev/redirect", "false")])?;
    let pod =
        node.pod(PodSpec::new("web").namespace("shop").label("tier", "front").annotation("note", "yes: \"1\""))?;
    let port = PortSpec::new("api", 80).target_port(7000).app_protocol("kubernetes.io/h2c");
    let service = node.service(
        ServiceSpec::new("web").namespace("shop").port(port).annotation("sluice.dev/load-balancer", "round-robin"),
    )?;
    service.add_endpoint(&pod)?;
    service.mark_terminating(&pod)?;
    let objects = objects(&node)?;
    let kinds: Vec<_> = objects.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "EndpointSlice web-ipv4",
            "EndpointSlice web-ipv6",
            "Namespace default",
            "Namespace shop",
            "Pod web",
            "Service web"
        ]
    );
    let at = |name: &str| &objects.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(at("Namespace shop")["metadata"]["annotations"]["sluice.dev/redirect"], "false");
    assert_eq!(at("Pod web")["metadata"]["annotations"]["note"], "yes: \"1\"");
    assert_eq!(at("Pod web")["metadata"]["uid"], pod.uid());
    assert_eq!(at("Pod web")["status"]["podIPs"][1]["ip"], pod.ip6().to_string());
    let port = &at("Service web")["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&Value::from(80), &Value::from(7000)));
    assert_eq!(at("Service web")["spec"]["clusterIPs"][0], service.ip4().to_string());
    for (name, ip) in
        [("EndpointSlice web-ipv4", pod.ip4().to_string()), ("EndpointSlice web-ipv6", pod.ip6().to_string())]
    {
        let slice = at(name);
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
        assert_eq!(slice["ports"][0]["port"], 7000);
        assert_eq!(slice["ports"][0]["appProtocol"], "kubernetes.io/h2c");
        assert_eq!(slice["endpoints"][0]["addresses"][0], ip);
        assert_eq!(slice["endpoints"][0]["targetRef"]["uid"], pod.uid());
        let conditions = &slice["endpoints"][0]["conditions"];
        let told = ["ready", "serving", "terminating"].map(|name| conditions[name].as_bool().unwrap());
        assert_eq!(told, [false, true, true]);
    }
    Ok(())
}

/// Stands for the agent: serves its admin pages on what `--admin` says, once it has written its command line.
const PAGES: &str = "#!/usr/bin/env python3
import http.server, json, sys
print(' '.join(sys.argv[1:]), flush=True)
args = dict(zip(sys.argv[2::2], sys.argv[3::2]))
asked = 0
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        status, body = {'/readyz': (200 if asked > 3 else 503, ''), '/status.json': (200, json.dumps(args)),
                        '/metrics': (200, 'asked %d' % asked)}[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *args):
        pass
host, port = args['--admin'].rsplit(':', 1)
http.server.HTTPServer((host, int(port)), Pages).serve_forever()
";

fn program(node: &Node, name: &str, text: &str) -> Result<PathBuf> {
    let path = node.folder().join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn an_agent_is_ready_when_started_and_can_be_read_and_signalled() -> Result<()> {
    let node = Node::new()?;
    let pages = program(&node, "pages", PAGES)?;
    let mut agent = node.agent().binary(&pages).workers(2).arg("--drain").arg("3s").start()?;
    let status = agent.status()?;
    assert_eq!(status["--source"], node.source_dir().to_str().unwrap());
    assert_eq!(status["--cgroup"], node.kubepods().to_str().unwrap());
    assert_eq!((&status["--workers"], &status["--drain"]), (&Value::from("2"), &Value::from("3s")));
    assert_eq!(agent.metrics()?, "asked 6", "three refusals, then ready, then status and metrics");
    assert!(agent.log()?.starts_with("run --source "));
    let group = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid()))?;
    assert!(!group.contains("kubepods"), "the agent is no pod: {group}");
    agent.signal(libc::SIGKILL)?;
    assert_eq!(agent.wait()?.signal(), Some(libc::SIGKILL));
    assert!(agent.signal(libc::SIGTERM).is_err(), "its process id may be another's by now");

    // On the bridge its pages are within reach of pods.
    let agent = node.agent().binary(&pages).admin_ip(node.ip4()).start()?;
    let pod = node.pod("curious")?;
    assert!(pod.run_in_netns(|| TcpStream::connect_timeout(&agent.admin(), LIMIT))?.is_ok());
    assert_eq!(agent.stop()?.signal(), Some(libc::SIGTERM));
    Ok(())
}

#[test]
fn an_agent_that_ends_at_once_is_an_error_with_what_it_said() -> Result<()> {
    let node = Node::new()?;
    let refuses = program(&node, "refuses", "#!/bin/sh\necho no BTF in this kernel >&2\nexit 3\n")?;
    let error = node.agent().binary(refuses).start().unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("no BTF in this kernel"), "{error}");
    Ok(())
}

//! A node of one entrant's own: in, what shall be on it; out, client pods from which a target leads through that one proxy
//! to the endpoints. So no proxy sees another's connections, and two builds of sluice meet the same.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec};

use super::figures::{Figure, Meter};
use super::peers::{Entrant, Peer};
use super::sidecar::{self, FIRST_PORT, Sidecar, Upstream};
use crate::scene::{self, Backends};

/// Where the endpoints' servers listen, and sluice's Services.
pub(crate) const PORT: u16 = 50051;
/// Where TLS ends in an endpoint's pod.
const TLS_PORT: u16 = 50443;
/// The first of a thousand addresses that one pod answers on, and their network.
const FIRST_OF_MANY: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
const MANY: &str = "10.250.0.0/22";
/// ClusterIPs begin here: the testbed's own count from 10.96.0.10.
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 100, 1);

/// What shall be on the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) endpoints: Endpoints,
    pub(crate) clients: usize,
    pub(crate) services: u16,
}

/// Endpoints of each Service.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Endpoints {
    /// So many pods.
    Pods(usize),
    /// So many addresses of one pod, at most a thousand.
    OfOnePod(usize),
}

impl Default for Plan {
    fn default() -> Self {
        Self { endpoints: Endpoints::Pods(4), clients: 1, services: 1 }
    }
}

/// The programs that sites need.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) loadtest: PathBuf,
    pub(crate) envoy: Option<PathBuf>,
}

/// The node, ready for load. Dropping it removes everything.
pub(crate) struct Site {
    pub(crate) entrant: Entrant,
    pub(crate) clients: Vec<Pod>,
    /// What is called, as an URL without a path.
    pub(crate) target: String,
    pub(crate) loadtest: PathBuf,
    pub(crate) meter: Meter,
    // The rest is only held.
    _agent: Option<Agent>,
    _sidecars: Vec<Process>,
    _tls: Vec<Process>,
    _service: Option<Service>,
    _backends: Backends,
    node: Node,
}

impl Site {
    pub(crate) fn build(entrant: &Entrant, plan: Plan, programs: &Programs) -> Result<Self> {
        Self::make(entrant, plan, programs).with_context(|| format!("cannot set up {}", entrant.name))
    }

    fn make(entrant: &Entrant, plan: Plan, programs: &Programs) -> Result<Self> {
        let peer = entrant.peer;
        let node = Node::new()?;
        let (backends, addresses) = endpoints(&node, plan.endpoints, &programs.loadtest)?;
        let tls = if peer.is_opaque() { tls_ends(&node, &backends.pods)? } else { Vec::new() };
        let upstream = Upstream {
            endpoints: addresses,
            port: if peer.is_opaque() { TLS_PORT } else { PORT },
            services: plan.services,
        };
        let clients =
            (1..=plan.clients).map(|number| node.pod(format!("client-{number}"))).collect::<Result<Vec<_>>>()?;
        let scheme = if peer.is_opaque() { "https" } else { "http" };
        let mut site = Self {
            entrant: entrant.clone(),
            clients,
            target: format!("{scheme}://127.0.0.1:{FIRST_PORT}"),
            loadtest: programs.loadtest.clone(),
            meter: Meter::default(),
            _agent: None,
            _sidecars: Vec::new(),
            _tls: tls,
            _service: None,
            _backends: backends,
            node,
        };
        match peer {
            Peer::KubeProxy => {
                let service = site.node.service(ServiceSpec::grpc("echo", PORT))?;
                site._backends.pods.iter().try_for_each(|pod| service.add_endpoint(pod))?;
                site.target = format!("{scheme}://{}", service.address4());
                site._service = Some(service);
            }
            Peer::Sluice | Peer::SluiceOpaque => {
                for number in 0..plan.services {
                    write_service(site.node.source_dir(), number, &upstream)?;
                }
                site.target = format!("{scheme}://{FIRST_SERVICE}:{PORT}");
                let agent = site.node.agent().binary(&entrant.agent).workers(1).start()?;
                site.meter.add(&cgroup_of(agent.pid())?);
                site._agent = Some(agent);
            }
            Peer::Haproxy | Peer::HaproxyTcp | Peer::HaproxyTls | Peer::Nginx | Peer::Envoy => {
                let start = |client| Sidecar::start(peer, &site.node, client, &upstream, programs.envoy.as_deref());
                // All start at the same time.
                let starting = site.clients.iter().map(start).collect::<Result<Vec<_>>>()?;
                for (sidecar, client) in starting.into_iter().zip(&site.clients) {
                    let process = sidecar.ready(client, &upstream)?;
                    site.meter.add(process.cgroup());
                    site._sidecars.push(process);
                }
            }
        }
        Ok(site)
    }

    /// For the generator's files.
    pub(crate) fn folder(&self) -> &Path {
        self.node.folder()
    }

    /// Memory of the proxy now, and its peak since the meter was told to forget it.
    pub(crate) fn memory(&self) -> Result<Vec<(Figure, f64)>> {
        if self.meter.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.meter.memory()?.to_vec())
    }
}

/// The cgroup v2 of a process, which the testbed gave it alone.
fn cgroup_of(pid: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("the agent has ended")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("the agent is in no cgroup v2")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let folder = fields.next()?;
        (fields.next()? == "cgroup2").then(|| folder.to_owned())
    });
    Ok(PathBuf::from(mount.context("no cgroup v2 is mounted")?).join(path))
}

/// Starts the servers; the pods, and the addresses they answer on.
fn endpoints(node: &Node, endpoints: Endpoints, loadtest: &Path) -> Result<(Backends, Vec<Ipv4Addr>)> {
    let pods = match endpoints {
        Endpoints::Pods(count) => count,
        Endpoints::OfOnePod(_) => 1,
    };
    let backends = Backends::start(node, "echo", pods, PORT, |pod| scene::echo_server(pod, loadtest, PORT))?;
    let addresses = match endpoints {
        Endpoints::Pods(_) => backends.pods.iter().map(Pod::ip4).collect(),
        Endpoints::OfOnePod(count) => {
            let pod = &backends.pods[0];
            pod.command("ip").args(["route", "add", "local", MANY, "dev", "lo"]).read()?;
            node.command("ip").args(["route", "add", MANY, "via", &pod.ip4().to_string()]).read()?;
            (0..count as u32).map(|number| Ipv4Addr::from_bits(FIRST_OF_MANY.to_bits() + number)).collect()
        }
    };
    Ok((backends, addresses))
}

/// Ends TLS in each endpoint's pod, with a certificate made for it.
fn tls_ends(node: &Node, pods: &[Pod]) -> Result<Vec<Process>> {
    let file = |name: &str| node.folder().join(name);
    let (key, certificate, both) = (file("tls.key"), file("tls.crt"), file("tls.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=echo", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("cannot start openssl")?;
    ensure!(made.status.success(), "openssl: {}\n{}", made.status, String::from_utf8_lossy(&made.stderr));
    fs::write(&both, fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?)?;
    pods.iter().map(|pod| sidecar::tls_end(node, pod, TLS_PORT, PORT, &both)).collect()
}

/// A Service for sluice alone, with the same endpoints as all others. Nobody else serves its ClusterIP: a call that sluice
/// does not take fails.
fn write_service(folder: &Path, number: u16, upstream: &Upstream) -> Result<()> {
    let name = format!("bench-{number}");
    let ip = IpAddr::V4(Ipv4Addr::from_bits(FIRST_SERVICE.to_bits() + u32::from(number)));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "grpc", "port": PORT, "protocol": "TCP", "targetPort": upstream.port }],
        },
    });
    let endpoint = |ip: &Ipv4Addr| json!({ "addresses": [ip], "conditions": { "ready": true, "serving": true } });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-ipv4"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "endpoints": upstream.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "grpc", "port": upstream.port, "protocol": "TCP" }],
    });
    let file = folder.join(format!("service-{name}.yaml"));
    fs::write(&file, format!("{service}\n---\n{slice}\n")).with_context(|| format!("cannot write {}", file.display()))
}

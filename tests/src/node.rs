//! The node: a network namespace with a bridge, forwarding and kube-proxy's rules, a cgroup tree, a folder of objects.
//! In: what pods and Services there shall be; out: guards for them. Dropping it ends everything that runs in it.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::agent::AgentBuilder;
use crate::cgroup::{self, Driver};
use crate::cleanup::Leftovers;
use crate::kube_proxy::{self, Frontend, SERVICES4, SERVICES6};
use crate::launch::{Launch, Spawner};
use crate::manifest::Folder;
use crate::netns::Netns;
use crate::pod::{Pod, PodSpec};
use crate::service::{Service, ServiceSpec};

/// Kernel settings of the node. Redirects would teach pods to talk past the node, and so past conntrack.
const NODE_SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// Where the kernel has br_netfilter: the rules see a packet when the node routes it, not already when it enters the
/// bridge, which would drop what goes back to the port it came from.
const BRIDGE_SETTINGS: &[(&str, &str)] =
    &[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")];

/// The bridge's own address: locally administered.
const MAC: &str = "0a:58:0a:f4:00:01";

/// The cgroup of what runs on the node outside of pods, below the node's own.
const SYSTEM: &str = "system";

/// Refuses to go on without root, which namespaces, cgroups and nftables need.
pub fn require_root() -> Result<()> {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("it needs root (network namespaces, cgroups, nftables, BPF): run it with sudo");
    }
    Ok(())
}

/// What a node shall be like. See [`Node::builder`].
#[derive(Clone, Debug, Default)]
pub struct NodeBuilder {
    driver: Driver,
}

impl NodeBuilder {
    /// How cgroups are spelled; the cgroupfs driver's way unless set.
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// Makes the node.
    pub fn build(self) -> Result<Node> {
        require_root()?;
        let leftovers = Leftovers::make()?;
        let inner = Inner::build(leftovers.clone(), self.driver);
        if inner.is_err() {
            leftovers.remove()?;
        }
        Ok(Node { inner: Arc::new(inner?) })
    }
}

/// A simulated Kubernetes node. Dropping it kills what runs in it and removes it.
#[derive(Debug)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

/// What pods and Services need of their node.
#[derive(Debug)]
pub(crate) struct Inner {
    leftovers: Leftovers,
    pub(crate) driver: Driver,
    pub(crate) netns: Arc<Netns>,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) objects: Folder,
    /// kube-proxy's view: every Service with its ports, by the Service's number.
    proxied: Mutex<Vec<(u16, Vec<Frontend>)>>,
    /// Numbers of pods and Services, the last part of their addresses.
    next_pod: AtomicU16,
    next_service: AtomicU16,
}

impl Node {
    /// A node with the defaults.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A node to be described further.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// The node's name as its pods' objects have it.
    pub fn name(&self) -> &str {
        Inner::NAME
    }

    /// Starts a pod: `node.pod("client")`, or with a [`PodSpec`]. Its sandbox runs when this returns.
    pub fn pod(&self, spec: impl Into<PodSpec>) -> Result<Pod> {
        Pod::start(&self.inner, spec.into())
    }

    /// Makes a Service without endpoints; [`Service::add_endpoint`] gives it some.
    pub fn service(&self, spec: ServiceSpec) -> Result<Service> {
        Service::make(&self.inner, spec)
    }

    /// Writes a Namespace with annotations. `default` is there from the start, without.
    pub fn namespace(&self, name: &str, annotations: &[(&str, &str)]) -> Result<()> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": name, "annotations": annotations, "labels": { "kubernetes.io/metadata.name": name },
            },
        });
        self.inner.objects.write(&format!("namespace-{name}"), &[object])
    }

    /// A program on the node itself: in its network namespace, outside of all pods.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Launch {
        let cgroup = self.inner.leftovers.cgroup.join(SYSTEM).join(container_id());
        Launch::new(program.as_ref(), cgroup, Arc::clone(&self.inner.netns), Arc::clone(&self.inner.spawner))
    }

    /// Runs `body` on a thread in the node's own network namespace.
    pub fn run_in_netns<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.netns.run(body)
    }

    /// An agent for this node, not started yet.
    pub fn agent(&self) -> AgentBuilder<'_> {
        AgentBuilder::new(self)
    }

    /// The cgroup of all pods, for `--cgroup`.
    pub fn kubepods(&self) -> PathBuf {
        self.inner.kubepods()
    }

    /// The cgroup of everything on this node.
    pub fn cgroup(&self) -> &Path {
        &self.inner.leftovers.cgroup
    }

    /// The folder of Kubernetes objects, for `--source`.
    pub fn source_dir(&self) -> &Path {
        self.inner.objects.path()
    }

    /// A folder that lives as long as the node, for logs and the like.
    pub fn folder(&self) -> &Path {
        &self.inner.leftovers.folder
    }

    /// The node's address on its bridge, reachable from every pod.
    pub fn ip4(&self) -> Ipv4Addr {
        Inner::GATEWAY4
    }

    /// As [`Node::ip4`], IPv6.
    pub fn ip6(&self) -> Ipv6Addr {
        Inner::GATEWAY6
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.inner.spawner.stop();
        if let Err(error) = self.inner.leftovers.remove() {
            eprintln!("testbed: {error:#}");
        }
    }
}

impl Inner {
    const NAME: &str = "node-1";
    const BRIDGE: &str = "cni0";
    pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
    pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

    fn build(leftovers: Leftovers, driver: Driver) -> Result<Self> {
        let netns = Netns::new()?;
        netns.sysctl(NODE_SETTINGS)?;
        if Path::new("/proc/sys/net/bridge").exists() {
            netns.sysctl(BRIDGE_SETTINGS)?;
        }
        let (bridge, gateway4, gateway6) = (Self::BRIDGE, Self::GATEWAY4, Self::GATEWAY6);
        // The routes to the ClusterIPs are for connects of the node itself, which need one before they meet the DNAT.
        // A bridge without an address of its own takes the lowest of its ports': it would change with the pods that come and
        // go, and the others would talk to an address that is gone until they ask again. CNI's bridge has one, too.
        let links = format!(
            "link set lo up
link add {bridge} address {MAC} type bridge stp_state 0 mcast_snooping 0
addr add {gateway4}/16 dev {bridge}
addr add {gateway6}/64 dev {bridge} nodad
link set {bridge} up
route add {SERVICES4} dev {bridge} src {gateway4}
route add {SERVICES6} dev {bridge} src {gateway6}
"
        );
        netns.tool("ip", &["-batch", "-"], &links)?;
        for group in [driver.kubepods(), SYSTEM] {
            cgroup::make_below(&leftovers.cgroup, Path::new(group))?;
        }
        let node = Self {
            driver,
            netns: Arc::new(netns),
            spawner: Arc::new(Spawner::start()?),
            objects: Folder::make(leftovers.folder.join("source"))?,
            proxied: Mutex::default(),
            next_pod: AtomicU16::new(2),
            next_service: AtomicU16::new(10),
            leftovers,
        };
        let default = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default" } });
        node.objects.write("namespace-default", &[default])?;
        node.proxy(0, Some(Vec::new()))?;
        Ok(node)
    }

    pub(crate) fn name(&self) -> &'static str {
        Self::NAME
    }

    pub(crate) fn kubepods(&self) -> PathBuf {
        self.leftovers.cgroup.join(self.driver.kubepods())
    }

    /// The next pod's number, which makes its addresses and its link's name.
    pub(crate) fn number_pod(&self) -> u16 {
        self.next_pod.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn number_service(&self) -> u16 {
        self.next_service.fetch_add(1, Ordering::Relaxed)
    }

    /// Plugs a pod's namespace into the bridge and gives it its addresses, with the node as its only neighbour: what a
    /// pod sends to another passes the node's rules, both ways.
    pub(crate) fn plug(&self, pod: &Netns, number: u16, ip4: Ipv4Addr, ip6: Ipv6Addr) -> Result<()> {
        let (bridge, link) = (Self::BRIDGE, link_name(number));
        let path = pod.path();
        let peer = path.to_str().context("a path in UTF-8")?;
        self.netns.tool(
            "ip",
            &["-batch", "-"],
            &format!("link add {link} type veth peer name eth0 netns {peer}\nlink set {link} master {bridge} up\n"),
        )?;
        pod.sysctl(&[
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/eth0/accept_redirects", "0"),
            ("ipv6/conf/eth0/accept_redirects", "0"),
            ("ipv6/conf/eth0/accept_ra", "0"),
            ("ipv6/conf/eth0/accept_dad", "0"),
        ])?;
        let (gateway4, gateway6) = (Self::GATEWAY4, Self::GATEWAY6);
        let links = format!(
            "link set lo up
addr add {ip4}/32 dev eth0
addr add {ip6}/128 dev eth0 nodad
link set eth0 up
route add {gateway4} dev eth0 scope link
route add default via {gateway4} dev eth0
route add {gateway6} dev eth0
route add default via {gateway6} dev eth0
"
        );
        pod.tool("ip", &["-batch", "-"], &links).map(drop)
    }

    /// Takes a pod's link away; its namespace may live on while someone holds it.
    pub(crate) fn unplug(&self, number: u16) -> Result<()> {
        self.netns.tool("ip", &["-batch", "-"], &format!("link del {}\n", link_name(number))).map(drop)
    }

    /// Sets (or with `None` removes) what kube-proxy does for one Service.
    pub(crate) fn proxy(&self, service: u16, frontends: Option<Vec<Frontend>>) -> Result<()> {
        // Held while nft runs: the last word written must be the last one known.
        let mut proxied = self.proxied.lock().unwrap_or_else(PoisonError::into_inner);
        proxied.retain(|(number, _)| *number != service);
        proxied.extend(frontends.map(|frontends| (service, frontends)));
        let all: Vec<_> = proxied.iter().flat_map(|(_, frontends)| frontends.clone()).collect();
        kube_proxy::apply(&self.netns, "kube-proxy", &all)
    }
}

fn link_name(pod: u16) -> String {
    format!("veth{pod}")
}

/// The usual form of an address with a port: `10.96.0.10:80`, `[fd00::1]:80`.
pub(crate) fn with_port(ip: IpAddr, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(ip, port)
}

/// A random id, as Kubernetes objects have it.
pub(crate) fn uid() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

/// 64 hexadecimal digits, as container runtimes name containers.
pub(crate) fn container_id() -> String {
    let mut id = [uid(), uid()].map(Result::unwrap_or_default).concat();
    id.retain(|c| c != '-');
    id
}

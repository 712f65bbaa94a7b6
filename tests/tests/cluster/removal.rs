//! A pod that goes while it has connections through sluice: the agent holds nothing of it any more. In: a pod under load,
//! deleted; out: when its entries in the kernel's maps, the agent's sockets in its network namespace and the namespace
//! itself were gone, counted from the end of its last process.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::KubeNode;

use crate::sluice::{self, agent_on};
use crate::world::Namespace;

const ENDPOINTS: usize = 3;
const POLL: Duration = Duration::from_millis(50);
/// The promise is one second; on a machine that is as busy as this one with a whole cluster, three times that.
const WITHIN: Duration = Duration::from_secs(3);

#[test]
fn what_a_deleted_pod_had_is_gone_within_a_second() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "removal")?;
    let [node, _] = cluster.nodes();
    space.apply(&[sluice::service("echo", "echo")])?;
    space.deploy(&sluice::echo("echo", ENDPOINTS))?;
    space.start_client("client", node.name())?;
    let target = space.target("echo")?;
    space.wait_reach("client", &target, ENDPOINTS)?;

    let args = ["run", &target, "--duration", "120s", "--rate", "100", "--connections", "5", "--reconnect"];
    let load = space.load("client", &args)?;
    let pod = Pod::find(&space, node, "client")?;
    cluster.wait_until("the load's connections", || Ok(pod.agents_sockets()?.len() >= 2 + 5 + ENDPOINTS))?;
    let sockets = pod.agents_sockets()?;
    let first = pod.left(&sockets)?;
    println!("before: {} of the agent's sockets in the pod's namespace; held: {first:?}", sockets.len());
    assert_eq!(first, BTreeSet::from(Thing::ALL), "all that is looked for must be there to begin with");

    let agent = agent_on(cluster, node.name())?;
    space.kubectl(&["delete", "pod", "client", "--wait=false"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while pod.lives() {
        ensure!(Instant::now() < deadline, "the pod does not end");
        sleep(POLL);
    }
    let ended = Instant::now();
    let mut left = pod.left(&sockets)?;
    println!("when its last process was seen to be gone, there still were: {left:?}");
    while !left.is_empty() && ended.elapsed() < WITHIN {
        sleep(POLL);
        let now = pod.left(&sockets)?;
        for gone in left.difference(&now) {
            println!("{gone:?} gone {:?} after the pod's last process", ended.elapsed());
        }
        left = now;
    }
    println!("all gone {:?} after the pod's last process", ended.elapsed());
    ensure!(left.is_empty(), "{left:?} are left {:?} after the pod's last process", ended.elapsed());
    ensure!(agent.pod(&pod.name)?.is_empty(), "the status still lists the pod");
    // Its kubectl exec has ended with it.
    ensure!(load.finish().is_err(), "the load outlived its pod");
    Ok(())
}

/// What must go with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// Its entry in PODS.
    Entry,
    /// Sockets of the agent that were made in its namespace.
    Sockets,
    /// A handle of the agent's on the namespace itself.
    Handle,
    /// The namespace: the node gives its end of the veth a number of the other end's for as long as that lives.
    Namespace,
}

impl Thing {
    const ALL: [Thing; 4] = [Thing::Entry, Thing::Sockets, Thing::Handle, Thing::Namespace];
}

/// A pod as the node sees it.
struct Pod {
    name: String,
    node: KubeNode,
    /// Of its network namespace, by which the kernel's maps know it.
    cookies: Vec<u64>,
    /// `net:[4026532…]`.
    netns: String,
    /// What the node's namespace calls this one.
    nsid: u64,
    /// Its processes, the sandbox's own among them.
    pids: Vec<u32>,
    /// The node's agent.
    agent: u32,
}

impl Pod {
    fn find(space: &Namespace, node: KubeNode, name: &str) -> Result<Self> {
        let uid = space.kubectl(&["get", "pod", name, "--output=jsonpath={.metadata.uid}"])?;
        let pids = processes(&node.kubepods()?.join("besteffort").join(format!("pod{uid}")))?;
        ensure!(pids.len() >= 2, "the pod's processes: {pids:?}");
        let netns = fs::read_link(format!("/proc/{}/ns/net", pids[0]))?.to_string_lossy().into_owned();
        let agent = agent_on(space.cluster(), node.name())?;
        let name = format!("{}/{name}", space.name());
        let cookies: Vec<u64> = agent.pod(&name)?.iter().filter_map(|it| it["netns_cookie"].as_u64()).collect();
        ensure!(!cookies.is_empty(), "the agent does not know {name}");
        let inside = json(Command::new("nsenter").args(["--target", &pids[0].to_string(), "--net", "--"]).args(LINKS))?;
        let eth0 = find(&inside, |link| link["ifname"] == "eth0").context("eth0")?;
        let outside = json(node.command(LINKS[0])?.args(&LINKS[1..]))?;
        let veth = find(&outside, |link| link["ifindex"] == eth0["link_index"]).context("the node's end")?;
        let nsid = veth["link_netnsid"].as_u64().context("link_netnsid")?;
        let mut agents = fs::read_dir("/proc")?.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
        let group = agent_group(space, &agent.pod)?;
        let is_agent = |pid: &u32| {
            let of = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            of("comm") == "sluice-agent\n" && of("cgroup").contains(&group)
        };
        let agent = agents.find(is_agent).context("the agent's process")?;
        Ok(Self { name, node, cookies, netns, nsid, pids, agent })
    }

    fn lives(&self) -> bool {
        self.pids.iter().any(|pid| Path::new(&format!("/proc/{pid}/ns/net")).read_link().is_ok())
    }

    /// The agent's sockets that are in the pod's namespace: listeners, the clients' connections, the endpoints'.
    fn agents_sockets(&self) -> Result<BTreeSet<String>> {
        let inside: BTreeSet<String> = ["tcp", "tcp6"]
            .iter()
            .map(|table| fs::read_to_string(format!("/proc/{}/net/{table}", self.pids[0])))
            .collect::<std::io::Result<Vec<_>>>()?
            .iter()
            .flat_map(|table| table.lines().skip(1))
            .filter_map(|line| line.split_whitespace().nth(9))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        Ok(self.agents_descriptors()?.intersection(&inside).cloned().collect())
    }

    fn agents_descriptors(&self) -> Result<BTreeSet<String>> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.agent)).context("the agent's process has ended")?;
        let open = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        Ok(open.map(|target| target.to_string_lossy().into_owned()).collect())
    }

    /// What there still is.
    fn left(&self, sockets: &BTreeSet<String>) -> Result<BTreeSet<Thing>> {
        let open = self.agents_descriptors()?;
        let mut left = BTreeSet::new();
        // A number of a socket is used again only after 2^32 others.
        left.extend(open.intersection(sockets).next().map(|_| Thing::Sockets));
        left.extend(open.contains(&self.netns).then_some(Thing::Handle));
        left.extend(self.in_map("PODS")?.then_some(Thing::Entry));
        ensure!(self.lives() || !self.in_map("FLOWS")?, "a flow of the pod is left in the kernel");
        let output = self.node.command("ip")?.args(["netns", "list-id"]).output()?;
        let ids = String::from_utf8(output.stdout)?;
        let id = self.nsid.to_string();
        let named = |line: &str| line.split_whitespace().nth(1) == Some(&id);
        left.extend(ids.lines().any(named).then_some(Thing::Namespace));
        Ok(left)
    }

    /// Whether a map of this name, on whichever node, has an entry for the pod's namespace.
    fn in_map(&self, name: &str) -> Result<bool> {
        let dump = Command::new("bpftool").args(["--json", "map", "dump", "name", name]).output()?;
        ensure!(dump.status.success(), "bpftool map dump: {}", String::from_utf8_lossy(&dump.stderr));
        let dump: Value = serde_json::from_slice(&dump.stdout)?;
        Ok(self.cookies.iter().any(|cookie| mentions(&dump, *cookie)))
    }
}

const LINKS: [&str; 4] = ["ip", "-json", "link", "show"];

fn json(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn find(list: &Value, is: impl Fn(&Value) -> bool) -> Option<Value> {
    list.as_array()?.iter().find(|it| is(it)).cloned()
}

/// Whether a field `netns_cookie` anywhere in it has this value.
fn mentions(dump: &Value, cookie: u64) -> bool {
    match dump {
        Value::Array(all) => all.iter().any(|it| mentions(it, cookie)),
        Value::Object(fields) => {
            fields.get("netns_cookie").is_some_and(|it| it.as_u64() == Some(cookie))
                || fields.values().any(|it| mentions(it, cookie))
        }
        _ => false,
    }
}

/// The name of a pod's group.
fn agent_group(space: &Namespace, pod: &str) -> Result<String> {
    let get = ["--namespace", sluice::SYSTEM, "get", "pod", pod, "--output=jsonpath={.metadata.uid}"];
    Ok(format!("/pod{}/", space.cluster().kubectl(&get)?))
}

/// All processes in a group and below.
fn processes(group: &Path) -> Result<Vec<u32>> {
    let own = fs::read_to_string(group.join("cgroup.procs")).with_context(|| group.display().to_string())?;
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(group)?.flatten().filter(|it| it.path().is_dir()) {
        pids.extend(processes(&entry.path())?);
    }
    Ok(pids)
}

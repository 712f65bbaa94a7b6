//! Agents come and go under load: replaced by a rollout, killed, uninstalled. In: clients that dial again as gRPC clients
//! do, and one that dials every few milliseconds; out: who had each connection, and what is left of an agent.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{Cluster, KubeNode};

use crate::inside::{self, Dialler, Fate, Inside};
use crate::sluice::{self, Load, SYSTEM};
use crate::world::Namespace;

/// A client that dials again after GOAWAY, until it is stopped.
const LOAD: [&str; 9] = ["--rate", "1000", "--connections", "2", "--streams", "50", "--reconnect", "--duration", "30m"];
/// The kernel programs of one agent.
const PROGRAMS: usize = 5;

#[test]
#[ignore = "takes a minute: cargo xtask cluster test --all"]
fn agents_are_replaced_without_a_failed_call_or_a_connect_that_misses_them() -> Result<()> {
    let cluster = sluice::installed()?;
    let scene = Scene::make(cluster, "replaced")?;
    let before = Left::of(cluster)?;
    let listening = scene.listeners()?;

    let start = Instant::now();
    cluster.kubectl(&["--namespace", SYSTEM, "rollout", "restart", "ds/sluice-agent"])?;
    sluice::settle(cluster)?;
    before.wait_gone(cluster)?;
    println!("agents replaced within {:.1} s", start.elapsed().as_secs_f64());
    // The new agents alone, for a while.
    thread::sleep(Duration::from_secs(1));

    for (node, dials) in scene.dials()? {
        println!("{node}: {}", told(&dials, start));
        ensure!(dials.iter().all(|(_, fate)| *fate == Fate::Redirected), "{node}: {}", told(&dials, start));
    }
    let agents = sluice::agents(cluster)?;
    let nodes: Vec<_> = agents.iter().map(|agent| agent.node.as_str()).collect();
    ensure!(nodes == cluster.nodes().map(|node| node.name()), "one agent for each node: {nodes:?}");
    for node in cluster.nodes() {
        let attached = inside::attached(node)?;
        ensure!(attached.len() == PROGRAMS, "{}: {attached:?}", node.name());
    }
    let listens = scene.listeners()?;
    ensure!(listens.len() == listening.len() && !listens.is_empty(), "before {listening:?}, after {listens:?}");
    scene.end_without_failure(2)
}

#[test]
#[ignore = "beyond the short set: cargo xtask cluster test --all"]
fn connects_go_through_kube_proxy_once_an_agent_is_killed_and_through_the_next_one_when_it_runs() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = space(cluster, "killed")?;
    space.start_client("client", "node-a")?;
    let client = space.inside("client")?;
    let dialler = Dialler::start(&client, &space.target("echo")?)?;
    dialler.wait_for(cluster, &Fate::Redirected)?;
    let agents = sluice::agents(cluster)?;
    let agent = agents.iter().find(|agent| agent.node == "node-a").context("an agent on node-a")?;

    let inside = Inside::find(cluster, SYSTEM, &agent.pod)?;
    let killed = Instant::now();
    inside.kill_program("sluice-agent")?;
    dialler.wait_for(cluster, &Fate::LeftAlone)?;
    dialler.wait_for(cluster, &Fate::Redirected)?;
    thread::sleep(Duration::from_secs(1));
    let dials = dialler.dials()?;
    sluice::settle(cluster)?;

    println!("from the kill on: {}", told(&dials, killed));
    let fallen = dials.iter().position(|(_, fate)| *fate == Fate::LeftAlone).context("kube-proxy had none")?;
    // What the agent had accepted dies with it; what is dialled later must not.
    let failed_later = dials[fallen..].iter().find(|(_, fate)| matches!(fate, Fate::Failed(_)));
    ensure!(failed_later.is_none(), "{}", told(&dials, killed));
    // A hanging agent takes a second to be passed by, a dead one does not; three for a slow machine.
    let gap = dials[fallen].0.saturating_duration_since(killed);
    ensure!(gap < Duration::from_secs(3), "kube-proxy had the first connect {gap:?} after the kill");
    Ok(())
}

#[test]
#[ignore = "takes a minute: cargo xtask cluster test --all"]
fn uninstalled_under_load_no_call_fails_and_nothing_of_it_stays() -> Result<()> {
    let cluster = sluice::installed()?;
    let scene = Scene::make(cluster, "uninstalled")?;
    let before = Left::of(cluster)?;

    let installed_again = InstalledAgain(cluster);
    let start = Instant::now();
    sluice::uninstall(cluster)?;
    println!("uninstalled within {:.1} s", start.elapsed().as_secs_f64());
    before.wait_gone(cluster)?;
    for node in cluster.nodes() {
        let attached = inside::attached(node)?;
        ensure!(attached.is_empty(), "{}: {attached:?}", node.name());
    }
    let listens = scene.listeners()?;
    ensure!(listens.is_empty(), "listeners in pods: {listens:?}");
    let kinds = "clusterroles,clusterrolebindings,namespaces";
    let objects = cluster.kubectl(&["get", kinds, "--selector=app.kubernetes.io/part-of=sluice", "--output=name"])?;
    ensure!(objects.is_empty(), "objects: {objects}");
    for client in &scene.clients {
        client.dialler.wait_for(cluster, &Fate::LeftAlone)?;
    }

    drop(installed_again);
    for client in &scene.clients {
        client.dialler.wait_for(cluster, &Fate::Redirected)?;
    }
    for (node, dials) in scene.dials()? {
        println!("{node}: {}", told(&dials, start));
        ensure!(!dials.iter().any(|(_, fate)| matches!(fate, Fate::Failed(_))), "{node}: {}", told(&dials, start));
    }
    scene.end_without_failure(2)
}

/// Installs sluice when it goes.
struct InstalledAgain(&'static Cluster);

impl Drop for InstalledAgain {
    fn drop(&mut self) {
        if let Err(error) = sluice::install_marked(self.0) {
            eprintln!("sluice is not installed again: {error:#}");
        }
    }
}

/// Four servers and their Service.
fn space(cluster: &'static Cluster, name: &str) -> Result<Namespace> {
    let space = Namespace::make(cluster, name)?;
    space.deploy(&sluice::echo("echo", 4))?;
    space.apply(&[sluice::service("echo", "echo")])?;
    space.wait_endpoints("echo", 4)?;
    Ok(space)
}

/// On each node a client, on one of them with load.
struct Scene {
    load: Load,
    clients: Vec<Client>,
    _space: Namespace,
}

struct Client {
    node: &'static str,
    inside: Inside,
    dialler: Dialler,
}

impl Scene {
    fn make(cluster: &'static Cluster, name: &str) -> Result<Self> {
        let space = space(cluster, name)?;
        let target = space.target("echo")?;
        let mut clients = Vec::new();
        for node in cluster.nodes() {
            let name = format!("client-{}", node.name());
            space.start_client(&name, node.name())?;
            let inside = space.inside(&name)?;
            let dialler = Dialler::start(&inside, &target)?;
            dialler.wait_for(cluster, &Fate::Redirected)?;
            clients.push(Client { node: node.name(), inside, dialler });
        }
        let load = space.load_inside(&clients[0].inside, &[&["run", &target], &LOAD[..]].concat())?;
        thread::sleep(Duration::from_secs(1));
        Ok(Self { load, clients, _space: space })
    }

    /// Sockets that listen in the clients' pods.
    fn listeners(&self) -> Result<Vec<String>> {
        let all: Vec<_> = self.clients.iter().map(|client| client.inside.listeners()).collect::<Result<_>>()?;
        Ok(all.concat())
    }

    /// What each client's dials came to, until now.
    fn dials(&self) -> Result<BTreeMap<&'static str, Vec<(Instant, Fate)>>> {
        self.clients.iter().map(|client| Ok((client.node, client.dialler.dials()?))).collect()
    }

    /// Stops the load, of which no call may have failed, and which dialled at least so many connections.
    fn end_without_failure(self, connections: u64) -> Result<()> {
        let report = self.load.stop()?;
        println!(
            "{} calls, failed {} {}, sent again by the client {}, connections {}, latency {}",
            report["rpcs"],
            report["failed"],
            report["failed_by_code"],
            report["resent"],
            report["connections"],
            report["latency_us"]
        );
        ensure!(report["failed"] == 0, "{report:#}");
        ensure!(report["connections"].as_u64() > Some(connections), "nobody sent the client away: {report:#}");
        Ok(())
    }
}

/// Dials in groups of the same fate, with the time of each group's first after `start`.
fn told(dials: &[(Instant, Fate)], start: Instant) -> String {
    let mut told = Vec::new();
    for group in dials.chunk_by(|(_, a), (_, b)| a == b) {
        let at =
            group[0].0.checked_duration_since(start).map_or("before".to_owned(), |at| format!("{} ms", at.as_millis()));
        told.push(format!("{at}: {} × {:?}", group.len(), group[0].1));
    }
    told.join(", ")
}

/// What agents have on their nodes.
struct Left {
    programs: Vec<(String, u64)>,
    maps: Vec<u64>,
    /// Of each agent: its node, its pod's UID and its cgroup.
    pods: Vec<(KubeNode, String, Inside)>,
}

impl Left {
    /// What there is now.
    fn of(cluster: &'static Cluster) -> Result<Self> {
        let mut programs = Vec::new();
        for node in cluster.nodes() {
            let attached = inside::attached(node)?;
            ensure!(attached.len() == PROGRAMS, "{}: {attached:?}", node.name());
            programs.extend(attached);
        }
        let maps = inside::maps_of(&programs)?;
        ensure!(!maps.is_empty(), "programs without maps");
        let mut pods = Vec::new();
        for agent in sluice::agents(cluster)? {
            let get = ["--namespace", SYSTEM, "get", "pod", &agent.pod, "--output=jsonpath={.metadata.uid}"];
            let group = Inside::find(cluster, SYSTEM, &agent.pod)?;
            pods.push((cluster.node(&agent.node)?, cluster.kubectl(&get)?, group));
        }
        Ok(Self { programs, maps, pods })
    }

    /// Waits until none of it is there any more: programs and their links, maps, processes, cgroups, the pods' files.
    fn wait_gone(&self, cluster: &Cluster) -> Result<()> {
        let mut stays = Vec::new();
        let gone = || {
            stays = self.stays()?;
            Ok(stays.is_empty())
        };
        cluster.wait_until("agents to leave nothing", gone).with_context(|| format!("left: {stays:?}"))
    }

    fn stays(&self) -> Result<Vec<String>> {
        let mut stays = Vec::new();
        let ids = |kind: &str, key: &str| {
            let all = inside::bpftool(kind)?;
            Ok::<_, anyhow::Error>(all.iter().filter_map(|it| it[key].as_u64()).collect::<Vec<_>>())
        };
        let (programs, links, maps) = (ids("prog", "id")?, ids("link", "prog_id")?, ids("map", "id")?);
        for (name, id) in &self.programs {
            stays.extend(programs.contains(id).then(|| format!("program {name}")));
            stays.extend(links.contains(id).then(|| format!("link of {name}")));
        }
        stays.extend(self.maps.iter().filter(|id| maps.contains(id)).map(|id| format!("map {id}")));
        for (node, uid, inside) in &self.pods {
            stays.extend(inside.exists().then(|| format!("cgroup of pod {uid}")));
            let files = node.command("ls")?.arg("/var/lib/kubelet/pods").output()?;
            let there = String::from_utf8_lossy(&files.stdout).contains(uid.as_str());
            stays.extend(there.then(|| format!("files of pod {uid}")));
        }
        Ok(stays)
    }
}

//! Whatever becomes of the agent, connects go on reaching backends: killed, stopped, or told to end. What reaches a
//! backend through kube-proxy shows its own address as the client's end; what the agent has shows loopback.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::scene::{Backend, serve, wait_for, with_log};
use testbed::{Agent, Node, Pod, Service};

use crate::probe::{Connection, Probe, redirected, spread};
use crate::scene::{Load, calls_of, echo, verdict};

const ENDPOINTS: usize = 3;
/// Connects that must all reach a backend while there is no agent that works.
const CONNECTS: usize = 50;
const KILLS: usize = 5;
/// From SIGKILL to the first connect, where the machine lets a process die at once.
const SOON_DEAD: Duration = Duration::from_millis(10);

/// Backends, a Service and two client pods, one of them for load.
struct Scene {
    backends: Vec<Backend>,
    service: Service,
    client: Pod,
    loaded: Pod,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let backends = Backend::start_some(&node, ENDPOINTS)?;
        let service = serve(&node, echo(), &backends)?;
        Ok(Self { backends, service, client: node.pod("client")?, loaded: node.pod("loaded")?, node })
    }

    fn load(&self, options: &[&str]) -> Result<Load> {
        Load::start(&self.node, &self.loaded, &self.service, options)
    }

    /// All of them reached a backend, under the client's own address, and no agent had them.
    fn through_kube_proxy(&self, connections: &[Connection]) -> Result<()> {
        ensure!(connections.len() == CONNECTS);
        let own = self.client.ip4();
        let left_alone = |it: &&Connection| it.local == own && it.peer == self.service.address4();
        let count = connections.iter().filter(left_alone).count();
        ensure!(count == CONNECTS, "{count} of {CONNECTS} went through kube-proxy");
        Ok(())
    }

    /// The agent has new connections again, soon.
    fn is_redirected(&self, probe: &mut Probe) -> Result<()> {
        let address = self.service.address4();
        wait_for("a redirected connect", || Ok(probe.calls(address, 1)?.redirected().then_some(())))
    }

    /// Calls on one connection spread over all endpoints evenly. Other load would take turns of its own.
    fn is_even(&self, probe: &mut Probe) -> Result<()> {
        let connection = probe.calls(self.service.address4(), 10 * ENDPOINTS)?;
        let pods = spread(&connection.answers);
        ensure!(pods.len() == ENDPOINTS && pods.values().all(|&calls| calls == 10), "{pods:?}");
        Ok(())
    }
}

#[test]
fn after_the_agent_was_killed_every_connect_reaches_a_backend() -> Result<()> {
    let scene = Scene::new()?;
    let mut probe = Probe::start(&scene.client)?;
    let address = scene.service.address4();
    let (mut gone_in_time, mut served_in_time) = (0, 0);
    for kill in 1..=KILLS {
        let mut agent = scene.node.agent().start()?;
        with_log(&agent, scene.is_redirected(&mut probe).and_then(|()| scene.is_even(&mut probe)))?;
        let before = verdict(&agent, "redirected")?;
        let load = scene.load(&["--rate", "1000", "--rpcs", "100000", "--connections", "4", "--reconnect"])?;
        wait_for("load", || Ok((verdict(&agent, "redirected")? == before + 4).then_some(())))?;
        agent.signal(libc::SIGKILL)?;
        thread::sleep(SOON_DEAD);
        let gone = agent.try_wait()?.is_some();
        let (served, failed) = probe.attempt(address, CONNECTS)?;
        // On a machine without a free core the process may not have come to die yet, and what it still takes in is
        // reset. It must not refuse: then its listeners would have gone before its links.
        let reset = |error: &String| error.contains("ConnectionReset") || error.contains("BrokenPipe");
        let only_reset = failed.iter().all(reset);
        ensure!(failed.is_empty() || (!gone && only_reset), "kill {kill}, gone: {gone}: {failed:?}");
        gone_in_time += usize::from(gone);
        served_in_time += served.len();

        wait_for("the killed agent's end", || agent.try_wait())?;
        let connections = probe.connect(address, CONNECTS).with_context(|| format!("kill {kill}"))?;
        scene.through_kube_proxy(&connections)?;
        drop(load);
    }
    let connects = KILLS * CONNECTS;
    println!(
        "{KILLS} kills: {served_in_time} of {connects} connects from {SOON_DEAD:?} on, {connects} from the end on"
    );
    println!("{gone_in_time} of {KILLS} agents had ended by then");
    Ok(())
}

#[test]
fn a_stopped_agent_gets_no_connect_and_a_continued_one_gets_them_again() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = scene.node.agent().start()?;
    let mut probe = Probe::start(&scene.client)?;
    with_log(&agent, scene.is_redirected(&mut probe))?;
    let before = verdict(&agent, "redirected")?;
    let load = scene.load(&["--rate", "200", "--rpcs", "2000", "--connections", "2"])?;
    wait_for("load", || Ok((verdict(&agent, "redirected")? == before + 2).then_some(())))?;
    let stale = verdict(&agent, "worker_stale")?;

    agent.signal(libc::SIGSTOP)?;
    thread::sleep(Duration::from_millis(1500));
    let connections = probe.connect(scene.service.address4(), CONNECTS);
    agent.signal(libc::SIGCONT)?;
    scene.through_kube_proxy(&connections?)?;

    let continued = Instant::now();
    let redirected = verdict(&agent, "redirected")?;
    with_log(&agent, scene.is_redirected(&mut probe))?;
    println!("redirected again {} ms after SIGCONT", continued.elapsed().as_millis());
    ensure!(verdict(&agent, "redirected")? > redirected);
    // Those right after SIGCONT may still have been left alone.
    let stale = verdict(&agent, "worker_stale")? - stale;
    ensure!(stale >= CONNECTS as u64, "{stale} connects are counted as worker_stale");
    // The connections that the agent had all the while went on as well.
    with_log(&agent, load.finish_without_failure(2000))?;
    with_log(&agent, scene.is_even(&mut probe))
}

/// 8 s of load over so many connections, SIGTERM after 3; a client that dials again as gRPC's do notices nothing.
fn ends_unnoticed(connections: u64) -> Result<()> {
    const CALLS: u64 = 8_000;
    let scene = Scene::new()?;
    let mut agent = scene.node.agent().start()?;
    let (calls, count) = (CALLS.to_string(), connections.to_string());
    let load = scene.load(&["--rate", "1000", "--rpcs", &calls, "--connections", &count, "--reconnect"])?;
    wait_for("load", || Ok((verdict(&agent, "redirected")? == connections).then_some(())))?;
    thread::sleep(Duration::from_secs(3));
    agent.signal(libc::SIGTERM)?;
    ends_well(&mut agent)?;
    let result = with_log(&agent, load.finish_without_failure(CALLS))?;
    println!(
        "{connections} connections: 0 of {CALLS} failed, {} resent, {} dials",
        result["resent"], result["connections"]
    );
    ensure!(result["connections"] == 2 * connections, "each connection was dialled again once: {result:#}");
    let answered: u64 = scene.backends.iter().map(|backend| calls_of(&result, backend)).sum();
    ensure!(answered == CALLS);
    Ok(())
}

fn ends_well(agent: &mut Agent) -> Result<()> {
    let told = Instant::now();
    let status = agent.wait()?;
    println!("the agent's end {} ms after SIGTERM", told.elapsed().as_millis());
    ensure!(status.code() == Some(0), "the agent: {status}\n{}", agent.log()?);
    Ok(())
}

#[test]
fn an_agent_that_ends_fails_no_call_of_one_connection() -> Result<()> {
    ends_unnoticed(1)
}

#[test]
fn an_agent_that_ends_fails_no_call_of_many_connections() -> Result<()> {
    ends_unnoticed(16)
}

#[test]
fn an_open_stream_goes_on_to_its_end_while_the_agent_drains() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = scene.node.agent().arg("--grace").arg("60s").start()?;
    let mut probe = Probe::start(&scene.client)?;
    probe.begin("stream", Some(scene.service.address4()), json!({ "delay_ms": 100, "count": 40 }))?;
    let opened = probe.answer()?;
    ensure!(redirected(&opened)?, "{opened}");
    wait_for("an open stream", || {
        let open = crate::scene::traffic(&agent, &scene.client, "open_streams")?;
        Ok((open == 1).then_some(()))
    })?;
    agent.signal(libc::SIGTERM)?;
    wait_for("draining", || Ok((agent.status()?["state"] == "draining").then_some(())))?;
    // While it drains, new connections are left alone.
    let mut other = Probe::start(&scene.client)?;
    let connections = other.connect(scene.service.address4(), CONNECTS)?;
    scene.through_kube_proxy(&connections)?;
    ensure!(agent.try_wait()?.is_none(), "the agent did not wait for the stream");
    let ended = probe.answer()?;
    ensure!(ended["messages"] == 40, "the stream was cut: {ended}");
    ends_well(&mut agent)
}

/// A dying process's files close from the highest number down, so that this order is what the test above relies on.
#[test]
fn the_links_of_an_agent_have_higher_numbers_than_its_listeners() -> Result<()> {
    let node = Node::new()?;
    let _pods: Vec<_> = (0..4).map(|number| node.pod(format!("pod-{number}"))).collect::<Result<_>>()?;
    let agent = node.agent().start()?;
    let (mut links, mut sockets) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(format!("/proc/{}/fd", agent.pid()))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        match &*target.to_string_lossy() {
            target if target.contains("bpf_link") || target.contains("bpf-link") => links.push(number),
            target if target.starts_with("socket:") => sockets.push(number),
            _ => {}
        }
    }
    ensure!(links.len() == 5 && sockets.len() > 2 * 4, "links {links:?}, sockets {sockets:?}");
    ensure!(links.iter().min() > sockets.iter().max(), "links {links:?}, sockets {sockets:?}");
    Ok(())
}

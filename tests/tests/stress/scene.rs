//! The node with the real agent, endpoints inside this process, and sockets dialled by client pods. Out: connections,
//! and the agent's figures: peak memory, open descriptors, counters.

use std::fs;
use std::io::{IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use testbed::scene::with_log;
use testbed::{Agent, Node, Pod, Process, Service, ServiceSpec};
use tokio::sync::watch;

use crate::server;

pub(crate) const PORT: u16 = 50051;
/// How much the agent may grow at its peak by what any one pod does: `pod_budget` of 4 MiB, what its connections' windows
/// let them send beyond it, 12 MiB, what connections and streams cost themselves, and the code for it, which was not
/// resident when the agent was ready: 5 MiB in a debug build. In KiB.
const BUDGET: u64 = 26 * 1024;
/// For what takes milliseconds, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Scene {
    pub(crate) agent: Agent,
    /// Of the agent when it was ready, in KiB.
    memory: u64,
    pub(crate) service: Service,
    backends: Vec<Pod>,
    pub(crate) node: Node,
}

impl Scene {
    /// So many endpoints, each in a pod of its own. Their servers are to be started on the listeners.
    pub(crate) fn new(endpoints: usize) -> Result<(Self, Vec<TcpListener>)> {
        let node = Node::new()?;
        let backends: Vec<_> =
            (1..=endpoints).map(|number| node.pod(format!("echo-{number}"))).collect::<Result<_>>()?;
        let spec = ServiceSpec::grpc("echo", PORT).annotation("sluice.dev/load-balancer", "round-robin");
        let service = node.service(spec)?;
        backends.iter().try_for_each(|pod| service.add_endpoint(pod))?;
        let listen = |pod: &Pod| pod.run_in_netns(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listeners = backends.iter().map(|pod| Ok(listen(pod)??)).collect::<Result<_>>()?;
        let agent = node.agent().start()?;
        // The peak counts from now on: loading the programs takes more.
        fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5")?;
        let memory = peak(agent.pid())?;
        Ok((Self { agent, memory, service, backends, node }, listeners))
    }

    /// A pod that dials. The agent has it when this returns.
    pub(crate) async fn client(&self, name: &str) -> Result<Client> {
        let pod = self.node.pod(name)?;
        let (control, other) = UnixStream::pair()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stress/dial.py");
        let process = pod.command("python3").arg(script).stdin(Stdio::from(OwnedFd::from(other))).spawn()?;
        let client = Client { control, to: self.service.address4(), _process: process, pod };
        self.wait_for("the pod's enrolment", |status| {
            let pods = status["pods"].as_array()?;
            pods.iter().any(|line| line["uid"] == client.pod.uid()).then_some(())
        })
        .await?;
        Ok(client)
    }

    /// Waits until the agent's status page is as wanted.
    pub(crate) async fn wait_for<T>(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.agent.status()?;
            if let Some(found) = wanted(&status) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("not within {SOON:?}: {what}; {status:#}\n{}", self.agent.log()?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A counter of the agent's account of a pod.
    pub(crate) fn traffic(&self, client: &Client, field: &str) -> Result<u64> {
        let status = self.agent.status()?;
        traffic(&status, client, field).with_context(|| format!("no {field} in {status:#}"))
    }

    /// Waits until such a counter has this value.
    pub(crate) async fn wait_traffic(&self, client: &Client, field: &str, value: u64) -> Result<()> {
        let wanted = |status: &_| (traffic(status, client, field)? == value).then_some(());
        self.wait_for(&format!("{field} = {value}"), wanted).await
    }

    /// The agent's descriptors that are open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.agent.pid()))?.count())
    }

    /// By how much the agent has grown at most, within the budget. In KiB.
    pub(crate) fn memory(&self, what: &str) -> Result<u64> {
        let peak = peak(self.agent.pid())?;
        let grown = peak - self.memory;
        println!("{what}: the agent used {peak} KiB at most, {grown} more than at its start");
        ensure!(grown <= BUDGET, "{what}: it has grown by {grown} KiB, beyond {BUDGET}");
        Ok(grown)
    }

    pub(crate) fn backends(&self) -> usize {
        self.backends.len()
    }
}

/// The most memory that a process has used, in KiB.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn traffic(status: &serde_json::Value, client: &Client, field: &str) -> Option<u64> {
    let line = status["pods"].as_array()?.iter().find(|line| line["uid"] == client.pod.uid())?;
    line["traffic"][field].as_u64()
}

pub(crate) struct Client {
    control: UnixStream,
    to: SocketAddr,
    _process: Process,
    pod: Pod,
}

impl Client {
    /// So many connections to the Service. They are the agent's.
    pub(crate) fn dial(&mut self, count: usize) -> Result<Vec<TcpStream>> {
        // In one piece: it is one message.
        self.control.write_all(format!("{} {} {count}", self.to.ip(), self.to.port()).as_bytes())?;
        (0..count).map(|_| self.receive()).collect()
    }

    fn receive(&self) -> Result<TcpStream> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&self.control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty())?;
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let stream = TcpStream::from(descriptor.context("the pod could not dial")?);
        ensure!(stream.local_addr()?.ip().is_loopback(), "not redirected: {stream:?}");
        Ok(stream)
    }

    /// One connection, as an HTTP/2 client.
    pub(crate) async fn connect(&mut self) -> Result<SendRequest<Bytes>> {
        let stream = self.dial(1)?.remove(0);
        Ok(http2(stream, server::OPEN).await?.0)
    }
}

/// An HTTP/2 client on a connection. It takes so many bytes per stream; the sender changes that.
pub(crate) async fn http2(stream: TcpStream, window: u32) -> Result<(SendRequest<Bytes>, watch::Sender<u32>)> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 24);
    let (client, mut connection) = builder.handshake(server::tokio(stream)?).await?;
    let (sender, mut windows) = watch::channel(window);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = &mut connection => return,
                Ok(()) = windows.changed() => {
                    let window = *windows.borrow_and_update();
                    if connection.set_initial_window_size(window).is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok((client, sender))
}

/// Runs a test's body; an error of it comes with the agent's last words.
pub(crate) fn run(scene: &Scene, body: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    with_log(&scene.agent, runtime.block_on(body))
}

/// For what a peer is to do in a moment.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(2 * SOON, future).await.context("it did not come about")
}

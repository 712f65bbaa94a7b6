//! The data plane: one thread, one mio loop. Readiness and commands in, bytes into the pure cores, their effects out.
//! A pod belongs to one worker with its listeners, connections and load counters, so there is no lock and no task per
//! call. It decides nothing about HTTP/2 (`splitter`), about protocols (`detect`) or endpoints (`balance`).
//!
//! A panic ends the thread, its heartbeat stops and the kernel leaves connects alone from then on: whoever holds the
//! `JoinHandle` must end the process then, because what this worker held is gone.

mod accept;
mod arena;
mod control;
mod event_loop;
mod http2;
mod life;
mod relay;
mod report;
mod services;
mod socket;
mod taps;
mod tcp_info;
mod timers;
mod turns;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mio::{Poll, Token, Waker};
use tokio::sync::oneshot;

use crate::addr::{NetnsCookie, OriginalDst};
use crate::detect::Patience;
use crate::splitter::Limits;
use crate::table::Change;

pub use event_loop::Ejections;
pub use report::{EndpointConnections, EndpointReport, OpaqueReport, PodReport, Report, ServiceReport};
pub use taps::{TapFilter, TapLine, TapRequest};

/// Takes a redirected connection's original destination out of the kernel: the pod's namespace and the peer's address as
/// `accept` gave it. None: the connection is not one that we redirected.
pub type Flows = Box<dyn FnMut(NetnsCookie, SocketAddr) -> Option<OriginalDst> + Send>;

/// Says that this worker lives; called every 100 ms, however busy it is.
pub type Heartbeat = Box<dyn FnMut() + Send>;

/// Answers a command. Dropped unsent: it was not carried out (the log says why), or the worker has ended.
pub type Ack = oneshot::Sender<()>;

/// What a worker is told. Commands are carried out in the order in which they were sent.
#[derive(Debug)]
pub enum Command {
    /// Services that are new, differ from before, or are gone; the others stay. Answered when every new stream follows it.
    Services(Arc<[Change]>, Ack),
    /// Takes over a pod. Answered when its listeners are served. For a namespace that the worker already has, the
    /// listeners are replaced (the old ones are served for another second, until the kernel knows the new ones) and the
    /// connections go on.
    AddPod(Pod, Ack),
    /// Closes everything that holds the pod's namespace.
    RemovePod(NetnsCookie, Ack),
    /// The pod is called this from now on.
    RenamePod(NetnsCookie, Arc<str>),
    /// Ends gracefully: takes what is still in the backlogs, closes the listeners, lets streams and relayed connections
    /// finish until `until`, then resets them. `done` when none is left. The redirection must have ended before.
    Drain {
        until: Instant,
        done: Ack,
    },
    Report(oneshot::Sender<Report>),
    /// Shows calls that begin from now on, until the sink is closed.
    Tap(TapRequest),
}

/// A pod's network namespace and the listeners in it.
#[derive(Debug)]
pub struct Pod {
    pub cookie: NetnsCookie,
    /// The nsfs file: endpoint connections leave from in there.
    pub netns: OwnedFd,
    pub listener4: Option<TcpListener>,
    pub listener6: Option<TcpListener>,
    /// `namespace/name`, for logs and status.
    pub name: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// Of all chance in this worker.
    pub seed: u64,
    pub patience: Patience,
    /// A dial that has not arrived by then has failed.
    pub dial_timeout: Duration,
    /// A peer that leaves everything unanswered for so long is gone; one that only does not read is not. A connection on
    /// which nothing is under way is probed after twice this time, and broken after twice as much again.
    pub gone_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            seed: fastrand::u64(..),
            patience: Patience::default(),
            dial_timeout: Duration::from_secs(5),
            gone_after: Duration::from_secs(30),
        }
    }
}

/// Sends commands to a worker from any thread. The worker ends, and closes all it has, when the last one is dropped.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    sender: mpsc::Sender<Command>,
    waker: Arc<Waker>,
}

/// The answer to a command: `await` it, or `blocking_recv` outside of tokio. An error: not carried out.
pub type Answer<T> = oneshot::Receiver<T>;

impl WorkerHandle {
    /// A worker that has ended takes no command and drops its answer.
    pub fn send(&self, command: Command) {
        if self.sender.send(command).is_err() {
            return;
        }
        if let Err(error) = self.waker.wake() {
            // The command is found at the next heartbeat.
            tracing::warn!(%error, "cannot wake a worker");
        }
    }

    /// See [`Command::Services`].
    pub fn change_services(&self, changes: Arc<[Change]>) -> Answer<()> {
        self.ask(|ack| Command::Services(changes, ack))
    }

    /// See [`Command::AddPod`].
    pub fn add_pod(&self, pod: Pod) -> Answer<()> {
        self.ask(|ack| Command::AddPod(pod, ack))
    }

    /// See [`Command::RemovePod`].
    pub fn remove_pod(&self, cookie: NetnsCookie) -> Answer<()> {
        self.ask(|ack| Command::RemovePod(cookie, ack))
    }

    /// See [`Command::Drain`].
    pub fn drain(&self, until: Instant) -> Answer<()> {
        self.ask(|done| Command::Drain { until, done })
    }

    /// What the worker has open now.
    pub fn report(&self) -> Answer<Report> {
        self.ask(Command::Report)
    }

    fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Answer<T> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender));
        answer
    }
}

/// The waker's token: one that no connection has.
const WAKE: Token = Token(usize::MAX);

/// Starts the thread `worker-INDEX`. Its handle ends with `Ok` only after all `WorkerHandle`s are gone.
pub fn spawn(
    index: usize,
    settings: Settings,
    flows: Flows,
    heartbeat: Heartbeat,
) -> anyhow::Result<(WorkerHandle, JoinHandle<()>)> {
    let poll =
        Poll::new().context("cannot make an epoll instance for a worker; is the limit of open files reached?")?;
    let waker = Waker::new(poll.registry(), WAKE).context("cannot make a worker's eventfd")?;
    let (sender, commands) = mpsc::channel();
    let registry = poll.registry().try_clone().context("cannot duplicate a worker's epoll descriptor")?;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let parts = event_loop::Parts { index, settings, poll, registry, commands, flows, heartbeat };
            match event_loop::Worker::new(parts) {
                Ok(worker) => worker.run(),
                Err(error) => panic!("worker {index} cannot open its own network namespace in /proc: {error}"),
            }
        })
        .context("cannot start a worker's thread")?;
    Ok((WorkerHandle { sender, waker: Arc::new(waker) }, thread))
}

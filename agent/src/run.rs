//! `sluice-agent run`: starts all parts in the order that never redirects a connection to where nobody listens, joins
//! them in one loop, and ends them in the opposite order. In: the configuration, signals; out: a served node. The parts
//! decide; nothing here looks at a byte or an object.

use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::admin::{self, Ask, Health, Snapshot, State};
use crate::check;
use crate::config::Run;
use crate::intercept::{Intercept, Settings};
use crate::pods::{self, CgroupView, Change, Discovery};
use crate::publish::{KernelChange, Publisher};
use crate::table::{self, Catalog};
use crate::watch::Source;

mod enrol;
mod memory;
mod workers;

use enrol::Enrolment;
use workers::Workers;

/// Questions of the admin pages.
type Asked = mpsc::Receiver<Ask>;

/// When what the kernel refused is tried again, if nothing else happens.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the kernel programs' lines appear in the log.
const KERNEL_LOG: &str = "sluice::kernel";
/// The client libraries' own words on a watch, one for each attempt while it fails; the agent says once what is wrong and
/// how to mend it, and once that it is over. Still to be had by --log: a later word on the same part wins.
const REPEATS: &str = "kube_runtime=off,kube_client=off,rustls_platform_verifier=off";

/// Serves the node until a signal or an error.
pub fn run(config: &Run) -> Result<()> {
    start_log(config)?;
    check::require_privileges()?;
    if let CgroupView::Containers(error) = pods::view_nodes_cgroups() {
        tracing::warn!(%error, "cannot enter the node's cgroup namespace: pods are found by guess (see sluice-agent check)");
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the control loop")?.block_on(serve(config))
}

/// On standard error; with colours only for people.
fn start_log(config: &Run) -> Result<()> {
    let mut filter = EnvFilter::try_new(format!("{REPEATS},{}", config.log)).context("--log")?;
    if config.bpf_log != LevelFilter::OFF {
        filter = filter.add_directive(format!("{KERNEL_LOG}={}", config.bpf_log).parse()?);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(anyhow::Error::from_boxed)
        .context("cannot start the log")
}

/// Each connection takes two descriptors, and the usual limit is 1024.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is; many connections may be refused");
    }
}

async fn serve(config: &Run) -> Result<()> {
    let mut signals = Signals::new()?;
    let limits = config.limits().map_err(anyhow::Error::msg)?;
    let kubepods = pods::find_kubepods(config.site.cgroup.as_deref())?;
    let admin = listen(config.admin).await.with_context(|| {
        format!("--admin {}: cannot listen there; choose an address of this host and a free port", config.admin)
    })?;
    let admin_address = admin.local_addr().unwrap_or(config.admin);
    let (asks, mut asked) = mpsc::channel(16);
    tokio::spawn(admin::serve(admin, asks));
    tokio::spawn(memory::give_back());

    // What the kernel lacks shows before anything is waited for.
    let settings = Settings { own_cgroup: pods::own_cgroup(), log_level: config.bpf_log };
    let mut intercept = Intercept::load(&settings)?;
    let mut source = Source::open(&config.site).await?;
    let mut catalog = Catalog::new(config.site.node_name.clone());
    let known = tokio::select! {
        changes = sync(&mut source, &mut catalog, &mut asked, &kubepods) => changes,
        name = signals.next() => {
            tracing::info!(signal = name, "ended before the source was synced; nothing was attached");
            return Ok(());
        }
    };

    if config.bpf_log != LevelFilter::OFF {
        tokio::spawn(intercept.kernel_log()?);
    }
    intercept.attach(&kubepods)?;
    tracing::info!(cgroup = %kubepods.display(), "attached");

    let counters = intercept.counters()?;
    let mut unenrolled = intercept.unenrolled()?;
    let mut workers = Workers::spawn(config.workers(), &limits, &intercept)?;
    let mut publisher = {
        let (handles, mut services) = (workers.handles.clone(), intercept.services()?);
        let to_kernel = move |change| match change {
            KernelChange::Announce(service, id) => services.insert(service, id),
            KernelChange::Forget(service) => services.remove(service),
        };
        Publisher::new(move |changes| workers::publish(&handles, &changes), to_kernel)
    };
    publisher.publish(known).await;

    let mut enrolment = Enrolment::new(intercept.pods()?, workers.handles.clone());
    enrolment.leave_alone(catalog.pods());
    let mut discovery = Discovery::start(&kubepods)?;

    // Declared last and so dropped first: on every way out the links close before the listeners.
    let mut intercept = intercept;
    let mut state = State::Scanning;
    let mut drained = None;
    loop {
        tokio::select! {
            name = signals.next() => {
                if drained.is_some() {
                    tracing::warn!(signal = name, "a second signal: ending with streams open");
                    return Ok(());
                }
                intercept.detach_redirects();
                tracing::info!(signal = name, grace = ?config.grace, "detached; open streams may finish");
                state = State::Draining;
                drained = Some(Box::pin(workers.drain(Instant::now() + config.grace)));
            }
            () = async { drained.as_mut().expect("guarded").await }, if drained.is_some() => {
                tracing::info!("drained");
                return Ok(());
            }
            worker = workers.ended() => {
                bail!("worker {worker} has ended, its connections are lost: the agent ends too, and kube-proxy serves");
            }
            updates = source.next() => {
                let changes = catalog.apply(updates);
                publisher.publish(changes.services).await;
                if changes.pods {
                    enrolment.leave_alone(catalog.pods());
                }
                source.report(&catalog);
            }
            change = discovery.next() => match change {
                // A connection that is redirected no more needs no listener.
                Ok(Change::Found(_)) if state == State::Draining => {}
                Ok(Change::Found(pod)) => {
                    let name = enrol::name(catalog.pods(), &pod.uid);
                    enrolment.add(pod, name).await;
                }
                Ok(Change::Lost(cookie)) => enrolment.remove(cookie).await,
                Ok(Change::Scanned) if state == State::Scanning => {
                    state = State::Ready;
                    let (services, pods) = (catalog.table().services.len(), enrolment.pods.len());
                    tracing::info!(services, pods, workers = workers.handles.len(), admin = %admin_address, "ready");
                }
                Ok(Change::Scanned) => {}
                Err(error) => return Err(error),
            },
            connect = unenrolled.next() => {
                let connect = connect?;
                discovery.reported(crate::addr::NetnsCookie(connect.netns_cookie), connect.pid)?;
            }
            () = tokio::time::sleep(AGAIN), if publisher.is_behind() => publisher.publish(Vec::new()).await,
            // Whoever asked may be gone.
            Some(ask) = asked.recv() => match ask {
                Ask::Health(asker) => _ = asker.send(health(state, &source)),
                Ask::Snapshot(asker) => _ = asker.send(Snapshot {
                    pods: enrolment.lines(catalog.pods()),
                    verdicts: counters.read().unwrap_or_else(|error| {
                        tracing::warn!("the admin pages show no verdicts: {error:#}");
                        Default::default()
                    }),
                    workers: workers.handles.clone(),
                    ..snapshot(state, &source, &catalog, &kubepods)
                }),
            }
        }
    }
}

/// `[::]` is every address of the host, where it has no IPv6, too.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let without_v6 = |error: &io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && without_v6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Until all objects are known. Before, a Service would be redirected that a Namespace not read yet opts out.
async fn sync(source: &mut Source, catalog: &mut Catalog, asked: &mut Asked, kubepods: &Path) -> Vec<table::Change> {
    let mut known = Vec::new();
    while !source.missing().is_empty() {
        tokio::select! {
            updates = source.next() => known.extend(catalog.apply(updates).services),
            Some(ask) = asked.recv() => match ask {
                Ask::Health(asker) => _ = asker.send(health(State::Syncing, source)),
                Ask::Snapshot(asker) => _ = asker.send(snapshot(State::Syncing, source, catalog, kubepods)),
            }
        }
    }
    source.report(catalog);
    known
}

fn health(state: State, source: &Source) -> Health {
    Health { state, missing: source.missing(), source_problems: source.problems().to_vec() }
}

/// What is known without workers and kernel.
fn snapshot(state: State, source: &Source, catalog: &Catalog, kubepods: &Path) -> Snapshot {
    Snapshot {
        health: health(state, source),
        cgroup: kubepods.to_owned(),
        built: catalog.built(),
        pods: Vec::new(),
        verdicts: Default::default(),
        workers: Vec::new(),
    }
}

/// The signals that end the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

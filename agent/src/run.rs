//! `sluice-agent run`: starts all parts in the order that never redirects a connection to where nobody listens, joins
//! them in one loop, and ends them in the opposite order. In: the configuration, signals; out: a served node. The parts
//! decide; nothing here looks at a byte or an object.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::admin::{self, Ask, Health, Snapshot, State, local};
use crate::check;
use crate::config::Run;
use crate::intercept::{Intercept, Settings};
use crate::pods::{self, CgroupView, Change, Discovery};
use crate::publish::{KernelChange, Publisher};
use crate::table::{self, Catalog};
use crate::watch::Source;
use crate::worker::TapRequest;
use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

mod access_log;
mod enrol;
mod levels;
mod memory;
pub mod otlp;
mod workers;

use enrol::Enrolment;
use levels::LogFilter;
use workers::Workers;

/// Questions of the admin pages.
type Asked = mpsc::Receiver<Ask>;

/// When what the kernel refused is tried again, if nothing else happens.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves the node until a signal or an error.
pub fn run(config: &Run) -> Result<()> {
    let log = levels::start(config)?;
    check::require_privileges()?;
    if let CgroupView::Containers(error) = pods::view_nodes_cgroups() {
        tracing::warn!(%error, "cannot enter the node's cgroup namespace: pods are found by guess (see sluice-agent check)");
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the control loop")?.block_on(serve(config, log))
}

/// Each connection takes two descriptors, and the usual limit is 1024.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is; many connections may be refused");
    }
}

async fn serve(config: &Run, mut log: LogFilter) -> Result<()> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let limits = config.limits().map_err(anyhow::Error::msg)?;
    let kubepods = pods::find_kubepods(config.site.cgroup.as_deref())?;
    let admin = listen(config.admin).await.with_context(|| {
        format!("--admin {}: cannot listen there; choose an address of this host and a free port", config.admin)
    })?;
    let admin_address = admin.local_addr().unwrap_or(config.admin);
    let (asks, mut asked) = mpsc::channel(16);
    let pages = admin::Pages::new(asks);
    // Whoever looks for it knows the address that was asked for.
    let named = if config.admin.port() == 0 { admin_address } else { config.admin };
    tokio::spawn(local::serve(local::listen(named)?, std::sync::Arc::clone(&pages)));
    tokio::spawn(admin::serve(admin, pages));
    tokio::spawn(memory::give_back());

    // What the kernel lacks shows before anything is waited for.
    let settings = Settings { own_cgroup: pods::own_cgroup(), log_level: config.bpf_log };
    let mut intercept = Intercept::load(&settings)?;
    let mut source = Source::open(&config.site).await?;
    let mut catalog = Catalog::new(config.site.node_name.clone());
    let known = tokio::select! {
        changes = sync(&mut source, &mut catalog, &mut asked, &kubepods, started) => changes,
        name = signals.next() => {
            tracing::info!(signal = name, "ended before the source was synced; nothing was attached");
            return Ok(());
        }
    };

    // What the programs say is read whether they speak or not: their level may rise.
    tokio::spawn(intercept.kernel_log()?);
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
    enrolment.learn(catalog.pods());
    let mut discovery = Discovery::start(&kubepods)?;

    // Declared last and so dropped first: on every way out the links close before the listeners.
    let mut intercept = intercept;
    let mut state = State::Scanning;
    let mut taps: Vec<TapRequest> =
        access_log::start(config)?.into_iter().chain(config.otlp.map(otlp::start)).collect();
    taps.iter().for_each(|tap| workers.tap(tap));
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
                    enrolment.learn(catalog.pods());
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
                    memory::forget_code();
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
                    taps: {
                        taps.retain(|tap| !tap.sink.is_closed());
                        taps.len()
                    },
                    pods: enrolment.lines(catalog.pods()),
                    verdicts: counters.read().unwrap_or_else(|error| {
                        tracing::warn!("the admin pages show no verdicts: {error:#}");
                        Default::default()
                    }),
                    workers: workers.handles.clone(),
                    ..snapshot(state, &source, &catalog, &kubepods, started)
                }),
                Ask::Owners(addrs, asker) => _ = asker.send(catalog.owners(&addrs)),
                Ask::Local(local::Ask::Tap(tap, asker)) => {
                    workers.tap(&tap);
                    taps.push(tap);
                    _ = asker.send(());
                }
                Ask::Local(local::Ask::LogLevel { bpf, log: filter, reply }) => {
                    _ = reply.send(log.set(bpf.as_deref(), filter.as_deref(), &mut intercept));
                }
                Ask::Local(local::Ask::Maps(asker)) => _ = asker.send(intercept.decoded()),
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
async fn sync(
    source: &mut Source,
    catalog: &mut Catalog,
    asked: &mut Asked,
    kubepods: &Path,
    started: Instant,
) -> Vec<table::Change> {
    let mut known = Vec::new();
    while !source.missing().is_empty() {
        tokio::select! {
            updates = source.next() => known.extend(catalog.apply(updates).services),
            Some(ask) = asked.recv() => match ask {
                Ask::Health(asker) => _ = asker.send(health(State::Syncing, source)),
                Ask::Snapshot(asker) => _ = asker.send(snapshot(State::Syncing, source, catalog, kubepods, started)),
                Ask::Owners(_, asker) => _ = asker.send(Default::default()),
                // Whoever asked hears that there is no answer yet.
                Ask::Local(_) => {}
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
fn snapshot(state: State, source: &Source, catalog: &Catalog, kubepods: &Path, started: Instant) -> Snapshot {
    Snapshot {
        health: health(state, source),
        node: catalog.node().cloned(),
        cgroup: kubepods.to_owned(),
        built: catalog.built(),
        pods: Vec::new(),
        pod_names: catalog.pods().names().clone(),
        host_network: catalog.pods().host_network.clone(),
        verdicts: Default::default(),
        workers: Vec::new(),
        sync_ages: source.sync_ages(),
        taps: 0,
        started,
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

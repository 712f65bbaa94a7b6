//! One handle for each map: the agent's types on this side, the contract's structs on the kernel's.
//! A handle owns a descriptor of its own, so that workers share nothing but the map. No policy in here.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Context as _;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use rustix::time::{ClockId, clock_gettime};
use sluice_ebpf::{
    Address, Config, FlowKey, MAX_PODS, MAX_SERVICES, MAX_WORKERS, POD_OPTED_OUT, PodKey, PodValue, ServiceValue,
    Unenrolled, Verdict,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::level_filters::LevelFilter;

use super::Settings;
use crate::addr::{NetnsCookie, OriginalDst, ServiceAddr};

/// SERVICES: the destinations that are redirected.
pub struct ServiceMap(HashMap<MapData, Address, ServiceValue>);

impl ServiceMap {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        Ok(Self(HashMap::try_from(map)?))
    }

    /// Starts (or goes on) redirecting connects to `service`. `id` is for people who read the map.
    pub fn insert(&mut self, service: ServiceAddr, id: u32) -> anyhow::Result<()> {
        self.0
            .insert(Address::from(service.socket_addr()), ServiceValue { id, flags: 0 }, 0)
            .with_context(|| format!("enter {service} into map SERVICES, which holds {MAX_SERVICES} Service ports"))
    }

    /// Stops redirecting connects to `service`; it need not be there.
    pub fn remove(&mut self, service: ServiceAddr) -> anyhow::Result<()> {
        removed(self.0.remove(&Address::from(service.socket_addr())))
            .with_context(|| format!("remove {service} from map SERVICES"))
    }

    /// All that are redirected now.
    pub fn all(&self) -> anyhow::Result<Vec<(ServiceAddr, u32)>> {
        self.0
            .iter()
            .map(|entry| {
                let (address, value) = entry.context("read map SERVICES")?;
                Ok((ServiceAddr::new(address.into()), value.id))
            })
            .collect()
    }
}

/// Where a pod's connects are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// Port of the listener on 127.0.0.1.
    pub port4: Option<NonZeroU16>,
    /// Port of the listener on ::1.
    pub port6: Option<NonZeroU16>,
    /// Whose heartbeat decides.
    pub worker: u32,
    /// The pod's connects are left alone.
    pub opted_out: bool,
}

/// PODS: the network namespaces whose connects are redirected.
pub struct PodMap(HashMap<MapData, PodKey, PodValue>);

impl PodMap {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        Ok(Self(HashMap::try_from(map)?))
    }

    /// Enrols a namespace, or changes its entry.
    pub fn insert(&mut self, netns: NetnsCookie, pod: PodEntry) -> anyhow::Result<()> {
        let port = |port: Option<NonZeroU16>| port.map_or(0, NonZeroU16::get);
        let flags = if pod.opted_out { POD_OPTED_OUT } else { 0 };
        let value = PodValue { port4: port(pod.port4), port6: port(pod.port6), worker: pod.worker, flags, pad: 0 };
        self.0.insert(PodKey { netns_cookie: netns.0 }, value, 0).with_context(|| {
            format!("enter network namespace {} into map PODS, which holds {MAX_PODS} namespaces", netns.0)
        })
    }

    /// Forgets a namespace; it need not be there.
    pub fn remove(&mut self, netns: NetnsCookie) -> anyhow::Result<()> {
        removed(self.0.remove(&PodKey { netns_cookie: netns.0 }))
            .with_context(|| format!("remove network namespace {} from map PODS", netns.0))
    }
}

/// FLOWS: where the connections that arrive at listeners were going.
pub struct Flows(HashMap<MapData, FlowKey, Address>);

impl Flows {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        Ok(Self(HashMap::try_from(map)?))
    }

    /// What the connection from `peer` in the namespace had dialled. The entry is gone afterwards.
    /// Nothing: the connection was not redirected by us.
    pub fn take(&mut self, netns: NetnsCookie, peer: SocketAddr) -> Option<OriginalDst> {
        let key = FlowKey { netns_cookie: netns.0, source: Address::from(peer), pad: 0 };
        let taken = self.0.get(&key, 0).and_then(|destination| removed(self.0.remove(&key)).map(|()| destination));
        match taken {
            Ok(destination) => Some(OriginalDst::new(destination.into())),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                tracing::warn!(%peer, netns = netns.0, %error, "map FLOWS does not answer; the connection is refused");
                None
            }
        }
    }
}

/// HEARTBEAT: one worker's sign of life.
pub struct Heartbeat {
    map: Array<MapData, sluice_ebpf::Heartbeat>,
    worker: u32,
}

impl Heartbeat {
    pub(super) fn new(map: Map, worker: u32) -> anyhow::Result<Self> {
        anyhow::ensure!(worker < MAX_WORKERS, "worker {worker}: at most {MAX_WORKERS} workers (--workers)");
        Ok(Self { map: Array::try_from(map)?, worker })
    }

    /// Stamps the present time.
    pub fn beat(&mut self) {
        let now = clock_gettime(ClockId::Monotonic);
        let monotonic_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        self.stamp(monotonic_ns);
    }

    /// Takes the sign of life back: connects of this worker's pods are left alone at once, until the next beat.
    pub fn stop(&mut self) {
        self.stamp(0);
    }

    /// Stamps a time of CLOCK_MONOTONIC.
    pub fn stamp(&mut self, monotonic_ns: u64) {
        if let Err(error) = self.map.set(self.worker, sluice_ebpf::Heartbeat { monotonic_ns }, 0) {
            tracing::warn!(worker = self.worker, %error, "map HEARTBEAT does not take a stamp; connects are left alone");
        }
    }
}

/// COUNTERS: how often each verdict was given.
pub struct Counters(PerCpuArray<MapData, sluice_ebpf::Counters>);

impl Counters {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        Ok(Self(PerCpuArray::try_from(map)?))
    }

    /// The sum over all CPUs since the programs were loaded.
    pub fn read(&self) -> anyhow::Result<sluice_ebpf::Counters> {
        let mut sum = sluice_ebpf::Counters::default();
        for cpu in self.0.get(&0, 0).context("read map COUNTERS")?.iter() {
            for &verdict in Verdict::ALL {
                *sum.get_mut(verdict) += cpu.get(verdict);
            }
        }
        Ok(sum)
    }
}

/// UNENROLLED: connects to Services from namespaces that nobody has enrolled.
pub struct UnenrolledConnects(AsyncFd<RingBuf<MapData>>);

impl UnenrolledConnects {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        let ring = RingBuf::try_from(map)?;
        Ok(Self(readable(ring).context("wait for map UNENROLLED")?))
    }

    /// The next one. Cancel safe: a record is taken only when it is returned.
    ///
    /// A namespace reports every connect until it is enrolled: enrol as opted out one that is never to be ours (a pod in the
    /// host's network). Records are lost while the ring is full.
    pub async fn next(&mut self) -> anyhow::Result<Unenrolled> {
        loop {
            let mut ready = self.0.readable_mut().await.context("wait for map UNENROLLED")?;
            if let Some(record) = ready.get_inner_mut().next() {
                return Ok(unenrolled(&record));
            }
            ready.clear_ready();
        }
    }
}

fn unenrolled(record: &[u8]) -> Unenrolled {
    let long = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("8 bytes"));
    let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("4 bytes"));
    Unenrolled {
        netns_cookie: long(std::mem::offset_of!(Unenrolled, netns_cookie)),
        cgroup_id: long(std::mem::offset_of!(Unenrolled, cgroup_id)),
        pid: word(std::mem::offset_of!(Unenrolled, pid)),
        pad: 0,
    }
}

/// Hands the programs' log lines to the process's logger as they come, for ever.
pub(super) fn forward_log(
    ebpf: &mut aya::Ebpf,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let logger = EbpfLogger::init(ebpf).context("the programs' log is taken already")?;
    let mut log = readable(logger).context("wait for the programs' log")?;
    Ok(async move {
        loop {
            let mut ready = log.readable_mut().await.context("wait for the programs' log")?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })
}

/// Registers a ring buffer with the runtime.
fn readable<T: AsFd + AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both rings own one descriptor, open as long as they live, and return that one.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// Writes CONFIG.
pub(super) fn configure(map: Map, settings: &Settings) -> anyhow::Result<()> {
    let mut config = Array::try_from(map)?;
    let value = Config { own_cgroup: settings.own_cgroup.unwrap_or(0), log_level: level(settings.log_level), pad: 0 };
    config.set(0, value, 0).context("write map CONFIG")
}

/// The contract's number for a level.
fn level(filter: LevelFilter) -> u32 {
    match filter.into_level() {
        None => 0,
        Some(tracing::Level::ERROR) => 1,
        Some(tracing::Level::WARN) => 2,
        Some(tracing::Level::INFO) => 3,
        Some(tracing::Level::DEBUG) => sluice_ebpf::LOG_DEBUG,
        Some(tracing::Level::TRACE) => sluice_ebpf::LOG_DEBUG + 1,
    }
}

/// Removing what is not there has done its work.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        // The kernel's word for it; aya passes it on as a failed system call.
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

//! The kernel half: loads the BPF programs, attaches them to a cgroup and hands out a typed handle for each map.
//! In: settings and a cgroup's path. Out: handles that speak the agent's address types.
//! The only place that names aya. Links are not pinned: they end with this process, however it ends.

mod attached;
mod decoded;
mod explain;
mod maps;
mod order;
mod probe;
mod syscall;

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context as _;
use aya::maps::{Map, MapData};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::sock_ops::SockOpsLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, SockOps};
use aya::{Ebpf, EbpfLoader};
use sluice_ebpf::names;
use tracing::level_filters::LevelFilter;

use order::LowNumbersTaken;

pub use attached::{Attached, Hook, Terms, attached};
pub use explain::Refusal;
pub use maps::{Counters, Flows, Heartbeat, PodEntry, PodMap, ServiceMap, UnenrolledConnects};
pub use probe::{map_kinds, system_call};
pub use sluice_ebpf::{Counters as VerdictCounts, HEARTBEAT_EVERY_NS, MAX_WORKERS, Unenrolled, Verdict};

/// The programs as `cargo xtask ebpf` builds them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/sluice.bpf.o"));

/// Programs of socket addresses, in the order in which they are attached: connect last, when all it relies on is there.
const REDIRECTS: [&str; 2] = [names::CONNECT4, names::CONNECT6];
const PEER_NAMES: [&str; 2] = [names::GETPEERNAME4, names::GETPEERNAME6];

/// What the programs are told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Id (inode number) of the agent's own cgroup, whose connects are left alone.
    pub own_cgroup: Option<u64>,
    /// From `DEBUG` on the programs say each verdict through [`Intercept::kernel_log`].
    pub log_level: LevelFilter,
}

/// The loaded programs and their links. Dropped: the links close first, then programs and maps go.
pub struct Intercept {
    /// Close before all else: after that no connect is redirected.
    redirects: Vec<CgroupSockAddrLink>,
    /// What connections that are already redirected still need.
    companions: Vec<Companion>,
    ebpf: Ebpf,
    settings: Settings,
}

/// A link that outlives the redirects. Held for its drop.
enum Companion {
    PeerName { _link: CgroupSockAddrLink },
    SockOps { _link: SockOpsLink },
}

impl Intercept {
    /// Loads maps and programs into the kernel; attaches nothing.
    ///
    /// Errors name the program or map that the kernel refused, and the cure.
    pub fn load(settings: &Settings) -> anyhow::Result<Self> {
        // Nothing in the object is relocated against this kernel's types, whose description takes megabytes.
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).map_err(explain::object)?;
        for name in [names::SOCK_OPS].into_iter().chain(PEER_NAMES).chain(REDIRECTS) {
            match program(&mut ebpf, name)? {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => anyhow::bail!(
                    "program {name} of the BPF object has an unexpected type; rebuild it: cargo xtask ebpf"
                ),
            }
            .map_err(|error| explain::program(name, error))?;
        }
        let intercept = Self { redirects: Vec::new(), companions: Vec::new(), ebpf, settings: *settings };
        intercept.configure()?;
        Ok(intercept)
    }

    /// Attaches all programs to `cgroup`: from now on connects from below it are redirected.
    ///
    /// The links get descriptors of higher numbers than all else: when a process is killed these close first, and no
    /// connect is sent to a listener that is closed already. May be called for more than one cgroup. Fails whole: without
    /// any link left.
    pub fn attach(&mut self, cgroup: &Path) -> anyhow::Result<()> {
        let directory = explain::open_cgroup(cgroup)?;
        let fd = directory.as_fd();
        let _low_numbers = LowNumbersTaken::take()
            .context("cannot give the links descriptors of high numbers; raise the limit of open files (ulimit -n)")?;
        let mut companions = Vec::new();
        let link = {
            let program: &mut SockOps = program(&mut self.ebpf, names::SOCK_OPS)?.try_into()?;
            program.attach(fd, CgroupAttachMode::Single).and_then(|id| program.take_link(id))
        };
        companions.push(Companion::SockOps { _link: link.map_err(|e| explain::attach(names::SOCK_OPS, cgroup, e))? });
        for name in PEER_NAMES {
            companions.push(Companion::PeerName { _link: self.attach_sock_addr(name, cgroup, &fd)? });
        }
        let mut redirects = Vec::new();
        for name in REDIRECTS {
            redirects.push(self.attach_sock_addr(name, cgroup, &fd)?);
        }
        self.companions.extend(companions);
        self.redirects.extend(redirects);
        Ok(())
    }

    /// Detaches connect4 and connect6: no further connect is redirected. sock_ops and getpeername stay until the drop,
    /// for connects that are just under way and for connections that drain; they do nothing for any other.
    pub fn detach_redirects(&mut self) {
        self.redirects.clear();
    }

    /// Changes from which level on the programs speak.
    pub fn set_log_level(&mut self, level: LevelFilter) -> anyhow::Result<()> {
        self.settings.log_level = level;
        self.configure()
    }

    /// SERVICES: what is redirected.
    pub fn services(&self) -> anyhow::Result<ServiceMap> {
        ServiceMap::new(self.map(names::SERVICES)?)
    }

    /// PODS: whose connects are redirected, and where to.
    pub fn pods(&self) -> anyhow::Result<PodMap> {
        PodMap::new(self.map(names::PODS)?)
    }

    /// FLOWS: where accepted connections were going. One handle for each worker.
    pub fn flows(&self) -> anyhow::Result<Flows> {
        Flows::new(self.map(names::FLOWS)?)
    }

    /// The sign of life of `worker`, to be given every [`HEARTBEAT_EVERY_NS`].
    pub fn heartbeat(&self, worker: u32) -> anyhow::Result<Heartbeat> {
        Heartbeat::new(self.map(names::HEARTBEAT)?, worker)
    }

    /// COUNTERS: what the programs did.
    pub fn counters(&self) -> anyhow::Result<Counters> {
        Counters::new(self.map(names::COUNTERS)?)
    }

    /// UNENROLLED: connects to Services from namespaces that PODS lacks. Can be taken once; needs a tokio runtime.
    pub fn unenrolled(&mut self) -> anyhow::Result<UnenrolledConnects> {
        let map =
            self.ebpf.take_map(names::UNENROLLED).context("the stream of unenrolled connects is taken already")?;
        UnenrolledConnects::new(map)
    }

    /// A task that hands the programs' log lines (target `sluice::kernel`) to the process's logger, for ever.
    /// Can be taken once; needs a tokio runtime, and the logger installed before.
    pub fn kernel_log(&mut self) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
        maps::forward_log(&mut self.ebpf)
    }

    fn attach_sock_addr(&mut self, name: &str, cgroup: &Path, fd: &impl AsFd) -> anyhow::Result<CgroupSockAddrLink> {
        let program: &mut CgroupSockAddr = program(&mut self.ebpf, name)?.try_into()?;
        let link = program.attach(fd, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
        link.map_err(|error| explain::attach(name, cgroup, error))
    }

    fn configure(&self) -> anyhow::Result<()> {
        maps::configure(self.map(names::CONFIG)?, &self.settings)
    }

    /// A handle of its own for the map of this name.
    fn map(&self, name: &str) -> anyhow::Result<Map> {
        let map = self.ebpf.map(name).with_context(|| format!("map {name} is not in the BPF object"))?;
        let (Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::PerCpuArray(data)) = map else {
            anyhow::bail!("map {name} of the BPF object has an unexpected type; rebuild it: cargo xtask ebpf");
        };
        let fd =
            data.fd().as_fd().try_clone_to_owned().with_context(|| format!("duplicate the handle of map {name}"))?;
        Ok(Map::from_map_data(MapData::from_fd(fd)?)?)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("program {name} is not in the BPF object; rebuild it: cargo xtask ebpf"))
}

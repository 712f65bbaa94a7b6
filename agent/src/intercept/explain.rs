//! Errors of the kernel in words: which program or map, what it lacks, and the cure.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use rustix::fs::{OFlags, fstatfs};

/// The oldest kernel with all that the programs call (`bpf_get_netns_cookie` in sock_ops).
const NEEDED: &str = "Linux 5.15";

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// What the kernel refuses, and what to do about it.
#[derive(Debug)]
pub struct Refusal {
    pub what: String,
    pub cure: String,
    /// The kernel speaks of privileges, not of what it has.
    pub not_permitted: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cure)
    }
}

fn refusal(error: impl std::error::Error + Send + Sync + 'static, what: String) -> anyhow::Error {
    let code = io_error(&error).and_then(io::Error::raw_os_error);
    let refusal = Refusal { what, cure: cure(code), not_permitted: matches!(code, Some(libc::EPERM | libc::EACCES)) };
    anyhow::Error::new(error).context(refusal)
}

/// Loading the object, which creates the maps, failed.
pub(super) fn object(error: EbpfError) -> anyhow::Error {
    let place = match &error {
        EbpfError::MapError(MapError::CreateError { name, .. }) => {
            format!("the kernel refuses to create BPF map {name}")
        }
        EbpfError::BtfError(_) => "the kernel refuses the BTF of the BPF object".into(),
        EbpfError::ProgramError(_) | EbpfError::MapError(_) => "the kernel refuses the BPF object".into(),
        _ => {
            return anyhow::Error::new(error)
                .context("the BPF object in this binary is damaged; rebuild it: cargo xtask ebpf");
        }
    };
    refusal(error, place)
}

/// Loading the program of this name failed.
pub(super) fn program(name: &str, error: ProgramError) -> anyhow::Error {
    refusal(error, format!("the kernel refuses BPF program {name}"))
}

/// Attaching the program of this name failed.
pub(super) fn attach(name: &str, cgroup: &Path, error: ProgramError) -> anyhow::Error {
    refusal(error, format!("cannot attach BPF program {name} to cgroup {}", cgroup.display()))
}

/// Opens a directory of a cgroup v2 hierarchy.
pub(super) fn open_cgroup(path: &Path) -> anyhow::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::CLOEXEC).bits() as i32;
    let shown = path.display();
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        let context = format!("cannot open cgroup {shown}: name the cgroup of the node's pods with --cgroup");
        anyhow::Error::new(error).context(context)
    })?;
    let magic = fstatfs(&directory)?.f_type as u64;
    anyhow::ensure!(
        magic == CGROUP2_MAGIC,
        "{shown} is not in a cgroup v2 hierarchy: name the v2 cgroup of the node's pods with --cgroup \
         (below /sys/fs/cgroup, or below /sys/fs/cgroup/unified where v1 is mounted as well)"
    );
    Ok(directory)
}

fn cure(code: Option<i32>) -> String {
    match code {
        Some(libc::EPERM | libc::EACCES) => {
            "the process lacks a privilege: run it as root, or with the capabilities BPF, PERFMON and NET_ADMIN \
             (in a pod: securityContext.privileged, or capabilities.add)"
                .into()
        }
        Some(libc::ENOMEM) => "the kernel has no memory for it: raise the memory limit of the agent's cgroup".into(),
        // EINVAL and its like: a helper, a hook or a kind of map that this kernel does not know.
        _ => too_old(),
    }
}

fn too_old() -> String {
    let running =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of an unknown release".into());
    format!(
        "{NEEDED} or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF is needed, this kernel is {}",
        running.trim_end()
    )
}

/// The system call's error at the bottom of the chain.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

//! Who else is at our hooks. In: a cgroup; out: for each hook the programs attached to that very group, in the order in
//! which they run, and on what terms. Attaches nothing and judges nothing.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use anyhow::Context as _;
use aya::programs::loaded_programs;

use super::explain;
use super::syscall::bpf;

/// `BPF_PROG_QUERY` of linux/bpf.h.
const PROG_QUERY: libc::c_int = 16;

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI`.
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// The kernel allows 64 programs for a group and a hook (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

/// A hook that sluice uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Connect4,
    Connect6,
    GetPeerName4,
    GetPeerName6,
    SockOps,
}

impl Hook {
    pub const ALL: [Hook; 5] = [Hook::Connect4, Hook::Connect6, Hook::GetPeerName4, Hook::GetPeerName6, Hook::SockOps];

    /// Whether a program there may change where a connect goes.
    pub fn redirects(self) -> bool {
        matches!(self, Hook::Connect4 | Hook::Connect6)
    }

    /// `enum bpf_attach_type` of linux/bpf.h.
    fn number(self) -> u32 {
        match self {
            Hook::SockOps => 3,
            Hook::Connect4 => 10,
            Hook::Connect6 => 11,
            Hook::GetPeerName4 => 29,
            Hook::GetPeerName6 => 30,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Connect4 => "connect4",
            Hook::Connect6 => "connect6",
            Hook::GetPeerName4 => "getpeername4",
            Hook::GetPeerName6 => "getpeername6",
            Hook::SockOps => "sock_ops",
        })
    }
}

/// What the programs of a group allow to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Others run as well.
    Shared,
    /// A group below may put its own in the place of these.
    Overridable,
    /// No other here and below.
    Exclusive,
}

/// The programs of one group at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub hook: Hook,
    pub terms: Terms,
    /// Names as the kernel has them, 15 bytes at most; `program 17` where the name may not be read.
    pub programs: Vec<String>,
}

/// What is attached to this group itself; hooks without a program are left out. Needs CAP_NET_ADMIN; names need
/// CAP_SYS_ADMIN.
pub fn attached(cgroup: &Path) -> anyhow::Result<Vec<Attached>> {
    let directory = explain::open_cgroup(cgroup)?;
    let mut found = Vec::new();
    for hook in Hook::ALL {
        let (flags, ids) = query(directory.as_fd(), hook)
            .with_context(|| format!("cannot ask which programs are attached to {} at {hook}", cgroup.display()))?;
        if ids.is_empty() {
            continue;
        }
        let terms = match flags {
            flags if flags & ALLOW_MULTI != 0 => Terms::Shared,
            flags if flags & ALLOW_OVERRIDE != 0 => Terms::Overridable,
            _ => Terms::Exclusive,
        };
        let names = names();
        let name = |id: &u32| names.get(id).cloned().unwrap_or_else(|| format!("program {id}"));
        found.push(Attached { hook, terms, programs: ids.iter().map(name).collect() });
    }
    Ok(found)
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

fn query(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<(u32, Vec<u32>)> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook.number(),
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        pad: 0,
    };
    // SAFETY: the layout is BPF_PROG_QUERY's, and `prog_ids` is the address of `prog_cnt` numbers that live until the end.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    let count = (query.prog_cnt as usize).min(MAX_PROGRAMS);
    Ok((query.attach_flags, ids[..count].to_vec()))
}

/// Of the programs that can be looked at.
fn names() -> HashMap<u32, String> {
    let named =
        |program: aya::programs::ProgramInfo| (program.id(), String::from_utf8_lossy(program.name()).into_owned());
    loaded_programs().filter_map(Result::ok).map(named).filter(|(_, name)| !name.is_empty()).collect()
}

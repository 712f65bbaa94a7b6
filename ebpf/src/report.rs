//! What becomes of a verdict: a counter always, a log line if CONFIG asks for it, a record for the agent if a pod is unknown.
//! Nothing here can change what a program does.

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_netns_cookie};
use aya_log_ebpf::debug;
use sluice_ebpf::{Address, Config, LOG_DEBUG, Unenrolled, Verdict};

use crate::maps::{CONFIG, COUNTERS, UNENROLLED};

/// Counts `verdict` on the connection to `destination` and, at level debug, says it.
#[inline(always)]
pub(crate) fn verdict(ctx: &impl EbpfContext, verdict: Verdict, destination: &Address) -> Verdict {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's value, which the kernel keeps as long as the program runs.
        let counter: *mut u64 = unsafe { (*counters).get_mut(verdict) };
        // SAFETY: as above. One instruction, because a program may be preempted by another on the same CPU.
        unsafe { asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1_u64) };
    }
    if config().is_some_and(|config| config.log_level >= LOG_DEBUG) {
        say(verdict, destination, netns_cookie(ctx));
    }
    verdict
}

/// The agent's settings.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Identity of the network namespace of the socket.
#[inline(always)]
pub(crate) fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the context of these program types.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Tells the agent of a namespace that it does not serve yet. A full ring loses the record; the next connect brings another.
#[inline(always)]
pub(crate) fn unenrolled(ctx: &impl EbpfContext, netns_cookie: u64) {
    // SAFETY: the helper has no preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let record = Unenrolled { netns_cookie, cgroup_id, pid: ctx.tgid(), pad: 0 };
    let _ = UNENROLLED.output(record, 0);
}

/// One line. A function of its own, so that the formatting's stack is not the programs'.
#[inline(never)]
fn say(verdict: Verdict, destination: &Address, netns_cookie: u64) {
    debug!(
        (),
        target: "sluice::kernel",
        "{}: {:i} port {} from network namespace {}",
        verdict.name(),
        destination.ip,
        destination.port,
        netns_cookie
    );
}

//! The programs: thin entry points, one per hook. Each asks its module for a [`Verdict`], reports it and lets the
//! system call go on; no verdict fails a connect. What decides is in `connect`, `sock_ops` and `getpeername`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod getpeername;
mod maps;
mod report;
mod sock_ops;

use aya_ebpf::macros::{cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use sluice_ebpf::Verdict;

/// What the kernel reads as "go on" from all of these hooks.
const GO_ON: i32 = 1;

/// The kernel's verdict for ours. Each case is named, so that a new one cannot be added without deciding here.
#[inline(always)]
const fn go_on(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Redirected
        | Verdict::NotTcp
        | Verdict::NotService
        | Verdict::BoundToDevice
        | Verdict::OwnTraffic
        | Verdict::PodNotEnrolled
        | Verdict::PodOptedOut
        | Verdict::NoListener
        | Verdict::WorkerStale
        | Verdict::NoStorage
        | Verdict::FlowRecorded
        | Verdict::FlowLost
        | Verdict::PeerRestored => GO_ON,
    }
}

#[cgroup_sock_addr(connect4)]
fn sluice_connect4(ctx: SockAddrContext) -> i32 {
    go_on(connect::v4(&ctx))
}

#[cgroup_sock_addr(connect6)]
fn sluice_connect6(ctx: SockAddrContext) -> i32 {
    go_on(connect::v6(&ctx))
}

#[cgroup_sock_addr(getpeername4)]
fn sluice_peer4(ctx: SockAddrContext) -> i32 {
    getpeername::v4(&ctx).map_or(GO_ON, go_on)
}

#[cgroup_sock_addr(getpeername6)]
fn sluice_peer6(ctx: SockAddrContext) -> i32 {
    getpeername::v6(&ctx).map_or(GO_ON, go_on)
}

#[sock_ops]
fn sluice_sockops(ctx: SockOpsContext) -> u32 {
    sock_ops::run(&ctx).map_or(GO_ON, go_on) as u32
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}

/// Read by the kernel: no helper that the programs call is reserved to GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

//! connect(): a destination that is a selected Service becomes the listener in the caller's own network namespace.
//! Checks stand in the order that makes a connect to anything else cheapest: one look-up and a counter.
//! Behind another agent's program the destination is that agent's listener, which is no Service: it stays.

use core::net::{Ipv4Addr, Ipv6Addr};
use core::ptr::{addr_of, addr_of_mut, copy_nonoverlapping};

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use sluice_ebpf::{Address, HEARTBEAT_STALE_NS, Original, POD_OPTED_OUT, PodKey, Verdict};

use crate::maps::{HEARTBEAT, ORIGINAL, PODS, SERVICES};
use crate::report;

const IPPROTO_TCP: u32 = 6;

/// 127.0.0.1 as the kernel holds it.
pub(crate) const LOOPBACK4_BE: u32 = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());

/// Of a socket of family AF_INET.
#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> Verdict {
    let destination = dialled4(ctx);
    let verdict = match redirect(ctx, &destination) {
        Ok(port) => {
            set4(ctx, LOOPBACK4_BE, port);
            Verdict::Redirected
        }
        Err(verdict) => verdict,
    };
    report::verdict(ctx, verdict, &destination)
}

/// Of a socket of family AF_INET6, which may dial a v4-mapped address.
#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> Verdict {
    let destination = dialled6(ctx);
    let verdict = match redirect(ctx, &destination) {
        Ok(port) => {
            set6(ctx, loopback(&destination).words_be(), port);
            Verdict::Redirected
        }
        Err(verdict) => verdict,
    };
    report::verdict(ctx, verdict, &destination)
}

/// Where listeners for `destination` are: the loopback address of its family.
#[inline(always)]
pub(crate) fn loopback(destination: &Address) -> Address {
    if destination.is_v4() {
        Address::from_v4_be(LOOPBACK4_BE, 0)
    } else {
        Address { ip: Ipv6Addr::LOCALHOST.octets(), port: 0, pad: 0 }
    }
}

/// The listener's port, with the original destination remembered; or why the address stays as it is.
#[inline(always)]
fn redirect(ctx: &SockAddrContext, destination: &Address) -> Result<u16, Verdict> {
    let sock_addr = ctx.sock_addr;
    // SAFETY (of this and the next): fields of the context, which the verifier lets these programs read.
    if unsafe { (*sock_addr).protocol } != IPPROTO_TCP {
        return Err(Verdict::NotTcp);
    }
    if SERVICES.get_ptr(destination).is_none() {
        return Err(Verdict::NotService);
    }
    if unsafe { (*(*sock_addr).__bindgen_anon_1.sk).bound_dev_if } != 0 {
        return Err(Verdict::BoundToDevice);
    }
    let own_cgroup = report::config().map_or(0, |config| config.own_cgroup);
    // SAFETY: the helper has no preconditions.
    if own_cgroup != 0 && own_cgroup == unsafe { bpf_get_current_cgroup_id() } {
        return Err(Verdict::OwnTraffic);
    }
    let netns_cookie = report::netns_cookie(ctx);
    // SAFETY: read at once below; at worst the pod was removed meanwhile and the entry is another pod's, whose port
    // nobody listens on in this namespace or whose worker is alive as well.
    let Some(pod) = (unsafe { PODS.get(PodKey { netns_cookie }) }) else {
        report::unenrolled(ctx, netns_cookie);
        return Err(Verdict::PodNotEnrolled);
    };
    if pod.flags & POD_OPTED_OUT != 0 {
        return Err(Verdict::PodOptedOut);
    }
    let port = if destination.is_v4() { pod.port4 } else { pod.port6 };
    if port == 0 {
        return Err(Verdict::NoListener);
    }
    if !is_alive(pod.worker) {
        return Err(Verdict::WorkerStale);
    }
    remember(ctx, Original { destination: *destination, redirected_port: port, pad: 0 })?;
    Ok(port)
}

/// Whether the worker has stamped its heartbeat lately.
#[inline(always)]
fn is_alive(worker: u32) -> bool {
    let Some(heartbeat) = HEARTBEAT.get_ptr(worker) else { return false };
    // SAFETY: the pointer is an array's value. Volatile because the agent writes it.
    let stamped = unsafe { addr_of!((*heartbeat).monotonic_ns).read_volatile() };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // Stamped after `now` was read, on another CPU: alive.
    stamped != 0 && now.saturating_sub(stamped) <= HEARTBEAT_STALE_NS
}

/// Keeps `original` with the socket, in place of what an earlier connect of the same socket left there.
#[inline(always)]
fn remember(ctx: &SockAddrContext, mut original: Original) -> Result<(), Verdict> {
    // SAFETY: the context's socket is valid while the program runs.
    let stored = unsafe { ORIGINAL.get_or_insert_ptr_mut(ctx, Some(&mut original)) };
    if stored.is_null() {
        return Err(Verdict::NoStorage);
    }
    // SAFETY: not null, this socket's own, and not on this program's stack.
    unsafe { copy_nonoverlapping(&original, stored, 1) };
    Ok(())
}

/// The context's address on a socket of family AF_INET.
#[inline(always)]
pub(crate) fn dialled4(ctx: &SockAddrContext) -> Address {
    // SAFETY: a field of the context; volatile because the verifier wants each field read as declared.
    let ip = unsafe { addr_of!((*ctx.sock_addr).user_ip4).read_volatile() };
    Address::from_v4_be(ip, port_be(ctx))
}

/// The context's address on a socket of family AF_INET6.
#[inline(always)]
pub(crate) fn dialled6(ctx: &SockAddrContext) -> Address {
    // SAFETY: as in `dialled4`.
    let word = |n: usize| unsafe { addr_of!((*ctx.sock_addr).user_ip6[n]).read_volatile() };
    Address::from_v6_be([word(0), word(1), word(2), word(3)], port_be(ctx))
}

#[inline(always)]
fn port_be(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as in `dialled4`. The port lies in the first two bytes of the word.
    unsafe { addr_of!((*ctx.sock_addr).user_port).read_volatile() as u16 }
}

/// Replaces the context's address on a socket of family AF_INET.
#[inline(always)]
pub(crate) fn set4(ctx: &SockAddrContext, ip_be: u32, port: u16) {
    // SAFETY: fields that these programs may write; volatile as in `dialled4`.
    unsafe {
        addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(ip_be);
        addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(u32::from(port.to_be()));
    }
}

/// Replaces the context's address on a socket of family AF_INET6.
#[inline(always)]
pub(crate) fn set6(ctx: &SockAddrContext, ip_be: [u32; 4], port: u16) {
    // SAFETY: as in `set4`.
    unsafe {
        addr_of_mut!((*ctx.sock_addr).user_ip6[0]).write_volatile(ip_be[0]);
        addr_of_mut!((*ctx.sock_addr).user_ip6[1]).write_volatile(ip_be[1]);
        addr_of_mut!((*ctx.sock_addr).user_ip6[2]).write_volatile(ip_be[2]);
        addr_of_mut!((*ctx.sock_addr).user_ip6[3]).write_volatile(ip_be[3]);
        addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(u32::from(port.to_be()));
    }
}

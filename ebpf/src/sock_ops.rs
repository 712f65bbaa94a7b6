//! TCP_CONNECT_CB, between the choice of the source port and the SYN: writes down where a redirected connection was going,
//! so that the agent finds it by the peer address of what it accepts.

use core::ptr::{addr_of, null_mut};

use aya_ebpf::bindings::{BPF_ANY, BPF_SOCK_OPS_TCP_CONNECT_CB};
use aya_ebpf::helpers::bpf_sk_storage_get;
use aya_ebpf::programs::SockOpsContext;
use sluice_ebpf::{Address, FlowKey, Original, Verdict};

use crate::getpeername::is_current;
use crate::maps::{FLOWS, ORIGINAL};
use crate::report;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Nothing if this is another event or a connection that is not redirected.
#[inline(always)]
pub(crate) fn run(ctx: &SockOpsContext) -> Option<Verdict> {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return None;
    }
    let original = original(ctx)?;
    let (source, peer) = match ctx.family() {
        AF_INET => ends4(ctx),
        AF_INET6 => ends6(ctx),
        _ => return None,
    };
    if !is_current(&original, &peer) {
        return None;
    }
    let key = FlowKey { netns_cookie: report::netns_cookie(ctx), source, pad: 0 };
    let verdict = match FLOWS.insert(key, original.destination, u64::from(BPF_ANY)) {
        Ok(()) => Verdict::FlowRecorded,
        Err(_) => Verdict::FlowLost,
    };
    Some(report::verdict(ctx, verdict, &original.destination))
}

#[inline(always)]
fn original(ctx: &SockOpsContext) -> Option<Original> {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the socket is not null and valid while the program runs; without a value to insert the helper only looks.
    // The value is this socket's own and copied at once.
    unsafe {
        let map = addr_of!(ORIGINAL).cast_mut().cast();
        bpf_sk_storage_get(map, sk.cast(), null_mut(), 0).cast::<Original>().as_ref().copied()
    }
}

/// Source and peer on a socket of family AF_INET.
#[inline(always)]
fn ends4(ctx: &SockOpsContext) -> (Address, Address) {
    // SAFETY: fields of the context; volatile because the verifier wants each field read as declared.
    let (local, remote) =
        unsafe { (addr_of!((*ctx.ops).local_ip4).read_volatile(), addr_of!((*ctx.ops).remote_ip4).read_volatile()) };
    (Address::from_v4_be(local, local_port_be(ctx)), Address::from_v4_be(remote, remote_port_be(ctx)))
}

/// Source and peer on a socket of family AF_INET6, whose addresses may be v4-mapped.
#[inline(always)]
fn ends6(ctx: &SockOpsContext) -> (Address, Address) {
    // SAFETY: as in `ends4`.
    let local = |n: usize| unsafe { addr_of!((*ctx.ops).local_ip6[n]).read_volatile() };
    let remote = |n: usize| unsafe { addr_of!((*ctx.ops).remote_ip6[n]).read_volatile() };
    (
        Address::from_v6_be([local(0), local(1), local(2), local(3)], local_port_be(ctx)),
        Address::from_v6_be([remote(0), remote(1), remote(2), remote(3)], remote_port_be(ctx)),
    )
}

/// The context has the local port as a plain number.
#[inline(always)]
fn local_port_be(ctx: &SockOpsContext) -> u16 {
    // SAFETY: as in `ends4`.
    (unsafe { addr_of!((*ctx.ops).local_port).read_volatile() } as u16).to_be()
}

/// The context has the remote port in network order, in the last two bytes of the word.
#[inline(always)]
fn remote_port_be(ctx: &SockOpsContext) -> u16 {
    // SAFETY: as in `ends4`.
    let word = unsafe { addr_of!((*ctx.ops).remote_port).read_volatile() };
    (u32::from_be(word) as u16).to_be()
}

//! getpeername(): a redirected socket shows the address its application dialled, in the socket's own family.
//! A socket that has been connected elsewhere since shows its true peer.

use aya_ebpf::programs::SockAddrContext;
use sluice_ebpf::{Address, Original, Verdict};

use crate::connect::{dialled4, dialled6, loopback, set4, set6};
use crate::maps::ORIGINAL;
use crate::report;

/// Of a socket of family AF_INET; nothing if the socket is not redirected.
#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> Option<Verdict> {
    let original = original(ctx)?;
    if !original.destination.is_v4() || !is_current(&original, &dialled4(ctx)) {
        return None;
    }
    set4(ctx, original.destination.words_be()[3], original.destination.port);
    Some(report::verdict(ctx, Verdict::PeerRestored, &original.destination))
}

/// Of a socket of family AF_INET6; nothing if the socket is not redirected.
#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> Option<Verdict> {
    let original = original(ctx)?;
    if !is_current(&original, &dialled6(ctx)) {
        return None;
    }
    set6(ctx, original.destination.words_be(), original.destination.port);
    Some(report::verdict(ctx, Verdict::PeerRestored, &original.destination))
}

/// Whether `peer` is still the listener that the socket was sent to.
#[inline(always)]
pub(crate) fn is_current(original: &Original, peer: &Address) -> bool {
    peer.port == original.redirected_port && peer.words_be() == loopback(&original.destination).words_be()
}

#[inline(always)]
fn original(ctx: &SockAddrContext) -> Option<Original> {
    // SAFETY: the context's socket is valid while the program runs; the value is this socket's own and copied at once.
    unsafe { ORIGINAL.get_ptr_mut(ctx).as_ref().copied() }
}

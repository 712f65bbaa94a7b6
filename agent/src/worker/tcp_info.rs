//! The kernel's account of one TCP connection (TCP_INFO, linux/tcp.h). In: a socket; out: the numbers that matter here.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

/// What the kernel knows of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    /// The smoothed time of a way there and back.
    pub(super) rtt: Duration,
    /// Segments that are not acknowledged.
    pub(super) unacknowledged: u32,
    /// Bytes written that were not sent yet.
    pub(super) unsent_bytes: u32,
    /// Retransmissions in a row of the oldest one.
    pub(super) retransmits: u32,
    /// Retransmissions since the connection began.
    pub(super) all_retransmits: u32,
    /// Bytes that the peer has acknowledged since the connection began.
    pub(super) acknowledged_bytes: u64,
    /// Probes of a full window in a row.
    pub(super) probes: u32,
    /// How long ago data was sent,
    pub(super) sent_before: Duration,
    /// and the peer was heard: an ACK or data.
    pub(super) heard_before: Duration,
}

/// `struct tcp_info` up to the last field that is needed; the libc crate's ends earlier. A kernel that knows less leaves
/// the rest at zero.
#[repr(C)]
struct TcpInfo {
    first: libc::tcp_info,
    pacing_rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segs_out_and_in: [u32; 2],
    notsent_bytes: u32,
}

pub(super) fn of(socket: &impl AsFd) -> io::Result<Info> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: TcpInfo = unsafe { std::mem::zeroed() };
    let mut size = size_of::<TcpInfo>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: both pointers are to locals that outlive the call, and `size` is the size of what the first points to.
    let returned =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut size) };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    let TcpInfo { first, bytes_acked, notsent_bytes, .. } = info;
    let before = |ms: u32| Duration::from_millis(ms.into());
    Ok(Info {
        rtt: Duration::from_micros(first.tcpi_rtt.into()),
        unacknowledged: first.tcpi_unacked,
        unsent_bytes: notsent_bytes,
        retransmits: first.tcpi_retransmits.into(),
        all_retransmits: first.tcpi_total_retrans,
        acknowledged_bytes: bytes_acked,
        probes: first.tcpi_probes.into(),
        sent_before: before(first.tcpi_last_data_sent),
        heard_before: before(first.tcpi_last_ack_recv.min(first.tcpi_last_data_recv)),
    })
}

//! Listeners inside a pod's namespace. In: the open nsfs file; out: sockets that listen there, and the namespace's
//! cookie. Accepts nothing.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::{FoundPod, PodUid};
use crate::addr::NetnsCookie;
use crate::netns::Home;

/// Connections that may wait for accept(). With the usual 128 a connect storm loses SYNs and waits a second for each;
/// the kernel lowers it to the namespace's `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens the listeners inside the namespace. Fails while its loopback interface is down.
pub(super) fn inside(home: &Home, netns: File, uid: &PodUid) -> Result<FoundPod> {
    let inside = home.run_in(netns.as_fd(), || {
        let listener4 = listener(Ipv4Addr::LOCALHOST.into())?;
        let cookie = cookie(&listener4)?;
        Ok::<_, io::Error>((listener4, cookie, listener(Ipv6Addr::LOCALHOST.into())))
    });
    let (listener4, cookie, listener6) =
        inside.context("cannot enter the namespace")?.context("cannot listen on 127.0.0.1 in the namespace")?;
    let listener6 = match listener6 {
        Ok(listener) => Some(listener.into()),
        Err(error) => {
            tracing::debug!(pod = %uid, %error, "no listener on ::1: IPv6 connects of this pod are left alone");
            None
        }
    };
    Ok(FoundPod { uid: uid.clone(), cookie, netns, listener4: listener4.into(), listener6 })
}

/// The cookie of a namespace that nothing shall listen in. Fails where this process may not enter it.
pub fn cookie_of(home: &Home, netns: &File) -> io::Result<NetnsCookie> {
    home.run_in(netns.as_fd(), || cookie(&Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?))?
}

fn listener(ip: IpAddr) -> io::Result<Socket> {
    let address = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Of the namespace that the socket was made in (socket(7), SO_NETNS_COOKIE; Linux 5.14).
fn cookie(socket: &Socket) -> io::Result<NetnsCookie> {
    let mut cookie = 0_u64;
    let mut size = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and `size` is the size of what the first points to.
    let returned = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if returned == 0 { Ok(NetnsCookie(cookie)) } else { Err(io::Error::last_os_error()) }
}

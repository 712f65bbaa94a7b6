//! One nonblocking TCP socket with its readiness, and the making of sockets inside a pod's namespace.
//! Registered once, edge-triggered: an edge sets a flag, and only the kernel's refusal (or a short read or write, which
//! tells the same without another call) clears it. It decides nothing about connections.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Type};

use super::life::{self, Life};
use super::tcp_info;
use crate::netns::Home;

#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    readable: bool,
    writable: bool,
    /// The peer's end or an error is somewhere behind the waiting bytes; no further edge would announce it.
    ends: bool,
    connecting: bool,
    life: Life,
}

pub(super) enum Took {
    Bytes(usize),
    /// Read only: the peer has ended its sending direction.
    End,
    /// Not now; an edge will come.
    Blocked,
    Failed(io::Error),
}

impl Socket {
    pub(super) fn accepted(stream: TcpStream) -> Self {
        Self { stream, readable: false, writable: false, ends: false, connecting: false, life: Life::default() }
    }

    pub(super) fn dialled(stream: TcpStream) -> Self {
        Self { connecting: true, ..Self::accepted(stream) }
    }

    pub(super) fn source(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(super) fn handle_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.ends |= event.is_read_closed() || event.is_error();
    }

    pub(super) fn can_read(&self) -> bool {
        self.readable && !self.connecting
    }

    pub(super) fn can_write(&self) -> bool {
        self.writable && !self.connecting
    }

    pub(super) fn is_connected(&self) -> bool {
        !self.connecting
    }

    /// Whether a dialled socket has arrived. None: not yet.
    pub(super) fn connect_result(&mut self) -> Option<io::Result<()>> {
        if !self.writable {
            return None;
        }
        match self.stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Some(Err(error)),
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.connecting = false;
                Some(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.writable = false;
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// `buffer` must not be empty.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Took {
        loop {
            return match self.stream.read(buffer) {
                Ok(0) => {
                    self.readable = false;
                    Took::End
                }
                Ok(n) => {
                    self.readable = n == buffer.len() || self.ends;
                    Took::Bytes(n)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    Took::Blocked
                }
                Err(error) => Took::Failed(error),
            };
        }
    }

    /// `bytes` must not be empty.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Took {
        loop {
            return match self.stream.write(bytes) {
                Ok(n) => {
                    self.writable = n == bytes.len();
                    self.life.wrote();
                    Took::Bytes(n)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    Took::Blocked
                }
                Err(error) => Took::Failed(error),
            };
        }
    }

    /// A write has failed: nothing more goes out. What the peer said before it broke is still to be read, and its end or
    /// an error behind that.
    pub(super) fn only_read(&mut self) {
        self.writable = false;
        self.readable = true;
        self.ends = true;
    }

    /// Whether its peer has answered nothing for `gone_after`.
    pub(super) fn lost_its_peer(&mut self, now: Instant, gone_after: Duration) -> bool {
        !self.connecting && self.life.is_gone(&self.stream, now, gone_after)
    }

    /// The kernel's account of it; none while it connects, or when it is broken.
    pub(super) fn info(&self) -> Option<tcp_info::Info> {
        (!self.connecting).then(|| tcp_info::of(&self.stream).ok()).flatten()
    }

    /// Its peer has answered all that it was asked.
    pub(super) fn answered(&mut self) {
        self.life.answered();
    }

    /// Whether something was written that may not be acknowledged, as far as the last look told.
    pub(super) fn is_owed(&self) -> bool {
        self.life.is_owed()
    }

    /// Whether its peer has left the last tries unanswered.
    pub(super) fn has_stalled(&mut self, now: Instant) -> bool {
        !self.connecting && self.life.is_stalled(&self.stream, now)
    }

    /// Ends our sending direction. A socket that is already broken says so at the next read.
    pub(super) fn end(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.life.wrote();
    }

    /// Closes with a reset, so that the peer does not take a broken connection for an ended one.
    pub(super) fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// What every connection gets. Set on a listener, its accepted sockets inherit it without a call of their own.
pub(super) fn set_options(socket: &SockRef<'_>, gone_after: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    life::set_options(socket, gone_after)
}

/// Begins a connection that leaves from `netns`, with an address of that pod.
pub(super) fn dial(home: &Home, netns: BorrowedFd<'_>, to: SocketAddr, gone_after: Duration) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let make = || socket2::Socket::new_raw(Domain::for_address(to), kind, Some(Protocol::TCP));
    let socket = home.run_in(netns, make)??;
    set_options(&SockRef::from(&socket), gone_after)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_said_before_it_reset_the_connection_is_read_after_a_write_that_failed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = Socket::accepted(TcpStream::from_std(ours));
        let (mut peer, _) = listener.accept().unwrap();
        ours.writable = true;
        assert!(matches!(ours.write(b"never read"), Took::Bytes(10)));
        peer.write_all(b"last words").unwrap();
        // With bytes unread, this is a reset.
        drop(peer);
        while !matches!(ours.write(b"more"), Took::Failed(_)) {}
        ours.only_read();
        let mut buffer = [0; 100];
        assert!(ours.can_read() && !ours.can_write());
        assert!(matches!(ours.read(&mut buffer), Took::Bytes(10)));
        assert!(ours.can_read(), "its end is still to come");
        assert!(matches!(ours.read(&mut buffer), Took::End | Took::Failed(_)));
    }
}

//! Listeners: redirected connections in, each matched with what the kernel remembers of it. What is not ours is closed.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use super::arena::Key;
use super::event_loop::{Kind, Worker};
use super::relay::Pair;
use super::socket::{Socket, set_options};
use super::timers::{Alarm, Timer};

/// Most connections accepted in one turn.
const A_TURN: usize = 16;
/// Most turns of a listener that closes: enough for a backlog of 4096.
const LAST_TURNS: usize = 4096 / A_TURN;
/// When the process has no descriptor left, connections wait in the backlog this long before the next try.
const BACK_OFF: Duration = Duration::from_millis(100);
/// A replaced listener is served this long yet: the kernel sends connections to it until the new one is published.
const REPLACED: Duration = Duration::from_secs(1);

pub(super) struct Listener {
    pub(super) pod: Key,
    pub(super) listener: TcpListener,
    pub(super) queued: bool,
    /// Another has taken its place; its alarm closes it.
    pub(super) replaced: bool,
    pub(super) alarm: Alarm,
}

impl Worker {
    /// Serves a listener that was made in the pod's namespace.
    pub(super) fn listen(&mut self, pod: Key, listener: std::net::TcpListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        set_options(&SockRef::from(&listener), self.io.settings.gone_after)?;
        let listener = TcpListener::from_std(listener);
        let io = &mut self.io;
        let key =
            io.listeners.insert(Listener { pod, listener, queued: false, replaced: false, alarm: Alarm::default() });
        let registered = io.register_listener(key);
        if registered.is_err() {
            io.listeners.remove(key);
        }
        registered
    }

    pub(super) fn accept_turn(&mut self, key: Key) {
        let Some(listener) = self.io.listeners.get_mut(key) else { return };
        listener.queued = false;
        let pod = listener.pod;
        for _ in 0..A_TURN {
            let Some(listener) = self.io.listeners.get_mut(key) else { return };
            match listener.listener.accept() {
                Ok((stream, peer)) => self.accepted(pod, stream, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if let Some(pod) = self.pods.get_mut(pod) {
                        pod.accepts_failed += 1;
                    }
                    if !std::mem::replace(&mut self.accept_warned, true) {
                        tracing::warn!(%error, "cannot accept connections; is the limit of open files reached? They wait");
                    }
                    let due = self.io.now + BACK_OFF;
                    self.io.timers.set(&mut listener.alarm, Timer::Listener(key), Some(due));
                    return;
                }
            }
        }
        self.io.enqueue_listener(key);
    }

    fn accepted(&mut self, pod_key: Key, stream: TcpStream, peer: SocketAddr) {
        let Some(pod) = self.pods.get_mut(pod_key) else { return };
        pod.accepted += 1;
        if let Some(draining) = &mut self.draining {
            draining.last_accept = self.io.now;
        }
        let Some(original) = (self.flows)(pod.cookie, peer) else {
            pod.without_flow += 1;
            return;
        };
        let service = self.services.dial(original.service(), &mut self.io.rng);
        let pair = match &service {
            Some(load) => Pair::to_service(load, self.io.now, self.io.settings.patience),
            None => Pair::to_original(original),
        };
        let Some(key) = self.io.add(pod_key, Socket::accepted(stream), Kind::Relay(Box::new(pair))) else { return };
        if service.is_some() { self.arm_relay(key) } else { self.dial_relay(key) }
    }

    /// New listeners are about to take over.
    pub(super) fn replace_listeners(&mut self, pod: Key) {
        let io = &mut self.io;
        for key in io.listeners.keys(|listener| listener.pod == pod) {
            let Some(listener) = io.listeners.get_mut(key) else { continue };
            listener.replaced = true;
            io.timers.set(&mut listener.alarm, Timer::Listener(key), Some(io.now + REPLACED));
        }
    }

    /// Time to try again, or to close.
    pub(super) fn listener_due(&mut self, key: Key) {
        let Some(listener) = self.io.listeners.get(key) else { return };
        if listener.replaced { self.close_listener(key) } else { self.io.enqueue_listener(key) }
    }

    /// Takes what waits in the backlog and closes.
    pub(super) fn close_listener(&mut self, key: Key) {
        for _ in 0..LAST_TURNS {
            self.accept_turn(key);
            if !self.io.listeners.get(key).is_some_and(|listener| listener.queued) {
                break;
            }
        }
        if let Some(mut gone) = self.io.listeners.remove(key) {
            // Its file may be open elsewhere too, and would then go on to raise events.
            self.io.deregister(&mut gone.listener);
        }
    }
}

/// Errors that accept(2) passes on from one connection: the next one may be fine.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
        || matches!(
            error.raw_os_error(),
            Some(
                libc::EPROTO
                    | libc::ENETDOWN
                    | libc::ENOPROTOOPT
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::EHOSTUNREACH
                    | libc::EOPNOTSUPP
                    | libc::ENETUNREACH
            )
        )
}

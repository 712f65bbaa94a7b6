//! Connections that are not (yet) known to speak HTTP/2: detection, the choice and dial of one endpoint, bytes both ways.
//! What to do is decided by `detect` and `opaque`; here is the IO between a client's socket and an endpoint's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;

use super::arena::{Key, Role};
use super::event_loop::{Kind, Worker};
use super::http2::SMALL_TURN;
use super::socket::{Socket, Took, dial};
use crate::addr::OriginalDst;
use crate::balance::{Reach, ServiceLoad};
use crate::detect::{self, Detection, Patience, Step};
use crate::opaque::{Choice, Pipe};

pub(super) struct Pair {
    endpoint: Option<Socket>,
    to: Destination,
    /// None: opaque for good.
    detection: Option<Detection>,
    /// What the client said first was TLS.
    tls: bool,
    /// Detection has run out of patience, and what it wants then is to wait until here: see [`Pace`].
    turn_at: Option<Instant>,
    /// Set while the endpoint is being dialled.
    dialling: Option<Dialling>,
    /// Client to endpoint.
    up: Pipe,
    /// Endpoint to client. Under detection it holds back what the endpoint has said.
    down: Pipe,
}

enum Destination {
    Service(Rc<ServiceLoad>, Choice),
    /// The Service is not ours any more: its address is dialled as the pod would have, and kube-proxy serves.
    Original {
        to: OriginalDst,
        dialled: bool,
    },
}

/// How long a dial is waited for.
struct Dialling {
    by: Instant,
    /// Only because another endpoint is better: it may yet answer.
    given_up: bool,
}

/// What a turn came to.
enum Next {
    Wait,
    /// There is more to do.
    Again,
    Http2,
    Dial,
    DialFailed(io::Error),
    /// Both directions have ended.
    Done,
    /// One side broke.
    Reset(io::Error),
}

impl Pair {
    pub(super) fn to_service(service: &Rc<ServiceLoad>, now: Instant, patience: Patience) -> Self {
        let to = Destination::Service(Rc::clone(service), Choice::default());
        Self { detection: Some(Detection::new(now, patience)), ..Self::new(to) }
    }

    pub(super) fn to_original(to: OriginalDst) -> Self {
        Self::new(Destination::Original { to, dialled: false })
    }

    fn new(to: Destination) -> Self {
        Self {
            endpoint: None,
            to,
            detection: None,
            tls: false,
            turn_at: None,
            dialling: None,
            up: Pipe::default(),
            down: Pipe::default(),
        }
    }

    pub(super) fn reset(self) {
        if let Some(endpoint) = self.endpoint {
            endpoint.reset();
        }
    }

    /// Something became ready at the endpoint's socket.
    pub(super) fn handle_event(&mut self, event: &Event) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.handle_event(event);
        }
    }

    /// Whether its endpoint is gone: see [`Socket::lost_its_peer`].
    pub(super) fn lost_its_peer(&mut self, now: Instant, gone_after: Duration) -> bool {
        self.endpoint.as_mut().is_some_and(|endpoint| endpoint.lost_its_peer(now, gone_after))
    }

    pub(super) fn is_detecting(&self) -> bool {
        self.detection.is_some()
    }

    /// The Service that it is relayed to, if it is still one, and whether by TLS.
    pub(super) fn service(&self) -> Option<(&Rc<ServiceLoad>, bool)> {
        match &self.to {
            Destination::Service(service, _) => Some((service, self.tls)),
            Destination::Original { .. } => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let detection = self
            .detection
            .as_ref()
            .and_then(Detection::deadline)
            .map(|at| self.turn_at.map_or(at, |turn| turn.max(at)));
        [self.dialling.as_ref().map(|dialling| dialling.by), detection].into_iter().flatten().min()
    }

    fn turn(&mut self, client: &mut Socket, reach: &Reach, now: Instant, pace: &mut Pace, buffer: &mut [u8]) -> Next {
        if let Err(error) = self.check_dial(reach, now) {
            return Next::DialFailed(error);
        }
        if self.detection.is_some() {
            match self.detect(client, now, pace, buffer) {
                Ok(Step::Wait) if self.has_more(client) => return Next::Again,
                Ok(Step::Wait) => return Next::Wait,
                Ok(Step::Http2) => return Next::Http2,
                Ok(Step::Dial) => return Next::Dial,
                Ok(Step::Opaque) => {
                    self.tls = detect::is_tls(self.up.output());
                    self.detection = None;
                }
                Err(error) => return Next::Reset(error),
            }
        }
        let Some(endpoint) = &mut self.endpoint else { return Next::Dial };
        if let Err(error) = carry(endpoint, client, &mut self.down, buffer) {
            return Next::Reset(error);
        }
        if let Err(error) = carry(client, endpoint, &mut self.up, buffer) {
            // What the endpoint said before it broke still arrives, if the client takes it.
            let _ = carry(endpoint, client, &mut self.down, buffer);
            return Next::Reset(error);
        }
        pass_end(client, &mut self.down);
        pass_end(endpoint, &mut self.up);
        if self.up.is_done() && self.down.is_done() {
            Next::Done
        } else if self.has_more(client) {
            Next::Again
        } else {
            Next::Wait
        }
    }

    fn check_dial(&mut self, reach: &Reach, now: Instant) -> io::Result<()> {
        let (Some(endpoint), Some(dialling)) = (&mut self.endpoint, &self.dialling) else { return Ok(()) };
        match endpoint.connect_result() {
            Some(Ok(())) => {
                self.dialling = None;
                if let Destination::Service(_, choice) = &mut self.to {
                    choice.connected(reach);
                }
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None if dialling.by <= now => Err(io::ErrorKind::TimedOut.into()),
            None => Ok(()),
        }
    }

    /// Reads what detection needs, client's bytes first.
    fn detect(&mut self, client: &mut Socket, now: Instant, pace: &mut Pace, buffer: &mut [u8]) -> io::Result<Step> {
        let Some(detection) = &mut self.detection else { return Ok(Step::Opaque) };
        if client.can_read() {
            // Frames that come with the preface are the first turn's.
            let room = self.up.room().min(SMALL_TURN);
            let step = match client.read(&mut buffer[..room]) {
                Took::Bytes(n) => {
                    self.up.push(&buffer[..n]);
                    detection.handle_client(now, self.up.output())
                }
                Took::End => {
                    self.up.end();
                    detection.handle_eof()
                }
                Took::Blocked => Step::Wait,
                Took::Failed(error) => return Err(error),
            };
            if step != Step::Wait {
                return Ok(step);
            }
        }
        let room = self.down.room().min(buffer.len());
        if let Some(endpoint) = self.endpoint.as_mut().filter(|endpoint| endpoint.can_read() && room > 0) {
            let step = match endpoint.read(&mut buffer[..room]) {
                Took::Bytes(n) => {
                    self.down.push(&buffer[..n]);
                    detection.handle_server(self.down.output())
                }
                Took::End => {
                    self.down.end();
                    detection.handle_eof()
                }
                Took::Blocked => Step::Wait,
                Took::Failed(error) => return Err(error),
            };
            if step != Step::Wait {
                return Ok(step);
            }
        }
        if detection.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(Step::Wait);
        }
        if now < *self.turn_at.get_or_insert_with(|| pace.next(now)) {
            return Ok(Step::Wait);
        }
        self.turn_at = None;
        Ok(detection.handle_deadline(now))
    }

    /// Whether another turn would move something: derived from flags and pipes, so that no wake-up is forgotten.
    fn has_more(&self, client: &Socket) -> bool {
        let endpoint = self.endpoint.as_ref();
        if self.detection.is_some() {
            return client.can_read() || (self.down.room() > 0 && endpoint.is_some_and(Socket::can_read));
        }
        let moves = |from: &Socket, to: &Socket, pipe: &Pipe| {
            (from.can_read() && pipe.room() > 0)
                || (to.can_write() && !pipe.output().is_empty())
                || (to.is_connected() && pipe.wants_shutdown())
        };
        endpoint.is_some_and(|endpoint| moves(client, endpoint, &self.up) || moves(endpoint, client, &self.down))
    }
}

/// One direction's share of a turn: what waits, then one read that is written at once.
fn carry(from: &mut Socket, to: &mut Socket, pipe: &mut Pipe, buffer: &mut [u8]) -> io::Result<()> {
    if to.can_write() && !pipe.output().is_empty() {
        match to.write(pipe.output()) {
            Took::Bytes(n) => pipe.consumed(n),
            Took::End | Took::Blocked => {}
            Took::Failed(error) => return Err(error),
        }
    }
    let room = pipe.room().min(buffer.len());
    if from.can_read() && room > 0 {
        match from.read(&mut buffer[..room]) {
            Took::Bytes(n) => {
                let mut written = 0;
                if to.can_write() && pipe.output().is_empty() {
                    match to.write(&buffer[..n]) {
                        Took::Bytes(taken) => written = taken,
                        Took::End | Took::Blocked => {}
                        Took::Failed(error) => return Err(error),
                    }
                }
                pipe.push(&buffer[written..n]);
            }
            Took::End => pipe.end(),
            Took::Blocked => {}
            Took::Failed(error) => return Err(error),
        }
    }
    Ok(())
}

fn pass_end(to: &mut Socket, pipe: &mut Pipe) {
    if to.is_connected() && pipe.wants_shutdown() {
        to.end();
        pipe.shut();
    }
}

/// When connections that say nothing are dialled for: so many of a pod at once, the others one by one. A thousand of them
/// cost their owner nothing, and the endpoints as much as if it had called them all at the same moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    free_at: Option<Instant>,
}

impl Pace {
    const AT_ONCE: u32 = 32;
    const APART: Duration = Duration::from_millis(5);

    /// The next turn, which is taken thereby.
    fn next(&mut self, now: Instant) -> Instant {
        let ahead = Self::APART * Self::AT_ONCE;
        let free_at = self.free_at.map_or(now, |at| at.max(now)) + Self::APART;
        self.free_at = Some(free_at);
        free_at.checked_sub(ahead).map_or(now, |at| at.max(now))
    }
}

impl Worker {
    pub(super) fn relay_turn(&mut self, key: Key) {
        let io = &mut self.io;
        let Some(conn) = io.conns.get_mut(key) else { return };
        let Kind::Relay(pair) = &mut conn.kind else { return };
        let Some(pod) = self.pods.get_mut(conn.pod) else { return };
        let next = pair.turn(&mut conn.socket, &pod.reach, io.now, &mut pod.pace, &mut io.buffer);
        pod.log_reach();
        match next {
            Next::Wait => {}
            Next::Again => io.enqueue(key),
            Next::Http2 => return self.relay_is_http2(key),
            Next::Dial => return self.dial_relay(key),
            Next::DialFailed(error) => {
                self.relay_dial_failed(key, &error);
                return self.dial_relay(key);
            }
            Next::Done => {
                io.conns.remove(key);
                return;
            }
            Next::Reset(error) => {
                tracing::trace!(%error, "a relayed connection broke");
                return self.reset_relay(key);
            }
        }
        self.arm_relay(key);
    }

    /// Dials the next endpoint that was not tried; resets the client if none is left, as no one would have answered it.
    pub(super) fn dial_relay(&mut self, key: Key) {
        loop {
            let io = &mut self.io;
            let Some(conn) = io.conns.get_mut(key) else { return };
            let Kind::Relay(pair) = &mut conn.kind else { return };
            let Some(pod) = self.pods.get(conn.pod) else { return };
            let Some(to) = pair.destination(&pod.reach, io.now, &mut io.rng) else { return self.reset_relay(key) };
            let stream = dial(&io.home, pod.netns.as_fd(), to, io.settings.gone_after);
            let dialled = stream.map(Socket::dialled).and_then(|mut socket| {
                io.register(&mut socket, key, Role::Endpoint)?;
                Ok(socket)
            });
            match dialled {
                Ok(socket) => {
                    if let Some(Kind::Relay(pair)) = io.conns.get_mut(key).map(|conn| &mut conn.kind) {
                        pair.endpoint = Some(socket);
                        let given_up = pair.has_another(&pod.reach, io.now);
                        let settings = &io.settings;
                        let wait = if given_up { settings.limits.dial_patience } else { settings.dial_timeout };
                        pair.dialling = Some(Dialling { by: io.now + wait, given_up });
                    }
                    return self.arm_relay(key);
                }
                Err(error) => self.relay_dial_failed(key, &error),
            }
        }
    }

    fn relay_dial_failed(&mut self, key: Key, error: &io::Error) {
        let io = &mut self.io;
        let Some(conn) = io.conns.get_mut(key) else { return };
        let Kind::Relay(pair) = &mut conn.kind else { return };
        let Some(pod) = self.pods.get_mut(conn.pod) else { return };
        tracing::debug!(%error, pod = &*pod.name, "an endpoint cannot be reached");
        pod.dials_failed += 1;
        pair.endpoint = None;
        let given_up =
            pair.dialling.take().is_some_and(|dialling| dialling.given_up && error.kind() == io::ErrorKind::TimedOut);
        if let Destination::Service(_, choice) = &mut pair.to {
            choice.failed(&pod.reach, io.now, &mut io.rng, given_up);
        }
        pod.log_reach();
    }

    fn relay_is_http2(&mut self, key: Key) {
        let Some(conn) = self.io.conns.get_mut(key) else { return };
        let Kind::Relay(pair) = &mut conn.kind else { return };
        // A tentative endpoint connection ends here: nothing was sent on it.
        pair.endpoint = None;
        let up = std::mem::take(&mut pair.up);
        let Destination::Service(service, _) = &pair.to else { return };
        let service = Rc::clone(service);
        self.adopt(key, &service, up.output());
    }

    pub(super) fn reset_relay(&mut self, key: Key) {
        if let Some(conn) = self.io.conns.remove(key) {
            conn.reset();
        }
    }

    pub(super) fn arm_relay(&mut self, key: Key) {
        let Some(conn) = self.io.conns.get(key) else { return };
        let Kind::Relay(pair) = &conn.kind else { return };
        let due = pair.deadline();
        self.io.set_alarm(key, due);
    }
}

impl Pair {
    fn has_another(&self, reach: &Reach, now: Instant) -> bool {
        matches!(&self.to, Destination::Service(service, choice) if choice.has_another(service, reach, now))
    }

    fn destination(&mut self, reach: &Reach, now: Instant, rng: &mut fastrand::Rng) -> Option<SocketAddr> {
        match &mut self.to {
            Destination::Service(service, choice) => Some(choice.next(service, reach, now, rng)?.addr().socket_addr()),
            Destination::Original { dialled: true, .. } => None,
            Destination::Original { to, dialled } => {
                *dialled = true;
                Some(to.socket_addr())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_silent_connections_are_dialled_for_at_once_and_the_others_one_by_one() {
        let (mut pace, now) = (Pace::default(), Instant::now() + Duration::from_secs(1_000));
        let wait = |pace: &mut Pace, now| pace.next(now) - now;
        assert!((0..32).all(|_| wait(&mut pace, now).is_zero()));
        let later: Vec<_> = (0..968).map(|_| wait(&mut pace, now)).collect();
        assert!(later.iter().zip(1..).all(|(wait, n)| *wait == Pace::APART * n), "{later:?}");
        assert!((0..32).all(|_| wait(&mut pace, now + Duration::from_secs(6)).is_zero()), "all is as before");
    }
}

//! HTTP/2 connections, clients' and endpoints': bytes into the pod's splitter, its effects and output out. One read a
//! turn, one flush an iteration. It looks into no frame.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::arena::Key;
use super::event_loop::{BUFFER, Io, Kind, PodState, VISIT, Worker};
use super::socket::{Socket, Took, dial};
use super::timers::Timer;
use crate::addr::EndpointAddr;
use crate::balance::{Cause, Change, ServiceLoad};
use crate::splitter::{ConnId, Effect, Splitter};
use std::rc::Rc;

/// A peer that does not take our last words (a GOAWAY, resets) is cut off after this long.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long we wait for the peer's end after ours, so that bytes on their way do not turn our close into a reset that
/// destroys our last words.
const LINGER: Duration = Duration::from_secs(2);
/// Most bytes that are read of the peer meanwhile. Who sends more has had the time to read our last words.
const UNHEARD: usize = 64 * 1024;

/// Writes and dials of a flush before the first look at the clock.
const UNTIMED: u32 = 3;

/// A connection that the pod's splitter knows.
pub(super) struct Link {
    pub(super) id: ConnId,
    phase: Phase,
    /// Where we dialled it to.
    pub(super) endpoint: Option<EndpointAddr>,
    /// The splitter was told that the peer does not answer.
    pub(super) stalled: bool,
    /// Stands in `Io::watched`.
    pub(super) watched: bool,
    /// Ended by the peer.
    ended: bool,
    /// Most bytes that its next turn reads.
    appetite: usize,
    /// Bytes that came while it lingered.
    unheard: usize,
}

/// What a turn reads of frames as small as calls have them, or of who is new: thousands of frames in one turn are
/// milliseconds that others wait.
pub(super) const SMALL_TURN: usize = 8 * 1024;
/// What a turn reads of who was slowed: not much more than one request.
const SLOW_TURN: usize = 1024;
/// A turn of frames that are larger than this on average may read twice as much the next time; one of a few small ones says
/// nothing.
const LARGE_FRAME: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    /// The splitter is done with it; its last output is written.
    Closing,
    /// All is written; the peer's end is awaited.
    Lingering,
}

impl Link {
    fn accepted(id: ConnId) -> Self {
        Self {
            id,
            phase: Phase::Open,
            endpoint: None,
            stalled: false,
            watched: false,
            ended: false,
            appetite: SMALL_TURN,
            unheard: 0,
        }
    }

    fn dialled(id: ConnId, endpoint: EndpointAddr) -> Self {
        Self { phase: Phase::Connecting, endpoint: Some(endpoint), ..Self::accepted(id) }
    }
}

impl Worker {
    /// What was detected to speak HTTP/2 becomes the splitter's, with all that it has sent so far.
    pub(super) fn adopt(&mut self, key: Key, service: &Rc<ServiceLoad>, bytes: &[u8]) {
        let io = &mut self.io;
        let Some(conn) = io.conns.get_mut(key) else { return };
        let Some(pod) = self.pods.get_mut(conn.pod) else { return };
        let splitter = pod
            .splitter
            .get_or_insert_with(|| Splitter::new(Rc::clone(&self.limits), Rc::clone(&pod.reach), io.rng.fork()));
        if let Some(depth) = self.taps.depth(&pod.name) {
            splitter.tap(Some(depth));
            pod.frames_tapped = depth.frames;
        }
        let id = splitter.handle_accepted(io.now, service);
        splitter.handle_bytes(io.now, id, bytes);
        if let Some(draining) = &self.draining {
            splitter.drain(io.now, None, draining.until);
        }
        conn.kind = Kind::Http2(Link::accepted(id));
        remember(pod, id, key);
        io.set_alarm(key, None);
        // What has not been read yet gave its edge before.
        io.enqueue(key);
    }

    /// Part of the pod's visit, which flushes what comes of it.
    pub(super) fn link_turn(&mut self, key: Key) {
        let io = &mut self.io;
        let Some(conn) = io.conns.get_mut(key) else { return };
        let Kind::Http2(link) = &mut conn.kind else { return };
        let pod_key = conn.pod;
        let Some(pod) = self.pods.get_mut(pod_key) else { return };
        let Some(splitter) = &mut pod.splitter else { return };
        if link.phase == Phase::Connecting {
            match conn.socket.connect_result() {
                None => return,
                Some(Err(error)) => return io.dial_failed(pod, pod_key, key, &error),
                Some(Ok(())) => {
                    link.phase = Phase::Open;
                    splitter.handle_connected(io.now, link.id);
                    io.timers.set(&mut conn.alarm, Timer::Conn(key), None);
                }
            }
        }
        let mut failed = false;
        let listens = match link.phase {
            Phase::Connecting | Phase::Open => splitter.wants_read(link.id),
            Phase::Closing | Phase::Lingering => true,
        };
        if conn.socket.can_read() && !link.ended && listens {
            let open = link.phase == Phase::Open;
            match conn.socket.read(&mut io.buffer[..link.appetite]) {
                Took::Bytes(n) => {
                    if open {
                        let before = splitter.work();
                        splitter.handle_bytes(io.now, link.id, &io.buffer[..n]);
                        let large = (splitter.work() - before) * LARGE_FRAME < n as u64;
                        link.appetite = if splitter.is_paused(link.id) {
                            SLOW_TURN
                        } else if large {
                            (2 * link.appetite).min(BUFFER)
                        } else if n >= SMALL_TURN / 2 {
                            SMALL_TURN
                        } else {
                            link.appetite.max(SMALL_TURN)
                        };
                    } else if link.phase == Phase::Lingering {
                        link.unheard += n;
                        failed = link.unheard > UNHEARD;
                    }
                }
                Took::End => {
                    link.ended = true;
                    if open {
                        splitter.handle_eof(io.now, link.id);
                    }
                }
                Took::Blocked => {}
                Took::Failed(error) => {
                    tracing::debug!(%error, pod = &*pod.name, "a connection broke");
                    failed = true;
                }
            }
        }
        let done = link.phase == Phase::Lingering && link.ended;
        if failed || done {
            io.lose(pod, key);
        } else {
            pod.to_write.push_back(key);
            io.read_on(pod, key);
        }
    }

    /// A dial, or a close, took too long.
    pub(super) fn link_due(&mut self, key: Key) {
        let Some(conn) = self.io.conns.get(key) else { return };
        let Kind::Http2(link) = &conn.kind else { return };
        let (pod_key, connecting) = (conn.pod, link.phase == Phase::Connecting);
        let Some(pod) = self.pods.get_mut(pod_key) else { return };
        if connecting {
            self.io.dial_failed(pod, pod_key, key, &std::io::ErrorKind::TimedOut.into());
        } else {
            self.lose_link(key);
        }
    }

    /// The connection is broken.
    pub(super) fn lose_link(&mut self, key: Key) {
        let Some(pod_key) = self.io.conns.get(key).map(|conn| conn.pod) else { return };
        let Some(pod) = self.pods.get_mut(pod_key) else { return };
        self.io.lose(pod, key);
        self.io.turns.wake(pod_key);
    }

    pub(super) fn pod_due(&mut self, key: Key) {
        let Some(pod) = self.pods.get_mut(key) else { return };
        if let Some(splitter) = &mut pod.splitter {
            splitter.handle_deadline(self.io.now);
        }
        self.io.turns.wake(key);
    }

    /// Carries out all effects and writes all output of one pod. Writing makes credit, and credit makes output and
    /// effects: all of it is gone when this returns, except for what sockets do not take, and for what is beyond the
    /// pod's share. True: there is that, and its next visit goes on with it.
    pub(super) fn flush(&mut self, pod_key: Key) -> bool {
        let io = &mut self.io;
        let Some(pod) = self.pods.get_mut(pod_key) else { return false };
        // A call that is alone needs no look at the clock.
        let (mut done, mut until) = (0, None);
        let more = loop {
            match pod.splitter.as_mut().and_then(Splitter::poll_effect) {
                Some(Effect::Write(id)) => {
                    pod.to_write.extend(io.link(pod, id));
                    continue;
                }
                Some(Effect::Dial(id, to)) => io.dial_link(pod, pod_key, id, to),
                Some(Effect::Close(id)) => io.close_link(pod, id),
                None => match pod.to_write.pop_front() {
                    Some(key) => io.write_link(pod, key),
                    None => break false,
                },
            }
            done += 1;
            if done >= UNTIMED {
                let now = Instant::now();
                if now >= *until.get_or_insert(now + VISIT) {
                    break true;
                }
            }
        };
        let deadline = pod.splitter.as_ref().and_then(Splitter::next_deadline).map(|(at, _)| at);
        io.timers.set(&mut pod.alarm, Timer::Pod(pod_key), deadline);
        pod.log_reach();
        more
    }
}

impl PodState {
    /// Once for each endpoint that turns out to be out of this pod's reach, and once when it is back.
    pub(super) fn log_reach(&mut self) {
        while let Some(change) = self.reach.poll_change() {
            let pod = &*self.name;
            match change {
                Change::Ejected(endpoint, Cause::Unreachable) => {
                    self.ejections.unreachable += 1;
                    tracing::warn!(
                        pod, %endpoint,
                        "an endpoint cannot be dialled from this pod; its Service's others take its calls, and without any they fail"
                    );
                }
                Change::Back(endpoint, Cause::Unreachable) => {
                    tracing::info!(pod, %endpoint, "an endpoint can be dialled again");
                }
                Change::Ejected(endpoint, Cause::Failing) => {
                    self.ejections.failing += 1;
                    tracing::warn!(pod, %endpoint, "an endpoint fails this pod's calls; the others take them");
                }
                Change::Back(endpoint, Cause::Failing) => {
                    tracing::info!(pod, %endpoint, "an endpoint answers calls again")
                }
            }
        }
    }
}

/// For `Io::link`.
fn remember(pod: &mut PodState, id: ConnId, key: Key) {
    if pod.by_conn.len() <= id.index() {
        pod.by_conn.resize(id.index() + 1, None);
    }
    pod.by_conn[id.index()] = Some(key);
}

impl Io {
    /// The socket of a splitter's connection.
    fn link(&self, pod: &PodState, id: ConnId) -> Option<Key> {
        let key = pod.by_conn.get(id.index()).copied().flatten()?;
        let Kind::Http2(link) = &self.conns.get(key)?.kind else { return None };
        (link.id == id).then_some(key)
    }

    fn dial_link(&mut self, pod: &mut PodState, pod_key: Key, id: ConnId, to: EndpointAddr) {
        let link = Link::dialled(id, to);
        let key = match dial(&self.home, pod.netns.as_fd(), to.socket_addr(), self.settings.gone_after) {
            Ok(stream) => self.add(pod_key, Socket::dialled(stream), Kind::Http2(link)),
            Err(error) => {
                tracing::debug!(%error, endpoint = %to, pod = &*pod.name, "an endpoint cannot be dialled");
                None
            }
        };
        match key {
            Some(key) => {
                remember(pod, id, key);
                let by = self.now + self.settings.dial_timeout;
                self.set_alarm(key, Some(by));
            }
            None => {
                pod.dials_failed += 1;
                if let Some(splitter) = &mut pod.splitter {
                    splitter.handle_closed(self.now, id);
                }
            }
        }
    }

    fn dial_failed(&mut self, pod: &mut PodState, pod_key: Key, key: Key, error: &std::io::Error) {
        tracing::debug!(%error, pod = &*pod.name, "an endpoint cannot be reached");
        pod.dials_failed += 1;
        self.lose(pod, key);
        self.turns.wake(pod_key);
    }

    /// The connection is gone; the splitter hears of it unless it has forgotten it before.
    fn lose(&mut self, pod: &mut PodState, key: Key) {
        let Some(conn) = self.conns.remove(key) else { return };
        let Kind::Http2(link) = conn.kind else { return };
        let Some(splitter) = &mut pod.splitter else { return };
        let forgotten = match link.phase {
            Phase::Connecting | Phase::Open => false,
            Phase::Closing => splitter.output(link.id).is_empty(),
            Phase::Lingering => true,
        };
        if !forgotten {
            splitter.handle_closed(self.now, link.id);
            // What the peer has not read of us is lost anyway.
            conn.socket.reset();
        }
    }

    /// The splitter is done with the connection.
    fn close_link(&mut self, pod: &mut PodState, id: ConnId) {
        let Some(key) = self.link(pod, id) else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Kind::Http2(link) = &mut conn.kind else { return };
        let connecting = link.phase == Phase::Connecting;
        link.phase = Phase::Closing;
        if connecting {
            return self.lose(pod, key);
        }
        let by = self.now + LAST_WORDS;
        self.set_alarm(key, Some(by));
        pod.to_write.push_back(key);
    }

    fn write_link(&mut self, pod: &mut PodState, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Kind::Http2(link) = &mut conn.kind else { return };
        let Some(splitter) = &mut pod.splitter else { return };
        if link.phase == Phase::Lingering {
            return;
        }
        while conn.socket.can_write() {
            if pod.frames_tapped {
                splitter.tap_output(link.id);
            }
            let output = splitter.output(link.id);
            if output.is_empty() {
                break;
            }
            match conn.socket.write(output) {
                Took::Bytes(n) => {
                    splitter.consumed(self.now, link.id, n);
                    if link.endpoint.is_some() && !link.watched && !link.stalled {
                        link.watched = true;
                        self.watched.push(key);
                    }
                }
                Took::End | Took::Blocked => break,
                Took::Failed(error) => {
                    tracing::debug!(%error, pod = &*pod.name, "a connection broke");
                    if link.phase != Phase::Open || link.ended || !splitter.wants_read(link.id) {
                        return self.lose(pod, key);
                    }
                    // An endpoint may have answered in full before it closed: its last words are still to be read.
                    conn.socket.only_read();
                    let by = self.now + LINGER;
                    self.set_alarm(key, Some(by));
                    return self.read_on(pod, key);
                }
            }
        }
        if link.phase == Phase::Closing && splitter.output(link.id).is_empty() {
            if link.ended {
                return self.lose(pod, key);
            }
            link.phase = Phase::Lingering;
            conn.socket.end();
            let by = self.now + LINGER;
            self.set_alarm(key, Some(by));
        }
        self.read_on(pod, key);
    }

    /// Another turn if there may be more to read and it is welcome: by a turn that ended before the socket was empty,
    /// or by output that was taken and had made the splitter stop reading.
    fn read_on(&mut self, pod: &PodState, key: Key) {
        let Some(conn) = self.conns.get(key) else { return };
        let Kind::Http2(link) = &conn.kind else { return };
        let listens = match link.phase {
            Phase::Connecting => false,
            Phase::Open => pod.splitter.as_ref().is_some_and(|splitter| splitter.wants_read(link.id)),
            Phase::Closing | Phase::Lingering => true,
        };
        if conn.socket.can_read() && !link.ended && listens {
            self.enqueue(key);
        }
    }
}

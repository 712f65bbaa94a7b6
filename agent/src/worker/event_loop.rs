//! The loop: wait, note what became ready, carry out commands, fire timers, then visit the pods that have something to
//! do: a turn for each ready connection, and one flush. Iteration, visit and turn are bounded: the heartbeat goes on
//! under any load, and a busy pod keeps the others waiting for one visit at most.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Registry};
use rustc_hash::FxHashMap;

use super::accept::Listener;
use super::arena::{Arena, Key, Role, target, token};
use super::control::Draining;
use super::http2::Link;
use super::relay::{Pace, Pair};
use super::services::Services;
use super::socket::Socket;
use super::taps::Taps;
use super::timers::{Alarm, Timer, Timers};
use super::turns::{Ready, Turns};
use super::{Command, Flows, Heartbeat, Settings, WAKE};
use crate::addr::NetnsCookie;
use crate::balance::Reach;
use crate::netns::Home;
use crate::splitter::{Limits, Splitter};

/// The kernel takes a worker for dead when its last beat is a second old.
const BEAT: Duration = Duration::from_millis(100);
/// Most readiness events taken at once.
const EVENTS: usize = 1024;
/// Most bytes read in one call, and thereby in one connection's turn.
pub(super) const BUFFER: usize = 128 * 1024;
/// An iteration ends when its visits have taken this long.
const ROUND: Duration = Duration::from_millis(10);
/// What a pod may take in one visit before the next pod's, and again to write its output. Time is what others wait for, and
/// bytes do not tell it: a frame of 20 bytes and a dial cost as much as a megabyte.
pub(super) const VISIT: Duration = Duration::from_micros(500);
/// Most timers fired in one iteration.
const TIMERS: usize = 64;

pub(super) struct Worker {
    pub(super) index: usize,
    poll: Poll,
    pub(super) commands: mpsc::Receiver<Command>,
    /// Commands may be waiting for the next iteration.
    pub(super) more_commands: bool,
    pub(super) flows: Flows,
    heartbeat: Heartbeat,
    last_beat: Option<Instant>,
    pub(super) limits: Rc<Limits>,
    pub(super) services: Services,
    pub(super) pods: Arena<PodState>,
    pub(super) by_cookie: FxHashMap<NetnsCookie, Key>,
    pub(super) draining: Option<Draining>,
    /// That connections cannot be accepted was said once.
    pub(super) accept_warned: bool,
    /// When `sweep` looked last.
    pub(super) swept: Instant,
    pub(super) looked_for_stalls: Instant,
    pub(super) taps: Taps,
    pub(super) io: Io,
}

/// What `Worker::new` takes to the worker's own thread.
pub(super) struct Parts {
    pub(super) index: usize,
    pub(super) settings: Settings,
    pub(super) poll: Poll,
    pub(super) registry: Registry,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) flows: Flows,
    pub(super) heartbeat: Heartbeat,
}

/// Sockets and what makes them move, apart from the pods that they belong to.
pub(super) struct Io {
    pub(super) now: Instant,
    pub(super) home: Home,
    registry: Registry,
    pub(super) settings: Settings,
    pub(super) rng: fastrand::Rng,
    pub(super) listeners: Arena<Listener>,
    pub(super) conns: Arena<Conn>,
    pub(super) turns: Turns,
    pub(super) timers: Timers,
    /// Endpoints' connections that were written to: see `look_for_stalls`.
    pub(super) watched: Vec<Key>,
    pub(super) buffer: Box<[u8]>,
}

pub(super) struct PodState {
    pub(super) cookie: NetnsCookie,
    pub(super) netns: OwnedFd,
    pub(super) name: Arc<str>,
    /// What cannot be reached from in there.
    pub(super) reach: Rc<Reach>,
    /// Made for the first HTTP/2 connection.
    pub(super) splitter: Option<Splitter>,
    /// By `ConnId::index`. An entry may be out of date: the connection's own id tells.
    pub(super) by_conn: Vec<Option<Key>>,
    pub(super) to_write: VecDeque<Key>,
    /// Somebody looks at its frames.
    pub(super) frames_tapped: bool,
    pub(super) pace: Pace,
    pub(super) alarm: Alarm,
    pub(super) accepted: u64,
    pub(super) without_flow: u64,
    pub(super) accepts_failed: u64,
    pub(super) dials_failed: u64,
    pub(super) ejections: Ejections,
}

/// How often a pod began to keep away from an endpoint, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejections {
    pub unreachable: u64,
    pub failing: u64,
}

pub(super) struct Conn {
    pub(super) pod: Key,
    /// Already in `Io::turns`.
    pub(super) queued: bool,
    pub(super) alarm: Alarm,
    pub(super) socket: Socket,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Http2(Link),
    Relay(Box<Pair>),
}

impl Worker {
    pub(super) fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { index, settings, poll, registry, commands, flows, heartbeat } = parts;
        let io = Io {
            now: Instant::now(),
            home: Home::open()?,
            registry,
            rng: fastrand::Rng::with_seed(settings.seed),
            listeners: Arena::new(),
            conns: Arena::new(),
            turns: Turns::default(),
            timers: Timers::default(),
            watched: Vec::new(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            settings,
        };
        Ok(Self {
            index,
            poll,
            commands,
            more_commands: false,
            flows,
            heartbeat,
            last_beat: None,
            limits: Rc::new(io.settings.limits.clone()),
            services: Services::default(),
            pods: Arena::new(),
            by_cookie: FxHashMap::default(),
            draining: None,
            accept_warned: false,
            swept: io.now,
            looked_for_stalls: io.now,
            taps: Taps::default(),
            io,
        })
    }

    /// Returns when the last handle is gone.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        // Where several come at once, more are on their way: to look for them costs less than to sleep and be woken.
        let mut several = false;
        loop {
            let timeout = if several { Duration::ZERO } else { self.timeout() };
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("worker {}: epoll_wait failed: {error}", self.index),
            }
            several = events.iter().nth(1).is_some();
            self.io.now = Instant::now();
            let beats = self.beat();
            let mut commanded = beats || self.more_commands;
            for event in &events {
                match event.token() {
                    WAKE => commanded = true,
                    _ => self.io.handle_event(event),
                }
            }
            if commanded && self.take_commands().is_break() {
                return;
            }
            if beats {
                self.prune_taps();
            }
            self.fire_timers();
            self.sweep();
            self.look_for_stalls();
            self.visit_pods();
            self.drain_on();
        }
    }

    /// True: it was time for a beat.
    fn beat(&mut self) -> bool {
        let now = self.io.now;
        let due = self.last_beat.is_none_or(|last| now.duration_since(last) >= BEAT);
        if due {
            self.last_beat = Some(now);
            (self.heartbeat)();
        }
        due
    }

    /// From the beginning of this iteration: what it took is little beside the milliseconds that epoll counts in.
    fn timeout(&self) -> Duration {
        if self.last_beat.is_none() || self.more_commands || self.io.turns.pods() > 0 {
            return Duration::ZERO;
        }
        let beat = self.last_beat.map(|last| last + BEAT);
        let drain = self.draining.as_ref().and_then(Draining::deadline);
        let now = self.io.now;
        let next = [beat, drain, self.io.timers.next()].into_iter().flatten().min();
        next.map_or(BEAT, |next| next.saturating_duration_since(now))
    }

    fn fire_timers(&mut self) {
        for _ in 0..TIMERS {
            let now = self.io.now;
            let Some(entry) = self.io.timers.pop(now) else { return };
            let io = &mut self.io;
            let alarm = match entry.1 {
                Timer::Pod(key) => self.pods.get_mut(key).map(|pod| &mut pod.alarm),
                Timer::Conn(key) => io.conns.get_mut(key).map(|conn| &mut conn.alarm),
                Timer::Listener(key) => io.listeners.get_mut(key).map(|listener| &mut listener.alarm),
            };
            if !alarm.is_some_and(|alarm| io.timers.fires(alarm, entry, now)) {
                continue;
            }
            match entry.1 {
                Timer::Pod(key) => self.pod_due(key),
                Timer::Conn(key) => self.conn_due(key),
                Timer::Listener(key) => self.listener_due(key),
            }
        }
    }

    fn conn_due(&mut self, key: Key) {
        match self.io.conns.get(key).map(|conn| &conn.kind) {
            Some(Kind::Http2(_)) => self.link_due(key),
            // What it does then, a dial for one, is part of its pod's visit.
            Some(Kind::Relay(_)) => self.io.enqueue(key),
            None => {}
        }
    }

    /// One visit for each pod that has something to do; those that have more go to the back.
    fn visit_pods(&mut self) {
        let mut now = self.io.now;
        for left in (0..self.io.turns.pods()).rev() {
            let Some(pod) = self.io.turns.next_pod() else { return };
            self.visit(pod, now);
            if left > 0 {
                now = Instant::now();
                if now.saturating_duration_since(self.io.now) >= ROUND {
                    return;
                }
            }
        }
    }

    /// One turn for each of the pod's sockets that is ready now, as far as its share goes, and a flush.
    fn visit(&mut self, pod: Key, now: Instant) {
        let until = now + VISIT;
        for left in (0..self.io.turns.sockets(pod)).rev() {
            match self.io.turns.next_socket(pod) {
                Some(Ready::Listener(key)) => self.accept_turn(key),
                Some(Ready::Conn(key)) => {
                    let Some(conn) = self.io.conns.get_mut(key) else { continue };
                    conn.queued = false;
                    match conn.kind {
                        Kind::Http2(_) => self.link_turn(key),
                        Kind::Relay(_) => self.relay_turn(key),
                    }
                }
                None => break,
            }
            if left > 0 && Instant::now() >= until {
                break;
            }
        }
        let more = self.flush(pod);
        self.tell_taps(pod);
        self.io.turns.visited(pod, more);
    }
}

impl Conn {
    /// Both sides see that it broke.
    pub(super) fn reset(self) {
        self.socket.reset();
        if let Kind::Relay(pair) = self.kind {
            pair.reset();
        }
    }
}

impl Io {
    /// Edges become flags here, and nowhere else.
    fn handle_event(&mut self, event: &Event) {
        match target(event.token()) {
            Some((key, Role::Listener)) => self.enqueue_listener(key),
            Some((key, role)) => {
                let Some(conn) = self.conns.get_mut(key) else { return };
                match (role, &mut conn.kind) {
                    (Role::Endpoint, Kind::Relay(pair)) => pair.handle_event(event),
                    (Role::Endpoint, Kind::Http2(_)) => return,
                    _ => conn.socket.handle_event(event),
                }
                self.enqueue(key);
            }
            None => {}
        }
    }

    /// The connection gets a turn.
    pub(super) fn enqueue(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.queued
        {
            conn.queued = true;
            self.turns.push(conn.pod, Ready::Conn(key));
        }
    }

    pub(super) fn enqueue_listener(&mut self, key: Key) {
        if let Some(listener) = self.listeners.get_mut(key)
            && !listener.queued
        {
            listener.queued = true;
            self.turns.push(listener.pod, Ready::Listener(key));
        }
    }

    pub(super) fn set_alarm(&mut self, key: Key, due: Option<Instant>) {
        if let Some(conn) = self.conns.get_mut(key) {
            self.timers.set(&mut conn.alarm, Timer::Conn(key), due);
        }
    }

    /// Once for the life of a socket: all further readiness is remembered in flags.
    pub(super) fn register(&self, socket: &mut Socket, key: Key, role: Role) -> std::io::Result<()> {
        self.registry.register(socket.source(), token(key, role), Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn register_listener(&mut self, key: Key) -> std::io::Result<()> {
        let Some(listener) = self.listeners.get_mut(key) else { return Ok(()) };
        self.registry.register(&mut listener.listener, token(key, Role::Listener), Interest::READABLE)
    }

    pub(super) fn deregister(&self, source: &mut impl Source) {
        if let Err(error) = self.registry.deregister(source) {
            tracing::debug!(%error, "a socket was not registered");
        }
    }

    /// A new connection, registered. None: it could not be, and is closed.
    pub(super) fn add(&mut self, pod: Key, socket: Socket, kind: Kind) -> Option<Key> {
        let key = self.conns.insert(Conn { pod, queued: false, alarm: Alarm::default(), socket, kind });
        let conn = self.conns.get_mut(key)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.registry.register(conn.socket.source(), token(key, Role::Main), interest) {
            tracing::warn!(%error, "cannot watch a connection; closing it");
            self.conns.remove(key);
            return None;
        }
        Some(key)
    }
}

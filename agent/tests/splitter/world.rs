//! A world around one splitter: pipes in place of sockets, a clock that only the test moves, bytes in chunks of chance.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use sluice_agent::addr::{EndpointAddr, ServiceAddr};
use sluice_agent::balance::{Reach, ServiceLoad};
use sluice_agent::splitter::{ConnId, Effect, Limits, Splitter, Stats};
use sluice_agent::table::{Endpoint, Policy, Scope, Service, ServicePortName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One direction of a pipe.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    /// The first `n` bytes, copied as slices: byte by byte is slow without optimization.
    fn take(&mut self, n: usize) -> Vec<u8> {
        let (first, second) = self.bytes.as_slices();
        let from_first = n.min(first.len());
        let taken = [&first[..from_first], &second[..n - from_first]].concat();
        self.bytes.drain(..n);
        taken
    }
}

/// What fits in a pipe before its writer must wait, bytes.
const LANE: usize = 64 * 1024;

/// A peer's end of a connection to the splitter.
pub struct Pipe {
    /// From the splitter.
    inbound: Rc<RefCell<Lane>>,
    /// To the splitter.
    outbound: Rc<RefCell<Lane>>,
}

impl Pipe {
    /// Writes at once, whatever a real pipe would hold.
    pub fn put(&self, bytes: &[u8]) {
        let mut lane = self.outbound.borrow_mut();
        if !lane.closed {
            lane.bytes.extend(bytes);
        }
    }

    /// All that came since the last call.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.inbound.borrow_mut().bytes).into()
    }

    /// The splitter has hung up.
    pub fn is_closed(&self) -> bool {
        self.inbound.borrow().closed
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut lane = self.inbound.borrow_mut();
        if lane.bytes.is_empty() && !lane.closed {
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = buf.remaining().min(lane.bytes.len());
        buf.put_slice(&lane.take(n));
        if let Some(writer) = lane.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.outbound.borrow_mut();
        if lane.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = bytes.len().min(LANE - lane.bytes.len());
        if n == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        lane.bytes.extend(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.borrow_mut().closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.outbound.borrow_mut().closed = true;
        self.inbound.borrow_mut().closed = true;
    }
}

/// The splitter's end.
struct Socket {
    to_peer: Rc<RefCell<Lane>>,
    from_peer: Rc<RefCell<Lane>>,
}

fn pipe() -> (Pipe, Socket) {
    let (inbound, outbound) = (Rc::default(), Rc::default());
    let socket = Socket { to_peer: Rc::clone(&inbound), from_peer: Rc::clone(&outbound) };
    (Pipe { inbound, outbound }, socket)
}

/// A dial that nobody answers has failed after this long.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes move at once.
#[derive(Clone, Copy, Debug)]
pub enum Chunks {
    One,
    Random,
    Whole,
}

pub struct World {
    pub splitter: Splitter,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub service: Rc<ServiceLoad>,
    /// The pod's.
    pub reach: Rc<Reach>,
    chunks: Chunks,
    sockets: HashMap<ConnId, Socket>,
    /// Endpoints that accept: where their ends of new connections are put.
    pub accepted: HashMap<EndpointAddr, VecDeque<Pipe>>,
    /// Dials are not answered before `answer_dials`.
    pub dials_wait: bool,
    dials: VecDeque<(ConnId, EndpointAddr)>,
    /// Endpoints from which no answer to a dial ever comes.
    pub black_holes: HashSet<EndpointAddr>,
    /// Dials into black holes, and when they fail.
    lost: VecDeque<(Instant, ConnId)>,
    /// All dials since the beginning.
    pub dialled: Vec<(Instant, EndpointAddr)>,
    /// All that the splitter wrote and asked for, mixed into one number.
    pub digest: u64,
    /// Calls into the splitter since its invariants were last looked at.
    unchecked: usize,
}

/// The `n`-th endpoint's address.
pub fn endpoint(n: u8) -> EndpointAddr {
    EndpointAddr::new(([10, 1, 0, n], 50051).into())
}

pub fn service(endpoints: &[EndpointAddr]) -> Arc<Service> {
    Arc::new(Service {
        id: 1,
        addr: ServiceAddr::new(([10, 96, 0, 10], 50051).into()),
        name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
        balancing: Policy::RoundRobin.into(),
        endpoints: endpoints
            .iter()
            .map(|addr| Endpoint { addr: *addr, identity: addr.to_string().into(), place: None })
            .collect(),
        scope: Scope::All,
        usable: endpoints.len() as u32,
    })
}

impl World {
    pub fn new(seed: u64, chunks: Chunks, limits: Limits, endpoints: &[EndpointAddr]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let service = ServiceLoad::new(service(endpoints), &mut rng);
        let reach = Rc::<Reach>::default();
        Self {
            splitter: Splitter::new(Rc::new(limits.validated().unwrap()), Rc::clone(&reach), rng.fork()),
            now: Instant::now(),
            rng,
            service,
            reach,
            chunks,
            sockets: HashMap::new(),
            accepted: endpoints.iter().map(|addr| (*addr, VecDeque::new())).collect(),
            dials_wait: false,
            dials: VecDeque::new(),
            black_holes: HashSet::new(),
            lost: VecDeque::new(),
            dialled: Vec::new(),
            digest: 0,
            unchecked: 0,
        }
    }

    /// What the splitter calls the connections that there are.
    pub fn conns(&self) -> Vec<ConnId> {
        let mut conns: Vec<ConnId> = self.sockets.keys().copied().collect();
        conns.sort();
        conns
    }

    /// A client's new connection.
    pub fn connect(&mut self) -> (ConnId, Pipe) {
        let (pipe, socket) = pipe();
        let conn = self.splitter.handle_accepted(self.now, &self.service);
        self.sockets.insert(conn, socket);
        (conn, pipe)
    }

    fn chunk(&mut self, available: usize) -> usize {
        match self.chunks {
            Chunks::One => available.min(1),
            Chunks::Random => available.min(self.rng.usize(1..=20_000)),
            Chunks::Whole => available,
        }
    }

    /// Moves what can be moved once. Whether anything moved.
    pub fn step(&mut self) -> bool {
        let mut moved = self.effects();
        let mut conns = self.conns();
        self.rng.shuffle(&mut conns);
        for conn in conns {
            moved |= self.read(conn) | self.effects();
            moved |= self.write(conn) | self.effects();
        }
        moved
    }

    fn read(&mut self, conn: ConnId) -> bool {
        let Some(socket) = self.sockets.get(&conn) else { return false };
        if !self.splitter.wants_read(conn) {
            return false;
        }
        let lane = Rc::clone(&socket.from_peer);
        let n = self.chunk(lane.borrow().bytes.len());
        if n > 0 {
            let bytes = lane.borrow_mut().take(n);
            if let Some(writer) = lane.borrow_mut().writer.take() {
                writer.wake();
            }
            self.splitter.handle_bytes(self.now, conn, &bytes);
            self.check();
            return true;
        }
        if lane.borrow().closed {
            let socket = self.sockets.remove(&conn).unwrap();
            hang_up(&socket);
            // A peer that hangs up is heard as an end or as a failure, as the sockets please.
            if self.rng.bool() {
                self.splitter.handle_eof(self.now, conn);
            } else {
                self.splitter.handle_closed(self.now, conn);
            }
            self.check();
            return true;
        }
        false
    }

    fn write(&mut self, conn: ConnId) -> bool {
        let Some(socket) = self.sockets.get(&conn) else { return false };
        let lane = Rc::clone(&socket.to_peer);
        self.splitter.tap_output(conn);
        let room = LANE - lane.borrow().bytes.len().min(LANE);
        let n = self.splitter.output(conn).len().min(room);
        let n = self.chunk(n);
        if n == 0 {
            return false;
        }
        if !lane.borrow().closed {
            lane.borrow_mut().bytes.extend(&self.splitter.output(conn)[..n]);
            if let Some(reader) = lane.borrow_mut().reader.take() {
                reader.wake();
            }
        }
        let written = (conn, &self.splitter.output(conn)[..n]);
        self.digest = mix(self.digest, &written);
        self.splitter.consumed(self.now, conn, n);
        self.check();
        true
    }

    /// Accepts or refuses the dials that waited, in their order, as the endpoint now does.
    pub fn answer_dials(&mut self) {
        for (conn, addr) in std::mem::take(&mut self.dials) {
            self.answer_dial(conn, addr);
        }
    }

    /// As [`World::answer_dials`], for one endpoint.
    pub fn answer_dial_of(&mut self, addr: EndpointAddr) {
        let (answered, rest) = std::mem::take(&mut self.dials).into_iter().partition(|(_, to)| *to == addr);
        self.dials = answered;
        self.answer_dials();
        self.dials.extend::<VecDeque<_>>(rest);
    }

    fn answer_dial(&mut self, conn: ConnId, addr: EndpointAddr) {
        match self.accepted.get_mut(&addr) {
            Some(backlog) => {
                let (peer, socket) = pipe();
                backlog.push_back(peer);
                self.sockets.insert(conn, socket);
                self.splitter.handle_connected(self.now, conn);
            }
            None => self.splitter.handle_closed(self.now, conn),
        }
        self.check();
    }

    fn effects(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.splitter.poll_effect() {
            any = true;
            match effect {
                Effect::Dial(conn, addr) => {
                    self.digest = mix(self.digest, &(conn, addr));
                    self.dialled.push((self.now, addr));
                    if self.black_holes.contains(&addr) {
                        self.lost.push_back((self.now + DIAL_TIMEOUT, conn));
                    } else if self.dials_wait {
                        self.dials.push_back((conn, addr));
                    } else {
                        self.answer_dial(conn, addr);
                    }
                }
                Effect::Write(_) => {}
                Effect::Close(conn) => {
                    let rest = self.splitter.output(conn).to_vec();
                    self.splitter.consumed(self.now, conn, rest.len());
                    self.digest = mix(self.digest, &(conn, &rest));
                    self.dials.retain(|(dialled, _)| *dialled != conn);
                    self.lost.retain(|(_, dialled)| *dialled != conn);
                    if let Some(socket) = self.sockets.remove(&conn) {
                        socket.to_peer.borrow_mut().bytes.extend(rest);
                        hang_up(&socket);
                    }
                }
            }
        }
        any
    }

    /// Moves the clock, and with it whatever becomes due.
    pub fn pass_time(&mut self, time: Duration) {
        let limit = self.now + time;
        loop {
            let deadline = self.splitter.next_deadline().map(|(at, _)| at);
            let lost = self.lost.front().map(|(at, _)| *at);
            let Some(at) = [deadline, lost].into_iter().flatten().min().filter(|at| *at <= limit) else { break };
            self.now = self.now.max(at);
            if lost.is_some_and(|lost| lost <= self.now)
                && let Some((_, conn)) = self.lost.pop_front()
            {
                self.splitter.handle_closed(self.now, conn);
            } else {
                self.splitter.handle_deadline(self.now);
            }
            self.check();
            self.effects();
        }
        self.now = limit;
    }

    /// No endpoint swallows dials any more; those that were lost are.
    pub fn fill_black_holes(&mut self) {
        self.black_holes.clear();
        for (_, conn) in std::mem::take(&mut self.lost) {
            self.splitter.handle_closed(self.now, conn);
        }
    }

    /// Comes after each call into the splitter. A look at everything is worth as many calls as there is to look at.
    fn check(&mut self) {
        self.unchecked += 1;
        let weight = self.sockets.len() + self.stats().open_streams as usize;
        let calls = if matches!(self.chunks, Chunks::One) { 200 } else { weight / 4 };
        if self.unchecked > calls {
            self.unchecked = 0;
            #[cfg(debug_assertions)]
            self.splitter.check_invariants();
        }
    }

    pub fn stats(&self) -> Stats {
        self.splitter.stats()
    }
}

fn mix(digest: u64, what: &impl Hash) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    (digest, what).hash(&mut hasher);
    hasher.finish()
}

fn hang_up(socket: &Socket) {
    for lane in [&socket.to_peer, &socket.from_peer] {
        let mut lane = lane.borrow_mut();
        lane.closed = true;
        lane.reader.take().into_iter().chain(lane.writer.take()).for_each(Waker::wake);
    }
}

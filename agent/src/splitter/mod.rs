//! One pod's HTTP/2 world as a pure state machine: client connections, endpoint connections, streams paired one to one.
//!
//! The contract: after any `handle_*`, the owner (1) takes effects with `poll_effect` until `None`, (2) writes
//! `output(c)` for each connection named by [`Effect::Write`] and says `consumed(c, n)`, which may make more output and
//! effects, and (3) arms a timer for `next_deadline`. `handle_*` never fails: a peer's error becomes output, effects
//! and state. No socket, clock or thread in here; bytes of one stream never wait for another's, but for RFC 9113's own
//! rules for connections.

mod conn;
mod conns;
mod control;
mod dialling;
mod ending;
mod flood;
mod flow;
mod forward;
mod frame;
pub mod hpack;
#[cfg(debug_assertions)]
mod invariants;
mod limits;
mod message;
mod outcome;
mod pair;
mod receive;
mod replay;
mod request;
mod response;
mod tap;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use crate::addr::EndpointAddr;
use crate::balance::{Reach, ServiceLoad};

use conn::{Conn, Outputs, Role, State};
use conns::Conns;
use dialling::Ways;
use flood::Haste;
use hpack::{CommonLists, HeaderList};
use pair::Pairs;
use tap::Tap;

use frame::DEFAULT_WINDOW;
pub use frame::{PREFACE, Reason};
pub use limits::{Bound, Floods, LimitSetting, Limited, Limits, NAMED, Named};
pub use tap::{CallId, CallRecord, Depth, FrameSeen, Shown, TapEvent};

/// So many connections of a kind get a whole connection window; with more of them each gets a smaller one.
const WHOLE_WINDOWS: u64 = 4;
/// Lists and buffers that wait to be used again.
const SPARES: usize = 64;
/// Bytes of the largest such buffer.
const SPARE_BUFFER: usize = 256;
/// What the PING between the two GOAWAYs of a graceful end carries.
const DRAIN_PING: &[u8; 8] = b"sluice\0\0";

/// A connection, client's or endpoint's, in one splitter. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    /// Dense and reused: for the owner's own table of sockets. No other connection gets it before [`Effect::Close`] of
    /// this one was taken, or `handle_closed` said that it is gone.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What the owner is to do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Dial the endpoint for this new connection; answer with `handle_connected` or `handle_closed`.
    Dial(ConnId, EndpointAddr),
    /// The connection has output that it did not have before (named once until the output was empty again), or it may be
    /// read again after a pause.
    Write(ConnId),
    /// Write what `output` still holds, then shut down and forget the connection; the splitter forgets it when the
    /// output is consumed, or now where there is none. Sent once per connection, except for those that ended by
    /// `handle_closed`, which are forgotten at once and get no effect.
    Close(ConnId),
}

/// Which deadline `next_deadline` stands for: makes a spinning timer explain itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadlineReason {
    /// An endpoint that was dialled has not answered; requests go elsewhere.
    SlowDial,
    /// An endpoint that accepted has sent no SETTINGS.
    EndpointSettings,
    /// A connection that sent too many cheap frames may be read again.
    PauseEnd,
    /// A reset towards an endpoint was held back, since the request was too new.
    LateReset,
    /// An endpoint has not taken the rest of what a client said before it left.
    RestEnd,
    /// An endpoint connection may have been without streams for long.
    IdleEndpoint,
    /// A draining client has not acknowledged the PING.
    DrainPing,
    /// The grace period of a drain is over.
    DrainEnd,
}

/// Counters of one splitter, since its beginning except where said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub client_connections: u64,
    pub endpoint_connections: u64,
    /// Requests taken up.
    pub streams: u64,
    /// Requests that we had to answer ourselves, since no endpoint did.
    pub streams_failed: u64,
    /// Requests given to another endpoint or connection, since the first provably did not process them.
    pub streams_replayed: u64,
    /// Requests that could have been and were not, since too many of their Service were of late.
    pub replays_denied: u64,
    /// GOAWAYs of endpoints: they end connections, by age or for good.
    pub goaways: u64,
    /// Connections ended for a breach of the protocol.
    pub protocol_errors: u64,
    /// Connections ended for a flood.
    pub floods: u64,
    /// How often peers ran into limits.
    pub limited: Limited,
    /// Now open.
    pub open_streams: u64,
}

/// See the module.
pub struct Splitter {
    limits: Rc<Limits>,
    rng: fastrand::Rng,
    /// One for all HPACK contexts: a field's hash, found by one, serves the others.
    hash_seed: u64,
    conns: Conns,
    pairs: Pairs,
    ways: Ways,
    effects: VecDeque<Effect>,
    outputs: Rc<Outputs>,
    timers: BinaryHeap<Reverse<(Instant, ConnId, DeadlineReason)>>,
    /// The header list in hand. One that is nobody else's is used again and again.
    list: Rc<HeaderList>,
    spare_lists: Vec<Rc<HeaderList>>,
    common_lists: CommonLists,
    /// For small messages that are kept to be sent again.
    spare_buffers: Vec<Vec<u8>>,
    /// What stands where a list was.
    no_list: Rc<HeaderList>,
    /// Bytes in hand that came on one connection.
    coming: usize,
    /// Payload bytes that came and have not gone on, over all pairs.
    held: usize,
    /// What the header lists that wait in all pairs count for.
    heads_held: usize,
    /// Bytes in the replay buffers of all pairs.
    replay_held: usize,
    haste: Haste,
    /// When the timers are that many, those of connections that are gone are thrown away.
    many_timers: usize,
    /// All clients are to go; until when.
    draining: Option<Instant>,
    stats: Stats,
    work: u64,
    /// None: nobody looks.
    tap: Option<Box<Tap>>,
}

impl std::fmt::Debug for Splitter {
    /// Connections with their streams: for a test that got stuck, and for a trace.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { timers, heads_held, .. } = self;
        writeln!(f, "{:?}, timers: {}, heads: {heads_held}", self.stats(), timers.len())?;
        self.conns.live().try_for_each(|conn| writeln!(f, "{conn:?}"))?;
        self.pairs.live().try_for_each(|pair| writeln!(f, "{pair:?}"))
    }
}

impl Splitter {
    /// `reach` is the pod's. `rng` seeds hashes and chance; the same seed and inputs give the same outputs.
    pub fn new(limits: Rc<Limits>, reach: Rc<Reach>, mut rng: fastrand::Rng) -> Self {
        Self {
            limits,
            hash_seed: rng.u64(..),
            rng,
            conns: Conns::default(),
            pairs: Pairs::default(),
            ways: Ways::new(reach),
            effects: VecDeque::new(),
            outputs: Rc::default(),
            timers: BinaryHeap::new(),
            list: Rc::default(),
            spare_lists: Vec::new(),
            common_lists: CommonLists::default(),
            spare_buffers: Vec::new(),
            no_list: Rc::default(),
            coming: 0,
            held: 0,
            heads_held: 0,
            replay_held: 0,
            haste: Haste::default(),
            many_timers: 0,
            draining: None,
            stats: Stats::default(),
            work: 0,
            tap: None,
        }
    }

    /// A client connection that was detected to speak HTTP/2. Its bytes, preface included, come by `handle_bytes`.
    pub fn handle_accepted(&mut self, now: Instant, service: &Rc<ServiceLoad>) -> ConnId {
        self.stats.client_connections += 1;
        let id = self.new_conn(now, Role::Client(Rc::clone(service)));
        if let Some(until) = self.draining {
            self.announce_drain(now, id.index, until);
        }
        id
    }

    /// The dial asked for by [`Effect::Dial`] succeeded, as far as TCP goes.
    pub fn handle_connected(&mut self, now: Instant, conn: ConnId) {
        let Some(c) = self.conns.slot(conn) else { return };
        let dialled = &mut self.conns[c];
        if dialled.state != State::Dialing {
            return;
        }
        dialled.state = State::Open;
        // Its greeting waits since the dial began.
        self.outputs.to_write.borrow_mut().push(conn);
        self.arm(now + self.limits.settings_timeout, conn, DeadlineReason::EndpointSettings);
        self.arm(now + self.limits.idle_timeout(), conn, DeadlineReason::IdleEndpoint);
    }

    /// The peer closed its sending direction: HTTP/2 has no use for the other one.
    pub fn handle_eof(&mut self, now: Instant, conn: ConnId) {
        let Some(c) = self.conns.slot(conn) else { return };
        if self.conns[c].state != State::Closing {
            self.abandon(now, c, self.conns[c].flushed);
            self.begin_close(now, c);
        }
        self.conns[c].discard_output();
        self.conns.remove_if_done(conn);
    }

    /// The dial failed, or the socket failed, reset, or broke in both directions: the connection is gone.
    pub fn handle_closed(&mut self, now: Instant, conn: ConnId) {
        if let Some(c) = self.conns.slot(conn) {
            self.lose_conn(now, c);
        }
    }

    /// The endpoint's host has left the last tries to reach it unanswered: it gets no new request until a dial succeeds. What
    /// it has goes on, should it come back.
    pub fn handle_stalled(&mut self, now: Instant, conn: ConnId) {
        let Some(c) = self.conns.slot(conn) else { return };
        if let Role::Endpoint(endpoint) = &self.conns[c].role
            && self.conns[c].state == State::Open
            && !self.conns[c].retired
        {
            self.ways.reach.failed(now, endpoint, &mut self.rng);
            self.retire(now, c);
        }
    }

    /// Whether an endpoint has answered the newest request on this connection to the end: all that went there before has
    /// arrived. False as well if nothing went there.
    pub fn has_answered(&self, conn: ConnId) -> bool {
        self.conns.slot(conn).is_some_and(|c| self.conns[c].answered + 2 == self.conns[c].stream_mark)
    }

    /// Endpoints of some Service changed (`ServiceLoad::update` was called): connections to those gone take no new stream.
    pub fn handle_endpoints_changed(&mut self, now: Instant) {
        for id in self.conns.ids() {
            if let Some(c) = self.conns.slot(id)
                && let Role::Endpoint(endpoint) = &self.conns[c].role
                && !endpoint.is_current()
                && !self.conns[c].retired
            {
                self.retire(now, c);
            }
        }
        self.ways.reach.prune();
        self.relieve(now);
    }

    /// `next_deadline` has come. Calls that come early or late are harmless.
    pub fn handle_deadline(&mut self, now: Instant) {
        while let Some(&Reverse((at, conn, reason))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            let Some(c) = self.conns.slot(conn) else { continue };
            match reason {
                DeadlineReason::SlowDial => self.dial_overdue(now, c),
                DeadlineReason::EndpointSettings => {
                    if !self.conns[c].settled && self.conns[c].state == State::Open {
                        self.fail_conn(now, c, Reason::SETTINGS_TIMEOUT, "no SETTINGS");
                    }
                }
                DeadlineReason::PauseEnd => self.end_pause(now, c),
                DeadlineReason::LateReset => self.send_late_resets(now, c),
                DeadlineReason::RestEnd => self.end_rests(now, c),
                DeadlineReason::IdleEndpoint => self.check_idle(now, c),
                DeadlineReason::DrainPing => self.finish_drain(now, c),
                DeadlineReason::DrainEnd => {
                    if self.conns[c].state != State::Closing {
                        self.fail_conn(now, c, Reason::NO_ERROR, "grace period is over");
                    }
                }
            }
        }
    }

    /// Graceful end (two-step GOAWAY, RFC 9113 §6.8) of the client connections of one Service, or of all that there are
    /// and come. Those still open at `until` are closed.
    pub fn drain(&mut self, now: Instant, service: Option<&Rc<ServiceLoad>>, until: Instant) {
        if service.is_none() {
            self.draining = Some(until);
        }
        for id in self.conns.ids() {
            if let Some(c) = self.conns.slot(id)
                && let Role::Client(of) = &self.conns[c].role
                && service.is_none_or(|service| Rc::ptr_eq(service, of))
            {
                self.announce_drain(now, c, until);
            }
        }
        self.close_endpoints_if_drained(now);
    }

    /// What is to be written next on this connection, contiguous; empty: nothing.
    pub fn output(&self, conn: ConnId) -> &[u8] {
        self.conns.slot(conn).map_or(&[], |c| self.conns[c].output())
    }

    /// The first `n` bytes of `output` have been taken by the socket.
    pub fn consumed(&mut self, now: Instant, conn: ConnId, n: usize) {
        let Some(c) = self.conns.slot(conn) else { return };
        let high = self.output_high();
        let written = &mut self.conns[c];
        let had_room = written.backlog() < high;
        written.consume(n);
        if written.state == State::Closing {
            return self.conns.remove_if_done(conn);
        }
        if written.backlog() < high {
            if !had_room || !written.waiting.is_empty() {
                self.admit(now, c);
            }
            self.pump(now, c);
        }
    }

    /// Whether bytes of this connection are welcome now. False only while its peer does not take what we must answer,
    /// until `consumed` on the same connection; and while it pauses, until an [`Effect::Write`].
    pub fn wants_read(&self, conn: ConnId) -> bool {
        self.conns.slot(conn).is_some_and(|c| {
            let conn = &self.conns[c];
            conn.state == State::Open && conn.paused.is_none() && conn.backlog() < self.output_stop()
        })
    }

    /// Whether it is not read for a while for what it sent: of what it sends next, little is welcome at a time.
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.conns.slot(conn).is_some_and(|c| self.conns[c].paused.is_some())
    }

    /// The next thing to do, `None` when all is done.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.effects.pop_front() {
            if let Effect::Close(id) = effect
                && let Some(c) = self.conns.slot(id)
            {
                self.conns[c].close_taken = true;
                self.conns.remove_if_done(id);
            }
            return Some(effect);
        }
        #[cfg(debug_assertions)]
        self.check_idle_books();
        loop {
            let id = self.outputs.to_write.borrow_mut().pop()?;
            if self.conns.slot(id).is_some_and(|c| self.conns[c].state != State::Dialing) {
                return Some(Effect::Write(id));
            }
        }
    }

    /// When `handle_deadline` is to be called next, and why.
    pub fn next_deadline(&self) -> Option<(Instant, DeadlineReason)> {
        self.timers.peek().map(|Reverse((at, _, reason))| (*at, *reason))
    }

    /// No connection is left.
    pub fn is_empty(&self) -> bool {
        self.conns.len() == 0
    }

    /// What the bytes that were read since the beginning have cost, in frames of a usual call.
    pub fn work(&self) -> u64 {
        self.work
    }

    pub fn stats(&self) -> Stats {
        Stats { open_streams: self.pairs.len() as u64, ..self.stats }
    }

    fn new_conn(&mut self, now: Instant, role: Role) -> ConnId {
        let (limits, seed, outputs) = (Rc::clone(&self.limits), self.hash_seed, Rc::clone(&self.outputs));
        let window = self.connection_window(&role);
        self.conns.insert(|id| Conn::new(id, role, now, &limits, window, seed, outputs))
    }

    /// What a new connection may send ahead. The more of its kind there are and the more waits already, the less: what is
    /// granted cannot be taken back, and all of them together must not come to much more than the pod's budget.
    fn connection_window(&self, role: &Role) -> u32 {
        if self.held > self.limits.pod_budget / 2 {
            return DEFAULT_WINDOW;
        }
        let endpoints: usize = self.ways.pools.values().map(Vec::len).sum();
        let others = match role {
            Role::Client(_) => self.conns.len().saturating_sub(endpoints),
            Role::Endpoint(_) => endpoints,
        };
        let whole = self.limits.connection_window;
        (u64::from(whole) * WHOLE_WINDOWS / (others as u64 + 1)).clamp(DEFAULT_WINDOW.into(), whole.into()) as u32
    }

    fn arm(&mut self, at: Instant, conn: ConnId, reason: DeadlineReason) {
        if self.timers.len() >= self.many_timers {
            self.timers.retain(|Reverse((_, conn, _))| self.conns.slot(*conn).is_some());
            self.many_timers = 2 * self.timers.len() + 64;
        }
        self.timers.push(Reverse((at, conn, reason)));
    }

    /// The most that may wait in a connection's output before DATA waits in its stream: a part of what room all outputs
    /// together have left, so that whoever comes later finds some too, and all of them hold no more than they may.
    fn output_high(&self) -> usize {
        (self.output_budget().saturating_sub(self.outputs.held()) / 8).clamp(4 * 1024, self.limits.output_high)
    }

    /// The most that may wait in a connection's output while it is read.
    fn output_stop(&self) -> usize {
        let share = self.output_budget() / self.conns.len().max(1);
        share.clamp(self.output_high(), self.limits.output_stop)
    }

    /// A quarter of the pod's: a buffer that grows takes up to twice what is in it, and those that came first have more.
    fn output_budget(&self) -> usize {
        self.limits.pod_budget / 4
    }

    /// What waits in the outputs of all connections.
    fn all_output(&self) -> usize {
        self.conns.live().map(Conn::backlog).sum()
    }

    /// The header list in hand, to be kept with a pair.
    fn keep_list(&mut self) -> Rc<HeaderList> {
        if let Some(list) = Rc::get_mut(&mut self.list) {
            list.trim();
        }
        self.heads_held += self.list.size();
        Rc::clone(&self.list)
    }

    /// An empty list that is nobody else's.
    fn spare_list(&mut self) -> Rc<HeaderList> {
        self.spare_lists.pop().unwrap_or_default()
    }

    /// Keeps a small buffer for the next one who needs some.
    fn recycle_buffer(&mut self, mut buffer: Vec<u8>) {
        if (1..=SPARE_BUFFER).contains(&buffer.capacity()) && self.spare_buffers.len() < SPARES {
            buffer.clear();
            self.spare_buffers.push(buffer);
        }
    }

    /// Gives a header list's memory back, unless somebody else has it or it is large.
    fn recycle(&mut self, mut list: Rc<HeaderList>) {
        if self.spare_lists.len() < SPARES
            && let Some(unshared) = Rc::get_mut(&mut list)
            && unshared.size() < 4 * 1024
        {
            unshared.clear();
            self.spare_lists.push(list);
        }
    }
}

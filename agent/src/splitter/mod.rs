//! One pod's HTTP/2 world as a pure state machine: client connections, endpoint connections, streams paired one to one.
//!
//! The contract: after any `handle_*`, the owner (1) takes effects with `poll_effect` until `None`, (2) writes
//! `output(c)` for each connection named by `Effect::Write` and says `consumed(c, n)`, which may make more output,
//! and (3) arms a timer for `next_deadline`. `handle_*` never fails: a peer's error becomes output, effects and state.

use std::rc::Rc;
use std::time::Instant;

use crate::addr::EndpointAddr;
use crate::balance::{EndpointLoad, Picked, ServiceLoad};

pub mod hpack;

/// A connection, client's or endpoint's, in one splitter. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl ConnId {
    /// Dense and reused: for the owner's own table of sockets. Valid until `Effect::Close` of this connection.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What the owner is to do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Dial the endpoint for this new connection; answer with `connected` or `closed`.
    Dial(ConnId, EndpointAddr),
    /// The connection has output that it did not have before. Named once until the output was empty again.
    Write(ConnId),
    /// Write what `output` still holds, then shut down and forget the connection; the splitter has forgotten it after
    /// the output is consumed. Sent once per connection, except for those that ended by `handle_closed`, which are
    /// forgotten at once and get no effect.
    Close(ConnId),
}

/// Which deadline `next_deadline` stands for: makes a spinning timer explain itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineReason {
    Preface,
    SettingsAck,
    Drain,
    DrainEnd,
    IdleEndpoint,
}

/// Sizes and counts that bound one pod; all in bytes unless said otherwise.
#[derive(Clone, Debug)]
pub struct Limits {/* validated, documented fields */}

impl Default for Limits {
    fn default() -> Self {
        Limits {}
    }
}

pub struct Splitter {}

impl Splitter {
    pub fn new(limits: Rc<Limits>, rng: fastrand::Rng) -> Self {
        let _ = (limits, rng);
        unimplemented!()
    }

    /// A client connection that was detected to speak HTTP/2. Its bytes, preface included, come by `handle_bytes`.
    pub fn handle_accepted(&mut self, now: Instant, service: &Rc<ServiceLoad>) -> ConnId {
        let _ = (now, service);
        unimplemented!()
    }
    /// The dial asked for by `Effect::Dial` succeeded.
    pub fn handle_connected(&mut self, now: Instant, conn: ConnId) {
        let _ = (now, conn);
        unimplemented!()
    }
    /// Bytes received on a connection, in order, in chunks of any size.
    pub fn handle_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let _ = (now, conn, bytes);
        unimplemented!()
    }
    /// The peer closed its sending direction (read returned 0).
    pub fn handle_eof(&mut self, now: Instant, conn: ConnId) {
        let _ = (now, conn);
        unimplemented!()
    }
    /// The dial failed, or the socket failed, reset, or broke in both directions: the connection is gone.
    pub fn handle_closed(&mut self, now: Instant, conn: ConnId) {
        let _ = (now, conn);
        unimplemented!()
    }
    /// A Service's endpoints changed (`ServiceLoad::update` was called): endpoint connections of those gone take no new stream.
    pub fn handle_endpoints_changed(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }
    /// `next_deadline` has come. Calls that come early or late are harmless.
    pub fn handle_deadline(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }
    /// Graceful end (two-step GOAWAY, RFC 9113 §6.8) of the client connections of one Service, or of all. Streams still
    /// open at `until` are reset.
    pub fn drain(&mut self, now: Instant, service: Option<&Rc<ServiceLoad>>, until: Instant) {
        let _ = (now, service, until);
        unimplemented!()
    }

    /// What is to be written next on this connection, contiguous; empty: nothing.
    pub fn output(&self, conn: ConnId) -> &[u8] {
        let _ = conn;
        unimplemented!()
    }
    /// The first `n` bytes of `output` have been taken by the socket.
    pub fn consumed(&mut self, now: Instant, conn: ConnId, n: usize) {
        let _ = (now, conn, n);
        unimplemented!()
    }
    /// Whether bytes of this connection are welcome now. False only while its peer does not take what we must answer;
    /// it turns true again by `consumed` on the same connection.
    pub fn wants_read(&self, conn: ConnId) -> bool {
        let _ = conn;
        unimplemented!()
    }
    pub fn poll_effect(&mut self) -> Option<Effect> {
        unimplemented!()
    }
    pub fn next_deadline(&self) -> Option<(Instant, DeadlineReason)> {
        unimplemented!()
    }
    /// No connection is left.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    /// Counters since the beginning, for metrics and status.
    pub fn stats(&self) -> &Stats {
        unimplemented!()
    }
}

/// Counters of one splitter; all count up except where said.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub client_connections: u64,
    pub endpoint_connections: u64,
    pub streams: u64,
    pub streams_failed: u64,
    pub streams_replayed: u64,
    /// Now open.
    pub open_streams: u64,
}

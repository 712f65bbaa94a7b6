//! One HTTP/2 connection as state: settings, windows, HPACK contexts, output, and which pair each stream belongs to.
//!
//! It knows nothing of its counterpart; what frames mean for pairs is in `receive`, `request`, `response`, `forward`.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use foldhash::fast::FixedState;

use super::ConnId;
use super::flood::{FloodGuard, Haste};
use super::flow::{RecvWindow, SendWindow};
use super::frame::{self, DEFAULT_MAX_FRAME, DEFAULT_WINDOW, Reason, setting};
use super::hpack::{Decoder, Encoder, HeaderList};
use super::limits::Limits;
use super::pair::{Face, PairKey, Side};
use crate::balance::{EndpointLoad, ServiceLoad};

/// SETTINGS_HEADER_TABLE_SIZE on both faces: the protocol's default, never changed.
const HEADER_TABLE: usize = 4096;
/// How many ended streams a connection remembers, to tell late frames from wrong ones (RFC 9113 §5.1, "closed").
const REMEMBERED: usize = 64;

/// Whose connection it is.
pub(super) enum Role {
    Client(Rc<ServiceLoad>),
    Endpoint(Rc<EndpointLoad>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The owner is dialling.
    Dialing,
    Open,
    /// Nothing more is read or opened; forgotten when the owner knows and the output is out.
    Closing,
}

/// The graceful end (RFC 9113 §6.8), on a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// GOAWAY(2^31-1) and PING are out: new streams are still welcome.
    Announced,
    /// GOAWAY(last) is out: streams above it are not ours.
    Final(u32),
}

/// A header block whose CONTINUATIONs have not all come.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    /// The HEADERS frame named its own stream as dependency (RFC 9113 §5.3.1 of old: a stream error).
    pub(super) self_dependent: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) continuations: u32,
}

/// The peer's SETTINGS, as far as we follow them.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerSettings {
    pub(super) initial_window: u32,
    pub(super) max_frame: usize,
    pub(super) max_streams: u32,
    /// The largest header list it takes, as RFC 9113 §6.5.2 counts.
    pub(super) max_list: usize,
}

/// Clients choose their streams' numbers: without a seed they could choose thousands that meet in one place.
pub(super) type Streams = HashMap<u32, PairKey, FixedState>;

pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) role: Role,
    pub(super) state: State,
    /// Bytes of the client's preface still to come.
    pub(super) preface_left: usize,
    /// The peer's first SETTINGS have come. No stream is opened towards an endpoint before.
    pub(super) settled: bool,
    /// Endpoint: it keeps requests waiting. Neither settled nor failed when the patience with its dial was over, or settled
    /// with leave to open no stream at all.
    pub(super) overdue: bool,
    /// A frame that has not come whole: at most one frame.
    pub(super) tail: Vec<u8>,
    pub(super) block: Option<Block>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) peer: PeerSettings,
    pub(super) send: SendWindow,
    pub(super) recv: RecvWindow,
    pub(super) streams: Streams,
    /// Pairs that wait for this connection's window or for room in its output, in turn.
    pub(super) blocked: VecDeque<PairKey>,
    /// Client: the highest stream it opened. Endpoint: the id the next stream gets.
    pub(super) stream_mark: u32,
    /// The highest stream that its peer ended: of an endpoint, that it answered to the end.
    pub(super) answered: u32,
    /// Client: ids that it passed over: closed for good, though never open (RFC 9113 §5.1.1). The last few ranges.
    skipped: VecDeque<(u32, u32)>,
    /// Streams that ended lately, and whether we reset them.
    closed: VecDeque<(u32, bool)>,
    pub(super) drain: Drain,
    /// Endpoint: resets of streams that are still too new for one, as they become due. Each takes its place till then.
    pub(super) resets: VecDeque<(Instant, u32, Reason)>,
    /// Endpoint: no new stream (GOAWAY came, the endpoint left, ids are used up).
    pub(super) retired: bool,
    /// Endpoint: pairs that wait for it to be able to open a stream, in turn.
    pub(super) waiting: VecDeque<PairKey>,
    /// Endpoint: pairs whose client left after its last word, in the order of their deadlines.
    pub(super) rests: VecDeque<PairKey>,
    /// Endpoint: since when it has had no stream.
    pub(super) idle_since: Option<Instant>,
    pub(super) flood: FloodGuard,
    /// Of a client.
    pub(super) haste: Haste,
    /// DATA went to the peer since its last PING.
    pub(super) fed: bool,
    /// Too many cheap frames came, or more work than it may make at once: not read until then.
    pub(super) paused: Option<Instant>,
    /// Client: its requests go over endpoint connections apart from those of others, since endpoints may end a connection
    /// for what it does. Endpoint: it is one of these.
    pub(super) apart: bool,
    out: Vec<u8>,
    out_head: usize,
    /// Bytes the socket has taken since the beginning.
    pub(super) flushed: u64,
    /// The owner has taken `Effect::Close`.
    pub(super) close_taken: bool,
    /// Named in `outputs` since the output was last empty.
    announced: bool,
    /// What of its output stands in the sum of all.
    pub(super) counted: usize,
    outputs: Rc<Outputs>,
}

/// What the outputs of a splitter's connections have in common.
#[derive(Default)]
pub(super) struct Outputs {
    /// Connections that have output since it was last asked: each adds itself when it is written to, so that none is missed.
    pub(super) to_write: RefCell<Vec<ConnId>>,
    /// Bytes in all of them, each as it was when its last DATA was added or it was last written from.
    held: Cell<usize>,
}

impl Outputs {
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }
}

impl Conn {
    /// `window`: what its peer may send ahead.
    pub(super) fn new(
        id: ConnId,
        role: Role,
        now: Instant,
        limits: &Limits,
        window: u32,
        seed: u64,
        outputs: Rc<Outputs>,
    ) -> Self {
        let client = matches!(role, Role::Client(_));
        let mut conn = Self {
            id,
            role,
            state: if client { State::Open } else { State::Dialing },
            preface_left: if client { frame::PREFACE.len() } else { 0 },
            settled: false,
            overdue: false,
            tail: Vec::new(),
            block: None,
            decoder: Decoder::new(HEADER_TABLE, seed),
            encoder: Encoder::new(seed),
            peer: PeerSettings {
                initial_window: DEFAULT_WINDOW,
                max_frame: DEFAULT_MAX_FRAME,
                // RFC 9113 §6.5.2: unlimited until said otherwise.
                max_streams: u32::MAX,
                max_list: usize::MAX,
            },
            send: SendWindow::new(DEFAULT_WINDOW),
            recv: RecvWindow::new(window, DEFAULT_WINDOW),
            streams: Streams::with_hasher(FixedState::with_seed(seed)),
            blocked: VecDeque::new(),
            stream_mark: if client { 0 } else { 1 },
            answered: 0,
            skipped: VecDeque::new(),
            closed: VecDeque::new(),
            drain: Drain::No,
            resets: VecDeque::new(),
            retired: false,
            waiting: VecDeque::new(),
            rests: VecDeque::new(),
            idle_since: (!client).then_some(now),
            flood: FloodGuard::new(now),
            haste: Haste::default(),
            fed: false,
            paused: None,
            apart: false,
            out: Vec::new(),
            out_head: 0,
            flushed: 0,
            close_taken: false,
            announced: false,
            counted: 0,
            outputs,
        };
        conn.greet(limits);
        conn
    }

    /// Our half of the connection preface (RFC 9113 §3.4).
    fn greet(&mut self, limits: &Limits) {
        let window = (setting::INITIAL_WINDOW_SIZE, limits.stream_window);
        let list = (setting::MAX_HEADER_LIST_SIZE, limits.header_list as u32);
        match self.role {
            Role::Client(_) => {
                let streams = (setting::MAX_CONCURRENT_STREAMS, limits.client_streams);
                frame::write_settings(self.out(), &[streams, window, list]);
            }
            Role::Endpoint(_) => {
                self.out().extend_from_slice(frame::PREFACE);
                frame::write_settings(self.out(), &[(setting::ENABLE_PUSH, 0), window, list]);
            }
        }
        if let Some(increment) = self.recv.update() {
            frame::write_window_update(self.out(), 0, increment);
        }
    }

    pub(super) fn face(&self) -> Face {
        match self.role {
            Role::Client(_) => Face::Client,
            Role::Endpoint(_) => Face::Endpoint,
        }
    }

    /// For appending whole frames, at least one.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if !self.announced {
            self.announced = true;
            self.outputs.to_write.borrow_mut().push(self.id);
        }
        &mut self.out
    }

    /// As `out`, with room for `bytes` more, and for all that is `coming` if room must be made: not to be moved again and again
    /// as it grows.
    pub(super) fn out_for(&mut self, bytes: usize, coming: usize) -> &mut Vec<u8> {
        let out = self.out();
        if out.capacity() - out.len() < bytes {
            out.reserve(bytes.max(coming));
        }
        out
    }

    /// A header block, encoded as it enters the output: the peer's table stays in step (RFC 7541 §2.2).
    pub(super) fn write_headers(&mut self, stream: u32, end_stream: bool, fields: &Rc<HeaderList>) {
        self.out();
        let (out, encoder) = (&mut self.out, &mut self.encoder);
        frame::write_headers(out, stream, end_stream, self.peer.max_frame, |out| encoder.encode_shared(fields, out));
    }

    pub(super) fn output(&self) -> &[u8] {
        &self.out[self.out_head..]
    }

    /// Bytes that wait for the socket.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() - self.out_head
    }

    /// Where the next frame will begin, counted since the connection's beginning.
    pub(super) fn out_end(&self) -> u64 {
        self.flushed + self.backlog() as u64
    }

    pub(super) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.backlog(), "more consumed than there was");
        self.flushed += n as u64;
        self.out_head += n;
        if self.out_head == self.out.len() {
            self.out.clear();
            self.out_head = 0;
            self.announced = false;
            // A quiet connection keeps no large buffer, and the next that needs one gets this, which is warm.
            if self.out.capacity() > 16 * 1024 {
                self.out = Vec::new();
            }
        } else if self.out_head > 64 * 1024 {
            self.out.drain(..self.out_head);
            self.out_head = 0;
        }
        self.count_output();
    }

    /// Brings the sum of all outputs up to date with this one.
    pub(super) fn count_output(&mut self) {
        let (backlog, held) = (self.backlog(), &self.outputs.held);
        held.set(held.get() + backlog - self.counted);
        self.counted = backlog;
    }

    /// Nobody will read it.
    pub(super) fn discard_output(&mut self) {
        self.out = Vec::new();
        self.out_head = 0;
        self.count_output();
    }

    /// Endpoint: whether a stream may be opened on it now.
    pub(super) fn can_open(&self, output_high: usize) -> bool {
        self.settled && !self.retired && !self.is_full() && self.backlog() < output_high
    }

    /// Endpoint: at its MAX_CONCURRENT_STREAMS.
    pub(super) fn is_full(&self) -> bool {
        self.settled && self.streams.len() + self.resets.len() >= self.peer.max_streams as usize
    }

    /// Client: it opened this stream; those between were passed over.
    pub(super) fn opened(&mut self, stream: u32) {
        let next = if self.stream_mark == 0 { 1 } else { self.stream_mark + 2 };
        if stream > next {
            if self.skipped.len() == REMEMBERED {
                self.skipped.pop_front();
            }
            self.skipped.push_back((next, stream - 2));
        }
        self.stream_mark = stream;
    }

    /// Client: it passed over this id.
    pub(super) fn was_skipped(&self, stream: u32) -> bool {
        self.skipped.iter().any(|&(low, high)| (low..=high).contains(&stream))
    }

    /// Whether a frame may name this stream: it is or was open (RFC 9113 §5.1, "idle").
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        match self.role {
            // After the final GOAWAY the client may have opened more that we do not look at.
            Role::Client(_) if matches!(self.drain, Drain::Final(_)) => stream.is_multiple_of(2),
            Role::Client(_) => stream.is_multiple_of(2) || stream > self.stream_mark,
            Role::Endpoint(_) => stream.is_multiple_of(2) || stream >= self.stream_mark,
        }
    }

    /// Takes an ended stream off the books; its unforwarded payload is credited.
    pub(super) fn forget(&mut self, now: Instant, side: &Side) {
        self.streams.remove(&side.id);
        if side.recv_ended && !side.we_reset {
            self.answered = self.answered.max(side.id);
        }
        if self.streams.is_empty() {
            self.idle_since = Some(now);
        }
        if side.unpaid > 0 {
            self.release(side.unpaid);
        }
    }

    /// Remembers an ended stream.
    pub(super) fn remember(&mut self, stream: u32, we_reset: bool) {
        if self.closed.len() == REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back((stream, we_reset));
    }

    /// Of a stream that ended lately: whether we reset it. `None`: not known.
    pub(super) fn remembered(&self, stream: u32) -> Option<bool> {
        self.closed.iter().rev().find(|(id, _)| *id == stream).map(|(_, we_reset)| *we_reset)
    }

    /// Credit for DATA that went on or was thrown away, on the connection's window.
    pub(super) fn release(&mut self, bytes: usize) {
        self.recv.release(bytes);
        if let Some(increment) = self.recv.update() {
            frame::write_window_update(self.out(), 0, increment);
        }
    }

    pub(super) fn reset(&mut self, stream: u32, reason: Reason) {
        frame::write_reset(self.out(), stream, reason);
    }

    /// The last stream that GOAWAY names: what a client opened; of an endpoint, that never pushes, none.
    pub(super) fn last_stream(&self) -> u32 {
        match self.role {
            Role::Client(_) => self.stream_mark,
            Role::Endpoint(_) => 0,
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.discard_output();
    }
}

#[cfg(debug_assertions)]
impl Conn {
    /// Panics unless what concerns the connection alone is right.
    pub(super) fn check(&self) {
        self.send.check();
        self.recv.check();
        self.decoder.check();
        self.encoder.check();
        assert!(self.out_head <= self.out.len(), "{self:?}: more consumed than written");
        assert!(self.announced || self.backlog() == 0, "{self:?}: output that nobody was told of");
        assert!(self.closed.len() <= REMEMBERED && self.skipped.len() <= REMEMBERED, "{self:?}: remembers too much");
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("id", &self.id)
            .field("face", &self.face())
            .field("state", &self.state)
            .field("drain", &self.drain)
            .field("settled", &self.settled)
            .field("overdue", &self.overdue)
            .field("retired", &self.retired)
            .field("paused", &self.paused)
            .field("peer", &self.peer)
            .field("send", &self.send)
            .field("recv", &self.recv)
            .field("streams", &self.streams.len())
            .field("waiting", &self.waiting.len())
            .field("blocked", &self.blocked.len())
            .field("backlog", &self.backlog())
            .field("tail", &self.tail.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn stream_ids_chosen_to_meet_in_a_table_without_a_seed_spread_in_this_one() {
        let place = |hasher: &dyn Fn(u32) -> u64, id| hasher(id) & 0x3ff;
        let unseeded = |id| rustc_hash::FxBuildHasher.hash_one(id);
        let chosen: Vec<u32> = (1..2_000_000).step_by(2).filter(|id| place(&unseeded, *id) == 0).take(500).collect();
        assert_eq!(chosen.len(), 500);
        for seed in 0..4 {
            let streams = Streams::with_hasher(FixedState::with_seed(seed));
            let seeded = |id| streams.hasher().hash_one(id);
            let places: HashSet<u64> = chosen.iter().map(|id| place(&seeded, *id)).collect();
            assert!(places.len() > 300, "{}", places.len());
        }
    }
}

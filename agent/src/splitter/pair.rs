//! A pair: one client stream and the endpoint stream it is paired with (RFC 9113 §5.1 on each side).
//!
//! State and its small transitions. Which frames cause them is decided where frames are received and forwarded.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::ConnId;
use super::flow::{RecvWindow, SendWindow};
use super::frame::Reason;
use super::hpack::HeaderList;
use super::tap::Tapped;
use crate::balance::{EndpointLoad, Picked, ServiceLoad};
use crate::calls::{Call, Ended};

/// Which of a pair's two streams: the client's, where we are the server, or the endpoint's, where we are the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Face {
    Client,
    Endpoint,
}

impl Face {
    pub(super) fn other(self) -> Face {
        match self {
            Face::Client => Face::Endpoint,
            Face::Endpoint => Face::Client,
        }
    }
}

/// Names a pair; a reused slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PairKey {
    index: u32,
    generation: u32,
}

/// What ends a side's output, after its pending bytes.
#[derive(Default)]
pub(super) enum Ending {
    /// Not known yet: more may come.
    #[default]
    Open,
    /// END_STREAM on the HEADERS that open the stream.
    Head,
    /// END_STREAM on the last DATA.
    EndStream,
    /// HEADERS with END_STREAM.
    Trailers(Rc<HeaderList>),
}

/// One stream of a pair: what came from its peer, and what is to go to it.
pub(super) struct Side {
    /// Slot of its connection. Of the endpoint's side: meaningless before an endpoint is picked.
    pub(super) conn: u32,
    /// 0: not opened yet, or off its connection's books.
    pub(super) id: u32,
    // What came.
    pub(super) recv: RecvWindow,
    /// Of what is held, bytes for which the connection's credit was withheld: the pod was over its budget.
    pub(super) unpaid: usize,
    /// Who gets that credit, once the stream has left its connection's books.
    pub(super) owed_to: Option<ConnId>,
    /// The peer ended its direction.
    pub(super) recv_ended: bool,
    /// content-length, where the peer said one, and what came of it (RFC 9113 §8.1.1).
    pub(super) expected: Option<u64>,
    pub(super) body: u64,
    // What is to go.
    pub(super) send: SendWindow,
    /// Payload that waits for a window or for room in the connection's output; `pending_head` bytes of it are gone.
    pub(super) pending: Vec<u8>,
    pub(super) pending_head: usize,
    pub(super) end: Ending,
    /// We ended our direction.
    pub(super) send_ended: bool,
    /// RST_STREAM to send once everything before it is out (RFC 9113 §8.1: a server may finish early).
    pub(super) then_reset: Option<Reason>,
    /// Stands in its connection's list of those who wait for the connection.
    pub(super) queued: bool,
    /// We ended it with RST_STREAM.
    pub(super) we_reset: bool,
}

impl Side {
    pub(super) fn new(conn: u32, id: u32, recv: RecvWindow, send: SendWindow) -> Self {
        Self {
            conn,
            id,
            recv,
            unpaid: 0,
            owed_to: None,
            recv_ended: false,
            expected: None,
            body: 0,
            send,
            pending: Vec::new(),
            pending_head: 0,
            end: Ending::Open,
            send_ended: false,
            then_reset: None,
            queued: false,
            we_reset: false,
        }
    }

    pub(super) fn pending(&self) -> &[u8] {
        &self.pending[self.pending_head..]
    }

    pub(super) fn is_open(&self) -> bool {
        self.id != 0
    }

    /// Both directions have ended.
    pub(super) fn is_closed(&self) -> bool {
        self.recv_ended && self.send_ended
    }

    /// `n` pending bytes have been framed.
    pub(super) fn take_pending(&mut self, n: usize) {
        self.pending_head += n;
        if self.pending_head == self.pending.len() {
            self.pending.clear();
            self.pending_head = 0;
            if self.pending.capacity() > 16 * 1024 {
                self.pending = Vec::new();
            }
        } else if self.pending_head >= 64 * 1024 {
            self.pending.drain(..self.pending_head);
            self.pending_head = 0;
        }
    }
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = match self.end {
            Ending::Open => "open",
            Ending::Head => "HEADERS",
            Ending::EndStream => "END_STREAM",
            Ending::Trailers(_) => "trailers",
        };
        f.debug_struct("Side")
            .field("conn", &self.conn)
            .field("id", &self.id)
            .field("recv", &self.recv)
            .field("recv_ended", &self.recv_ended)
            .field("send", &self.send)
            .field("pending", &self.pending().len())
            .field("end", &end)
            .field("send_ended", &self.send_ended)
            .field("queued", &self.queued)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("phase", &self.phase)
            .field("picked", &self.picked)
            .field("client", &self.client)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    /// Its endpoint connection cannot take it yet.
    Waiting,
    /// HEADERS are in the connection's output; nothing came back yet.
    Sent,
    /// A 1xx response came: bound to this endpoint from here on.
    Interim,
    /// The final response's head came.
    Answered,
}

/// One client stream with its endpoint stream.
pub(super) struct Pair {
    pub(super) client: Side,
    pub(super) endpoint: Side,
    pub(super) service: Rc<ServiceLoad>,
    pub(super) call: Call,
    /// Counts on the endpoint until the pair ends.
    pub(super) picked: Option<Picked>,
    /// Endpoints that this stream was tried on before.
    pub(super) tried: Vec<Rc<EndpointLoad>>,
    pub(super) phase: Phase,
    /// When the request came, or, if that is later, when it went to the endpoint.
    pub(super) opened: Instant,
    /// When the request was whole.
    pub(super) asked: Instant,
    /// Of the response's head.
    pub(super) status: u16,
    /// How it ended at its endpoint was told.
    pub(super) told: bool,
    /// The client left after its last word: until when the endpoint may take what waits for it.
    pub(super) rest_until: Option<Instant>,
    pub(super) grpc: bool,
    /// A HEAD request: its response has a content-length and no content (RFC 9110 §9.3.2).
    pub(super) head: bool,
    /// A CONNECT request; from the response's head on: a tunnel, which carries DATA alone (RFC 9113 §8.5).
    pub(super) connect: bool,
    /// Endpoints that it was given to so far.
    pub(super) attempts: u32,
    /// The request's head, kept until the endpoint answers: it may have to go to another one.
    pub(super) request: Rc<HeaderList>,
    /// Request payload that was framed towards the endpoint, kept likewise; `None`: too much, no replay.
    pub(super) replay: Option<Vec<u8>>,
    /// Bytes at the head of `endpoint.pending` whose sender has its credit already.
    pub(super) credited: usize,
    /// Where its HEADERS begin in the endpoint connection's output since the beginning: not flushed, not sent.
    pub(super) sent_at: u64,
    /// Somebody looks at it.
    pub(super) tapped: Option<Box<Tapped>>,
}

impl Pair {
    pub(super) fn side(&mut self, face: Face) -> &mut Side {
        match face {
            Face::Client => &mut self.client,
            Face::Endpoint => &mut self.endpoint,
        }
    }

    /// As [`Pair::side`], for looking only.
    #[cfg(debug_assertions)]
    pub(super) fn face(&self, face: Face) -> &Side {
        match face {
            Face::Client => &self.client,
            Face::Endpoint => &self.endpoint,
        }
    }

    /// The client gets a reset with this code.
    pub(super) fn ends_by_reset(&mut self, reason: Reason) {
        self.call.ends(if self.grpc { Ended::of_reset(reason.0) } else { Ended::Http(self.status) });
    }

    /// What its header lists that wait count for.
    pub(super) fn heads(&self) -> usize {
        let waiting = |side: &Side| match &side.end {
            Ending::Trailers(fields) => fields.size(),
            Ending::Open | Ending::Head | Ending::EndStream => 0,
        };
        self.request.size() + waiting(&self.client) + waiting(&self.endpoint)
    }

    /// All four directions have ended, and nothing waits.
    pub(super) fn is_complete(&self) -> bool {
        self.client.is_closed() && self.endpoint.is_closed()
    }
}

/// All pairs of a splitter, in reused slots.
#[derive(Default)]
pub(super) struct Pairs {
    slots: Vec<(u32, Option<Pair>)>,
    free: Vec<u32>,
}

impl Pairs {
    pub(super) fn insert(&mut self, pair: Pair) -> PairKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (generation, slot) = &mut self.slots[index as usize];
        *slot = Some(pair);
        PairKey { index, generation: *generation }
    }

    pub(super) fn remove(&mut self, key: PairKey) -> Option<Pair> {
        let (generation, slot) = &mut self.slots[key.index as usize];
        if *generation != key.generation {
            return None;
        }
        let pair = slot.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(key.index);
        Some(pair)
    }

    /// Puts a pair at the end of a list. Those that have ended meanwhile leave it before it grows.
    pub(super) fn line_up(&self, list: &mut VecDeque<PairKey>, key: PairKey) {
        if list.len() == list.capacity() {
            list.retain(|key| self.contains(*key));
            // Room for as many again: the next look at all of them is that far away.
            list.reserve(list.len() + 1);
        }
        list.push_back(key);
    }

    fn contains(&self, key: PairKey) -> bool {
        let (generation, slot) = &self.slots[key.index as usize];
        *generation == key.generation && slot.is_some()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Pair> {
        self.slots.iter().filter_map(|(_, slot)| slot.as_ref())
    }

    pub(super) fn each(&mut self, work: impl FnMut(&mut Pair)) {
        self.slots.iter_mut().filter_map(|(_, slot)| slot.as_mut()).for_each(work);
    }

    /// As [`Pairs::get`], for looking only.
    pub(super) fn peek(&self, key: PairKey) -> Option<&Pair> {
        let (generation, slot) = &self.slots[key.index as usize];
        if *generation == key.generation { slot.as_ref() } else { None }
    }

    /// `None`: it has ended.
    pub(super) fn get(&mut self, key: PairKey) -> Option<&mut Pair> {
        let (generation, slot) = &mut self.slots[key.index as usize];
        if *generation == key.generation { slot.as_mut() } else { None }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

//! What somebody who looks gets to see of calls while they happen: events, in order, as long as somebody looks. Nobody
//! looks: one test of a flag per call, and no memory.
//!
//! In: pairs and frames at the moments that matter. Out: [`TapEvent`]s by `poll_tap`. Values that may be secrets are
//! hidden here (`shown`), before they go anywhere; payload is never shown. It changes nothing of what passes.

mod shown;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::conn::Role;
use super::frame::{self, HEAD_LEN, Head, PREFACE, be_u32, flag, kind};
use super::hpack::{HeaderList, Name};
use super::message;
use super::pair::{Face, Pair, PairKey};
use super::{ConnId, Splitter};
use crate::addr::{EndpointAddr, ServiceAddr};
use crate::calls::Ended;
use crate::table::ServicePortName;
pub use shown::Shown;
use shown::{shown, text, value};

/// Events that wait to be taken; more are lost, and counted.
const EVENTS: usize = 4_096;
/// And no more than so many bytes.
const BYTES: usize = 1 << 20;
/// Streams whose frames are recognized, the last ones.
const STREAMS: usize = 4_096;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Depth {
    /// The share of calls, from 0 to 1.
    pub share: f32,
    /// Header fields too, and events before the end.
    pub metadata: bool,
    /// Each frame too.
    pub frames: bool,
}

/// A name for a call, in one splitter.
pub type CallId = u64;

/// What happened.
#[derive(Clone, Debug)]
pub enum TapEvent {
    /// A request's head came.
    Request { call: CallId, service: ServicePortName, address: ServiceAddr, path: String, metadata: Vec<Shown> },
    /// The answer's head came.
    Response { call: CallId, endpoint: Option<EndpointAddr>, after: Duration, status: u16, metadata: Vec<Shown> },
    /// The answer's trailers came.
    Trailers { call: CallId, metadata: Vec<Shown> },
    /// The call is over.
    End(Box<CallRecord>),
    /// A frame came or is about to go.
    Frame(FrameSeen),
    /// So many events were not kept, since nobody took them in time.
    Lost(u64),
}

/// A call that is over.
#[derive(Clone, Debug)]
pub struct CallRecord {
    pub call: CallId,
    pub service: ServicePortName,
    pub path: String,
    pub grpc: bool,
    /// The last that had it; none: none had.
    pub endpoint: Option<EndpointAddr>,
    /// Endpoints and connections it was given to.
    pub attempts: u32,
    pub ended: Ended,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// Payload, bytes.
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// As the client sent it (W3C Trace Context).
    pub traceparent: Option<String>,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSeen {
    /// None: of the whole connection, or of a call that is not looked at.
    pub call: Option<CallId>,
    /// Which connection of the splitter.
    pub connection: ConnId,
    /// Towards a client or an endpoint it goes, or comes from there.
    pub client: bool,
    pub received: bool,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// Of the payload, bytes.
    pub length: usize,
    /// An error code (RST_STREAM, GOAWAY) or an increment (WINDOW_UPDATE).
    pub value: Option<u32>,
}

/// What is remembered of a call that is looked at.
pub(super) struct Tapped {
    id: CallId,
    path: String,
    traceparent: Option<String>,
    endpoint: Option<EndpointAddr>,
}

/// The state of looking.
pub(super) struct Tap {
    depth: Depth,
    next: CallId,
    events: VecDeque<TapEvent>,
    /// Of the events that wait.
    bytes: usize,
    lost: u64,
    /// Which call each of the last streams belongs to, and the order in which they came.
    streams: FxHashMap<(ConnId, u32), CallId>,
    order: VecDeque<(ConnId, u32)>,
    /// Up to where each connection's output has been looked at, counted since its beginning.
    scanned: FxHashMap<ConnId, u64>,
}

impl Tap {
    fn tell(&mut self, event: TapEvent) {
        let bytes = event.bytes();
        if self.events.len() < EVENTS && self.bytes + bytes <= BYTES {
            self.bytes += bytes;
            self.events.push_back(event);
        } else {
            self.lost += 1;
        }
    }

    fn knows_stream(&mut self, conn: ConnId, stream: u32, call: CallId) {
        if self.order.len() == STREAMS
            && let Some(oldest) = self.order.pop_front()
        {
            self.streams.remove(&oldest);
        }
        self.order.push_back((conn, stream));
        self.streams.insert((conn, stream), call);
    }
}

impl Splitter {
    /// Looks at calls that begin from now on; none: at no call any more.
    pub fn tap(&mut self, depth: Option<Depth>) {
        let Some(depth) = depth else {
            self.tap = None;
            return self.pairs.each(|pair| pair.tapped = None);
        };
        if let Some(tap) = &mut self.tap {
            tap.depth = depth;
            return;
        }
        // What is in the outputs already was written before.
        let scanned = self.conns.live().map(|conn| (conn.id, conn.out_end())).collect();
        self.tap = Some(Box::new(Tap {
            depth,
            next: 0,
            events: VecDeque::new(),
            bytes: 0,
            lost: 0,
            streams: FxHashMap::default(),
            order: VecDeque::new(),
            scanned,
        }));
    }

    /// The call that began last of those that are looked at; none: nobody looks.
    pub fn last_tapped(&self) -> Option<CallId> {
        self.tap.as_ref().map(|tap| tap.next)
    }

    /// The next event; none: all are taken.
    pub fn poll_tap(&mut self) -> Option<TapEvent> {
        let tap = self.tap.as_mut()?;
        if let Some(event) = tap.events.pop_front() {
            tap.bytes -= event.bytes();
            return Some(event);
        }
        match std::mem::take(&mut tap.lost) {
            0 => None,
            lost => Some(TapEvent::Lost(lost)),
        }
    }

    /// Somebody looks: what costs something is called only then, so that all that nobody looks at costs this test.
    #[inline]
    pub(super) fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }

    /// The header list in hand is a new request's, which is not kept yet.
    #[cold]
    pub(super) fn tap_request(&mut self, key: PairKey) {
        let Some(tap) = &mut self.tap else { return };
        let Some(pair) = self.pairs.get(key) else { return };
        if tap.depth.share < 1.0 && self.rng.f32() >= tap.depth.share {
            return;
        }
        tap.next += 1;
        let call = tap.next;
        let path = pair.request.iter().find(|field| field.kind() == Name::Path).map(value);
        let path = path.unwrap_or_default();
        if tap.depth.metadata {
            let service = pair.service.service();
            tap.tell(TapEvent::Request {
                call,
                service: service.name.clone(),
                address: service.addr,
                path: path.clone(),
                metadata: shown(&pair.request),
            });
        }
        if tap.depth.frames {
            tap.knows_stream(self.conns[pair.client.conn].id, pair.client.id, call);
        }
        let traceparent =
            pair.request.iter().find(|field| field.name() == b"traceparent").map(|field| text(field.value()));
        pair.tapped = Some(Box::new(Tapped { id: call, path, traceparent, endpoint: None }));
    }

    /// The request was given to a stream of an endpoint's connection.
    #[cold]
    pub(super) fn tap_placed(&mut self, key: PairKey) {
        let Some(tap) = &mut self.tap else { return };
        let Some(pair) = self.pairs.get(key) else { return };
        let (Some(tapped), Some(picked)) = (&mut pair.tapped, &pair.picked) else { return };
        tapped.endpoint = Some(picked.endpoint().addr());
        if tap.depth.frames {
            tap.knows_stream(self.conns[pair.endpoint.conn].id, pair.endpoint.id, tapped.id);
        }
    }

    /// The header list in hand is the head of an answer, or its trailers.
    #[cold]
    pub(super) fn tap_response(&mut self, now: Instant, key: PairKey, trailers: bool) {
        let Some(tap) = &mut self.tap else { return };
        let Some(pair) = self.pairs.get(key) else { return };
        let Some(tapped) = pair.tapped.as_ref().filter(|_| tap.depth.metadata) else { return };
        let (call, metadata) = (tapped.id, shown(&self.list));
        let after = now.saturating_duration_since(pair.call.came());
        tap.tell(match trailers {
            true => TapEvent::Trailers { call, metadata },
            false => TapEvent::Response { call, endpoint: tapped.endpoint, after, status: pair.status, metadata },
        });
    }

    /// An answer of our own.
    #[cold]
    pub(super) fn tap_own_response(&mut self, now: Instant, key: PairKey, list: &HeaderList) {
        let Some(tap) = self.tap.as_mut().filter(|tap| tap.depth.metadata) else { return };
        let Some(pair) = self.pairs.get(key) else { return };
        let Some(tapped) = &pair.tapped else { return };
        let after = now.saturating_duration_since(pair.call.came());
        let status = message::response(list).map_or(0, |response| response.status);
        tap.tell(TapEvent::Response { call: tapped.id, endpoint: None, after, status, metadata: shown(list) });
    }

    /// The pair is off the books.
    #[cold]
    pub(super) fn tap_end(&mut self, now: Instant, pair: &mut Pair) {
        let Some(tap) = &mut self.tap else { return };
        let Some(tapped) = pair.tapped.take() else { return };
        let none = if pair.grpc { Ended::CANCELLED } else { Ended::Http(0) };
        tap.tell(TapEvent::End(Box::new(CallRecord {
            call: tapped.id,
            service: pair.service.service().name.clone(),
            path: tapped.path,
            grpc: pair.grpc,
            endpoint: tapped.endpoint,
            attempts: pair.attempts,
            ended: pair.call.ended().unwrap_or(none),
            duration: now.saturating_duration_since(pair.call.came()),
            request_bytes: pair.client.body,
            response_bytes: pair.endpoint.body,
            traceparent: tapped.traceparent,
        })));
    }

    /// A frame came on a connection.
    #[cold]
    pub(super) fn tap_received(&mut self, id: ConnId, client: bool, head: Head, payload: &[u8]) {
        if let Some(tap) = self.tap.as_mut().filter(|tap| tap.depth.frames) {
            tap.frame(id, client, true, head, payload);
        }
    }

    /// To be called before the output of a connection is written, while frames are looked at.
    pub fn tap_output(&mut self, conn: ConnId) {
        let Some(tap) = self.tap.as_mut().filter(|tap| tap.depth.frames) else { return };
        let Some(c) = self.conns.slot(conn) else { return };
        let conn = &self.conns[c];
        let from = tap.scanned.insert(conn.id, conn.out_end()).unwrap_or(0);
        let mut output = conn.output().get((from.saturating_sub(conn.flushed)) as usize..).unwrap_or_default();
        if from == 0 && matches!(conn.role, Role::Endpoint(_)) {
            output = output.strip_prefix(PREFACE).unwrap_or(output);
        }
        let client = conn.face() == Face::Client;
        while let Some((head, rest)) = output.split_first_chunk::<HEAD_LEN>() {
            let head = Head::parse(head);
            let Some((payload, rest)) = rest.split_at_checked(head.length) else { return };
            tap.frame(conn.id, client, false, head, payload);
            output = rest;
        }
        if tap.scanned.len() > 2 * self.conns.len() + 64 {
            tap.scanned.retain(|id, _| self.conns.slot(*id).is_some());
        }
    }
}

impl Tap {
    fn frame(&mut self, connection: ConnId, client: bool, received: bool, head: Head, payload: &[u8]) {
        let value = match head.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE if payload.len() == 4 => Some(be_u32(payload)),
            kind::GOAWAY if payload.len() >= 8 => Some(be_u32(&payload[4..])),
            _ => None,
        };
        let call = self.streams.get(&(connection, head.stream)).copied();
        let Head { length, kind, flags, stream } = head;
        self.tell(TapEvent::Frame(FrameSeen {
            call,
            connection,
            client,
            received,
            kind,
            flags,
            stream,
            length,
            value,
        }));
    }
}

impl FrameSeen {
    /// `HEADERS`, or the number of a type that RFC 9113 does not know.
    pub fn kind_name(&self) -> String {
        let known = match self.kind {
            kind::DATA => "DATA",
            kind::HEADERS => "HEADERS",
            kind::PRIORITY => "PRIORITY",
            kind::RST_STREAM => "RST_STREAM",
            kind::SETTINGS => "SETTINGS",
            kind::PUSH_PROMISE => "PUSH_PROMISE",
            kind::PING => "PING",
            kind::GOAWAY => "GOAWAY",
            kind::WINDOW_UPDATE => "WINDOW_UPDATE",
            kind::CONTINUATION => "CONTINUATION",
            other => return format!("{other:#04x}"),
        };
        known.to_owned()
    }

    /// The names of the flags that are set and that its type has.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let of_type: &[(u8, &str)] = match self.kind {
            kind::DATA => &[(flag::END_STREAM, "END_STREAM"), (flag::PADDED, "PADDED")],
            kind::HEADERS => &[
                (flag::END_STREAM, "END_STREAM"),
                (flag::END_HEADERS, "END_HEADERS"),
                (flag::PADDED, "PADDED"),
                (flag::PRIORITY, "PRIORITY"),
            ],
            kind::CONTINUATION => &[(flag::END_HEADERS, "END_HEADERS")],
            kind::SETTINGS | kind::PING => &[(flag::ACK, "ACK")],
            _ => &[],
        };
        of_type.iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// The name of its error code, where it has one.
    pub fn reason(&self) -> Option<&'static str> {
        let has_code = matches!(self.kind, kind::RST_STREAM | kind::GOAWAY);
        self.value.filter(|_| has_code).and_then(|code| frame::reason_name(code))
    }
}

impl TapEvent {
    /// The call that it is about.
    pub fn call(&self) -> Option<CallId> {
        match self {
            TapEvent::Request { call, .. } | TapEvent::Response { call, .. } | TapEvent::Trailers { call, .. } => {
                Some(*call)
            }
            TapEvent::End(record) => Some(record.call),
            TapEvent::Frame(frame) => frame.call,
            TapEvent::Lost(_) => None,
        }
    }

    /// About what it takes beyond a fixed size.
    fn bytes(&self) -> usize {
        match self {
            TapEvent::Request { metadata, .. }
            | TapEvent::Response { metadata, .. }
            | TapEvent::Trailers { metadata, .. } => {
                metadata.iter().map(|field| field.name.len() + field.value.len() + size_of::<Shown>()).sum()
            }
            TapEvent::End(record) => size_of::<CallRecord>() + record.path.len(),
            TapEvent::Frame(_) | TapEvent::Lost(_) => 0,
        }
    }
}

//! Bytes of one connection in: cut into frames, each checked against the connection's state (RFC 9113 §4–§6) and
//! carried out where it concerns the connection alone (`control`). What concerns a stream goes on to `request`, `response`, `forward`.

use std::time::Instant;

use super::conn::{Block, Drain, Role, State};
use super::flood::Cheap;
use super::frame::{self, DEFAULT_MAX_FRAME, HEAD_LEN, Head, Reason, be_u32, flag, kind};
use super::hpack::{Decoded, ListLimits};
use super::limits::Bound;
use super::pair::{Face, PairKey, Phase};
use super::{ConnId, Splitter};

/// A pod may hold so much beyond its budget: its connections' windows were granted before, which come to as much for a
/// hundred of them. Hundreds that all use theirs up come to more, and lose the streams that wait.
const OVERDRAFT: usize = 12 * 1024 * 1024;
/// So many bytes of a header block, a field each at worst, are as much work as another frame.
const BYTES_OF_FIELDS: usize = 256;

/// A connection error: what GOAWAY is to say.
pub(super) struct Fatal(pub(super) Reason, pub(super) &'static str);

pub(super) const fn protocol(what: &'static str) -> Fatal {
    Fatal(Reason::PROTOCOL_ERROR, what)
}

pub(super) const fn frame_size(what: &'static str) -> Fatal {
    Fatal(Reason::FRAME_SIZE_ERROR, what)
}

/// A complete header block and what its frames said about it.
pub(super) struct Section {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) self_dependent: bool,
    /// The list exceeded our limit and is not whole.
    pub(super) too_large: bool,
}

impl Splitter {
    /// Bytes received on a connection, in order, in chunks of any size.
    pub fn handle_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        self.take_frames(now, conn, bytes);
        self.coming = 0;
    }

    fn take_frames(&mut self, now: Instant, conn: ConnId, mut bytes: &[u8]) {
        let Some(c) = self.conns.slot(conn) else { return };
        if self.conns[c].state != State::Open {
            return;
        }
        if self.conns[c].preface_left > 0 {
            let left = self.conns[c].preface_left;
            let (came, rest) = bytes.split_at(left.min(bytes.len()));
            let from = frame::PREFACE.len() - left;
            if came != &frame::PREFACE[from..from + came.len()] {
                return self.fail_conn(now, c, Reason::PROTOCOL_ERROR, "no HTTP/2 preface");
            }
            self.conns[c].preface_left -= came.len();
            bytes = rest;
        }
        let mut tail = std::mem::take(&mut self.conns[c].tail);
        while !bytes.is_empty() {
            self.coming = bytes.len();
            let outcome = if tail.is_empty()
                && let Some((head, rest)) = bytes.split_first_chunk()
                && let head = Head::parse(head)
                && rest.len() >= head.length
            {
                let (payload, rest) = rest.split_at(head.length);
                bytes = rest;
                self.frame(now, c, head, payload)
            } else {
                self.gather(now, c, &mut tail, &mut bytes)
            };
            if let Err(Fatal(reason, debug)) = outcome {
                return self.fail_conn(now, c, reason, debug);
            }
            // A frame may have ended the connection without being an error.
            if self.conns.slot(conn).is_none_or(|c| self.conns[c].state != State::Open) {
                return;
            }
        }
        self.conns[c].tail = tail;
    }

    /// A frame that came in pieces: takes what is missing of it from `bytes`, and no more.
    fn gather(&mut self, now: Instant, c: u32, tail: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<(), Fatal> {
        let mut fill = |tail: &mut Vec<u8>, length: usize| {
            let (came, rest) = bytes.split_at((length - tail.len()).min(bytes.len()));
            tail.extend_from_slice(came);
            *bytes = rest;
        };
        if tail.len() < HEAD_LEN {
            fill(tail, HEAD_LEN);
        }
        let Some(head) = tail.first_chunk() else { return Ok(()) };
        let head = Head::parse(head);
        if head.length > DEFAULT_MAX_FRAME {
            return Err(frame_size("frame above SETTINGS_MAX_FRAME_SIZE"));
        }
        fill(tail, HEAD_LEN + head.length);
        if tail.len() < HEAD_LEN + head.length {
            return Ok(());
        }
        let frame = std::mem::take(tail);
        let outcome = self.frame(now, c, head, &frame[HEAD_LEN..]);
        *tail = frame;
        tail.clear();
        outcome
    }

    #[inline]
    fn frame(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        self.work += 1;
        if self.is_tapped() {
            return self.tapped_frame(now, c, head, payload);
        }
        self.take_frame(now, c, head, payload)
    }

    /// Somebody may look at it: a request's head belongs to a call only when it was taken.
    #[cold]
    fn tapped_frame(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let (conn, is_client) = (self.conns[c].id, self.conns[c].face() == Face::Client);
        if is_client && head.kind == kind::HEADERS {
            let outcome = self.take_frame(now, c, head, payload);
            self.tap_received(conn, is_client, head, payload);
            return outcome;
        }
        self.tap_received(conn, is_client, head, payload);
        self.take_frame(now, c, head, payload)
    }

    fn take_frame(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let conn = &self.conns[c];
        if head.length > DEFAULT_MAX_FRAME {
            return Err(frame_size("frame above SETTINGS_MAX_FRAME_SIZE"));
        }
        if !conn.settled && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        if let Some(block) = &conn.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return Err(protocol("a frame inside a header block"));
        }
        match head.kind {
            kind::DATA => self.data(now, c, head, payload),
            kind::HEADERS => self.headers(now, c, head, payload),
            kind::PRIORITY => self.priority(now, c, head, payload),
            kind::RST_STREAM => self.rst_stream(now, c, head, payload),
            kind::SETTINGS => self.settings(now, c, head, payload),
            kind::PUSH_PROMISE => Err(protocol("PUSH_PROMISE")),
            kind::PING => self.ping(now, c, head, payload),
            kind::GOAWAY => self.goaway(now, c, head, payload),
            kind::WINDOW_UPDATE => self.window_update(now, c, head, payload),
            kind::CONTINUATION => self.continuation(now, c, head, payload),
            // RFC 9113 §4.1: unknown types are ignored.
            _ => {
                self.charge(now, c, Cheap::Priority);
                Ok(())
            }
        }
    }

    fn headers(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("HEADERS on stream 0"));
        }
        let mut fragment = frame::unpadded(head, payload).ok_or(protocol("padding beyond the frame"))?;
        let mut self_dependent = false;
        if head.has(flag::PRIORITY) {
            let (priority, rest) =
                fragment.split_at_checked(5).ok_or(frame_size("HEADERS too short for its priority"))?;
            self_dependent = be_u32(priority) & 0x7fff_ffff == head.stream;
            fragment = rest;
        }
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.section(now, c, head.stream, end_stream, self_dependent, fragment);
        }
        self.conns[c].block =
            Some(Block { stream: head.stream, end_stream, self_dependent, bytes: fragment.to_vec(), continuations: 0 });
        Ok(())
    }

    fn continuation(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let Some(block) = &mut self.conns[c].block else { return Err(protocol("CONTINUATION without HEADERS")) };
        block.continuations += 1;
        if block.continuations > self.limits.continuations {
            self.stats.limited.count(Bound::Continuations);
            return Err(Fatal(Reason::ENHANCE_YOUR_CALM, "header block without end"));
        }
        if block.bytes.len() + payload.len() > self.limits.header_block {
            self.stats.limited.count(Bound::HeaderBlock);
            return Err(Fatal(Reason::ENHANCE_YOUR_CALM, "header block too large"));
        }
        block.bytes.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let block = self.conns[c].block.take().expect("checked above");
        self.section(now, c, block.stream, block.end_stream, block.self_dependent, &block.bytes)
    }

    /// A whole header block: always decoded, whatever becomes of its stream, to stay in step (RFC 9113 §4.3).
    fn section(
        &mut self,
        now: Instant,
        c: u32,
        stream: u32,
        end_stream: bool,
        self_dependent: bool,
        block: &[u8],
    ) -> Result<(), Fatal> {
        let limits = ListLimits { max_size: self.limits.header_list, max_fields: self.limits.header_fields };
        self.work += (block.len() / BYTES_OF_FIELDS) as u64;
        let decoder = &mut self.conns[c].decoder;
        let (list, Decoded { too_large }) = decoder
            .decode_shared(block, limits, &mut self.common_lists, || self.spare_lists.pop().unwrap_or_default())
            .map_err(|_| Fatal(Reason::COMPRESSION_ERROR, "undecodable header block"))?;
        if too_large {
            self.stats.limited.count(Bound::HeaderList);
        }
        let before = std::mem::replace(&mut self.list, list);
        self.recycle(before);
        let section = Section { stream, end_stream, self_dependent, too_large };
        match self.conns[c].face() {
            Face::Client if section.too_large => {
                self.charge(now, c, Cheap::LargeHead);
                self.client_headers(now, c, section)
            }
            Face::Client => {
                self.pace(now, c);
                self.client_headers(now, c, section)
            }
            Face::Endpoint => self.endpoint_headers(now, c, section),
        }
    }

    fn data(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("DATA on stream 0"));
        }
        let conn = &mut self.conns[c];
        if conn.is_idle(head.stream) {
            return Err(protocol("DATA on an idle stream"));
        }
        let Some(body) = frame::unpadded(head, payload) else { return Err(protocol("padding beyond the frame")) };
        if conn.recv.receive(head.length).is_err() {
            return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "DATA beyond the connection's window"));
        }
        let end_stream = head.has(flag::END_STREAM);
        let face = conn.face();
        let Some(&key) = conn.streams.get(&head.stream) else {
            conn.release(head.length);
            return self.late_frame(now, c, head.stream);
        };
        if body.is_empty() && !end_stream {
            self.charge(now, c, Cheap::EmptyData);
        }
        let conn = &mut self.conns[c];
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        let answered = pair.phase == Phase::Answered;
        let side = pair.side(face);
        if side.recv_ended {
            conn.release(head.length);
            return self.stream_error(now, c, key, Reason::STREAM_CLOSED);
        }
        if side.recv.receive(head.length).is_err() {
            conn.release(head.length);
            return self.stream_error(now, c, key, Reason::FLOW_CONTROL_ERROR);
        }
        // The connection's credit comes back at once while the pod is within its budget: many streams that wait must not
        // starve the others of the connection's window. The stream's own credit comes back when its bytes have gone on.
        let paid = self.held + head.length <= self.limits.pod_budget;
        if paid {
            conn.release(head.length);
        } else {
            side.unpaid += head.length;
        }
        self.held += head.length;
        let padding = head.length - body.len();
        if padding > 0 {
            self.credit(key, face, padding);
        }
        let side = self.side(key, face);
        side.body += body.len() as u64;
        let over = side.expected.is_some_and(|expected| side.body > expected || end_stream && side.body != expected);
        if over || face == Face::Endpoint && !answered {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        }
        side.recv_ended = end_stream;
        if end_stream {
            match face {
                Face::Client => self.pairs.get(key).into_iter().for_each(|pair| pair.asked = now),
                Face::Endpoint => _ = self.call_answered(now, key, false),
            }
        }
        let id = self.conns[c].id;
        self.forward(now, key, face.other(), body, end_stream);
        if self.held > self.limits.pod_budget + OVERDRAFT {
            self.shed(now, key, face.other());
        }
        if end_stream {
            self.free_endpoint(now, key);
        }
        if !paid && self.conns.slot(id).is_some() {
            self.part_if_starving(now, c, key, head.length);
        }
        Ok(())
    }

    /// A frame for a stream that is not in our books any more (RFC 9113 §5.1, "closed").
    fn late_frame(&mut self, now: Instant, c: u32, stream: u32) -> Result<(), Fatal> {
        let conn = &mut self.conns[c];
        match (&conn.role, conn.drain) {
            // It was on its way when the stream ended for us.
            (Role::Endpoint(_), _) => Ok(()),
            (_, Drain::Final(last)) if stream > last => Ok(()),
            // We reset it; or, of many that ended, it is not known any more whether we did.
            _ if conn.remembered(stream) != Some(false) && !conn.was_skipped(stream) => Ok(()),
            _ => {
                conn.reset(stream, Reason::STREAM_CLOSED);
                conn.remember(stream, true);
                self.charge(now, c, Cheap::StreamError);
                Ok(())
            }
        }
    }

    fn priority(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("PRIORITY on stream 0"));
        }
        self.charge(now, c, Cheap::Priority);
        let conn = &mut self.conns[c];
        let reason = match payload.len() {
            5 if be_u32(payload) & 0x7fff_ffff != head.stream => return Ok(()),
            5 => Reason::PROTOCOL_ERROR,
            _ => Reason::FRAME_SIZE_ERROR,
        };
        match conn.streams.get(&head.stream) {
            Some(&key) => self.stream_error(now, c, key, reason),
            // No RST_STREAM names an idle stream (RFC 9113 §6.4): then the connection is in error (§5.4.2).
            None if conn.is_idle(head.stream) => Err(Fatal(reason, "malformed PRIORITY on an idle stream")),
            None => {
                conn.reset(head.stream, reason);
                self.charge(now, c, Cheap::StreamError);
                Ok(())
            }
        }
    }

    fn rst_stream(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let conn = &mut self.conns[c];
        if payload.len() != 4 {
            return Err(frame_size("RST_STREAM is 4 bytes"));
        }
        if head.stream == 0 || conn.is_idle(head.stream) {
            return Err(protocol("RST_STREAM on an idle stream"));
        }
        let reason = Reason(be_u32(payload));
        let Some(&key) = conn.streams.get(&head.stream) else { return Ok(()) };
        match conn.face() {
            Face::Client => {
                self.charge_haste(now, c, key);
                self.client_reset(now, key, reason);
            }
            Face::Endpoint => self.endpoint_reset(now, key, reason),
        }
        Ok(())
    }

    /// A stream error (RFC 9113 §5.4.2) by the peer of connection `c`.
    pub(super) fn stream_error(&mut self, now: Instant, c: u32, key: PairKey, reason: Reason) -> Result<(), Fatal> {
        match self.conns[c].face() {
            Face::Client => {
                self.charge(now, c, Cheap::StreamError);
                self.charge_haste(now, c, key);
                self.client_fault(now, key, reason);
            }
            Face::Endpoint => self.endpoint_fault(now, key, reason),
        }
        Ok(())
    }
}

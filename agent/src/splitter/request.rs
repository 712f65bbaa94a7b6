//! Requests: from a client's HEADERS to a stream on an endpoint's connection, and what happens where an endpoint cannot
//! take one: another endpoint where the first provably did not process it, else an answer of our own.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::conn::{Drain, Role, State};
use super::flood::Cheap;
use super::flow::{RecvWindow, SendWindow};
use super::frame::{MAX_WINDOW, Reason};
use super::hpack::{HeaderList, Name};
use super::limits::Bound;
use super::message::{self, Status};
use super::pair::{Ending, Face, Pair, PairKey, Phase, Side};
use super::receive::{Fatal, Section};
use super::replay::Replay;
use super::{DeadlineReason, Splitter};
use crate::balance::{EndpointLoad, Picked};

/// How long what a client said before it left may wait for its endpoint to take it.
const REST_WITHIN: Duration = Duration::from_secs(30);

impl Splitter {
    /// A header block on a client's connection: a new request, or the trailers of one.
    pub(super) fn client_headers(&mut self, now: Instant, c: u32, section: Section) -> Result<(), Fatal> {
        let stream = section.stream;
        let conn = &mut self.conns[c];
        if let Some(&key) = conn.streams.get(&stream) {
            return self.request_trailers(now, c, key, section);
        }
        if stream.is_multiple_of(2) {
            return Err(Fatal(Reason::PROTOCOL_ERROR, "even stream id from a client"));
        }
        if let Drain::Final(last) = conn.drain
            && stream > last
        {
            return Ok(());
        }
        if stream <= conn.stream_mark {
            return match conn.remembered(stream) {
                Some(true) => Ok(()),
                Some(false) => Err(Fatal(Reason::STREAM_CLOSED, "HEADERS on a closed stream")),
                None if conn.was_skipped(stream) => Err(Fatal(Reason::PROTOCOL_ERROR, "stream ids must rise")),
                // Trailers that crossed our reset, of a stream that is forgotten: no offence.
                None => {
                    conn.reset(stream, Reason::STREAM_CLOSED);
                    Ok(())
                }
            };
        }
        conn.opened(stream);
        if section.self_dependent {
            return self.reset_unknown(now, c, stream, Reason::PROTOCOL_ERROR);
        }
        if conn.streams.len() >= self.limits.client_streams as usize {
            self.stats.limited.count(Bound::ClientStreams);
            return self.reset_unknown(now, c, stream, Reason::REFUSED_STREAM);
        }
        if self.pairs.len() >= self.limits.pod_streams as usize {
            self.stats.limited.count(Bound::PodStreams);
            return self.reset_unknown(now, c, stream, Reason::REFUSED_STREAM);
        }
        if section.too_large {
            let grpc = message::request(&self.list).is_ok_and(|request| request.grpc);
            let list = self.answer(c, stream, grpc, Status::ResourceExhausted, message::TOO_LARGE);
            self.recycle(list);
            if !section.end_stream {
                self.conns[c].reset(stream, Reason::NO_ERROR);
            }
            self.conns[c].remember(stream, true);
            return Ok(());
        }
        let request = match message::request(&self.list) {
            Ok(request) if section.end_stream && request.content_length.is_some_and(|length| length > 0) => {
                return self.reset_unknown(now, c, stream, Reason::PROTOCOL_ERROR);
            }
            Ok(request) => request,
            Err(message::Malformed(_)) => return self.reset_unknown(now, c, stream, Reason::PROTOCOL_ERROR),
        };
        if self.heads_held + self.list.size() > self.limits.waiting_heads {
            self.stats.limited.count(Bound::WaitingHeads);
            return self.reset_unknown(now, c, stream, Reason::REFUSED_STREAM);
        }
        let Role::Client(service) = &conn.role else { unreachable!("the client's face") };
        let service = Rc::clone(service);
        let window = self.limits.stream_window;
        let mut client =
            Side::new(c, stream, RecvWindow::new(window, window), SendWindow::new(conn.peer.initial_window));
        client.recv_ended = section.end_stream;
        client.expected = request.content_length;
        let mut endpoint = Side::new(u32::MAX, 0, RecvWindow::new(window, window), SendWindow::new(0));
        if section.end_stream {
            endpoint.end = Ending::Head;
        }
        let path = self.list.iter().find(|field| request.grpc && field.kind() == Name::Path);
        let call = service.calls().begin(now, path.map(|field| field.value()));
        let fields = self.keep_list();
        let key = self.pairs.insert(Pair {
            client,
            endpoint,
            service,
            call,
            picked: None,
            tried: Vec::new(),
            phase: Phase::Waiting,
            opened: now,
            asked: now,
            status: 0,
            told: false,
            rest_until: None,
            grpc: request.grpc,
            head: request.head,
            connect: request.connect,
            attempts: 0,
            request: fields,
            replay: Some(Vec::new()),
            credited: 0,
            sent_at: 0,
            tapped: None,
        });
        self.conns[c].streams.insert(stream, key);
        self.stats.streams += 1;
        if self.is_tapped() {
            self.tap_request(key);
        }
        self.dispatch(now, key);
        Ok(())
    }

    /// RST_STREAM for a stream that has no pair.
    fn reset_unknown(&mut self, now: Instant, c: u32, stream: u32, reason: Reason) -> Result<(), Fatal> {
        let conn = &mut self.conns[c];
        conn.reset(stream, reason);
        conn.remember(stream, true);
        self.charge(now, c, Cheap::StreamError);
        Ok(())
    }

    fn request_trailers(&mut self, now: Instant, c: u32, key: PairKey, section: Section) -> Result<(), Fatal> {
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        let side = &mut pair.client;
        if side.recv_ended {
            return self.stream_error(now, c, key, Reason::STREAM_CLOSED);
        }
        let short = side.expected.is_some_and(|expected| expected != side.body);
        if !section.end_stream || short || pair.connect || message::trailers(&self.list).is_err() {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        }
        side.recv_ended = true;
        pair.asked = now;
        let endpoint = &pair.endpoint;
        let beyond = endpoint.is_open() && self.list.size() > self.conns[endpoint.conn].peer.max_list
            || self.heads_held + self.list.size() > self.limits.waiting_heads;
        if section.too_large || beyond {
            self.fail(now, key, Status::ResourceExhausted, message::TOO_LARGE);
            return Ok(());
        }
        let fields = self.keep_list();
        self.side(key, Face::Endpoint).end = Ending::Trailers(fields);
        self.push(now, key, Face::Endpoint);
        Ok(())
    }

    /// Picks an endpoint for a request and gives the request to a connection of it.
    pub(super) fn dispatch(&mut self, now: Instant, key: PairKey) {
        let mut trial = None;
        if !self.ways.reach.is_clear() {
            self.probe(now, key);
            trial = self.pairs.get(key).and_then(|pair| self.ways.reach.trial(now, &pair.service));
        }
        let (ways, conns) = (&self.ways, &self.conns);
        let Some(pair) = self.pairs.get(key) else { return };
        pair.phase = Phase::Waiting;
        pair.picked = None;
        pair.attempts += 1;
        pair.told = false;
        if pair.attempts == 1 {
            pair.service.sent();
        }
        let apart = conns[pair.client.conn].apart;
        let standing = |endpoint: &Rc<EndpointLoad>| ways.standing(conns, endpoint, apart, &pair.tried);
        let picked = match trial {
            Some(endpoint) => Some(Picked::new(&endpoint)),
            None => ways.reach.pick(now, &pair.service, &mut self.rng, standing),
        };
        // An endpoint that refused it does not get it again: then there is no other one left.
        let again = picked.as_ref().is_some_and(|p| pair.tried.iter().any(|tried| Rc::ptr_eq(tried, p.endpoint())));
        match picked {
            Some(picked) if !again && pair.attempts <= self.limits.attempts => {
                let endpoint = Rc::clone(picked.endpoint());
                pair.picked = Some(picked);
                self.place(now, key, &endpoint);
            }
            None => self.fail(now, key, Status::Unavailable, "the Service has no endpoint"),
            Some(_) => self.fail(now, key, Status::Unavailable, "no endpoint could be reached"),
        }
        while let Some(endpoint) = self.ways.reach.poll_left() {
            self.retire_pools(now, &endpoint);
        }
    }

    /// A connection to this endpoint for one more request: one that can open a stream now, else one that soon will,
    /// else a new one.
    pub(super) fn place(&mut self, now: Instant, key: PairKey, endpoint: &Rc<EndpointLoad>) {
        let Some(pair) = self.pairs.get(key) else { return };
        let apart = self.conns[pair.client.conn].apart;
        let high = self.output_high();
        let pool = self.ways.pool(endpoint, apart);
        let mut soon: Option<u32> = None;
        for id in pool {
            let conn = &self.conns[id.index];
            if conn.can_open(high) {
                return self.open(now, key, id.index);
            }
            // More connections to one that takes no stream at all would help as little.
            if !conn.is_full() || conn.overdue {
                soon = Some(id.index);
            }
        }
        if soon.is_none() && pool.len() >= self.limits.connections_per_endpoint {
            soon = pool.iter().map(|id| id.index).min_by_key(|c| self.conns[*c].waiting.len());
        }
        let c = soon.unwrap_or_else(|| self.dial(now, endpoint, apart));
        let Some(pair) = self.pairs.get(key) else { return };
        pair.endpoint.conn = c;
        self.pairs.line_up(&mut self.conns[c].waiting, key);
    }

    /// Requests that wait for this endpoint connection go on it as far as it can take them. Where it is at its
    /// MAX_CONCURRENT_STREAMS, the others go to connections that are not, as long as more may be opened: a request must
    /// not wait for streams that may last for ever.
    pub(super) fn admit(&mut self, now: Instant, c: u32) {
        while self.conns[c].can_open(self.output_high()) {
            let (from, key) = match self.conns[c].waiting.pop_front() {
                Some(key) => (c, key),
                None => match self.next_of_pool(c) {
                    Some(found) => found,
                    None => return,
                },
            };
            if self.waits_on(key, from) {
                self.open(now, key, c);
            }
        }
        let conn = &self.conns[c];
        if conn.waiting.is_empty() || !conn.is_full() || conn.retired {
            return;
        }
        let Role::Endpoint(endpoint) = &conn.role else { return };
        let endpoint = Rc::clone(endpoint);
        let pool = self.ways.pool(&endpoint, conn.apart);
        let all_full = pool.iter().all(|id| self.conns[id.index].is_full());
        if all_full && pool.len() >= self.limits.connections_per_endpoint {
            return;
        }
        for key in std::mem::take(&mut self.conns[c].waiting) {
            if self.waits_on(key, c) {
                self.place(now, key, &endpoint);
            }
        }
    }

    /// A request that waits on another connection to the same endpoint as `c`: one that is full, where it could wait for
    /// ever, or that does not come about.
    fn next_of_pool(&mut self, c: u32) -> Option<(u32, PairKey)> {
        let conn = &self.conns[c];
        let Role::Endpoint(endpoint) = &conn.role else { return None };
        let pool = self.ways.pool(endpoint, conn.apart);
        let other = pool.iter().map(|id| id.index).find(|other| !self.conns[*other].waiting.is_empty())?;
        Some((other, self.conns[other].waiting.pop_front()?))
    }

    /// A request that ended or moved while it waited is still named in the list.
    pub(super) fn waits_on(&mut self, key: PairKey, c: u32) -> bool {
        self.pairs.get(key).is_some_and(|pair| pair.phase == Phase::Waiting && pair.endpoint.conn == c)
    }

    /// Opens the endpoint's stream: HEADERS, and what of the payload has come.
    fn open(&mut self, now: Instant, key: PairKey, c: u32) {
        let conn = &mut self.conns[c];
        let Some(pair) = self.pairs.get(key) else { return };
        if pair.request.size() > conn.peer.max_list {
            // Sent all the same, it could cost the connection, and with it the other streams on it.
            return self.fail(now, key, Status::ResourceExhausted, "request headers exceed the endpoint's limit");
        }
        let stream = conn.stream_mark;
        conn.stream_mark += 2;
        conn.idle_since = None;
        conn.streams.insert(stream, key);
        let side = &mut pair.endpoint;
        side.conn = c;
        side.id = stream;
        side.send = SendWindow::new(conn.peer.initial_window);
        let whole = matches!(side.end, Ending::Head);
        side.send_ended = whole;
        pair.phase = Phase::Sent;
        pair.opened = now;
        if let Some(picked) = &pair.picked {
            picked.give();
        }
        pair.sent_at = conn.out_end();
        conn.write_headers(stream, whole, &pair.request);
        if self.heads_held > self.limits.waiting_heads / 2 {
            self.drop_replay(key);
        }
        if self.is_tapped() {
            self.tap_placed(key);
        }
        // The last id but one: a connection whose ids are used up takes no more (RFC 9113 §5.1.1).
        if stream >= MAX_WINDOW - 2 {
            self.retire(now, c);
        }
        if !whole {
            self.push(now, key, Face::Endpoint);
        }
    }

    /// The client reset its stream: the endpoint learns it at once, with the same code.
    pub(super) fn client_reset(&mut self, now: Instant, key: PairKey, reason: Reason) {
        self.call_given_up(now, key);
        self.end_pair(now, key, None, Some(reason));
    }

    /// The client's stream broke the protocol.
    pub(super) fn client_fault(&mut self, now: Instant, key: PairKey, reason: Reason) {
        self.end_pair(now, key, Some(reason), Some(Reason::CANCEL));
    }

    /// The client's connection is gone. A call that was over for it is nothing it gave up: what the endpoint has not taken
    /// of the request goes on, as it would from the buffers of a direct connection. Any other call is cancelled.
    pub(super) fn client_left(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        if !(pair.client.is_closed() && pair.endpoint.is_open()) {
            self.call_given_up(now, key);
            return self.end_pair(now, key, None, Some(Reason::CANCEL));
        }
        let until = now + REST_WITHIN;
        pair.rest_until = Some(until);
        pair.client.id = 0;
        // Nobody is left to get it.
        pair.client.unpaid = 0;
        let endpoint = &mut self.conns[pair.endpoint.conn];
        let (id, first) = (endpoint.id, endpoint.rests.is_empty());
        self.pairs.line_up(&mut endpoint.rests, key);
        if first {
            self.arm(until, id, DeadlineReason::RestEnd);
        }
    }

    /// The endpoint's connection is gone; it may see the first `sent` bytes of its output.
    pub(super) fn endpoint_lost(&mut self, now: Instant, key: PairKey, sent: u64) {
        let Some(pair) = self.pairs.get(key) else { return };
        if pair.endpoint.recv_ended {
            self.response_is_whole(now, key, Reason::NO_ERROR);
            // Nothing of the pair may refer to the connection any more: its slot will be another's.
            if let Some(pair) = self.pairs.get(key) {
                pair.endpoint.id = 0;
                pair.endpoint.unpaid = 0;
                pair.picked = None;
            }
            return;
        }
        let never_sent = self.pairs.get(key).is_some_and(|pair| pair.sent_at >= sent);
        if !(never_sent && self.replay(now, key, Replay::Elsewhere)) {
            self.fail(now, key, Status::Unavailable, "connection to the endpoint was lost");
        }
    }

    /// The endpoint that a waiting request was for cannot be reached.
    pub(super) fn endpoint_unreachable(&mut self, now: Instant, key: PairKey) {
        if !self.replay(now, key, Replay::Elsewhere) {
            self.fail(now, key, Status::Unavailable, "endpoint could not be reached");
        }
    }

    /// GOAWAY from an endpoint: what it has not processed goes elsewhere (RFC 9113 §6.8). Unless it speaks of an error in
    /// what it heard: one of these requests may be what it could not bear, and is not to cost the next connection too.
    pub(super) fn endpoint_goaway(&mut self, now: Instant, c: u32, last: u32, reason: Reason) {
        self.stats.goaways += 1;
        let conn = &mut self.conns[c];
        let id = conn.id;
        let mut above: Vec<(u32, PairKey)> =
            conn.streams.iter().filter(|(stream, _)| **stream > last).map(|(stream, key)| (*stream, *key)).collect();
        above.sort_unstable_by_key(|(stream, _)| *stream);
        self.leave_pool(c);
        self.conns[c].retired = true;
        for (_, key) in above {
            let replayed = match reason {
                Reason::NO_ERROR => self.replay(now, key, Replay::Again),
                Reason::ENHANCE_YOUR_CALM => self.may_repeat(now, key) && self.replay(now, key, Replay::Again),
                _ => false,
            };
            if !replayed {
                // It was not processed (RFC 9113 §8.7); the client may try again as it sees fit.
                self.end_pair(now, key, Some(Reason::REFUSED_STREAM), None);
            }
        }
        if self.conns.slot(id).is_some() && self.conns[c].state != State::Closing {
            self.retire(now, c);
        }
    }

    /// No endpoint serves this request: our own answer where the client has none yet, else a reset.
    pub(super) fn fail(&mut self, now: Instant, key: PairKey, status: Status, why: &str) {
        let Some(pair) = self.pairs.get(key) else { return };
        self.stats.streams_failed += 1;
        let (c, stream, grpc) = (pair.client.conn, pair.client.id, pair.grpc);
        if pair.phase == Phase::Answered {
            // gRPC clients map these codes to the statuses (gRPC: PROTOCOL-HTTP2.md, "Errors").
            let reason = match status {
                Status::ResourceExhausted => Reason::ENHANCE_YOUR_CALM,
                Status::Internal | Status::Unavailable => Reason::INTERNAL_ERROR,
            };
            return self.end_pair(now, key, Some(reason), Some(Reason::CANCEL));
        }
        pair.client.send_ended = true;
        pair.call.ends(status.ended(grpc));
        let list = self.answer(c, stream, grpc, status, why);
        if self.is_tapped() {
            self.tap_own_response(now, key, &list);
        }
        self.recycle(list);
        // The response is complete; a client that still sends may stop (RFC 9113 §8.1).
        self.end_pair(now, key, Some(Reason::NO_ERROR), Some(Reason::CANCEL));
    }

    /// HEADERS with END_STREAM of our own making, and what they say.
    fn answer(&mut self, c: u32, stream: u32, grpc: bool, status: Status, why: &str) -> Rc<HeaderList> {
        let mut list = self.spare_list();
        let unshared = Rc::get_mut(&mut list).expect("a list that nobody else has");
        message::own_response(unshared, grpc, status, why);
        self.conns[c].write_headers(stream, true, &list);
        list
    }
}

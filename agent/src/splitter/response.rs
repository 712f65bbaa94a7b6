//! Responses: from an endpoint's HEADERS and RST_STREAM to the client's stream, each section as it came.

use std::time::Instant;

use super::Splitter;
use super::frame::Reason;
use super::limits::Bound;
use super::message::{self, Status};
use super::pair::{Ending, Face, PairKey, Phase};
use super::receive::{Fatal, Section};
use super::replay::Replay;
use crate::balance::Outcome;

impl Splitter {
    /// A header block on an endpoint's connection: an interim response, a response, or its trailers.
    pub(super) fn endpoint_headers(&mut self, now: Instant, c: u32, section: Section) -> Result<(), Fatal> {
        let conn = &mut self.conns[c];
        let Some(&key) = conn.streams.get(&section.stream) else {
            if conn.is_idle(section.stream) {
                return Err(Fatal(Reason::PROTOCOL_ERROR, "HEADERS on an idle stream"));
            }
            // It was on its way when the stream ended for us.
            return Ok(());
        };
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        if pair.endpoint.recv_ended {
            return self.stream_error(now, c, key, Reason::STREAM_CLOSED);
        }
        let client = pair.client.conn;
        let backlog = self.conns[client].backlog();
        let too_much = backlog > self.output_stop() && self.all_output() > self.limits.pod_budget;
        if backlog > self.limits.output_limit || too_much {
            // No window holds header blocks back (RFC 9113 §5.2): only the end of a client that takes none bounds them.
            self.stats.limited.count(Bound::OutputLimit);
            self.fail_conn(now, client, Reason::ENHANCE_YOUR_CALM, "responses are not taken");
            return Ok(());
        }
        if section.too_large {
            self.fail(now, key, Status::ResourceExhausted, message::TOO_LARGE);
            return Ok(());
        }
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        if pair.phase == Phase::Answered {
            return self.response_trailers(now, c, key, section);
        }
        let Ok(response) = message::response(&self.list) else {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        };
        pair.connect &= response.status < 300;
        // 204 and 304 have no content, and a tunnel has no length, whatever content-length says (RFC 9110 §8.6, §9.3.6).
        let bodiless = pair.head || pair.connect || matches!(response.status, 204 | 304);
        let expected = response.content_length.filter(|_| !bodiless);
        if section.end_stream && (response.is_interim() || expected.is_some_and(|length| length > 0)) {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        }
        let (client_conn, client_stream) = (pair.client.conn, pair.client.id);
        if response.is_interim() {
            pair.phase = Phase::Interim;
        } else {
            pair.phase = Phase::Answered;
            pair.status = response.status;
            pair.endpoint.expected = expected;
            pair.endpoint.recv_ended = section.end_stream;
            pair.client.send_ended = section.end_stream;
        }
        self.conns[client_conn].write_headers(client_stream, section.end_stream, &self.list);
        if self.is_tapped() {
            self.tap_response(now, key, false);
        }
        let failed = section.end_stream && self.call_answered(now, key, true).is_failure();
        if !response.is_interim() && !failed {
            self.answer_came(now, key);
        }
        self.drop_replay(key);
        if section.end_stream {
            self.push(now, key, Face::Client);
        }
        Ok(())
    }

    fn response_trailers(&mut self, now: Instant, c: u32, key: PairKey, section: Section) -> Result<(), Fatal> {
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        let (tunnel, side) = (pair.connect, &pair.endpoint);
        let short = side.expected.is_some_and(|expected| expected != side.body);
        if !section.end_stream || short || tunnel || message::trailers(&self.list).is_err() {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        }
        self.side(key, Face::Endpoint).recv_ended = true;
        self.call_answered(now, key, true);
        if self.is_tapped() {
            self.tap_response(now, key, true);
        }
        let client = self.side(key, Face::Client);
        if client.pending().is_empty() {
            // The common case: nothing waits before the trailers, so they need not be kept.
            client.send_ended = true;
            let (conn, id) = (client.conn, client.id);
            self.conns[conn].write_headers(id, true, &self.list);
        } else {
            if self.heads_held + self.list.size() > self.limits.waiting_heads {
                self.stats.limited.count(Bound::WaitingHeads);
                self.fail(now, key, Status::ResourceExhausted, "trailers that wait exceed waiting-heads, a limit");
                return Ok(());
            }
            let fields = self.keep_list();
            self.side(key, Face::Client).end = Ending::Trailers(fields);
        }
        self.push(now, key, Face::Client);
        self.free_endpoint(now, key);
        Ok(())
    }

    /// The endpoint reset its stream.
    pub(super) fn endpoint_reset(&mut self, now: Instant, key: PairKey, reason: Reason) {
        let Some(pair) = self.pairs.get(key) else { return };
        if pair.endpoint.recv_ended {
            return self.response_is_whole(now, key, reason);
        }
        let refused = reason == Reason::REFUSED_STREAM && pair.phase < Phase::Interim;
        let elsewhere = refused
            && pair.picked.as_ref().is_some_and(|picked| pair.service.lists_another(&pair.tried, picked.endpoint()));
        self.call_ended(now, key, Outcome::of_reset(reason.0));
        if !(elsewhere && self.may_repeat(now, key) && self.replay(now, key, Replay::Elsewhere)) {
            self.end_pair(now, key, Some(reason), None);
        }
    }

    /// The endpoint has said all and hears no more: the client gets all of it first, then the word that no more is
    /// wanted (RFC 9113 §8.1), unless it has ended too.
    pub(super) fn response_is_whole(&mut self, now: Instant, key: PairKey, reason: Reason) {
        let client = self.side(key, Face::Client);
        if !client.is_open() {
            // It has left.
            return self.end_pair(now, key, None, None);
        }
        client.then_reset = Some(reason);
        // What still waits to go to the endpoint is not wanted either.
        self.discard(key, Face::Endpoint);
        self.push(now, key, Face::Client);
    }

    /// The endpoint's stream broke the protocol: it is told so, and the client gets an error.
    pub(super) fn endpoint_fault(&mut self, now: Instant, key: PairKey, reason: Reason) {
        let Some(pair) = self.pairs.get(key) else { return };
        let (c, id) = (pair.endpoint.conn, pair.endpoint.id);
        if pair.endpoint.we_reset {
            // It was on its way when we reset the stream.
            return;
        }
        let whole = pair.endpoint.recv_ended;
        // Told here, so that `fail` does not say CANCEL.
        pair.endpoint.recv_ended = true;
        pair.endpoint.send_ended = true;
        pair.endpoint.we_reset = true;
        self.conns[c].reset(id, reason);
        if whole {
            return self.response_is_whole(now, key, Reason::NO_ERROR);
        }
        self.call_ended(now, key, Outcome::Error);
        self.fail(now, key, Status::Internal, "malformed response from the endpoint");
    }
}

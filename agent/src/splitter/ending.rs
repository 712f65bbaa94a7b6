//! How connections end: by a drain (two-step GOAWAY), with their last stream, by an error, or all at once with their
//! socket. Whatever is on them is finished, moved or failed first; streams end in `request`, `response` and `forward`.

use std::rc::Rc;
use std::time::Instant;

use super::conn::{Conn, Drain, Role, State};
use super::frame::{self, Reason};
use super::pair::PairKey;
use super::{DRAIN_PING, DeadlineReason, Effect, Splitter};
use crate::balance::{EndpointLoad, Outcome};

impl Splitter {
    /// Step one: no stream is refused yet, but the client learns to open the next ones elsewhere.
    pub(super) fn announce_drain(&mut self, now: Instant, c: u32, until: Instant) {
        let conn = &mut self.conns[c];
        if conn.state != State::Open {
            return;
        }
        let id = conn.id;
        if conn.drain != Drain::No {
            // Told before; but the end may be nearer now.
            self.arm(until, id, DeadlineReason::DrainEnd);
            return;
        }
        conn.drain = Drain::Announced;
        frame::write_goaway(conn.out(), 0x7fff_ffff, Reason::NO_ERROR, "");
        frame::write_ping(conn.out(), false, DRAIN_PING);
        self.arm((now + self.limits.drain_ping).min(until), id, DeadlineReason::DrainPing);
        self.arm(until, id, DeadlineReason::DrainEnd);
    }

    /// Step two: the client has seen the first GOAWAY (or had its time): what it opened so far is all.
    pub(super) fn finish_drain(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        if conn.drain != Drain::Announced || conn.state != State::Open {
            return;
        }
        let last = conn.stream_mark;
        conn.drain = Drain::Final(last);
        frame::write_goaway(conn.out(), last, Reason::NO_ERROR, "");
        self.close_if_unused(now, c);
    }

    /// A client at the end of its drain, or an endpoint that takes no new stream, is closed with its last stream.
    pub(super) fn close_if_unused(&mut self, now: Instant, c: u32) {
        if self.conns.is_gone(c) {
            return;
        }
        let conn = &mut self.conns[c];
        if conn.state == State::Closing || !conn.streams.is_empty() {
            return;
        }
        match conn.role {
            Role::Client(_) if matches!(conn.drain, Drain::Final(_)) => self.begin_close(now, c),
            Role::Endpoint(_) if conn.retired && conn.waiting.is_empty() => {
                frame::write_goaway(conn.out(), 0, Reason::NO_ERROR, "");
                self.begin_close(now, c);
            }
            _ => {}
        }
    }

    /// Nothing more is read; what is in the output still goes out. Streams have been taken off it before.
    pub(super) fn begin_close(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        let (id, client) = (conn.id, matches!(conn.role, Role::Client(_)));
        debug_assert!(conn.streams.is_empty() && conn.waiting.is_empty(), "closed with streams on it");
        self.leave_pool(c);
        let conn = &mut self.conns[c];
        if conn.state == State::Dialing {
            conn.discard_output();
        }
        conn.state = State::Closing;
        self.effects.push_back(Effect::Close(id));
        if client {
            self.close_endpoints_if_drained(now);
        }
    }

    /// The connection is gone, with all that was on it.
    pub(super) fn lose_conn(&mut self, now: Instant, c: u32) {
        let (id, client) = (self.conns[c].id, matches!(self.conns[c].role, Role::Client(_)));
        let sent = self.conns[c].flushed;
        self.abandon(now, c, sent);
        self.conns.remove(id);
        if client {
            self.close_endpoints_if_drained(now);
        }
    }

    /// A connection error (RFC 9113 §5.4.1): GOAWAY, and the end.
    pub(super) fn fail_conn(&mut self, now: Instant, c: u32, reason: Reason, debug: &'static str) {
        let conn = &mut self.conns[c];
        // What is in the output still goes out: a request in there may reach the endpoint and must not go elsewhere too.
        let sent = conn.out_end();
        let last = conn.last_stream();
        frame::write_goaway(conn.out(), last, reason, debug);
        match reason {
            Reason::NO_ERROR => {}
            Reason::ENHANCE_YOUR_CALM => self.stats.floods += 1,
            _ => self.stats.protocol_errors += 1,
        }
        self.abandon(now, c, sent);
        self.begin_close(now, c);
    }

    /// Takes every stream off a connection that is about to end; its peer may see the first `sent` bytes of its output.
    pub(super) fn abandon(&mut self, now: Instant, c: u32, sent: u64) {
        self.leave_pool(c);
        let conn = &mut self.conns[c];
        // Nothing may be sent or opened on it from here on, whatever the loops below set going.
        conn.state = State::Closing;
        conn.retired = true;
        conn.block = None;
        let mut streams: Vec<(u32, PairKey)> = conn.streams.drain().collect();
        // In the order they came, so that equal inputs give equal outputs.
        streams.sort_unstable_by_key(|(stream, _)| *stream);
        let waiting = std::mem::take(&mut conn.waiting);
        match &conn.role {
            Role::Client(_) => {
                for (_, key) in streams {
                    self.client_left(now, key);
                }
            }
            Role::Endpoint(endpoint) => {
                if !conn.settled {
                    self.ways.reach.failed(now, endpoint, &mut self.rng);
                }
                // However many calls it had: it broke once.
                let mut lost = Outcome::Down;
                for (_, key) in streams {
                    if self.pairs.get(key).is_some_and(|pair| !pair.endpoint.recv_ended) {
                        self.call_ended(now, key, std::mem::replace(&mut lost, Outcome::Unknown));
                    }
                    self.endpoint_lost(now, key, sent);
                }
                for key in waiting {
                    self.endpoint_unreachable(now, key);
                }
            }
        }
    }

    /// What clients that left had said was not taken in time.
    pub(super) fn end_rests(&mut self, now: Instant, c: u32) {
        let id = self.conns[c].id;
        while let Some(&key) = self.conns[c].rests.front() {
            match self.pairs.peek(key).and_then(|pair| pair.rest_until) {
                Some(until) if until > now => return self.arm(until, id, DeadlineReason::RestEnd),
                Some(_) => self.end_pair(now, key, None, Some(Reason::CANCEL)),
                // Taken meanwhile.
                None => {}
            }
            self.conns[c].rests.pop_front();
        }
    }

    /// No new stream on it; those that wait go elsewhere, those that run finish.
    pub(super) fn retire(&mut self, now: Instant, c: u32) {
        self.leave_pool(c);
        let conn = &mut self.conns[c];
        conn.retired = true;
        for key in std::mem::take(&mut conn.waiting) {
            self.dispatch(now, key);
        }
        self.close_if_unused(now, c);
    }

    /// This pod has no more use for an endpoint.
    pub(super) fn retire_pools(&mut self, now: Instant, endpoint: &Rc<EndpointLoad>) {
        for apart in [false, true] {
            for id in self.ways.pool(endpoint, apart).to_vec() {
                if let Some(c) = self.conns.slot(id) {
                    self.retire(now, c);
                }
            }
        }
    }

    /// No request is placed on it any more.
    pub(super) fn leave_pool(&mut self, c: u32) {
        self.dial_ended(c);
        let conn = &self.conns[c];
        if let Role::Endpoint(endpoint) = &conn.role {
            let key = (Rc::as_ptr(endpoint), conn.apart);
            if let Some(pool) = self.ways.pools.get_mut(&key) {
                pool.retain(|id| *id != conn.id);
                if pool.is_empty() {
                    self.ways.pools.remove(&key);
                }
            }
        }
    }

    pub(super) fn check_idle(&mut self, now: Instant, c: u32) {
        let conn = &self.conns[c];
        if conn.state != State::Open {
            return;
        }
        let close_at = conn.idle_since.unwrap_or(now) + self.limits.idle_timeout();
        if close_at <= now {
            self.retire(now, c);
        } else {
            self.arm(close_at, conn.id, DeadlineReason::IdleEndpoint);
        }
    }

    pub(super) fn close_endpoints_if_drained(&mut self, now: Instant) {
        let is_client = |conn: &Conn| matches!(conn.role, Role::Client(_)) && conn.state != State::Closing;
        if self.draining.is_none() || self.conns.live().any(is_client) {
            return;
        }
        for id in self.conns.ids() {
            if let Some(c) = self.conns.slot(id)
                && self.conns[c].state != State::Closing
                && !self.conns[c].retired
            {
                self.retire(now, c);
            }
        }
    }
}

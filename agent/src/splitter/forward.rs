//! Payload from one stream of a pair to the other: windows, credit, the order of waiting streams, and a pair's end.
//!
//! Credit goes back to a sender here and only here: when its bytes have entered the receiver's output, which is
//! bounded, or were thrown away. What cannot enter yet waits in the pair, within the window we granted.

use std::rc::Rc;
use std::time::Instant;

use super::conn::{Role, State};
use super::frame::{self, HEAD_LEN, Reason};
use super::message::Status;
use super::pair::{Ending, Face, Pair, PairKey, Phase, Side};
use super::receive::Fatal;
use super::{ConnId, Splitter};

/// What one stream may frame before the next one's turn, where several wait for the same connection; bytes.
const QUANTUM: usize = 16 * 1024;

impl Splitter {
    /// DATA from the other face, to go to face `to`.
    pub(super) fn forward(&mut self, now: Instant, key: PairKey, to: Face, body: &[u8], end_stream: bool) {
        let Some(pair) = self.pairs.get(key) else { return };
        let side = pair.side(to);
        if side.send_ended {
            self.credit(key, to.other(), body.len());
            return self.end_if_complete(now, key);
        }
        if end_stream {
            side.end = Ending::EndStream;
        }
        let mut rest = body;
        if side.pending().is_empty() && side.is_open() && self.conns[side.conn].blocked.is_empty() {
            let mut framed = 0;
            while !rest.is_empty() {
                let Some(n) = self.frame_data(key, to, rest) else { break };
                rest = &rest[n..];
                framed += n;
            }
            if framed > 0 {
                self.credit_forwarded(key, to.other(), framed);
                if rest.is_empty() {
                    // The common case: all of it went on, with the end of the stream if this was its end.
                    if end_stream {
                        self.end_if_complete(now, key);
                    }
                    return;
                }
            }
        }
        let Some(pair) = self.pairs.get(key) else { return };
        let pending = &mut pair.side(to).pending;
        if pending.capacity() - pending.len() < rest.len() {
            // Much may wait, or little for many: hardly more memory than that.
            pending.reserve_exact(rest.len().max(pending.len().min(2 * 1024)));
        }
        pending.extend_from_slice(rest);
        self.push(now, key, to);
    }

    /// The pod holds far more than it may. If this stream adds to that, it ends; one whose bytes go on does not.
    pub(super) fn shed(&mut self, now: Instant, key: PairKey, to: Face) {
        if self.pairs.get(key).is_some_and(|pair| !pair.side(to).pending().is_empty()) {
            self.fail(now, key, Status::ResourceExhausted, "bytes that wait in this pod exceed pod-budget, a limit");
        }
    }

    /// One DATA frame of the head of `waiting`, as much as windows and frame size allow; with END_STREAM if it is the
    /// last. Its length; `None`: nothing fits now.
    fn frame_data(&mut self, key: PairKey, to: Face, waiting: &[u8]) -> Option<usize> {
        let high = self.output_high();
        let pair = self.pairs.get(key)?;
        let replayable = to == Face::Endpoint && pair.phase < Phase::Interim;
        let side = pair.side(to);
        let conn = &mut self.conns[side.conn];
        if conn.backlog() >= high {
            return None;
        }
        let mut n = waiting.len().min(side.send.available()).min(conn.send.available()).min(conn.peer.max_frame);
        if high < self.limits.output_high {
            n = n.min(high);
        }
        if n == 0 {
            return None;
        }
        let last = n == waiting.len() && matches!(side.end, Ending::EndStream);
        side.send.take(n);
        conn.send.take(n);
        conn.fed = true;
        side.send_ended = last;
        let out = conn.out_for(HEAD_LEN + n, self.coming.min(high));
        frame::write_data(out, side.id, &waiting[..n], last);
        conn.count_output();
        if replayable {
            self.keep_for_replay(key, &waiting[..n]);
        }
        Some(n)
    }

    /// Sends what a side has pending, as far as it goes now, then its end. Where the connection is what it waits for,
    /// it takes its place among those that wait.
    pub(super) fn push(&mut self, now: Instant, key: PairKey, to: Face) {
        let Some(pair) = self.pairs.get(key) else { return };
        let side = pair.side(to);
        if !side.is_open() || side.queued {
            return;
        }
        let mut turn = QUANTUM;
        while !self.side(key, to).pending().is_empty() {
            let side = self.side(key, to);
            let (conn, starved) = (side.conn, side.send.available() == 0);
            // The pending bytes leave the pair for the time of the call: the output is the connection's.
            let pending = std::mem::take(&mut side.pending);
            let head = side.pending_head;
            let framed = self.frame_data(key, to, &pending[head..]);
            let side = self.side(key, to);
            side.pending = pending;
            match framed {
                Some(n) => {
                    side.take_pending(n);
                    self.credit_forwarded(key, to.other(), n);
                    turn = turn.saturating_sub(n);
                    let more = !self.side(key, to).pending().is_empty();
                    if turn == 0 && more && !self.conns[conn].blocked.is_empty() {
                        return self.enqueue(key, to);
                    }
                }
                // Its own window: a WINDOW_UPDATE on the stream brings it back.
                None if starved => return,
                None => return self.enqueue(key, to),
            }
        }
        self.finish_side(key, to);
        self.end_if_complete(now, key);
    }

    /// After a side's last byte: END_STREAM or trailers, and a reset that waited for them.
    fn finish_side(&mut self, key: PairKey, to: Face) {
        let side = self.side(key, to);
        let (c, id) = (side.conn, side.id);
        if !side.send_ended {
            match &side.end {
                Ending::Open | Ending::Head => {}
                Ending::EndStream => {
                    side.send_ended = true;
                    frame::write_data(self.conns[c].out(), id, &[], true);
                }
                Ending::Trailers(_) => {
                    side.send_ended = true;
                    let Ending::Trailers(fields) = std::mem::take(&mut side.end) else { unreachable!("matched above") };
                    self.heads_held -= fields.size();
                    self.conns[c].write_headers(id, true, &fields);
                    self.recycle(fields);
                    if to == Face::Endpoint {
                        // Trailers are not kept: from here on there is nothing to replay the request from.
                        self.drop_replay(key);
                    }
                }
            }
        }
    }

    /// Ends the pair if all four directions have, or if a reset waited for the response to be out.
    fn end_if_complete(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        if pair.is_complete() {
            self.release(now, key);
        } else if pair.client.send_ended
            && let Some(reason) = pair.client.then_reset
        {
            self.end_pair(now, key, Some(reason), None);
        } else {
            self.free_endpoint(now, key);
        }
    }

    /// An endpoint's stream that has ended in both directions is off the endpoint's books: however long the client
    /// takes to read what we hold, it takes no place there.
    pub(super) fn free_endpoint(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        let side = &mut pair.endpoint;
        if !side.is_open() || !side.is_closed() {
            return;
        }
        let c = side.conn;
        // Its bytes still wait here: the connection's credit for them comes back when they go on.
        let unpaid = std::mem::take(&mut side.unpaid);
        self.conns[c].forget(now, side);
        (side.id, side.unpaid, side.owed_to) = (0, unpaid, Some(self.conns[c].id));
        pair.picked = None;
        self.place_freed(now, c);
    }

    /// A stream left this endpoint connection.
    pub(super) fn place_freed(&mut self, now: Instant, c: u32) {
        self.admit(now, c);
        self.close_if_unused(now, c);
    }

    fn enqueue(&mut self, key: PairKey, to: Face) {
        let side = self.side(key, to);
        side.queued = true;
        let conn = side.conn;
        self.pairs.line_up(&mut self.conns[conn].blocked, key);
    }

    /// The connection has window or room again: those that wait for it go on, in turn.
    pub(super) fn pump(&mut self, now: Instant, c: u32) {
        let face = self.conns[c].face();
        // Each once at most: a stream that cannot go on takes its place at the end again and does not spin.
        let mut turns = self.conns[c].blocked.len();
        while turns > 0 && !self.conns.is_gone(c) {
            turns -= 1;
            let high = self.output_high();
            let conn = &mut self.conns[c];
            if conn.backlog() >= high || conn.send.available() == 0 {
                return;
            }
            let Some(key) = conn.blocked.pop_front() else { return };
            // A request that was replayed meanwhile waits elsewhere.
            if let Some(side) = self.pairs.get(key).map(|pair| pair.side(face))
                && side.conn == c
            {
                side.queued = false;
                self.push(now, key, face);
            }
        }
    }

    /// A side that takes nothing more: what waits for it is thrown away, and its sender gets the credit.
    pub(super) fn discard(&mut self, key: PairKey, to: Face) {
        let side = self.side(key, to);
        side.send_ended = true;
        let waiting = side.pending().len();
        side.pending = Vec::new();
        side.pending_head = 0;
        if waiting > 0 {
            self.credit_forwarded(key, to.other(), waiting);
        }
    }

    /// Bytes of the request or response payload that came on `from` have gone on: see [`Splitter::credit`]. Replayed
    /// bytes earned their credit when they went on the first time.
    fn credit_forwarded(&mut self, key: PairKey, from: Face, bytes: usize) {
        let Some(pair) = self.pairs.get(key) else { return };
        let mut owed = bytes;
        if from == Face::Client {
            let already = owed.min(pair.credited);
            pair.credited -= already;
            owed -= already;
        }
        self.credit(key, from, owed);
    }

    /// Bytes that came on `from` are off our hands: their sender may send as many more.
    pub(super) fn credit(&mut self, key: PairKey, from: Face, bytes: usize) {
        let Some(pair) = self.pairs.get(key) else { return };
        let side = pair.side(from);
        side.recv.release(bytes);
        self.held -= bytes;
        let unpaid = side.unpaid.min(bytes);
        side.unpaid -= unpaid;
        if !side.is_open() {
            let owed_to = side.owed_to;
            return self.pay(owed_to, unpaid);
        }
        let conn = &mut self.conns[side.conn];
        if unpaid > 0 {
            conn.release(unpaid);
        }
        if !side.recv_ended
            && let Some(increment) = side.recv.update()
        {
            frame::write_window_update(conn.out(), side.id, increment);
        }
    }

    /// Withheld credit for a stream that has left the connection's books, if the connection is still there.
    fn pay(&mut self, owed_to: Option<ConnId>, bytes: usize) {
        let slot = owed_to.and_then(|id| self.conns.slot(id)).filter(|c| self.conns[*c].state == State::Open);
        if let Some(c) = slot.filter(|_| bytes > 0) {
            self.conns[c].release(bytes);
        }
    }

    /// `came` bytes from endpoint connection `c` got no credit, since the pod is over its budget. Each quarter of the
    /// connection's window that waits for clients who do not take what is theirs brings the others on it closer to a stop.
    /// So it takes no more requests but of such clients; and where others have streams on it already, what waits without credit ends.
    pub(super) fn part_if_starving(&mut self, now: Instant, c: u32, key: PairKey, came: usize) {
        let conn = &self.conns[c];
        let (held, quarter) = (conn.recv.held(), conn.recv.size() / 4);
        let Role::Endpoint(endpoint) = &conn.role else { return };
        if held / quarter == held.saturating_sub(came as u64) / quarter {
            return;
        }
        let (id, endpoint) = (conn.id, Rc::as_ptr(endpoint));
        match self.pairs.get(key) {
            Some(pair) if !pair.client.pending().is_empty() => self.conns[pair.client.conn].apart = true,
            _ => return,
        }
        if !std::mem::replace(&mut self.conns[c].apart, true) {
            let pool = self.ways.pools.entry((endpoint, false)).or_default();
            let before = pool.len();
            pool.retain(|other| *other != id);
            let listed = pool.len() < before;
            if pool.is_empty() {
                self.ways.pools.remove(&(endpoint, false));
            }
            if listed {
                self.ways.pools.entry((endpoint, true)).or_default().push(id);
            }
        }
        let mut in_flight = self.conns[c].streams.values().filter_map(|key| self.pairs.peek(*key));
        if in_flight.all(|pair| !pair.client.is_open() || self.conns[pair.client.conn].apart) {
            return;
        }
        let waits = |key: &PairKey| {
            self.pairs.peek(*key).is_some_and(|Pair { client, endpoint, .. }| {
                let from_here = endpoint.owed_to == Some(id) || endpoint.is_open() && endpoint.conn == c;
                from_here && endpoint.unpaid > 0 && !client.pending().is_empty()
            })
        };
        let clients = self.conns.live().filter(|conn| conn.apart && conn.face() == Face::Client);
        let mut waiting: Vec<_> = clients
            .flat_map(|conn| conn.streams.iter().map(|(stream, key)| (conn.id, *stream, *key)))
            .filter(|(.., key)| waits(key))
            .collect();
        // In the order they came, so that equal inputs give equal outputs.
        waiting.sort_unstable_by_key(|(client, stream, _)| (*client, *stream));
        waiting.into_iter().for_each(|(.., key)| self.shed(now, key, Face::Client));
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE changed on connection `c`.
    pub(super) fn shift_windows(&mut self, now: Instant, c: u32, difference: i64) -> Result<(), Fatal> {
        let face = self.conns[c].face();
        let mut streams: Vec<(u32, PairKey)> = self.conns[c].streams.iter().map(|(id, key)| (*id, *key)).collect();
        streams.sort_unstable_by_key(|(id, _)| *id);
        for &(_, key) in &streams {
            if let Some(pair) = self.pairs.get(key)
                && pair.side(face).send.shift(difference).is_err()
            {
                return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "a stream's window above 2^31-1"));
            }
        }
        if difference > 0 {
            for (_, key) in streams {
                self.push(now, key, face);
            }
        }
        Ok(())
    }

    /// Ends a pair: RST_STREAM where one is given and the stream is not closed yet, then [`Splitter::release`].
    pub(super) fn end_pair(
        &mut self,
        now: Instant,
        key: PairKey,
        to_client: Option<Reason>,
        to_endpoint: Option<Reason>,
    ) {
        for (face, reason) in [(Face::Client, to_client), (Face::Endpoint, to_endpoint)] {
            let Some(reason) = reason else { continue };
            let Some(pair) = self.pairs.get(key) else { return };
            if face == Face::Client {
                pair.ends_by_reset(reason);
            }
            let (unanswered, opened) = (pair.phase < Phase::Interim, pair.opened);
            let side = pair.side(face);
            if side.is_open() && !side.is_closed() {
                side.we_reset = true;
                let (c, id) = (side.conn, side.id);
                match face {
                    Face::Endpoint if unanswered => self.reset_endpoint(now, c, id, opened, reason),
                    _ => self.conns[c].reset(id, reason),
                }
            }
        }
        self.release(now, key);
    }

    /// The one way out of the books: streams leave their connections, unforwarded bytes are credited, the endpoint's
    /// count falls, and who waited for a place gets it.
    pub(super) fn release(&mut self, now: Instant, key: PairKey) {
        let Some(mut pair) = self.pairs.remove(key) else { return };
        if self.is_tapped() {
            self.tap_end(now, &mut pair);
        }
        self.heads_held -= pair.heads();
        self.recycle(std::mem::replace(&mut pair.request, Rc::clone(&self.no_list)));
        if let Some(kept) = pair.replay.take() {
            self.replay_held -= kept.len();
            self.recycle_buffer(kept);
        }
        let (client, endpoint) = (&pair.client, &pair.endpoint);
        self.held -= (client.recv.held() + endpoint.recv.held()) as usize;
        if client.is_open() {
            let conn = &mut self.conns[client.conn];
            conn.forget(now, client);
            conn.remember(client.id, client.we_reset);
        }
        if endpoint.is_open() {
            self.conns[endpoint.conn].forget(now, endpoint);
            self.place_freed(now, endpoint.conn);
        } else {
            self.pay(endpoint.owed_to, endpoint.unpaid);
        }
        if client.is_open() {
            self.close_if_unused(now, client.conn);
        }
        let Pair { service, call, client, endpoint, .. } = pair;
        service.calls().end(now, call, client.body, endpoint.body);
    }

    /// For a pair that is known to be there.
    pub(super) fn side(&mut self, key: PairKey, face: Face) -> &mut Side {
        self.pairs.get(key).expect("a pair in hand").side(face)
    }
}

//! What holds between any two calls into a splitter: the books of connections, pairs, windows and endpoints agree, and
//! nobody waits for something that has come already.
//!
//! In: a splitter; out: nothing, or a panic that names what is wrong. It changes nothing. Simulations and fuzzers call
//! it after each step; builds without debug assertions do not have it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::conn::{Conn, Drain, Role, State};
use super::frame::{DEFAULT_MAX_FRAME, HEAD_LEN};
use super::pair::{Ending, Face, Pair, PairKey, Phase, Side};
use super::{DeadlineReason, Splitter};

impl Splitter {
    /// Panics unless everything that must hold between two calls holds. It looks at everything there is.
    pub fn check_invariants(&self) {
        self.check_sums();
        let mut owed = HashMap::new();
        for side in self.pairs.live().map(|pair| &pair.endpoint).filter(|side| !side.is_open()) {
            *owed.entry(side.owed_to).or_insert(0) += side.unpaid as u64;
        }
        let timers: BTreeSet<_> = self.timers.iter().map(|entry| (entry.0.1, entry.0.2)).collect();
        for conn in self.conns.live() {
            self.check_conn(conn, owed.get(&Some(conn.id)).copied().unwrap_or(0));
            check_timers(conn, |reason| timers.contains(&(conn.id, reason)));
        }
        self.check_pools();
        self.check_in_flight();
    }

    /// What costs nothing to ask after each call.
    pub(super) fn check_idle_books(&self) {
        debug_assert!(self.pairs.len() > 0 || self.held == 0, "{} bytes held for no stream", self.held);
        debug_assert!(self.pairs.len() > 0 || self.replay_held == 0, "{} bytes kept for no stream", self.replay_held);
        debug_assert!(self.replay_held <= self.limits.replay_pod, "{} bytes kept for replays", self.replay_held);
    }

    fn check_sums(&self) {
        self.check_idle_books();
        let held: u64 = self.pairs.live().map(|pair| pair.client.recv.held() + pair.endpoint.recv.held()).sum();
        assert_eq!(self.held as u64, held, "bytes held, over all streams");
        let kept: usize = self.pairs.live().map(|pair| pair.replay.as_ref().map_or(0, Vec::len)).sum();
        // Beyond the budget each connection has what its own window lets it send.
        let paid = |side: &Side| side.recv.held() - side.unpaid as u64;
        let has_conn = |side: &Side| side.is_open() || side.owed_to.is_some_and(|id| self.conns.slot(id).is_some());
        let all = self.pairs.live().flat_map(|pair| [&pair.client, &pair.endpoint]);
        let credited: u64 = all.filter(|side| has_conn(side)).map(paid).sum();
        assert!(credited <= self.limits.pod_budget as u64, "{credited} bytes held with credit given for them");
        assert_eq!(self.replay_held, kept, "bytes kept for replays, over all streams");
        let outputs: usize = self.conns.live().map(|conn| conn.counted).sum();
        assert_eq!(self.outputs.held(), outputs, "bytes in the outputs of all connections");
        let heads: usize = self.pairs.live().map(Pair::heads).sum();
        assert_eq!(self.heads_held, heads, "bytes of header lists that wait, over all streams");
        let clients = self.conns.live().filter(|conn| conn.face() == Face::Client);
        let streams: usize = clients.map(|conn| conn.streams.len()).sum();
        let rests = self.pairs.live().filter(|pair| !pair.client.is_open());
        assert_eq!(self.pairs.len(), streams + rests.count(), "pairs and clients' streams");
        let overdue = self.conns.live().filter(|conn| conn.overdue).count();
        assert_eq!(self.ways.overdue(), overdue, "overdue dials");
    }

    /// `owed`: credit withheld for streams that have left its books.
    fn check_conn(&self, conn: &Conn, owed: u64) {
        if conn.state == State::Closing {
            // Its windows are of no use any more.
            assert!(conn.streams.is_empty() && conn.waiting.is_empty(), "{conn:?}: streams on a closed connection");
            return;
        }
        conn.check();
        assert!(conn.tail.len() < HEAD_LEN + DEFAULT_MAX_FRAME, "{conn:?}: more than a frame in pieces");
        if let Some(block) = &conn.block {
            let bound = self.limits.header_block.max(DEFAULT_MAX_FRAME);
            assert!(block.bytes.len() <= bound, "{conn:?}: a header block of {} bytes", block.bytes.len());
        }
        let mut unpaid = owed;
        for (id, key) in &conn.streams {
            let pair = self.pairs.peek(*key).unwrap_or_else(|| panic!("{conn:?}: stream {id} names an ended pair"));
            let side = pair.face(conn.face());
            assert_eq!((self.conns[side.conn].id, side.id), (conn.id, *id), "{conn:?}: whose stream is {pair:?}");
            unpaid += side.unpaid as u64;
            if conn.face() == Face::Client || pair.rest_until.is_some() {
                self.check_pair(*key, pair);
            }
        }
        assert_eq!(conn.recv.held(), unpaid, "{conn:?}: bytes without credit, over its streams");
        self.check_queues(conn);
    }

    /// Who stands in a connection's lists, and that they stand there for a reason.
    fn check_queues(&self, conn: &Conn) {
        let face = conn.face();
        let queued = |key: &&PairKey| {
            let side = self.pairs.peek(**key).map(|pair| pair.face(face));
            side.is_some_and(|side| side.queued && self.conns.slot(conn.id) == Some(side.conn))
        };
        let blocked: Vec<_> = conn.blocked.iter().filter(queued).collect();
        let distinct: HashSet<_> = blocked.iter().collect();
        assert_eq!(blocked.len(), distinct.len(), "{conn:?}: a stream that waits for it twice");
        let marked = conn.streams.values().filter(|key| queued(key)).count();
        assert_eq!(blocked.len(), marked, "{conn:?}: streams that wait for it, and their marks");
        if !blocked.is_empty() {
            let has_reason = conn.send.available() == 0 || conn.backlog() > 0;
            assert!(has_reason, "{conn:?}: streams wait though they could go on, and nothing will wake them");
        }
        let waiting = conn.waiting.iter().filter(|key| self.is_waiting(**key, conn)).count();
        if waiting > 0 {
            assert!(!conn.retired, "{conn:?}: requests wait for a connection that takes none");
            // How much may wait in its output depends on how many connections there are: what is written next wakes them.
            let could = conn.can_open(self.output_high()) && conn.backlog() == 0;
            assert!(!could, "{conn:?}: requests wait though it could take them, and nothing will wake them");
        }
    }

    fn is_waiting(&self, key: PairKey, conn: &Conn) -> bool {
        let waits = |pair: &Pair| pair.phase == Phase::Waiting && self.conns.slot(conn.id) == Some(pair.endpoint.conn);
        self.pairs.peek(key).is_some_and(waits)
    }

    fn check_pair(&self, key: PairKey, pair: &Pair) {
        let Pair { client, endpoint, .. } = pair;
        check_side(client, pair);
        check_side(endpoint, pair);
        assert!(!pair.is_complete(), "{pair:?}: a pair that has ended is in the books");
        assert_eq!(client.is_open(), pair.rest_until.is_none(), "{pair:?}: whether its client has left");
        if pair.rest_until.is_some() {
            assert!(client.is_closed() && endpoint.is_open(), "{pair:?}: waits for an endpoint though its client left");
            let listed = self.conns[endpoint.conn].rests.iter().filter(|rest| **rest == key).count();
            assert_eq!(listed, 1, "{pair:?}: how often its deadline is known");
        }
        if endpoint.is_open() {
            let named = self.conns[endpoint.conn].streams.get(&endpoint.id);
            assert_eq!(named, Some(&key), "{pair:?}: its endpoint's connection does not know it");
            assert!(pair.phase > Phase::Waiting, "{pair:?}: waits with a stream open");
        }
        if pair.phase == Phase::Waiting {
            let conn = &self.conns[endpoint.conn];
            assert!(conn.waiting.contains(&key), "{pair:?}: waits for a connection that does not know it");
        }
        let counts = endpoint.is_open() || pair.phase == Phase::Waiting;
        assert_eq!(pair.picked.is_some(), counts, "{pair:?}: counts on an endpoint as long as it is there");
        let replay = pair.replay.as_ref().map_or(0, Vec::len);
        assert!(replay <= self.limits.replay_stream, "{pair:?}: {replay} bytes kept for a replay");
        // What came and has not gone on waits on the other side, and nowhere else.
        assert!(pair.credited <= endpoint.pending().len(), "{pair:?}: credited bytes that do not wait");
        let waits = (endpoint.pending().len() - pair.credited) as u64;
        assert_eq!(client.recv.held(), waits, "{pair:?}: the request's bytes");
        assert_eq!(endpoint.recv.held(), client.pending().len() as u64, "{pair:?}: the response's bytes");
    }

    fn check_pools(&self) {
        for (&(endpoint, apart), pool) in &self.ways.pools {
            assert!(!pool.is_empty(), "an empty pool");
            for id in pool {
                let c = self.conns.slot(*id).expect("a connection in a pool lives");
                let conn = &self.conns[c];
                let of = |role: &Role| matches!(role, Role::Endpoint(load) if Rc::as_ptr(load) == endpoint);
                assert!(of(&conn.role) && conn.apart == apart, "{conn:?}: in another's pool");
                assert!(conn.state != State::Closing && !conn.retired, "{conn:?}: in a pool, and takes no stream");
            }
            let conns = || pool.iter().map(|id| &self.conns[id.index]);
            let could = |conn: &Conn| conn.can_open(self.output_high()) && conn.backlog() == 0;
            let stuck = conns().find(|conn| conn.waiting.iter().any(|key| self.is_waiting(*key, conn)));
            if let (Some(stuck), Some(free)) = (stuck, conns().find(|conn| could(conn))) {
                let waits_in_vain = stuck.is_full() || stuck.overdue;
                assert!(!waits_in_vain, "requests wait on {stuck:?} while {free:?} could take them");
            }
        }
        for conn in self.conns.live().filter(|conn| conn.state != State::Closing && !conn.retired) {
            if let Role::Endpoint(endpoint) = &conn.role {
                let times = self.ways.pool(endpoint, conn.apart).iter().filter(|id| **id == conn.id).count();
                assert_eq!(times, 1, "{conn:?}: how often it is in its pool");
            }
        }
    }

    /// Other pods may have streams on the same endpoints.
    fn check_in_flight(&self) {
        let mut counts = HashMap::new();
        for picked in self.pairs.live().filter_map(|pair| pair.picked.as_ref()) {
            counts.entry(Rc::as_ptr(picked.endpoint())).or_insert((0, picked.endpoint())).0 += 1;
        }
        for (count, endpoint) in counts.values() {
            assert!(endpoint.open() >= *count, "{endpoint:?}: {count} streams of this pod alone");
        }
    }
}

fn check_side(side: &Side, pair: &Pair) {
    side.recv.check();
    side.send.check();
    assert!(side.unpaid as u64 <= side.recv.held(), "{pair:?}: credit withheld for more than is held");
    if !side.is_open() {
        return;
    }
    let pending = !side.pending().is_empty();
    assert!(!(pending && side.send_ended), "{pair:?}: bytes behind the end");
    let stuck = pending && !side.queued && side.send.available() > 0;
    assert!(!stuck, "{pair:?}: bytes that could go on, and nothing will wake them");
    let unsaid = !pending && !side.send_ended && !side.queued && !matches!(side.end, Ending::Open);
    assert!(!unsaid, "{pair:?}: an end that is not said");
    let unreset = side.send_ended && side.then_reset.is_some();
    assert!(!unreset, "{pair:?}: a reset that is not said");
}

/// `armed`: whether the connection has a timer for this.
fn check_timers(conn: &Conn, armed: impl Fn(DeadlineReason) -> bool) {
    if conn.state != State::Open {
        return;
    }
    match conn.role {
        Role::Client(_) => {
            assert!(conn.drain == Drain::No || armed(DeadlineReason::DrainEnd), "{conn:?}: a drain without end");
        }
        Role::Endpoint(_) => {
            let greeted = conn.settled || armed(DeadlineReason::EndpointSettings);
            assert!(greeted, "{conn:?}: waits for SETTINGS without end");
            assert!(conn.retired || armed(DeadlineReason::IdleEndpoint), "{conn:?}: may idle without end");
            assert!(conn.rests.is_empty() || armed(DeadlineReason::RestEnd), "{conn:?}: keeps rests without end");
        }
    }
}

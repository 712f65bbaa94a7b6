//! Dials: which endpoint a request is given to when some do not answer, and where requests wait meanwhile.
//!
//! An endpoint that could not be dialled is ejected for this pod: it gets requests again when a dial in the background
//! has succeeded. A request waits for a dial only as long as the patience lasts, unless no endpoint is better; it was
//! never sent, so it may go elsewhere. A dial has succeeded with the endpoint's SETTINGS, not with its handshake.

use std::rc::Rc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::conn::{Conn, Role, State};
use super::conns::Conns;
use super::pair::PairKey;
use super::{ConnId, DeadlineReason, Effect, Splitter};
use crate::balance::{EndpointLoad, Reach, Standing};

/// What is known of the ways to endpoints.
pub(super) struct Ways {
    /// What this pod cannot reach, shared with its opaque connections.
    pub(super) reach: Rc<Reach>,
    /// Connections that take new streams, or will when their dials have succeeded, by endpoint; those for hasty clients
    /// apart from the others.
    pub(super) pools: FxHashMap<(*const EndpointLoad, bool), Vec<ConnId>>,
    /// How many connections are `overdue`: keep requests waiting.
    overdue: usize,
}

impl Ways {
    pub(super) fn new(reach: Rc<Reach>) -> Self {
        Self { reach, pools: FxHashMap::default(), overdue: 0 }
    }

    #[cfg(debug_assertions)]
    pub(super) fn overdue(&self) -> usize {
        self.overdue
    }

    pub(super) fn pool(&self, endpoint: &Rc<EndpointLoad>, apart: bool) -> &[ConnId] {
        self.pools.get(&(Rc::as_ptr(endpoint), apart)).map_or(&[], Vec::as_slice)
    }

    /// What speaks against an endpoint for a stream that was tried on some.
    pub(super) fn standing(
        &self,
        conns: &Conns,
        endpoint: &Rc<EndpointLoad>,
        apart: bool,
        tried: &[Rc<EndpointLoad>],
    ) -> Standing {
        if tried.iter().any(|tried| Rc::ptr_eq(tried, endpoint)) {
            Standing::Tried
        } else if self.overdue > 0 && self.pool(endpoint, apart).iter().any(|id| conns[id.index].overdue) {
            Standing::Slow
        } else if self.reach.is_clear() {
            Standing::Good
        } else {
            self.reach.standing(endpoint)
        }
    }
}

impl Splitter {
    /// A new connection to the endpoint. Requests may wait for it.
    pub(super) fn dial(&mut self, now: Instant, endpoint: &Rc<EndpointLoad>, apart: bool) -> u32 {
        self.stats.endpoint_connections += 1;
        let id = self.new_conn(now, Role::Endpoint(Rc::clone(endpoint)));
        self.conns[id.index].apart = apart;
        self.ways.pools.entry((Rc::as_ptr(endpoint), apart)).or_default().push(id);
        self.effects.push_back(Effect::Dial(id, endpoint.addr()));
        self.arm(now + self.limits.dial_patience, id, DeadlineReason::SlowDial);
        id.index
    }

    /// A request came for a Service. If one of its ejected endpoints has backed off long enough, it is dialled; no
    /// request is risked on it.
    pub(super) fn probe(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        let Some(endpoint) = self.ways.reach.probe(now, &pair.service) else { return };
        if self.ways.pool(&endpoint, false).iter().all(|id| self.conns[id.index].settled) {
            self.dial(now, &endpoint, false);
        }
    }

    /// The patience with a dial is over; the dial itself goes on.
    pub(super) fn dial_overdue(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        if conn.settled || conn.retired || conn.state == State::Closing {
            return;
        }
        conn.overdue = true;
        self.ways.overdue += 1;
        self.move_waiting(now, c);
    }

    /// The dial has ended, one way or the other, or nobody waits for it any more.
    pub(super) fn dial_ended(&mut self, c: u32) {
        if std::mem::take(&mut self.conns[c].overdue) {
            self.ways.overdue -= 1;
        }
    }

    /// The endpoint has sent its first SETTINGS.
    pub(super) fn dial_succeeded(&mut self, c: u32) {
        self.dial_ended(c);
        if let Role::Endpoint(endpoint) = &self.conns[c].role {
            self.ways.reach.connected(endpoint);
        }
    }

    /// The endpoint said how many streams it takes. None at all, for a while or for good (RFC 9113 §6.5.2): as with a dial
    /// that is overdue, requests wait for it only where no endpoint is better.
    pub(super) fn mind_stream_limit(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        let takes_none = conn.peer.max_streams == 0 && !conn.retired;
        if takes_none && !std::mem::replace(&mut conn.overdue, true) {
            self.ways.overdue += 1;
            self.move_waiting(now, c);
        } else if !takes_none && conn.overdue {
            self.dial_ended(c);
            self.relieve(now);
        }
    }

    /// An endpoint became usable: nobody goes on waiting for one that is not.
    pub(super) fn relieve(&mut self, now: Instant) {
        if self.ways.overdue == 0 && self.ways.reach.is_clear() {
            return;
        }
        let hopeless = |conn: &&Conn| match &conn.role {
            Role::Endpoint(endpoint) => {
                (!conn.settled || conn.overdue)
                    && !conn.waiting.is_empty()
                    && self.ways.standing(&self.conns, endpoint, conn.apart, &[]) != Standing::Good
            }
            Role::Client(_) => false,
        };
        let waited_for: Vec<_> = self.conns.live().filter(hopeless).map(|conn| conn.id).collect();
        for id in waited_for {
            if let Some(c) = self.conns.slot(id) {
                self.move_waiting(now, c);
            }
        }
    }

    /// Gives the requests that wait for a dial to better endpoints, as far as there are any. If the dial is overdue,
    /// even an ejected one is better: refusals are quick.
    fn move_waiting(&mut self, now: Instant, c: u32) {
        let Conn { id, overdue, apart, .. } = self.conns[c];
        for key in std::mem::take(&mut self.conns[c].waiting) {
            if !self.waits_on(key, c) {
                continue;
            }
            let (ways, conns, high) = (&self.ways, &self.conns, self.output_high());
            let Some(pair) = self.pairs.get(key) else { continue };
            let standing = |endpoint: &Rc<EndpointLoad>| match ways.standing(conns, endpoint, apart, &pair.tried) {
                // It has waited enough: best is an endpoint that takes it at once.
                Standing::Good if !ways.pool(endpoint, apart).iter().any(|id| conns[id.index].can_open(high)) => {
                    Standing::Untested
                }
                standing => standing,
            };
            let found = ways.reach.pick(now, &pair.service, &mut self.rng, standing);
            let better = found.filter(|found| match standing(found.endpoint()) {
                Standing::Good | Standing::Untested => true,
                Standing::Ejected(_) => overdue,
                Standing::Slow | Standing::Tried => false,
            });
            match better {
                Some(picked) => {
                    let endpoint = Rc::clone(picked.endpoint());
                    pair.picked = Some(picked);
                    self.place(now, key, &endpoint);
                }
                None => {
                    debug_assert!(self.conns.slot(id).is_some(), "a connection that is waited for");
                    self.pairs.line_up(&mut self.conns[c].waiting, key);
                }
            }
        }
    }
}

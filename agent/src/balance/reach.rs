//! Which endpoints one pod cannot reach: how often dials failed, and until when an endpoint is passed over for it.
//!
//! In: how dials ended, with `now` and chance. Out: what speaks against an endpoint, which one is to be probed, and
//! what changed. It is one pod's, shared by its HTTP/2 streams and its opaque connections: a NetworkPolicy that forbids
//! this pod an endpoint is no other pod's affair. It dials nothing. Nothing is kept of endpoints that can be reached.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::{EndpointLoad, ServiceLoad, Standing};
use crate::addr::EndpointAddr;

/// Back-off after the first failure: a container that restarts is back after about as long, and a call a second that
/// costs a dial is too cheap to notice.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
/// Back-offs double up to this one: a NetworkPolicy stays for days and then costs a SYN a minute; what comes back is
/// found within a minute, sooner than most operators look.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// A probe of which nothing was heard for this long was given up with its connection, and another one may be made.
/// Longer than a dial and the wait for SETTINGS take together.
const PROBE_AT_MOST: Duration = Duration::from_secs(15);

/// One pod's view of all Services' endpoints.
#[derive(Debug, Default)]
pub struct Reach(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    ejected: FxHashMap<*const EndpointLoad, Ejected>,
    /// The earliest end of a back-off.
    next_probe: Option<Instant>,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Ejected {
    endpoint: Rc<EndpointLoad>,
    /// In a row, each after the back-off of the one before.
    failures: u32,
    until: Instant,
    /// When a probe began that has not ended, as far as is known.
    probed: Option<Instant>,
}

/// For the log: that an endpoint cannot be dialled is said once, and once that it can be again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected(EndpointAddr),
    Back(EndpointAddr),
}

/// For the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EjectedEndpoint {
    pub addr: EndpointAddr,
    /// Dials that failed in a row, one for each back-off.
    pub failures: u32,
}

impl Reach {
    /// Nothing is ejected: the one question that is asked for every stream.
    pub fn is_clear(&self) -> bool {
        self.0.borrow().ejected.is_empty()
    }

    /// Good or ejected. It is ejected until a dial succeeds, however long ago the back-off ended.
    pub fn standing(&self, endpoint: &Rc<EndpointLoad>) -> Standing {
        let state = self.0.borrow();
        state.ejected.get(&Rc::as_ptr(endpoint)).map_or(Standing::Good, |ejected| Standing::Ejected(ejected.until))
    }

    /// A dial failed. What fails inside a back-off (begun before it, or for want of a better endpoint) is the same
    /// failure once more and does not lengthen it.
    pub fn failed(&self, now: Instant, endpoint: &Rc<EndpointLoad>, rng: &mut fastrand::Rng) {
        if !endpoint.is_current() {
            return;
        }
        let state = &mut *self.0.borrow_mut();
        let ejected = state.ejected.entry(Rc::as_ptr(endpoint)).or_insert_with(|| {
            state.changes.push_back(Change::Ejected(endpoint.addr()));
            Ejected { endpoint: Rc::clone(endpoint), failures: 0, until: now, probed: None }
        });
        if now >= ejected.until {
            ejected.failures += 1;
            ejected.until = now + back_off(ejected.failures, rng);
            ejected.probed = None;
            state.prune();
        }
    }

    /// A dial succeeded: nothing speaks against the endpoint any more.
    pub fn connected(&self, endpoint: &Rc<EndpointLoad>) {
        let state = &mut *self.0.borrow_mut();
        if state.ejected.remove(&Rc::as_ptr(endpoint)).is_some() {
            state.changes.push_back(Change::Back(endpoint.addr()));
            state.prune();
        }
    }

    /// An endpoint of this Service whose back-off is over, to be dialled now: one dial, while streams go elsewhere.
    pub fn probe(&self, now: Instant, service: &ServiceLoad) -> Option<Rc<EndpointLoad>> {
        let state = &mut *self.0.borrow_mut();
        if state.next_probe.is_none_or(|at| now < at) {
            return None;
        }
        let due = |ejected: &&mut Ejected| ejected.endpoint.service == service.addr() && ejected.is_due(now);
        let first =
            state.ejected.values_mut().filter(due).min_by_key(|ejected| (ejected.until, ejected.endpoint.addr))?;
        first.probed = Some(now);
        Some(Rc::clone(&first.endpoint))
    }

    /// Whether this very endpoint's back-off is over, and nobody probes it.
    pub fn is_due(&self, now: Instant, endpoint: &Rc<EndpointLoad>) -> bool {
        self.0.borrow().ejected.get(&Rc::as_ptr(endpoint)).is_some_and(|ejected| ejected.is_due(now))
    }

    /// This endpoint is dialled: if its back-off is over, that is its probe.
    pub fn dialled(&self, now: Instant, endpoint: &Rc<EndpointLoad>) {
        let ejected = &mut self.0.borrow_mut().ejected;
        if let Some(due) = ejected.get_mut(&Rc::as_ptr(endpoint)).filter(|ejected| ejected.is_due(now)) {
            due.probed = Some(now);
        }
    }

    /// Forgets endpoints that have left the table.
    pub fn prune(&self) {
        self.0.borrow_mut().prune();
    }

    /// By address.
    pub fn ejected(&self) -> Vec<EjectedEndpoint> {
        let state = self.0.borrow();
        let listed = state.ejected.values().filter(|ejected| ejected.endpoint.is_current());
        let mut list: Vec<_> =
            listed.map(|ejected| EjectedEndpoint { addr: ejected.endpoint.addr, failures: ejected.failures }).collect();
        list.sort_unstable();
        list
    }

    /// What changed since the last call, one by one.
    pub fn poll_change(&self) -> Option<Change> {
        self.0.borrow_mut().changes.pop_front()
    }
}

impl State {
    fn prune(&mut self) {
        self.ejected.retain(|_, ejected| ejected.endpoint.is_current());
        self.next_probe = self.ejected.values().map(|ejected| ejected.until).min();
    }
}

impl Ejected {
    fn is_due(&self, now: Instant) -> bool {
        self.until <= now && self.probed.is_none_or(|at| at + PROBE_AT_MOST <= now)
    }
}

/// A quarter of it is chance, so that the pods of many nodes do not all dial an endpoint at the moment it comes back.
fn back_off(failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let doubled = FIRST_BACK_OFF.saturating_mul(1 << (failures - 1).min(16));
    doubled.min(LONGEST_BACK_OFF).mul_f64(0.75 + rng.f64() / 4.0)
}

#[cfg(test)]
mod tests;

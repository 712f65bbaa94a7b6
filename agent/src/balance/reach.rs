//! One pod's view of endpoints: which it cannot reach (its dials fail), which it keeps away from (its calls fail, see
//! `outliers`), and which part of a large Service is its own.
//!
//! In: how dials and calls ended, with `now` and chance. Out: the endpoint for a stream, what speaks against one, which is
//! to be probed, and what changed. It is shared by the pod's HTTP/2 streams and its opaque connections: a NetworkPolicy that
//! forbids this pod an endpoint is no other pod's affair. It dials nothing, and keeps nothing of endpoints that are well.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::outliers::{Outliers, Verdict};
use super::turns::Turns;
use super::{EndpointLoad, Outcome, Picked, ServiceLoad, Standing};
use crate::addr::{EndpointAddr, ServiceAddr};

/// Back-off after the first failure: a container that restarts is back after about as long, and a call a second that
/// costs a dial is too cheap to notice.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
/// Back-offs double up to this one: a NetworkPolicy stays for days and then costs a SYN a minute; what comes back is
/// found within a minute, sooner than most operators look.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// A probe of which nothing was heard for this long was given up with its connection, and another one may be made.
/// Longer than a dial and the wait for SETTINGS take together.
const PROBE_AT_MOST: Duration = Duration::from_secs(15);

/// Endpoints of a Service that one pod uses at a time: a thousand endpoints are not a thousand connections from each pod.
/// Parts of a worker's pods lie side by side, so that they cover the endpoints evenly, and each moves on by one endpoint a
/// second while it is used: over time every pod uses every endpoint as much as any other.
pub const PART: usize = 128;
const PART_MOVES: Duration = Duration::from_secs(1);

/// One pod's view of all Services' endpoints.
#[derive(Debug, Default)]
pub struct Reach(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    ejected: FxHashMap<*const EndpointLoad, Ejected>,
    /// The earliest end of a back-off.
    next_probe: Option<Instant>,
    outliers: Outliers,
    /// Of large Services.
    parts: FxHashMap<ServiceAddr, Part>,
    /// Endpoints that a part has left.
    left: Vec<Rc<EndpointLoad>>,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Part {
    turns: Turns,
    moves: Instant,
}

#[derive(Debug)]
struct Ejected {
    endpoint: Rc<EndpointLoad>,
    /// In a row, each after the back-off of the one before.
    failures: u32,
    since: Instant,
    until: Instant,
    /// When a probe began that has not ended, as far as is known.
    probed: Option<Instant>,
}

/// Why an endpoint gets nothing of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It could not be dialled.
    Unreachable,
    /// Calls failed there.
    Failing,
}

impl Cause {
    /// For the status.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Unreachable => "unreachable",
            Cause::Failing => "failing",
        }
    }
}

/// For the log: that an endpoint is ejected is said once, and once that it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected(EndpointAddr, Cause),
    Back(EndpointAddr, Cause),
}

/// For the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EjectedEndpoint {
    pub addr: EndpointAddr,
    pub service: ServiceAddr,
    pub cause: Cause,
    /// Dials or trial calls that failed in a row, one for each back-off.
    pub failures: u32,
    /// When the pod began to keep away, the last time.
    pub since: Instant,
    /// From when on it is tried.
    pub until: Instant,
}

impl Reach {
    /// Nothing is ejected: the one question that is asked for every stream.
    pub fn is_clear(&self) -> bool {
        let state = self.0.borrow();
        state.ejected.is_empty() && state.outliers.is_clear()
    }

    /// Good or ejected. It is ejected until a dial or a trial call succeeds, however long ago the back-off ended.
    pub fn standing(&self, endpoint: &Rc<EndpointLoad>) -> Standing {
        let state = self.0.borrow();
        let unreachable = state.ejected.get(&Rc::as_ptr(endpoint)).map(|ejected| ejected.until);
        unreachable.or_else(|| state.outliers.until(endpoint)).map_or(Standing::Good, Standing::Ejected)
    }

    /// Chooses an endpoint for one more stream, of this pod's part where the Service is large: see [`ServiceLoad::pick`].
    pub fn pick(
        &self,
        now: Instant,
        service: &ServiceLoad,
        rng: &mut fastrand::Rng,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> Option<Picked> {
        if service.len() <= PART {
            return service.pick(now, rng, standing);
        }
        // What is asked for a standing borrows, too.
        let part = self.0.borrow_mut().parts.remove(&service.addr());
        let mut part = part.unwrap_or_else(|| {
            let start = service.next_part(PART);
            Part { turns: Turns::beginning(start, rng.usize(..PART)), moves: now + PART_MOVES }
        });
        if now >= part.moves {
            part.moves = now + PART_MOVES;
            self.0.borrow_mut().left.extend(service.at(part.turns.start));
            part.turns.start = part.turns.start.wrapping_add(1);
        }
        let picked = service.pick_part(now, rng, &mut part.turns, PART, standing);
        self.0.borrow_mut().parts.insert(service.addr(), part);
        picked
    }

    /// Endpoints that this pod has no more use for, one by one: their connections may close.
    pub fn poll_left(&self) -> Option<Rc<EndpointLoad>> {
        self.0.borrow_mut().left.pop()
    }

    /// A call that was sent to the endpoint at `sent` has ended.
    pub fn ended(
        &self,
        now: Instant,
        service: &ServiceLoad,
        endpoint: &Rc<EndpointLoad>,
        sent: Instant,
        outcome: Outcome,
        rng: &mut fastrand::Rng,
    ) {
        let state = &mut *self.0.borrow_mut();
        let ejected = &state.ejected;
        let others = |outliers: &Outliers| {
            let good = |other: &&Rc<EndpointLoad>| {
                !Rc::ptr_eq(other, endpoint)
                    && !ejected.contains_key(&Rc::as_ptr(other))
                    && outliers.until(other).is_none()
            };
            service.endpoints().iter().filter(good).count()
        };
        let change = match state.outliers.ended(now, service, endpoint, (sent, outcome), others, rng) {
            Some(Verdict::Ejected) => Change::Ejected(endpoint.addr(), Cause::Failing),
            Some(Verdict::Back) => Change::Back(endpoint.addr(), Cause::Failing),
            None => return,
        };
        state.changes.push_back(change);
    }

    /// An endpoint of this Service where calls failed and that has backed off long enough: for one call, to be sent now.
    /// Where the Service has switched ejection off, all of them are back.
    pub fn trial(&self, now: Instant, service: &ServiceLoad) -> Option<Rc<EndpointLoad>> {
        let state = &mut *self.0.borrow_mut();
        while let Some(endpoint) = state.outliers.amnesty(now, service) {
            state.changes.push_back(Change::Back(endpoint.addr(), Cause::Failing));
        }
        state.outliers.trial(now, service)
    }

    /// A dial failed. What fails inside a back-off (begun before it, or for want of a better endpoint) is the same
    /// failure once more and does not lengthen it.
    pub fn failed(&self, now: Instant, endpoint: &Rc<EndpointLoad>, rng: &mut fastrand::Rng) {
        if !endpoint.is_current() {
            return;
        }
        let state = &mut *self.0.borrow_mut();
        let ejected = state.ejected.entry(Rc::as_ptr(endpoint)).or_insert_with(|| {
            state.changes.push_back(Change::Ejected(endpoint.addr(), Cause::Unreachable));
            Ejected { endpoint: Rc::clone(endpoint), failures: 0, since: now, until: now, probed: None }
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
            state.changes.push_back(Change::Back(endpoint.addr(), Cause::Unreachable));
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
        let unreachable =
            state.ejected.values().map(|it| (Cause::Unreachable, &it.endpoint, it.failures, it.since, it.until));
        let failing = state
            .outliers
            .list()
            .map(|(endpoint, times, since, until)| (Cause::Failing, endpoint, times, since, until));
        let listed = unreachable.chain(failing).filter(|(_, endpoint, ..)| endpoint.is_current());
        let mut list: Vec<_> = listed
            .map(|(cause, endpoint, failures, since, until)| {
                let (addr, service) = (endpoint.addr, endpoint.service);
                EjectedEndpoint { addr, service, cause, failures, since, until }
            })
            .collect();
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
        self.outliers.prune();
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

//! Pure balancing: one Service's endpoints with their load on this worker, and `pick`.
//!
//! In: the Service as the table knows it, what speaks against an endpoint, how calls ended, time and chance. Out: a
//! [`Picked`] that counts as open until it is dropped. It dials nothing and knows no stream. One thread owns all of it (`Rc`,
//! `Cell`). Load and latency are shared by a worker's pods; which endpoints a pod is kept from is its own affair ([`Reach`]).

mod budget;
mod latency;
mod outcome;
mod outliers;
mod reach;
mod turns;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::addr::{EndpointAddr, ServiceAddr};
use crate::calls::{Calls, Histogram};
use crate::table::{Balancing, Policy, Service};

use budget::Budget;
use latency::{Latency, doublings};
pub use outcome::Outcome;
pub use reach::{Cause, Change, EjectedEndpoint, Reach};
use turns::Turns;

/// An endpoint is slow that takes so many doublings longer than the fast ones: 2.8 times as long. Equal endpoints on a
/// machine with more to do than it can differ by less.
const SLOW: f32 = 1.5;
/// And takes longer by more than so many deviations of its own latencies: six of its mean's.
const NOISE: f32 = 1.5;
/// Its turns fall with the cube of what goes beyond that, from a whole turn: a verdict by chance costs little, and one that
/// takes 20 times as long is not the slowest hundredth of all calls.
const POWER: f32 = 3.0;
/// And never below this: it is found out in time that it is well again.
const LEAST_WEIGHT: f32 = 1.0 / 256.0;
/// A new endpoint that starts slowly gets at least this share of a turn.
const FIRST_WEIGHT: f32 = 0.1;

/// What speaks against an endpoint for one stream; the least is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Good,
    /// Nothing, but it is not known to answer at once: for a stream that has waited long enough.
    Untested,
    /// It could not be dialled, or its calls failed, and it backs off until then or was not tried since.
    Ejected(Instant),
    /// A dial is under way and takes longer than it should.
    Slow,
    /// It was tried for this stream.
    Tried,
}

/// One endpoint of one Service and what this worker knows of it.
pub struct EndpointLoad {
    addr: EndpointAddr,
    service: ServiceAddr,
    identity: Arc<str>,
    open: Cell<u32>,
    given: Cell<u64>,
    failed: Cell<u64>,
    /// Cleared when the endpoint leaves the Service: its connections take no new stream.
    current: Cell<bool>,
    /// Turns that it is owed, or, below 0, had ahead of time.
    credit: Cell<f32>,
    latency: Latency,
    answers: RefCell<Histogram>,
    /// When it joined a Service that was in use; `None`: nobody saw it come.
    joined: Option<Instant>,
    /// Pods that had calls fail there and keep away from it.
    suspected: Cell<u32>,
}

impl EndpointLoad {
    pub fn addr(&self) -> EndpointAddr {
        self.addr
    }

    /// Streams (and opaque connections) open on it.
    pub fn open(&self) -> u32 {
        self.open.get()
    }

    /// Calls that were given to it: on an HTTP/2 stream of their own.
    pub fn given(&self) -> u64 {
        self.given.get()
    }

    /// Calls that failed there, as [`Outcome::is_failure`] has it.
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// The usual time until it answers; `None`: too few answers to say.
    pub fn latency(&self) -> Option<Duration> {
        self.latency.mean().map(latency::duration)
    }

    /// How long its answers took, from the whole request to the first byte.
    pub fn answers(&self) -> Histogram {
        self.answers.borrow().clone()
    }

    /// Whether the Service still lists it.
    pub fn is_current(&self) -> bool {
        self.current.get()
    }
}

impl fmt::Debug for EndpointLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} open)", self.addr, self.open.get())
    }
}

/// An endpoint chosen for one stream; the stream counts on it until this is dropped.
#[derive(Debug)]
pub struct Picked(Rc<EndpointLoad>);

impl Picked {
    pub(crate) fn new(endpoint: &Rc<EndpointLoad>) -> Self {
        endpoint.open.set(endpoint.open.get() + 1);
        Self(Rc::clone(endpoint))
    }

    pub fn endpoint(&self) -> &Rc<EndpointLoad> {
        &self.0
    }

    /// The call goes there: what was chosen and could not be dialled has had none.
    pub(crate) fn give(&self) {
        self.0.given.set(self.0.given.get() + 1);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// One Service on one worker: shared by all of the worker's pods, so that their calls are spread together.
pub struct ServiceLoad {
    addr: ServiceAddr,
    state: RefCell<State>,
    budget: Budget,
    calls: Calls,
}

struct State {
    service: Arc<Service>,
    endpoints: Vec<Rc<EndpointLoad>>,
    turns: Turns,
    /// Where the next pod's part of a large Service begins.
    next_part: usize,
    /// What the fast ones cost and take, in doublings, and after how many answers that is looked at again.
    usual: Option<Usual>,
    answers_left: usize,
    scratch: Vec<Usual>,
}

#[derive(Clone, Copy, Debug)]
struct Usual {
    cost: f32,
    latency: f32,
    /// Of the one with that cost.
    queue: f32,
}

impl ServiceLoad {
    /// `rng` chooses where the first turn begins, so that many workers do not all begin at the same endpoint.
    pub fn new(service: Arc<Service>, rng: &mut fastrand::Rng) -> Rc<Self> {
        let state = State {
            endpoints: Vec::new(),
            turns: Turns::beginning(0, rng.usize(..usize::MAX / 2)),
            next_part: rng.usize(..usize::MAX / 2),
            usual: None,
            answers_left: 0,
            scratch: Vec::new(),
            service: Arc::clone(&service),
        };
        let load =
            Self { addr: service.addr, state: RefCell::new(state), budget: Budget::default(), calls: Calls::default() };
        load.list(service, None);
        Rc::new(load)
    }

    /// Stays for ever.
    pub fn addr(&self) -> ServiceAddr {
        self.addr
    }

    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.state.borrow().service)
    }

    /// What became of its calls.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    fn balancing(&self) -> Balancing {
        self.state.borrow().service.balancing
    }

    /// The endpoints as the Service lists them now, with their load.
    pub fn endpoints(&self) -> Vec<Rc<EndpointLoad>> {
        self.state.borrow().endpoints.clone()
    }

    fn len(&self) -> usize {
        self.state.borrow().endpoints.len()
    }

    /// Takes over the endpoints as the table now lists them. Those that stay (same address, same identity) keep their
    /// load; those that leave are no longer current. Whether somebody holds one that leaves: its connections are to
    /// take no new stream.
    pub fn update(&self, now: Instant, service: Arc<Service>) -> bool {
        self.list(service, Some(now))
    }

    fn list(&self, service: Arc<Service>, now: Option<Instant>) -> bool {
        let mut state = self.state.borrow_mut();
        let before = std::mem::take(&mut state.endpoints);
        let mut before: FxHashMap<_, _> = before.into_iter().map(|known| (known.addr, known)).collect();
        for listed in service.endpoints.iter() {
            let endpoint = match before.entry(listed.addr) {
                Entry::Occupied(known) if known.get().identity == listed.identity => known.remove(),
                Entry::Occupied(_) | Entry::Vacant(_) => Rc::new(EndpointLoad {
                    addr: listed.addr,
                    service: self.addr,
                    identity: Arc::clone(&listed.identity),
                    open: Cell::new(0),
                    given: Cell::new(0),
                    failed: Cell::new(0),
                    current: Cell::new(true),
                    credit: Cell::new(0.0),
                    latency: Latency::default(),
                    answers: RefCell::default(),
                    joined: now,
                    suspected: Cell::new(0),
                }),
            };
            state.endpoints.push(endpoint);
        }
        state.service = service;
        before.into_values().fold(false, |held, gone| {
            gone.current.set(false);
            held | (Rc::strong_count(&gone) > 1)
        })
    }

    /// Whether there is an endpoint besides `current` and those in `tried`.
    pub fn lists_another(&self, tried: &[Rc<EndpointLoad>], current: &Rc<EndpointLoad>) -> bool {
        let is_new = |listed| !Rc::ptr_eq(listed, current) && !tried.iter().any(|tried| Rc::ptr_eq(tried, listed));
        self.state.borrow().endpoints.iter().any(is_new)
    }

    /// Whether there is an endpoint like this.
    pub fn lists(&self, wanted: impl Fn(&Rc<EndpointLoad>) -> bool) -> bool {
        self.state.borrow().endpoints.iter().any(wanted)
    }

    /// Chooses an endpoint for one more stream among those against which the least speaks. `None`: the Service has no
    /// endpoint. One that was tried, or that fails, is chosen where no other is left: refusing is the caller's choice.
    /// Pods pick by [`Reach::pick`], which leaves a pod its part of a large Service.
    pub fn pick(
        &self,
        now: Instant,
        rng: &mut fastrand::Rng,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> Option<Picked> {
        let state = &mut *self.state.borrow_mut();
        let mut turns = std::mem::take(&mut state.turns);
        let picked = state.pick(now, rng, &mut turns, state.endpoints.len(), standing);
        state.turns = turns;
        picked
    }

    /// As [`ServiceLoad::pick`], among `len` endpoints, with turns of the caller's own.
    fn pick_part(
        &self,
        now: Instant,
        rng: &mut fastrand::Rng,
        turns: &mut Turns,
        len: usize,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> Option<Picked> {
        self.state.borrow().pick(now, rng, turns, len, standing)
    }

    /// Where a pod's part of `len` endpoints begins: parts lie side by side in the ring, so that they cover it evenly.
    fn next_part(&self, len: usize) -> usize {
        let mut state = self.state.borrow_mut();
        let start = state.next_part;
        state.next_part = start.wrapping_add(len) % state.endpoints.len().max(1);
        start % state.endpoints.len().max(1)
    }

    /// The endpoint at this place of the ring.
    fn at(&self, place: usize) -> Option<Rc<EndpointLoad>> {
        let state = self.state.borrow();
        state.endpoints.get(place % state.endpoints.len().max(1)).cloned()
    }

    /// The endpoint answered a call after `latency`, or failed it.
    pub fn answered(&self, now: Instant, endpoint: &EndpointLoad, latency: Duration, outcome: Outcome) {
        let state = &mut *self.state.borrow_mut();
        endpoint.answers.borrow_mut().record(latency);
        let mut latency = doublings(latency);
        if outcome.is_failure() {
            endpoint.failed.set(endpoint.failed.get() + 1);
            // Whoever fails at once is not fast.
            latency = state.usual.map_or(latency, |usual| latency.max(usual.latency));
        }
        endpoint.latency.sample(now, latency, endpoint.open(), outcome.is_failure());
        state.answers_left = state.answers_left.saturating_sub(1);
        if state.answers_left == 0 {
            state.look_at_latencies();
        }
    }

    /// A call that waited so long was given up: it would have taken longer. Says nothing if that is not long.
    pub fn waited(&self, now: Instant, endpoint: &EndpointLoad, latency: Duration) {
        if endpoint.latency.mean().is_some_and(|mean| doublings(latency) > mean) {
            self.answered(now, endpoint, latency, Outcome::Unknown);
        }
    }

    /// A call is sent.
    pub fn sent(&self) {
        self.budget.earn();
    }

    /// Whether a call may be sent again.
    pub fn may_repeat(&self, now: Instant) -> bool {
        self.budget.spend(now)
    }

    /// The share of a turn that an endpoint gets, from 0 to 1.
    pub fn weight(&self, now: Instant, endpoint: &EndpointLoad) -> f32 {
        self.state.borrow().weight(now, endpoint)
    }
}

impl State {
    fn pick(
        &self,
        now: Instant,
        rng: &mut fastrand::Rng,
        turns: &mut Turns,
        len: usize,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> Option<Picked> {
        let by_load = self.service.balancing.policy != Policy::RoundRobin;
        let weight = |endpoint: &EndpointLoad| self.weight(now, endpoint);
        turns.begin(now, &self.endpoints, len);
        let chosen = turns.next(&self.endpoints, len, rng, by_load, weight, standing)?;
        Some(Picked::new(&self.endpoints[chosen]))
    }

    fn weight(&self, now: Instant, endpoint: &EndpointLoad) -> f32 {
        let Balancing { policy, slow_start, .. } = self.service.balancing;
        let by_age = match endpoint.joined {
            Some(joined) if !slow_start.is_zero() => {
                let age = now.saturating_duration_since(joined);
                (age.as_secs_f32() / slow_start.as_secs_f32()).clamp(FIRST_WEIGHT, 1.0)
            }
            _ => 1.0,
        };
        if policy == Policy::Ewma { by_age * self.weight_by_latency(endpoint) } else { by_age }
    }

    fn weight_by_latency(&self, endpoint: &EndpointLoad) -> f32 {
        let (Some(usual), Some(cost)) = (self.usual, endpoint.latency.cost()) else { return 1.0 };
        // Calls that wait for each other take longer, and are no sign of slowness where others have fewer.
        let queue = (endpoint.latency.queue() - usual.queue).max(0.0);
        let slower = cost - usual.cost - queue;
        if slower <= SLOW {
            return 1.0;
        }
        // Where latencies differ much from call to call, a mean differs by chance too.
        let beyond = slower - SLOW.max(NOISE * endpoint.latency.deviation());
        if beyond <= 0.0 { 1.0 } else { (-POWER * beyond).exp2().max(LEAST_WEIGHT) }
    }

    /// What the fast ones take: of four the second fastest, so that one that is fast by chance or by mistake makes no one
    /// slow.
    fn look_at_latencies(&mut self) {
        self.answers_left = self.endpoints.len().max(64);
        self.scratch.clear();
        let known = |endpoint: &Rc<EndpointLoad>| {
            let latency = &endpoint.latency;
            Some(Usual { cost: latency.cost()?, latency: latency.mean()?, queue: latency.queue() })
        };
        self.scratch.extend(self.endpoints.iter().filter_map(known));
        let quarter = self.scratch.len() / 4;
        self.usual = (!self.scratch.is_empty())
            .then(|| *self.scratch.select_nth_unstable_by(quarter, |a, b| a.cost.total_cmp(&b.cost)).1);
    }
}

impl Drop for ServiceLoad {
    /// A Service that has left the table takes its endpoints along.
    fn drop(&mut self) {
        self.state.get_mut().endpoints.iter().for_each(|endpoint| endpoint.current.set(false));
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

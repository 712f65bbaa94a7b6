//! Pure balancing: one Service's endpoints with their load on this worker, and `pick`.
//!
//! In: the Service as the table knows it, `now`, chance. Out: a [`Picked`] that counts as open until it is dropped. It
//! dials nothing and knows no stream. One thread owns all of it (`Rc`, `Cell`).

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::addr::EndpointAddr;
use crate::table::{Policy, Service};

/// An endpoint that could not be dialled is passed over for this long, unless no other is left.
const CONNECT_BACK_OFF: Duration = Duration::from_secs(1);

/// One endpoint of one Service and what this worker has open on it.
pub struct EndpointLoad {
    addr: EndpointAddr,
    identity: Arc<str>,
    open: Cell<u32>,
    /// Cleared when the endpoint leaves the Service: its connections take no new stream.
    current: Cell<bool>,
    back_off_until: Cell<Option<Instant>>,
}

impl EndpointLoad {
    pub fn addr(&self) -> EndpointAddr {
        self.addr
    }

    /// Streams (and opaque connections) open on it.
    pub fn open(&self) -> u32 {
        self.open.get()
    }

    /// Whether the Service still lists it.
    pub fn is_current(&self) -> bool {
        self.current.get()
    }

    /// A dial failed: others are preferred for a while.
    pub fn connect_failed(&self, now: Instant) {
        self.back_off_until.set(Some(now + CONNECT_BACK_OFF));
    }

    /// A dial succeeded.
    pub fn connected(&self) {
        self.back_off_until.set(None);
    }

    fn backs_off(&self, now: Instant) -> bool {
        self.back_off_until.get().is_some_and(|until| now < until)
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
    fn new(endpoint: &Rc<EndpointLoad>) -> Self {
        endpoint.open.set(endpoint.open.get() + 1);
        Self(Rc::clone(endpoint))
    }

    pub fn endpoint(&self) -> &Rc<EndpointLoad> {
        &self.0
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// One Service on one worker: shared by all of the worker's pods, so that their calls are spread together.
pub struct ServiceLoad {
    state: RefCell<State>,
}

struct State {
    service: Arc<Service>,
    endpoints: Vec<Rc<EndpointLoad>>,
    /// Where the next turn begins.
    next: usize,
}

impl ServiceLoad {
    /// `rng` chooses where the first turn begins, so that many workers do not all begin at the same endpoint.
    pub fn new(service: Arc<Service>, rng: &mut fastrand::Rng) -> Rc<Self> {
        let state = State { endpoints: Vec::new(), next: rng.usize(..), service: Arc::clone(&service) };
        let load = Self { state: RefCell::new(state) };
        load.update(service);
        Rc::new(load)
    }

    pub fn service(&self) -> Arc<Service> {
        Arc::clone(&self.state.borrow().service)
    }

    /// The endpoints as the Service lists them now, with their load.
    pub fn endpoints(&self) -> Vec<Rc<EndpointLoad>> {
        self.state.borrow().endpoints.clone()
    }

    /// Takes over the endpoints as the table now lists them. Those that stay (same address, same identity) keep their
    /// load; those that leave are no longer current. Whether somebody holds one that leaves: its connections are to
    /// take no new stream.
    pub fn update(&self, service: Arc<Service>) -> bool {
        let mut state = self.state.borrow_mut();
        let before = std::mem::take(&mut state.endpoints);
        let mut before: FxHashMap<_, _> = before.into_iter().map(|known| (known.addr, known)).collect();
        for listed in service.endpoints.iter() {
            let endpoint = match before.entry(listed.addr) {
                Entry::Occupied(known) if known.get().identity == listed.identity => known.remove(),
                Entry::Occupied(_) | Entry::Vacant(_) => Rc::new(EndpointLoad {
                    addr: listed.addr,
                    identity: Arc::clone(&listed.identity),
                    open: Cell::new(0),
                    current: Cell::new(true),
                    back_off_until: Cell::new(None),
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

    /// Chooses an endpoint for one more stream. Endpoints in `avoid` (tried before for this stream) and those that could
    /// not be dialled lately are chosen only where no other is left. `None`: the Service has no endpoint.
    pub fn pick(&self, now: Instant, rng: &mut fastrand::Rng, avoid: &[Rc<EndpointLoad>]) -> Option<Picked> {
        let state = &mut *self.state.borrow_mut();
        let count = state.endpoints.len();
        if count == 0 {
            return None;
        }
        let avoided = |endpoint: &Rc<EndpointLoad>| avoid.iter().any(|tried| Rc::ptr_eq(tried, endpoint));
        let begin = state.next % count;
        let turn = || (0..count).map(|step| (begin + step) % count);
        let chosen = turn()
            .find(|&i| !avoided(&state.endpoints[i]) && !state.endpoints[i].backs_off(now))
            .or_else(|| turn().find(|&i| !avoided(&state.endpoints[i])))
            .unwrap_or(begin);
        state.next = chosen + 1;
        let chosen = match state.service.policy {
            Policy::LeastRequest if count > 1 => {
                // The turn's endpoint against another drawn at random: the turn breaks ties, so equal load means equal shares.
                let other = (chosen + 1 + rng.usize(..count - 1)) % count;
                let rival = &state.endpoints[other];
                let usable = !avoided(rival) && !rival.backs_off(now);
                if usable && rival.open() < state.endpoints[chosen].open() { other } else { chosen }
            }
            Policy::LeastRequest | Policy::RoundRobin => chosen,
        };
        Some(Picked::new(&state.endpoints[chosen]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::ServiceAddr;
    use crate::table::{Endpoint, Reach, ServicePortName};

    fn service(policy: Policy, endpoints: &[(&str, &str)]) -> Arc<Service> {
        let endpoints = endpoints
            .iter()
            .map(|(addr, identity)| Endpoint {
                addr: EndpointAddr::new(addr.parse().unwrap()),
                identity: (*identity).into(),
            })
            .collect();
        Arc::new(Service {
            id: 1,
            addr: ServiceAddr::new("10.96.0.10:50051".parse().unwrap()),
            name: ServicePortName { namespace: "default".into(), service: "echo".into(), port: "grpc".into() },
            policy,
            endpoints,
            reach: Reach::All,
            usable: 0,
        })
    }

    const THREE: &[(&str, &str)] = &[("10.1.0.1:1", "a"), ("10.1.0.2:1", "b"), ("10.1.0.3:1", "c")];

    fn counts(load: &ServiceLoad, rng: &mut fastrand::Rng, calls: usize) -> Vec<(EndpointAddr, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..calls {
            *counts.entry(load.pick(Instant::now(), rng, &[]).unwrap().endpoint().addr()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    #[test]
    fn equal_endpoints_get_equal_shares_under_either_policy() {
        for policy in [Policy::RoundRobin, Policy::LeastRequest] {
            let rng = &mut fastrand::Rng::with_seed(7);
            let load = ServiceLoad::new(service(policy, THREE), rng);
            for (endpoint, count) in counts(&load, rng, 3_000) {
                assert_eq!(count, 1_000, "{endpoint} under {policy:?}");
            }
        }
    }

    #[test]
    fn least_request_prefers_the_endpoint_with_fewer_open_streams() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(Policy::LeastRequest, THREE), rng);
        let now = Instant::now();
        let mut held: Vec<Picked> = (0..300).map(|_| load.pick(now, rng, &[]).unwrap()).collect();
        let busy = held[0].endpoint().addr();
        held.retain(|picked| picked.endpoint().addr() == busy);
        let again: Vec<Picked> = (0..150).map(|_| load.pick(now, rng, &[]).unwrap()).collect();
        let on_busy = again.iter().filter(|picked| picked.endpoint().addr() == busy).count();
        assert_eq!(on_busy, 0);
    }

    #[test]
    fn a_stream_counts_until_it_is_dropped() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(Policy::RoundRobin, &THREE[..1]), rng);
        let first = load.pick(Instant::now(), rng, &[]).unwrap();
        let second = load.pick(Instant::now(), rng, &[]).unwrap();
        let endpoint = Rc::clone(first.endpoint());
        assert_eq!(endpoint.open(), 2);
        drop((first, second));
        assert_eq!(endpoint.open(), 0);
    }

    #[test]
    fn a_new_endpoint_takes_its_turn_and_a_removed_one_is_no_longer_current() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(Policy::RoundRobin, &THREE[..2]), rng);
        let leaving = load.pick(Instant::now(), rng, &[]).unwrap();
        let stays: Vec<_> =
            THREE.iter().copied().filter(|(a, _)| *a != leaving.endpoint().addr().to_string()).collect();
        load.update(service(Policy::RoundRobin, &stays));
        assert!(!leaving.endpoint().is_current());
        assert_eq!(leaving.endpoint().open(), 1);
        assert_eq!(counts(&load, rng, 10).iter().map(|(_, n)| *n).collect::<Vec<_>>(), [5, 5]);
    }

    #[test]
    fn a_reused_address_with_another_identity_is_another_endpoint() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(Policy::RoundRobin, &[("10.1.0.1:1", "a")]), rng);
        let old = load.pick(Instant::now(), rng, &[]).unwrap();
        load.update(service(Policy::RoundRobin, &[("10.1.0.1:1", "b")]));
        let new = load.pick(Instant::now(), rng, &[]).unwrap();
        assert!(!Rc::ptr_eq(old.endpoint(), new.endpoint()));
        assert!(!old.endpoint().is_current() && new.endpoint().is_current());
    }

    #[test]
    fn a_stream_tries_another_endpoint_first_and_the_same_one_only_where_it_is_the_last() {
        let rng = &mut fastrand::Rng::with_seed(7);
        for policy in [Policy::RoundRobin, Policy::LeastRequest] {
            let load = ServiceLoad::new(service(policy, THREE), rng);
            let mut tried = Vec::new();
            for _ in 0..3 {
                let picked = load.pick(Instant::now(), rng, &tried).unwrap();
                assert!(!tried.iter().any(|t| Rc::ptr_eq(t, picked.endpoint())));
                tried.push(Rc::clone(picked.endpoint()));
            }
            assert!(load.pick(Instant::now(), rng, &tried).is_some());
        }
    }

    #[test]
    fn an_endpoint_that_cannot_be_dialled_is_passed_over_for_a_while() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let load = ServiceLoad::new(service(Policy::RoundRobin, THREE), rng);
        let now = Instant::now();
        let dead = load.pick(now, rng, &[]).unwrap();
        dead.endpoint().connect_failed(now);
        for _ in 0..30 {
            assert_ne!(load.pick(now, rng, &[]).unwrap().endpoint().addr(), dead.endpoint().addr());
        }
        let later = now + CONNECT_BACK_OFF;
        assert!((0..3).any(|_| load.pick(later, rng, &[]).unwrap().endpoint().addr() == dead.endpoint().addr()));
    }

    #[test]
    fn a_service_without_endpoints_picks_none() {
        let rng = &mut fastrand::Rng::with_seed(7);
        assert!(ServiceLoad::new(service(Policy::RoundRobin, &[]), rng).pick(Instant::now(), rng, &[]).is_none());
    }
}

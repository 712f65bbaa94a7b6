//! Pure balancing: one Service's endpoints with their load on this worker, and `pick`.
//!
//! In: the Service as the table knows it, what speaks against an endpoint, chance. Out: a [`Picked`] that counts as
//! open until it is dropped. It dials nothing and knows no stream. One thread owns all of it (`Rc`, `Cell`). Load is
//! shared by a worker's pods; which endpoints a pod can reach is its own affair ([`Reach`]).

mod reach;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::addr::{EndpointAddr, ServiceAddr};
use crate::table::{Policy, Service};

pub use reach::{Change, EjectedEndpoint, Reach};

/// Tries to draw a good endpoint before all are looked at: most are good, nearly always.
const DRAWS: usize = 4;

/// What speaks against an endpoint for one stream; the least is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Good,
    /// Nothing, but it is not known to answer at once: for a stream that has waited long enough.
    Untested,
    /// It could not be dialled, and backs off until then or was not dialled since.
    Ejected(Instant),
    /// A dial is under way and takes longer than it should.
    Slow,
    /// It was tried for this stream.
    Tried,
}

/// One endpoint of one Service and what this worker has open on it.
pub struct EndpointLoad {
    addr: EndpointAddr,
    service: ServiceAddr,
    identity: Arc<str>,
    open: Cell<u32>,
    /// Cleared when the endpoint leaves the Service: its connections take no new stream.
    current: Cell<bool>,
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
    addr: ServiceAddr,
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
        let load = Self { addr: service.addr, state: RefCell::new(state) };
        load.update(service);
        Rc::new(load)
    }

    /// Stays for ever.
    pub fn addr(&self) -> ServiceAddr {
        self.addr
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
                    service: self.addr,
                    identity: Arc::clone(&listed.identity),
                    open: Cell::new(0),
                    current: Cell::new(true),
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
    pub fn pick(&self, rng: &mut fastrand::Rng, standing: impl Fn(&Rc<EndpointLoad>) -> Standing) -> Option<Picked> {
        let state = &mut *self.state.borrow_mut();
        let endpoints = &state.endpoints;
        let count = endpoints.len();
        if count == 0 {
            return None;
        }
        let turn = state.next % count;
        state.next = turn + 1;
        let good = |i: &usize| standing(&endpoints[*i]) == Standing::Good;
        // Chance takes the place of an endpoint that is passed over. The next one in turn would get twice its share;
        // and if it got the turn too, a pod that passes one over would lead others that call in step with it to the
        // same endpoint again and again.
        let chosen = if good(&turn) {
            turn
        } else {
            let drawn = (0..DRAWS).map(|_| rng.usize(..count)).find(good);
            drawn.unwrap_or_else(|| best(endpoints, rng, &standing))
        };
        let picked = match state.service.policy {
            Policy::LeastRequest if count > 1 => {
                // The turn's endpoint against another drawn at random: the turn breaks ties, so equal load means equal shares.
                let rival = (chosen + 1 + rng.usize(..count - 1)) % count;
                let less = endpoints[rival].open() < endpoints[chosen].open();
                if less && good(&rival) { rival } else { chosen }
            }
            Policy::LeastRequest | Policy::RoundRobin => chosen,
        };
        Some(Picked::new(&state.endpoints[picked]))
    }
}

/// One by chance among those against which the least speaks.
fn best(
    endpoints: &[Rc<EndpointLoad>],
    rng: &mut fastrand::Rng,
    standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
) -> usize {
    let (mut chosen, mut least, mut equals) = (0, Standing::Tried, 0);
    for (i, standing) in endpoints.iter().map(standing).enumerate() {
        if standing < least {
            (chosen, least, equals) = (i, standing, 1);
        } else if standing == least {
            equals += 1;
            if rng.usize(..equals) == 0 {
                chosen = i;
            }
        }
    }
    chosen
}

impl Drop for ServiceLoad {
    /// A Service that has left the table takes its endpoints along.
    fn drop(&mut self) {
        self.state.get_mut().endpoints.iter().for_each(|endpoint| endpoint.current.set(false));
    }
}

#[cfg(test)]
mod tests;

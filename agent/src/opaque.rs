//! Pure: one direction of an opaque connection. Bytes that the other side does not take at once, and the end of the
//! sending direction, go in; what to write, whether more is welcome and when to pass the end on comes out.
//! Both directions of a connection are two independent pipes (half-close is one pipe's affair). It does no IO.

use std::rc::Rc;
use std::time::Instant;

use crate::balance::{EndpointLoad, Picked, Reach, ServiceLoad, Standing};

/// Most bytes that wait in one direction. More stays in the sender's socket: back-pressure by not reading.
pub const CAPACITY: usize = 64 * 1024;
/// Reading goes on when this much has room again, so that a slow reader does not cost one read per few bytes.
const LOW: usize = CAPACITY / 2;

/// One direction's waiting bytes. Holds no memory while nothing waits.
#[derive(Debug, Default)]
pub struct Pipe {
    waiting: Vec<u8>,
    /// Bytes at the front of `waiting` that have been taken.
    taken: usize,
    /// The sender has ended its direction.
    ended: bool,
    /// The end was passed on.
    shut: bool,
}

impl Pipe {
    /// Bytes that may be pushed now; 0 while reading pauses or after the end.
    pub fn room(&self) -> usize {
        let waits = self.output().len();
        if self.ended || waits > LOW { 0 } else { CAPACITY - waits }
    }

    /// Bytes that could not be passed on at once. At most `room`.
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        if bytes.is_empty() {
            return;
        }
        self.waiting.drain(..self.taken);
        self.taken = 0;
        self.waiting.extend_from_slice(bytes);
    }

    /// The sender ended its direction: nothing more is pushed.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What is to be written next.
    pub fn output(&self) -> &[u8] {
        &self.waiting[self.taken..]
    }

    /// The first `n` bytes of `output` were taken.
    pub fn consumed(&mut self, n: usize) {
        self.taken += n;
        debug_assert!(self.taken <= self.waiting.len());
        if self.taken == self.waiting.len() {
            self.waiting = Vec::new();
            self.taken = 0;
        }
    }

    /// Whether the end is to be passed on now: everything before it was taken, and it was not passed on yet.
    pub fn wants_shutdown(&self) -> bool {
        self.ended && !self.shut && self.output().is_empty()
    }

    /// The end was passed on.
    pub fn shut(&mut self) {
        self.shut = true;
    }

    pub fn is_done(&self) -> bool {
        self.shut
    }
}

/// The endpoint of one opaque connection: chosen once, and again only while dials fail.
#[derive(Debug, Default)]
pub struct Choice {
    picked: Option<Picked>,
    tried: Vec<Rc<EndpointLoad>>,
}

impl Choice {
    /// The endpoint to dial next. None: the Service has none, or all of them were tried. An ejected endpoint whose
    /// back-off is over is as good as the others, for one connection: its dial is the probe.
    pub fn next(
        &mut self,
        service: &ServiceLoad,
        reach: &Reach,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Option<&Rc<EndpointLoad>> {
        self.picked = None;
        let picked = reach.pick(now, service, rng, |endpoint| self.standing(endpoint, reach, now))?;
        if self.standing(picked.endpoint(), reach, now) == Standing::Tried {
            return None;
        }
        reach.dialled(now, picked.endpoint());
        Some(self.picked.insert(picked).endpoint())
    }

    /// Whether there is a good endpoint besides the one chosen last.
    pub fn has_another(&self, service: &ServiceLoad, reach: &Reach, now: Instant) -> bool {
        let chosen = self.picked.as_ref().map(Picked::endpoint);
        service.lists(|endpoint| {
            chosen.is_none_or(|chosen| !Rc::ptr_eq(chosen, endpoint))
                && self.standing(endpoint, reach, now) == Standing::Good
        })
    }

    /// The dial of the endpoint chosen last succeeded; it counts as open until this is dropped.
    pub fn connected(&mut self, reach: &Reach) {
        self.tried = Vec::new();
        if let Some(picked) = &self.picked {
            reach.connected(picked.endpoint());
        }
    }

    /// The dial of the endpoint chosen last failed. `given_up`: it was only not waited for any longer, and is dialled
    /// again if all others fail.
    pub fn failed(&mut self, reach: &Reach, now: Instant, rng: &mut fastrand::Rng, given_up: bool) {
        if let Some(picked) = self.picked.take() {
            reach.failed(now, picked.endpoint(), rng);
            if !given_up {
                self.tried.push(Rc::clone(picked.endpoint()));
            }
        }
    }

    fn standing(&self, endpoint: &Rc<EndpointLoad>, reach: &Reach, now: Instant) -> Standing {
        if self.tried.iter().any(|tried| Rc::ptr_eq(tried, endpoint)) {
            Standing::Tried
        } else if reach.is_clear() || reach.is_due(now, endpoint) {
            Standing::Good
        } else {
            reach.standing(endpoint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{EndpointAddr, ServiceAddr};
    use crate::table::{Endpoint, Policy, Service, ServicePortName};
    use std::collections::BTreeSet;

    #[test]
    fn the_end_is_passed_on_after_the_last_byte_and_once() {
        let mut pipe = Pipe::default();
        pipe.push(b"ab");
        pipe.end();
        assert!(!pipe.wants_shutdown());
        pipe.consumed(1);
        assert!(!pipe.wants_shutdown());
        pipe.consumed(1);
        assert!(pipe.wants_shutdown());
        pipe.shut();
        assert!(!pipe.wants_shutdown() && pipe.is_done());
    }

    #[test]
    fn what_waits_is_bounded_and_reading_goes_on_when_half_has_left() {
        let mut pipe = Pipe::default();
        assert_eq!(pipe.room(), CAPACITY);
        pipe.push(&vec![7; CAPACITY]);
        assert_eq!(pipe.room(), 0);
        pipe.consumed(CAPACITY - LOW - 1);
        assert_eq!(pipe.room(), 0);
        pipe.consumed(1);
        assert_eq!(pipe.room(), CAPACITY - LOW);
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came_and_memory_goes_with_the_last() {
        let rng = &mut fastrand::Rng::with_seed(1);
        let (mut pipe, mut pushed, mut out) = (Pipe::default(), Vec::new(), Vec::new());
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..rng.usize(0..=pipe.room().min(3_000))).map(|_| rng.u8(..)).collect();
            pipe.push(&bytes);
            pushed.extend_from_slice(&bytes);
            let n = rng.usize(0..=pipe.output().len());
            out.extend_from_slice(&pipe.output()[..n]);
            pipe.consumed(n);
        }
        out.extend_from_slice(pipe.output());
        pipe.consumed(pipe.output().len());
        assert_eq!(out, pushed);
        assert_eq!(pipe.waiting.capacity(), 0);
    }

    fn service(endpoints: &[&str], rng: &mut fastrand::Rng) -> Rc<ServiceLoad> {
        let endpoint = |addr: &&str| Endpoint {
            addr: EndpointAddr::new(addr.parse().unwrap()),
            identity: (*addr).into(),
            place: None,
        };
        let listed = Service {
            id: 1,
            addr: ServiceAddr::new("10.96.0.1:1".parse().unwrap()),
            name: ServicePortName { namespace: "a".into(), service: "b".into(), port: "c".into() },
            balancing: Policy::RoundRobin.into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            scope: crate::table::Scope::All,
            usable: 0,
        };
        ServiceLoad::new(std::sync::Arc::new(listed), rng)
    }

    #[test]
    fn each_endpoint_is_tried_once_and_then_the_choice_is_exhausted() {
        let rng = &mut fastrand::Rng::with_seed(1);
        let service = service(&["10.1.0.1:1", "10.1.0.2:1", "10.1.0.3:1"], rng);
        let (mut choice, reach, now) = (Choice::default(), Reach::default(), Instant::now());
        let mut seen = BTreeSet::new();
        let mut last = None;
        while let Some(endpoint) = choice.next(&service, &reach, now, rng) {
            assert_eq!(endpoint.open(), 1);
            seen.insert(endpoint.addr());
            last = Some(Rc::clone(endpoint));
            choice.failed(&reach, now, rng, false);
        }
        assert_eq!(seen.len(), 3);
        assert_eq!(last.unwrap().open(), 0);
    }

    #[test]
    fn an_endpoint_that_was_given_up_is_dialled_again_when_all_others_have_failed() {
        let rng = &mut fastrand::Rng::with_seed(1);
        let service = service(&["10.1.0.1:1", "10.1.0.2:1"], rng);
        let (mut choice, reach, now) = (Choice::default(), Reach::default(), Instant::now());
        let slow = Rc::clone(choice.next(&service, &reach, now, rng).unwrap());
        assert!(choice.has_another(&service, &reach, now));
        choice.failed(&reach, now, rng, true);
        assert!(!Rc::ptr_eq(choice.next(&service, &reach, now, rng).unwrap(), &slow));
        assert!(!choice.has_another(&service, &reach, now), "the other one is ejected");
        choice.failed(&reach, now, rng, false);
        assert!(Rc::ptr_eq(choice.next(&service, &reach, now, rng).unwrap(), &slow));
        assert!(!choice.has_another(&service, &reach, now), "the other one was tried");
        choice.failed(&reach, now, rng, false);
        assert!(choice.next(&service, &reach, now, rng).is_none());
    }

    #[test]
    fn one_connection_probes_an_ejected_endpoint_whose_back_off_is_over() {
        let rng = &mut fastrand::Rng::with_seed(1);
        let service = service(&["10.1.0.1:1", "10.1.0.2:1"], rng);
        let (reach, begin) = (Reach::default(), Instant::now());
        let out = &service.endpoints()[0];
        reach.failed(begin, out, rng);
        let later = begin + std::time::Duration::from_secs(2);
        for (now, probes) in [(begin, 0), (later, 1)] {
            let mut on_it = 0;
            for _ in 0..10 {
                let mut choice = Choice::default();
                on_it += usize::from(Rc::ptr_eq(choice.next(&service, &reach, now, rng).unwrap(), out));
            }
            assert_eq!(on_it, probes);
        }
    }
}

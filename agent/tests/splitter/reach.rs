//! Promises about endpoints that cannot be dialled: they are passed over, probed in the background, and cost no call
//! more than the patience. Time is the world's own.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_agent::balance::{Cause, Change};
use sluice_agent::splitter::Limits;
use sluice_agent::table::{Endpoint, Service};

use crate::script::{Peer, Script, in_all_chunks};
use crate::wire::*;
use crate::world::{DIAL_TIMEOUT, endpoint, service};

const MILLISECOND: Duration = Duration::from_millis(1);
/// The most dials that back-offs of 0.75, 1.5, 3 … 24, 45 s allow in 120 s, the first one included.
const DIALS_IN_TWO_MINUTES: usize = 8;

/// A client that calls and servers that answer at once.
struct Traffic {
    s: Script,
    client: Peer,
    next: u32,
    /// Calls without an answer, and when they were made.
    open: BTreeMap<u32, Instant>,
    servers: Vec<(u8, Peer)>,
    /// Which endpoints accept and then say nothing.
    mute: Vec<u8>,
    /// How long each call took.
    waits: Vec<Duration>,
    /// Calls that each endpoint answered.
    served: BTreeMap<u8, usize>,
    /// Calls that the splitter answered with UNAVAILABLE.
    failed: usize,
}

impl Traffic {
    fn new(endpoints: u8) -> Self {
        Self::of(Script::with(Limits::default(), endpoints))
    }

    fn of(mut s: Script) -> Self {
        let client = s.client();
        Self {
            s,
            client,
            next: 1,
            open: BTreeMap::new(),
            servers: Vec::new(),
            mute: Vec::new(),
            waits: Vec::new(),
            served: BTreeMap::new(),
            failed: 0,
        }
    }

    fn call(&mut self) {
        self.client.put(headers(self.next, END, CALL));
        self.open.insert(self.next, self.s.world.now);
        self.next += 2;
        self.settle();
    }

    /// `calls` calls, each followed by `gap`.
    fn calls(&mut self, calls: usize, gap: Duration) {
        for _ in 0..calls {
            self.call();
            self.pass(gap);
        }
    }

    /// In steps of a millisecond while a call waits, so that it is seen how long.
    fn pass(&mut self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = if self.open.is_empty() { left } else { left.min(MILLISECOND) };
            self.s.world.pass_time(step);
            self.settle();
            left -= step;
        }
    }

    /// Until every request that reached a server is answered.
    fn settle(&mut self) {
        loop {
            self.s.run();
            while let Some((n, mut server)) = self.s.accept_any() {
                if !self.mute.contains(&n) {
                    server.settings(&[]);
                }
                self.servers.push((n, server));
            }
            let mut answered = false;
            for (n, server) in &mut self.servers {
                for got in server.got() {
                    if let Got::Headers { stream, .. } = got {
                        server.put([headers(stream, MORE, OK), headers(stream, END, DONE)].concat());
                        *self.served.entry(*n).or_default() += 1;
                        answered = true;
                    }
                }
            }
            for got in self.client.got() {
                let Got::Headers { stream, end: END, fields } = got else { continue };
                let made = self.open.remove(&stream).expect("one answer to each call");
                self.waits.push(self.s.world.now - made);
                self.failed += usize::from(fields.contains(&("grpc-status".into(), "14".into())));
                answered = true;
            }
            if !answered && !self.s.world.step() {
                return;
            }
        }
    }

    fn dials(&self, n: u8) -> usize {
        self.s.world.dialled.iter().filter(|(_, addr)| *addr == endpoint(n)).count()
    }

    fn ejected(&self) -> Vec<u8> {
        let ejected = self.s.world.reach.ejected();
        (1..=9).filter(|n| ejected.iter().any(|e| e.addr == endpoint(*n))).collect()
    }

    /// What happened since the last call: calls served by endpoint.
    fn shares(&mut self) -> Vec<(u8, usize)> {
        std::mem::take(&mut self.served).into_iter().collect()
    }

    fn all_were_served(&self) {
        assert_eq!((self.failed, self.open.len()), (0, 0));
    }

    fn waited(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.waits).into_iter().filter(|wait| *wait > Duration::ZERO).collect()
    }
}

fn patience() -> Duration {
    Limits::default().dial_patience
}

#[test]
fn a_black_hole_costs_few_calls_the_patience_and_gets_few_dials() {
    let mut t = Traffic::new(3);
    t.s.world.black_holes.insert(endpoint(2));
    t.calls(1_000, MILLISECOND);
    t.all_were_served();
    let waited = t.waited();
    // Those whose turn it was on the black hole until the patience was over: a third of 250.
    assert!(!waited.is_empty() && waited.len() <= 84, "{} calls waited", waited.len());
    assert!(waited.iter().all(|wait| *wait <= patience()), "{waited:?}");
    assert_eq!((t.dials(2), t.ejected()), (1, vec![]), "the dial is under way");

    t.calls(1_190, 100 * MILLISECOND);
    t.all_were_served();
    assert_eq!(t.waited(), [Duration::ZERO; 0], "probes are made in the background");
    assert_eq!(t.ejected(), [2]);
    assert!((5..=DIALS_IN_TWO_MINUTES).contains(&t.dials(2)), "{} dials in 120 s", t.dials(2));
    let shares = t.shares();
    assert_eq!(shares.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 3]);
    assert!(shares[0].1.abs_diff(shares[1].1) <= 150, "{shares:?}");
}

#[test]
fn a_call_that_waited_for_one_black_hole_goes_to_an_endpoint_that_has_answered_before() {
    let mut t = Traffic::new(1);
    t.call();
    t.s.world.black_holes.extend((2..=9).map(endpoint));
    t.s.list(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    t.calls(9, 300 * MILLISECOND);
    t.pass(patience());
    t.all_were_served();
    let waited = t.waited();
    assert!(!waited.is_empty() && waited.iter().all(|wait| *wait == patience()), "{waited:?}");
}

#[test]
fn an_endpoint_that_refuses_costs_no_call_anything_and_gets_few_dials() {
    let mut t = Traffic::new(3);
    t.s.refuse(2);
    t.calls(1_000, MILLISECOND);
    t.calls(1_190, 100 * MILLISECOND);
    t.all_were_served();
    assert_eq!((t.waited(), t.ejected()), (vec![], vec![2]));
    assert!((5..=DIALS_IN_TWO_MINUTES).contains(&t.dials(2)), "{} dials in 120 s", t.dials(2));
    // It had none of the calls, whatever was meant for it.
    let given = t.s.world.service.endpoints().into_iter().map(|it| (it.addr() == endpoint(2), it.given()));
    let (there, elsewhere): (Vec<_>, Vec<_>) = given.partition(|(there, _)| *there);
    assert_eq!((there, elsewhere.iter().map(|(_, calls)| calls).sum::<u64>()), (vec![(true, 0)], 2_190));
}

#[test]
fn an_endpoint_that_accepts_and_says_nothing_is_as_good_as_a_black_hole() {
    let mut t = Traffic::new(3);
    t.mute.push(2);
    t.calls(1_000, MILLISECOND);
    t.calls(1_190, 100 * MILLISECOND);
    t.all_were_served();
    let waited = t.waited();
    assert!(waited.len() <= 84 && waited.iter().all(|wait| *wait <= patience()), "{waited:?}");
    assert!((5..=DIALS_IN_TWO_MINUTES).contains(&t.dials(2)), "{} dials in 120 s", t.dials(2));
}

#[test]
fn an_endpoint_that_comes_back_gets_its_even_share_after_one_probe() {
    for (hole, seconds) in [(true, 20), (false, 20), (true, 300), (false, 300)] {
        let mut t = Traffic::new(3);
        if hole {
            t.s.world.black_holes.insert(endpoint(2));
        } else {
            t.s.refuse(2);
        }
        t.calls(seconds, 1_000 * MILLISECOND);
        t.s.world.fill_black_holes();
        t.s.world.accepted.entry(endpoint(2)).or_default();
        let before = t.dials(2);
        // As long as the longest back-off.
        t.calls(600, 100 * MILLISECOND);
        assert_eq!((t.dials(2) - before, t.ejected()), (1, vec![]));
        t.shares();
        t.calls(300, MILLISECOND);
        assert_eq!(t.shares(), [(1, 100), (2, 100), (3, 100)]);
        t.all_were_served();
        let told: Vec<_> = std::iter::from_fn(|| t.s.world.reach.poll_change()).collect();
        assert_eq!(
            told,
            [Change::Ejected(endpoint(2), Cause::Unreachable), Change::Back(endpoint(2), Cause::Unreachable)]
        );
    }
}

#[test]
fn what_is_forbidden_to_one_pod_is_good_for_another() {
    let mut forbidden = Traffic::new(3);
    let mut free = Script::with(Limits::default(), 3);
    free.world.service = Rc::clone(&forbidden.s.world.service);
    let mut free = Traffic::of(free);
    forbidden.s.world.black_holes.insert(endpoint(2));
    for _ in 0..2_000 {
        forbidden.calls(1, 5 * MILLISECOND);
        free.calls(1, 5 * MILLISECOND);
    }
    forbidden.all_were_served();
    free.all_were_served();
    assert_eq!((forbidden.ejected(), free.ejected()), (vec![2], vec![]));
    assert_eq!(free.waited(), [Duration::ZERO; 0]);
    assert_eq!((free.dials(1), free.dials(2), free.dials(3)), (1, 1, 1));
    assert!(free.shares().iter().all(|(_, calls)| calls.abs_diff(667) <= 1));
    let shares = forbidden.shares();
    assert!(shares.len() == 2 && shares.iter().all(|(n, calls)| *n != 2 && calls.abs_diff(1_000) < 100), "{shares:?}");
}

#[test]
fn no_dial_is_made_without_a_call_and_the_call_that_causes_one_does_not_wait_for_it() {
    let mut t = Traffic::new(2);
    t.s.world.black_holes.insert(endpoint(2));
    t.calls(2, MILLISECOND);
    t.pass(3_600_000 * MILLISECOND);
    assert_eq!((t.dials(2), t.ejected()), (1, vec![2]));
    t.waited();
    t.call();
    assert_eq!((t.dials(2), t.waited()), (2, vec![]));
    t.calls(5, MILLISECOND);
    assert_eq!((t.dials(2), t.waited()), (2, vec![]));
    t.all_were_served();
}

#[test]
fn while_all_endpoints_refuse_each_call_is_told_at_once_and_the_first_that_is_back_serves_the_next() {
    let mut t = Traffic::new(3);
    (1..=3).for_each(|n| t.s.refuse(n));
    t.calls(200, 1_000 * MILLISECOND);
    assert_eq!((t.failed, t.waited(), t.ejected()), (200, vec![], vec![1, 2, 3]));
    t.s.world.accepted.entry(endpoint(2)).or_default();
    t.call();
    assert_eq!((t.failed, t.shares(), t.ejected()), (200, vec![(2, 1)], vec![1, 3]));
}

#[test]
fn while_all_endpoints_are_black_holes_calls_wait_and_the_first_that_answers_gets_them() {
    let mut t = Traffic::new(3);
    t.s.world.dials_wait = true;
    t.calls(300, 5 * MILLISECOND);
    assert_eq!((t.waits.len(), t.failed), (0, 0), "all wait");
    assert_eq!((t.dials(1), t.dials(2), t.dials(3)), (1, 1, 1));
    t.s.world.dials_wait = false;
    t.s.world.answer_dial_of(endpoint(3));
    t.settle();
    assert_eq!(t.shares(), [(3, 300)]);
    t.all_were_served();
    // The others are slow until they answer too.
    t.calls(10, MILLISECOND);
    assert_eq!(t.shares(), [(3, 10)]);
    t.s.world.answer_dials();
    t.settle();
    t.calls(30, MILLISECOND);
    assert_eq!(t.shares(), [(1, 10), (2, 10), (3, 10)]);
}

#[test]
fn a_new_endpoint_takes_what_waits_for_those_that_do_not_answer() {
    let mut t = Traffic::new(1);
    t.s.world.black_holes.insert(endpoint(1));
    t.calls(10, 100 * MILLISECOND);
    assert_eq!(t.waits.len(), 0);
    t.s.list(&[1, 2]);
    t.settle();
    assert_eq!(t.shares(), [(2, 10)]);
    t.all_were_served();
}

#[test]
fn a_call_waits_for_the_only_endpoint_as_long_as_it_takes() {
    let mut t = Traffic::new(1);
    t.s.world.dials_wait = true;
    t.call();
    t.pass(DIAL_TIMEOUT - MILLISECOND);
    assert_eq!((t.waits.len(), t.dials(1)), (0, 1));
    t.s.world.answer_dials();
    t.settle();
    t.all_were_served();
}

#[test]
fn a_call_that_must_wait_tries_ejected_endpoints_too() {
    let mut t = Traffic::new(3);
    t.s.refuse(1);
    t.s.refuse(2);
    t.s.refuse(3);
    t.call();
    assert_eq!((t.failed, t.ejected()), (1, vec![1, 2, 3]));
    // Of three in back-off one has become a black hole, one goes on to refuse, one is back.
    t.s.world.black_holes.insert(endpoint(1));
    t.s.world.accepted.entry(endpoint(3)).or_default();
    t.calls(3, 10 * MILLISECOND);
    t.pass(patience());
    assert_eq!((t.failed, t.open.len()), (1, 0));
    assert!(t.waited().iter().all(|wait| *wait <= patience()));
    assert_eq!(t.shares(), [(3, 3)]);
}

#[test]
fn an_endpoint_that_left_while_it_was_ejected_is_fresh_when_another_pod_has_its_address() {
    let mut t = Traffic::new(3);
    t.s.refuse(2);
    t.calls(60, 1_000 * MILLISECOND);
    assert_eq!(t.ejected(), [2]);
    let mut listed: Service = (*service(&[endpoint(1), endpoint(2), endpoint(3)])).clone();
    let renamed = |e: &Endpoint| {
        let identity: Arc<str> = if e.addr == endpoint(2) { "another pod".into() } else { Arc::clone(&e.identity) };
        Endpoint { identity, ..e.clone() }
    };
    listed.endpoints = listed.endpoints.iter().map(renamed).collect();
    t.s.world.accepted.entry(endpoint(2)).or_default();
    t.s.world.service.update(std::time::Instant::now(), Arc::new(listed));
    t.s.world.splitter.handle_endpoints_changed(t.s.world.now);
    t.settle();
    assert!(t.ejected().is_empty());
    t.shares();
    t.calls(30, MILLISECOND);
    assert_eq!(t.shares(), [(1, 10), (2, 10), (3, 10)]);
    t.all_were_served();
}

#[test]
fn a_request_that_moves_arrives_whole_and_once() {
    in_all_chunks(2, |mut s| {
        let mut client = s.client();
        s.world.black_holes.extend([endpoint(1), endpoint(2)]);
        s.send(&client, [headers(1, MORE, CALL), data(1, MORE, b"some")].concat());
        let (_, first) = s.world.dialled[0];
        s.world.black_holes.retain(|hole| *hole == first);
        s.pass(patience());
        let (n, mut server) = s.server_with(&[]);
        assert_ne!(endpoint(n), first);
        assert_eq!(server.got(), [heard(1, MORE, CALL), bytes(1, MORE, b"some")]);
        s.send(&client, data(1, END, b"thing"));
        assert_eq!(server.got(), [bytes(1, END, b"thing")]);
        s.pass(DIAL_TIMEOUT);
        assert_eq!((server.got(), client.got()), (vec![], vec![]));
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn where_an_endpoint_s_next_connection_is_slow_a_place_on_the_first_is_taken() {
    let mut s = Script::with(Limits::default(), 1);
    let client = s.client();
    s.send(&client, headers(1, END, CALL));
    let (_, mut server) = s.server_with(&[(MAX_CONCURRENT_STREAMS, 1)]);
    s.world.black_holes.insert(endpoint(1));
    s.send(&client, headers(3, END, CALL));
    s.pass(patience());
    assert_eq!((server.got(), s.world.dialled.len()), (vec![heard(1, END, CALL)], 2));
    s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
    assert_eq!(server.got(), [heard(3, END, CALL)]);
}

//! Promises about endpoints whose calls fail: what speaks against one, how long it gets no calls, and which calls are sent
//! a second time. Time is the world's own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script, and};
use crate::wire::*;

const SECOND: Duration = Duration::from_secs(1);

/// How an endpoint ends calls.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Status(&'static str),
    /// Trailers-Only.
    AtOnce(&'static str),
    Reset(u32),
    /// The connection, with all its calls.
    Breaks,
    Never,
}

struct Traffic {
    s: Script,
    client: Peer,
    next: u32,
    servers: Vec<(u8, Peer)>,
    /// Those that do not answer with status 0.
    ends: BTreeMap<u8, Ends>,
    /// Requests that each endpoint got.
    asked: BTreeMap<u8, usize>,
    failed: usize,
}

impl Traffic {
    fn new(endpoints: u8, ends: Ends) -> Self {
        let mut s = Script::with(Limits::default(), endpoints);
        let client = s.client();
        let ends = BTreeMap::from([(1, ends)]);
        Self { s, client, next: 1, servers: Vec::new(), ends, asked: BTreeMap::new(), failed: 0 }
    }

    /// `calls` calls, one after the other, over `time`. How many each endpoint got, and how many failed.
    fn calls(&mut self, calls: u32, time: Duration) -> (BTreeMap<u8, usize>, usize) {
        (self.asked, self.failed) = (BTreeMap::new(), 0);
        for _ in 0..calls {
            self.s.send(&self.client, headers(self.next, END, CALL));
            self.next += 2;
            self.settle();
            self.s.world.pass_time(time / calls);
            self.settle();
        }
        (self.asked.clone(), self.failed)
    }

    fn settle(&mut self) {
        loop {
            self.s.run();
            while let Some((n, mut server)) = self.s.accept_any() {
                server.settings(&[]);
                self.servers.push((n, server));
            }
            let mut went_on = false;
            self.servers.retain_mut(|(n, server)| {
                for got in server.got() {
                    let stream = match got {
                        Got::Headers { stream, .. } => stream,
                        Got::Closed => return false,
                        _ => continue,
                    };
                    *self.asked.entry(*n).or_default() += 1;
                    went_on = true;
                    let whole =
                        |status| [headers(stream, MORE, OK), headers(stream, END, &[("grpc-status", status)])].concat();
                    match self.ends.get(n) {
                        None => server.put(whole("0")),
                        Some(Ends::Status(status)) => server.put(whole(status)),
                        Some(Ends::AtOnce(status)) => {
                            server.put(headers(stream, END, &and(OK, &[("grpc-status", status)])));
                        }
                        Some(Ends::Reset(code)) => server.put(reset(stream, *code)),
                        Some(Ends::Breaks) => return false,
                        Some(Ends::Never) => {}
                    }
                }
                true
            });
            for got in self.client.got() {
                match got {
                    Got::Headers { end: END, fields, .. } => {
                        let ok = fields.iter().any(|(name, value)| name == "grpc-status" && value == "0");
                        self.failed += usize::from(!ok);
                    }
                    Got::Reset { .. } => self.failed += 1,
                    _ => {}
                }
            }
            if !went_on && !self.s.world.step() {
                return;
            }
        }
    }
}

#[test]
fn an_endpoint_that_fails_every_call_gets_a_trial_now_and_then_and_is_back_when_one_succeeds() {
    for ends in [Ends::Status("14"), Ends::AtOnce("14"), Ends::Reset(INTERNAL_ERROR), Ends::Status("13"), Ends::Breaks]
    {
        let mut t = Traffic::new(5, ends);
        // What may be the call's own fault shows only in a rate.
        let until_found = if matches!(ends, Ends::Status("14") | Ends::AtOnce(_) | Ends::Breaks) { 5 } else { 25 };
        let (_, failed) = t.calls(600, 60 * SECOND);
        assert!(failed >= 5 && failed <= until_found + 12, "{ends:?}: {failed} of 600");
        t.ends.clear();
        t.calls(100, 10 * SECOND);
        let (asked, failed) = t.calls(100, SECOND);
        assert_eq!((asked[&1], failed), (20, 0), "{ends:?}: it has its share again");
    }
}

#[test]
fn what_the_application_says_of_a_call_speaks_against_no_endpoint() {
    for status in ["3", "5", "6", "7", "8", "9", "10", "11", "12", "16", "1"] {
        let mut t = Traffic::new(5, Ends::Status(status));
        let (asked, failed) = t.calls(500, 5 * SECOND);
        assert_eq!((asked[&1], failed), (100, 100), "{status}");
    }
}

#[test]
fn an_error_that_all_endpoints_make_ejects_none() {
    let mut t = Traffic::new(5, Ends::Status("13"));
    t.ends = (1..=5).map(|n| (n, Ends::Status("13"))).collect();
    let (asked, _) = t.calls(500, 5 * SECOND);
    assert!(asked.values().all(|asked| (50..=150).contains(asked)), "{asked:?}");
    assert_eq!(asked.len(), 5);
}

#[test]
fn half_of_the_endpoints_at_most_are_ejected_and_the_only_one_never() {
    let mut t = Traffic::new(6, Ends::Status("14"));
    t.ends = (1..=6).map(|n| (n, Ends::Status("14"))).collect();
    t.calls(200, 2 * SECOND);
    let (asked, _) = t.calls(300, Duration::from_millis(300));
    let still: Vec<_> = asked.values().filter(|asked| **asked > 20).collect();
    assert_eq!(still.len(), 3, "{asked:?}");
    let mut alone = Traffic::new(1, Ends::Status("14"));
    let (asked, _) = alone.calls(100, SECOND);
    assert_eq!(asked[&1], 100);
}

#[test]
fn an_endpoint_that_says_nothing_until_the_deadline_fails() {
    let mut t = Traffic::new(5, Ends::Never);
    let call = and(CALL, &[("grpc-timeout", "100m")]);
    for _ in 0..300 {
        let stream = t.next;
        t.next += 2;
        t.s.send(&t.client, headers(stream, END, &call));
        t.settle();
        t.s.world.pass_time(Duration::from_millis(100));
        // Of a call that was answered it is not heard any more.
        t.s.send(&t.client, reset(stream, CANCEL));
        t.settle();
    }
    assert!(t.asked[&1] < 40, "{:?}", t.asked);
}

#[test]
fn calls_that_a_service_refuses_are_sent_again_within_its_budget() {
    let mut t = Traffic::new(4, Ends::Reset(REFUSED_STREAM));
    t.ends = (1..=4).map(|n| (n, Ends::Reset(REFUSED_STREAM))).collect();
    let (asked, failed) = t.calls(2_000, 2 * SECOND);
    let sent: usize = asked.values().sum();
    assert_eq!(failed, 2_000);
    // Each call, one in five once more, ten a second, and what was saved.
    assert!((2_300..=2_560).contains(&sent), "{sent}");
    let stats = t.s.world.stats();
    assert!(stats.replays_denied > 1_000, "{stats:?}");
}

#[test]
fn a_pod_uses_a_part_of_a_large_service_that_moves_on() {
    let mut t = Traffic::new(250, Ends::Status("0"));
    let (asked, failed) = t.calls(1_280, Duration::from_millis(900));
    assert_eq!((asked.len(), failed), (128, 0), "{asked:?} {:?}", t.s.world.dialled.len());
    assert!(asked.values().all(|asked| *asked == 10), "{asked:?}");
    let first: BTreeSet<u8> = asked.into_keys().collect();
    let (asked, _) = t.calls(2_560, 60 * SECOND);
    let used: BTreeSet<u8> = asked.into_keys().collect();
    assert!((183..=190).contains(&used.len()), "{}", used.len());
    assert!(first.difference(&used).count() <= 5, "a round takes three seconds");
    // Connections of endpoints that were left are closed.
    assert!((126..=131).contains(&t.servers.len()), "{}", t.servers.len());
}

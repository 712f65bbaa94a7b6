//! Whose turn it is. In: endpoints with what speaks against each, their weights and loads. Out: the next one.
//!
//! Endpoints stand in a ring, and each visit gives one as much of a turn as it has weight: a call goes to the next that
//! has a whole turn. So equal endpoints get equal shares, call by call, whatever the policy.
//!
//! Under all policies but round robin an endpoint with more open calls than another drawn by chance lets that one go first,
//! and is owed the turn. Once it is owed many, only if it has more open than chance explains: who takes half as long again
//! has half as many again open, and keeps its even share. And what it is owed beyond a bound is lost: one that was stopped for
//! a moment catches up, one that stays behind gets less.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{EndpointLoad, Standing};

/// How many turns all endpoints of a Service together may be ahead or behind whatever they have open.
const AHEAD: f32 = 60.0;
/// And so many times that if they have more open than they should, or as many as come in a pause.
const AHEAD_IN_NEED: f32 = 8.0;
/// Machines with more to do than they can stop a process for so long. Whoever has answered since is not stopped, and keeps its
/// turn with as many calls open as come meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// After so long without a call nobody is owed anything: there is nothing left to even out.
const IDLE: Duration = Duration::from_millis(100);
/// Visits for one call before it goes to whoever is nearest to a turn.
const VISITS: usize = 32;
/// Turns taken in one visit by an endpoint that is owed some.
const IN_A_ROW: u8 = 2;
/// Calls that an equal endpoint has more of by chance, or for taking half as long again, on a machine with more to do than it
/// can: eight, and eight times what the other has.
const BY_CHANCE: (f32, f32) = (8.0, 8.0);
/// Endpoints whose latencies differ by more doublings are not equal.
const ALIKE: f32 = 2.5;
/// Tries to draw an endpoint by chance before all are looked at: most are good, nearly always.
const DRAWS: usize = 4;

/// Where the next turn is. Visits are of `start..start + len` in the ring.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) start: usize,
    at: usize,
    /// The visit at `at` has begun, and so many calls were given.
    given: Option<u8>,
    last: Option<Instant>,
    /// Calls since `counted_from`, and how many came in the `PAUSE` before.
    count: u32,
    before: u32,
    counted_from: Option<Instant>,
}

impl Turns {
    /// `at` by chance, so that many workers do not all begin at the same endpoint.
    pub(super) fn beginning(start: usize, at: usize) -> Self {
        Self { start, at, ..Self::default() }
    }

    fn advance(&mut self) {
        self.at = self.at.wrapping_add(1);
        self.given = None;
    }

    /// Before a call: if it is the first for a while, nobody is owed anything but the part of a turn that it has, so that who
    /// gets few gets them in the end.
    pub(super) fn begin(&mut self, now: Instant, endpoints: &[Rc<EndpointLoad>], len: usize) {
        self.count = self.count.saturating_add(1);
        if self.last == Some(now) {
            return;
        }
        let from = *self.counted_from.get_or_insert(now);
        if now.saturating_duration_since(from) >= PAUSE {
            (self.before, self.count, self.counted_from) = (self.count, 0, Some(now));
        }
        if self.last.replace(now).is_some_and(|last| now.saturating_duration_since(last) > IDLE) {
            let (before, from) = endpoints.split_at(self.start % endpoints.len().max(1));
            for endpoint in from.iter().chain(before).take(len) {
                endpoint.credit.set(endpoint.credit.get().clamp(0.0, 0.999));
            }
        }
    }

    /// The endpoint for one more call, among `len` of them from `start` on. None is an answer only for an empty ring.
    pub(super) fn next(
        &mut self,
        endpoints: &[Rc<EndpointLoad>],
        len: usize,
        rng: &mut fastrand::Rng,
        by_load: bool,
        weight: impl Fn(&EndpointLoad) -> f32,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> Option<usize> {
        if len == 0 {
            return None;
        }
        let ahead = (AHEAD / len as f32).max(2.0);
        let in_need = ahead * AHEAD_IN_NEED;
        let recent = self.count.max(self.before) as f32 / len as f32;
        let ring =
            Ring { endpoints, start: self.start, len, ahead, in_need: in_need.max(recent), recent, now: self.last };
        let good = |i: usize| standing(&endpoints[i]) == Standing::Good;
        let mut nearest: Option<(f32, usize)> = None;
        for _ in 0..VISITS {
            let i = ring.index(self.at);
            let endpoint = &endpoints[i];
            let given = match self.given {
                Some(given) => given,
                None => {
                    let weight = weight(endpoint);
                    let most = 1.0 + weight * ring.in_need;
                    endpoint.credit.set((endpoint.credit.get() + weight).min(most));
                    *self.given.insert(0)
                }
            };
            let credit = endpoint.credit.get();
            if credit >= 1.0 && given < IN_A_ROW {
                if !good(i) {
                    // It would be owed the turn only for the sake of this caller; others may go there. Chance takes its
                    // place: the next one in turn would get twice its share, and callers in step would follow each other.
                    endpoint.credit.set(credit - 1.0);
                    self.advance();
                    return Some(ring.by_chance(rng, weight, standing));
                }
                if by_load && let Some(rival) = ring.less_loaded(self.at, rng, &weight, good) {
                    self.advance();
                    return Some(rival);
                }
                endpoint.credit.set(credit - 1.0);
                self.given = Some(given + 1);
                if credit < 2.0 {
                    self.advance();
                }
                return Some(i);
            }
            if nearest.is_none_or(|(most, _)| credit > most) && good(i) {
                nearest = Some((credit, i));
            }
            self.advance();
        }
        let Some((credit, i)) = nearest else { return Some(ring.by_chance(rng, weight, standing)) };
        endpoints[i].credit.set(credit - 1.0);
        Some(i)
    }
}

struct Ring<'a> {
    endpoints: &'a [Rc<EndpointLoad>],
    start: usize,
    len: usize,
    /// Turns that one may be ahead or behind.
    ahead: f32,
    /// The same in need.
    in_need: f32,
    /// Calls that each gets in a `PAUSE`.
    recent: f32,
    now: Option<Instant>,
}

impl Ring<'_> {
    fn index(&self, at: usize) -> usize {
        (self.start % self.endpoints.len() + at % self.len) % self.endpoints.len()
    }

    /// One by chance that has less to do than the one at `at`, whose turn it is. It pays for the turn, unless that one is owed
    /// so many that it loses it.
    fn less_loaded(
        &self,
        at: usize,
        rng: &mut fastrand::Rng,
        weight: impl Fn(&EndpointLoad) -> f32,
        good: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.len < 2 {
            return None;
        }
        let rival = self.index(at % self.len + 1 + rng.usize(..self.len - 1));
        let (endpoint, other) = (&self.endpoints[self.index(at)], &self.endpoints[rival]);
        // One that gets fewer turns has fewer calls open, and is no better for that.
        let (load, others) = ((endpoint.open() + 1) as f32 * weight(other), (other.open() + 1) as f32);
        if load <= others || !good(rival) {
            return None;
        }
        let owed = (endpoint.credit.get() - 1.0).max(-other.credit.get());
        if owed > self.ahead && load <= self.in_turn(endpoint, other) {
            return None;
        }
        if endpoint.credit.get() < 1.0 + weight(endpoint) * self.in_need {
            let pays = other.credit.get() - 1.0;
            if pays < -self.in_need {
                return None;
            }
            other.credit.set(pays);
        }
        Some(rival)
    }

    /// One by chance among those against which the least speaks, the slow ones less often.
    fn by_chance(
        &self,
        rng: &mut fastrand::Rng,
        weight: impl Fn(&EndpointLoad) -> f32,
        standing: impl Fn(&Rc<EndpointLoad>) -> Standing,
    ) -> usize {
        for _ in 0..DRAWS {
            let i = self.index(rng.usize(..self.len));
            let endpoint = &self.endpoints[i];
            if standing(endpoint) == Standing::Good && rng.f32() < weight(endpoint) {
                return i;
            }
        }
        let (mut chosen, mut least, mut equals) = (self.index(0), Standing::Tried, 0.0);
        for i in (0..self.len).map(|at| self.index(at)) {
            let (standing, weight) = (standing(&self.endpoints[i]), weight(&self.endpoints[i]));
            if standing < least {
                (chosen, least, equals) = (i, standing, weight);
            } else if standing == least {
                equals += weight;
                if rng.f32() * equals < weight {
                    chosen = i;
                }
            }
        }
        chosen
    }

    /// With so many calls open an endpoint stays in turn beside the other: as many as may be by chance, or as have come while it
    /// was stopped, unless that lasts.
    fn in_turn(&self, endpoint: &EndpointLoad, other: &EndpointLoad) -> f32 {
        let others = (other.open() + 1) as f32;
        let slower = endpoint.latency.mean().zip(other.latency.mean()).map_or(0.0, |(own, others)| own - others);
        if slower > ALIKE {
            return others;
        }
        let by_chance = BY_CHANCE.0 + BY_CHANCE.1 * others;
        match endpoint.latency.last().zip(self.now) {
            Some((last, now)) if now.saturating_duration_since(last) < PAUSE => by_chance.max(self.recent),
            _ => by_chance,
        }
    }
}

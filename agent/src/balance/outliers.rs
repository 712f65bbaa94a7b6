//! Which endpoints one pod keeps away from because its calls fail there: outlier ejection.
//!
//! In: how the pod's calls ended, with `now` and chance. Out: who is ejected until when, and who is to be tried with one
//! call. Evidence is the pod's own: calls of another pod, which may ask for failures, eject nobody here. But what other
//! pods keep away from needs less of it. Nothing is kept of endpoints where no call fails.

use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::{EndpointLoad, Outcome, ServiceLoad};
use crate::table::Ejection;

/// Counts of calls are halved after this long.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer calls than this say nothing of a rate.
const CALLS: u32 = 20;
/// Who came back a shorter time ago than this is ejected again at its first failure, and for longer.
const PROBATION: Duration = Duration::from_secs(30);
/// A trial of which nothing was heard for this long may be made again: its call may be a stream that lasts for days.
const TRIAL_AT_MOST: Duration = Duration::from_secs(5);

/// Of one pod.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    records: FxHashMap<*const EndpointLoad, Record>,
    ejected: usize,
    /// The earliest end of a back-off.
    next_trial: Option<Instant>,
}

#[derive(Debug)]
struct Record {
    endpoint: Rc<EndpointLoad>,
    in_a_row: u32,
    /// Since `window`, with half of what was before.
    calls: u32,
    failures: u32,
    window: Instant,
    ejected: Option<Away>,
    /// Ejections, each less than `PROBATION` after the one before.
    times: u32,
    back: Option<Instant>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    until: Instant,
    /// When a call was sent to see whether it is well.
    tried: Option<Instant>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ejected,
    Back,
}

impl Outliers {
    pub(super) fn is_clear(&self) -> bool {
        self.ejected == 0
    }

    /// Until when an endpoint is ejected, however long ago that was.
    pub(super) fn until(&self, endpoint: &Rc<EndpointLoad>) -> Option<Instant> {
        self.records.get(&Rc::as_ptr(endpoint))?.ejected.as_ref().map(|away| away.until)
    }

    /// A call that was sent at `sent` has ended. `others`: endpoints of the Service that are good besides this one.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        service: &ServiceLoad,
        endpoint: &Rc<EndpointLoad>,
        (sent, outcome): (Instant, Outcome),
        others: impl FnOnce(&Self) -> usize,
        rng: &mut fastrand::Rng,
    ) -> Option<Verdict> {
        let key = Rc::as_ptr(endpoint);
        if outcome.is_failure() && endpoint.is_current() {
            self.records.entry(key).or_insert_with(|| Record::new(now, endpoint));
        } else if self.records.is_empty() {
            return None;
        }
        let record = self.records.get_mut(&key)?;
        record.count(now, outcome);
        let settings = service.balancing().ejection;
        if let Some(away) = &mut record.ejected {
            // Calls that were under way when it was ejected say nothing new. If ejection is off now, the next call takes it back.
            if settings.is_off() || away.tried.is_none_or(|tried| sent < tried) {
                return None;
            }
            away.tried = None;
            match outcome {
                Outcome::Unknown => {}
                Outcome::Answered => {
                    record.come_back(now);
                    self.ejected -= 1;
                    self.look_for_trials();
                    return Some(Verdict::Back);
                }
                Outcome::Down | Outcome::Error => {
                    record.times += 1;
                    away.until = now + back_off(&settings, record.times, rng);
                    self.look_for_trials();
                }
            }
            return None;
        }
        if !outcome.is_failure() {
            if record.is_over(now) {
                self.records.remove(&key);
            }
            return None;
        }
        let enough = {
            let record = &self.records[&key];
            record.failed_in_a_row(now, &settings) || self.fails_more_than_others(record, &settings, service.len())
        };
        if !enough || !self.may_eject(&settings, service) || others(self) == 0 {
            return None;
        }
        let record = self.records.get_mut(&key)?;
        record.times += 1;
        record.ejected = Some(Away { since: now, until: now + back_off(&settings, record.times, rng), tried: None });
        endpoint.suspected.set(endpoint.suspected.get() + 1);
        self.ejected += 1;
        self.look_for_trials();
        Some(Verdict::Ejected)
    }

    /// Takes back, one by one, what was ejected before the Service switched ejection off.
    pub(super) fn amnesty(&mut self, now: Instant, service: &ServiceLoad) -> Option<Rc<EndpointLoad>> {
        if self.ejected == 0 || !service.balancing().ejection.is_off() {
            return None;
        }
        let of_service = |record: &&mut Record| record.endpoint.service == service.addr() && record.ejected.is_some();
        let record = self.records.values_mut().find(of_service)?;
        record.come_back(now);
        let endpoint = Rc::clone(&record.endpoint);
        self.ejected -= 1;
        self.look_for_trials();
        Some(endpoint)
    }

    /// An ejected endpoint of this Service that has backed off, for one call.
    pub(super) fn trial(&mut self, now: Instant, service: &ServiceLoad) -> Option<Rc<EndpointLoad>> {
        if self.next_trial.is_none_or(|at| now < at) {
            return None;
        }
        let due = |away: &Away| away.until <= now && away.tried.is_none_or(|at| at + TRIAL_AT_MOST <= now);
        let of_service = self.records.values_mut().filter(|record| record.endpoint.service == service.addr());
        let ripe = of_service.filter(|record| record.ejected.as_ref().is_some_and(due));
        let first = ripe.min_by_key(|record| (record.ejected.as_ref().map(|away| away.until), record.endpoint.addr))?;
        first.ejected.as_mut()?.tried = Some(now);
        Some(Rc::clone(&first.endpoint))
    }

    /// Forgets endpoints that have left the table.
    pub(super) fn prune(&mut self) {
        self.records.retain(|_, record| {
            if !record.endpoint.is_current() && record.ejected.is_some() {
                self.ejected -= 1;
            }
            record.endpoint.is_current()
        });
        self.look_for_trials();
    }

    /// Those ejected, with how often in a row, since when this time, and until when.
    pub(super) fn list(&self) -> impl Iterator<Item = (&Rc<EndpointLoad>, u32, Instant, Instant)> {
        let ejected = self.records.values().filter_map(|record| Some((record, record.ejected.as_ref()?)));
        ejected.map(|(record, away)| (&record.endpoint, record.times, away.since, away.until))
    }

    fn look_for_trials(&mut self) {
        let away = self.records.values().filter_map(|record| record.ejected.as_ref());
        self.next_trial = away.map(|away| away.until).min();
    }

    /// The cap: so many percent of the Service's endpoints, but one always.
    fn may_eject(&self, settings: &Ejection, service: &ServiceLoad) -> bool {
        let of_service = |record: &&Record| record.endpoint.service == service.addr() && record.ejected.is_some();
        let ejected = self.records.values().filter(of_service).count();
        ejected < (service.len() * usize::from(settings.most) / 100).max(1)
    }

    fn fails_more_than_others(&self, record: &Record, settings: &Ejection, endpoints: usize) -> bool {
        if settings.rate == 0 || record.calls < CALLS {
            return false;
        }
        let of_service = |other: &&Record| {
            other.endpoint.service == record.endpoint.service && !Rc::ptr_eq(&other.endpoint, &record.endpoint)
        };
        let sum: f32 = self.records.values().filter(of_service).map(Record::rate).sum();
        let others = sum / endpoints.saturating_sub(1).max(1) as f32;
        record.rate() - others >= f32::from(settings.rate) / 100.0
    }
}

impl Drop for Outliers {
    fn drop(&mut self) {
        for record in self.records.values_mut().filter(|record| record.ejected.is_some()) {
            record.endpoint.suspected.set(record.endpoint.suspected.get() - 1);
        }
    }
}

impl Record {
    fn new(now: Instant, endpoint: &Rc<EndpointLoad>) -> Self {
        let endpoint = Rc::clone(endpoint);
        Self { endpoint, in_a_row: 0, calls: 0, failures: 0, window: now, ejected: None, times: 0, back: None }
    }

    fn count(&mut self, now: Instant, outcome: Outcome) {
        if now.saturating_duration_since(self.window) >= WINDOW {
            (self.calls, self.failures, self.window) = (self.calls / 2, self.failures / 2, now);
        }
        match outcome {
            Outcome::Unknown => return,
            Outcome::Answered => self.in_a_row = 0,
            Outcome::Down => self.in_a_row += 1,
            Outcome::Error => {}
        }
        self.calls += 1;
        self.failures += u32::from(outcome.is_failure());
    }

    fn rate(&self) -> f32 {
        self.failures as f32 / self.calls.max(1) as f32
    }

    fn failed_in_a_row(&self, now: Instant, settings: &Ejection) -> bool {
        let recently = self.back.is_some_and(|back| now.saturating_duration_since(back) < PROBATION);
        let enough = if recently || self.endpoint.suspected.get() > 0 { 1 } else { settings.failures };
        settings.failures > 0 && self.in_a_row >= enough
    }

    fn come_back(&mut self, now: Instant) {
        self.ejected = None;
        self.endpoint.suspected.set(self.endpoint.suspected.get() - 1);
        (self.in_a_row, self.calls, self.failures, self.window, self.back) = (0, 0, 0, now, Some(now));
    }

    /// Nothing in it would matter any more.
    fn is_over(&self, now: Instant) -> bool {
        let on_probation = self.back.is_some_and(|back| now.saturating_duration_since(back) < PROBATION);
        self.failures == 0 && self.in_a_row == 0 && !on_probation
    }
}

/// Doubles each time. A quarter of it is chance, so that the pods of many nodes do not all try an endpoint at once.
fn back_off(settings: &Ejection, times: u32, rng: &mut fastrand::Rng) -> Duration {
    let doubled = settings.back_off.saturating_mul(1 << (times - 1).min(16));
    doubled.min(settings.longest).mul_f64(0.75 + rng.f64() / 4.0)
}

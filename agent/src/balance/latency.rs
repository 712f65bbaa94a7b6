//! How fast an endpoint answers, and how often it fails. In: latencies, one by one, with the time. Out: a mean that one
//! outlier does not move and that forgets by itself. It judges nobody: who is slow depends on the others.
//!
//! All is in doublings (the logarithm to base 2 of microseconds): calls of one Service differ by factors, and a pause of
//! the machine is a thousand times a usual call. A mean of logarithms moves by a tenth for that, a mean by a hundredfold.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A sample's weight: the mean is about the last thirty,
const USUAL: f32 = 1.0 / 16.0;
/// or, where they come faster, about this time: what many calls waited for together is one event.
const AT_LEAST: Duration = Duration::from_millis(500);
/// And its greatest: where samples are rare, each counts more, but never all.
const MOST: f32 = 0.5;
/// Fewer samples differ by chance as much as slow endpoints do from others.
const ENOUGH: u32 = 24;
/// An endpoint that fails every call counts as one that takes eight times as long.
const FAILURE: f32 = 3.0;
/// What is this old counts for little.
const MEMORY: Duration = Duration::from_secs(4);

/// Of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Latency {
    mean: Cell<f32>,
    /// How far samples are from the mean, on average.
    deviation: Cell<f32>,
    /// Calls that were open besides, in doublings, on average.
    queue: Cell<f32>,
    /// Share of calls that failed, from 0 to 1.
    failing: Cell<f32>,
    samples: Cell<u32>,
    first: Cell<Option<Instant>>,
    last: Cell<Option<Instant>>,
    /// It is not young any more.
    grown: Cell<bool>,
}

impl Latency {
    /// An answer, or a failure, took this long, in doublings.
    pub(super) fn sample(&self, now: Instant, doublings: f32, open: u32, failed: bool) {
        let queue = ((open + 1) as f32).log2();
        let failed = if failed { 1.0 } else { 0.0 };
        let samples = self.samples.get();
        self.samples.set(samples.saturating_add(1));
        let idle = match self.last.replace(Some(now)) {
            Some(last) if last != now => now.saturating_duration_since(last),
            _ => Duration::ZERO,
        };
        if samples == 0 {
            self.first.set(Some(now));
            self.failing.set(failed);
            self.queue.set(queue);
            return self.mean.set(doublings);
        }
        // The first ones have equal weights: those of a moment when it was not warm are a few of many then.
        let equal = if samples < ENOUGH || self.is_young() { 1.0 / (samples + 1) as f32 } else { 0.0 };
        let part = |of: Duration| idle.as_secs_f32() / of.as_secs_f32();
        let weight = equal.max(part(MEMORY).min(MOST)).max(part(AT_LEAST).min(USUAL));
        let away = doublings - self.mean.get();
        self.mean.set(self.mean.get() + weight * away);
        self.deviation.set(self.deviation.get() + weight * (away.abs() - self.deviation.get()));
        self.queue.set(self.queue.get() + weight * (queue - self.queue.get()));
        self.failing.set(self.failing.get() + weight * (failed - self.failing.get()));
        debug_assert!(
            (0.0..64.0).contains(&self.mean.get()) && (0.0..=1.001).contains(&self.failing.get()),
            "{self:?}"
        );
    }

    /// None: too few samples to say, or all of one moment.
    pub(super) fn mean(&self) -> Option<f32> {
        (self.samples.get() >= ENOUGH && !self.is_young()).then(|| self.mean.get())
    }

    /// All samples are of one moment.
    fn is_young(&self) -> bool {
        if !self.grown.get() {
            let both = self.first.get().zip(self.last.get());
            self.grown.set(both.is_some_and(|(first, last)| last.saturating_duration_since(first) >= AT_LEAST));
        }
        !self.grown.get()
    }

    /// What speaks against it, in doublings: the mean, and more where calls fail.
    pub(super) fn cost(&self) -> Option<f32> {
        self.mean().map(|mean| mean + FAILURE * self.failing.get())
    }

    /// When it answered last.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last.get()
    }

    /// How many calls were open there when it answered, and one, in doublings.
    pub(super) fn queue(&self) -> f32 {
        self.queue.get()
    }

    pub(super) fn deviation(&self) -> f32 {
        self.deviation.get()
    }
}

/// Shorter than a microsecond counts as one.
pub(super) fn doublings(latency: Duration) -> f32 {
    (latency.as_secs_f32() * 1e6).max(1.0).log2()
}

/// The reverse.
pub(super) fn duration(doublings: f32) -> Duration {
    Duration::from_secs_f32(doublings.exp2() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(latencies: impl IntoIterator<Item = f32>, apart: Duration) -> Latency {
        let (latency, begin) = (Latency::default(), Instant::now());
        for (n, ms) in latencies.into_iter().enumerate() {
            latency.sample(begin + apart * n as u32, doublings(Duration::from_secs_f32(ms / 1000.0)), 0, false);
        }
        latency
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_duration_is_what_it_was() {
        for ms in [1, 7, 900, 60_000] {
            let back = duration(doublings(MS * ms)).as_secs_f32() * 1000.0;
            assert!((back / ms as f32 - 1.0).abs() < 1e-3, "{ms} {back}");
        }
    }

    #[test]
    fn one_call_of_a_thousand_times_the_time_moves_the_mean_by_less_than_a_doubling() {
        let before = fed([1.0; 100], 50 * MS).mean().unwrap();
        let after = fed([1.0; 100].into_iter().chain([1000.0]), 50 * MS).mean().unwrap();
        assert!((0.3..1.0).contains(&(after - before)), "{before} {after}");
    }

    #[test]
    fn two_hundred_calls_that_waited_for_one_pause_move_it_no_more() {
        let latency = fed([1.0; 1000], MS);
        let before = latency.mean().unwrap();
        let end = latency.last.get().unwrap() + 50 * MS;
        for n in 0..200 {
            latency.sample(end + MS * n / 20, doublings(50 * MS - MS * n / 20), 0, false);
        }
        let after = latency.mean().unwrap();
        assert!((0.1..1.0).contains(&(after - before)), "{before} {after}");
    }

    #[test]
    fn twenty_times_the_time_shows_within_half_a_second_and_ten_calls() {
        for (apart, calls) in [(MS, 500), (50 * MS, 10)] {
            let slow = std::iter::repeat_n(20.0, calls);
            let before = fed([1.0; 600], apart).mean().unwrap();
            let after = fed([1.0; 600].into_iter().chain(slow), apart).mean().unwrap();
            assert!(after - before > 1.5, "{before} {after}");
        }
    }

    #[test]
    fn nobody_is_judged_by_the_first_moment() {
        let mut first = fed([50.0; 100], MS / 10);
        assert_eq!(first.mean(), None);
        first = fed([50.0; 100].into_iter().chain([1.0; 6_000]), MS / 10);
        let well = fed([1.0; 6_100], MS / 10).mean().unwrap();
        assert!(first.mean().unwrap() - well < 0.2, "{first:?}");
    }

    #[test]
    fn where_calls_are_rare_a_few_are_enough() {
        let slow = fed([20.0; 40], Duration::from_secs(1)).mean().unwrap();
        let well = fed([20.0; 40].into_iter().chain([1.0; 5]), Duration::from_secs(1)).mean().unwrap();
        assert!(slow - well > 3.0, "{slow} {well}");
    }

    #[test]
    fn the_deviation_tells_noise_from_none() {
        assert!(fed([5.0; 100], MS).deviation() < 0.01);
        let mixed = fed((0..4000).map(|n| if n % 10 == 0 { 1000.0 } else { 1.0 }), MS);
        assert!((1.0..3.0).contains(&mixed.deviation()), "{}", mixed.deviation());
    }
}

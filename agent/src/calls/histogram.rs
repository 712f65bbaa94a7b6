//! Durations in buckets whose bounds are powers of the square root of 2, in seconds: those of Prometheus' native histograms
//! of schema 1, of which every second one is a bound of schema 0. In: durations; out: counts, and percentiles good to a quarter.

use std::time::Duration;

/// The upper bounds of all buckets but the last, in seconds: 2^(-32/2), 15 µs, to 2^(12/2), 64 s.
pub const BOUNDS: [f64; 45] = {
    let mut bounds = [0.0; 45];
    let mut at = 0;
    while at < bounds.len() {
        let doublings = (FIRST + at as i32).div_euclid(2);
        let whole = if doublings < 0 { 1.0 / (1u64 << -doublings) as f64 } else { (1u64 << doublings) as f64 };
        bounds[at] = if at.is_multiple_of(2) { whole } else { whole * std::f64::consts::SQRT_2 };
        at += 1;
    }
    bounds
};

/// Of the first bound, in half doublings from a second.
const FIRST: i32 = -32;

/// How often durations fell into each bucket. Takes memory from the first one on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    counts: Option<Box<[u64; BOUNDS.len() + 1]>>,
    /// Of all durations, nanoseconds.
    nanos: u64,
}

impl Histogram {
    pub fn record(&mut self, duration: Duration) {
        let counts = self.counts.get_or_insert_with(|| Box::new([0; _]));
        counts[bucket(duration.as_secs_f64())] += 1;
        self.nanos = self.nanos.saturating_add(duration.as_nanos() as u64);
    }

    pub fn add(&mut self, other: &Histogram) {
        let Some(theirs) = &other.counts else { return };
        let counts = self.counts.get_or_insert_with(|| Box::new([0; _]));
        counts.iter_mut().zip(theirs.iter()).for_each(|(sum, count)| *sum += count);
        self.nanos = self.nanos.saturating_add(other.nanos);
    }

    /// In each bucket, those beyond the last bound at the end; empty if there was none.
    pub fn counts(&self) -> &[u64] {
        self.counts.as_ref().map_or(&[], |counts| counts.as_slice())
    }

    /// The sum of all durations, seconds.
    pub fn seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// The duration below which `share` of all are, between a bucket's bounds by proportion. None: there was none.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        Self::percentile_of(self.counts(), share)
    }

    /// As [`Histogram::percentile`], of counts in the same buckets.
    pub fn percentile_of(counts: &[u64], share: f64) -> Option<Duration> {
        let all: u64 = counts.iter().sum();
        let mut left = share * all as f64;
        for (at, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if left <= count as f64 || at == BOUNDS.len() {
                let low = if at == 0 { 0.0 } else { BOUNDS[at - 1] };
                let high = BOUNDS.get(at).copied().unwrap_or(low);
                return Some(Duration::from_secs_f64(low + (high - low) * (left / count as f64).clamp(0.0, 1.0)));
            }
            left -= count as f64;
        }
        None
    }
}

/// The first bucket whose bound is not below `seconds`.
fn bucket(seconds: f64) -> usize {
    // The exponent and the mantissa of a normal number above 0; what is smaller than the first bound needs neither.
    if seconds <= BOUNDS[0] {
        return 0;
    }
    let bits = seconds.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let beyond = if mantissa <= 1.0 {
        0
    } else if mantissa <= std::f64::consts::SQRT_2 {
        1
    } else {
        2
    };
    (2 * exponent + beyond - FIRST).clamp(0, BOUNDS.len() as i32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_native_histograms_and_each_bucket_takes_what_is_up_to_its_bound() {
        assert_eq!((BOUNDS[0], BOUNDS[32], BOUNDS[44]), (2f64.powi(-16), 1.0, 64.0));
        for (at, bound) in BOUNDS.iter().enumerate() {
            assert!((bound.log2() - (at as f64 - 32.0) / 2.0).abs() < 1e-12, "{at}: {bound}");
            assert_eq!(bucket(*bound), at);
            assert_eq!(bucket(bound * 1.0001), at + 1, "{bound}");
        }
        assert_eq!((bucket(0.0), bucket(1e-9), bucket(1e9)), (0, 0, 45));
    }

    #[test]
    fn percentiles_are_good_to_a_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), None);
        (1..=1000).for_each(|n| histogram.record(Duration::from_micros(n * 100)));
        for (share, expected) in [(0.5, 0.05), (0.99, 0.099)] {
            let found = histogram.percentile(share).unwrap().as_secs_f64();
            assert!((found / expected - 1.0).abs() < 0.25, "{share}: {found}");
        }
        assert!((histogram.seconds() - 50.05).abs() < 1e-6);
        let mut sum = histogram.clone();
        sum.add(&histogram);
        assert_eq!((sum.percentile(0.5), sum.seconds()), (histogram.percentile(0.5), 2.0 * histogram.seconds()));
        sum.record(Duration::from_secs(1000));
        assert_eq!(sum.percentile(1.0), Some(Duration::from_secs(64)), "beyond the last bound");
    }
}

//! What a run counts, and the figures that say how even the spread was. Pure: no clock, no IO.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use crate::code::{self, Code};

/// Who answered: the address that the server itself saw (`x-sluice-endpoint`), or the pod's name where a server sends
/// no address. Addresses sort by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    Address(SocketAddr),
    Name(String),
}

impl From<&str> for Endpoint {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Calls that one endpoint answered, and the pod's name as it gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub calls: u64,
    pub pod: String,
}

/// Everything counted in a run.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Calls that started and ended, failed ones included.
    pub rpcs: u64,
    /// Calls by the status they ended with; index: [`Code::index`].
    pub by_code: [u64; code::COUNT],
    /// Calls by who answered; calls that nobody answered are in none.
    pub endpoints: BTreeMap<Endpoint, Answered>,
    /// Nanoseconds of the calls that succeeded or ran into their deadline: a fast failure is no low latency.
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        // Three digits from 1 ns to an hour: about 250 KiB, once per run.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("the bounds are valid");
        Self { rpcs: 0, by_code: [0; code::COUNT], endpoints: BTreeMap::new(), latency }
    }
}

impl Tally {
    /// Counts one call that has ended.
    pub fn count(&mut self, code: Code, latency: Duration) {
        self.rpcs += 1;
        self.by_code[code.index()] += 1;
        if code == Code::OK || code == Code::DEADLINE_EXCEEDED {
            self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
        }
    }

    /// Calls that ended with any status but OK.
    pub fn failed(&self) -> u64 {
        self.rpcs - self.by_code[Code::OK.index()]
    }
}

/// The busiest endpoint's calls over the idlest one's. `None`: somebody got nothing at all, or nobody was asked.
pub fn max_over_min(calls: &[u64]) -> Option<f64> {
    let (max, min) = (calls.iter().max()?, calls.iter().min()?);
    (*min > 0).then(|| *max as f64 / *min as f64)
}

/// Jain's fairness index: 1 when all get the same, 1/n when one of n gets everything. `None`: no call was answered.
pub fn jain(calls: &[u64]) -> Option<f64> {
    let sum: f64 = calls.iter().map(|&c| c as f64).sum();
    let squares: f64 = calls.iter().map(|&c| (c as f64).powi(2)).sum();
    (squares > 0.0).then(|| sum * sum / (calls.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_are_perfectly_fair() {
        assert_eq!(max_over_min(&[5, 5, 5]), Some(1.0));
        assert_eq!(jain(&[5, 5, 5]), Some(1.0));
    }

    #[test]
    fn one_endpoint_of_four_with_everything_has_a_jain_index_of_a_quarter_and_no_ratio() {
        assert_eq!(jain(&[100, 0, 0, 0]), Some(0.25));
        assert_eq!(max_over_min(&[100, 0, 0, 0]), None);
    }

    #[test]
    fn uneven_shares_are_measured() {
        assert_eq!(max_over_min(&[30, 10, 20]), Some(3.0));
        let index = jain(&[30, 10, 20]).unwrap();
        assert!((index - 3600.0 / (3.0 * 1400.0)).abs() < 1e-12);
    }

    #[test]
    fn without_an_answer_there_is_no_figure() {
        assert_eq!((max_over_min(&[]), jain(&[])), (None, None));
        assert_eq!((max_over_min(&[0, 0]), jain(&[0, 0])), (None, None));
    }

    #[test]
    fn addresses_sort_by_number_and_before_names() {
        let mut endpoints = ["10.1.0.10:1", "pod-a", "10.1.0.9:1", "[fd00::1]:1"].map(Endpoint::from);
        endpoints.sort();
        assert_eq!(endpoints.map(|e| e.to_string()), ["10.1.0.9:1", "10.1.0.10:1", "[fd00::1]:1", "pod-a"]);
    }

    #[test]
    fn a_fast_failure_counts_as_a_call_but_not_as_a_low_latency() {
        let mut tally = Tally::default();
        tally.count(Code::OK, Duration::from_millis(2));
        tally.count(Code::UNAVAILABLE, Duration::from_micros(1));
        tally.count(Code::DEADLINE_EXCEEDED, Duration::from_secs(1));
        assert_eq!((tally.rpcs, tally.failed(), tally.latency.len()), (3, 2, 2));
        assert!(tally.latency.min() >= 1_900_000);
    }
}

//! Numbers for people, and what two readings of the agent's status say of the time between them. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::calls::{BOUNDS, Histogram};

/// `1234567` as `1.23M`.
pub(super) fn count(number: f64) -> String {
    // The sum of no floats is -0.
    let number = number + 0.0;
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if number >= unit {
            let scaled = number / if name == "k" { 1e3 } else { unit };
            return if scaled >= 100.0 { format!("{scaled:.0}{name}") } else { format!("{scaled:.1}{name}") };
        }
    }
    if number >= 10.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

/// `1 endpoint`, `2 endpoints`.
pub(super) fn many(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// `0.85 ms`, `12 ms`, `1.5 s`.
pub(super) fn time(time: Option<Duration>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        ..0.1 => format!("{:.0} µs", millis * 1e3),
        ..10.0 => format!("{millis:.2} ms"),
        ..1e4 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1e3),
    }
}

/// `99.98`; of nothing nothing is said.
pub(super) fn percent(part: f64, whole: f64) -> String {
    if whole <= 0.0 { "-".to_owned() } else { format!("{:.2}", (part / whole * 1e4).floor() / 100.0) }
}

/// `3 h 12 min`.
pub(super) fn long_time(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

pub(super) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The counts of a histogram as the status has it.
pub(super) fn buckets(value: &Value) -> Vec<u64> {
    let mut counts = vec![0; BOUNDS.len() + 1];
    for pair in list(value) {
        let at = match pair[0].as_f64() {
            None => BOUNDS.len(),
            Some(bound) => BOUNDS.partition_point(|it| *it < bound * 0.999),
        };
        counts[at.min(BOUNDS.len())] += pair[1].as_u64().unwrap_or(0);
    }
    counts
}

/// What came since an earlier reading; all of it, where counting began anew since.
pub(super) fn since(now: Vec<u64>, before: Option<&Vec<u64>>) -> Vec<u64> {
    match before {
        Some(before) if before.iter().zip(&now).all(|(a, b)| a <= b) => {
            now.iter().zip(before).map(|(a, b)| a - b).collect()
        }
        _ => now,
    }
}

pub(super) fn percentile(counts: &[u64], share: f64) -> Option<Duration> {
    Histogram::percentile_of(counts, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_times_have_units() {
        let counts: Vec<_> = [-0.0, 0.25, 7.0, 1234.0, 12_345.0, 1_234_567.0, 123_456_789.0].map(count).into();
        assert_eq!(counts, ["0", "0.2", "7", "1234", "12.3k", "1.2M", "123M"]);
        let times: Vec<_> =
            [0.000_03, 0.00085, 0.012, 1.5, 60.0].map(|s| time(Some(Duration::from_secs_f64(s)))).into();
        assert_eq!(times, ["30 µs", "0.85 ms", "12 ms", "1500 ms", "60.0 s"]);
        assert_eq!((percent(9_999.0, 10_000.0), percent(0.0, 0.0)), ("99.99".into(), "-".into()));
        assert_eq!(percent(99_999_999.0, 100_000_000.0), "99.99", "100 is said only where nothing failed");
        assert_eq!((long_time(59.0), long_time(11_520.0)), ("59 s".into(), "3 h 12 min".into()));
    }

    #[test]
    fn a_histogram_comes_back_from_the_status() {
        let counts = buckets(&serde_json::json!([[BOUNDS[0], 1], [BOUNDS[7], 2], [null, 3]]));
        assert_eq!((counts[0], counts[7], counts[45]), (1, 2, 3));
        assert_eq!(since(counts.clone(), Some(&counts)).iter().sum::<u64>(), 0);
        assert_eq!(since(vec![1, 0], Some(&vec![2, 0])), [1, 0], "the agent was started anew");
    }
}

//! Durations and spans of durations as the command line writes them (`250us`, `5ms`, `1.5s`, `2m`, `5ms..20ms`), and
//! durations as reports show them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

/// Reads `5ms`, `1.5s`, `2m`; a number without a unit is an error, `0` is not.
pub fn duration(text: &str) -> Result<Duration, String> {
    let cure = || format!("\"{text}\" is no duration; write a number and a unit: 250us, 5ms, 1.5s, 2m or 1h");
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = text.parse::<SignedDuration>().map_err(|_| cure())?;
    Duration::try_from(parsed).map_err(|_| cure())
}

/// One duration, or any between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelaySpan {
    pub least: Duration,
    pub most: Duration,
}

impl DelaySpan {
    /// One of the span, all equally likely.
    pub fn sample(self, rng: &mut fastrand::Rng) -> Duration {
        if self.most <= self.least {
            return self.least;
        }
        let width = (self.most - self.least).as_nanos() as u64;
        self.least + Duration::from_nanos(rng.u64(0..=width))
    }
}

impl FromStr for DelaySpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = match text.split_once("..") {
            Some((least, most)) => (duration(least)?, duration(most)?),
            None => (duration(text)?, duration(text)?),
        };
        if most < least {
            return Err(format!("\"{text}\" ends before it begins; write the shorter one first: 5ms..20ms"));
        }
        Ok(Self { least, most })
    }
}

/// Microseconds with three significant digits and the unit that suits them: `870 µs`, `12.4 ms`, `1.50 s`.
pub(crate) struct Micros(pub(crate) f64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            v if v < 999.5 => (v, "µs"),
            v if v < 999_500.0 => (v / 1e3, "ms"),
            v => (v / 1e6, "s"),
        };
        let decimals = match value {
            v if unit == "µs" || v >= 99.95 => 0,
            v if v >= 9.995 => 1,
            _ => 2,
        };
        f.pad(&format!("{value:.decimals$} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["5", "", "ms", "5 parsecs", "-1s", "1.2.3s", "99999999999999999999h"] {
            assert!(duration(bad).unwrap_err().contains("5ms"), "{bad}");
        }
    }

    #[test]
    fn a_span_yields_only_what_lies_in_it() {
        let span: DelaySpan = "5ms..20ms".parse().unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let sample = span.sample(&mut rng);
            assert!(span.least <= sample && sample <= span.most);
        }
        assert_eq!("5ms".parse::<DelaySpan>().unwrap().sample(&mut rng), Duration::from_millis(5));
        assert!("20ms..5ms".parse::<DelaySpan>().is_err());
    }

    #[test]
    fn times_are_shown_in_the_unit_that_suits_them() {
        let shown: Vec<String> =
            [0.0, 870.0, 999.6, 12_400.0, 123_456.0, 1_500_000.0].map(|v| Micros(v).to_string()).into();
        assert_eq!(shown, ["0 µs", "870 µs", "1.00 ms", "12.4 ms", "123 ms", "1.50 s"]);
    }
}

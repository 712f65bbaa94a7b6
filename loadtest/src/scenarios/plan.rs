//! What each scenario is: which load, and what happens when. In: a name and a length; out: a plan. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::server::{Behaviour, Failure};

/// Load of the scenarios, as a part of what all servers can do when they are well.
const LOAD: f64 = 0.6;
/// Calls a second where the servers state no capacity.
const RATE: f64 = 1000.0;

/// How slow the slow server is.
const SLOW: f64 = 20.0;
/// A bursty load is so many times as high for the first part of each second.
const BURST: f64 = 5.0;
const BURST_PART: f64 = 0.2;
/// Of the calls that are open at a time in `streams`, nine of ten are streams.
const STREAMS_PER_CALL: f64 = 9.0;
/// Open streams where the servers state no service time.
const STREAMS: f64 = 90.0;
const LONGEST_STREAM: Duration = Duration::from_secs(30);
/// Half a period of `flapping`.
const LONGEST_FLAP: Duration = Duration::from_secs(5);

/// One of the scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Equal,
    Slow,
    FailingTrailersOnly,
    FailingAfterHeaders,
    BlackHole,
    Flapping,
    RollOut,
    Bursts,
    Streams,
}

impl Scenario {
    pub const ALL: [Self; 9] = [
        Self::Equal,
        Self::Slow,
        Self::FailingTrailersOnly,
        Self::FailingAfterHeaders,
        Self::BlackHole,
        Self::Flapping,
        Self::RollOut,
        Self::Bursts,
        Self::Streams,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Slow => "slow",
            Self::FailingTrailersOnly => "failing-trailers-only",
            Self::FailingAfterHeaders => "failing-after-headers",
            Self::BlackHole => "black-hole",
            Self::Flapping => "flapping",
            Self::RollOut => "roll-out",
            Self::Bursts => "bursts",
            Self::Streams => "streams",
        }
    }

    /// A sentence for the reader of a report.
    pub fn about(self) -> &'static str {
        match self {
            Self::Equal => "All pods are well.",
            Self::Slow => "One pod works 20 times as long on each call.",
            Self::FailingTrailersOnly => "One pod answers every call at once with UNAVAILABLE, as Trailers-Only.",
            Self::FailingAfterHeaders => {
                "One pod answers every call at once with UNAVAILABLE, in trailers after response headers."
            }
            Self::BlackHole => "All packets to one pod are lost, without a reset, and it sends nothing new.",
            Self::Flapping => {
                "One pod answers every call at once with UNAVAILABLE (Trailers-Only), is well again, fails again…"
            }
            Self::RollOut => "All pods are replaced one by one, as in a Deployment's roll-out.",
            Self::Bursts => "All pods are well; for the first 200 ms of each second the load is five times as high.",
            Self::Streams => {
                "Of the calls that are open at a time, nine of ten are long streams with a message a second."
            }
        }
    }

    /// Those that a word of the command line means: its own name, or the part of it before a hyphen (`failing`).
    pub fn named(word: &str) -> Result<Vec<Self>, String> {
        let is_meant = |scenario: &Self| {
            scenario.name() == word || scenario.name().strip_prefix(word).is_some_and(|rest| rest.starts_with('-'))
        };
        let meant: Vec<Self> = Self::ALL.into_iter().filter(is_meant).collect();
        if meant.is_empty() || word.is_empty() {
            return Err(format!("there is no such scenario; choose from {}", Self::ALL.map(Self::name).join(", ")));
        }
        Ok(meant)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The scenarios that one word means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<Scenario>);

impl FromStr for Words {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Scenario::named(word).map(Self)
    }
}

/// The servers, and what they can do together when they are well, as far as they say so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fleet {
    pub(crate) servers: u32,
    pub(crate) calls_per_second: Option<f64>,
    pub(crate) service_time: Option<Duration>,
}

/// One scenario, moment by moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) length: Duration,
    /// Unary calls.
    pub(crate) calls: Arrivals,
    pub(crate) streams: Option<Streams>,
    /// In the order of their moments.
    pub(crate) steps: Vec<(Duration, Step)>,
}

/// Streams that open at even distances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Streams {
    pub(crate) arrivals: Arrivals,
    /// Seconds that each lasts, and its messages.
    pub(crate) seconds: u32,
}

/// Something that happens to the servers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// One pod misbehaves from now on.
    Worsen(Behaviour),
    /// It is well again.
    Heal,
    /// The hook's command runs, for the n-th time.
    Hook(u32),
}

impl Plan {
    /// `rate`: calls per second in the mean, in place of a part of the capacity.
    pub(crate) fn new(scenario: Scenario, length: Duration, rate: Option<f64>, fleet: Fleet) -> Self {
        let rate = rate.or(fleet.calls_per_second.map(|calls| calls * LOAD)).unwrap_or(RATE);
        let calls = match scenario {
            Scenario::Bursts => Arrivals::bursts(rate),
            _ => Arrivals::even(rate),
        };
        let failing = |after_headers| Behaviour {
            fail: Some(Failure { after_headers, ..Failure::default() }),
            ..Behaviour::default()
        };
        let steps = match scenario {
            Scenario::Equal | Scenario::Bursts | Scenario::Streams => Vec::new(),
            Scenario::Slow => once(length, Behaviour { slow: SLOW, ..Behaviour::default() }),
            Scenario::FailingTrailersOnly => once(length, failing(false)),
            Scenario::FailingAfterHeaders => once(length, failing(true)),
            Scenario::BlackHole => once(length, Behaviour { black_hole: true, ..Behaviour::default() }),
            Scenario::Flapping => flapping(length, &failing(false)),
            Scenario::RollOut => {
                let moment = |number| length * number / (fleet.servers + 2);
                (1..=fleet.servers).map(|number| (moment(number), Step::Hook(number))).collect()
            }
        };
        let streams = (scenario == Scenario::Streams).then(|| {
            let open = fleet.service_time.map_or(STREAMS, |time| time.as_secs_f64() * rate * STREAMS_PER_CALL);
            let seconds = LONGEST_STREAM.min(length / 2).as_secs().max(1) as u32;
            Streams { arrivals: Arrivals::even(open / f64::from(seconds)), seconds }
        });
        Self { scenario, length, calls, streams, steps }
    }
}

/// Well for a tenth of the time, bad for half of it, then well again.
fn once(length: Duration, bad: Behaviour) -> Vec<(Duration, Step)> {
    vec![worsen(length / 10, length / 2, bad), (length * 6 / 10, Step::Heal)]
}

/// Bad and well in turn, the last time bad before nine tenths of the time are over.
fn flapping(length: Duration, bad: &Behaviour) -> Vec<(Duration, Step)> {
    let flap = LONGEST_FLAP.min(length / 12);
    let starts = (0..).map(|turn| length / 10 + flap * 2 * turn).take_while(|start| *start + flap <= length * 9 / 10);
    starts.flat_map(|start| [worsen(start, flap, bad.clone()), (start + flap, Step::Heal)]).collect()
}

/// A server that is forgotten heals by itself, a second late.
fn worsen(at: Duration, lasts: Duration, bad: Behaviour) -> (Duration, Step) {
    let for_ms = Some((lasts + Duration::from_secs(1)).as_millis() as u64);
    (at, Step::Worsen(Behaviour { for_ms, ..bad }))
}

/// An endless schedule of calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrivals {
    /// Calls a second in the mean.
    pub(crate) rate: f64,
    bursts: bool,
}

impl Arrivals {
    pub(crate) fn even(rate: f64) -> Self {
        Self { rate, bursts: false }
    }

    fn bursts(rate: f64) -> Self {
        Self { rate, bursts: true }
    }

    /// When the n-th call is due; the first is number 0.
    pub(crate) fn due(self, number: u64) -> Duration {
        let seconds = number as f64 / self.rate;
        if !self.bursts {
            return Duration::from_secs_f64(seconds);
        }
        // Within each second the calls come in two straight lines, of which the first is BURST times as steep.
        let (whole, part) = (seconds.floor(), seconds.fract());
        let base = 1.0 / (BURST * BURST_PART + 1.0 - BURST_PART);
        let burst = BURST * BURST_PART * base;
        let within = if part < burst { part / (BURST * base) } else { BURST_PART + (part - burst) / base };
        Duration::from_secs_f64(whole + within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn plan(scenario: Scenario, length: Duration) -> Plan {
        let fleet = Fleet { servers: 5, calls_per_second: Some(4000.0), service_time: Some(Duration::from_millis(5)) };
        Plan::new(scenario, length, None, fleet)
    }

    #[test]
    fn a_word_means_a_scenario_or_all_of_a_family() {
        assert_eq!(Scenario::named("black-hole"), Ok(vec![Scenario::BlackHole]));
        assert_eq!(Scenario::named("failing"), Ok(vec![Scenario::FailingTrailersOnly, Scenario::FailingAfterHeaders]));
        for bad in ["", "fail", "failing-", "slower"] {
            assert!(Scenario::named(bad).unwrap_err().contains("roll-out"), "{bad}");
        }
    }

    #[test]
    fn the_load_is_a_part_of_what_the_servers_can_do_unless_it_is_given() {
        assert_eq!(plan(Scenario::Slow, MINUTE).calls.rate, 2400.0);
        let given = Plan::new(Scenario::Slow, MINUTE, Some(50.0), Fleet::default());
        assert_eq!(given.calls.rate, 50.0);
        assert_eq!(Plan::new(Scenario::Slow, MINUTE, None, Fleet::default()).calls.rate, RATE);
    }

    #[test]
    fn every_trouble_ends_before_the_scenario_does_and_the_servers_know_when() {
        for length in [4, 10, 60, 300].map(Duration::from_secs) {
            for scenario in Scenario::ALL {
                let plan = plan(scenario, length);
                assert!(plan.steps.is_sorted_by_key(|(at, _)| *at), "{scenario}");
                assert!(plan.steps.iter().all(|(at, _)| *at < length), "{scenario}");
                let bad = plan.steps.chunks(2).filter(|pair| !matches!(pair[0].1, Step::Hook(_)));
                for pair in bad {
                    let [(begin, Step::Worsen(behaviour)), (end, Step::Heal)] = pair else { panic!("{pair:?}") };
                    let told = Duration::from_millis(behaviour.for_ms.unwrap());
                    assert!(told > *end - *begin && behaviour.check().is_ok(), "{scenario}: {pair:?}");
                }
            }
        }
    }

    #[test]
    fn flapping_takes_turns_of_five_seconds() {
        let steps = plan(Scenario::Flapping, MINUTE).steps;
        let at: Vec<_> = steps.iter().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(at, [6, 11, 16, 21, 26, 31, 36, 41, 46, 51]);
    }

    #[test]
    fn bursts_keep_the_mean_rate_and_are_five_times_as_dense() {
        let arrivals = plan(Scenario::Bursts, MINUTE).calls;
        let due: Vec<_> = (0..4800).map(|number| arrivals.due(number).as_secs_f64()).collect();
        assert!(due.is_sorted());
        let within = |from: f64, to: f64| due.iter().filter(|at| (from..to).contains(*at)).count() as f64;
        assert!((within(0.0, 1.0) - 2400.0).abs() <= 1.0 && (within(1.0, 2.0) - 2400.0).abs() <= 1.0);
        let (burst, calm) = (within(1.0, 1.2) / 0.2, within(1.2, 2.0) / 0.8);
        assert!((burst / calm - 5.0).abs() < 0.05, "{burst} {calm}");
    }

    #[test]
    fn nine_of_ten_open_calls_are_streams_and_each_ends_within_the_scenario() {
        let plan = plan(Scenario::Streams, MINUTE);
        let streams = plan.streams.unwrap();
        let open = streams.arrivals.rate * f64::from(streams.seconds);
        assert!((open - 9.0 * 2400.0 * 0.005).abs() < 1e-6 && streams.seconds == 30, "{open}");
        assert!(super::Plan::new(Scenario::Streams, MINUTE / 10, None, Fleet::default()).streams.unwrap().seconds == 3);
    }
}

//! A scenario as a terminal shows it: one column per address, one row per figure. The HTML page has the same rows. Pure.

use super::report::{Run, ScenarioReport};
use crate::table::{aligned, micros, or_dash, percent};
use crate::units::Micros;

/// What a row shows of a run.
pub(crate) type Figure = fn(&Run) -> String;

/// All rows, and what they are called.
const FIGURES: [(&str, Figure); 13] = [
    ("calls", |run| run.calls.to_string()),
    ("failed", |run| run.failed.to_string()),
    ("failed share", |run| percent_finely(run.failed_share)),
    ("p50", |run| micros(run.latency_us.p50)),
    ("p99", |run| micros(run.latency_us.p99)),
    ("p99.9", |run| micros(run.latency_us.p999)),
    ("the bad pod", |run| or_dash(run.bad_pod.as_ref())),
    ("caught by it", |run| or_dash(run.caught)),
    ("its share meanwhile", |run| or_dash(run.bad_share.map(percent_finely))),
    ("avoided after", |run| run.avoided_after_ms.map_or_else(|| "never".to_owned(), millis)),
    ("back after", |run| run.back_after_ms.map_or_else(|| "not yet".to_owned(), millis)),
    ("max/min of the others", |run| ratio(run.healthy_max_over_min)),
    ("max/min of open streams", |run| ratio(run.streams_max_over_min)),
];

/// The rows that mean something in this scenario.
pub(crate) fn figures(scenario: &ScenarioReport) -> impl Iterator<Item = (&'static str, Figure)> {
    let trouble = scenario.runs.iter().any(|run| run.bad_pod.is_some());
    let streams = scenario.runs.iter().any(|run| !run.open_seconds.is_empty());
    let rolls = scenario.runs.iter().any(|run| !run.hooks_ms.is_empty());
    FIGURES.into_iter().filter_map(move |(label, figure)| match label {
        "the bad pod" | "caught by it" | "its share meanwhile" | "avoided after" | "back after" if !trouble => None,
        "max/min of the others" if rolls => None,
        "max/min of the others" if !trouble => Some(("max/min", figure)),
        "max/min of open streams" if !streams => None,
        _ => Some((label, figure)),
    })
}

/// The scenario with its name and what it is about.
pub(crate) fn table(scenario: &ScenarioReport) -> String {
    let mut rows = vec![vec![scenario.name.to_owned()]];
    rows[0].extend(scenario.runs.iter().map(|run| run.via.clone()));
    for (label, figure) in figures(scenario) {
        rows.push([label.to_owned()].into_iter().chain(scenario.runs.iter().map(figure)).collect());
    }
    let mut notes = String::new();
    for run in &scenario.runs {
        let codes: Vec<_> = run.failed_by_code.iter().map(|(code, calls)| format!("{calls} {code}")).collect();
        if !codes.is_empty() {
            notes += &format!("{}: {}\n", run.via, codes.join(", "));
        }
    }
    format!("{}\n{}\n{notes}\n", scenario.about, aligned(&rows))
}

/// A share that may be very small.
fn percent_finely(share: f64) -> String {
    if share > 0.0 && share < 0.01 { format!("{:.3} %", share * 100.0) } else { percent(share) }
}

fn millis(value: u64) -> String {
    Micros(value as f64 * 1e3).to_string()
}

fn ratio(value: Option<f64>) -> String {
    or_dash(value.map(|value| format!("{value:.3}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scenarios::measure::tests::{measured, recording, turns};
    use crate::scenarios::plan::Scenario;
    use crate::scenarios::record::Recording;
    use crate::scenarios::report::Report;

    /// `slow` and `equal` through two addresses, of which the first one avoids the slow pod.
    pub(crate) fn report() -> Report {
        let scenario = |scenario: Scenario| {
            let run = |without: std::ops::Range<u64>| {
                let mut recording = recording(|number| turns(number, without.clone()));
                if scenario == Scenario::Equal {
                    recording = Recording { bad_pod: None, bad_times: Vec::new(), ..recording };
                }
                measured(scenario, &recording)
            };
            let runs = vec![run(1500..7000), Run { via: "other".to_owned(), ..run(0..0) }];
            let (name, about) = (scenario.name(), scenario.about());
            ScenarioReport { name, about, rate: 1000.0, bucket_ms: 100, runs }
        };
        let scenarios = [Scenario::Slow, Scenario::Equal].map(scenario).into();
        Report { seconds: 10.0, connections: 10, timeout_ms: 2000, scenarios }
    }

    #[test]
    fn addresses_stand_side_by_side_with_the_figures_that_mean_something() {
        let report = report();
        let slow = table(&report.scenarios[0]);
        let row = |table: &str, label: &str| {
            let line = table.lines().find(|line| line.starts_with(label)).map(str::to_owned);
            line.map(|line| {
                line[label.len()..]
                    .split("  ")
                    .map(|cell| cell.trim().to_owned())
                    .filter(|cell| !cell.is_empty())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(row(&slow, "avoided after").unwrap(), ["490 ms", "never"], "{slow}");
        assert_eq!(row(&slow, "back after").unwrap(), ["1.00 s", "0 µs"]);
        assert_eq!(row(&slow, "its share meanwhile").unwrap(), ["2.0 %", "20.0 %"]);
        assert_eq!(row(&slow, "the bad pod").unwrap(), ["pod-0", "pod-0"]);
        let equal = table(&report.scenarios[1]);
        assert!(row(&equal, "the bad pod").is_none() && row(&equal, "max/min of open streams").is_none(), "{equal}");
        assert!(row(&equal, "max/min").unwrap().ends_with(&["1.000".to_owned()]), "{equal}");
    }

    #[test]
    fn a_small_share_is_not_shown_as_none() {
        assert_eq!([0.0, 0.0004, 0.25].map(percent_finely), ["0.0 %", "0.040 %", "25.0 %"]);
    }
}

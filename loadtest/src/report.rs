//! A run as a report has it: shares, fairness, latency, failures; its JSON. Pure but for [`publish`].
//! `rpcs` counts calls that started and ended, `failed` is a part of it; shares are of the calls that an endpoint answered.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::code::Code;
use crate::run::Outcome;
use crate::stats::{self, Endpoint};

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    pub name: String,
    pub target: String,
    pub rpcs: u64,
    pub failed: u64,
    /// Status name → calls, failures only.
    pub failed_by_code: BTreeMap<String, u64>,
    /// Calls that were to be made and never started.
    pub not_started: u64,
    /// Calls sent again because their first attempt never started.
    pub resent: u64,
    /// Endpoint → its part of the answered calls.
    pub shares: BTreeMap<Endpoint, f64>,
    /// Endpoint → calls it answered.
    pub calls: BTreeMap<Endpoint, u64>,
    /// Endpoint → its pod's name, where it said one.
    pub pods: BTreeMap<Endpoint, String>,
    /// None where an endpoint got nothing.
    pub max_over_min: Option<f64>,
    /// None where nobody answered.
    pub jain: Option<f64>,
    pub latency_us: Latency,
    pub seconds: f64,
    pub rpcs_per_second: f64,
    /// Connections dialled.
    pub connections: u64,
    /// Share of the calls → microseconds within which they ended; for the chart.
    #[serde(skip)]
    pub(crate) curve: Vec<(f64, f64)>,
}

/// Microseconds; none where no call took its regular course.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub p50: Option<u64>,
    pub p90: Option<u64>,
    pub p99: Option<u64>,
    pub p999: Option<u64>,
    pub max: Option<u64>,
}

/// The comparison as a file has it.
#[derive(Debug, Serialize)]
pub struct Comparison<'a> {
    pub runs: &'a [RunReport],
}

impl RunReport {
    pub fn new(name: &str, target: &str, outcome: &Outcome) -> Self {
        let tally = &outcome.tally;
        let seconds = outcome.elapsed.as_secs_f64();
        let failures = tally.by_code.iter().enumerate().filter(|(index, calls)| *index > 0 && **calls > 0);
        let pods = tally.endpoints.iter().filter(|(_, answered)| !answered.pod.is_empty());
        let mut report = Self {
            name: name.to_owned(),
            target: target.to_owned(),
            rpcs: tally.rpcs,
            failed: tally.failed(),
            failed_by_code: failures.map(|(i, calls)| (Code::from_index(i).to_string(), *calls)).collect(),
            not_started: outcome.not_started,
            resent: outcome.resent,
            shares: BTreeMap::new(),
            calls: tally.endpoints.iter().map(|(endpoint, answered)| (endpoint.clone(), answered.calls)).collect(),
            pods: pods.map(|(endpoint, answered)| (endpoint.clone(), answered.pod.clone())).collect(),
            max_over_min: None,
            jain: None,
            latency_us: Latency::of(&tally.latency),
            seconds,
            rpcs_per_second: if seconds > 0.0 { tally.rpcs as f64 / seconds } else { 0.0 },
            connections: outcome.connections,
            curve: curve(&tally.latency),
        };
        report.judge();
        report
    }

    /// Shares and fairness follow from the calls.
    fn judge(&mut self) {
        let calls: Vec<u64> = self.calls.values().copied().collect();
        let answered: u64 = calls.iter().sum();
        let share = |calls: u64| if answered == 0 { 0.0 } else { calls as f64 / answered as f64 };
        self.shares = self.calls.iter().map(|(endpoint, calls)| (endpoint.clone(), share(*calls))).collect();
        self.max_over_min = stats::max_over_min(&calls);
        self.jain = stats::jain(&calls);
    }
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let micros = |nanos: u64| Some((nanos + 500) / 1000);
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros(histogram.max()) }
    }
}

/// Each step halves the rest of the calls a quarter at a time, until fewer than one call is left.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let calls = histogram.len() as f64;
    let mut points = Vec::new();
    let mut rest = 1.0_f64;
    while rest * calls >= 1.0 {
        points.push((1.0 - rest, histogram.value_at_quantile(1.0 - rest) as f64 / 1000.0));
        rest *= 0.5_f64.powf(0.25);
    }
    points
}

/// Lists in every run what is expected or seen in another one: without a call its share is 0.
pub fn align(runs: &mut [RunReport], expected: &[Endpoint]) {
    let seen = runs.iter().flat_map(|run| run.calls.keys());
    let all: BTreeSet<Endpoint> = seen.chain(expected).cloned().collect();
    let pods: BTreeMap<Endpoint, String> = runs.iter().flat_map(|run| run.pods.clone()).collect();
    for run in runs {
        for endpoint in &all {
            run.calls.entry(endpoint.clone()).or_default();
            if let Some(pod) = pods.get(endpoint) {
                run.pods.entry(endpoint.clone()).or_insert_with(|| pod.clone());
            }
        }
        run.judge();
    }
}

/// Prints the table, and writes the JSON where asked.
pub(crate) fn publish(table: &str, report: &impl Serialize, json: Option<&Path>) -> anyhow::Result<()> {
    print_table(table, json);
    json.map_or(Ok(()), |path| write_json(path, report))
}

/// Prints a table; to stderr where stdout is the JSON's alone.
pub(crate) fn print_table(table: &str, json: Option<&Path>) {
    if json == Some(Path::new("-")) { eprint!("{table}") } else { print!("{table}") }
}

/// Writes a report as JSON; `-`: to stdout.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    if path == Path::new("-") {
        return writeln!(std::io::stdout(), "{text}").context("cannot write to stdout");
    }
    write(path, &(text + "\n"))
}

/// Writes a report's file.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)
        .with_context(|| format!("cannot write {}; choose a file in a folder that exists", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::{Answered, Tally};

    /// A run in which each endpoint answered so many calls, each a little slower than the one before, one failed.
    pub(crate) fn sample(name: &str, endpoints: &[(&str, &str, u64)]) -> RunReport {
        let mut tally = Tally::default();
        for (address, pod, calls) in endpoints {
            tally.endpoints.insert(Endpoint::from(*address), Answered { calls: *calls, pod: (*pod).to_owned() });
            for call in 0..*calls {
                tally.count(Code::OK, Duration::from_micros(100 + call));
            }
        }
        tally.count(Code::UNAVAILABLE, Duration::ZERO);
        let elapsed = Duration::from_secs(2);
        RunReport::new(
            name,
            "10.96.0.10:50051",
            &Outcome { tally, elapsed, resent: 0, not_started: 0, connections: 1, cut_short: None },
        )
    }

    #[test]
    fn the_json_has_the_agreed_shape() {
        let mut runs = [
            sample("kube-proxy", &[("10.1.0.3:50051", "backend-1", 4)]),
            sample("sluice", &[("10.1.0.3:50051", "backend-1", 2), ("10.1.0.4:50051", "backend-2", 2)]),
        ];
        align(&mut runs, &[]);
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&Comparison { runs: &runs }).unwrap()).unwrap();
        let (first, second) = (&json["runs"][0], &json["runs"][1]);
        assert_eq!(first["name"], "kube-proxy");
        assert_eq!((first["rpcs"].as_u64(), first["failed"].as_u64()), (Some(5), Some(1)));
        assert_eq!(first["shares"], serde_json::json!({"10.1.0.3:50051": 1.0, "10.1.0.4:50051": 0.0}));
        assert_eq!(first["max_over_min"], serde_json::Value::Null);
        assert_eq!(first["jain"], 0.5);
        assert_eq!(first["failed_by_code"], serde_json::json!({"UNAVAILABLE": 1}));
        assert_eq!(second["max_over_min"], 1.0);
        assert_eq!(second["jain"], 1.0);
        assert_eq!(second["pods"]["10.1.0.4:50051"], "backend-2");
        for key in ["p50", "p90", "p99", "p999", "max"] {
            assert!(second["latency_us"][key].is_u64(), "{key}");
        }
    }

    #[test]
    fn an_expected_endpoint_without_a_call_has_share_0_and_there_is_no_ratio() {
        let mut run = sample("a", &[("10.1.0.3:50051", "", 3)]);
        assert_eq!(run.max_over_min, Some(1.0));
        align(std::slice::from_mut(&mut run), &["10.1.0.9:50051".into(), "10.1.0.3:50051".into()]);
        assert_eq!(run.shares.values().copied().collect::<Vec<_>>(), [1.0, 0.0]);
        assert_eq!((run.max_over_min, run.jain), (None, Some(0.5)));
    }

    #[test]
    fn a_run_that_nobody_answered_has_no_figures_rather_than_wrong_ones() {
        let run = sample("a", &[]);
        assert_eq!((run.rpcs, run.failed, run.jain, run.latency_us), (1, 1, None, Latency::default()));
        assert!(run.curve.is_empty());
    }

    #[test]
    fn the_curve_never_falls_and_reaches_into_the_last_call() {
        let curve = sample("a", &[("10.1.0.3:1", "", 10_000)]).curve;
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(curve.last().unwrap().0 > 0.9998);
    }
}

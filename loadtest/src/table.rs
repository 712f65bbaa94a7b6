//! Reports as a terminal shows them: one column per run, one row per figure and per endpoint. Pure.

use std::fmt::Display;

use crate::report::RunReport;
use crate::units::Micros;

impl RunReport {
    /// This run alone.
    pub(crate) fn table(&self) -> String {
        table(std::slice::from_ref(self))
    }
}

/// What a row shows of a run.
pub(crate) type Figure = fn(&RunReport) -> String;

/// The figures below the shares, and what they are called.
pub(crate) const FIGURES: [(&str, Figure); 12] = [
    ("max/min", |run| run.max_over_min.map_or_else(|| absent(run).to_owned(), |v| format!("{v:.3}"))),
    ("Jain's index", |run| or_dash(run.jain.map(|v| format!("{v:.4}")))),
    ("p50", |run| micros(run.latency_us.p50)),
    ("p90", |run| micros(run.latency_us.p90)),
    ("p99", |run| micros(run.latency_us.p99)),
    ("p99.9", |run| micros(run.latency_us.p999)),
    ("max", |run| micros(run.latency_us.max)),
    ("RPCs", |run| run.rpcs.to_string()),
    ("failed", |run| run.failed.to_string()),
    ("RPC/s", |run| format!("{:.0}", run.rpcs_per_second)),
    ("duration", |run| Micros(run.seconds * 1e6).to_string()),
    ("connections", |run| run.connections.to_string()),
];

/// All runs side by side; they must list the same endpoints ([`crate::report::align`]).
pub(crate) fn table(runs: &[RunReport]) -> String {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(runs.iter().map(|run| run.name.clone()));
    for endpoint in runs.first().into_iter().flat_map(|run| run.calls.keys()) {
        let pod = runs.iter().find_map(|run| run.pods.get(endpoint));
        let label = pod.map_or_else(|| endpoint.to_string(), |pod| format!("{endpoint}  {pod}"));
        let shares = runs.iter().map(|run| percent(run.shares.get(endpoint).copied().unwrap_or_default()));
        rows.push([label].into_iter().chain(shares).collect());
    }
    for (label, figure) in FIGURES {
        rows.push([label.to_owned()].into_iter().chain(runs.iter().map(figure)).collect());
    }
    let lines = aligned(&rows) + &notes(runs);
    format!("{lines}\n")
}

/// What needs words: failures by status, calls resent or never started.
fn notes(runs: &[RunReport]) -> String {
    let mut notes = String::new();
    for run in runs {
        let mut note = |text: String| notes.push_str(&format!("\n{}: {text}", run.name));
        for (code, calls) in &run.failed_by_code {
            note(format!("{calls} ended with {code}"));
        }
        if run.resent > 0 {
            note(format!("{} sent again, as the first attempt never started", run.resent));
        }
        if run.not_started > 0 {
            note(format!("{} never started", run.not_started));
        }
    }
    notes
}

/// First column to the left, the others to the right, the first row underlined.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cell = |(column, text): (usize, &String)| match column {
                0 => format!("{text:<width$}", width = widths[0]),
                _ => format!("  {text:>width$}", width = widths[column]),
            };
            row.iter().enumerate().map(cell).collect()
        })
        .collect();
    lines.insert(1, "-".repeat(widths.iter().sum::<usize>() + 2 * (columns - 1)));
    lines.join("\n")
}

/// Why there is no ratio.
fn absent(run: &RunReport) -> &'static str {
    if run.calls.values().any(|&calls| calls > 0) { "one has none" } else { "–" }
}

/// `25.0 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

pub(crate) fn micros(value: Option<u64>) -> String {
    or_dash(value.map(|value| Micros(value as f64)))
}

pub(crate) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{align, tests::sample};

    #[test]
    fn runs_stand_side_by_side_and_their_columns_line_up() {
        let mut runs = [
            sample("kube-proxy", &[("10.1.0.3:50051", "backend-1", 4)]),
            sample("sluice", &[("10.1.0.3:50051", "backend-1", 2), ("10.1.0.4:50051", "backend-2", 2)]),
        ];
        align(&mut runs, &[]);
        let table = table(&runs);
        let lines: Vec<&str> = table.lines().collect();
        let (head, first, second) = (lines[0], lines[2], lines[3]);
        assert!(first.starts_with("10.1.0.3:50051  backend-1") && first.ends_with("50.0 %"), "{table}");
        assert!(second.contains(" 0.0 %"), "{table}");
        assert_eq!(head.chars().count(), first.chars().count());
        assert!(table.contains("one has none") && table.contains("1.000"), "{table}");
        assert!(table.contains("sluice: 1 ended with UNAVAILABLE"), "{table}");
    }
}

//! The scenarios as one HTML page: for each its figures and three charts over time, one line per address. Pure.

use super::report::{Report, Run, ScenarioReport};
use super::table::figures;
use crate::html::{document, escape, legend, row, rows};
use crate::html_chart::{Line, Scale, lines};

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let sections: String = report.scenarios.iter().map(|scenario| section(report, scenario)).collect();
    let (seconds, connections) = (report.seconds, report.connections);
    let timeout = report.timeout_ms as f64 / 1000.0;
    document(
        "Load test: scenarios",
        &format!(
            "<header><h1>The same load while pods are slow, fail, vanish or come and go</h1><p>Each run lasts {seconds} s \
             on {connections} connections; a call's deadline is {timeout} s. Calls are made on a fixed schedule, and \
             stand in the charts where they were due. Shaded: one pod misbehaves.</p></header>\n{sections}"
        ),
    )
}

fn section(report: &Report, scenario: &ScenarioReport) -> String {
    let names: Vec<String> = scenario.runs.iter().map(|run| escape(&run.via)).collect();
    let legend = legend(&names);
    let mut body = String::new();
    for (label, figure) in figures(scenario) {
        body += &row(&escape(label), scenario.runs.iter().map(figure));
    }
    let table = rows(&names, &body);
    let chart = |title: &str, scale: Scale, values: &dyn Fn(&Run) -> Vec<Option<f64>>| {
        let drawn: Vec<Line> =
            scenario.runs.iter().map(|run| Line { name: escape(&run.via), values: values(run) }).collect();
        let svg = lines(title, &scale, &drawn, report.seconds, &bands(report, scenario));
        format!(r#"<p class="small">{title}</p>{svg}"#)
    };
    let failed = chart("Failed calls", Scale::Share, &|run| shares(&run.series.failed, &run.series.calls));
    let p99 = chart("p99", Scale::Micros, &|run| {
        run.series.p99_us.iter().map(|micros| micros.map(|micros| micros as f64)).collect()
    });
    let has = |test: fn(&Run) -> bool| scenario.runs.iter().any(test);
    let spread = if has(|run| run.series.bad_pod.is_some()) {
        chart("The bad pod's share of the calls", Scale::Share, &|run| {
            run.series.bad_pod.as_ref().map_or_else(Vec::new, |bad| shares(bad, &run.series.calls))
        })
    } else if has(|run| !run.series.open_streams.is_empty()) {
        chart("The busiest pod's share of the open streams", Scale::Share, &|run| {
            busiest(run.series.open_streams.values())
        })
    } else {
        chart("The busiest pod's share of the calls", Scale::Share, &|run| busiest(run.series.pods.values()))
    };
    let (name, about, rate) = (escape(scenario.name), escape(scenario.about), scenario.rate);
    format!(
        "<section><h2>{name}</h2><p>{about} {rate:.0} calls a second.</p>{table}{legend}{failed}{p99}{spread}</section>\n"
    )
}

/// When a pod was bad: of the first run, as all have the same plan.
fn bands(report: &Report, scenario: &ScenarioReport) -> Vec<(f64, f64)> {
    let part = |ms: u64| (ms as f64 / 1000.0 / report.seconds).min(1.0);
    let times = scenario.runs.first().into_iter().flat_map(|run| &run.bad_ms);
    times.map(|&[from, to]| (part(from), part(to))).collect()
}

fn shares(parts: &[u64], wholes: &[u64]) -> Vec<Option<f64>> {
    parts.iter().zip(wholes).map(|(&part, &whole)| (whole > 0).then(|| (part as f64 / whole as f64).min(1.0))).collect()
}

/// Bucket by bucket the largest share that one of them has.
fn busiest<'a>(pods: impl Iterator<Item = &'a Vec<u64>>) -> Vec<Option<f64>> {
    let pods: Vec<_> = pods.collect();
    let at = |place: usize| {
        let here = || pods.iter().map(|pod| pod[place]);
        let sum: u64 = here().sum();
        Some(here().max()? as f64 / (sum > 0).then_some(sum)? as f64)
    };
    (0..pods.first().map_or(0, |pod| pod.len())).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::plan::Scenario;
    use crate::scenarios::record::Recording;
    use crate::scenarios::table::tests::report;

    #[test]
    fn the_page_refers_to_nothing_outside_itself_and_names_are_text() {
        let evil = r#"<script>alert("x")</script>"#;
        let mut report = report();
        report.scenarios[0].runs[0].via = evil.to_owned();
        let page = page(&report);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
        for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "NaN", "inf"] {
            assert!(!page.contains(reference), "{reference}");
        }
    }

    #[test]
    fn every_scenario_has_three_charts_with_a_line_for_each_address_and_shades_what_was_bad() {
        let report = report();
        let page = page(&report);
        assert_eq!(page.matches(r#"<svg role="img""#).count(), 3 * report.scenarios.len());
        let slow = page.split("<section>").find(|section| section.contains("<h2>slow</h2>")).unwrap();
        assert_eq!(slow.matches(r#"class="band" x="10.00%" width="50.00%""#).count(), 3);
        assert_eq!(slow.matches("<g class=\"run").count(), 3 * 2);
        assert!(slow.contains("The bad pod"), "{slow}");
    }

    #[test]
    fn a_run_without_any_call_still_makes_a_page() {
        let mut report = report();
        report.scenarios[0].runs =
            vec![crate::scenarios::measure::tests::measured(Scenario::Slow, &Recording::default())];
        assert!(page(&report).contains("Nothing to show"));
    }

    #[test]
    fn the_busiest_pods_share_is_of_each_moment() {
        let pods = [vec![1, 0, 0], vec![3, 5, 0]];
        assert_eq!(busiest(pods.iter()), [Some(0.75), Some(1.0), None]);
    }
}

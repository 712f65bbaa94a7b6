//! The charts of the HTML reports as inline SVG: bars of the shares, curves of the latencies, lines over time. Positions
//! across are in percent and text is in pixels, so that a narrow window shrinks the chart and not the writing. Pure.

use std::fmt::Write;

use crate::html::{colour, escape};
use crate::report::RunReport;
use crate::table::percent;
use crate::units::Micros;

/// Pixels of the bars chart.
const LABEL: usize = 20;
const BAR: usize = 18;
const GAP: usize = 14;
/// The longest bar, in percent of the width: the rest is for its figure.
const LONGEST: f64 = 80.0;

/// Pixels of the charts with curves: height of the plot and of the labels below it.
const PLOT: f64 = 260.0;
const TICKS: f64 = 24.0;
/// Height of a plot over time.
const OVER_TIME: f64 = 150.0;

/// One group of bars per endpoint, one bar per run, and a line at the even share.
pub(crate) fn shares(runs: &[RunReport]) -> String {
    let endpoints: Vec<_> = runs.first().into_iter().flat_map(|run| run.shares.keys()).collect();
    let largest = runs.iter().flat_map(|run| run.shares.values().copied()).fold(0.0, f64::max);
    if largest == 0.0 {
        return "<p>No endpoint answered.</p>".to_owned();
    }
    let across = |share: f64| share / largest * LONGEST;
    let even = 1.0 / endpoints.len() as f64;
    let mut bars = String::new();
    let mut y = LABEL;
    for endpoint in endpoints {
        let pod = runs.iter().find_map(|run| run.pods.get(endpoint)).map(|pod| escape(pod)).unwrap_or_default();
        let address = escape(&endpoint.to_string());
        let _ = write!(bars, r#"<text y="{}">{address} <tspan class="soft">{pod}</tspan></text>"#, y + 14);
        y += LABEL;
        let first = y;
        for (index, run) in runs.iter().enumerate() {
            let share = run.shares.get(endpoint).copied().unwrap_or_default();
            let (class, name, value) = (colour(index), escape(&run.name), percent(share));
            let calls = run.calls.get(endpoint).copied().unwrap_or_default();
            let (top, thick, width) = (y + 2, BAR - 4, across(share));
            let _ = write!(
                bars,
                r#"<g class="{class}"><title>{name}: {calls} calls, {value}</title><rect class="track" y="{top}" width="{LONGEST}%" height="{thick}" rx="2"/><rect class="bar" y="{top}" width="{width:.3}%" height="{thick}" rx="2"/><text class="soft" x="100%" y="{}" text-anchor="end">{value}</text></g>"#,
                y + 13
            );
            y += BAR;
        }
        // Only across the bars, so that it strikes through no label.
        let x = across(even);
        let _ = write!(bars, r#"<line class="even" x1="{x:.3}%" x2="{x:.3}%" y1="{first}" y2="{y}"/>"#);
        y += GAP;
    }
    let (height, x) = (y - GAP, across(even));
    // The words stand on the side of the line that has room.
    let (anchor, dx) = if x < 50.0 { ("start", 5) } else { ("end", -5) };
    format!(
        r#"<svg role="img" aria-label="Share of the calls per endpoint and run" height="{height}">{bars}<line class="even" x1="{x:.3}%" x2="{x:.3}%" y1="2" y2="{LABEL}"/><text class="soft" x="{x:.3}%" dx="{dx}" y="12" text-anchor="{anchor}">even share {}</text></svg>"#,
        percent(even)
    )
}

/// Latency over the share of the calls; the axis gives each further nine the same room.
pub(crate) fn latency(runs: &[RunReport]) -> String {
    let points = || runs.iter().flat_map(|run| run.curve.iter());
    let nines = |share: f64| -(1.0 - share).log10();
    let last = points().map(|p| nines(p.0)).fold(0.0, f64::max);
    let (low, high) = points().fold((f64::MAX, 0.0_f64), |(low, high), p| (low.min(p.1), high.max(p.1)));
    if last == 0.0 || low <= 0.0 {
        return "<p>Too few calls succeeded to draw a curve.</p>".to_owned();
    }
    let (low, high) = bounds(low, high);
    let up = |micros: f64| PLOT * (1.0 - (micros / low).ln() / (high / low).ln());
    let (mut chart, mut labels) = (String::new(), String::new());
    for tick in ticks(low, high) {
        let y = up(tick);
        let _ = write!(chart, r#"<line class="grid" x1="0" x2="100%" y1="{y:.1}" y2="{y:.1}"/>"#);
        // Above the curves, which may pass behind.
        let _ = write!(labels, r#"<text class="soft halo" y="{:.1}">{}</text>"#, y - 4.0, Label(tick));
    }
    for (share, label) in
        [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %")]
    {
        let x = nines(share) / last * 100.0;
        if x > 100.0 {
            break;
        }
        let anchor = if x > 96.0 { "end" } else { "middle" };
        let _ = write!(
            chart,
            r#"<line class="grid" x1="{x:.2}%" x2="{x:.2}%" y1="0" y2="{PLOT}"/><text class="soft" x="{x:.2}%" y="{}" text-anchor="{anchor}">{label}</text>"#,
            PLOT + 17.0
        );
    }
    let mut curves = String::new();
    for (index, run) in runs.iter().enumerate() {
        let path: String =
            run.curve.iter().map(|p| format!("{:.1},{:.1} ", nines(p.0) / last * 1000.0, up(p.1))).collect();
        let (class, name) = (colour(index), escape(&run.name));
        let _ =
            write!(curves, r#"<g class="{class}"><title>{name}</title><polyline class="curve" points="{path}"/></g>"#);
    }
    let height = PLOT + TICKS;
    format!(
        r#"<svg role="img" aria-label="Latency by share of the calls" height="{height}">{chart}<svg viewBox="0 0 1000 {PLOT}" preserveAspectRatio="none" width="100%" height="{PLOT}">{curves}</svg>{labels}</svg>"#
    )
}

/// What a chart over time shows.
pub(crate) enum Scale {
    /// Parts of a whole, up to what there is.
    Share,
    /// Microseconds, logarithmic.
    Micros,
}

/// One line of a chart over time: a value for each bucket, all of the same length.
pub(crate) struct Line {
    /// As HTML already.
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

/// Lines over so many seconds, in the colours of their places; `bands` (parts of the width, 0 to 1) are shaded.
pub(crate) fn lines(label: &str, scale: &Scale, lines: &[Line], seconds: f64, bands: &[(f64, f64)]) -> String {
    let values = || lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    if values().next().is_none() {
        return "<p>Nothing to show.</p>".to_owned();
    }
    let (low, high) = match scale {
        Scale::Share => {
            (0.0, [0.05, 0.1, 0.25, 0.5].into_iter().find(|&top| values().all(|v| v <= top)).unwrap_or(1.0))
        }
        Scale::Micros => bounds(values().fold(f64::MAX, f64::min).max(1.0), values().fold(1.0, f64::max)),
    };
    let up = |value: f64| match scale {
        Scale::Share => OVER_TIME * (1.0 - value.min(high) / high),
        Scale::Micros => OVER_TIME * (1.0 - (value.max(low) / low).ln() / (high / low).ln()),
    };
    let levels: Vec<(f64, String)> = match scale {
        Scale::Share => [0.0, 0.5, 1.0].map(|part| (part * high, percent(part * high))).into(),
        Scale::Micros => ticks(low, high).into_iter().map(|tick| (tick, Label(tick).to_string())).collect(),
    };
    let (mut chart, mut labels) = (String::new(), String::new());
    for (from, to) in bands {
        let (x, width) = (from * 100.0, (to - from) * 100.0);
        let _ = write!(chart, r#"<rect class="band" x="{x:.2}%" width="{width:.2}%" y="0" height="{OVER_TIME}"/>"#);
    }
    let mut last = f64::MAX;
    for (level, text) in levels {
        let y = up(level);
        if last - y < LABEL as f64 {
            continue;
        }
        last = y;
        let _ = write!(chart, r#"<line class="grid" x1="0" x2="100%" y1="{y:.1}" y2="{y:.1}"/>"#);
        let _ = write!(labels, r#"<text class="soft halo" y="{:.1}">{text}</text>"#, y - 4.0);
    }
    let every = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0].into_iter().find(|step| seconds / step <= 12.0).unwrap_or(300.0);
    for number in 0..=(seconds / every) as u32 {
        let at = f64::from(number) * every;
        let x = at / seconds * 100.0;
        let anchor = match x {
            x if x < 2.0 => "start",
            x if x > 98.0 => "end",
            _ => "middle",
        };
        let _ = write!(
            chart,
            r#"<text class="soft" x="{x:.2}%" y="{}" text-anchor="{anchor}">{at} s</text>"#,
            OVER_TIME + 17.0
        );
    }
    let mut curves = String::new();
    for (index, line) in lines.iter().enumerate() {
        let across = |place: usize| (place as f64 + 0.5) / line.values.len() as f64 * 1000.0;
        let _ = write!(curves, r#"<g class="{}"><title>{}</title>"#, colour(index), line.name);
        // A bucket without a value is a gap.
        for piece in line.values.iter().enumerate().collect::<Vec<_>>().split(|(_, value)| value.is_none()) {
            let point = |(place, value): &(usize, &Option<f64>)| {
                value.map(|value| format!("{:.1},{:.1} ", across(*place), up(value)))
            };
            let points: String = piece.iter().filter_map(point).collect();
            if !points.is_empty() {
                let _ = write!(curves, r#"<polyline class="curve thin" points="{points}"/>"#);
            }
        }
        curves.push_str("</g>");
    }
    let height = OVER_TIME + TICKS;
    format!(
        r#"<svg role="img" aria-label="{label}" height="{height}">{chart}<svg viewBox="0 0 1000 {OVER_TIME}" preserveAspectRatio="none" width="100%" height="{OVER_TIME}">{curves}</svg>{labels}</svg>"#
    )
}

/// The 1-2-5 values around what is shown.
fn bounds(low: f64, high: f64) -> (f64, f64) {
    let below = steps().take_while(|&step| step <= low).last().unwrap_or(low);
    let above = steps().find(|&step| step > high).unwrap_or(high * 2.0);
    (below, above)
}

/// Where to draw a line: each 1-2-5 value, or only the powers of ten if that is too many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let all: Vec<f64> = steps().filter(|&step| step >= low && step < high).collect();
    if all.len() <= 8 {
        return all;
    }
    all.into_iter().filter(|step| step.log10().fract().abs() < 1e-9).collect()
}

/// 1, 2, 5, 10 … in tenths of a microsecond up to days.
fn steps() -> impl Iterator<Item = f64> {
    (-1..12).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
}

/// A round number of microseconds: `200 µs`, `5 ms`.
struct Label(f64);

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            v if v < 1e3 => write!(f, "{v} µs"),
            v if v < 1e6 => write!(f, "{} ms", v / 1e3),
            v => Micros(v).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{align, tests::sample};

    #[test]
    fn an_endpoint_without_a_call_has_a_bar_of_no_width() {
        let mut runs =
            [sample("a", &[("10.1.0.3:1", "p", 4)]), sample("b", &[("10.1.0.3:1", "p", 2), ("10.1.0.4:1", "q", 2)])];
        align(&mut runs, &[]);
        let chart = shares(&runs);
        assert_eq!(chart.matches(r#"class="bar""#).count(), 4);
        assert!(chart.contains(r#"width="0.000%""#) && chart.contains("a: 0 calls, 0.0 %"), "{chart}");
        assert!(chart.contains("even share 50.0 %"));
    }

    #[test]
    fn every_run_with_latencies_has_a_curve_inside_the_plot() {
        let chart = latency(&[sample("a", &[("10.1.0.3:1", "p", 1000)]), sample("b", &[("10.1.0.3:1", "p", 2000)])]);
        let curves: Vec<&str> = chart.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(curves.len(), 2);
        for point in curves.iter().flat_map(|curve| curve.split_whitespace()) {
            let (x, y) = point.split_once(',').unwrap();
            assert!((0.0..=1000.0).contains(&x.parse::<f64>().unwrap()), "{point}");
            assert!((0.0..=PLOT).contains(&y.parse::<f64>().unwrap()), "{point}");
        }
    }

    #[test]
    fn every_line_over_time_stays_inside_the_plot_and_breaks_where_nothing_is_known() {
        let line = |values: &[Option<f64>]| Line { name: "a".to_owned(), values: values.to_vec() };
        for (scale, values) in
            [(Scale::Share, [Some(0.0), None, Some(1.0)]), (Scale::Micros, [Some(0.0), None, Some(3e6)])]
        {
            let chart = lines("x", &scale, &[line(&values), line(&[None; 3])], 10.0, &[(0.1, 0.6)]);
            let pieces: Vec<&str> =
                chart.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
            assert_eq!(pieces.len(), 2, "{chart}");
            for point in pieces.iter().flat_map(|piece| piece.split_whitespace()) {
                let (x, y) = point.split_once(',').unwrap();
                assert!((0.0..=1000.0).contains(&x.parse::<f64>().unwrap()), "{point}");
                assert!((0.0..=OVER_TIME).contains(&y.parse::<f64>().unwrap()), "{point}");
            }
            assert!(chart.contains(r#"class="band" x="10.00%" width="50.00%""#) && !chart.contains("NaN"), "{chart}");
        }
        assert!(lines("x", &Scale::Share, &[], 10.0, &[]).contains("Nothing"));
    }

    #[test]
    fn the_axis_has_a_few_round_numbers_however_wide_the_range() {
        for (low, high) in [(100.0, 140.0), (80.0, 9_000.0), (3.0, 20_000_000.0)] {
            let (low, high) = bounds(low, high);
            let ticks = ticks(low, high);
            assert!((1..=9).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
        }
    }
}

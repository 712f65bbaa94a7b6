//! Measurements as text, as Markdown and as JSON. In: sections; out, strings. Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::figures::{Figure, Row, Section, Shown, Spread};

/// Name of the column with the ratio.
pub(crate) const RATIO: &str = "sluice ÷ it";
/// What that column and the others mean, once for all tables.
pub(crate) const NOTE: &str = "median (least–most) of the rounds; where one number stands alone, the median. sluice ÷ it: of \
    the first column, round by round; haproxy-tls is compared with sluice-opaque, both relay TLS, which costs both ends. \
    ÷ first: CPU/call divided by what the same proxy needed in the first table of the case, round by round. CPU: of all \
    threads of the proxy. RSS: at the end, peak: while it ran, PSS: what processes share, also those of other rows, is \
    divided among them.";

/// The machine, as a line.
pub(crate) fn header(machine: &[(&str, String)]) -> String {
    machine.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// A table as text, with its title.
pub(crate) fn text(section: &Section) -> String {
    let lines = cells(section);
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = format!("{}: {}\n", section.name, section.about);
    for line in &lines {
        let mut row = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            match i {
                0 => row += &format!("{cell:<width$}"),
                _ => row += &format!("  {cell:>width$}"),
            }
        }
        let _ = writeln!(out, "{}", row.trim_end());
    }
    out
}

/// The same as Markdown.
pub(crate) fn markdown(machine: &[(&str, String)], sections: &[Section]) -> String {
    let mut out = format!("{}.\n\n{NOTE}\n", header(machine));
    for section in sections {
        let lines = cells(section);
        let _ = writeln!(out, "\n**{}**: {}\n", section.name, section.about);
        for (i, line) in lines.iter().enumerate() {
            let _ = writeln!(out, "| {} |", line.join(" | "));
            if i == 0 {
                let _ = writeln!(out, "| --- |{}", " ---: |".repeat(line.len() - 1));
            }
        }
    }
    out
}

/// Everything, each sample included.
pub(crate) fn json(machine: &[(&str, String)], sections: &[Section]) -> Value {
    let machine: Map<_, _> = machine.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let row = |section: &Section, row: &Row| {
        let figures = row.figures.iter().map(|(figure, samples)| {
            let mut value = spread(Spread::of(samples));
            value["samples"] = json!(samples);
            (figure.key.to_owned(), value)
        });
        json!({
            "name": row.name, "figures": figures.collect::<Map<_, _>>(),
            "baseline": row.baseline, "baseline_to_this": section.ratio(row).map(|ratio| spread(Some(ratio))),
        })
    };
    let section = |section: &Section| {
        json!({
            "name": section.name, "about": section.about, "compared_by": section.leading.key,
            "rows": section.rows.iter().map(|it| row(section, it)).collect::<Vec<_>>(),
        })
    };
    json!({ "machine": machine, "sections": sections.iter().map(section).collect::<Vec<_>>() })
}

fn spread(spread: Option<Spread>) -> Value {
    spread.map_or(Value::Null, |it| json!({ "median": it.median, "min": it.least, "max": it.most }))
}

/// The table's head, then a line for each row: the name, what the columns show, the ratio where there is one.
pub(crate) fn cells(section: &Section) -> Vec<Vec<String>> {
    let columns = section.columns();
    let has_ratio = section.rows.iter().any(|row| section.ratio(row).is_some());
    let mut head = vec![String::new()];
    head.extend(columns.iter().map(|figure| format!("{} {}", figure.title, figure.unit).trim_end().to_owned()));
    head.extend(has_ratio.then(|| RATIO.to_owned()));
    let line = |row: &Row| {
        let mut line = vec![row.name.clone()];
        line.extend(columns.iter().map(|figure| cell(*figure, Spread::of(row.samples(*figure)))));
        if has_ratio {
            line.push(section.ratio(row).map_or_else(String::new, |ratio| with_spread(ratio, 2)));
        }
        line
    };
    std::iter::once(head).chain(section.rows.iter().map(line)).collect()
}

fn cell(figure: Figure, spread: Option<Spread>) -> String {
    match (spread, figure.shown) {
        (None, _) => "–".to_owned(),
        (Some(spread), Shown::Spread) => with_spread(spread, figure.digits),
        (Some(spread), _) => number(spread.median, figure.digits),
    }
}

fn with_spread(spread: Spread, digits: usize) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(|value| number(value, digits));
    format!("{median} ({least}–{most})")
}

/// With a comma between thousands, as 121,212 or 3.28.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::figures::{CPU, P90, P99, RATE, RSS};
    use super::*;

    /// sluice in half of HAProxy's time, and no proxy at all.
    pub(crate) fn sample() -> Section {
        let mut rows = vec![
            Row::new("kube-proxy", Some("sluice".into())),
            Row::new("sluice", None),
            Row::new("haproxy", Some("sluice".into())),
        ];
        for round in [0.0, 1.0, 2.0] {
            rows[0].add(&[(RATE, 100_000.0 + round), (P99, 90.0)]);
            for (i, cpu) in [(1, 4.0), (2, 8.0)] {
                rows[i].add(&[(RATE, 1234.0), (P99, 100.0), (P90, 50.0), (CPU, cpu + round), (RSS, 8.25)]);
            }
        }
        Section { name: "10x20".into(), about: "what <was> done".into(), leading: CPU, rows }
    }

    #[test]
    fn numbers_have_commas_between_thousands() {
        let of = |value, digits| number(value, digits);
        assert_eq!([of(1_234_567.4, 0), of(999.0, 0), of(-1234.5, 1)], ["1,234,567", "999", "-1,234.5"]);
        assert_eq!([of(0.126, 2), of(-0.5, 1)], ["0.13", "-0.5"]);
    }

    #[test]
    fn a_table_begins_with_what_rows_are_compared_by_and_ends_with_the_ratio() {
        let expected = "\
10x20: what <was> done
                  CPU/call µs                      RPC/s  p99 µs  RSS MiB       sluice ÷ it
kube-proxy                  –  100,001 (100,000–100,002)      90        –
sluice       5.00 (4.00–6.00)        1,234 (1,234–1,234)     100      8.2
haproxy     9.00 (8.00–10.00)        1,234 (1,234–1,234)     100      8.2  0.56 (0.50–0.60)
";
        assert_eq!(text(&sample()), expected);
    }

    #[test]
    fn markdown_is_a_table_with_the_machine_above() {
        let text = markdown(&[("kernel", "6.18".into()), ("CPU", "2 × x".into())], &[sample()]);
        assert!(text.starts_with("kernel 6.18, CPU 2 × x.\n"));
        assert!(text.contains("\n| --- | ---: | ---: | ---: | ---: | ---: |\n| kube-proxy | – | 100,001 ("));
    }

    #[test]
    fn the_json_has_each_sample_and_the_paired_ratio() {
        let json = json(&[("kernel", "6.18".into())], &[sample()]);
        let rows = &json["sections"][0]["rows"];
        assert_eq!(json["machine"]["kernel"], "6.18");
        assert_eq!(rows[2]["figures"]["cpu_us_per_call"]["samples"], json!([8.0, 9.0, 10.0]));
        assert_eq!(rows[2]["figures"]["latency_p90_us"]["median"], 50.0);
        assert_eq!(rows[2]["baseline_to_this"]["max"], 0.6);
        assert_eq!(rows[1]["baseline_to_this"], Value::Null);
        assert_eq!(rows[0]["baseline_to_this"], Value::Null);
    }
}

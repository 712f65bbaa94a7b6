//! Measurements as one HTML file that needs nothing else: no script, no font, no image. Light and dark as the reader's
//! system has it. In: sections; out, a string. Pure.

use super::figures::{Section, Spread};
use super::report;

const STYLE: &str = "\
:root{--page:#f4f5f7;--card:#fff;--ink:#1a2029;--soft:#5b6675;--line:#d9dee5;--bar:#8b96a5;--own:#0f8a63}
@media (prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--ink:#e7ebf0;--soft:#9aa6b5;--line:#333c48;--bar:#6b7787;--own:#4cc79a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif}
main{max-width:90rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:0}
p{margin:.25rem 0 .75rem;color:var(--soft);overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.25rem;margin-top:1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0;font-weight:400}thead th{color:var(--soft);font-weight:600}
tr:last-child>*{border-bottom:0}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:.3rem .8rem;align-items:center;margin:0 0 1rem;font-variant-numeric:tabular-nums}
.track{background:var(--line);border-radius:3px;overflow:hidden}.bar{background:var(--bar);height:.9rem}.own{background:var(--own)}
";

/// The page.
pub(crate) fn page(machine: &[(&str, String)], sections: &[Section]) -> String {
    let sections: String = sections.iter().map(section).collect();
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>sluice: benchmark</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>What calls cost, side by side</h1>
<p>{}</p>
<p>{}</p>
{sections}</main>
</body>
</html>
"#,
        escape(&report::header(machine)),
        escape(report::NOTE)
    )
}

fn section(section: &Section) -> String {
    format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n{}{}</section>\n",
        escape(&section.name),
        escape(&section.about),
        bars(section),
        table(section)
    )
}

/// The medians of what rows are compared by; the longest bar is the largest one's.
fn bars(section: &Section) -> String {
    let figure = section.leading;
    let medians = section.rows.iter().filter_map(|row| Some((row, Spread::of(row.samples(figure))?.median)));
    let medians: Vec<_> = medians.collect();
    let most = medians.iter().map(|(_, median)| *median).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let bar = |(row, median): &(&super::figures::Row, f64)| {
        let own = if row.name.starts_with("sluice") { " own" } else { "" };
        format!(
            "<span>{}</span><div class=\"track\"><div class=\"bar{own}\" style=\"width:{:.1}%\"></div></div><span>{} {}</span>\n",
            escape(&row.name),
            (median / most * 100.0).clamp(0.0, 100.0),
            report::number(*median, figure.digits),
            figure.unit
        )
    };
    format!("<p>{}</p>\n<div class=\"bars\">\n{}</div>\n", figure.title, medians.iter().map(bar).collect::<String>())
}

fn table(section: &Section) -> String {
    let mut lines = report::cells(section).into_iter();
    let head = lines.next().unwrap_or_default();
    let head: String = head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell))).collect();
    let row = |line: Vec<String>| {
        let cells: String = line[1..].iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(&line[0]))
    };
    let body: String = lines.map(row).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_bars_and_the_table_and_needs_nothing_else() {
        let page = page(&[("kernel", "<6>".into())], &[report::tests::sample()]);
        assert!(page.contains("kernel &lt;6&gt;") && page.contains("what &lt;was&gt; done"));
        assert!(page.contains(r#"<div class="bar own" style="width:55.6%">"#), "{page}");
        assert!(page.contains(r#"<div class="bar" style="width:100.0%">"#));
        assert!(page.contains("<td>9.00 (8.00–10.00)</td>"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
    }
}

//! Reports as HTML pages that need nothing else: no script, no font, no image from anywhere. Light and dark as the reader's
//! system has it, wide and narrow. Here the comparison's page and what all pages share. Pure; charts are in `html_chart`.

use std::fmt::Write;

use crate::html_chart;
use crate::report::RunReport;
use crate::table::{FIGURES, percent};

/// The page; the runs must list the same endpoints ([`crate::report::align`]).
pub(crate) fn page(runs: &[RunReport]) -> String {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let title = names.join(" · ");
    let shares = html_chart::shares(runs);
    let latency = html_chart::latency(runs);
    let legend = legend(&names);
    let cards: String = runs.iter().enumerate().map(card).collect();
    let table = table(runs);
    document(
        &format!("Load test: {title}"),
        &format!(
            r#"<header><h1>How the same load was spread</h1><p>{title}</p></header>
<section class="cards">{cards}</section>
<section><h2>Calls per endpoint</h2>{legend}{shares}</section>
<section><h2>Latency</h2><p>Within what time the given share of the calls had ended. Both axes are logarithmic.</p>{legend}{latency}</section>
<section><h2>Figures</h2>{table}</section>"#
        ),
    )
}

/// A page around what is HTML already.
pub(crate) fn document(title: &str, main: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{main}
</main>
</body>
</html>
"#
    )
}

const STYLE: &str = r#"
:root{--page:#f4f5f7;--card:#fff;--ink:#1a2029;--soft:#5b6675;--line:#d9dee5;
--c0:#b45309;--c1:#1d6fd1;--c2:#0f8a63;--c3:#a1338f;--c4:#58606e;--c5:#8a7a00}
@media (prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--ink:#e7ebf0;--soft:#9aa6b5;--line:#333c48;
--c0:#f0a052;--c1:#6aaef9;--c2:#4cc79a;--c3:#df86cf;--c4:#a7b0be;--c5:#d6c648}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:0}h2{font-size:1.05rem;margin:0 0 .5rem}
p{margin:.25rem 0 .75rem;color:var(--soft);overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.25rem;margin-top:1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem;background:none;border:0;padding:0}
.card{background:var(--card);border:1px solid var(--line);border-top:4px solid var(--run);border-radius:10px;padding:.9rem 1.25rem}
.card h2{overflow-wrap:anywhere}.card p{margin:0 0 .6rem;font-size:.85rem}
dl{display:grid;grid-template-columns:1fr auto;gap:.15rem 1rem;margin:0}
dt{color:var(--soft)}dd{margin:0;text-align:right;font-weight:600;font-variant-numeric:tabular-nums}
.scroll+.legend{margin-top:1rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0;margin:0 0 .75rem;font-size:.9rem}
.legend li::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;background:var(--run);margin-right:.45em}
svg{display:block;width:100%;overflow:visible}
svg text{fill:var(--ink);font-size:13px;font-family:inherit;font-variant-numeric:tabular-nums}
svg .soft{fill:var(--soft);font-size:12px}
.halo{paint-order:stroke;stroke:var(--card);stroke-width:4px}
.bar{fill:var(--run)}.track{fill:var(--line);opacity:.45}.even{stroke:var(--ink);stroke-dasharray:4 4;opacity:.65}
.band{fill:var(--ink);opacity:.08}.small{font-weight:600;font-size:.9rem;margin:1.4rem 0 1.1rem}
.grid{stroke:var(--line)}.curve{fill:none;stroke:var(--run);stroke-width:2.5;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.thin{stroke-width:1.6}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0;font-weight:400;color:var(--soft)}td:last-child,th:last-child{padding-right:0}
thead th{font-weight:600}tr:last-child>*{border-bottom:0}
.run0{--run:var(--c0)}.run1{--run:var(--c1)}.run2{--run:var(--c2)}.run3{--run:var(--c3)}.run4{--run:var(--c4)}.run5{--run:var(--c5)}
"#;

/// The class that gives a run its colour; six colours, then again from the first.
pub(crate) fn colour(index: usize) -> String {
    format!("run{}", index % 6)
}

/// Names, as HTML already, with the colours of their places.
pub(crate) fn legend(names: &[String]) -> String {
    let items: String =
        names.iter().enumerate().map(|(i, name)| format!(r#"<li class="{}">{name}</li>"#, colour(i))).collect();
    format!(r#"<ul class="legend">{items}</ul>"#)
}

/// A run in short.
fn card((index, run): (usize, &RunReport)) -> String {
    let shown = ["max/min", "Jain's index", "p50", "p99", "RPC/s", "failed"];
    let mut figures = String::new();
    for (label, figure) in FIGURES.iter().filter(|(label, _)| shown.contains(label)) {
        let _ = write!(figures, "<dt>{label}</dt><dd>{}</dd>", escape(&figure(run)));
    }
    let (class, name, target) = (colour(index), escape(&run.name), escape(&run.target));
    format!(r#"<article class="card {class}"><h2>{name}</h2><p>{target}</p><dl>{figures}</dl></article>"#)
}

/// A table's row; the label is HTML already.
pub(crate) fn row(label: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("<td>{}</td>", escape(&cell))).collect();
    format!(r#"<tr><th scope="row">{label}</th>{cells}</tr>"#)
}

/// Rows below the names of their columns.
pub(crate) fn rows(columns: &[String], body: &str) -> String {
    let head: String = columns.iter().map(|name| format!(r#"<th scope="col">{name}</th>"#)).collect();
    format!(r#"<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"#)
}

fn table(runs: &[RunReport]) -> String {
    let columns: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let mut body = String::new();
    for endpoint in runs.first().into_iter().flat_map(|run| run.calls.keys()) {
        let cells = runs.iter().map(|run| {
            let calls = run.calls.get(endpoint).copied().unwrap_or_default();
            format!("{calls} ({})", percent(run.shares.get(endpoint).copied().unwrap_or_default()))
        });
        body += &row(&escape(&endpoint.to_string()), cells);
    }
    for (label, figure) in FIGURES {
        body += &row(label, runs.iter().map(figure));
    }
    let codes: std::collections::BTreeSet<&String> = runs.iter().flat_map(|run| run.failed_by_code.keys()).collect();
    for code in codes {
        let cells = runs.iter().map(|run| run.failed_by_code.get(code).copied().unwrap_or_default().to_string());
        body += &row(&format!("failed: {}", escape(code)), cells);
    }
    rows(&columns, &body)
}

/// Text as HTML shows it, safe in attributes too.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{align, tests::sample};

    #[test]
    fn names_from_outside_are_text_and_never_markup() {
        let evil = r#"<script>alert("x")</script>&'"#;
        let mut runs = [sample(evil, &[("10.1.0.3:1", evil, 4)]), sample("b", &[(evil, evil, 4)])];
        runs[0].target = evil.to_owned();
        align(&mut runs, &[]);
        let page = page(&runs);
        assert!(!page.contains("<script") && !page.contains("alert(\""), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;"));
    }

    #[test]
    fn the_page_refers_to_nothing_outside_itself() {
        let mut runs = [sample("a", &[("10.1.0.3:1", "p", 4)]), sample("b", &[("10.1.0.4:1", "q", 4)])];
        align(&mut runs, &[]);
        let page = page(&runs);
        for reference in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert!(page.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn runs_that_nobody_answered_still_make_a_page() {
        let page = page(&[sample("a", &[]), sample("b", &[])]);
        assert!(page.contains("No endpoint answered") && !page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}

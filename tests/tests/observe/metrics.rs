//! Every metric of the agent's table moves when that happens of which it tells: each cause is brought about on a node, and
//! /metrics compared before and after. Then the page itself: both formats, promtool, and what is offered to Prometheus.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use sluice_agent::admin::families::{ALL, Kind};
use testbed::Agent;
use testbed::scene::{wait_for, with_log};

use crate::causes::{Cause, Move, OF_ITSELF, WHILE_IT_SERVES};
use crate::stage::Stage;

/// Those that nothing on a node moves honestly.
const UNMOVED: [(&str, &str); 2] = [
    ("sluice_build_info", "a constant; its version is that of the status"),
    ("sluice_source_sync_age_seconds", "a folder is always followed; the cluster's tests take the API server away"),
];

#[test]
fn every_metric_moves_when_what_it_counts_happens() -> Result<()> {
    let known: BTreeSet<_> = ALL.iter().map(|family| family.name).collect();
    let causes = WHILE_IT_SERVES.into_iter().chain([OF_ITSELF]).flatten();
    let moved = causes.flat_map(|cause| cause.moves).map(|(name, ..)| *name);
    let listed: BTreeSet<_> = moved.chain(UNMOVED.map(|(name, _)| name)).collect();
    ensure!(known == listed, "in one of both only: {:?}", known.symmetric_difference(&listed).collect::<Vec<_>>());

    let mut stage = Stage::new()?;
    WHILE_IT_SERVES.into_iter().flatten().try_for_each(|cause| brings_about(&mut stage, cause))?;
    the_page_is_as_prometheus_wants_it(&stage, &stage.agent.metrics()?)?;
    OF_ITSELF.iter().try_for_each(|cause| brings_about(&mut stage, cause))?;
    UNMOVED.iter().for_each(|(name, why)| println!("not moved: {name}: {why}"));
    Ok(())
}

/// All that is to move does.
fn brings_about(stage: &mut Stage, cause: &Cause) -> Result<()> {
    stage.going_on.clear();
    let before = stage.agent.metrics()?;
    (cause.bring)(stage).with_context(|| cause.what)?;
    let moved = wait_for(cause.what, || {
        let after = stage.agent.metrics()?;
        Ok(cause.moves.iter().all(|it| has_moved(it, &before, &after)).then_some(after))
    });
    let moved = moved.with_context(|| still(cause, &before, &stage.agent));
    let after = with_log(&stage.agent, moved)?;
    println!("{}", cause.what);
    for (name, labels, _) in cause.moves {
        println!("    {name} {labels}: {} → {}", sum(&before, name, labels), sum(&after, name, labels));
    }
    Ok(())
}

fn still(cause: &Cause, before: &str, agent: &Agent) -> String {
    let after = agent.metrics().unwrap_or_default();
    let still = cause.moves.iter().filter(|it| !has_moved(it, before, &after));
    still.map(|(name, labels, _)| format!("{name} {labels}: still {}\n", sum(&after, name, labels))).collect()
}

fn has_moved((name, labels, how): &(&str, &str, Move), before: &str, after: &str) -> bool {
    match how {
        Move::Rises => sum(after, name, labels) > sum(before, name, labels),
        Move::Below(bound) => samples(after, name, labels).any(|value| value < *bound),
    }
}

fn sum(page: &str, name: &str, labels: &str) -> f64 {
    samples(page, name, labels).fold(0.0, |sum, value| sum + value)
}

/// The samples of a metric, those with this part among their labels; of a histogram its count.
fn samples<'a>(page: &'a str, name: &'a str, labels: &'a str) -> impl Iterator<Item = f64> + 'a {
    let histogram = ALL.iter().any(|family| family.name == name && family.kind == Kind::Histogram);
    let suffix = if histogram { "_count" } else { "" };
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?.strip_prefix(suffix)?;
        let (of, value) = rest.rsplit_once(' ')?;
        ((of.is_empty() || of.starts_with('{')) && of.contains(labels)).then(|| value.parse().ok())?
    })
}

fn the_page_is_as_prometheus_wants_it(stage: &Stage, page: &str) -> Result<()> {
    let status = stage.agent.status()?;
    let version = format!("sluice_build_info{{version={}}} 1", status["version"]);
    ensure!(page.lines().any(|line| line == version), "{version} is not in the page");
    let file = stage.node.folder().join("metrics.txt");
    fs::write(&file, page)?;
    let lint = stage.node.command("promtool").args(["check", "metrics"]).stdin(fs::File::open(&file)?);
    let mut lint = lint.spawn().context("apt-get install prometheus")?;
    ensure!(lint.wait()?.success(), "promtool check metrics: what it said stands above");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/monitoring/check.py");
    let checked = stage.node.command("python3").arg(script).arg(&file).output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    println!("{said}");
    ensure!(checked.status.success(), "{script}: {said}{}", String::from_utf8_lossy(&checked.stderr));

    let admin = stage.agent.admin();
    let (kind, open) = stage.node.run_in_netns(|| open_metrics(admin))??;
    ensure!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    ensure!(open.ends_with("\n# EOF\n") && open.matches("# EOF").count() == 1, "the end of {open}");
    let mut types = open.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    if let Some(line) = types.find(|line| line.contains("_total")) {
        bail!("OpenMetrics names a family without _total: {line}");
    }
    // Counters' samples have it all the same, and all that is in one format is in the other.
    let names = |page: &str| -> BTreeSet<String> {
        let sample = page.lines().filter(|line| !line.starts_with('#'));
        sample.filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned)).collect()
    };
    ensure!(names(&open) == names(page), "{:?}", names(&open).symmetric_difference(&names(page)).collect::<Vec<_>>());
    Ok(())
}

/// Content type and page, for who accepts OpenMetrics as Prometheus does.
fn open_metrics(admin: SocketAddr) -> Result<(String, String)> {
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).context("no content-type")?;
    Ok((kind.to_owned(), body.to_owned()))
}

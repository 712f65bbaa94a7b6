//! `loadtest compare`: the same load on each target in turn, then one table, one JSON and one HTML file of all.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::args::{CompareArgs, Named};
use crate::report::{self, Comparison, RunReport};
use crate::run::{exit_code, run};
use crate::{html, table};

/// The command.
pub(crate) async fn main(args: CompareArgs) -> anyhow::Result<ExitCode> {
    if let Err(error) = check(&args) {
        eprintln!("error: {error:#}");
        return Ok(ExitCode::from(2));
    }
    let mut runs = Vec::new();
    let mut cut_short = None;
    for Named { name, value: target } in &args.runs {
        for before in args.before.iter().filter(|before| before.name == *name) {
            prepare(name, &before.value).await?;
        }
        let outcome = run(name, target, &args.load).await.with_context(|| format!("--run {name}"))?;
        cut_short = cut_short.or(outcome.cut_short);
        runs.push(RunReport::new(name, target, &outcome));
        if cut_short.is_some() {
            break;
        }
    }
    report::align(&mut runs, &args.load.expect);
    report::publish(&table::table(&runs), &Comparison { runs: &runs }, args.load.json.as_deref())?;
    if let Some(path) = &args.html {
        report::write(path, &html::page(&runs))?;
    }
    Ok(exit_code(&runs, &args.load, cut_short))
}

/// What the parser cannot see: that the names fit together.
fn check(args: &CompareArgs) -> anyhow::Result<()> {
    ensure!(args.runs.len() >= 2, "a comparison needs two targets; give --run NAME=HOST:PORT a second time");
    for (i, run) in args.runs.iter().enumerate() {
        let is_new = args.runs[..i].iter().all(|other| other.name != run.name);
        ensure!(is_new, "--run {} is given twice; choose another name for one of them", run.name);
    }
    for before in &args.before {
        let is_run = args.runs.iter().any(|run| run.name == before.name);
        ensure!(is_run, "--before {name}: there is no --run {name}=HOST:PORT", name = before.name);
    }
    Ok(())
}

/// Carries out a `--before` command. Its stdout goes to stderr, as ours may be the JSON.
async fn prepare(name: &str, command: &str) -> anyhow::Result<()> {
    let stdout = std::io::stderr();
    let status = Command::new("sh")
        .args(["-c", command])
        .stdout(std::os::fd::AsFd::as_fd(&stdout).try_clone_to_owned()?)
        .status()
        .await
        .context("cannot start sh for --before")?;
    ensure!(status.success(), "--before {name}: \"{command}\" failed ({status}); the comparison ends here");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn checked(line: &[&str]) -> Result<(), String> {
        let line = ["loadtest", "compare"].iter().chain(line);
        let Command::Compare(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not compare") };
        check(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn names_must_fit_together() {
        assert_eq!(checked(&["--run", "a=h:1", "--run", "b=h:1", "--before", "b=true"]), Ok(()));
        assert!(checked(&["--run", "a=h:1"]).unwrap_err().contains("second time"));
        assert!(checked(&["--run", "a=h:1", "--run", "a=h:2"]).unwrap_err().contains("twice"));
        let unknown = checked(&["--run", "a=h:1", "--run", "b=h:2", "--before", "c=true"]).unwrap_err();
        assert!(unknown.contains("no --run c="), "{unknown}");
    }
}

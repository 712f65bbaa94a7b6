//! `loadtest scenarios`: the same load through several addresses of the same servers, while one of them is slow, fails,
//! vanishes, flaps, or all are replaced. Out: tables, one JSON and one HTML file. What a scenario is stands in `plan`, how
//! it is carried out in `drive`, and what its figures mean in `measure`.

mod control;
mod drive;
mod measure;
mod page;
mod plan;
mod record;
pub mod report;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::args::{Named, ScenariosArgs};
use crate::report::{print_table, write, write_json};
use control::Server;
use drive::Common;
use plan::Plan;
pub use plan::{Scenario, Words};
use report::{Report, ScenarioReport};

/// The hooks: ahead of each run, and in the scenario of that name.
const BEFORE: &str = "before";
const ROLL_OUT: &str = "roll-out";

/// The command.
pub(crate) async fn main(args: ScenariosArgs) -> anyhow::Result<ExitCode> {
    let scenarios = chosen(&args);
    if let Err(error) = check(&args, &scenarios) {
        eprintln!("error: {error:#}");
        return Ok(ExitCode::from(2));
    }
    let report = run(&args, &scenarios).await?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &args.html {
        write(path, &page::page(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The hook's command.
fn hook<'a>(args: &'a ScenariosArgs, name: &str) -> Option<&'a str> {
    args.hook.iter().find(|hook| hook.name == name).map(|hook| &*hook.value)
}

/// Those of `--only`, in their own order and each once; without it all that can be had.
fn chosen(args: &ScenariosArgs) -> Vec<Scenario> {
    if args.only.is_empty() {
        let can_run = |scenario: &Scenario| *scenario != Scenario::RollOut || hook(args, ROLL_OUT).is_some();
        return Scenario::ALL.into_iter().filter(can_run).collect();
    }
    let mut chosen: Vec<_> = args.only.iter().flat_map(|words| words.0.clone()).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// What the parser cannot see: that all fits together.
fn check(args: &ScenariosArgs, scenarios: &[Scenario]) -> anyhow::Result<()> {
    for (i, via) in args.via.iter().enumerate() {
        let is_new = args.via[..i].iter().all(|other| other.name != via.name);
        ensure!(is_new, "--via {} is given twice; choose another name for one of them", via.name);
    }
    for (i, hook) in args.hook.iter().enumerate() {
        let (name, is_new) = (&hook.name, args.hook[..i].iter().all(|other| other.name != hook.name));
        ensure!([BEFORE, ROLL_OUT].contains(&&**name), "there is no --hook {name}; write {BEFORE} or {ROLL_OUT}");
        ensure!(is_new, "--hook {name} is given twice; join the commands with \"&&\"");
    }
    ensure!(
        hook(args, ROLL_OUT).is_some() || !scenarios.contains(&Scenario::RollOut),
        "{ROLL_OUT} needs a command that replaces one endpoint: give --hook {ROLL_OUT}=CMD"
    );
    Ok(())
}

/// Each scenario through each address.
async fn run(args: &ScenariosArgs, scenarios: &[Scenario]) -> anyhow::Result<Report> {
    let mut servers = Vec::new();
    for control in &args.control {
        servers.push(Server::meet(control).await?);
    }
    let roll_out = hook(args, ROLL_OUT).map(str::to_owned);
    let common = Common { connections: args.connections, timeout: args.timeout, roll_out };
    let length = Duration::from_secs(args.seconds);
    let mut report = Report {
        seconds: length.as_secs_f64(),
        connections: args.connections,
        timeout_ms: args.timeout.as_millis() as u64,
        scenarios: Vec::new(),
    };
    for &scenario in scenarios {
        let plan = Plan::new(scenario, length, args.rate, control::fleet(&servers));
        let mut runs = Vec::new();
        for Named { name, value: target } in &args.via {
            eprintln!("{scenario} via {name}: {} s", args.seconds);
            if let Some(command) = hook(args, BEFORE) {
                drive::shell(command, &[("SLUICE_SCENARIO", scenario.name()), ("SLUICE_VIA", name)]).await?;
            }
            let driven = drive::drive(&plan, target, &common, &mut servers).await;
            let recording = driven.with_context(|| format!("{scenario} via {name}"))?;
            runs.push(measure::measure(name, target, &plan, &recording, servers.len()));
        }
        let bucket_ms = measure::bucket(length).as_millis() as u64;
        let (name, about, rate) = (scenario.name(), scenario.about(), plan.calls.rate);
        let scenario = ScenarioReport { name, about, rate, bucket_ms, runs };
        print_table(&table::table(&scenario), args.json.as_deref());
        report.scenarios.push(scenario);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(line: &str) -> ScenariosArgs {
        let line = format!("loadtest scenarios --control 10.1.0.3:50052 --via a=h:1 {line}");
        let Command::Scenarios(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not scenarios")
        };
        args
    }

    fn checked(line: &str) -> Result<Vec<&'static str>, String> {
        let args = parsed(line);
        let scenarios = chosen(&args);
        check(&args, &scenarios).map_err(|error| error.to_string())?;
        Ok(scenarios.into_iter().map(Scenario::name).collect())
    }

    #[test]
    fn scenarios_run_in_their_own_order_each_once_and_a_roll_out_only_with_its_hook() {
        let failing = ["failing-trailers-only", "failing-after-headers"];
        assert_eq!(checked("--only failing,slow --only slow"), Ok([&["slow"], &failing[..]].concat()));
        assert_eq!(checked("").unwrap().len(), Scenario::ALL.len() - 1);
        assert_eq!(checked("--hook roll-out=true").unwrap().len(), Scenario::ALL.len());
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_its_cure() {
        for (line, cure) in [
            ("--only roll-out", "--hook roll-out=CMD"),
            ("--via a=h:2", "another name"),
            ("--hook slow=true", "before or roll-out"),
            ("--hook before=true --hook before=false", "&&"),
        ] {
            let error = checked(line).unwrap_err();
            assert!(error.contains(cure), "{line}: {error}");
        }
    }
}

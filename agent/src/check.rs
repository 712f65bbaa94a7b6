//! `sluice-agent check`: a look at the node before the agent runs, or when something does not work. In: the same flags as
//! `run`; out: a line for each thing that sluice needs, with the cure where it is not there. Everything is tried rather
//! than guessed from a version, and nothing is left behind.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

use crate::config::{self, Check, Output, SourceSpec};
use crate::pods;

mod cgroup;
mod cluster;
mod folder;
mod item;
mod kernel;
mod node;
mod others;
mod privileges;

use item::{Item, Report};
use privileges::Privileges;

pub use privileges::require as require_privileges;

/// Looks at everything, prints it, and tells whether nothing failed. To be called before there are other threads.
pub fn run(config: &Check) -> Result<bool> {
    let report = look(config)?;
    let mut out = std::io::stdout().lock();
    match config.output {
        Output::Text => report.write_text(&mut out, std::io::stdout().is_terminal()),
        Output::Json => report.write_json(&mut out),
    }
    .context("cannot write to standard output")?;
    out.flush().context("cannot write to standard output")?;
    Ok(report.passed())
}

fn look(config: &Check) -> Result<Report> {
    let site = &config.site;
    let privileges = Privileges::read()?;
    let view = pods::view_nodes_cgroups();
    let mut items = vec![settings(config::of_environment())];
    items.extend(privileges::items(&privileges));
    items.extend(kernel::items(&privileges));
    let (of_cgroup, kubepods) = cgroup::items(&view, site.cgroup.as_deref());
    items.extend(of_cgroup);
    if let Some(kubepods) = &kubepods {
        items.extend(others::items(&privileges, kubepods));
    }
    items.extend(node::items(&privileges, kubepods.as_deref()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the control loop")?;
    items.extend(runtime.block_on(async {
        match &site.source {
            None => vec![sourceless()],
            Some(SourceSpec::Dir(folder)) => folder::items(folder).await,
            Some(SourceSpec::Kube) => cluster::items(site.kubeconfig.as_deref(), site.node_name.as_deref()).await,
        }
    }));
    Ok(Report::new(items))
}

/// In a pod all of the agent's variables are there at its check, too.
fn settings(of_run: Result<(), String>) -> Item {
    const NAME: &str = "settings";
    match of_run {
        Ok(()) => Item::ok(NAME, "`sluice-agent run` takes what its SLUICE_ variables say"),
        Err(error) => Item::fail(
            NAME,
            error,
            "correct the variable of that flag (`--log` is SLUICE_LOG, and so on); in the chart, the value of that name",
        ),
    }
}

fn sourceless() -> Item {
    Item::warn(
        "source",
        "not given: the node alone was looked at, neither API server nor folder was tried",
        "give --source kube --node-name NODE, or --source DIR, as `sluice-agent run` needs one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_run_refuses_fail() {
        assert!(settings(Ok(())).is_ok());
        let refused = settings(Err("invalid value 'a=b' for '--log <FILTER>'".into()));
        assert!(refused.level == item::Level::Fail && refused.found.contains("--log"), "{refused:?}");
        assert_eq!(sourceless().level, item::Level::Warn);
    }
}

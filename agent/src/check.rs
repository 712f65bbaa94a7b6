//! `sluice-agent check`: a look at the node before the agent runs, or when something does not work. In: the same flags as
//! `run`; out: a line for each thing that sluice needs, with the cure where it is not there. Everything is tried rather
//! than guessed from a version, and nothing is left behind.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

use crate::config::{Check, Output, SourceSpec};
use crate::pods;

mod cgroup;
mod cluster;
mod folder;
mod item;
mod kernel;
mod node;
mod others;
mod privileges;

use item::Report;
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
    let mut items = privileges::items(&privileges);
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
            SourceSpec::Dir(folder) => folder::items(folder).await,
            SourceSpec::Kube => cluster::items(site.kubeconfig.as_deref(), site.node_name.as_deref()).await,
        }
    }));
    Ok(Report::new(items))
}

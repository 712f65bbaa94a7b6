//! `cargo xtask manifests`: what `kubectl apply -k manifests` applies, rendered from the Helm chart with its default
//! values. In: manifests/chart; out: the committed files beside it, comments included. Talks to no cluster.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use testbed::find_tool;

use crate::host;

/// Where the files' objects live; `namespace.yaml` makes it.
const NAMESPACE: &str = "sluice-system";
/// Whatever helm was built with; the chart asks for 1.30.
const KUBERNETES: &str = "1.36.0";
/// A file, the template that it is made of, and the value that makes it.
const FILES: [(&str, &str, Option<&str>); 5] = [
    ("rbac.yaml", "templates/rbac.yaml", None),
    ("daemonset.yaml", "templates/daemonset.yaml", None),
    (
        "components/network-policy/network-policy.yaml",
        "templates/networkpolicy.yaml",
        Some("networkPolicy.enabled=true"),
    ),
    ("components/monitoring/pod-monitor.yaml", "templates/podmonitor.yaml", Some("monitoring.enabled=true")),
    ("components/monitoring/prometheus-rule.yaml", "templates/prometheusrule.yaml", Some("monitoring.enabled=true")),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Change nothing; fail if a committed file is not what the chart renders
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let helm = helm()?;
    let folder = host::workspace().join("manifests");
    for (file, template, value) in FILES {
        let mut command = Command::new(&helm);
        command.args(["template", "sluice"]).arg(folder.join("chart"));
        command.args(["--namespace", NAMESPACE, "--kube-version", KUBERNETES, "--show-only", template]);
        command.args(value.into_iter().flat_map(|value| ["--set", value]));
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {helm:?}"))?;
        ensure!(output.status.success(), "{helm:?} template: {}", String::from_utf8_lossy(&output.stderr).trim());
        let text = file_of(&String::from_utf8(output.stdout)?);
        let path = folder.join(file);
        if !options.check {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            bail!("manifests/{file} is not what manifests/chart renders: run `cargo xtask manifests`");
        }
    }
    Ok(())
}

/// The helm that clusters for tests are made with, or the machine's own.
fn helm() -> Result<PathBuf> {
    let built = host::target().join("cluster/bin/helm");
    let found = built.is_file().then_some(built).or_else(|| find_tool("helm"));
    found.context("helm is missing: `cargo xtask cluster up` builds one, or install Helm 3")
}

/// The rendered objects without helm's remarks on which template each comes from.
fn file_of(rendered: &str) -> String {
    let mut text = "# Made from manifests/chart by `cargo xtask manifests`; change it there.\n".to_owned();
    for line in rendered.trim_start_matches("---\n").lines().filter(|line| !line.starts_with("# Source: ")) {
        text += line;
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_of_helm_go_and_comments_stay() {
        let rendered =
            "---\n# Source: sluice/templates/a.yaml\nkind: A\n# why\n---\n# Source: sluice/templates/a.yaml\nkind: B\n";
        let (header, objects) = file_of(rendered).split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(header.starts_with("# Made from manifests/chart"));
        assert_eq!(objects, "kind: A\n# why\n---\nkind: B\n");
    }
}

//! The programs of a cluster, from Go modules. In: the modules in tests/cluster, which pin every version; out: a folder of
//! static programs, built again only when a module, the flags or Go itself are others than last time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::host::{self, step};

/// A Go module and what is built of it.
struct Module {
    /// Its folder in tests/cluster.
    name: &'static str,
    /// Packages, each with the name of its program.
    packages: &'static [(&'static str, &'static str)],
    /// Files that make it what it is.
    files: &'static [&'static str],
    version: Option<Version>,
    takes: &'static str,
}

/// What the programs shall tell of themselves, which plain `go build` leaves out.
struct Version {
    /// The module whose version it is.
    of: &'static str,
    /// Variables, each with what of the version it holds.
    variables: &'static [(&'static str, Part)],
}

#[derive(Clone, Copy)]
enum Part {
    Whole,
    Major,
    Minor,
}

const MODULES: [Module; 4] = [
    Module {
        name: "kubernetes",
        packages: &[
            ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
            ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
            ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
            ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
            ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
            ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ],
        files: &["go.mod", "go.sum"],
        // Without it the programs tell a version which kubectl refuses to parse.
        version: Some(Version {
            of: "k8s.io/kubernetes",
            variables: &[
                ("k8s.io/component-base/version.gitVersion", Part::Whole),
                ("k8s.io/component-base/version.gitMajor", Part::Major),
                ("k8s.io/component-base/version.gitMinor", Part::Minor),
            ],
        }),
        takes: "5 to 10 minutes on 2 cores, once",
    },
    Module {
        name: "etcd",
        packages: &[("go.etcd.io/etcd/server/v3", "etcd")],
        files: &["go.mod", "go.sum"],
        version: None,
        takes: "a minute, once",
    },
    Module {
        name: "helm",
        packages: &[("helm.sh/helm/v3/cmd/helm", "helm")],
        files: &["go.mod", "go.sum"],
        // Without it helm takes a cluster that it cannot ask for Kubernetes 1.20.
        version: Some(Version {
            of: "k8s.io/client-go",
            variables: &[
                ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor", Part::Major),
                ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor", Part::Minor),
                ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor", Part::Major),
                ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor", Part::Minor),
            ],
        }),
        takes: "a minute, once",
    },
    Module {
        name: "probe",
        packages: &[(".", "probe")],
        files: &["go.mod", "main.go", "bulk.go", "store.go"],
        version: None,
        takes: "seconds",
    },
];

/// Builds what is missing or old; gives the folder of the programs.
pub(super) fn build() -> Result<PathBuf> {
    let folder = host::target().join("cluster/bin");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let go = read(go().args(["env", "GOVERSION"]))?;
    MODULES.iter().try_for_each(|module| module.build(&folder, go.trim()))?;
    Ok(folder)
}

impl Module {
    fn build(&self, folder: &Path, go_version: &str) -> Result<()> {
        let source = host::workspace().join("tests/cluster").join(self.name);
        let mut inputs = format!("{go_version}\n");
        for file in self.files {
            let path = source.join(file);
            inputs += &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        let flags = self.link_flags(&inputs)?;
        inputs += &flags;
        let stamp = folder.with_file_name(format!("{}.stamp", self.name));
        let there = self.packages.iter().all(|(_, program)| folder.join(program).is_file());
        if there && fs::read_to_string(&stamp).is_ok_and(|built| built == inputs) {
            return Ok(());
        }
        step(&format!("building {} from source ({})", self.name, self.takes));
        let _ = fs::remove_file(&stamp);
        let mut build = go();
        build.arg("-C").arg(&source).args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags]);
        match self.packages {
            // A module's last part is not always the program's name.
            [(package, program)] => build.arg("-o").arg(folder.join(program)).arg(package),
            several => build.arg("-o").arg(folder.join("")).args(several.iter().map(|(package, _)| package)),
        };
        let status = build.status().context("cannot start go")?;
        ensure!(status.success(), "go build in {}: {status}; it needs Go 1.26 or newer", source.display());
        fs::write(&stamp, inputs).with_context(|| format!("cannot write {}", stamp.display()))
    }

    /// No symbol tables, and the version where it has to be told.
    fn link_flags(&self, go_mod: &str) -> Result<String> {
        let Some(told) = &self.version else { return Ok("-s -w".to_owned()) };
        let version =
            required(go_mod, told.of).with_context(|| format!("{} does not require {}", self.name, told.of))?;
        let (major, rest) = version.trim_start_matches('v').split_once('.').context("a version with a dot")?;
        let minor = rest.split('.').next().unwrap_or_default();
        let value = |part| match part {
            Part::Whole => version,
            // Kubernetes' libraries are 0.36 where Kubernetes is 1.36.
            Part::Major if major == "0" => "1",
            Part::Major => major,
            Part::Minor => minor,
        };
        let set = |(variable, part): &(&str, Part)| format!(" -X {variable}={}", value(*part));
        Ok("-s -w".to_owned() + &told.variables.iter().map(set).collect::<String>())
    }
}

/// The version that a go.mod requires of a module.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_ascii_whitespace();
        (words.next()? == module).then(|| words.next().filter(|word| word.starts_with('v')))?
    })
}

/// Static programs, by the Go that is installed, of exactly the versions written down.
fn go() -> Command {
    let mut go = Command::new("go");
    go.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=readonly");
    go
}

fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_tell_the_version_that_the_module_pins() {
        let go_mod =
            "module x\n\nrequire k8s.io/kubernetes v1.36.3\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n";
        assert_eq!(required(go_mod, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(
            required("require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n", "k8s.io/kubernetes"),
            Some("v1.36.3")
        );
        assert_eq!(required(go_mod, "k8s.io/api"), None, "a replacement is no requirement");
        let flags = MODULES[0].link_flags(go_mod).unwrap();
        assert!(
            flags.ends_with(
                "version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 \
                                 -X k8s.io/component-base/version.gitMinor=36"
            ),
            "{flags}"
        );
    }

    #[test]
    fn every_module_pins_what_is_built_of_it() {
        for module in &MODULES {
            for file in module.files {
                assert!(host::workspace().join("tests/cluster").join(module.name).join(file).is_file(), "{file}");
            }
        }
        let flags = |module: &Module| {
            let go_mod = host::workspace().join("tests/cluster").join(module.name).join("go.mod");
            module.link_flags(&fs::read_to_string(go_mod).unwrap()).unwrap()
        };
        MODULES.iter().for_each(|module| assert!(flags(module).starts_with("-s -w")));
        assert!(flags(&MODULES[2]).contains("chartutil.k8sVersionMajor=1 "), "{}", flags(&MODULES[2]));
    }
}

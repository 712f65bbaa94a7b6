//! `cargo xtask test`: all layers of tests, or one. In: nothing; out: one line per layer, then `N passed, N failed`
//! summed from the test runners' own closing lines, and a status. A layer that cannot run fails; none is skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::host;

/// The version whose configuration format deny.toml has.
const CARGO_DENY: &str = "0.20.2";
/// Lines of a failed layer's log that are shown: of each test program's failures, or of its end if no test failed.
const SHOWN: usize = 120;

#[derive(Args)]
pub(crate) struct Options {
    /// All of them if none is named
    layer: Option<Layer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// Formatting, clippy, licences and sources of dependencies
    Lint,
    /// The committed BPF object is what the source builds
    Ebpf,
    /// Tests that need no node
    Pure,
    /// Tests on a simulated node: real BPF, namespaces, cgroups
    Node,
    /// Unmodified gRPC clients in five languages, and gRPC's own interop suite, on a simulated node
    Clients,
    /// The manifests, and sluice installed by them on a real cluster of two nodes
    Cluster,
}

/// What a test runner said at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let layers = match &options.layer {
        Some(layer) => std::slice::from_ref(layer),
        None => Layer::value_variants(),
    };
    let logs = host::target().join("test-logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let mut sum = Tally::default();
    let mut broken = Vec::new();
    for layer in layers {
        let name = layer.name();
        let log = logs.join(format!("{name}.log"));
        host::step(&format!("layer {name}"));
        let start = Instant::now();
        let outcome = File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))
            .and_then(|file| layer.run(&Runner { log: file }));
        let said = fs::read_to_string(&log).unwrap_or_default();
        let mut tally = tally(&said);
        let seconds = start.elapsed().as_secs();
        match outcome {
            Ok(()) => println!("{name}: ok, {} passed, {seconds} s", tally.passed),
            Err(error) => {
                what_failed(&said).iter().for_each(|line| println!("  | {line}"));
                // A layer that breaks without a failed test (formatting, a build) is a failure all the same.
                tally.failed = tally.failed.max(1);
                println!("{name}: FAILED, {} passed, {} failed, {seconds} s", tally.passed, tally.failed);
                println!("  {error:#}; all it said: {}", log.display());
                broken.push(name);
            }
        }
        sum.passed += tally.passed;
        sum.failed += tally.failed;
    }
    if !broken.is_empty() {
        println!("failed: {}", broken.join(", "));
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Layer {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, runner: &Runner) -> Result<()> {
        match self {
            Layer::Lint => lint(runner),
            // A process of its own, so that what it says goes to the log.
            Layer::Ebpf => runner.cargo(&["run", "--quiet", "--package", "xtask", "--", "ebpf", "--check"]),
            Layer::Pure => runner.cargo(&["test", "--no-fail-fast", "--workspace", "--exclude", "testbed"]),
            Layer::Node => on_nodes(runner),
            Layer::Clients => clients(runner),
            Layer::Cluster => cluster(runner),
        }
    }
}

fn lint(runner: &Runner) -> Result<()> {
    // All of them, so that one run shows everything there is to mend.
    let results = [
        runner.cargo(&["fmt", "--all", "--check"]),
        runner.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        // Those too which only run by name.
        runner.cargo(&["clippy", "--package", "testbed", "--test", "*", "--", "-D", "warnings"]),
        deny(runner),
    ];
    together(results)
}

/// All failures as one.
fn together(results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// Licences, duplicates and sources of all dependencies, with a cargo-deny of our own.
fn deny(runner: &Runner) -> Result<()> {
    let tools = host::target().join("tools");
    let program = tools.join("bin/cargo-deny");
    let version = Command::new(&program).arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().ends_with(CARGO_DENY)) {
        host::step(&format!("building cargo-deny {CARGO_DENY} (some minutes, once)"));
        let root = tools.to_str().context("a build folder in UTF-8")?;
        runner.cargo(&["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--force", "--root", root])?;
    }
    runner.run(Command::new(program).current_dir(host::workspace()).args(["check", "licenses", "bans", "sources"]))
}

/// The simulated node's own tests and those that use one, except for the clients'; those of the cluster and of its
/// manifests have a layer of their own.
fn on_nodes(runner: &Runner) -> Result<()> {
    host::need_root("test node")?;
    host::need_tools(&[
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("bpftool", "bpftool"),
        ("python3", "python3"),
        ("openssl", "openssl"),
        ("go", "golang-go"),
        ("promtool", "prometheus"),
        ("chromium", "chromium"),
    ])?;
    host::need_module("ensurepip", "python3-venv")?;
    runner.cargo(&["build", "--package", "sluice-agent", "--package", "loadtest", "--package", "xtask"])?;
    let mut args = vec!["test", "--no-fail-fast", "--package", "testbed", "--lib", "--bin", "recorder"];
    let targets = test_targets(&host::workspace().join("tests/tests"))?;
    let elsewhere =
        |name: &str| matches!(name, "ageing" | "clients" | "interop" | "manifests") || name.starts_with("cluster");
    for target in targets.iter().filter(|name| !elsewhere(name)) {
        args.extend(["--test", target]);
    }
    // The figures that tests print are part of what a layer says.
    args.extend(["--", "--show-output"]);
    runner.cargo(&args)
}

/// The cluster comes first: it builds the kubectl and the helm that render the manifests.
fn cluster(runner: &Runner) -> Result<()> {
    host::need_root("test cluster")?;
    // By cargo: the file of this program is another one by now, if a layer before has built it anew.
    let xtask = |task: &[&str]| runner.cargo(&[&["run", "--quiet", "--package", "xtask", "--"], task].concat());
    let results = [
        xtask(&["cluster", "test"]),
        xtask(&["manifests", "--check"]),
        runner.cargo(&["test", "--package", "testbed", "--test", "manifests"]),
    ];
    together(results)
}

fn clients(runner: &Runner) -> Result<()> {
    host::need_root("test clients")?;
    host::need_tools(&[
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("python3", "python3"),
        ("go", "golang-go"),
        ("node", "nodejs"),
        ("npm", "npm"),
        ("java", "default-jdk-headless"),
        ("mvn", "maven"),
    ])?;
    host::need_module("ensurepip", "python3-venv")?;
    host::step("building the clients (some minutes the first time)");
    for script in ["tests/clients/setup.sh", "tests/interop/setup.sh"] {
        runner.run(Command::new("sh").current_dir(host::workspace()).arg(script))?;
    }
    runner.cargo(&["build", "--package", "sluice-agent", "--package", "loadtest"])?;
    // The tables that the interop suite prints are part of what the layer says.
    let tests = ["--test", "ageing", "--test", "clients", "--test", "interop", "--", "--show-output"];
    runner.cargo(&[&["test", "--no-fail-fast", "--package", "testbed"], &tests[..]].concat())
}

/// The names of a folder's test targets as cargo finds them: files, and folders with a main.rs.
fn test_targets(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let is_target = |path: &PathBuf| path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").is_file();
    let files = entries.flatten().map(|entry| entry.path()).filter(is_target);
    let mut names: Vec<_> = files.filter_map(|path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Runs commands whose output goes to a layer's log.
struct Runner {
    log: File,
}

impl Runner {
    fn cargo(&self, args: &[&str]) -> Result<()> {
        self.run(host::cargo().args(args))
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let shown = format!("{command:?}").replace('"', "");
        let status = command
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?)
            .env("RUST_BACKTRACE", "0")
            .status()
            .with_context(|| format!("cannot start {shown}"))?;
        if !status.success() {
            bail!("{shown}: {status}");
        }
        Ok(())
    }
}

/// Sums the closing lines of libtest: `test result: ok. 9 passed; 0 failed; …`.
fn tally(log: &str) -> Tally {
    let number = |line: &str, word: &str| -> u64 {
        let (before, _) = line.split_once(word).unwrap_or_default();
        before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let closing = log.lines().filter(|line| line.starts_with("test result: "));
    closing.fold(Tally::default(), |sum, line| Tally {
        passed: sum.passed + number(line, " passed;"),
        failed: sum.failed + number(line, " failed;"),
    })
}

/// What libtest prints from `failures:` to its closing line; where nothing does, the end of the log.
fn what_failed(log: &str) -> Vec<&str> {
    let lines: Vec<_> = log.lines().collect();
    let mut shown = Vec::new();
    let mut rest = &lines[..];
    while let Some(start) = rest.iter().position(|line| *line == "failures:") {
        rest = &rest[start..];
        let end = rest.iter().position(|line| line.starts_with("test result: ")).map_or(rest.len(), |end| end + 1);
        shown.extend(&rest[..end.min(SHOWN)]);
        rest = &rest[end..];
    }
    if shown.is_empty() {
        shown.extend(&lines[lines.len().saturating_sub(SHOWN)..]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let log = "running 2 tests\n\
                   test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                   test a ... FAILED\n\
                   test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3 s\n";
        assert_eq!(tally(log), Tally { passed: 21, failed: 2 });
        assert_eq!(tally("error: could not compile"), Tally::default());
    }

    #[test]
    fn of_a_failed_layer_what_failed_is_shown_wherever_it_stands() {
        let failed =
            "failures:\n\n---- b stdout ----\nwhy\n\n\nfailures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed;";
        let well = "successes:\n\n---- c stdout ----\n7 ms\n\ntest result: ok. 9 passed; 0 failed;\n".repeat(SHOWN);
        assert_eq!(what_failed(&format!("{well}{failed}\n{well}error: 1 target failed:")).join("\n"), failed);
        let broken = "error: could not compile";
        assert_eq!(what_failed(&format!("{well}{broken}")).last(), Some(&broken));
    }

    #[test]
    fn every_test_file_is_a_target() {
        let targets = test_targets(&host::workspace().join("tests/tests")).unwrap();
        let clusters = ["cluster", "cluster_clean_up"];
        let others = [
            "conformance",
            "differential",
            "interop",
            "kernel",
            "manifests",
            "node",
            "observe",
            "promises",
            "scenarios",
            "shares",
            "stress",
        ];
        let all = [&["abuse", "ageing", "check", "clean_up", "clients"][..], &clusters, &others].concat();
        assert_eq!(targets, all);
    }
}

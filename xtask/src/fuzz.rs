//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, guided by coverage (libFuzzer). In: a target or none for all, and
//! how long. Out: inputs that fail, as files which the short run in the tests replays from then on, and a status. What
//! was reached stays below the build folder for the next time; `--keep` puts the least that reaches as much into the
//! repository. Only sluice's own crates are instrumented, by `tests/fuzz/instrument`; no nightly compiler is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::host;

/// An input that takes longer than this hangs; seconds.
const PATIENCE: u32 = 20;
/// More memory than this is a failure, MiB.
const MEMORY: u32 = 2_048;
/// No target looks at more of an input, bytes.
const LONGEST: u32 = 2_048;

#[derive(Args)]
pub(crate) struct Options {
    /// All of them, one after the other, if none is named
    target: Option<String>,
    /// How long each one runs
    #[arg(long, value_name = "N", default_value_t = 1)]
    minutes: u64,
    /// Put the smallest corpus that reaches as much into tests/fuzz/corpus
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let home = host::workspace().join("tests/fuzz");
    let mut targets = folders(&home.join("corpus"))?;
    if let Some(wanted) = &options.target {
        if !targets.contains(wanted) {
            bail!("there is no target {wanted}: name one of {}", targets.join(", "));
        }
        targets.retain(|target| target == wanted);
    }
    let program = build(&home)?;
    let mut failed = Vec::new();
    for name in &targets {
        let target = Target::new(&home, name, &program)?;
        host::step(&format!("fuzzing {name}, {} min", options.minutes));
        if !target.fuzz(options.minutes)? {
            failed.push(name.as_str());
        } else if options.keep {
            target.keep()?;
        }
    }
    if !failed.is_empty() {
        println!("failed: {}; the inputs are in {}", failed.join(", "), home.join("found").display());
        println!("`cargo test --package sluice-fuzz` plays them again");
        return Ok(ExitCode::FAILURE);
    }
    println!("nothing found in {}", targets.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Builds the program that libFuzzer drives, apart from all other builds.
fn build(home: &Path) -> Result<PathBuf> {
    host::need_tools(&[("c++", "g++")])?;
    host::step("building the fuzz targets (some minutes the first time)");
    let status = host::cargo()
        .args(["build", "--quiet", "--package", "sluice-fuzz", "--profile", "fuzz", "--features", "guided"])
        .args(["--bin", "guided"])
        .env("RUSTC_WORKSPACE_WRAPPER", home.join("instrument"))
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(host::target().join("fuzz/guided"))
}

struct Target<'a> {
    name: &'a str,
    program: &'a Path,
    /// What was reached so far on this machine.
    work: PathBuf,
    /// In the repository.
    corpus: PathBuf,
    found: PathBuf,
}

impl<'a> Target<'a> {
    fn new(home: &Path, name: &'a str, program: &'a Path) -> Result<Self> {
        let work = host::target().join("fuzz-corpus").join(name);
        let (corpus, found) = (home.join("corpus").join(name), home.join("found").join(name));
        for folder in [&work, &found] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { name, program, work, corpus, found })
    }

    fn libfuzzer(&self) -> Command {
        let mut command = Command::new(self.program);
        // Panics are caught by libFuzzer; their backtraces are long and the input can be replayed.
        command.env("SLUICE_FUZZ_TARGET", self.name).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.args([
            format!("-timeout={PATIENCE}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-max_len={LONGEST}"),
        ]);
        command
    }

    /// Whether nothing was found.
    fn fuzz(&self, minutes: u64) -> Result<bool> {
        let status = self
            .libfuzzer()
            .arg(format!("-max_total_time={}", minutes * 60))
            .arg(format!("-artifact_prefix={}/", self.found.display()))
            .args(["-print_final_stats=1", "-reload=0"])
            .args([&self.work, &self.corpus, &self.found])
            .status()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(status.success())
    }

    /// The smallest inputs that reach every edge, in place of those that were there.
    fn keep(&self) -> Result<()> {
        let least = self.work.with_extension("least");
        let _ = fs::remove_dir_all(&least);
        fs::create_dir_all(&least).with_context(|| format!("cannot make {}", least.display()))?;
        // How often an edge is passed does not matter here: ten times as many inputs for little.
        let status = self
            .libfuzzer()
            .args(["-merge=1", "-use_counters=0"])
            .args([&least, &self.corpus, &self.work])
            .status()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !status.success() {
            bail!("libFuzzer could not reduce the corpus of {}: {status}", self.name);
        }
        fs::remove_dir_all(&self.corpus)
            .and_then(|()| fs::create_dir(&self.corpus))
            .with_context(|| format!("cannot empty {}", self.corpus.display()))?;
        for entry in fs::read_dir(&least).with_context(|| format!("cannot read {}", least.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", least.display()))?;
            fs::copy(entry.path(), self.corpus.join(entry.file_name()))
                .with_context(|| format!("cannot write into {}", self.corpus.display()))?;
        }
        fs::remove_dir_all(&least).with_context(|| format!("cannot remove {}", least.display()))
    }
}

/// The names of the folders in a folder, in order.
fn folders(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut names: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|it| it.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

//! The agent of another commit: in, a name that git knows; out, its program, built now or before. The sources are laid out
//! below the build folder; git's own files and the working tree stay as they are.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::host::{self, step};

/// A commit's short name.
pub(crate) fn find(commit: &str) -> Result<String> {
    git(&["rev-parse", "--short", "--verify", "--end-of-options", &format!("{commit}^{{commit}}")])
        .with_context(|| format!("--against {commit}: no commit of that name here; `git log --oneline` shows some"))
}

/// The agent of the commit with this short name.
pub(crate) fn agent(name: &str) -> Result<PathBuf> {
    let folder = host::target().join("against");
    let program = folder.join(name).join("sluice-agent");
    if program.is_file() {
        return Ok(program);
    }
    step(&format!("building the agent of {name} (release; some minutes the first time)"));
    let sources = folder.join("sources");
    match fs::remove_dir_all(&sources) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", sources.display()));
        }
        _ => fs::create_dir_all(&sources).with_context(|| format!("cannot make {}", sources.display()))?,
    }
    let archive = folder.join("sources.tar");
    git(&["archive", "--format=tar", "-o", &archive.to_string_lossy(), name])?;
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&sources).status();
    ensure!(unpacked.context("cannot start tar")?.success(), "cannot unpack {}", archive.display());
    fs::remove_file(&archive)?;
    // All commits share a build folder: dependencies are built once. The date of unpacked files is the commit's own, older
    // than what another commit's were built into: cargo would take them for built.
    touch(&sources)?;
    let build = folder.join("build");
    let status = host::cargo()
        .current_dir(&sources)
        .args(["build", "--release", "--quiet", "--package", "sluice-agent"])
        .env("CARGO_TARGET_DIR", &build)
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the agent of {name} cannot be built: {status}");
    }
    fs::create_dir_all(folder.join(name))?;
    // Whole or not at all: it is taken for built from then on.
    let draft = folder.join(name).join("draft");
    fs::copy(build.join("release/sluice-agent"), &draft).context("the build left no sluice-agent")?;
    fs::rename(&draft, &program)?;
    Ok(program)
}

/// Files below a folder become as new.
fn touch(folder: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            touch(&entry.path())?;
        } else if kind.is_file() {
            fs::File::options().append(true).open(entry.path())?.set_modified(std::time::SystemTime::now())?;
        }
    }
    Ok(())
}

/// What git says, in the repository.
fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(host::workspace()).args(args).output().context("cannot start git")?;
    ensure!(output.status.success(), "git {}: {}", args[0], String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

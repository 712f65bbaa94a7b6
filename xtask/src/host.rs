//! What tasks need of the machine they run on: root, Debian packages, cargo. In: what is needed; out: it is there, or an
//! error that says what to do. Says on standard error what takes long.

use std::fs::{self, OpenOptions};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use testbed::find_tool;

/// What makes rustc link a program statically.
pub(crate) const STATIC: &str = "-C target-feature=+crt-static";

/// A line about what begins now and may take a while.
pub(crate) fn step(text: &str) {
    eprintln!("xtask: {text}");
}

/// Fails unless all of these files can be written, before the work whose result they shall hold; what is in them stays.
pub(crate) fn can_write<'a>(files: impl IntoIterator<Item = &'a Option<PathBuf>>) -> Result<()> {
    for file in files.into_iter().flatten() {
        let is_new = !file.exists();
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        if is_new {
            fs::remove_file(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

/// Fails unless root, before anything slow begins. `task` is the command as typed.
pub(crate) fn need_root(task: &str) -> Result<()> {
    let end = if task.starts_with("cluster") {
        "`cargo xtask cluster down` removes all of it"
    } else {
        "all of it is gone when it ends"
    };
    testbed::require_root().with_context(|| {
        format!(
            "`cargo xtask {task}` makes network namespaces, cgroups and nftables rules of its own and loads BPF \
             programs; {end}"
        )
    })
}

/// Installs the packages whose tool is missing: pairs of tool and package.
pub(crate) fn need_tools(tools: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<_> =
        tools.iter().filter(|(tool, _)| find_tool(tool).is_none()).map(|(_, package)| *package).collect();
    missing.sort_unstable();
    missing.dedup();
    install(&missing)
}

/// Installs the package if Python lacks the module.
pub(crate) fn need_module(module: &str, package: &str) -> Result<()> {
    let import = Command::new("python3").args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    install(if import.is_ok_and(|status| status.success()) { &[] } else { std::slice::from_ref(&package) })
}

fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_tool("apt-get").is_none() {
        bail!("these are missing, and there is no apt-get to install them (Debian's names): {list}");
    }
    step(&format!("installing {list} (apt-get)"));
    if apt_install(missing).is_err() {
        // A fresh machine has no lists yet, or old ones.
        step("updating apt's lists");
        apt(&["update"])?;
        apt_install(missing).with_context(|| format!("install them by hand: {list}"))?;
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat())
}

/// Silent unless it fails; waits for another apt to end.
fn apt(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--option", "DPkg::Lock::Timeout=600"]).args(args);
    let output = command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("apt-get {}: {}\n{}", args[0], output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The folder with these packages' programs: `built`, where somebody built them already, or where they are built now, in
/// release mode.
pub(crate) fn programs(built: Option<&Path>, packages: &[&str]) -> Result<PathBuf> {
    if let Some(folder) = built {
        if let Some(missing) = packages.iter().find(|name| !folder.join(name).is_file()) {
            bail!("no {missing} in {}: leave --programs away to have it built", folder.display());
        }
        return std::path::absolute(folder).with_context(|| format!("cannot find {}", folder.display()));
    }
    build(packages, &[], "")?;
    Ok(target().join("release"))
}

/// The folder with these packages' programs, built now in release mode for this machine's architecture and linked
/// statically: they run in an image that holds nothing else. glibc's own resolver would need its libraries at run time,
/// so such a program must not look up names with it.
pub(crate) fn static_programs(packages: &[&str]) -> Result<PathBuf> {
    // Named although it is the host's own: the flags then spare build scripts and procedural macros, which are
    // libraries.
    let target_name = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    build(packages, &["--target", &target_name], STATIC)?;
    Ok(target().join(target_name).join("release"))
}

/// Builds in release mode, with flags for rustc added to those of the environment.
fn build(packages: &[&str], args: &[&str], flags: &str) -> Result<()> {
    let kind = if flags.is_empty() { "" } else { "static, " };
    step(&format!("building {} ({kind}release; some minutes the first time)", packages.join(" and ")));
    let mut command = cargo();
    command.args(["build", "--release"]).args(args);
    // Who watches sees how far it is.
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    for package in packages {
        command.args(["--package", package]);
    }
    if !flags.is_empty() {
        let given = std::env::var("RUSTFLAGS").unwrap_or_default();
        command.env("RUSTFLAGS", format!("{given} {flags}").trim_start());
        // Function names stay, for backtraces; the rest would be three quarters of an image.
        command.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    }
    // Standard output belongs to the task's own result.
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(())
}

/// The cargo that runs this task, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    // What cargo told this program of itself: build scripts that look at it (ring's) would take all that they built for out
    // of date whenever somebody calls cargo by hand in between.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|told| name.to_string_lossy().starts_with(told)) {
            command.env_remove(name);
        }
    }
    command
}

/// The repository's folder.
pub(crate) fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo builds, wherever that was moved: this program lies in a folder of it.
pub(crate) fn target() -> PathBuf {
    let own = std::env::current_exe().ok();
    let found = own.as_deref().and_then(|path| path.ancestors().nth(2));
    found.map_or_else(|| workspace().join("target"), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_tried_before_the_work_and_left_as_they_were() {
        let folder = std::env::temp_dir().join(format!("xtask-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (old, new) = (folder.join("old"), folder.join("new"));
        fs::write(&old, "kept").unwrap();
        can_write([&Some(old.clone()), &Some(new.clone()), &None]).unwrap();
        assert!(fs::read_to_string(&old).unwrap() == "kept" && !new.exists());
        for bad in [folder.clone(), folder.join("no/such")] {
            let error = can_write([&Some(bad.clone())]).unwrap_err().to_string();
            assert!(error.contains(&*bad.to_string_lossy()), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}

//! Where this workspace's programs lie. In: a name; out: a file that is there, or what to build. Builds nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A program of this workspace beside the running one (`target/debug`, also when that is a test in `target/debug/deps`).
pub fn program(name: &str) -> Result<PathBuf> {
    let own = own()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}: run `cargo build -p {name}`", own.display()))
}

/// Cargo's target folder, in whose `debug/deps` the running test lies.
pub fn target_folder() -> Result<PathBuf> {
    own()?.ancestors().nth(3).map(Path::to_owned).context("a test lies in target/debug/deps")
}

fn own() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program lies")
}

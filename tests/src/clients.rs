//! The unmodified gRPC clients of tests/clients. In: a language; out: its command, installed and built unless that is
//! done. Runs none of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Sets a client up below cargo's target folder and gives its command.
pub fn set_up_client(language: &str, target: &Path) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/setup.sh");
    let status = Command::new(&script).arg(language).env("CARGO_TARGET_DIR", target).status();
    let status = status.with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(status.success(), "{} {language}: {status}; what is missing stands above", script.display());
    Ok(target.join("clients/run").join(language))
}

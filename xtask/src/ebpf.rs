//! PLACEHOLDER, replaced at merge by the file that builds the BPF object.

use anyhow::{Result, bail};

/// Runs the command with the arguments behind `ebpf`.
pub(crate) fn run(_args: &[String]) -> Result<()> {
    bail!("this branch does not build the BPF object")
}

//! What the agent must be allowed to do, looked at before it does anything. In: /proc/self/status; out: an error that
//! names each missing capability, what it is for and the cure. What the kernel lacks, loading the programs tells.

use std::fs;

use anyhow::{Context, Result, bail};

/// Numbers of linux/capability.h.
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Number, name, and what needs it.
const NEEDED: [(u32, &str, &str); 5] = [
    (BPF, "CAP_BPF", "loads the kernel programs"),
    (PERFMON, "CAP_PERFMON", "lets them read the kernel's socket fields"),
    (12, "CAP_NET_ADMIN", "attaches them to the pods' cgroup"),
    (SYS_ADMIN, "CAP_SYS_ADMIN", "opens listeners inside pods' network namespaces"),
    (19, "CAP_SYS_PTRACE", "finds the namespaces of pods' processes in /proc"),
];

pub(super) fn check() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status: is /proc mounted?")?;
    let effective = effective(&status).context("/proc/self/status names no effective capabilities (CapEff)")?;
    let missing: Vec<_> = missing(effective).map(|(name, purpose)| format!("{name} ({purpose})")).collect();
    if !missing.is_empty() {
        bail!(
            "missing privileges: {}; run as root, in a pod with securityContext.privileged: true or these under \
             capabilities.add",
            missing.join(", ")
        );
    }
    Ok(())
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// CAP_SYS_ADMIN stands for the first two, which were split off from it (Linux 5.8).
fn missing(effective: u64) -> impl Iterator<Item = (&'static str, &'static str)> {
    let implied = if effective & (1 << SYS_ADMIN) == 0 { 0 } else { 1 << BPF | 1 << PERFMON };
    let held = effective | implied;
    NEEDED.into_iter().filter(move |(bit, ..)| held & (1 << bit) == 0).map(|(_, name, purpose)| (name, purpose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_all_and_others_hear_what_they_lack() {
        let status = |capabilities: &str| format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{capabilities}\nCapBnd:\t0\n");
        let lacking = |capabilities: &str| {
            missing(effective(&status(capabilities)).unwrap()).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert!(lacking("000001ffffffffff").is_empty());
        assert!(lacking("0000000000000000").len() == NEEDED.len());
        assert_eq!(lacking("000001fffff7ffff"), ["CAP_SYS_PTRACE"]);
        assert!(lacking("0000000000281000").is_empty(), "CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON");
        assert_eq!(effective("Name:\tx\n"), None);
    }
}

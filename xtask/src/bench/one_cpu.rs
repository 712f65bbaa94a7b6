//! Everybody on one CPU: in, nothing; out, a thread all of whose children have that CPU alone, until it is dropped. Where one
//! call follows the other, the scheduler decides how long they take: a client, a proxy and an endpoint on the same CPU wake each
//! other in a few microseconds, an idle CPU wakes up in tens, and on which each of them stays is decided anew on every node.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Of this thread, and of the processes and threads that it starts.
pub(crate) struct OneCpu {
    before: CpuSet,
}

impl OneCpu {
    /// The first that this thread may use.
    pub(crate) fn pin() -> Result<Self> {
        let before = sched_getaffinity(None).context("cannot read the CPUs of a thread")?;
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).context("a thread without a CPU")?;
        let mut one = CpuSet::new();
        one.set(first);
        sched_setaffinity(None, &one).with_context(|| format!("cannot stay on CPU {first}"))?;
        Ok(Self { before })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        // They were allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn of_a_child() -> String {
        let status = Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
        let status = String::from_utf8(status).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    }

    #[test]
    fn children_have_one_cpu_and_all_of_them_afterwards() {
        let before = of_a_child();
        let one = OneCpu::pin().unwrap();
        assert!(of_a_child().parse::<u32>().is_ok());
        drop(one);
        assert_eq!(of_a_child(), before);
    }
}

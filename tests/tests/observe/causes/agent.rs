//! What is hard on the agent itself: no descriptor left, a thread that hangs, its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cause;
use super::Move::{Below, Rises};
use crate::peers::ADD;

/// Stops one thread of a process until it ends itself: PTRACE_SEIZE and PTRACE_INTERRUPT.
const HOLDS_A_THREAD: &str = "
import ctypes, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
for request in 0x4206, 0x4207:
    assert ptrace(request, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
sys.stdin.read()";

pub(super) const CAUSES: &[Cause] = &[
    Cause {
        what: "an agent without a descriptor for a connection",
        moves: &[("sluice_accepts_failed_total", "default/client", Rises)],
        bring: |stage| {
            let pid = stage.agent.pid();
            let prlimit =
                |args: &[&str]| stage.node.command("prlimit").args(["--pid", &pid.to_string()]).args(args).read();
            let usual = prlimit(&["--nofile", "--output", "SOFT", "--noheadings"])?;
            let limit = |soft: &str| prlimit(&[&format!("--nofile={}:", soft.trim())]);
            // Two are left below it.
            let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<usize>().ok();
            let open: BTreeSet<_> = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(number).collect();
            let third_free = (0..).filter(|descriptor| !open.contains(descriptor)).nth(2).context("a number")?;
            limit(&third_free.to_string())?;
            let dialled = (0..6).map(|_| stage.client.dial(stage.shop.address4())).collect::<Result<Vec<_>>>();
            std::thread::sleep(Duration::from_millis(500));
            limit(&usual)?;
            stage.going_on.push(Box::new(dialled?));
            Ok(())
        },
    },
    Cause {
        what: "a worker that hangs",
        moves: &[("sluice_worker_answers", "worker=\"1\"", Below(1.0))],
        bring: |stage| {
            let tasks = fs::read_dir(format!("/proc/{}/task", stage.agent.pid()))?.flatten();
            let is_worker = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|it| it == "worker-1\n");
            let worker = tasks.map(|task| task.path()).find(is_worker).context("no worker")?;
            let number = worker.file_name().context("a number")?;
            let holder = stage.node.command("python3").args(["-c", HOLDS_A_THREAD]).arg(number);
            stage.going_on.push(Box::new(holder.stdin(Stdio::piped()).spawn()?));
            Ok(())
        },
    },
    Cause {
        what: "an agent that is told to stop, with a call that is open",
        moves: &[("sluice_ready", "", Below(1.0))],
        bring: |stage| {
            let connection = stage.connect()?;
            let open = connection.open(ADD, &[])?;
            stage.agent.signal(libc::SIGTERM)?;
            stage.going_on.push(Box::new((connection, open)));
            Ok(())
        },
    },
];

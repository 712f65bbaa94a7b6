//! An open `sluice-agent tap` beside an agent. In: a node, its agent, filters; out: lines as they come, each with the moment
//! when it was read. Judges nothing.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::{Agent, find_binary};
use crate::launch::Process;
use crate::node::Node;

/// How long an agent may take to open a tap.
const OPEN_WITHIN: Duration = Duration::from_secs(20);

type Lines = Vec<(SystemTime, String)>;

/// Dropping it kills it.
#[derive(Debug)]
pub struct Tap {
    lines: Arc<Mutex<Lines>>,
    process: Process,
}

impl Tap {
    /// With further arguments of `sluice-agent tap`. The agent shows calls when this returns.
    pub fn open(node: &Node, agent: &Agent, args: &[&str]) -> Result<Self> {
        let before = taps(agent)?;
        let command = node.command(find_binary("sluice-agent", "SLUICE_AGENT")?).arg("tap").args(args);
        let command = command.args(["--admin", &agent.admin().to_string()]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(process.stdout().context("no stdout")?);
        let lines = Arc::new(Mutex::new(Lines::new()));
        let read = Arc::clone(&lines);
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                read.lock().unwrap_or_else(PoisonError::into_inner).push((SystemTime::now(), line));
            }
        });
        let deadline = Instant::now() + OPEN_WITHIN;
        while taps(agent)? <= before {
            ensure!(process.try_wait()?.is_none(), "sluice-agent tap {args:?} has ended: what it said stands above");
            ensure!(Instant::now() < deadline, "no tap is open after {OPEN_WITHIN:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { lines, process })
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<(SystemTime, String)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those of `--output json`, read: each is an object with time, pod and event.
    pub fn events(&self) -> Result<Vec<(SystemTime, Value)>> {
        let read = |(at, line): (SystemTime, String)| {
            let value: Value = serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))?;
            ensure!(["time", "pod", "event"].iter().all(|key| value[key].is_string()), "{line}");
            Ok((at, value))
        };
        self.lines().into_iter().map(read).collect()
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// How many look at calls now, as the agent's metrics say.
pub fn taps(agent: &Agent) -> Result<u64> {
    let page = agent.metrics()?;
    let line = page.lines().find_map(|line| line.strip_prefix("sluice_taps ")).context("no sluice_taps")?;
    Ok(line.parse()?)
}

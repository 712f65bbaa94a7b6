//! Figures: what the calm client had, what the agent took, what the endpoints saw. In: loadtest's JSON, /proc and the taps;
//! out: numbers, and a line of the table.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// USER_HZ, the same on all machines.
const TICK: Duration = Duration::from_millis(10);

/// A calm client's run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calm {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) not_started: u64,
    /// Microseconds.
    pub(crate) median: u64,
    pub(crate) p99: u64,
}

impl Calm {
    pub(crate) fn read(result: &Value) -> Result<Self> {
        let number = |value: &Value| value.as_u64().with_context(|| format!("not a figure in {result:#}"));
        Ok(Self {
            calls: number(&result["rpcs"])?,
            failed: number(&result["failed"])?,
            not_started: number(&result["not_started"])?,
            median: number(&result["latency_us"]["p50"])?,
            p99: number(&result["latency_us"]["p99"])?,
        })
    }
}

impl fmt::Display for Calm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        write!(f, "{:>6} {:>6} {:>8.2} {:>8.2}", self.calls, self.failed, ms(self.median), ms(self.p99))
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Resident at most since [`forget_peak`], bytes.
    pub(crate) peak: u64,
    pub(crate) cpu: Duration,
}

impl Used {
    pub(crate) fn by(pid: u32) -> Result<Self> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).context("the agent has ended");
        let status = file("status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let stat = file("stat")?;
        // The program's name, the second field, may have spaces.
        let mut fields = stat.rsplit_once(") ").context("stat")?.1.split(' ').skip(11);
        let mut ticks = || -> Result<u32> { Ok(fields.next().context("stat is short")?.parse()?) };
        Ok(Self { peak: peak.trim().trim_end_matches(" kB").parse::<u64>()? << 10, cpu: TICK * (ticks()? + ticks()?) })
    }
}

/// From here on [`Used::peak`] counts.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset the agent's peak memory")
}

/// What came to endpoints since their beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) resets: u64,
    /// PRIORITY, PING, CONTINUATION and frames of unknown types: of these nothing crosses.
    pub(crate) odd: u64,
    pub(crate) settings: u64,
    pub(crate) window_updates: u64,
}

impl Seen {
    /// A tap's line.
    pub(crate) fn read(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("a tap said {line:?}"))?;
        let frames = |kind: usize| value["frames"][kind].as_u64().unwrap_or(0);
        Ok(Self {
            connections: value["connections"].as_u64().context("connections")?,
            requests: frames(1),
            resets: frames(3),
            odd: frames(2) + frames(6) + frames(9) + frames(10),
            settings: frames(4),
            window_updates: frames(8),
        })
    }

    /// Field by field: those of two endpoints together, or what came since an earlier look.
    pub(crate) fn with(self, other: Self, op: fn(u64, u64) -> u64) -> Self {
        Self {
            connections: op(self.connections, other.connections),
            requests: op(self.requests, other.requests),
            resets: op(self.resets, other.resets),
            odd: op(self.odd, other.odd),
            settings: op(self.settings, other.settings),
            window_updates: op(self.window_updates, other.window_updates),
        }
    }
}

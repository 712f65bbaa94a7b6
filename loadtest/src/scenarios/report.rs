//! What `loadtest scenarios` reports, as its JSON has it. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::Latency;

/// All scenarios that ran.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of each run.
    pub seconds: f64,
    pub connections: usize,
    /// Deadline of each call.
    pub timeout_ms: u64,
    pub scenarios: Vec<ScenarioReport>,
}

/// One scenario, through each address.
#[derive(Clone, Debug, Serialize)]
pub struct ScenarioReport {
    pub name: &'static str,
    pub about: &'static str,
    /// Unary calls a second in the mean.
    pub rate: f64,
    /// How long each point of a series stands for.
    pub bucket_ms: u64,
    pub runs: Vec<Run>,
}

/// One scenario through one address. Times in milliseconds are since the run's begin or as they say.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub via: String,
    pub target: String,
    /// Calls that ended, streams among them.
    pub calls: u64,
    pub failed: u64,
    pub failed_share: f64,
    pub failed_by_code: BTreeMap<String, u64>,
    /// Of unary calls that succeeded or ran into their deadline, from the moment they were due.
    pub latency_us: Latency,
    /// Among the pods that were well all the time. None: one got nothing, or pods came and went.
    pub healthy_max_over_min: Option<f64>,
    /// Of the seconds that streams were open on a pod; only where there are streams.
    pub streams_max_over_min: Option<f64>,
    /// The pod that misbehaved.
    pub bad_pod: Option<String>,
    /// From when to when it did.
    pub bad_ms: Vec<[u64; 2]>,
    /// Calls that it had while it was bad: answered by it or, where it is slow or silent, by nobody.
    pub caught: Option<u64>,
    /// Its share of the calls that were due while it was bad.
    pub bad_share: Option<f64>,
    /// From the trouble's begin until it had less than 1 % of an equal share for a second; none: never.
    pub avoided_after_ms: Option<u64>,
    /// From the trouble's end until it had half of an equal share for a second; none: not until the run's end.
    pub back_after_ms: Option<u64>,
    /// When a hook's command had ended.
    pub hooks_ms: Vec<u64>,
    /// Calls sent again because their first attempt never started.
    pub resent: u64,
    /// Connections dialled.
    pub connections: u64,
    /// Pod → unary calls that it answered.
    pub pods: BTreeMap<String, u64>,
    /// Pod → seconds that streams were open on it, summed.
    pub open_seconds: BTreeMap<String, f64>,
    pub series: Series,
}

/// Unary calls over time, by when they were due.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series {
    pub calls: Vec<u64>,
    pub failed: Vec<u64>,
    /// None where no call took its regular course.
    pub p50_us: Vec<Option<u64>>,
    pub p99_us: Vec<Option<u64>>,
    /// Pod → calls that it answered.
    pub pods: BTreeMap<String, Vec<u64>>,
    /// Calls that count as the bad pod's.
    pub bad_pod: Option<Vec<u64>>,
    /// Pod → streams open on it at the end of each bucket; empty without streams.
    pub open_streams: BTreeMap<String, Vec<u64>>,
}

//! Figures of a scenario's run: latency, failures, how soon new calls avoid a bad pod and how soon it is used again. In: the
//! recording; out: a report. Pure. A call that nobody answered is counted as the bad pod's while that one is silent.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::{Plan, Scenario};
use super::record::{Call, Recording};
use super::report::{Run, Series};
use crate::code::Code;
use crate::report::Latency;
use crate::stats::{self, Tally};

/// Shares over time are judged over so long, or half of a time that is shorter than twice that.
const WINDOW: Duration = Duration::from_secs(1);
/// A pod is avoided below, and back above, this part of an equal share.
const AVOIDED: f64 = 0.01;
const BACK: f64 = 0.5;

/// How long each point of a series stands for.
pub(crate) fn bucket(length: Duration) -> Duration {
    Duration::from_millis(if length <= Duration::from_secs(30) { 100 } else { 250 })
}

/// The report of one run. `servers`: how many share the load.
pub(crate) fn measure(via: &str, target: &str, plan: &Plan, recording: &Recording, servers: usize) -> Run {
    let mut tally = Tally::default();
    let mut calls: BTreeMap<String, u64> = recording.pods.iter().map(|pod| (pod.clone(), 0)).collect();
    for call in &recording.calls {
        match (call.stream, call.ended) {
            // Streams last as long as they last; only their failures count.
            (true, Some(_)) if call.code == Code::OK => tally.rpcs += 1,
            (_, Some(ended)) => tally.count(call.code, ended.saturating_sub(call.due)),
            (_, None) => continue,
        }
        if !call.stream
            && let Some(pod) = call.pod
        {
            *calls.entry(recording.pods[pod].clone()).or_default() += 1;
        }
    }
    tally.by_code[Code::OK.index()] = tally.rpcs - tally.by_code[1..].iter().sum::<u64>();
    let bad = recording.bad_pod.as_ref().and_then(|name| recording.pods.iter().position(|pod| pod == name));
    let trouble = Trouble::of(recording, bad, plan.length, servers);
    let others: Vec<u64> =
        calls.iter().filter(|(pod, _)| Some(*pod) != recording.bad_pod.as_ref()).map(|(_, calls)| *calls).collect();
    let open = open_seconds(recording, plan.length);
    let open_of = |pod: &String| open.get(pod).map_or(0, |seconds| (seconds * 1e6) as u64);
    let failures = tally.by_code.iter().enumerate().filter(|(index, calls)| *index > 0 && **calls > 0);
    let millis = |time: Duration| time.as_millis() as u64;
    Run {
        via: via.to_owned(),
        target: target.to_owned(),
        calls: tally.rpcs,
        failed: tally.failed(),
        failed_share: share(tally.failed(), tally.rpcs),
        failed_by_code: failures.map(|(index, calls)| (Code::from_index(index).to_string(), *calls)).collect(),
        latency_us: Latency::of(&tally.latency),
        // Pods that come and go have no equal shares.
        healthy_max_over_min: stats::max_over_min(&others).filter(|_| plan.scenario != Scenario::RollOut),
        streams_max_over_min: (plan.scenario == Scenario::Streams)
            .then(|| stats::max_over_min(&recording.pods.iter().map(open_of).collect::<Vec<_>>()))
            .flatten(),
        bad_pod: recording.bad_pod.clone(),
        bad_ms: recording.bad_times.iter().map(|(from, to)| [millis(*from), millis(*to)]).collect(),
        caught: trouble.as_ref().map(Trouble::caught),
        bad_share: trouble.as_ref().map(Trouble::share),
        avoided_after_ms: trouble.as_ref().and_then(Trouble::avoided_after).map(millis),
        back_after_ms: trouble.as_ref().and_then(Trouble::back_after).map(millis),
        hooks_ms: recording.hooks.iter().copied().map(millis).collect(),
        resent: recording.resent,
        connections: recording.connections,
        pods: calls,
        open_seconds: open,
        series: series(recording, bad, plan),
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Pod → seconds that streams were open on it, summed.
fn open_seconds(recording: &Recording, length: Duration) -> BTreeMap<String, f64> {
    let mut open = BTreeMap::new();
    for call in recording.calls.iter().filter(|call| call.stream) {
        let (Some(pod), Some(head)) = (call.pod, call.head) else { continue };
        let ended = call.ended.unwrap_or(length).min(length);
        *open.entry(recording.pods[pod].clone()).or_default() += ended.saturating_sub(head).as_secs_f64();
    }
    open
}

/// A pod that was bad for one time or several.
struct Trouble<'a> {
    times: &'a [(Duration, Duration)],
    length: Duration,
    /// Of all calls.
    equal_share: f64,
    /// Unary calls in the order in which they were due, and whether they are the bad pod's.
    calls: Vec<(&'a Call, bool)>,
}

impl<'a> Trouble<'a> {
    /// None: no pod was bad.
    fn of(recording: &'a Recording, bad: Option<usize>, length: Duration, servers: usize) -> Option<Self> {
        let times = recording.bad_times.as_slice();
        let (bad, _) = (bad?, times.first()?);
        let is_bad = |call: &Call| match call.pod {
            Some(pod) => pod == bad,
            None => {
                recording.bad_is_silent
                    && times.iter().any(|(from, to)| call.due < *to && call.ended.is_none_or(|ended| ended >= *from))
            }
        };
        let mut calls: Vec<_> =
            recording.calls.iter().filter(|call| !call.stream).map(|call| (call, is_bad(call))).collect();
        calls.sort_by_key(|(call, _)| call.due);
        let among = if servers == 0 { recording.pods.len() } else { servers };
        Some(Self { times, length, equal_share: 1.0 / among as f64, calls })
    }

    /// Calls that were the bad pod's while it was bad.
    fn caught(&self) -> u64 {
        let while_bad = |call: &Call| {
            self.times.iter().any(|(from, to)| call.due < *to && call.ended.is_none_or(|ended| ended >= *from))
        };
        self.calls.iter().filter(|(call, is_bad)| *is_bad && while_bad(call)).count() as u64
    }

    /// The bad pod's share of the calls that were due while it was bad.
    fn share(&self) -> f64 {
        let (bad, all) = self
            .times
            .iter()
            .map(|&(from, to)| self.count(from, to))
            .fold((0, 0), |sum, counted| (sum.0 + counted.0, sum.1 + counted.1));
        share(bad, all)
    }

    /// From the beginning of the first bad time until a window in which hardly any call is the bad pod's.
    fn avoided_after(&self) -> Option<Duration> {
        let (from, to) = *self.times.first()?;
        let avoided = |from, to| self.share_of(from, to).is_some_and(|share| share < AVOIDED * self.equal_share);
        self.first_window(from, to, avoided, 1)
    }

    /// From the end of the last bad time until a window in which the pod has a good part of its share, from the beginning
    /// on: what comes late in a window is not back when the window begins.
    fn back_after(&self) -> Option<Duration> {
        let (_, healed) = *self.times.last()?;
        let back = |from, to| self.share_of(from, to).is_some_and(|share| share >= BACK * self.equal_share);
        self.first_window(healed, self.length, |from, to| back(from, to) && back(from, from + (to - from) / 10), 0)
    }

    /// How long after `from` the first window begins that passes. Windows begin at `from`, at each of the pod's calls
    /// (`after` = 0) or right after each of them (1).
    fn first_window(
        &self,
        from: Duration,
        to: Duration,
        passes: impl Fn(Duration, Duration) -> bool,
        after: u64,
    ) -> Option<Duration> {
        let window = WINDOW.min(to.saturating_sub(from) / 2);
        if window.is_zero() {
            return None;
        }
        let own = self.calls.iter().filter(|(call, is_bad)| *is_bad && call.due >= from).map(|(call, _)| call.due);
        let begins = std::iter::once(from).chain(own.map(|due| due + Duration::from_nanos(after)));
        let mut fitting = begins.take_while(|begin| *begin + window <= to);
        let first = fitting.find(|&begin| passes(begin, begin + window))?;
        Some(first - from)
    }

    /// The bad pod's share of the calls that were due then. None: there were none.
    fn share_of(&self, from: Duration, to: Duration) -> Option<f64> {
        let (bad, all) = self.count(from, to);
        (all > 0).then(|| share(bad, all))
    }

    /// The bad pod's calls and all calls that were due then.
    fn count(&self, from: Duration, to: Duration) -> (u64, u64) {
        let at = |time| self.calls.partition_point(|(call, _)| call.due < time);
        let due = &self.calls[at(from)..at(to)];
        (due.iter().filter(|(_, is_bad)| *is_bad).count() as u64, due.len() as u64)
    }
}

/// The run over time. Calls stand where they were due.
fn series(recording: &Recording, bad: Option<usize>, plan: &Plan) -> Series {
    let width = bucket(plan.length);
    let buckets = plan.length.div_duration_f64(width).ceil() as usize;
    let place = |time: Duration| (time.div_duration_f64(width) as usize).min(buckets - 1);
    let mut latencies = vec![Vec::new(); buckets];
    let mut series = Series { calls: vec![0; buckets], failed: vec![0; buckets], ..Series::default() };
    let mut pods = vec![vec![0; buckets]; recording.pods.len()];
    let mut open = vec![vec![0; buckets]; recording.pods.len()];
    let trouble = Trouble::of(recording, bad, plan.length, 0);
    let bad_calls = trouble.iter().flat_map(|trouble| trouble.calls.iter().filter(|(_, is_bad)| *is_bad));
    series.bad_pod = trouble.as_ref().map(|_| vec![0; buckets]);
    for (call, _) in bad_calls {
        if let Some(bad) = &mut series.bad_pod {
            bad[place(call.due)] += 1;
        }
    }
    for call in &recording.calls {
        let at = place(call.due);
        if call.stream {
            let (Some(pod), Some(head)) = (call.pod, call.head) else { continue };
            // Open in a bucket: at its end.
            let ended = call.ended.map_or(buckets, place);
            open[pod][place(head).min(ended)..ended].iter_mut().for_each(|open| *open += 1);
            continue;
        }
        let Some(ended) = call.ended else { continue };
        series.calls[at] += 1;
        series.failed[at] += u64::from(call.code != Code::OK);
        if call.code == Code::OK || call.code == Code::DEADLINE_EXCEEDED {
            latencies[at].push(ended.saturating_sub(call.due).as_micros() as u64);
        }
        if let Some(pod) = call.pod {
            pods[pod][at] += 1;
        }
    }
    for latencies in &mut latencies {
        latencies.sort_unstable();
        let at = |quantile: f64| latencies.get((latencies.len() as f64 * quantile) as usize).copied();
        series.p50_us.push(at(0.5));
        series.p99_us.push(at(0.99));
    }
    let named = |values: Vec<Vec<u64>>| recording.pods.iter().cloned().zip(values).collect();
    series.pods = named(pods);
    if plan.streams.is_some() {
        series.open_streams = named(open);
    }
    series
}

#[cfg(test)]
pub(crate) mod tests;

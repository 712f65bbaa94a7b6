//! The kernel's maps in words, as `sluice-agent maps` prints them. In: the maps as they are now; out: JSON. It changes nothing.

use std::net::SocketAddr;

use anyhow::Context as _;
use aya::maps::{Array, HashMap, PerCpuArray};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use sluice_ebpf::{
    Address, Config, Counters, FlowKey, Heartbeat, LOG_DEBUG, POD_OPTED_OUT, PodKey, PodValue, ServiceValue, Verdict,
    names,
};

use super::Intercept;

/// Entries of a map that are printed.
const MOST: usize = 10_000;

impl Intercept {
    /// All maps that can be read as a whole. `UNENROLLED` is a ring buffer, and `ORIGINAL` belongs to sockets.
    pub fn decoded(&self) -> anyhow::Result<Value> {
        let services: HashMap<_, Address, ServiceValue> = HashMap::try_from(self.map(names::SERVICES)?)?;
        let services = services.iter().take(MOST).map(|entry| {
            let (key, value) = entry.context("read map SERVICES")?;
            Ok(json!({ "address": SocketAddr::from(key).to_string(), "id": value.id, "flags": value.flags }))
        });
        let pods: HashMap<_, PodKey, PodValue> = HashMap::try_from(self.map(names::PODS)?)?;
        let pods = pods.iter().take(MOST).map(|entry| {
            let (key, value) = entry.context("read map PODS")?;
            Ok(json!({
                "netns_cookie": key.netns_cookie,
                "port4": value.port4,
                "port6": value.port6,
                "worker": value.worker,
                "opted_out": value.flags & POD_OPTED_OUT != 0,
            }))
        });
        let flows: HashMap<_, FlowKey, Address> = HashMap::try_from(self.map(names::FLOWS)?)?;
        let flows = flows.iter().take(MOST).map(|entry| {
            let (key, value) = entry.context("read map FLOWS")?;
            Ok(json!({
                "netns_cookie": key.netns_cookie,
                "source": SocketAddr::from(key.source).to_string(),
                "destination": SocketAddr::from(value).to_string(),
            }))
        });
        Ok(json!({
            names::SERVICES: services.collect::<anyhow::Result<Vec<_>>>()?,
            names::PODS: pods.collect::<anyhow::Result<Vec<_>>>()?,
            names::FLOWS: flows.collect::<anyhow::Result<Vec<_>>>()?,
            names::HEARTBEAT: self.heartbeats()?,
            names::COUNTERS: self.verdicts()?,
            names::CONFIG: self.config()?,
        }))
    }

    /// Of workers that have ever stamped one.
    fn heartbeats(&self) -> anyhow::Result<Value> {
        let stamps: Array<_, Heartbeat> = Array::try_from(self.map(names::HEARTBEAT)?)?;
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let stamps = stamps.iter().enumerate().filter_map(|(worker, stamp)| {
            let stamp = stamp.ok()?.monotonic_ns;
            let age = now.saturating_sub(stamp) / 1_000_000;
            (stamp > 0).then(|| json!({ "worker": worker, "age_ms": age }))
        });
        Ok(stamps.collect())
    }

    /// The sum over all CPUs.
    fn verdicts(&self) -> anyhow::Result<Value> {
        let counters: PerCpuArray<_, Counters> = PerCpuArray::try_from(self.map(names::COUNTERS)?)?;
        let all = counters.get(&0, 0).context("read map COUNTERS")?;
        let sum = |verdict: Verdict| all.iter().map(|cpu| cpu.get(verdict)).sum::<u64>();
        Ok(Verdict::ALL.iter().map(|verdict| (verdict.name().to_owned(), json!(sum(*verdict)))).collect())
    }

    fn config(&self) -> anyhow::Result<Value> {
        let config: Array<_, Config> = Array::try_from(self.map(names::CONFIG)?)?;
        let Config { own_cgroup, log_level, .. } = config.get(&0, 0).context("read map CONFIG")?;
        Ok(json!({ "own_cgroup": own_cgroup, "log_level": log_level, "verdicts_said": log_level >= LOG_DEBUG }))
    }
}

//! A large cluster: how much memory an agent takes there, how soon it is ready, what changes cost it, and how soon they
//! hold. Services and endpoints are in the API only; figures are printed as a table at the end. Both sides' times are of
//! the same clock: the agents run on this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use testbed::Cluster;

use crate::crowd::{By, Changed, Crowd, ENDPOINTS};
use crate::sluice::{self, Agent, SYSTEM};
use crate::world::Namespace;

/// What an agent may take, at rest and when it is asked for all that it knows.
const MEMORY: u64 = 200 << 20;
/// The promise for 99 of 100 changes is 50 ms. The machine is loaded: it runs two nodes, a control plane and whatever else.
const USABLE_WITHIN: Duration = Duration::from_millis(4 * 50);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The unit of times in /proc, the same on all of Linux's architectures that sluice is built for.
const TICK: Duration = Duration::from_millis(10);

struct Size {
    services: u32,
    by: By,
    /// Endpoints that change, and how many of them a second.
    changes: u32,
    per_second: u32,
}

#[test]
fn changed_endpoints_are_usable_at_once_among_two_hundred_services() -> Result<()> {
    measure(&Size { services: 200, by: By::ApiServer, changes: 60, per_second: 30 })
}

#[test]
#[ignore = "takes 3 minutes: cargo xtask cluster test --all"]
fn a_hundred_thousand_endpoints_take_200_mb_and_are_usable_within_50_ms_of_a_change() -> Result<()> {
    measure(&Size { services: 10_000, by: By::Etcd, changes: 3_000, per_second: 100 })
}

fn measure(size: &Size) -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "scale")?;
    let mut table = Table::default();
    let began = Instant::now();
    let crowd = Crowd::make(&space, size.services, size.by)?;
    table.note(format!("{} Services and {} endpoints", size.services, size.services * ENDPOINTS));
    table.note(format!("made in {:.1?}", began.elapsed()));

    cluster.kubectl(&["--namespace", SYSTEM, "rollout", "restart", "daemonset/sluice-agent"])?;
    sluice::settle(cluster)?;
    let mut agents = Vec::new();
    for agent in sluice::agents(cluster)? {
        let process = Process::of(cluster, &agent)?;
        let log = agent.log()?;
        let ready = Line::find(&log, "ready services=").context("the log has no line \"ready\"")?;
        let services: u32 = ready.value("services=").context("services")?.parse()?;
        ensure!(services >= size.services, "{} was ready with {services} Services only", agent.node);
        let row = table.row(&agent.node);
        row.push(("start to ready", format!("{:.2} s", since(process.started()?, ready.time))));
        agents.push((agent, process));
    }
    for (agent, process) in &agents {
        let [rest, peak] = process.memory()?;
        let row = table.row(&agent.node);
        row.push(("at rest", mib(rest)));
        row.push(("peak", mib(peak)));
        ensure!(rest <= MEMORY, "{}'s agent takes {} at rest", agent.node, mib(rest));
    }

    let before: Vec<_> = agents.iter().map(|(_, process)| process.cpu()).collect::<Result<_>>()?;
    let began = Instant::now();
    let changes = crowd.change(size.changes, size.per_second)?;
    let took = began.elapsed();
    table.note(format!("{} changes in {took:.1?}", changes.len()));
    for ((agent, process), before) in agents.iter().zip(before) {
        let cpu = process.cpu()? - before;
        let usable = Usable::of(cluster, agent, &space, &changes)?;
        let row = table.row(&agent.node);
        row.push(("CPU meanwhile", format!("{:.1} %", 100.0 * cpu.as_secs_f64() / took.as_secs_f64())));
        let [p50, p99, max] = usable.since_answer;
        row.push(("usable after the answer: p50", format!("{p50:.1} ms")));
        row.push(("p99", format!("{p99:.1} ms")));
        row.push(("max", format!("{max:.1} ms")));
        let [p50, p99, _] = usable.since_request;
        row.push(("after the request: p50", format!("{p50:.1} ms")));
        row.push(("p99 ", format!("{p99:.1} ms")));
        row.push(("told in number", usable.in_number.to_string()));
        let within = USABLE_WITHIN.as_secs_f64() * 1e3;
        ensure!(usable.since_answer[1] <= within, "{}: p99 {} ms\n{table}", agent.node, usable.since_answer[1]);
    }
    for (agent, process) in &agents {
        // All Services at once, which nothing else asks for.
        let known = agent.status()?["services"].as_array().map_or(0, Vec::len);
        ensure!(known >= size.services as usize, "{}'s status has {known} Services", agent.node);
        let [now, peak] = process.memory()?;
        let row = table.row(&agent.node);
        row.push(("after /status.json", mib(now)));
        row.push(("peak ", mib(peak)));
        ensure!(peak <= MEMORY, "{}'s agent took {} for its status\n{table}", agent.node, mib(peak));
    }

    let began = Instant::now();
    crowd.remove()?;
    table.note(format!("removed in {:.1?}", began.elapsed()));
    println!("{table}");
    Ok(())
}

/// An agent's process, as the machine sees it.
struct Process {
    folder: PathBuf,
}

impl Process {
    fn of(cluster: &Cluster, agent: &Agent) -> Result<Self> {
        let get = ["--namespace", SYSTEM, "get", "pod", &agent.pod, "--output=jsonpath={.metadata.uid}"];
        let group = format!("pod{}", cluster.kubectl(&get)?);
        let kubepods = cluster.node(&agent.node)?.kubepods()?;
        let classes = ["", "burstable", "besteffort"].map(|class| kubepods.join(class).join(&group));
        let pod = classes.into_iter().find(|it| it.is_dir()).with_context(|| format!("no cgroup {group}"))?;
        for container in std::fs::read_dir(&pod)? {
            let container = container?.path();
            let Ok(pids) = std::fs::read_to_string(container.join("cgroup.procs")) else { continue };
            for pid in pids.lines() {
                let folder = Path::new("/proc").join(pid);
                if std::fs::read_to_string(folder.join("comm"))?.trim() == "sluice-agent" {
                    return Ok(Self { folder });
                }
            }
        }
        bail!("no sluice-agent in {}", pod.display())
    }

    fn read(&self, file: &str) -> Result<String> {
        let file = self.folder.join(file);
        std::fs::read_to_string(&file).with_context(|| format!("{}: the agent has ended", file.display()))
    }

    /// Resident bytes, now and at most so far.
    fn memory(&self) -> Result<[u64; 2]> {
        let status = self.read("status")?;
        let bytes = |field: &str| -> Result<u64> {
            let line =
                status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
        };
        Ok([bytes("VmRSS:")?, bytes("VmHWM:")?])
    }

    /// The field of this number in proc(5)'s table of `stat`, in ticks.
    fn ticks(&self, field: usize) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The program's name, the second, may have spaces.
        let rest = stat.rsplit_once(") ").context("stat")?.1;
        let ticks: u32 = rest.split(' ').nth(field - 3).context("stat is short")?.parse()?;
        Ok(TICK * ticks)
    }

    /// Of all its threads, in its own code and in the kernel.
    fn cpu(&self) -> Result<Duration> {
        Ok(self.ticks(14)? + self.ticks(15)?)
    }

    /// Since the epoch.
    fn started(&self) -> Result<Duration> {
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let uptime: f64 = uptime.split(' ').next().context("/proc/uptime")?.parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(now - Duration::try_from_secs_f64(uptime)? + self.ticks(22)?)
    }
}

/// One line of an agent's log.
struct Line<'a> {
    text: &'a str,
    /// Of the day, UTC.
    time: Duration,
}

impl<'a> Line<'a> {
    fn find(log: &'a str, what: &str) -> Option<Self> {
        log.lines().filter(|line| line.contains(what)).find_map(Self::read)
    }

    /// None: it does not begin with a time, such as 2026-11-23T05:40:11.788929Z.
    fn read(text: &'a str) -> Option<Self> {
        let (_, time) = text.split_whitespace().next()?.trim_end_matches('Z').split_once('T')?;
        let mut parts = time.split(':');
        let mut seconds = |each: f64| parts.next()?.parse::<f64>().ok().map(|it| it * each);
        let time = Duration::try_from_secs_f64(seconds(3600.0)? + seconds(60.0)? + seconds(1.0)?).ok()?;
        Some(Self { text, time })
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.text.split(' ').find_map(|word| word.strip_prefix(name))
    }
}

/// From one time since the epoch to a time of day that is less than half a day away; negative if it was before.
fn since(from: Duration, time_of_day: Duration) -> f64 {
    let day = DAY.as_secs_f64();
    let from = from.as_secs_f64() % day;
    (time_of_day.as_secs_f64() - from + 1.5 * day) % day - day / 2.0
}

/// How long changes took to be usable by an agent: until the line of its log that it writes when the change is in its
/// table, just before the workers get it, which takes some ten microseconds more.
struct Usable {
    /// p50, p99 and maximum in milliseconds, from the API server's answer on. It may tell the agent before it answers.
    since_answer: [f64; 3],
    /// From the moment on when the API server was asked.
    since_request: [f64; 3],
    /// Changes that came together with more than 32 others: the log has their number only, and they count from its line.
    in_number: usize,
}

impl Usable {
    fn of(cluster: &Cluster, agent: &Agent, space: &Namespace, changes: &[Changed]) -> Result<Self> {
        let mut found = None;
        cluster.wait_until("the agent to know all changes", || {
            found = Self::read(&agent.log()?, space.name(), changes);
            Ok(found.is_some())
        })?;
        found.context("no changes")
    }

    /// None: some are not there yet.
    fn read(log: &str, space: &str, changes: &[Changed]) -> Option<Self> {
        let lines = || log.lines().filter_map(Line::read);
        let own = lines().filter(|line| line.text.contains("endpoints have changed")).filter_map(|line| {
            let (namespace, service) = line.value("service=")?.split_once('/')?;
            (namespace == space).then_some((service.strip_suffix(":api")?, line.time))
        });
        // The last one: an agent that was there when they were made has another one.
        let own: HashMap<&str, Duration> = own.collect();
        let numbers: Vec<_> = lines().filter(|line| line.text.contains("Services have changed")).collect();
        let mut in_number = 0;
        let (mut since_answer, mut since_request) = (Vec::new(), Vec::new());
        for change in changes {
            let time = match own.get(&*change.service) {
                Some(time) => *time,
                None => {
                    in_number += 1;
                    numbers.iter().map(|line| line.time).find(|time| since(change.sent, *time) > 0.0)?
                }
            };
            since_answer.push(since(change.answered, time) * 1e3);
            since_request.push(since(change.sent, time) * 1e3);
        }
        Some(Self { since_answer: of_all(since_answer), since_request: of_all(since_request), in_number })
    }
}

/// p50, p99 and maximum.
fn of_all(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    [at(50), at(99), at(100)]
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Figures of each node, and of all.
#[derive(Default)]
struct Table {
    notes: Vec<String>,
    rows: Vec<(String, Vec<(&'static str, String)>)>,
}

impl Table {
    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn row(&mut self, node: &str) -> &mut Vec<(&'static str, String)> {
        let at = self.rows.iter().position(|(name, _)| name == node).unwrap_or_else(|| {
            self.rows.push((node.to_owned(), Vec::new()));
            self.rows.len() - 1
        });
        &mut self.rows[at].1
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.notes.join(", "))?;
        let Some((_, first)) = self.rows.first() else { return Ok(()) };
        let nodes = self.rows.iter().map(|(node, _)| format!("{node:>12}")).collect::<String>();
        writeln!(f, "{:<30}{nodes}", "one agent on")?;
        for (line, (name, _)) in first.iter().enumerate() {
            write!(f, "{name:<30}")?;
            self.rows.iter().try_for_each(|(_, cells)| write!(f, "{:>12}", cells.get(line).map_or("", |it| &it.1)))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

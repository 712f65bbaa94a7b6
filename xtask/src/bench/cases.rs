//! The cases: what load each has, who takes part, and what is measured. In: entrants; out, a section for each table.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::connects;
use super::figures::{CPU, CPU_BEFORE, Figure, IDLE_CPU, RSS, RSS_BEFORE, Row, Section, growth};
use super::load::{Load, Outcome, Pace, Request};
use super::one_cpu::OneCpu;
use super::peers::{Entrant, Peer};
use super::site::{Endpoints, Plan, Programs, Site};
use crate::host::step;

/// Bytes of a small message's payload.
const SMALL: usize = 32;
const UNARY: &str = "unary, 32 bytes each way";
const LARGE: usize = 64 << 10;
/// Messages of a stream.
const STREAM: u32 = 100;
/// Where a number varies, the load is the same: so many calls per second, evenly, and in each measurement. A timer ticks
/// every millisecond: each call comes alone, and none shares a wake-up or a write with another.
const RATE: f64 = 1000.0;
const CALLS: u64 = 4000;
/// What such calls cost is measured when all connections are there, for a while.
const EVEN_AFTER: Duration = Duration::from_millis(1500);
const EVEN_FOR: Duration = Duration::from_secs(2);
const IDLE_CONNECTIONS: u32 = 1000;
/// Idle connections are looked at so long after they were dialled, for so long.
const IDLE_AFTER: Duration = Duration::from_secs(4);
const IDLE_FOR: Duration = Duration::from_secs(3);
/// A client's one idle connection has two calls, this far apart: meanwhile it is idle.
const IDLE_APART: f64 = 8.0;
/// Nodes with so many pods are not there at the same time: the kernel has a thousand neighbours for all namespaces together
/// (gc_thresh3), and each pod takes two.
const MANY_PODS: usize = 100;
const NODE_SERVICES: u16 = 100;
const NODE_PODS: usize = 10;

/// What is measured, in the order of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Case {
    /// 10 connections with 20 calls open each
    #[value(name = "10x20")]
    Shared,
    /// 50 connections with one call each
    #[value(name = "50x1")]
    Alone,
    /// One call at a time: latency
    #[value(name = "1x1")]
    PingPong,
    /// Messages of 64 KiB each way
    #[value(name = "64k")]
    Large,
    /// A hundred messages in answer to each call
    Streaming,
    /// 1, 10, 100, 1000 connections at the same rate
    Connections,
    /// 1000 connections that do nothing: memory and CPU
    Idle,
    /// 1, 10, 100, 1000 endpoints at the same rate
    Endpoints,
    /// 1, 10, 100 client pods at the same rate
    Pods,
    /// Memory of a node with 100 Services and 10 client pods
    Rss,
    /// connect() with and without the agent's programs
    Connects,
}

/// What a run has.
pub(crate) struct Bench {
    pub(crate) entrants: Vec<Entrant>,
    pub(crate) programs: Programs,
    pub(crate) rounds: u8,
    /// Calls in a measurement of the first case; others have a part of it that takes about as long.
    pub(crate) rpcs: u64,
}

/// One of the numbers of something that varies.
struct Point<'a> {
    name: String,
    about: String,
    sites: &'a [Site],
    load: Load,
}

impl Case {
    /// Whether the nodes of the case before serve this one as well.
    pub(crate) fn shares_sites(self) -> bool {
        matches!(self, Self::Shared | Self::Alone | Self::Large | Self::Streaming)
    }
}

impl Bench {
    /// Nodes for those that take part.
    pub(crate) fn sites(&self, plan: Plan, takes_part: impl Fn(Peer) -> bool) -> Result<Vec<Site>> {
        let entrants = self.entrants.iter().filter(|entrant| takes_part(entrant.peer));
        entrants.map(|entrant| Site::build(entrant, plan, &self.programs)).collect()
    }

    /// Measures a case; `shared` are nodes with 4 endpoints and a client. Each table goes to `show` when it is ready.
    pub(crate) fn run(&self, case: Case, shared: &[Site], show: &mut impl FnMut(Section) -> Result<()>) -> Result<()> {
        let small = |load| format!("{UNARY}, 4 endpoints, {load}");
        let (name, about, load) = match case {
            Case::Shared => ("10x20", small("10 connections × 20 calls"), Load::unary(self.rpcs, 10, 20, SMALL)),
            Case::Alone => ("50x1", small("50 connections × 1 call"), Load::unary(self.rpcs / 2, 50, 1, SMALL)),
            Case::PingPong => return self.ping_pong().and_then(show),
            Case::Large => {
                let about = "unary, 64 KiB each way, 4 endpoints, 10 connections × 2 calls".to_owned();
                ("64k", about, Load::unary(self.rpcs / 25, 10, 2, LARGE))
            }
            Case::Streaming => {
                let about = format!(
                    "server streaming, {STREAM} messages of {SMALL} bytes a call, 4 endpoints, 10 connections × 2 calls"
                );
                let request = Request { payload: SMALL, responses: STREAM };
                let load = Load { method: "ServerStream", request, ..Load::unary(self.rpcs / 50, 10, 2, SMALL) };
                ("streaming", about, load)
            }
            Case::Connections => return self.connections(show),
            Case::Endpoints => return self.endpoints(show),
            Case::Pods => return self.pods(show),
            Case::Idle => return self.idle().and_then(show),
            Case::Rss => return self.rss().and_then(show),
            Case::Connects => return connects::section(&self.entrants, &self.programs, self.rounds).and_then(show),
        };
        show(self.compare(name, about, shared, self.rounds, &load)?)
    }

    /// With one endpoint: that calls are spread over several, of which each sleeps meanwhile, is not the proxy's latency.
    fn ping_pong(&self) -> Result<Section> {
        let _pinned = OneCpu::pin()?;
        let sites = self.sites(Plan { endpoints: Endpoints::Pods(1), ..Plan::default() }, |_| true)?;
        let about = format!("{UNARY}, 1 endpoint, one call at a time, everybody on one CPU");
        self.compare("1x1", about, &sites, self.rounds, &Load::unary(self.rpcs / 10, 1, 1, SMALL))
    }

    fn connections(&self, show: &mut impl FnMut(Section) -> Result<()>) -> Result<()> {
        let _pinned = OneCpu::pin()?;
        let sites = self.sites(Plan::default(), spreads_calls)?;
        let point = |connections| Point {
            name: format!("connections {connections}"),
            about: format!("{UNARY}, 4 endpoints, {RATE} calls/s over so many connections, everybody on one CPU"),
            sites: &sites,
            load: Load::unary(CALLS, connections, 10, SMALL).pace(Pace::Even(RATE)),
        };
        self.sweep(&[1, 10, 100, 1000].map(point), show)
    }

    fn endpoints(&self, show: &mut impl FnMut(Section) -> Result<()>) -> Result<()> {
        let _pinned = OneCpu::pin()?;
        let numbers = [1, 10, 100, 1000];
        let plan = |endpoints| Plan { endpoints: Endpoints::OfOnePod(endpoints), ..Plan::default() };
        let sites = numbers.iter().map(|it| self.sites(plan(*it), spreads_calls)).collect::<Result<Vec<_>>>()?;
        let point = |(endpoints, sites): (&usize, _)| Point {
            name: format!("endpoints {endpoints}"),
            about: format!(
                "{UNARY}, {RATE} calls/s over 10 connections, so many endpoints (addresses of one pod), everybody on one CPU"
            ),
            sites,
            load: Load::unary(CALLS, 10, 10, SMALL).pace(Pace::Even(RATE)),
        };
        let sites = sites.iter().map(Vec::as_slice);
        let points: Vec<Point<'_>> = numbers.iter().zip(sites).map(point).collect();
        self.sweep(&points, show)
    }

    fn pods(&self, show: &mut impl FnMut(Section) -> Result<()>) -> Result<()> {
        for pods in [1, 10, 100] {
            let plan = Plan { clients: pods, ..Plan::default() };
            let load = Load::unary(CALLS, pods as u32, 10, SMALL).pace(Pace::Even(RATE));
            let (name, mut about) = (
                format!("pods {pods}"),
                format!(
                    "{UNARY}, 4 endpoints, {RATE} calls/s from so many client pods with a connection each; CPU and memory \
                     of all sidecars together"
                ),
            );
            if pods < MANY_PODS {
                let sites = self.sites(plan, spreads_calls)?;
                show(self.compare(&name, about, &sites, self.fewer(), &load)?)?;
                continue;
            }
            about += ", one proxy after the other";
            let mut all: Option<Section> = None;
            for entrant in self.entrants.iter().filter(|entrant| spreads_calls(entrant.peer)) {
                step(&format!("making a node with {pods} client pods for {}", entrant.name));
                let site = Site::build(entrant, plan, &self.programs)?;
                let one = self.compare(&name, about.clone(), std::slice::from_ref(&site), self.fewer(), &load)?;
                match &mut all {
                    Some(all) => all.rows.extend(one.rows),
                    None => all = Some(one),
                }
            }
            all.map_or(Ok(()), &mut *show)?;
        }
        Ok(())
    }

    /// Rounds where a number varies.
    fn fewer(&self) -> u8 {
        (self.rounds / 2).max(1)
    }

    /// The same rate at each point, through each proxy, round after round: what a proxy needs at one point is compared with
    /// what it needed at the first seconds before.
    fn sweep(&self, points: &[Point<'_>], show: &mut impl FnMut(Section) -> Result<()>) -> Result<()> {
        let mut tables: Vec<Vec<Row>> = points.iter().map(|point| rows(point.sites)).collect();
        for round in 0..usize::from(self.fewer()) {
            for turn in 0..tables[0].len() {
                let i = (turn + round) % tables[0].len();
                let mut first = None;
                for (point, rows) in points.iter().zip(&mut tables) {
                    let what = || format!("{}, {}", point.name, point.sites[i].entrant.name);
                    let mut measured = through(&point.sites[i], &point.load).with_context(what)?;
                    measured.extend(growth(&measured, &mut first));
                    rows[i].add(&measured);
                }
            }
        }
        for (point, rows) in points.iter().zip(tables) {
            let about = format!("{}; {} calls a measurement, {} rounds", point.about, point.load.calls, self.fewer());
            show(Section { name: point.name.clone(), about, leading: CPU, rows })?;
        }
        Ok(())
    }

    /// The load through each, in turn, round after round. The first round warms up: connections, HPACK tables, caches.
    fn compare(&self, name: &str, about: String, sites: &[Site], rounds: u8, load: &Load) -> Result<Section> {
        let even = matches!(load.pace, Pace::Even(_));
        let mut rows = rows(sites);
        // It has its own time to warm up.
        for round in usize::from(even)..=usize::from(rounds) {
            for turn in 0..sites.len() {
                // Nobody comes always first, or always after the same one.
                let i = (turn + round) % sites.len();
                let measured = through(&sites[i], load).with_context(|| format!("{name}, {}", rows[i].name))?;
                if round > 0 {
                    rows[i].add(&measured);
                }
            }
        }
        let about = format!("{about}; {} calls a measurement, {rounds} rounds", load.calls);
        Ok(Section { name: name.to_owned(), about, leading: CPU, rows })
    }

    /// All at the same time: nobody does anything.
    fn idle(&self) -> Result<Section> {
        let sites = self.sites(Plan::default(), spreads_calls)?;
        let calls = u64::from(IDLE_CONNECTIONS) * 2;
        let load = Load::unary(calls, IDLE_CONNECTIONS, 1, SMALL).pace(Pace::Apart(IDLE_APART));
        let mut rows = rows(&sites);
        for _ in 0..self.fewer() {
            let measured: Vec<Result<_>> = thread::scope(|scope| {
                let all: Vec<_> = sites.iter().map(|site| scope.spawn(|| while_idle(site, &load))).collect();
                let join = |one: thread::ScopedJoinHandle<'_, _>| {
                    one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                all.into_iter().map(join).collect()
            });
            for (row, measured) in rows.iter_mut().zip(measured) {
                let name = row.name.clone();
                row.add(&measured.with_context(|| format!("idle, {name}"))?);
            }
        }
        let about = format!(
            "{IDLE_CONNECTIONS} connections that have made a call and are idle, 4 endpoints; {} rounds of {} s",
            self.fewer(),
            IDLE_FOR.as_secs()
        );
        Ok(Section { name: "idle".to_owned(), about, leading: RSS, rows })
    }

    /// Each pod has made some calls, and all is quiet again.
    fn rss(&self) -> Result<Section> {
        step(&format!("making nodes with {NODE_SERVICES} Services and {NODE_PODS} client pods"));
        let plan = Plan { clients: NODE_PODS, services: NODE_SERVICES, ..Plan::default() };
        let sites = self.sites(plan, |peer| peer != Peer::KubeProxy)?;
        let load = Load::unary(NODE_PODS as u64 * 100, NODE_PODS as u32, 10, SMALL);
        for site in &sites {
            through(site, &load).with_context(|| format!("rss, {}", site.entrant.name))?;
        }
        thread::sleep(IDLE_AFTER);
        let mut rows = rows(&sites);
        for (row, site) in rows.iter_mut().zip(&sites) {
            row.add(&site.memory()?);
        }
        let about = format!(
            "{NODE_SERVICES} Services with 4 endpoints each, {NODE_PODS} client pods that made 100 calls each and are idle; all \
             sidecars together"
        );
        Ok(Section { name: "rss".to_owned(), about, leading: RSS, rows })
    }
}

fn rows(sites: &[Site]) -> Vec<Row> {
    sites.iter().map(|site| Row::new(&site.entrant.name, site.entrant.baseline())).collect()
}

/// Of a load that is there for the CPU that proxies need, and knows no TLS.
fn spreads_calls(peer: Peer) -> bool {
    peer != Peer::KubeProxy && !peer.is_opaque()
}

/// One measurement.
fn through(site: &Site, load: &Load) -> Result<Vec<(Figure, f64)>> {
    site.meter.forget_peak()?;
    let (outcome, spent, calls) = match load.pace {
        Pace::Even(rate) => while_even(site, load, rate)?,
        Pace::AtOnce | Pace::Apart(_) => {
            let before = site.meter.cpu()?;
            let outcome = load.run(site)?;
            let spent = site.meter.cpu()?.saturating_sub(before);
            let calls = outcome.calls() as f64;
            (outcome, spent, calls)
        }
    };
    let mut measured = outcome.figures();
    if !site.meter.is_empty() {
        measured.push((CPU, spent.as_secs_f64() * 1e6 / calls));
    }
    measured.extend(site.memory()?);
    Ok(measured)
}

/// The load, and what was spent on how many calls in its middle: dials are not calls.
fn while_even(site: &Site, load: &Load, rate: f64) -> Result<(Outcome, Duration, f64)> {
    thread::scope(|scope| {
        let running = scope.spawn(|| load.run(site));
        thread::sleep(EVEN_AFTER);
        let (before, from) = (site.meter.cpu()?, Instant::now());
        thread::sleep(EVEN_FOR);
        let (spent, calls) = (site.meter.cpu()?.saturating_sub(before), rate * from.elapsed().as_secs_f64());
        let outcome = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((outcome, spent, calls))
    })
}

/// What a proxy has and uses between the two calls of each connection.
fn while_idle(site: &Site, load: &Load) -> Result<Vec<(Figure, f64)>> {
    let [(_, at_rest), ..] = site.meter.memory()?;
    let before = used(site)?;
    site.meter.forget_peak()?;
    thread::scope(|scope| {
        let calls = scope.spawn(|| load.run(site));
        thread::sleep(IDLE_AFTER);
        let spent = used(site)?;
        let memory = site.meter.memory()?;
        calls.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(memory.into_iter().chain([(RSS_BEFORE, at_rest), (IDLE_CPU, spent), (CPU_BEFORE, before)]).collect())
    })
}

/// Microseconds of CPU per second, from now on for a while.
fn used(site: &Site) -> Result<f64> {
    let before = site.meter.cpu()?;
    thread::sleep(IDLE_FOR);
    Ok(site.meter.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / IDLE_FOR.as_secs_f64())
}

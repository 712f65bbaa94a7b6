//! Pods of a Deployment come and go under load: by `kubectl scale`, by a rollout, and without any manners. Clients do
//! nothing for it: they keep the connections that they opened before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::inside::Inside;
use crate::sluice::{self, Load};
use crate::world::Namespace;

/// Open loop: a call that waits makes the next one no later.
const LOAD: [&str; 6] = ["--rate", "1000", "--connections", "2", "--streams", "50"];
/// With so many connections each of three servers has some through kube-proxy, so that chance decides less whose calls are
/// in flight when one ends.
const RUDE_LOAD: [&str; 6] = ["--rate", "1000", "--connections", "12", "--streams", "50"];
/// Longer than any test: it is stopped.
const ENDLESS: [&str; 2] = ["--duration", "30m"];

/// Within which a new endpoint is to have its even share of connections that are open already.
const SHARE_WITHIN: Duration = Duration::from_secs(1);
/// The machine may be a slow one, and busy.
const MARGIN: u32 = 3;
/// Over which bytes are counted: a hundred calls of each of ten endpoints.
const WINDOW: Duration = Duration::from_secs(1);

#[test]
fn scaled_up_and_down_under_load_no_call_fails_and_each_new_pod_takes_its_share_of_open_connections() -> Result<()> {
    let scene = Scene::make("scale", 3)?;
    let scale = |count: usize| {
        scene.space.kubectl(&["scale", "deployment/echo", &format!("--replicas={count}")])?;
        scene.space.wait_rolled_out("deployment/echo")?;
        scene.settle(count)
    };
    let before = scene.timeline.addresses()?;
    scale(10)?;
    let shares = scene.timeline.next_window()?;
    println!("bytes sent to each of 10 endpoints in {WINDOW:?}: {:?}", shares.values());
    scene.timeline.print_and_judge_new(&before)?;
    scale(3)?;
    let report = scene.end()?;

    ensure!(shares.len() == 10, "{shares:?}");
    let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
    // About a hundred calls each in so short a window: one that stood still for some milliseconds is owed a few of them.
    ensure!(most.zip(least).is_some_and(|(most, least)| most * 100 <= least * 125), "not even: {shares:?}");
    ensure!(report["calls"].as_object().is_some_and(|calls| calls.len() == 10), "{report:#}");
    Ok(())
}

#[test]
#[ignore = "beyond the short set: cargo xtask cluster test --all"]
fn a_rollout_under_load_fails_no_call() -> Result<()> {
    let scene = Scene::make("rollout", 3)?;
    let before = scene.timeline.addresses()?;
    scene.space.kubectl(&["rollout", "restart", "deployment/echo"])?;
    scene.space.wait_rolled_out("deployment/echo")?;
    scene.settle(3)?;
    scene.timeline.print_and_judge_new(&before)?;
    let shares = scene.timeline.next_window()?;
    ensure!(shares.len() == 3 && shares.keys().all(|ip| !before.contains(ip)), "before {before:?}, after {shares:?}");
    let report = scene.end()?;
    ensure!(report["calls"].as_object().is_some_and(|calls| calls.len() == 6), "all old and new ones: {report:#}");
    Ok(())
}

/// Servers, a client with its load, and what is seen of both.
struct Scene {
    load: Load,
    timeline: Timeline,
    space: Namespace,
    started: Instant,
}

impl Scene {
    fn make(name: &str, replicas: usize) -> Result<Self> {
        let cluster = sluice::installed()?;
        let space = Namespace::make(cluster, name)?;
        space.deploy(&sluice::echo("echo", replicas))?;
        space.apply(&[sluice::service("echo", "echo")])?;
        space.start_client("client", "node-a")?;
        space.wait_endpoints("echo", replicas)?;
        let client = space.inside("client")?;
        let timeline = Timeline::start(&space, &client)?;
        let load = space.load_inside(&client, &[&["run", &space.target("echo")?], &LOAD[..], &ENDLESS].concat())?;
        let scene = Self { load, timeline, space, started: Instant::now() };
        scene.settle(replicas)?;
        scene.timeline.next_window()?;
        Ok(scene)
    }

    /// Waits until calls go to so many endpoints.
    fn settle(&self, count: usize) -> Result<()> {
        self.space.cluster().wait_until(&format!("calls to {count} endpoints"), || {
            Ok(self.timeline.shares(Instant::now() - WINDOW / 4).is_some_and(|it| it.len() == count))
        })
    }

    /// Stops the load, in which no call may have failed.
    fn end(self) -> Result<Value> {
        let seconds = self.started.elapsed().as_secs_f64();
        let report = self.load.stop()?;
        println!(
            "{} calls in {seconds:.0} s, failed {}, sent again by the client {}, latency {}",
            report["rpcs"], report["failed"], report["resent"], report["latency_us"]
        );
        ensure!(report["failed"] == 0, "{report:#}");
        ensure!(report["connections"] == 2 && report["resent"] == 0, "the client had something to do: {report:#}");
        ensure!(report["rpcs"].as_f64() >= Some(seconds * 900.0), "the load stood still: {report:#}");
        Ok(report)
    }
}

/// When endpoints became ready, by a watch of the API, and what a client pod's node had sent to each, ten times a second.
struct Timeline {
    seen: Arc<Seen>,
    watch: Child,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Seen {
    ready: Mutex<BTreeMap<IpAddr, Instant>>,
    sent: Mutex<Vec<(Instant, Sent)>>,
    end: AtomicBool,
}

type Sent = BTreeMap<IpAddr, u64>;

impl Timeline {
    fn start(space: &Namespace, client: &Inside) -> Result<Self> {
        let ready = "{.endpoints[?(@.conditions.ready==true)].addresses[0]}{\"\\n\"}";
        let mut watch = space.cluster().command("kubectl");
        watch.args(["--namespace", space.name(), "get", "endpointslices", "--watch", "--output"]);
        let mut watch = watch.arg(format!("jsonpath={ready}")).stdout(Stdio::piped()).spawn().context("kubectl")?;
        let lines = BufReader::new(watch.stdout.take().context("stdout")?).lines();
        let seen = Arc::new(Seen::default());
        let (for_watch, for_samples, client) = (Arc::clone(&seen), Arc::clone(&seen), client.clone());
        let watching = thread::spawn(move || {
            for line in lines {
                let (now, line) = (Instant::now(), line?);
                let mut ready = lock(&for_watch.ready);
                for ip in line.split_whitespace().filter_map(|word| word.parse().ok()) {
                    ready.entry(ip).or_insert(now);
                }
            }
            Ok(())
        });
        let sampling = thread::spawn(move || {
            while !for_samples.end.load(Ordering::Relaxed) {
                let sent = client.sent()?.into_iter().map(|(peer, bytes): (SocketAddr, u64)| (peer.ip(), bytes));
                lock(&for_samples.sent).push((Instant::now(), sent.collect()));
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        Ok(Self { seen, watch, threads: vec![watching, sampling] })
    }

    /// Where calls went since then; none until there is a sample from before and a younger one.
    fn shares(&self, since: Instant) -> Option<Sent> {
        let sent = lock(&self.seen.sent);
        let before = sent.iter().rev().find(|(at, _)| *at <= since)?;
        let last = sent.last().filter(|last| last.0 > before.0)?;
        Some(between(&before.1, &last.1))
    }

    /// Where calls go in the time to come.
    fn next_window(&self) -> Result<Sent> {
        let start = Instant::now();
        loop {
            thread::sleep(Duration::from_millis(50));
            let sent = lock(&self.seen.sent);
            let first = sent.iter().find(|(at, _)| *at >= start);
            let last = sent.last().zip(first).filter(|(last, first)| last.0 >= first.0 + WINDOW);
            if let Some((last, first)) = last {
                return Ok(between(&first.1, &last.1));
            }
            ensure!(start.elapsed() < Duration::from_secs(60), "the client pod's sockets are not looked at any more");
        }
    }

    /// Endpoints that calls go to now.
    fn addresses(&self) -> Result<BTreeSet<IpAddr>> {
        Ok(self.next_window()?.into_keys().collect())
    }

    /// Prints how long each endpoint but those `before` took from ready to its first call and to its even share; an error if
    /// one took too long.
    fn print_and_judge_new(&self, before: &BTreeSet<IpAddr>) -> Result<()> {
        // The youngest one's second must be over.
        self.next_window()?;
        let (ready, sent) = (lock(&self.seen.ready), lock(&self.seen.sent));
        let new: BTreeSet<_> =
            sent.iter().flat_map(|(_, sent)| sent.keys()).filter(|ip| !before.contains(ip)).collect();
        ensure!(!new.is_empty(), "no new endpoint got a call");
        for ip in new {
            let ready = *ready.get(ip).with_context(|| format!("{ip} got calls and was never ready"))?;
            let first = sent.iter().find(|(_, sent)| sent.contains_key(ip)).context("a first call")?.0;
            let Some(even) = has_its_share(&sent, *ip, ready) else { bail!("{ip} never had its share") };
            let [first, even] = [first, even].map(|at| at.saturating_duration_since(ready));
            println!(
                "{ip}: first call seen {} ms after it was ready, its even share from {} ms on (looked at every 100 ms)",
                first.as_millis(),
                even.as_millis()
            );
            ensure!(even <= SHARE_WITHIN * MARGIN, "{ip} had its even share only after {even:?}");
        }
        Ok(())
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.seen.end.store(true, Ordering::Relaxed);
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("the timeline ended: {error:#}");
            }
        }
    }
}

/// From when on an endpoint that was ready then gets at least nine tenths of what the median endpoint gets, half a second at
/// a time.
fn has_its_share(sent: &[(Instant, Sent)], ip: IpAddr, ready: Instant) -> Option<Instant> {
    let looked = sent.iter().enumerate().filter(|(_, (at, _))| *at >= ready);
    looked.into_iter().find_map(|(nth, (at, before))| {
        let (_, after) = sent[nth..].iter().find(|(later, _)| *later >= *at + WINDOW / 2)?;
        let shares = between(before, after);
        let mut all: Vec<_> = shares.values().copied().collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2)?;
        (shares.get(&ip)? * 10 >= median * 9).then_some(*at)
    })
}

/// Bytes that were sent meanwhile; without those to whom nothing was.
fn between(before: &Sent, after: &Sent) -> Sent {
    let more = |(ip, bytes): (&IpAddr, &u64)| (*ip, bytes.saturating_sub(before.get(ip).copied().unwrap_or(0)));
    after.iter().map(more).filter(|(_, bytes)| *bytes > 0).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
#[ignore = "takes a minute: cargo xtask cluster test --all"]
fn servers_that_end_at_once_fail_no_more_calls_by_sluice_than_by_kube_proxy() -> Result<()> {
    let cluster = sluice::installed()?;
    let space = Namespace::make(cluster, "rude")?;
    space.deploy(&rude(sluice::echo("echo", 3)))?;
    space.apply(&[sluice::service("echo", "echo"), sluice::service_without_sluice("plain", "echo")])?;
    space.start_client("client", "node-a")?;
    space.wait_endpoints("echo", 3)?;
    let client = space.inside("client")?;
    let load = |service: &str| {
        let target = space.target(service)?;
        space.load_inside(&client, &[&["run", &target, "--reconnect"], &RUDE_LOAD[..], &ENDLESS].concat())
    };
    let loads = [load("plain")?, load("echo")?];
    thread::sleep(WINDOW);

    space.kubectl(&["rollout", "restart", "deployment/echo"])?;
    space.wait_rolled_out("deployment/echo")?;
    thread::sleep(WINDOW);
    for _ in 0..3 {
        for pod in space.pods("app=echo")? {
            space.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"])?;
            space.wait_rolled_out("deployment/echo")?;
            thread::sleep(WINDOW);
        }
    }
    let [kube_proxy, sluice] = loads.map(Load::stop);
    let (kube_proxy, sluice) = (kube_proxy?, sluice?);
    for (name, report) in [("kube-proxy", &kube_proxy), ("sluice", &sluice)] {
        println!(
            "by {name}: {} calls, failed {} {}, connections {}, sent again {}, latency {}",
            report["rpcs"],
            report["failed"],
            report["failed_by_code"],
            report["connections"],
            report["resent"],
            report["latency_us"]
        );
    }
    let failed = |report: &Value| report["failed"].as_u64().with_context(|| format!("no failed in {report:#}"));
    let (by_kube_proxy, by_sluice) = (failed(&kube_proxy)?, failed(&sluice)?);
    ensure!(by_sluice <= by_kube_proxy, "{by_sluice} calls failed by sluice, {by_kube_proxy} by kube-proxy");
    ensure!(sluice["connections"] == 12, "the client's connections through sluice stay: {sluice:#}");
    Ok(())
}

/// A server that does not serve on when it is told to end, and lets no call finish.
fn rude(mut deployment: Value) -> Value {
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["containers"][0]["args"] = json!(["server", "--grace", "0s"]);
    spec["containers"][0]["lifecycle"] = Value::Null;
    deployment
}

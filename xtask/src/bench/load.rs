//! Load: in, client pods, a target and the load's shape; out, how long it took and how long calls took. By h2load where the
//! next call begins as soon as one ends; by loadtest where they come evenly, which h2load does in bunches only. An
//! error unless every call was answered with a message.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use testbed::Pod;

use super::figures::{Figure, MAX, MEAN, P50, P90, P99, P999, RATE, Spread};
use super::site::Site;

/// What is asked of the target. Numbers are of all client pods together.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) connections: u32,
    /// Calls open at a time on each connection.
    pub(crate) streams: u32,
    pub(crate) pace: Pace,
    pub(crate) method: &'static str,
    pub(crate) request: Request,
}

/// When calls begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// The next as soon as one ends.
    AtOnce,
    /// So many a second, evenly.
    Even(f64),
    /// Those of a connection so many seconds apart, those of all connections at the same time.
    Apart(f64),
}

/// The one message of each call's request, and how large its answer is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) payload: usize,
    /// Messages of the answer, each with the request's payload.
    pub(crate) responses: u32,
}

/// What a load yields.
#[derive(Debug)]
pub(crate) struct Outcome {
    calls: u64,
    /// Of the client pod that took longest.
    seconds: f64,
    latencies: Latencies,
}

/// How long calls took, microseconds.
#[derive(Debug)]
enum Latencies {
    /// Each of them.
    All(Vec<u32>),
    /// Of each client pod.
    Percentiles(Vec<Vec<(Figure, f64)>>),
}

/// The same of one client pod.
struct Said {
    seconds: f64,
    latencies: Latencies,
}

impl Load {
    /// Unary calls with so many bytes of payload each way.
    pub(crate) fn unary(calls: u64, connections: u32, streams: u32, payload: usize) -> Self {
        let request = Request { payload, responses: 1 };
        Self { calls, connections, streams, pace: Pace::AtOnce, method: "Unary", request }
    }

    pub(crate) fn pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Puts it on a site, the same part from each client.
    pub(crate) fn run(&self, site: &Site) -> Result<Outcome> {
        let request = site.folder().join("request");
        fs::write(&request, self.request.bytes()).context("cannot write the request")?;
        let share = self.share(site.clients.len());
        let said: Vec<Result<Said>> = thread::scope(|scope| {
            let one = |client| {
                let (request, share) = (&request, &share);
                scope.spawn(move || match share.pace {
                    Pace::Even(rate) => share.by_loadtest(rate, client, site),
                    Pace::AtOnce => share.by_h2load(None, client, site, request),
                    Pace::Apart(seconds) => share.by_h2load(Some(1.0 / seconds), client, site, request),
                })
            };
            let all: Vec<_> = site.clients.iter().map(one).collect();
            let join = |load: thread::ScopedJoinHandle<'_, _>| {
                load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            all.into_iter().map(join).collect()
        });
        let calls = share.calls * said.len() as u64;
        let mut outcome = Outcome { calls, seconds: 0.0, latencies: Latencies::All(Vec::new()) };
        for said in said {
            let Said { seconds, latencies } = said?;
            outcome.seconds = outcome.seconds.max(seconds);
            outcome.latencies = match (outcome.latencies, latencies) {
                (Latencies::All(mut all), Latencies::All(more)) => {
                    all.extend(more);
                    Latencies::All(all)
                }
                (Latencies::Percentiles(mut all), Latencies::Percentiles(more)) => {
                    all.extend(more);
                    Latencies::Percentiles(all)
                }
                (_, first) => first,
            };
        }
        Ok(outcome)
    }

    /// One client's part of it.
    fn share(&self, clients: usize) -> Self {
        let part = u32::try_from(clients.max(1)).unwrap_or(u32::MAX);
        let connections = (self.connections / part).max(1);
        let calls = (self.calls / u64::from(part)).max(u64::from(connections));
        let pace = match self.pace {
            Pace::Even(rate) => Pace::Even(rate / f64::from(part)),
            pace => pace,
        };
        Self { calls, connections, pace, ..self.clone() }
    }

    /// By h2load; calls per second of each connection if they have a schedule.
    fn by_h2load(&self, rate: Option<f64>, client: &Pod, site: &Site, request: &Path) -> Result<Said> {
        let log = site.folder().join(format!("calls-{}", client.name()));
        // It would be written on.
        let _ = fs::remove_file(&log);
        let said = client
            .command("h2load")
            .args(["-t", "1", "-n", &self.calls.to_string(), "-c", &self.connections.to_string()])
            .args(["-m", &self.streams.to_string(), "-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
            .arg(request)
            .arg("--log-file")
            .arg(&log)
            .args(rate.iter().flat_map(|rate| ["--rps".to_owned(), rate.to_string()]))
            .arg(format!("{}/sluice.loadtest.v1.Echo/{}", site.target, self.method))
            .read()?;
        let seconds = self.judge(&said, &site.target)?;
        let latencies = latencies(&fs::read_to_string(&log).context("h2load wrote no log")?).collect();
        fs::remove_file(&log)?;
        Ok(Said { seconds, latencies: Latencies::All(latencies) })
    }

    /// By loadtest, which fails if a call does.
    fn by_loadtest(&self, rate: f64, client: &Pod, site: &Site) -> Result<Said> {
        let target = site.target.trim_start_matches("http://");
        ensure!(self.method == "Unary", "paced load is unary");
        let said = client
            .command(&site.loadtest)
            .args(["run", target, "--json", "-", "--max-failed", "0", "--size", &self.request.payload.to_string()])
            .args(["--connections", &self.connections.to_string(), "--streams", &self.streams.to_string()])
            .args(["--rpcs", &self.calls.to_string(), "--rate", &rate.to_string()])
            .read()?;
        let said: serde_json::Value = serde_json::from_str(&said).context("loadtest said no JSON")?;
        let number = |path: &str| {
            said.pointer(path).and_then(serde_json::Value::as_f64).with_context(|| format!("no {path}: {said}"))
        };
        let figures = [(P50, "p50"), (P90, "p90"), (P99, "p99"), (P999, "p999"), (MAX, "max")];
        let figures = figures.map(|(figure, name)| Ok((figure, number(&format!("/latency_us/{name}"))?)));
        let figures = figures.into_iter().collect::<Result<_>>()?;
        Ok(Said { seconds: number("/seconds")?, latencies: Latencies::Percentiles(vec![figures]) })
    }

    /// How many seconds it took. An error if a call failed, also by its gRPC status alone: no message came then.
    fn judge(&self, said: &str, target: &str) -> Result<f64> {
        let calls = self.calls;
        if !said.contains(&format!("{calls} succeeded, 0 failed")) {
            bail!("not all of {calls} calls to {target} succeeded:\n{said}");
        }
        let bytes = data_bytes(said).with_context(|| format!("h2load said nothing of traffic:\n{said}"))?;
        let least = calls * self.request.payload as u64 * u64::from(self.request.responses);
        ensure!(bytes >= least, "calls to {target} ended without their messages ({bytes} bytes, not {least}):\n{said}");
        seconds(said).with_context(|| format!("h2load said no time:\n{said}"))
    }
}

impl Request {
    /// As it stands in DATA: gRPC's prefix, then `EchoRequest { payload, response_count }`.
    fn bytes(self) -> Vec<u8> {
        let mut message = vec![0x0a];
        varint(self.payload, &mut message);
        message.resize(message.len() + self.payload, b'x');
        if self.responses > 1 {
            message.push(0x20);
            varint(self.responses as usize, &mut message);
        }
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value % 0x80) as u8 | 0x80);
        value /= 0x80;
    }
    out.push(value as u8);
}

impl Outcome {
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Percentiles are those of all calls; where each client pod has its own, their medians.
    pub(crate) fn figures(&self) -> Vec<(Figure, f64)> {
        let mut figures = vec![(RATE, self.calls as f64 / self.seconds)];
        match &self.latencies {
            Latencies::All(all) if all.is_empty() => {}
            Latencies::All(all) => {
                let mut sorted = all.clone();
                sorted.sort_unstable();
                let last = sorted.len() - 1;
                let at = |share: f64| f64::from(sorted[(share * last as f64).round() as usize]);
                let mean = sorted.iter().map(|micros| f64::from(*micros)).sum::<f64>() / (last + 1) as f64;
                figures.extend([(MEAN, mean), (P50, at(0.5)), (P90, at(0.9)), (P99, at(0.99)), (P999, at(0.999))]);
                figures.push((MAX, at(1.0)));
            }
            Latencies::Percentiles(each) => {
                for (i, (figure, _)) in each.iter().flatten().enumerate().take(5) {
                    let samples: Vec<_> = each.iter().map(|figures| figures[i].1).collect();
                    figures.extend(Spread::of(&samples).map(|spread| (*figure, spread.median)));
                }
            }
        }
        figures
    }
}

/// Of `finished in 1.65s, …`, `finished in 650.12ms, …` or `… us, …`.
fn seconds(said: &str) -> Option<f64> {
    let time = said.split("finished in ").nth(1)?.split(',').next()?;
    for (unit, size) in [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)] {
        if let Some(number) = time.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|number| number * size);
        }
    }
    None
}

/// Of `traffic: 1.45MB (1520123) total, 7.42KB (7600) headers (space savings 90.00%), 742.19KB (760000) data`.
fn data_bytes(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.starts_with("traffic: "))?;
    line.strip_suffix(") data")?.rsplit('(').next()?.parse().ok()
}

/// Of the log's lines: when a call began, its HTTP status, its microseconds.
fn latencies(log: &str) -> impl Iterator<Item = u32> {
    log.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
finished in 650.00ms, 153.85 req/s, 12.00KB/s
requests: 100 total, 100 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 100 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 12.70KB (13000) total, 2.00KB (2048) headers (space savings 91.00%), 7.42KB (7600) data
";

    #[test]
    fn h2loads_time_is_read_in_each_unit() {
        assert_eq!(seconds("x\nfinished in 1.65s, 121001.65 req/s, 12MB/s"), Some(1.65));
        assert_eq!(seconds(SAID), Some(0.65));
        assert_eq!(seconds("finished in 500us, 1 req/s"), Some(0.0005));
        assert_eq!(seconds("nothing"), None);
    }

    #[test]
    fn calls_that_fail_by_their_grpc_status_alone_are_an_error() {
        let load = Load::unary(100, 10, 1, 32);
        assert_eq!(load.judge(SAID, "x").unwrap(), 0.65);
        let empty = SAID.replace("(7600) data", "(0) data");
        assert!(load.judge(&empty, "x").unwrap_err().to_string().contains("without their messages"));
        let failed = SAID.replace("100 succeeded, 0 failed", "99 succeeded, 1 failed");
        assert!(load.judge(&failed, "x").unwrap_err().to_string().contains("not all of 100"));
    }

    #[test]
    fn percentiles_come_from_the_log_of_calls() {
        let log: String = (1..=1000).map(|micros| format!("17000000\t200\t{micros}\n")).collect();
        let outcome = Outcome { calls: 1000, seconds: 2.0, latencies: Latencies::All(latencies(&log).collect()) };
        let figures = outcome.figures();
        let of = |figure| figures.iter().find(|(known, _)| *known == figure).unwrap().1;
        assert_eq!((of(RATE), of(MEAN), of(MAX)), (500.0, 500.5, 1000.0));
        assert_eq!((of(P99), of(P999)), (990.0, 999.0));
    }

    #[test]
    fn a_request_is_a_grpc_message() {
        let bytes = Request { payload: 200, responses: 100 }.bytes();
        assert_eq!(bytes[..8], [0, 0, 0, 0, 205, 0x0a, 0xc8, 1]);
        assert_eq!(bytes[208..], [0x20, 100]);
        assert_eq!(Request { payload: 32, responses: 1 }.bytes().len(), 39);
    }

    #[test]
    fn clients_share_a_load_and_each_connection_has_a_call() {
        let share = Load::unary(1000, 10, 1, 32).pace(Pace::Even(500.0)).share(100);
        assert_eq!((share.calls, share.connections, share.pace), (10, 1, Pace::Even(5.0)));
        assert_eq!(Load::unary(10, 50, 1, 32).share(1).calls, 50);
    }
}

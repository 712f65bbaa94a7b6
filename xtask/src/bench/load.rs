//! Load by h2load: in, client pods, a target and the load's shape; out, how long it took and each call's latency. An error
//! unless every call was answered with a message.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use testbed::Pod;

use super::figures::{Figure, MAX, MEAN, P50, P90, P99, P999, RATE};

/// What is asked of the target. Numbers are of all client pods together.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) connections: u32,
    /// Calls open at a time on each connection.
    pub(crate) streams: u32,
    /// Calls per second; the next as soon as one ends unless set.
    pub(crate) rate: Option<f64>,
    pub(crate) method: &'static str,
    pub(crate) request: Request,
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
    /// Microseconds, sorted.
    latencies: Vec<u32>,
}

impl Load {
    /// Unary calls with so many bytes of payload each way.
    pub(crate) fn unary(calls: u64, connections: u32, streams: u32, payload: usize) -> Self {
        let request = Request { payload, responses: 1 };
        Self { calls, connections, streams, rate: None, method: "Unary", request }
    }

    pub(crate) fn rate(self, rate: f64) -> Self {
        Self { rate: Some(rate), ..self }
    }

    /// Puts it on the target, the same part from each client. `folder` is for h2load's files.
    pub(crate) fn run(&self, clients: &[Pod], target: &str, folder: &Path) -> Result<Outcome> {
        let request = folder.join("request");
        fs::write(&request, self.request.bytes()).context("cannot write the request")?;
        let share = self.share(clients.len());
        let said: Vec<Result<(String, PathBuf)>> = thread::scope(|scope| {
            let one = |client| {
                let (request, share) = (&request, &share);
                scope.spawn(move || share.run_in(client, target, request, folder))
            };
            let all: Vec<_> = clients.iter().map(one).collect();
            let join = |load: thread::ScopedJoinHandle<'_, _>| {
                load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            all.into_iter().map(join).collect()
        });
        let mut outcome = Outcome { calls: 0, seconds: 0.0, latencies: Vec::new() };
        for said in said {
            let (said, log) = said?;
            outcome.seconds = outcome.seconds.max(share.judge(&said, target)?);
            outcome.calls += share.calls;
            outcome.latencies.extend(latencies(&fs::read_to_string(&log).context("h2load wrote no log")?));
            fs::remove_file(&log)?;
        }
        outcome.latencies.sort_unstable();
        Ok(outcome)
    }

    /// One client's part of it.
    fn share(&self, clients: usize) -> Self {
        let part = u32::try_from(clients.max(1)).unwrap_or(u32::MAX);
        let connections = (self.connections / part).max(1);
        let calls = (self.calls / u64::from(part)).max(u64::from(connections));
        Self { calls, connections, rate: self.rate.map(|rate| rate / f64::from(part)), ..self.clone() }
    }

    /// One h2load; what it said, and where its log of calls is.
    fn run_in(&self, client: &Pod, target: &str, request: &Path, folder: &Path) -> Result<(String, PathBuf)> {
        let log = folder.join(format!("calls-{}", client.name()));
        // It would be written on.
        let _ = fs::remove_file(&log);
        let mut launch = client
            .command("h2load")
            .args(["-t", "1", "-n", &self.calls.to_string(), "-c", &self.connections.to_string()])
            .args(["-m", &self.streams.to_string(), "-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
            .arg(request)
            .arg("--log-file")
            .arg(&log);
        if let Some(rate) = self.rate {
            launch = launch.args(["--rps", &(rate / f64::from(self.connections)).to_string()]);
            // All connections have the same schedule: those of many begin it one after the other, unless their calls are
            // seconds apart.
            let apart = f64::from(self.connections) / rate;
            if self.connections >= 100 && apart < 1.0 {
                let (at_once, millis) = (self.connections / 10, (apart * 100.0).ceil());
                launch = launch.args(["-r", &at_once.to_string(), "--rate-period", &format!("{millis}ms")]);
            }
        }
        let said = launch.arg(format!("{target}/sluice.loadtest.v1.Echo/{}", self.method)).read()?;
        Ok((said, log))
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

    pub(crate) fn figures(&self) -> Vec<(Figure, f64)> {
        let mut figures = vec![(RATE, self.calls as f64 / self.seconds)];
        if let Some(last) = self.latencies.len().checked_sub(1) {
            let at = |share: f64| f64::from(self.latencies[(share * last as f64).round() as usize]);
            let mean = self.latencies.iter().map(|micros| f64::from(*micros)).sum::<f64>() / (last + 1) as f64;
            figures.extend([(MEAN, mean), (P50, at(0.5)), (P90, at(0.9)), (P99, at(0.99)), (P999, at(0.999))]);
            figures.push((MAX, at(1.0)));
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
        let outcome = Outcome { calls: 1000, seconds: 2.0, latencies: latencies(&log).collect() };
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
        let share = Load::unary(1000, 10, 1, 32).rate(500.0).share(100);
        assert_eq!((share.calls, share.connections, share.rate), (10, 1, Some(5.0)));
        assert_eq!(Load::unary(10, 50, 1, 32).share(1).calls, 50);
    }
}

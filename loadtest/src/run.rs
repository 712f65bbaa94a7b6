//! Puts load on one target: connections × streams workers that take calls, make them, and count each exactly once.
//! What they counted goes to `report`.

use std::collections::HashMap;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::HeaderValue;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::args::{LoadArgs, RunArgs};
use crate::call::{Answer, CallShape, CallSpec};
use crate::code::Code;
use crate::connection::Slot;
pub use crate::pace::Limit;
use crate::pace::Tickets;
use crate::progress::Progress;
use crate::report::{self, RunReport};
use crate::stats::{Answered, Endpoint, Tally};

/// Calls of a run that sets no limit.
const DEFAULT_CALLS: u64 = 10_000;

/// What a run yields.
#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    /// From the first call's start to the last one's end.
    pub elapsed: Duration,
    /// Calls sent again because the first attempt had never started.
    pub resent: u64,
    /// Calls of the plan that never started.
    pub not_started: u64,
    /// Connections dialled.
    pub connections: u64,
    /// Why not all was done.
    pub cut_short: Option<&'static str>,
}

/// The command.
pub(crate) async fn main(args: RunArgs) -> anyhow::Result<ExitCode> {
    let outcome = run("load", &args.target, &args.load).await?;
    let cut_short = outcome.cut_short;
    let mut run = RunReport::new("load", &args.target, &outcome);
    report::align(std::slice::from_mut(&mut run), &args.load.expect);
    report::publish(&run.table(), &run, args.load.json.as_deref())?;
    Ok(exit_code(std::slice::from_ref(&run), &args.load, cut_short))
}

/// 1 where a run was cut short or more calls failed than allowed, with the reason on stderr.
pub(crate) fn exit_code(runs: &[RunReport], load: &LoadArgs, cut_short: Option<&str>) -> ExitCode {
    if let Some(why) = cut_short {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    let too_many = |run: &&RunReport| load.max_failed.is_some_and(|most| run.failed > most);
    match runs.iter().find(too_many) {
        Some(run) => {
            eprintln!("error: {}: {} calls failed, more than --max-failed allows", run.name, run.failed);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// Puts `load` on `target` until its limit is reached; `name` is for the progress bar. An error: no call was made,
/// because the target could not be reached.
pub async fn run(name: &str, target: &str, load: &LoadArgs) -> anyhow::Result<Outcome> {
    let limit = match (load.rpcs, load.duration) {
        (Some(calls), _) => Limit::Calls(calls.get()),
        (None, Some(duration)) => Limit::For(duration),
        (None, None) => Limit::Calls(DEFAULT_CALLS),
    };
    let LoadArgs { kind, messages, size, response_size, timeout, .. } = *load;
    let shape = CallShape { kind, messages, size, response_size, delay: Duration::ZERO, timeout };
    let spec = CallSpec::new(target, &shape)?;
    let host: Arc<str> = target.into();
    let mut slots = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        slots.push(Arc::new(Slot::open(host.clone(), load.reconnect).await?));
    }

    let start = Instant::now();
    let shared = Arc::new(Shared {
        spec,
        timeout: load.timeout,
        tickets: Tickets::new(limit, load.rate, start),
        counted: Mutex::default(),
    });
    let mut workers = JoinSet::new();
    for slot in &slots {
        for _ in 0..load.streams {
            workers.spawn(work(shared.clone(), slot.clone()));
        }
    }
    let interrupted = watch(&shared, &mut workers, Progress::new(name, limit), start).await?;

    let elapsed = start.elapsed();
    let mut connections = 0;
    for slot in &slots {
        connections += slot.opened().await;
    }
    let counted = std::mem::take(&mut *shared.counted());
    let all_lost = counted.gave_up == load.connections * load.streams;
    let not_started = shared.tickets.total().map_or(0, |total| total - counted.tally.rpcs);
    Ok(Outcome {
        elapsed,
        resent: counted.resent,
        not_started,
        connections,
        cut_short: match (interrupted, all_lost) {
            (true, _) => Some("stopped by Ctrl-C before all calls were made"),
            (_, true) => Some("every connection was lost before all calls were made; --reconnect dials again"),
            _ => None,
        },
        tally: counted.finish(),
    })
}

/// Waits for the workers; paces them, shows how far they are, and stops them at Ctrl-C. Whether it came to that.
async fn watch(shared: &Shared, workers: &mut JoinSet<()>, progress: Progress, start: Instant) -> anyhow::Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut interrupted = false;
    let mut pace = pin!(shared.tickets.pace());
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                Some(worker) => worker.context("a worker ended by a panic")?,
                None => return Ok(interrupted),
            },
            result = &mut pace => result.context("cannot keep the schedule of --rate: the timer fails")?,
            _ = tick.tick(), if progress.is_shown() => {
                let counted = shared.counted();
                progress.update(counted.tally.rpcs, counted.tally.failed(), start.elapsed());
            }
            _ = interrupt.recv() => {
                if interrupted {
                    std::process::exit(130);
                }
                interrupted = true;
                shared.tickets.stop();
            }
        }
    }
}

/// What the workers of a run share.
struct Shared {
    spec: CallSpec,
    timeout: Duration,
    tickets: Tickets,
    /// One thread runs all workers, so that nobody ever waits for it.
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    tally: Tally,
    /// By the header that names the endpoint, so that counting a call parses nothing.
    answered: HashMap<HeaderValue, (u64, Option<HeaderValue>)>,
    resent: u64,
    /// Workers that ended because there was no connection any more.
    gave_up: usize,
}

impl Counted {
    fn count(&mut self, answer: Answer, latency: Duration) {
        self.tally.count(answer.code, latency);
        let Some(endpoint) = answer.endpoint.as_ref().or(answer.pod.as_ref()) else { return };
        match self.answered.get_mut(endpoint) {
            Some((calls, _)) => *calls += 1,
            None => {
                self.answered.insert(endpoint.clone(), (1, answer.pod));
            }
        }
    }

    fn finish(self) -> Tally {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let answered = self.answered.iter().map(|(endpoint, (calls, pod))| {
            let pod = pod.as_ref().map(text).unwrap_or_default();
            (Endpoint::from(text(endpoint).as_str()), Answered { calls: *calls, pod })
        });
        Tally { endpoints: answered.collect(), ..self.tally }
    }
}

async fn work(shared: Arc<Shared>, slot: Arc<Slot>) {
    let mut lease = slot.lease().await;
    while let Some(since) = shared.tickets.take().await {
        let mut on_head = |_: &Answer| {};
        let call = shared.spec.complete(&slot, &mut lease, &mut on_head, || shared.counted().resent += 1);
        let answer = match shared.timeout {
            Duration::ZERO => call.await,
            timeout => {
                let answer = tokio::time::timeout(timeout, call).await;
                answer.unwrap_or_else(|_| Some(Answer::local(Code::DEADLINE_EXCEEDED)))
            }
        };
        let mut counted = shared.counted();
        match answer {
            Some(answer) => counted.count(answer, since.elapsed()),
            None => {
                counted.gave_up += 1;
                return;
            }
        }
    }
}

impl Shared {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().expect("no worker panicked")
    }
}

//! One scenario through one address: makes the calls of the plan, each when it is due however many are open, and lets
//! happen to the servers what the plan says. Out: the recording. Judges nothing.

use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::control::Server;
use super::plan::{Arrivals, Plan, Step};
use super::record::{Recorder, Recording};
use crate::args::Kind;
use crate::call::{Answer, CallShape, CallSpec};
use crate::code::Code;
use crate::connection::Slot;
use crate::pace::Alarm;

/// Before the recording begins: connections are made and caches warm.
const LEAD: Duration = Duration::from_secs(1);
/// Payload of each message.
const SIZE: u32 = 32;

/// What is the same for all runs.
pub(crate) struct Common {
    pub(crate) connections: usize,
    pub(crate) timeout: Duration,
    /// Replaces one endpoint; for `sh -c`.
    pub(crate) roll_out: Option<String>,
}

/// Carries out the plan. `servers` are those behind the target; a hook may have replaced them when this returns.
pub(crate) async fn drive(
    plan: &Plan,
    target: &str,
    common: &Common,
    servers: &mut Vec<Server>,
) -> anyhow::Result<Recording> {
    let mut slots = Vec::new();
    for _ in 0..common.connections {
        slots.push(Arc::new(Slot::open(target.into(), true).await?));
    }
    let begin = Instant::now() + LEAD;
    let recorder = Arc::new(Mutex::new(Recorder::new(begin)));
    let load = |kind, messages, delay, timeout| -> anyhow::Result<Load> {
        let shape = CallShape { kind, messages, size: SIZE, response_size: 0, delay, timeout };
        let spec = Arc::new(CallSpec::new(target, &shape)?);
        Ok(Load { spec, stream: kind != Kind::Unary, timeout, slots: slots.clone(), recorder: recorder.clone() })
    };
    let end = begin + plan.length;
    let calls = load(Kind::Unary, 1, Duration::ZERO, common.timeout)?.make(plan.calls, begin - LEAD, end);
    let streams = async {
        let Some(streams) = plan.streams else { return Ok(JoinSet::new()) };
        let second = Duration::from_secs(1);
        let longest = second * streams.seconds + common.timeout;
        load(Kind::ServerStream, streams.seconds, second, longest)?.make(streams.arrivals, begin, end).await
    };
    let events = enact(plan, begin, common, servers, &recorder);
    let (calls, streams, ()) = tokio::try_join!(calls, streams, events)?;
    // Each ends by its deadline; streams are longer than the rest of the time and end with their connections.
    calls.join_all().await;
    drop(streams);
    let mut recording = std::mem::take(&mut locked(&recorder).recording);
    for slot in &slots {
        recording.connections += slot.opened().await;
    }
    Ok(recording)
}

/// Calls of one kind.
struct Load {
    spec: Arc<CallSpec>,
    stream: bool,
    timeout: Duration,
    slots: Vec<Arc<Slot>>,
    recorder: Arc<Mutex<Recorder>>,
}

impl Load {
    /// Starts each call when it is due, on the connections in turn. Gives those that still run at the end.
    async fn make(self, arrivals: Arrivals, from: Instant, end: Instant) -> anyhow::Result<JoinSet<()>> {
        let alarm = Alarm::new().context("cannot keep the schedule: the timer fails")?;
        let mut running = JoinSet::new();
        for number in 0.. {
            let due = from + arrivals.due(number);
            if due >= end {
                tokio::time::sleep_until(end).await;
                break;
            }
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                alarm.after(wait).await?;
            }
            let slot = self.slots[number as usize % self.slots.len()].clone();
            running.spawn(call(self.spec.clone(), slot, self.stream, due, self.timeout, self.recorder.clone()));
            while running.try_join_next().is_some() {}
        }
        Ok(running)
    }
}

/// One call from the moment it was due to its end.
async fn call(
    spec: Arc<CallSpec>,
    slot: Arc<Slot>,
    stream: bool,
    due: Instant,
    timeout: Duration,
    recorder: Arc<Mutex<Recorder>>,
) {
    let number = locked(&recorder).start(stream, due);
    let mut on_head = |answer: &Answer| {
        if let Some(number) = number {
            locked(&recorder).head(number, answer, Instant::now());
        }
    };
    let mut lease = slot.lease().await;
    let resent = || locked(&recorder).recording.resent += 1;
    let complete = spec.complete(&slot, &mut lease, &mut on_head, resent);
    let code = match tokio::time::timeout(timeout, complete).await {
        Ok(Some(answer)) => answer.code,
        Ok(None) => Code::UNAVAILABLE,
        Err(_) => Code::DEADLINE_EXCEEDED,
    };
    if let Some(number) = number {
        locked(&recorder).end(number, code, Instant::now());
    }
}

/// Lets happen what the plan says, and notes when it did.
async fn enact(
    plan: &Plan,
    begin: Instant,
    common: &Common,
    servers: &mut Vec<Server>,
    recorder: &Mutex<Recorder>,
) -> anyhow::Result<()> {
    let mut bad: Option<Server> = None;
    for (at, step) in &plan.steps {
        tokio::time::sleep_until(begin + *at).await;
        match step {
            Step::Worsen(behaviour) => {
                let chosen = match bad.take() {
                    Some(server) => server,
                    None => choose(servers, &locked(recorder))?,
                };
                // From the order on, up to the end of the order to be well: between them is all that it does.
                let now = begin.elapsed();
                chosen.behave(behaviour).await?;
                let recording = &mut locked(recorder).recording;
                recording.bad_pod = Some(chosen.pod().to_owned());
                recording.bad_times.push((now, now));
                recording.bad_is_silent = behaviour.is_silent();
                bad = Some(chosen);
            }
            Step::Heal => {
                if let Some(server) = &bad {
                    server.behave(&crate::server::Behaviour::default()).await?;
                }
                if let Some((_, until)) = locked(recorder).recording.bad_times.last_mut() {
                    *until = begin.elapsed();
                }
            }
            Step::Hook(number) => {
                let Some(command) = &common.roll_out else { continue };
                let said = shell(command, &[("SLUICE_STEP", &number.to_string())]).await?;
                locked(recorder).recording.hooks.push(begin.elapsed());
                if !said.is_empty() {
                    *servers = Vec::new();
                    for control in said {
                        servers.push(Server::meet(&control).await?);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The first server that has answered calls: where connections are balanced, some pods have none.
fn choose(servers: &[Server], recorder: &Recorder) -> anyhow::Result<Server> {
    let serving = servers.iter().find(|server| recorder.has_answered(server.pod()));
    serving.cloned().context(
        "no server that --control names has answered a call; are they the endpoints of this --via, and does each pod \
         have a name of its own?",
    )
}

/// Runs a hook's command to its end. Gives the words that it prints: of `roll-out`, the control addresses from now on.
pub(crate) async fn shell(command: &str, variables: &[(&str, &str)]) -> anyhow::Result<Vec<String>> {
    let run = Command::new("sh")
        .args(["-c", command])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = pin!(run).await.context("cannot start sh for --hook")?;
    ensure!(output.status.success(), "--hook: \"{command}\" failed ({})", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

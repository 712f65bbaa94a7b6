//! The stage: two Echo endpoints with a tap before each, a calm client, and someone who does harm, by the same agent. Plays
//! attacks one after another, prints a line for each, and asserts what holds for all of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Agent, Node, Pod, PodSpec, Process, Service, ServiceSpec, program};

use crate::attacks::Attack;
use crate::figures::{Calm, Seen, Used, forget_peak};

const PORT: u16 = 50051;
/// Of the server behind its tap.
const BEHIND: u16 = 50052;
const SOON: Duration = Duration::from_secs(20);
/// Calls a second of the calm client.
const RATE: u64 = 500;
/// Most resident memory of an agent, whatever clients and endpoints do. A debug build's code is larger.
const BUDGET: u64 = if cfg!(debug_assertions) { 72 << 20 } else { 30 << 20 };
/// The attacker begins before the calm client and ends after it.
const LEAD: Duration = Duration::from_millis(500);

/// Who does harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attacker {
    InItsOwnPod,
    /// The same, but the pod is none of the agent's: kube-proxy sends it to an endpoint.
    PastTheAgent,
    /// In the same pod, on other connections.
    InTheCalmPod,
    /// Of a Service that another pod calls.
    AnEndpoint,
}

pub(crate) struct Stage {
    attacker: Attacker,
    echoes: Vec<Echo>,
    echo: Service,
    /// With the endpoint that does harm.
    harm: Service,
    harmful: Pod,
    calm: Pod,
    other: Pod,
    agent: Agent,
    node: Node,
    /// One stage at a time: an attack is measured, not the others'.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// An endpoint.
struct Echo {
    _server: Process,
    _tap: Process,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    pod: Pod,
}

impl Echo {
    fn start(node: &Node, name: &str) -> Result<Self> {
        let pod = node.pod(name)?;
        let listen = format!("[::]:{BEHIND}");
        let server = pod.command(program("loadtest")?).args(["server", "--pod", name, "--listen", &listen]);
        let server = server.stdout(Stdio::null()).spawn()?;
        pod.wait_listening(BEHIND, SOON)?;
        let tap = pod.command(env!("CARGO_BIN_EXE_abuser")).args(["tap", &PORT.to_string(), &BEHIND.to_string()]);
        let mut tap = tap.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        pod.wait_listening(PORT, SOON)?;
        let (ask, answer) = (tap.stdin().context("stdin")?, BufReader::new(tap.stdout().context("stdout")?));
        Ok(Self { _server: server, _tap: tap, ask, answer, pod })
    }

    fn seen(&mut self) -> Result<Seen> {
        self.ask.write_all(b"\n")?;
        let mut line = String::new();
        self.answer.read_line(&mut line).context("a tap does not answer")?;
        Seen::read(&line)
    }
}

impl Stage {
    pub(crate) fn new(attacker: Attacker) -> Result<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Node::new()?;
        let echoes =
            ["echo-1", "echo-2"].map(|name| Echo::start(&node, name)).into_iter().collect::<Result<Vec<_>>>()?;
        let echo = node.service(ServiceSpec::grpc("echo", PORT))?;
        echoes.iter().try_for_each(|it| echo.add_endpoint(&it.pod))?;
        let harmful = node.pod("harmful")?;
        let harm = node.service(ServiceSpec::grpc("harm", PORT))?;
        harm.add_endpoint(&harmful)?;
        let other = PodSpec::new("other");
        let other =
            if attacker == Attacker::PastTheAgent { other.annotation("sluice.dev/redirect", "false") } else { other };
        let (calm, other) = (node.pod("calm")?, node.pod(other)?);
        let agent = node.agent().start()?;
        Ok(Self { attacker, echoes, echo, harm, harmful, calm, other, agent, node, _alone: alone })
    }

    /// Each attack for this long.
    pub(crate) fn play<'a>(mut self, attacks: impl IntoIterator<Item = &'a Attack>, time: Duration) -> Result<()> {
        println!("{:?}", self.attacker);
        println!(
            "{:<20} {:>6} {:>6} {:>8} {:>8} {:>7} {:>6} {:>9} {:>9} {:>6}  limited",
            "attack", "calls", "failed", "p50 ms", "p99 ms", "RSS MB", "CPU %", "requests", "resets/s", "conns"
        );
        let only = std::env::var("SLUICE_ABUSE_ONLY").ok();
        let chosen = |attack: &&Attack| only.as_ref().is_none_or(|only| only.split(',').any(|it| it == attack.name));
        let mut broken = Vec::new();
        self.measure(None, time)?;
        for attack in attacks.into_iter().filter(chosen) {
            if let Err(error) = self.measure(Some(attack), time) {
                println!("  {error:#}");
                broken.push(format!("{}: {error:#}", attack.name));
            }
        }
        self.measure(None, time)?;
        ensure!(broken.is_empty(), "{}\nthe agent's last words:\n{}", broken.join("\n"), self.last_words()?);
        Ok(())
    }

    fn measure(&mut self, attack: Option<&Attack>, time: Duration) -> Result<()> {
        let (before, limited) = (self.seen()?, self.limited()?);
        forget_peak(self.agent.pid())?;
        let used = Used::by(self.agent.pid())?;
        let attackers = attack.map(|attack| self.attack(attack, time)).transpose()?;
        let calm = self.calm_calls(time)?;
        if let Some(attack) = attack.filter(|_| self.attacker != Attacker::PastTheAgent) {
            self.wait_counted(attack, &limited)?;
        }
        drop(attackers);
        let now = Used::by(self.agent.pid())?;
        let seen = self.seen()?.with(before, u64::wrapping_sub);
        let limited = self.limited()?.into_iter().zip(limited).map(|((name, now), (_, then))| (name, now - then));
        let limited: Vec<(String, u64)> = limited.filter(|(_, count)| *count > 0).collect();
        let seconds = time.as_secs_f64();
        println!(
            "{:<20} {calm} {:>7.1} {:>6.1} {:>9} {:>9.0} {:>6}  {}",
            attack.map_or("none", |attack| attack.name),
            now.peak as f64 / 1e6,
            100.0 * (now.cpu - used.cpu).as_secs_f64() / (time + LEAD).as_secs_f64(),
            seen.requests,
            seen.resets as f64 / seconds,
            seen.connections,
            limited.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
        );
        let calls = RATE * time.as_secs();
        ensure!(calm.failed == 0 && calm.not_started == 0 && calm.calls == calls, "calm calls failed: {calm:?}");
        ensure!(now.peak <= BUDGET, "{} bytes resident", now.peak);
        if self.attacker == Attacker::PastTheAgent {
            return Ok(());
        }
        ensure!(seen.odd <= seen.connections, "frames that concern no endpoint came to them: {seen:?}");
        ensure!(seen.settings <= 2 * seen.connections + 2, "a flood of SETTINGS came to the endpoints: {seen:?}");
        // As many as the agent lets pass, and what it read with the last one.
        let resets = 1_000 + 1_000;
        ensure!(seen.resets <= resets * (time.as_secs() + 2), "a flood of resets came to the endpoints: {seen:?}");
        if let Some(attack) = attack.filter(|attack| !attack.counted.is_empty()) {
            let counted = limited.iter().any(|(name, _)| attack.counted.contains(&&**name));
            ensure!(counted, "not counted under {:?} but {limited:?}", attack.counted);
        }
        Ok(())
    }

    /// A busy machine may not have let the attacker come far yet.
    fn wait_counted(&self, attack: &Attack, before: &[(String, u64)]) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !attack.counted.is_empty() && Instant::now() < deadline {
            let now = self.limited()?;
            let more = |name: &&str| {
                let count =
                    |list: &[(String, u64)]| list.iter().find(|(it, _)| it == name).map_or(0, |(_, count)| *count);
                count(&now) > count(before)
            };
            if attack.counted.iter().any(more) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Those who attack; they end when these are dropped.
    fn attack(&self, attack: &Attack, time: Duration) -> Result<Vec<Process>> {
        let seconds = (time + 2 * SOON).as_secs_f64().to_string();
        let client = |pod: &Pod, script: &str, target: String| {
            // It shall not win the race for the machine's cores, but for the agent's attention.
            let client = pod.command("nice").args(["-n", "19", env!("CARGO_BIN_EXE_abuser"), "client", script]);
            client.args([&target, &seconds]).spawn()
        };
        let echo = self.echo.address4().to_string();
        let attackers = match self.attacker {
            Attacker::InItsOwnPod | Attacker::PastTheAgent => vec![client(&self.other, attack.name, echo)?],
            Attacker::InTheCalmPod => vec![client(&self.calm, attack.name, echo)?],
            Attacker::AnEndpoint => {
                let server = self.harmful.command("nice").args(["-n", "19", env!("CARGO_BIN_EXE_abuser"), "server"]);
                let server = server.args([attack.name, &PORT.to_string()]).spawn()?;
                self.harmful.wait_listening(PORT, SOON)?;
                let target = self.harm.address4().to_string();
                vec![server, client(&self.other, "calls", target.clone())?, client(&self.other, "uploads", target)?]
            }
        };
        std::thread::sleep(LEAD);
        Ok(attackers)
    }

    fn calm_calls(&self, time: Duration) -> Result<Calm> {
        let json = self.node.folder().join("calm.json");
        let load = self.calm.command(program("loadtest")?).args(["run", &self.echo.address4().to_string()]);
        let load = load.args(["--rate", &RATE.to_string(), "--rpcs", &(RATE * time.as_secs()).to_string()]);
        let load = load.args(["--connections", "2", "--streams", "200", "--timeout", "15s", "--json"]).arg(&json);
        let said = load.output()?;
        ensure!(said.status.success(), "loadtest: {}", String::from_utf8_lossy(&said.stderr));
        let result: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
        Calm::read(&result)
    }

    fn seen(&mut self) -> Result<Seen> {
        self.echoes.iter_mut().try_fold(Seen::default(), |sum, echo| Ok(sum.with(echo.seen()?, u64::wrapping_add)))
    }

    /// The agent's counts by limit, of all pods.
    fn limited(&self) -> Result<Vec<(String, u64)>> {
        let status = self.agent.status()?;
        let mut sums: Vec<(String, u64)> = Vec::new();
        for pod in status["pods"].as_array().context("pods")? {
            let Some(counts) = pod["traffic"]["limited"].as_object() else { continue };
            for (name, count) in counts {
                let count = count.as_u64().context("a count")?;
                match sums.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((name.clone(), count)),
                }
            }
        }
        Ok(sums)
    }

    fn last_words(&self) -> Result<String> {
        let log = self.agent.log()?;
        let lines: Vec<_> = log.lines().collect();
        Ok(lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

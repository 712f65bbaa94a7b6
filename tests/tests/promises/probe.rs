//! The client in a pod: in, what probe.py is to do; out, what it saw, as typed answers. One process for a whole test, so
//! that a command begins at once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::{Pod, Process};

/// A running probe.
pub(crate) struct Probe {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Process,
}

/// What became of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The client's own end: loopback where it was redirected, the pod's address where it was left alone.
    pub(crate) local: IpAddr,
    /// What getpeername said.
    pub(crate) peer: SocketAddr,
    /// Pod and client's address as the server saw it, for each call.
    pub(crate) answers: Vec<(String, SocketAddr)>,
}

impl Connection {
    /// Whether the agent has it.
    pub(crate) fn redirected(&self) -> bool {
        self.local.to_canonical().is_loopback()
    }
}

impl Probe {
    pub(crate) fn start(pod: &Pod) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promises/probe.py");
        let mut process = pod.command("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = process.stdin().context("no stdin")?;
        let answers = BufReader::new(process.stdout().context("no stdout")?);
        let mut probe = Self { commands, answers, _process: process };
        ensure!(probe.line()? == "ready\n", "the probe does not start");
        Ok(probe)
    }

    /// `count` connections one after the other, with one call each.
    pub(crate) fn connect(&mut self, to: SocketAddr, count: usize) -> Result<Vec<Connection>> {
        self.http2(to, json!({ "connections": count }))
    }

    /// One connection with so many calls, one after the other.
    pub(crate) fn calls(&mut self, to: SocketAddr, calls: usize) -> Result<Connection> {
        self.one(to, json!({ "calls": calls }))
    }

    /// One connection as `extra` says.
    pub(crate) fn one(&mut self, to: SocketAddr, extra: Value) -> Result<Connection> {
        self.http2(to, extra)?.pop().context("no connection")
    }

    fn http2(&mut self, to: SocketAddr, extra: Value) -> Result<Vec<Connection>> {
        let answers = self.command("http2", Some(to), extra)?;
        let all = answers.as_array().context("a list")?;
        let failed: Vec<_> = all.iter().filter_map(|answer| answer["error"].as_str()).collect();
        ensure!(failed.is_empty(), "{} of {} connections to {to} failed: {:?}", failed.len(), all.len(), failed);
        all.iter().map(connection).collect()
    }

    /// Further calls on a connection that was kept: how often each pod answered.
    pub(crate) fn more(&mut self, kept: &str, calls: usize) -> Result<BTreeMap<String, usize>> {
        let answer = self.tcp_free("more", json!({ "kept": kept, "calls": calls }))?;
        Ok(spread(&answers(&answer)?))
    }

    /// One TCP connection without HTTP/2; an error in `error`.
    pub(crate) fn tcp(&mut self, to: SocketAddr, extra: Value) -> Result<Value> {
        self.command("tcp", Some(to), extra)
    }

    pub(crate) fn udp(&mut self, to: SocketAddr, extra: Value) -> Result<Value> {
        self.command("udp", Some(to), extra)
    }

    /// A command that needs no address.
    pub(crate) fn tcp_free(&mut self, what: &str, extra: Value) -> Result<Value> {
        let answer = self.command(what, None, extra)?;
        match answer["error"].as_str() {
            Some(error) => bail!("{what}: {error}"),
            None => Ok(answer),
        }
    }

    /// Gives a command without waiting for its end.
    pub(crate) fn begin(&mut self, what: &str, to: Option<SocketAddr>, extra: Value) -> Result<()> {
        let mut command = extra;
        command["do"] = what.into();
        if let Some(to) = to {
            command["address"] = to.ip().to_string().into();
            command["port"] = to.port().into();
        }
        writeln!(self.commands, "{command}").context("the probe is gone")
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the probe said {line:?}"))
    }

    fn command(&mut self, what: &str, to: Option<SocketAddr>, extra: Value) -> Result<Value> {
        self.begin(what, to, extra)?;
        self.answer()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }
}

fn connection(answer: &Value) -> Result<Connection> {
    Ok(Connection { local: local(answer)?, peer: peer(answer)?, answers: answers(answer)? })
}

fn local(answer: &Value) -> Result<IpAddr> {
    Ok(answer["local"].as_str().with_context(|| format!("no address: {answer}"))?.parse()?)
}

/// What getpeername said; a v4-mapped address as IPv4.
pub(crate) fn peer(answer: &Value) -> Result<SocketAddr> {
    let ip: IpAddr = answer["peer"][0].as_str().with_context(|| format!("no peer: {answer}"))?.parse()?;
    let port = answer["peer"][1].as_u64().context("a port")?;
    Ok(SocketAddr::new(ip.to_canonical(), u16::try_from(port)?))
}

/// Whether the agent has the connection of this answer.
pub(crate) fn redirected(answer: &Value) -> Result<bool> {
    Ok(local(answer)?.to_canonical().is_loopback())
}

fn answers(answer: &Value) -> Result<Vec<(String, SocketAddr)>> {
    let one = |answer: &Value| {
        let text = |name: &str| answer[name].as_str().context("an answer");
        Ok((text("pod")?.to_owned(), text("seen")?.parse()?))
    };
    answer["answers"].as_array().context("answers")?.iter().map(one).collect()
}

/// How often each pod answered.
pub(crate) fn spread(answers: &[(String, SocketAddr)]) -> BTreeMap<String, usize> {
    let mut pods = BTreeMap::new();
    for (pod, _) in answers {
        *pods.entry(pod.clone()).or_default() += 1;
    }
    pods
}

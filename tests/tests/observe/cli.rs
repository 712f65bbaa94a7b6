//! `sluice-agent` as somebody on the node runs it beside the agent. In: a command line; out: what it says, or a `tap` that
//! goes on.

use std::process::Output;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::scene::wait_for;
use testbed::{Agent, Launch, Node, Tap, program, taps};

/// The program, with the address of a running agent.
#[derive(Clone, Copy)]
pub(crate) struct Cli<'a> {
    pub(crate) node: &'a Node,
    pub(crate) agent: &'a Agent,
}

impl<'a> Cli<'a> {
    pub(crate) fn new(node: &'a Node, agent: &'a Agent) -> Self {
        Self { node, agent }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Result<Launch> {
        let admin = self.agent.admin().to_string();
        Ok(self.node.command(program("sluice-agent")?).args(args).args(["--admin", &admin]))
    }

    /// What it says on standard output; an error if it does not end well.
    pub(crate) fn say(&self, args: &[&str]) -> Result<String> {
        self.command(args)?.read()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.say(&[args, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} said {text:.300}"))
    }

    /// However it ends.
    pub(crate) fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(args)?.output()
    }

    /// Lines of JSON as calls go by; the agent shows them when this returns.
    pub(crate) fn tap(&self, args: &[&str]) -> Result<Tap> {
        self.tap_text(&[args, &["--output", "json"]].concat())
    }

    /// The same for people.
    pub(crate) fn tap_text(&self, args: &[&str]) -> Result<Tap> {
        Tap::open(self.node, self.agent, args)
    }

    /// How many look at calls now.
    pub(crate) fn taps(&self) -> Result<u64> {
        taps(self.agent)
    }
}

/// The ends of calls that a tap shows, once there are so many.
pub(crate) fn ends(tap: &Tap, count: usize) -> Result<Vec<(SystemTime, Value)>> {
    wait_for(&format!("the tap shows the ends of {count} calls"), || {
        let mut ends = tap.events()?;
        ends.retain(|(_, event)| event["event"] == "end");
        Ok((ends.len() >= count).then_some(ends))
    })
}

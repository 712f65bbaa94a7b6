//! What happens to an agent, cause by cause, and which metrics tell of it. In: a stage; out: the same with something done
//! on it, some of which goes on. It reads no metric.

mod agent;
mod calls;
mod endpoints;
mod objects;

use anyhow::Result;

use crate::stage::Stage;

/// How a number is to differ from what it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Move {
    Rises,
    /// To a number below this.
    Below(f64),
}

/// Something that happens, and what it moves: a metric's name, a part of its labels, how.
pub(crate) struct Cause {
    pub(crate) what: &'static str,
    pub(crate) moves: &'static [(&'static str, &'static str, Move)],
    /// Brings it about. What it puts into the stage goes on until the next cause.
    pub(crate) bring: fn(&mut Stage) -> Result<()>,
}

/// Those under which the agent serves on, in their order; at the end of the last there is something of everything.
pub(crate) const WHILE_IT_SERVES: [&[Cause]; 3] = [objects::CAUSES, calls::CAUSES, endpoints::CAUSES];
/// Those that are hard on the agent itself.
pub(crate) const OF_ITSELF: &[Cause] = agent::CAUSES;

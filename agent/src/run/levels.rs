//! What the agent and the kernel programs say, as it is set at the start and changed while they run. In: filters; out: a log
//! on standard error, and what holds now.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::admin::local::Levels;
use crate::config::Run;
use crate::intercept::Intercept;

/// Where the kernel programs' lines appear in the log.
const KERNEL_LOG: &str = "sluice::kernel";
/// The client libraries' own words on a watch, one for each attempt while it fails; the agent says once what is wrong and
/// how to mend it, and once that it is over. Still to be had by --log: a later word on the same part wins.
const REPEATS: &str = "kube_runtime=off,kube_client=off,rustls_platform_verifier=off";

/// The log's filter, which can be exchanged.
pub(super) struct LogFilter {
    levels: Levels,
    handle: Handle<EnvFilter, Registry>,
}

/// On standard error; with colours only for people.
pub(super) fn start(config: &Run) -> Result<LogFilter> {
    let levels = Levels { bpf: config.bpf_log.to_string(), log: config.log.clone() };
    let (filter, handle) = reload::Layer::new(filter(&levels).context("--log")?);
    // Spans (a pod's enrolment, a change on its way to workers and kernel) are at the debug level, with how long they took.
    let lines = fmt::layer().with_span_events(FmtSpan::CLOSE);
    let lines = lines.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("cannot start the log")?;
    Ok(LogFilter { levels, handle })
}

impl LogFilter {
    /// Sets what is given; an error changes nothing.
    pub(super) fn set(&mut self, bpf: Option<&str>, log: Option<&str>, intercept: &mut Intercept) -> Result<Levels> {
        if bpf.is_none() && log.is_none() {
            return Ok(self.levels.clone());
        }
        let wanted =
            Levels { bpf: bpf.unwrap_or(&self.levels.bpf).to_owned(), log: log.unwrap_or(&self.levels.log).to_owned() };
        let filter = filter(&wanted)?;
        if bpf.is_some() {
            intercept.set_log_level(level(&wanted.bpf)?)?;
        }
        self.handle.reload(filter).context("the log has ended")?;
        tracing::info!(bpf = wanted.bpf, log = wanted.log, "the log's levels were changed");
        self.levels = wanted;
        Ok(self.levels.clone())
    }
}

fn level(text: &str) -> Result<LevelFilter> {
    text.parse().ok().with_context(|| format!("\"{text}\" is no level: give off, error, warn, info, debug or trace"))
}

fn filter(levels: &Levels) -> Result<EnvFilter> {
    let log = crate::config::filter(&levels.log).map_err(anyhow::Error::msg)?;
    let filter = EnvFilter::try_new(format!("{REPEATS},{log}"))?;
    let bpf = level(&levels.bpf)?;
    Ok(match bpf {
        LevelFilter::OFF => filter,
        bpf => filter.add_directive(format!("{KERNEL_LOG}={bpf}").parse()?),
    })
}

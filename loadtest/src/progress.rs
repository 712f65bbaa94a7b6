//! The bar that a terminal shows while a run lasts; nothing where stderr is no terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::pace::Limit;

/// A bar over the calls, or over the time, of one run.
pub(crate) struct Progress {
    bar: ProgressBar,
    limit: Limit,
}

impl Progress {
    /// `name` stands before the bar.
    pub(crate) fn new(name: &str, limit: Limit) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), limit };
        }
        let length = match limit {
            Limit::Calls(calls) => calls,
            Limit::For(duration) => duration.as_millis() as u64,
        };
        let bar = ProgressBar::new(length);
        let style =
            ProgressStyle::with_template("{prefix} [{bar:32}] {percent:>3} %  {msg}").expect("a valid template");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(name.to_owned());
        Self { bar, limit }
    }

    /// Whether there is anything to keep up to date.
    pub(crate) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    pub(crate) fn update(&self, rpcs: u64, failed: u64, elapsed: Duration) {
        self.bar.set_position(match self.limit {
            Limit::Calls(_) => rpcs,
            Limit::For(_) => elapsed.as_millis() as u64,
        });
        let rate = rpcs as f64 / elapsed.as_secs_f64().max(1e-3);
        self.bar.set_message(format!("{rpcs} calls, {failed} failed, {rate:.0}/s"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

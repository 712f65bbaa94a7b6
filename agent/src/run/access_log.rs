//! The access log: a line of JSON on standard output for each call that has ended, or for a share of them. In: what workers
//! saw; out: lines, written by a thread of its own. What it cannot write in time is lost and counted, and no call waits.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use crate::config::Run;
use crate::splitter::{Depth, TapEvent};
use crate::tapping;
use crate::worker::{TapFilter, TapLine, TapRequest};

/// Lines that wait to be written.
const LINES: usize = 4_096;

/// None: it is off.
pub(super) fn start(config: &Run) -> Result<Option<TapRequest>> {
    let share = config.access_log;
    if share <= 0.0 {
        return Ok(None);
    }
    let (sink, mut lines) = mpsc::channel::<TapLine>(LINES);
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || {
            let mut out = BufWriter::new(io::stdout());
            let mut batch = Vec::new();
            while lines.blocking_recv_many(&mut batch, LINES) > 0 {
                for line in batch.drain(..) {
                    if matches!(line.event, TapEvent::End(_) | TapEvent::Lost(_)) {
                        _ = writeln!(out, "{}", tapping::json(&line));
                    }
                }
                // Nobody reads it any more: nothing to do about that here.
                _ = out.flush();
            }
        })
        .context("cannot start the access log's thread")?;
    let depth = Depth { share, metadata: false, frames: false };
    Ok(Some(TapRequest { filter: TapFilter::default(), depth, sink }))
}

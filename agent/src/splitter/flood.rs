//! Counts frames that cost us work and their sender nothing, per connection and second (RFC 9113 §10.5).
//!
//! A kind of frame and `now` in, over or not out. It ends no connection.

use std::time::{Duration, Instant};

use super::limits::Floods;

/// A kind of frame that is cheap to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cheap {
    Reset,
    ProvokedReset,
    Ping,
    Settings,
    EmptyData,
    Priority,
    WindowUpdate,
}

/// The counts of the current second.
#[derive(Debug)]
pub(super) struct FloodGuard {
    since: Instant,
    counts: [u32; 7],
}

impl FloodGuard {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, counts: [0; 7] }
    }

    /// Counts one; `Err` names the limit that is exceeded.
    pub(super) fn count(&mut self, now: Instant, what: Cheap, limits: &Floods) -> Result<(), &'static str> {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let (limit, name) = match what {
            Cheap::Reset => (limits.resets, "too many RST_STREAM"),
            Cheap::ProvokedReset => (limits.provoked_resets, "too many stream errors"),
            Cheap::Ping => (limits.pings, "too many PING"),
            Cheap::Settings => (limits.settings, "too many SETTINGS"),
            Cheap::EmptyData => (limits.empty_data, "too many empty DATA"),
            Cheap::Priority => (limits.priorities, "too many PRIORITY"),
            Cheap::WindowUpdate => (limits.window_updates, "too many WINDOW_UPDATE"),
        };
        let count = &mut self.counts[what as usize];
        *count += 1;
        if *count > limit { Err(name) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splitter::Limits;

    #[test]
    fn a_burst_over_the_limit_is_found_and_a_new_second_begins_at_zero() {
        let floods = Limits::default().floods;
        let start = Instant::now();
        let mut guard = FloodGuard::new(start);
        for _ in 0..floods.pings {
            guard.count(start, Cheap::Ping, &floods).unwrap();
        }
        guard.count(start, Cheap::Settings, &floods).unwrap();
        assert!(guard.count(start, Cheap::Ping, &floods).is_err());
        assert!(guard.count(start + Duration::from_secs(1), Cheap::Ping, &floods).is_ok());
    }
}

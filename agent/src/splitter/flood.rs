//! Frames that cost us work and their sender nothing, counted per connection and second (RFC 9113 §10.5). One too many,
//! and the connection is not read until the second is over.
//!
//! It is not ended: clients that mean no harm make bursts, too (a thousand calls cancelled at once, a ping with every
//! message), and one whose connection ends dials again with fresh counts, while one that is not read is stopped by its
//! own TCP and burns no CPU. Nothing is counted over a connection's life: those of gRPC last for weeks.

use std::time::{Duration, Instant};

use super::limits::{Bound, Floods};
use super::pair::{PairKey, Phase};
use super::{DeadlineReason, Splitter};

/// What is counted lasts this long.
const SECOND: Duration = Duration::from_secs(1);
/// A request that its client takes back sooner and without an answer was not meant to be answered (CVE-2023-44487):
/// deadlines and people are slower.
const HASTE: Duration = Duration::from_millis(10);

/// After this many hasty ends in a second, a client's requests go apart from others': endpoints on the h2 crate end a
/// connection with 20 requests taken back before they were looked at.
const APART: u32 = 10;

/// A kind of frame that is cheap to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cheap {
    HastyReset,
    StreamError,
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

    /// Counts one. The bound that is exceeded, and when this second ends.
    fn count(&mut self, now: Instant, what: Cheap, limits: &Floods) -> Option<(Bound, Instant)> {
        if now.saturating_duration_since(self.since) >= SECOND {
            *self = Self::new(now);
        }
        let (limit, bound) = match what {
            Cheap::HastyReset => (limits.resets, Bound::Resets),
            Cheap::StreamError => (limits.stream_errors, Bound::StreamErrors),
            Cheap::Ping => (limits.pings, Bound::Pings),
            Cheap::Settings => (limits.settings, Bound::Settings),
            Cheap::EmptyData => (limits.empty_data, Bound::EmptyData),
            Cheap::Priority => (limits.priorities, Bound::Priorities),
            Cheap::WindowUpdate => (limits.window_updates, Bound::WindowUpdates),
        };
        let count = &mut self.counts[what as usize];
        *count = count.saturating_add(1);
        (*count > limit).then_some((bound, self.since + SECOND))
    }
}

impl Splitter {
    /// The peer of `c` sent a cheap frame. What has been read with it is still dealt with: that is one turn's worth.
    pub(super) fn charge(&mut self, now: Instant, c: u32, what: Cheap) {
        let conn = &mut self.conns[c];
        let Some((bound, until)) = conn.flood.count(now, what, &self.limits.floods) else { return };
        if !std::mem::replace(&mut conn.paused, true) {
            let id = conn.id;
            self.stats.limited.count(bound);
            self.arm(until, id, DeadlineReason::PauseEnd);
        }
    }

    /// The client of `c` makes an end of this request, by a reset or by a fault: it is charged if it does so in haste.
    pub(super) fn charge_haste(&mut self, now: Instant, c: u32, key: PairKey) {
        let hasty = |pair: &mut super::pair::Pair| {
            pair.phase < Phase::Answered && now.saturating_duration_since(pair.opened) < HASTE
        };
        if self.pairs.get(key).is_some_and(hasty) {
            self.charge(now, c, Cheap::HastyReset);
            let conn = &mut self.conns[c];
            conn.apart |= conn.flood.counts[Cheap::HastyReset as usize] > APART;
        }
    }

    /// The second is over: the connection is read again.
    pub(super) fn end_pause(&mut self, c: u32) {
        let conn = &mut self.conns[c];
        conn.paused = false;
        let id = conn.id;
        self.wake.borrow_mut().push(id);
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
            assert_eq!(guard.count(start, Cheap::Ping, &floods), None);
        }
        assert_eq!(guard.count(start, Cheap::Settings, &floods), None);
        assert_eq!(guard.count(start, Cheap::Ping, &floods), Some((Bound::Pings, start + SECOND)));
        assert_eq!(guard.count(start + SECOND, Cheap::Ping, &floods), None);
    }
}

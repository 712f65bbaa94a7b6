//! Frames that cost us work and their sender nothing, counted per connection and second (RFC 9113 §10.5). One too many,
//! and the connection is not read until the second is over; ten such seconds in a row, and it is ended.
//!
//! Not sooner: clients that mean no harm make bursts, too (hundreds of calls cancelled at once, a ping with every message),
//! and one whose connection ends dials again with fresh counts, while one that is not read is stopped by its own TCP and
//! burns no CPU. Nothing is counted over a connection's life: those of gRPC last for weeks.

use std::time::{Duration, Instant};

use super::conn::State;
use super::frame::Reason;
use super::limits::{Bound, Floods};
use super::pair::{Pair, PairKey, Phase};
use super::{DeadlineReason, Splitter};

/// What is counted lasts this long.
const SECOND: Duration = Duration::from_secs(1);
/// A request that its client takes back sooner and without an answer was not meant to be answered (CVE-2023-44487):
/// deadlines and people are slower.
const HASTE: Duration = Duration::from_millis(10);

/// By then an endpoint, also one that is busy, has looked at a request.
const LOOKED_AT: Duration = Duration::from_millis(100);
/// Endpoints on the h2 crate end a connection with 20 requests that were taken back before they were looked at. After
/// this many hasty ends in a second, a client's further requests go apart from others'; and after this many in the pod,
/// endpoints hear of them only when the request is not so new any more.
const FEW: u32 = 10;
/// Who floods for so many seconds without a break means it.
const IN_A_ROW: u32 = 10;

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
    /// The end of the last pause, and how many there were in a row.
    pauses: (Instant, u32),
}

impl FloodGuard {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, counts: [0; 7], pauses: (now, 0) }
    }

    /// Counts one. The bound that is exceeded, and when this second ends.
    fn count(&mut self, now: Instant, what: Cheap, limits: &Floods) -> Option<(Bound, Instant)> {
        if now.saturating_duration_since(self.since) >= SECOND {
            *self = Self { pauses: self.pauses, ..Self::new(now) };
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

    fn pause(&mut self, until: Instant) {
        let (last, in_a_row) = self.pauses;
        let without_break = self.since.saturating_duration_since(last) < SECOND;
        self.pauses = (until, if without_break { in_a_row + 1 } else { 1 });
    }
}

/// Hasty ends of requests in a pod in the current second.
#[derive(Debug, Default)]
pub(super) struct Haste {
    since: Option<Instant>,
    count: u32,
}

impl Haste {
    /// Counts one; `true`: there are more than a few.
    fn count(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count > FEW
    }
}

impl Splitter {
    /// The peer of `c` sent a cheap frame. What has been read with it is still dealt with: that is one turn's worth.
    pub(super) fn charge(&mut self, now: Instant, c: u32, what: Cheap) {
        let conn = &mut self.conns[c];
        let Some((bound, until)) = conn.flood.count(now, what, &self.limits.floods) else { return };
        if !std::mem::replace(&mut conn.paused, true) {
            let id = conn.id;
            conn.flood.pause(until);
            self.stats.limited.count(bound);
            self.arm(until, id, DeadlineReason::PauseEnd);
        }
    }

    /// The client of `c` makes an end of this request, by a reset or by a fault: it is charged if it does so in haste.
    pub(super) fn charge_haste(&mut self, now: Instant, c: u32, key: PairKey) {
        let hasty =
            |pair: &mut Pair| pair.phase < Phase::Answered && now.saturating_duration_since(pair.opened) < HASTE;
        if self.pairs.get(key).is_some_and(hasty) {
            self.charge(now, c, Cheap::HastyReset);
            let conn = &mut self.conns[c];
            conn.apart |= conn.flood.counts[Cheap::HastyReset as usize] > FEW;
        }
    }

    /// RST_STREAM for an endpoint's stream: at once, or, if too many requests are taken back in haste, when it is due.
    pub(super) fn reset_endpoint(&mut self, now: Instant, c: u32, stream: u32, opened: Instant, reason: Reason) {
        let due = opened + LOOKED_AT;
        let conn = &mut self.conns[c];
        if now >= opened + HASTE || !self.haste.count(now) {
            return conn.reset(stream, reason);
        }
        conn.resets.push_back((due, stream, reason));
        if conn.resets.len() == 1 {
            let id = conn.id;
            self.arm(due, id, DeadlineReason::LateReset);
        }
    }

    /// Sends the resets that are due.
    pub(super) fn send_late_resets(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        if conn.state == State::Closing {
            return;
        }
        while let Some((_, stream, reason)) = conn.resets.pop_front_if(|(due, ..)| *due <= now) {
            conn.reset(stream, reason);
        }
        if let Some((due, ..)) = conn.resets.front() {
            let (due, id) = (*due, conn.id);
            self.arm(due, id, DeadlineReason::LateReset);
        }
        self.place_freed(now, c);
    }

    /// The second is over: the connection is read again.
    pub(super) fn end_pause(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        conn.paused = false;
        if conn.state == State::Open && conn.flood.pauses.1 >= IN_A_ROW {
            return self.fail_conn(now, c, Reason::ENHANCE_YOUR_CALM, "a flood without end");
        }
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

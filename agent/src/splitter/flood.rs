//! Frames that cost us work and their sender nothing, counted per connection (RFC 9113 §10.5). Who sends more of them in a
//! second than the limit is not read for a tenth of a second, and again, so that it gets the limit's rate and no burst; who
//! needs that for ten seconds is ended.
//!
//! Not sooner: clients that mean no harm make bursts, too (hundreds of calls cancelled at once, a ping with every message),
//! and one whose connection ends dials again with fresh counts, while one that is not read is stopped by its own TCP and
//! burns no CPU. Nothing is counted over a connection's life: those of gRPC last for weeks.
//!
//! Requests with a hundred header fields that no table knows are work for the endpoint, too, and a batch of them is
//! milliseconds in which it serves nobody else. They are no flood: each goes on, but one by one at the limit's rate.

use std::time::{Duration, Instant};

use super::conn::State;
use super::frame::Reason;
use super::limits::{Bound, Floods};
use super::pair::{Pair, PairKey, Phase};
use super::{DeadlineReason, Splitter};

const SECOND: Duration = Duration::from_secs(1);
/// So long a connection is not read that sent too many.
const PAUSE: Duration = Duration::from_millis(100);
/// Counts fall in steps of this.
const STEP: Duration = Duration::from_millis(10);
/// A request that its client takes back sooner and without an answer was not meant to be answered (CVE-2023-44487):
/// deadlines and people are slower.
const HASTE: Duration = Duration::from_millis(10);

/// By then an endpoint, also one that is busy, has looked at a request.
const LOOKED_AT: Duration = Duration::from_millis(100);
/// Endpoints on the h2 crate end a connection with 20 requests that were taken back before they were looked at. After
/// this many hasty ends in a second, a client's further requests go apart from others'; and after this many in the pod,
/// endpoints hear of them only when the request is not so new any more.
const FEW: u32 = 10;
/// Requests have fewer new header fields: a call's own are about ten.
const USUAL_FIELDS: usize = 32;
/// Who floods for so long, never a second without, means it.
const WITHOUT_END: Duration = Duration::from_secs(10);

/// A kind of frame that is cheap to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cheap {
    HastyReset,
    StreamError,
    Ping,
    Settings,
    EmptyData,
    /// PRIORITY, and what is ignored because nobody knows it.
    Priority,
    WindowUpdate,
    /// A request whose header list is beyond the limits.
    LargeHead,
}

/// What came of each kind, less what the limits allowed since.
#[derive(Debug)]
pub(super) struct FloodGuard {
    since: Instant,
    counts: [f32; Cheap::ALL.len()],
    /// When the flood began that goes on, and when its last pause ended.
    flood: Option<(Instant, Instant)>,
}

impl FloodGuard {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, counts: [0.0; Cheap::ALL.len()], flood: None }
    }

    /// Counts one. The bound that is exceeded.
    fn count(&mut self, now: Instant, what: Cheap, limits: &Floods) -> Option<Bound> {
        let passed = now.saturating_duration_since(self.since);
        if passed >= STEP {
            self.since = now;
            for (count, (limit, _)) in self.counts.iter_mut().zip(Cheap::ALL.map(|kind| kind.limit(limits))) {
                *count = (*count - passed.as_secs_f32() * limit as f32).max(0.0);
            }
        }
        let (limit, bound) = what.limit(limits);
        let count = &mut self.counts[what as usize];
        *count += 1.0;
        (*count > limit as f32).then_some(bound)
    }

    /// The end of the pause that begins now.
    fn pause(&mut self, now: Instant) -> Instant {
        let until = now + PAUSE;
        let goes_on = self.flood.filter(|(_, last)| now.saturating_duration_since(*last) < SECOND);
        self.flood = Some((goes_on.map_or(now, |(begin, _)| begin), until));
        until
    }

    fn is_without_end(&self) -> bool {
        self.flood.is_some_and(|(begin, last)| last.saturating_duration_since(begin) >= WITHOUT_END)
    }
}

impl Cheap {
    /// By their numbers.
    const ALL: [Cheap; 8] = [
        Cheap::HastyReset,
        Cheap::StreamError,
        Cheap::Ping,
        Cheap::Settings,
        Cheap::EmptyData,
        Cheap::Priority,
        Cheap::WindowUpdate,
        Cheap::LargeHead,
    ];

    fn limit(self, limits: &Floods) -> (u32, Bound) {
        match self {
            Cheap::HastyReset => (limits.resets, Bound::Resets),
            Cheap::StreamError => (limits.stream_errors, Bound::StreamErrors),
            Cheap::Ping => (limits.pings, Bound::Pings),
            Cheap::Settings => (limits.settings, Bound::Settings),
            Cheap::EmptyData => (limits.empty_data, Bound::EmptyData),
            Cheap::Priority => (limits.priorities, Bound::Priorities),
            Cheap::WindowUpdate => (limits.window_updates, Bound::WindowUpdates),
            Cheap::LargeHead => (limits.large_heads, Bound::LargeHeads),
        }
    }
}

/// Hasty ends of requests on a connection, or in a pod, in the current second.
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
        let Some(bound) = conn.flood.count(now, what, &self.limits.floods) else { return };
        if conn.paused.is_none() {
            let until = conn.flood.pause(now);
            self.stats.limited.count(bound);
            self.pause(c, until);
        }
    }

    /// The client of `c` sent the request in `list`: one with more new fields than is usual is followed by a pause, as long as
    /// the limit takes to allow for what it has more.
    pub(super) fn pace(&mut self, now: Instant, c: u32) {
        if self.list.len() <= USUAL_FIELDS {
            return;
        }
        let more = self.list.new_fields().saturating_sub(USUAL_FIELDS);
        if more > 0 {
            let from = self.conns[c].paused.unwrap_or(now);
            self.stats.limited.count(Bound::NewFields);
            self.pause(c, from + SECOND.mul_f64(more as f64 / f64::from(self.limits.floods.new_fields)));
        }
    }

    fn pause(&mut self, c: u32, until: Instant) {
        let conn = &mut self.conns[c];
        let id = conn.id;
        if conn.paused.replace(until).is_none() {
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
            conn.apart |= conn.haste.count(now);
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

    /// The pause is over: the connection is read again.
    pub(super) fn end_pause(&mut self, now: Instant, c: u32) {
        let conn = &mut self.conns[c];
        let id = conn.id;
        if let Some(until) = conn.paused
            && until > now
        {
            return self.arm(until, id, DeadlineReason::PauseEnd);
        }
        conn.paused = None;
        if conn.state == State::Open && conn.flood.is_without_end() {
            return self.fail_conn(now, c, Reason::ENHANCE_YOUR_CALM, "a flood without end");
        }
        self.outputs.to_write.borrow_mut().push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splitter::Limits;

    #[test]
    fn a_burst_over_the_limit_is_found_and_the_next_tenth_of_a_second_allows_a_tenth_of_it() {
        let floods = Limits::default().floods;
        let start = Instant::now();
        let mut guard = FloodGuard::new(start);
        for _ in 0..floods.settings {
            assert_eq!(guard.count(start, Cheap::Settings, &floods), None);
        }
        assert_eq!(guard.count(start, Cheap::Ping, &floods), None, "each kind has its own");
        assert_eq!(guard.count(start, Cheap::Settings, &floods), Some(Bound::Settings));
        let again = guard.pause(start);
        for _ in 1..floods.settings / 10 {
            assert_eq!(guard.count(again, Cheap::Settings, &floods), None);
        }
        let more = (0..2).find_map(|_| guard.count(again, Cheap::Settings, &floods));
        assert_eq!(more, Some(Bound::Settings));
        assert_eq!(guard.count(again + SECOND, Cheap::Settings, &floods), None);
        assert_eq!(guard.counts[Cheap::Settings as usize], 2.0, "what was beyond, and this one");
    }

    #[test]
    fn a_flood_goes_on_as_long_as_no_second_passes_without_a_pause() {
        let start = Instant::now();
        let mut guard = FloodGuard::new(start);
        let mut now = start;
        while now < start + Duration::from_millis(9_900) {
            assert!(!guard.is_without_end());
            now = guard.pause(now) + SECOND / 2;
        }
        assert!({
            guard.pause(now);
            guard.is_without_end()
        });
        guard.pause(now + PAUSE + SECOND);
        assert!(!guard.is_without_end(), "another one");
    }
}

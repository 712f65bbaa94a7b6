//! Flow-control windows of one stream or connection (RFC 9113 §5.2, §6.9): what we may send, what a peer may send us.
//!
//! Numbers in, numbers out. Who gives credit back, and when, is decided where bytes are forwarded.

use super::frame::MAX_WINDOW;

/// What the peer lets us send, in bytes of DATA payload. A lowered SETTINGS_INITIAL_WINDOW_SIZE can make it negative.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

/// A window grew beyond 2^31-1: FLOW_CONTROL_ERROR (RFC 9113 §6.9.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl SendWindow {
    pub(super) fn new(initial: u32) -> Self {
        Self(i64::from(initial))
    }

    /// Panics unless it is where the peer's SETTINGS and updates can have brought it.
    #[cfg(debug_assertions)]
    pub(super) fn check(self) {
        let bound = i64::from(MAX_WINDOW);
        assert!((-bound..=bound).contains(&self.0), "a send window of {}", self.0);
    }

    /// Bytes that may be sent now.
    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(super) fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available(), "sent beyond the peer's window");
        self.0 -= bytes as i64;
    }

    /// WINDOW_UPDATE.
    pub(super) fn grow(&mut self, increment: u32) -> Result<(), Overflow> {
        self.shift(i64::from(increment))
    }

    /// A changed SETTINGS_INITIAL_WINDOW_SIZE moves every stream's window by the difference (RFC 9113 §6.9.2).
    pub(super) fn shift(&mut self, difference: i64) -> Result<(), Overflow> {
        self.0 += difference;
        if self.0 > i64::from(MAX_WINDOW) { Err(Overflow) } else { Ok(()) }
    }
}

/// What we let a peer send: absolute counts of bytes since the beginning, so that nothing is credited twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecvWindow {
    size: u64,
    received: u64,
    /// Bytes that have gone on to the receiver, or were thrown away.
    released: u64,
    /// How far the peer may send, as we told it.
    limit: u64,
}

impl RecvWindow {
    /// `size`: what we want to have outstanding at most. `granted`: what the peer believes at the start.
    pub(super) fn new(size: u32, granted: u32) -> Self {
        Self { size: u64::from(size), received: 0, released: 0, limit: u64::from(granted) }
    }

    /// The peer sent this much; `Err`: more than it may, and nothing is counted.
    pub(super) fn receive(&mut self, bytes: usize) -> Result<(), Overflow> {
        if self.received + bytes as u64 > self.limit {
            return Err(Overflow);
        }
        self.received += bytes as u64;
        Ok(())
    }

    /// These bytes are off our hands.
    pub(super) fn release(&mut self, bytes: usize) {
        self.released += bytes as u64;
        debug_assert!(self.released <= self.received, "credited more than was received");
    }

    /// The WINDOW_UPDATE that is worth sending now: from a quarter of the window on, so that small messages do not cost
    /// a frame each and a sender never runs dry while we have room.
    pub(super) fn update(&mut self) -> Option<u32> {
        let target = self.released + self.size;
        let increment = target.saturating_sub(self.limit);
        if increment * 4 < self.size {
            return None;
        }
        self.limit = target;
        Some(increment as u32)
    }

    /// Panics unless the peer has kept within what it was granted, and we within what we mean to grant.
    #[cfg(debug_assertions)]
    pub(super) fn check(&self) {
        let Self { size, received, released, limit } = *self;
        assert!(released <= received && received <= limit, "{self:?}");
        assert!(limit <= released + size.max(u64::from(super::frame::DEFAULT_WINDOW)), "granted too much: {self:?}");
    }

    /// What the peer may have outstanding at most, as we want it.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes received and not yet released.
    pub(super) fn held(&self) -> u64 {
        self.received - self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_initial_window_makes_the_send_window_negative_until_updates_fill_it() {
        let mut window = SendWindow::new(100);
        window.take(80);
        window.shift(-70).unwrap();
        assert_eq!(window.available(), 0);
        window.grow(60).unwrap();
        assert_eq!(window.available(), 10);
    }

    #[test]
    fn a_send_window_beyond_the_maximum_is_an_overflow() {
        let mut window = SendWindow::new(MAX_WINDOW);
        assert_eq!(window.grow(1), Err(Overflow));
    }

    #[test]
    fn credit_comes_back_in_quarters_and_adds_up() {
        let mut window = RecvWindow::new(1000, 1000);
        let mut granted = 1000;
        for _ in 0..100 {
            window.receive(100).unwrap();
            window.release(100);
            granted += window.update().unwrap_or(0);
        }
        assert!(granted > 10_000 && granted <= 11_000);
        assert_eq!(window.held(), 0);
    }

    #[test]
    fn a_larger_window_than_the_protocols_default_is_granted_at_once() {
        let mut window = RecvWindow::new(1_048_576, 65_535);
        assert_eq!(window.update(), Some(1_048_576 - 65_535));
        assert_eq!(window.update(), None);
    }

    #[test]
    fn a_peer_that_sends_beyond_its_window_is_found_out() {
        let mut window = RecvWindow::new(1000, 1000);
        window.receive(1000).unwrap();
        assert_eq!(window.receive(1), Err(Overflow));
    }
}

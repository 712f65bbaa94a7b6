//! A server with a capacity: so many calls are worked on at a time, each for its time, the others wait in order. A timer
//! that fires late costs no capacity: the next call's work begins when the one before was due to end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The places at which calls are worked on.
pub(super) struct Slots {
    permits: Semaphore,
    free: Mutex<Free>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self { permits: Semaphore::new(count), free: Mutex::new(Free::new(count, Instant::now())) }
    }

    /// Waits for a slot and works for the duration that `takes` gives when the work begins. Dropped before its end, the
    /// slot is free at once.
    pub(super) async fn work(&self, takes: impl FnOnce() -> Duration) {
        let arrived = Instant::now();
        let Ok(permit) = self.permits.acquire().await else { return };
        let ends = self.free().take(arrived) + takes();
        let _busy = Busy { slots: self, ends, _permit: permit };
        tokio::time::sleep_until(ends).await;
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One slot at work. The permit goes back after the slot: fields drop after `drop`.
struct Busy<'a> {
    slots: &'a Slots,
    ends: Instant,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.slots.free().give_back(self.ends, Instant::now());
    }
}

/// Since when each idle slot is idle.
struct Free(BinaryHeap<Reverse<Instant>>);

impl Free {
    fn new(count: usize, now: Instant) -> Self {
        Self((0..count).map(|_| Reverse(now)).collect())
    }

    /// When the work of a call begins that arrived then: there is a slot, as the caller holds a permit.
    fn take(&mut self, arrived: Instant) -> Instant {
        self.0.pop().map_or(arrived, |Reverse(since)| since.max(arrived))
    }

    /// Work that was to last until `ends` is over now.
    fn give_back(&mut self, ends: Instant, now: Instant) {
        self.0.push(Reverse(ends.min(now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_call_that_waited_begins_when_the_one_before_was_due_to_end() {
        let start = Instant::now();
        let mut free = Free::new(1, start);
        assert_eq!(free.take(start + 3 * MS), start + 3 * MS);
        // Due at 8, noticed at 9 by a late timer; the next one has waited since 4.
        free.give_back(start + 8 * MS, start + 9 * MS);
        assert_eq!(free.take(start + 4 * MS), start + 8 * MS);
    }

    #[test]
    fn an_idle_slot_begins_when_a_call_arrives() {
        let start = Instant::now();
        let mut free = Free::new(2, start);
        free.take(start);
        free.give_back(start + 5 * MS, start + 6 * MS);
        assert_eq!(free.take(start + 20 * MS), start + 20 * MS);
    }

    #[test]
    fn a_call_that_is_cancelled_frees_its_slot_at_once() {
        let start = Instant::now();
        let mut free = Free::new(1, start);
        free.take(start);
        free.give_back(start + 100 * MS, start + 2 * MS);
        assert_eq!(free.take(start + MS), start + 2 * MS);
    }
}

//! A worker's deadlines: one heap, entries that were overtaken are passed over when they come up. Each thing that can be
//! due holds an [`Alarm`], so that moving a deadline to and fro does not fill the heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::arena::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Pod(Key),
    Conn(Key),
    Listener(Key),
}

/// One thing's deadline.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    due: Option<Instant>,
    /// The heap's entry that counts; never later than `due`.
    queued: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Timer)>>,
}

impl Timers {
    pub(super) fn set(&mut self, alarm: &mut Alarm, timer: Timer, due: Option<Instant>) {
        alarm.due = due;
        if let Some(due) = due
            && alarm.queued.is_none_or(|queued| due < queued)
        {
            alarm.queued = Some(due);
            self.heap.push(Reverse((due, timer)));
        }
    }

    /// When the next entry comes up: at the earliest deadline or before it.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next entry that has come up by now. Whether it counts, `fires` tells.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, Timer)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now { None } else { self.heap.pop().map(|Reverse(entry)| entry) }
    }

    /// Whether the thing whose entry came up is really due. Its deadline is unset then, and waits on otherwise.
    pub(super) fn fires(&mut self, alarm: &mut Alarm, (at, timer): (Instant, Timer), now: Instant) -> bool {
        if alarm.queued != Some(at) {
            return false;
        }
        alarm.queued = None;
        if alarm.due.is_some_and(|due| due <= now) {
            alarm.due = None;
            return true;
        }
        self.set(alarm, timer, alarm.due);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::arena::Arena;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    /// Sets the deadlines one after the other, runs the clock for 12 s, and says in which seconds the timer fired.
    fn fires(deadlines: &[Option<u32>]) -> Vec<u32> {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let timer = Timer::Conn(Arena::new().insert(()));
        let mut alarm = Alarm::default();
        for seconds in deadlines {
            timers.set(&mut alarm, timer, seconds.map(|s| now + s * SECOND));
        }
        let mut fired = Vec::new();
        for second in 0..12 {
            let now = now + second * SECOND;
            while let Some(entry) = timers.pop(now) {
                if timers.fires(&mut alarm, entry, now) {
                    fired.push(second);
                }
            }
        }
        assert_eq!(timers.next(), None, "an entry was left behind");
        fired
    }

    #[test]
    fn a_deadline_that_moved_fires_once_and_at_its_last_place() {
        assert_eq!(fires(&[Some(9), Some(3), Some(5)]), [5]);
        assert_eq!(fires(&[Some(5), Some(9)]), [9]);
        assert_eq!(fires(&[Some(9), Some(3), Some(5), Some(1), Some(4)]), [4]);
    }

    #[test]
    fn an_unset_deadline_does_not_fire() {
        assert!(fires(&[Some(3), None]).is_empty());
        assert_eq!(fires(&[Some(3), None, Some(7)]), [7]);
    }

    #[test]
    fn a_deadline_that_is_put_off_again_and_again_costs_one_entry() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let timer = Timer::Conn(Arena::new().insert(()));
        let mut alarm = Alarm::default();
        for second in 0..1_000 {
            timers.set(&mut alarm, timer, Some(now + second * SECOND));
        }
        assert_eq!(timers.heap.len(), 1);
    }
}

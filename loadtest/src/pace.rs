//! Hands out a run's calls: as fast as they are taken (closed loop), or each when it is due (open loop). A call's latency
//! counts from the moment given here. Wakes by a timerfd, because tokio's timers are a millisecond coarse.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Wake-ups closer than this are joined: at most so late is a call started for the timer's sake.
const FINEST_WAKE: Duration = Duration::from_micros(50);

/// With `--duration` and `--rate`: how long after the end calls that are overdue are still started.
const OVERDUE: Duration = Duration::from_secs(1);

/// When a run stops to start calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Calls(u64),
    For(Duration),
}

/// The calls not yet started.
pub(crate) struct Tickets {
    started_at: Instant,
    limit: Limit,
    /// Time from one call to the next; none: closed loop.
    interval: Option<f64>,
    total: u64,
    next: AtomicU64,
    due: Semaphore,
    stopped: AtomicBool,
}

impl Tickets {
    pub(crate) fn new(limit: Limit, rate: Option<f64>, now: Instant) -> Self {
        let total = match (limit, rate) {
            (Limit::Calls(calls), _) => calls,
            (Limit::For(duration), Some(rate)) => (duration.as_secs_f64() * rate).ceil() as u64,
            (Limit::For(_), None) => u64::MAX,
        };
        Self {
            started_at: now,
            limit,
            interval: rate.map(|rate| 1.0 / rate),
            total,
            next: AtomicU64::new(0),
            due: Semaphore::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Calls that the run means to make; none: as many as fit into its time.
    pub(crate) fn total(&self) -> Option<u64> {
        (self.total != u64::MAX).then_some(self.total)
    }

    /// Waits for the next call to be due and says since when it is. None: no more calls.
    pub(crate) async fn take(&self) -> Option<Instant> {
        if self.interval.is_some() {
            self.due.acquire().await.ok()?.forget();
        }
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        let over = match (self.limit, self.interval) {
            (Limit::Calls(_), _) => false,
            (Limit::For(duration), None) => now >= self.started_at + duration,
            (Limit::For(duration), Some(_)) => now >= self.started_at + duration + OVERDUE,
        };
        if over {
            self.stop();
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.total {
            self.stop();
            return None;
        }
        Some(self.interval.map_or(now, |interval| self.at(number, interval)))
    }

    /// No further call starts.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.due.close();
    }

    fn at(&self, number: u64, interval: f64) -> Instant {
        self.started_at + Duration::from_secs_f64(number as f64 * interval)
    }

    /// Releases each call of an open loop when it is due; for ever, as the run ends by its workers.
    pub(crate) async fn pace(&self) -> std::io::Result<()> {
        let Some(interval) = self.interval else { return std::future::pending().await };
        let alarm = Alarm::new()?;
        let mut released = 0;
        loop {
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(self.started_at).as_secs_f64();
            let due = ((elapsed / interval) as u64 + 1).min(self.total);
            self.due.add_permits((due - released) as usize);
            released = due;
            if released == self.total {
                // One more than there are calls: whoever takes it finds the end, and closes for all.
                self.due.add_permits(1);
                return std::future::pending().await;
            }
            alarm.after(self.at(released, interval).saturating_duration_since(now)).await?;
        }
    }
}

/// A timer finer than tokio's.
pub(crate) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    pub(crate) fn new() -> std::io::Result<Self> {
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(deprecated, reason = "its successor is unsafe for the sake of owners that change their descriptor")]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Waits so long, but no less than [`FINEST_WAKE`].
    pub(crate) async fn after(&self, wait: Duration) -> std::io::Result<()> {
        let wait = wait.max(FINEST_WAKE);
        let value = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut ready = self.0.readable().await?;
        let mut expirations = [0; 8];
        let _ = rustix::io::read(&self.0, &mut expirations);
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_loop_hands_out_exactly_its_calls() {
        let tickets = Tickets::new(Limit::Calls(3), None, Instant::now());
        for _ in 0..3 {
            assert!(tickets.take().await.is_some());
        }
        assert!(tickets.take().await.is_none());
        assert!(tickets.take().await.is_none());
    }

    #[tokio::test]
    async fn an_open_loop_gives_each_call_the_moment_it_was_due_however_late_it_is_taken() {
        let late = Instant::now() - Duration::from_secs(1);
        let tickets = Tickets::new(Limit::Calls(4), Some(1000.0), late);
        let taking = async {
            let mut due = Vec::new();
            while let Some(at) = tickets.take().await {
                due.push(at - late);
            }
            due
        };
        let due = tokio::select! {
            due = taking => due,
            result = tickets.pace() => panic!("the pacer ended: {result:?}"),
        };
        assert_eq!(due, [0, 1, 2, 3].map(Duration::from_millis));
    }

    #[tokio::test]
    async fn a_duration_at_a_rate_is_a_number_of_calls() {
        let now = Instant::now();
        assert_eq!(Tickets::new(Limit::For(Duration::from_secs(2)), Some(50.0), now).total(), Some(100));
        assert_eq!(Tickets::new(Limit::For(Duration::from_secs(2)), None, now).total(), None);
    }

    #[tokio::test]
    async fn nothing_starts_after_stop() {
        for rate in [None, Some(1000.0)] {
            let tickets = Tickets::new(Limit::Calls(10), rate, Instant::now());
            tickets.stop();
            assert!(tickets.take().await.is_none());
        }
    }
}

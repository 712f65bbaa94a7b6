//! How many calls of a Service may be sent a second time: a share of those that are sent at all, so that an overloaded
//! Service that refuses calls does not get each of them several times over. In: calls and wishes; out: yes or no.

use std::cell::Cell;
use std::time::Instant;

/// One call in five.
const SHARE: f32 = 0.2;
/// And always so many a second: a Service with few calls has a budget too.
const PER_SECOND: f32 = 10.0;
/// What is not used is not saved for longer than about ten seconds.
const MOST: f32 = 100.0;

/// Of one Service on one worker.
#[derive(Debug)]
pub(super) struct Budget {
    left: Cell<f32>,
    filled: Cell<Option<Instant>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: Cell::new(MOST), filled: Cell::new(None) }
    }
}

impl Budget {
    /// A call is sent.
    pub(super) fn earn(&self) {
        self.left.set((self.left.get() + SHARE).min(MOST));
    }

    /// A call is to be sent again; `false`: not now.
    pub(super) fn spend(&self, now: Instant) -> bool {
        let passed = self.filled.replace(Some(now)).map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f32());
        let left = (self.left.get() + passed * PER_SECOND).min(MOST);
        let enough = left >= 1.0;
        self.left.set(if enough { left - 1.0 } else { left });
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_call_in_five_is_sent_again_and_ten_a_second_in_any_case() {
        let (budget, begin) = (Budget::default(), Instant::now());
        while budget.spend(begin) {}
        for _ in 0..500 {
            budget.earn();
        }
        let by_share = (0..500).filter(|_| budget.spend(begin)).count();
        assert!((98..=101).contains(&by_share), "{by_share}");
        let by_time = (0..500).filter(|_| budget.spend(begin + Duration::from_secs(1))).count();
        assert!((9..=11).contains(&by_time), "{by_time}");
    }

    #[test]
    fn what_is_saved_is_bounded() {
        let (budget, begin) = (Budget::default(), Instant::now());
        (0..1_000_000).for_each(|_| budget.earn());
        let spent = (0..1_000).filter(|_| budget.spend(begin)).count();
        assert_eq!(spent, MOST as usize);
    }
}

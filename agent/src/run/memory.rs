//! Memory that is free goes back to the kernel: glibc keeps what a burst needed, and an agent would look for weeks as if
//! the burst went on. In: the time, and what the process has resident. It frees nothing itself.

use std::time::Duration;

const EVERY: Duration = Duration::from_secs(2);
/// Less than this more than after the last time is not worth a look at the whole heap, bytes.
const GROWTH: usize = 2 << 20;

/// Runs for ever.
pub(super) async fn give_back() {
    let mut least = usize::MAX;
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(resident) = resident() else { return };
        least = least.min(resident);
        if resident >= least + GROWTH {
            // Takes each arena's lock for as long as it looks at it, below a millisecond for tens of MiB.
            let _ = tokio::task::spawn_blocking(trim).await;
            least = self::resident().unwrap_or(least);
        }
    }
}

/// Of this process, bytes.
fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * rustix::param::page_size())
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_burst_left_behind_goes_back_to_the_kernel() {
        let task = tokio::spawn(give_back());
        tokio::time::sleep(2 * EVERY).await;
        let mut burst: Vec<Vec<u8>> = (0..32_768).map(|_| vec![1; 1024]).collect();
        // The last one keeps the heap's end where it is.
        let last = burst.pop();
        drop(burst);
        let before = resident().unwrap();
        tokio::time::sleep(2 * EVERY).await;
        let after = resident().unwrap();
        assert!(after + (16 << 20) < before, "{before} {after}");
        drop((task, last));
    }
}

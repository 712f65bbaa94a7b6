//! Memory that is free goes back to the kernel: glibc keeps what a burst needed, and an agent would look for weeks as if
//! the burst went on; so would it by the code that its start or somebody who looked has needed. In: the time, and what the process has resident.
//! It frees nothing itself.

use std::time::Duration;

const EVERY: Duration = Duration::from_secs(2);
/// Less than this more than what is in use is not worth a look at the whole heap, bytes.
const GROWTH: usize = 1 << 20;

/// Runs for ever.
pub(super) async fn give_back() {
    // What was resident a while after the last time: what is in use has come back by then. So that what the start needed goes
    // back too, nothing at first.
    let mut in_use = 0;
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(resident) = resident() else { return };
        if resident < in_use + GROWTH {
            in_use = in_use.min(resident);
            continue;
        }
        // Takes each arena's lock for as long as it looks at it, below a millisecond for tens of MiB.
        let _ = tokio::task::spawn_blocking(trim).await;
        forget_code();
        tokio::time::sleep(EVERY).await;
        in_use = self::resident().unwrap_or(resident);
    }
}

/// The pages of code that were used until now are no longer counted as ours; those that are used again come back from the
/// page cache, which keeps them all. Reading YAML, TLS and the programs' loader are two thirds of the agent's code.
pub(super) fn forget_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, end) in maps.lines().filter_map(code) {
        // SAFETY: code is never written, so that each page of it is its file's (proc_pid_maps(5), madvise(2)).
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
    }
}

/// The range of a line of /proc/self/maps that is code of a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(2)? != "0";
    let number = |text| usize::from_str_radix(text, 16).ok();
    is_code.then_some((number(start)?, number(end)?))
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
        tokio::time::sleep(2 * EVERY + EVERY / 2).await;
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

    #[test]
    fn code_that_is_not_used_any_more_is_not_resident_and_what_is_used_goes_on() {
        let text = "55d0c0e3f000-55d0c1884000 r-xp 00304000 fe:00 1234   /usr/bin/agent";
        assert_eq!(code(text), Some((0x55d0_c0e3_f000, 0x55d0_c188_4000)));
        for other in [text.replace("r-xp", "rw-p"), text.replace("1234", "0")] {
            assert_eq!(code(&other), None, "{other}");
        }
        let before = resident().unwrap();
        forget_code();
        let after = resident().unwrap();
        assert!(after + (512 << 10) < before, "{before} {after}");
    }
}

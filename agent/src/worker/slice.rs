//! When a thread runs that has something to do: in, the calling thread; out, the same, first in line. A worker runs for some
//! tens of microseconds and sleeps again; on a busy node it would wait for the end of others' slices, milliseconds, twice a call.

use std::io;

/// The shortest that the kernel knows. It is no larger share of the CPU: who asks for short slices gets them sooner and more often.
const SLICE_NS: u64 = 100_000;

/// sched_setattr(2); of SCHED_OTHER the runtime is the slice (Linux 6.12 and later, which let it cut into longer ones; others
/// ignore it).
pub(super) fn shorten() -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the pointer is to a local of that size; thread 0 is the calling one.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_may_ask_for_short_slices_and_keeps_its_priority() {
        std::thread::spawn(|| {
            let niceness = rustix::process::getpriority_process(None).unwrap();
            super::shorten().unwrap();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), niceness);
        })
        .join()
        .unwrap();
    }
}

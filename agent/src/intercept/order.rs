//! The order in which a killed agent's descriptors close. In: nothing; out: a guard; while it is held new descriptors get
//! high numbers. The kernel queues each file of a dying process as it goes through the numbers upwards, and then closes
//! from the queue's end: the highest number first. Links that shall close before listeners need higher numbers than these.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::{Resource, getrlimit};

/// Links get numbers from here on. As many descriptors as this can be open when a pod's listener is made, and the listener
/// still closes after the links. The kernel's table takes 8 bytes for each.
const LINKS_FROM: u64 = 65_536;

/// Left free below a smaller limit of open files, for the links and for what other threads open meanwhile.
const ROOM: u64 = 64;

/// Holds all numbers below those that the links shall get.
pub(super) struct LowNumbersTaken {
    _taken: Vec<OwnedFd>,
}

impl LowNumbersTaken {
    pub(super) fn take() -> io::Result<Self> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let until = LINKS_FROM.min(limit.saturating_sub(ROOM)) - 1;
        let null = OwnedFd::from(File::open("/dev/null")?);
        let mut taken = Vec::new();
        loop {
            let next = null.try_clone()?;
            let number = next.as_raw_fd();
            taken.push(next);
            if u64::try_from(number).is_ok_and(|number| number >= until) {
                taken.push(null);
                return Ok(Self { _taken: taken });
            }
        }
    }
}

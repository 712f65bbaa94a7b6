//! How a server misbehaves on demand: what the control listener sets, and what it means for calls and for sockets. A black
//! hole is a socket filter that drops every packet before TCP sees it, so that not even an ACK goes out; it needs no
//! privilege. Hears no connection: that is `control`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use socket2::{SockFilter, SockRef};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::code::Code;

/// What a server does beside answering. Without any field: nothing, it is well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// `--service-time` is so many times as long.
    pub slow: f64,
    /// Calls that fail at once, without a place among `--slots`.
    pub fail: Option<Failure>,
    /// Nothing reaches the Echo service's sockets any more, and nothing new leaves them.
    pub black_hole: bool,
    /// Milliseconds until the server is well again by itself; absent: never.
    pub for_ms: Option<u64>,
}

/// Calls that fail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failure {
    /// Of the calls, 0 to 1.
    pub share: f64,
    pub code: Code,
    /// The status comes in trailers after response headers, and not in the one block of a Trailers-Only response.
    pub after_headers: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { slow: 1.0, fail: None, black_hole: false, for_ms: None }
    }
}

impl Default for Failure {
    fn default() -> Self {
        Self { share: 1.0, code: Code::UNAVAILABLE, after_headers: false }
    }
}

impl Behaviour {
    /// Whether calls may end by their deadline without any answer.
    pub fn is_silent(&self) -> bool {
        self.black_hole || self.slow > 1.0
    }

    /// Refuses what has no meaning, with the cure.
    pub fn check(&self) -> Result<(), String> {
        if !(self.slow > 0.0 && self.slow <= 1e6) {
            return Err("slow: write a factor above 0 and up to 1000000; 1 is as usual".into());
        }
        match self.fail {
            Some(Failure { share, .. }) if !(0.0..=1.0).contains(&share) => {
                Err("fail.share: write a share from 0 to 1; 1 is every call".into())
            }
            Some(Failure { code: Code::OK, .. }) => {
                Err("fail.code: OK is no failure; write a name such as unavailable".into())
            }
            _ => Ok(()),
        }
    }
}

/// The behaviour of a running server, and the sockets that a black hole swallows.
#[derive(Default)]
pub(super) struct Conduct {
    now: watch::Sender<Behaviour>,
    sockets: Mutex<Sockets>,
    healing: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Sockets {
    swallowed: bool,
    open: HashMap<u64, OwnedFd>,
    next: u64,
}

impl Conduct {
    /// From now on the server behaves so; with `for_ms`, only so long.
    pub(super) fn change(self: &Arc<Self>, to: Behaviour) -> io::Result<()> {
        let heals = to.for_ms.map(Duration::from_millis);
        let mut healing = locked(&self.healing);
        healing.take().inspect(AbortHandle::abort);
        self.enact(to)?;
        *healing = heals.map(|after| {
            let conduct = Arc::clone(self);
            let heal = async move {
                tokio::time::sleep(after).await;
                if let Err(error) = conduct.enact(Behaviour::default()) {
                    eprintln!("cannot be well again: {error}; stop the server");
                }
            };
            tokio::spawn(heal).abort_handle()
        });
        Ok(())
    }

    fn enact(&self, to: Behaviour) -> io::Result<()> {
        let mut sockets = locked(&self.sockets);
        if sockets.swallowed != to.black_hole {
            sockets.open.values().try_for_each(|socket| swallow(socket, to.black_hole))?;
            sockets.swallowed = to.black_hole;
        }
        self.now.send_replace(to);
        Ok(())
    }

    pub(super) fn current(&self) -> Behaviour {
        self.now.borrow().clone()
    }

    /// How many times as long a call takes now.
    pub(super) fn slow(&self) -> f64 {
        self.now.borrow().slow
    }

    /// Whether the next call fails, and how.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failure = self.now.borrow().fail?;
        (fastrand::f64() < failure.share).then_some(failure)
    }

    /// Lets black holes swallow this socket too, until the result is dropped. It holds a descriptor of the socket: drop it
    /// after the socket's own.
    pub(super) fn enter(self: &Arc<Self>, socket: impl AsFd) -> io::Result<Entered> {
        let copy = socket.as_fd().try_clone_to_owned()?;
        let mut sockets = locked(&self.sockets);
        if sockets.swallowed {
            swallow(&copy, true)?;
        }
        let number = sockets.next;
        sockets.next += 1;
        sockets.open.insert(number, copy);
        Ok(Entered { conduct: Arc::clone(self), number })
    }

    /// Waits until the server is in a black hole, or out of it.
    pub(super) async fn until_swallowed(&self, swallowed: bool) {
        // The sender is this object's own and outlives the wait.
        let _ = self.now.subscribe().wait_for(|now| now.black_hole == swallowed).await;
    }
}

/// A socket that a black hole swallows.
pub(super) struct Entered {
    conduct: Arc<Conduct>,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        locked(&self.conduct.sockets).open.remove(&self.number);
    }
}

/// Drops every packet that comes for the socket, or lets them through again.
fn swallow(socket: &OwnedFd, drop_all: bool) -> io::Result<()> {
    /// Classic BPF: return 0, which is the number of bytes to keep.
    const RETURN_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    let socket = SockRef::from(socket);
    match drop_all {
        true => socket.attach_filter(&[RETURN_NOTHING]),
        false => match socket.detach_filter() {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(()),
            result => result,
        },
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Behaviour, String> {
        let behaviour: Behaviour = serde_json::from_str(json).map_err(|error| error.to_string())?;
        behaviour.check().map(|()| behaviour)
    }

    #[test]
    fn what_is_not_said_is_as_usual() {
        assert_eq!(read("{}"), Ok(Behaviour::default()));
        let failing = read(r#"{"fail": {}, "for_ms": 5000}"#).unwrap();
        assert_eq!(failing.fail, Some(Failure { share: 1.0, code: Code::UNAVAILABLE, after_headers: false }));
        assert_eq!((failing.slow, failing.black_hole, failing.for_ms), (1.0, false, Some(5000)));
    }

    #[test]
    fn nonsense_is_refused_with_its_cure() {
        for (json, cure) in [
            (r#"{"slow": 0}"#, "factor"),
            (r#"{"fail": {"share": 2}}"#, "0 to 1"),
            (r#"{"fail": {"code": "ok"}}"#, "unavailable"),
            (r#"{"fail": {"code": "broken"}}"#, "unavailable"),
            (r#"{"blackhole": true}"#, "black_hole"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(cure), "{json}: {error}");
        }
    }
}

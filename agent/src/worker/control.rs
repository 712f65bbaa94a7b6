//! Commands: Services and pods come and go, the worker drains. Each is carried out within one iteration of the loop;
//! what takes longer (draining) is looked after at the end of each iteration.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::accept::Listener;
use super::event_loop::{PodState, Worker};
use super::timers::Alarm;
use super::{Ack, Command, Pod};
use crate::addr::NetnsCookie;
use crate::splitter::Splitter;
use crate::table::Change;

/// Most commands carried out in one iteration.
const COMMANDS: usize = 64;
/// A draining worker closes its listeners when nothing has come for this long: a connect that the kernel had already
/// rewritten is in the backlog by then.
const QUIET: Duration = Duration::from_millis(100);
/// It closes them after this long in any case.
const QUIET_AT_MOST: Duration = Duration::from_secs(1);
/// A Service that is no longer ours does not end the streams that run: their connections take no new ones, and end with
/// the last. A day is for ever, and still lets a stream that was forgotten go.
const VANISHED: Duration = Duration::from_secs(24 * 3600);

/// A worker that ends.
pub(super) struct Draining {
    pub(super) until: Instant,
    pub(super) last_accept: Instant,
    begun: Instant,
    listening: bool,
    /// Empty: all is over.
    done: Vec<Ack>,
}

impl Draining {
    /// When `drain_on` has to look again, if nothing else happens. None: all is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.done.is_empty() {
            return None;
        }
        Some(if self.listening { self.quiet_at().min(self.until) } else { self.until })
    }

    fn quiet_at(&self) -> Instant {
        (self.last_accept + QUIET).min(self.begun + QUIET_AT_MOST)
    }
}

impl Worker {
    /// Breaks when the last handle is gone.
    pub(super) fn take_commands(&mut self) -> ControlFlow<()> {
        self.more_commands = false;
        for _ in 0..COMMANDS {
            match self.commands.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        self.more_commands = true;
        ControlFlow::Continue(())
    }

    fn carry_out(&mut self, command: Command) {
        // Whoever asked may have stopped listening: that changes nothing.
        match command {
            Command::Services(changes, ack) => {
                self.change_services(&changes);
                let _ = ack.send(());
            }
            Command::AddPod(pod, ack) => {
                let name = Arc::clone(&pod.name);
                match self.add_pod(pod) {
                    Ok(()) => drop(ack.send(())),
                    Err(error) => tracing::warn!("pod {name} is left alone: {error:#}"),
                }
            }
            Command::RemovePod(cookie, ack) => {
                self.remove_pod(cookie);
                let _ = ack.send(());
            }
            Command::RenamePod(cookie, name) => self.rename_pod(cookie, name),
            Command::Drain { until, done } => self.drain(until, done),
            Command::Report(reply) => drop(reply.send(self.report())),
            Command::Tap(request) => self.begin_tap(request),
        }
    }

    fn change_services(&mut self, changes: &[Change]) {
        let concerned = self.services.apply(self.io.now, changes);
        if !concerned.endpoints && concerned.vanished.is_empty() {
            return;
        }
        let now = self.io.now;
        self.each_splitter(|splitter| {
            splitter.handle_endpoints_changed(now);
            for load in &concerned.vanished {
                splitter.drain(now, Some(load), now + VANISHED);
            }
        });
    }

    fn each_splitter(&mut self, mut work: impl FnMut(&mut Splitter)) {
        for key in self.pods.keys(|pod| pod.splitter.is_some()) {
            if let Some(splitter) = self.pods.get_mut(key).and_then(|pod| pod.splitter.as_mut()) {
                work(splitter);
            }
            self.io.turns.wake(key);
        }
    }

    /// Who looks at the calls of pods by name looks at this one's now, or no longer.
    fn rename_pod(&mut self, cookie: NetnsCookie, name: Arc<str>) {
        let Some(&key) = self.by_cookie.get(&cookie) else { return };
        if let Some(pod) = self.pods.get_mut(key) {
            pod.name = name;
        }
        self.set_tap(key);
    }

    fn add_pod(&mut self, pod: Pod) -> anyhow::Result<()> {
        if self.draining.is_some() {
            bail!("this worker is draining");
        }
        let Pod { cookie, netns, listener4, listener6, name } = pod;
        let known = self.by_cookie.get(&cookie).copied();
        let key = match known {
            Some(key) => {
                self.replace_listeners(key);
                if let Some(state) = self.pods.get_mut(key) {
                    state.netns = netns;
                    state.name = name;
                }
                key
            }
            None => {
                let key = self.pods.insert(PodState::new(cookie, netns, name));
                self.by_cookie.insert(cookie, key);
                key
            }
        };
        for listener in [listener4, listener6].into_iter().flatten() {
            if let Err(error) = self.listen(key, listener) {
                if known.is_none() {
                    self.remove_pod(cookie);
                }
                return Err(error).context("cannot watch its listener");
            }
        }
        Ok(())
    }

    fn remove_pod(&mut self, cookie: NetnsCookie) {
        let Some(pod) = self.by_cookie.remove(&cookie) else { return };
        let io = &mut self.io;
        for key in io.listeners.keys(|listener| listener.pod == pod) {
            if let Some(Listener { mut listener, .. }) = io.listeners.remove(key) {
                io.deregister(&mut listener);
            }
        }
        for key in io.conns.keys(|conn| conn.pod == pod) {
            io.conns.remove(key);
        }
        io.turns.forget(pod);
        self.pods.remove(pod);
    }

    fn drain(&mut self, until: Instant, done: Ack) {
        let now = self.io.now;
        match &mut self.draining {
            Some(draining) => {
                draining.until = until;
                draining.done.push(done);
            }
            None => {
                let done = vec![done];
                self.draining = Some(Draining { until, last_accept: now, begun: now, listening: true, done });
            }
        }
        self.each_splitter(|splitter| splitter.drain(now, None, until));
    }

    /// Draining's next step, if it is time for one.
    pub(super) fn drain_on(&mut self) {
        let now = self.io.now;
        let Some(draining) = self.draining.as_mut().filter(|draining| !draining.done.is_empty()) else { return };
        let over = draining.until <= now;
        if draining.listening && (over || draining.quiet_at() <= now) {
            draining.listening = false;
            for listener in self.io.listeners.keys(|_| true) {
                self.close_listener(listener);
            }
        }
        if over {
            self.reset_all();
        }
        let Some(draining) = &mut self.draining else { return };
        if !draining.listening && self.io.conns.is_empty() {
            for done in draining.done.drain(..) {
                let _ = done.send(());
            }
        }
    }

    /// The time to drain is over.
    fn reset_all(&mut self) {
        for key in self.io.conns.keys(|_| true) {
            if let Some(conn) = self.io.conns.remove(key) {
                conn.reset();
            }
        }
        for pod in self.pods.keys(|_| true) {
            if let Some(pod) = self.pods.get_mut(pod) {
                // Its connections are gone, and with them all that it knew.
                pod.splitter = None;
            }
        }
    }
}

impl PodState {
    fn new(cookie: NetnsCookie, netns: std::os::fd::OwnedFd, name: Arc<str>) -> Self {
        Self {
            cookie,
            netns,
            name,
            reach: Default::default(),
            splitter: None,
            by_conn: Vec::new(),
            to_write: Default::default(),
            frames_tapped: false,
            pace: Default::default(),
            alarm: Alarm::default(),
            accepted: 0,
            without_flow: 0,
            accepts_failed: 0,
            dials_failed: 0,
            ejections: Default::default(),
        }
    }
}

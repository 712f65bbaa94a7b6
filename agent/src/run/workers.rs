//! The worker threads as one. In: their number; out: handles, and word of a thread that has ended, which none should.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::intercept::{Heartbeat, Intercept};
use crate::splitter::Limits;
use crate::table::Change;
use crate::worker::{self, Command, TapRequest, WorkerHandle};

/// A worker that has not drained this long after the deadline hangs.
const PAST_DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Workers {
    pub(super) handles: Vec<WorkerHandle>,
    ended: UnboundedReceiver<usize>,
}

impl Workers {
    pub(super) fn spawn(count: usize, limits: &Limits, intercept: &Intercept) -> Result<Self> {
        let (sender, ended) = mpsc::unbounded_channel();
        let mut handles = Vec::new();
        for index in 0..count {
            let mut flows = intercept.flows()?;
            let heartbeat = intercept.heartbeat(u32::try_from(index)?)?;
            let mut life = Life { heartbeat, index, ended: sender.clone() };
            // The thread ends by itself when its last handle is dropped; until then `Life` tells of its end.
            let (handle, _thread) = worker::spawn(
                index,
                worker::Settings { limits: limits.clone(), ..Default::default() },
                Box::new(move |netns, peer| flows.take(netns, peer)),
                Box::new(move || life.beat()),
            )?;
            handles.push(handle);
        }
        Ok(Self { handles, ended })
    }

    /// Shows calls of all workers.
    pub(super) fn tap(&self, request: &TapRequest) {
        self.handles.iter().for_each(|worker| worker.send(Command::Tap(request.clone())));
    }

    /// Waits until a worker has ended; its index. For ever if none does.
    pub(super) async fn ended(&mut self) -> usize {
        match self.ended.recv().await {
            Some(index) => index,
            None => std::future::pending().await,
        }
    }

    /// Ends all connections gracefully. The future ends when none is left, or a little after the deadline.
    pub(super) fn drain(&self, until: Instant) -> impl Future<Output = ()> + use<> {
        let answers: Vec<_> = self.handles.iter().map(|worker| worker.drain(until)).collect();
        async move {
            let all = async {
                for answer in answers {
                    // An error: the worker has ended, and nothing is left of it either.
                    _ = answer.await;
                }
            };
            if tokio::time::timeout_at((until + PAST_DEADLINE).into(), all).await.is_err() {
                tracing::warn!("a worker did not drain in time");
            }
        }
    }
}

/// Gives changed Services to all workers; the future ends when each holds them.
pub(super) fn publish(workers: &[WorkerHandle], changes: &Arc<[Change]>) -> impl Future<Output = ()> + use<> {
    let answers: Vec<_> = workers.iter().map(|worker| worker.change_services(Arc::clone(changes))).collect();
    async move {
        for answer in answers {
            // An error: the worker has ended, which ends the agent.
            _ = answer.await;
        }
    }
}

/// Owned by a worker's thread: dropped when that ends, however it ends.
struct Life {
    heartbeat: Heartbeat,
    index: usize,
    ended: UnboundedSender<usize>,
}

impl Life {
    fn beat(&mut self) {
        self.heartbeat.beat();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // The kernel leaves connects alone at once, not when the last stamp has grown old.
        self.heartbeat.stop();
        // Nobody listens when the whole agent ends.
        _ = self.ended.send(self.index);
    }
}

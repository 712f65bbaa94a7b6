//! Requests that go to another endpoint or connection, as the first provably did not process them. In: what was sent of a
//! request and kept for this; out: the request where it began, or the word that it cannot be sent again.

use std::rc::Rc;
use std::time::Instant;

use super::Splitter;
use super::flow::{RecvWindow, SendWindow};
use super::pair::{PairKey, Phase, Side};

/// Why a request goes to another endpoint, or to another connection of the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    /// The endpoint refused it or could not be reached: another one, and only another one.
    Elsewhere,
    /// The connection is going away (GOAWAY): the same endpoint may take it on a new connection.
    Again,
}

impl Splitter {
    /// Request payload that was framed towards an endpoint which has not answered yet.
    pub(super) fn keep_for_replay(&mut self, key: PairKey, bytes: &[u8]) {
        let Some(pair) = self.pairs.get(key) else { return };
        let Some(kept) = &mut pair.replay else { return };
        let fits = kept.len() + bytes.len() <= self.limits.replay_stream
            && self.replay_held + bytes.len() <= self.limits.replay_pod;
        if fits {
            if kept.capacity() == 0 {
                *kept = self.spare_buffers.pop().unwrap_or_default();
            }
            kept.extend_from_slice(bytes);
            self.replay_held += bytes.len();
        } else {
            self.drop_replay(key);
        }
    }

    /// From here on the request is bound to its endpoint.
    pub(super) fn drop_replay(&mut self, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        if let Some(kept) = pair.replay.take() {
            let request = std::mem::replace(&mut pair.request, Rc::clone(&self.no_list));
            self.heads_held -= request.size();
            self.replay_held -= kept.len();
            self.recycle_buffer(kept);
            self.recycle(request);
        }
    }

    /// Gives a request that was not processed to another endpoint or connection. The endpoint's stream has ended or
    /// never was; `false`: it cannot be replayed, and the pair is as it was.
    pub(super) fn replay(&mut self, now: Instant, key: PairKey, how: Replay) -> bool {
        let Some(pair) = self.pairs.get(key) else { return false };
        let Some(kept) = pair.replay.take() else { return false };
        if pair.phase >= Phase::Interim {
            pair.replay = Some(kept);
            return false;
        }
        if how == Replay::Elsewhere
            && let Some(picked) = &pair.picked
        {
            pair.tried.push(Rc::clone(picked.endpoint()));
        }
        let window = self.limits.stream_window;
        let fresh = Side::new(u32::MAX, 0, RecvWindow::new(window, window), SendWindow::new(0));
        let mut old = std::mem::replace(&mut pair.endpoint, fresh);
        pair.credited += kept.len();
        self.replay_held -= kept.len();
        let mut pending = kept;
        pending.extend_from_slice(old.pending());
        pair.endpoint.pending = pending;
        pair.endpoint.end = std::mem::take(&mut old.end);
        pair.replay = Some(Vec::new());
        if old.is_open() {
            self.stats.streams_replayed += 1;
            self.conns[old.conn].forget(now, &old);
            self.place_freed(now, old.conn);
        }
        self.dispatch(now, key);
        true
    }

    /// Whether the Service's budget for calls that are sent again allows one more.
    pub(super) fn may_repeat(&mut self, now: Instant, key: PairKey) -> bool {
        let allowed = self.pairs.get(key).is_some_and(|pair| pair.service.may_repeat(now));
        self.stats.replays_denied += u64::from(!allowed);
        allowed
    }
}

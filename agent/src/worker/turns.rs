//! Whose turn it is: pods in rotation, and within a pod its sockets in rotation, so that a pod with a thousand busy
//! connections gets as much as one with a single call. In: who has become ready; out: who is next. It knows keys only.

use std::collections::VecDeque;

use super::arena::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Listener(Key),
    Conn(Key),
}

#[derive(Debug, Default)]
pub(super) struct Turns {
    pods: VecDeque<Key>,
    /// By the pod's index.
    queues: Vec<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    sockets: VecDeque<Ready>,
    /// Its pod is in `pods`, or has its visit now.
    in_line: bool,
}

impl Turns {
    /// The pod gets a visit.
    pub(super) fn wake(&mut self, pod: Key) {
        let queue = self.queue(pod);
        if !std::mem::replace(&mut queue.in_line, true) {
            self.pods.push_back(pod);
        }
    }

    /// The socket gets a turn when its pod is visited.
    pub(super) fn push(&mut self, pod: Key, ready: Ready) {
        self.queue(pod).sockets.push_back(ready);
        self.wake(pod);
    }

    /// Pods that wait for a visit.
    pub(super) fn pods(&self) -> usize {
        self.pods.len()
    }

    /// The pod that has waited longest, for its visit: until [`Turns::visited`], waking it does nothing.
    pub(super) fn next_pod(&mut self) -> Option<Key> {
        self.pods.pop_front()
    }

    /// The pod's visit is over. It gets another one if there is more to do, or sockets of it still wait for their turns.
    pub(super) fn visited(&mut self, pod: Key, more: bool) {
        let queue = self.queue(pod);
        queue.in_line = false;
        if more || !queue.sockets.is_empty() {
            self.wake(pod);
        }
    }

    /// The pod is gone. Its place may be another's from now on.
    pub(super) fn forget(&mut self, pod: Key) {
        self.pods.retain(|waiting| *waiting != pod);
        *self.queue(pod) = Queue::default();
    }

    /// How many of the pod's sockets wait.
    pub(super) fn sockets(&mut self, pod: Key) -> usize {
        self.queue(pod).sockets.len()
    }

    /// The pod's socket that has waited longest.
    pub(super) fn next_socket(&mut self, pod: Key) -> Option<Ready> {
        self.queue(pod).sockets.pop_front()
    }

    fn queue(&mut self, pod: Key) -> &mut Queue {
        if self.queues.len() <= pod.index() {
            self.queues.resize_with(pod.index() + 1, Queue::default);
        }
        &mut self.queues[pod.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::arena::Arena;

    #[test]
    fn a_pod_with_one_connection_gets_every_second_visit_beside_one_with_a_thousand() {
        let (mut turns, mut pods, mut conns) = (Turns::default(), Arena::new(), Arena::new());
        let (busy, calm) = (pods.insert(()), pods.insert(()));
        for _ in 0..1_000 {
            turns.push(busy, Ready::Conn(conns.insert(())));
        }
        let call = Ready::Conn(conns.insert(()));
        for _ in 0..100 {
            turns.push(calm, call);
            assert_eq!(turns.next_pod(), Some(busy));
            let first = turns.next_socket(busy).unwrap();
            turns.push(busy, first);
            turns.visited(busy, false);
            assert_eq!(turns.next_pod(), Some(calm));
            assert_eq!(turns.next_socket(calm), Some(call));
            turns.visited(calm, false);
        }
        assert_eq!((turns.sockets(busy), turns.sockets(calm), turns.pods()), (1_000, 0, 1));
    }

    #[test]
    fn a_pod_stands_in_line_once() {
        let (mut turns, mut pods) = (Turns::default(), Arena::new());
        let pod = pods.insert(());
        turns.wake(pod);
        turns.wake(pod);
        turns.push(pod, Ready::Listener(pod));
        assert_eq!((turns.next_pod(), turns.next_pod()), (Some(pod), None));
        assert_eq!(turns.sockets(pod), 1);
    }

    #[test]
    fn a_pod_in_the_place_of_another_gets_its_visits() {
        let (mut turns, mut pods) = (Turns::default(), Arena::new());
        let gone = pods.insert(());
        turns.push(gone, Ready::Conn(gone));
        turns.forget(gone);
        pods.remove(gone);
        let next = pods.insert(());
        assert_eq!((next.index(), turns.sockets(next)), (gone.index(), 0));
        turns.wake(next);
        assert_eq!((turns.next_pod(), turns.next_pod()), (Some(next), None));
    }

    #[test]
    fn a_visit_that_leaves_nothing_is_the_last_one() {
        let (mut turns, mut pods) = (Turns::default(), Arena::new());
        let pod = pods.insert(());
        let visit = |turns: &mut Turns, more| {
            assert_eq!(turns.next_pod(), Some(pod));
            // By what is done in the visit itself.
            turns.wake(pod);
            turns.visited(pod, more);
            turns.pods()
        };
        turns.push(pod, Ready::Conn(pod));
        assert_eq!(visit(&mut turns, false), 1, "its socket waits");
        assert_eq!(turns.next_socket(pod), Some(Ready::Conn(pod)));
        assert_eq!(visit(&mut turns, true), 1, "there is more");
        assert_eq!(visit(&mut turns, false), 0);
    }
}

//! What a scenario's calls were, one by one: when each was due, who answered, how it ended. Filled while the calls run;
//! judged afterwards by `measure`.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::call::Answer;
use crate::code::Code;

/// One call; times are since the scenario's begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) stream: bool,
    pub(crate) due: Duration,
    /// When the response began.
    pub(crate) head: Option<Duration>,
    /// None: still open when the scenario ended.
    pub(crate) ended: Option<Duration>,
    pub(crate) code: Code,
    /// Who answered, by its place in [`Recording::pods`].
    pub(crate) pod: Option<usize>,
}

/// All of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recording {
    pub(crate) calls: Vec<Call>,
    /// Names of the pods that answered; the address of one that gave no name.
    pub(crate) pods: Vec<String>,
    /// The one that misbehaved, and from when to when.
    pub(crate) bad_pod: Option<String>,
    pub(crate) bad_times: Vec<(Duration, Duration)>,
    /// It left calls unanswered: those that nobody answered meanwhile count as its own.
    pub(crate) bad_is_silent: bool,
    /// When a hook's command had ended.
    pub(crate) hooks: Vec<Duration>,
    /// Calls sent again because their first attempt never started.
    pub(crate) resent: u64,
    /// Connections dialled.
    pub(crate) connections: u64,
}

/// A recording under way.
pub(crate) struct Recorder {
    begin: Instant,
    known: HashMap<HeaderValue, usize>,
    pub(crate) recording: Recording,
}

impl Recorder {
    pub(crate) fn new(begin: Instant) -> Self {
        Self { begin, known: HashMap::new(), recording: Recording::default() }
    }

    /// A call begins. None: it belongs to the time before the scenario's begin and is not recorded.
    pub(crate) fn start(&mut self, stream: bool, due: Instant) -> Option<usize> {
        let due = due.checked_duration_since(self.begin)?;
        let calls = &mut self.recording.calls;
        calls.push(Call { stream, due, head: None, ended: None, code: Code::OK, pod: None });
        Some(calls.len() - 1)
    }

    /// Its response begins.
    pub(crate) fn head(&mut self, call: usize, answer: &Answer, now: Instant) {
        let pod = answer.pod.as_ref().or(answer.endpoint.as_ref()).map(|name| match self.known.get(name) {
            Some(&pod) => pod,
            None => {
                let pods = &mut self.recording.pods;
                pods.push(String::from_utf8_lossy(name.as_bytes()).into_owned());
                self.known.insert(name.clone(), pods.len() - 1);
                pods.len() - 1
            }
        });
        let head = now - self.begin;
        let call = &mut self.recording.calls[call];
        (call.head, call.pod) = (Some(head), pod);
    }

    /// It is over.
    pub(crate) fn end(&mut self, call: usize, code: Code, now: Instant) {
        let ended = now - self.begin;
        let call = &mut self.recording.calls[call];
        (call.ended, call.code) = (Some(ended), code);
    }

    /// Whether the pod of that name has answered a call.
    pub(crate) fn has_answered(&self, pod: &str) -> bool {
        self.recording.pods.iter().any(|known| known == pod)
    }
}

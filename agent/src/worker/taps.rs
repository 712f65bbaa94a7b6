//! Those who look at calls. In: who wants to see which, and each event of a pod's splitter. Out: events to whom they
//! concern, as long as they take them; what they do not take is counted and lost, and never waited for. It decides only
//! who sees what.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::arena::Key;
use super::event_loop::{PodState, Worker};
use crate::splitter::{CallId, Depth, TapEvent};

/// Who wants to see which calls.
#[derive(Clone, Debug)]
pub struct TapRequest {
    pub filter: TapFilter,
    pub depth: Depth,
    /// Closed: nobody looks any more.
    pub sink: Sender<TapLine>,
}

/// Which calls; what is not said fits all. A `*` stands for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// `namespace/name`, or the name alone.
    pub pod: Option<String>,
    /// `namespace/name:port`, without the port, or the name alone.
    pub service: Option<String>,
    /// `package.Service/Method`, or one of both.
    pub method: Option<String>,
}

/// What happened in a pod.
#[derive(Clone, Debug)]
pub struct TapLine {
    pub pod: Arc<str>,
    pub at: SystemTime,
    pub event: TapEvent,
}

/// All who look.
#[derive(Default)]
pub(super) struct Taps {
    sessions: Vec<Session>,
}

struct Session {
    request: TapRequest,
    /// The last call of each pod that had begun before this session, while others looked.
    last_before: HashMap<Key, CallId>,
    /// Calls that were judged when they began, and whether they are looked at.
    judged: HashMap<(Key, CallId), bool>,
    lost: u64,
}

impl TapFilter {
    pub fn takes_pod(&self, name: &str) -> bool {
        let Some(wanted) = &self.pod else { return true };
        fits(wanted, name) || name.split_once('/').is_some_and(|(_, name)| fits(wanted, name))
    }

    fn takes_service(&self, name: &crate::table::ServicePortName) -> bool {
        let Some(wanted) = &self.service else { return true };
        let of_namespace = format!("{}/{}", name.namespace, name.service);
        fits(wanted, &name.to_string()) || fits(wanted, &of_namespace) || fits(wanted, &name.service)
    }

    fn takes_path(&self, path: &str) -> bool {
        let Some(wanted) = &self.method else { return true };
        let (wanted, path) = (wanted.trim_start_matches('/'), path.trim_start_matches('/'));
        fits(wanted, path)
            || path.split_once('/').is_some_and(|(service, name)| fits(wanted, service) || fits(wanted, name))
    }
}

/// Whether a text is as a pattern says, in which each `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

impl Taps {
    /// How much is to be looked at in a pod.
    pub(super) fn depth(&self, pod: &str) -> Option<Depth> {
        let depths = self.sessions.iter().filter(|it| it.request.filter.takes_pod(pod)).map(|it| it.request.depth);
        depths.reduce(|a, b| Depth {
            share: a.share.max(b.share),
            metadata: a.metadata | b.metadata,
            frames: a.frames | b.frames,
        })
    }

    fn hear(&mut self, key: Key, pod: &Arc<str>, share: f32, event: &TapEvent, rng: &mut fastrand::Rng) {
        let at = SystemTime::now();
        for session in &mut self.sessions {
            if session.request.filter.takes_pod(pod) && session.wants(key, share, event, rng) {
                session.tell(TapLine { pod: Arc::clone(pod), at, event: event.clone() });
            }
        }
    }
}

impl Session {
    /// `share`: of the calls that are looked at for all together.
    fn wants(&mut self, pod: Key, share: f32, event: &TapEvent, rng: &mut fastrand::Rng) -> bool {
        if let Some(call) = event.call()
            && self.last_before.get(&pod).is_some_and(|last| call <= *last)
        {
            return false;
        }
        let TapRequest { filter, depth, .. } = &self.request;
        let mut judge = |service, path: &str| {
            filter.takes_service(service) && filter.takes_path(path) && rng.f32() * share <= depth.share
        };
        match event {
            TapEvent::Request { call, service, path, .. } => {
                let wanted = judge(service, path);
                self.judged.insert((pod, *call), wanted);
                wanted && depth.metadata
            }
            TapEvent::Response { call, .. } | TapEvent::Trailers { call, .. } => {
                depth.metadata && self.judged.get(&(pod, *call)) == Some(&true)
            }
            TapEvent::End(record) => {
                self.judged.remove(&(pod, record.call)).unwrap_or_else(|| judge(&record.service, &record.path))
            }
            TapEvent::Frame(frame) => {
                let whole = filter.service.is_none() && filter.method.is_none();
                let wanted = frame.call.map_or(whole, |call| self.judged.get(&(pod, call)).copied().unwrap_or(whole));
                depth.frames && wanted
            }
            TapEvent::Lost(_) => true,
        }
    }

    fn tell(&mut self, line: TapLine) {
        if self.lost > 0 {
            let lost = TapLine { pod: Arc::clone(&line.pod), at: line.at, event: TapEvent::Lost(self.lost) };
            if self.request.sink.try_send(lost).is_ok() {
                self.lost = 0;
            }
        }
        if let Err(TrySendError::Full(_)) = self.request.sink.try_send(line) {
            self.lost += 1;
        }
    }
}

impl Worker {
    pub(super) fn begin_tap(&mut self, request: TapRequest) {
        let last = |(key, pod): (Key, &PodState)| Some((key, pod.splitter.as_ref()?.last_tapped()?));
        let last_before = self.pods.iter().filter_map(last).collect();
        self.taps.sessions.push(Session { request, last_before, judged: HashMap::new(), lost: 0 });
        self.set_taps();
    }

    /// Those who look no more are forgotten.
    pub(super) fn prune_taps(&mut self) {
        let before = self.taps.sessions.len();
        self.taps.sessions.retain(|session| !session.request.sink.is_closed());
        if self.taps.sessions.len() < before {
            self.set_taps();
        }
    }

    fn set_taps(&mut self) {
        for key in self.pods.keys(|pod| pod.splitter.is_some()) {
            self.set_tap(key);
        }
    }

    /// To be called for a splitter that is new.
    pub(super) fn set_tap(&mut self, key: Key) {
        let Some(pod) = self.pods.get_mut(key) else { return };
        let depth = self.taps.depth(&pod.name);
        pod.frames_tapped = depth.is_some_and(|depth| depth.frames);
        if let Some(splitter) = &mut pod.splitter {
            splitter.tap(depth);
        }
    }

    /// Passes on what happened in a visit.
    pub(super) fn tell_taps(&mut self, key: Key) {
        if self.taps.sessions.is_empty() {
            return;
        }
        let Some(pod) = self.pods.get_mut(key) else { return };
        let share = self.taps.depth(&pod.name).map_or(1.0, |depth| depth.share);
        let Some(splitter) = &mut pod.splitter else { return };
        let mut tell = |event| self.taps.hear(key, &pod.name, share, &event, &mut self.io.rng);
        let mut ends = Vec::new();
        while let Some(event) = splitter.poll_tap() {
            // A call's last frames leave when it has ended already; who reads wants them before its end.
            match event {
                TapEvent::End(_) => ends.push(event),
                event => tell(event),
            }
        }
        ends.into_iter().for_each(tell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_with_stars_wherever_they_are() {
        for (pattern, text, fit) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*b", "aba", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
    }

    #[test]
    fn a_filter_takes_whole_names_and_their_parts() {
        let name =
            crate::table::ServicePortName { namespace: "shop".into(), service: "cart".into(), port: "grpc".into() };
        let filter = |pod: &str, service: &str, method: &str| {
            let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            TapFilter { pod: said(pod), service: said(service), method: said(method) }
        };
        for service in ["", "cart", "shop/cart", "shop/cart:grpc", "shop/*", "c*"] {
            assert!(filter("", service, "").takes_service(&name), "{service}");
        }
        assert!(!filter("", "car", "").takes_service(&name));
        for method in ["", "shop.Cart/Add", "/shop.Cart/Add", "shop.Cart", "Add", "shop.*"] {
            assert!(filter("", "", method).takes_path("/shop.Cart/Add"), "{method}");
        }
        assert!(!filter("", "", "Cart").takes_path("/shop.Cart/Add"));
        for pod in ["", "web-1", "shop/web-1", "web-*", "shop/*"] {
            assert!(filter(pod, "", "").takes_pod("shop/web-1"), "{pod}");
        }
        assert!(!filter("web", "", "").takes_pod("shop/web-1"));
    }
}

//! The limits that have a name on the command line: `NAME=VALUE` in, a changed [`Limits`] or the cure out. The table is
//! what `--help` and the README show.

use std::ops::RangeInclusive;

use super::Limits;
use crate::splitter::frame::{DEFAULT_WINDOW, MAX_WINDOW};

/// A limit that can be set.
pub struct Named {
    pub name: &'static str,
    /// What may be said, for one alone; [`Limits::validated`] looks at all together.
    pub range: RangeInclusive<u64>,
    pub what: &'static str,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

/// Name, range, field, meaning.
macro_rules! named {
    ($($name:literal, $range:expr, $($field:ident).+, $what:literal;)*) => {
        &[$(Named {
            name: $name,
            range: $range,
            what: $what,
            get: |limits| limits.$($field).+ as u64,
            // Within the range, which the field's type holds.
            set: |limits, value| limits.$($field).+ = value as _,
        }),*]
    };
}

const WINDOW: RangeInclusive<u64> = DEFAULT_WINDOW as u64..=MAX_WINDOW as u64;
/// Most that a size may be; a pod's memory is worth less than that anyway.
const GIB: u64 = 1 << 30;
const MILLION: u64 = 1_000_000;

/// All of them, in the order in which they are shown.
pub const NAMED: &[Named] = named![
    "resets", 0..=MILLION, floods.resets, "requests that the client ends within 10 ms and without an answer, a second";
    "stream-errors", 0..=MILLION, floods.stream_errors, "stream errors that the peer makes, a second";
    "pings", 0..=MILLION, floods.pings, "PING, a second";
    "settings", 1..=MILLION, floods.settings, "SETTINGS, a second";
    "empty-data", 0..=MILLION, floods.empty_data, "DATA with no payload and no END_STREAM, a second";
    "priorities", 0..=MILLION, floods.priorities, "PRIORITY and frames of unknown types, a second";
    "window-updates", 100..=MILLION, floods.window_updates, "WINDOW_UPDATE, a second";
    "large-headers", 0..=MILLION, floods.large_heads, "requests beyond header-list or header-fields, a second";
    "new-fields", 100..=MILLION, floods.new_fields, "new header fields beyond 32 of a request, a second; more wait";
    "client-streams", 1..=MILLION, client_streams, "streams open on a client's connection; one more is refused";
    "pod-streams", 1..=MILLION, pod_streams, "streams open on all clients' connections of a pod; one more is refused";
    "header-list", 1_024..=16 << 20, header_list, "bytes of a header list (RFC 9113 §6.5.2); larger: RESOURCE_EXHAUSTED";
    "header-fields", 16..=MILLION, header_fields, "fields of a header list; more: RESOURCE_EXHAUSTED";
    "header-block", 1_024..=16 << 20, header_block, "bytes of a header block, encoded; larger ends the connection";
    "continuations", 1..=10_000, continuations, "CONTINUATION frames of a header block; more end the connection";
    "output-limit", 1 << 20..=GIB, output_limit, "bytes of responses that a client leaves unread; more end its connection";
    "stream-window", WINDOW, stream_window, "bytes of a stream that may wait for their receiver";
    "connection-window", WINDOW, connection_window, "bytes of a connection that may wait, once the pod is over its budget";
    "pod-budget", 65_536..=GIB, pod_budget, "bytes that may wait in a pod before its senders are slowed";
    "replay-stream", 0..=GIB, replay_stream, "bytes of a request kept to send it to another endpoint";
    "replay-pod", 0..=GIB, replay_pod, "the same, of all requests of a pod";
    "waiting-heads", 65_536..=GIB, waiting_heads, "bytes of header lists that wait in a pod; beyond, streams are refused";
    "endpoint-connections", 1..=1_000, connections_per_endpoint, "connections of a pod to an endpoint that limits streams";
    "endpoint-idle", 1..=86_400, idle_seconds, "seconds that a connection to an endpoint is kept without streams";
    "attempts", 1..=100, attempts, "endpoints tried for a request";
];

impl Named {
    pub fn default_value(&self) -> u64 {
        (self.get)(&Limits::default())
    }
}

/// `NAME=VALUE` as it was said, checked by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSetting {
    /// In [`NAMED`].
    index: usize,
    value: u64,
}

impl std::str::FromStr for LimitSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, value)) = text.split_once('=') else {
            return Err("write NAME=VALUE, such as client-streams=500".into());
        };
        let Some(index) = NAMED.iter().position(|named| named.name == name.trim()) else {
            let names: Vec<&str> = NAMED.iter().map(|named| named.name).collect();
            return Err(format!("there is no limit {name:?}; there are {}", names.join(", ")));
        };
        let range = &NAMED[index].range;
        match value.trim().parse() {
            Ok(value) if range.contains(&value) => Ok(Self { index, value }),
            _ => Err(format!("give a whole number from {} to {}", range.start(), range.end())),
        }
    }
}

impl Limits {
    /// The defaults with these changes, of which the last on a limit wins; or what is wrong with them together.
    pub fn with(settings: &[LimitSetting]) -> Result<Self, String> {
        let mut limits = Self::default();
        for LimitSetting { index, value } in settings {
            (NAMED[*index].set)(&mut limits, *value);
        }
        limits.validated()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bound;
    use super::*;

    fn setting(text: &str) -> Result<LimitSetting, String> {
        text.parse()
    }

    #[test]
    fn a_limit_is_set_by_its_name_and_the_last_word_wins() {
        let settings = ["pings=5", "header-list=2048", "pings=7"].map(|text| setting(text).unwrap());
        let limits = Limits::with(&settings).unwrap();
        assert_eq!((limits.floods.pings, limits.header_list), (7, 2048));
        assert_eq!(limits.attempts, Limits::default().attempts);
    }

    #[test]
    fn bad_settings_name_what_there_is_and_what_is_allowed() {
        for (text, cure) in [
            ("pings", "NAME=VALUE"),
            ("pongs=5", "there are resets, stream-errors, pings"),
            ("pings=many", "from 0 to 1000000"),
            ("client-streams=0", "from 1 to 1000000"),
            ("stream-window=65534", "from 65535 to 2147483647"),
        ] {
            let error = setting(text).unwrap_err();
            assert!(error.contains(cure), "{error}");
        }
        let error = Limits::with(&[setting("stream-window=2000000").unwrap()]).unwrap_err();
        assert!(error.contains("connection-window"), "{error}");
    }

    #[test]
    fn each_limit_holds_its_own_value_and_its_default_is_allowed() {
        for named in NAMED {
            assert!(named.range.contains(&named.default_value()), "{}", named.name);
            let mut limits = Limits::default();
            (named.set)(&mut limits, *named.range.end());
            assert_eq!((named.get)(&limits), *named.range.end(), "{}", named.name);
            let others = |limits: &Limits| -> Vec<u64> {
                NAMED.iter().filter(|other| other.name != named.name).map(|other| (other.get)(limits)).collect()
            };
            assert_eq!(others(&limits), others(&Limits::default()), "{}", named.name);
        }
    }

    #[test]
    fn what_is_counted_bears_the_name_of_its_limit() {
        for bound in Bound::ALL {
            assert!(NAMED.iter().any(|named| named.name == bound.name()), "{bound:?}");
        }
    }

    #[test]
    fn the_readme_shows_all_limits() {
        let readme = include_str!("../../../../README.md");
        for named in NAMED {
            let line = format!("| `{}` | {} | {} |", named.name, named.default_value(), named.what);
            assert!(readme.contains(&line), "missing in README.md, Limits:\n{line}");
        }
        let section = readme.split("\n## ").find(|section| section.starts_with("Limits\n")).unwrap();
        let lines = section.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(lines, NAMED.len(), "README.md, Limits: a line too many");
    }
}

//! What bounds one pod's HTTP/2 world. All sizes in bytes, all in one place, validated once. Which of them have a name
//! on the command line is in `named`; how often each was reached is counted in [`Limited`].

mod named;

use std::time::Duration;

use super::frame::{DEFAULT_MAX_FRAME, DEFAULT_WINDOW, MAX_WINDOW};

pub use named::{LimitSetting, NAMED, Named};

/// Bounds of one splitter. The defaults suit a node's agent; [`Limits::validated`] refuses what cannot work.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Receive window of a stream: how much of one message stream may wait in us for its receiver.
    pub stream_window: u32,
    /// Receive window of a connection; above the stream's, so that one stalled stream stops no other.
    pub connection_window: u32,
    /// Payload that may wait in the whole pod before senders get no more connection credit.
    pub pod_budget: usize,
    /// No DATA is added to a connection's output beyond this; what waits keeps its sender without credit.
    pub output_high: usize,
    /// A connection whose peer leaves this much output unread is not read from until it takes some.
    pub output_stop: usize,
    /// A client that leaves more than this unread when yet another response's head comes for it is given up.
    pub output_limit: usize,
    /// Streams a client may have open on one connection (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub client_streams: u32,
    /// Streams that all clients of a pod together may have open: each is a kilobyte of ours.
    pub pod_streams: u32,
    /// Largest header list, as RFC 9113 §6.5.2 counts (SETTINGS_MAX_HEADER_LIST_SIZE); larger: RESOURCE_EXHAUSTED.
    pub header_list: usize,
    /// Fields in a header list.
    pub header_fields: usize,
    /// Encoded header block, CONTINUATIONs included; larger ends the connection, since it would have to be kept to
    /// stay in step with the peer's HPACK table.
    pub header_block: usize,
    /// CONTINUATION frames in a block.
    pub continuations: u32,
    /// Connections to one endpoint, opened when those there are at the endpoint's MAX_CONCURRENT_STREAMS.
    pub connections_per_endpoint: usize,
    /// Endpoints tried for one stream before it fails.
    pub attempts: u32,
    /// Request bytes kept per stream for a replay on another endpoint.
    pub replay_stream: usize,
    /// Request bytes kept for replays in the whole pod.
    pub replay_pod: usize,
    /// Header lists that wait in the whole pod, for their endpoint or for a replay. From half of it on none is kept for a
    /// replay, beyond it streams are refused: no window holds header blocks back.
    pub waiting_heads: usize,
    /// Requests wait this long for an endpoint that is being dialled, if another one is better.
    pub dial_patience: Duration,
    /// An endpoint that accepted and sends no SETTINGS for this long is given up.
    pub settings_timeout: Duration,
    /// An endpoint connection without streams is closed after so many seconds.
    pub idle_seconds: u32,
    /// How long a draining connection waits for the client's PING acknowledgement before the final GOAWAY.
    pub drain_ping: Duration,
    /// Per connection and second: frames that cost us work and their sender nothing.
    pub floods: Floods,
}

/// How many of each a connection may send in one second; one more, and it is not read for a tenth of a second. Each is
/// above what any client does for long, and far below what hurts.
#[derive(Clone, Debug)]
pub struct Floods {
    /// Requests that the client ended within 10 ms and without an answer (CVE-2023-44487, CVE-2025-8671).
    pub resets: u32,
    /// Stream errors: RST_STREAM that the peer made us send, streams beyond `client_streams` included.
    pub stream_errors: u32,
    pub pings: u32,
    pub settings: u32,
    /// DATA frames without payload that do not end a stream.
    pub empty_data: u32,
    /// Frames of unknown types, too.
    pub priorities: u32,
    pub window_updates: u32,
    /// Header lists of a client that are beyond `header_list` or `header_fields`: each is decoded to its end for nothing.
    pub large_heads: u32,
    /// Header fields of a client's requests that its table did not have, beyond the 32 that a request may have freely.
    pub new_fields: u32,
}

/// A bound that a peer can run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    // The connection was not read for a tenth of a second.
    Resets,
    StreamErrors,
    Pings,
    Settings,
    EmptyData,
    Priorities,
    WindowUpdates,
    LargeHeads,
    // It was not read for as long as its requests were beyond.
    NewFields,
    // The stream was refused.
    ClientStreams,
    PodStreams,
    HeaderList,
    WaitingHeads,
    // The connection was ended.
    HeaderBlock,
    Continuations,
    OutputLimit,
}

impl Bound {
    pub const ALL: [Bound; 16] = [
        Bound::Resets,
        Bound::StreamErrors,
        Bound::Pings,
        Bound::Settings,
        Bound::EmptyData,
        Bound::Priorities,
        Bound::WindowUpdates,
        Bound::LargeHeads,
        Bound::NewFields,
        Bound::ClientStreams,
        Bound::PodStreams,
        Bound::HeaderList,
        Bound::WaitingHeads,
        Bound::HeaderBlock,
        Bound::Continuations,
        Bound::OutputLimit,
    ];

    /// The name of the limit, as in [`NAMED`].
    pub fn name(self) -> &'static str {
        match self {
            Bound::Resets => "resets",
            Bound::StreamErrors => "stream-errors",
            Bound::Pings => "pings",
            Bound::Settings => "settings",
            Bound::EmptyData => "empty-data",
            Bound::Priorities => "priorities",
            Bound::WindowUpdates => "window-updates",
            Bound::LargeHeads => "large-headers",
            Bound::NewFields => "new-fields",
            Bound::ClientStreams => "client-streams",
            Bound::PodStreams => "pod-streams",
            Bound::HeaderList => "header-list",
            Bound::WaitingHeads => "waiting-heads",
            Bound::HeaderBlock => "header-block",
            Bound::Continuations => "continuations",
            Bound::OutputLimit => "output-limit",
        }
    }
}

/// How often peers ran into each bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limited([u64; Bound::ALL.len()]);

impl Limited {
    pub fn get(&self, bound: Bound) -> u64 {
        self.0[bound as usize]
    }

    pub(super) fn count(&mut self, bound: Bound) {
        self.0[bound as usize] += 1;
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            pod_budget: 4 * 1024 * 1024,
            output_high: 96 * 1024,
            output_stop: 256 * 1024,
            output_limit: 4 * 1024 * 1024,
            client_streams: 10_000,
            pod_streams: 20_000,
            header_list: 64 * 1024,
            header_fields: 1_000,
            header_block: 256 * 1024,
            continuations: 64,
            connections_per_endpoint: 16,
            attempts: 8,
            replay_stream: 16 * 1024,
            replay_pod: 1024 * 1024,
            waiting_heads: 3 * 1024 * 1024,
            // A dial inside a zone, SETTINGS included, takes less than 10 ms, across continents 200 ms; what takes longer
            // has lost its SYN, which is repeated after 1 s.
            dial_patience: Duration::from_millis(250),
            settings_timeout: Duration::from_secs(5),
            idle_seconds: 300,
            drain_ping: Duration::from_secs(1),
            floods: Floods {
                // As many calls as clients are wont to have open, all cancelled as soon as they began. As many at once cost an
                // endpoint some milliseconds, and so the pod's other calls that wait there.
                resets: 250,
                stream_errors: 2_000,
                // grpc-go sends one with the first DATA after each answered one: thousands a second where the way is short.
                pings: 20_000,
                settings: 100,
                empty_data: 1_000,
                priorities: 10_000,
                window_updates: 200_000,
                large_heads: 20,
                new_fields: 20_000,
            },
        }
    }
}

impl Limits {
    /// An endpoint connection without streams is closed after this long.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_seconds.into())
    }

    /// Itself, or what is wrong with it.
    pub fn validated(self) -> Result<Self, String> {
        if self.stream_window < DEFAULT_WINDOW || self.stream_window > MAX_WINDOW {
            return Err(format!("stream-window {} is outside {DEFAULT_WINDOW}..={MAX_WINDOW}", self.stream_window));
        }
        if self.connection_window < self.stream_window || self.connection_window > MAX_WINDOW {
            return Err(format!(
                "connection-window {} is below stream-window {} or above {MAX_WINDOW}",
                self.connection_window, self.stream_window
            ));
        }
        if self.output_high < 2 * DEFAULT_MAX_FRAME
            || self.output_stop <= self.output_high
            || self.output_limit <= self.output_stop
        {
            return Err(format!(
                "output-limit {} is not above {}, or the bounds below it ({}, {}) do not rise from {} on",
                self.output_limit,
                self.output_stop,
                self.output_high,
                self.output_stop,
                2 * DEFAULT_MAX_FRAME
            ));
        }
        if self.client_streams == 0 || self.pod_streams == 0 || self.connections_per_endpoint == 0 || self.attempts == 0
        {
            return Err("client-streams, pod-streams, endpoint-connections and attempts are at least 1".into());
        }
        Ok(self)
    }
}

//! What bounds one pod's HTTP/2 world. All sizes in bytes, all in one place, validated once.

use std::time::Duration;

use super::frame::{DEFAULT_MAX_FRAME, DEFAULT_WINDOW, MAX_WINDOW};

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
    /// Requests wait this long for an endpoint that is being dialled, if another one is better.
    pub dial_patience: Duration,
    /// An endpoint that accepted and sends no SETTINGS for this long is given up.
    pub settings_timeout: Duration,
    /// An endpoint connection without streams is closed after this long.
    pub idle_timeout: Duration,
    /// How long a draining connection waits for the client's PING acknowledgement before the final GOAWAY.
    pub drain_ping: Duration,
    /// Per client connection and second: frames that cost us work and the client nothing.
    pub floods: Floods,
}

/// How many of each a connection may send in one second; more ends it with ENHANCE_YOUR_CALM. Each is far above what
/// any client does and far below what hurts.
#[derive(Clone, Debug)]
pub struct Floods {
    /// RST_STREAM received on streams without a response yet (CVE-2023-44487).
    pub resets: u32,
    /// RST_STREAM that the peer made us send (CVE-2025-8671).
    pub provoked_resets: u32,
    pub pings: u32,
    pub settings: u32,
    /// DATA frames without payload that do not end a stream.
    pub empty_data: u32,
    pub priorities: u32,
    pub window_updates: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            pod_budget: 8 * 1024 * 1024,
            output_high: 64 * 1024,
            output_stop: 256 * 1024,
            output_limit: 4 * 1024 * 1024,
            client_streams: 10_000,
            header_list: 64 * 1024,
            header_fields: 1_000,
            header_block: 256 * 1024,
            continuations: 64,
            connections_per_endpoint: 16,
            attempts: 8,
            replay_stream: 16 * 1024,
            replay_pod: 4 * 1024 * 1024,
            // A dial inside a zone, SETTINGS included, takes less than 10 ms, across continents 200 ms; what takes longer
            // has lost its SYN, which is repeated after 1 s.
            dial_patience: Duration::from_millis(250),
            settings_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            drain_ping: Duration::from_secs(1),
            floods: Floods {
                resets: 500,
                provoked_resets: 200,
                pings: 1_000,
                settings: 100,
                empty_data: 1_000,
                priorities: 10_000,
                window_updates: 200_000,
            },
        }
    }
}

impl Limits {
    /// Itself, or what is wrong with it.
    pub fn validated(self) -> Result<Self, String> {
        if self.stream_window < DEFAULT_WINDOW || self.stream_window > MAX_WINDOW {
            return Err(format!("stream window {} is outside {DEFAULT_WINDOW}..={MAX_WINDOW}", self.stream_window));
        }
        if self.connection_window < self.stream_window || self.connection_window > MAX_WINDOW {
            return Err(format!(
                "connection window {} is below the stream window {} or above {MAX_WINDOW}",
                self.connection_window, self.stream_window
            ));
        }
        if self.output_high < 2 * DEFAULT_MAX_FRAME
            || self.output_stop <= self.output_high
            || self.output_limit <= self.output_stop
        {
            return Err(format!(
                "output bounds {}, {} and {} must rise, the first from {} on",
                self.output_high,
                self.output_stop,
                self.output_limit,
                2 * DEFAULT_MAX_FRAME
            ));
        }
        if self.client_streams == 0 || self.connections_per_endpoint == 0 || self.attempts == 0 {
            return Err("streams, connections and attempts are at least 1".into());
        }
        Ok(self)
    }
}

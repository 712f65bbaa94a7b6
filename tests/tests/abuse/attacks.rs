//! The attacks by name, as `abuser` knows them, and the limits that the agent is to count each under.

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// At least one of these counts it; none: it breaks no limit, but is bounded by windows, turns, or the protocol.
    pub(crate) counted: &'static [&'static str],
}

const fn attack(name: &'static str, counted: &'static [&'static str]) -> Attack {
    Attack { name, counted }
}

/// Clients' scripts.
pub(crate) const BY_CLIENTS: &[Attack] = &[
    attack("rapid-reset", &["resets"]),
    attack("reset-in-bulk", &["resets"]),
    attack("made-you-reset", &["resets", "stream-errors"]),
    attack("continuation", &["continuations"]),
    attack("empty-continuation", &["continuations"]),
    attack("settings", &["settings"]),
    attack("ping", &["pings"]),
    attack("priority", &["priorities"]),
    attack("window-update", &["window-updates"]),
    attack("empty-data", &["empty-data"]),
    attack("padding", &[]),
    attack("unknown-frames", &["priorities"]),
    attack("hpack-bomb", &["large-headers"]),
    attack("hpack-churn", &["new-fields"]),
    attack("many-headers", &["large-headers"]),
    attack("huge-header", &["large-headers"]),
    attack("large-heads", &[]),
    attack("deaf-pings", &[]),
    attack("zero-window", &[]),
    attack("one-byte-window", &[]),
    attack("no-read", &[]),
    attack("silence", &[]),
    attack("half-open", &[]),
    attack("idle-streams", &[]),
    attack("churn", &[]),
    attack("drip", &[]),
];

/// Those that go for what the connections of one pod share.
pub(crate) const AMONG_NEIGHBOURS: &[&str] = &[
    "rapid-reset",
    "reset-in-bulk",
    "made-you-reset",
    "large-heads",
    "deaf-pings",
    "zero-window",
    "no-read",
    "idle-streams",
    "churn",
];

/// Endpoints' scripts.
pub(crate) const BY_ENDPOINTS: &[Attack] = &[
    attack("ping", &["pings"]),
    attack("settings", &["settings"]),
    attack("priority", &["priorities"]),
    attack("window-update", &[]),
    attack("garbage", &[]),
    attack("never-settings", &[]),
    attack("no-read", &[]),
    attack("reset-all", &[]),
    attack("refuse-all", &[]),
    attack("close", &[]),
    attack("continuation", &["continuations"]),
    attack("huge-headers", &["header-list"]),
    attack("interim", &[]),
    attack("empty-data", &["empty-data"]),
    attack("beyond-window", &[]),
];

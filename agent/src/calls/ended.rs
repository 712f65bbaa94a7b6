//! How a call ended, as its client hears it. In: a grpc-status, an HTTP status, the code of a reset. Out: the status that a
//! gRPC client reports. What it says of an endpoint is another matter: `balance::outcome`.

/// The names of grpc-status values (gRPC: statuscodes.md), at their numbers.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How HTTP statuses are counted: by their first digit.
pub const HTTP_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

const UNKNOWN: u8 = 2;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Grpc {
        /// Below 17.
        code: u8,
        /// An endpoint said so, in a grpc-status.
        said: bool,
    },
    /// Not gRPC: the HTTP status, 0 where there was none.
    Http(u16),
}

impl Ended {
    /// The client waited no longer.
    pub const CANCELLED: Self = Self::grpc(1);
    /// Nor would it have been right to.
    pub const DEADLINE_EXCEEDED: Self = Self::grpc(4);

    /// What nobody said in so many words.
    pub const fn grpc(code: u8) -> Self {
        Self::Grpc { code, said: false }
    }

    /// By the value of an endpoint's grpc-status; what is no status is UNKNOWN to clients.
    pub fn of_grpc(value: &[u8]) -> Self {
        Self::Grpc { code: code(value), said: true }
    }

    /// By the value of a grpc-status that the agent says itself.
    pub fn of_own(value: &[u8]) -> Self {
        Self::grpc(code(value))
    }

    /// By the HTTP status of a gRPC answer without a grpc-status (gRPC: http-grpc-status-mapping.md).
    pub fn of_http(status: u16) -> Self {
        Self::grpc(match status {
            400 => INTERNAL,
            401 => 16,
            403 => 7,
            404 => UNIMPLEMENTED,
            429 | 502 | 503 | 504 => 14,
            _ => UNKNOWN,
        })
    }

    /// By the code of an RST_STREAM that the client gets (gRPC: PROTOCOL-HTTP2.md, "Errors").
    pub fn of_reset(code: u32) -> Self {
        Self::grpc(match code {
            0x5 => UNKNOWN,
            0x7 => 14,
            0x8 => 1,
            0xb => RESOURCE_EXHAUSTED,
            0xc => 7,
            _ => INTERNAL,
        })
    }

    /// Whether it speaks of something that is broken or too slow, and not of what was asked for.
    pub fn is_failure(self) -> bool {
        match self {
            // An application that says RESOURCE_EXHAUSTED has a quota; else it is a limit on the way.
            Ended::Grpc { code: RESOURCE_EXHAUSTED, said } => !said,
            Ended::Grpc { code, .. } => matches!(code, UNKNOWN | 4 | INTERNAL | 14 | 15),
            Ended::Http(status) => status >= 500,
        }
    }

    /// Whether it shows that there is such a method.
    pub(super) fn shows_a_method(self) -> bool {
        matches!(self, Ended::Grpc { code, said: true } if code != UNIMPLEMENTED)
    }

    /// The status' name, or the HTTP status' number.
    pub fn name(self) -> String {
        match self {
            Ended::Grpc { code, .. } => code_name(code).to_owned(),
            Ended::Http(0) => "none".to_owned(),
            Ended::Http(status) => status.to_string(),
        }
    }
}

fn code(value: &[u8]) -> u8 {
    match value {
        [digit @ b'0'..=b'9'] => digit - b'0',
        [b'1', digit @ b'0'..=b'6'] => 10 + digit - b'0',
        _ => UNKNOWN,
    }
}

/// The name of a grpc-status.
pub fn code_name(code: u8) -> &'static str {
    CODES.get(usize::from(code)).copied().unwrap_or("UNKNOWN")
}

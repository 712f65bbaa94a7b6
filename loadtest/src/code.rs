//! gRPC status codes: number, name, and what an HTTP status or an HTTP/2 error code means where `grpc-status` is
//! missing (the mappings of the gRPC over HTTP/2 specification).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NAMES: [&str; 17] = [
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

/// How many codes there are; every [`Code::index`] is below.
pub const COUNT: usize = NAMES.len();

/// One of the 17 gRPC status codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u8);

impl Code {
    pub const OK: Self = Self(0);
    pub const CANCELLED: Self = Self(1);
    pub const UNKNOWN: Self = Self(2);
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const PERMISSION_DENIED: Self = Self(7);
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    pub const UNIMPLEMENTED: Self = Self(12);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
    pub const DATA_LOSS: Self = Self(15);
    pub const UNAUTHENTICATED: Self = Self(16);

    /// 0 for OK, 14 for UNAVAILABLE, and so on.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The code at an [`index`](Self::index); UNKNOWN for what is none.
    pub fn from_index(index: usize) -> Self {
        u8::try_from(index).ok().filter(|&n| usize::from(n) < COUNT).map_or(Self::UNKNOWN, Self)
    }

    /// The value of a `grpc-status` field; what is no number or no known code is UNKNOWN.
    pub fn from_header(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map_or(Self::UNKNOWN, Self::from_index)
    }

    /// What an answer without `grpc-status` means, by its HTTP status.
    pub fn from_http(status: http::StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::INTERNAL,
            401 => Self::UNAUTHENTICATED,
            403 => Self::PERMISSION_DENIED,
            404 => Self::UNIMPLEMENTED,
            429 | 502..=504 => Self::UNAVAILABLE,
            _ => Self::UNKNOWN,
        }
    }

    /// What the end of a stream by an error means: by its reset code, or a connection that broke.
    pub fn from_h2(error: &h2::Error) -> Self {
        if !error.is_reset() {
            return Self::UNAVAILABLE;
        }
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => Self::UNAVAILABLE,
            Some(h2::Reason::CANCEL) => Self::CANCELLED,
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::RESOURCE_EXHAUSTED,
            Some(h2::Reason::INADEQUATE_SECURITY) => Self::PERMISSION_DENIED,
            _ => Self::INTERNAL,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES[self.index()])
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Code {
    type Err = String;

    /// `unavailable`, `UNAVAILABLE`, `deadline-exceeded`, or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase().replace('-', "_");
        let by_name = NAMES.iter().position(|known| *known == name);
        by_name.or_else(|| text.parse().ok().filter(|&n| n < COUNT)).map(Self::from_index).ok_or_else(|| {
            format!("\"{text}\" is no gRPC status; write a name such as unavailable or a number from 0 to 16")
        })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_by_name_in_any_spelling_or_by_number() {
        for text in ["unavailable", "UNAVAILABLE", "14"] {
            assert_eq!(text.parse(), Ok(Code::UNAVAILABLE));
        }
        assert_eq!("deadline-exceeded".parse(), Ok(Code::DEADLINE_EXCEEDED));
        assert!("17".parse::<Code>().is_err());
        assert!("broken".parse::<Code>().unwrap_err().contains("unavailable"));
    }

    #[test]
    fn an_unreadable_status_is_unknown_and_never_ok() {
        for value in [b"".as_slice(), b"17", b"-1", b"x", b"\xff"] {
            assert_eq!(Code::from_header(value), Code::UNKNOWN);
        }
        assert_eq!(Code::from_header(b"0"), Code::OK);
        assert_eq!(Code::from_http(http::StatusCode::SERVICE_UNAVAILABLE), Code::UNAVAILABLE);
        assert_eq!(Code::from_http(http::StatusCode::OK), Code::UNKNOWN);
    }
}

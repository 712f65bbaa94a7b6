//! What an ended call says of the endpoint that had it: the one place where that is decided.
//!
//! In: a grpc-status, an HTTP status or a reset's code. Out: an [`Outcome`]. It counts nothing.
//!
//! | what the call ended with | outcome | since |
//! | --- | --- | --- |
//! | 0 OK, 3 INVALID_ARGUMENT, 5 NOT_FOUND, 6 ALREADY_EXISTS, 7 PERMISSION_DENIED, 9 FAILED_PRECONDITION, 10 ABORTED, 11 OUT_OF_RANGE, 12 UNIMPLEMENTED, 16 UNAUTHENTICATED | answered | the application looked at the call and said what it thinks of it; another endpoint would say the same |
//! | 8 RESOURCE_EXHAUSTED | answered | quotas and too large messages are the caller's; real overload shows in latency and open calls |
//! | 14 UNAVAILABLE | down | this is what it means: no service here and now |
//! | 2 UNKNOWN, 13 INTERNAL, 15 DATA_LOSS | error | an exception in a handler; but a bad request causes it everywhere, so it counts only where others have fewer |
//! | 4 DEADLINE_EXCEEDED, from the endpoint, or the client reset the call unanswered when its grpc-timeout was over | error | too slow; but so may be what stands behind all endpoints |
//! | 1 CANCELLED, and a reset by the client before its deadline | unknown | nobody waited for the answer |
//! | another number | error | a client makes UNKNOWN of it |
//! | gRPC without a grpc-status | as the HTTP status, 200: error | gRPC clients map them (http-grpc-status-mapping.md) |
//! | HTTP 502, 503, 504 (429 for gRPC) | down | what proxies say for an application that does not answer |
//! | HTTP 500 and other 5xx | error | as 13 |
//! | other HTTP | answered | as 5 |
//! | RST_STREAM REFUSED_STREAM | down | it takes no calls now |
//! | RST_STREAM NO_ERROR before the answer is whole, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, … | error | a client makes INTERNAL of it |
//! | RST_STREAM CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY | answered | CANCELLED, RESOURCE_EXHAUSTED and PERMISSION_DENIED to a client |
//! | a malformed answer | error | as INTERNAL |
//! | the connection broke with calls on it | down, once for all of them | the process is gone, or the way to it |
//! | the dial failed, or GOAWAY | none of these | a dial has its own count (`reach`); GOAWAY is the usual end of a connection |

/// How a call ended, as far as it concerns its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint works.
    Answered,
    /// It says itself, or shows, that it does not.
    Down,
    /// A failure that may be the endpoint's or the call's: counts where other endpoints have fewer.
    Error,
    /// Says nothing.
    Unknown,
}

impl Outcome {
    /// Whether its latency would be taken for speed.
    pub fn is_failure(self) -> bool {
        matches!(self, Outcome::Down | Outcome::Error)
    }

    /// By the value of grpc-status.
    pub fn of_grpc(status: &[u8]) -> Self {
        match status {
            b"0" | b"3" | b"5" | b"6" | b"7" | b"8" | b"9" | b"10" | b"11" | b"12" | b"16" => Outcome::Answered,
            b"1" => Outcome::Unknown,
            b"14" => Outcome::Down,
            _ => Outcome::Error,
        }
    }

    /// By the HTTP status, where there is no grpc-status.
    pub fn of_http(status: u16, grpc: bool) -> Self {
        match status {
            502..=504 => Outcome::Down,
            429 if grpc => Outcome::Down,
            500..=599 => Outcome::Error,
            200..=299 if grpc => Outcome::Error,
            _ => Outcome::Answered,
        }
    }

    /// By the code of the endpoint's RST_STREAM (RFC 9113 §7; gRPC: PROTOCOL-HTTP2.md, "Errors").
    pub fn of_reset(code: u32) -> Self {
        match code {
            0x7 => Outcome::Down,
            0x8 | 0xb | 0xc => Outcome::Answered,
            _ => Outcome::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_speaks_against_an_endpoint_and_not_found_does_not() {
        assert_eq!(Outcome::of_grpc(b"14"), Outcome::Down);
        for answered in ["0", "3", "5", "6", "7", "8", "9", "10", "11", "12", "16"] {
            assert_eq!(Outcome::of_grpc(answered.as_bytes()), Outcome::Answered, "{answered}");
        }
        for error in ["2", "4", "13", "15", "17", "", "x", "00"] {
            assert_eq!(Outcome::of_grpc(error.as_bytes()), Outcome::Error, "{error}");
        }
        assert_eq!(Outcome::of_grpc(b"1"), Outcome::Unknown);
    }

    #[test]
    fn an_http_status_means_for_grpc_what_clients_make_of_it() {
        for (status, grpc, outcome) in [
            (200, false, Outcome::Answered),
            (200, true, Outcome::Error),
            (404, true, Outcome::Answered),
            (429, true, Outcome::Down),
            (429, false, Outcome::Answered),
            (500, false, Outcome::Error),
            (503, true, Outcome::Down),
            (503, false, Outcome::Down),
        ] {
            assert_eq!(Outcome::of_http(status, grpc), outcome, "{status} {grpc}");
        }
    }

    #[test]
    fn a_refused_stream_is_down_and_a_cancelled_one_is_not() {
        assert_eq!(Outcome::of_reset(0x7), Outcome::Down);
        assert_eq!(Outcome::of_reset(0x8), Outcome::Answered);
        assert_eq!(Outcome::of_reset(0x2), Outcome::Error);
        assert_eq!(Outcome::of_reset(0xffff_ffff), Outcome::Error);
    }
}

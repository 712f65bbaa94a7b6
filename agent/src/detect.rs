//! Pure: which protocol does a new connection speak? The client's (and, where the client is silent, a tentative
//! endpoint's) first bytes in, what to do next out. HTTP/2 is known by its client preface (RFC 9113 §3.4) alone;
//! everything else, TLS and HTTP/1 included, is opaque. It reads no socket and keeps no bytes.

use std::time::{Duration, Instant};

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame header (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;
/// A server's first SETTINGS is a handful of entries of 6 bytes; a longer one is not believed to be HTTP/2.
const SETTINGS_MAX: usize = 64 * 6;
/// Frame type of SETTINGS (RFC 9113 §6.5).
const SETTINGS: u8 = 4;

/// What bytes at the beginning of a connection prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Http2,
    Opaque,
    NeedMore,
}

/// Judges all that a client has sent so far.
pub fn client(bytes: &[u8]) -> Verdict {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] != PREFACE[..common] {
        Verdict::Opaque
    } else if common == PREFACE.len() {
        Verdict::Http2
    } else {
        Verdict::NeedMore
    }
}

/// Whether a client's first bytes are those of TLS: a handshake record (RFC 8446 §5.1).
pub fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16] | [0x16, 3, ..])
}

/// Judges all that a server has sent so far, before its client said anything: `Http2` if it begins with the header of
/// a SETTINGS frame that is no acknowledgement. Such a server may still be something else.
pub fn server(bytes: &[u8]) -> Verdict {
    let fits = |at: usize, wanted: u8| bytes.get(at).is_none_or(|&byte| byte == wanted);
    let short = fits(0, 0) && bytes.get(1).is_none_or(|&byte| usize::from(byte) <= SETTINGS_MAX >> 8);
    // Type, flags, then the reserved bit and stream 0.
    if !short || !fits(3, SETTINGS) || (4..FRAME_HEADER).any(|at| !fits(at, 0)) {
        return Verdict::Opaque;
    }
    if let Some(&[high, low]) = bytes.get(1..3) {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > SETTINGS_MAX || length % 6 != 0 {
            return Verdict::Opaque;
        }
    }
    if bytes.len() < FRAME_HEADER { Verdict::NeedMore } else { Verdict::Http2 }
}

/// How long silence is taken to mean something.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A client that has sent nothing for this long may wait for the server to speak first.
    pub silence: Duration,
    /// A client that stops within the preface for this long does not speak HTTP/2.
    pub partial: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_millis(100), partial: Duration::from_secs(5) }
    }
}

/// What to do with a connection under detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on as before.
    Wait,
    /// Dial an endpoint tentatively: the server may be the one who speaks first.
    Dial,
    /// The client speaks HTTP/2; a tentative endpoint connection is given up.
    Http2,
    /// Relay what both sides have sent, for good.
    Opaque,
}

/// One connection under detection.
#[derive(Debug)]
pub struct Detection {
    patience: Patience,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nothing heard from the client yet.
    Silent { since: Instant },
    /// Nothing heard, and an endpoint is dialled or connected.
    Tentative,
    /// The preface has begun.
    Partial { since: Instant },
}

impl Detection {
    pub fn new(now: Instant, patience: Patience) -> Self {
        Self { patience, stage: Stage::Silent { since: now } }
    }

    /// The client has sent more; `all` is everything since it connected.
    pub fn handle_client(&mut self, now: Instant, all: &[u8]) -> Step {
        match client(all) {
            Verdict::Http2 => Step::Http2,
            Verdict::Opaque => Step::Opaque,
            Verdict::NeedMore => {
                self.stage = Stage::Partial { since: now };
                Step::Wait
            }
        }
    }

    /// The tentative endpoint has sent more; `all` is everything since it was connected.
    pub fn handle_server(&mut self, all: &[u8]) -> Step {
        match server(all) {
            // HTTP/2 servers may speak first too: the client's bytes decide.
            Verdict::Http2 | Verdict::NeedMore => Step::Wait,
            Verdict::Opaque => Step::Opaque,
        }
    }

    /// Either side has ended its sending direction: nothing that comes could still be an HTTP/2 connection.
    pub fn handle_eof(&mut self) -> Step {
        Step::Opaque
    }

    /// When `handle_deadline` is due. None: both sides are silent, which may last for ever.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Silent { since } => Some(since + self.patience.silence),
            Stage::Tentative => None,
            Stage::Partial { since } => Some(since + self.patience.partial),
        }
    }

    /// Calls that come early are harmless.
    pub fn handle_deadline(&mut self, now: Instant) -> Step {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Step::Wait;
        }
        match self.stage {
            Stage::Silent { .. } => {
                self.stage = Stage::Tentative;
                Step::Dial
            }
            Stage::Partial { .. } => Step::Opaque,
            Stage::Tentative => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

    fn detection() -> (Detection, Instant, Patience) {
        let (now, patience) = (Instant::now(), Patience::default());
        (Detection::new(now, patience), now, patience)
    }

    #[test]
    fn the_preface_is_known_at_its_last_byte_and_not_before() {
        for length in 0..PREFACE.len() {
            assert_eq!(client(&PREFACE[..length]), Verdict::NeedMore, "{length} bytes");
        }
        assert_eq!(client(PREFACE), Verdict::Http2);
        assert_eq!(client(&[PREFACE.as_slice(), b"\0\0\0"].concat()), Verdict::Http2);
    }

    #[test]
    fn a_byte_that_diverges_from_the_preface_makes_the_connection_opaque_wherever_it_is() {
        for at in 0..PREFACE.len() {
            let mut bytes = PREFACE.to_vec();
            bytes[at] ^= 0x20;
            assert_eq!(client(&bytes[..=at]), Verdict::Opaque, "byte {at}");
            assert_eq!(client(&bytes), Verdict::Opaque, "byte {at}, whole preface");
        }
    }

    #[test]
    fn http1_and_tls_are_opaque_at_the_byte_that_tells() {
        assert_eq!(client(b"G"), Verdict::Opaque);
        assert_eq!(client(b"P"), Verdict::NeedMore);
        assert_eq!(client(b"PO"), Verdict::Opaque);
        assert_eq!(client(b"PRI * HTTP/1.1\r\n"), Verdict::Opaque);
        assert_eq!(client(&[0x16]), Verdict::Opaque);
        assert!(is_tls(&[0x16]) && is_tls(&[0x16, 3, 1, 0]) && !is_tls(&[0x16, 4]) && !is_tls(b"G") && !is_tls(b""));
    }

    #[test]
    fn a_settings_frame_is_known_by_its_header_one_byte_at_a_time() {
        let settings = [&[0, 0, 12, 4, 0, 0, 0, 0, 0][..], &[0; 12]].concat();
        for length in 0..FRAME_HEADER {
            assert_eq!(server(&settings[..length]), Verdict::NeedMore, "{length} bytes");
        }
        assert_eq!(server(&settings[..FRAME_HEADER]), Verdict::Http2);
        assert_eq!(server(&settings), Verdict::Http2);
        assert_eq!(server(EMPTY_SETTINGS), Verdict::Http2);
    }

    #[test]
    fn a_server_greeting_is_opaque_at_the_byte_that_tells() {
        assert_eq!(server(b"2"), Verdict::Opaque);
        assert_eq!(server(b"\0\0\x07"), Verdict::Opaque, "no multiple of 6");
        assert_eq!(server(b"\0\x02"), Verdict::Opaque, "too long");
        assert_eq!(server(b"\0\x01\xfe"), Verdict::Opaque, "510 is a multiple of 6, and too long");
        assert_eq!(server(b"\0\0\x06\x00"), Verdict::Opaque, "DATA");
        assert_eq!(server(b"\0\0\0\x04\x01"), Verdict::Opaque, "an acknowledgement");
        for at in 5..9 {
            let mut stream = EMPTY_SETTINGS.to_vec();
            stream[at] = 1;
            assert_eq!(server(&stream[..=at]), Verdict::Opaque, "a stream's id, byte {at}");
        }
    }

    #[test]
    fn a_preface_that_comes_byte_by_byte_is_waited_for() {
        let (mut detection, mut now, patience) = detection();
        for length in 1..PREFACE.len() {
            now += patience.partial - Duration::from_millis(1);
            assert_eq!(detection.handle_deadline(now), if length == 1 { Step::Dial } else { Step::Wait });
            assert_eq!(detection.handle_client(now, &PREFACE[..length]), Step::Wait);
        }
        assert_eq!(detection.handle_client(now, PREFACE), Step::Http2);
    }

    #[test]
    fn a_preface_that_stops_becomes_opaque_after_a_while() {
        let (mut detection, now, patience) = detection();
        assert_eq!(detection.handle_client(now, b"PRI"), Step::Wait);
        assert_eq!(detection.deadline(), Some(now + patience.partial));
        assert_eq!(detection.handle_deadline(now + patience.silence), Step::Wait);
        assert_eq!(detection.handle_deadline(now + patience.partial), Step::Opaque);
    }

    #[test]
    fn a_silent_client_gets_a_tentative_endpoint_once_and_then_unlimited_time() {
        let (mut detection, now, patience) = detection();
        assert_eq!(detection.handle_deadline(now), Step::Wait, "too early");
        assert_eq!(detection.handle_deadline(now + patience.silence), Step::Dial);
        assert_eq!(detection.deadline(), None);
        assert_eq!(detection.handle_deadline(now + Duration::from_secs(86_400)), Step::Wait);
    }

    #[test]
    fn a_server_that_greets_decides_and_one_that_sends_settings_does_not() {
        let (mut detection, now, patience) = detection();
        detection.handle_deadline(now + patience.silence);
        assert_eq!(detection.handle_server(EMPTY_SETTINGS), Step::Wait);
        assert_eq!(detection.handle_client(now, PREFACE), Step::Http2);
        assert_eq!(detection.handle_server(b"220 mail ESMTP\r\n"), Step::Opaque);
    }
}

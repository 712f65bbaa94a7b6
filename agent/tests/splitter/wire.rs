//! HTTP/2 frames by hand, independent of the splitter's own code: what a scripted peer writes, and what it reads.
//!
//! Header fields are written as literals. A name that begins with `!` is a never-indexed one, with `+` one that enters
//! the table; a field that was read as never-indexed has the `!` before its name.

use std::fmt;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITIZED: u8 = 0x20;

pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const SETTINGS_TIMEOUT: u32 = 4;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Whether a section or a body goes on.
pub const MORE: bool = false;
pub const END: bool = true;

pub type Fields<'a> = &'a [(&'a str, &'a str)];

/// A gRPC request's head.
pub const CALL: Fields<'static> = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/pkg.Svc/Do"),
    (":authority", "echo:50051"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
/// A request's head that is not gRPC.
pub const PLAIN: Fields<'static> = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "echo")];
/// A gRPC response's head.
pub const OK: Fields<'static> = &[(":status", "200"), ("content-type", "application/grpc")];
/// A successful call's trailers.
pub const DONE: Fields<'static> = &[("grpc-status", "0")];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

pub fn data(stream: u32, end: bool, body: &[u8]) -> Vec<u8> {
    frame(DATA, u8::from(end), stream, body)
}

pub fn padded_data(stream: u32, end: bool, body: &[u8], padding: u8) -> Vec<u8> {
    let payload = [&[padding][..], body, &vec![0; usize::from(padding)]].concat();
    frame(DATA, PADDED | u8::from(end), stream, &payload)
}

pub fn headers(stream: u32, end: bool, fields: Fields<'_>) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), stream, &block(fields))
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn settings(list: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        list.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn ping(flags: u8, opaque: &[u8; 8]) -> Vec<u8> {
    frame(PING, flags, 0, opaque)
}

pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// A header block of literals (RFC 7541 §6.2), names and values without Huffman.
pub fn block(fields: Fields<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        let (first, name) = match name.as_bytes() {
            [b'!', name @ ..] => (0x10, name),
            [b'+', name @ ..] => (0x40, name),
            name => (0x00, name),
        };
        out.push(first);
        string(&mut out, name);
        string(&mut out, value.as_bytes());
    }
    out
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() < 127 {
        out.push(bytes.len() as u8);
    } else {
        out.push(127);
        let mut rest = bytes.len() - 127;
        while rest >= 128 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend(bytes);
}

/// What a scripted peer reads. Header blocks are decoded, CONTINUATIONs joined.
#[derive(Clone, PartialEq)]
pub enum Got {
    Headers {
        stream: u32,
        end: bool,
        fields: Vec<(String, String)>,
    },
    Data {
        stream: u32,
        end: bool,
        body: Vec<u8>,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    Ping {
        ack: bool,
        opaque: [u8; 8],
    },
    GoAway {
        last: u32,
        code: u32,
    },
    Settings(Vec<(u16, u32)>),
    SettingsAck,
    Window {
        stream: u32,
        by: u32,
    },
    /// The splitter hung up.
    Closed,
}

/// As [`headers`] is for writing, this is for expecting.
pub fn heard(stream: u32, end: bool, fields: Fields<'_>) -> Got {
    let fields = fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Got::Headers { stream, end, fields }
}

pub fn bytes(stream: u32, end: bool, body: &[u8]) -> Got {
    Got::Data { stream, end, body: body.to_vec() }
}

pub fn was_reset(stream: u32, code: u32) -> Got {
    Got::Reset { stream, code }
}

pub fn bye(last: u32, code: u32) -> Got {
    Got::GoAway { last, code }
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = |end: &bool| if *end { " END" } else { "" };
        match self {
            Got::Headers { stream, end, fields } => write!(f, "HEADERS {stream}{} {fields:?}", ended(end)),
            Got::Data { stream, end, body } if body.len() <= 40 => {
                write!(f, "DATA {stream}{} \"{}\"", ended(end), body.escape_ascii())
            }
            Got::Data { stream, end, body } => write!(f, "DATA {stream}{} of {} bytes", ended(end), body.len()),
            Got::Reset { stream, code } => write!(f, "RST_STREAM {stream} code {code:#x}"),
            Got::Ping { ack, opaque } => write!(f, "PING ack={ack} {}", opaque.escape_ascii()),
            Got::GoAway { last, code } => write!(f, "GOAWAY last {last} code {code:#x}"),
            Got::Settings(list) => write!(f, "SETTINGS {list:?}"),
            Got::SettingsAck => f.write_str("SETTINGS ACK"),
            Got::Window { stream, by } => write!(f, "WINDOW_UPDATE {stream} by {by}"),
            Got::Closed => f.write_str("closed"),
        }
    }
}

//! HTTP/2 frames on the wire (RFC 9113 §4, §6): the nine-byte head parsed, every frame we send written.
//!
//! Bytes in, values out, and the other way round. It keeps no state and judges no frame in its context.

/// Length of a frame's head, bytes.
pub(super) const HEAD_LEN: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE as it stands before any SETTINGS (RFC 9113 §6.5.2); also what we accept, always.
pub(super) const DEFAULT_MAX_FRAME: usize = 16_384;
/// INITIAL_WINDOW_SIZE before any SETTINGS, and the connection window's start (RFC 9113 §6.9.2).
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// No window may exceed this (RFC 9113 §6.9.1).
pub(super) const MAX_WINDOW: u32 = 0x7fff_ffff;
/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in super::super) const ENABLE_PUSH: u16 = 2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// An error code (RFC 9113 §7); unknown ones pass through as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    pub const NO_ERROR: Reason = Reason(0x0);
    pub const PROTOCOL_ERROR: Reason = Reason(0x1);
    pub const INTERNAL_ERROR: Reason = Reason(0x2);
    pub const FLOW_CONTROL_ERROR: Reason = Reason(0x3);
    pub const SETTINGS_TIMEOUT: Reason = Reason(0x4);
    pub const STREAM_CLOSED: Reason = Reason(0x5);
    pub const FRAME_SIZE_ERROR: Reason = Reason(0x6);
    pub const REFUSED_STREAM: Reason = Reason(0x7);
    pub const CANCEL: Reason = Reason(0x8);
    pub const COMPRESSION_ERROR: Reason = Reason(0x9);
    pub const ENHANCE_YOUR_CALM: Reason = Reason(0xb);
}

/// The name of an error code (RFC 9113 §7).
pub(super) fn reason_name(code: u32) -> Option<&'static str> {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    NAMES.get(code as usize).copied()
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Of the payload, bytes.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// Without the reserved bit.
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; HEAD_LEN]) -> Self {
        Self {
            length: u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize,
            kind: bytes[3],
            flags: bytes[4],
            stream: be_u32(&bytes[5..9]) & 0x7fff_ffff,
        }
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes());
    }

    fn bytes(self) -> [u8; HEAD_LEN] {
        let length = (self.length as u32).to_be_bytes();
        let stream = self.stream.to_be_bytes();
        [length[1], length[2], length[3], self.kind, self.flags, stream[0], stream[1], stream[2], stream[3]]
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The first four bytes as a number in network order.
pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The payload without its padding (RFC 9113 §6.1); `None`: the padding is longer than the payload.
pub(super) fn unpadded(head: Head, payload: &[u8]) -> Option<&[u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (&pad, rest) = payload.split_first()?;
    rest.len().checked_sub(usize::from(pad)).map(|len| &rest[..len])
}

pub(super) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    Head { length: settings.len() * 6, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn write_settings_ack(out: &mut Vec<u8>) {
    Head { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
}

pub(super) fn write_ping(out: &mut Vec<u8>, ack: bool, opaque: &[u8; 8]) {
    Head { length: 8, kind: kind::PING, flags: if ack { flag::ACK } else { 0 }, stream: 0 }.write(out);
    out.extend_from_slice(opaque);
}

pub(super) fn write_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    Head { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream }.write(out);
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(super) fn write_reset(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    Head { length: 4, kind: kind::RST_STREAM, flags: 0, stream }.write(out);
    out.extend_from_slice(&reason.0.to_be_bytes());
}

pub(super) fn write_goaway(out: &mut Vec<u8>, last: u32, reason: Reason, debug: &str) {
    Head { length: 8 + debug.len(), kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&reason.0.to_be_bytes());
    out.extend_from_slice(debug.as_bytes());
}

/// One DATA frame; `payload` fits the receiver's frame size.
pub(super) fn write_data(out: &mut Vec<u8>, stream: u32, payload: &[u8], end_stream: bool) {
    let flags = if end_stream { flag::END_STREAM } else { 0 };
    Head { length: payload.len(), kind: kind::DATA, flags, stream }.write(out);
    out.extend_from_slice(payload);
}

/// HEADERS, and CONTINUATION where the block that `encode` appends is longer than `max_frame`.
pub(super) fn write_headers(
    out: &mut Vec<u8>,
    stream: u32,
    end_stream: bool,
    max_frame: usize,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    encode(out);
    let length = out.len() - start - HEAD_LEN;
    let end_stream = if end_stream { flag::END_STREAM } else { 0 };
    if length <= max_frame {
        let head = Head { length, kind: kind::HEADERS, flags: end_stream | flag::END_HEADERS, stream };
        out[start..start + HEAD_LEN].copy_from_slice(&head.bytes());
        return;
    }
    let block = out.split_off(start + HEAD_LEN);
    out.truncate(start);
    let mut fragments = block.chunks(max_frame).peekable();
    let mut kind = kind::HEADERS;
    let mut flags = end_stream;
    while let Some(fragment) = fragments.next() {
        if fragments.peek().is_none() {
            flags |= flag::END_HEADERS;
        }
        Head { length: fragment.len(), kind, flags, stream }.write(out);
        out.extend_from_slice(fragment);
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_as_it_was_written() {
        let mut out = Vec::new();
        Head { length: 0x01_02_03, kind: kind::HEADERS, flags: flag::END_HEADERS, stream: 0x7fff_fffd }.write(&mut out);
        let head = Head::parse(out.as_slice().try_into().unwrap());
        assert_eq!((head.length, head.kind, head.flags, head.stream), (0x01_02_03, 1, 4, 0x7fff_fffd));
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        assert_eq!(Head::parse(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]).stream, 1);
    }

    #[test]
    fn padding_is_cut_off_and_may_not_exceed_the_payload() {
        let padded = |length| Head { length, kind: kind::DATA, flags: flag::PADDED, stream: 1 };
        assert_eq!(unpadded(padded(5), &[2, b'h', b'i', 0, 0]), Some(&b"hi"[..]));
        assert_eq!(unpadded(padded(3), &[2, 0, 0]), Some(&b""[..]));
        assert_eq!(unpadded(padded(3), &[3, 0, 0]), None);
        assert_eq!(unpadded(padded(0), &[]), None);
    }

    #[test]
    fn a_long_block_goes_on_in_continuations_of_the_receivers_frame_size() {
        let mut out = Vec::new();
        write_headers(&mut out, 7, true, 10, |out| out.extend(0..25));
        let mut seen = Vec::new();
        let mut block = Vec::new();
        let mut rest = out.as_slice();
        while let Some((head, tail)) = rest.split_first_chunk() {
            let head = Head::parse(head);
            seen.push((head.kind, head.flags, head.length));
            block.extend_from_slice(&tail[..head.length]);
            rest = &tail[head.length..];
        }
        assert_eq!(seen, [(1, 1, 10), (9, 0, 10), (9, 4, 5)]);
        assert_eq!(block, (0..25).collect::<Vec<u8>>());
    }
}

//! Frames that speak of the connection or of credit: SETTINGS, PING, GOAWAY, WINDOW_UPDATE (RFC 9113 §6.5, §6.7 to §6.9). In: one
//! whole frame from `receive`; out: the connection's new state, or the error that ends it.

use std::time::Instant;

use super::flood::Cheap;
use super::frame::{self, DEFAULT_MAX_FRAME, Head, MAX_WINDOW, Reason, be_u32, flag, setting};
use super::pair::Face;
use super::receive::{Fatal, frame_size, protocol};
use super::{DRAIN_PING, Splitter};

impl Splitter {
    pub(super) fn settings(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("SETTINGS on a stream"));
        }
        if head.has(flag::ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(frame_size("SETTINGS acknowledgement with a payload"))
            };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(frame_size("SETTINGS is no multiple of 6 bytes"));
        }
        self.charge(now, c, Cheap::Settings);
        let conn = &mut self.conns[c];
        let mut window = conn.peer.initial_window;
        for entry in payload.chunks_exact(6) {
            let value = be_u32(&entry[2..]);
            match u16::from_be_bytes([entry[0], entry[1]]) {
                setting::HEADER_TABLE_SIZE => conn.encoder.set_max_table_size(value as usize),
                setting::ENABLE_PUSH if value > 1 || value == 1 && conn.face() == Face::Endpoint => {
                    return Err(protocol("SETTINGS_ENABLE_PUSH"));
                }
                setting::MAX_CONCURRENT_STREAMS => conn.peer.max_streams = value,
                setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1"));
                }
                setting::INITIAL_WINDOW_SIZE => window = value,
                setting::MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME..=0xff_ffff).contains(&(value as usize)) => {
                    return Err(protocol("SETTINGS_MAX_FRAME_SIZE out of range"));
                }
                setting::MAX_FRAME_SIZE => conn.peer.max_frame = value as usize,
                setting::MAX_HEADER_LIST_SIZE => conn.peer.max_list = value as usize,
                _ => {}
            }
        }
        frame::write_settings_ack(conn.out());
        let first = !std::mem::replace(&mut conn.settled, true);
        let difference = i64::from(window) - i64::from(std::mem::replace(&mut conn.peer.initial_window, window));
        if difference != 0 {
            self.shift_windows(now, c, difference)?;
        }
        if self.conns[c].face() == Face::Endpoint {
            if first {
                self.dial_succeeded(c);
            }
            self.mind_stream_limit(now, c);
            self.admit(now, c);
            if first {
                self.relieve(now);
            }
        }
        Ok(())
    }

    pub(super) fn ping(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let opaque: &[u8; 8] = payload.try_into().map_err(|_| frame_size("PING is 8 bytes"))?;
        if head.stream != 0 {
            return Err(protocol("PING on a stream"));
        }
        if head.has(flag::ACK) {
            if opaque == DRAIN_PING {
                self.finish_drain(now, c);
            }
            return Ok(());
        }
        // gRPC peers measure the way by a PING for every DATA that comes while none is out: thousands a second, and no flood.
        if !std::mem::take(&mut self.conns[c].fed) {
            self.charge(now, c, Cheap::Ping);
        }
        frame::write_ping(self.conns[c].out(), true, opaque);
        Ok(())
    }

    pub(super) fn goaway(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("GOAWAY on a stream"));
        }
        if payload.len() < 8 {
            return Err(frame_size("GOAWAY is at least 8 bytes"));
        }
        // A client's GOAWAY concerns pushed streams, of which there are none; it closes when its streams are done.
        if self.conns[c].face() == Face::Endpoint {
            let (last, reason) = (be_u32(payload) & 0x7fff_ffff, Reason(be_u32(&payload[4..])));
            self.endpoint_goaway(now, c, last, reason);
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, now: Instant, c: u32, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if payload.len() != 4 {
            return Err(frame_size("WINDOW_UPDATE is 4 bytes"));
        }
        let increment = be_u32(payload) & MAX_WINDOW;
        self.charge(now, c, Cheap::WindowUpdate);
        let conn = &mut self.conns[c];
        if head.stream == 0 {
            if increment == 0 {
                return Err(protocol("WINDOW_UPDATE of 0"));
            }
            if conn.send.grow(increment).is_err() {
                return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "connection window above 2^31-1"));
            }
            self.pump(now, c);
            return Ok(());
        }
        if conn.is_idle(head.stream) {
            return Err(protocol("WINDOW_UPDATE on an idle stream"));
        }
        let face = conn.face();
        let Some(&key) = conn.streams.get(&head.stream) else { return Ok(()) };
        if increment == 0 {
            return self.stream_error(now, c, key, Reason::PROTOCOL_ERROR);
        }
        let Some(pair) = self.pairs.get(key) else { return Ok(()) };
        if pair.side(face).send.grow(increment).is_err() {
            return self.stream_error(now, c, key, Reason::FLOW_CONTROL_ERROR);
        }
        self.push(now, key, face);
        Ok(())
    }
}

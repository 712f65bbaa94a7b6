//! HTTP/2 frames by hand, valid or not, and the sockets that carry them. In: what a script wants to say; out: bytes. It
//! keeps no state of a connection and judges nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

pub const INITIAL_WINDOW_SIZE: u16 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CANCEL: u32 = 8;

/// How often a blocked read or write looks at the clock.
const LOOK: Duration = Duration::from_millis(50);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

pub fn settings(list: &[(u16, u32)]) -> Vec<u8> {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &list.iter().flat_map(entry).collect::<Vec<u8>>())
}

pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

pub fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// A literal that enters no table (RFC 7541 §6.2.2), or, with `indexed`, one that does (§6.2.1).
pub fn literal(out: &mut Vec<u8>, indexed: bool, name: &str, value: &[u8]) {
    out.push(if indexed { 0x40 } else { 0 });
    string(out, name.as_bytes());
    string(out, value);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes.len();
    if rest < 127 {
        out.push(rest as u8);
    } else {
        out.push(127);
        rest -= 127;
        while rest >= 128 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend(bytes);
}

/// The head of a call of the Echo service: `Unary`, `ServerStream`, …
pub fn call(method: &str) -> Vec<u8> {
    // :method POST and :scheme http from the static table.
    let mut out = vec![0x83, 0x86];
    literal(&mut out, false, ":path", format!("/sluice.loadtest.v1.Echo/{method}").as_bytes());
    literal(&mut out, false, ":authority", b"echo");
    literal(&mut out, false, "content-type", b"application/grpc");
    literal(&mut out, false, "te", b"trailers");
    out
}

pub fn headers(stream: u32, end: bool, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), stream, block)
}

/// A block of any size, in HEADERS and as many CONTINUATION as it takes.
pub fn long_headers(stream: u32, end: bool, block: &[u8]) -> Vec<u8> {
    let mut parts = block.chunks(16_384).peekable();
    let (mut out, mut kind, mut flags) = (Vec::new(), HEADERS, u8::from(end));
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(kind, flags | last, stream, part));
        (kind, flags) = (CONTINUATION, 0);
    }
    out
}

/// The only message of a call: asks for an answer of this many bytes, this many times.
pub fn ask(stream: u32, response_size: u32, response_count: u32) -> Vec<u8> {
    let mut message = vec![0x10];
    varint(&mut message, response_size);
    message.push(0x20);
    varint(&mut message, response_count);
    let body = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
    frame(DATA, END_STREAM, stream, &body)
}

fn varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 128 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A connection of a script that ends at a certain time, whatever blocks.
pub struct Wire {
    pub stream: TcpStream,
    pub end: Instant,
    /// Bytes written since the last rest.
    burst: usize,
}

impl Wire {
    pub fn connect(target: SocketAddr, end: Instant) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(2)).ok()?;
        Some(Self::on(stream, end))
    }

    pub fn on(stream: TcpStream, end: Instant) -> Self {
        // A socket that cannot be set up shows in the first call on it.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(LOOK));
        let _ = stream.set_write_timeout(Some(LOOK));
        Self { stream, end, burst: 0 }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Writes all; `false`: the connection or the time is over. Rests a little after each MiB, as a sender across a network
    /// would: what is measured is the agent, not who gets the machine's cores.
    pub fn say(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    self.burst += n;
                }
                Err(error) if is_wait(&error) => {}
                Err(_) => return false,
            }
            if self.is_over() {
                return false;
            }
        }
        if self.burst > 1 << 20 {
            self.burst = 0;
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Reads and throws away on a thread of its own, until the connection ends; its peer's end ends this side too.
    pub fn drain(&self) {
        let Ok(mut stream) = self.stream.try_clone() else { return };
        let end = self.end;
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while Instant::now() < end {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if is_wait(&error) => {}
                    Err(_) => break,
                }
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
    }

    /// Does nothing until the time is over or the peer hangs up.
    pub fn wait(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while !self.is_over() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_wait(&error) => {}
                Err(_) => return,
            }
        }
    }
}

pub fn is_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

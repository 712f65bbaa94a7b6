//! Endpoints that do harm: each answers every connection with its script. They read what comes unless their harm is not
//! to, and know no more of a request than the number of its stream.

use std::io::{self, Read};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::frames::*;

/// Longer than any test: it is killed.
const LONG: Duration = Duration::from_secs(3_600);

/// Serves with the harm of this name on all of the host's addresses until it is killed. `None`: there is none.
pub fn run(name: &str, port: u16) -> Option<io::Result<()>> {
    let script = script(name)?;
    Some(TcpListener::bind(("::", port)).and_then(|listener| {
        for stream in listener.incoming() {
            let wire = Wire::on(stream?, Instant::now() + LONG);
            thread::spawn(move || script(wire));
        }
        Ok(())
    }))
}

/// Until its connection ends; the result has no meaning.
type Script = fn(Wire) -> bool;

fn script(name: &str) -> Option<Script> {
    Some(match name {
        "ping" => |mut wire| open(&mut wire) && endless(&mut wire, &frame(PING, 0, 0, b"pingping")),
        "settings" => |mut wire| open(&mut wire) && endless(&mut wire, &settings(&[(INITIAL_WINDOW_SIZE, 65_535)])),
        "priority" => |mut wire| open(&mut wire) && endless(&mut wire, &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        "window-update" => |mut wire| open(&mut wire) && endless(&mut wire, &window(0, 1)),
        "garbage" => |mut wire| open(&mut wire) && endless(&mut wire, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "never-settings" => |mut wire| {
            wire.wait();
            true
        },
        "no-read" => |mut wire| {
            let said = wire.say(&settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)])) && wire.say(&window(0, 0x7fff_0000));
            thread::sleep(LONG);
            said
        },
        "reset-all" => |wire| each(wire, cancel),
        "refuse-all" => |wire| each(wire, |id| frame(RST_STREAM, 0, id, &7u32.to_be_bytes())),
        "close" => |wire| wire.is_over(),
        "continuation" => |wire| {
            each(wire, |id| [frame(HEADERS, 0, id, &[0x88]), frame(CONTINUATION, 0, id, &[0; 8]).repeat(100)].concat())
        },
        "huge-headers" => |wire| {
            each(wire, |id| {
                let mut block = vec![0x88];
                literal(&mut block, false, "huge", &[b'x'; 100_000]);
                long_headers(id, false, &block)
            })
        },
        "interim" => |wire| each(wire, |id| headers(id, false, &[0x08, 3, b'1', b'0', b'3']).repeat(1_000)),
        "empty-data" => {
            |wire| each(wire, |id| [headers(id, false, &[0x88]), frame(DATA, 0, id, &[]).repeat(1_000)].concat())
        }
        "beyond-window" => {
            |wire| each(wire, |id| [headers(id, false, &[0x88]), frame(DATA, 0, id, &[0; 16_000]).repeat(100)].concat())
        }
        _ => return None,
    })
}

fn open(wire: &mut Wire) -> bool {
    wire.drain();
    wire.say(&settings(&[]))
}

fn endless(wire: &mut Wire, frame: &[u8]) -> bool {
    let batch = frame.repeat(1 + 16_384 / frame.len());
    while wire.say(&batch) {}
    false
}

/// Says something for each request that comes.
fn each(mut wire: Wire, say: impl Fn(u32) -> Vec<u8>) -> bool {
    let mut came = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut left = PREFACE.len();
    if !wire.say(&settings(&[])) {
        return false;
    }
    loop {
        match wire.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => came.extend_from_slice(&buffer[..n]),
            Err(error) if is_wait(&error) => continue,
            Err(_) => return false,
        }
        let preface = left.min(came.len());
        came.drain(..preface);
        left -= preface;
        while let Some(head) = came.first_chunk::<9>().copied() {
            let whole = 9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if came.len() < whole {
                break;
            }
            came.drain(..whole);
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if head[3] == HEADERS && !wire.say(&say(id)) {
                return false;
            }
        }
    }
}

